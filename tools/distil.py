"""Teach a small encoder what a large one found: python tools/distil.py RUN --texts new.csv --out X

Folds are taught by folds. The student's fold k learns from the labelled rows of the other folds,
their labels drawn half-way to the probabilities of the teacher's fold k, and from texts without
labels by these probabilities alone: no label of the rows it is judged on reaches it.
Hinton et al. 2015, arxiv.org/abs/1503.02531. The rows and their targets: tools/lessons.py.
"""

import contextlib
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import Config, arg
from support.cli import check_flags, flag
from support.errors import UserError
from support.files import read_json

DATA = ("train", "valid", "labels", "text_column", "soft_labels", "folds", "fold_column")
DATA += ("group_column", "split_seed")


@dataclass(frozen=True)
class DistilConfig(Config):
    """Train a student of a finished run: each fold is taught by the run's own fold.

    Data, labels and folds are the teacher's. The other flags are those of train.py.
    """

    teacher: str | None = arg(None, "finished run that teaches; also without the flag, in front")
    texts: str | None = arg(None, "CSV of texts to learn from; its labels are not used")
    test: str | None = arg(None, "CSV whose texts are left out of --texts, such as a test set")
    teacher_share: float = arg(0.5, "how far labels are drawn to the teacher's probabilities", 0, 1)
    single: str | None = arg(None, "finished student: train one model on all rows, as it was")
    FILES = (*Config.FILES, "teacher", "texts", "test", "single")


def value_of(argv: list[str], name: str) -> str | None:
    """Of `--name X` and `--name=X`, the last one."""
    both = zip(argv, [*argv[1:], None], strict=True)
    found = [b if a == name else a[len(name) + 1 :] for a, b in both if a.split("=")[0] == name]
    return found[-1] if found else None


def expanded(argv: list[str]) -> list[str]:
    """All as flags. In front stand those that a run gives: a student all, a teacher its data."""
    if argv and not argv[0].startswith("-"):
        argv = ["--teacher", *argv]
    teacher, student = value_of(argv, "--teacher"), value_of(argv, "--single")
    if student:
        given = ["--config", str(Path(student, "config.json")), "--keep", "last"]
        return argv if value_of(argv, "--config") else [*given, *argv]
    settings, given = {}, []
    with contextlib.suppress(UserError):  # `read` says what is wrong with it
        settings = read_json(Path(teacher or "", "config.json"))
    if settings.get("split_seed") is None:
        settings["split_seed"] = settings.get("seed")
    for name in DATA:
        value = settings.get(name)
        if value not in (None, False):
            given += [flag(name), *([] if value is True else np.atleast_1d(value).astype(str))]
    return [*given, *argv]


if __name__ == "__main__":
    sys.argv[1:] = expanded(sys.argv[1:])
    check_flags(DistilConfig)

import train
from data import Table
from support.files import write_json
from support.results import find_run
from tools.lessons import Lessons, read_lessons


def main(argv: list[str] | None = None) -> int:
    before, flags = sys.argv, expanded(sys.argv[1:] if argv is None else argv)
    # In sys.argv also when called from Python: the processes beside this one are started with it.
    sys.argv = [__file__, *([] if argv is None else ["--jobs", "1"]), *flags]
    try:
        return train.main(kind=DistilConfig, read=read, finish=finish)
    finally:
        sys.argv = before


def read(config: DistilConfig) -> Table:
    if config.single and not config.teacher:
        raise UserError(
            f"--single {config.single}: is no student that distil.py trained - name one"
        )
    for name in ("teacher", "texts", "out"):
        if not getattr(config, name):
            raise UserError(f"--{name} is missing - distil.py RUN --texts new.csv --out X")
    if not config.single:
        return read_lessons(config)
    student, lessons = find_run(config.single), read_lessons(config)
    if student.same.get("teacher") != lessons.teacher.run.key:
        raise UserError(
            f"--single {config.single}: not taught by {config.teacher} - leave that out"
        )
    lessons.origin["single"] = student.key
    return for_one(lessons, config.seed)


def for_one(lessons: Lessons, seed: int) -> Table:
    """All rows for one model, taught by the mean of the teacher's folds. No row is left to judge it
    on; a few texts, held back, show how far it agrees with the teacher."""
    texts = np.flatnonzero(np.isnan(lessons.targets).any(1))
    few = np.random.default_rng(seed).permutation(texts)[::20]
    print(f"scores of the epochs: agreement with the teacher on {len(few)} texts held back")
    fold = np.full(len(lessons), -1, np.int16)
    fold[few] = 0
    known = ("ids", "texts", "inputs", "text_column", "group", "sha256", "origin")
    same = {name: getattr(lessons, name) for name in known}
    return Table(**same, targets=lessons.taught(None), folds=fold)


def finish(config: DistilConfig, data: Table, fold_of_row: np.ndarray, run) -> None:
    """As in train.py; of --single the thresholds and scores of the student's folds."""
    if not config.single:
        return train.summarise(config, data, fold_of_row, run)
    student = find_run(config.single).path
    with run.writing_totals() as folder:
        shutil.copy(student / "th.npy", folder)
        write_json(folder / "th.json", {"labels": config.labels, "run": run.key})
        scores = read_json(student / "metrics.json") | {"scores_of": str(student)}
        write_json(folder / "metrics.json", scores)
    print(f"done: {run.path}, with the thresholds and scores of {student}")


if __name__ == "__main__":
    sys.exit(main())
