"""The tables of README.md and docs/: python benchmarks/figures.py DATA DIR [--large] [--only NAMES]

DATA holds semeval2025_eng_train.csv, semeval2025_eng_dev.csv, goemotions_ekman5_train.csv and
goemotions_ekman5_dev.csv (docs/results.md says where they come from). Runs are made in DIR; what is
finished there is not made again, so the same command resumes. Each table goes into
benchmarks/figures.json, with its commit, machine and date, and from there between its marks in the
documents:

    <!-- figure: NAME -->
    <!-- end -->

About two hours on two cores with bf16 units; --large adds the rows of MPNet-base, two hours more.
It must lie in the cache of the Hub, or --large names its folder. --write alone makes nothing, and
puts what figures.json has into the documents.
"""

import json
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from measure import HERE, call, flag_parser

sys.path.insert(0, str(HERE))

import numpy as np

from support.files import read_json
from support.process import UserError, exit_codes

KEPT = HERE / "benchmarks/figures.json"
DOCUMENTS = [HERE / "README.md", *sorted((HERE / "docs").glob("*.md"))]
BLOCK = r"(<!-- figure: {} -->\n).*?(<!-- end -->)"
MPNET = "sentence-transformers/all-mpnet-base-v2"
SAMPLE = HERE / "examples/train.csv"
SEEDS = (0, 1, 2)
# Of the cases of error_rates.py null, those that differ most: all of them are in its output.
NULL_CASES = {
    "luck by row alone",
    "2 folds",
    "5 folds",
    "5 folds, 3 a side, other folds each",
    "hold-out, 3 a side",
    "hold-out, trainings of unequal quality, 3 a side, 2,768 rows",
    "luck common to all folds, 2,768 rows",
    "28 labels, 2,000 rows, luck by fold",
    "30 groups of unequal size",
}
IDEAS = {
    "rates by layer, 0.85": "recipes/layer_rates.patch",
    "token table and two layers frozen": "--freeze 2",
    "multi-sample dropout": "recipes/multi_sample_dropout.patch",
    "label smoothing 0.1": "--label-smoothing 0.1",
    "asymmetric loss": "recipes/asymmetric_loss.patch",
    "attention pooling": "recipes/attention_pooling.patch",
    "a tenth of the tokens left out": "recipes/augmentation.patch",
}


@dataclass
class Work:
    """Where data and runs lie. `large`: the model of --large, None without."""

    data: Path
    folder: Path
    large: str | None

    @property
    def semeval(self) -> Path:
        return self.data / "semeval2025_eng_train.csv"

    @property
    def goemotions(self) -> Path:
        return self.data / "goemotions_ekman5_train.csv"

    def run(self, name: str, train: Path, *flags) -> Path:
        """The finished run of train.py on `train`; trained if it is not there."""
        out = self.folder / name
        self.output(name, ["train.py", "--train", train, "--out", out, *flags])
        return out

    def output(self, name: str, argv: Sequence) -> str:
        """What a Python program of the project prints; kept in DIR, and run once."""
        kept = self.folder / f"{name}.txt"
        if not kept.exists():
            print(f"{time.strftime('%H:%M')} {' '.join(map(str, argv))}", flush=True)
            program, *flags = argv
            seconds, _, text = call([HERE / program, *flags])
            kept.write_text(f"{text}\n{seconds:.0f} seconds\n", "utf-8")
        return kept.read_text("utf-8")

    def seconds(self, name: str) -> float:
        return float(self.output(name, []).split()[-2])

    def seeds(self, name: str, train: Path, *flags) -> list[dict]:
        """metrics.json of three seeds on the same folds."""
        found = []
        for seed in SEEDS:
            own = ["--seed", seed, "--split-seed", 42, *flags]
            found.append(metrics_of(self.run(f"{name}_{seed}", train, *own)))
        return found


# Cells


def metrics_of(run: Path) -> dict:
    return read_json(run / "metrics.json")


def with_interval(values: dict) -> str:
    low, high = values["macro_f1_cross_fitted_ci95"]
    return f"{values['macro_f1_cross_fitted']:.3f} [{low:.3f}, {high:.3f}]"


def mean_and_deviation(found: Sequence[float]) -> str:
    return f"{np.mean(found):.3f} ({np.std(found, ddof=1):.3f})"


def macro_f1(found: list[dict]) -> str:
    """Mean of the seeds, and their standard deviation."""
    return mean_and_deviation([values["macro_f1_cross_fitted"] for values in found])


def average_precision(found: list[dict]) -> str:
    means = []
    for values in found:
        means.append(np.mean([row["average_precision"] for row in values["per_label"].values()]))
    return mean_and_deviation(means)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown; the first column is text, the others are numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def code(lines: Sequence[str]) -> str:
    text = "\n".join(lines)
    return f"```text\n{text}\n```"


# Tables


