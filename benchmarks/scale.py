"""Time and memory of predict.py by number of rows: python benchmarks/scale.py [--rows N]

On a tenth of N rows and on N, by two folds of a tiny encoder: seconds, rows/s, peak memory. Prints
a Markdown table. N is 1,000,000 if left out.
"""

import sys
import tempfile
from pathlib import Path

from measure import HERE, call, flag_parser

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


def main() -> None:
    parser = flag_parser(__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="scale-") as work:
        predict(args, Path(work))


if __name__ == "__main__":
    main()
