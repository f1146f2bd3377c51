"""Rows per second against the usual ways: python benchmarks/speed.py [CSV] [--model M] [--runs 5] [--rows N]

Same data, encoder, batch of 16 and processor; one epoch of fold 0 of 5, then prediction of all rows by that one model;
taken in turns, each in a process of its own, medians of the ratios. `trainer`: transformers' Trainer at its best (fused
AdamW, batches grouped by length, bf16 where the processor has it; needs accelerate). `notebook`: the loop this grew
from (padding to 128, fp32, plain AdamW, two loader workers). Shares: floating-point operations on tokens that are no
padding (6 a weight and token in training, 2 in prediction, and attention), over the best matrix product measured.
--whole: instead, whole commands: train.py with 5 folds of 4 epochs and predict.py on the same CSV, against the same by
the Trainer with tokenising, validation and the best model's saving at every epoch; seconds and peak memory.
--profile: instead, where the time of our training steps and of prediction goes, by kind of work.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HERE))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pandas as pd
import torch

import metrics
import train
from config import BUNDLED, EMOTIONS, Config, Signals, parse
from data import EmotionDataset
from model import EmotionClassifier, length_multiple, resolve_device, sigmoid

BATCH = 16


def prepared(args) -> train.Job:
    flags = ["--train", args.csv, "--model", args.model, "--batch-size", str(BATCH), "--epochs", "1"]
    return train.prepare(parse(Config, flags), Signals(), train.fast.Ranks())


def split(job: train.Job, rows: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and to predict, the same for all."""
    return np.flatnonzero(job.fold != 0)[:rows], np.arange(len(job.table))[:rows]


