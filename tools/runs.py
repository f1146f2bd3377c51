"""What the tools read of a finished run: its training data and its out-of-fold rows.

N data rows, n of them held out, C labels.
"""

import dataclasses
import os

import numpy as np

import metrics
from config import HERE, Config
from data import Table, assign_folds, read_chunks, read_data, split
from support.csvfile import read_frames, read_header
from support.errors import UserError
from support.findings import Findings
from support.results import read_settings
from support.run import Run
from tools.luck import Scored


def data_sha256(run: Run) -> str:
    return " ".join(run.same[key] for key in ("data_sha256", "valid_sha256") if key in run.same)


def read_training(run: Run, moved: list[str]) -> Table:
    """The rows a run was trained on. `moved`: where --train and --valid lie now, or []. UserError
    for other rows."""
    config = read_settings(run, "cpu", "fp32")
    train, valid = [*moved, *(config.train, config.valid)[len(moved) :]][:2]
    data = read_data(dataclasses.replace(config, train=train, valid=valid))
    if data.sha256 != data_sha256(run):
        what = f"{' '.join(filter(None, (train, valid)))}: not what {run.path} was trained on"
        raise UserError(f"{what} - say with --train where that lies now")
    return data


def some_texts(config: Config, moved: list[str]) -> Table:
    """The first 200 rows of the training file, or of the sample where that is gone; no labels."""
    path, column = [*moved, config.train][0], config.text_column
    if not moved and (not os.path.isfile(path) or column not in read_header(path)):
        path, column = str(HERE / "examples/test.csv"), "text"
    return next(read_chunks(path, column, [], 200, Findings(path)))


def read_oof(run: Run, data, labels: list[str]) -> Scored:
    path, config = str(run.path / "oof.csv"), read_settings(run, "cpu", "fp32")
    try:
        frame = next(read_frames(path, read_header(path), None))
        fold, p = frame["fold"].to_numpy(np.int16), frame[labels].to_numpy(np.float32)
    except (KeyError, ValueError, OverflowError, StopIteration):
        raise UserError(f"{path}: is not what train.py wrote - train it again") from None
    rows = np.arange(len(data))
    if len(frame) < len(data):  # some rows are never held out
        rows = np.flatnonzero(split(data, config) >= 0)
    if [data.ids[i] for i in rows] != frame["id"].tolist() or not ((p >= 0) & (p <= 1)).all():
        raise UserError(f"{path}: is not what train.py wrote for {config.train} - train it again")
    scored = Scored(rows, fold, data.labels[rows], None, p)
    return dataclasses.replace(scored, pred=cross_fit(scored, p, data, config))


def cross_fit(scored: Scored, p: np.ndarray, data: Table, config: Config) -> np.ndarray:
    """bool (n, C): verdicts on p (n, C), by thresholds of the other folds; as in train.py."""
    fold = scored.fold
    if config.folds == 1:
        groups = data.groups[scored.rows]
        parts = min(5, len(np.unique(groups)))
        fold = assign_folds(scored.y, groups, parts, config.fold_seed)
    return metrics.cross_fit(scored.y, p, fold)
