"""Many ideas against one baseline: intervals that hold for all of them together."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from support.process import UserError
from tools.parts.difference import Difference, differ_each
from tools.parts.sides import Finished, changes, name_of, pair_up
from tools.parts.verdict import bounds


@dataclass
class Idea:
    """A recipe beside the baseline; macro-F1."""

    name: str
    runs: Sequence[Finished]
    changed: str  # of the baseline's recipe
    difference: Difference
    level: float  # of the interval, so that 95 % of such tables hold the truth in all rows
    as_good_as_the_best: bool = False

    @property
    def gap(self) -> float:
        return self.difference.b[0] - self.difference.a[0]

    @property
    def interval(self) -> tuple[float, float]:
        return bounds(self.gap, self.difference.half_at(self.level)[0])

    @property
    def answer(self) -> str:
        low, high = self.interval
        if not self.difference.seen:
            return "one run on one held-out set: can't be told"
        return "better" if low > 0 else "worse" if high < 0 else "can't be told apart"

    def as_json(self) -> dict:
        scores = {"macro_f1": self.difference.b[0], "difference": self.gap}
        scores |= {"interval": self.interval, "answer": self.answer}
        folders = [str(one.run.path) for one in self.runs]
        best = self.as_good_as_the_best
        return {"runs": folders, "changed": self.changed, "as_good_as_the_best": best, **scores}


def level_of(ideas: int) -> float:
    """Of each interval, so that all hold in 95 % of the tables, however the differences are
    correlated (Šidák 1967)."""
    return 0.95 ** (1 / ideas)


def compare_ideas(
    base: list[Finished], recipes: list[list[Finished]], groups: np.ndarray
) -> list[Idea]:
    """Best first. Those that can't be told from the best (of ideas and baseline) are marked."""
    for runs in recipes:
        if any(runs[0].recipe == one.recipe for one in base):
            hint = "name it before --against, or leave it out"
            raise UserError(f"{runs[0].run.path}: is of the baseline's recipe - {hint}")
    level = level_of(len(recipes))
    found = differ_each([pair_up(base, runs) for runs in recipes], groups)
    ideas = []
    for runs, difference in zip(recipes, found, strict=True):
        changed = changes(base[0].recipe, runs[0].recipe)
        ideas.append(Idea(name_of(runs), runs, changed, difference, level))
    ideas.sort(key=lambda idea: -idea.gap)
    best = ideas[0].runs if ideas[0].gap > 0 else base
    # The best has the highest gap, so its own interval tells whether the baseline is as good.
    others = [idea for idea in ideas if idea.runs is not best]
    to_best = differ_each([pair_up(best, idea.runs) for idea in others], groups) if others else []
    for idea in ideas:
        idea.as_good_as_the_best = idea.runs is best
    for idea, difference in zip(others, to_best, strict=True):
        below = difference.a[0] - difference.b[0]
        idea.as_good_as_the_best = bool(below <= difference.half_at(level)[0])
    return ideas


def ideas_table(base: list[Finished], ideas: list[Idea]) -> str:
    """As text. *: can't be told from the best."""
    width = max(len(name) for name in ["baseline", *(idea.name for idea in ideas)])
    corrected = f"95 % interval, corrected for {len(ideas)} idea{'s' * (len(ideas) > 1)}"
    lines = [f"{'':<{width}} | runs | macro-F1 | to baseline | {corrected}"]
    for idea in ideas:
        low, high = idea.interval
        mark = "*" if idea.as_good_as_the_best else " "
        score = f"{idea.difference.b[0]:.4f}{mark}"
        interval = f"{low:+z.4f} to {high:+z.4f}: {idea.answer}"
        row = f"{idea.name:<{width}} | {len(idea.runs):4} | {score:>8} | {idea.gap:>+z11.4f}"
        lines.append(f"{row} | {interval}")
    mark = " " if ideas[0].answer == "better" else "*"
    score = f"{ideas[0].difference.a[0]:.4f}{mark}"
    lines.append(f"{'baseline':<{width}} | {len(base):4} | {score:>8} |")
    lines.append("*: can't be told from the best of them")
    lines += [f"{idea.name}: {idea.changed}" for idea in ideas]
    return "\n".join(lines)
