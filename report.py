"""What a person looks at before believing a run: `data_report` before training, report.png (`draw_report`) after it.

y and pred (N, C), p (N, C), th (C,): out-of-fold rows; `pred` is the cross-fitted verdict.
"""

from collections import Counter

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sklearn.metrics import precision_recall_curve

import metrics
from config import warn
from data import Table, Tokens, normalise

# Okabe and Ito's colours, told apart by colour-blind readers (https://jfly.uni-koeln.de/color/)
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")
MOST = 8  # labels drawn as curves; all of them stand in the bars


def data_report(table: Table, names: list[str], tokens: Tokens, tokenizer, hashes: np.ndarray, folds: np.ndarray) -> str:
    """What a person wants to know of the training data before anything is trained; warns of what looks wrong."""
    y, n = table.labels, len(table)
    combos = Counter(map(bytes, y.astype(np.uint8)))
    _, group, times = np.unique(hashes, return_inverse=True, return_counts=True)
    conflicts = len(np.unique(np.column_stack([group, y]), axis=0)) - len(times)
    unknown = int((tokens.ids == tokenizer.unk_token_id).sum())  # ModernBERT, say, has none: 0
    special = [i for i in tokenizer.all_special_ids if i != tokenizer.unk_token_id]
    unk = unknown / max(1, int((~np.isin(tokens.ids, special)).sum()))
    lengths = tokens.lengths
    K = int(folds.max()) + 1
    per_fold = np.stack([y[folds == k].sum(0) for k in range(K)]).astype(int)  # (K, C)
    lines = [
        f"rows {n} | label combinations {len(combos)} | rows with no label {combos.get(bytes(y.shape[1]), 0) / n:.1%} | "
        f"duplicate texts {int((times - 1).sum())} (kept in one fold; {conflicts} with other labels)",
        f"tokens per text: median {int(np.median(lengths))}, longest {lengths.max()} | cut at --max-length: "
        f"{tokens.cut / n:.1%} | unknown tokens: {unk:.2%}",
        "label: share (positives in each fold)",
        *(f"  {name:<12} {y[:, j].mean():.3f} ({' '.join(map(str, per_fold[:, j]))})" for j, name in enumerate(names)),
        "row 0: " + " ".join(tokenizer.convert_ids_to_tokens(tokens.ids[: tokens.offsets[1]].tolist()))[:200],
    ]
    for j, name in enumerate(names):
        if y[:, j].sum() < K:
            warn(f"label {name}: {int(y[:, j].sum())} positives for {K} folds - its scores will mean little")
        elif y[:, j].all():
            warn(f"label {name}: every row has it - nothing can be learned about it")
    if unk > 0.05:
        warn(f"{unk:.1%} of the tokens are unknown to this tokenizer (emoji or another script?)")
    blank, nul = sum(not normalise(t) for t in table.texts), sum("\0" in t for t in table.texts)
    if blank:
        warn(f"{table.path}: {blank} texts are blank; they are kept")
    if nul:
        warn(f"{table.path}: {nul} texts hold NUL characters; the tokenizer drops them")
    doubled = len(table.ids) - len(set(table.ids))
    if doubled:
        warn(f"{table.path}: {doubled} ids occur more than once")
    return "\n".join(lines)


def reliability(y: np.ndarray, p: np.ndarray, bins: int = 10) -> tuple[np.ndarray, np.ndarray, float]:
    """Mean probability and share of positives in `bins` of equal width, and the expected calibration error.

    One label, y and p (N,). Empty bins are left out (Naeini et al. 2015; equal-width variant of Guo et al. 2017).
    """
    at = np.minimum((np.asarray(p) * bins).astype(int), bins - 1)
    n = np.bincount(at, minlength=bins)
    full = n > 0
    mean = np.bincount(at, p, bins)[full] / n[full]
    share = np.bincount(at, y, bins)[full] / n[full]
    return mean, share, float((n[full] * np.abs(mean - share)).sum() / max(1, n.sum()))


def co_occurrence(y: np.ndarray) -> np.ndarray:
    """(C, C): of the rows with label i, the share that also has label j."""
    y = np.asarray(y, dtype=np.float64)
    return (y.T @ y) / np.maximum(y.sum(0)[:, None], 1)


