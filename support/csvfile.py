"""CSV files read strictly by pandas; each fault is named by its row.

Rows are numbered as in spreadsheets: the header is row 1.
"""

import contextlib
import csv
import difflib
import gzip
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from support.errors import UserError, warn

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


# What other formats begin with: their name, and what makes a CSV of them.
XLSX = 'pandas.read_excel("FILE").to_csv("new.csv", index=False), or save it as CSV'
FORMATS = {
    b"PK\x03\x04": ("a zip or Excel file", f"unpack it; of Excel's: {XLSX}"),
    b"\x1f\x8b": ("a gzip file", "name it .csv.gz"),
    b"PAR1": ("a Parquet file", 'pandas.read_parquet("FILE").to_csv("new.csv", index=False)'),
}


def check_format(path: Path) -> None:
    """UserError for a file that isn't what its name says, by its first bytes."""
    with open(path, "rb") as f:
        start = f.read(16).removeprefix(b"\xef\xbb\xbf")
    for magic, (name, mend) in FORMATS.items() if path.suffix != ".gz" else ():
        if start.startswith(magic):
            raise UserError(f"{path}: is {name}, no CSV - {mend.replace('FILE', path.name)}")


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
    check_format(check_file(path, "a CSV"))
    header = next(_records(path), [])
    if not any(header):
        raise UserError(f"{path}:1: the file or its header is empty - it needs a header and rows")
    header = [unicodedata.normalize("NFC", name.strip("\ufeff \t")) for name in header]
    if twice := sorted({name for name in header if name and header.count(name) > 1}):
        raise UserError(f"{path}:1 column {twice[0]!r}: stands twice in the header - rename one")
    if sep := next((s for s in ";\t|" if len(header) == 1 and s in header[0]), None):
        raise UserError(f"{path}:1: {header[0]!r:.60} - separate the fields by commas, not {sep!r}")
    return header


TEXT_COLUMNS = ("text", "comment_text", "sentence", "content", "review")


def ensure_text_column(
    path: str, header: list[str], labels: list[str], text_column: str | None, prefer: str | None
) -> str:
    """The column asked for, else `prefer`, else a usual name. UserError when it isn't clear."""
    asked = text_column or (None if prefer in TEXT_COLUMNS else prefer)
    usual = [n for n in dict.fromkeys([prefer, *TEXT_COLUMNS]) if n in header and n not in labels]
    names = [asked] if asked else usual
    if not set(names) & set(header):
        what = f"no column {asked!r}" if asked else "no text column"
        found = f"the columns are {', '.join(map(repr, header))[:300]}"
        raise UserError(f"{path}:1: {what}; {found} - name it with --text-column")
    name = names[0]
    if name in labels:
        raise UserError(f"--labels: {name!r} is the text column - name 0/1 columns only")
    if len(names) > 1 and name not in ("text", prefer):
        both = f"{' and '.join(names)} could both be the text"
        raise UserError(f"{path}:1: {both} - choose with --text-column")
    if not text_column and (name != "text" or len(names) > 1):
        print(f"text column: {name}")
    return name


def check_columns(path: str, header: list[str], labels: list[str], required: bool = True) -> None:
    """Say which columns are missing: UserError, or where they aren't `required` a warning."""
    if "id" not in header:
        like = next((f" (but {h!r}: rename it)" for h in header if h.lower() == "id"), "")
        warn(f"{path}: no id column{like} - row numbers from 0 are used")
    missing = [name for name in labels if name not in header]
    lacks = f"no label column {', '.join(missing)}"
    if missing and required:
        found = f"the columns are {', '.join(map(repr, header))[:300]}"
        mend = "add it, or name others with --labels"
        if len(missing) == len(labels):
            mend = "name yours with --labels; label names in one column: docs/troubleshooting.md"
        raise UserError(f"{path}:1: {lacks}; {found} - {mend}")
    if len(labels) > len(missing) > 0:
        warn(f"{path}: {lacks} - no scores are printed")


def check_named(path: str, header: list[str], named: list[str], labels, text_column: str) -> None:
    """UserError for a column that a flag names and that isn't there, or is used otherwise."""
    use = dict.fromkeys(labels, "a label") | {text_column: "the text column", "id": "the id"}
    for name in named:
        if name not in header:
            found = f"the columns are {', '.join(map(repr, header))[:300]}"
            raise UserError(f"{path}:1: no column {name!r}; {found} - name one of them")
        if name in use:
            raise UserError(f"{path}:1: column {name!r} is {use[name]} - name another one")
        if named.count(name) > 1:
            raise UserError(f"column {name!r} is named by two flags - each needs its own column")


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
