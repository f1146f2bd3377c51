"""CSV files read strictly by pandas; each fault is named by its row.

Rows are numbered as in spreadsheets: the header is row 1. Fields may be separated as Excel writes
them in some countries, by semicolons, or by tabs; its "Unicode text" is UTF-16.
"""

import contextlib
import csv
import difflib
import gzip
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

from support.hints import first_line, looks_like_data
from support.process import UserError

csv.field_size_limit(2**31 - 1)  # the default of 131,072 characters refuses long texts


def check_file(path: str | Path, use: str) -> Path:
    """`path` if it is a readable regular file; else a UserError that names similar files.

    `use`: what the file is for, such as "a CSV".
    """
    p = Path(path)
    similar = []
    try:
        if p.is_file():
            p.open("rb").close()
            return p
        if p.exists():
            kind = "a folder" if p.is_dir() else "not a regular file"
            raise UserError(f"{path}: is {kind} - {use} must be a file")
        if p.parent.is_dir():
            similar = difflib.get_close_matches(p.name, [q.name for q in p.parent.iterdir()])
    except OSError as e:
        raise UserError(f"{path}: {e.strerror} - {use} must be a readable file") from None
    hint = f" - did you mean {', '.join(similar)}?" if similar else f" ({use})"
    raise UserError(f"{path}: no such file{hint}")


def nearby(path: str, folder: str | Path) -> str:
    """`path` as it is; where it is relative and isn't there, below the first parent of `folder`
    that has it: a run was trained there."""
    if not os.path.exists(path) and not os.path.isabs(path):
        for parent in Path(os.path.abspath(folder)).parents:
            if (parent / path).is_file():
                return str(parent / path)
    return path


# What files begin with that are no CSV: what they are, and what makes a CSV of them.
GZIP = b"\x1f\x8b"
XLSX = 'pandas.read_excel("FILE").to_csv("new.csv", index=False), or save it as CSV'
FORMATS = {
    b"version https://git-lfs": (
        "a Git LFS pointer, not the file",
        "fetch the file, in its folder: git lfs pull",
    ),
    b"PK\x03\x04": ("a zip or Excel file, no CSV", f"unpack it; of Excel's: {XLSX}"),
    b"\xd0\xcf\x11\xe0": ("an old Excel file, no CSV", XLSX),
    GZIP: ("a gzip file, no CSV", "name it .csv.gz"),
    b"BZh": ("a bzip2 file, no CSV", "unpack it: bunzip2 FILE"),
    b"\xfd7zXZ": ("an xz file, no CSV", "unpack it: unxz FILE"),
    b"PAR1": (
        "a Parquet file, no CSV",
        'pandas.read_parquet("FILE").to_csv("new.csv", index=False)',
    ),
    b"SQLite format": ("an SQLite file, no CSV", "export the table as CSV"),
    b"{": ("JSON, no CSV", 'pandas.read_json("FILE", lines=True).to_csv("new.csv", index=False)'),
    b"[": ("JSON, no CSV", 'pandas.read_json("FILE").to_csv("new.csv", index=False)'),
    b"<": ("HTML or XML, no CSV", "download the CSV itself, not a page about it"),
}


SIGNS = {",": "commas", ";": "semicolons", "\t": "tabs"}
UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # how it begins; UTF-32 goes on with two zeros


def check_format(path: Path) -> None:
    """UserError for a file that isn't what its name says, by its first bytes."""
    with open(path, "rb") as f:
        start = f.read(64).removeprefix(b"\xef\xbb\xbf")
    if path.suffix == ".gz" and start.startswith(GZIP):
        return
    for magic, (kind, hint) in FORMATS.items():
        if start.startswith(magic):
            raise UserError(f"{path}: is {kind} - {hint.replace('FILE', path.name)}")


def encoding_of(path: Path) -> str:
    """By the first bytes: UTF-16 has a byte order mark, all else is to be UTF-8."""
    with opener_of(path)(path, "rb") as f, contextlib.suppress(OSError, EOFError, gzip.zlib.error):
        start = f.read(4)
        if start.startswith(UTF_16) and start[2:] != b"\0\0":
            return "utf-16"
    return "utf-8-sig"


def opener_of(path: str | Path):
    return gzip.open if str(path).endswith(".gz") else open


def column_names(cells: list[str]) -> list[str]:
    """Names as they are compared: in Unicode NFC, without a byte order mark or spaces around."""
    return [unicodedata.normalize("NFC", cell.strip("\ufeff \t")) for cell in cells]


