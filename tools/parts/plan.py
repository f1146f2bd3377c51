"""What a sweep is to train: ideas read from a file, copies of the code with their patches, and the
identity that each run will have. All is checked here, before anything trains.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from config import HERE, Config
from support.cli import parse
from support.csvfile import check_file
from support.process import UserError

BASELINE = "baseline"
NAME = re.compile(r"[\w.+=-]+", re.ASCII)  # of a folder, on any system
# Of all runs alike, or they could not be compared
FIXED = {"--train", "--out", "--seed", "--restart", "--fold", "--config"}
DATA = {"--valid", "--labels", "--text-column", "--soft-labels", "--folds", "--fold-column"}
DATA |= {"--group-column", "--split-seed", "--missing-labels"}
SEED, SPLIT_SEED = "settings.seed", "settings.split_seed"
MACHINE = ("threads", "world_size")  # a run may be resumed with others, in a sweep


@dataclass
class Recipe:
    """A line of the file of ideas; without patches and flags the baseline."""

    name: str
    patches: tuple[Path, ...]
    flags: list[str]
    place: str  # file and line, for messages
    code: Path | None = None  # the copy of the code that trains it
    identity: dict = field(default_factory=dict)  # as in env.json; of any seed

    def identity_with(self, seed: int, split_seed: int) -> dict:
        return self.identity | {SEED: seed, SPLIT_SEED: split_seed}


# The file of ideas


def read_ideas(path: str) -> list[Recipe]:
    """UserError, with the line, for what is no idea."""
    try:
        text = check_file(path, "ideas, one a line").read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text - write an idea on each line") from None
    recipes = []
    by_name = {BASELINE: "the runs without an idea"}
    for number, line in enumerate(text.splitlines(), 1):
        place = f"{path}:{number}"
        try:
            recipe = read_idea(line.strip(), place)
        except ValueError as e:  # of shlex
            raise UserError(f"{place}: {e} - close the quotes") from None
        if recipe is None:
            continue
        taken = by_name.get(recipe.name.lower())  # a file system may not tell A from a
        if taken:
            hint = "give each idea a name of its own"
            raise UserError(f"{place}: the name {recipe.name} is that of {taken} - {hint}")
        by_name[recipe.name.lower()] = f"line {number}"
        recipes.append(recipe)
    if not recipes:
        raise UserError(f"{path}: holds no idea - write lines such as  cls: --pooling cls")
    return recipes


def read_idea(line: str, place: str) -> Recipe | None:
    """None for a line that is empty or a comment."""
    name = ""
    rest = line
    if not line.startswith(("-", "#")) and ":" in line:
        name, rest = line.split(":", 1)
    words = shlex.split(rest, comments=True)
    if not words and not name:
        return None
    first_flag = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    patches = tuple(find_patch(word, place) for word in words[:first_flag])
    flags = words[first_flag:]
    name = name.strip() or made_name(patches, flags)
    if not words:
        raise UserError(f"{place}: {name} changes nothing - name flags of train.py, or a patch")
    if not NAME.fullmatch(name):
        hint = "take letters, digits and . _ + = -"
        raise UserError(f"{place}: {name!r:.40} can't name a folder - {hint}")
    if fixed := named(flags) & (FIXED | DATA):
        hint = "all runs have the same rows, folds and seeds"
        raise UserError(f"{place}: {', '.join(sorted(fixed))} can't be an idea - {hint}")
    if not patches:  # a patch may bring flags of its own
        try:
            parse(Config, flags, "train.py")
        except UserError as e:
            raise UserError(f"{place}: {e}") from None
    return Recipe(name, patches, flags, place)


def find_patch(word: str, place: str) -> Path:
    """As typed, or within the project."""
    for path in (Path(word), HERE / word):
        if path.is_file():
            return path
    hint = "write  name: PATCH --flag value"
    raise UserError(f"{place}: {word}: no such patch - {hint}")


def made_name(patches: tuple[Path, ...], flags: list[str]) -> str:
    """Of the content: lr-1e-4-pooling-cls."""
    words = [*(path.stem for path in patches), *(word.lstrip("-") for word in flags)]
    return re.sub(r"[^\w.+=-]", "_", "-".join(words), flags=re.ASCII)[:80]


def named(flags: list[str]) -> set[str]:
    """The flags among these words, as --split-seed."""
    names = (word.split("=")[0].replace("_", "-") for word in flags if word.startswith("--"))
    return {"--" + name.removeprefix("--").removeprefix("no-") for name in names}


# Copies of the code


def copy_code(folder: Path, *patches: Path) -> Path:
    """The six files and support/ in a new folder, with these patches. UserError for a misfit."""
    folder.mkdir(parents=True)
    for path in HERE.glob("*.py"):
        shutil.copy(path, folder)
    no_cache = shutil.ignore_patterns("__pycache__")
    shutil.copytree(HERE / "support", folder / "support", ignore=no_cache)
    # Within another repository git would take the paths from that one's root.
    env = {**os.environ, "GIT_CEILING_DIRECTORIES": str(folder.resolve().parent)}
    for patch in patches:
        command = ["git", "apply", str(patch.resolve())]
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
        if done.returncode:
            problem = f"does not fit the code as it is ({done.stderr.strip():.120})"
            raise UserError(f"{patch}: {problem} - make it again by git diff")
    return folder


def prepare(recipes: list[Recipe], common: list[str], folder: Path) -> None:
    """Fill in the code and the identity of each recipe. The copies of the code go to `folder`.

    `common`: flags of train.py for all. UserError, with the line, for a patch that does not fit, a
    flag that train.py refuses, and an idea that is there twice or changes nothing.
    """
    by_patches = defaultdict(list)
    for recipe in recipes:
        by_patches[recipe.patches].append(recipe)
    for i, (patches, group) in enumerate(by_patches.items()):
        try:
            code = copy_code(folder / str(i), *patches)
        except UserError as e:
            raise UserError(f"{group[0].place}: {e}") from None
        for recipe in group:
            recipe.code = code
    for group in by_patches.values():
        commands = [[*common, *recipe.flags] for recipe in group]
        for recipe, answer in zip(group, ask_identities(group[0], commands), strict=True):
            if isinstance(answer, str):
                raise UserError(f"{recipe.place}: {answer}" if recipe.place else answer)
            recipe.identity = answer
    check_distinct(recipes)


def ask_identities(first: Recipe, commands: list[list[str]]) -> list[dict | str]:
    """What the recipe's own code makes of each command: the run's identity, or its error."""
    program = Path(__file__).with_name("identities.py")
    argv = [sys.executable, str(program), str(first.code)]
    done = subprocess.run(argv, input=json.dumps(commands), capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        place = f"{first.place}: " if first.place else ""
        raise UserError(f"{place}the code does not start: {said.removeprefix('error: ')}")
    return json.loads(done.stdout.splitlines()[-1])


def check_distinct(recipes: list[Recipe]) -> None:
    """UserError for a recipe that equals another. The first is the baseline."""
    seen = {}
    for recipe in recipes:
        key = json.dumps(recipe.identity, sort_keys=True)
        if key in seen:
            same = seen[key]
            other = "the baseline" if same.name == BASELINE else f"{same.name} ({same.place})"
            raise UserError(f"{recipe.place}: {recipe.name} is the same as {other} - leave it out")
        seen[key] = recipe
