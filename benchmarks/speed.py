"""Rows per second against the usual ways: python benchmarks/speed.py [CSV] [--model M] [--rows N]

One epoch of fold 0 of 5 in batches of 16, then prediction of all rows by that model. In turns, each
in a process of its own; medians of the ratios. `trainer`: transformers' Trainer at its best (fused
AdamW, batches grouped by length, bf16 where the processor has it; needs accelerate). Shares:
operations on tokens that are no padding (6 a weight and token in training, 2 in prediction, and
attention), over the best matrix product measured here. --rows: only the first rows of the CSV.
Instead of that:

--whole     whole commands: train.py with 4 folds of 3 epochs and predict.py on the same CSV, the
            same with --jobs 1 --threads 2, and by the Trainer with tokenising, validation and the
            best model's saving at every epoch; seconds and peak memory of the largest process
--busy      each command idle, and beside one busy process
--profile   where the time of our training steps and of prediction goes, by kind of work
--quick     the first, --busy and --whole, each once, on 150 rows: under ten minutes
"""

import argparse
import dataclasses
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

from measure import HERE, call, middle

sys.path.insert(0, str(HERE))

import numpy as np
import pandas as pd
import torch
from torch.utils.data import Dataset

import metrics
import train
from config import BUNDLED, EMOTIONS, Config
from data import DataCollator, assign_folds, encode, read_table
from model import EmotionClassifier, run_over_rows, sigmoid
from support import speed
from support.cli import parse
from support.encoders import inspect_encoder, layers_of, load_encoder

BATCH, FOLDS = 16, 4


def flags(args, epochs: int) -> list[str]:
    both = ["--train", args.csv, "--model", args.model]
    return [*both, "--batch-size", str(BATCH), "--epochs", str(epochs)]


def prepare(args, folds: int = 5) -> SimpleNamespace:
    """What all ways have in common before a model is loaded."""
    config = parse(Config, flags(args, 1))
    device, precision = speed.resolve_device(config.device, config.precision)
    config = dataclasses.replace(config, device=device, precision=precision)
    table, info = read_table(config.train, config), inspect_encoder(config.model)
    fold = assign_folds(table.labels, table.hashes, folds, config.fold_seed)
    dataset = encode(info.tokenizer, table.inputs, config.max_length, table.labels)
    collate = DataCollator(
        info.tokenizer.pad_token_id, config.max_length, config.device, config.precision
    )
    return SimpleNamespace(
        config=config, table=table, info=info, fold=fold, dataset=dataset, collate=collate
    )


# One way each: rows per second of training and of prediction


def train_rate(project: Path, args, run: Path, more: list[str]) -> float:
    """Of the steps of one epoch of fold 0, as this project's train.py logs it."""
    call([project / "train.py", *flags(args, 1), "--fold", 0, "--out", run, *more])
    return json.loads((run / "fold_0/log.jsonl").read_text())["rows_per_s"]


def predictor(args, run: Path):
    """A function that predicts all rows by the fold in `run`, and their number."""
    job = prepare(args)
    model = EmotionClassifier.load(run / "fold_0", len(EMOTIONS), job.config.pooling)
    model.to(job.config.device)
    return lambda: run_over_rows(model, job.dataset, job.collate, job.config), len(job.table)


def ours(args) -> dict:
    with tempfile.TemporaryDirectory() as d:
        rate = train_rate(HERE, args, Path(d, "run"), [])
        predict, n = predictor(args, Path(d, "run"))
    start = time.perf_counter()
    predict()
    return {"train": rate, "predict": n / (time.perf_counter() - start)}


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
    from transformers import TrainerCallback

    job = prepare(args)
    with tempfile.TemporaryDirectory() as d:
        it, start, limit = coach(job, 0, d, 1, judge=False), time.perf_counter(), args.limit

        class Limit(TrainerCallback):
            def on_step_end(self, args, state, control, **more):
                control.should_training_stop |= time.perf_counter() - start > limit

        it.add_callback(Limit())
        it.train()
        taken, rows = time.perf_counter() - start, len(it.train_dataset)
        rows, start = min(rows, it.state.global_step * BATCH), time.perf_counter()
        new = Rows(job.dataset, np.arange(len(job.table) if taken < limit else BATCH))
        it.predict(new)
    seconds = time.perf_counter() - start
    return {"train": rows / taken, "predict": len(new) / seconds}


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


