"""What a person looks at: data report, epoch lines, closing tables, report.png, errors.csv.

y and pred (N, C), p (N, C), th (C,): out-of-fold rows; `pred` is the cross-fitted verdict.
"""

import warnings
from collections import Counter

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sklearn.metrics import precision_recall_curve

import metrics
from config import warn
from data import Table, Tokens, is_blank

# Okabe and Ito's colours, told apart by colour-blind readers (https://jfly.uni-koeln.de/color/)
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")
MOST = 8  # labels drawn as curves; all of them stand in the bars
ERRORS = 100_000  # lines of errors.csv at most


def data_report(table: Table, names: list[str], tokens: Tokens, tokenizer, hashes, folds: np.ndarray) -> str:
    """What a person wants to know of the data before anything is trained; warns of what looks wrong."""
    y, n, K, lengths = table.labels, len(table), int(folds.max()) + 1, tokens.lengths
    combos = Counter(map(bytes, y.astype(np.uint8)))
    _, first, group, times = np.unique(hashes, return_index=True, return_inverse=True, return_counts=True)
    conflicts = len(np.unique(np.column_stack([group, y]), axis=0)) - len(times)
    unknown = int((tokens.ids == tokenizer.unk_token_id).sum())  # ModernBERT, say, has none: 0
    special = [i for i in tokenizer.all_special_ids if i != tokenizer.unk_token_id]
    unk = unknown / max(1, int((~np.isin(tokens.ids, special)).sum()))
    none, copies = combos.get(bytes(y.shape[1]), 0) / n, int((times - 1).sum())
    duplicates = f"duplicate texts {copies} (kept in one fold; {conflicts} with other labels)"
    longest = f"median {int(np.median(lengths))}, longest {lengths.max()}"
    row = " ".join(tokenizer.convert_ids_to_tokens(tokens.ids[: tokens.offsets[1]].tolist()))
    lines = [
        f"rows {n} | label combinations {len(combos)} | rows with no label {none:.1%} | {duplicates}",
        f"tokens per text: {longest} | cut at --max-length: {tokens.cut / n:.1%} | unknown tokens: {unk:.2%}",
        "label: share (positives in each fold)",
    ]
    per_fold = np.stack([y[folds == k].sum(0) for k in range(K)]).astype(int)  # (K, C)
    lines += [
        f"  {x:<12} {y[:, j].mean():.3f} ({' '.join(map(str, per_fold[:, j]))})" for j, x in enumerate(names)
    ]
    lines.append("row 0: " + row[:200])
    orders = {"the row order": np.arange(n), "the id order": id_order(table.ids)}
    for j, name in enumerate(names):
        if y[:, j].sum() < K:
            warn(f"label {name}: {int(y[:, j].sum())} positives for {K} folds - its scores will mean little")
        elif y[:, j].all():
            warn(f"label {name}: every row has it - nothing can be learned about it")
        if what := next((what for what, order in orders.items() if follows(y[order, j])), None):
            warn(f"label {name}: follows from {what} - it is no help on rows in another order")
    common = int(times.argmax())
    if times[common] >= max(10, n / 100):
        shares = ", ".join(f"{x} {y[group == common, j].mean():.2f}" for j, x in enumerate(names))
        text = table.texts[first[common]][:40]
        warn(f"{times[common]} rows have the text {text!r}; their labels: {shares}")
    if unk > 0.05:
        warn(f"{unk:.1%} of the tokens are unknown to this tokenizer (emoji or another script?)")
    blank, nul = sum(map(is_blank, table.texts)), sum("\0" in t for t in table.texts)
    doubled = n - len(set(table.ids))
    odd = {"texts are blank; they are kept": blank, "ids occur more than once": doubled}
    for what, count in {**odd, "texts hold NUL characters; the tokenizer drops them": nul}.items():
        if count:
            warn(f"{table.path}: {count} {what}")
    return "\n".join(lines)


def id_order(ids: list[str]) -> np.ndarray:
    """Positions in the order of the ids, by number where all are numbers."""
    number = all(i.isascii() and i.isdigit() and len(i) < 19 for i in ids)
    return np.array(sorted(range(len(ids)), key=lambda i: int(ids[i]) if number else ids[i]))


