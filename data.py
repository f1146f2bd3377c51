"""From a CSV to batches: texts and labels, folds, tokens, batches of similar length.

N data rows, C labels, K folds; B rows of a batch, T tokens. Texts are tokenised once, into one flat
array; a batch is as long as its longest text. What the encoder reads of a row (a tag, a second
column): `make_inputs`. Which rows share a batch, and their order: `length_batches`.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from config import Config
from support.csvfile import check_columns, check_file, check_named, ensure_text_column
from support.csvfile import read_frames, read_header
from support.errors import UserError
from support.files import file_sha256
from support.findings import Findings, parse_labels
from support.splits import join, read_split, say_large, text_hashes


@dataclass
class Table:
    """Rows of a CSV. `targets` is None where a cell or a column is missing."""

    ids: list[str]
    texts: list[str]  # as written; rows with the same text are copies
    inputs: list[str]  # what the encoder reads
    targets: np.ndarray | None  # float32 (N, C): what is learned, 0 or 1; shares (--soft-labels)
    text_column: str
    named: object = None  # DataFrame of the columns that a flag names
    group: np.ndarray | None = None  # (N,): the cell of --group-column, '' for no group
    folds: np.ndarray | None = None  # int16 (N,), where --fold-column or --valid give them
    sha256: str = ""  # of the file
    origin: dict = field(default_factory=dict)  # what else decides a run (tools/distil.py)

    @functools.cached_property
    def labels(self) -> np.ndarray | None:
        """float32 (N, C), 0 or 1 (a share from 0.5 on), for folds and scores; nan: not scored."""
        y = self.targets
        return None if y is None else np.where(np.isnan(y), y, y >= 0.5)

    @functools.cached_property
    def hashes(self) -> np.ndarray:
        """uint64 (N,): equal for copies of a text."""
        return text_hashes(self.texts)

    @functools.cached_property
    def groups(self) -> np.ndarray:
        """(N,): equal for rows that must share a fold: copies of a text, rows of one group."""
        return self.hashes if self.group is None else join(self.hashes, self.texts, self.group)

    def targets_of(self, k: int) -> np.ndarray:
        """float32 (N, C): what the model of fold k learns."""
        return self.targets

    def __len__(self) -> int:
        return len(self.ids)


def make_inputs(texts: list[str], columns=None) -> list[str]:
    """What the encoder reads of each row: its text. Copies and folds go by `texts` all the same.

    `columns`: a DataFrame of all cells as written, or None (`predict.py --text` has texts alone).
    """
    return texts


def read_chunks(
    path: str, text_column: str, labels: list[str], rows: int | None, findings: Findings, named=()
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
        yield Table(ids, texts, make_inputs(texts, frame), y, text_column, frame[list(named)])
        n += len(texts)
    if not n:
        yield Table([], [], [], None, text_column)


def read_table(path: str, config: Config) -> Table:
    """A whole training CSV. UserError for the first thing that is wrong with it."""
    sha256, labels = file_sha256(check_file(path, "a CSV")), config.labels
    named = [name for name in (config.fold_column, config.group_column) if name]
    header, findings = read_header(path), Findings(path, named=named, soft=config.soft_labels)
    text_column = ensure_text_column(path, header, labels, config.text_column, None)
    check_columns(path, header, labels)
    check_named(path, header, named, labels, text_column)
    *_, table = read_chunks(path, text_column, labels, None, findings, named)
    findings.check_labels(labels)
    if not len(table):
        raise UserError(f"{path}: a header and no rows - add rows")
    if file_sha256(path) != sha256:
        raise UserError(f"{path}: changed while it was read - the same command reads it again")
    findings.say()
    return replace(table, sha256=sha256, **read_split(path, table.named, config))


def read_data(config: Config) -> Table:
    """The rows of --train, and after them those of --valid, which alone are held out."""
    a = read_table(config.train, config)
    if not config.valid:
        return a
    b = read_table(config.valid, replace(config, text_column=a.text_column))
    both = {name: getattr(a, name) + getattr(b, name) for name in ("ids", "texts", "inputs")}
    both["targets"] = np.concatenate([a.targets, b.targets])
    both["group"] = np.concatenate([a.group, b.group]) if config.group_column else None
    both["folds"] = np.repeat([-1, 0], [len(a), len(b)])
    return replace(a, **both, sha256=f"{a.sha256} {b.sha256}")


# Folds


def split(data: Table, config) -> np.ndarray:
    """int (N,): the fold that holds each row out, as given or stratified; -1: never held out."""
    if data.folds is not None:
        return data.folds
    say_large(data, config.stratified_folds)
    fold = assign_folds(data.labels, data.groups, config.stratified_folds, config.fold_seed)
    if config.folds != 1:
        return fold
    size = np.bincount(fold)  # of groups the largest is in the first fold: one of a fifth is taken
    k = np.abs(size - len(fold) / len(size)).argmin() if config.group_column else 0
    return np.where(fold == k, 0, -1)


def assign_folds(labels: np.ndarray, groups: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """int16 (N,): the fold of each row. Rows with equal `groups` share one; labels spread evenly.

    Iterative stratification (Sechidis et al. 2011, rarest label first) over whole groups.
    A group goes to the fold that has least of the label; among equals, to the one that has least of
    the group's combination of labels, then fewest rows. UserError with fewer groups than folds.
    """
    _, group, size = np.unique(groups, return_inverse=True, return_counts=True)
    G = len(size)
    if folds > G:
        few = f"only {G} distinct texts or groups for {folds} folds (a hold-out takes five)"
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


def encode(tokenizer, inputs: list[str], max_length: int) -> EmotionDataset:
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
    return EmotionDataset(np.concatenate(ids), np.cumsum(lengths, dtype=np.int64), cut)


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
