"""CSV files read strictly by pandas; each fault is named by its row.

Rows are numbered as in spreadsheets: the header is row 1.
"""

import contextlib
import csv
import difflib
import gzip
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from support.errors import UserError, warn

TRUTH = {"0": 0.0, "1": 1.0, "0.0": 0.0, "1.0": 1.0, "false": 0.0, "true": 1.0}
csv.field_size_limit(2**31 - 1)  # the default of 131,072 characters refuses long texts


def check_file(path: str | Path, what: str) -> Path:
    """`path` if it is a readable regular file; else a UserError that names similar files."""
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


# Reading


def _open(path: str, errors: str = "strict"):
    opener = gzip.open if str(path).endswith(".gz") else open
    return opener(path, "rt", encoding="utf-8-sig", errors=errors, newline="")


def _records(path: str) -> Iterator[list[str]]:
    """The records by the csv module; UserError names the place of what it can't read."""
    n = 1  # the record that comes next
    try:
        with _open(path, errors="surrogateescape") as f:
            # Bytes that are not UTF-8 became surrogates, which don't encode.
            reader = csv.reader((line for line in f if line.encode()), strict=True)
            for n, row in enumerate(reader, 2):  # noqa: B007
                yield row
    except UnicodeEncodeError as e:
        byte, at = ord(e.object[e.start]) & 0xFF, len(e.object[: e.start].encode())
        why = f"not UTF-8 (byte 0x{byte:02x} at {at}) - save the file as UTF-8"
        raise UserError(f"{path}: line {reader.line_num + 1}: {why}") from None
    except csv.Error as e:
        mend = 'close the quote; a quote inside a quoted text is written ""'
        why = f"broken quoting in the record that begins here ({e})"
        raise UserError(f"{path}:{n}: {why} - {mend}") from None
    except (OSError, EOFError, gzip.zlib.error) as e:
        raise UserError(f"{path}:{n}: can't be read ({e})") from None


def _fault(path: str, width: int) -> UserError:
    """What is wrong with a file that pandas can't read as rows of `width` fields."""
    for n, row in enumerate(_records(path), 1):
        if row and len(row) != width:
            got = f"{len(row)} fields where the header has {width}"
            mend = "put texts that hold commas or line breaks in double quotes"
            return UserError(f"{path}:{n}: {got} (it begins {','.join(row)[:40]!r}) - {mend}")
    return UserError(f"{path}: can't be read - the file changed meanwhile; try again")


def read_header(path: str) -> list[str]:
    """The column names, stripped. UserError for an empty file, a doubled name, another format."""
    check_file(path, "a CSV")
    if (header := next(_records(path), None)) is None:
        raise UserError(f"{path}: the file is empty - it needs a header and rows")
    if not any(header):
        raise UserError(f"{path}:1: the header is empty")
    header = [name.strip("\ufeff \t") for name in header]
    if twice := sorted({name for name in header if name and header.count(name) > 1}):
        why = "stands twice in the header - rename or remove one"
        raise UserError(f"{path}:1 column {twice[0]!r}: {why}")
    if header[0].lower().startswith("sep="):
        why = "is no header - remove this line, and separate by commas"
        raise UserError(f"{path}:1: {header[0]!r} {why}")
    if sep := next((s for s in ";\t|" if len(header) == 1 and s in header[0]), None):
        mend = f"separate the fields by commas, not {sep!r}"
        raise UserError(f"{path}:1: one column, {header[0]!r:.80} - {mend}")
    return header


def check_columns(path: str, header: list[str], labels: list[str], required: bool = True) -> None:
    """Say which columns are missing: UserError, or where they aren't `required` a warning."""
    if "id" not in header:
        like = next((f" (but {h!r}: rename it)" for h in header if h.lower() == "id"), "")
        warn(f"{path}: no id column{like} - row numbers from 0 are used")
    missing = [name for name in labels if name not in header]
    lacks = f"no label column {', '.join(missing)}"
    if missing and required:
        found = f"the columns are {', '.join(map(repr, header))[:300]}"
        mend = "name yours" if len(missing) == len(labels) else "add it, or name others"
        raise UserError(f"{path}:1: {lacks}; {found} - {mend} with --labels")
    if len(labels) > len(missing) > 0:
        warn(f"{path}: {lacks} - no scores are printed")


