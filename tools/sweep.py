"""Many ideas against one baseline: python tools/sweep.py my.csv runs/ideas ideas.txt --folds 3

ideas.txt has an idea a line: `name: --lr 1e-4 --pooling cls`, `name: recipes/r_drop.patch`, or
both, patches before flags. All train the same seeds on the same folds as the baseline, which has
none of them. Then the best is confirmed: trained on new seeds and new folds, beside the baseline.
Other flags are for train.py, for all runs. What is finished is not trained again: run the same
command to resume, also with lines added. Weights of finished runs are removed, the tables stay.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import Config
from support.cli import Parser, start_script
from support.cli import parse as parse_config
from support.process import UserError
from tools.parts.plan import FIXED, named

FIRST_NEW_SEED = 1000  # of the confirmation; the search has lower ones
OWN = "CSV RUNS IDEAS [--seeds N] [--confirm N] [flags of train.py]"


def parse(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Our own arguments, and the flags of train.py for all runs."""
    parser = Parser(
        "tools/sweep.py",
        usage=f"tools/sweep.py {OWN}",
        description=__doc__,
        allow_abbrev=False,  # --seed is not short for --seeds
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("csv", help="the data: as --train of train.py")
    parser.add_argument("folder", type=Path, help="folder of the runs, new or of this sweep")
    parser.add_argument("ideas", help="text file, an idea a line")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="of each recipe (3)")
    text = "new seeds of the winner and the baseline, on new folds; 0: none (3)"
    parser.add_argument("--confirm", type=int, default=3, metavar="N", help=text)
    argv = sys.argv[1:] if argv is None else argv
    early = [word for word in argv[:3] if word.startswith("-") and word not in ("-h", "--help")]
    if early:
        raise UserError(f"{early[0]}: name CSV, RUNS and IDEAS before the flags - sweep.py {OWN}")
    args, flags = parser.parse_known_args(argv)
    for name, least in (("seeds", 1), ("confirm", 0)):
        if not least <= getattr(args, name) < FIRST_NEW_SEED:
            raise UserError(f"--{name} must lie in {least} ... {FIRST_NEW_SEED - 1}")
    if fixed := named(flags) & FIXED:
        hint = "sweep.py sets it, or an idea names it"
        raise UserError(f"{', '.join(sorted(fixed))}: not for a sweep - {hint}")
    parse_config(Config, flags, "train.py")  # UserError for flags that train.py does not know
    return args, flags


start_script(parse, __name__)

import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from support.files import damage, locked, read_json
from support.process import Signals, exit_codes, warn
from support.run import Run, differences
from tools.parts import verdict
from tools.parts.ideas import Idea, compare_ideas, ideas_table
from tools.parts.plan import BASELINE, MACHINE, Recipe, prepare, read_ideas
from tools.parts.sides import Finished, read_all


@dataclass
class Sweep:
    """The runs of all recipes in one folder; what went wrong with some."""

    folder: Path
    common: list[str]  # flags of train.py
    config: Config  # of these flags
    recipes: list[Recipe]  # the baseline first
    failed: dict[str, str] = field(default_factory=dict)  # by the recipe's name: why

    @property
    def baseline(self) -> Recipe:
        return self.recipes[0]

    def out(self, recipe: Recipe, seed: int) -> Path:
        return self.folder / f"{recipe.name}-{seed}"

    def split_seed(self, seed: int) -> int:
        """The search has one set of folds, the confirmation another."""
        return (self.config.fold_seed + (seed >= FIRST_NEW_SEED)) % 2**31

    def finished(self, recipe: Recipe, seeds: Sequence[int]) -> list[Path]:
        folders = (self.out(recipe, seed) for seed in seeds)
        return [folder for folder in folders if (folder / "DONE.json").exists()]


def warn_of_epochs(recipes: Sequence[Recipe]) -> None:
    """Before hours of training; compare.py says it of runs that are finished."""
    epochs = sorted({recipe.identity["settings.epochs"] for recipe in recipes})
    if len(epochs) > 1 and "best" in {recipe.identity["settings.keep"] for recipe in recipes}:
        why = "--keep best takes the best epoch on held-out rows, and more epochs are more tries"
        warn(f"recipes differ in epochs ({', '.join(map(str, epochs))}): {why} - add --keep last")