def ours(args) -> dict:
    job = prepared(args)
    job = train.shrink_vocabulary(job, train.load_encoder(job.info.path))
    rows, new = split(job, args.rows)
    with tempfile.TemporaryDirectory() as d:
        fold = train.start_fold(job, Path(d), 0)
        fold.train, fold.at["stats"] = rows, torch.zeros(-(-len(rows) // BATCH), 2)
        rate = train.train_epoch(fold)
        tokens, config = train.subset(job.tokens, new), job.config
        start = time.perf_counter()
        train.predict_logits(fold.model, tokens, job.collator(), config.device, config.precision)
    return {"train": rate, "predict": len(new) / (time.perf_counter() - start)}


def coach(job: train.Job, rows: np.ndarray, folder: str, held: np.ndarray | None = None, epochs: int = 1):
    """transformers' Trainer on these rows, and a maker of its datasets; with `held` it judges each epoch on those."""
    from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

    class Rows(torch.utils.data.Dataset):
        def __init__(self, which: np.ndarray):
            self.which, self.all = which, EmotionDataset(job.tokens, job.table.labels)

        def __len__(self) -> int:
            return len(self.which)

        def __getitem__(self, i: int) -> dict:
            item = self.all[self.which[i]]
            return {**item, "length": len(item["input_ids"])}

    def judged(found) -> dict:
        return metrics.scores(found.label_ids, found.predictions >= 0)

    model = AutoModelForSequenceClassification.from_pretrained(job.info.path, num_labels=len(EMOTIONS), problem_type="multi_label_classification", dtype=torch.float32)  # fmt: skip
    keep = {"save_strategy": "no"}
    if held is not None:
        keep = dict(eval_strategy="epoch", save_strategy="epoch", save_total_limit=1, load_best_model_at_end=True, metric_for_best_model="macro_f1")  # fmt: skip
    how = TrainingArguments(folder, per_device_train_batch_size=BATCH, per_device_eval_batch_size=64, num_train_epochs=epochs, learning_rate=5e-5, weight_decay=0.01,
                            warmup_steps=0.1, bf16=job.config.precision == "bf16", use_cpu=not torch.cuda.is_available(), report_to=[], disable_tqdm=True, logging_steps=10**9,
                            remove_unused_columns=False, optim="adamw_torch_fused", train_sampling_strategy="group_by_length", **keep)  # fmt: skip
    held = None if held is None else Rows(held)
    return Trainer(model, how, data_collator=job.collator(), train_dataset=Rows(rows), eval_dataset=held, compute_metrics=judged), Rows  # fmt: skip


def trainer(args) -> dict:
    job = prepared(args)
    rows, new = split(job, args.rows)
    with tempfile.TemporaryDirectory() as d:
        it, Rows = coach(job, rows, d)
        start = time.perf_counter()
        it.train()
        taken, start = time.perf_counter() - start, time.perf_counter()
        it.predict(Rows(new))
    return {"train": len(rows) / taken, "predict": len(new) / (time.perf_counter() - start)}


def trainer_whole(args) -> dict:
    """Five folds and the mean of their probabilities on the same CSV, read and tokenised anew."""
    job, new, total = prepared(args), prepared(args), 0.0
    for k in range(5):
        with tempfile.TemporaryDirectory(dir=args.folder) as d:
            it, Rows = coach(job, np.flatnonzero(job.fold != k), d, np.flatnonzero(job.fold == k), 4)
            it.train()
            total = total + sigmoid(it.predict(Rows(np.arange(len(new.table)))).predictions)
    table = pd.DataFrame(total / 5 >= 0.5, columns=EMOTIONS).astype(int)
    table.insert(0, "id", job.table.ids)
    table.to_csv(Path(args.folder, "trainer.csv"), index=False)
    return {}


def whole(args) -> None:
    """Seconds and peak memory of whole commands, in turns."""
    found: dict[str, list] = {"ours": [], "trainer": []}
    with tempfile.TemporaryDirectory() as d:
        few = Path(d, "rows.csv")
        rows = pd.read_csv(args.csv, dtype=str, keep_default_na=False)[: args.rows]
        rows.to_csv(few, index=False)
        model = ["--model", args.model]
        for i in range(args.runs):
            run = str(Path(d, f"run{i}"))
            commands = {
                "ours": [
                    [HERE / "train.py", "--train", few, *model, "--epochs", "4", "--out", run],
                    [HERE / "predict.py", "--run", run, "--input", few, "--output", Path(d, "ours.csv")],
                ],
                "trainer": [[__file__, few, *model, "--one", "trainer_whole", "--folder", d]],
            }
            for name, calls in commands.items():
                start, peak_mb = time.perf_counter(), 0.0
                for call in calls:
                    child = subprocess.Popen([sys.executable, *map(str, call)], stdout=subprocess.DEVNULL)
                    _, code, used = os.wait4(child.pid, 0)
                    if code:
                        sys.exit(f"{name}: exit {code}")
                    peak_mb = max(peak_mb, used.ru_maxrss / 1024)
                found[name].append((time.perf_counter() - start, peak_mb))
                print(name, "{:.1f} s, {:.0f} MB".format(*found[name][-1]), flush=True)
    print(f"\n{len(rows)} rows, medians of {args.runs} (lowest to highest)\n")
    print("| whole command | seconds | peak memory, MB |\n|---|---:|---:|")
    for name, pairs in found.items():
        columns = [
            f"{statistics.median(x):.0f} ({min(x):.0f} to {max(x):.0f})" for x in zip(*pairs, strict=True)
        ]
        print(f"| {name} | {' | '.join(columns)} |")
    times = [b / a for (a, _), (b, _) in zip(found["ours"], found["trainer"], strict=True)]
    print(f"\nours is {statistics.median(times):.2f} ({min(times):.2f} to {max(times):.2f}) times as fast")


def notebook(args) -> dict:
    job = prepared(args)
    rows, new = split(job, args.rows)
    tokenizer, texts, labels = job.info.tokenizer, job.table.texts, job.table.labels
    device = torch.device(job.config.device)
    scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")

    class Rows(torch.utils.data.Dataset):
        def __init__(self, which: np.ndarray):
            self.which = which

        def __len__(self) -> int:
            return len(self.which)

        def __getitem__(self, i: int) -> tuple:
            i = self.which[i]
            e = tokenizer(
                texts[i], truncation=True, padding="max_length", max_length=128, return_tensors="pt"
            )
            return e["input_ids"][0], e["attention_mask"][0], torch.tensor(labels[i])

    model = EmotionClassifier(train.load_encoder(job.info.path), len(EMOTIONS), "cls", 0.3).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5)
    start = time.perf_counter()
    for ids, mask, y in torch.utils.data.DataLoader(Rows(rows), BATCH, shuffle=True, num_workers=2):
        optimizer.zero_grad()
        with torch.autocast(device.type, enabled=device.type == "cuda"):
            loss = torch.nn.functional.binary_cross_entropy_with_logits(model(ids.to(device), mask.to(device)), y.to(device))  # fmt: skip
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        loss.item()
    taken, start = time.perf_counter() - start, time.perf_counter()
    model.eval()
    with torch.no_grad():
        for ids, mask, _ in torch.utils.data.DataLoader(Rows(new), BATCH, num_workers=2):
            model(ids.to(device), mask.to(device)).cpu()
    return {"train": len(rows) / taken, "predict": len(new) / (time.perf_counter() - start)}


KINDS = {  # the first pattern that is found in an operator's name
    "matrix products": r"aten::(add|ba?dd?b|b)?mm|convolution",
    "attention beside them": "softmax|masked_fill|scaled_dot|flash",
    "dropout": "dropout|aten::ge$",
    "GELU": "gelu",
    "norms": "layer_norm|rms_norm",
    "AdamW": "adam|Optimizer",
    "clipping, running mean of the weights": "linalg_vector_norm|lerp|_foreach|stack",
    "copies and casts": "copy_|::to$|contiguous|clone|cat$",
    "token table": "embedding|index",
}


def profile(args) -> None:
    """Shares of the time by kind of operator; what no operator accounts for is Python and numpy."""
    job = prepared(args)
    job = train.shrink_vocabulary(job, train.load_encoder(job.info.path))
    rows, new = split(job, args.rows)
    masks = train.fast.byte_dropout

    def named(*inputs):
        with torch.profiler.record_function("dropout"):  # also what numpy does in it
            return masks(*inputs)

    train.fast.byte_dropout = named
    with tempfile.TemporaryDirectory() as d:
        fold, config = train.start_fold(job, Path(d), 0), job.config
        fold.train, fold.at["stats"] = rows, torch.zeros(-(-len(rows) // BATCH), 2)
        tokens = train.subset(job.tokens, new)
        parts = {
            "training": lambda: train.train_epoch(fold),
            "prediction": lambda: train.predict_logits(
                fold.model, tokens, job.collator(), config.device, config.precision
            ),
        }
        print(f"{config.device}, {config.precision}, {torch.get_num_threads()} threads, {len(rows)} rows")
        for what, run in parts.items():
            run()  # warm
            fold.at["step"] = 0
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as prof:
                start = time.perf_counter()
                run()
                wall = time.perf_counter() - start
            spent = dict.fromkeys([*KINDS, "other operators"], 0.0)
            for e in prof.key_averages():
                kind = next(
                    (k for k, pattern in KINDS.items() if re.search(pattern, e.key)), "other operators"
                )
                spent[kind] += e.self_cpu_time_total / 1e6
            spent["Python, numpy, waiting"] = wall - sum(spent.values())
            print(f"\n| {what} | share of {wall:.1f} s |\n|---|---:|")
            for kind, seconds in sorted(spent.items(), key=lambda x: -x[1]):
                print(f"| {kind} | {seconds / wall:.1%} |")


def peak(device: str, precision: str) -> float:
    """Operations per second of the best of some matrix products."""
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]
    best = 0.0
    for n in (512, 1024, 2048):
        a, b = (torch.randn(n, n, device=device, dtype=kind) for _ in "ab")
        for _ in range(8):
            start = time.perf_counter()
            for _ in range(4):
                c = a @ b
            c[0, 0].item()
            best = max(best, 8 * n**3 / (time.perf_counter() - start))
    return best


def operations(args) -> tuple[float, float]:
    """Per row: of training and of prediction, without padding and without the token table's look-up."""
    job = prepared(args)
    encoder = train.load_encoder(job.info.path)
    weights = sum(p.numel() for layer in train.layers_of(encoder) for p in layer.parameters() if p.ndim == 2)
    hidden, layers, n = encoder.config.hidden_size, len(train.layers_of(encoder)), job.tokens.lengths
    forward = float(np.mean(2 * weights * n + 4 * hidden * layers * n.astype(float) ** 2))
    return 3 * forward, forward


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("csv", nargs="?", default=str(HERE / "examples/train.csv"))
    parser.add_argument("--model", default=BUNDLED)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--rows", type=int)
    parser.add_argument(
        "--against", nargs="+", choices=("trainer", "notebook"), default=("trainer", "notebook")
    )
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument(
        "--one", choices=("ours", "trainer", "notebook", "trainer_whole"), help=argparse.SUPPRESS
    )
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.profile or args.whole:
        return profile(args) if args.profile else whole(args)
    if args.one:
        print("RESULT", json.dumps(globals()[args.one](args)))
        return
    rates: dict[str, list[dict]] = {name: [] for name in ("ours", *args.against)}
    for _ in range(args.runs):
        for name, found in rates.items():
            done = subprocess.run(
                [sys.executable, __file__, *sys.argv[1:], "--one", name], capture_output=True, text=True
            )
            if "RESULT" not in done.stdout:
                sys.exit(done.stderr)
            found.append(json.loads(done.stdout.split("RESULT")[1]))
            print(name, found[-1], flush=True)
    device, precision = resolve_device("auto", "auto")
    limit, of = peak(device, precision), dict(zip(("train", "predict"), operations(args), strict=True))
    print(f"\n{device}, {precision}, {torch.get_num_threads()} threads, lengths to a multiple of {length_multiple(device, precision)}; best matrix product {limit / 1e12:.3f} TFLOP/s; medians of {args.runs} (lowest to highest)\n")  # fmt: skip
    print("| | rows/s | ours is x times as fast | share of the limit |\n|---|---:|---:|---:|")
    for what in ("train", "predict"):
        for name, found in rates.items():
            r = [x[what] for x in found]
            times = [a[what] / b for a, b in zip(rates["ours"], r, strict=True)]
            spread = (
                f"{statistics.median(times):.2f} ({min(times):.2f} to {max(times):.2f})"
                if name != "ours"
                else ""
            )
            share = of[what] * statistics.median(r) / limit
            print(
                f"| {what}, {name} | {statistics.median(r):.0f} ({min(r):.0f} to {max(r):.0f}) | {spread} | {share:.0%} |"
            )


if __name__ == "__main__":
    main()
