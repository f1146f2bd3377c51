"""From a CSV to batches: reading and checking, duplicate texts, folds, tokens, batches of similar length.

B rows of a batch, T tokens, C labels, N data rows, K folds. Texts are tokenised once, before the folds, into one flat
int32 array; a batch is padded to its longest row only. Another text column or another way to join columns:
`read_chunks`. Another order of the rows: `length_batches`.
"""

import csv
import difflib
import gzip
import hashlib
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from config import UserError, warn

TEXT_NAMES = ("text", "comment_text", "sentence", "content", "review")
TRUTH = {"0": 0.0, "1": 1.0, "0.0": 0.0, "1.0": 1.0, "false": 0.0, "true": 1.0}
csv.field_size_limit(2**31 - 1)  # the default of 131,072 characters refuses long texts


@dataclass
class Table:
    """Rows of a CSV. `labels` is float32 (N, C), or None when they were not asked for or are not in the file."""

    path: str
    ids: list[str]
    texts: list[str]
    labels: np.ndarray | None

    def __len__(self) -> int:
        return len(self.ids)


def open_text(path: str | Path):
    """A UTF-8 text file, unzipped on the way where the name ends in .gz; line ends are left to the csv module."""
    opener = gzip.open if str(path).endswith(".gz") else open
    return opener(path, "rt", encoding="utf-8-sig", newline="")


def check_file(path: str | Path, what: str) -> Path:
    """`path` if it is a readable regular file; else a UserError that names similar files beside it."""
    p = Path(path)
    try:
        if p.is_file():
            p.open("rb").close()
            return p
        if p.exists():
            raise UserError(f"{path}: is {'a folder' if p.is_dir() else 'not a regular file'} - {what} must be a file")
        near = difflib.get_close_matches(p.name, [q.name for q in p.parent.iterdir()] if p.parent.is_dir() else [])
    except OSError as e:
        raise UserError(f"{path}: {e.strerror} - {what} must be a readable file") from None
    raise UserError(f"{path}: no such file" + (f" - did you mean {', '.join(near)}?" if near else f" ({what})"))


def _rows(path: str) -> Iterator[list[str]]:
    """The records of a CSV, with every failure of decoding or quoting turned into a UserError that names the row."""
    n = 1
    try:
        with open_text(path) as f:
            for n, row in enumerate(csv.reader(f, strict=True), 2):  # noqa: B007  n: the record that would come next
                yield row
    except UnicodeDecodeError:
        with (gzip.open if str(path).endswith(".gz") else open)(path, "rb") as f:
            for line, raw in enumerate(f, 1):
                try:
                    raw.decode("utf-8")
                except UnicodeDecodeError as e:
                    raise UserError(
                        f"{path}: line {line}: not UTF-8 (byte 0x{raw[e.start]:02x} at {e.start}) - save the file as UTF-8"
                    ) from None
        raise UserError(f"{path}: not UTF-8 - save the file as UTF-8") from None
    except csv.Error as e:
        mend = 'close the quote; a quote inside a quoted text is written ""'
        raise UserError(f"{path}:{n}: broken quoting in the record that begins here ({e}) - {mend}") from None
    except (OSError, EOFError, gzip.zlib.error) as e:
        raise UserError(f"{path}:{n}: can't be read ({e})") from None


