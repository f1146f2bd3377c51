"""Rows by the million, and several processes: python benchmarks/scale.py [PART ...]

predict: predict.py on 100,000 and on 1,000,000 rows (a tiny encoder): seconds, rows/s, memory.
train: all that train.py does with 1,000,000 rows x 5 labels before a model is trained, by stage.
processes: one epoch of one fold by one process with two threads and by torchrun with two ranks, in
turns, three times each. Flags of train.py are for it. Prints Markdown tables.
"""

import contextlib
import pkgutil
import re
import sys
import tempfile
import time
from pathlib import Path

from measure import HERE, call, flag_parser, in_turns, middle

sys.path[:0] = [str(HERE), str(HERE / "tests")]


def big_csv(path: Path, n: int) -> Path:
    """n rows of 2 to 30 words and a number of their own, so that no two are equal; five labels."""
    import numpy as np

    rng = np.random.default_rng(0)
    words = np.array([f"word{i}" for i in range(90)])
    with open(path, "w") as f:
        f.write("id,text,anger,fear,joy,sadness,surprise\n")
        for i in range(n):
            text = " ".join(words[rng.integers(0, 90, rng.integers(2, 31))])
            y = (rng.random(5) < (0.1, 0.5, 0.25, 0.3, 0.3)).astype(int)
            f.write(f"{i},{text} {i},{','.join(map(str, y))}\n")
    return path


def tiny_run(work: Path) -> Path:
    from conftest import make_bert, make_rows, write_csv

    make_bert(work / "bert")
    data = ["--train", write_csv(work / "t.csv", make_rows(200)), "--model", work / "bert"]
    call([HERE / "train.py", *data, "--folds", 2, "--epochs", 1, "--out", work / "run"])
    return work / "run"


def predict(args, work: Path) -> None:
    run, output = tiny_run(work), work / "s.csv"
    print("| rows | seconds | rows/s, two folds | peak resident MB |\n|---:|---:|---:|---:|")
    for n in (args.rows // 10, args.rows):
        path = big_csv(work / "big.csv", n)
        what = ["--run", run, "--input", path, "--output", output]
        seconds, mb, _ = call([HERE / "predict.py", *what])
        assert output.read_text().count("\n") == n + 1
        print(f"| {n:,} | {seconds:.0f} | {n / seconds:,.0f} | {mb:.0f} |", flush=True)


STAGES = [  # what train.main calls before the first fold
    *("train.read_data", "data.text_hashes", "train.split", "train.inspect_encoder"),
    *("train.encode", "train.report.say_data", "train.check_weights", "train.start_run"),
]


def train(args, work: Path) -> None:
    path = big_csv(work / "big.csv", args.rows)
    seconds, mb, out = call([__file__, "stages", "--train", path, "--out", work / "million"])
    print(f"| stage, {args.rows:,} rows x 5 labels | seconds |\n|---|---:|")
    for name, value in re.findall(r"STAGE (\w+) ([\d.]+)", out):
        print(f"| {name} | {float(value):.1f} |")
    print(f"| the whole process | {seconds:.1f} |\n| peak resident MB | {mb:.0f} |", flush=True)


def stages(args, work: Path) -> None:
    """In a process of its own: train.py up to the first fold, with the seconds of each stage."""

    def timed(real, name: str):
        def call_it(*inputs):
            start = time.perf_counter()
            try:
                return real(*inputs)
            finally:
                print(f"STAGE {name} {time.perf_counter() - start:.3f}", flush=True)

        return call_it

    for stage in STAGES:
        owner, name = stage.rsplit(".", 1)
        module = pkgutil.resolve_name(owner)
        setattr(module, name, timed(getattr(module, name), name))
    program = pkgutil.resolve_name("train")
    program.train_fold = lambda *_: sys.exit()
    with contextlib.suppress(SystemExit):
        timed(program.main, "all")(args.flags)


def processes(args, work: Path) -> None:
    command = [HERE / "train.py", "--epochs", 1, "--folds", 3, "--fold", 0, *args.flags]
    ranks = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]

    def seconds(before: list, threads: int) -> float:
        return call([*before, *command, "--out", tempfile.mkdtemp(dir=work)], threads)[0]

    ways = {"one process, two threads": lambda: seconds([], 2)}
    ways["torchrun, two processes of one thread"] = lambda: seconds(ranks, 1)
    found = in_turns(args.runs, ways)
    print(f"| one fold | seconds, median of {args.runs} (lowest to highest) |\n|---|---:|")
    for name, values in found.items():
        print(f"| {name} | {middle(values, '.1f')} |")


def main() -> None:
    parser = flag_parser(__doc__)
    parts = {"predict": predict, "train": train, "processes": processes}
    parser.add_argument("parts", nargs="*", help=", ".join(parts))
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=3)
    args, args.flags = parser.parse_known_args()
    with tempfile.TemporaryDirectory(prefix="scale-") as work:
        for part in args.parts or parts:
            {**parts, "stages": stages}[part](args, Path(work))


if __name__ == "__main__":
    main()