def draw_report(f, log: list[dict], y: np.ndarray, p: np.ndarray, pred: np.ndarray, th: np.ndarray, draws: np.ndarray, names: list[str], title: str) -> None:  # fmt: skip
    """Six panels: learning curves, macro-F1, precision-recall, F1 per label, reliability, co-occurrence."""
    figure = Figure(figsize=(13, 7.6), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 3).ravel()
    figure.suptitle(title, fontsize=13)
    shown = np.argsort(-y.sum(0), kind="stable")[:MOST]
    _learning(axes[0], axes[1], log)
    for colour, j in zip(COLOURS, shown, strict=False):
        if not 0 < y[:, j].sum() < len(y):
            continue
        precision, recall, _ = precision_recall_curve(y[:, j], p[:, j])
        axes[2].plot(recall, precision, color=colour, lw=1.4, label=names[j])
        at = metrics.precision_recall_f1(metrics.confusion(y[:, j : j + 1], metrics.detect(p[:, j : j + 1], th[j : j + 1])))
        axes[2].plot(at[1], at[0], "o", color=colour, ms=7, mec="white")
        mean, share, error = reliability(y[:, j], p[:, j])
        axes[4].plot(mean, share, "o-", color=colour, lw=1.2, ms=3.5, label=f"{names[j]} (ECE {error:.3f})")
    axes[2].set(
        title="Precision-recall (dot: chosen threshold)", xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.02)
    )
    axes[4].plot([0, 1], [0, 1], ":", color="grey")
    axes[4].set(title="Reliability (out-of-fold)", xlabel="probability", ylabel="share of positives", xlim=(0, 1), ylim=(0, 1))
    f1, order = metrics.precision_recall_f1(metrics.confusion(y, pred))[2], np.argsort(y.sum(0), kind="stable")
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    spread = np.abs(np.stack([f1 - low, high - f1]))[:, order]
    axes[3].barh(
        [f"{names[j]} ({int(y[:, j].sum())})" for j in order], f1[order], xerr=spread, color=COLOURS[5], ecolor="black", capsize=3
    )
    axes[3].set(title="Cross-fitted F1, 95 % interval (positives)", xlim=(0, 1))
    _pairs(axes[5], y, pred, shown, names)
    for ax in (axes[2], axes[4]):
        ax.legend(fontsize=8, loc="best") if ax.get_legend_handles_labels()[0] else None
    for ax in axes[:5]:
        ax.grid(alpha=0.25)
    figure.savefig(f, format="png", metadata={"Software": None})


def _learning(loss_axis, f1_axis, log: list[dict]) -> None:
    for k in sorted({r["fold"] for r in log}):
        rows = [r for r in log if r["fold"] == k]
        epochs, colour = [r["epoch"] + 1 for r in rows], COLOURS[k % len(COLOURS)]
        loss_axis.plot(epochs, [r["train_loss"] for r in rows], "--", color=colour, lw=1.2)
        loss_axis.plot(epochs, [r["val_loss"] for r in rows], "-", color=colour, lw=1.6)
        f1_axis.plot(epochs, [r["macro_f1"] for r in rows], "o-", color=colour, lw=1.6, ms=4, label=f"fold {k}")
    ticks = sorted({r["epoch"] + 1 for r in log})[:: max(1, len({r["epoch"] for r in log}) // 10)]
    loss_axis.set(title="Loss (dashed: training, solid: held out)", xlabel="epoch", xticks=ticks)
    f1_axis.set(title="Macro-F1 at 0.5, held-out rows", xlabel="epoch", xticks=ticks)
    f1_axis.legend(fontsize=8) if len({r["fold"] for r in log}) <= 10 else None


def _pairs(ax, y: np.ndarray, pred: np.ndarray, shown: np.ndarray, names: list[str]) -> None:
    true, said = co_occurrence(y[:, shown]), co_occurrence(pred[:, shown])
    ax.imshow(true, cmap="Blues", vmin=0, vmax=1)
    short = [names[j][:9] for j in shown]
    ax.set(
        title="Share of the row's label that has the column's\n(true above, predicted below)",
        xticks=range(len(shown)),
        yticks=range(len(shown)),
    )
    ax.set_xticklabels(short, rotation=30, ha="right", fontsize=8)
    ax.set_yticklabels(short, fontsize=8)
    for i in range(len(shown)):
        for j in range(len(shown)):
            if i != j:
                ax.text(
                    j,
                    i,
                    f"{true[i, j]:.2f}\n{said[i, j]:.2f}",
                    ha="center",
                    va="center",
                    fontsize=7,
                    color="white" if true[i, j] > 0.6 else "black",
                )
