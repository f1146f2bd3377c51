"""Rows by the million, and several processes: python benchmarks/scale.py [predict] [train] [processes] [growth]

predict: predict.py on 100,000 and on 1,000,000 rows (a tiny encoder): seconds, rows/s, resident memory.
train: everything train.py does with 1,000,000 rows x 5 labels before a model is trained: seconds by stage, memory.
processes: one fold, one epoch of the sample by one process with two threads and by torchrun with two ranks; three
folds by one process and by three. Alternately, three times each.
growth: microseconds a row for 1,000, 10,000 and 100,000 rows, in turns, medians of 5; memory by the number of folds.
Prints Markdown tables.
"""

import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(HERE), str(HERE / "tests")]
WORK = Path(tempfile.mkdtemp(prefix="scale-"))
ENV = {**os.environ, "HF_HUB_OFFLINE": "1"}
STAGES = "read_csv text_hashes assign_folds inspect_encoder tokenize data_report".split()  # noqa: SIM905
PREPARE = f"""
import sys, time, resource
sys.path.insert(0, {str(HERE)!r})
import report, train
from config import Config, Signals, parse
def timed(owner, name):
    real = getattr(owner, name)
    def call(*args, **kwargs):
        start = time.perf_counter()
        result = real(*args, **kwargs)
        print("STAGE", name, time.perf_counter() - start, flush=True)
        return result
    setattr(owner, name, call)
for name in {STAGES[:-1]!r}:
    timed(train, name)
timed(report, "data_report")
start = time.perf_counter()
job = train.prepare(parse(Config, sys.argv[1:]), Signals(), train.fast.Ranks())
print("STAGE all", time.perf_counter() - start, len(job.table), job.tokens.ids.nbytes / len(job.tokens.ids))
"""