def start(work: Work) -> str:
    """What the README's first command prints."""
    work.run("start", SAMPLE)
    lines = work.output("start", []).splitlines()
    epoch = next(line for line in lines if line.startswith("fold 0 epoch  3"))
    first = next(i for i, line in enumerate(lines) if line.startswith("out-of-fold"))
    return code([epoch, "...", *lines[first : first + 5]])


def baselines(work: Work, name: str, train: Path) -> dict[str, str]:
    """Score and interval of the logistic regressions, by what they read."""
    text = work.output(f"baseline_{name}", ["benchmarks/baseline.py", "--train", train])
    found = re.findall(r"\| (.+?) \+ logistic .*?macro-F1 (\S+) \[(\S+), (\S+)\]", text)
    return {
        kind: f"{float(f1):.3f} [{float(low):.3f}, {float(high):.3f}]"
        for kind, f1, low, high in found
    }


def results(work: Work) -> str:
    """Of the README."""
    rows = []
    if work.large:
        run = work.run("mpnet", work.semeval, "--split-seed", 42, "--model", work.large)
        rows.append(["MPNet-base (110M parameters), fine-tuned", with_interval(metrics_of(run))])
    found = work.seeds("semeval", work.semeval)
    rows.append(["MiniLM (bundled, 22.6M), fine-tuned", macro_f1(found)])
    plain = baselines(work, "semeval", work.semeval)
    rows.append(["MiniLM's vectors unchanged, logistic regression", plain["frozen vectors"]])
    rows.append(["TF-IDF, logistic regression", plain["TF-IDF"]])
    return table(["SemEval-2025 task 11, English, 2,768 texts", "cross-fitted macro-F1"], rows)


def scores(work: Work) -> str:
    rows = []
    for name, train, title in (
        ("semeval", work.semeval, "SemEval, 2,768 rows"),
        ("sample", SAMPLE, "the sample, 615 rows"),
    ):
        found = work.seeds(name, train)
        minutes = np.mean([work.seconds(f"{name}_{seed}") for seed in SEEDS]) / 60
        f1, ranking = macro_f1(found), average_precision(found)
        rows.append([f"{title}: MiniLM, fine-tuned", f1, ranking, f"{minutes:.1f}"])
        for kind, score in baselines(work, name, train).items():
            kind = kind.replace("frozen vectors", "MiniLM's vectors unchanged")
            rows.append([f"{kind}, logistic regression", score, "", ""])
    head = ["data: model", "cross-fitted macro-F1", "mean average precision", "minutes"]
    return table(head, rows)


def published(work: Work) -> str:
    rows = []
    for name, train, dev, title, flags in (
        ("dev_goemotions", work.goemotions, "goemotions_ekman5_dev.csv", "GoEmotions, Ekman", []),
        ("dev_semeval", work.semeval, "semeval2025_eng_dev.csv", "SemEval", ["--keep", "last"]),
    ):
        run = work.run(name, train, "--valid", work.data / dev, *flags)
        held_out = len((run / "oof.csv").read_text("utf-8").splitlines()) - 1
        rows.append([title, f"{held_out:,}", with_interval(metrics_of(run))])
    return table(["data", "rows of its dev file", "macro-F1 [95 % interval]"], rows)


def defaults(work: Work) -> str:
    """From the notebooks' recipe to today's."""
    slow = ["--lr", "2e-5", "--epochs", 4]
    steps = {
        "the notebooks' rate, epochs and pooling": [*slow, "--pooling", "cls"],
        "+ mean pooling": slow,
        "+ rate and epochs by size (today's defaults)": [],
    }
    rows = []
    for i, (title, flags) in enumerate(steps.items()):
        run = work.run(f"step_{i}", work.semeval, "--folds", 3, "--seed", 0, *flags)
        rows.append([title, with_interval(metrics_of(run))])
    return table(["recipe", "cross-fitted macro-F1 [95 % interval]"], rows)


def held_back(work: Work) -> str:
    """Does the printed number hold on rows that no training saw?"""
    ways = {
        "SemEval": ("semeval", work.semeval, ["--folds", 5]),
        "GoEmotions, 3,000 rows": ("goemotions", work.goemotions, ["--folds", 5, "--rows", 3000]),
        "SemEval, the notebook's way": ("notebook", work.semeval, ["--notebook"]),
        "... with a third of the rows doubled": (
            "doubled",
            work.semeval,
            ["--notebook", "--doubled"],
        ),
    }
    rows = []
    for title, (name, csv, flags) in ways.items():
        folder = work.folder / f"held_back_{name}"
        argv = ["benchmarks/heldback.py", csv, folder, "--repeats", 5, *flags]
        last = work.output(f"held_back_{name}", argv).split("repetitions; in brackets")[-1]
        for kept, *cells in re.findall(r"^\| (best|last)\D*? \| (.+) \|$", last, re.M):
            if kept == "last" and "--notebook" in flags:
                continue  # the notebook keeps the best
            rows.append([title, kept, *cells[0].split(" | ")])
    head = ["data", "epoch kept", "printed", "one fold's model on new rows"]
    head += ["average of the folds on new rows", "printed - average", "interval covers 0"]
    return table(head, rows)


