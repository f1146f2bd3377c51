"""What a person looks at: data report, epoch lines, closing tables, report.png, errors.csv.

n out-of-fold rows, C labels: y, p and pred (n, C), th (C,); `pred` is the cross-fitted verdict.
"""

import os
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

import metrics
from config import Config
from data import EmotionDataset, OutOfFold, Table
from metrics import Summary
from support import fonts
from support.csvwriter import csv_text
from support.encoders import EncoderInfo
from support.process import warn
from support.splits import warn_of_common_text

# Okabe and Ito's colours, told apart by colour-blind readers (https://jfly.uni-koeln.de/color/)
COLOURS = "#0072B2 #D55E00 #009E73 #CC79A7 #E69F00 #56B4E9 #000000 #999933".split()  # noqa: SIM905
MOST = 8  # labels drawn as curves; all of them stand in the bars
ERRORS = 100_000  # lines of errors.csv at most


def print_settings(config: Config, encoder_info: EncoderInfo) -> None:
    print(
        f"device {config.device} ({torch.get_num_threads()} threads) | {config.precision}"
        f" | encoder {config.model} ({encoder_info.kind}),"
        f" {encoder_info.num_parameters:,} parameters"
        f" | lr {config.lr:g} | epochs {config.epochs} | pooling {config.pooling}"
    )