def in_turns(runs: int, ways: dict) -> dict[str, list]:
    """What each way gives, `runs` times: forward, backward, forward ..."""
    found = {name: [] for name in ways}
    for i in range(runs):
        for name in list(ways)[:: -1 if i % 2 else 1]:
            found[name].append(ways[name]())
            print(name, found[name][-1], flush=True)
    return found


def one(name: str, args):
    """A way in a process of its own: seconds, peak memory, and what it found."""
    result = Path(args.folder, "result.json")
    where = [args.csv, "--model", args.model, "--folder", args.folder, "--limit", args.limit]
    seconds, mb, _ = call([__file__, *where, "--one", name])
    return seconds, mb, json.loads(result.read_text())


def ratios(a: list[float], b: list[float]) -> str:
    return middle([x / y for x, y in zip(a, b, strict=True)], ".2f")


def compare(args) -> None:
    names = ("ours", "trainer")
    found = in_turns(args.runs, {x: lambda x=x: one(x, args)[2] for x in names})
    job = prepare(args)
    device, precision = job.config.device, job.config.precision
    limit = peak(device, precision)
    print(f"\n{device}, {precision}, {torch.get_num_threads()} threads,", end=" ")
    print(f"best matrix product {limit / 1e12:.3f} TFLOP/s;", end=" ")
    print(f"medians of {args.runs} (lowest to highest)\n")
    print("| | rows/s | ours is x times as fast | share of the limit |\n|---|---:|---:|---:|")
    for what, operations in zip(("train", "predict"), operations_per_row(job), strict=True):
        mine = [x[what] for x in found["ours"]]
        for name in names:
            rates = [x[what] for x in found[name]]
            times = ratios(mine, rates) if name != "ours" else ""
            share = operations * statistics.median(rates) / limit
            print(f"| {what}, {name} | {middle(rates)} | {times} | {share:.0%} |")


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


def compare_busy(args) -> None:
    """Rates of each command alone, and beside a process that never waits."""
    run = Path(args.folder, "run")

    def training(*more) -> float:
        with tempfile.TemporaryDirectory(dir=args.folder) as d:
            call([HERE / "train.py", *flags(args, 1), "--folds", 2, "--out", d, *more])
            logs = Path(d).glob("fold_*/log.jsonl")
            return sum(json.loads(log.read_text())["rows_per_s"] for log in logs)

    def predicting(*more) -> float:
        output = ["--output", Path(args.folder, "s.csv")]
        how = more or ("--input", args.csv, *output)
        return len(rows.table) / call([HERE / "predict.py", "--run", run, *how])[0]

    call([HERE / "train.py", *flags(args, 1), "--folds", 2, "--out", run])
    rows = prepare(args)
    ways = {"train.py": training, "train.py --fold 0": lambda: training("--fold", 0)}
    ways["train.py --folds 1"] = lambda: training("--folds", 1)
    ways |= {
        "predict.py": predicting,
        "predict.py --text": lambda: predicting("--text", "so happy"),
    }
    ways["trainer"] = lambda: one("trainer", args)[2]["train"]
    print("| rows/s | idle | beside a busy process | kept |\n|---|---:|---:|---:|")
    for name, way in ways.items():
        idle, busy = [], []
        for _ in range(args.runs):
            idle.append(way())
            with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
                busy.append(way())
                other.kill()
        kept = statistics.median(busy) / statistics.median(idle)
        print(
            f"| {name} | {middle(idle, '.1f')} | {middle(busy, '.1f')} | {kept:.0%} |", flush=True
        )


def quick(args) -> None:
    for mode in (compare, compare_busy, compare_whole):
        mode(args)


def peak(device: str, precision: str) -> float:
    """Operations per second of the best of some matrix products."""
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]
    best = 0.0
    for n in (512, 1024, 2048) if device == "cpu" else (2048, 4096, 8192):
        a, b = (torch.randn(n, n, device=device, dtype=kind) for _ in "ab")
        for _ in range(8):
            start = time.perf_counter()
            for _ in range(4):
                c = a @ b
            c[0, 0].item()
            best = max(best, 8 * n**3 / (time.perf_counter() - start))
    return best


