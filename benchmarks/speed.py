"""Rows per second against the usual ways: python benchmarks/speed.py [CSV] [--model M] [--rows N]

One epoch of fold 0 of 5 in batches of 16, then prediction of all rows by that model. In turns, each
in a process of its own; medians of the ratios. `trainer`: transformers' Trainer at its best (fused
AdamW, batches grouped by length, bf16 where the processor has it; needs accelerate). --rows: only
the first rows of the CSV.

--whole compares whole commands instead: train.py with 4 folds of 3 epochs and predict.py on the
same CSV, the same with --jobs 1 --threads 2, and the Trainer with tokenising, validation and the
best model's saving at every epoch. Seconds, and peak memory of the largest process.
"""

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

from measure import HERE, call, flag_parser, in_turns, middle

sys.path.insert(0, str(HERE))

import numpy as np
import pandas as pd
import torch
from torch.utils.data import Dataset

import metrics
from config import BUNDLED, EMOTIONS, Config
from data import DataCollator, assign_folds, encode, read_table
from model import EmotionClassifier, run_over_rows, sigmoid
from support.cli import parse
from support.encoders import inspect_encoder
from support.speed import resolve_device

BATCH, FOLDS = 16, 4


def flags(args, epochs: int) -> list[str]:
    both = ["--train", args.csv, "--model", args.model]
    return [*both, "--batch-size", str(BATCH), "--epochs", str(epochs)]


def prepare(args, folds: int = 5) -> SimpleNamespace:
    """What all ways have in common before a model is loaded."""
    config = parse(Config, flags(args, 1))
    table, info = read_table(config.train, config), inspect_encoder(config.model)
    device, precision = resolve_device(config.device, config.precision)
    config = config.resolved(info, table, folds, device, precision)
    fold = assign_folds(table.labels, table.hashes, folds, config.fold_seed)
    dataset = encode(info.tokenizer, table.inputs, config.max_length)
    dataset.labels = table.labels
    pad_id = info.tokenizer.pad_token_id
    collate = DataCollator(pad_id, config.max_length, config.device, config.precision)
    return SimpleNamespace(
        config=config, table=table, info=info, fold=fold, dataset=dataset, collate=collate
    )


# One way each: rows per second of training and of prediction


def ours(args) -> dict:
    job = prepare(args)
    with tempfile.TemporaryDirectory() as d:
        call([HERE / "train.py", *flags(args, 1), "--out", d, "--fold", 0])
        rate = json.loads(Path(d, "fold_0/log.jsonl").read_text())["rows_per_s"]  # of the steps
        model = EmotionClassifier.load(Path(d, "fold_0"), len(EMOTIONS), job.config.pooling)
    model.to(job.config.device)
    start = time.perf_counter()
    run_over_rows(model, job.dataset, job.collate, job.config)
    return {"train": rate, "predict": len(job.table) / (time.perf_counter() - start)}


class Rows(Dataset):
    """Some rows for transformers' Trainer."""

    def __init__(self, dataset, which: np.ndarray):
        self.dataset, self.which = dataset, which

    def __len__(self) -> int:
        return len(self.which)

    def __getitem__(self, i: int) -> dict:
        item = self.dataset[self.which[i]]
        return {**item, "length": len(item["input_ids"])}


def coach(job, k: int, folder: str, epochs: int, judge: bool):
    """transformers' Trainer for fold k; with `judge` it validates and saves after each epoch."""
    from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

    multi = {"num_labels": len(EMOTIONS), "problem_type": "multi_label_classification"}
    kind = AutoModelForSequenceClassification
    model = kind.from_pretrained(job.info.path, dtype=torch.float32, **multi)
    how = {"num_train_epochs": epochs, "learning_rate": 5e-5, "weight_decay": 0.01}
    how |= {"warmup_steps": 0.1, "optim": "adamw_torch_fused", "remove_unused_columns": False}
    how |= {"per_device_train_batch_size": BATCH, "per_device_eval_batch_size": 64}
    how |= {"bf16": job.config.precision == "bf16", "use_cpu": job.config.device == "cpu"}
    how |= {"train_sampling_strategy": "group_by_length", "save_strategy": "no"}
    how |= {"report_to": [], "disable_tqdm": True, "logging_steps": 10**9}
    if judge:
        how |= {"eval_strategy": "epoch", "save_strategy": "epoch", "save_total_limit": 1}
        how |= {"load_best_model_at_end": True, "metric_for_best_model": "macro_f1"}
    return Trainer(
        model,
        TrainingArguments(folder, **how),
        data_collator=dataclasses.replace(job.collate, device="cpu"),  # it moves them itself
        train_dataset=Rows(job.dataset, np.flatnonzero(job.fold != k)),
        eval_dataset=Rows(job.dataset, np.flatnonzero(job.fold == k)),
        compute_metrics=lambda found: metrics.scores(found.label_ids, found.predictions >= 0),
    )


