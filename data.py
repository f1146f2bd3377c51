"""From a CSV to batches: texts and labels, folds, tokens, batches of similar length.

N data rows, C labels, K folds; B rows of a batch, T tokens. Texts are tokenised once, into one flat
array; a batch is as long as its longest text. What the encoder reads of a row (a tag, a second
column): `make_inputs`. Which rows share a batch, and their order: `length_batches`.
"""

import functools
import hashlib
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from support.csvfile import check_columns, check_file, read_frames, read_header
from support.errors import UserError
from support.files import file_sha256
from support.findings import Findings, parse_labels

TEXT_COLUMNS = ("text", "comment_text", "sentence", "content", "review")


@dataclass
class Table:
    """Rows of a CSV. `labels` is float32 (N, C), or None where a cell or a column is missing."""

    ids: list[str]
    texts: list[str]  # as written; rows with the same text are copies
    inputs: list[str]  # what the encoder reads
    labels: np.ndarray | None
    text_column: str
    sha256: str = ""  # of the file

    @functools.cached_property
    def hashes(self) -> np.ndarray:
        """uint64 (N,): equal for copies of a text."""
        return text_hashes(self.texts)

    def __len__(self) -> int:
        return len(self.ids)


def make_inputs(texts: list[str], columns=None) -> list[str]:
    """What the encoder reads of each row: its text. Copies and folds go by `texts` all the same.

    `columns`: a DataFrame of all cells as written, or None (`predict.py --text` has texts alone).
    """
    return texts


def ensure_text_column(
    path: str, header: list[str], labels: list[str], text_column: str | None, prefer: str | None
) -> str:
    """The column asked for, else `prefer`, else a usual name. UserError when it isn't clear."""
    found = f"the columns are {', '.join(map(repr, header))[:300]}"
    asked = text_column or (None if prefer in TEXT_COLUMNS else prefer)
    names = [n for n in dict.fromkeys([prefer, *TEXT_COLUMNS]) if n in header and n not in labels]
    names = [asked] if asked else names
    if not names:
        raise UserError(f"{path}:1: no text column; {found} - name it with --text-column")
    name = names[0]
    if name not in header:
        raise UserError(f"{path}:1: no column {name!r}; {found} - see --text-column")
    if name in labels:
        raise UserError(f"--labels: {name!r} is the text column - name 0/1 columns only")
    if len(names) > 1 and name not in ("text", prefer):
        both = f"{' and '.join(names)} could both be the text"
        raise UserError(f"{path}:1: {both} - choose with --text-column")
    if not text_column and (name != "text" or len(names) > 1):
        print(f"text column: {name}")
    return name


def read_chunks(
    path: str, text_column: str, labels: list[str], rows: int | None, findings: Findings
) -> Iterator[Table]:
    """Tables of at most `rows` rows in the file's order; always one, even if it is empty.

    Ids and texts stay as written ('NA' is a text, 007 an id); ids left out are numbers from 0.
    """
    header, n = read_header(path), 0
    if text_column not in header:  # it was when the column was chosen
        raise UserError(f"{path}: changed while it was read - the same command reads it again")
    complete = set(labels) <= set(header)
    for frame in read_frames(path, header, rows):
        texts = frame[text_column].tolist()
        numbers = [str(i) for i in range(n, n + len(texts))]
        ids = frame["id"].tolist() if "id" in header else numbers
        y = parse_labels(frame, labels, findings) if complete else None
        findings.add_rows(frame, texts, labels)
        yield Table(ids, texts, make_inputs(texts, frame), y, text_column)
        n += len(texts)
    if not n:
        yield Table([], [], [], None, text_column)


def read_table(path: str, labels: list[str], text_column: str | None) -> Table:
    """A whole training CSV. UserError for the first thing that is wrong with it."""
    sha256 = file_sha256(check_file(path, "a CSV"))
    header, findings = read_header(path), Findings(path)
    text_column = ensure_text_column(path, header, labels, text_column, None)
    check_columns(path, header, labels)
    *_, table = read_chunks(path, text_column, labels, None, findings)
    findings.check_labels(labels)
    if not len(table):
        raise UserError(f"{path}: a header and no rows - add rows to train on")
    if file_sha256(path) != sha256:
        raise UserError(f"{path}: changed while it was read - the same command reads it again")
    findings.say()
    return replace(table, sha256=sha256)


# Folds


