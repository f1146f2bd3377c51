"""From a CSV to batches: reading and checking, duplicate texts, folds, tokens, batches of similar length.

B rows of a batch, T tokens, C labels, N data rows, K folds. Texts are tokenised once, before the folds, into
one flat int32 array; a batch is padded to its longest row only. Another text column or another way to join
columns: `read_chunks`. Another order of the rows: `length_batches`.
"""

import csv
import difflib
import gzip
import hashlib
import io
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from config import UserError, warn

TEXT_NAMES = ("text", "comment_text", "sentence", "content", "review")
TRUTH = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}
WRONG = 2  # marks any other cell
# Pieces of a text, cut before a character that does not compose with the one before it.
PIECES = re.compile(r"(?s).{1000,2000}?(?=[\0-\x7f\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fff])|.{1,2000}")
csv.field_size_limit(2**31 - 1)  # the default of 131,072 characters refuses long texts


@dataclass
class Table:
    """Rows of a CSV. `labels` is float32 (N, C), or None when a column is missing or a cell is not 0/1."""

    path: str
    ids: list[str]
    texts: list[str]
    labels: np.ndarray | None
    text_column: str = "text"

    def __len__(self) -> int:
        return len(self.ids)


def check_file(path: str | Path, what: str) -> Path:
    """`path` if it is a readable regular file; else a UserError that names similar files beside it."""
    p, near = Path(path), []
    try:
        if p.is_file():
            p.open("rb").close()
            return p
        if p.exists():
            kind = "a folder" if p.is_dir() else "not a regular file"
            raise UserError(f"{path}: is {kind} - {what} must be a file")
        if p.parent.is_dir():
            near = difflib.get_close_matches(p.name, [q.name for q in p.parent.iterdir()])
    except OSError as e:
        raise UserError(f"{path}: {e.strerror} - {what} must be a readable file") from None
    hint = f" - did you mean {', '.join(near)}?" if near else f" ({what})"
    raise UserError(f"{path}: no such file{hint}")


def _rows(path: str) -> Iterator[list[str]]:
    """The records of a CSV; whatever can't be read, decoded or parsed is a UserError that names the place."""
    opener = gzip.open if str(path).endswith(".gz") else open
    n = 1  # the record that comes next
    try:
        with opener(path, "rt", encoding="utf-8-sig", errors="surrogateescape", newline="") as f:
            reader = csv.reader((line for line in f if line.encode()), strict=True)  # surrogates don't encode
            for n, row in enumerate(reader, 2):  # noqa: B007
                yield row
    except UnicodeEncodeError as e:
        why = f"not UTF-8 (byte 0x{ord(e.object[e.start]) & 0xFF:02x} at {len(e.object[: e.start].encode())})"
        raise UserError(f"{path}: line {reader.line_num + 1}: {why} - save the file as UTF-8") from None
    except csv.Error as e:
        mend = 'close the quote; a quote inside a quoted text is written ""'
        raise UserError(f"{path}:{n}: broken quoting in the record that begins here ({e}) - {mend}") from None
    except (OSError, EOFError, gzip.zlib.error) as e:
        raise UserError(f"{path}:{n}: can't be read ({e})") from None


