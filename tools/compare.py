"""Is B better than A, or is it luck? python tools/compare.py runs/a runs/b

Two finished runs on the same rows and folds, or several seeds a side: --a runs/a_* --b
runs/b_*. Or many ideas against one baseline: runs/base_* --against runs/x_* runs/y_*. It reads the
runs' oof.csv alone, and loads no model. Or two files of verdicts on labelled rows: --test gold.csv
a.csv b.csv. N rows, C labels.
How the interval is made: tools/parts/difference.py. How often it errs: docs/results.md.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.cli import Parser, start_script
from support.process import UserError


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        "tools/compare.py",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    runs = (
        ("--a", "runs of A"),
        ("--b", "runs of B"),
        ("--against", "runs of ideas, each compared with all of RUN; seeds of one recipe together"),
        ("runs", "two runs, A and B; with --against the baseline's"),
    )
    for name, text in runs:
        nargs = "*" if name == "runs" else "+"
        parser.add_argument(name, nargs=nargs, default=[], metavar="RUN", help=text)
    moved = "of runs whose oof.csv has no labels (older code): the training CSV, and --valid's"
    parser.add_argument("--train", nargs="+", default=[], metavar="CSV", help=moved)
    parser.add_argument("--test", nargs=3, metavar=("GOLD", "A", "B"), help="CSV files to compare")
    parser.add_argument("--plot", metavar="PNG", help="draw the differences")
    parser.add_argument("--json", metavar="FILE", help="write the scores, intervals and p-values")
    parser.add_argument("--latex", action="store_true", help="print the table as LaTeX")
    args = parser.parse_args(argv)
    if args.against:
        if not args.runs or args.a or args.b or args.test or args.plot or args.latex:
            hint = "it goes with neither --a, --b, --test, --plot nor --latex"
            raise UserError(f"--against: name the baseline's runs before it - {hint}")
        return args
    ways = [args.runs, args.a + args.b, args.test]
    one_sided = bool(args.a) != bool(args.b)
    if sum(map(bool, ways)) != 1 or one_sided or len(args.runs) not in (0, 2):
        raise UserError("name two runs A and B, or --a A ... --b B ..., or --test GOLD A B")
    if not args.a:
        args.a, args.b = ([path] for path in args.runs or args.test[1:])
    return args


plot = any(word.startswith("--plot") for word in sys.argv)
start_script(parse, __name__, unused=() if plot else ("matplotlib",))

import numpy as np

from config import Config
from data import Table, read_chunks
from support.csvfile import CsvFile
from support.files import writing
from support.inputcsv import InputCSV
from support.process import exit_codes
from tools.parts import ideas, verdict
from tools.parts.difference import Judged, Pair, differ
from tools.parts.sides import (
    Finished,
    by_recipe,
    changes,
    name_of,
    pair_up,
    read_all,
    seeds_of,
    warn_of_unequal_sides,
)


def read_runs(
    a: list[str], b: list[str], moved: list[str]
) -> tuple[list[Pair], np.ndarray, list[str]]:
    """Pairs and groups for `differ`, and the names of the labels.

    `a`, `b`: the folders of both sides; `moved`: see `read_labelled_oof`. UserError for runs on
    other rows, labels or folds.
    """
    found, groups, names = read_all([*a, *b], moved)
    return pair_up(found[: len(a)], found[len(a) :]), groups, names


def read_gold(path: str, names: list[str]) -> Table:
    """Labelled rows. UserError without texts, or a 0/1 column for each label."""
    needs = f"{path}: needs id, text and 0/1 columns {', '.join(names)}"
    try:
        source = InputCSV(path, Config(labels=names))
    except UserError as e:
        raise UserError(f"{needs} ({str(e).split(' - ')[0]})") from None
    (table,) = read_chunks(source)
    source.warn_of_odd_rows()
    if not source.scored:
        raise UserError(needs)
    return table


def read_verdicts(gold: str, a: str, b: str) -> tuple[list[Pair], np.ndarray, list[str]]:
    """Of two files that predict.py wrote, and labelled rows: as `read_runs`."""
    names = [name for name in CsvFile(a).header if name not in ("id", "text")]
    table = read_gold(gold, names)
    known = np.flatnonzero(table.scored)  # -1 in all labels: not scored, as on Kaggle
    sides = []
    for path in (a, b):
        frame = next(CsvFile(path).frames(), None)
        complete = names and frame is not None and {*frame} - {"text"} == {"id", *names}
        if not complete or frame["id"].tolist() != table.ids:
            need = f"needs id, the labels of {a}, and the ids of {gold} in order"
            raise UserError(f"{path}: {need}")
        wrong = frame[~frame[names].isin(["0", "1"]).all(axis=1)]
        if len(wrong):
            hint = "give the file of --output, not that of --probabilities"
            raise UserError(f"{path}:{wrong.index[0]}: a verdict is 0 or 1 - {hint}")
        pred = frame[names].to_numpy() == "1"
        sides.append([Judged(known, np.zeros_like(known), table.y[known], None, pred[known])])
    return [Pair(*sides)], table.groups, names


def compare_sides(args: argparse.Namespace) -> None:
    """Two sides: the table, what it rests on, the verdict."""
    about = []
    if args.test:
        pairs, groups, names = read_verdicts(*args.test)
    else:
        found, groups, names = read_all([*args.a, *args.b], args.train)
        a, b = found[: len(args.a)], found[len(args.a) :]
        pairs = pair_up(a, b)
        warn_of_unequal_sides(a, b)
        about = lines_about(a, b)
    rows = check_enough(pairs, groups)
    difference = differ(pairs, groups)
    remarks = [*verdict.remarks(difference, names), *about]
    answer = verdict.verdict(difference, rows, files=bool(args.test))
    if not args.test and a[0].recipe == b[0].recipe:
        answer = f"{answer.splitlines()[0]}\nboth sides are of one recipe: a difference is luck"
    sides = f"A: {', '.join(args.a)}\nB: {', '.join(args.b)}"
    below = "\n".join([*remarks, answer])
    if args.latex:
        around = ("% " + "\n% ".join(text.splitlines()) for text in (sides, below))
        print("\n".join([next(around), verdict.latex_table(difference, names), next(around)]))
    else:
        print(f"{sides}\n{verdict.difference_table(difference, names)}\n{below}")
    if args.json:
        answers = {"a": args.a, "b": args.b, "rows": rows, "remarks": remarks, "verdict": answer}
        if not args.test:
            answers["macro_f1_of_runs"] = {"a": macro_f1_of(a), "b": macro_f1_of(b)}
        write_result(args.json, answers | verdict.as_json(difference, names))
    if args.plot:
        title = f"{sides}\n{rows} rows; {answer.splitlines()[0]}"
        verdict.draw_difference(args.plot, difference, names, title)
        print(f"wrote {args.plot}")


def macro_f1_of(runs: list[Finished]) -> list[float]:
    return [one.judged.macro_f1 for one in runs]


def lines_about(a: list[Finished], b: list[Finished]) -> list[str]:
    """What the sides are: recipes, seeds, folds; how far seeds differ; whether all runs of one side
    beat the other's."""
    config = a[0].config
    splits = sorted({one.config.fold_seed for one in a})
    folds = f"split seed {', '.join(map(str, splits))}"
    if config.fold_column or config.valid:
        folds = f"column {config.fold_column}" if config.fold_column else config.valid
    lines = [f"B has changed: {changes(a[0].recipe, b[0].recipe)}"]
    if len(splits) == 1:
        f1 = macro_f1_of(a), macro_f1_of(b)
        lines += filter(None, [verdict.spread(*f1), verdict.ranking(*f1)])
    return [*lines, f"seeds of A: {seeds_of(a)}; of B: {seeds_of(b)}; folds: {folds}"]


