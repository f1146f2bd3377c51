"""What a person looks at: data report, epoch lines, closing tables, report.png, errors.csv.

y and pred (N, C), p (N, C), th (C,): out-of-fold rows; `pred` is the cross-fitted verdict.
"""

import os

import numpy as np

import metrics
from support.errors import warn
from support.output import csv_text

# Okabe and Ito's colours, told apart by colour-blind readers (https://jfly.uni-koeln.de/color/)
COLOURS = "#0072B2 #D55E00 #009E73 #CC79A7 #E69F00 #56B4E9 #000000 #999933".split()  # noqa: SIM905
MOST = 8  # labels drawn as curves; all of them stand in the bars
ERRORS = 100_000  # lines of errors.csv at most


def say_data(data, names: list[str], dataset, tokenizer, folds: np.ndarray) -> None:
    """Print what a person wants to know of the data before training; warn of what looks wrong."""
    known = ~np.isnan(data.labels).any(1)  # texts without labels only teach (tools/distil.py)
    y, folds, n, lengths = data.labels[known], folds[known], known.sum(), dataset.lengths
    group, times = np.unique(data.hashes[known], return_inverse=True, return_counts=True)[1:]
    kinds = [*map(bytes, y.astype(np.uint8))]  # the label combination of each row
    conflicts = len({*zip(group.tolist(), kinds, strict=True)}) - len(times)
    unk = np.mean(dataset.ids == tokenizer.unk_token_id)  # ModernBERT, say, has none: 0
    first = tokenizer.convert_ids_to_tokens(dataset[0]["input_ids"].tolist())
    lines = [
        f"rows {n} | label combinations {len({*kinds})}"
        f" | rows with no label {1 - y.any(1).mean():.1%}"
        f" | duplicate texts {n - len(times)} ({conflicts} with other labels)",
        f"tokens per text: median {int(np.median(lengths))}, longest {lengths.max()}"
        f" | cut at --max-length: {dataset.cut / len(data):.1%} | unknown tokens: {unk:.2%}",
        f"label: share (positives {'never held out, ' if -1 in folds else ''}in each fold)",
    ]
    for j, name in enumerate(names):
        per_fold = [int(y[folds == k, j].sum()) for k in np.unique(folds)]  # -1: never held out
        held, total = per_fold[1:] if -1 in folds else per_fold, sum(per_fold)
        lines.append(f"  {name:<12} {y[:, j].mean():.3f} ({' '.join(map(str, per_fold))})")
        # None to train on, none to score, or fewer than a score can rest on.
        if total == max(held) or not any(held) or total < max(5, len(held)):
            few = f"{total} positives for {len(held)} folds, {sum(held)} of them held out"
            warn(f"label {name}: {few} - its scores will mean little")
    if unk > 0.05:
        warn(f"{unk:.1%} of the tokens are unknown to this tokenizer (emoji or another script?)")
    print("\n".join([*lines, "row 0: " + " ".join(first)[:200]]), flush=True)


def epoch_line(r: dict, epochs: int) -> str:
    losses = f"train loss {r['train_loss']:.4f} | val loss {r['val_loss']:.4f}"
    scores = f"exact match {r['exact_match']:.4f} | macro-F1 {r['macro_f1']:.4f}"
    head = f"fold {r['fold']} epoch {r['epoch'] + 1:>2}/{epochs}"
    return f"{head} | {losses} | {scores} | lr {r['lr']:.1e} | {r['rows_per_s']:.0f} rows/s"


def label_table(table: dict[str, dict]) -> str:
    """`metrics.per_label` as text, one line a label."""
    width = max(5, *map(len, table))
    head = "Precision | Recall |     F1 | Avg prec | ROC-AUC | Threshold | Support"
    lines = [f"{'Label':<{width}} | {head}"]
    for name, r in table.items():
        ranking = (r.get("average_precision"), r.get("roc_auc"))
        ap, auc = (f"{x:.4f}" if x is not None else "-" for x in ranking)
        f1 = f"{name:<{width}} |    {r['precision']:.4f} | {r['recall']:.4f} | {r['f1']:.4f}"
        lines.append(f"{f1} | {ap:>8} | {auc:>7} | {r['threshold']:9.3f} | {r['support']:7d}")
    return "\n".join(lines)