def follows(y: np.ndarray) -> bool:
    """Whether a label (N,) stays as it was from row to row: neighbours correlate above 0.5, in 50 rows up."""
    return len(y) >= 50 and 2 <= y.sum() <= len(y) - 2 and np.corrcoef(y[1:], y[:-1])[0, 1] > 0.5


def epoch_line(r: dict, epochs: int) -> str:
    losses = f"train loss {r['train_loss']:.4f} | val loss {r['val_loss']:.4f}"
    scores = f"exact match {r['exact_match']:.4f} | macro-F1 {r['macro_f1']:.4f}"
    head = f"fold {r['fold']} epoch {r['epoch'] + 1:>2}/{epochs}"
    return f"{head} | {losses} | {scores} | lr {r['lr']:.1e} | {r['rows_per_s']:.0f} rows/s"


def label_table(table: dict[str, dict]) -> str:
    """`metrics.per_label` as text, one line a label."""
    width = max(5, *map(len, table))
    lines = [f"{'Label':<{width}} | Precision | Recall |     F1 | Avg prec | ROC-AUC | Threshold | Support"]
    for name, r in table.items():
        ap, auc = (f"{r[k]:.4f}" if r.get(k) is not None else "-" for k in ("average_precision", "roc_auc"))
        f1 = f"{name:<{width}} |    {r['precision']:.4f} | {r['recall']:.4f} | {r['f1']:.4f}"
        lines.append(f"{f1} | {ap:>8} | {auc:>7} | {r['threshold']:9.3f} | {r['support']:7d}")
    return "\n".join(lines)


def closing_table(values: dict) -> str:
    """`metrics.summary` as text: per label, thresholds by name, and the three ways to score side by side."""
    chosen = ", ".join(f"{n} {r['threshold']:.3f}" for n, r in values["per_label"].items())
    lines = [label_table(values["per_label"]), f"thresholds: {chosen}"]
    lines.append(f"{'out-of-fold':<35}| macro-F1 | micro-F1 | exact match")
    notes = ("at 0.5", "tuned on the same rows (optimistic)", "cross-fitted (quote this one)")
    for how, note in zip(("at_half", "tuned", "cross_fitted"), notes, strict=True):
        macro, micro, exact = (values[f"{name}_{how}"] for name in ("macro_f1", "micro_f1", "exact_match"))
        lines.append(f"{note:<35}| {macro:8.4f} | {micro:8.4f} | {exact:.4f}")
    (low, high), spread = values["macro_f1_cross_fitted_ci95"], values["macro_f1_cross_fitted_fold_std"]
    score = f"cross-fitted macro-F1 {values['macro_f1_cross_fitted']:.4f}"
    lines.append(f"{score}, 95 % interval {low:.4f} to {high:.4f}, deviation over folds {spread:.4f}")
    return "\n".join(lines)


def likely_errors(ids: list[str], texts: list[str], fold, y, p: np.ndarray, names: list[str]) -> list[list]:
    """errors.csv: (row, label) cells by out-of-fold loss, the likeliest labelling mistakes first."""
    q = np.where(y > 0, p, 1 - p).astype(np.float64)  # the probability given to the label that stands there
    lines = [["id", "fold", "label", "given", "probability", "loss", "text"]]
    for cell in np.argsort(q, axis=None, kind="stable")[:ERRORS].tolist():
        i, j = divmod(cell, len(names))
        numbers = int(y[i, j]), f"{p[i, j]:.6f}", f"{-np.log(max(q[i, j], 1e-12)):.4f}"
        lines.append([ids[i], int(fold[i]), names[j], *numbers, texts[i]])
    return lines


def co_occurrence(y: np.ndarray) -> np.ndarray:
    """(C, C): of the rows with label i, the share that also has label j."""
    y = np.asarray(y, dtype=np.float64)
    return (y.T @ y) / np.maximum(y.sum(0)[:, None], 1)


