"""Rows per second against the usual ways: python benchmarks/speed.py [CSV] [--model M] [--rows N]

One epoch of fold 0 of 5 in batches of 16, then prediction of all rows by that model. In turns, each
in a process of its own, with the same number of threads; medians of the ratios. `trainer`:
transformers' Trainer at its best (fused AdamW, batches grouped by length, bf16 where the processor
has it; needs accelerate). --rows: only the first rows of the CSV.

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
from dataclasses import dataclass
from pathlib import Path

from measure import HERE, call, flag_parser, in_turns, middle

sys.path.insert(0, str(HERE))

import numpy as np
import pandas as pd
import torch
from torch.utils.data import Dataset

import metrics
from config import BUNDLED, EMOTIONS, Config
from data import DataCollator, EmotionDataset, Table, encode, read_data, split
from model import EmotionClassifier, run_over_rows, sigmoid
from support.cli import parse
from support.device import resolve_device
from support.encoders import EncoderInfo, inspect_encoder

BATCH = 16
FOLDS = 4  # of --whole
EPOCHS = 3  # of --whole


def train_flags(args: argparse.Namespace, folds: int, epochs: int) -> list[str]:
    sizes = ["--folds", str(folds), "--epochs", str(epochs), "--batch-size", str(BATCH)]
    return ["--train", args.csv, "--model", args.model, *sizes]


@dataclass
class Job:
    """What all ways have in common before a model is loaded."""

    config: Config
    table: Table
    encoder_info: EncoderInfo
    dataset: EmotionDataset
    collate: DataCollator

    @classmethod
    def of(cls, args: argparse.Namespace, folds: int = 5) -> "Job":
        config = parse(Config, train_flags(args, folds, 1))
        device, precision = resolve_device(config.device, config.precision)
        config = dataclasses.replace(config, device=device, precision=precision)
        table = split(read_data(config), config)
        encoder_info = inspect_encoder(config.model)
        dataset = encode(encoder_info.tokenizer, table.inputs, config.max_length)
        dataset = dataclasses.replace(dataset, targets=table.y)
        collate = DataCollator.of(encoder_info.tokenizer, config)
        return cls(config, table, encoder_info, dataset, collate)


# One way each: rows per second of training and of prediction


def ours(args: argparse.Namespace) -> dict:
    job = Job.of(args)
    with tempfile.TemporaryDirectory() as folder:
        fold = Path(folder, "fold_0")
        flags = [*train_flags(args, 5, 1), "--fold", 0, "--threads", torch.get_num_threads()]
        call([HERE / "train.py", *flags, "--out", folder])
        rate = json.loads((fold / "log.jsonl").read_text())["rows_per_s"]  # of the steps
        model = EmotionClassifier.load(fold, job.config)
    model.to(job.config.device)
    start = time.perf_counter()
    run_over_rows(model, job.dataset, job.collate)
    seconds = time.perf_counter() - start
    return {"train": rate, "predict": len(job.table) / seconds}


class Rows(Dataset):
    """Some rows for transformers' Trainer."""

    def __init__(self, dataset: EmotionDataset, rows: np.ndarray):
        self.dataset = dataset
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict:
        item = self.dataset[self.rows[i]]
        return {**item, "length": len(item["input_ids"])}


def make_trainer(job: Job, k: int, folder: str, epochs: int, judge: bool):
    """transformers' Trainer for fold k; with `judge` it validates and saves after each epoch."""
    from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

    model = AutoModelForSequenceClassification.from_pretrained(
        job.encoder_info.path,
        dtype=torch.float32,
        num_labels=len(EMOTIONS),
        problem_type="multi_label_classification",
    )
    arguments = TrainingArguments(
        folder,
        num_train_epochs=epochs,
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=64,
        learning_rate=5e-5,
        weight_decay=0.01,
        warmup_steps=0.1,
        optim="adamw_torch_fused",
        bf16=job.config.precision == "bf16",
        use_cpu=job.config.device == "cpu",
        train_sampling_strategy="group_by_length",
        remove_unused_columns=False,
        eval_strategy="epoch" if judge else "no",
        save_strategy="epoch" if judge else "no",
        save_total_limit=1 if judge else None,
        load_best_model_at_end=judge,
        metric_for_best_model="macro_f1" if judge else None,
        report_to=[],
        disable_tqdm=True,
        logging_steps=10**9,
    )
    return Trainer(
        model,
        arguments,
        data_collator=dataclasses.replace(job.collate, device="cpu"),  # it moves them itself
        train_dataset=Rows(job.dataset, np.flatnonzero(job.table.fold != k)),
        eval_dataset=Rows(job.dataset, np.flatnonzero(job.table.fold == k)),
        compute_metrics=lambda found: metrics.scores(found.label_ids, found.predictions >= 0),
    )


def all_rows(job: Job) -> Rows:
    return Rows(job.dataset, np.arange(len(job.table)))


