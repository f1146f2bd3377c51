"""What compare.py says of a difference: the table, the verdict, what would tell; JSON and LaTeX.

Score vectors are (3 + C,), in the order of tools/parts/difference.py.
"""

import math
from pathlib import Path

import numpy as np

from support.files import writing
from tools.parts.difference import Difference

EVEN, LIKELY = 1.96, 1.96 + 0.84  # standard errors that are seen in half, and in 80 % of the cases
MOST_SEEDS = 30  # more are not advised
MOST_ROWS = 20  # times as many
MEANS = ["macro-F1", "micro-F1", "mean average precision"]


def verdict(difference: Difference, rows: int, files: bool = False) -> str:
    """On macro-F1: which side is better; else what would tell.

    rows: the held-out ones; files: of verdicts, so that only rows can be lucky.
    """
    gap = difference.b[0] - difference.a[0]
    better = "B" if gap > 0 else "A"
    told = abs(gap) > difference.half[0]
    if not (difference.seen or files):
        seen = f"{better}'s model is better" if told else "the two models can't be told apart"
        hint = "train three seeds a side"
        return f"on these rows {seen}; one run a side says nothing about the recipes - {hint}"
    if told:
        which = " (these predictions, on rows like these)" if files else ""
        return f"{better} is better{which}"
    low, high = bounds(gap, difference.half[0])
    answer = f"can't be told apart: B - A lies between {low:+z.4f} and {high:+z.4f}"
    return f"{answer}\n{advice(difference, rows, files)}" if gap else answer


def advice(difference: Difference, rows: int, files: bool = False) -> str:
    """How many seeds or rows would show a difference as large as the one seen."""
    gap = difference.b[0] - difference.a[0]
    total = difference.error[0] ** 2
    luck = difference.trainings[0]
    runs = difference.runs
    if np.isnan(luck):  # one run a side doesn't show what part more seeds lower: all, at best
        luck = total
    fixed = total if files else total - luck
    if_so = f"if it is as large as seen ({gap:+z.4f})"
    at_best = ", at best" if np.isnan(difference.trainings[0]) else ""
    if fixed >= (gap / LIKELY) ** 2:
        least, most = (total * (z / gap) ** 2 * rows for z in (EVEN, LIKELY))
        useless = "" if files else "; more seeds hardly help"
        if most > MOST_ROWS * rows:
            many = f"not even {MOST_ROWS} times as many rows would show it reliably"
            return f"{if_so}, {many}{useless}"
        return f"{if_so}, about {rounded(least)} to {rounded(most)} rows would show it{useless}"
    least, most = (math.ceil(runs * luck / ((gap / z) ** 2 - fixed) - 1e-9) for z in (EVEN, LIKELY))
    if most > MOST_SEEDS:
        return f"{if_so}, not even {MOST_SEEDS} seeds a side would show it reliably"
    least = max(least, runs + 1)
    most = max(most, least)
    often = f"{least} seeds a side show it in half of the cases{at_best}, {most} in four of five"
    how = "fix their number before you look; vary --split-seed as well as --seed, on both sides"
    return f"{if_so}, {often} - {how}"


def rounded(rows: float) -> int:
    """To two digits."""
    digits = max(0, math.floor(math.log10(max(rows, 1))) - 1)
    return math.ceil(rows / 10**digits) * 10**digits


def bounds(gap: float, half: float) -> tuple[float, float]:
    """Of an interval; nan where luck can't be seen. No difference of scores is beyond -1 ... 1."""
    if np.isnan(half):
        return half, half
    return max(-1.0, gap - half), min(1.0, gap + half)


def holm(p_values: np.ndarray) -> np.ndarray:
    """(m,): p-values corrected for their number (Holm 1979); nan counts as 1."""
    p = np.nan_to_num(p_values, nan=1.0)
    order = np.argsort(p)
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(steps, 1)
    return corrected


def remarks(difference: Difference, names: list[str]) -> list[str]:
    """Lines below the table: the labels that differ, and what the runs can't show."""
    corrected = holm(difference.p_value[len(MEANS) :])
    differ = [name for name, p in zip(names, corrected, strict=True) if p < 0.05]
    lines = []
    if len(names) > 1:
        count = f"corrected for {len(names)} labels (Holm)"
        lines.append(f"labels that differ, {count}: {', '.join(differ) or 'none'}")
    if difference.folds in (2, 3) and difference.runs == 1:
        few = "show little of the luck of training: take five folds, or three seeds a side"
        lines.append(f"{difference.folds} folds {few}")
    return lines