def _columns(path: str, header: list[str], text_column: str | None, labels: list[str], quiet: bool) -> tuple[int, int | None]:
    """Positions of the text and (if any) the id column; checks that names are there and not doubled."""
    found = f"the columns are {', '.join(map(repr, header))[:300]}"
    twice = sorted({h for h in header if h and header.count(h) > 1})
    if twice:
        raise UserError(f"{path}:1 column {twice[0]!r}: stands twice in the header - rename or remove one")
    if text_column is None:
        names = [n for n in TEXT_NAMES if n in header and n not in labels]
        if "text" not in names and len(names) > 1:
            raise UserError(f"{path}:1: {' and '.join(names)} could both be the text - choose with --text-column")
        if not names:
            sep = next((s for s in ";\t|" if len(header) == 1 and s in header[0]), None)
            mend = f"separate the fields by commas, not {sep!r}" if sep else "name the text with --text-column"
            raise UserError(f"{path}:1: no text column; {found} - {mend}")
        text_column = names[0]
        if text_column != "text" and not quiet:
            print(f"text column: {text_column}")
    if text_column not in header:
        raise UserError(f"{path}:1: no column {text_column!r}; {found} - see --text-column")
    if text_column in labels:
        raise UserError(f"--labels: {text_column!r} is the text column - name 0/1 columns only")
    return header.index(text_column), header.index("id") if "id" in header else None


def read_chunks(
    path: str, text_column: str | None = None, labels: list[str] = (), required: bool = True, rows: int = 50_000,
    quiet: bool = False,
) -> Iterator[Table]:
    """Tables of at most `rows` rows each, in the file's order; always one, even if empty.

    Ids and texts stay as written ('NA' is a text, 007 an id); without an id column the row number from 0 is the id.
    Labels must be exactly 0/1 (also 0.0, 1.0, True, false). With `required` false, labels that are missing or wrong
    give `labels` None and are counted. Row numbers in messages count the header as row 1, as spreadsheets do.
    """
    check_file(path, "a CSV")
    reader = _rows(path)
    header = next(reader, None)
    if header is None or not any(header):
        raise UserError(f"{path}: the file is empty - it needs a header and rows" if header is None else f"{path}:1: the header is empty")  # fmt: skip
    header = [h.strip("\ufeff \t") for h in header]
    text_at, id_at = _columns(path, header, text_column, labels, quiet)
    missing = [n for n in labels if n not in header]
    if missing and required:
        hint = "name yours with --labels" if len(missing) == len(labels) else "add it, or name others with --labels"
        raise UserError(f"{path}:1: no label column {', '.join(missing)}; the columns are {', '.join(header)[:300]} - {hint}")
    if len(labels) > len(missing) > 0 and not quiet:
        warn(f"{path}: no label column {', '.join(missing)} - no scores are printed")
    label_at = [] if missing else [header.index(n) for n in labels]
    ids, texts, cells, at, blank, bad, n = [], [], [], [], 0, [], 0  # at: the row number of each row

    def table() -> Table:
        values = [TRUTH.get(c.strip().lower(), np.nan) for c in cells]
        y = np.array(values, dtype=np.float32).reshape(len(ids), len(label_at)) if label_at else None
        wrong = np.argwhere(np.isnan(y)) if y is not None else []
        bad.extend((at[i], labels[j], cells[i * len(label_at) + j]) for i, j in wrong)
        return Table(str(path), ids, texts, y if not len(wrong) else None)

    for n, row in enumerate(reader, 2):
        if not row:
            blank += 1
            continue
        if len(row) != len(header):
            raise UserError(
                f"{path}:{n}: {len(row)} fields where the header has {len(header)} (it begins {','.join(row)[:40]!r}) - "
                "put texts that hold commas or line breaks in double quotes"
            )
        at.append(n)
        ids.append(row[id_at] if id_at is not None else str(n - 2 - blank))
        texts.append(row[text_at])
        cells += [row[j] for j in label_at]
        if len(ids) == rows:
            yield table()
            ids, texts, cells, at = [], [], [], []
    if ids or n - 1 - blank <= 0:
        yield table()
    if blank and not quiet:
        warn(f"{path}: {blank} blank line(s) skipped")
    if id_at is None and not quiet:
        warn(f"{path}: no id column - row numbers from 0 are used")
    if bad and required:
        row, name, value = bad[0]
        others = ", ".join(dict.fromkeys(str(r) for r, _, _ in bad[1:5]))
        more = f"; also row {others}; {len(bad)} cells in all" if len(bad) > 1 else ""
        raise UserError(f"{path}:{row} column {name!r}: must be 0 or 1 ({value[:40]!r}{more}) - write 0 or 1 in each cell")
    if bad and not quiet:
        warn(f"{path}: {len(bad)} label cells are not 0/1 (first: row {bad[0][0]}, {bad[0][1]}) - no scores are printed")