def luck(work: Work) -> str:
    """tools/compare.py: the default against --pooling cls, three seeds."""
    sides = []
    for name, flags in (("sample", []), ("cls", ["--pooling", "cls"])):
        work.seeds(name, SAMPLE, *flags)
        sides.append([work.folder / f"{name}_{seed}" for seed in SEEDS])
    argv = ["tools/compare.py", "--a", *sides[0], "--b", *sides[1]]
    lines = work.output("luck", argv).splitlines()
    first = next(i for i, line in enumerate(lines) if "B - A" in line)
    ends = [line for line in lines[first + 2 :] if line.startswith(("seeds of", "A is", "B is"))]
    return code([*lines[first : first + 2], "...", *ends])


def null(work: Work) -> str:
    """How often tools/compare.py calls a difference where there is none."""
    argv = ["benchmarks/error_rates.py", "null", work.folder / "null"]
    text = work.output("null", [*argv, "--repetitions", 100, "--processes", 2])
    head, ruler, *rows = (line for line in text.splitlines() if line.startswith("|"))
    shown = [row for row in rows if row.split(" | ")[0].removeprefix("| ") in NULL_CASES]
    return "\n".join([head, ruler, *shown])


def ideas(work: Work) -> str:
    lines = []
    names = {}
    for title, change in IDEAS.items():
        name = re.sub(r"\W+", "-", title)
        names[name] = title
        lines.append(f"{name}: {change}\n")
    path = work.folder / "list_of_ideas.txt"  # ideas.txt is what the sweep prints
    path.write_text("".join(lines), "utf-8")
    argv = ["tools/sweep.py", work.semeval, work.folder / "ideas", path, "--seeds", 2]
    text = work.output("ideas", [*argv, "--confirm", 0, "--folds", 3, "--keep", "last"])
    rows = []
    for name, title in {**names, "baseline": "the defaults"}.items():
        (line,) = re.findall(rf"^{re.escape(name)} +\| +\d+ \| (.*)$", text, re.M)
        rows.append([title, *(cell.strip(" *") for cell in f"{line} |  | ".split("|")[:3])])
    return table(["idea", "macro-F1", "difference", "95 % interval of all together"], rows)


def speed(work: Work) -> str:
    """Whole commands, beside transformers' Trainer. Nothing else should run."""
    argv = ["benchmarks/speed.py", work.semeval, "--whole", "--rows", 400, "--runs", 3]
    text = work.output("speed", argv)
    return "\n".join(line for line in text.splitlines() if line.startswith("|"))


TABLES: dict[str, Callable[[Work], str]] = {
    f.__name__: f
    for f in (start, results, scores, luck, published, defaults, held_back, null, ideas, speed)
}


# Documents


def place() -> dict[str, str]:
    """Where and of which code the figures are."""
    git = subprocess.run(["git", "-C", HERE, "rev-parse", "HEAD"], capture_output=True, text=True)
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()) or ["", ""]
    return {
        "commit": git.stdout.strip()[:7],
        "machine": f"{cpu[1]}, {platform.machine()}",
        "date": time.strftime("%Y-%m-%d"),
    }


def written(text: str, kept: dict) -> str:
    """A document with the tables between its marks. UserError for a mark without its table."""
    for name in re.findall(r"<!-- figure: (\w+) -->", text):
        if name not in kept:
            raise UserError(f"{KEPT.name}: has no table {name} - make it with --only {name}")
        block = re.compile(BLOCK.format(name), re.S)
        body = kept[name]["markdown"]
        text = block.sub(lambda m, body=body: f"{m[1]}\n{body}\n\n{m[2]}", text)
    return text


@exit_codes
def main(argv: list[str] | None = None) -> int:
    parser = flag_parser(__doc__)
    parser.add_argument("paths", nargs="*", type=Path, metavar="PATH", help="DATA DIR")
    parser.add_argument("--large", nargs="?", const=MPNET, metavar="MODEL")
    parser.add_argument("--only", nargs="+", choices=[*TABLES], default=[*TABLES])
    parser.add_argument("--write", action="store_true", help="into the documents, and no more")
    args = parser.parse_args(argv)
    kept = read_json(KEPT) if KEPT.exists() else {}
    if not args.write:
        if len(args.paths) != 2:
            raise UserError("name DATA and DIR, or --write")
        data, folder = (path.resolve() for path in args.paths)
        folder.mkdir(parents=True, exist_ok=True)
        for name in args.only:
            markdown = TABLES[name](Work(data, folder, args.large))
            kept[name] = {"markdown": markdown, **place()}
            KEPT.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", "utf-8")
            print(f"\n{name}\n\n{markdown}\n", flush=True)
    for path in DOCUMENTS:
        path.write_text(written(path.read_text("utf-8"), kept), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
