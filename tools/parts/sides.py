"""Finished runs as sides of a comparison: read, checked, put in pairs; the recipes they are of.

N rows of all runs together, n held out by one run, C labels.
"""

import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import metrics
from config import Config
from data import OutOfFold, threshold_folds
from support.files import damage, file_sha256, read_json, read_npy
from support.finished import OofCSV, read_labelled_oof, read_settings
from support.process import UserError, warn
from support.run import Run, differences
from tools.parts.difference import Judged, Pair, judge

MOST_NAMED = 3  # files of changed code
# Settings that stand in the identity only where they are on.
SINCE = ("settings.missing_labels", "settings.gradient_checkpointing")
SEEDS = ("settings.seed", "settings.split_seed")
# What identity has beside the recipe: the machine, and files that may hold other columns as well.
BESIDE = ("versions.", "threads", "world_size", "data_sha256", "valid_sha256", "encoder_saw")


@dataclass
class Finished:
    """A run, its settings and its held-out rows; `judged` has verdicts once all runs are read."""

    run: Run
    config: Config
    oof: OofCSV
    rows: np.ndarray  # int (n,): numbers of its rows, the same in all runs
    judged: Judged | None = None

    @property
    def recipe(self) -> dict:
        return recipe_of(self.run)

    def columns(self, names: list[str]) -> list[int]:
        """Where these labels stand among its own."""
        return [self.config.labels.index(name) for name in names]


def read_all(
    folders: Sequence[str], moved: list[str]
) -> tuple[list[Finished], np.ndarray, list[str]]:
    """The runs, the groups (N,) of the rows, and the C labels that all runs have.

    `moved`: see `read_labelled_oof`. UserError for runs on other rows, or without a common label.
    """
    for folder in folders:
        if not Path(folder, "env.json").is_file():
            raise UserError(f"{folder}: is no run - name the folder that train.py made")
    numbers = {}  # of the rows of all runs
    found = []
    for folder in folders:
        run = open_finished(folder)
        if found:
            check_same_data(run, found[0].run)
        oof = read_labelled_oof(run, moved)
        found.append(Finished(run, read_settings(run), oof, number_rows(oof, numbers)))
    today = file_sha256(metrics.__file__)
    older = [one for one in found if one.run.identity.get("code.metrics.py", today) != today]
    if older:
        count = f"{older[0].run.path}" + (f" and {len(older) - 1} more" if older[1:] else "")
        warn(f"{count}: made with another metrics.py; today's chooses the thresholds")
    groups = np.array([group for _, group, _ in numbers])
    names = common_labels(found)
    given = common_cells(found, names, len(numbers))
    for one in found:
        oof = one.oof
        held_out = OutOfFold(np.arange(len(one.rows)), oof.fold, oof.y, oof.p)
        part = threshold_folds(held_out, oof.group, one.config)
        p = oof.p[:, one.columns(names)]
        one.judged = judge(OutOfFold(one.rows, oof.fold, given[one.rows], p), groups, part)
    return found, groups, names


def open_finished(folder: str) -> Run:
    """A run whose totals are there. Its weights are not needed, and not checked."""
    run = Run(Path(folder))
    if problem := damage(run.path, run.key):
        hint = "train it to its end, or copy all of it but the folds"
        raise UserError(f"{run.path}: is not finished, or damaged ({problem}) - {hint}")
    return run


def check_same_data(run: Run, first: Run) -> None:
    """UserError for other texts. Shares and 0/1 labels of the same texts may be compared:
    `common_cells` looks at what was given."""
    same_file = [
        run.identity.get(k) == first.identity.get(k) for k in ("data_sha256", "valid_sha256")
    ]
    if not all(same_file):
        texts, others = (read_npy(r.path / "texts.npy", "u", "text hashes") for r in (run, first))
        if len(np.intersect1d(texts, others)) < 0.9 * min(len(texts), len(others)):
            hint = "compare runs on the same rows"
            raise UserError(f"{run.path}: has other texts than {first.path} - {hint}")


def number_rows(oof: OofCSV, numbers: dict[tuple, int]) -> np.ndarray:
    """int (n,): the same number for a row in all runs, by its id and group; in order, where several
    have both. `numbers` grows by the rows that are new."""
    seen = Counter()
    rows = []
    for key in zip(oof.ids, oof.group.tolist(), strict=True):
        rows.append(numbers.setdefault((*key, seen[key]), len(numbers)))
        seen[key] += 1
    return np.array(rows)


def common_labels(found: list[Finished]) -> list[str]:
    """The labels that all runs have. Warns of others; UserError if there is none."""
    common = [*found[0].config.labels]
    for one in found[1:]:
        theirs = one.config.labels
        if not {*common} & {*theirs}:
            problem = (
                f"labels {' '.join(theirs):.40}, of {found[0].run.path} {' '.join(common):.40}"
            )
            raise UserError(f"{one.run.path}: {problem} - compare runs with a label in common")
        common = [name for name in common if name in theirs]
    left_out = dict.fromkeys(n for one in found for n in one.config.labels if n not in common)
    if left_out:
        warn(f"compared by {', '.join(common)}; not in all runs: {', '.join(left_out)}")
    return common


