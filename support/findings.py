"""What is odd in the rows of a CSV, counted while it is read, for train.py and predict.py alike."""

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

    def __init__(self, path: str, unscored: bool = False):
        """`unscored`: whether rows whose labels are all -1 are left out (Jigsaw's test labels)."""
        self.path, self.rows, self.blank_lines, self.texts = path, 0, 0, Counter()
        self.wrong, self.first_wrong = 0, []  # label cells that are not 0/1; row, label and value
        self.unscored = 0 if unscored else None
        self.unnamed: list[str] | None = None  # columns that hold 0 and 1 alone, and are no labels
        self.swallowed, self.swallowing = 0, []  # rows inside a text; rows with such a text
        self.ids, self.headers = [np.zeros(0, np.int64)], 0  # hashes; rows that repeat the header

    def add_rows(self, frame, texts: list[str], labels: list[str]) -> None:
        self.rows += len(texts)
        self.blank_lines += frame.attrs["blank_lines"]
        self.headers += int((frame == list(frame.columns)).all(axis=1).sum())
        ids = frame["id"].tolist() if "id" in frame else [""] * len(texts)
        if "id" in frame:
            self.ids.append(np.array([hash(i) for i in ids], np.int64))
        for row, i, text in zip(frame.index, ids, texts, strict=True):
            if "\n" in text and (n := count_records(text, i, list(frame.columns), labels)):
                self.swallowed += n
                self.swallowing.append(str(row))
        self.texts["are blank; they are kept"] += sum(map(is_blank, texts))
        nul = sum("\0" in text for text in texts)
        self.texts["hold NUL characters; the tokenizer drops them"] += nul

    def add_known(self, hashes: np.ndarray, seen: np.ndarray) -> None:
        words = "are among those this run was trained on; scores on them are too good"
        self.texts[words] += int(np.isin(hashes, seen).sum())

    def say(self) -> None:
        said = {"blank line(s) skipped": self.blank_lines}
        ids = np.concatenate(self.ids)
        said["ids occur more than once"] = len(ids) - len(np.unique(ids))
        said["rows repeat the header - remove them"] = self.headers
        said |= {f"of {self.rows} texts {words}": n for words, n in self.texts.items()}
        if self.wrong:
            row, name, _ = self.first_wrong[0]
            first = f"(first: row {row}, {name})"
            said[f"label cells are not 0/1 {first} - no scores are printed"] = self.wrong
        said["rows are not scored: all their labels are -1"] = self.unscored
        if self.swallowed:
            where = f"row {', '.join(self.swallowing[:5])}, and are lost: their ids too"
            mend = 'a quote opens there and closes rows later; write it ""'
            said[f"rows stand inside the text of {where} - {mend}"] = self.swallowed
        for words, count in said.items():
            if count:
                warn(f"{self.path}: {count} {words}")
        if not self.rows:
            warn(f"{self.path}: no rows; the output is a header alone")

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
        what = f"must be 0 or 1 ({value[:40]!r}{more if self.wrong > 1 else ''})"
        return f"{self.path}:{row} column {name!r}: {what} - write 0 or 1 in each cell"


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


def parse_labels(frame, labels: list[str], findings: Findings) -> np.ndarray | None:
    """float32 (N, C); None, and the cells in `findings`, where one is not 0 or 1. Rows that are not
    to be scored are nan."""
    cells = frame[labels].apply(lambda column: column.str.strip().str.lower())
    y = cells.apply(lambda column: column.map(TRUTH)).to_numpy(np.float32)
    unknown = np.isnan(y)
    if findings.unscored is not None:
        skipped = (cells == "-1").all(axis=1).to_numpy(bool)
        findings.unscored += int(skipped.sum())
        unknown[skipped] = False
    others = [c for c in frame if c not in ("id", *labels)]
    flags = [c for c in others if {x.strip().lower() for x in set(frame[c])} <= set(TRUTH)]
    findings.unnamed = [c for c in flags if findings.unnamed is None or c in findings.unnamed]
    if not unknown.any():
        return y
    wrong = np.argwhere(unknown)
    for i, j in wrong[: 5 - len(findings.first_wrong)]:
        cell = int(frame.index[i]), labels[j], frame[labels[j]].iloc[i]
        findings.first_wrong.append(cell)
    findings.wrong += len(wrong)
