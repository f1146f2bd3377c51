"""The numbers of tools/look.py's page: thresholds, labels that go together, length, two runs.

n held-out rows, C labels: y (n, C) of 0/1, nan: unknown; p (n, C) probabilities; pred (n, C) the
cross-fitted verdicts. What is returned goes into the page as JSON.
"""

import numpy as np

import metrics
from support.process import UserError
from tools.compare import check_enough, lines_about
from tools.parts import verdict
from tools.parts.difference import Judged, differ
from tools.parts.sides import Finished, pair_up, read_all, warn_of_unequal_sides

STEPS = 200  # of a slider
# Where a slider may end: rare labels have their thresholds near 0, and need all of its steps there.
ENDS = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


def number(x, digits: int = 6) -> float | None:
    """For JSON, which has no nan."""
    return None if x is None or np.isnan(x) else round(float(x), digits)


def exact(values: np.ndarray) -> list[float]:
    """The shortest decimals that are read as these float32 again."""
    return [float(str(x)) for x in np.asarray(values, np.float32)]


# Thresholds


def threshold_counts(y: np.ndarray, p: np.ndarray, today: float) -> dict:
    """One label's y and p (n,): right and false alarms at each threshold of its slider.

    The thresholds are float32, today's and the best one (by F1, chosen on these rows) among them.
    """
    positive = y > 0
    known_p = p[~np.isnan(y)]
    marks = [np.float32(today)]
    if positive.any():
        marks.append(best_threshold(y, p))
    highest = max([*marks, known_p.max(initial=0)])
    end = min(e for e in ENDS if e >= highest)
    steps = np.linspace(0, end, STEPS + 1).round(7).astype(np.float32)
    grid = np.union1d(steps, np.array(marks, np.float32))
    reached = np.searchsorted(grid, known_p, side="right")
    tp = metrics.rows_reaching(np.searchsorted(grid, p[positive], side="right"), len(grid))
    return {
        "grid": exact(grid),
        "tp": tp.tolist(),
        "fp": (metrics.rows_reaching(reached, len(grid)) - tp).tolist(),
        "positives": int(positive.sum()),
        "known": len(known_p),
        "today": int(np.searchsorted(grid, marks[0])),
        "best": int(np.searchsorted(grid, marks[1])) if positive.any() else None,
    }


def best_threshold(y: np.ndarray, p: np.ndarray) -> np.float32:
    """Of all thresholds the one with the highest F1: the probability of a row."""
    candidates = np.unique(p[~np.isnan(y)]).astype(np.float32)
    f1 = metrics.f1_by_threshold(y[:, None], p[:, None], candidates)[0]
    return candidates[f1.argmax()]


def fold_thresholds(judged: Judged) -> list[list[float]]:
    """(C, 2): the lowest and the highest of the thresholds that judged the folds' rows."""
    by_fold = []
    for k in np.unique(judged.part):
        others = judged.part != k
        by_fold.append(metrics.tune_thresholds(judged.y[others], judged.p[others]))
    return [exact(ends) for ends in np.transpose([np.min(by_fold, 0), np.max(by_fold, 0)])]


# Labels


def label_rows(scores: dict, names: list[str]) -> list[dict]:
    """Of each label what metrics.json has."""
    keys = ("precision", "recall", "f1", "average_precision", "threshold", "support")
    rows = []
    for name in names:
        of_label = scores["per_label"][name]
        low, high = of_label.get("f1_ci95", (None, None))
        row = {key: number(of_label.get(key)) for key in keys}
        rows.append(row | {"low": number(low), "high": number(high)})
    return rows


def given_together(y: np.ndarray) -> np.ndarray:
    """int (C, C): rows in which both labels are given; on the diagonal those of one label."""
    given = (y > 0).astype(np.int64)
    return given.T @ given


def taken_for(y: np.ndarray, pred: np.ndarray) -> np.ndarray:
    """int (C, C), [a, b]: rows with a and without b, in which a was missed and b was detected."""
    positive, negative = metrics.both_classes(y)
    missed = (positive & ~pred).astype(np.int64)
    false_alarm = (negative & pred).astype(np.int64)
    return missed.T @ false_alarm


# Length


def scores_by_length(texts: list[str | None], y: np.ndarray, pred: np.ndarray) -> list[dict]:
    """Scores by quartile of the number of characters; rows without a text are left out. Texts of
    one length share a part, so that there may be fewer than four."""
    known = np.flatnonzero([text is not None for text in texts])
    length = np.array([len(texts[i]) for i in known])
    if not len(known):
        return []
    edges = np.unique(np.quantile(length, [0.25, 0.5, 0.75], method="lower"))
    part = np.searchsorted(edges, length, side="left")
    parts = []
    for k in np.unique(part):
        rows = known[part == k]
        of_part = length[part == k]
        scores = metrics.scores(y[rows], pred[rows])
        parts.append(
            {
                "shortest": int(of_part.min()),
                "longest": int(of_part.max()),
                "rows": len(rows),
                "macro_f1": number(scores["macro_f1"]),
                "exact_match": number(scores["exact_match"]),
            }
        )
    return parts


# Two runs


def against(folder: str, other: str, moved: list[str]) -> tuple[dict, np.ndarray, np.ndarray]:
    """Run A and run B on the rows that both hold out, by the labels of both.

    Returns numbers for the page; B's verdicts (n, C) in the rows and labels of A, 0 or 1, nan:
    none; B's probabilities. UserError where no row is held out by both.
    """
    found, groups, names = read_all([folder, other], moved)
    a, b = found
    _, of_a, of_b = np.intersect1d(a.rows, b.rows, return_indices=True)
    if not len(of_a):
        hint = "look at runs on the same rows (--split-seed)"
        raise UserError(f"{other}: holds out none of the rows that {folder} does - {hint}")
    columns = a.columns(names)
    place = np.ix_(of_a, columns)
    verdicts = np.full((len(a.rows), len(a.config.labels)), np.nan)
    probabilities = np.full_like(verdicts, np.nan)
    verdicts[place] = b.judged.pred[of_b]
    probabilities[place] = b.judged.p[of_b]
    y = a.judged.y[of_a]
    differ_here = (a.judged.pred[of_a] != b.judged.pred[of_b]) & ~np.isnan(y)
    a_right = differ_here & (a.judged.pred[of_a] == (y > 0))
    columns = zip(names, a_right.sum(0).tolist(), differ_here.sum(0).tolist(), strict=True)
    page = {
        "run": other,
        "rows": len(of_a),
        "differ": int(differ_here.any(1).sum()),
        "labels": [{"name": name, "a": right, "b": n - right} for name, right, n in columns],
    }
    return page | difference_of(a, b, groups, names), verdicts, probabilities


def difference_of(a: Finished, b: Finished, groups: np.ndarray, names: list[str]) -> dict:
    """What tools/compare.py says of them; where it can't, only why."""
    try:
        pairs = pair_up([a], [b])
        rows = check_enough(pairs, groups)
    except UserError as e:
        return {"table": [], "lines": [f"Whether B is better can't be told: {e}"]}
    warn_of_unequal_sides([a], [b])
    difference = differ(pairs, groups)
    answer = verdict.verdict(difference, rows)
    if a.recipe == b.recipe:
        answer = f"{answer.splitlines()[0]}\nboth sides are of one recipe: a difference is luck"
    lines = [*answer.splitlines(), *verdict.remarks(difference, names), *lines_about([a], [b])]
    table = [[name, *map(number, values)] for name, values in verdict.table_rows(difference, names)]
    return {"table": table, "lines": lines}
