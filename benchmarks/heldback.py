"""Does the number that is printed hold on new rows? python benchmarks/heldback.py CSV DIR

Each repetition holds a third of the rows back, trains the folds on the rest by train.py, and keeps
the probabilities of every epoch in DIR/<repetition>.npz (what is there is not trained again). From
the same runs come all tables: the printed number minus the truth, which is what predict.py gets on
the rows held back, for each way to choose the epoch; and other thresholds. Flags of train.py are
for it. --rows: so many rows of the CSV, other ones each time. --notebook: a third of the training
rows doubled, folds that ignore copies, thresholds scored where they were chosen.
"""

import dataclasses
import sys
import tempfile
from pathlib import Path

from measure import HERE, flag_parser

sys.path.insert(0, str(HERE))

import numpy as np
from sklearn.model_selection import KFold

import metrics
import data
import train
from config import Config
from data import DataCollator, assign_folds, encode, read_table
from model import EmotionClassifier, run_over_rows, sigmoid
from support.checkpoint import Checkpoint
from support.cli import parse
from support.output import csv_text
from support.speed import resolve_device

RULES = {"best": "best of each fold", "last": "last"}
DEFAULT = "the run's own, on the mean of the probabilities"


def deal_anyhow(labels, hashes, folds: int, seed: int) -> np.ndarray:
    """Folds in the notebook's way: copies of a text part."""
    fold = np.zeros(len(labels), np.int16)
    for k, (_, part) in enumerate(KFold(folds, shuffle=True, random_state=seed).split(fold)):
        fold[part] = k
    return fold


