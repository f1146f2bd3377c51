"""From five folds to one small fast file: what each step costs and gains.

    python benchmarks/ladder.py HELD_BACK.csv RUN [RUN ...] [--folder DIR]

HELD_BACK.csv: labelled rows that no run has seen. Each run predicts them in three ways: predict.py
(all folds, torch, fp32), the ONNX graph that tools/export.py makes of it, and its int8 graph. Rates
are those of one core: of the whole command, and without its start-up, which is what it takes for
the first row alone. Three repetitions in turns, medians. MB: of the weights. Difference: of a
probability to predict.py's. --folder: a new one, where graphs and predictions stay.
"""

import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from measure import HERE, call, flag_parser, in_turns, middle

sys.path.insert(0, str(HERE))

import numpy as np
import pandas as pd

from config import Config
from data import Table, read_table
from support.errors import UserError, exit_codes
from support.files import read_npy
from support.results import find_run, read_settings
from support.run import Run
from tools.luck import Scored

WAYS = {"folds": "predict.py", "fp32": "ONNX, fp32", "int8": "ONNX, int8"}
HEAD = "what | rows/s | without start-up | MB | macro-F1 | micro-F1 | mean AP | largest difference"


@dataclass
class Way:
    run: Run
    data: Table  # the rows held back
    how: str  # of WAYS
    folder: Path  # of its predictions, and of the graph; the other ways' lie beside it

    def make(self) -> None:
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        if self.how == "folds":
            self.folder.mkdir()
        else:
            flags = ["--int8"] if self.how == "int8" else []
            call([HERE / "tools/export.py", self.run.path, self.folder, *flags])

    def predict(self, new: Path) -> float:
        """Seconds of the whole command."""
        said, p = self.folder / "said.csv", self.folder / "probabilities.csv"
        if self.how != "folds":
            return call([self.folder / "predict_onnx.py", new, said, p], threads=1)[0]
        files = ["--run", self.run.path, "--input", new, "--output", said, "--probabilities", p]
        flags = [*files, "--device", "cpu", "--precision", "fp32"]
        return call([HERE / "predict.py", *flags], threads=1)[0]

    def line(self, seconds: list) -> str:
        """Of the table; `seconds`: pairs, for the first row alone and for all."""
        n, rows = len(self.data), np.arange(len(self.data))
        gaps = [whole - start_up for start_up, whole in seconds]
        rate = middle([(n - 1) / gap for gap in gaps]) if min(gaps) > 0 else "too few rows"
        graph, folds = self.folder.glob("model.onnx*"), self.run.path.glob("fold_*/*.safetensors")
        mb = sum(f.stat().st_size for f in (folds if self.how == "folds" else graph)) / 2**20
        names = "said.csv", "probabilities.csv", "../folds/probabilities.csv"
        said, p, other = (values(self.folder / name) for name in names)
        scores = Scored(rows, 0 * rows, self.data.labels, said == 1, p).scores(rows >= 0)[:3]
        cells = [f"{self.run.path.name}, {WAYS[self.how]}", middle([n / x for _, x in seconds])]
        cells += [rate, f"{mb:.1f}", *(f"{x:.4f}" for x in scores)]
        return f"| {' | '.join(cells)} | {np.abs(p - other).max():.1g} |"


def values(path: Path) -> np.ndarray:
    """(N, C): what stands behind the ids."""
    return pd.read_csv(path).to_numpy()[:, 1:].astype(float)


def read_rows(csv: str, run: Run) -> Table:
    """UserError for rows that stand in the run."""
    config = read_settings(run, "cpu", "fp32")
    same = {name: getattr(config, name) for name in ("labels", "text_column", "soft_labels")}
    data = read_table(csv, Config(**same))
    known = read_npy(run.path / "texts.npy", "u", "text hashes")
    if seen := np.isin(data.hashes, known).sum():
        what = f"{seen} of {len(data)} texts stand in {run.path}"
        raise UserError(f"{csv}: {what} - name rows that no run has seen")
    return data


@exit_codes
def main(argv: list[str] | None = None) -> int:
    parser = flag_parser(__doc__)
    parser.add_argument("csv", metavar="HELD_BACK.csv")
    parser.add_argument("runs", metavar="RUN", nargs="+")
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args(argv)
    pairs = [(run, read_rows(args.csv, run)) for run in map(find_run, args.runs)]
    with tempfile.TemporaryDirectory() as temporary:
        folder, first = args.folder or Path(temporary), Path(temporary, "first.csv")
        pd.read_csv(args.csv, dtype=str, keep_default_na=False)[:1].to_csv(first, index=False)
        ways = []
        for i, pair in enumerate(pairs, 1):
            ways += [Way(*pair, how, folder / str(i) / how) for how in WAYS]
        for way in ways:
            way.make()
        if hasattr(os, "sched_setaffinity"):  # which the commands inherit
            os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
        turns = {w.folder: lambda w=w: [w.predict(x) for x in (first, args.csv)] for w in ways}
        found = in_turns(3, turns)  # ends with the predictions of all rows
        print(f"\n| {HEAD} |\n|---{'|---:' * 7}|")
        for way in ways:
            print(way.line(found[way.folder]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