def read_frames(path: str, header: list[str], rows: int | None):
    """DataFrames of at most `rows` rows (None: all), cells as written, indexed by row number.

    Blank lines are left out; in a file of one column they are blank texts. UserError otherwise.
    """
    import pandas as pd  # here, as predict.py --text starts without it

    more = len(header)  # a column more than the header has: filled only by rows that are too long
    options = {"header": None, "names": range(more + 1), "index_col": False, "dtype": str}
    options |= {"engine": "python", "na_filter": False, "skip_blank_lines": False}
    try:
        with _open(path) as f, contextlib.suppress(StopIteration):
            reader = pd.read_csv(f, iterator=True, **options)
            reader.get_chunk(1)  # the header
            while True:
                frame = reader.get_chunk(rows)
                frame.index += 1
                if more == 1:
                    frame[0] = frame[0].fillna("")
                lines, frame = len(frame), frame[frame[0].notna()]
                if frame[more - 1].isna().any() or frame[more].notna().any():
                    raise ValueError("a short row, or a long one")
                frame = frame.drop(columns=more)
                frame.columns = header
                frame.attrs["blank_lines"] = lines - len(frame)
                yield frame
    except (ValueError, csv.Error, OSError, EOFError, gzip.zlib.error):
        raise _fault(path, more) from None


# What is odd


def is_blank(text: str) -> bool:
    """Whether there is nothing to see: white space, control and format characters alone."""
    return all(c.isspace() or unicodedata.category(c) in ("Cc", "Cf") for c in text)


class Findings:
    """What is odd in a file, counted while it is read and said once."""

    def __init__(self, path: str):
        self.path, self.rows, self.blank_lines, self.texts = path, 0, 0, Counter()
        self.wrong, self.first_wrong = 0, []  # label cells that are not 0/1; row, label and value

    def add_texts(self, texts: list[str], blank_lines: int) -> None:
        self.rows, self.blank_lines = self.rows + len(texts), self.blank_lines + blank_lines
        self.texts["are blank; they are kept"] += sum(map(is_blank, texts))
        nul = sum("\0" in text for text in texts)
        self.texts["hold NUL characters; the tokenizer drops them"] += nul

    def add_known(self, hashes: np.ndarray, seen: np.ndarray) -> None:
        words = "are among those this run was trained on; scores on them are too good"
        self.texts[words] += int(np.isin(hashes, seen).sum())

    def say(self, ids: list[str] = ()) -> None:
        said = {"blank line(s) skipped": self.blank_lines}
        said["ids occur more than once"] = len(ids) - len(set(ids))
        said |= {f"of {self.rows} texts {words}": n for words, n in self.texts.items()}
        if self.wrong:
            row, name, _ = self.first_wrong[0]
            first = f"(first: row {row}, {name})"
            said[f"label cells are not 0/1 {first} - no scores are printed"] = self.wrong
        for words, count in said.items():
            if count:
                warn(f"{self.path}: {count} {words}")
        if not self.rows:
            warn(f"{self.path}: no rows; the output is a header alone")

    def wrong_labels(self) -> str:
        (row, name, value), *others = self.first_wrong
        rows = ", ".join(dict.fromkeys(str(r) for r, _, _ in others if r != row))
        more = (f"; also row {rows}" if rows else "") + f"; {self.wrong} cells in all"
        what = f"must be 0 or 1 ({value[:40]!r}{more if self.wrong > 1 else ''})"
        return f"{self.path}:{row} column {name!r}: {what} - write 0 or 1 in each cell"


def parse_labels(frame, labels: list[str], findings: Findings) -> np.ndarray | None:
    """float32 (N, C); None, and the cells in `findings`, where one is not 0 or 1."""
    y = frame[labels].apply(lambda cells: cells.str.strip().str.lower().map(TRUTH))
    y = y.to_numpy(np.float32)
    if not np.isnan(y).any():
        return y
    wrong = np.argwhere(np.isnan(y))
    for i, j in wrong[: 5 - len(findings.first_wrong)]:
        cell = int(frame.index[i]), labels[j], frame[labels[j]].iloc[i]
        findings.first_wrong.append(cell)
    findings.wrong += len(wrong)
