"""The CSV files that predict.py writes: paths checked first, rows appended chunk by chunk."""

import contextlib
import csv
import gzip
import hashlib
import io
import itertools
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from config import PredictConfig
from support.csvfile import check_file
from support.errors import UserError, warn
from support.files import commit, locked, read_json, sweep, write_json, writing


ENDINGS = (".csv", ".csv.gz", ".tsv")


def check_no_files(config: PredictConfig) -> None:
    for name in ("input", "output", "probabilities"):
        if getattr(config, name) != getattr(PredictConfig(), name):
            why = "--text reads and writes no file - leave one of them out"
            raise UserError(f"--{name}: {why}")


def check_paths(config: PredictConfig, train: str) -> list[Path]:
    """The files to write: submission and, if asked for, probabilities. UserError if unusable, or
    without an input.

    `train`: the CSV that the run was trained on.
    """
    check_file(config.input, "--input")
    paths = [Path(os.path.realpath(p)) for p in (config.output, config.probabilities) if p]
    files = [*paths, *(Path(f"{p}.part") for p in paths), Path(f"{paths[0]}.part.json")]
    run = Path(os.path.realpath(config.run or "runs"))
    read = [p for p in (config.input, config.thresholds) if p and os.path.exists(p)]
    different = "input, --thresholds, --output and --probabilities must be different files"
    for path in files:
        same = any(os.path.exists(path) and os.path.samefile(path, p) for p in read)
        named = path not in paths or path.name.endswith(ENDINGS)
        of_run = path.name in ("oof.csv", "errors.csv") or not named
        folder, special = path.parent, os.path.lexists(path) and not os.path.isfile(path)
        for wrong, where, words in (
            (same or files.count(path) > 1, path, different),
            (of_run and run in path.parents, path, "lies in the run - name a new .csv elsewhere"),
            (str(path) == os.path.realpath(train), path, "is what the run was trained on"),
            # temporary names are longer
            (len(os.fsencode(path.name)) > 220, path, "File name too long - choose a shorter one"),
            (os.path.isdir(path), path, "is a folder - name a file to write to"),
            (special, path, "not a regular file - name a file to write to"),
            (not os.path.isdir(folder), folder, "no such folder - make it first"),
            (not os.access(folder, os.W_OK), folder, "not writable - choose another folder"),
            (
                path in paths and not named,
                path,
                "name it .csv, .csv.gz or .tsv: no other is written",
            ),
        ):
            if wrong:
                raise UserError(f"{where}: {words}")
    if config.calibrate and not config.probabilities:
        warn("--calibrate changes probabilities alone, no verdicts - see --probabilities")
    return paths


def csv_text(rows: Iterable[list], delimiter: str = ",") -> str:
    """Rows as CSV that reads back the same: a lone carriage return wants quotes everywhere."""
    rows, text = list(rows), io.StringIO()
    bare = any("\r" in x for row in rows for x in row if isinstance(x, str))
    quoting = csv.QUOTE_NONNUMERIC if bare else csv.QUOTE_MINIMAL
    options = {"lineterminator": "\n", "quoting": quoting, "delimiter": delimiter}
    csv.writer(text, **options).writerows(rows)
    return text.getvalue()


def to_csv(ids: list[str], values: np.ndarray, labels: list[str], header: bool, delimiter=","):
    """Rows of id and values (0/1, or probabilities to 9 digits) as CSV text."""
    cell = int if values.dtype == bool else "{:.9g}".format
    rows = ([i, *map(cell, row)] for i, row in zip(ids, values.tolist(), strict=True))
    return csv_text([["id", *labels], *rows] if header else rows, delimiter)


class GrowingCSV:
    """Files that grow as <name>.part, with a note of how far they are whole; renamed at the end.

    `chunks` are done. `progress`: what was scored in them, `metrics.confusion`'s counts (4, C) and
    the number of rows with every label right.
    """

    def __init__(self, paths: list[Path], labels: list[str], rows: int, key: str):
        """`key` stands for what must be the same to go on. UserError: no room, or in use."""
        folder, need = paths[0].parent, rows * 16e-9 * (1 + len(labels)) * len(paths)
        if (free := shutil.disk_usage(folder).free / 1e9) < need:
            raise UserError(f"{folder}: {free:.2f} GB free, about {need:.2f} needed - make room")
        self.rows = rows
        self.paths, self.labels, self.key = paths, labels, key
        self.note = Path(f"{paths[0]}.part.json")
        self.parts = [Path(f"{p}.part") for p in paths]
        self.locks = [locked(part) for part in self.parts]  # until this object is gone
        for path, lock in zip(paths, self.locks, strict=True):
            if not lock.__enter__():
                mend = "wait for it, or choose another --output"
                raise UserError(f"{path}: another predict.py is writing it - {mend}")
        sweep(self.note.parent, of=self.note.name)
        start = [[[0] * len(labels)] * 4, 0]
        nothing = [[0, hashlib.sha256().hexdigest()]] * len(paths)
        notes = [{"key": key, "chunks": 0, "done": 0, "progress": start, "written": nothing}]
        with contextlib.suppress(UserError):  # no note, or a damaged one: from the first row
            notes.insert(0, read_json(self.note, sealed=True))
        for note in (note for note in notes if note["key"] == key):
            sizes, sums = zip(*note["written"], strict=True)
            self.sums = list(map(_cut, self.parts, sizes))
            if tuple(h.hexdigest() for h in self.sums) == sums:
                break
        self.chunks, self.done, self.progress = note["chunks"], note["done"], note["progress"]
        if self.chunks:
            print(f"goes on after row {self.done} of {rows}")

    def append(self, ids: list[str], progress, *values: np.ndarray) -> None:
        """Add one chunk's values to each file, on disk before the note says so."""
        for path, part, v, h in zip(self.paths, self.parts, values, self.sums, strict=False):
            delimiter = "\t" if path.suffix == ".tsv" else ","
            raw = to_csv(ids, v, self.labels, self.chunks == 0, delimiter).encode()
            raw = gzip.compress(raw, mtime=0) if path.suffix == ".gz" else raw
            h.update(raw)
            with writing(path), open(part, "ab") as f:
                f.write(raw)
                f.flush()
                os.fsync(f.fileno())
        self.chunks, self.done = self.chunks + 1, self.done + len(ids)
        pairs = zip(self.parts, self.sums, strict=True)
        written = [[p.stat().st_size, h.hexdigest()] for p, h in pairs]
        note = {"key": self.key, "chunks": self.chunks, "done": self.done, "progress": progress}
        write_json(self.note, note | {"written": written}, seal=True)

    def finish(self) -> None:
        """Give the files their names, and show the first lines."""
        for part, path in zip(self.parts, self.paths, strict=True):
            with writing(path):
                commit(part, path)
        self.note.unlink()
        print("\n".join(f"wrote {path} ({self.rows} rows)" for path in self.paths))
        opener = gzip.open if self.paths[0].suffix == ".gz" else open
        with opener(self.paths[0], "rt", encoding="utf-8", newline="") as f:
            print("".join(itertools.islice(f, 6)).rstrip("\n"))


def _cut(part: Path, size: int):
    """Cut the file to this size; the sha256 of what is left, to be updated by what follows."""
    with writing(part):
        os.truncate(part, size)
        with open(part, "rb") as f:
            return hashlib.file_digest(f, "sha256")