def scores_of_counts(counts: np.ndarray, exact: int, th: np.ndarray, names: list[str]) -> str:
    """What predict.py says of labelled rows, from the counts (4, C) of `metrics.confusion`."""
    if not (rows := counts[:, 0].sum()):
        return "no row to score"
    scores = metrics.shown(metrics.scores_from_counts(counts, exact / rows))
    line = " | ".join(f"{name} {score:.4f}" for name, score in scores.items())
    return label_table(metrics.table_from_counts(counts, th, names)) + "\n" + line


def text_lines(row: dict) -> str:
    """One text as `predict.py --text` shows it."""
    lines = [f"  {name:<12} {p:.4f}" for name, p in row["probabilities"].items()]
    found = f"Detected emotions: {', '.join(row['emotions']) or 'None'}"
    return "\n".join([f"Text: {row['text']}", *lines, found])


def closing_table(values: dict) -> str:
    """`metrics.summary` as text: by label, the thresholds, and the three ways to score."""
    chosen = ", ".join(f"{n} {r['threshold']:.3f}" for n, r in values["per_label"].items())
    names = [n.removesuffix("_tuned") for n in values if n.endswith("_tuned")]
    names = list(metrics.shown(dict.fromkeys(names)))
    titles = [n.replace("_f", "-F").replace("_", " ") for n in names]
    lines = [label_table(values["per_label"]), f"thresholds: {chosen}"]
    lines.append(" | ".join([f"{'out-of-fold':<36}", *titles]).replace(" |", "|", 1))
    notes = ("at 0.5", "tuned on the same rows (optimistic)", "cross-fitted (quote this one)")
    for how, note in zip(("at_half", "tuned", "cross_fitted"), notes, strict=True):
        cells = [f"{values[f'{n}_{how}']:{len(t)}.4f}" for n, t in zip(names, titles, strict=True)]
        lines.append(" | ".join([f"{note:<36}", *cells]).replace(" |", "|", 1))
    low, high = values["macro_f1_cross_fitted_ci95"]
    score = f"cross-fitted macro-F1 {values['macro_f1_cross_fitted']:.4f}"
    spread = f"standard deviation over folds {values['macro_f1_cross_fitted_fold_std']:.4f}"
    return "\n".join([*lines, f"{score}, 95 % interval {low:.4f} to {high:.4f}, {spread}"])


def title(model: str, values: dict, rows: int) -> str:
    (low, high), score = values["macro_f1_cross_fitted_ci95"], values["macro_f1_cross_fitted"]
    return f"{model}: cross-fitted macro-F1 {score:.3f} [{low:.3f}, {high:.3f}], {rows} rows"


def write_oof(folder, data, rows: np.ndarray, fold, y_prob, names: list[str]) -> None:
    """oof.csv. `rows` (N,): where the rows of fold and y_prob stand in `data`."""
    lines = [["id", "fold", *names]]
    for i, k, p in zip(rows, fold, y_prob, strict=True):
        lines.append([data.ids[i], k, *(f"{x:.9g}" for x in p)])
    (folder / "oof.csv").write_bytes(csv_text(lines).encode())


def write_likely_errors(folder, data, rows: np.ndarray, fold, y, p, names: list[str]) -> None:
    """errors.csv: (row, label) cells by out-of-fold loss, the likeliest mistakes first."""
    q = np.where(y > 0, p, 1 - p).astype(np.float64)  # of the label that stands there
    lines = [["id", "fold", "label", "given", "probability", "loss", "text"]]
    for cell in np.argsort(q, axis=None, kind="stable")[:ERRORS].tolist():
        i, j = divmod(cell, len(names))
        loss = -np.log(max(q[i, j], 1e-12))
        numbers = int(y[i, j]), f"{p[i, j]:.6f}", f"{loss:.4f}"
        lines.append([data.ids[rows[i]], int(fold[i]), names[j], *numbers, data.texts[rows[i]]])
    (folder / "errors.csv").write_bytes(csv_text(lines).encode())