def normalise(text: str) -> str:
    """What makes two texts the same: Unicode NFKC, case and white space apart."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def text_hashes(texts: list[str]) -> np.ndarray:
    """uint64 (N,): 8 bytes of BLAKE2b of each normalised text."""
    keys = (normalise(t).encode("utf-8", "replace") for t in texts)
    hashes = b"".join(hashlib.blake2b(k, digest_size=8).digest() for k in keys)
    return np.frombuffer(hashes, dtype="<u8")


def assign_folds(labels: np.ndarray, hashes: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """int16 (N,): the fold of each row. Rows with equal hashes share one; labels spread evenly.

    Iterative stratification (Sechidis et al. 2011, rarest label first) over groups of equal texts.
    A group goes to the fold that has least of the label; among equals, to the one that has least of
    the group's combination of labels, then fewest rows. UserError with fewer groups than folds.
    """
    _, group, size = np.unique(hashes, return_inverse=True, return_counts=True)
    G = len(size)
    if folds > G:
        few = f"only {G} distinct texts for {folds} folds (a hold-out takes five)"
        raise UserError(f"--folds: {few} - use fewer folds, or add rows")
    # (G, C + 1): positives of each label in each group. The last label stands for the rows.
    counts = np.stack([*(np.bincount(group, y, G) for y in labels.T), size], 1).astype(np.int64)
    todo = counts > 0  # groups without a fold, by label
    kinds, combination = np.unique(todo, axis=0, return_inverse=True)
    order = np.random.default_rng([seed, 0]).permutation(G)
    order = order[np.argsort(-size[order], kind="stable")]  # large groups are the hardest to place
    has = np.zeros((counts.shape[1], folds), dtype=np.int64)  # rows of each label in each fold
    mixed = np.zeros((len(kinds), folds), dtype=np.int64)  # rows of each combination in each fold
    fold = np.empty(G, dtype=np.int16)
    while todo.any():
        remaining = todo.sum(0)
        label = int(np.where(remaining > 0, remaining, G + 1).argmin())
        members = order[todo[order, label]]
        for g in members:
            k = fold[g] = np.lexsort((has[-1], mixed[combination[g]], has[label]))[0]
            has[:, k] += counts[g]
            mixed[combination[g], k] += size[g]
        todo[members] = False
    return fold[group]


# Tokens and batches


@dataclass
class EmotionDataset(torch.utils.data.Dataset):
    """Row i: `input_ids` int32 (T,), cut out of one flat array, and `labels` float32 (C,)."""

    ids: np.ndarray  # int32 (all tokens,): token ids
    offsets: np.ndarray  # int64 (N + 1,): row i is ids[offsets[i]:offsets[i + 1]]
    cut: int = 0  # rows longer than max_length
    labels: np.ndarray | None = None  # float32 (N, C)

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> dict:
        item = {"input_ids": self.ids[self.offsets[i] : self.offsets[i + 1]]}
        return item if self.labels is None else {**item, "labels": self.labels[i]}


def encode(tokenizer, inputs: list[str], max_length: int, labels=None) -> EmotionDataset:
    """All inputs tokenised, special tokens included. train.py and predict.py both come here."""
    options = {"truncation": True, "return_attention_mask": False, "verbose": False}
    options |= {"return_token_type_ids": False}
    ids, lengths, cut = [np.zeros(0, np.int32)], [0], 0
    for i in range(0, len(inputs), 1000):  # larger chunks leave the processor's cache
        rows = tokenizer(inputs[i : i + 1000], max_length=max_length, **options)["input_ids"]
        # A blank text, to a tokenizer without special tokens, has none: one of padding.
        rows = [r or [tokenizer.pad_token_id] for r in rows]
        if full := [inputs[i + j] for j, r in enumerate(rows) if len(r) >= max_length]:
            longer = tokenizer(full, max_length=max_length + 1, **options)["input_ids"]
            cut += sum(len(r) > max_length for r in longer)  # exactly full is not cut
        lengths += map(len, rows)
        ids.append(np.fromiter((t for r in rows for t in r), np.int32, sum(map(len, rows))))
    return EmotionDataset(np.concatenate(ids), np.cumsum(lengths, dtype=np.int64), cut, labels)


@dataclass
class DataCollator:
    """Rows of an EmotionDataset -> tensors on the device, as long as the longest row."""

    pad_id: int
    max_length: int = 1_000_000  # what the encoder takes; the rounding up stops there
    device: str = "cpu"
    precision: str = "fp32"

    def __call__(self, items: list[dict]) -> dict[str, torch.Tensor]:
        rows = [x["input_ids"] for x in items]
        # Except for fp32 on a CPU, few different lengths: oneDNN (bf16) compiles for each shape.
        multiple = 1 if (self.device, self.precision) == ("cpu", "fp32") else 8
        width = min(-(-max(map(len, rows)) // multiple) * multiple, self.max_length)
        mask = np.arange(width) < np.array([[len(row)] for row in rows])  # (B, T)
        ids = np.full(mask.shape, self.pad_id, dtype=np.int64)
        ids[mask] = np.concatenate(rows)
        arrays = {"input_ids": ids, "attention_mask": mask.astype(np.int64)}
        if "labels" in items[0]:
            arrays["labels"] = np.stack([x["labels"] for x in items])  # (B, C)
        batch = {name: torch.from_numpy(x) for name, x in arrays.items()}
        if cuda := self.device == "cuda":  # there a copy from pinned memory need not be waited for
            batch = {name: t.pin_memory() for name, t in batch.items()}
        return {name: t.to(self.device, non_blocking=cuda) for name, t in batch.items()}


def length_batches(lengths: np.ndarray, batch_size: int, seed: list[int]) -> list[np.ndarray]:
    """Positions 0..N-1 in batches of similar length, all in an order drawn from `seed`.

    The shuffled rows are sorted by length within pools of 50 batches: epochs differ in batches.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(lengths))
    order = order[np.lexsort((lengths[order], np.arange(len(order)) // (50 * batch_size)))]
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def token_batches(lengths: np.ndarray, tokens: int) -> list[np.ndarray]:
    """Positions sorted by length, longest first, in batches of about `tokens` tokens."""
    order, batches = np.argsort(-lengths, kind="stable"), []
    while len(order):
        n = max(1, tokens // max(1, int(lengths[order[0]])))
        batches.append(order[:n])
        order = order[n:]
    return batches
