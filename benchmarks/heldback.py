"""Does the number that is printed hold on new rows? python benchmarks/heldback.py CSV DIR

Each repetition holds a third of the rows back, trains the folds on the rest by train.py, and keeps
the probabilities of every epoch in DIR/<repetition>.npz (what is there is not trained again). From
the same runs come all tables: the printed number minus the truth, which is what predict.py gets on
the rows held back, for each way to choose the epoch; and other thresholds. Flags of train.py are
for it. --rows: so many rows of the CSV, other ones each time. --notebook: folds that ignore copies,
thresholds scored where they were chosen; with --doubled, a third of the training rows stand twice.

N rows to train on in K folds, M held back, C labels, E epochs.
"""

import argparse
import dataclasses
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from measure import HERE, flag_parser

sys.path.insert(0, str(HERE))

import numpy as np
from sklearn.model_selection import KFold

import data
import metrics
import train
from config import Config
from data import DataCollator, Table, assign_folds, encode, read_table
from model import EmotionClassifier, run_over_rows, sigmoid
from support.checkpoint import Checkpoint
from support.cli import parse
from support.csvwriter import csv_text
from support.device import resolve_device
from support.process import exit_codes

RULES = {"best": "best of each fold", "last": "last"}  # which epoch is kept
DEFAULT = "the run's own, on the mean of the probabilities"


@dataclass
class Repetition:
    y: np.ndarray  # float32 (N, C)
    fold: np.ndarray  # int16 (N,)
    truth: np.ndarray  # float32 (M, C): the labels of the rows held back
    log: np.ndarray  # float32 (E, K, 2): macro-F1 and loss
    oof: np.ndarray  # float32 (E, N, C): out-of-fold probabilities
    new: np.ndarray  # float32 (E, K, M, C): each fold's probabilities of the rows held back

    def epochs(self, rule: str) -> list[int]:
        """The epoch that each fold keeps: best macro-F1, then the lower loss; or the last."""
        epochs, folds, _ = self.log.shape
        if rule == "last":
            return [epochs - 1] * folds
        kept = []
        for k in range(folds):
            f1, loss = self.log[:, k].T
            kept.append(max(range(epochs), key=lambda e, f1=f1, loss=loss: (f1[e], -loss[e])))
        return kept

    def kept(self, rule: str) -> tuple[np.ndarray, np.ndarray]:
        """Out-of-fold probabilities (N, C), and each fold's of the rows held back (K, M, C)."""
        p = np.zeros_like(self.y)
        new = []
        for k, e in enumerate(self.epochs(rule)):
            held_out = self.fold == k
            p[held_out] = self.oof[e, held_out]
            new.append(self.new[e, k])
        return p, np.stack(new)


# Training


