"""What a person may have meant where a column isn't there: the hints of error lines."""

import difflib
import re
import shlex
from collections.abc import Iterable, Sequence

# Usual names of a column of label names.
LABEL_COLUMNS = (
    "label",
    "labels",
    "emotion",
    "emotions",
    "category",
    "categories",
    "class",
    "tags",
)
LONGEST_NAME = 40  # characters; longer cells are texts


def similar(names: Iterable[str], columns: Sequence[str]) -> str:
    """The columns that are close to one of the names, as an error line shows them; '' for none.

    Upper and lower case count as close.
    """
    by_key = {column.casefold(): column for column in columns}
    found = []
    for name in names:
        found += difflib.get_close_matches(name.casefold(), by_key, 1, cutoff=0.8)
    return ", ".join(repr(by_key[key]) for key in dict.fromkeys(found))


def split_at_commas(names: Sequence[str], columns: Sequence[str]) -> str | None:
    """The flag for names that were separated by commas; None where that is not what happened."""
    parts = []
    for name in names:
        parts += [name] if name in columns else re.split(r"\s*,\s*", name)
    parts = [part for part in dict.fromkeys(parts) if part]
    if parts == list(names) or not set(parts) & set(columns):
        return None
    return f"--labels {shlex.join(parts)}"


def looks_like_data(cells: Sequence[str]) -> bool:
    """Whether a first row is one of the rows: a number beside words, or 0 or 1 more than once."""
    if {"id", "text"} & set(cells):
        return False
    numbers = [cell for cell in cells if re.fullmatch(r"-?\d+(\.\d+)?", cell)]
    words = any(re.search(r"[^\W\d_]+ +\S", cell) for cell in cells)
    labels = [cell for cell in numbers if cell in ("0", "1", "0.0", "1.0")]
    return bool(numbers) and words or len(labels) > len(set(labels))


def first_line(width: int, names: Sequence[str]) -> str:
    """A header for a table of `width` columns; `names` are its labels, where it has them."""
    if width == 2 + len(names):
        return ",".join(["id", "text", *names])
    return "id,text" if width == 2 else "id,text,..."


def pandas_that_reads(path: str, separator: str = ",", encoding: str = "utf-8-sig") -> str:
    """The beginning of a hint: `df` has the cells as written."""
    options = "dtype=str, keep_default_na=False"
    if separator != ",":
        options += f", sep={separator!r}"
    if encoding == "utf-16":
        options += ", encoding='utf-16'"
    return f"import pandas; df = pandas.read_csv({path!r}, {options})"


# Words that people write in label cells, in lower case.
YES = {"1", "x", "y", "yes", "true", "ja", "wahr", "oui", "vrai", "si", "sí", "verdadero", "vero"}
YES |= {"✓", "✔"}
NO = {"0", "", "-", "n", "no", "false", "nein", "falsch", "non", "faux", "falso"}


def pandas_of_words(read: str, names: Sequence[str], words: set[str]) -> str | None:
    """Words and pandas that make 0 and 1 of label cells such as x and blank, or yes and no.

    `words`: all that the cells hold, in lower case. None where it isn't clear what they mean: an
    empty cell beside 0 may as well be unknown.
    """
    yes = sorted(words & YES)
    if not yes or not words & NO or not words <= YES | NO or {"", "0"} <= words:
        return None
    cells = f"c.str.strip().str.lower().isin({yes})"
    found = ", ".join(map(repr, sorted(words)))
    return (
        f"they hold {found} - make 0 and 1 of them: {read}; names = {list(names)}; "
        "df = df[df.ne('').any(axis=1)]; "
        f"df[names] = df[names].apply(lambda c: {cells}.astype(int)); "
        'df.to_csv("labelled.csv", index=False)'
    )


def pandas_that_splits(read: str, columns: dict[str, list[str]]) -> str | None:
    """Words and pandas that make a 0/1 column of each label name, where a column holds such names.

    `read`: see `pandas_that_reads`. `columns`: cells of each column that may be it.
    """
    candidates = [name for name, cells in columns.items() if _holds_names(name, cells)]
    if not candidates:
        return None
    usual = [name for name in candidates if name.lower() in LABEL_COLUMNS]
    column = [*usual, *candidates][0]
    cells = columns[column]
    separator = _separator(cells)
    sign = re.escape(separator)
    unwanted = []
    if _are_lists(cells):
        unwanted.append(r"[]['\"]")
    if any(re.search(rf" {sign}|{sign} ", cell) for cell in cells):
        unwanted.append(rf" +(?={sign})|(?<={sign}) +")
    clean = f".str.replace(r'''{'|'.join(unwanted)}''', '', regex=True)" if unwanted else ""
    return (
        f"column {column!r} holds label names - make a 0/1 column of each: {read}; "
        f"df.drop(columns={column!r}).join(df[{column!r}]{clean}.str.get_dummies({separator!r}))"
        '.to_csv("new.csv", index=False)'
    )


def _are_lists(cells: list[str]) -> bool:
    return any(cells) and all(cell.startswith("[") for cell in cells if cell)


def _separator(cells: list[str]) -> str:
    if _are_lists(cells):
        return ","
    found = [sign for sign in "#|;," if any(sign in cell for cell in cells)]
    return found[0] if found else "|"


def _holds_names(column: str, cells: list[str]) -> bool:
    """Whether the cells have few, short names in common; numbers only in a column of labels."""
    separator = _separator(cells)
    names = {part.strip(" []'\"") for cell in cells for part in cell.split(separator)} - {""}
    if not 1 < len(names) <= max(2, len(cells) // 2):
        return False
    if all(name.isdecimal() for name in names) and column.lower() not in LABEL_COLUMNS:
        return False
    return max(map(len, names)) <= LONGEST_NAME