class CsvFile:
    """A CSV file: its path, its column names, and its rows as DataFrames."""

    def __init__(self, path: str | Path, names: Sequence[str] = ()):
        """UserError for an empty file, a duplicate column name, another format.

        `names`: of the labels that it should have.
        """
        self.path = str(path)
        self.names = list(names)
        check_format(check_file(path, "a CSV"))
        self.encoding = encoding_of(Path(path))
        self.separator = ","
        header = next(self._records(), [])
        if len(header) == 1 and not header[0].lower().startswith("sep="):
            self.separator = max(",;\t", key=header[0].count)  # the sign that splits it best
            header = next(self._records(), [])
            if len(header) == 1:
                self.separator = self._sign_of_one_column()
        if not any(header):
            raise UserError(
                f"{path}:1: the file or its header is empty - it needs a header and rows"
            )
        header = column_names(header)
        if re.fullmatch("sep=.?", header[0], re.IGNORECASE) and not any(header[1:]):
            problem = f"{header[0]!r} is a line of Excel's, no header"
            raise UserError(f"{path}:1: {problem} - remove it")
        duplicates = sorted({name for name in header if name and header.count(name) > 1})
        if duplicates and looks_like_data(header):
            raise self._no_header(header)
        if duplicates:
            raise UserError(f"{path}:1 column {duplicates[0]!r}: duplicate name - rename one")
        if len(header) == 1 and "|" in header[0]:
            raise UserError(f"{path}:1: {header[0]!r:.60} - separate the fields by commas, not '|'")
        if self.separator != "," and len(header) > 1:
            print(f"{path}: its fields are separated by {SIGNS[self.separator]}")
        self.header = header

    def _sign_of_one_column(self) -> str:
        """The first that splits no row: Excel doesn't quote commas where it separates by others."""
        for self.separator in ",;\t":
            if all(len(row) <= 1 for row in self._records()):
                return self.separator
        return ","

    @property
    def columns_found(self) -> str:
        """For an error line."""
        return f"the columns are {', '.join(map(repr, self.header))[:300]}"

    def _no_header(self, cells: list[str]) -> UserError:
        problem = f"the first row looks like data: {', '.join(map(repr, cells))[:100]}"
        hint = f"add a first line, the names of the columns: {first_line(len(cells), self.names)}"
        return UserError(f"{self.path}:1: {problem} - {hint}")

    def frames(self, rows: int | None = None):
        """DataFrames of at most `rows` rows (None: all), cells as written, indexed by row number.

        Blank lines and rows of empty cells are left out and counted; in a file of one column they
        are blank texts. UserError for what is no table.
        """
        import pandas as pd  # here, as predict.py --text starts without it

        width = len(self.header)
        try:
            with self._open() as f, contextlib.suppress(StopIteration):
                reader = pd.read_csv(
                    f,
                    sep=self.separator,
                    iterator=True,
                    header=None,
                    names=range(width + 1),  # the last column: filled by rows that are too long
                    index_col=False,
                    dtype=str,
                    engine="python",
                    na_filter=False,
                    skip_blank_lines=False,
                )
                header = reader.get_chunk(1).iloc[0, :width].tolist()
                if column_names(header) != self.header:
                    hint = "run the same command again"
                    raise UserError(f"{self.path}: changed while it was read - {hint}")
                while True:
                    frame = reader.get_chunk(rows)
                    frame.index += 1
                    if width == 1:
                        frame[0] = frame[0].fillna("")
                    lines = len(frame)
                    if width > 1:
                        frame = frame[~is_empty(frame)]
                    if frame[width - 1].isna().any() or frame[width].notna().any():
                        raise self._fault()
                    frame = frame.drop(columns=width)
                    frame.columns = self.header
                    frame.attrs["blank_lines"] = lines - len(frame)
                    yield frame
        except (ValueError, csv.Error, OSError, EOFError, gzip.zlib.error):
            raise self._fault() from None

    def _open(self, errors: str = "strict"):
        opener = opener_of(self.path)
        return opener(self.path, "rt", encoding=self.encoding, errors=errors, newline="")

    def _records(self) -> Iterator[list[str]]:
        """The records by the csv module; UserError names the place of what it can't read."""
        n = 1  # the record that comes next
        try:
            with self._open(errors="surrogateescape") as f:
                # Bytes that are not UTF-8 became surrogates, which don't encode.
                lines = (line for line in f if line.encode())
                reader = csv.reader(lines, delimiter=self.separator, strict=True)
                for n, row in enumerate(reader, 2):  # noqa: B007
                    yield row
        except UnicodeEncodeError as e:
            byte = ord(e.object[e.start]) & 0xFF
            place = len(e.object[: e.start].encode())
            problem = f"not UTF-8 (byte 0x{byte:02x} at {place})"
            line = reader.line_num + 1
            hint = "save the file as UTF-8 (in Excel: CSV UTF-8)"
            raise UserError(f"{self.path}: line {line}: {problem} - {hint}") from None
        except UnicodeDecodeError as e:  # of UTF-16
            problem = f"not {e.encoding} ({e.reason})"
            raise UserError(f"{self.path}:{n}: {problem} - save the file as UTF-8") from None
        except csv.Error as e:
            hint = 'close the quote; a quote inside a quoted text is written ""'
            problem = f"broken quoting in the record that begins here ({e})"
            raise UserError(f"{self.path}:{n}: {problem} - {hint}") from None
        except (OSError, EOFError, gzip.zlib.error) as e:
            raise UserError(f"{self.path}:{n}: can't be read ({e})") from None

    def _fault(self) -> UserError:
        """What is wrong with a file that pandas can't read as rows of equal width."""
        width = len(self.header)
        for n, row in enumerate(self._records(), 1):
            empty = len(row) <= width + 1 and not any(map(str.strip, row))
            if not empty and len(row) != width:
                found = f"{len(row)} fields where the header has {width}"
                start = repr(self.separator.join(row)[:40])
                signs = SIGNS[self.separator]
                hint = f"put texts that hold {signs} or line breaks in double quotes"
                return UserError(f"{self.path}:{n}: {found} (it begins {start}) - {hint}")
        return UserError(f"{self.path}: can't be read - the file changed meanwhile; try again")


def is_empty(frame):
    """bool (N,): no cell holds anything but spaces; cells of short rows are NaN."""
    import numpy as np  # here, as `--help` starts without it

    empty = np.ones(len(frame), bool)
    for name in frame:
        cells = frame[name].to_numpy()[empty]
        empty[empty] = [not (isinstance(cell, str) and cell.strip()) for cell in cells]
        if not empty.any():
            break
    return empty
