"""Scores, thresholds and intervals: pure functions on arrays, everything compared in float32.

Shapes: y and pred (N, C) of 0/1, p (N, C) probabilities, th (C,) thresholds, fold (N,). A cell of y
that is nan is unknown, and no score counts it. A label is detected when its probability >= its
threshold; 0/0 counts as 0 (scikit-learn's zero_division=0).
One more metric: `scores_from_counts`, or for each label `per_label`. Another rule for thresholds:
`tune_thresholds`. scikit-learn is imported where it is needed: predict.py starts without it.
"""

from dataclasses import dataclass

import numpy as np

Array = np.ndarray
GRID = np.linspace(0.1, 0.9, 17, dtype=np.float32)  # 0.10, 0.15 ... 0.90, as in the notebook


def both_classes(y: Array) -> tuple[Array, Array]:
    """bool, as y: the known positives, and the known negatives; nan is neither."""
    y = np.asarray(y)
    return y > 0, y == 0


def known_cells(y: Array, p: Array) -> tuple[Array, Array]:
    """One label's y and p (N,) in the rows where it is known."""
    known = ~np.isnan(y)
    return np.asarray(y)[known], np.asarray(p)[known]


def known_sums(targets: Array) -> tuple[Array, Array]:
    """float32 (C,) each: the sum of each label's known cells, and how many they are."""
    known = (~np.isnan(targets)).sum(0).astype(np.float32)
    return np.nansum(targets, 0, dtype=np.float32), known


def known_share(targets: Array) -> Array:
    """float32 (C,): the mean of each label's known cells; 0 without any."""
    total, known = known_sums(targets)
    return total / np.maximum(known, 1)


def confusion(y: Array, pred: Array) -> Array:
    """int (4, C): true positives, false positives, false negatives, true negatives by label."""
    positive, negative = both_classes(y)
    pred = np.asarray(pred).astype(bool)
    tp = (positive & pred).sum(0)
    fp = (negative & pred).sum(0)
    fn = (positive & ~pred).sum(0)
    tn = (negative & ~pred).sum(0)
    return np.stack([tp, fp, fn, tn])


def precision_recall_f1(counts: Array) -> tuple[Array, Array, Array]:
    """From counts (>= 3, ...) in the order of `confusion`."""
    tp, fp, fn = np.asarray(counts[:3], dtype=np.float64)
    precision = tp / np.maximum(tp + fp, 1)
    recall = tp / np.maximum(tp + fn, 1)
    f1 = 2 * tp / np.maximum(2 * tp + fp + fn, 1)
    return precision, recall, f1


def scores_from_counts(counts: Array, exact: float) -> dict[str, float]:
    """`scores`, from the counts of `confusion` and the share of rows with every label right.

    A label of which no cell is known is left out of the means. What `printed` leaves is printed, by
    train.py and predict.py.
    """
    if counts.any():
        counts = counts[:, counts.any(0)]
    precision, recall, f1 = precision_recall_f1(counts)  # (C,) each
    micro_precision, micro_recall, micro_f1 = precision_recall_f1(counts.sum(1))
    return {
        "macro_f1": float(f1.mean()),
        "micro_f1": float(micro_f1),
        "exact_match": float(exact),
        "macro_precision": float(precision.mean()),
        "macro_recall": float(recall.mean()),
        "micro_precision": float(micro_precision),
        "micro_recall": float(micro_recall),
    }


def scores(y: Array, pred: Array) -> dict[str, float]:
    """Macro and micro precision, recall and F1; exact match (every label of a row right)."""
    right, rows = exact_matches(y, pred)
    return scores_from_counts(confusion(y, pred), right / max(rows, 1))


def exact_matches(y: Array, pred: Array) -> tuple[int, int]:
    """How many rows have every label right, and of how many: those whose labels are all known."""
    y = np.asarray(y)
    whole = ~np.isnan(y).any(1)
    return int((y == pred).all(1).sum()), int(whole.sum())


def printed(scores: dict[str, float]) -> dict[str, float]:
    """The scores that are printed: all but precision and recall."""
    return {n: x for n, x in scores.items() if not n.endswith(("precision", "recall"))}


# Thresholds


def detect(p: Array, th: Array) -> Array:
    """bool (N, C). Both sides in float32: float32(0.7) >= float64(0.7) is False."""
    return np.asarray(p, dtype=np.float32) >= np.asarray(th, dtype=np.float32)


def f1_by_threshold(y: Array, p: Array, grid: Array = GRID) -> Array:
    """float64 (C, len(grid)): F1 of each label at each threshold of the ascending grid."""
    positive, _ = both_classes(y)
    unknown = np.isnan(y)
    p = np.asarray(p, dtype=np.float32)
    grid = np.asarray(grid, dtype=np.float32)
    f1 = np.empty((p.shape[1], len(grid)))
    for j in range(p.shape[1]):
        reached = np.searchsorted(grid, p[:, j], side="right")  # how many thresholds a row reaches
        reached[unknown[:, j]] = 0
        tp = rows_reaching(reached[positive[:, j]], len(grid))
        fp = rows_reaching(reached, len(grid)) - tp
        fn = positive[:, j].sum() - tp
        f1[j] = precision_recall_f1([tp, fp, fn])[2]
    return f1