def repetition(args, seed: int) -> dict[str, np.ndarray]:
    """y (N, C), fold (N,), truth (M, C); by epoch and fold: log (E, K, 2) of macro-F1 and loss,
    oof (E, N, C) out-of-fold probabilities, new (E, K, M, C) those of the rows held back."""
    config = parse(Config, args.flags)
    table, rng = read_table(args.csv, config), np.random.default_rng(seed)
    rows = np.sort(rng.permutation(len(table))[: args.rows])
    y = table.labels[rows]
    held = assign_folds(y, table.hashes[rows], 3, seed) == 0
    kept = rows[~held]
    if args.notebook:
        kept = np.concatenate([kept, rng.choice(kept, len(kept) // 3, replace=False)])
    deal = data.assign_folds = deal_anyhow if args.notebook else assign_folds
    lines = [[str(i), table.texts[i], *table.labels[i].astype(int)] for i in kept.tolist()]
    with tempfile.TemporaryDirectory() as d:
        path, how = Path(d, "train.csv"), ["--folds", str(args.folds), "--seed", str(seed)]
        path.write_text(csv_text([["id", table.text_column, *config.labels], *lines]))
        new = [table.inputs[i] for i in rows[held]]
        # --keep last writes every epoch, so that it can be read as predict.py reads it.
        argv = [*args.flags, *how, "--keep", "last", "--train", str(path), "--out", f"{d}/run"]
        epochs = train_and_watch(argv, config, new)
    labels = table.labels[kept]
    fold = deal(labels, table.hashes[kept], args.folds, seed)
    E, K, C = len(epochs) // args.folds, args.folds, labels.shape[1]
    out = {"y": labels, "fold": fold, "truth": y[held], "log": np.zeros((E, K, 2))}
    out |= {"oof": np.zeros((E, len(kept), C)), "new": np.zeros((E, K, len(new), C))}
    for (k, e), (row, y_prob, p) in epochs.items():
        out["oof"][e, fold == k], out["new"][e, k] = y_prob, p
        out["log"][e, k] = row["macro_f1"], row["val_loss"]
    return {name: x.astype(np.int16 if name == "fold" else np.float32) for name, x in out.items()}


def train_and_watch(argv: list[str], config: Config, new: list[str]) -> dict:
    """Run train.py. (fold, epoch) -> its line of the log, out-of-fold probabilities, new rows'."""
    keep, epochs = Checkpoint.keep, {}
    device, precision = resolve_device(config.device, config.precision)
    config = dataclasses.replace(config, device=device, precision=precision)

    def watched(self, row, y_prob, model, tokenizer) -> None:
        keep(self, row, y_prob, model, tokenizer)
        saved = EmotionClassifier.load(self.folder, len(config.labels), config.pooling)
        dataset = encode(tokenizer, new, config.max_length)
        pad_id = tokenizer.pad_token_id
        collate = DataCollator(pad_id, config.max_length, device, precision)
        logits, _ = run_over_rows(saved.to(device), dataset, collate, config)
        epochs[row["fold"], row["epoch"]] = row, y_prob, sigmoid(logits)

    Checkpoint.keep = watched
    try:
        if code := train.main(argv):
            sys.exit(code)
    finally:
        Checkpoint.keep = keep
    return epochs


def epochs_of(log: np.ndarray, rule: str) -> list[int]:
    """The epoch of each fold: best macro-F1, or the last."""
    if rule == "last":
        return [len(log) - 1] * log.shape[1]
    rank = lambda k: lambda e: (log[e, k, 0], -log[e, k, 1])  # noqa: E731
    return [max(range(len(log)), key=rank(k)) for k in range(log.shape[1])]


def assembled(r: dict, rule: str) -> tuple[np.ndarray, np.ndarray]:
    """Out-of-fold probabilities (N, C) and each fold's on the rows held back (K, M, C)."""
    epochs, p = epochs_of(r["log"], rule), np.zeros_like(r["y"])
    for k, e in enumerate(epochs):
        p[r["fold"] == k] = r["oof"][e][r["fold"] == k]
    return p, np.stack([r["new"][e, k] for k, e in enumerate(epochs)])


def macro(y: np.ndarray, pred: np.ndarray) -> float:
    return metrics.scores(y, pred)["macro_f1"]


def first_best(y: np.ndarray, p: np.ndarray) -> np.ndarray:
    """The lowest threshold with the best F1, as the notebook has it."""
    return metrics.GRID[metrics.f1_by_threshold(y, p).argmax(1)]


def compared(r: dict, rule: str, notebook: bool) -> tuple[float, float, float, bool]:
    """Printed, truth of one fold's model and of the average; whether 0 is in the interval."""
    p, new = assembled(r, rule)
    th = (first_best if notebook else metrics.tune_thresholds)(r["y"], p)
    said = metrics.detect(p, th) if notebook else metrics.cross_fit(r["y"], p, r["fold"])
    found = metrics.detect(new.mean(0), th)
    a = metrics.bootstrap_f1(r["y"], said, seed=0).mean(1)
    b = metrics.bootstrap_f1(r["truth"], found, seed=1).mean(1)
    low, high = metrics.interval(a - b)
    single = np.mean([macro(r["truth"], metrics.detect(x, th)) for x in new])
    return macro(r["y"], said), single, macro(r["truth"], found), low <= 0 <= high


def transferred(new: np.ndarray, th: np.ndarray) -> np.ndarray:
    """Thresholds of the mean of the folds that detect as many rows as th does of single folds."""
    share, mean = np.mean([metrics.detect(x, th).mean(0) for x in new], 0), new.mean(0)
    return np.float32([np.quantile(mean[:, j], 1 - share[j]) for j in range(len(th))])


def other_thresholds(r: dict) -> dict[str, float]:
    """Macro-F1 on the rows held back, by way."""
    p, new = assembled(r, "best")
    th, mean = metrics.tune_thresholds(r["y"], p), new.mean(0)
    best = metrics.tune_thresholds(r["truth"], mean)
    found = {
        DEFAULT: metrics.detect(mean, th),
        "... on the mean of the logits": metrics.detect(sigmoid(metrics.logit(new).mean(0)), th),
        "by the share detected": metrics.detect(mean, transferred(new, th)),
        "0.5 for all": metrics.detect(mean, np.float32(0.5)),
        "chosen on the rows held back (not to be had)": metrics.detect(mean, best),
    }
    return {name: macro(r["truth"], pred) for name, pred in found.items()}


def deviation(x) -> float:
    return float(np.std(x, ddof=1)) if len(x) > 1 else 0.0


def tables(runs: list[dict], notebook: bool) -> None:
    print(f"\n{len(runs)} repetitions; in brackets the standard deviation of a difference\n")
    print("| epoch kept | printed | one fold | average | printed - average | covers 0 |")
    print("|---|---:|---:|---:|---:|---:|")
    for rule, name in RULES.items():
        said, single, average, covers = np.array([compared(r, rule, notebook) for r in runs]).T
        means, gap = " | ".join(f"{x.mean():.4f}" for x in (said, single, average)), said - average
        gap = f"{gap.mean():+.4f} ({deviation(gap):.4f})"
        print(f"| {name} | {means} | {gap} | {int(covers.sum())} of {len(runs)} |")
    print("\n| thresholds (best epoch) | macro-F1 | to the run's own |\n|---|---:|---:|")
    ways = [other_thresholds(r) for r in runs]
    for name in ways[0]:
        values, gaps = [w[name] for w in ways], [w[name] - w[DEFAULT] for w in ways]
        more = f"{np.mean(gaps):+.4f} ({deviation(gaps):.4f})" if name != DEFAULT else ""
        print(f"| {name} | {np.mean(values):.4f} | {more} |", flush=True)


def main() -> None:
    parser = flag_parser(__doc__)
    parser.add_argument("csv")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--notebook", action="store_true")
    args, args.flags = parser.parse_known_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for seed in range(args.repeats):
        path, new = args.folder / f"{seed}.npz", args.folder / "new.npz"
        if not path.exists():
            np.savez_compressed(new, **repetition(args, seed))
            new.rename(path)
        runs = [dict(np.load(args.folder / f"{i}.npz")) for i in range(seed + 1)]
        tables(runs, args.notebook)


if __name__ == "__main__":
    main()