def common_cells(found: list[Finished], names: list[str], rows: int) -> np.ndarray:
    """float (N, C): the labels given; nan where a run has none. UserError where two runs differ."""
    given = np.full((rows, len(names)), np.nan)
    unknown = np.zeros_like(given, dtype=bool)
    for one in found:
        before = given[one.rows]
        y = one.oof.y[:, one.columns(names)]
        differs = ~np.isnan(before) & ~np.isnan(y) & (before != y)
        if differs.any():
            i, j = np.argwhere(differs)[0]
            cell = f"row {one.oof.ids[i]}: {names[j]} is {y[i, j]:.0f}"
            hint = "compare runs on the same labels"
            raise UserError(f"{one.run.path}: {cell}, elsewhere {before[i, j]:.0f} - {hint}")
        unknown[one.rows] |= np.isnan(y)
        given[one.rows] = np.where(np.isnan(before), y, before)
    given[unknown] = np.nan
    return given


def pair_up(a: list[Finished], b: list[Finished]) -> list[Pair]:
    """The judged runs of both sides, by the folds of the rows. UserError for folds of one side."""
    pairs = defaultdict(lambda: Pair([], []))
    first_of = {}
    for side, runs in enumerate((a, b)):
        for one in runs:
            split = one.rows.tobytes(), one.oof.fold.tobytes()
            if side and any(np.array_equal(one.oof.p, other.p) for other in pairs[split].a):
                warn(f"{one.run.path}: stands on both sides, or equals a run of A")
            if any(np.array_equal(one.oof.p, other.p) for other in pairs[split][side]):
                hint = "take another --seed"
                raise UserError(f"{one.run.path}: equals another run of its side - {hint}")
            pairs[split][side].append(one.judged)
            first_of.setdefault(split, one.run.path)
    for split, pair in pairs.items():
        if not (pair.a and pair.b):
            problem = "no run of the other side has its folds"
            hint = "train with the same --folds and --split-seed (or --seed) on both sides"
            raise UserError(f"{first_of[split]}: {problem} - {hint}")
    return list(pairs.values())


# Recipes


def recipe_of(run: Run) -> dict:
    """What of its identity is neither seed, nor machine, nor data."""
    identity = dict.fromkeys(SINCE, False)
    identity |= {k: v for k, v in run.identity.items() if k not in SEEDS}
    return {k: v for k, v in identity.items() if not k.startswith(BESIDE)}


def by_recipe(runs: Sequence[Finished]) -> list[list[Finished]]:
    """Seeds of one recipe together, in the order of the first of each. (tools/leaderboard.py has
    runs of another kind, with a `recipe` too.)"""
    recipes = defaultdict(list)
    for one in runs:
        recipes[json.dumps(one.recipe, sort_keys=True)].append(one)
    return list(recipes.values())


def name_of(runs: Sequence[Finished]) -> str:
    """Of one recipe: its folder; of several seeds what their folders have in common."""
    return common_name(runs) + (f" ({len(runs)} runs)" if len(runs) > 1 else "")


def common_name(runs: Sequence[Finished]) -> str:
    """The folder, or what the folders have in common before their seeds."""
    paths = [str(one.run.path) for one in runs]
    if len(paths) == 1:
        return paths[0]
    without_seed = [re.sub(r"[_.-]?\d+$", "", path) for path in paths]
    common = os.path.commonprefix(without_seed).rstrip("_-./")
    return common or os.path.commonpath(paths) or paths[0]


def changes(base: dict, recipe: dict) -> str:
    """What one recipe has changed of another: 'pooling: mean -> cls; model.py'."""
    lines = differences(base, recipe)
    settings = [line.removeprefix("settings.") for line in lines if line.startswith("settings.")]
    code = [line[5:].removesuffix(" changed") for line in lines if line.startswith("code.")]
    if len(code) > MOST_NAMED:
        code = [*code[:MOST_NAMED], f"{len(code) - MOST_NAMED} other files"]
    return "; ".join([*settings, *code]) or ("another encoder" if lines else "nothing")


def seeds_of(runs: Sequence[Finished]) -> str:
    return ", ".join(str(one.config.seed) for one in runs)


def warn_of_unequal_sides(
    a: Sequence[Finished], b: Sequence[Finished], names: tuple[str, str] = ("A", "B")
) -> None:
    """What moves scores beside the idea: other recipes on one side, epochs to choose from,
    precision, versions, machine."""
    for name, side in zip(names, (a, b), strict=True):
        for first in by_recipe(side)[1:]:
            changed = changes(side[0].recipe, first[0].recipe)
            of = f"the runs of {name} are of several recipes"
            warn(f"{of}: {first[0].run.path} differs from {side[0].run.path} ({changed})")
    for name, value in (
        ("precision", lambda one: one.run.identity["settings.precision"]),
        ("device", lambda one: one.run.identity["settings.device"]),
        ("torch", lambda one: one.run.identity["versions.torch"]),
        ("machine", machine_of),
    ):
        of_a, of_b = (sorted({value(one) for one in side} - {""}) for side in (a, b))
        if of_a and of_b and of_a != of_b:
            both = f"{names[0]} {', '.join(of_a)}; {names[1]} {', '.join(of_b)}"
            warn(f"the sides differ in {name} ({both}): that may be part of the difference")
    epochs = [sorted({one.config.epochs for one in side}) for side in (a, b)]
    best = any(one.config.keep == "best" for one in (*a, *b))
    if best and epochs[0] != epochs[1]:
        both = "; ".join(
            f"{name} {', '.join(map(str, e))}" for name, e in zip(names, epochs, strict=True)
        )
        why = "--keep best takes the best epoch on held-out rows, and more epochs are more tries"
        warn(f"the sides differ in epochs ({both}): {why} - train with --keep last")


def machine_of(one: Finished) -> str:
    """'' for runs of older code."""
    host = read_json(one.run.path / "env.json").get("host", {})
    return " ".join(host.values())
