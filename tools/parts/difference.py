"""The difference of two sides, and how far luck alone may move it.

N rows, n of them held out, C labels, D draws of rows, K folds. A score vector is (3 + C,):
macro-F1, micro-F1, mean average precision, each label's F1. What is said of it:
tools/parts/verdict.py. How often the interval errs is measured by benchmarks/error_rates.py:
docs/results.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.stats import t

import metrics
from data import OutOfFold, assign_folds

DRAWS = 50  # of rows, with replacement
AVERAGE_PRECISION = 2  # where it stands in a score vector
# What trainings move beyond rows is estimated from few folds and runs. So it is drawn to a guess,
# with the weight of one degree of freedom (variances moderated as in Smyth 2004): without it two
# runs a side on a hold-out have intervals twice as wide as needed. The guess: on so many rows a
# training's luck is as large as that of rows. More rows average the luck of rows out, not that of
# the training. Chosen on benchmarks/error_rates.py null.
GUESS_ROWS = 800
# The rows that were learned are luck as well, and no part above shows it. The intervals of F1 have
# room for it; those of average precision held in 17 of 20 samples only, and are made wider.
WIDER_RANKING = 1.3


@dataclass
class Judged(OutOfFold):
    """The held-out rows of a run with verdicts, or the rows of a file of verdicts (`p` None)."""

    pred: np.ndarray  # bool (n, C)
    part: np.ndarray | None = None  # int (n,): a row's thresholds come from all other parts

    @property
    def macro_f1(self) -> float:
        once = np.ones((1, len(self.rows)), np.float32)
        return self.scores(once)[0, 0]

    def scores(self, times: np.ndarray) -> np.ndarray:
        """(D, 3 + C), with its verdicts; times (D, n): how often each row counts."""
        given = self.y == 1
        known = ~np.isnan(self.y)
        tp = given & self.pred
        fp = known & ~given & self.pred
        fn = given & ~self.pred
        counts = [times @ cells.astype(np.float32) for cells in (tp, fp, fn)]
        return self.score_vectors(np.stack(counts), times)

    def scores_chosen_again(self, times: np.ndarray) -> np.ndarray:
        """(D, 3 + C): as `scores`, but each draw chooses thresholds of its own."""
        if self.part is None:
            return self.scores(times)
        counts = []
        for row_times in times.astype(int):
            rows = np.repeat(np.arange(len(row_times)), row_times)
            y = self.y[rows]
            pred = metrics.cross_fit(y, self.p[rows], self.part[rows])
            counts.append(metrics.confusion(y, pred)[:3])
        return self.score_vectors(np.stack(counts, axis=1), times)

    def score_vectors(self, tp_fp_fn: np.ndarray, times: np.ndarray) -> np.ndarray:
        """(D, 3 + C) from counts (3, D, C). A label that no row knows is left out of the mean."""
        by_label = metrics.precision_recall_f1(tp_fp_fn)[2]
        known = ~np.isnan(self.y).all(0)
        macro = by_label[:, known].mean(1)
        micro = metrics.precision_recall_f1(tp_fp_fn.sum(2))[2]
        means = np.stack([macro, micro, self.average_precision(times)], axis=1)
        return np.concatenate([means, by_label], axis=1)

    def average_precision(self, times: np.ndarray) -> np.ndarray:
        """(D,): the mean over the labels with both classes; nan where nothing is ranked."""
        if self.p is None:
            return np.full(len(times), np.nan)
        by_label = []
        for y, p in zip(self.y.T, self.p.T, strict=True):
            known = ~np.isnan(y)
            by_label.append(average_precision(y[known], p[known], times[:, known]))
        ranked = ~np.isnan(by_label)
        total = np.nansum(by_label, axis=0)
        labels = ranked.sum(0)
        return np.divide(total, labels, out=np.full_like(total, np.nan), where=labels > 0)


def average_precision(y: np.ndarray, p: np.ndarray, times: np.ndarray) -> np.ndarray:
    """(D,): scikit-learn's for one label's y and p (n,), each row counted times (D, n) often; nan
    without both classes."""
    order = np.argsort(-p, kind="stable")
    last_of_equal = np.flatnonzero(np.diff(p[order], append=-np.inf))
    times = times[:, order].astype(np.float64)
    rows = np.cumsum(times, axis=1)[:, last_of_equal]
    hits = np.cumsum(times * y[order], axis=1)[:, last_of_equal]
    precision = hits / np.maximum(rows, 1)
    gained = np.diff(hits, axis=1, prepend=0)
    area = (gained * precision).sum(1)
    positives = gained.sum(1)
    both = (positives > 0) & (positives < times.sum(1))
    return np.divide(area, positives, out=np.full(len(times), np.nan), where=both)


class Pair(NamedTuple):
    """What belongs to the runs of A and of B that have equal folds."""

    a: Sequence
    b: Sequence


@dataclass
class Measured:
    """The scores of a run."""

    rows_of_fold: float  # rows, or groups, that one training is judged on
    score: np.ndarray  # (3 + C,): on all its rows
    drawn: np.ndarray  # (D, 3 + C): on rows drawn, with its verdicts
    chosen_again: np.ndarray  # (D, 3 + C): on the same rows, with thresholds chosen again
    without_fold: np.ndarray  # (K, 3 + C), with its verdicts; (0, 3 + C) for a hold-out


@dataclass
class Difference:
    """Both sides, and B - A with its luck: (3 + C,) each."""

    a: np.ndarray  # the mean of the side's runs
    b: np.ndarray
    error: np.ndarray  # standard error of b - a
    freedom: np.ndarray  # degrees of freedom of the error
    trainings: np.ndarray  # the part of error**2 that more runs lower; nan: one run a side
    runs: int  # a side, over all sets of folds
    folds: int  # 1: a hold-out
    seen: int  # degrees of freedom that show the luck of trainings; 0: one run on a hold-out

    @property
    def half(self) -> np.ndarray:
        """Half of the 95 % interval."""
        return self.half_at(0.95)

    def half_at(self, level: float) -> np.ndarray:
        """Half of the interval that holds the truth with this probability."""
        return t.ppf((1 + level) / 2, self.freedom) * self.error

    @property
    def p_value(self) -> np.ndarray:
        """The chance of a difference as large, were there none; nan where nothing varies."""
        size = np.abs(self.b - self.a)
        unknown = np.full_like(size, np.nan)
        ratio = np.divide(size, self.error, out=unknown, where=self.error > 0)
        return 2 * t.sf(ratio, self.freedom)


def differ(pairs: Sequence[tuple[Sequence, Sequence]], groups: np.ndarray) -> Difference:
    """pairs: (runs of A, runs of B) on equal folds, OutOfFold or Judged; groups (N,): equal for
    rows that belong together.

    Luck is of two kinds. One strikes rows: which were drawn, what a training makes of each, and
    the thresholds chosen on them. Rows drawn with replacement, groups whole, show it: each draw
    chooses thresholds again (Efron's bootstrap). The other moves a whole training. Folds and runs
    show it, by what they vary beyond what rows explain.
    """
    return differ_each([pairs], groups)[0]


def differ_each(comparisons: Sequence[Sequence[tuple]], groups: np.ndarray) -> list[Difference]:
    """`differ` for several comparisons of runs on the same rows. A run that stands in many is
    measured once."""
    runs = {}
    for pairs in comparisons:
        for side in sides_of(pairs):
            runs |= {id(run): judge(run, groups) for run in side if id(run) not in runs}
    held_out = np.unique(np.concatenate([run.rows for run in runs.values()]))
    times = draw_rows(held_out, groups)
    measured = {key: measure(run, times, groups) for key, run in runs.items()}
    found = []
    for pairs in comparisons:
        sides = [[measured[id(run)] for run in side] for side in sides_of(pairs)]
        found.append(combine([Pair(*both) for both in zip(sides[::2], sides[1::2], strict=True)]))
    return found


def sides_of(pairs: Sequence[tuple]) -> list[Sequence]:
    """A, B, A, B, ..."""
    return [side for pair in pairs for side in pair]


def judge(run: OutOfFold, groups: np.ndarray, part: np.ndarray | None = None) -> Judged:
    """With cross-fitted verdicts. A hold-out without `part` is cut into five parts for them."""
    if isinstance(run, Judged):
        return run
    if part is None:
        part = run.fold
        if len(np.unique(part)) == 1:
            own = groups[run.rows]
            parts = min(5, len(np.unique(own)))
            part = assign_folds(run.y == 1, own, parts, seed=0)
    pred = metrics.cross_fit(run.y, run.p, part)
    return Judged(run.rows, run.fold, run.y, run.p, pred, part)


def draw_rows(held_out: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """float32 (D, N): how often each row is drawn, whole groups together; 0 if not held out."""
    _, group = np.unique(groups[held_out], return_inverse=True)
    G = group.max() + 1
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(G, np.full(G, 1 / G), size=DRAWS)  # (D, G)
    times = np.zeros((DRAWS, len(groups)), np.float32)
    times[:, held_out] = drawn[:, group]
    return times


def measure(run: Judged, times: np.ndarray, groups: np.ndarray) -> Measured:
    """times (D, N): how often each row is drawn; groups (N,)."""
    own = times[:, run.rows]
    once = np.ones((1, len(run.rows)), np.float32)
    folds = np.unique(run.fold)
    others = run.fold != folds[:, None]  # (K, n)
    if len(folds) == 1:
        others = others[:0]
    return Measured(
        rows_of_fold=len(np.unique(groups[run.rows])) / len(folds),
        score=run.scores(once)[0],
        drawn=run.scores(own),
        chosen_again=run.scores_chosen_again(own),
        without_fold=run.scores(others.astype(np.float32)),
    )


def combine(pairs: Sequence[Pair]) -> Difference:
    """The difference from what was measured of the runs."""
    a, b = means_of_sides(pairs, "score")
    by_rows = gap(pairs, "chosen_again").var(0, ddof=1)
    seen = 0  # degrees of freedom
    guess = pairs[0].a[0].rows_of_fold / GUESS_ROWS  # in units of what rows move
    total = guess * by_rows  # with one degree
    for view in (by_folds, by_runs, by_splits):
        variance, degrees = view(pairs)
        total = total + variance * degrees
        seen += degrees
    beyond = np.maximum(total / (seen + 1), 0) * (seen > 0)
    variance = by_rows + beyond
    # Degrees of freedom as by Welch and Satterthwaite, but that `beyond` is a difference, and so
    # varies more than its size says; 1 where nothing varies.
    square = by_rows**2 / (DRAWS - 1) + beyond * variance / (seen + 1)
    freedom = np.divide(variance**2, square, out=np.ones_like(square), where=square > 0)
    error = np.sqrt(variance)
    error[AVERAGE_PRECISION] *= WIDER_RANKING
    return Difference(
        a,
        b,
        error=error,
        freedom=freedom,
        trainings=np.minimum(luck_of_trainings(pairs) + beyond, variance),
        runs=sum(min(len(pair.a), len(pair.b)) for pair in pairs),
        folds=max(1, len(pairs[0].a[0].without_fold)),
        seen=seen,
    )


def means_of_sides(pairs: Sequence[Pair], name: str) -> tuple[np.ndarray, np.ndarray]:
    """The mean over a side's runs, then over the pairs, of this part of Measured."""
    means = []
    for side in sides_of(pairs):
        means.append(np.mean([getattr(run, name) for run in side], axis=0))
    return np.mean(means[::2], axis=0), np.mean(means[1::2], axis=0)


def gap(pairs: Sequence[Pair], name: str) -> np.ndarray:
    a, b = means_of_sides(pairs, name)
    return b - a


# What trainings move beyond rows: the variance of B - A in three views, (3 + C,) each, unbiased and
# so also negative, and its degrees of freedom.


def by_folds(pairs: Sequence[Pair]) -> tuple[np.ndarray, int]:
    """What a jackknife over folds shows beyond rows."""
    total = 0.0
    degrees = 0
    for pair in pairs:
        without = gap([pair], "without_fold")  # (K, 3 + C)
        K = len(without)
        if K > 1:
            jackknife = (K - 1) * without.var(0)
            total += jackknife - gap([pair], "drawn").var(0, ddof=1)
            degrees += K - 1
    return total / len(pairs) ** 2, degrees


def by_runs(pairs: Sequence[Pair]) -> tuple[np.ndarray, int]:
    """What runs of one side on equal folds vary beyond rows."""
    squares = 0.0
    degrees = 0
    for side in sides_of(pairs):
        if len(side) > 1:
            of_runs = np.var([run.score for run in side], axis=0) * len(side)
            squares += of_runs - squares_by_rows(side)
            degrees += len(side) - 1
    of_one_run = squares / max(1, degrees)
    return of_one_run * share_of_a_run(pairs), degrees


def by_splits(pairs: Sequence[Pair]) -> tuple[np.ndarray, int]:
    """What B - A varies beyond rows from one set of folds to another."""
    if len(pairs) == 1:
        return 0.0, 0
    degrees = len(pairs) - 1
    gaps = [gap([pair], "score") for pair in pairs]
    drawn = np.array([gap([pair], "chosen_again") for pair in pairs])  # (pairs, D, 3 + C)
    by_rows = (drawn - drawn.mean(0)).var(1, ddof=1).sum(0) / degrees
    return (np.var(gaps, axis=0, ddof=1) - by_rows) / len(pairs), degrees


def squares_by_rows(side: Sequence[Measured]) -> np.ndarray:
    """(3 + C,): the sum of squares, around their mean, that rows alone give a side's runs."""
    drawn = np.array([run.chosen_again for run in side])  # (runs, D, 3 + C)
    return (drawn - drawn.mean(0)).var(1, ddof=1).sum(0)


def luck_of_trainings(pairs: Sequence[Pair]) -> np.ndarray:
    """(3 + C,): the variance of B - A by what each training makes of the rows; nan where no side
    has two runs on equal folds."""
    several = [side for side in sides_of(pairs) if len(side) > 1]
    if not several:
        return np.full_like(pairs[0].a[0].score, np.nan)
    degrees = sum(len(side) - 1 for side in several)
    of_one_run = sum(squares_by_rows(side) for side in several) / degrees
    return of_one_run * share_of_a_run(pairs)


def share_of_a_run(pairs: Sequence[Pair]) -> float:
    """The variance of B - A where the score of each run varies by 1."""
    return sum(1 / len(side) for side in sides_of(pairs)) / len(pairs) ** 2
