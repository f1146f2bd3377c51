"""The CSV files that predict.py writes: paths checked first, rows appended chunk by chunk."""

import contextlib
import csv
import gzip
import io
import os
import shutil
from pathlib import Path

import numpy as np

from config import Config, PredictConfig
from support.csvfile import check_file
from support.errors import UserError
from support.files import commit, locked, read_json, write_json, writing

ENDINGS = (".csv", ".csv.gz")


def check_paths(config: PredictConfig, trained: Config) -> list[Path]:
    """The files to write: submission and, if asked for, probabilities. UserError if unusable, or
    without an input.

    `trained`: the settings of the run; the files it was trained on and judged by are kept.
    """
    check_file(config.input, "--input")
    paths = [Path(os.path.realpath(p)) for p in (config.output, config.probabilities) if p]
    run = Path(os.path.realpath(config.run or "runs"))
    own = [os.path.realpath(p) for p in (trained.train, trained.valid) if p]
    read = [p for p in (config.input, config.thresholds) if p and os.path.exists(p)]
    different = "input, --thresholds, --output and --probabilities must be different files"
    for path in paths:
        folder, part = path.parent, Path(f"{path}.part")
        same = os.path.exists(path) and any(os.path.samefile(path, p) for p in read)
        of_run = path.name in ("oof.csv", "errors.csv") and run in path.parents
        if os.path.lexists(path):
            check_file(path, "what is written over")
        held = os.listdir(part) if os.path.isdir(part) else os.path.lexists(part)
        for wrong, where, words in (
            (same or paths.count(path) > 1, path, different),
            (of_run, path, "lies in the run - name a new .csv elsewhere"),
            (str(path) in own, path, "is what the run was trained on"),
            (not os.path.isdir(folder), folder, "no such folder - make it first"),
            (not os.access(folder, os.W_OK), folder, "not writable - choose another folder"),
            (not path.name.endswith(ENDINGS), path, "name it .csv or .csv.gz"),
            (held and not os.path.exists(part / "lock"), part, "is in the way - move it elsewhere"),
        ):
            if wrong:
                raise UserError(f"{where}: {words}")
    return paths


def csv_text(rows: list[list]) -> str:
    """Rows as CSV that reads back the same: a lone carriage return wants quotes everywhere."""
    text = io.StringIO()
    bare = any("\r" in x for row in rows for x in row if isinstance(x, str))
    quoting = csv.QUOTE_NONNUMERIC if bare else csv.QUOTE_MINIMAL
    options = {"lineterminator": "\n", "quoting": quoting}
    csv.writer(text, **options).writerows(rows)
    return text.getvalue()


def to_csv(ids: list[str], values: np.ndarray, labels: list[str], header: bool):
    """Rows of id and values (0/1, or probabilities to 9 digits) as CSV text."""
    cell = int if values.dtype == bool else "{:.9g}".format
    rows = [[i, *map(cell, row)] for i, row in zip(ids, values.tolist(), strict=True)]
    return csv_text([["id", *labels], *rows] if header else rows)


class GrowingCSV:
    """Files whose chunks lie in <name>.part/, each sealed by a checksum, until all are there.

    `chunks` are done. `progress`: what was scored in them, `metrics.confusion`'s counts (4, C) and
    the number of rows with every label right.
    """

    def __init__(self, paths: list[Path], labels: list[str], rows: int, key: str):
        """`key` stands for what must be the same to go on. UserError: in use."""
        self.paths, self.labels, self.key = paths, labels, key
        self.parts = [Path(f"{path}.part") for path in paths]
        self.locks = [locked(part / "lock") for part in self.parts]  # until this object is gone
        for path, lock in zip(paths, self.locks, strict=True):
            if not lock.__enter__():
                raise UserError(f"{path}: another predict.py is writing it - wait, or see --output")
        self.chunks, self.done, self.progress = 0, 0, [[[0] * len(labels)] * 4, 0]
        with contextlib.suppress(UserError):  # up to the first that is missing or damaged
            while (chunk := read_json(self.place(self.chunks), sealed=True))["key"] == key:
                self.done, self.progress = chunk["done"], chunk["progress"]
                self.chunks += 1
        if self.chunks:
            print(f"goes on after row {self.done} of {rows}")

    def place(self, n: int) -> Path:
        return self.parts[0] / f"{n}.json"

    def append(self, ids: list[str], progress, *values: np.ndarray) -> None:
        """Write one chunk: the values of each file as text, and how far the files are with it."""
        header = self.chunks == 0
        files = zip(self.paths, values, strict=False)
        texts = [to_csv(ids, v, self.labels, header) for _, v in files]
        self.done += len(ids)
        chunk = {"key": self.key, "done": self.done, "progress": progress, "texts": texts}
        write_json(self.place(self.chunks), chunk, seal=True)
        self.chunks += 1

    def finish(self) -> None:
        """Put the chunks together and give the files their names."""
        for i, (path, part) in enumerate(zip(self.paths, self.parts, strict=True)):
            with writing(path):
                with open(part / "whole", "wb") as f:
                    for n in range(self.chunks):
                        raw = read_json(self.place(n), sealed=True)["texts"][i].encode()
                        f.write(gzip.compress(raw, mtime=0) if path.suffix == ".gz" else raw)
                commit(part / "whole", path)
        for part in self.parts:
            shutil.rmtree(part)
        print("\n".join(f"wrote {path} ({self.done} rows)" for path in self.paths))
