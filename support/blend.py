"""Several finished runs whose probabilities are averaged, as predict.py asks one run.

n held-out rows, C labels.
"""

import functools
from pathlib import Path

import numpy as np

import metrics
from data import OutOfFold, threshold_folds
from support.finished import FinishedRun, read_labelled_oof
from support.process import UserError


class BlendedRun:
    """Seeds or encoders with the same labels. Thresholds come from the mean of the runs'
    out-of-fold probabilities, where all runs held out the same rows."""

    def __init__(self, runs: list[FinishedRun]):
        """UserError for runs with other labels, and for one that is named twice."""
        first = runs[0]
        for i, run in enumerate(runs):
            if run.names != first.names:
                problem = f"its labels are {', '.join(run.names)}, of {first.path} "
                raise UserError(f"{run.path}: {problem}{', '.join(first.names)} - average others")
            if run.config.text_column != first.config.text_column:
                columns = f"{run.config.text_column!r}, {first.path} another column"
                raise UserError(f"{run.path}: reads {columns} - average runs on one text column")
            if run.key in [other.key for other in runs[:i]]:
                raise UserError(f"{run.path}: is among the runs twice - name each run once")
        self.runs = runs
        self.path = Path()  # no folder of its own, in which thresholds may lie
        self.config = first.config
        self.names = first.names
        self.identity = {"settings.labels": first.names}
        self.key = "+".join(run.key for run in runs)
        self.seen = np.unique(np.concatenate([run.seen for run in runs]))

    def __repr__(self) -> str:
        return "\n".join(["the mean of", *map(repr, self.runs)])

    @functools.cached_property
    def oof(self) -> OutOfFold:
        """Its probabilities are the mean of the runs'. UserError where the rows differ."""
        parts = [read_labelled_oof(run, []) for run in self.runs]
        first = parts[0]
        for run, part in zip(self.runs, parts, strict=True):
            same = part.ids == first.ids and np.array_equal(part.y, first.y, equal_nan=True)
            if not (same and np.array_equal(part.group, first.group)):
                problem = f"held out other rows than {self.runs[0].path}: no mean to tune on"
                hint = "give --thresholds, such as 0.5, and leave --calibrate out"
                raise UserError(f"{run.path}: {problem} - {hint}")
        p = np.mean([part.p for part in parts], axis=0, dtype=np.float64).astype(np.float32)
        oof = OutOfFold(np.arange(len(p)), first.fold, first.y, p)
        fold = threshold_folds(oof, first.group, self.config)
        score = metrics.scores(oof.y, metrics.cross_fit(oof.y, p, fold))["macro_f1"]
        print(f"the mean of {len(parts)} runs: cross-fitted macro-F1 {score:.4f} ({len(p)} rows)")
        return oof

    @functools.cached_property
    def th(self) -> np.ndarray:
        """float32 (C,)"""
        return metrics.tune_thresholds(self.oof.y, self.oof.p)

    @functools.cached_property
    def platt(self) -> np.ndarray:
        """(2, C): see `metrics.calibrated`."""
        oof = self.oof
        return np.array([metrics.platt(*column) for column in zip(oof.y.T, oof.p.T)]).T  # noqa: B905

    def fits_in_memory(self) -> bool:
        return False  # one model at a time


def find_runs(
    folders: list[str] | None, device: str = "auto", precision: str = "auto"
) -> FinishedRun | BlendedRun:
    """The run of one folder, or the mean of several; None: the run that finished last."""
    runs = [FinishedRun(folder, device, precision) for folder in folders or [None]]
    return runs[0] if len(runs) == 1 else BlendedRun(runs)