def check_folder(sweep: Sweep, seeds: Sequence[int]) -> None:
    """UserError for a run that is there already and is another one, or is damaged."""
    for recipe in sweep.recipes:
        for seed in seeds:
            out = sweep.out(recipe, seed)
            if not (out / "env.json").exists():
                continue
            run = Run(out)
            wanted = recipe.identity_with(seed, sweep.split_seed(seed))
            sides = (run.identity, wanted)
            both = ({k: v for k, v in one.items() if k not in MACHINE} for one in sides)
            if changed := differences(*both):
                few = "; ".join(changed[:3]) + ("; ..." if changed[3:] else "")
                raise UserError(f"{out}: holds another run ({few}) - name another folder")
            if (out / "DONE.json").exists() and (problem := damage(out, run.key)):
                raise UserError(f"{problem} - remove {out}, and it is trained again")


# Training


def train_all(sweep: Sweep, recipes: list[Recipe], seeds: Sequence[int]) -> None:
    """Seed by seed, so that what is there after a stop can be compared. A row as each finishes.

    UserError where the baseline fails. A recipe that fails is left out from then on.
    """
    width = max(len(recipe.name) for recipe in sweep.recipes)
    pairs = [(seed, recipe) for seed in seeds for recipe in recipes]
    for i, (seed, recipe) in enumerate(pairs, 1):
        if recipe.name in sweep.failed:
            continue
        out = sweep.out(recipe, seed)
        number = f"{i} of {len(pairs)}"
        row = f"{number:>10} | {recipe.name:<{width}} | seed {seed:>4}"
        if problem := train_one(sweep, recipe, seed):
            if recipe is sweep.baseline:
                raise UserError(f"{out}: the baseline fails: {problem}", 1)
            sweep.failed[recipe.name] = problem
            print(f"{row} | failed: {problem}", flush=True)
            continue
        for weights in out.glob("fold_*/*.safetensors"):
            weights.unlink()
        score, minutes = read_score(out)
        print(f"{row} | macro-F1 {score:.4f} | {minutes:.1f} minutes", flush=True)


def train_one(sweep: Sweep, recipe: Recipe, seed: int) -> str | None:
    """Train or resume this run, unless it is finished. What went wrong, if anything."""
    out = sweep.out(recipe, seed)
    log = sweep.folder / f"{out.name}.log"
    own = ["--seed", str(seed), "--split-seed", str(sweep.split_seed(seed)), "--out", str(out)]
    argv = [str(recipe.code / "train.py"), *sweep.common, *recipe.flags, *own]
    code = 0
    # A train.py whose sweep was killed may still be at work, now on this fold, now on that.
    tries = 3
    while code == 0 and tries and not (out / "DONE.json").exists():
        for lock in out.glob("fold_*/lock"):
            with locked(lock, wait=True):
                pass
        code = run_training(argv, log)
        tries -= 1
    if (out / "DONE.json").exists():
        return None
    said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"{said[-1].removeprefix('error: ')} (exit code {code}, see {log})"