def check_enough(pairs: list[Pair], groups: np.ndarray) -> int:
    """The number of rows held out by the first run that have a label. UserError for fewer than 20
    that differ."""
    first = pairs[0].a[0]
    rows = first.rows[~np.isnan(first.y).all(1)]
    distinct = len(np.unique(groups[rows]))
    if distinct < 20:
        raise UserError(f"{distinct} distinct held-out texts or groups: at least 20 are needed")
    return len(rows)


def write_result(path: str, result: dict) -> None:
    with writing(Path(path), "name another --json", 2):
        Path(path).write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", "utf-8")
    print(f"wrote {path}")


def compare_many(args: argparse.Namespace) -> None:
    """Ideas against one baseline."""
    found, groups, _ = read_all([*args.runs, *args.against], args.train)
    base, others = found[: len(args.runs)], found[len(args.runs) :]
    recipes = by_recipe(others)
    check_enough([Pair([base[0].judged], [])], groups)
    for runs in recipes:
        warn_of_unequal_sides(base, runs, ("baseline", name_of(runs)))
    ranked = ideas.compare_ideas(base, recipes, groups)
    print(ideas.ideas_table(base, ranked))
    if args.json:
        baseline = {"runs": args.runs, "macro_f1": float(ranked[0].difference.a[0])}
        told = [idea.as_json() for idea in ranked]
        write_result(args.json, {"baseline": baseline, "level": ranked[0].level, "ideas": told})


@exit_codes
def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    if args.against:
        compare_many(args)
    else:
        compare_sides(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