def _columns(path: str, head: list[str], text_column: str | None, labels: list[str], required: bool,
             quiet: bool, prefer: str | None) -> tuple[int, int | None, list[int]]:  # fmt: skip
    """Positions of the text, (if any) the id and the label columns; no name may be doubled or missing."""
    found = f"the columns are {', '.join(map(repr, head))[:300]}"
    if twice := sorted({h for h in head if h and head.count(h) > 1}):
        raise UserError(f"{path}:1 column {twice[0]!r}: stands twice in the header - rename or remove one")
    text_column = text_column or (None if prefer in TEXT_NAMES else prefer)
    names = [n for n in dict.fromkeys([prefer, *TEXT_NAMES]) if n in head and n not in labels]
    names = names if text_column is None else [text_column]
    if len(names) > 1 and names[0] not in ("text", prefer):
        raise UserError(f"{path}:1: {' and '.join(names)} could both be the text - choose with --text-column")
    if head[0].lower().startswith("sep="):
        raise UserError(f"{path}:1: {head[0]!r} is no header - remove this line, and separate by commas")
    if not names:
        sep = next((s for s in ";\t|" if len(head) == 1 and s in head[0]), None)
        mend = f"separate the fields by commas, not {sep!r}" if sep else "name the text with --text-column"
        raise UserError(f"{path}:1: no text column; {found} - {mend}")
    text = names[0]
    if (text != "text" or len(names) > 1) and text_column is None and not quiet:
        print(f"text column: {text}")
    if text not in head:
        raise UserError(f"{path}:1: no column {text!r}; {found} - see --text-column")
    if text in labels:
        raise UserError(f"--labels: {text!r} is the text column - name 0/1 columns only")
    missing = [n for n in labels if n not in head]
    lacks = f"no label column {', '.join(missing)}"
    if missing and required:
        mend = "name yours" if len(missing) == len(labels) else "add it, or name others"
        raise UserError(f"{path}:1: {lacks}; {found} - {mend} with --labels")
    if len(labels) > len(missing) > 0 and not quiet:
        warn(f"{path}: {lacks} - no scores are printed")
    label_at = [] if missing else [head.index(n) for n in labels]
    return head.index(text), head.index("id") if "id" in head else None, label_at


def read_chunks(path: str, text_column: str | None, labels: list[str], rows: int, required: bool = True,
                quiet: bool = False, prefer: str | None = None) -> Iterator[Table]:  # fmt: skip
    """Tables of at most `rows` rows each, in the file's order; always one, even if empty.

    Ids and texts stay as written ('NA' is a text, 007 an id); without an id column the row number from 0 is
    the id. With `required` false, labels that are missing or not 0/1 give `labels` None and a warning.
    `prefer` is the column that a run learned from: before the usual names, and alone if it is none of them.
    Messages count the header as row 1, as spreadsheets do.
    """
    check_file(path, "a CSV")
    reader = _rows(path)
    if (header := next(reader, None)) is None:
        raise UserError(f"{path}: the file is empty - it needs a header and rows")
    if not any(header):
        raise UserError(f"{path}:1: the header is empty")
    header = [h.strip("\ufeff \t") for h in header]
    text_at, id_at, label_at = _columns(path, header, text_column, labels, required, quiet, prefer)
    ids, texts, marks, blank = [], [], bytearray(), 0
    bad, wrong = [], 0  # the first few cells that are not 0/1, and how many there are

    def table() -> Table:
        y = None if not label_at or WRONG in marks else np.array(marks, np.float32).reshape(-1, len(labels))
        return Table(str(path), ids, texts, y, header[text_at])

    for n, row in enumerate(reader, 2):
        row = row or [""] * (len(header) == 1)  # a blank line of a single column is a blank text
        if not row:
            blank += 1
            continue
        if len(row) != len(header):
            got = f"{len(row)} fields where the header has {len(header)} (it begins {','.join(row)[:40]!r})"
            raise UserError(f"{path}:{n}: {got} - put texts that hold commas or line breaks in double quotes")
        if len(ids) == rows:
            yield table()
            ids, texts, marks = [], [], bytearray()
        ids.append(row[id_at] if id_at is not None else str(n - 2 - blank))
        texts.append(row[text_at])
        found = [TRUTH.get(row[j].strip().lower(), WRONG) for j in label_at]
        marks += bytes(found)
        wrong += found.count(WRONG)
        if WRONG in found and len(bad) < 5:
            bad += [(n, labels[i], row[label_at[i]]) for i, v in enumerate(found) if v == WRONG]
    yield table()
    if blank and not quiet:
        warn(f"{path}: {blank} blank line(s) skipped")
    if id_at is None and not quiet:
        like = next((f" (but {h!r}: rename it)" for h in header if h.lower() == "id"), "")
        warn(f"{path}: no id column{like} - row numbers from 0 are used")
    if bad and required:
        row, name, value = bad[0]
        others = ", ".join(dict.fromkeys(str(r) for r, _, _ in bad[:5] if r != row))
        more = (f"; also row {others}" if others else "") + (f"; {wrong} cells in all" if wrong > 1 else "")
        what = f"must be 0 or 1 ({value[:40]!r}{more})"
        raise UserError(f"{path}:{row} column {name!r}: {what} - write 0 or 1 in each cell")
    if bad and not quiet:
        wrong = f"{wrong} label cells are not 0/1 (first: row {bad[0][0]}, {bad[0][1]})"
        warn(f"{path}: {wrong} - no scores are printed")


