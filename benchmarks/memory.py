"""Memory and time of --gradient-checkpointing: python benchmarks/memory.py --model ENCODER

Three steps of 16 rows, each as long as --tokens says, in one process with one thread, fp32:
without and with the flag. Prints a Markdown table: peak resident memory of train.py, seconds a
step, train.py's own estimate of the memory.
"""

import csv
import json
import sys
import tempfile
from pathlib import Path

from measure import HERE, call, flag_parser

sys.path.insert(0, str(HERE))

ROWS, STEPS = 16, 3


def write_long_csv(path: Path, rows: int, words: int, seed: int) -> Path:
    """Texts of so many words, out of the sample's; half of them have each label."""
    import numpy as np

    from config import EMOTIONS

    with open(HERE / "examples/train.csv", newline="") as f:
        known = " ".join(row["text"] for row in csv.DictReader(f)).split()
    rng = np.random.default_rng(seed)
    with open(path, "w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(["id", "text", *EMOTIONS])
        for i in range(rows):
            writer.writerow([i, " ".join(rng.choice(known, words)), *[i % 2] * len(EMOTIONS)])
    return path


def measure(model: str, tokens: int, flags: list[str], folder: Path) -> str:
    """The table's cells."""
    from config import Config
    from support.encoders import inspect_encoder
    from support.jobs import memory_of_a_fold

    train = write_long_csv(folder / "train.csv", ROWS * STEPS, tokens, 0)  # a word or more each
    valid = write_long_csv(folder / "valid.csv", 2, tokens, 1)
    run = folder / f"run-{tokens}-{len(flags)}"
    argv = ["--train", train, "--valid", valid, "--model", model, "--max-length", tokens]
    argv += ["--epochs", 1, "--batch-size", ROWS, "--precision", "fp32", "--out", run]
    _, peak, _ = call([HERE / "train.py", *argv, "--threads", 1, "--jobs", 1, *flags], threads=1)
    (entry,) = map(json.loads, (run / "fold_0/log.jsonl").read_text().splitlines())
    config = Config(batch_size=ROWS, gradient_checkpointing=bool(flags))
    estimate = memory_of_a_fold(inspect_encoder(model), config, tokens)
    seconds = ROWS / entry["rows_per_s"]
    return f"{peak / 1024:.2f} | {seconds:.1f} | {estimate / 2**30:.1f}"


def main() -> None:
    parser = flag_parser(__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--tokens", type=int, nargs="+", default=[128, 512])
    args = parser.parse_args()
    print("| tokens | flag | peak memory, GB | seconds a step | estimate, GB |", flush=True)
    print("|---:|---|---:|---:|---:|", flush=True)
    for tokens in args.tokens:
        for flags in ([], ["--gradient-checkpointing"]):
            with tempfile.TemporaryDirectory(prefix="memory-") as folder:
                cells = measure(args.model, tokens, flags, Path(folder))
            print(f"| {tokens} | {' '.join(flags) or '-'} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
