"""A CSV of texts, and of labels, as train.py, predict.py and the tools read it.

N rows, C labels. Which columns are used is settled when it is opened; what is odd in its rows is
counted while it is read, and said once.
"""

import itertools
import shlex
from collections import Counter
from collections.abc import Sequence

import numpy as np

from config import EMOTIONS, Config
from support.csvfile import CsvFile, column_names
from support.hints import (
    NO,
    YES,
    looks_like_data,
    pandas_of_words,
    pandas_that_reads,
    pandas_that_splits,
    similar,
    split_at_commas,
)
from support.oddrows import TRUTH, as_share, is_blank, rows_inside
from support.process import UserError, warn

BLANK = "blank line(s) skipped (also rows of empty cells)"
REPEATED = "rows repeat the header - remove them"
TEXT_COLUMNS = ("text", "comment_text", "sentence", "content", "review")


class InputCSV(CsvFile):
    """Path, header, text column, label names, and what was found odd so far."""

    def __init__(
        self,
        path: str,
        config: Config,
        names: Sequence[str] | None = None,
        text_column: str | None = None,
        training: bool = False,
    ):
        """UserError where a column is missing or used twice.

        `config`: the settings of the run, or with `training` those of the command. `names`: the
        labels, where they are not the run's; () for texts alone. `text_column`: as the user asked;
        of --valid the one of --train. With `training` every label column must be there, and a cell
        is unknown only if it is empty, with --missing-labels.
        """
        super().__init__(path, config.labels if names is None else names)
        self.training = training
        self.soft = config.soft_labels
        self.unknown = {"", "-1"}  # -1: as in Jigsaw's test labels
        if training:
            self.unknown = {""} if config.missing_labels else set()
        self.named = []  # columns that a flag names, and so are no labels
        self.text_column = None  # until it is found
        self.labels_named = config.labels is not EMOTIONS  # by a flag
        if training:
            self.named = [name for name in (config.fold_column, config.group_column) if name]
            self.text_column = self.ensure_text_column(config.text_column, text_column)
        else:
            self.text_column = self.ensure_text_column(text_column, config.text_column)
        if self.names:
            self._check_columns()
        self._check_named()
        self.rows = 0
        self.id_hashes = [np.zeros(0, np.int64)]
        self.known = np.zeros(len(self.names), int)  # cells of each label
        self.zeros = 0  # cells that say a label is not there
        self.counts = Counter()  # of rows, by the warning
        self.text_counts = Counter()  # of texts, by the warning
        self.wrong_cells = 0  # label cells that are not 0/1
        self.first_wrong: list[tuple] = []  # row, label and value of the first of them
        self.words: dict[str, tuple] = {}  # that label cells hold, up to 20: the place of the first
        known = ("", "id", *self.names, *self.named)
        # Columns that hold 0 and 1 alone, as far as they are read, and may be forgotten labels
        self.zero_one_columns = [c for c in self.header if training and c not in known]
        self.swallowed: dict[str, int] = {}  # row -> rows inside its text

    @property
    def labelled(self) -> bool:
        """Whether there is a column for each label."""
        return bool(self.names) and set(self.names) <= set(self.header)

    @property
    def scored(self) -> bool:
        """Whether predictions can be scored by its labels."""
        return self.labelled and self.rows > 0 and not self.wrong_cells

    # Columns

    def ensure_text_column(self, asked: str | None, prefer: str | None) -> str:
        """The column asked for, else `prefer` (that of the training), else a usual name, else the
        only column there is besides the ids, the labels and those that flags name.

        UserError when it isn't clear.
        """
        column = asked
        if not asked and prefer not in TEXT_COLUMNS:
            column = prefer
        candidates = [column]
        if not column:
            usual = dict.fromkeys([prefer, *TEXT_COLUMNS])
            candidates = [n for n in usual if n in self.header and n not in self.names]
        if not set(candidates) & set(self.header):
            used = {"", *self.names, *self.named}
            candidates = [n for n in self.header if n not in used and n.lower() != "id"]
            if asked or len(candidates) != 1:
                raise self._no_text_column(column)
        name = candidates[0]
        if name in self.names:
            raise UserError(f"--labels: {name!r} is the text column - name 0/1 columns only")
        if len(candidates) > 1 and name not in ("text", prefer):
            unclear = f"{' and '.join(candidates)} could both be the text"
            raise UserError(f"{self.path}:1: {unclear} - choose with --text-column")
        if not asked and (name != "text" or len(candidates) > 1):
            print(f"text column: {name}")
        return name

    def _no_text_column(self, column: str | None) -> UserError:
        """`column`: the one that was asked for."""
        if looks_like_data(self.header):
            return self._no_header(self.header)
        missing = [name for name in self.names if name not in self.header]
        meant = split_at_commas(self.names, self.header) or similar(missing, self.header)
        if self.training and missing and (meant or not self.labels_named):
            return self._no_labels(missing)  # the text may be found once the labels are
        problem = f"no column {column!r}" if column else "no text column"
        hint = "name it with --text-column"
        if column and not self.names:  # of texts alone: they have the column of the training
            problem = f"no text column {column!r}"
            hint = "rename the one of the texts"
        others = [name for name in self.header if name not in self.names]
        close = similar([column] if column else TEXT_COLUMNS, others)
        if close:
            hint = f"did you mean {close}? {hint}"
        return UserError(f"{self.path}:1: {problem}; {self.columns_found} - {hint}")

    def _check_columns(self) -> None:
        """Say which columns are missing: UserError in training, else a warning."""
        if "id" not in self.header:
            like = next((f" (but {h!r}: rename it)" for h in self.header if h.lower() == "id"), "")
            warn(f"{self.path}: no id column{like} - row numbers from 0 are used")
        missing = [name for name in self.names if name not in self.header]
        if missing and self.training:
            raise self._no_labels(missing)
        if 0 < len(missing) < len(self.names):
            warn(f"{self.path}: no label column {', '.join(missing)} - no scores are printed")

    def _no_labels(self, missing: list[str]) -> UserError:
        lacks = f"no label column {', '.join(missing)}"
        return UserError(f"{self.path}:1: {lacks}; {self._hint_for_labels(missing)}")

    def _hint_for_labels(self, missing: list[str]) -> str:
        """What there is instead of the missing label columns, and what to do."""
        used = ("id", self.text_column, *self.names, *self.named)
        others = [name for name in self.header if name not in used]
        close = similar(missing, others)
        hint = "add it, or name others with --labels"
        if corrected := split_at_commas(self.names, self.header):
            hint = f"names are separated by spaces: {corrected}"
        elif close:
            hint = f"did you mean {close}? name it with --labels"
        elif len(missing) == len(self.names):
            if code := self._code_for_one_column(others):
                return code
            hint = "name yours with --labels; label names in one column: docs/troubleshooting.md"
        return f"{self.columns_found} - {hint}"

    def _code_for_one_column(self, others: list[str]) -> str | None:
        """`pandas_that_splits` for these columns, by the first rows; None if some are 0/1: they may
        be the labels."""
        rows = itertools.islice(self._records(), 1, 300)
        rows = [row for row in rows if len(row) == len(self.header)]
        columns = {name: [row[self.header.index(name)] for row in rows] for name in others}
        if any(set(cells) <= set(TRUTH) for cells in columns.values()):
            return None
        return pandas_that_splits(self._pandas, columns)

    @property
    def _pandas(self) -> str:
        return pandas_that_reads(self.path, self.separator, self.encoding)

    def _check_named(self) -> None:
        """UserError for a column that a flag names and that isn't there, or is used otherwise."""
        used = dict.fromkeys(self.names, "a label")
        used |= {self.text_column: "the text column", "id": "the id"}
        for name in self.named:
            if name not in self.header:
                close = similar([name], self.header)
                hint = f"did you mean {close}?" if close else "name one of them"
                raise UserError(f"{self.path}:1: no column {name!r}; {self.columns_found} - {hint}")
            if name in used:
                raise UserError(
                    f"{self.path}:1: column {name!r} is {used[name]} - name another one"
                )
            if self.named.count(name) > 1:
                hint = "each needs its own column"
                raise UserError(f"column {name!r} is named by two flags - {hint}")

    # Rows

    def read_ids(self, frame, first: int) -> list[str]:
        """Those of the file, or numbers from `first` on."""
        if "id" in self.header:
            return frame["id"].tolist()
        return [str(i) for i in range(first, first + len(frame))]

    def read_labels(self, frame) -> np.ndarray | None:
        """float32 (N, C); nan for what is unknown.

        None without label columns, and where a cell is not 0 or 1 (or no share): it is counted.
        """
        if not self.labelled:
            return None
        cells = frame[self.names].apply(lambda column: column.str.strip().str.lower())
        read = as_share if self.soft else TRUTH
        targets = cells.apply(lambda column: column.map(read)).to_numpy(np.float32)
        unknown = cells.isin(self.unknown).to_numpy()
        self.known += (~unknown).sum(0)
        self.zeros += int((targets < 0.5).sum())
        words = "rows are not scored: all their labels are -1 or empty"
        if self.training:
            words = "rows have no known label: none is learned or scored"
        self.counts[words] += int(unknown.all(1).sum())
        wrong = np.argwhere(np.isnan(targets) & ~unknown)
        for i, j in wrong[: 5 - len(self.first_wrong)]:
            cell = frame[self.names[j]].iloc[i]
            self.first_wrong.append((frame.index[i], self.names[j], cell))
        self.wrong_cells += len(wrong)
        if self.wrong_cells:
            self._note_words(frame, cells)
        return None if len(wrong) else targets

    def _note_words(self, frame, cells) -> None:
        """What label cells hold. cells: as `frame`, in lower case."""
        for name in self.names:
            for row, word in cells[name].drop_duplicates().items():
                if len(self.words) < 20:
                    self.words.setdefault(word, (row, name, frame[name].loc[row]))

    def read_numbers(self, frame) -> dict[str, np.ndarray]:
        """float32 (N,): each other column, at least half of whose cells are numbers, by name.

        What is no number is nan: a loss that uses it stops the training, and names the row.
        """
        import pandas as pd

        of_batch = ("labels", "input_ids", "attention_mask", "windows")  # see DataCollator
        used = ("", "id", self.text_column, *self.names, *of_batch)
        numbers = {}
        for name in [name for name in self.header if name not in used]:
            values = pd.to_numeric(frame[name], errors="coerce").to_numpy(np.float32)
            known = np.isfinite(values)
            if 2 * known.sum() >= len(values):
                numbers[name] = np.where(known, values, np.float32(np.nan))
        return numbers

    def count_odd(self, frame, texts: list[str]) -> None:
        """Note what is odd in the rows of a frame."""
        self.rows += len(texts)
        self.counts[BLANK] += frame.attrs["blank_lines"]
        self.counts[REPEATED] += self._count_headers(frame)
        self.text_counts["are blank; they are kept"] += sum(map(is_blank, texts))
        with_nul = sum("\0" in text for text in texts)
        self.text_counts["hold NUL characters; most tokenizers drop them"] += with_nul
        ids = [""] * len(texts)
        if "id" in self.header:
            ids = frame["id"].tolist()
            self.id_hashes.append(np.array([hash(i) for i in ids], np.int64))
        for i, text in enumerate(texts):
            if "\n" in text and (n := rows_inside(text, frame.iloc[i].to_dict(), self)):
                self.swallowed[str(frame.index[i])] = n
        for column in list(self.zero_one_columns):
            cells = {cell.strip().lower() for cell in set(frame[column])}
            if not cells <= set(TRUTH):
                self.zero_one_columns.remove(column)

    def count_known(self, hashes: np.ndarray, seen: np.ndarray) -> None:
        """Note the texts that a run was trained on."""
        warning = "are among those this run was trained on; scores on them are too good"
        self.text_counts[warning] += int(np.isin(hashes, seen).sum())

    def _count_headers(self, frame) -> int:
        """How many rows repeat the header, as in files that were joined."""
        first = column_names(frame.iloc[:, 0].tolist())
        places = [i for i, cell in enumerate(first) if cell == self.header[0]]
        return sum(column_names(frame.iloc[i].tolist()) == self.header for i in places)

    # What was found

    def warn_of_odd_rows(self) -> None:
        """One warning for each kind of odd row."""
        ids = np.concatenate(self.id_hashes)
        odd = [(n, words) for words, n in self.counts.items()]
        odd.append((len(ids) - len(np.unique(ids)), "ids occur more than once"))
        odd += [(n, f"of {self.rows} texts {words}") for words, n in self.text_counts.items()]
        if self.first_wrong:
            row, name, _ = self.first_wrong[0]
            problem = "no shares from 0 to 1" if self.soft else "not 0/1"
            words = f"label cells are {problem} (first: row {row}, {name}) - no scores are printed"
            odd.append((self.wrong_cells, words))
        if self.swallowed:
            rows = ", ".join([*self.swallowed][:5])
            hint = 'a quote opens there and closes rows later; write it ""'
            words = (
                f"rows stand inside the text of row {rows}, and are lost: their ids too - {hint}"
            )
            odd.append((sum(self.swallowed.values()), words))
        for count, words in odd:
            if count:
                warn(f"{self.path}: {count} {words}")

    def check_rows(self) -> None:
        """Of a training file, after its last row. UserError for cells that are not 0/1, for labels
        of which none is known, for columns that may be forgotten labels, and for no rows at all."""
        if not self.rows:
            raise UserError(f"{self.path}: a header and no rows - add rows")
        if self.wrong_cells:
            raise self._wrong_labels()
        if never := [name for name, n in zip(self.names, self.known, strict=True) if not n]:
            columns = ", ".join(map(repr, never))
            hint = "fill some cells, or leave the label out of --labels"
            raise UserError(f"{self.path} column {columns}: every cell is empty - {hint}")
        if not self.zeros and (self.known < self.rows).any():
            problem = "no label cell is 0, so nothing tells yes from no"
            hint = "where empty means no, write 0, and leave --missing-labels out"
            raise UserError(f"{self.path}: {problem} - {hint}")
        self._check_zero_one_columns()

    def _check_zero_one_columns(self) -> None:
        if not self.zero_one_columns:
            return
        columns = ", ".join(map(repr, self.zero_one_columns))
        if self.labels_named:
            print(f"no labels, though they hold 0 and 1 alone: {columns}")
            return
        if "fold" in self.zero_one_columns:
            hint = "name it with --fold-column fold, or rename it; no label can be called so"
            raise UserError(f"{self.path}:1: 'fold' could be the folds of the rows - {hint}")
        choices = [*self.names, *self.zero_one_columns], self.names
        commands = " or ".join(f"--labels {shlex.join(names)}" for names in choices)
        raise UserError(f"{self.path}:1: {columns} could be labels too - say which: {commands}")

    def _wrong_labels(self) -> UserError:
        unclear = [place for word, place in self.words.items() if word not in YES | NO]
        first = self.first_wrong
        if unclear and self.words.keys() & YES - {"1"}:  # a slip among words that are clear
            first = [*unclear, *first]
        (row, name, cell), *others = first
        found = repr(cell[:40])
        rows = ", ".join(dict.fromkeys(str(r) for r, _, _ in others if r != row))
        if self.wrong_cells > 1:
            found += f"; also row {rows}" if rows else ""
            found += f"; {self.wrong_cells} cells in all"
        problem = "must be 0 or 1"
        hint = "write 0 or 1 in each cell"
        if self.soft:
            problem = "must be a share from 0 to 1"
            hint = "write a number in each cell"
        elif not np.isnan(as_share(cell)):
            hint += ", or use --soft-labels to learn shares as they are"
        if ("-1" if self.unknown else "") in self.words:
            hint += "; where a label is unknown, leave the cell empty, with --missing-labels"
        elif self.unknown:
            hint += ", or leave it empty where the label is unknown"
        if column_names([cell]) == [name] and self.counts[REPEATED]:
            hint = f"{self.counts[REPEATED]} {REPEATED}"
        elif code := pandas_of_words(self._pandas, self.names, set(self.words)):
            hint = code
        return UserError(f"{self.path}:{row} column {name!r}: {problem} ({found}) - {hint}")
