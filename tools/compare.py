"""Is B better than A, or is it luck? python tools/compare.py runs/a runs/b

Two finished runs on the same rows, labels and folds, or several seeds a side: --a runs/a_* --b
runs/b_*. It reads the runs' oof.csv alone, and loads no model. Or two files of verdicts on labelled
rows: --test gold.csv a.csv b.csv. N rows, C labels.
How the interval is made: tools/parts/difference.py. How often it errs: docs/results.md.
"""

import argparse
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
    runs = (("--a", "runs of A"), ("--b", "runs of B"), ("runs", "two runs, A and B"))
    for name, text in runs:
        parser.add_argument(name, nargs="*", default=[], metavar="RUN", help=text)
    moved = "of runs whose oof.csv has no labels (older code): the training CSV, and --valid's"
    parser.add_argument("--train", nargs="+", default=[], metavar="CSV", help=moved)
    parser.add_argument("--test", nargs=3, metavar=("GOLD", "A", "B"), help="CSV files to compare")
    parser.add_argument("--plot", metavar="PNG", help="draw the differences")
    args = parser.parse_args(argv)
    ways = [args.runs, args.a + args.b, args.test]
    one_sided = bool(args.a) != bool(args.b)
    if sum(map(bool, ways)) != 1 or one_sided or len(args.runs) not in (0, 2):
        raise UserError("name two runs A and B, or --a A ... --b B ..., or --test GOLD A B")
    if not args.a:
        args.a, args.b = ([path] for path in args.runs or args.test[1:])
    return args


plot = any(word.startswith("--plot") for word in sys.argv)
start_script(parse, __name__, unused=() if plot else ("matplotlib",))

from collections import Counter, defaultdict

import numpy as np

import metrics
from config import Config
from data import OutOfFold, Table, read_chunks, threshold_folds
from support.csvfile import CsvFile
from support.files import damage, file_sha256
from support.finished import OofCSV, read_labelled_oof, read_settings
from support.inputcsv import InputCSV
from support.process import exit_codes, warn
from support.run import Run
from tools.parts.difference import (
    Judged,
    Pair,
    differ,
    difference_table,
    draw_difference,
    verdict,
)

SAME = ("data_sha256", "valid_sha256", "settings.labels", "settings.soft_labels")


def read_runs(
    a: list[str], b: list[str], moved: list[str]
) -> tuple[list[Pair], np.ndarray, list[str]]:
    """Pairs and groups for `differ`, and the names of the labels.

    `a`, `b`: the folders of both sides; `moved`: see `read_labelled_oof`. UserError for runs on
    other rows, labels or folds.
    """
    for folder in [*a, *b]:
        if not Path(folder, "env.json").is_file():
            raise UserError(f"{folder}: is no run - name the folder that train.py made")
    runs = [
        (side, open_finished(folder)) for side, folders in ((0, a), (1, b)) for folder in folders
    ]
    first = runs[0][1]
    for _, run in runs:
        check_same_data(run, first)
    pairs = defaultdict(lambda: Pair([], []))  # by the folds of the rows
    first_folder = {}
    numbers = {}  # of the rows of all runs
    for side, run in runs:
        oof = read_labelled_oof(run, moved)
        run_judged = judged(oof, number_rows(oof, numbers), read_settings(run))
        split = run_judged.rows.tobytes(), oof.fold.tobytes()
        if any(np.array_equal(oof.p, other.p) for other in pairs[split][side]):
            raise UserError(f"{run.path}: equals another run of its side - take another --seed")
        pairs[split][side].append(run_judged)
        first_folder.setdefault(split, run.path)
    for split, pair in pairs.items():
        if not (pair.a and pair.b):
            problem = "no run of the other side has its folds"
            hint = "train with the same --folds and --split-seed (or --seed) on both sides"
            raise UserError(f"{first_folder[split]}: {problem} - {hint}")
    groups = np.array([group for _, group, _ in numbers])
    return list(pairs.values()), groups, read_settings(first).labels


def number_rows(oof: OofCSV, numbers: dict[tuple, int]) -> np.ndarray:
    """int (n,): the same number for a row in all runs, by its id and group; in order, where several
    have both. `numbers` grows by the rows that are new."""
    seen = Counter()
    rows = []
    for key in zip(oof.ids, oof.group.tolist(), strict=True):
        rows.append(numbers.setdefault((*key, seen[key]), len(numbers)))
        seen[key] += 1
    return np.array(rows)


def open_finished(folder: str) -> Run:
    """A run whose totals are there. Its weights are not needed, and not checked."""
    run = Run(Path(folder))
    if problem := damage(run.path, run.key):
        hint = "train it to its end, or copy all of it but the folds"
        raise UserError(f"{run.path}: is not finished, or damaged ({problem}) - {hint}")
    return run


def check_same_data(run: Run, first: Run) -> None:
    for key in SAME:
        value, other = run.identity.get(key, False), first.identity.get(key, False)
        if value != other:
            problem = f"{key} is {value!s:.40}, of {first.path} {other!s:.40}"
            raise UserError(f"{run.path}: {problem} - compare runs on the same rows")
    today = file_sha256(metrics.__file__)
    if run.identity.get("code.metrics.py", today) != today:
        warn(f"{run.path}: made with another metrics.py; today's chooses the thresholds")


def judged(oof: OofCSV, rows: np.ndarray, config: Config) -> Judged:
    """With cross-fitted verdicts, and these numbers of its rows."""
    held_out = OutOfFold(np.arange(len(rows)), oof.fold, oof.y, oof.p)
    fold = threshold_folds(held_out, oof.group, config)
    pred = metrics.cross_fit(oof.y, oof.p, fold)
    return Judged(rows, oof.fold, oof.y, oof.p, pred)


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


@exit_codes
def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    if args.test:
        pairs, groups, names = read_verdicts(*args.test)
    else:
        pairs, groups, names = read_runs(args.a, args.b, args.train)
    rows = pairs[0].rows
    distinct = len(np.unique(groups[rows]))
    if distinct < 20:
        raise UserError(f"{distinct} distinct held-out texts or groups: at least 20 are needed")
    difference = differ(pairs, groups)
    score_names = ["macro-F1", "micro-F1", "mean average precision", *names]
    print(f"A: {', '.join(args.a)}")
    print(f"B: {', '.join(args.b)}")
    print(difference_table(difference, score_names))
    if pairs[0].fold.max() == 0:
        print("one held-out set: luck that moves a whole training is not in the interval")
    runs = 0 if args.test else sum(min(map(len, pair)) for pair in pairs)
    answer = verdict(difference, runs, len(rows))
    print(answer)
    if args.plot:
        draw_difference(args.plot, difference, score_names, answer.split(";")[0])
    return 0


if __name__ == "__main__":
    sys.exit(main())
