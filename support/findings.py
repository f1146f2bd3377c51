"""What is odd in the rows of a CSV, counted while it is read, for train.py and predict.py alike."""

import contextlib
import shlex
import unicodedata
from collections import Counter

import numpy as np

from config import EMOTIONS
from support.errors import UserError, warn

TRUTH = {"0": 0.0, "1": 1.0, "0.0": 0.0, "1.0": 1.0, "false": 0.0, "true": 1.0}


def is_blank(text: str) -> bool:
    """Whether there is nothing to see: white space, control and format characters alone."""
    return all(c.isspace() or unicodedata.category(c) in ("Cc", "Cf") for c in text)


class Findings:
    """What is odd in a file, counted while it is read and said once."""

    def __init__(self, path: str, unscored: bool = False, soft: bool = False, named=()):
        """`unscored`: whether rows whose labels are all -1 are left out (Jigsaw's test labels).

        `soft`: label cells are shares. `named`: columns that a flag names, and so are no labels.
        """
        self.path, self.unscored, self.soft, self.named = path, unscored, soft, named
        self.rows, self.ids = 0, [np.zeros(0, np.int64)]  # hashes of the ids
        self.counts, self.texts = Counter(), Counter()  # of rows and of texts, by the warning
        self.labelled = False  # whether there are label columns
        self.wrong, self.first_wrong = 0, []  # label cells that are not 0/1; row, label and value
        self.unnamed: list[str] | None = None  # columns that hold 0 and 1 alone, and are no labels
        self.swallowed: dict[str, int] = {}  # row -> rows inside its text

    def add_rows(self, frame, texts: list[str], labels: list[str]) -> None:
        self.rows += len(texts)
        self.counts["blank line(s) skipped"] += frame.attrs["blank_lines"]
        ids = frame["id"].tolist() if "id" in frame else [""] * len(texts)
        if "id" in frame:
            self.ids.append(np.array([hash(i) for i in ids], np.int64))
        for row, i, text in zip(frame.index, ids, texts, strict=True):
            if "\n" in text and (n := count_records(text, i, list(frame.columns), labels)):
                self.swallowed[str(row)] = n
        self.texts["are blank; they are kept"] += sum(map(is_blank, texts))

    @property
    def scored(self) -> bool:
        return self.labelled and not self.wrong

    def add_known(self, hashes: np.ndarray, seen: np.ndarray) -> None:
        words = "are among those this run was trained on; scores on them are too good"
        self.texts[words] += int(np.isin(hashes, seen).sum())

    def say(self) -> None:
        ids, said = np.concatenate(self.ids), dict(self.counts)
        said["ids occur more than once"] = len(ids) - len(np.unique(ids))
        said |= {f"of {self.rows} texts {words}": n for words, n in self.texts.items()}
        for row, name, _ in self.first_wrong[:1]:
            first = f"(first: row {row}, {name})"
            what = "no shares from 0 to 1" if self.soft else "not 0/1"
            said[f"label cells are {what} {first} - no scores are printed"] = self.wrong
        where = f"row {', '.join([*self.swallowed][:5])}, and are lost: their ids too"
        mend = 'a quote opens there and closes rows later; write it ""'
        said[f"rows stand inside the text of {where} - {mend}"] = sum(self.swallowed.values())
        for words, count in said.items():
            if count:
                warn(f"{self.path}: {count} {words}")

    def check_labels(self, labels: list[str]) -> None:
        """UserError for cells that are not 0/1, and for columns that may be forgotten labels."""
        if self.wrong:
            raise UserError(self.wrong_labels())
        if not self.unnamed:
            return
        columns, more = ", ".join(map(repr, self.unnamed)), [*labels, *self.unnamed]
        if labels is not EMOTIONS:  # they were named
            return print(f"no labels, though they hold 0 and 1 alone: {columns}")
        ways = " or ".join(f"--labels {shlex.join(names)}" for names in (more, labels))
        raise UserError(f"{self.path}:1: {columns} could be labels too - say which: {ways}")

    def wrong_labels(self) -> str:
        (row, name, value), *others = self.first_wrong
        rows = ", ".join(dict.fromkeys(str(r) for r, _, _ in others if r != row))
        more = (f"; also row {rows}" if rows else "") + f"; {self.wrong} cells in all"
        what = f"({value[:40]!r}{more if self.wrong > 1 else ''})"
        must, mend = "must be 0 or 1", "write 0 or 1 in each cell"
        if self.soft:
            must, mend = "must be a share from 0 to 1", "write a number in each cell"
        elif not np.isnan(as_share(value)):
            mend += ", or take shares as they are with --soft-labels"
        return f"{self.path}:{row} column {name!r}: {must} {what} - {mend}"


def count_records(text: str, of_id: str, columns: list[str], labels: list[str]) -> int:
    """How many lines of a text look like rows of the file: with 0/1 in all places of the labels,
    or with an id that goes on counting from the row's own."""
    found, at = 0, [columns.index(name) for name in labels if name in columns]
    for n, line in enumerate(text.splitlines()[1:], 1):
        cells = line.split(",")
        alike = len(cells) == len(columns) and at and all(cells[j] in TRUTH for j in at)
        number = cells[columns.index("id")] if "id" in columns[: len(cells)] else ""
        found += bool(alike) or of_id.isdecimal() and number == str(int(of_id) + n)
    return found


def as_share(cell: str) -> float:
    """A number from 0 to 1, or one of the words of TRUTH; else nan."""
    x = TRUTH.get(cell, np.nan)
    with contextlib.suppress(ValueError):
        if cell.isascii() and "_" not in cell:  # float() takes 0_1 and other scripts' digits
            x = float(cell)
    return x if 0 <= x <= 1 else np.nan


def parse_labels(frame, labels: list[str], findings: Findings) -> np.ndarray | None:
    """float32 (N, C); None, and the cells in `findings`, where one is not 0 or 1 (or no share).
    Rows that are not to be scored are nan."""
    cells = frame[labels].apply(lambda column: column.str.strip().str.lower())
    findings.labelled = True
    read = as_share if findings.soft else TRUTH
    y = cells.apply(lambda column: column.map(read)).to_numpy(np.float32)
    unknown = np.isnan(y)
    if findings.unscored:
        skipped = (cells == "-1").all(axis=1).to_numpy(bool)
        findings.counts["rows are not scored: all their labels are -1"] += int(skipped.sum())
        unknown[skipped] = False
    others = [c for c in frame if c not in ("id", *labels, *findings.named)]
    flags = [c for c in others if {x.strip().lower() for x in set(frame[c])} <= set(TRUTH)]
    findings.unnamed = [c for c in flags if findings.unnamed is None or c in findings.unnamed]
    if not unknown.any():
        return y
    wrong = np.argwhere(unknown)
    for i, j in wrong[: 5 - len(findings.first_wrong)]:
        findings.first_wrong.append((frame.index[i], labels[j], frame[labels[j]].iloc[i]))
    findings.wrong += len(wrong)