def call(argv: list, threads: int = 2, cwd: Path = WORK) -> tuple[float, float, str]:
    """(seconds, peak resident MB, output) of a command that must end well."""
    start, peak = time.monotonic(), [0.0]
    p = subprocess.Popen([sys.executable, *map(str, argv)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                         cwd=cwd, env={**ENV, "OMP_NUM_THREADS": str(threads)})  # fmt: skip

    def watch() -> None:
        while p.poll() is None:
            status = Path(f"/proc/{p.pid}/status").read_text()
            peak[0] = max([peak[0], *(int(x) / 1024 for x in re.findall(r"VmHWM:\s+(\d+)", status))])
            time.sleep(0.2)

    thread = threading.Thread(target=watch)
    thread.start()
    out = p.communicate()[0]
    thread.join()
    assert p.returncode == 0, out
    return time.monotonic() - start, peak[0], out


def big(path: Path, n: int) -> Path:
    """n rows of 2 to 30 words and a number of their own, so that no two are equal; five labels."""
    import numpy as np

    rng = np.random.default_rng(0)
    words = np.array([f"word{i}" for i in range(90)])
    with open(path, "w") as f:
        f.write("id,text,anger,fear,joy,sadness,surprise\n")
        for start in range(0, n, 10_000):
            m = min(10_000, n - start)
            lengths, y = rng.integers(2, 31, m), (rng.random((m, 5)) < (0.1, 0.5, 0.25, 0.3, 0.3)).astype(int)
            picked = words[rng.integers(0, len(words), (m, 30))]
            for i in range(m):
                text = " ".join(picked[i, : lengths[i]])
                f.write(f"{start + i},{text} {start + i},{','.join(map(str, y[i]))}\n")
    return path


def tiny_run() -> Path:
    from conftest import make_bert, make_rows, write_csv

    make_bert(WORK / "bert")
    train = write_csv(WORK / "t.csv", make_rows(200))
    call(
        [
            HERE / "train.py",
            "--model",
            WORK / "bert",
            "--train",
            train,
            "--folds",
            2,
            "--epochs",
            1,
            "--out",
            WORK / "run",
        ]
    )
    return WORK / "run"


def predict() -> None:
    run = tiny_run()
    print("| rows | seconds | rows/s, two folds | peak resident MB |\n|---:|---:|---:|---:|")
    for n in (100_000, 1_000_000):
        path = big(WORK / "big.csv", n)
        seconds, peak, _ = call(
            [HERE / "predict.py", "--run", run, "--input", path, "--output", WORK / "s.csv"]
        )
        assert (WORK / "s.csv").read_text().count("\n") == n + 1
        print(f"| {n:,} | {seconds:.0f} | {n / seconds:,.0f} | {peak:.0f} |", flush=True)


def train() -> None:
    path = big(WORK / "big.csv", 1_000_000)
    (WORK / "prepare.py").write_text(PREPARE)
    seconds, peak, out = call([WORK / "prepare.py", "--train", path])
    stages = dict(re.findall(r"STAGE (\w+) ([\d.]+)", out))
    print("| stage, 1,000,000 rows x 5 labels | seconds |\n|---|---:|")
    for name, value in stages.items():
        print(f"| {name} | {float(value):.1f} |")
    print(f"| the whole process | {seconds:.1f} |\n| peak resident MB | {peak:.0f} |", flush=True)


def processes() -> None:
    common = ["--epochs", 1, "--ema", 0, "--folds", 3]
    two = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]
    seconds: dict[str, list[float]] = {}
    rates: dict[str, list[float]] = {}
    for i in range(3):
        for name, argv, threads in (("one process, two threads", [HERE / "train.py"], 2), ("torchrun, two ranks", [*two, HERE / "train.py"], 1)):  # fmt: skip
            out = WORK / f"{threads}-{i}"
            taken, _, text = call([*argv, *common, "--fold", 0, "--out", out], threads)
            rate = float(re.search(r"(\d+) rows/s", text)[1])
            seconds.setdefault(f"one fold: {name}", []).append(taken)
            rates.setdefault(f"one fold: {name}, rows/s of training", []).append(rate)
        start = time.monotonic()
        call([HERE / "train.py", *common, "--out", WORK / f"row-{i}"], 1)
        seconds.setdefault("three folds: one process, one thread", []).append(time.monotonic() - start)
        start, out = time.monotonic(), WORK / f"side-{i}"
        argv = [sys.executable, str(HERE / "train.py"), *map(str, common), "--out", str(out)]
        env = {**ENV, "OMP_NUM_THREADS": "1"}
        running = [subprocess.Popen(argv, cwd=WORK, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(3)]  # fmt: skip
        assert [p.wait() for p in running] == [0, 0, 0] and (out / "DONE.json").exists()
        seconds.setdefault("three folds: three processes, one thread each", []).append(
            time.monotonic() - start
        )
        for name in ("oof.csv", "th.npy", "fold_1/model.safetensors"):
            assert (out / name).read_bytes() == (WORK / f"row-{i}" / name).read_bytes()
    print("| what | seconds (or rows/s), median of 3 (lowest to highest) |\n|---|---:|")
    for name, s in (seconds | rates).items():
        print(f"| {name} | {statistics.median(s):.1f} ({min(s):.1f} to {max(s):.1f}) |")


def growth() -> None:
    import torch

    import data
    import model
    from config import BUNDLED, EMOTIONS

    run, tokenizer = tiny_run(), model.inspect_encoder(BUNDLED).tokenizer
    net, small = (
        model.EmotionClassifier.load(run / "fold_0", 5, "mean"),
        model.inspect_encoder(str(run / "fold_0")),
    )
    seconds: dict[str, dict[int, list[float]]] = {}
    sizes = (1_000, 10_000, 100_000)
    paths = {n: big(WORK / f"{n}.csv", n) for n in sizes}

    def once(n: int) -> None:
        start = time.perf_counter()

        def lap(what: str) -> None:
            nonlocal start
            seconds.setdefault(what, {}).setdefault(n, []).append(time.perf_counter() - start)
            start = time.perf_counter()

        table = data.read_csv(paths[n], None, list(EMOTIONS))
        lap("reading and checking the CSV")
        data.assign_folds(table.labels, data.text_hashes(table.texts), 5, 42)
        lap("folds, with the hashes of the texts")
        tokens = data.tokenize(tokenizer, table.texts, 128)
        lap("tokenising (MiniLM's tokenizer)")
        rows, collate = data.EmotionDataset(tokens, table.labels), data.Collator(0)
        for batch in data.length_batches(tokens.lengths, 16, [0]):
            collate([rows[i] for i in batch])
        lap("an epoch's batches of 16")
        assert tokens.ids.nbytes == 4 * len(tokens.ids)
        few = data.tokenize(small.tokenizer, table.texts, 128)
        start = time.perf_counter()
        model.predict_logits(net, few, data.Collator(0), "cpu", "fp32")
        lap("prediction (2 layers of 32)")

    for n in [*sizes, *sizes * 5]:  # the first time warms up
        once(n)
    print(f"{torch.get_num_threads()} threads; microseconds a row, median of 5 (lowest to highest)")
    print(f"\n| | {' | '.join(f'{n:,} rows' for n in sizes)} |\n|---|---:|---:|---:|")
    for what, found in seconds.items():
        per_row = ([1e6 * t / n for t in found[n][1:]] for n in sizes)
        cells = (f"{statistics.median(t):.0f} ({min(t):.0f} to {max(t):.0f})" for t in per_row)
        print(f"| {what} | {' | '.join(cells)} |")
    print("\n| MiniLM, 200 rows of the sample, one epoch | peak resident MB |\n|---|---:|")
    rows = (HERE / "examples/train.csv").read_text().splitlines(keepends=True)[:201]
    (WORK / "few.csv").write_text("".join(rows))
    for folds in (2, 10):
        argv = [
            HERE / "train.py",
            "--train",
            WORK / "few.csv",
            "--epochs",
            1,
            "--folds",
            folds,
            "--out",
            WORK / f"folds-{folds}",
        ]
        print(f"| {folds} folds | {call(argv)[1]:,.0f} |", flush=True)


if __name__ == "__main__":
    parts = {"predict": predict, "train": train, "processes": processes, "growth": growth}
    for part in sys.argv[1:] or parts:
        parts[part]()
