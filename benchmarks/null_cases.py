"""Runs made up, of which it is known whether their recipes differ: error_rates.py null.

No training. A run's score of a cell is 2 y - 1, and what all runs share (how hard the
row is), and the luck of its training: by row (deviation ROW), by fold and label (`fold`), by label
for all folds alike (`run`), by group and label (`group`); `quality` is how much the luck by row
differs from training to training. N rows, C labels, K folds.
"""

from dataclasses import dataclass

import numpy as np

import metrics
from data import OutOfFold
from tools.parts.difference import Difference, differ, differ_each
from tools.parts.ideas import level_of

FIVE = np.array([0.12, 0.58, 0.24, 0.32, 0.30])  # shares of positives, as in SemEval
MANY = np.clip(0.25 * 0.82 ** np.arange(28), 0.0015, 1)  # 28 labels; the rarest of 2,000 rows has 3
HARD = 0.9  # deviation of a row's difficulty
ROW = 0.5


@dataclass(frozen=True)
class Case:
    name: str
    rows: int = 600
    share: tuple = tuple(FIVE)
    folds: int = 5  # 1: a hold-out
    side: int = 1  # runs of each side on a set of folds
    splits: int = 1  # sets of folds
    groups: int = 0  # 0: each row is one
    unequal: float = 0.0  # 1: the second largest group has half the rows of the largest, and so on
    fold: float = 0.0
    run: float = 0.0
    group: float = 0.0
    quality: float = 0.0

    def repetitions(self, most: int) -> int:
        """Fewer where a repetition takes seconds."""
        cells = self.rows * len(self.share) * self.side * self.splits
        return most if cells < 10_000 else most * 2 // 5 if cells < 20_000 else most // 5

    def gap_and_half(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """(3 + C,) each."""
        found = self.compared(seed)
        return found.b - found.a, found.half

    def compared(self, seed: int) -> Difference:
        """`differ` on one draw of everything."""
        rng = np.random.default_rng(seed)
        y, shared = self.draw_rows(rng)
        group = self.draw_groups(rng)
        pairs = []
        for _ in range(self.splits):
            fold = self.draw_folds(rng, group)
            sides = [
                [self.draw_run(rng, y, shared, fold, group) for _ in range(self.side)] for _ in "ab"
            ]
            pairs.append(tuple(sides))
        return differ(pairs, group)

    def draw_rows(self, rng) -> tuple[np.ndarray, np.ndarray]:
        """Labels, and what all runs share of a cell's score: (N, C) each."""
        share = np.array(self.share)
        y = (rng.random((self.rows, len(share))) < share).astype(float)
        return y, HARD * rng.standard_normal(y.shape) + np.log(share / (1 - share)) / 2

    def draw_groups(self, rng) -> np.ndarray:
        """int (N,)"""
        if not self.groups:
            return np.arange(self.rows)
        weight = 1 / np.arange(1, self.groups + 1) ** self.unequal
        group = rng.choice(self.groups, self.rows, p=weight / weight.sum())
        group[: self.groups] = np.arange(self.groups)
        return group

    def draw_folds(self, rng, group: np.ndarray) -> np.ndarray:
        """int (N,)"""
        return rng.permutation(group.max() + 1)[group] % self.folds

    def draw_run(self, rng, y, shared, fold, group) -> OutOfFold:
        K, C = self.folds, y.shape[1]
        by_row = ROW * np.exp(self.quality * rng.standard_normal(K))[fold][:, None]
        z = 2 * y - 1 + shared + by_row * rng.standard_normal(y.shape)
        z += (self.fold * rng.standard_normal((K, C)))[fold] + self.run * rng.standard_normal(C)
        z += (self.group * rng.standard_normal((group.max() + 1, C)))[group]
        p = (1 / (1 + np.exp(-1.5 * z))).astype(np.float32)
        return OutOfFold(np.arange(len(y)), fold, y, p)


MANY_LABELS = {"rows": 2000, "share": tuple(MANY)}
AUTHORS = {"rows": 1500, "groups": 30, "group": 0.5}
CASES = [
    Case("luck by row alone"),
    Case("300 rows", rows=300, fold=0.25),
    Case("300 rows, 10 folds", rows=300, folds=10, fold=0.25),
    Case("2 folds", folds=2, fold=0.25),
    Case("3 folds", folds=3, fold=0.25),
    Case("5 folds", fold=0.25),
    Case("10 folds", folds=10, fold=0.25),
    Case("2 folds, 3 a side", folds=2, side=3, fold=0.25),
    Case("5 folds, 2 a side", side=2, fold=0.25),
    Case("5 folds, 3 a side", side=3, fold=0.25),
    Case("5 folds, 5 a side", side=5, fold=0.25),
    Case("5 folds, 3 a side, other folds each", splits=3, fold=0.25),
    Case("hold-out, 2 a side", folds=1, side=2, fold=0.25),
    Case("hold-out, 3 a side", folds=1, side=3, fold=0.25),
    Case("hold-out, 5 a side", folds=1, side=5, fold=0.25),
    Case(
        "hold-out, trainings of unequal quality, 2 a side, 2,768 rows",
        2768,
        folds=1,
        side=2,
        quality=0.08,
    ),
    Case(
        "hold-out, trainings of unequal quality, 3 a side, 2,768 rows",
        2768,
        folds=1,
        side=3,
        quality=0.08,
    ),
    Case("trainings of unequal quality, 2,768 rows", 2768, quality=0.08),
    Case("trainings of unequal quality, 2,768 rows, 3 a side", 2768, side=3, quality=0.08),
    Case("luck common to all folds, 2,768 rows", 2768, run=0.25),
    Case("luck common to all folds, 2,768 rows, 3 a side", 2768, side=3, run=0.25),
    Case("3 folds, 2,768 rows", 2768, folds=3, fold=0.25),
    Case("5,400 rows", 5400, fold=0.25),
    Case("28 labels, 2,000 rows", **MANY_LABELS),
    Case("28 labels, 2,000 rows, luck by fold", **MANY_LABELS, fold=0.25),
    Case("30 groups", **AUTHORS),
    Case("30 groups of unequal size", **AUTHORS, unequal=1),
    Case("20 groups of unequal size", **AUTHORS | {"groups": 20}, unequal=1),
    Case("30 groups of unequal size, 3 a side", **AUTHORS, unequal=1, side=3),
]


# What an honest interval can't mend: how one looks at it.


def twelve_ideas(seed: int) -> tuple[bool, bool]:
    """Three runs of a baseline, and of each of twelve ideas that change nothing: is any called
    better or worse? With intervals corrected for their number, and without."""
    case = Case("", side=3, fold=0.25)
    rng = np.random.default_rng(seed)
    y, shared = case.draw_rows(rng)
    group = case.draw_groups(rng)
    fold = case.draw_folds(rng, group)
    recipes = [
        [case.draw_run(rng, y, shared, fold, group) for _ in range(case.side)] for _ in range(13)
    ]
    found = differ_each([[(recipes[0], runs)] for runs in recipes[1:]], group)
    gaps = np.array([abs(d.b[0] - d.a[0]) for d in found])
    corrected = np.array([d.half_at(level_of(12))[0] for d in found])
    return bool((gaps > corrected).any()), bool((gaps > [d.half[0] for d in found]).any())


def until_a_verdict(seed: int) -> tuple[bool, bool]:
    """A seed a side is added, six at most: is a difference called at one of the looks, and at the
    look with six alone?"""
    case = Case("", fold=0.25)
    rng = np.random.default_rng(seed)
    y, shared = case.draw_rows(rng)
    group = case.draw_groups(rng)
    fold = case.draw_folds(rng, group)
    a, b = ([case.draw_run(rng, y, shared, fold, group) for _ in range(6)] for _ in "ab")
    found = differ_each([[(a[:k], b[:k])] for k in range(1, 7)], group)
    called = [abs(d.b[0] - d.a[0]) > d.half[0] for d in found]
    return any(called), called[-1]


def more_epochs(seed: int) -> tuple[bool, float]:
    """The best of 3 epochs against the best of 20, each epoch as good as any: is one called better,
    and B - A."""
    case = Case("", rows=2768)
    rng = np.random.default_rng(seed)
    y, shared = case.draw_rows(rng)
    fold = case.draw_folds(rng, np.arange(case.rows))
    sides = [[best_epoch(rng, y, shared, fold, epochs)] for epochs in (3, 20)]
    found = differ([tuple(sides)], np.arange(case.rows))
    gap = found.b[0] - found.a[0]
    return bool(abs(gap) > found.half[0]), float(gap)


def best_epoch(rng, y, shared, fold: np.ndarray, epochs: int) -> OutOfFold:
    """Each fold keeps the epoch of the best macro-F1 at 0.5 on its held-out rows."""
    z = 2 * y - 1 + shared + ROW * rng.standard_normal(y.shape)
    kept = np.empty_like(z)
    for k in range(fold.max() + 1):
        own = fold == k
        best = -1.0
        for _ in range(epochs):
            label = 0.12 * rng.standard_normal(y.shape[1])
            epoch = z[own] + label + 0.25 * rng.standard_normal(z[own].shape)
            f1 = metrics.scores(y[own], epoch > 0)["macro_f1"]
            if f1 > best:
                best, kept[own] = f1, epoch
    p = (1 / (1 + np.exp(-1.5 * kept))).astype(np.float32)
    return OutOfFold(np.arange(len(y)), fold, y, p)


LOOKS = {
    "12 ideas that change nothing: any called (corrected; not)": twelve_ideas,
    "seeds added until a verdict, six at most: called (at any look; with six)": until_a_verdict,
    "best of 20 epochs (B) against best of 3: called; B - A": more_epochs,
}
