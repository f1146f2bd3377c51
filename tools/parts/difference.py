"""The difference of two sides, how far luck alone may move it, and the verdict.

N rows, n of them held out, C labels. A score vector is (3 + C,): macro-F1, micro-F1, mean average
precision, each label's F1. How often `differ` errs is measured by benchmarks/error_rates.py:
docs/results.md.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import t
from sklearn.metrics import average_precision_score

import metrics
from data import OutOfFold
from support.files import writing

GOAL = 0.01  # a difference of macro-F1 that is worth seeing
BLOCKS = 100  # of rows, for the jackknife


@dataclass
class Judged(OutOfFold):
    """The held-out rows of a run, or the rows of a file of verdicts (`p` None), with verdicts."""

    pred: np.ndarray  # bool (n, C); those of a run are cross-fitted

    def scores(self, keep: np.ndarray) -> np.ndarray:
        """(3 + C,) on the rows that `keep`, bool (N,), has; nan where there is no ranking."""
        kept = keep[self.rows]
        y = self.y[kept]
        counts = metrics.confusion(y, self.pred[kept])
        f1 = metrics.precision_recall_f1(counts)[2]
        micro_f1 = metrics.scores_from_counts(counts, 0)["micro_f1"]
        return np.array([f1.mean(), micro_f1, self._average_precision(kept), *f1])

    def _average_precision(self, kept: np.ndarray) -> float:
        """The mean over the labels that have both classes; kept: bool (n,)."""
        if self.p is None:
            return np.nan
        y = self.y[kept]
        p = self.p[kept]
        ranked = [j for j in range(y.shape[1]) if 0 < y[:, j].sum() < len(y)]
        if not ranked:
            return np.nan
        return np.mean([average_precision_score(y[:, j], p[:, j]) for j in ranked])


class Pair(NamedTuple):
    """The runs of A and of B that have equal folds."""

    a: Sequence[Judged]
    b: Sequence[Judged]

    @property
    def rows(self) -> np.ndarray:
        return self.a[0].rows

    @property
    def fold(self) -> np.ndarray:
        return self.a[0].fold


@dataclass
class Difference:
    """Both sides, and B - A with its luck: (3 + C,) each."""

    a: np.ndarray  # the mean of the side's runs
    b: np.ndarray
    error: np.ndarray  # standard error of b - a
    half: np.ndarray  # half of its 95 % interval
    seeds: np.ndarray  # variance of b - a from seed to seed; nan with one run a side


def differ(pairs: Sequence[Pair], groups: np.ndarray) -> Difference:
    """pairs: (runs of A, of B) on equal folds; groups (N,): equal for rows that belong together.

    Luck is of two kinds. One strikes single rows: which were drawn, and what a training makes of
    each. A jackknife over 100 blocks of rows measures it. The other moves a whole fold: what a
    jackknife over folds shows beyond that.
    """
    pairs = [Pair(*pair) for pair in pairs]
    block = blocks_of_rows(np.concatenate([pair.rows for pair in pairs]), groups)
    without_block = of_each_run(pairs, functools.partial(scores_without, part=block))
    by_rows = jackknife(means_of_sides(without_block))
    by_folds = 0 * by_rows
    fold_freedom = 0
    for pair, pair_without_block in zip(pairs, without_block, strict=True):
        fold = np.full(len(groups), -1)
        fold[pair.rows] = pair.fold
        if fold.max() > 0:  # a hold-out shows the first kind alone
            without_fold = of_each_run([pair], functools.partial(scores_without, part=fold))
            in_all = jackknife(means_of_sides(without_fold))
            beyond = in_all - jackknife(means_of_sides([pair_without_block]))
            by_folds += np.maximum(beyond, 0) / len(pairs) ** 2
            fold_freedom += fold.max()
    error = np.sqrt(by_rows + by_folds)
    freedom = degrees_of_freedom(by_rows, block.max(), by_folds, fold_freedom)
    everything = np.ones(len(groups), bool)
    scores = of_each_run(pairs, lambda run: run.scores(everything))
    a, b = means_of_sides(scores)
    return Difference(a, b, error, t.ppf(0.975, freedom) * error, between_seeds(scores))


def blocks_of_rows(held_out: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """int (N,): rows drawn into blocks, whole groups together; -1: not held out."""
    _, group = np.unique(groups[held_out], return_inverse=True)
    order = np.random.default_rng(0).permutation(group.max() + 1)
    block = np.full(len(groups), -1)
    block[held_out] = order[group] % BLOCKS
    return block


def of_each_run(pairs: Sequence[Pair], score: Callable[[Judged], np.ndarray]) -> list:
    """What `score` gives for a run, as [pair][side][run]."""
    return [[[score(run) for run in side] for side in pair] for pair in pairs]


def means_of_sides(values: list) -> np.ndarray:
    """(2, ...) from [pair][side][run]: the mean over a side's runs, then over the pairs."""
    return np.mean([[np.mean(side, axis=0) for side in pair] for pair in values], axis=0)


