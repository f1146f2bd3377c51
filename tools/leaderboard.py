"""Which recipe is best so far? python tools/leaderboard.py runs/

A line for each recipe among the finished runs in the folder and in its folders, best first; seeds
of one recipe together. Runs on other data or labels are another table. The scores are those of
metrics.json, cross-fitted. It doesn't tell whether a lead is luck: tools/compare.py does.
C labels.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.cli import Parser, start_script


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        "tools/leaderboard.py",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="a folder of runs, such as runs")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_true", help="print it as CSV, all tables in one")
    form.add_argument("--markdown", action="store_true", help="print it as Markdown")
    return parser.parse_args(argv)


start_script(parse, __name__, unused=("matplotlib",))

import csv
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.stats import t

from support.files import damage, read_json
from support.process import UserError, exit_codes
from support.run import Run
from tools.parts.sides import SEEDS, by_recipe, common_name, recipe_of

MOST_NAMED = 5  # runs that are left out
MOST_FILES = 3  # of changed code
OF_MODEL = ("encoder_", "tokenizer_", "settings.model")  # the column model tells of them
SCORES = ("macro-F1", "low", "high", "micro-F1", "mean AP", "exact match", "minutes")


@dataclass
class Scored:
    """A finished run with its scores."""

    run: Run
    settings: dict  # config.json
    metrics: dict  # metrics.json

    @cached_property
    def recipe(self) -> dict:
        return recipe_of(self.run)

    @property
    def data(self) -> tuple:
        """Runs that are not equal in it stand in different tables."""
        identity = self.run.identity
        files = (identity.get("data_sha256"), identity.get("valid_sha256"))
        return (*files, tuple(identity["settings.labels"]))

    @property
    def average_precision(self) -> float:
        """The mean over the labels that have one; nan if none has."""
        rows = self.metrics["per_label"].values()
        known = [r["average_precision"] for r in rows if r["average_precision"] is not None]
        return float(np.mean(known or [np.nan]))


# Reading


def read_runs(folder: Path) -> tuple[list[Scored], dict[str, str]]:
    """The finished runs, and the others with what is wrong with each. UserError if there is no run.

    Runs that --restart renamed away are not looked at.
    """
    paths = {p.parent for depth in ("", "*/", "*/*/") for p in folder.glob(f"{depth}env.json")}
    paths = sorted(path for path in paths if not path.match("*.old[0-9]*"))
    if not paths:
        raise UserError(f"{folder}: holds no runs - name a folder of runs that train.py made")
    found = []
    left_out = {}
    for path in paths:
        try:
            one = read_run(path)
            if copies := [
                o for o in found if o.run.key == one.run.key and o.metrics == one.metrics
            ]:
                raise UserError(f"a copy of {copies[0].run.path}")
            found.append(one)
        except UserError as e:
            left_out[str(path)] = str(e)
        except (KeyError, TypeError, AttributeError):
            left_out[str(path)] = "metrics.json is not what train.py wrote"
    return found, left_out


def read_run(path: Path) -> Scored:
    """UserError for one that is unfinished or damaged, or has the scores of another."""
    run = Run(path)
    if not (path / "DONE.json").exists():
        raise UserError("unfinished")
    if damage(path, run.key):
        raise UserError("damaged")
    one = Scored(run, read_json(path / "config.json"), read_json(path / "metrics.json"))
    if "scores_of" in one.metrics:
        raise UserError(f"has the scores of {one.metrics['scores_of']}")
    one.average_precision, one.metrics["macro_f1_cross_fitted_ci95"]  # else it is damaged
    return one


# A line of the table


def scores_of(runs: Sequence[Scored]) -> dict[str, float]:
    """The means over the runs of one recipe, by SCORES."""
    macro = np.array([one.metrics["macro_f1_cross_fitted"] for one in runs])
    low, high = interval(runs)
    values = [macro.mean(), low, high]
    for name in ("micro_f1_cross_fitted", "exact_match_cross_fitted"):
        values.append(np.mean([one.metrics[name] for one in runs]))
    values.insert(4, np.mean([one.average_precision for one in runs]))
    values.append(np.mean([one.metrics["seconds"] for one in runs]) / 60)
    return {name: float(value) for name, value in zip(SCORES, values, strict=True)}


def interval(runs: Sequence[Scored]) -> tuple[float, float]:
    """95 % interval of the mean cross-fitted macro-F1.

    Of one run its own, by the rows drawn again (metrics.json). Of several the variance has two
    parts. That of the rows, the mean of the runs' own, as more seeds on the same rows don't lower
    it. And that of the trainings: the variance of the runs divided by their number. The factor is
    Student's t, its degrees of freedom by Welch and Satterthwaite, where the part of the rows has
    many. The runs vary by rows, too, so the interval is rather too wide.
    """
    own = np.array([one.metrics["macro_f1_cross_fitted_ci95"] for one in runs])  # (runs, 2)
    if len(runs) == 1:
        return tuple(own[0])
    macro = np.array([one.metrics["macro_f1_cross_fitted"] for one in runs])
    by_rows = np.mean(((own[:, 1] - own[:, 0]) / (2 * 1.96)) ** 2)
    by_trainings = macro.var(ddof=1) / len(runs)
    variance = by_rows + by_trainings
    freedom = np.inf
    if by_trainings:
        freedom = variance**2 / (by_trainings**2 / (len(runs) - 1))
    half = t.ppf(0.975, freedom) * np.sqrt(variance)
    return max(0.0, macro.mean() - half), min(1.0, macro.mean() + half)


def table_of(runs: Sequence[Scored]) -> list[dict]:
    """The lines of one table, best first: name, settings that differ, number of runs, scores."""
    recipes = sorted(by_recipe(runs), key=lambda side: -scores_of(side)["macro-F1"])
    differing = columns_of(recipes)
    lines = []
    for side, settings in zip(recipes, differing, strict=True):
        lines.append(
            {"recipe": common_name(side), **settings, "runs": len(side), **scores_of(side)}
        )
    return lines


def columns_of(recipes: Sequence[Sequence[Scored]]) -> list[dict[str, str]]:
    """Of each recipe the settings that are not the same in all, and what else it has changed: files
    of the code that are not as in most recipes."""
    firsts = [side[0] for side in recipes]
    seeds = {name.removeprefix("settings.") for name in SEEDS}
    files = {"train", "valid", "labels"}  # the table's
    names = dict.fromkeys(name for one in firsts for name in one.settings)
    columns = [{} for _ in firsts]
    for name in names:
        values = [show(one.settings.get(name)) for one in firsts]
        if name not in seeds | files and len(set(values)) > 1:
            for column, value in zip(columns, values, strict=True):
                column[name] = value
    changed = [[] for _ in firsts]
    for key in sorted({key for one in firsts for key in one.recipe}):
        values = [str(one.recipe.get(key)) for one in firsts]
        if key.startswith(("settings.", *OF_MODEL)):
            continue
        usual = Counter(values).most_common(1)[0][0]
        for keys, value in zip(changed, values, strict=True):
            if value != usual:
                keys.append(key.removeprefix("code."))
    if any(changed):
        for column, keys in zip(columns, changed, strict=True):
            few = len(keys) <= MOST_FILES
            column["changed"] = " ".join(keys) if few else f"{len(keys)} files"
    return columns


def show(value) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


# Printing


def heading(runs: Sequence[Scored]) -> str:
    first = runs[0]
    names = ", ".join(first.settings["labels"])
    files = " and ".join(filter(None, (first.settings["train"], first.settings["valid"])))
    return f"{files}: {len(first.settings['labels'])} labels ({names:.80})"


def cells(line: dict) -> list[str]:
    """As printed: the interval in one cell, empty where a score is nan."""
    texts = []
    for name, value in line.items():
        if name == "low":
            texts.append(f"{value:.4f} to {line['high']:.4f}")
        elif name != "high":
            form = ".1f" if name == "minutes" else ".4f"
            texts.append(f"{value:{form}}" if isinstance(value, float) else str(value))
    return ["" if text == "nan" else text for text in texts]


def as_text(lines: list[dict], markdown: bool) -> str:
    titles = [name for name in lines[0] if name != "high"]
    titles[titles.index("low")] = "95 % interval"
    titles[titles.index("minutes")] = "minutes a run"
    rows = [titles, *map(cells, lines)]
    if markdown:
        rows = [[text.replace("|", "\\|") for text in row] for row in rows]
        rows.insert(1, ["---"] + ["---:"] * (len(titles) - 1))
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    printed = []
    for first, *others in rows:
        padded = [f"{text:>{width}}" for text, width in zip(others, widths[1:], strict=True)]
        printed.append(" | ".join([f"{first:<{widths[0]}}", *padded]))
    return "\n".join(printed)


def print_csv(tables: list[tuple[str, list[dict]]]) -> None:
    """One table, with the data as first column. Numbers in full."""
    settings = [name for _, lines in tables for name in lines[0] if name not in SCORES]
    names = ["data", *settings, *SCORES]
    writer = csv.DictWriter(sys.stdout, dict.fromkeys(names), restval="", lineterminator="\n")
    writer.writeheader()
    for data, lines in tables:
        writer.writerows({"data": data, **line} for line in lines)


@exit_codes
def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    found, left_out = read_runs(args.folder)
    by_data = defaultdict(list)
    for one in found:
        by_data[one.data].append(one)
    tables = [(heading(runs), table_of(runs)) for runs in by_data.values()]
    if args.csv:
        print_csv(tables)
    elif not found:
        print(f"{args.folder}: no run is finished")
    else:
        print("\n\n".join(f"{title}\n\n{as_text(x, args.markdown)}" for title, x in tables))
    if left_out:
        names = [f"{path} ({why})" for path, why in left_out.items()]
        more = f" and {len(names) - MOST_NAMED} others" if names[MOST_NAMED:] else ""
        listed = ", ".join(names[:MOST_NAMED])
        print(
            f"left out, {len(names)} of {len(found) + len(names)}: {listed}{more}", file=sys.stderr
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