def assign_anyhow(y: np.ndarray, hashes: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """`assign_folds` in the notebook's way: copies of a text part."""
    fold = np.zeros(len(y), np.int16)
    parts = KFold(folds, shuffle=True, random_state=seed).split(fold)
    for k, (_, held_out) in enumerate(parts):
        fold[held_out] = k
    return fold


def repeat(args: argparse.Namespace, flags: list[str], seed: int) -> Repetition:
    config = parse(Config, flags)
    table = read_table(args.csv, config)
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.permutation(len(table))[: args.rows])
    held_back = assign_folds(table.y[rows], table.hashes[rows], 3, seed) == 0
    new_rows = rows[held_back]
    rows = rows[~held_back]
    assign = assign_folds
    if args.doubled:
        rows = np.concatenate([rows, rng.choice(rows, len(rows) // 3, replace=False)])
    if args.notebook:
        assign = assign_anyhow
    new_inputs = [table.inputs[i] for i in new_rows]
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(data, "assign_folds", assign):
        path = Path(folder, "train.csv")
        write_rows(path, table, rows, config.labels)
        own = ["--folds", str(args.folds), "--seed", str(seed), "--jobs", "1"]
        # --keep last writes every epoch, so that it can be read as predict.py reads it.
        own += ["--keep", "last", "--train", str(path), "--out", f"{folder}/run"]
        epochs = train_and_watch([*flags, *own], config, new_inputs)
    y = table.y[rows]
    fold = assign(y, table.hashes[rows], args.folds, seed)  # as train.py has done
    return collect(epochs, y, fold, table.y[new_rows])


def write_rows(path: Path, table: Table, rows: np.ndarray, names: list[str]) -> None:
    lines = [["id", table.text_column, *names]]
    lines += [[str(i), table.texts[i], *table.y[i].astype(int)] for i in rows.tolist()]
    path.write_text(csv_text(lines), encoding="utf-8")


class Epoch(NamedTuple):
    """What one fold kept after one epoch."""

    row: dict  # of log.jsonl
    y_prob: np.ndarray  # of the held-out rows
    new: np.ndarray  # (M, C): of the rows held back


def train_and_watch(
    argv: list[str], config: Config, new_inputs: list[str]
) -> dict[tuple[int, int], Epoch]:
    """Run train.py; by fold and epoch, what it kept."""
    device, precision = resolve_device(config.device, config.precision)
    config = dataclasses.replace(config, device=device, precision=precision)
    keep = Checkpoint.keep
    epochs = {}

    def keep_and_predict(self, row: dict, y_prob: np.ndarray, model, tokenizer) -> None:
        keep(self, row, y_prob, model, tokenizer)
        saved = EmotionClassifier.load(self.folder, config)
        dataset = encode(tokenizer, new_inputs, config.max_length)
        collate = DataCollator.of(tokenizer, config)
        logits, _ = run_over_rows(saved.to(device), dataset, collate)
        epochs[row["fold"], row["epoch"]] = Epoch(row, y_prob, sigmoid(logits))

    with mock.patch.object(Checkpoint, "keep", keep_and_predict):
        if code := train.main(argv):
            sys.exit(code)
    return epochs


def collect(
    epochs: dict[tuple[int, int], Epoch], y: np.ndarray, fold: np.ndarray, truth: np.ndarray
) -> Repetition:
    K = int(fold.max()) + 1
    E = len(epochs) // K
    N, C = y.shape
    log = np.zeros((E, K, 2), np.float32)
    oof = np.zeros((E, N, C), np.float32)
    new = np.zeros((E, K, len(truth), C), np.float32)
    for (k, e), epoch in epochs.items():
        log[e, k] = epoch.row["macro_f1"], epoch.row["val_loss"]
        oof[e, fold == k] = epoch.y_prob
        new[e, k] = epoch.new
    return Repetition(y.astype(np.float32), fold, truth.astype(np.float32), log, oof, new)


# Tables


def macro_f1(y: np.ndarray, pred: np.ndarray) -> float:
    return metrics.scores(y, pred)["macro_f1"]


def first_best(y: np.ndarray, p: np.ndarray) -> np.ndarray:
    """The lowest threshold with the best F1, as the notebook has it."""
    return metrics.GRID[metrics.f1_by_threshold(y, p).argmax(1)]


class Comparison(NamedTuple):
    """Macro-F1 that is printed, and on the rows held back."""

    printed: float
    one_fold: float  # of one fold's model, the mean over the folds
    average: float  # of the folds' mean probability
    covered: bool  # whether 0 is in the interval of printed - average


def compare(repetition: Repetition, rule: str, notebook: bool) -> Comparison:
    y = repetition.y
    truth = repetition.truth
    p, new = repetition.kept(rule)
    if notebook:
        th = first_best(y, p)
        pred = metrics.detect(p, th)
    else:
        th = metrics.tune_thresholds(y, p)
        pred = metrics.cross_fit(y, p, repetition.fold)
    new_pred = metrics.detect(new.mean(0), th)
    printed_draws = metrics.bootstrap_f1(y, pred, seed=0).mean(1)
    new_draws = metrics.bootstrap_f1(truth, new_pred, seed=1).mean(1)
    low, high = metrics.interval(printed_draws - new_draws)
    one_fold = np.mean([macro_f1(truth, metrics.detect(fold_p, th)) for fold_p in new])
    average = macro_f1(truth, new_pred)
    return Comparison(macro_f1(y, pred), one_fold, average, low <= 0 <= high)


def transferred(new: np.ndarray, th: np.ndarray) -> np.ndarray:
    """Thresholds of the mean of the folds that detect as many rows as th does of single folds."""
    share = np.mean([metrics.detect(fold_p, th).mean(0) for fold_p in new], 0)
    mean = new.mean(0)
    return np.float32([np.quantile(mean[:, j], 1 - share[j]) for j in range(len(th))])


def other_thresholds(repetition: Repetition) -> dict[str, float]:
    """Macro-F1 on the rows held back, by way."""
    truth = repetition.truth
    p, new = repetition.kept("best")
    th = metrics.tune_thresholds(repetition.y, p)
    mean = new.mean(0)
    mean_of_logits = sigmoid(metrics.logit(new).mean(0))
    best = metrics.tune_thresholds(truth, mean)
    verdicts = {
        DEFAULT: metrics.detect(mean, th),
        "... on the mean of the logits": metrics.detect(mean_of_logits, th),
        "by the share detected": metrics.detect(mean, transferred(new, th)),
        "0.5 for all": metrics.detect(mean, np.float32(0.5)),
        "chosen on the rows held back (not to be had)": metrics.detect(mean, best),
    }
    return {name: macro_f1(truth, pred) for name, pred in verdicts.items()}


def mean_and_deviation(differences: np.ndarray) -> str:
    deviation = np.std(differences, ddof=1) if len(differences) > 1 else 0.0
    return f"{np.mean(differences):+.4f} ({deviation:.4f})"


def print_tables(repetitions: list[Repetition], notebook: bool) -> None:
    n = len(repetitions)
    print(f"\n{n} repetitions; in brackets the standard deviation of a difference\n")
    print("| epoch kept | printed | one fold | average | printed - average | covers 0 |")
    print("|---|---:|---:|---:|---:|---:|")
    for rule, name in RULES.items():
        comparisons = [compare(repetition, rule, notebook) for repetition in repetitions]
        printed, one_fold, average, covered = np.array(comparisons).T
        means = f"{printed.mean():.4f} | {one_fold.mean():.4f} | {average.mean():.4f}"
        gap = mean_and_deviation(printed - average)
        print(f"| {name} | {means} | {gap} | {int(covered.sum())} of {n} |")
    print("\n| thresholds (best epoch) | macro-F1 | to the run's own |\n|---|---:|---:|")
    scores = [other_thresholds(repetition) for repetition in repetitions]
    default = np.array([by_way[DEFAULT] for by_way in scores])
    for name in scores[0]:
        values = np.array([by_way[name] for by_way in scores])
        gap = "" if name == DEFAULT else mean_and_deviation(values - default)
        print(f"| {name} | {values.mean():.4f} | {gap} |", flush=True)


@exit_codes
def main(argv: list[str] | None = None) -> int:
    parser = flag_parser(__doc__)
    parser.add_argument("csv")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--notebook", action="store_true")
    parser.add_argument("--doubled", action="store_true")
    args, flags = parser.parse_known_args(argv)
    args.folder.mkdir(parents=True, exist_ok=True)
    repetitions = []
    for seed in range(args.repeats):
        path = args.folder / f"{seed}.npz"
        if not path.exists():
            temporary = args.folder / "new.npz"
            np.savez_compressed(temporary, **vars(repeat(args, flags, seed)))
            temporary.rename(path)
        repetitions.append(Repetition(**np.load(path)))
        print_tables(repetitions, args.notebook)
    return 0


if __name__ == "__main__":
    sys.exit(main())
