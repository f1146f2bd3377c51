"""How often does tools/compare.py err?

    python benchmarks/error_rates.py null DIR [--repetitions 500] [--only WORDS]
    python benchmarks/error_rates.py same CSV DIR --runs 12 [flags of train.py]
    python benchmarks/error_rates.py samples CSV DIR --other "--epochs 2" [flags of train.py]

null: runs made up, both sides of one recipe (null_cases.py), so that every difference that is
called is false. Which share is called? It should be 5 %.
same: real runs of one recipe on the same folds; --seed alone differs. Which share of their pairs,
and of pairs of three runs a side, is called different? It should be 5 %.
samples: recipe A (the flags) and B (--other's too) on disjoint samples of the rows. Which share of
the intervals holds the truth, the mean difference on the other samples? It should be 95 %.
What is in DIR already is not computed again; weights are removed. The interval of a share leaves
out each run (or sample) once, as pairs share runs.
"""

import argparse
import itertools
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from measure import HERE, flag_parser
from scipy.stats import t

sys.path.insert(0, str(HERE))

import null_cases

from config import Config
from data import read_table
from support.csvwriter import csv_text
from support.process import UserError, exit_codes
from tools import compare
from tools.parts.difference import Difference, Pair, combine, draw_rows, measure

SCORES = {"macro-F1": 0, "micro-F1": 1, "mean average precision": 2}  # in a score vector


# null


