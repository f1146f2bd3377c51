"""What a student learns from: labelled rows and texts without labels, judged by a teacher's folds.

N rows: first the labelled ones, in the teacher's order, then M texts. C labels.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from config import Config
from data import Table, read_chunks, read_data, split
from predict import Ensemble
from support.csvfile import check_file
from support.files import file_sha256, json_sha256
from support.finished import FinishedRun, data_sha256, read_oof_csv
from support.inputcsv import InputCSV
from support.process import UserError
from support.splits import append_rows


@dataclass(kw_only=True)
class TaughtTable(Table):
    """Rows whose targets differ by fold: the teacher's fold k teaches the student's fold k."""

    teacher: FinishedRun
    share: float  # of the teacher's probabilities in the known targets of labelled rows

    def targets_of(self, k: int) -> np.ndarray:
        """float32 (N, C): what fold k learns. Its held-out rows keep their labels."""
        print(f"fold {k}: the teacher's fold {k} reads {len(self)} texts ...", flush=True)
        held_out = (self.fold == k)[:, None]
        return np.where(held_out, self.targets, self.taught([k]))

    def taught(self, fold_numbers: list[int] | None) -> np.ndarray:
        """float32 (N, C): targets by the mean of these folds of the teacher; None: of all. What is
        unknown has the teacher's probability as it is."""
        p = Ensemble(self.teacher).predict_test(self.inputs, fold_numbers, extra=self.extra)
        mixed = self.targets + self.share * (p - self.targets)
        return np.where(np.isnan(self.targets), p, mixed).astype(np.float32)


def read_taught(config: Config) -> TaughtTable:
    """`config`: a DistilConfig. UserError for data that does not fit the teacher."""
    teacher = FinishedRun(config.teacher, config.device, config.precision)
    table = split(read_data(config), config)
    check_teacher(teacher, table, config)
    texts = read_texts(config, table)
    # The run is one of this teacher, these texts and this code.
    identity = {"teacher": teacher.key, "texts_sha256": json_sha256([texts.ids, texts.texts])}
    for name in ("distil.py", "parts/teaching.py"):
        path = Path(__file__).resolve().parents[1] / name
        identity[f"code.tools/{name}"] = file_sha256(path)
    fold = np.append(table.fold, np.full(len(texts), -1)).astype(np.int16)
    rows = append_rows(table, texts, fold)
    rows = dataclasses.replace(rows, identity=identity, unlabelled=len(texts))
    fields = {f.name: getattr(rows, f.name) for f in dataclasses.fields(Table)}
    return TaughtTable(**fields, teacher=teacher, share=config.teacher_share)


def check_teacher(teacher: FinishedRun, table: Table, config: Config) -> None:
    """UserError unless the student has the teacher's rows, labels and folds, and the teacher knew
    none of the rows before: else the label of a held-out row would reach the student."""
    if table.sha256 != data_sha256(teacher):
        problem = f"not what {teacher.path} was trained on"
        raise UserError(f"{config.train}: {problem} - name that file")
    if teacher.names != config.labels:
        theirs = f"those of {teacher.path} are {' '.join(teacher.names)}"
        raise UserError(f"--labels: {' '.join(config.labels)} - {theirs}; leave the flag out")
    if not (teacher.path / "oof.csv").exists():
        problem = "one model on all rows teaches no folds"
        raise UserError(f"{teacher.path}: {problem} - name another run")
    oof = read_oof_csv(teacher)
    held_out = np.flatnonzero(table.fold >= 0)
    ids = [table.ids[i] for i in held_out]
    if oof.ids != ids or (table.fold[held_out] != oof.fold).any():
        hint = "leave out the flags that make folds"
        raise UserError(f"{teacher.path}: has other folds - {hint}")
    if n := teacher.identity.get("encoder_saw"):
        problem = f"its encoder had been trained on {n} of these texts before"
        hint = "take a teacher that began with another encoder"
        raise UserError(f"{teacher.path}: {problem} - {hint}")
    if teacher.config.keep != "last":
        hint = "none do with train.py --keep last"
        print(f"{teacher.path}: held-out labels chose its epochs - {hint}")


def read_texts(config: Config, table: Table) -> Table:
    """The rows of --texts whose text stands neither in the training data nor in --test."""
    new = read_unlabelled(config.texts, config, table)
    known = table.hashes
    if config.test:
        known = np.append(known, read_unlabelled(config.test, config, table).hashes)
    _, first = np.unique(new.hashes, return_index=True)
    kept = np.sort(first[~np.isin(new.hashes[first], known)])
    left_out = f"left out, as known or duplicate: {len(new) - len(kept)}"
    print(f"{config.texts}: {len(kept)} texts; {left_out}")
    if not len(kept):
        raise UserError(f"{config.texts}: no new text in it - give texts that are in no other file")
    return Table(
        ids=[new.ids[i] for i in kept],
        texts=[new.texts[i] for i in kept],
        inputs=[new.inputs[i] for i in kept],
        targets=None,
        text_column=new.text_column,
        extra={name: values[kept] for name, values in new.extra.items()},
    )


def read_unlabelled(path: str, config: Config, table: Table) -> Table:
    """A CSV of texts, in a column named as that of the training."""
    check_file(path, "a CSV of texts")
    source = InputCSV(path, config, names=(), text_column=table.text_column)
    *_, texts = read_chunks(source)
    source.warn_of_odd_rows()
    return texts
