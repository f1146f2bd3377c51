"""Scores, thresholds and intervals: pure functions on arrays, everything compared in float32.

Shapes: y and pred (N, C) of 0/1, p (N, C) probabilities, th (C,) thresholds, fold (N,). A label is detected
when its probability >= its threshold; 0/0 counts as 0 (scikit-learn's zero_division=0). One more metric: add
it to `scores_from_counts`, or to `per_label`.
scikit-learn is imported by the two that need it: predict.py need not wait for it.
"""

import numpy as np

GRID = np.linspace(0.1, 0.9, 17, dtype=np.float32)  # 0.10, 0.15 ... 0.90, as in the k-fold notebook


def confusion(y: np.ndarray, pred: np.ndarray) -> np.ndarray:
    """int (4, C): true positives, false positives, false negatives, true negatives of each label."""
    y, pred = np.asarray(y).astype(bool), np.asarray(pred).astype(bool)
    return np.stack([(y & pred).sum(0), (~y & pred).sum(0), (y & ~pred).sum(0), (~y & ~pred).sum(0)])


def precision_recall_f1(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """From counts (>= 3, ...) in the order of `confusion`."""
    tp, fp, fn = np.asarray(counts[:3], dtype=np.float64)
    return tuple(a / np.maximum(b, 1) for a, b in ((tp, tp + fp), (tp, tp + fn), (2 * tp, 2 * tp + fp + fn)))


def scores_from_counts(counts: np.ndarray, exact: float) -> dict[str, float]:
    """`scores`, from the counts of `confusion` and the share of rows with every label right."""
    macro, micro = precision_recall_f1(counts), precision_recall_f1(counts.sum(1, keepdims=True))
    out = {"exact_match": float(exact)}
    for name, a, b in zip(("precision", "recall", "f1"), macro, micro, strict=True):
        out |= {f"macro_{name}": float(a.mean()), f"micro_{name}": float(b[0])}
    return out


def scores(y: np.ndarray, pred: np.ndarray) -> dict[str, float]:
    """Exact match (every label of a row right), and macro and micro precision, recall and F1."""
    return scores_from_counts(confusion(y, pred), np.mean((np.asarray(y) == pred).all(1)) if len(y) else 0.0)


def detect(p: np.ndarray, th: np.ndarray) -> np.ndarray:
    """bool (N, C). Both sides in float32: float32(0.7) >= float64(0.7) is False."""
    return np.asarray(p, dtype=np.float32) >= np.asarray(th, dtype=np.float32)


def f1_by_threshold(y: np.ndarray, p: np.ndarray, grid: np.ndarray = GRID) -> np.ndarray:
    """float64 (C, len(grid)): F1 of each label at each threshold of the ascending grid, in one pass."""
    y, (p, grid) = np.asarray(y).astype(bool), (np.asarray(x, dtype=np.float32) for x in (p, grid))
    out = np.empty((y.shape[1], len(grid)))
    for j in range(y.shape[1]):
        passed = np.searchsorted(grid, p[:, j], side="right")  # how many thresholds the row reaches
        counts = (np.bincount(passed[m], minlength=len(grid) + 1) for m in (y[:, j], slice(None)))
        tp, said = (n[::-1].cumsum()[::-1][1:] for n in counts)
        out[j] = precision_recall_f1([tp, said - tp, y[:, j].sum() - tp])[2]
    return out


def tune_thresholds(y: np.ndarray, p: np.ndarray, grid: np.ndarray = GRID, near: float = 0.01) -> np.ndarray:
    """float32 (C,): each label's threshold by F1; 0.5 without positives.

    The middle of those around the best whose F1 is within `near` of its: the best itself is noise where there
    are few positives. A label whose best is the lowest of the grid has nine more below it.
    """
    grid, th = np.asarray(grid, dtype=np.float32), []
    longer = np.union1d(np.linspace(grid[0] / 10, grid[0], 10, dtype=np.float32), grid)
    for f1, more in zip(f1_by_threshold(y, p, grid), f1_by_threshold(y, p, longer), strict=True):
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
    return {name: dict(zip(keys, row, strict=True)) for name, row in zip(names, rows, strict=True)}


def per_label(y: np.ndarray, p: np.ndarray, pred: np.ndarray, th: np.ndarray, names: list[str]) -> dict:
    """`table_from_counts` with average precision and ROC-AUC, which are None where a class is missing."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    table = table_from_counts(confusion(y, pred), th, names)
    for j, row in enumerate(table.values()):
        both = 0 < row["support"] < len(y)
        row["average_precision"] = float(average_precision_score(y[:, j], p[:, j])) if both else None
        row["roc_auc"] = float(roc_auc_score(y[:, j], p[:, j])) if both else None
    return table


def reliability(y: np.ndarray, p: np.ndarray, bins: int = 10) -> tuple[np.ndarray, np.ndarray, float]:
    """Mean probability and share of positives in `bins` of equal width, and the expected calibration error.

    One label, y and p (N,). Empty bins are left out (Naeini et al. 2015; equal widths: Guo et al. 2017).
    """
    at = np.minimum((np.asarray(p) * bins).astype(int), bins - 1)
    n = np.bincount(at, minlength=bins)
    full = n > 0
    mean, share = (np.bincount(at, x, bins)[full] / n[full] for x in (p, y))
    return mean, share, float((n[full] * np.abs(mean - share)).sum() / max(1, n.sum()))


def platt(y: np.ndarray, p: np.ndarray) -> tuple[float, float]:
    """(a, b) for which sigmoid(a logit(p) + b) fits one label's y (N,) best, the targets drawn in (Platt 1999).

    Without both classes, or where a <= 0 would turn the order of the scores round: (1, 0), no change.
    """
    if len(np.unique(y)) == 2:
        from sklearn.linear_model import LogisticRegression

        n, m = len(y), y.sum()
        target = np.where(y > 0, (m + 1) / (m + 2), 1 / (n - m + 2))  # few positives: no endless slope
        x, both = np.tile(logit(p), 2)[:, None], np.repeat([1, 0], n)
        fit = LogisticRegression(C=1e6, max_iter=1000).fit(x, both, np.concatenate([target, 1 - target]))
        if fit.coef_[0, 0] > 0:
            return float(fit.coef_[0, 0]), float(fit.intercept_[0])
    return 1.0, 0.0


def logit(p: np.ndarray) -> np.ndarray:
    p = np.clip(np.asarray(p, dtype=np.float64), 1e-12, 1 - 1e-12)
    return np.log(p) - np.log1p(-p)


def summary(y: np.ndarray, p: np.ndarray, fold: np.ndarray, names: list[str]) -> tuple:
    """What a run says of its out-of-fold rows: values for metrics.json, thresholds, verdicts, draws.

    The verdicts (N, C) are cross-fitted, and so are the per-label scores; thresholds (C,) come from all rows;
    draws (1000, C) are `bootstrap_f1`'s.
    """
    th, crossed = tune_thresholds(y, p), cross_fit(y, p, fold)
    draws, table = bootstrap_f1(y, crossed), per_label(y, p, crossed, th, names)
    for j, name in enumerate(names):
        table[name] |= {"f1_ci95": interval(draws[:, j]), "ece": reliability(y[:, j], p[:, j])[2]}
        table[name]["platt"] = platt(y[:, j], p[:, j])
    ways = {"at_half": detect(p, np.float32(0.5)), "tuned": detect(p, th), "cross_fitted": crossed}
    values = {f"{name}_{how}": x for how, pred in ways.items() for name, x in scores(y, pred).items()}
    per_fold = [scores(y[fold == k], crossed[fold == k])["macro_f1"] for k in np.unique(fold)]
    values["macro_f1_cross_fitted_ci95"] = interval(draws.mean(1))
    values["macro_f1_cross_fitted_fold_std"] = float(np.std(per_fold))
    return {**values, "per_label": table}, th, crossed, draws
