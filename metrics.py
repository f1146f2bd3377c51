"""Scores, thresholds and intervals: pure functions on arrays, everything compared in float32.

Shapes: y and pred (N, C) of 0/1, p (N, C) probabilities, th (C,) thresholds, fold (N,). A label is detected when its
probability >= its threshold; 0/0 counts as 0 (scikit-learn's zero_division=0). One more metric: add it to `scores`.
"""

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

GRID = np.linspace(0.1, 0.9, 17, dtype=np.float32)  # 0.10, 0.15 ... 0.90, as in the k-fold notebook


def confusion(y: np.ndarray, pred: np.ndarray) -> np.ndarray:
    """int (4, C): true positives, false positives, false negatives, true negatives of each label."""
    y, pred = np.asarray(y).astype(bool), np.asarray(pred).astype(bool)
    return np.stack([(y & pred).sum(0), (~y & pred).sum(0), (y & ~pred).sum(0), (~y & ~pred).sum(0)])


def _ratio(a, b):
    return np.divide(a, b, out=np.zeros(np.broadcast_shapes(np.shape(a), np.shape(b))), where=np.asarray(b) != 0)


def precision_recall_f1(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """From counts (>= 3, ...) in the order of `confusion`."""
    tp, fp, fn = np.asarray(counts[:3], dtype=np.float64)
    return _ratio(tp, tp + fp), _ratio(tp, tp + fn), _ratio(2 * tp, 2 * tp + fp + fn)


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
    """float64 (C, len(grid)): F1 of each label at each threshold of the ascending grid, in one pass over the rows."""
    y, p, grid = np.asarray(y).astype(bool), np.asarray(p, dtype=np.float32), np.asarray(grid, dtype=np.float32)
    out = np.empty((y.shape[1], len(grid)))
    for j in range(y.shape[1]):
        passed = np.searchsorted(grid, p[:, j], side="right")  # how many thresholds the row reaches
        tp, said = (np.bincount(passed[m], minlength=len(grid) + 1)[::-1].cumsum()[::-1][1:] for m in (y[:, j], slice(None)))
        out[j] = precision_recall_f1([tp, said - tp, y[:, j].sum() - tp])[2]
    return out


def tune_thresholds(y: np.ndarray, p: np.ndarray, grid: np.ndarray = GRID) -> np.ndarray:
    """float32 (C,): the threshold with the best F1 of each label (the lowest of equals); 0.5 without positives."""
    best = np.asarray(grid, dtype=np.float32)[f1_by_threshold(y, p, grid).argmax(1)]
    return np.where(np.asarray(y).any(0), best, np.float32(0.5))


def cross_fit(y: np.ndarray, p: np.ndarray, fold: np.ndarray, tune=tune_thresholds) -> np.ndarray:
    """bool (N, C): each row judged by the thresholds that `tune(y, p)` chooses on the rows of the other folds."""
    pred = np.zeros(np.shape(y), dtype=bool)
    for k in np.unique(fold):
        mine = fold == k
        pred[mine] = detect(p[mine], tune(y[~mine], p[~mine]))
    return pred


def bootstrap_f1(y: np.ndarray, pred: np.ndarray, draws: int = 1000, seed: int = 0) -> np.ndarray:
    """float64 (draws, C): F1 of each label over rows drawn with replacement (Efron's percentile bootstrap)."""
    y, pred = np.asarray(y).astype(bool), np.asarray(pred).astype(bool)
    cells = np.concatenate([y & pred, ~y & pred, y & ~pred], axis=1).astype(np.float32)  # (N, 3 C)
    rng, n = np.random.default_rng(seed), len(y)
    counts = np.stack([np.bincount(rng.integers(0, n, n), minlength=n).astype(np.float32) @ cells for _ in range(draws)])
    return precision_recall_f1(counts.reshape(draws, 3, -1).swapaxes(0, 1))[2]


def interval(draws: np.ndarray) -> list[float]:
    """The central 95 % of bootstrap draws: [low, high]."""
    return [float(x) for x in np.quantile(draws, [0.025, 0.975])]


def per_label(y: np.ndarray, p: np.ndarray, pred: np.ndarray, th: np.ndarray, names: list[str]) -> dict[str, dict]:
    """Counts and scores of each label; average precision and ROC-AUC are None where a class is missing."""
    counts = confusion(y, pred)
    columns = zip(names, *precision_recall_f1(counts), *counts, strict=True)
    out = {}
    for j, (name, precision, recall, f1, tp, fp, fn, tn) in enumerate(columns):
        both = 0 < tp + fn < len(y)
        out[name] = {
            "precision": float(precision),
            "recall": float(recall),
            "f1": float(f1),
            "average_precision": float(average_precision_score(y[:, j], p[:, j])) if both else None,
            "roc_auc": float(roc_auc_score(y[:, j], p[:, j])) if both else None,
            "threshold": float(th[j]),
            "support": int(tp + fn),
            **{k: int(v) for k, v in zip(("tp", "fp", "fn", "tn"), (tp, fp, fn, tn), strict=True)},
        }
    return out


def label_table(table: dict[str, dict]) -> str:
    """`per_label` as text, one line a label."""
    width = max(5, *map(len, table))
    lines = [f"{'Label':<{width}} | Precision | Recall |     F1 | Avg prec | ROC-AUC | Threshold | Support"]
    for name, r in table.items():
        ap, auc = (f"{r[k]:.4f}" if r.get(k) is not None else "-" for k in ("average_precision", "roc_auc"))
        lines.append(
            f"{name:<{width}} |    {r['precision']:.4f} | {r['recall']:.4f} | {r['f1']:.4f} | {ap:>8} | {auc:>7} | "
            f"{r['threshold']:9.3f} | {r['support']:7d}"
        )
    return "\n".join(lines)


def summary(y: np.ndarray, p: np.ndarray, fold: np.ndarray, names: list[str]) -> tuple[dict, np.ndarray, np.ndarray, np.ndarray]:
    """Everything a run says of its out-of-fold rows: (values for metrics.json, thresholds, verdicts, bootstrap draws).

    The verdicts (N, C) are cross-fitted, and so are the per-label scores; thresholds (C,) are chosen on all rows.
    """
    th, crossed = tune_thresholds(y, p), cross_fit(y, p, fold)
    draws, table = bootstrap_f1(y, crossed), per_label(y, p, crossed, th, names)
    for j, name in enumerate(names):
        table[name]["f1_ci95"] = interval(draws[:, j])
    values = {}
    for how, pred in (("at_half", detect(p, np.float32(0.5))), ("tuned", detect(p, th)), ("cross_fitted", crossed)):
        values |= {f"{name}_{how}": value for name, value in scores(y, pred).items()}
    per_fold = [scores(y[fold == k], crossed[fold == k])["macro_f1"] for k in np.unique(fold)]
    values |= {"macro_f1_cross_fitted_ci95": interval(draws.mean(1)), "macro_f1_cross_fitted_fold_std": float(np.std(per_fold))}
    return {**values, "per_label": table}, th, crossed, draws


def closing_table(values: dict) -> str:
    """`summary` as text: per label, thresholds by name, and the three ways to score side by side."""
    lines = [label_table(values["per_label"])]
    lines.append("thresholds: " + ", ".join(f"{n} {r['threshold']:.2f}" for n, r in values["per_label"].items()))
    lines.append(f"{'out-of-fold':<35}| macro-F1 | micro-F1 | exact match")
    notes = {"at_half": "at 0.5", "tuned": "tuned on the same rows (optimistic)", "cross_fitted": "cross-fitted (quote this one)"}
    for how, note in notes.items():
        macro, micro, exact = (values[f"{name}_{how}"] for name in ("macro_f1", "micro_f1", "exact_match"))
        lines.append(f"{note:<35}| {macro:8.4f} | {micro:8.4f} | {exact:.4f}")
    low, high = values["macro_f1_cross_fitted_ci95"]
    spread = values["macro_f1_cross_fitted_fold_std"]
    lines.append(
        f"cross-fitted macro-F1 {values['macro_f1_cross_fitted']:.4f}, 95 % interval {low:.4f} to {high:.4f}, deviation over folds {spread:.4f}"
    )
    return "\n".join(lines)
