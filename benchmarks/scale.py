"""Time and memory of predict.py by number of rows: python benchmarks/scale.py [--rows N]

On a tenth of N rows and on N, by two folds of a tiny encoder: seconds, rows/s, peak memory. Prints
a Markdown table. N is 1,000,000 if left out.
"""

import sys
import tempfile
from pathlib import Path

from measure import HERE, call, flag_parser

sys.path[:0] = [str(HERE), str(HERE / "tests")]

SHARES = (0.1, 0.5, 0.25, 0.3, 0.3)  # of rows that have each label


def write_big_csv(path: Path, rows: int) -> None:
    """Rows of 2 to 30 words and a number of their own, so that no two are equal; five labels."""
    import numpy as np

    rng = np.random.default_rng(0)
    words = np.array([f"word{i}" for i in range(90)])
    with open(path, "w") as f:
        f.write("id,text,anger,fear,joy,sadness,surprise\n")
        for i in range(rows):
            text = " ".join(words[rng.integers(0, 90, rng.integers(2, 31))])
            y = (rng.random(5) < SHARES).astype(int)
            f.write(f"{i},{text} {i},{','.join(map(str, y))}\n")


def tiny_run(folder: Path) -> Path:
    """Train two folds of a tiny encoder, made for this; the run folder."""
    from conftest import make_bert, make_rows, write_csv

    run = folder / "run"
    encoder = make_bert(folder / "bert")
    csv = write_csv(folder / "train.csv", make_rows(200))
    flags = ["--train", csv, "--model", encoder, "--folds", 2, "--epochs", 1, "--out", run]
    call([HERE / "train.py", *flags])
    return run


def print_table(rows: int, folder: Path) -> None:
    run = tiny_run(folder)
    csv = folder / "big.csv"
    output = folder / "submission.csv"
    print("| rows | seconds | rows/s, two folds | peak resident MB |")
    print("|---:|---:|---:|---:|")
    for n in (rows // 10, rows):
        write_big_csv(csv, n)
        flags = ["--run", run, "--input", csv, "--output", output]
        seconds, mb, _ = call([HERE / "predict.py", *flags])
        assert output.read_text().count("\n") == n + 1
        print(f"| {n:,} | {seconds:.0f} | {n / seconds:,.0f} | {mb:.0f} |", flush=True)


def main() -> None:
    parser = flag_parser(__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="scale-") as folder:
        print_table(args.rows, Path(folder))


if __name__ == "__main__":
    main()
