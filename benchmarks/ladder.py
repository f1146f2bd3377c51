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
from support.finished import FinishedRun
from support.process import UserError, exit_codes
from tools.parts.difference import Judged

WAYS = {"folds": "predict.py", "fp32": "ONNX, fp32", "int8": "ONNX, int8"}
COLUMNS = (
    "step",
    "rows/s",
    "without start-up",
    "MB",
    "macro-F1",
    "micro-F1",
    "mean AP",
    "largest difference",
)


@dataclass
class Step:
    """One run that predicts in one way."""

    run: FinishedRun
    table: Table  # the rows held back
    way: str  # of WAYS
    folder: Path  # of its predictions, and of the graph; the other ways' lie beside it

    def make(self) -> None:
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        if self.way == "folds":
            self.folder.mkdir()
        else:
            flags = ["--int8"] if self.way == "int8" else []
            call([HERE / "tools/export.py", self.run.path, self.folder, *flags])

    @property
    def verdicts(self) -> Path:
        return self.folder / "verdicts.csv"

    @property
    def probabilities(self) -> Path:
        return self.folder / "probabilities.csv"

    def predict(self, csv: Path) -> float:
        """Seconds of the whole command."""
        if self.way == "folds":
            flags = ["--run", self.run.path, "--input", csv, "--output", self.verdicts]
            flags += ["--probabilities", self.probabilities]
            flags += ["--device", "cpu", "--precision", "fp32"]
            command = [HERE / "predict.py", *flags]
        else:
            program = self.folder / "predict_onnx.py"
            command = [program, csv, self.verdicts, self.probabilities]
        seconds, _, _ = call(command, threads=1)
        return seconds

    def line(self, seconds: list[tuple[float, float]]) -> str:
        """Of the table; `seconds`: pairs, for the first row alone and for all."""
        n = len(self.table)
        rates = [n / whole for _, whole in seconds]
        gaps = [whole - start_up for start_up, whole in seconds]
        rate = "too few rows"
        if min(gaps) > 0:
            rate = middle([(n - 1) / gap for gap in gaps])
        p = read_values(self.probabilities)
        of_folds = read_values(self.folder.with_name("folds") / self.probabilities.name)
        cells = [
            f"{self.run.path.name}, {WAYS[self.way]}",
            middle(rates),
            rate,
            f"{self.megabytes():.1f}",
            *(f"{score:.4f}" for score in self.scores(p)),
            f"{np.abs(p - of_folds).max():.1g}",
        ]
        return f"| {' | '.join(cells)} |"

    def megabytes(self) -> float:
        files = self.folder.glob("model.onnx*")
        if self.way == "folds":
            files = self.run.path.glob("fold_*/*.safetensors")
        return sum(file.stat().st_size for file in files) / 2**20

    def scores(self, p: np.ndarray) -> np.ndarray:
        """(3,): macro-F1, micro-F1, mean average precision."""
        rows = np.arange(len(self.table))
        pred = read_values(self.verdicts) == 1
        judged = Judged(rows, 0 * rows, self.table.y, p, pred)
        return judged.scores(rows >= 0)[:3]


def read_values(path: Path) -> np.ndarray:
    """(N, C): what stands behind the ids."""
    return pd.read_csv(path).to_numpy()[:, 1:].astype(float)


def read_rows(csv: str, run: FinishedRun) -> Table:
    """UserError for rows that stand in the run."""
    config = Config(
        labels=run.names,
        text_column=run.config.text_column,
        soft_labels=run.config.soft_labels,
    )
    table = read_table(csv, config)
    if known := np.isin(table.hashes, run.seen).sum():
        problem = f"{known} of {len(table)} texts stand in {run.path}"
        raise UserError(f"{csv}: {problem} - name rows that no run has seen")
    return table


def make_steps(csv: str, folders: list[str], work: Path) -> list[Step]:
    """All checked before the first is made."""
    steps = []
    for i, folder in enumerate(folders, 1):
        run = FinishedRun(folder, "cpu", "fp32")
        table = read_rows(csv, run)
        steps += [Step(run, table, way, work / str(i) / way) for way in WAYS]
    for step in steps:
        step.make()
    return steps


@exit_codes
def main(argv: list[str] | None = None) -> int:
    parser = flag_parser(__doc__)
    parser.add_argument("csv", metavar="HELD_BACK.csv")
    parser.add_argument("runs", metavar="RUN", nargs="+")
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        steps = make_steps(args.csv, args.runs, args.folder or Path(temporary))
        first_row = Path(temporary, "first.csv")
        pd.read_csv(args.csv, dtype=str, keep_default_na=False)[:1].to_csv(first_row, index=False)
        if hasattr(os, "sched_setaffinity"):  # which the commands inherit
            os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
        # The last predictions, which are scored, are those of all rows.
        turns = {
            step.folder: lambda step=step: (step.predict(first_row), step.predict(args.csv))
            for step in steps
        }
        seconds = in_turns(3, turns)
        print(f"\n| {' | '.join(COLUMNS)} |")
        print(f"|---{'|---:' * (len(COLUMNS) - 1)}|")
        for step in steps:
            print(step.line(seconds[step.folder]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
