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
from tools import compare, luck

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
        if subprocess.run(["git", "apply", patch.resolve()], cwd=folder, env=env).returncode:
            sys.exit(f"{patch}: does not fit the code as it is")
    return folder


def finished(out: Path, code: Path, command: list[str], csv: str) -> bool:
    """Whether this run is there already. It ends the program where the folder holds another one."""
    if not (out / "metrics.json").exists():
        return False
    env = json.loads((out / "env.json").read_text())
    same = {"data_sha256": file_sha256(csv)}
    same |= {f"code.{p.relative_to(code)}": file_sha256(p) for p in code.rglob("*.py")}
    changed = [k for k, v in same.items() if env["same"].get(k, v) != v]
    if env["command"] != " ".join(command):
        changed.append("flags")
    if changed:
        sys.exit(f"{out}: made with other {', '.join(changed)} - name another DIR")
    return True


def train(name: str, seed: int, code: Path, args, flags: list[str]) -> bool:
    """Train one recipe with one seed, unless it is there. Whether all went well."""
    out = args.folder / f"{name}-{seed}"
    command = ["train.py", "--train", args.csv, *flags, "--seed", str(seed), "--out", str(out)]
    if not finished(out, code, command, args.csv):
        print(f"\n{name}, seed {seed}", flush=True)
        if subprocess.run([sys.executable, code / command[0], *command[1:]]).returncode:
            return False
    for weights in out.glob("fold_*/*.safetensors"):
        weights.unlink()
    return True


def table(names: list[str], args) -> str:
    """The Markdown table of what is finished."""
    lines = [
        "| recipe | seeds | macro-F1 | standard deviation | mean average precision | minutes"
        " | to the default [95 % interval] | answer (A: the default) |",
        "|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    base = [args.folder / f"default-{seed}" for seed in range(args.seeds)]
    for name in names:
        folders = [args.folder / f"{name}-{seed}" for seed in range(args.seeds)]
        there = [i for i, f in enumerate(folders) if (f / "DONE.json").exists()]
        if not there:
            continue
        runs = [json.loads((folders[i] / "metrics.json").read_text()) for i in there]
        f1 = [run["macro_f1_cross_fitted"] for run in runs]
        spread = f"{np.std(f1, ddof=1):.4f}" if len(f1) > 1 else "-"
        ap = [x["average_precision"] for run in runs for x in run["per_label"].values()]
        ap = np.mean([x for x in ap if x is not None] or [np.nan])
        minutes = np.mean([run["seconds"] for run in runs]) / 60
        both, said = [i for i in there if (base[i] / "DONE.json").exists()], "- | -"
        if both and name != "default":
            sides = [[str(side[i]) for i in both] for side in (base, folders)]
            pairs, groups, _ = compare.read_runs(sides, [args.csv])
            found = luck.differ(pairs, groups)
            gap, half = found.b[0] - found.a[0], found.half[0]
            said = f"{gap:+.4f} [{gap - half:+.4f}, {gap + half:+.4f}] | "
            said += luck.verdict(found, len(both), len(groups))
        score = f"{np.mean(f1):.4f} | {spread} | {ap:.4f} | {minutes:.1f}"
        lines.append(f"| {name} | {len(f1)} | {score} | {said} |")
    return "\n".join(lines)


def main() -> int:
    # --seed, which is for train.py, is not short for --seeds.
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw, allow_abbrev=False)
    parser.add_argument("csv")
    parser.add_argument("folder", type=Path)
    known = list(PATCHES)
    parser.add_argument("--only", nargs="+", choices=known, default=known, metavar="NAME")
    parser.add_argument("--seeds", type=int, default=3)
    args, flags = parser.parse_known_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    names, failed = ["default", *args.only], []
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