def scores_without(run: Judged, part: np.ndarray) -> np.ndarray:
    """(P, 3 + C): the run's scores without each of the P parts; part (N,) is 0 ... P - 1 or -1."""
    return np.array([run.scores(part != i) for i in range(part.max() + 1)])


def jackknife(of_sides: np.ndarray) -> np.ndarray:
    """The variance of B - A, from both sides' scores (2, P, 3 + C) without each of P parts."""
    gap = of_sides[1] - of_sides[0]
    parts = len(gap)
    return (parts - 1) / parts * ((gap - gap.mean(0)) ** 2).sum(0)


def degrees_of_freedom(
    by_rows: np.ndarray, row_freedom: int, by_folds: np.ndarray, fold_freedom: int
) -> np.ndarray:
    """Of the sum of two variances, by Welch and Satterthwaite; 1 where nothing varies."""
    square = by_rows**2 / row_freedom + by_folds**2 / max(1, fold_freedom)
    total = np.sqrt(by_rows + by_folds) ** 4
    return np.divide(total, square, out=np.ones_like(square), where=square > 0)


def between_seeds(scores: list) -> np.ndarray:
    """(3 + C,): the variance that seeds give to B - A with one run a side; nan if none show it.

    scores: [pair][side][run] -> (3 + C,).
    """
    if len(scores) > 1:  # other seeds, other folds
        gaps = [np.mean(b, axis=0) - np.mean(a, axis=0) for a, b in scores]
        return np.var(gaps, axis=0, ddof=1) * len(scores[0][0])
    spreads = [np.var(side, axis=0, ddof=1) for side in scores[0] if len(side) > 1]
    if not spreads:
        return np.full_like(scores[0][0][0], np.nan)
    return 2 * np.mean(spreads, axis=0)


def verdict(difference: Difference, runs: int, rows: int) -> str:
    """On macro-F1: which is better; else what would tell. `runs` a side; 0: files of verdicts."""
    gap = difference.b[0] - difference.a[0]
    half = difference.half[0]
    error = difference.error[0]
    seeds = difference.seeds[0]
    if abs(gap) > half:
        return f"{'B' if gap > 0 else 'A'} is better"
    if half <= GOAL:
        return f"can't be told apart; the difference is at most {abs(gap) + half:.3f}"
    advice = f"can't be told apart; to see a difference of {GOAL}"
    wanted = (GOAL * error / half) ** 2  # the variance with which GOAL would show
    if runs and np.isnan(seeds):
        least = math.ceil(error**2 / wanted - 1e-9)
        return f"{advice}, train at least {least} seeds a side (three a side tell more exactly)"
    fixed = max(0, error**2 - seeds / runs) if runs else error**2  # with endless seeds
    if fixed < wanted:
        more_seeds = math.ceil(seeds / (wanted - fixed) - 1e-9)
        return f"{advice}, train roughly {more_seeds} seeds a side"
    more_rows = math.ceil(rows * error**2 / wanted / 100 - 1e-9) * 100
    useless = "; more seeds don't help" if runs else ""
    return f"{advice}, about {more_rows} rows are needed{useless}"


def difference_table(difference: Difference, names: list[str]) -> str:
    lines = [f"{'':<24}|      A |      B |   B - A | 95 % interval"]
    for name, a, b, half in zip(names, difference.a, difference.b, difference.half, strict=True):
        if not np.isnan(a):
            gap = b - a
            interval = f"{gap - half:+.4f} to {gap + half:+.4f}"
            lines.append(f"{name[:23]:<24}| {a:.4f} | {b:.4f} | {gap:+.4f} | {interval}")
    return "\n".join(lines)


def draw_difference(path: str, difference: Difference, names: list[str], heading: str) -> None:
    from matplotlib.figure import Figure

    gap = difference.b - difference.a
    known = np.flatnonzero(~np.isnan(difference.a))[::-1]
    figure = Figure(figsize=(7, 1 + 0.35 * len(known)), layout="constrained")
    ax = figure.subplots()
    ax.errorbar(gap[known], range(len(known)), xerr=difference.half[known], fmt="o", capsize=3)
    ax.axvline(0, color="grey", lw=1)
    ax.set_yticks(range(len(known)), [names[j][:24].replace("$", r"\$") for j in known])
    ax.set(title=heading, xlabel="B - A, with 95 % interval")
    with writing(Path(path), "name another --plot", 2):
        figure.savefig(path, format="png")
