"""Look at a run in a browser: python tools/look.py runs/a

Writes one HTML page that opens by a double click and loads nothing: thresholds to move by hand,
which labels are taken for each other, scores by length of text, the rows with their mistakes. With
a second run on the same rows also what changed: python tools/look.py runs/a runs/b. The page holds
your texts. n held-out rows, C labels.
The numbers: tools/parts/look_numbers.py; the rows: tools/parts/look_rows.py; the shaded words:
tools/parts/words.py; the page itself: tools/parts/look.html. Its table of rows is DataTables
(https://datatables.net, MIT licence), as the package itables carries it.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.cli import Parser, start_script


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        "tools/look.py",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", metavar="RUN", help="a finished run")
    parser.add_argument("other", metavar="RUN_B", nargs="?", help="another on the same rows")
    parser.add_argument("--output", metavar="FILE", help="the page (default: RUN/look.html)")
    no_words = "don't shade the words of the worst mistakes: no model is loaded"
    parser.add_argument("--no-words", action="store_true", help=no_words)
    moved = "where the training CSV (and --valid's) lies now; read where errors.csv lacks texts"
    parser.add_argument("--train", nargs="+", default=[], metavar="CSV", help=moved)
    return parser.parse_args(argv)


start_script(parse, __name__, unused=("matplotlib",))

import json
import os
import re
from importlib import metadata

from support.files import read_json, writing
from support.finished import FinishedRun, check_is_run, read_thresholds
from support.process import UserError, exit_codes
from tools.parts import look_numbers, look_rows
from tools.parts.sides import Finished, read_all
from tools.parts.words import Cell, word_scores

TEMPLATE = Path(__file__).parent / "parts/look.html"
LIBRARY = "itables/html/dt_bundle.js"  # DataTables with jQuery
SHADED = 200  # cells
HEADLINE = ("macro_f1", "micro_f1", "exact_match")  # cross-fitted


def read_library() -> str:
    """DataTables, a JavaScript module. UserError without the package that carries it."""
    hint = 'pip install "itables>=2.2"'
    try:
        path = Path(str(metadata.distribution("itables").locate_file(LIBRARY)))
        return path.read_text(encoding="utf-8")
    except (metadata.PackageNotFoundError, OSError):
        raise UserError(f"itables, which the table of rows needs, is missing - {hint}") from None


def check_output(args: argparse.Namespace) -> Path:
    """Where the page goes. UserError for a place that can't be used."""
    if args.output is None:
        return Path(args.run, "look.html")
    path = Path(os.path.expanduser(args.output))
    if path.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--output {path}: is no page - name it .html")
    if path.is_dir() or not path.parent.is_dir():
        problem = "is a folder" if path.is_dir() else f"{path.parent} is no folder"
        raise UserError(f"--output {path}: {problem} - name a file in a folder that exists")
    return path


def about(one: Finished, scores: dict) -> dict:
    """The headline."""
    config = one.config
    parts = [config.model, f"{len(one.rows):,} rows held out"]
    folds = f"{config.folds} folds" if config.folds > 1 else "a hold-out"
    seeds = f"seed {config.seed}"
    if config.split_seed is not None:
        seeds += f" (of the folds: {config.split_seed})"
    low, high = scores.get("macro_f1_cross_fitted_ci95", (None, None))
    return {
        "run": str(one.run.path),
        "key": one.run.key,
        "line": " · ".join([*parts, folds, seeds]),
        "low": look_numbers.number(low),
        "high": look_numbers.number(high),
        **{name: look_numbers.number(scores.get(f"{name}_cross_fitted")) for name in HEADLINE},
    }


def shade(one: Finished, texts: list[str | None]) -> tuple[list, str]:
    """[row, label, pieces] of the most wrong cells; or none, and why."""
    judged = one.judged
    cells = look_rows.most_wrong(judged.y, judged.p, judged.pred, SHADED)
    cells = [(int(i), int(j)) for i, j in cells if texts[i] is not None]
    if not cells:
        return [], "no verdict is wrong"
    asked = []
    for i, j in cells:
        asked.append(Cell(texts[i], j, int(one.oof.fold[i]), float(judged.p[i, j])))
    try:
        found = word_scores(FinishedRun(one.run.path, precision="fp32"), asked)
    except UserError as e:
        return [], str(e)
    found = map(look_rows.short_pieces, found)
    return [[i, j, pieces] for (i, j), pieces in zip(cells, found, strict=True)], ""


def page_data(args: argparse.Namespace) -> dict:
    """All that the page shows."""
    check_is_run(Path(args.run))
    (one,), _, names = read_all([args.run], args.train)
    judged = one.judged
    scores = read_json(one.run.path / "metrics.json")
    columns = zip(judged.y.T, judged.p.T, read_thresholds(None, one.run), strict=True)
    other = of_b = None
    if args.other:
        check_is_run(Path(args.other))
        other, *of_b = look_numbers.against(args.run, args.other, args.train)
    texts, why_missing = look_rows.read_texts(one, args.train)
    missing = texts.count(None)
    shown = look_rows.shown_rows(look_rows.row_losses(judged.y, judged.p)).tolist()
    rows = [look_rows.row_cells(one, texts[i], i, of_b) for i in shown]
    words, why_no_words = [], "--no-words was given"
    if not args.no_words:
        words, why_no_words = shade(one, texts)
    place = {i: k for k, i in enumerate(shown)}
    return {
        "about": about(one, scores),
        "names": names,
        "labels": look_numbers.label_rows(scores, names),
        "fold_thresholds": look_numbers.fold_thresholds(judged),
        "thresholds": [look_numbers.threshold_counts(*column) for column in columns],
        "together": look_numbers.given_together(judged.y).tolist(),
        "taken": look_numbers.taken_for(judged.y, judged.pred).tolist(),
        "lengths": look_numbers.scores_by_length(texts, judged.y, judged.pred),
        "other": other,
        "rows": rows,
        "shown": look_rows.shown_of(len(judged.y)),
        "missing": f"{missing:,} texts are not at hand: {why_missing}" if missing else "",
        "words": [[place[i], j, pieces] for i, j, pieces in words if i in place],
        "why_no_words": why_no_words,
    }


def as_json(value) -> str:
    """JSON that may stand in a script element: no text in it can close the element. Half a
    surrogate pair, which UTF-8 can't hold, is escaped, too."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    text = text.replace("<", "\\u003c")
    return re.sub("[\ud800-\udfff]", lambda half: f"\\u{ord(half[0]):04x}", text)


def fill(data: dict, library: str) -> str:
    """The page."""
    template = TEMPLATE.read_text(encoding="utf-8")
    for name, value in (("LIBRARY", library), ("DATA", data)):
        before, after = template.split(f"/*{name}*/")
        template = before + as_json(value) + after
    return template


@exit_codes
def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    library = read_library()
    path = check_output(args)
    page = fill(page_data(args), library).encode()
    with writing(path, "name another --output", 2):
        path.write_bytes(page)
    print(f"wrote {path} ({len(page) / 1e6:.1f} MB): open it in a browser; it holds your texts")
    return 0


if __name__ == "__main__":
    sys.exit(main())
