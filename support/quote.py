"""quote.md: what to write of a run in a text: one sentence, and the scores as two tables."""

import os
from pathlib import Path

import numpy as np

from config import Config
from data import OutOfFold
from support.report import number
from support.run import Run

HEADER = ["label", "precision", "recall", "F1", "95 % interval", "average precision", "support"]
MARKDOWN = {ord(letter): f"\\{letter}" for letter in "\\`*_<>[]|~&$#"}
LATEX = {ord(letter): f"\\{letter}" for letter in "_&%#${}"}
LATEX |= {ord("\\"): r"\textbackslash{}", ord("~"): r"\textasciitilde{}"}
LATEX |= {ord("^"): r"\textasciicircum{}", ord("|"): r"\textbar{}"}
LATEX |= {ord("<"): r"\textless{}", ord(">"): r"\textgreater{}"}
LATEX |= {ord("["): "{[}", ord("*"): "{*}"}  # after a \\ they would be arguments of it


def encoder_name(model: str) -> str:
    """A name of the Hub whole, of a folder its last part; of a fold its run, too."""
    if not os.path.isdir(model):
        return model
    path = Path(os.path.abspath(model))
    return f"{path.parent.name}/{path.name}" if path.name.startswith("fold_") else path.name


def training(config: Config) -> str:
    """How it was trained, such as `fine-tuned (5 folds, seed 42, best epoch)`."""
    folds = f"{config.folds} folds"
    if config.valid:
        folds = f"scored on {Path(config.valid).name}"
    elif config.folds == 1:
        folds = "one hold-out"
    elif config.fold_column:
        folds += f" of the column {config.fold_column}"
    elif config.group_column:
        folds += f", rows of one {config.group_column} together"
    words = [folds, f"seed {config.seed}"]
    if config.fold_seed != config.seed:
        words.append(f"split seed {config.fold_seed}")
    words.append(f"{config.keep} epoch")  # the best one: by the held-out rows
    teacher = getattr(config, "teacher", None)  # of tools/distil.py
    taught = f" and taught by {Path(teacher).name}" if teacher else ""
    return f"fine-tuned{taught} ({', '.join(words)})"


def sentence(config: Config, run: Run, values: dict, oof: OutOfFold, fold: np.ndarray) -> str:
    """What was reached, by what, on what, and how it was measured.

    values: `Summary.values`. fold (n,): as thresholds were cross-fitted (`threshold_folds`).
    """
    low, high = values["macro_f1_cross_fitted_ci95"]
    score = f"a cross-fitted macro-F1 of {values['macro_f1_cross_fitted']:.3f}"
    interval = f"(95 % interval {low:.3f} to {high:.3f}, percentile bootstrap over rows)"
    rows = f"{len(oof.y)} texts, each judged by a model and thresholds of the other folds"
    if config.folds == 1:
        parts = len(np.unique(fold))
        rows = f"{len(oof.y)} held-out texts, with thresholds cross-fitted in {parts} parts of them"
    if np.isnan(oof.y).any():
        rows += "; labels that are unknown are not counted"
    seen = run.identity["encoder_saw"]
    warning = f" The encoder had learned {seen} of the run's texts before: the score is too high."
    name = encoder_name(config.model)
    text = f"{name}, {training(config)}, reached {score} {interval} on {rows}."
    return text + (warning if seen else "")


def table_rows(values: dict) -> list[list[str]]:
    """A row of cells for each label, then macro and micro; all cross-fitted.

    The macro average precision is the mean of the labels that have one. Micro has no interval.
    """
    by_label = values["per_label"]
    rows = [cells_of(" ".join(name.split()), row) for name, row in by_label.items()]
    known = [row["average_precision"] for row in by_label.values()]
    known = [x for x in known if x is not None]
    for mean in ("macro", "micro"):
        row = {key: values[f"{mean}_{key}_cross_fitted"] for key in ("precision", "recall", "f1")}
        row["support"] = sum(row["support"] for row in by_label.values())
        row["f1_ci95"] = values.get(f"{mean}_f1_cross_fitted_ci95")
        row["average_precision"] = np.mean(known) if known and mean == "macro" else None
        rows.append(cells_of(mean, row))
    return rows


def cells_of(name: str, row: dict) -> list[str]:
    interval = "-"
    if row["f1_ci95"]:
        interval = " to ".join(number(x, 3) for x in row["f1_ci95"])
    scores = [number(row[key], 3) for key in ("precision", "recall", "f1")]
    return [name, *scores, interval, number(row["average_precision"], 3), str(row["support"])]


def markdown_table(rows: list[list[str]]) -> str:
    lines = [HEADER, ["---", *["---:"] * (len(HEADER) - 1)]]
    lines += [[name.translate(MARKDOWN), *cells] for name, *cells in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def latex_table(rows: list[list[str]], caption: str) -> str:
    """A table that needs no package. `tabcolsep`: else it is too wide for the class article."""
    lines = [" & ".join(cell.translate(LATEX) for cell in row) + r" \\" for row in [HEADER, *rows]]
    lines.insert(1, r"\hline")
    lines.insert(-2, r"\hline")  # before macro and micro
    columns = "l" + "r" * (len(HEADER) - 1)
    head = ["\\begin{table}", f"\\caption{{{caption.translate(LATEX)}}}", r"\centering"]
    head += [r"\small", r"\setlength{\tabcolsep}{4pt}"]
    head.append(f"\\begin{{tabular}}{{{columns}}}")
    return "\n".join([*head, *lines, r"\end{tabular}", r"\end{table}"])


def write_quote(path: Path, text: str, values: dict) -> None:
    """`text`: of `sentence`; values: `Summary.values`."""
    rows = table_rows(values)
    parts = [text, markdown_table(rows), f"```latex\n{latex_table(rows, text)}\n```"]
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
