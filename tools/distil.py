"""Teach a small encoder what a large one found: python tools/distil.py RUN --texts new.csv --out X

Folds are taught by folds. The student's fold k learns from the labelled rows of the other folds,
their labels drawn half-way to the probabilities of the teacher's fold k, and where there is no
label by these probabilities alone: no label of the rows it is judged on reaches it.
Hinton et al. 2015, arxiv.org/abs/1503.02531. The rows and their targets: tools/parts/teaching.py.
"""

import contextlib
import dataclasses
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import Config, arg
from support.cli import flag, parse, start_script
from support.csvfile import nearby
from support.process import UserError

DATA = ("train", "valid", "labels", "text_column", "soft_labels", "folds", "fold_column")
DATA += ("group_column", "split_seed", "missing_labels")


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

    @property
    def files(self) -> dict:
        names = ("teacher", "texts", "test", "single")
        return super().files | {name: getattr(self, name) for name in names}


def value_of(argv: list[str], name: str) -> str | None:
    """Of `--name X` and `--name=X`, the last one."""
    value = None
    for i, word in enumerate(argv):
        if word == name:
            value = argv[i + 1] if i + 1 < len(argv) else None
        elif word.startswith(f"{name}="):
            value = word.removeprefix(f"{name}=")
    return value


def expanded(argv: list[str]) -> list[str]:
    """The flags that a run gives, before the user's: of a teacher its data, of a student all."""
    if argv and not argv[0].startswith("-"):
        argv = ["--teacher", *argv]
    teacher = value_of(argv, "--teacher")
    student = value_of(argv, "--single")
    if student:
        if value_of(argv, "--config"):  # a helper's flags are expanded already
            return argv
        return ["--config", str(Path(student, "config.json")), "--keep", "last", *argv]
    settings = {}
    if teacher:
        from support.files import read_json  # here, as it needs numpy: --help answers without it

        with contextlib.suppress(UserError):  # `read` says what is wrong with it
            settings = read_json(Path(teacher, "config.json"))
    if settings.get("split_seed") is None:
        settings["split_seed"] = settings.get("seed")
    given = []
    for name in DATA:
        value = settings.get(name)
        if name in ("train", "valid") and value:
            value = nearby(value, teacher)
        if value is True:
            given.append(flag(name))
        elif value is not None and value is not False:  # 0 is a value
            given += [flag(name), *map(str, value if isinstance(value, list) else [value])]
    return [*given, *argv]


def settings_of(argv: list[str] | None) -> DistilConfig:
    return parse(DistilConfig, expanded(sys.argv[1:] if argv is None else argv))


start_script(settings_of, __name__)

import numpy as np

from data import Table
from support.files import read_json, write_json
from support.finished import FinishedRun
from support.jobs import Command
from support.process import exit_codes
from support.run import Run
from tools.parts.teaching import TaughtTable, read_taught
from train import summarise, train


@exit_codes
def main(argv: list[str] | None = None) -> int:
    flags = expanded(sys.argv[1:] if argv is None else argv)
    command = dataclasses.replace(Command.of(__file__, argv), flags=flags)
    return train(parse(DistilConfig, flags, __file__), read, finish, command)


def read(config: DistilConfig) -> Table:
    if config.single and not config.teacher:
        problem = "is no student that distil.py trained"
        raise UserError(f"--single {config.single}: {problem} - name one")
    for name in ("teacher", "texts", "out"):
        if not getattr(config, name):
            raise UserError(f"--{name} is missing - distil.py RUN --texts new.csv --out X")
    if not os.path.exists(config.train):
        hint = "give with --train where the teacher's file lies now"
        raise UserError(f"{config.train}: no such file - {hint}")
    if not config.single:
        return read_taught(config)
    student = FinishedRun(config.single)
    table = read_taught(config)
    if student.identity.get("teacher") != table.teacher.key:
        problem = f"not taught by {config.teacher}"
        raise UserError(f"--single {config.single}: {problem} - leave that out")
    return for_one(table, student, config.seed)


def for_one(table: TaughtTable, student: FinishedRun, seed: int) -> Table:
    """All rows for one model, taught by the mean of the teacher's folds. No row is left to judge it
    on; a few texts, held back, show how far it agrees with the teacher."""
    texts = np.arange(len(table))[-table.unlabelled :]
    few = np.random.default_rng(seed).permutation(texts)[::20]
    print(f"scores of the epochs: agreement with the teacher on {len(few)} texts held back")
    fold = np.full(len(table), -1, np.int16)
    fold[few] = 0
    fields = {f.name: getattr(table, f.name) for f in dataclasses.fields(Table)}
    fields["identity"] = table.identity | {"single": student.key}
    return Table(**fields | {"targets": table.taught(None), "fold": fold, "unlabelled": 0})


def finish(config: DistilConfig, table: Table, run: Run) -> None:
    """As in train.py; of --single the thresholds and scores of the student's folds."""
    if not config.single:
        summarise(config, table, run)
        return
    student = FinishedRun(config.single).path
    with run.writing_totals() as folder:
        shutil.copy(student / "th.npy", folder)
        write_json(folder / "th.json", {"labels": config.labels, "run": run.key})
        scores = read_json(student / "metrics.json") | {"scores_of": str(student)}
        write_json(folder / "metrics.json", scores)
    print(f"done: {run.path}, with the thresholds and scores of {student}")


if __name__ == "__main__":
    sys.exit(main())