def ranking(a: list[float], b: list[float]) -> str | None:
    """Whether every run of one side beats every run of the other, with its chance; from three runs
    a side on. a, b: the runs' macro-F1."""
    if min(len(a), len(b)) < 3 or not (max(a) < min(b) or max(b) < min(a)):
        return None
    first, second = ("B", "A") if min(b) > max(a) else ("A", "B")
    chance = math.comb(len(a) + len(b), len(a))
    luck = f"by luck alone in 1 of {chance} cases, for one of both sides in 2 of {chance}"
    return f"every run of {first} beats every run of {second}: {luck}"


def spread(a: list[float], b: list[float]) -> str | None:
    """What to quote beside the difference, from two runs a side on. a, b: the runs' macro-F1."""
    if min(len(a), len(b)) < 2:
        return None
    sides = zip("AB", (a, b), strict=True)
    each = [f"{side} {np.mean(f1):.4f} ({np.std(f1, ddof=1):.4f})" for side, f1 in sides]
    return f"macro-F1, mean of the runs (standard deviation): {', '.join(each)}"


def table_rows(difference: Difference, names: list[str]) -> list[tuple[str, list[float]]]:
    """(name, [A, B, B - A, low, high]) of each score that there is."""
    gap = difference.b - difference.a
    half = difference.half
    known = np.flatnonzero(~np.isnan(difference.a) & ~np.isnan(difference.b))
    names = [*MEANS, *names]
    return [
        (names[j], [difference.a[j], difference.b[j], gap[j], *bounds(gap[j], half[j])])
        for j in known
    ]


def difference_table(difference: Difference, names: list[str]) -> str:
    lines = [f"{'':<24}|      A |      B |   B - A | 95 % interval, each"]
    for name, (a, b, gap, low, high) in table_rows(difference, names):
        interval = "-" if np.isnan(low) else f"{low:+z.4f} to {high:+z.4f}"
        lines.append(f"{name[:23]:<24}| {a:.4f} | {b:.4f} | {gap:+z.4f} | {interval}")
    return "\n".join(lines)


def latex_table(difference: Difference, names: list[str]) -> str:
    lines = [r"\begin{tabular}{lrrrr}", r" & A & B & B $-$ A & 95\,\% interval \\ \hline"]
    for name, (a, b, gap, low, high) in table_rows(difference, names):
        interval = "-" if np.isnan(low) else f"$[{low:+z.4f}, {high:+z.4f}]$"
        numbers = f"{a:.4f} & {b:.4f} & ${gap:+z.4f}$ & {interval}"
        lines.append(rf"{latex_text(name)} & {numbers} \\")
    return "\n".join([*lines, r"\end{tabular}"])


def latex_text(text: str) -> str:
    special = {c: rf"\{c}" for c in "&%$#_{}"}
    special |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(c, c) for c in text)


def as_json(difference: Difference, names: list[str]) -> dict:
    """Of each score: both sides, B - A, its interval, and the p-value (not corrected)."""
    rows = table_rows(difference, names)
    p_values = difference.p_value[~np.isnan(difference.a) & ~np.isnan(difference.b)]
    values = []
    for (name, numbers), p in zip(rows, p_values.tolist(), strict=True):
        a, b, gap, *ci95 = (None if np.isnan(x) else float(x) for x in numbers)
        one = {"a": a, "b": b, "difference": gap, "ci95": ci95}
        values.append((name, one | {"p_value": None if np.isnan(p) else p}))
    means = len(rows) - len(names)
    return {"scores": dict(values[:means]), "labels": dict(values[means:])}


def draw_difference(path: str, difference: Difference, names: list[str], title: str) -> None:
    """title: what the picture compares, line by line."""
    from matplotlib.figure import Figure

    rows = table_rows(difference, names)[::-1]
    gap, low, high = np.array([values[2:] for _, values in rows]).T
    lines = title.replace("$", r"\$").split("\n")
    figure = Figure(figsize=(8, 1.2 + 0.35 * len(rows) + 0.2 * len(lines)), layout="constrained")
    ax = figure.subplots()
    reach = np.abs([low - gap, high - gap])
    ax.errorbar(gap, range(len(rows)), xerr=reach, fmt="o", capsize=3)
    ax.axvline(0, color="grey", lw=1)
    ax.set_yticks(range(len(rows)), [name[:24].replace("$", r"\$") for name, _ in rows])
    ax.set_xlabel("B - A, with 95 % interval")
    ax.set_title("\n".join(lines), fontsize=10)
    with writing(Path(path), "name another --plot", 2):
        figure.savefig(path, format="png")
