"""Scores, thresholds and intervals: pure functions on arrays, everything compared in float32.

Shapes: y and pred (N, C) of 0/1, p (N, C) probabilities, th (C,) thresholds, fold (N,). A label is
detected when its probability >= its threshold; 0/0 counts as 0 (scikit-learn's zero_division=0).
One more metric: `scores_from_counts`, or for each label `per_label`. Another rule for thresholds:
`tune_thresholds`. scikit-learn is imported where it is needed: predict.py starts without it.
"""

import numpy as np

GRID = np.linspace(0.1, 0.9, 17, dtype=np.float32)  # 0.10, 0.15 ... 0.90, as in the notebook


def confusion(y: np.ndarray, pred: np.ndarray) -> np.ndarray:
    """int (4, C): true positives, false positives, false negatives, true negatives by label."""
    y, pred = np.asarray(y).astype(bool), np.asarray(pred).astype(bool)
    return np.stack(
        [(y & pred).sum(0), (~y & pred).sum(0), (y & ~pred).sum(0), (~y & ~pred).sum(0)]
    )


def precision_recall_f1(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """From counts (>= 3, ...) in the order of `confusion`."""
    tp, fp, fn = np.asarray(counts[:3], dtype=np.float64)
    pairs = (tp, tp + fp), (tp, tp + fn), (2 * tp, 2 * tp + fp + fn)
    return tuple(a / np.maximum(b, 1) for a, b in pairs)


def scores_from_counts(counts: np.ndarray, exact: float) -> dict[str, float]:
    """`scores`, from the counts of `confusion` and the share of rows with every label right.

    What `shown` leaves is printed, by train.py and predict.py.
    """
    macro = [float(x.mean()) for x in precision_recall_f1(counts)]
    micro = [float(x[0]) for x in precision_recall_f1(counts.sum(1, keepdims=True))]
    out = {"macro_f1": macro[2], "micro_f1": micro[2], "exact_match": float(exact)}
    out |= {"macro_precision": macro[0], "macro_recall": macro[1]}
    return out | {"micro_precision": micro[0], "micro_recall": micro[1]}


def scores(y: np.ndarray, pred: np.ndarray) -> dict[str, float]:
    """Macro and micro precision, recall and F1; exact match (every label of a row right)."""
    exact = np.mean((np.asarray(y) == pred).all(1)) if len(y) else 0.0
    return scores_from_counts(confusion(y, pred), exact)


def shown(scores: dict[str, float]) -> dict[str, float]:
    """The scores that are printed: all but precision and recall."""
    return {n: x for n, x in scores.items() if not n.endswith(("precision", "recall"))}


# Thresholds


def detect(p: np.ndarray, th: np.ndarray) -> np.ndarray:
    """bool (N, C). Both sides in float32: float32(0.7) >= float64(0.7) is False."""
    return np.asarray(p, dtype=np.float32) >= np.asarray(th, dtype=np.float32)


def f1_by_threshold(y: np.ndarray, p: np.ndarray, grid: np.ndarray = GRID) -> np.ndarray:
    """float64 (C, len(grid)): F1 of each label at each threshold of the ascending grid."""
    y, (p, grid) = np.asarray(y).astype(bool), (np.asarray(x, dtype=np.float32) for x in (p, grid))
    out = np.empty((y.shape[1], len(grid)))
    for j in range(y.shape[1]):
        passed = np.searchsorted(grid, p[:, j], side="right")  # how many thresholds a row reaches
        counts = (np.bincount(passed[m], minlength=len(grid) + 1) for m in (y[:, j], slice(None)))
        tp, said = (n[::-1].cumsum()[::-1][1:] for n in counts)
        out[j] = precision_recall_f1([tp, said - tp, y[:, j].sum() - tp])[2]
    return out


def tune_thresholds(
    y: np.ndarray, p: np.ndarray, grid: np.ndarray = GRID, near: float = 0.01
) -> np.ndarray:
    """float32 (C,): each label's threshold by F1; 0.5 without positives.

    The middle of those around the best whose F1 is within `near` of its: with few positives the
    best itself is noise. A label whose best is the lowest of the grid has nine more below it.
    """
    grid, th = np.asarray(grid, dtype=np.float32), []
    longer = np.union1d(np.linspace(grid[0] / 10, grid[0], 10, dtype=np.float32), grid)
    curves = zip(f1_by_threshold(y, p, grid), f1_by_threshold(y, p, longer), strict=True)
    for f1, more in curves:
        f1, at = (f1, grid) if f1.argmax() else (more, longer)
        best, worse = f1.argmax(), np.flatnonzero(f1 < f1.max() - near)
        low = worse[worse < best].max(initial=-1) + 1
        high = worse[worse > best].min(initial=len(at)) - 1
        th.append((at[low] + at[high]) / 2)
    return np.where(np.asarray(y).any(0), np.float32(th), np.float32(0.5))


def cross_fit(y: np.ndarray, p: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """bool (N, C): each row judged by the thresholds chosen on the other folds' rows."""
    pred = np.zeros(np.shape(y), dtype=bool)
    for k in np.unique(fold):
        mine = fold == k
        pred[mine] = detect(p[mine], tune_thresholds(y[~mine], p[~mine]))
    return pred


# Intervals and tables


def bootstrap_f1(y: np.ndarray, pred: np.ndarray, draws: int = 1000, seed: int = 0) -> np.ndarray:
    """float64 (draws, C): F1 of each label over rows drawn with replacement (Efron's bootstrap)."""
    y, pred = np.asarray(y).astype(bool), np.asarray(pred).astype(bool)
    cells = np.concatenate([y & pred, ~y & pred, y & ~pred], axis=1).astype(np.float32)  # (N, 3 C)
    rng, n = np.random.default_rng(seed), len(y)
    drawn = (np.bincount(rng.integers(0, n, n), minlength=n) for _ in range(draws))
    counts = np.stack([times.astype(np.float32) @ cells for times in drawn])
    return precision_recall_f1(counts.reshape(draws, 3, -1).swapaxes(0, 1))[2]


def interval(draws: np.ndarray) -> list[float]:
    """The central 95 % of bootstrap draws: [low, high]."""
    return [float(x) for x in np.quantile(draws, [0.025, 0.975])]


def table_from_counts(counts: np.ndarray, th: np.ndarray, names: list[str]) -> dict[str, dict]:
    """Scores, threshold, support and counts of each label, from the counts of `confusion`."""
    keys = ("precision", "recall", "f1", "threshold", "support", "tp", "fp", "fn", "tn")
    columns = (*precision_recall_f1(counts), th, counts[0] + counts[2], *counts)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return {n: dict(zip(keys, row, strict=True)) for n, row in zip(names, rows, strict=True)}


def per_label(y: np.ndarray, p: np.ndarray, pred: np.ndarray, th: np.ndarray, names) -> dict:
    """`table_from_counts`, average precision, ROC-AUC (None where a class is missing), and more."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    table = table_from_counts(confusion(y, pred), th, names)
    for j, row in enumerate(table.values()):
        both = 0 < row["support"] < len(y)
        row["average_precision"] = (
            float(average_precision_score(y[:, j], p[:, j])) if both else None
        )
        row["roc_auc"] = float(roc_auc_score(y[:, j], p[:, j])) if both else None
        row["ece"] = reliability(y[:, j], p[:, j])[2]
        row["platt"] = platt(y[:, j], p[:, j])
    return table


def reliability(y: np.ndarray, p: np.ndarray, bins: int = 10) -> tuple:
    """Of one label, y and p (N,), in bins of equal width: mean probability and share of positives,
    and the expected calibration error (Naeini et al. 2015). Empty bins are left out."""
    at = np.minimum((np.asarray(p) * bins).astype(int), bins - 1)
    n = np.bincount(at, minlength=bins)
    full = n > 0
    mean, share = (np.bincount(at, x, bins)[full] / n[full] for x in (p, y))
    return mean, share, float((n[full] * np.abs(mean - share)).sum() / max(1, n.sum()))


def platt(y: np.ndarray, p: np.ndarray) -> tuple[float, float]:
    """(a, b) for which sigmoid(a logit(p) + b) fits one label's y (N,) best (Platt 1999).

    Without both classes, or where a <= 0 would turn the order of the scores round: (1, 0).
    """
    if len(np.unique(y)) < 2:
        return 1.0, 0.0
    from sklearn.linear_model import LogisticRegression

    n, m = len(y), y.sum()
    # Platt's targets: with few positives 0 and 1 themselves would make the slope endless.
    target = np.where(y > 0, (m + 1) / (m + 2), 1 / (n - m + 2))
    x, both = np.tile(logit(p), 2)[:, None], np.repeat([1, 0], n)
    weight = np.concatenate([target, 1 - target])
    fit = LogisticRegression(C=1e6, max_iter=1000).fit(x, both, weight)
    a, b = float(fit.coef_[0, 0]), float(fit.intercept_[0])
    return (a, b) if a > 0 else (1.0, 0.0)


def calibrated(p: np.ndarray, slope: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Probabilities (N, C) by each label's `platt`, in the same order."""
    z = slope * logit(p) + shift  # float64: float32 would tie near 1
    return 1 / (1 + np.exp(-z))


def logit(p: np.ndarray) -> np.ndarray:
    p = np.clip(np.asarray(p, dtype=np.float64), 1e-12, 1 - 1e-12)
    return np.log(p) - np.log1p(-p)


def summary(y: np.ndarray, p: np.ndarray, fold: np.ndarray, names: list[str]) -> tuple:
    """What a run says of its out-of-fold rows: values for metrics.json, thresholds, pred, draws.

    pred (N, C) is cross-fitted, and so are the scores by label; the thresholds (C,) come from all
    rows; draws (1000, C) are `bootstrap_f1`'s.
    """
    th, crossed = tune_thresholds(y, p), cross_fit(y, p, fold)
    draws, table = bootstrap_f1(y, crossed), per_label(y, p, crossed, th, names)
    for j, name in enumerate(names):
        table[name]["f1_ci95"] = interval(draws[:, j])
    ways = {"at_half": detect(p, np.float32(0.5)), "tuned": detect(p, th), "cross_fitted": crossed}
    values = {
        f"{name}_{how}": x for how, pred in ways.items() for name, x in scores(y, pred).items()
    }
    by_fold = [scores(y[fold == k], crossed[fold == k])["macro_f1"] for k in np.unique(fold)]
    values["macro_f1_cross_fitted_ci95"] = interval(draws.mean(1))
    values["macro_f1_cross_fitted_fold_std"] = float(np.std(by_fold))
    return {**values, "per_label": table}, th, crossed, draws
