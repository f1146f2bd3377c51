"""The CSV files that predict.py writes: paths checked first, rows appended chunk by chunk.

A file named .tsv has tabs for commas.
"""

import contextlib
import csv
import gzip
import io
import itertools
import os
import shutil
from pathlib import Path

import numpy as np

from config import Config, PredictConfig
from support.csvfile import check_file
from support.process import UserError
from support.files import commit, locked, read_json, write_json, writing

ENDINGS = (".csv", ".csv.gz", ".tsv", ".tsv.gz")
ROWS_SHOWN = 5  # of a submission, when it is written


def check_paths(config: PredictConfig, trained: list[Config]) -> list[Path]:
    """The files to write: submission and, if asked for, probabilities. UserError if unusable, or
    without an input.

    `trained`: the settings of the runs; the files they were trained on and judged by are kept.
    """
    check_file(config.input, "--input")
    paths = [Path(os.path.realpath(p)) for p in (config.output, config.probabilities) if p]
    runs = {Path(os.path.realpath(run)) for run in config.run or ["runs"]}
    training_files = [os.path.realpath(p) for c in trained for p in (c.train, c.valid) if p]
    inputs = [p for p in (config.input, config.thresholds) if p and os.path.exists(p)]
    for path in paths:
        if os.path.lexists(path):
            check_file(path, "what is written over")
        is_input = os.path.exists(path) and any(os.path.samefile(path, p) for p in inputs)
        if is_input or paths.count(path) > 1:
            files = "input, --thresholds, --output and --probabilities"
            raise UserError(f"{path}: {files} must be different files")
        if path.name in ("oof.csv", "errors.csv") and runs & {*path.parents}:
            raise UserError(f"{path}: lies in the run - name a new .csv elsewhere")
        if str(path) in training_files:
            raise UserError(f"{path}: is what the run was trained on")
        if not os.path.isdir(path.parent):
            raise UserError(f"{path.parent}: no such folder - make it first")
        if not os.access(path.parent, os.W_OK):
            raise UserError(f"{path.parent}: not writable - choose another folder")
        if not path.name.endswith(ENDINGS):
            raise UserError(f"{path}: name it .csv, .csv.gz, .tsv or .tsv.gz")
        part = Path(f"{path}.part")
        occupied = os.listdir(part) if os.path.isdir(part) else os.path.lexists(part)
        if occupied and not os.path.exists(part / "lock"):
            raise UserError(f"{part}: exists already - move it elsewhere")
    return paths


def csv_text(rows: list[list], delimiter: str = ",") -> str:
    """Rows as CSV that reads back the same: a lone carriage return wants quotes everywhere."""
    text = io.StringIO()
    bare = any("\r" in x for row in rows for x in row if isinstance(x, str))
    quoting = csv.QUOTE_NONNUMERIC if bare else csv.QUOTE_MINIMAL
    csv.writer(text, delimiter=delimiter, lineterminator="\n", quoting=quoting).writerows(rows)
    return text.getvalue()


def to_csv(
    ids: list[str],
    values: np.ndarray,
    names: list[str],
    header: bool,
    delimiter: str = ",",
    texts: list[str] | None = None,
) -> str:
    """Rows of id, perhaps text, and values (0/1, or probabilities to 9 digits) as CSV text."""
    columns = {"id": ids} if texts is None else {"id": ids, "text": texts}
    cell = int if values.dtype == bool else "{:.9g}".format
    before = zip(*columns.values(), strict=True)
    rows = [[*cells, *map(cell, row)] for cells, row in zip(before, values.tolist(), strict=True)]
    return csv_text([[*columns, *names], *rows] if header else rows, delimiter)


def delimiter_of(path: Path) -> str:
    return "\t" if path.name.endswith((".tsv", ".tsv.gz")) else ","


def first_rows(text: str, delimiter: str) -> list[str]:
    """The text, or else the id, and the detected labels of the first rows of a submission.csv, as
    lines to print."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    header, *rows = itertools.islice(reader, 1 + ROWS_SHOWN)
    first = 2 if header[1] == "text" else 1  # of the labels; none is called text
    lines = []
    for row in rows:
        labels = zip(header[first:], row[first:], strict=True)
        detected = [name for name, cell in labels if cell == "1"]
        short = " ".join(row[first - 1].split())[:40]
        lines.append(f"  {short}: {', '.join(detected) or 'None'}")
    return lines


class GrowingCSV:
    """Files whose chunks lie in <name>.part/, each sealed by a checksum, until all are there.

    `chunks` are done. `progress`: what was scored in them, `metrics.confusion`'s counts (4, C) and
    `metrics.exact_matches`.
    """

    def __init__(self, paths: list[Path], names: list[str], rows: int, key: str):
        """`key` stands for what must be the same to resume. UserError: in use."""
        self.paths = paths
        self.names = names
        self.key = key
        self.parts = [Path(f"{path}.part") for path in paths]
        self.locks = [locked(part / "lock") for part in self.parts]  # until this object is gone
        for path, lock in zip(paths, self.locks, strict=True):
            if not lock.__enter__():
                raise UserError(f"{path}: another predict.py is writing it - wait, or see --output")
        self.chunks = self.done = 0
        self.progress = [[[0] * len(names)] * 4, [0, 0]]
        with contextlib.suppress(UserError):  # up to the first that is missing or damaged
            while (chunk := read_json(self.place(self.chunks), sealed=True))["key"] == key:
                self.done = chunk["done"]
                self.progress = chunk["progress"]
                self.chunks += 1
        if self.chunks:
            print(f"resumes after row {self.done} of {rows}")

    def place(self, n: int) -> Path:
        return self.parts[0] / f"{n}.json"

    def append(
        self, ids: list[str], texts: list[str] | None, progress: list, *values: np.ndarray
    ) -> None:
        """Write one chunk: the values of each file as text, and how far the files are with it.

        `texts`: None where they are not written.
        """
        header = self.chunks == 0
        written = []
        for path, v in zip(self.paths, values, strict=False):  # probabilities may have no file
            written.append(to_csv(ids, v, self.names, header, delimiter_of(path), texts))
        self.done += len(ids)
        chunk = {"key": self.key, "done": self.done, "progress": progress, "texts": written}
        write_json(self.place(self.chunks), chunk, seal=True)
        self.chunks += 1

    def finish(self) -> None:
        """Put the chunks together, give the files their names, and show the first rows."""
        first_chunk = read_json(self.place(0), sealed=True)["texts"][0]
        shown = first_rows(first_chunk, delimiter_of(self.paths[0]))
        for i, (path, part) in enumerate(zip(self.paths, self.parts, strict=True)):
            with writing(path):
                with open(part / "whole", "wb") as f:
                    for n in range(self.chunks):
                        raw = read_json(self.place(n), sealed=True)["texts"][i].encode()
                        f.write(gzip.compress(raw, mtime=0) if path.suffix == ".gz" else raw)
                commit(part / "whole", path)
        for part in self.parts:
            shutil.rmtree(part)
        wrote = [f"wrote {path} ({self.done} rows)" for path in self.paths]
        print("\n".join([*wrote, *shown]))