def print_data(
    table: Table, names: list[str], dataset: EmotionDataset, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Print what a person wants to know of the data before training; warn of what looks wrong."""
    n = len(table) - table.unlabelled
    y, fold = table.y[:n], table.fold[:n]
    lengths = dataset.lengths
    _, text, copies = np.unique(table.hashes[:n], return_inverse=True, return_counts=True)
    coded = np.nan_to_num(y, nan=-1)
    if (coded < 0).any():  # a gap is what a copy of the text has there
        of_text = np.full((len(copies), y.shape[1]), -1.0)
        np.maximum.at(of_text, text, coded)
        coded = np.where(coded < 0, of_text[text], coded)
    combinations = [bytes(row) for row in coded.astype(np.int8)]  # of labels, by row
    conflicts = len(set(zip(text.tolist(), combinations, strict=True))) - len(copies)
    unknown = np.mean(dataset.token_ids == tokenizer.unk_token_id)  # ModernBERT has none: 0
    first = tokenizer.convert_ids_to_tokens(dataset[0]["input_ids"].tolist())
    print(
        f"rows {n} | label combinations {len(set(combinations))}"
        f" | rows with no label {1 - (y > 0).any(1).mean():.1%}"
        f" | duplicate texts {n - len(copies)} ({conflicts} with other labels)"
    )
    print(
        f"tokens per text: median {int(np.median(lengths))}, longest {lengths.max()}"
        f" | cut at --max-length: {dataset.truncated / len(table):.1%}"
        f" | unknown tokens: {unknown:.2%}"
    )
    print_labels(y, fold, names)
    warn_of_common_text(table, names)
    if unknown > 0.05:
        share = f"{unknown:.1%} of the tokens"
        warn(f"{share} are unknown to this tokenizer (emoji or another script?)")
    print("row 0: " + " ".join(first)[:200], flush=True)


def print_labels(y: np.ndarray, fold: np.ndarray, names: list[str]) -> None:
    """The share of each label in its known cells, its positives in each fold, its unknown cells;
    a warning where it has few positives, or no negatives."""
    positive, negative = metrics.both_classes(y)
    unknown = np.isnan(y).sum(0)
    numbers = np.unique(fold)  # -1: never held out
    head = f"label: share (positives {'never held out, ' if -1 in numbers else ''}in each fold)"
    print(head + (", cells that are unknown" if unknown.any() else ""))
    for j, name in enumerate(names):
        positives = {k: int(positive[fold == k, j].sum()) for k in numbers}
        share = positive[:, j].sum() / max(1, len(y) - unknown[j])
        gaps = f", {unknown[j]} unknown" if unknown.any() else ""
        print(f"  {name:<12} {share:.3f} ({' '.join(map(str, positives.values()))}){gaps}")
        total = sum(positives.values())
        held_out = [positives[k] for k in numbers if k >= 0]
        # None to train on, none to score, or fewer than a score can rest on.
        if total == max(held_out) or not any(held_out) or total < max(5, len(held_out)):
            few = f"{total} positives for {len(held_out)} folds, {sum(held_out)} of them held out"
            warn(f"label {name}: {few} - its scores will mean little")
        elif not negative[:, j].any():
            rows = f"all {total} {'known ' if unknown[j] else ''}rows have it"
            warn(f"label {name}: {rows} - its scores will mean little")


def fold_line(k: int, train_rows: int, val_rows: int, size: str) -> str:
    return f"fold {k}: {train_rows} rows to train on, {val_rows} held out | {size}"


def epoch_line(row: dict, epochs: int) -> str:
    losses = f"train loss {row['train_loss']:.4f} | val loss {row['val_loss']:.4f}"
    scores = f"exact match {row['exact_match']:.4f} | macro-F1 {row['macro_f1']:.4f}"
    head = f"fold {row['fold']} epoch {row['epoch'] + 1:>2}/{epochs}"
    return f"{head} | {losses} | {scores} | lr {row['lr']:.1e} | {row['rows_per_s']:.0f} rows/s"


def warn_of_undetected(by_label: dict[str, dict]) -> None:
    """`by_label`: see `metrics.per_label`, of cross-fitted verdicts."""
    for name, row in by_label.items():
        if row["support"] and not row["tp"] + row["fp"]:
            threshold = f"its threshold is {row['threshold']:.3g}"
            hint = "see --thresholds, --pos-weight, or add rows that have it"
            warn(f"label {name} is detected in no held-out row; {threshold} - {hint}")


def label_table(by_label: dict[str, dict]) -> str:
    """`metrics.per_label` as text, one line a label."""
    width = max(5, *map(len, by_label))
    head = "Precision | Recall |     F1 | Avg prec | ROC-AUC | Threshold | Support"
    lines = [f"{'Label':<{width}} | {head}"]
    for name, row in by_label.items():
        cells = [
            f"{name:<{width}}",
            f"   {row['precision']:.4f}",
            f"{row['recall']:.4f}",
            f"{row['f1']:.4f}",
            f"{number(row.get('average_precision')):>8}",
            f"{number(row.get('roc_auc')):>7}",
            f"{row['threshold']:9.3f}",
            f"{row['support']:7d}",
        ]
        lines.append(" | ".join(cells))
    return "\n".join(lines)


def number(x: float | None) -> str:
    return "-" if x is None else f"{x:.4f}"


def scores_of_counts(
    counts: np.ndarray, exact: np.ndarray, th: np.ndarray, names: list[str]
) -> str:
    """What predict.py says of labelled rows, from the counts (4, C) of `metrics.confusion`.

    `exact`: of `metrics.exact_matches`.
    """
    if not counts.sum():
        return "no row to score"
    right, rows = exact
    scores = metrics.printed(metrics.scores_from_counts(counts, right / max(1, rows)))
    line = " | ".join(f"{name} {score:.4f}" for name, score in scores.items())
    return label_table(metrics.table_from_counts(counts, th, names)) + "\n" + line


def text_lines(answer: dict) -> str:
    """One text as `predict.py --text` shows it."""
    lines = [f"Text: {answer['text']}"]
    lines += [f"  {name:<12} {p:.4f}" for name, p in answer["probabilities"].items()]
    lines.append(f"Detected emotions: {', '.join(answer['emotions']) or 'None'}")
    return "\n".join(lines)


WAYS = {
    "at_half": "at 0.5",
    "tuned": "tuned on the same rows (optimistic)",
    "cross_fitted": "cross-fitted (quote this one)",
}


def closing_table(values: dict) -> str:
    """`Summary.values` as text: by label, the thresholds, and the three ways to score."""
    thresholds = [f"{name} {row['threshold']:.3f}" for name, row in values["per_label"].items()]
    tuned = [name.removesuffix("_tuned") for name in values if name.endswith("_tuned")]
    scores = list(metrics.printed(dict.fromkeys(tuned)))
    titles = [name.replace("_f", "-F").replace("_", " ") for name in scores]
    lines = [label_table(values["per_label"]), f"thresholds: {', '.join(thresholds)}"]
    lines.append(" | ".join([f"{'out-of-fold':<35}", *titles]))
    for way, note in WAYS.items():
        cells = [f"{note:<35}"]
        for name, title in zip(scores, titles, strict=True):
            cells.append(f"{values[f'{name}_{way}']:{len(title)}.4f}")
        lines.append(" | ".join(cells))
    low, high = values["macro_f1_cross_fitted_ci95"]
    score = f"cross-fitted macro-F1 {values['macro_f1_cross_fitted']:.4f}"
    spread = f"standard deviation over folds {values['macro_f1_cross_fitted_fold_std']:.4f}"
    lines.append(f"{score}, 95 % interval {low:.4f} to {high:.4f}, {spread}")
    return "\n".join(lines)


def title(model: str, values: dict, rows: int) -> str:
    low, high = values["macro_f1_cross_fitted_ci95"]
    score = f"{values['macro_f1_cross_fitted']:.3f} [{low:.3f}, {high:.3f}]"
    return f"{model}: cross-fitted macro-F1 {score}, {rows} rows"


def write_oof(folder: Path, table: Table, oof: OutOfFold, names: list[str]) -> None:
    """oof.csv: of every held-out row id, fold, probabilities, group and the labels given: empty
    where they are unknown.

    Rows of equal group belong together: copies of a text, rows of one cell of --group-column.
    A row's number is the same in all runs on these rows: of several folds it depends on the rows
    held out alone, of a hold-out, which differs by seed, on all that could be.
    """
    counted = np.zeros(len(table), bool) if oof.fold.any() else table.scored
    counted[oof.rows] = True  # rows without a known label, too
    group = np.zeros(len(table), int)
    group[counted] = np.unique(table.groups[counted], return_inverse=True)[1]
    header = ["id", "fold", *names]
    for name in ("group", *(f"given_{name}" for name in names)):
        while name in header:  # a label may be called so
            name += "_"
        header.append(name)
    lines = [header]
    for i, k, p in zip(oof.rows, oof.fold, oof.p, strict=True):
        numbers = [f"{x:.9g}".replace("nan", "") for x in [*p, group[i], *table.targets[i]]]
        lines.append([table.ids[i], k, *numbers])
    (folder / "oof.csv").write_bytes(csv_text(lines).encode())


def write_likely_errors(
    folder: Path, table: Table, oof: OutOfFold, pred: np.ndarray, names: list[str]
) -> None:
    """errors.csv: known (row, label) cells by out-of-fold loss, the likeliest mistakes first.

    pred (n, C): the cross-fitted verdicts. With a byte order mark, by which Excel knows UTF-8.
    """
    right = np.where(oof.y > 0, oof.p, 1 - oof.p).astype(np.float64)  # of the label given
    right[np.isnan(oof.y)] = np.nan  # they come last
    cells = np.argsort(right, axis=None, kind="stable")[: np.isfinite(right).sum()]
    lines = [["id", "fold", "label", "given", "verdict", "probability", "loss", "text"]]
    for cell in cells[:ERRORS].tolist():
        i, j = divmod(cell, len(names))
        row = oof.rows[i]
        loss = -np.log(max(right[i, j], 1e-12))
        lines.append(
            [
                table.ids[row],
                int(oof.fold[i]),
                names[j],
                int(oof.y[i, j]),
                int(pred[i, j]),
                f"{oof.p[i, j]:.6f}",
                f"{loss:.4f}",
                table.texts[row],
            ]
        )
    (folder / "errors.csv").write_bytes(csv_text(lines).encode("utf-8-sig"))


def draw_report(
    path: Path, log: list[dict], oof: OutOfFold, summary: Summary, names: list[str], heading: str
) -> None:
    """report.png, or a warning: the scores of a whole training must not be lost to a picture."""
    try:
        draw_figure(path, log, oof, summary, names, heading)
    except OSError:  # a full disk
        raise
    except Exception as e:
        path.unlink(missing_ok=True)
        reason = " ".join(f"{type(e).__name__}: {e}".split())[:200]
        warn(f"{path.name} can't be drawn ({reason}) - see your matplotlibrc; all else is there")


def draw_figure(
    path: Path, log: list[dict], oof: OutOfFold, summary: Summary, names: list[str], heading: str
) -> None:
    """Five panels: losses, macro-F1, precision-recall, reliability, F1 per label."""
    if not os.environ.get("MPLBACKEND", "").startswith("module://"):  # a notebook's stays
        os.environ.pop("MPLBACKEND", None)  # it may name one that is unknown here
    from matplotlib import rc_context, rcParams
    from matplotlib.figure import Figure

    names = [" ".join(name.split())[:24] for name in names]  # 300 letters leave no room for axes
    heading = heading[-140:]
    families, missing = fonts.fonts_for([*names, heading])
    heading = "".join("?" if letter in missing else letter for letter in heading)
    with rc_context({"font.family": [*rcParams["font.family"], *families]}):
        figure = Figure(figsize=(13, 7.6), dpi=100, layout="constrained")
        figure.suptitle(heading.replace("$", r"\$"), fontsize=13)  # $: it would read mathematics
        drawn = fonts.drawable(names, missing)
        if drawn != names:
            figure.supxlabel(fonts.NOTE, fontsize=10)
        draw_panels(figure, log, oof, summary, [name.replace("$", r"\$") for name in drawn])
        figure.savefig(path, format="png", metadata={"Software": None})


def draw_panels(
    figure, log: list[dict], oof: OutOfFold, summary: Summary, names: list[str]
) -> None:
    panels = figure.subplot_mosaic("ABE;CDE")  # E, with a bar for every label, is the tall one
    draw_losses(panels["A"], log)
    draw_macro_f1(panels["B"], log)
    positives, known = metrics.known_sums(oof.y)
    for j, colour in zip(np.argsort(-positives, kind="stable")[:MOST], COLOURS, strict=False):
        if 0 < positives[j] < known[j]:
            y, p = metrics.known_cells(oof.y[:, j], oof.p[:, j])
            draw_precision_recall(panels["C"], y, p, summary.th[j], names[j], colour)
            draw_reliability(panels["D"], y, p, names[j], colour)
    draw_f1(panels["E"], oof.y, summary, names)
    square = {"xlim": (0, 1.02), "ylim": (0, 1.02)}
    panels["C"].set(title="Precision-recall (dot: chosen threshold)", **square)
    panels["C"].set(xlabel="recall", ylabel="precision")
    panels["D"].plot([0, 1], [0, 1], ":", color="grey")
    panels["D"].set(title="Reliability (out-of-fold)", **square)
    panels["D"].set(xlabel="probability", ylabel="share of positives")
    for ax in panels.values():
        ax.grid(alpha=0.25)
        if ax.get_legend_handles_labels()[0]:
            ax.legend(fontsize=8, loc="best")


def by_fold(log: list[dict]) -> list[tuple[int, list[dict], str]]:
    """(fold, its rows of the log, its colour)."""
    numbers = sorted({row["fold"] for row in log})
    return [(k, [r for r in log if r["fold"] == k], COLOURS[k % len(COLOURS)]) for k in numbers]


def epoch_ticks(log: list[dict]) -> list[int]:
    ticks = sorted({row["epoch"] + 1 for row in log})
    return ticks[:: max(1, len(ticks) // 10)]


def draw_losses(ax, log: list[dict]) -> None:
    for _, rows, colour in by_fold(log):
        epochs = [row["epoch"] + 1 for row in rows]
        train = [row["train_loss"] for row in rows]
        held_out = [row["val_loss"] for row in rows]
        ax.plot(epochs, train, "o--", color=colour, lw=1.2, ms=3)
        ax.plot(epochs, held_out, "o-", color=colour, lw=1.6, ms=3)
    ax.set(title="Loss (dashed: training, solid: held out)", xlabel="epoch")
    ax.set(xticks=epoch_ticks(log))


def draw_macro_f1(ax, log: list[dict]) -> None:
    for k, rows, colour in by_fold(log):
        epochs = [row["epoch"] + 1 for row in rows]
        f1 = [row["macro_f1"] for row in rows]
        name = f"fold {k}" if k < 10 else None
        ax.plot(epochs, f1, "o-", color=colour, lw=1.6, ms=4, label=name)
    ax.set(title="Macro-F1 at 0.5, held-out rows", xlabel="epoch", xticks=epoch_ticks(log))


def draw_precision_recall(ax, y, p, th: float, name: str, colour: str) -> None:
    """One label's curve, and a dot at its threshold. y, p (n,)."""
    from sklearn.metrics import precision_recall_curve

    precision, recall, _ = precision_recall_curve(y, p)
    ax.plot(recall, precision, color=colour, lw=1.4, label=name)
    counts = metrics.confusion(y, metrics.detect(p, th))
    precision, recall, _ = metrics.precision_recall_f1(counts)
    ax.plot(recall, precision, "o", color=colour, ms=7, mec="white")


def draw_reliability(ax, y, p, name: str, colour: str) -> None:
    mean, share, error = metrics.reliability(y, p)
    label = f"{name} (ECE {error:.3f})"
    ax.plot(mean, share, "o-", color=colour, lw=1.2, ms=3.5, label=label)


def draw_f1(ax, y: np.ndarray, summary: Summary, names: list[str]) -> None:
    """A bar for each label, the most frequent on top."""
    positives, _ = metrics.known_sums(y)
    order = np.argsort(positives, kind="stable")
    f1 = metrics.precision_recall_f1(metrics.confusion(y, summary.pred))[2]
    low, high = np.quantile(summary.draws, [0.025, 0.975], axis=0)
    spread = np.abs(np.stack([f1 - low, high - f1]))
    ax.barh(
        range(len(order)),
        f1[order],
        xerr=spread[:, order].tolist(),  # matplotlib 3.9 takes an array of one for a number
        height=0.6,
        color=COLOURS[5],
        ecolor="black",
        capsize=3,
    )
    labels = [f"{names[j]} ({int(positives[j])})" for j in order]
    ax.set_yticks(range(len(order)), labels, fontsize=min(10, 350 / len(order)))
    ax.set(title="Cross-fitted F1, 95 % interval (positives)", xlim=(0, 1))