def rows_reaching(reached: Array, thresholds: int) -> Array:
    """int (thresholds,): how many rows reach the first threshold, the second, and so on."""
    rows = np.bincount(reached, minlength=thresholds + 1)  # rows that reach 0, 1, 2 ... of them
    return rows[::-1].cumsum()[::-1][1:]


def tune_thresholds(y: Array, p: Array, grid: Array = GRID, near: float = 0.01) -> Array:
    """float32 (C,): each label's threshold by F1; 0.5 without positives.

    The middle of the plateau around the best (`plateau_middle`): with few positives the best
    itself is noise. A label whose best is the lowest of the grid has nine more below it; where the
    lowest of these is the best, the label's probabilities below it are thresholds too.
    """
    grid = np.asarray(grid, dtype=np.float32)
    below = np.linspace(grid[0] / 10, grid[0], 10, dtype=np.float32)
    longer = np.union1d(below, grid)
    y = np.asarray(y)
    p = np.asarray(p, dtype=np.float32)
    f1_longer = f1_by_threshold(y, p, longer)
    f1 = f1_longer[:, -len(grid) :]
    th = np.full(len(f1), 0.5, dtype=np.float32)
    for j in np.flatnonzero(both_classes(y)[0].any(0)):
        if f1_longer[j].argmax() == 0:
            known_p = known_cells(y[:, j], p[:, j])[1]
            own = np.union1d(known_p[known_p < longer[0]], longer)
            th[j] = plateau_middle(f1_by_threshold(y[:, [j]], p[:, [j]], own)[0], own, near)
        elif f1[j].argmax() == 0:
            th[j] = plateau_middle(f1_longer[j], longer, near)
        else:
            th[j] = plateau_middle(f1[j], grid, near)
    return th


def plateau_middle(f1: Array, grid: Array, near: float) -> float:
    """The middle of the thresholds around the best one whose F1 is within `near` of the best."""
    enough = f1.max() - near
    low = high = int(f1.argmax())
    while low > 0 and f1[low - 1] >= enough:
        low -= 1
    while high < len(f1) - 1 and f1[high + 1] >= enough:
        high += 1
    return (grid[low] + grid[high]) / 2


def cross_fit(y: Array, p: Array, fold: Array) -> Array:
    """bool (N, C): each row judged by the thresholds chosen on the other folds' rows."""
    pred = np.zeros(np.shape(y), dtype=bool)
    for k in np.unique(fold):
        held_out = fold == k
        th = tune_thresholds(y[~held_out], p[~held_out])
        pred[held_out] = detect(p[held_out], th)
    return pred


# Intervals and tables


def bootstrap_f1(y: Array, pred: Array, draws: int = 1000, seed: int = 0) -> Array:
    """float64 (draws, C): F1 of each label over rows drawn with replacement (Efron's bootstrap)."""
    positive, negative = both_classes(y)
    pred = np.asarray(pred).astype(bool)
    cells = np.concatenate([positive & pred, negative & pred, positive & ~pred], axis=1)
    cells = cells.astype(np.float32)  # (N, 3 C): tp, fp, fn
    rng = np.random.default_rng(seed)
    n = len(pred)
    counts = np.empty((draws, cells.shape[1]), dtype=np.float32)
    for i in range(draws):
        times_drawn = np.bincount(rng.integers(0, n, n), minlength=n)  # of each row
        counts[i] = times_drawn.astype(np.float32) @ cells
    tp_fp_fn = counts.reshape(draws, 3, -1).swapaxes(0, 1)  # (3, draws, C)
    return precision_recall_f1(tp_fp_fn)[2]


def interval(draws: Array) -> list[float]:
    """The central 95 % of bootstrap draws: [low, high]."""
    return [float(x) for x in np.quantile(draws, [0.025, 0.975])]


def table_from_counts(counts: Array, th: Array, names: list[str]) -> dict[str, dict]:
    """Scores, threshold, support and counts of each label, from the counts of `confusion`."""
    precision, recall, f1 = precision_recall_f1(counts)
    by_label = {}
    for j, name in enumerate(names):
        tp, fp, fn, tn = counts[:, j].tolist()
        by_label[name] = {
            "precision": float(precision[j]),
            "recall": float(recall[j]),
            "f1": float(f1[j]),
            "threshold": float(th[j]),
            "support": tp + fn,
            "tp": tp,
            "fp": fp,
            "fn": fn,
            "tn": tn,
        }
    return by_label


