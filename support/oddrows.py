"""Cells and texts, of a CSV or from Python: what they mean, and what is odd in them."""

import contextlib
import re
import unicodedata

import numpy as np

from support.process import UserError

TRUTH = {"0": 0.0, "1": 1.0, "0.0": 0.0, "1.0": 1.0, "false": 0.0, "true": 1.0}


def rows_inside(text: str, row: dict[str, str], source) -> int:
    """How many lines of a text look like rows of the file, by the shape of the row around them:
    its labels, or its id, or where it has neither all other cells.

    A quote that opens in one row and closes in a later one makes such a text. `row`: all cells, by
    name; `source`: the InputCSV.
    """
    names = [*row]
    labels = [name for name in names if name in source.names]
    others = [name for name in names if name != source.text_column and row[name].strip()]
    found = 0
    for n, line in enumerate(text.splitlines()[1:], 1):
        parts = line.split(source.separator)
        cells = dict(zip(names, parts))  # noqa: B905  a line may be cut
        complete = len(parts) == len(names)
        labelled = complete and labels and all(is_label(cells[name]) for name in labels)
        if labelled or "id" in row and continues(row["id"], cells.get("id", ""), n):
            found += 1
        elif complete and "id" in row:
            found += shape(cells["id"]) == shape(row["id"]) != ""
        elif complete and others:
            found += all(shape(cells[name]) == shape(row[name]) for name in others)
    return found


def is_label(cell: str) -> bool:
    """Whether it may stand in a label column: 0, 1, a share, or -1 for unknown."""
    cell = cell.strip().lower()
    return cell == "-1" or not np.isnan(as_share(cell))


def continues(id_: str, other: str, rows: int) -> bool:
    """Whether an id is the number that comes so many rows later; leading zeros may stand there."""
    return id_.isdecimal() and other.isdecimal() and int(other) == int(id_) + rows


def shape(cell: str) -> str:
    """What cells of one column have in common, such as two ids; '' where that says too little."""
    if re.fullmatch(r"[0-9a-f-]{8,}|[0-9A-F-]{8,}", cell):  # a long number, a hash
        return f"code {round(len(cell), -1) if cell.isdecimal() else len(cell)}"
    if cell.isdecimal():  # as short as the numbers of a list in a text
        return ""
    return re.sub(r"[^\W\d_]+", "a", re.sub(r"\d+", "9", cell))


def is_blank(text: str) -> bool:
    """Whether there is nothing to see: white space, control and format characters alone."""
    return all(c.isspace() or unicodedata.category(c) in ("Cc", "Cf") for c in text)


def as_share(cell: str) -> float:
    """A number from 0 to 1, or one of the words of TRUTH; else nan."""
    x = TRUTH.get(cell, np.nan)
    with contextlib.suppress(ValueError):
        if cell.isascii() and "_" not in cell:  # float() takes 0_1 and other scripts' digits
            x = float(cell)
    return x if 0 <= x <= 1 else np.nan


def check_texts(texts) -> list[str]:
    """Texts that Python code gives: a str, a list of str or a Series, as a list.

    UserError with the place of what is no str.
    """
    if isinstance(texts, str):
        texts = [texts]
    for name in ("to_list", "tolist"):  # a Series of pandas or polars, an array
        if hasattr(texts, name):
            texts = getattr(texts, name)()
    if not isinstance(texts, (list, tuple)):
        hint = "give a list of str, or one column, such as df['text']"
        raise UserError(f"texts: is a {type(texts).__name__} - {hint}")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            problem = f"is {text!r:.40}, a {type(text).__name__}"
            raise UserError(f"texts[{i}]: {problem} - give a str, '' for a blank text")
    return [with_whole_characters(text) for text in texts]


def with_whole_characters(text: str) -> str:
    """Halves of characters, as JSON's \\ud83d leaves them, joined; one alone becomes U+FFFD."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