def draw_report(f, log: list[dict], y, p, pred, th, draws, names: list[str], title: str) -> None:
    """Five panels: losses, macro-F1, precision-recall, reliability, F1 per label."""
    if not os.environ.get("MPLBACKEND", "").startswith("module://"):  # a notebook's stays
        os.environ.pop("MPLBACKEND", None)  # it may name one that is unknown here
    from matplotlib.figure import Figure

    # $: matplotlib reads mathematics; one name of 300 letters would leave no room for the axes
    names = [name[:24].replace("$", r"\$") for name in names]
    figure = Figure(figsize=(13, 7.6), dpi=100, layout="constrained")
    panels = figure.subplot_mosaic("ABE;CDE")  # E, with a bar for every label, is the tall one
    losses, f1s, curves, calibration, bars = (panels[x] for x in "ABCDE")
    figure.suptitle(title[-140:].replace("$", r"\$"), fontsize=13)
    most = np.argsort(-y.sum(0), kind="stable")[:MOST]
    draw_epochs(losses, f1s, log)
    for j, colour in zip(most, COLOURS, strict=False):
        if 0 < y[:, j].sum() < len(y):
            draw_label(curves, calibration, y[:, j], p[:, j], th[j], names[j], colour)
    draw_f1(bars, y, pred, draws, names)
    box = {"xlim": (0, 1.02), "ylim": (0, 1.02)}
    curves.set(title="Precision-recall (dot: chosen threshold)", **box)
    curves.set(xlabel="recall", ylabel="precision")
    calibration.plot([0, 1], [0, 1], ":", color="grey")
    calibration.set(title="Reliability (out-of-fold)", **box)
    calibration.set(xlabel="probability", ylabel="share of positives")
    for ax in panels.values():
        ax.grid(alpha=0.25)
        if ax.get_legend_handles_labels()[0]:
            ax.legend(fontsize=8, loc="best")
    figure.savefig(f, format="png", metadata={"Software": None})


def draw_epochs(losses, f1s, log: list[dict]) -> None:
    for k in sorted({r["fold"] for r in log}):
        rows, colour = [r for r in log if r["fold"] == k], COLOURS[k % len(COLOURS)]
        train, val, f1 = ([r[x] for r in rows] for x in ("train_loss", "val_loss", "macro_f1"))
        epochs = [r["epoch"] + 1 for r in rows]
        losses.plot(epochs, train, "o--", color=colour, lw=1.2, ms=3)
        losses.plot(epochs, val, "o-", color=colour, lw=1.6, ms=3)
        name = f"fold {k}" if k < 10 else None
        f1s.plot(epochs, f1, "o-", color=colour, lw=1.6, ms=4, label=name)
    ticks = sorted({r["epoch"] + 1 for r in log})
    ticks = ticks[:: max(1, len(ticks) // 10)]
    losses.set(title="Loss (dashed: training, solid: held out)", xlabel="epoch", xticks=ticks)
    f1s.set(title="Macro-F1 at 0.5, held-out rows", xlabel="epoch", xticks=ticks)


def draw_label(curves, calibration, y, p, th: float, name: str, colour: str) -> None:
    from sklearn.metrics import precision_recall_curve

    precision, recall, _ = precision_recall_curve(y, p)
    curves.plot(recall, precision, color=colour, lw=1.4, label=name)
    precision, recall, _ = metrics.precision_recall_f1(metrics.confusion(y, metrics.detect(p, th)))
    curves.plot(recall, precision, "o", color=colour, ms=7, mec="white")
    mean, share, error = metrics.reliability(y, p)
    label = f"{name} (ECE {error:.3f})"
    calibration.plot(mean, share, "o-", color=colour, lw=1.2, ms=3.5, label=label)


def draw_f1(bars, y, pred, draws, names: list[str]) -> None:
    order = np.argsort(y.sum(0), kind="stable")
    f1 = metrics.precision_recall_f1(metrics.confusion(y, pred))[2]
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    spread = np.abs(np.stack([f1 - low, high - f1]))[:, order]
    options = {"height": 0.6, "color": COLOURS[5], "ecolor": "black", "capsize": 3}
    bars.barh(range(len(order)), f1[order], xerr=spread, **options)
    labels = [f"{names[j]} ({int(y[:, j].sum())})" for j in order]
    bars.set_yticks(range(len(order)), labels, fontsize=min(10, 350 / len(order)))
    bars.set(title="Cross-fitted F1, 95 % interval (positives)", xlim=(0, 1))