def csv_text(rows: Iterable[list]) -> str:
    """Rows as CSV text that reads back the same: a lone carriage return wants quotes around all fields."""
    rows, text = list(rows), io.StringIO()
    bare = any("\r" in x for row in rows for x in row if isinstance(x, str))
    quoting = csv.QUOTE_NONNUMERIC if bare else csv.QUOTE_MINIMAL
    csv.writer(text, lineterminator="\n", quoting=quoting).writerows(rows)
    return text.getvalue()


def read_csv(path: str, text_column: str | None, labels: list[str]) -> Table:
    """A whole training CSV (see `read_chunks`); UserError when it has no rows."""
    (table,) = read_chunks(path, text_column, labels, rows=sys.maxsize)
    if not len(table):
        raise UserError(f"{path}: a header and no rows - add rows to train on")
    return table


def read_npy(path: Path, kind: str, what: str) -> np.ndarray:
    """An array whose dtype is of `kind`; nothing is unpickled. UserError for anything else."""
    try:
        with open(path, "rb") as f:
            array = np.lib.format.read_array(f, allow_pickle=False)
        if array.dtype.kind != kind:
            raise ValueError(f"holds {array.dtype}")
        return array
    except Exception as e:  # numpy parses the header as Python: a damaged one raises nearly anything
        mend = "use the one that train.py wrote"
        raise UserError(f"{path}: not an array of {what} ({str(e)[:80]}) - {mend}") from None


def normalise(text: str) -> str:
    """What makes two texts the same: Unicode NFKC, case and white space apart.

    By pieces, as the time for a run of combining marks grows with its square.
    """
    pieces = (unicodedata.normalize("NFKC", piece) for piece in PIECES.findall(text))
    return " ".join("".join(pieces).casefold().split())


def is_blank(text: str) -> bool:
    """Whether there is nothing to see: white space, control and format characters (zero-width space) alone."""
    return all(c.isspace() or unicodedata.category(c) in ("Cc", "Cf") for c in text)


def text_hashes(texts: list[str]) -> np.ndarray:
    """uint64 (N,): 8 bytes of BLAKE2b of each normalised text."""
    keys = (normalise(t).encode("utf-8", "replace") for t in texts)
    return np.frombuffer(b"".join(hashlib.blake2b(k, digest_size=8).digest() for k in keys), dtype="<u8")


