"""What a student learns from: labelled rows and texts without labels, judged by a teacher's folds.

N rows: first the labelled ones, in the teacher's order, then M texts. C labels.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data import Table, read_chunks, read_data, split
from predict import Ensemble
from support.csvfile import check_file, read_header
from support.errors import UserError
from support.files import file_sha256, json_sha256
from support.findings import Findings
from tools.runs import data_sha256, read_oof


@dataclass
class Lessons(Table):
    """Rows whose targets differ by fold: the teacher's fold k teaches the student's fold k."""

    teacher: Ensemble = None
    share: float = 0.5  # how far labels are drawn to the teacher's probabilities

    def targets_of(self, k: int) -> np.ndarray:
        """float32 (N, C): what fold k learns. Its held-out rows keep their labels."""
        print(f"fold {k}: the teacher's fold {k} reads {len(self)} texts ...", flush=True)
        return np.where((self.folds == k)[:, None], self.targets, self.taught([k]))

    def taught(self, folds: list[int] | None) -> np.ndarray:
        """float32 (N, C): targets by the mean of these folds of the teacher; None: of all."""
        p = self.teacher.predict_test(self.inputs, folds=folds)
        self.teacher.models.clear()  # makes room for the student
        y = self.targets
        return np.where(np.isnan(y), p, y + self.share * (p - y)).astype(np.float32)


def read_lessons(config) -> Lessons:
    """Of a DistilConfig. UserError for data that does not fit the teacher."""
    teacher = Ensemble(config.teacher, config.device, config.precision)
    data = read_data(config)
    fold = split(data, config)
    check_teacher(teacher, data, fold, config)
    new = read_texts(config, data)
    both = {name: getattr(data, name) + getattr(new, name) for name in ("ids", "texts", "inputs")}
    no_labels = np.full((len(new), len(config.labels)), np.nan, np.float32)
    both["targets"] = np.concatenate([data.targets, no_labels])
    both["group"] = None if data.group is None else np.append(data.group, [""] * len(new))
    both["folds"] = np.append(fold, np.full(len(new), -1)).astype(np.int16)
    # The run is one of this teacher, these texts and this code.
    origin = {"teacher": teacher.run.key, "texts_sha256": json_sha256([new.ids, new.texts])}
    for name in ("distil", "lessons"):
        origin[f"code.tools/{name}.py"] = file_sha256(Path(__file__).with_name(f"{name}.py"))
    both |= {"text_column": data.text_column, "sha256": data.sha256, "origin": origin}
    return Lessons(**both, teacher=teacher, share=config.teacher_share)


def check_teacher(teacher: Ensemble, data: Table, fold: np.ndarray, config) -> None:
    """UserError unless the student has the teacher's rows, labels and folds, and the teacher knew
    none of the rows before: else the label of a held-out row would reach the student."""
    run = teacher.run
    if data.sha256 != data_sha256(run):
        raise UserError(f"{config.train}: not what {run.path} was trained on - name that file")
    if (its := teacher.labels) != config.labels:
        what = f"{' '.join(config.labels)} - those of {run.path} are {' '.join(its)}"
        raise UserError(f"--labels: {what}; leave the flag out")
    if not (run.path / "oof.csv").exists():
        raise UserError(f"{run.path}: one model on all rows teaches no folds - name another run")
    scored, its = read_oof(run, data, its), np.full(len(data), -1)
    its[scored.rows] = scored.fold
    if (its != fold).any():
        raise UserError(f"{run.path}: has other folds - leave out the flags that make folds")
    if n := run.same.get("encoder_saw"):
        what = f"its encoder had been trained on {n} of these texts before"
        raise UserError(f"{run.path}: {what} - take a teacher that began with another encoder")
    if teacher.config.keep != "last":
        print(f"{run.path}: held-out labels chose its epochs - none do with train.py --keep last")


def read_texts(config, data: Table) -> Table:
    """The rows of --texts whose text stands neither in the training data nor in --test."""
    new, *test = (texts_of(path, data) for path in (config.texts, config.test) if path)
    known = np.concatenate([data.hashes, *(table.hashes for table in test)])
    _, first = np.unique(new.hashes, return_index=True)
    kept = np.sort(first[~np.isin(new.hashes[first], known)])
    left_out = f"left out, as known or double: {len(new) - len(kept)}"
    print(f"{config.texts}: {len(kept)} texts; {left_out}")
    if not len(kept):
        raise UserError(f"{config.texts}: no new text in it - give texts that are in no other file")
    parts = ([part[i] for i in kept] for part in (new.ids, new.texts, new.inputs))
    return Table(*parts, None, new.text_column)


def texts_of(path: str, data: Table) -> Table:
    header, findings = read_header(check_file(path, "a CSV of texts")), Findings(path)
    if (column := data.text_column) not in header:
        found = f"the columns are {', '.join(map(repr, header))[:300]}"
        raise UserError(
            f"{path}:1: no text column {column!r}; {found} - rename the one of the texts"
        )
    *_, table = read_chunks(path, column, [], None, findings)
    findings.say()
    return table
