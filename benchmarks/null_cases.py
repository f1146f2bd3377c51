"""Runs made up, of which it is known whether their recipes differ: error_rates.py null.

No training. A run's score of a cell is signal * (2 y - 1), and what all runs share (how hard the
row is), and the luck of its training: by row (deviation ROW), by fold and label (`fold`), by label
for all folds alike (`run`), by group and label (`group`); `quality` is how much the luck by row
differs from training to training. N rows, C labels, K folds.
"""

from dataclasses import dataclass

import numpy as np

from data import OutOfFold
from tools.parts.difference import Difference, differ

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
    lift: float = 0.0  # how much stronger the signal of B is

    @property
    def key(self) -> str:
        """A file's name."""
        return "".join(c if c.isalnum() else "_" for c in self.name)

    def repetitions(self, most: int) -> int:
        """Fewer where a repetition takes seconds."""
        cells = self.rows * len(self.share) * self.side * self.splits
        return most if cells <= 15_000 else most * 2 // 5

    def gap_and_half(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """(3 + C,) each."""
        found = self.compared(seed)
        return found.b - found.a, found.half

    def compared(self, seed: int) -> Difference:
        """`differ` on one draw of everything."""
        rng = np.random.default_rng(seed)
        share = np.array(self.share)
        y = (rng.random((self.rows, len(share))) < share).astype(float)
        shared = HARD * rng.standard_normal(y.shape) + np.log(share / (1 - share)) / 2
        group = self.draw_groups(rng)
        pairs = []
        for _ in range(self.splits):
            fold = self.draw_folds(rng, group)
            draw = [
                [self.draw_run(rng, y, shared, fold, group, signal) for _ in range(self.side)]
                for signal in (1, 1 + self.lift)
            ]
            pairs.append(tuple(draw))
        return differ(pairs, group)

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

    def draw_run(self, rng, y, shared, fold, group, signal: float) -> OutOfFold:
        K, C = self.folds, y.shape[1]
        by_row = ROW * np.exp(self.quality * rng.standard_normal(K))[fold][:, None]
        z = signal * (2 * y - 1) + shared + by_row * rng.standard_normal(y.shape)
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