def operations_per_row(job) -> tuple[float, float]:
    """Of training and of prediction, without padding and without the token table's look-up."""
    encoder = load_encoder(job.info.path)
    layers = layers_of(encoder)
    weights = sum(p.numel() for layer in layers for p in layer.parameters() if p.ndim == 2)
    n, width = job.dataset.lengths.astype(float), 4 * encoder.config.hidden_size * len(layers)
    forward = float(np.mean(2 * weights * n + width * n**2))
    return 3 * forward, forward


# Where the time goes


KINDS = {  # the first pattern that is found in an operator's name
    "matrix products": r"aten::(add|ba?dd?b|b)?mm|convolution",
    "attention beside them": "softmax|masked_fill|scaled_dot|flash",
    "dropout": "dropout|aten::ge$",
    "GELU": "gelu",
    "norms": "layer_norm|rms_norm",
    "AdamW": "adam|Optimizer",
    "clipping": "linalg_vector_norm|_foreach|stack",
    "copies and casts": "copy_|::to$|contiguous|clone|cat$",
    "token table": "embedding|index",
}


def profiled(work) -> tuple[object, float, dict[str, float]]:
    """What `work` gives, its seconds, and those by kind: the rest is Python, numpy, waiting."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as prof:
        start = time.perf_counter()
        result = work()
        wall = time.perf_counter() - start
    spent = dict.fromkeys([*KINDS, "other operators"], 0.0)
    for e in prof.key_averages():
        kinds = (kind for kind, pattern in KINDS.items() if re.search(pattern, e.key))
        spent[next(kinds, "other operators")] += e.self_cpu_time_total / 1e6
    return result, wall, spent | {"Python, numpy, waiting": wall - sum(spent.values())}


def profile(args) -> None:
    found, masks, epoch = {}, speed.byte_dropout, train.train_one_epoch

    def named(*inputs):
        with torch.profiler.record_function("dropout"):  # also what numpy does in it
            return masks(*inputs)

    def watched(*inputs):
        taken, *found["training"] = profiled(lambda: epoch(*inputs))
        return taken

    speed.byte_dropout, train.train_one_epoch = named, watched
    run = Path(args.folder, "run")
    # The second epoch's profile replaces the first one's: warm.
    if code := train.main([*flags(args, 2), "--fold", "0", "--keep", "last", "--out", str(run)]):
        sys.exit(code)
    predict, _ = predictor(args, run)
    predict()  # warm
    _, *found["prediction"] = profiled(predict)
    for what, (wall, spent) in found.items():
        print(f"\n| {what} | share of {wall:.1f} s |\n|---|---:|")
        for kind, seconds in sorted(spent.items(), key=lambda x: -x[1]):
            print(f"| {kind} | {seconds / wall:.1%} |")


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw, allow_abbrev=False)
    hidden = argparse.SUPPRESS
    parser.add_argument("csv", nargs="?", default=str(HERE / "examples/train.csv"))
    parser.add_argument("--model", default=BUNDLED)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--rows", type=int)
    parser.add_argument(
        "--limit", type=float, default=600, help="seconds of the Trainer's training"
    )
    modes = {"--whole": compare_whole, "--busy": compare_busy, "--profile": profile}
    modes["--quick"] = quick
    for mode in modes:
        parser.add_argument(mode, action="store_true")
    parser.add_argument("--one", choices=("ours", "trainer", "trainer_whole"), help=hidden)
    parser.add_argument("--folder", help=hidden)
    args = parser.parse_args()
    if args.one:
        result = json.dumps(globals()[args.one](args))
        Path(args.folder, "result.json").write_text(result)
        return
    if args.quick:
        args.rows, args.runs, args.limit = args.rows or 150, 1, 60
    with tempfile.TemporaryDirectory() as args.folder:
        if args.rows:
            rows = pd.read_csv(args.csv, dtype=str, keep_default_na=False)[: args.rows]
            args.csv = f"{args.folder}/rows.csv"
            rows.to_csv(args.csv, index=False)
        next((work for mode, work in modes.items() if vars(args)[mode[2:]]), compare)(args)


if __name__ == "__main__":
    main()