def read_csv(path: str, text_column: str | None, labels: list[str]) -> Table:
    """A whole training CSV (see `read_chunks`); UserError when it has no rows."""
    parts = list(read_chunks(path, text_column, labels))
    if not len(parts[0]):
        raise UserError(f"{path}: a header and no rows - add rows to train on")
    ids, texts = [i for t in parts for i in t.ids], [x for t in parts for x in t.texts]
    return Table(str(path), ids, texts, np.concatenate([t.labels for t in parts]))


def normalise(text: str) -> str:
    """What makes two texts the same: Unicode NFKC, case and white space apart."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def text_hashes(texts: list[str]) -> np.ndarray:
    """uint64 (N,): 8 bytes of BLAKE2b of each normalised text."""
    digest = b"".join(hashlib.blake2b(normalise(t).encode("utf-8", "replace"), digest_size=8).digest() for t in texts)
    return np.frombuffer(digest, dtype="<u8")


def assign_folds(labels: np.ndarray, hashes: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """int16 (N,): the fold of each row. Rows with equal hashes share a fold; every label is spread evenly.

    Iterative stratification (Sechidis et al. 2011, rarest label first) over groups of equal texts. Each group goes
    to the fold that lacks most of the label; among equals, to the one that lacks most of the group's combination of
    labels, then most rows. Raises UserError with fewer distinct texts than folds.
    """
    _, group = np.unique(hashes, return_inverse=True)
    G, C = int(group.max()) + 1, labels.shape[1]
    if folds > G:
        raise UserError(f"--folds: only {G} distinct texts for {folds} folds (a hold-out takes five) - use fewer folds, or add rows")
    size = np.bincount(group, minlength=G)
    counts = np.stack([np.bincount(group, labels[:, j], G) for j in range(C)], 1).astype(np.int64)  # (G, C)
    _, combo = np.unique(counts > 0, axis=0, return_inverse=True)
    order = np.random.default_rng([seed, 0]).permutation(G)
    order = order[np.argsort(-size[order], kind="stable")]  # large groups first: they are the hardest to place
    # want[k, :]: how many rows of each label, of each combination and at all fold k still lacks (F = C + M + 1)
    n_combo = np.bincount(combo, size)
    want = np.tile(np.concatenate([counts.sum(0), n_combo, [size.sum()]]) / folds, (folds, 1))
    fold = np.full(G, -1, dtype=np.int16)
    todo = counts.astype(bool)  # groups without a fold, by label
    while True:
        remaining = todo.sum(0)
        if remaining.any():
            label = int(np.where(remaining > 0, remaining, G + 1).argmin())
            members = order[todo[order, label]]
        else:  # what is left carries no label
            label, members = C + len(n_combo), order[fold[order] < 0]
        by_label, by_rows = want[:, label].tolist(), want[:, -1].tolist()
        lists = {c: want[:, C + c].tolist() for c in set(combo[members].tolist())}
        for g, c, s in zip(members.tolist(), combo[members].tolist(), size[members].tolist(), strict=True):
            by_combo = lists[c]
            k = max(range(folds), key=lambda k: (by_label[k], by_combo[k], by_rows[k]))
            fold[g] = k
            by_label[k] -= counts[g, label] if label < C else s
            by_combo[k] -= s
            by_rows[k] -= s
        for k in range(folds):
            mine = members[fold[members] == k]
            want[k, :C] -= counts[mine].sum(0)
            want[k, C:-1] -= np.bincount(combo[mine], size[mine], len(n_combo))
            want[k, -1] -= size[mine].sum()
        todo[members] = False
        if label >= C:
            return fold[group]


@dataclass
class Tokens:
    """Tokenised texts: row i is ids[offsets[i]:offsets[i + 1]]; 4 bytes a token."""

    ids: np.ndarray  # int32 (all tokens,)
    offsets: np.ndarray  # int64 (N + 1,)
    cut: int = 0  # rows longer than max_length

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)


def tokenize(tokenizer, texts: list[str], max_length: int, chunk: int = 10_000) -> Tokens:
    """All texts with their special tokens, cut at max_length tokens."""

    def run(part, length):
        kw = dict(truncation=True, max_length=length, return_attention_mask=False, return_token_type_ids=False)
        return tokenizer(part, verbose=False, **kw)["input_ids"] if part else []

    ids, lengths, cut = [np.zeros(0, np.int32)], [0], 0
    for i in range(0, len(texts), chunk):
        rows = run(texts[i : i + chunk], max_length)
        full = [texts[i + j] for j, r in enumerate(rows) if len(r) >= max_length]
        cut += sum(len(r) > max_length for r in run(full, max_length + 1))  # exactly full is not cut
        lengths += map(len, rows)
        ids.append(np.fromiter((t for r in rows for t in r), np.int32, sum(map(len, rows))))
    return Tokens(np.concatenate(ids), np.cumsum(lengths, dtype=np.int64), cut)


class EmotionDataset(Dataset):
    """Row i as a dict: `row` (its number), `input_ids` int32 (T,) and, where known, `labels` float32 (C,)."""

    def __init__(self, tokens: Tokens, labels: np.ndarray | None = None):
        self.tokens, self.labels = tokens, labels

    def __len__(self) -> int:
        return len(self.tokens.offsets) - 1

    def __getitem__(self, i: int) -> dict:
        item = {"row": i, "input_ids": self.tokens.ids[self.tokens.offsets[i] : self.tokens.offsets[i + 1]]}
        return item if self.labels is None else {**item, "labels": self.labels[i]}


@dataclass
class Collator:
    """Rows of an EmotionDataset -> tensors padded to the longest row, up to a multiple of 8 (few distinct shapes)."""

    pad_id: int
    multiple: int = 8
    max_length: int = 1_000_000  # what the encoder takes; the rounding up stops there

    def __call__(self, items: list[dict]) -> dict[str, torch.Tensor]:
        longest = max(len(x["input_ids"]) for x in items)
        width = max(longest, min(-(-longest // self.multiple) * self.multiple, self.max_length))
        ids = np.full((len(items), width), self.pad_id, dtype=np.int64)  # (B, T)
        mask = np.zeros((len(items), width), dtype=np.int64)
        for i, x in enumerate(items):
            ids[i, : len(x["input_ids"])] = x["input_ids"]
            mask[i, : len(x["input_ids"])] = 1
        batch = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
        if "labels" in items[0]:
            batch["labels"] = torch.from_numpy(np.stack([x["labels"] for x in items]))  # (B, C)
        return batch


def length_batches(lengths: np.ndarray, batch_size: int, seed: list[int], pool: int = 50) -> list[np.ndarray]:
    """Positions 0..N-1 in batches of similar length, all in random order drawn from `seed`.

    The shuffled rows are sorted by length within pools of `pool` batches, so that batches differ from epoch to epoch.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(lengths))
    pools = [order[i : i + pool * batch_size] for i in range(0, len(order), pool * batch_size)]
    order = np.concatenate([p[np.argsort(lengths[p], kind="stable")] for p in pools])
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def token_batches(lengths: np.ndarray, tokens: int = 4096, multiple: int = 8) -> list[np.ndarray]:
    """Positions sorted by length, longest first, in batches of about `tokens` padded tokens: for prediction."""
    order = np.argsort(-lengths, kind="stable")
    batches, i = [], 0
    while i < len(order):
        width = max(1, -(-int(lengths[order[i]]) // multiple) * multiple)
        n = max(1, tokens // width)
        batches.append(order[i : i + n])
        i += n
    return batches