def null(args: argparse.Namespace, _: list[str]) -> None:
    """The table of false verdicts, as Markdown; a line a case, as it is finished."""
    args.folder.mkdir(parents=True, exist_ok=True)
    print(NULL_HEADER, flush=True)
    with ProcessPoolExecutor(args.processes) as pool:
        for case in null_cases.CASES:
            if args.only is None or args.only in case.name:
                n = case.repetitions(args.repetitions)
                draws = repeat(pool, args.folder, case.name, case.gap_and_half, n)
                print(null_line(case.name, *draws.swapaxes(0, 1)), flush=True)
        for name, look in null_cases.LOOKS.items():
            if args.only is None or args.only in name:
                draws = repeat(pool, args.folder, name, look, args.repetitions * 2 // 5)
                both = "; ".join(f"{x:.4f}" for x in draws.astype(float).mean(0))
                print(f"{name}: {both} (n {len(draws)})", flush=True)


def repeat(
    pool: ProcessPoolExecutor, folder: Path, name: str, draw: Callable, repetitions: int
) -> np.ndarray:
    """What `draw` gives for the seeds 0, 1, ...; from the file of it that is there already."""
    path = folder / ("".join(c if c.isalnum() else "_" for c in name) + ".npy")
    if not path.exists():
        np.save(path, np.array(list(pool.map(draw, range(repetitions), chunksize=5))))
    return np.load(path)


COLUMNS = [
    "both sides the same",
    "n",
    *(f"called: {name}" for name in SCORES),
    "a label",
    *(f"width: {name}" for name in ("macro-F1", "micro-F1")),
    "sees +0.02",
    "+0.05",
]
NULL_HEADER = f"| {' | '.join(COLUMNS)} |\n|---|{'---:|' * (len(COLUMNS) - 1)}"


def null_line(name: str, gap: np.ndarray, half: np.ndarray) -> str:
    """gap, half: (repetitions, 3 + C). Width: the mean half interval by 1.96 standard deviations
    of B - A. Sees: how often an interval moved by so much would leave 0 out."""
    called = (np.abs(gap) > half).mean(0)
    width = half.mean(0) / gap.std(0, ddof=1) / 1.96
    sees = [np.mean(np.abs(gap[:, 0] + lift) > half[:, 0]) for lift in (0.02, 0.05)]
    shares = [*called[:3], called[3:].mean()]
    cells = [*(f"{x:.1%}" for x in shares), f"{width[0]:.2f}", f"{width[1]:.2f}"]
    cells += [f"{x:.0%}" for x in sees]
    return f"| {name} | {len(gap)} | {' | '.join(cells)} |"


# Real runs


def train(out: Path, csv: Path, flags: list[str]) -> None:
    """Train the run at `out`, unless it is there."""
    if (out / "DONE.json").exists():
        return
    command = [sys.executable, HERE / "train.py", "--train", csv, "--out", out, *flags]
    if subprocess.run([str(word) for word in command]).returncode:
        raise UserError(f"{out}: train.py failed - see above", 1)
    for weights in out.glob("fold_*/*.safetensors"):
        weights.unlink()


def read_measured(folders: list[Path], csv: Path) -> list:
    """What was measured of runs on equal folds, on the same draws of rows."""
    first, *others = [str(folder) for folder in folders]
    pairs, groups, _ = compare.read_runs([first], others, [str(csv)])
    runs = [run for pair in pairs for side in pair for run in side]
    times = draw_rows(np.unique(runs[0].rows), groups)
    return [measure(run, times, groups) for run in runs]


def share(hits: np.ndarray, members: list[set[int]]) -> str:
    """The share of hits (n,), with a jackknife over what they have in common: members[i] are the
    runs or samples that hit i comes from."""
    without = []  # the share without each run or sample
    for left_out in sorted(set.union(*members)):
        rest = [left_out not in own for own in members]
        if any(rest):
            without.append(hits[rest].mean())
    n = len(without)
    if n < 2:
        return f"{hits.mean():.1%} [too few for an interval]"
    error = np.sqrt((n - 1) / n * np.sum((without - np.mean(without)) ** 2))
    low, high = np.clip(hits.mean() + t.ppf([0.025, 0.975], n - 1) * error, 0, 1)
    return f"{hits.mean():.1%} [{low:.1%}, {high:.1%}]"


def gaps_and_halves(found: list[Difference], j: int) -> tuple[np.ndarray, np.ndarray]:
    """Of score j: B - A, and half of the interval."""
    gap = np.array([difference.b[j] - difference.a[j] for difference in found])
    half = np.array([difference.half[j] for difference in found])
    return gap, half


# same


def same(args: argparse.Namespace, flags: list[str]) -> None:
    if args.runs < 3:
        hint = "an interval leaves out one run after the other"
        raise UserError(f"--runs {args.runs}: at least three runs are needed - {hint}")
    folders = []
    for seed in range(args.runs):
        folder = args.folder / f"seed_{seed}"
        seeds = ["--seed", str(seed), "--split-seed", str(args.split_seed)]
        train(folder, args.csv, [*seeds, *flags])
        folders.append(folder)
    runs = read_measured(folders, args.csv)
    f1 = [run.score[0] for run in runs]
    print(f"{len(runs)} runs: macro-F1 {np.mean(f1):.4f}, deviation {np.std(f1, ddof=1):.4f}")
    rng = np.random.default_rng(0)
    for size in (1, 2, 3):
        if 2 * size <= len(runs):
            print_called_different(runs, size, args.pairs, rng)


def print_called_different(runs: list, size: int, most: int, rng: np.random.Generator) -> None:
    """Of pairs with `size` runs a side; of `most` of them, where there are more."""
    sides = itertools.combinations(range(len(runs)), size)
    numbers = [(a, b) for a, b in itertools.combinations(sides, 2) if not set(a) & set(b)]
    numbers = [numbers[i] for i in rng.permutation(len(numbers))[:most]]
    members = [{*a, *b} for a, b in numbers]
    found = [combine([Pair([runs[i] for i in a], [runs[i] for i in b])]) for a, b in numbers]
    for name, j in SCORES.items():
        gap, half = gaps_and_halves(found, j)
        called = share(np.abs(gap) > half, members)
        root_mean_square = np.sqrt(np.mean(gap**2))
        sizes = f"differences {root_mean_square:.4f}, half intervals {half.mean():.4f}"
        print(f"{size} a side, {len(numbers)} pairs, {name}: {called} called different | {sizes}")


# samples


def samples(args: argparse.Namespace, flags: list[str]) -> None:
    if args.samples < 2:
        hint = "the truth of one is the mean of the others"
        raise UserError(f"--samples {args.samples}: at least two are needed - {hint}")
    args.folder.mkdir(parents=True, exist_ok=True)
    found = []
    for i, csv in enumerate(write_samples(args)):
        recipe = [*flags, "--seed", str(i)]
        folder_a = args.folder / f"a_{i}"
        folder_b = args.folder / f"b_{i}"
        train(folder_a, csv, recipe)
        train(folder_b, csv, [*recipe, *args.other.split()])
        a, b = read_measured([folder_a, folder_b], csv)
        found.append(combine([Pair([a], [b])]))
    for name, j in SCORES.items():
        gap, half = gaps_and_halves(found, j)
        truth = (gap.sum() - gap) / (len(gap) - 1)  # of each sample: the mean of the others
        holds = share(np.abs(gap - truth) <= half, [{i} for i in range(len(gap))])
        sizes = f"B - A {gap.mean():+.4f}, deviation {gap.std(ddof=1):.4f}"
        print(f"{len(gap)} samples, {name}: {holds} hold | {sizes}, half {half.mean():.4f}")


def write_samples(args: argparse.Namespace) -> list[Path]:
    """CSV files of --rows rows each, none of them in two files."""
    names = Config().labels
    table = read_table(str(args.csv), Config())
    rows = args.samples * args.rows
    if rows > len(table):
        hint = "see --samples and --rows"
        raise UserError(f"{args.csv}: {len(table)} rows, but the samples take {rows} - {hint}")
    order = np.random.default_rng(0).permutation(len(table))
    paths = []
    for i, sample in enumerate(order[:rows].reshape(args.samples, -1)):
        lines = [["id", "text", *names]]
        lines += [[table.ids[j], table.texts[j], *table.y[j].astype(int)] for j in sample]
        paths.append(args.folder / f"sample_{i}.csv")
        paths[-1].write_text(csv_text(lines), encoding="utf-8")
    return paths


@exit_codes
def main(argv: list[str] | None = None) -> int:
    parser = flag_parser(__doc__)
    parser.add_argument("question", choices=["null", "same", "samples"])
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="[CSV] DIR")
    parser.add_argument("--repetitions", type=int, default=500, help="of each case of null")
    parser.add_argument("--only", help="cases of null whose name has these words")
    parser.add_argument("--processes", type=int, default=1, dest="processes", help="of null")
    parser.add_argument("--runs", type=int, default=12)
    parser.add_argument("--pairs", type=int, default=200, help="compared at most")
    parser.add_argument("--split-seed", type=int, default=42)
    parser.add_argument("--samples", type=int, default=12)
    parser.add_argument("--rows", type=int, default=2000, help="of a sample")
    parser.add_argument("--other", default="--epochs 2", metavar="FLAGS")
    args, flags = parser.parse_known_args(argv)
    *csv, args.folder = args.paths
    if len(csv) != (args.question != "null"):
        raise UserError(f"{args.question}: name {'DIR' if csv else 'CSV and DIR'}")
    args.csv = csv[0] if csv else None
    answer = {"null": null, "same": same, "samples": samples}[args.question]
    answer(args, flags)
    return 0


if __name__ == "__main__":
    sys.exit(main())
