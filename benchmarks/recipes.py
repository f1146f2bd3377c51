"""Which recipe scores best? python benchmarks/recipes.py CSV DIR [--only NAME ...] [--seeds 3]

Each recipes/*.patch is applied to a copy of the code. Each copy, and one without a patch (the
default), trains seeds 0, 1, 2 by its own train.py, in run folders in DIR; what is finished is not
trained again. Then a Markdown table: cross-fitted macro-F1, mean and standard deviation over the
seeds, and what tools/compare.py says of it and the default. Other flags go to train.py: `--folds 3
--split-seed 0`. The weights of finished runs are removed, the tables stay.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from support.files import file_sha256
from support.process import exit_codes
from tools import compare
from tools.parts.difference import differ, verdict

PATCHES = {path.stem: path for path in sorted(ROOT.glob("recipes/*.patch"))}


def copy_code(folder: Path, patch: Path | None = None) -> Path:
    """The six files and support/ in a new folder, with the patch; it exits if that doesn't fit."""
    folder.mkdir(parents=True)
    for path in ROOT.glob("*.py"):
        shutil.copy(path, folder)
    no_cache = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "support", folder / "support", ignore=no_cache)
    if patch:
        # Within another repository git would take the paths from that one's root.
        env = {**os.environ, "GIT_CEILING_DIRECTORIES": str(folder.resolve().parent)}
        command = ["git", "apply", str(patch.resolve())]
        if subprocess.run(command, cwd=folder, env=env).returncode:
            sys.exit(f"{patch}: does not fit the code as it is")
    return folder


def finished(out: Path, code: Path, command: list[str], csv: str) -> bool:
    """Whether this run is there already. It ends the program where the folder holds another one."""
    if not (out / "DONE.json").exists():
        return False
    env = json.loads((out / "env.json").read_text())
    identity = {"data_sha256": file_sha256(csv)}
    for path in code.rglob("*.py"):
        identity[f"code.{path.relative_to(code)}"] = file_sha256(path)
    # What only shows things is no part of a run, and not in env.json.
    changed = [key for key, value in identity.items() if env["same"].get(key, value) != value]
    if env["command"] != " ".join(command):
        changed.append("flags")
    if changed:
        sys.exit(f"{out}: made with other {', '.join(changed)} - name another DIR")
    return True


def train(name: str, seed: int, code: Path, args: argparse.Namespace, flags: list[str]) -> bool:
    """Train one recipe with one seed, unless it is there. Whether all went well."""
    out = args.folder / f"{name}-{seed}"
    command = ["train.py", "--train", args.csv, *flags, "--seed", str(seed), "--out", str(out)]
    if not finished(out, code, command, args.csv):
        print(f"\n{name}, seed {seed}", flush=True)
        program, *argv = command
        if subprocess.run([sys.executable, str(code / program), *argv]).returncode:
            return False
    for weights in out.glob("fold_*/*.safetensors"):
        weights.unlink()
    return True


def table(names: list[str], args: argparse.Namespace) -> str:
    """The Markdown table of what is finished."""
    lines = [
        "| recipe | seeds | macro-F1 | standard deviation | mean average precision | minutes"
        " | to the default [95 % interval] | answer (A: the default) |",
        "|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    default = finished_runs("default", args)
    for name in names:
        if runs := finished_runs(name, args):
            answer = "- | -" if name == "default" else answer_of_compare(default, runs, args.csv)
            lines.append(f"| {name} | {scores_of(runs)} | {answer} |")
    return "\n".join(lines)


def finished_runs(name: str, args: argparse.Namespace) -> dict[int, Path]:
    """The folders of a recipe's runs, by seed."""
    folders = {seed: args.folder / f"{name}-{seed}" for seed in range(args.seeds)}
    return {seed: folder for seed, folder in folders.items() if (folder / "DONE.json").exists()}


def scores_of(runs: dict[int, Path]) -> str:
    """The table's cells from the number of seeds to the minutes."""
    values = [json.loads((folder / "metrics.json").read_text()) for folder in runs.values()]
    f1 = [run["macro_f1_cross_fitted"] for run in values]
    deviation = f"{np.std(f1, ddof=1):.4f}" if len(f1) > 1 else "-"
    by_label = [row["average_precision"] for run in values for row in run["per_label"].values()]
    known = [x for x in by_label if x is not None]  # None: a class is missing
    average_precision = np.mean(known or [np.nan])
    minutes = np.mean([run["seconds"] for run in values]) / 60
    scores = f"{np.mean(f1):.4f} | {deviation} | {average_precision:.4f}"
    return f"{len(f1)} | {scores} | {minutes:.1f}"


def answer_of_compare(default: dict[int, Path], runs: dict[int, Path], csv: str) -> str:
    """The difference to the default and the verdict, by the seeds that both have."""
    seeds = [seed for seed in runs if seed in default]
    if not seeds:
        return "- | -"
    a = [str(default[seed]) for seed in seeds]
    b = [str(runs[seed]) for seed in seeds]
    pairs, groups, _ = compare.read_runs(a, b, [csv])
    found = differ(pairs, groups)
    gap = found.b[0] - found.a[0]
    half = found.half[0]
    interval = f"[{gap - half:+.4f}, {gap + half:+.4f}]"
    return f"{gap:+.4f} {interval} | {verdict(found, len(seeds), len(groups))}"


def parse(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Our own flags, and those of train.py."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # --seed, which is for train.py, is not short for --seeds
    )
    parser.add_argument("csv")
    parser.add_argument("folder", type=Path)
    recipes = list(PATCHES)
    parser.add_argument("--only", nargs="+", choices=recipes, default=recipes, metavar="NAME")
    parser.add_argument("--seeds", type=int, default=3)
    return parser.parse_known_args(argv)


@exit_codes
def main(argv: list[str] | None = None) -> int:
    args, flags = parse(argv)
    args.folder.mkdir(parents=True, exist_ok=True)
    names = ["default", *args.only]
    failed = []
    with tempfile.TemporaryDirectory() as temporary:
        code = {name: copy_code(Path(temporary, name), PATCHES.get(name)) for name in names}
        for seed in range(args.seeds):
            for name in names:
                if not train(name, seed, code[name], args, flags):
                    failed.append(f"{name}-{seed}")
    print("\n" + table(names, args))
    if failed:
        print(f"not trained: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