def assign_folds(labels: np.ndarray, hashes: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """int16 (N,): the fold of each row. Rows with equal hashes share a fold; every label is spread evenly.

    Iterative stratification (Sechidis et al. 2011, rarest label first) over groups of equal texts. Each group
    goes to the fold that has least of the label; among equals, to the one that has least of the group's
    combination of labels, then fewest rows. Raises UserError with fewer distinct texts than folds.
    """
    _, group, size = np.unique(hashes, return_inverse=True, return_counts=True)
    G = len(size)
    if folds > G:
        few = f"only {G} distinct texts for {folds} folds (a hold-out takes five)"
        raise UserError(f"--folds: {few} - use fewer folds, or add rows")
    # (G, C + 1): positives of each label in each group; the rows are the last label, which all carry
    counts = np.stack([*(np.bincount(group, y, G) for y in labels.T), size], 1).astype(np.int64)
    todo = counts > 0  # groups without a fold, by label
    kinds, combo = np.unique(todo, axis=0, return_inverse=True)
    order = np.random.default_rng([seed, 0]).permutation(G)
    order = order[np.argsort(-size[order], kind="stable")]  # large groups first: the hardest to place
    has = np.zeros((counts.shape[1], folds), dtype=np.int64)  # rows of each label in each fold so far
    mixed = np.zeros((len(kinds), folds), dtype=np.int64)  # rows of each combination in each fold so far
    fold = np.empty(G, dtype=np.int16)
    while todo.any():
        remaining = todo.sum(0)
        label = int(np.where(remaining > 0, remaining, G + 1).argmin())
        members = order[todo[order, label]]
        for g in members:
            k = fold[g] = np.lexsort((has[-1], mixed[combo[g]], has[label]))[0]
            has[:, k] += counts[g]
            mixed[combo[g], k] += size[g]
        todo[members] = False
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


def tokenize(tokenizer, texts: list[str], max_length: int, chunk: int = 1000) -> Tokens:
    """All texts with their special tokens, cut at max_length tokens. Larger chunks leave the cache: slower."""
    options = dict(truncation=True, return_attention_mask=False, return_token_type_ids=False, verbose=False)
    ids, lengths, cut = [np.zeros(0, np.int32)], [0], 0
    for i in range(0, len(texts), chunk):
        rows = tokenizer(texts[i : i + chunk], max_length=max_length, **options)["input_ids"]
        rows = [r or [tokenizer.pad_token_id] for r in rows]  # blank, to a tokenizer without special tokens
        if full := [texts[i + j] for j, r in enumerate(rows) if len(r) >= max_length]:
            longer = tokenizer(full, max_length=max_length + 1, **options)["input_ids"]
            cut += sum(len(r) > max_length for r in longer)  # exactly full is not cut
        lengths += map(len, rows)
        ids.append(np.fromiter((t for r in rows for t in r), np.int32, sum(map(len, rows))))
    return Tokens(np.concatenate(ids), np.cumsum(lengths, dtype=np.int64), cut)


class EmotionDataset(torch.utils.data.Dataset):
    """Row i as a dict: `input_ids` int32 (T,) and, where known, `labels` float32 (C,)."""

    def __init__(self, tokens: Tokens, labels: np.ndarray | None = None):
        self.tokens, self.labels = tokens, labels

    def __len__(self) -> int:
        return len(self.tokens.offsets) - 1

    def __getitem__(self, i: int) -> dict:
        item = {"input_ids": self.tokens.ids[self.tokens.offsets[i] : self.tokens.offsets[i + 1]]}
        return item if self.labels is None else {**item, "labels": self.labels[i]}


@dataclass
class Collator:
    """Rows of an EmotionDataset -> tensors as long as the longest row, up to a multiple of 8: few shapes."""

    pad_id: int
    max_length: int = 1_000_000  # what the encoder takes; the rounding up stops there
    multiple: int = 8

    def __call__(self, items: list[dict]) -> dict[str, torch.Tensor]:
        rows = [x["input_ids"] for x in items]
        width = min(-(-max(map(len, rows)) // self.multiple) * self.multiple, self.max_length)
        mask = np.arange(width) < np.array([[len(row)] for row in rows])  # (B, T)
        ids = np.full(mask.shape, self.pad_id, dtype=np.int64)
        ids[mask] = np.concatenate(rows)
        batch = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask).long()}
        if "labels" in items[0]:
            batch["labels"] = torch.from_numpy(np.stack([x["labels"] for x in items]))  # (B, C)
        return batch


def length_batches(lengths: np.ndarray, batch_size: int, seed: list[int]) -> list[np.ndarray]:
    """Positions 0..N-1 in batches of similar length, all in random order drawn from `seed`.

    The shuffled rows are sorted by length within pools of 50 batches, so that epochs differ in batches.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(lengths))
    order = order[np.lexsort((lengths[order], np.arange(len(order)) // (50 * batch_size)))]
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def token_batches(lengths: np.ndarray, tokens: int) -> list[np.ndarray]:
    """Positions sorted by length, longest first, in batches of about `tokens` tokens, to predict."""
    order, batches = np.argsort(-lengths, kind="stable"), []
    while len(order):
        n = max(1, tokens // max(1, int(lengths[order[0]])))
        batches.append(order[:n])
        order = order[n:]
    return batches
