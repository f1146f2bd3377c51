"""The difference of two sides, how far luck alone may move it, and the verdict.

N rows, C labels. A score vector is (3 + C,): macro-F1, micro-F1, mean average precision, each
label's F1. How often `differ` errs is measured by benchmarks/error_rates.py: docs/results.md.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import t
from sklearn.metrics import average_precision_score

import metrics
from support.files import writing

GOAL = 0.01  # a difference of macro-F1 that is worth seeing


@dataclass
class Scored:
    """The held-out rows of a run, or the rows of a file of verdicts."""

    rows: np.ndarray  # int (n,): where they stand among the N rows
    fold: np.ndarray  # int (n,)
    y: np.ndarray  # (n, C)
    pred: np.ndarray  # bool (n, C): verdicts; those of a run are cross-fitted
    p: np.ndarray | None = None  # (n, C): probabilities

    def scores(self, keep: np.ndarray) -> np.ndarray:
        """(3 + C,) on the rows that `keep`, bool (N,), has; nan where there is no ranking."""
        mine, ap = keep[self.rows], []
        y, counts = self.y[mine], metrics.confusion(self.y[mine], self.pred[mine])
        for j in range(y.shape[1] if self.p is not None else 0):
            if 0 < y[:, j].sum() < len(y):
                ap.append(average_precision_score(y[:, j], self.p[mine, j]))
        values, f1 = metrics.scores_from_counts(counts, 0), metrics.precision_recall_f1(counts)[2]
        return np.array([values["macro_f1"], values["micro_f1"], np.mean(ap or np.nan), *f1])


@dataclass
class Difference:
    """Both sides, and B - A with its luck: (3 + C,) each."""

    a: np.ndarray  # the mean of the side's runs
    b: np.ndarray
    error: np.ndarray  # standard error of b - a
    half: np.ndarray  # half of its 95 % interval
    seeds: np.ndarray  # variance of b - a from seed to seed; nan with one run a side


def sides(pairs: list[tuple[list, list]], of) -> np.ndarray:
    """(2, ...): what `of` gives for a run, its mean over A's and over B's, then over the pairs."""
    means = [[np.mean([of(run) for run in side], axis=0) for side in pair] for pair in pairs]
    return np.mean(means, axis=0)


def left_out(run: Scored, part: np.ndarray) -> np.ndarray:
    """(P, 3 + C): the run's scores without each of the P parts; part (N,) is 0 ... P - 1 or -1."""
    return np.array([run.scores(part != i) for i in range(part.max() + 1)])


def jackknife(of_sides: np.ndarray) -> np.ndarray:
    """The variance of B - A, from both sides' scores (2, P, 3 + C) without each of P parts."""
    gap = of_sides[1] - of_sides[0]
    return (len(gap) - 1) / len(gap) * ((gap - gap.mean(0)) ** 2).sum(0)


def differ(pairs: list[tuple[list, list]], groups: np.ndarray) -> Difference:
    """pairs: (runs of A, of B) on equal folds; groups (N,): equal for rows that belong together.

    Luck is of two kinds. One strikes single rows: which were drawn, and what a training makes of
    each. A jackknife over 100 blocks of rows measures it. The other moves a whole fold: what a
    jackknife over folds shows beyond that. Welch and Satterthwaite's degrees of freedom join both.
    """
    held, block = np.concatenate([pair[0][0].rows for pair in pairs]), np.full(len(groups), -1)
    _, group = np.unique(groups[held], return_inverse=True)
    block[held] = np.random.default_rng(0).permutation(group.max() + 1)[group] % 100
    of_block = {id(r): left_out(r, block) for pair in pairs for side in pair for r in side}
    single = jackknife(sides(pairs, lambda run: of_block[id(run)]))
    folds, freedom, everything = 0 * single, 0, np.ones(len(groups), bool)
    for pair in pairs:
        fold = np.full(len(groups), -1)
        fold[pair[0][0].rows] = pair[0][0].fold
        if fold.max() > 0:  # a hold-out shows the first kind alone
            both = jackknife(sides([pair], lambda run, fold=fold: left_out(run, fold)))
            beyond = both - jackknife(sides([pair], lambda run: of_block[id(run)]))
            folds += np.maximum(beyond, 0) / len(pairs) ** 2
            freedom += fold.max()
    square, error = single**2 / block.max() + folds**2 / max(1, freedom), np.sqrt(single + folds)
    freedom = np.divide(error**4, square, out=np.ones_like(square), where=square > 0)
    a, b = sides(pairs, lambda run: run.scores(everything))
    half = t.ppf(0.975, freedom) * error
    return Difference(a, b, error, half, between_seeds(pairs, everything))


