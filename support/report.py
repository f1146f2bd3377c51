"""What a person looks at: data report, epoch lines, closing tables, oof.csv, errors.csv.

n out-of-fold rows, C labels: y, p and pred (n, C), th (C,); `pred` is the cross-fitted verdict.
"""

from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

import metrics
from config import Config
from data import EmotionDataset, OutOfFold, Table
from support.csvwriter import csv_text
from support.encoders import EncoderInfo
from support.process import warn
from support.splits import warn_of_common_text

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


def warn_of_noisy_thresholds(values: dict) -> None:
    """Where they cost more than half the width of the interval. values: `Summary.values`."""
    low, high = values["macro_f1_cross_fitted_ci95"]
    crossed = values["macro_f1_cross_fitted"]
    at_half = values["macro_f1_at_half"]
    if at_half - crossed > (high - low) / 2:
        scores = f"macro-F1 at 0.5 {at_half:.4f}, cross-fitted {crossed:.4f}"
        hint = "--thresholds 0.5 may do as well; cross-fitted is still the score to quote"
        warn(f"thresholds are noisy here (few positives): {scores} - {hint}")


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


def number(x: float | None, digits: int = 4) -> str:
    return "-" if x is None else f"{x:.{digits}f}"


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


def closing_table(values: dict, folds: int) -> str:
    """`Summary.values` as text: by label, the thresholds, and the three ways to score."""
    thresholds = [f"{name} {row['threshold']:.3f}" for name, row in values["per_label"].items()]
    tuned = [name.removesuffix("_tuned") for name in values if name.endswith("_tuned")]
    scores = list(metrics.printed(dict.fromkeys(tuned)))
    titles = [name.replace("_f", "-F").replace("_", " ") for name in scores]
    lines = ["by label, cross-fitted (Threshold: for new texts, chosen on all held-out rows):"]
    lines += [label_table(values["per_label"]), f"thresholds: {', '.join(thresholds)}"]
    lines.append(" | ".join([f"{'out-of-fold':<35}", *titles]))
    for way, note in WAYS.items():
        cells = [f"{note:<35}"]
        for name, title in zip(scores, titles, strict=True):
            cells.append(f"{values[f'{name}_{way}']:{len(title)}.4f}")
        lines.append(" | ".join(cells))
    low, high = values["macro_f1_cross_fitted_ci95"]
    score = f"cross-fitted macro-F1 {values['macro_f1_cross_fitted']:.4f}"
    parts = "folds" if folds > 1 else "parts of the held-out rows"
    spread = f"standard deviation over {parts} {values['macro_f1_cross_fitted_fold_std']:.4f}"
    spread += " (how far they differ, not the score's error)"
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
