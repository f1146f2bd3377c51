"""How often does tools/compare.py err?

    python benchmarks/error_rates.py same CSV DIR --runs 12 [flags of train.py]
    python benchmarks/error_rates.py samples CSV DIR --other "--epochs 2" [flags of train.py]

same: runs of one recipe on the same folds; --seed alone differs. Which share of their pairs, and of
pairs of three runs a side, is called different? It should be 5 %.
samples: recipe A (the flags) and B (--other's too) on disjoint samples of the rows. Which share of
the intervals holds the truth, the mean difference on the other samples? It should be 95 %.
What is there already is not trained again; weights are removed. The interval of a share leaves out
each run (or sample) once, as pairs share runs.
"""

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
from measure import HERE, flag_parser
from scipy.stats import t

sys.path.insert(0, str(HERE))

from config import Config
from data import read_table
from support.output import csv_text
from tools import compare, luck

SCORES = {"macro-F1": 0, "mean average precision": 2}


class Cached(luck.Scored):
    """Sides are means over runs: each run's scores are computed once."""

    def scores(self, keep: np.ndarray) -> np.ndarray:
        known = vars(self).setdefault("known", {})
        if keep.tobytes() not in known:
            known[keep.tobytes()] = super().scores(keep)
        return known[keep.tobytes()]


def train(out: Path, csv: Path, flags: list[str]) -> Path:
    if not (out / "DONE.json").exists():
        command = [sys.executable, HERE / "train.py", "--train", csv, "--out", out, *flags]
        subprocess.run(list(map(str, command)), check=True)
        for weights in out.glob("fold_*/*.safetensors"):
            weights.unlink()
    return out


def read(folders: list[Path], csv: Path) -> tuple[list[Cached], np.ndarray]:
    first, *others = map(str, folders)
    [(a, b)], groups, _ = compare.read_runs([[first], others], [str(csv)])
    return [Cached(**vars(run)) for run in a + b], groups


def share(hits: np.ndarray, members: list[set]) -> str:
    """The share of hits, with a jackknife over what their pairs have in common."""
    others = [[i not in m for m in members] for i in sorted(set.union(*members))]
    without = [hits[rest].mean() for rest in others if any(rest)]
    n = len(without)
    error = np.sqrt((n - 1) / n * np.sum((without - np.mean(without)) ** 2))
    low, high = np.clip(hits.mean() + t.ppf([0.025, 0.975], n - 1) * error, 0, 1)
    return f"{hits.mean():.1%} [{low:.1%}, {high:.1%}]"


def half_by_rows(sides: tuple[list, list], groups: np.ndarray) -> np.ndarray:
    """Half the 95 % interval that a jackknife over blocks of rows alone would give."""
    _, group = np.unique(groups, return_inverse=True)
    block = np.random.default_rng(0).permutation(group.max() + 1)[group] % 100
    means = [np.mean([luck.left_out(run, block) for run in side], axis=0) for side in sides]
    return 1.96 * np.sqrt(luck.jackknife(np.array(means)))


def same(args, flags: list[str]) -> None:
    folders = []
    for s in range(args.runs):
        own = ["--seed", str(s), "--split-seed", str(args.split_seed), *flags]
        folders.append(train(args.folder / f"seed_{s}", args.csv, own))
    runs, groups = read(folders, args.csv)
    f1 = [run.scores(np.ones(len(groups), bool))[0] for run in runs]
    print(f"{len(runs)} runs: macro-F1 {np.mean(f1):.4f}, deviation {np.std(f1, ddof=1):.4f}")
    rng = np.random.default_rng(0)
    for size in [n for n in (1, 3) if 2 * n <= len(runs)]:
        sides = list(itertools.combinations(range(len(runs)), size))
        pairs = [(a, b) for a, b in itertools.combinations(sides, 2) if not set(a) & set(b)]
        pairs = [pairs[i] for i in rng.permutation(len(pairs))[: args.pairs]]
        lists = [tuple([runs[i] for i in side] for side in pair) for pair in pairs]
        found = [luck.differ([sides], groups) for sides in lists]
        alone = np.array([half_by_rows(sides, groups) for sides in lists])
        for name, j in SCORES.items():
            gap, half = np.array([(d.b[j] - d.a[j], d.half[j]) for d in found]).T
            called = share(np.abs(gap) > half, [{*a, *b} for a, b in pairs])
            sizes = f"differences {np.sqrt(np.mean(gap**2)):.4f}, half intervals {half.mean():.4f}"
            sizes += f" | by rows alone {np.mean(np.abs(gap) > alone[:, j]):.1%}"
            print(f"{size} a side, {len(pairs)} pairs, {name}: {called} called different | {sizes}")


def samples(args, flags: list[str]) -> None:
    table, found = read_table(str(args.csv), Config()), []
    order = np.random.default_rng(0).permutation(len(table))
    args.folder.mkdir(parents=True, exist_ok=True)
    for s, rows in enumerate(order[: args.samples * args.rows].reshape(args.samples, -1)):
        csv, own = args.folder / f"sample_{s}.csv", [*flags, "--seed", str(s)]
        lines = [[table.ids[i], table.texts[i], *table.labels[i].astype(int)] for i in rows]
        csv.write_text(csv_text([["id", "text", *Config().labels], *lines]))
        a = train(args.folder / f"a_{s}", csv, own)
        b = train(args.folder / f"b_{s}", csv, [*own, *args.other.split()])
        runs, groups = read([a, b], csv)
        found.append(luck.differ([(runs[:1], runs[1:])], groups))
    for name, j in SCORES.items():
        gap, half = np.array([(d.b[j] - d.a[j], d.half[j]) for d in found]).T
        truth = (gap.sum() - gap) / (len(gap) - 1)  # of each sample: the mean of the others
        holds = share(np.abs(gap - truth) <= half, [{s} for s in range(len(gap))])
        sizes = f"B - A {gap.mean():+.4f}, deviation {gap.std(ddof=1):.4f}"
        print(f"{len(gap)} samples, {name}: {holds} hold | {sizes}, half {half.mean():.4f}")


def main() -> None:
    parser = flag_parser(__doc__)
    parser.add_argument("what", choices=["same", "samples"])
    parser.add_argument("csv", type=Path)
    parser.add_argument("folder", type=Path)
    numbers = {"--runs": 12, "--pairs": 200, "--split-seed": 42, "--samples": 12, "--rows": 2000}
    for name, default in numbers.items():
        parser.add_argument(name, type=int, default=default)
    parser.add_argument("--other", default="--epochs 2", metavar="FLAGS")
    args, flags = parser.parse_known_args()
    {"same": same, "samples": samples}[args.what](args, flags)


if __name__ == "__main__":
    main()