def draw_report(f, log: list[dict], y, p, pred, th, draws, names: list[str], title: str) -> None:
    """Six panels: losses, macro-F1, precision-recall, F1 per label, reliability, co-occurrence."""
    # $: matplotlib reads mathematics; one name of 300 letters would leave no room for the axes
    names = [name[:24].replace("$", r"\$") for name in names]
    warnings.filterwarnings("ignore", "Glyph .* missing")  # labels in a script that the font lacks
    figure = Figure(figsize=(13, 7.6), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    losses, f1s, pr, bars, calibration, pairs = axes = figure.subplots(2, 3).ravel()
    figure.suptitle(title[-140:].replace("$", r"\$"), fontsize=13)
    shown = np.argsort(-y.sum(0), kind="stable")[:MOST]
    for k in sorted({r["fold"] for r in log}):
        rows, colour = [r for r in log if r["fold"] == k], COLOURS[k % len(COLOURS)]
        train, val, f1 = ([r[x] for r in rows] for x in ("train_loss", "val_loss", "macro_f1"))
        epochs = [r["epoch"] + 1 for r in rows]
        losses.plot(epochs, train, "o--", color=colour, lw=1.2, ms=3)
        losses.plot(epochs, val, "o-", color=colour, lw=1.6, ms=3)
        f1s.plot(epochs, f1, "o-", color=colour, lw=1.6, ms=4, label=f"fold {k}" if k < 10 else None)
    for j, colour in zip(shown, COLOURS, strict=False):
        if 0 < y[:, j].sum() < len(y):
            precision, recall, _ = precision_recall_curve(y[:, j], p[:, j])
            pr.plot(recall, precision, color=colour, lw=1.4, label=names[j])
            counts = metrics.confusion(y[:, [j]], metrics.detect(p[:, [j]], th[[j]]))
            pr.plot(*metrics.precision_recall_f1(counts)[1::-1], "o", color=colour, ms=7, mec="white")
            mean, share, error = metrics.reliability(y[:, j], p[:, j])
            calibration.plot(
                mean, share, "o-", color=colour, lw=1.2, ms=3.5, label=f"{names[j]} (ECE {error:.3f})"
            )
    calibration.plot([0, 1], [0, 1], ":", color="grey")
    order = np.argsort(y.sum(0), kind="stable")
    f1 = metrics.precision_recall_f1(metrics.confusion(y, pred))[2]
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    spread = np.abs(np.stack([f1 - low, high - f1]))[:, order]
    bars.barh(range(len(order)), f1[order], xerr=spread, color=COLOURS[5], ecolor="black", capsize=3)
    label = [f"{names[j]} ({int(y[:, j].sum())})" for j in order]
    bars.set_yticks(range(len(order)), label, fontsize=min(10, 160 / len(order)))
    true, said = co_occurrence(y[:, shown]), co_occurrence(pred[:, shown])
    pairs.imshow(true, cmap="Blues", vmin=0, vmax=1)
    for i, j in np.argwhere(~np.eye(len(shown), dtype=bool)):
        colour = "white" if true[i, j] > 0.6 else "black"
        style = {"ha": "center", "va": "center", "fontsize": 7, "color": colour}
        pairs.text(j, i, f"{true[i, j]:.2f}\n{said[i, j]:.2f}", **style)
    short = [names[j][:9] for j in shown]
    pairs.set_xticks(range(len(shown)), short, rotation=30, ha="right", fontsize=8)
    pairs.set_yticks(range(len(shown)), short, fontsize=8)
    ticks = sorted({r["epoch"] + 1 for r in log})
    ticks = ticks[:: max(1, len(ticks) // 10)]
    losses.set(title="Loss (dashed: training, solid: held out)", xlabel="epoch", xticks=ticks)
    f1s.set(title="Macro-F1 at 0.5, held-out rows", xlabel="epoch", xticks=ticks)
    box = {"xlim": (0, 1.02), "ylim": (0, 1.02)}
    pr.set(title="Precision-recall (dot: chosen threshold)", xlabel="recall", ylabel="precision", **box)
    calibration.set(
        title="Reliability (out-of-fold)", xlabel="probability", ylabel="share of positives", **box
    )
    bars.set(title="Cross-fitted F1, 95 % interval (positives)", xlim=(0, 1))
    pairs.set(title="Rows with the left label: share that has\nthe lower one too (true, predicted)")
    for ax in axes[:5]:
        ax.grid(alpha=0.25)
        if ax.get_legend_handles_labels()[0]:
            ax.legend(fontsize=8, loc="best")
    figure.savefig(f, format="png", metadata={"Software": None})