def with_trainer(args: argparse.Namespace) -> dict:
    job = Job.of(args)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(job, 0, folder, epochs=1, judge=False)
        start = time.perf_counter()
        trainer.train()
        trained = time.perf_counter()
        trainer.predict(all_rows(job))
        predicted = time.perf_counter()
    return {
        "train": len(trainer.train_dataset) / (trained - start),
        "predict": len(job.table) / (predicted - trained),
    }


def with_trainer_whole(args: argparse.Namespace) -> dict:
    """All folds, and the mean of their probabilities on the same CSV, read and encoded again."""
    job = Job.of(args, FOLDS)
    new = Job.of(args)
    total = np.zeros((len(new.table), len(EMOTIONS)))
    for k in range(FOLDS):
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            trainer = make_trainer(job, k, folder, EPOCHS, judge=True)
            trainer.train()
            total += sigmoid(trainer.predict(all_rows(new)).predictions)
    verdicts = pd.DataFrame(total / FOLDS >= 0.5, columns=EMOTIONS).astype(int)
    verdicts.insert(0, "id", new.table.ids)
    verdicts.to_csv(Path(args.folder, "trainer.csv"), index=False)
    return {}


WAYS = {"ours": ours, "trainer": with_trainer, "trainer_whole": with_trainer_whole}


# Comparisons


def in_own_process(name: str, args: argparse.Namespace) -> tuple[float, float, dict]:
    """One of WAYS in a process of its own: seconds, peak memory, and what it found."""
    flags = [args.csv, "--model", args.model, "--folder", args.folder, "--one", name]
    seconds, mb, _ = call([__file__, *flags])
    return seconds, mb, json.loads(Path(args.folder, "result.json").read_text())


def ratios(a: list[float], b: list[float]) -> str:
    return middle([x / y for x, y in zip(a, b, strict=True)], ".2f")


def compare(args: argparse.Namespace) -> None:
    ways = {name: lambda name=name: in_own_process(name, args)[2] for name in ("ours", "trainer")}
    found = in_turns(args.runs, ways)
    config = Job.of(args).config
    print(
        f"\n{config.device}, {config.precision}, {torch.get_num_threads()} threads;"
        f" medians of {args.runs} (lowest to highest)\n"
    )
    print("| | rows/s | ours is x times as fast |\n|---|---:|---:|")
    for task in ("train", "predict"):
        our_rates = [result[task] for result in found["ours"]]
        for name in ways:
            rates = [result[task] for result in found[name]]
            times = "" if name == "ours" else ratios(our_rates, rates)
            print(f"| {task}, {name} | {middle(rates)} | {times} |")


def ours_whole(args: argparse.Namespace, *more_flags) -> tuple[float, float]:
    """Seconds and peak memory of train.py and predict.py."""
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        run = f"{folder}/run"
        training = [*train_flags(args, FOLDS, EPOCHS), "--out", run, *more_flags]
        prediction = ["--run", run, "--input", args.csv, "--output", f"{folder}/ours.csv"]
        train_seconds, train_mb, _ = call([HERE / "train.py", *training])
        predict_seconds, predict_mb, _ = call([HERE / "predict.py", *prediction])
    return train_seconds + predict_seconds, max(train_mb, predict_mb)


def compare_whole(args: argparse.Namespace) -> None:
    """Seconds and peak memory of whole commands."""
    ways = {
        "ours": lambda: ours_whole(args),
        "ours, --jobs 1 --threads 2": lambda: ours_whole(args, "--jobs", 1, "--threads", 2),
        "trainer": lambda: in_own_process("trainer_whole", args)[:2],
    }
    found = in_turns(args.runs, ways)
    rows = len(Job.of(args).table)
    print(f"\n{rows} rows, medians of {args.runs} (lowest to highest)\n")
    print("| whole commands | seconds | ours is x times as fast | peak MB |\n|---|---:|---:|---:|")
    our_seconds = [seconds for seconds, _ in found["ours"]]
    for name, results in found.items():
        seconds, mb = zip(*results, strict=True)
        times = "" if name == "ours" else ratios(seconds, our_seconds)
        print(f"| {name} | {middle(seconds)} | {times} | {middle(mb)} |")


def main() -> None:
    parser = flag_parser(__doc__)
    parser.add_argument("csv", nargs="?", default=str(HERE / "examples/train.csv"))
    parser.add_argument("--model", default=BUNDLED)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--whole", action="store_true")
    # How it starts itself for one way
    parser.add_argument("--one", choices=list(WAYS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        result = WAYS[args.one](args)
        Path(args.folder, "result.json").write_text(json.dumps(result))
        return
    with tempfile.TemporaryDirectory() as args.folder:
        if args.rows:
            rows = pd.read_csv(args.csv, dtype=str, keep_default_na=False)[: args.rows]
            args.csv = f"{args.folder}/rows.csv"
            rows.to_csv(args.csv, index=False)
        if args.whole:
            compare_whole(args)
        else:
            compare(args)


if __name__ == "__main__":
    main()