def trainer(args) -> dict:
    job = prepare(args)
    with tempfile.TemporaryDirectory() as d:
        it, start = coach(job, 0, d, 1, judge=False), time.perf_counter()
        it.train()
        trained = time.perf_counter()
        it.predict(Rows(job.dataset, np.arange(len(job.table))))
    seconds = time.perf_counter() - trained
    return {"train": len(it.train_dataset) / (trained - start), "predict": len(job.table) / seconds}


def trainer_whole(args) -> dict:
    """All folds, and the mean of their probabilities on the same CSV, read and encoded anew."""
    job, new, total = prepare(args, FOLDS), prepare(args), 0.0
    for k in range(FOLDS):
        with tempfile.TemporaryDirectory(dir=args.folder) as d:
            it = coach(job, k, d, 3, judge=True)
            it.train()
            found = it.predict(Rows(new.dataset, np.arange(len(new.table))))
            total = total + sigmoid(found.predictions)
    table = pd.DataFrame(total / FOLDS >= 0.5, columns=EMOTIONS).astype(int)
    table.insert(0, "id", new.table.ids)
    table.to_csv(Path(args.folder, "trainer.csv"), index=False)
    return {}


# Comparisons


def one(name: str, args):
    """A way in a process of its own: seconds, peak memory, and what it found."""
    result = Path(args.folder, "result.json")
    where = [args.csv, "--model", args.model, "--folder", args.folder]
    seconds, mb, _ = call([__file__, *where, "--one", name])
    return seconds, mb, json.loads(result.read_text())


def ratios(a: list[float], b: list[float]) -> str:
    return middle([x / y for x, y in zip(a, b, strict=True)], ".2f")


def compare(args) -> None:
    names = ("ours", "trainer")
    found = in_turns(args.runs, {x: lambda x=x: one(x, args)[2] for x in names})
    config = prepare(args).config
    print(f"\n{config.device}, {config.precision}, {torch.get_num_threads()} threads;", end=" ")
    print(f"medians of {args.runs} (lowest to highest)\n")
    print("| | rows/s | ours is x times as fast |\n|---|---:|---:|")
    for what in ("train", "predict"):
        mine = [x[what] for x in found["ours"]]
        for name in names:
            rates = [x[what] for x in found[name]]
            times = ratios(mine, rates) if name != "ours" else ""
            print(f"| {what}, {name} | {middle(rates)} | {times} |")


def compare_whole(args) -> None:
    """Seconds and peak memory of whole commands."""

    def mine(*more) -> tuple[float, float]:
        with tempfile.TemporaryDirectory(dir=args.folder) as d:
            said = ["--run", f"{d}/run", "--input", args.csv, "--output", f"{d}/ours.csv"]
            trained = [*flags(args, 3), "--folds", FOLDS, "--out", f"{d}/run", *more]
            taken = [call([HERE / "train.py", *trained]), call([HERE / "predict.py", *said])]
        return sum(x[0] for x in taken), max(x[1] for x in taken)

    ways = {"ours": mine, "ours, --jobs 1 --threads 2": lambda: mine("--jobs", 1, "--threads", 2)}
    ways["trainer"] = lambda: one("trainer_whole", args)[:2]
    found = in_turns(args.runs, ways)
    print(f"\n{len(prepare(args).table)} rows, medians of {args.runs} (lowest to highest)\n")
    print("| whole commands | seconds | ours is x times as fast | peak MB |\n|---|---:|---:|---:|")
    mine = [seconds for seconds, _ in found["ours"]]
    for name, pairs in found.items():
        seconds, mb = zip(*pairs, strict=True)
        times = ratios(seconds, mine) if name != "ours" else ""
        print(f"| {name} | {middle(seconds)} | {times} | {middle(mb)} |")


def main() -> None:
    parser, hidden = flag_parser(__doc__), argparse.SUPPRESS
    parser.add_argument("csv", nargs="?", default=str(HERE / "examples/train.csv"))
    parser.add_argument("--model", default=BUNDLED)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--one", choices=("ours", "trainer", "trainer_whole"), help=hidden)
    parser.add_argument("--folder", help=hidden)
    args = parser.parse_args()
    if args.one:
        result = json.dumps(globals()[args.one](args))
        Path(args.folder, "result.json").write_text(result)
        return
    with tempfile.TemporaryDirectory() as args.folder:
        if args.rows:
            rows = pd.read_csv(args.csv, dtype=str, keep_default_na=False)[: args.rows]
            args.csv = f"{args.folder}/rows.csv"
            rows.to_csv(args.csv, index=False)
        (compare_whole if args.whole else compare)(args)


if __name__ == "__main__":
    main()
