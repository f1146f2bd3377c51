"""Is B better than A, or is it luck? python tools/compare.py runs/a runs/b

Two finished runs on the same rows, labels and folds, or several seeds a side: --a runs/a_* --b
runs/b_*. It reads out-of-fold probabilities and the training CSV; no model is loaded. Or two files
of verdicts on labelled rows: --test gold.csv a.csv b.csv. N rows, C labels.
How the interval is made: tools/luck.py. How often it errs: docs/results.md.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import metrics
from config import Config
from data import read_table
from support.cli import Parser
from support.csvfile import read_frames, read_header
from support.errors import UserError, exit_codes, warn
from support.files import damage, file_sha256
from support.results import read_settings
from support.run import Run
from tools.luck import Scored, differ, draw, table, verdict
from tools.runs import read_oof, read_training


def read_runs(sides: list[list[str]], moved: list[str]) -> tuple[list[tuple], np.ndarray, list]:
    """Pairs and groups for `differ`, and the labels; `moved`: where --train and --valid lie now.

    UserError for runs on other rows, labels or folds.
    """
    for folder in sides[0] + sides[1]:
        if not Path(folder, "env.json").is_file():
            raise UserError(f"{folder}: is no run - name the folder that train.py made")
    runs = [(side, Run(Path(folder))) for side in (0, 1) for folder in sides[side]]
    first, found, now = runs[0][1], {}, file_sha256(Path(metrics.__file__))
    for _, run in runs:
        if wrong := damage(run.path, run.key):
            raise UserError(f"{run.path}: is not finished, or damaged ({wrong}) - train it again")
        for key in ("data_sha256", "valid_sha256", "settings.labels", "settings.soft_labels"):
            its, other = (x.same.get(key, False) for x in (run, first))
            if its != other:
                what = f"{key} is {its!s:.40}, of {first.path} {other!s:.40}"
                raise UserError(f"{run.path}: {what} - compare runs on the same rows")
        if run.same.get("code.metrics.py", now) != now:
            warn(f"{run.path}: made with another metrics.py; today's chooses the thresholds")
    data, config = read_training(first, moved), read_settings(first, "cpu", "fp32")
    for side, run in runs:
        scored = read_oof(run, data, config.labels)
        key, twin = (scored.rows.tobytes(), scored.fold.tobytes()), scored.p.tobytes()
        if any(twin == r.p.tobytes() for r in found.get(key, ([], []))[side]):
            raise UserError(f"{run.path}: equals another run of its side - take another --seed")
        found.setdefault(key, ([], [], run.path))[side].append(scored)
    for a, b, path in found.values():
        if not (a and b):
            mend = "train with the same --folds and --split-seed (or --seed) on both sides"
            raise UserError(f"{path}: no run of the other side has its folds - {mend}")
    return [pair[:2] for pair in found.values()], data.groups, config.labels


def read_verdicts(gold: str, a: str, b: str) -> tuple[list[tuple], np.ndarray, list[str]]:
    """Of two files that predict.py wrote, and labelled rows: as `read_runs`."""
    labels = [name for name in read_header(a) if name not in ("id", "text")]
    data, sides = read_table(gold, Config(labels=labels)), []
    for path in (a, b):
        frame = next(read_frames(path, read_header(path), None), None)
        fits = labels and frame is not None and set(frame) == {"id", *labels}
        if not fits or frame["id"].tolist() != data.ids:
            raise UserError(f"{path}: needs id, the labels of {a}, and the ids of {gold} in order")
        wrong = frame[~frame[labels].isin(["0", "1"]).all(axis=1)]
        if len(wrong):
            mend = "give the file of --output, not that of --probabilities"
            raise UserError(f"{path}:{wrong.index[0]}: a verdict is 0 or 1 - {mend}")
        rows, pred = np.arange(len(data)), frame[labels].to_numpy() == "1"
        sides.append([Scored(rows, np.zeros(len(data), int), data.labels, pred)])
    return [tuple(sides)], data.groups, labels


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser("tools/compare.py", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    for name, what in ("--a", "runs of A"), ("--b", "runs of B"), ("runs", "two runs, A and B"):
        parser.add_argument(name, nargs="*", default=[], metavar="RUN", help=what)
    both = "the training CSV, and the one of --valid, where they lie elsewhere now"
    parser.add_argument("--train", nargs="+", default=[], metavar="CSV", help=both)
    parser.add_argument("--test", nargs=3, metavar=("GOLD", "A", "B"), help="CSV files to compare")
    parser.add_argument("--plot", metavar="PNG", help="draw the differences")
    args = parser.parse_args(argv)
    ways, one_sided = [args.runs, args.a + args.b, args.test], bool(args.a) != bool(args.b)
    if sum(map(bool, ways)) != 1 or one_sided or len(args.runs) not in (0, 2):
        raise UserError("name two runs A and B, or --a A ... --b B ..., or --test GOLD A B")
    if not args.a:
        args.a, args.b = ([path] for path in args.runs or args.test[1:])
    return args


@exit_codes
def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    if args.test:
        pairs, groups, labels = read_verdicts(*args.test)
    else:
        pairs, groups, labels = read_runs([args.a, args.b], args.train)
    held = pairs[0][0][0].rows
    if (n := len(np.unique(groups[held]))) < 20:
        raise UserError(f"{n} distinct held-out texts or groups: at least 20 are needed")
    found = differ(pairs, groups)
    names = ["macro-F1", "micro-F1", "mean average precision", *labels]
    print(f"A: {', '.join(args.a)}\nB: {', '.join(args.b)}\n{table(found, names)}")
    if max(run.fold.max() for run in pairs[0][0]) == 0:
        print("one held-out set: luck that moves a whole training is not in the interval")
    runs = 0 if args.test else sum(min(map(len, pair)) for pair in pairs)
    said = verdict(found, runs, len(held))
    print(said)
    if args.plot:
        draw(args.plot, found, names, said.split(";")[0])
    return 0


if __name__ == "__main__":
    sys.exit(main())
