"""Does the number that is printed hold on new rows? python benchmarks/heldback.py CSV DIR [--rows N] [--repeats 10] [--folds 3]

Each repetition holds a third of the rows back, trains the folds on the rest as train.py does, and keeps the
probabilities of every epoch in DIR/<repetition>.npz (what is there is not trained again). From the same runs come all
tables: the printed number minus the truth, which is what predict.py gets on the rows held back, for each way to choose
the epoch; thresholds of single folds on the mean of the folds; ways to smooth thresholds.
--notebook: a third of the training rows doubled, folds that ignore copies, thresholds scored where they were chosen.
"""

import argparse
import dataclasses
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HERE))

import numpy as np
from sklearn.model_selection import KFold

import fast
import metrics
import train
from config import Config, Signals, parse
from data import assign_folds, csv_text, read_csv, text_hashes, tokenize


def repetition(path: str, n: int | None, seed: int, folds: int, notebook: bool, flags: list[str]) -> dict:
    """Arrays: y (N, C), fold (N,), oof (E, N, C); truth (M, C), new (E, K, M, C); log (E, K): macro-F1, loss."""
    config = parse(Config, flags)
    table, rng = read_csv(path, config.text_column, config.labels), np.random.default_rng(seed)
    rows = np.sort(rng.permutation(len(table))[:n])
    texts, y = [table.texts[i] for i in rows], table.labels[rows]
    held = assign_folds(y, text_hashes(texts), 3, seed) == 0
    kept = np.flatnonzero(~held)
    if notebook:
        kept = np.concatenate([kept, rng.choice(kept, len(kept) // 3, replace=False)])
    lines = [[str(i), texts[i], *y[i].astype(int)] for i in kept.tolist()]
    with tempfile.TemporaryDirectory() as d:
        Path(d, "train.csv").write_text(csv_text([["id", "text", *config.labels], *lines]))
        argv = [*flags, "--train", f"{d}/train.csv", "--folds", str(folds), "--seed", str(seed)]
        job = train.prepare(parse(Config, argv), Signals(), fast.Ranks())
        if notebook:
            fold = np.zeros(len(kept), np.int16)
            for k, (_, part) in enumerate(KFold(folds, shuffle=True, random_state=seed).split(fold)):
                fold[part] = k
            job = dataclasses.replace(job, fold=fold)
        new = tokenize(job.info.tokenizer, [texts[i] for i in np.flatnonzero(held)], config.max_length)
        collate = job.collator()  # for whole vocabularies; training counts in the tokens that occur
        job = train.shrink_vocabulary(job, train.load_encoder(job.info.path))
        epochs, C = job.config.epochs, y.shape[1]
        out = {
            "y": job.table.labels,
            "fold": job.fold,
            "truth": y[held],
            "oof": np.zeros((epochs, len(kept), C)),
        }
        out |= {"new": np.zeros((epochs, folds, held.sum(), C)), "log": np.zeros((epochs, folds, 2))}
        for k in range(folds):
            fold = train.start_fold(job, Path(tempfile.mkdtemp(dir=d)), k)
            for e in range(epochs):
                fold.at["epoch"], fold.at["step"] = e, 0
                rate = train.train_epoch(fold)
                with fold.averaged() as model:
                    row, out["oof"][e, fold.held] = train.judge(fold, rate)
                    with fast.whole_embedding(model.encoder, 1.0):
                        how = (collate, job.config.device, job.config.precision)
                        logits = train.predict_logits(model, new, *how)
                out["new"][e, k], out["log"][e, k] = train.sigmoid(logits), (row["macro_f1"], row["val_loss"])
                print(train.report.epoch_line(row, epochs), flush=True)
    return {name: value.astype(np.float32) if name != "fold" else value for name, value in out.items()}


def epochs_of(log: np.ndarray, rule: str) -> list[int]:
    """The epoch of each fold: best macro-F1, the last, or the one with the best mean for all folds."""
    if rule == "last":
        return [len(log) - 1] * log.shape[1]
    if rule == "same":
        return [int(log[:, :, 0].mean(1).argmax())] * log.shape[1]
    return [max(range(len(log)), key=lambda e: (log[e, k, 0], -log[e, k, 1])) for k in range(log.shape[1])]


def assembled(r: dict, rule: str) -> tuple[np.ndarray, np.ndarray]:
    """Out-of-fold probabilities (N, C) and each fold's on the rows held back (K, M, C)."""
    epochs, p = epochs_of(r["log"], rule), np.zeros_like(r["y"])
    for k, e in enumerate(epochs):
        p[r["fold"] == k] = r["oof"][e][r["fold"] == k]
    return p, np.stack([r["new"][e, k] for k, e in enumerate(epochs)])


def macro(y, pred) -> float:
    return metrics.scores(y, pred)["macro_f1"]


def optimism(runs: list[dict], rule: str, notebook: bool) -> list[tuple[float, float, bool]]:
    """(printed, truth, whether the interval of their difference covers 0) of each repetition."""
    rows = []
    for r in runs:
        p, new = assembled(r, rule)
        th = (first_best if notebook else metrics.tune_thresholds)(r["y"], p)
        said = metrics.detect(p, th) if notebook else metrics.cross_fit(r["y"], p, r["fold"])
        found = metrics.detect(new.mean(0), th)
        draws = [
            metrics.bootstrap_f1(y, x, seed=i).mean(1)
            for i, (y, x) in enumerate(((r["y"], said), (r["truth"], found)))
        ]
        low, high = metrics.interval(draws[0] - draws[1])
        rows.append((macro(r["y"], said), macro(r["truth"], found), low <= 0 <= high))
    return rows


def first_best(y: np.ndarray, p: np.ndarray) -> np.ndarray:
    """The lowest threshold with the best F1, as the notebook has it."""
    return metrics.GRID[metrics.f1_by_threshold(y, p).argmax(1)]


def pooled(y: np.ndarray, p: np.ndarray, weight: float = 50.0) -> np.ndarray:
    """Each label's threshold, drawn toward one for all labels as if that one rested on `weight` positives."""
    own, n = metrics.tune_thresholds(y, p), y.sum(0)
    shared = metrics.tune_thresholds(y.reshape(-1, 1), p.reshape(-1, 1))
    return np.float32((n * own + weight * shared) / (n + weight))


def transferred(p: np.ndarray, new: np.ndarray, th: np.ndarray) -> np.ndarray:
    """Thresholds of the mean of the folds that detect as large a share as th does of single folds' probabilities."""
    share = np.stack([metrics.detect(x, th).mean(0) for x in new]).mean(0)
    return np.float32([np.quantile(new.mean(0)[:, j], 1 - share[j]) for j in range(len(th))])


def show(name: str, values) -> None:
    values = np.asarray(values)
    print(f"| {name} | {values.mean():.4f} | {values.std(ddof=1) if len(values) > 1 else 0:.4f} |")


def tables(runs: list[dict], notebook: bool) -> None:
    print(
        f"\n{len(runs)} repetitions\n\n| epoch | printed | truth | printed - truth | deviation | covers 0 |"
    )
    print("|---|---:|---:|---:|---:|---:|")
    for rule in ("best", "last", "same"):
        rows = np.array(optimism(runs, rule, notebook))
        gap = rows[:, 0] - rows[:, 1]
        spread = gap.std(ddof=1) if len(gap) > 1 else 0
        print(
            f"| {rule} | {rows[:, 0].mean():.4f} | {rows[:, 1].mean():.4f} | {gap.mean():+.4f} | {spread:.4f} | {rows[:, 2].mean():.0%} |"
        )
    ways: dict[str, list[float]] = {}
    for r in runs:
        p, new = assembled(r, "best")
        th, mean = metrics.tune_thresholds(r["y"], p), new.mean(0)
        logits = train.sigmoid(metrics.logit(new).mean(0))
        found = {"thresholds as they are, mean of probabilities": metrics.detect(mean, th)}
        found["mean of logits"] = metrics.detect(logits, th)
        found["thresholds by share detected (quantile transfer)"] = metrics.detect(
            mean, transferred(p, new, th)
        )
        found["chosen on the rows held back (not to be had)"] = metrics.detect(
            mean, metrics.tune_thresholds(r["truth"], mean)
        )
        found["the first best of the sweep"] = metrics.detect(mean, first_best(r["y"], p))
        found["drawn toward a pooled one"] = metrics.detect(mean, pooled(r["y"], p))
        fine = np.linspace(0.02, 0.9, 45, dtype=np.float32)
        found["grid of 45 from 0.02"] = metrics.detect(mean, metrics.tune_thresholds(r["y"], p, fine))
        found["0.5 for all"] = metrics.detect(mean, np.float32(0.5))
        for name, pred in found.items():
            ways.setdefault(name, []).append(macro(r["truth"], pred))
        ways.setdefault("one fold alone, thresholds as they are", []).append(
            np.mean([macro(r["truth"], metrics.detect(x, th)) for x in new])
        )
    base = np.array(ways["thresholds as they are, mean of probabilities"])
    print("\n| thresholds (best epoch), macro-F1 on the rows held back | mean | deviation |\n|---|---:|---:|")
    for name, values in ways.items():
        show(name, values)
    print("\n| difference to the first line | mean | deviation |\n|---|---:|---:|")
    for name, values in list(ways.items())[1:]:
        show(name, np.array(values) - base)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("csv")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--notebook", action="store_true")
    args, flags = parser.parse_known_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for seed in range(args.repeats):
        path = args.folder / f"{seed}.npz"
        if not path.exists():
            arrays = repetition(args.csv, args.rows, seed, args.folds, args.notebook, flags)
            with open(args.folder / "new.tmp", "wb") as f:
                np.savez_compressed(f, **arrays)
            (args.folder / "new.tmp").rename(path)
        tables([dict(np.load(args.folder / f"{i}.npz")) for i in range(seed + 1)], args.notebook)


if __name__ == "__main__":
    main()