def per_label(y: Array, p: Array, pred: Array, th: Array, names: list[str]) -> dict[str, dict]:
    """`table_from_counts`, and: average precision, ROC-AUC (None where a class is missing), ECE,
    Platt's slope and shift."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    by_label = table_from_counts(confusion(y, pred), th, names)
    for j, row in enumerate(by_label.values()):
        given, probability = known_cells(y[:, j], p[:, j])
        row["average_precision"] = row["roc_auc"] = None
        if 0 < row["support"] < len(given):
            row["average_precision"] = float(average_precision_score(given, probability))
            row["roc_auc"] = float(roc_auc_score(given, probability))
        row["ece"] = reliability(given, probability)[2]
        row["platt"] = platt(given, probability)
    return by_label


def reliability(y: Array, p: Array, bins: int = 10, least: int = 1) -> tuple[Array, Array, float]:
    """One label's y and p (N,) in bins of equal width: mean probability and share of positives of
    each bin with at least `least` rows; the expected calibration error (Naeini et al. 2015), of
    all rows."""
    y, p = known_cells(y, p)
    bin_of_row = np.minimum((p * bins).astype(int), bins - 1)
    rows = np.bincount(bin_of_row, minlength=bins)
    filled = rows > 0
    rows = rows[filled]
    mean = np.bincount(bin_of_row, p, bins)[filled] / rows
    share = np.bincount(bin_of_row, y, bins)[filled] / rows
    error = (rows * np.abs(mean - share)).sum() / max(1, rows.sum())
    enough = rows >= least
    return mean[enough], share[enough], float(error)


def platt(y: Array, p: Array) -> tuple[float, float]:
    """(a, b) for which sigmoid(a logit(p) + b) fits one label's y (N,) best (Platt 1999).

    Without both classes, or where a <= 0 would turn the order of the scores round: (1, 0).
    """
    y, p = known_cells(y, p)
    if len(np.unique(y)) < 2:
        return 1.0, 0.0
    from sklearn.linear_model import LogisticRegression

    n = len(y)
    positives = y.sum()
    # Platt's targets: with few positives 0 and 1 themselves would make the slope infinite.
    target = np.where(y > 0, (positives + 1) / (positives + 2), 1 / (n - positives + 2))
    # A target between 0 and 1 is the row twice: as a positive, and as a negative, weighted.
    x = np.tile(logit(p), 2)[:, None]
    classes = np.repeat([1, 0], n)
    weight = np.concatenate([target, 1 - target])
    fit = LogisticRegression(C=1e6, max_iter=1000).fit(x, classes, weight)
    a = float(fit.coef_[0, 0])
    b = float(fit.intercept_[0])
    return (a, b) if a > 0 else (1.0, 0.0)


def calibrated(p: Array, slope: Array, shift: Array) -> Array:
    """Probabilities (N, C) by each label's `platt`, in the same order."""
    z = slope * logit(p) + shift  # float64: float32 would tie near 1
    return 1 / (1 + np.exp(-z))


def logit(p: Array) -> Array:
    p = np.clip(np.asarray(p, dtype=np.float64), 1e-12, 1 - 1e-12)
    return np.log(p) - np.log1p(-p)


@dataclass
class Summary:
    """What a run says of its out-of-fold rows."""

    values: dict  # for metrics.json; the scores by label are cross-fitted
    th: Array  # float32 (C,): thresholds chosen on all rows
    pred: Array  # bool (N, C): each row judged by thresholds of the other folds
    draws: Array  # (1000, C): `bootstrap_f1`'s, of `pred`


def summary(y: Array, p: Array, fold: Array, names: list[str]) -> Summary:
    """Thresholds, and the scores in three ways: at 0.5, tuned on the same rows, cross-fitted."""
    th = tune_thresholds(y, p)
    crossed = cross_fit(y, p, fold)
    draws = bootstrap_f1(y, crossed)
    by_label = per_label(y, p, crossed, th, names)
    for j, row in enumerate(by_label.values()):
        row["f1_ci95"] = interval(draws[:, j])
    verdicts = {
        "at_half": detect(p, np.float32(0.5)),
        "tuned": detect(p, th),
        "cross_fitted": crossed,
    }
    values = {}
    for way, pred in verdicts.items():
        values |= {f"{name}_{way}": x for name, x in scores(y, pred).items()}
    macro_f1 = []
    for k in np.unique(fold):
        held_out = fold == k
        macro_f1.append(scores(y[held_out], crossed[held_out])["macro_f1"])
    labels = (known_sums(y)[1] > 0).sum()  # of which a cell is known, as in `scores_from_counts`
    values["macro_f1_cross_fitted_ci95"] = interval(draws.sum(1) / max(1, labels))
    values["macro_f1_cross_fitted_fold_std"] = float(np.std(macro_f1))
    values["per_label"] = by_label
    return Summary(values, th, crossed, draws)