def run_training(argv: list[str], log: Path) -> int:
    """The exit code. A signal to the sweep stops the training first, so that it saves its state."""
    with open(log, "a", encoding="utf-8") as f:
        print(f"$ python {shlex.join(argv)}", file=f, flush=True)
        process = subprocess.Popen(
            [sys.executable, *argv], stdout=f, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            return process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise


def read_score(out: Path) -> tuple[float, float]:
    """Cross-fitted macro-F1, and minutes."""
    values = read_json(out / "metrics.json")
    return values["macro_f1_cross_fitted"], values["seconds"] / 60


# What came of it


def report_search(sweep: Sweep, seeds: Sequence[int]) -> list[Idea]:
    """Print the table of all ideas; they come back best first."""
    others = [r for r in sweep.recipes[1:] if sweep.finished(r, seeds)]
    ideas, base = judge(sweep, others, seeds)
    if ideas:
        print("\n" + ideas_table(base, ideas))
    minutes = []
    for recipe in (sweep.baseline, *others):
        mean = np.mean([read_score(out)[1] for out in sweep.finished(recipe, seeds)])
        minutes.append(f"{recipe.name} {mean:.1f}")
    print(f"minutes a run: {', '.join(minutes)}", flush=True)
    return ideas


def judge(
    sweep: Sweep, recipes: list[Recipe], seeds: Sequence[int]
) -> tuple[list[Idea], list[Finished]]:
    """The recipes against the baseline, best first, and the baseline's runs."""
    sides = [sweep.finished(recipe, seeds) for recipe in (sweep.baseline, *recipes)]
    found, groups, _ = read_all([str(out) for side in sides for out in side], [])
    runs = iter(found)
    base, *others = ([next(runs) for _ in side] for side in sides)
    if not others:
        return [], base
    ideas = compare_ideas(base, others, groups)
    names = {id(side): recipe.name for side, recipe in zip(others, recipes, strict=True)}
    for idea in ideas:
        idea.name = names[id(idea.runs)]
    return ideas, base


def confirm(sweep: Sweep, found: Idea, tried: int, seeds: Sequence[int]) -> None:
    """Train the winner and the baseline on new seeds and folds; both differences side by side."""
    (winner,) = (recipe for recipe in sweep.recipes if recipe.name == found.name)
    folds = f"new folds (split seed {sweep.split_seed(seeds[0])})"
    if sweep.config.valid or sweep.config.fold_column:
        folds = "the same folds, which are given"
    numbers = ", ".join(map(str, seeds))
    print(f"\nthe winner, {winner.name}, on new seeds ({numbers}) and {folds}:", flush=True)
    train_all(sweep, [sweep.baseline, winner], seeds)
    if winner.name in sweep.failed:
        return
    (again,), _ = judge(sweep, [winner], seeds)
    low, high = again.interval
    confirmed = f"{again.gap:+.4f} [{low:+.4f} to {high:+.4f}]: {again.answer}"
    print(f"as found {found.gap:+.4f}, as confirmed {confirmed}")
    if low <= 0 <= high and again.gap and again.difference.seen:
        print(verdict.advice(again.difference, len(again.runs[0].rows)))
    ideas = f"the best of {tried} ideas" if tried > 1 else "an idea that won"
    why = "luck helped to choose it (winner's curse); new seeds and folds owe it nothing"
    print(f"Quote the second number: {ideas} looks better than it is, as {why}.")


def search(sweep: Sweep, seeds: Sequence[int], new_seeds: Sequence[int]) -> None:
    """Train all, compare all, confirm the winner."""
    train_all(sweep, sweep.recipes, seeds)
    ideas = report_search(sweep, seeds)
    if not new_seeds or not ideas:
        return
    if ideas[0].gap > 0:
        confirm(sweep, ideas[0], len(ideas), new_seeds)
    else:
        print("no idea scores higher than the baseline: there is nothing to confirm")


@exit_codes
def main(argv: list[str] | None = None) -> int:
    args, flags = parse(argv)
    recipes = [Recipe(BASELINE, (), [], ""), *read_ideas(args.ideas)]
    config = parse_config(Config, flags, "train.py")
    common = ["--train", args.csv, *flags, "--split-seed", str(config.fold_seed)]
    sweep = Sweep(args.folder, common, config, recipes)
    seeds = range(args.seeds)
    new_seeds = range(FIRST_NEW_SEED, FIRST_NEW_SEED + args.confirm)
    with Signals(), tempfile.TemporaryDirectory() as temporary:
        prepare(recipes, common, Path(temporary))
        args.folder.mkdir(parents=True, exist_ok=True)
        with locked(args.folder / "lock") as free:
            if not free:
                raise UserError(f"{args.folder}: another sweep is at work on it - let it end")
            check_folder(sweep, [*seeds, *new_seeds])
            warn_of_epochs(recipes)
            search(sweep, seeds, new_seeds)
    for name, problem in sweep.failed.items():
        print(f"not trained to the end: {name}: {problem}", file=sys.stderr)
    return 1 if sweep.failed else 0


if __name__ == "__main__":
    sys.exit(main())