def between_seeds(pairs: list[tuple[list, list]], keep: np.ndarray) -> np.ndarray:
    """(3 + C,): the variance that seeds give to B - A with one run a side; nan if none show it."""
    scores = [[np.array([run.scores(keep) for run in side]) for side in pair] for pair in pairs]
    if len(pairs) > 1:  # other seeds, other folds
        gaps = [b.mean(0) - a.mean(0) for a, b in scores]
        return np.var(gaps, axis=0, ddof=1) * len(pairs[0][0])
    spreads = [np.var(side, axis=0, ddof=1) for side in scores[0] if len(side) > 1]
    return 2 * np.mean(spreads, 0) if spreads else np.full(scores[0][0].shape[1], np.nan)


def verdict(found: Difference, runs: int, rows: int) -> str:
    """On macro-F1: which is better; else what would tell. `runs` a side; 0: files of verdicts."""
    gap, half, error = found.b[0] - found.a[0], found.half[0], found.error[0]
    if abs(gap) > half:
        return f"{'B' if gap > 0 else 'A'} is better"
    if half <= GOAL:
        return f"can't be told apart; the difference is at most {abs(gap) + half:.3f}"
    words = f"can't be told apart; to see a difference of {GOAL}"
    wanted = (GOAL * error / half) ** 2  # the variance with which GOAL would show
    if runs and np.isnan(found.seeds[0]):
        least = math.ceil(error**2 / wanted - 1e-9)
        return f"{words}, train at least {least} seeds a side (three a side tell more exactly)"
    fixed = max(0, error**2 - found.seeds[0] / runs) if runs else error**2  # with endless seeds
    if fixed >= wanted:
        more = math.ceil(rows * error**2 / wanted / 100 - 1e-9) * 100
        return f"{words}, about {more} rows are needed" + (
            "; more seeds don't help" if runs else ""
        )
    seeds = math.ceil(found.seeds[0] / (wanted - fixed) - 1e-9)
    return f"{words}, train roughly {seeds} seeds a side"


def table(found: Difference, names: list[str]) -> str:
    lines = [f"{'':<24}|      A |      B |   B - A | 95 % interval"]
    for name, a, b, half in zip(names, found.a, found.b, found.half, strict=True):
        where = f"{b - a - half:+.4f} to {b - a + half:+.4f}"
        if not np.isnan(a):
            lines.append(f"{name[:23]:<24}| {a:.4f} | {b:.4f} | {b - a:+.4f} | {where}")
    return "\n".join(lines)


def draw(path: str, found: Difference, names: list[str], title: str) -> None:
    from matplotlib.figure import Figure

    gap, there = found.b - found.a, np.flatnonzero(~np.isnan(found.a))[::-1]
    figure = Figure(figsize=(7, 1 + 0.35 * len(there)), layout="constrained")
    ax = figure.subplots()
    ax.errorbar(gap[there], range(len(there)), xerr=found.half[there], fmt="o", capsize=3)
    ax.axvline(0, color="grey", lw=1)
    ax.set_yticks(range(len(there)), [names[j][:24].replace("$", r"\$") for j in there])
    ax.set(title=title, xlabel="B - A, with 95 % interval")
    with writing(Path(path), "name another --plot", 2):
        figure.savefig(path, format="png")
