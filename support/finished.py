"""A finished run as predict.py and the tools read it: found, checked; its settings, thresholds,
training rows and out-of-fold rows.

N rows of the training data, n of them held out, C labels.
"""

import dataclasses
import os
import shlex
import textwrap
from pathlib import Path

import numpy as np
import torch

from config import HERE, Config
from data import OutOfFold, Table, read_chunks, read_data, split
from support.cli import checked
from support.csvfile import CsvFile, check_file, nearby
from support.device import free_memory, resolve_device
from support.files import damage, file_sha256, read_json, read_npy
from support.inputcsv import InputCSV
from support.process import UserError, warn
from support.run import Run

MOST_NAMED = 9  # runs of a folder, in an error line


class FinishedRun(Run):
    """A run whose every file was checked, with what predicting needs but the models.

    UserError: there is none, it is unfinished or damaged.
    """

    def __init__(self, folder: str | None, device: str = "auto", precision: str = "auto"):
        """`folder`: None for the run in runs/ that finished last."""
        path = Path(str(folder)) if folder else newest_run()
        if not os.path.isdir(path):
            raise UserError(f"{path}: no such run folder - give one that train.py made")
        check_is_run(path)
        super().__init__(path)
        self._check_files()
        self.config = read_settings(self, *resolve_device(device, precision))
        self.names = self.config.labels
        self.scores = read_json(path / "metrics.json")
        of_label = self.scores["per_label"]
        self.platt = np.array([of_label[name]["platt"] for name in self.names]).T  # (2, C)
        self.seen = read_npy(path / "texts.npy", "u", "text hashes")
        self.th = read_thresholds(None, self)

    def __repr__(self) -> str:
        """Two lines: what it is, how good it is, where it runs."""
        folds = "1 fold" if self.folds == 1 else f"{self.folds} folds"
        where = f"{self.config.device} ({self.config.precision})"
        score = f"cross-fitted macro-F1 {self.scores.get('macro_f1_cross_fitted', np.nan):.4f}"
        if "scores_of" in self.scores:  # one model on all rows, by distil.py --single
            score += f" (of {self.scores['scores_of']})"
        labels = textwrap.shorten(", ".join(self.names), 200, placeholder=" ...")
        return f"{self.path}: {folds} of {self.config.model} on {where}, {score}\nlabels: {labels}"

    def _check_files(self) -> None:
        missing = ", ".join(f"fold {k}" for k in self.missing())
        if missing or not (self.path / "DONE.json").exists():
            hint = "run the same train.py command again; it resumes"
            raise UserError(f"{self.path}: {missing or 'DONE.json'} is missing - {hint}")
        for part in (self.path, *map(self.fold_dir, range(self.folds))):
            if problem := damage(part, self.key):
                hint = "run the same train.py command again; it redoes what is damaged"
                raise UserError(f"{problem} - {hint}")
        changed = []
        for key, sha256 in self.identity.items():
            file = HERE / key.removeprefix("code.")
            if key.startswith("code.") and not (file.is_file() and file_sha256(file) == sha256):
                changed.append(key.removeprefix("code."))
        if changed:
            code = f"made by other code than this ({', '.join(changed)})"
            warn(f"{self.path}: {code} - scores may differ")

    def fits_in_memory(self) -> bool:
        """Whether all folds take less than half of the memory."""
        cuda = self.config.device == "cuda"
        memory = torch.cuda.mem_get_info()[0] if cuda else free_memory()
        weights = self.path.glob("fold_*/model.safetensors")
        return 2 * sum(p.stat().st_size for p in weights) < memory


def check_is_run(path: Path) -> None:
    """UserError for a fold of a run, and for a folder of runs, that names what to give."""
    if (path / "head.safetensors").is_file():
        run = Path(os.path.abspath(path)).parent
        if not path.is_absolute():
            run = Path(os.path.relpath(run))
        hint = shlex.quote(str(run)) if (run / "env.json").exists() else "the whole run it is of"
        raise UserError(f"{path}: is one fold of a run - give {hint}")
    inside = sorted(p.parent for p in path.glob("*/env.json"))
    if inside and not (path / "env.json").exists():
        names = ", ".join(shlex.quote(str(p)) for p in inside[:MOST_NAMED])
        if len(inside) > MOST_NAMED:
            names += f" and {len(inside) - MOST_NAMED} others"
        raise UserError(f"{path}: holds runs and is none - give one of them: {names}")


def newest_run() -> Path:
    done = Path("runs").glob("*/DONE.json")
    done = [p for p in done if not p.parent.match("*.old[0-9]*")]
    if not done:
        raise UserError("no finished run in runs/ - run train.py first, or name one with --run")
    folder = max(done, key=lambda p: p.stat().st_mtime_ns).parent
    print(f"run {folder} (finished last of {len(done)})")
    return folder


def read_settings(run: Run, device: str = "cpu", precision: str = "fp32") -> Config:
    known = {f.name for f in dataclasses.fields(Config)}
    settings = read_json(run.path / "config.json") | {"device": device, "precision": precision}
    config = Config(**{name: value for name, value in settings.items() if name in known})
    try:
        return checked(config)
    except UserError as e:  # such as a --pooling that a fork had
        raise UserError(f"{run.path}/config.json: {e} - use the code that made the run") from None


# Thresholds


def read_thresholds(given, run: Run) -> np.ndarray:
    """float32 (C,) from a number, a path as given or inside the run; None: the run's own th.npy.

    From Python also a list, an array, or a dict or pandas Series by label.
    """
    names = run.identity["settings.labels"]
    if given is not None and not isinstance(given, (str, os.PathLike, float, int)):
        values = by_label(given, names) if hasattr(given, "keys") else given
        th = as_numbers(values)
        if th.ndim == 0:  # one number for all, of numpy or torch
            th = np.full(len(names), th)
        return check_thresholds("thresholds", th, names)
    number = as_number(given)
    if number is not None:
        return check_thresholds(f"--thresholds {given}", np.full(len(names), number), names)
    path = find_thresholds(given, run)
    th = check_thresholds(path, read_npy(path, "f", "thresholds"), names)
    check_origin(path, th, run)
    return th


def by_label(given, names: list[str]) -> list:
    """The values of a dict or a Series, in the order of the labels. UserError for other keys."""
    keys = list(given.keys())
    if len(keys) != len(names) or set(keys) != set(names):
        hint = "give a value for each label, or a list in their order"
        labels = ", ".join(map(repr, keys))
        problem = f"are for {labels:.200}, the run's labels are {', '.join(names):.200}"
        raise UserError(f"thresholds: {problem} - {hint}")
    return [given[name] for name in names]


def as_numbers(values) -> np.ndarray:
    """float64. UserError for what is no list of numbers."""
    try:
        return np.array(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        hint = "give one number for each label"
        raise UserError(f"thresholds: {values!r:.80} are no numbers - {hint}") from None


def as_number(given) -> float | None:
    try:
        return float(given)
    except (TypeError, ValueError):  # None, or a path
        return None


def find_thresholds(given: str | None, run: Run) -> Path:
    """A path as given, else inside the run. UserError for two files that differ."""
    if not given:
        return check_file(run.path / "th.npy", "the run's thresholds")
    here = Path(given)
    inside = run.path / given
    use = "--thresholds: a th.npy that train.py wrote, here or in the run, or a number such as 0.5"
    path = check_file(here if os.path.exists(here) else inside, use)
    if path == here and inside.is_file() and file_sha256(inside) != file_sha256(here):
        hint = "give the whole path of the one you mean"
        raise UserError(f"--thresholds {given}: {here} and {inside} differ - {hint}")
    return path


def check_origin(path: Path, th: np.ndarray, run: Run) -> None:
    """UserError for thresholds of other labels; a warning for those of another run.

    The .json beside th.npy says whose they are.
    """
    names = run.identity["settings.labels"]
    beside = path.resolve().with_suffix(".json")
    origin = read_json(beside) if beside.is_file() else {}
    theirs = origin.get("labels", names)
    if theirs != names:
        raise UserError(f"{path}: its labels are {theirs}, the run's are {names} - use its own")
    own = run.path / "th.npy"  # of several runs averaged there is none
    copy = not origin and own.is_file() and np.array_equal(th, read_npy(own, "f", "thresholds"))
    if not copy and origin.get("run") != run.key:
        warn(f"{path}: chosen for another run, or no {beside.name} says whose thresholds they are")


def check_thresholds(where, th: np.ndarray, names: list[str]) -> np.ndarray:
    if th.shape != (len(names),):
        problem = f"shape {th.shape}, but the run has {len(names)} labels"
        raise UserError(f"{where}: {problem} - use its own")
    for name, value in zip(names, th, strict=True):
        if not 0 <= value <= 1:  # nan as well
            raise UserError(f"{where}: threshold of {name} is {value} - must lie between 0 and 1")
    return th.astype(np.float32)


# What it was trained on


def data_sha256(run: Run) -> str:
    keys = ("data_sha256", "valid_sha256")
    return " ".join(run.identity[key] for key in keys if key in run.identity)


def read_training(run: Run, moved: list[str]) -> Table:
    """The rows a run was trained on; folds where a file gives them. UserError for other rows.

    `moved`: where --train and --valid lie now, or [].
    """
    config = read_settings(run)
    train = moved[0] if moved else nearby(config.train, run.path)
    valid = moved[1] if len(moved) > 1 else config.valid and nearby(config.valid, run.path)
    for path in filter(None, (train, valid)):
        if not moved and not os.path.exists(path):
            hint = "give its path of today with --train (and the one of --valid after it)"
            raise UserError(f"{path}: no such file - {hint}")
    table = read_data(dataclasses.replace(config, train=train, valid=valid))
    if table.sha256 != data_sha256(run):
        files = " ".join(filter(None, (train, valid)))
        hint = "give its new path with --train"
        raise UserError(f"{files}: not what {run.path} was trained on - {hint}")
    return table


@dataclasses.dataclass
class OofCSV:
    """oof.csv. Runs of older code have no groups and no labels in it."""

    ids: list[str]
    fold: np.ndarray  # int16 (n,)
    p: np.ndarray  # float32 (n, C): probabilities
    group: np.ndarray | None  # int (n,): equal for rows that belong together
    y: np.ndarray | None  # (n, C): the labels given, 0 or 1; nan: unknown


def read_oof_csv(run: Run) -> OofCSV:
    path = run.path / "oof.csv"
    names = run.identity["settings.labels"]
    try:
        frame = next(CsvFile(path).frames())
        fold = frame["fold"].to_numpy(np.int16)
        p = frame[names].to_numpy(np.float32)
        others = frame.iloc[:, 2 + len(names) :]
        group = y = None
        if others.shape[1]:
            group = others.iloc[:, 0].to_numpy(int)
            given = others.iloc[:, 1:].replace("", "nan").to_numpy(np.float32)
            y = np.where(np.isnan(given), given, given >= 0.5)
        sound = ((p >= 0) & (p <= 1)).all() and (y is None or y.shape == p.shape)
    except (KeyError, ValueError, OverflowError, StopIteration):
        sound = False
    if not sound:
        raise UserError(f"{path}: is not what train.py wrote - train it again") from None
    return OofCSV(frame["id"].tolist(), fold, p, group, y)


def read_oof(run: Run, table: Table) -> OutOfFold:
    """Its out-of-fold rows. `table`: what it was trained on. UserError where they don't fit."""
    oof = read_oof_csv(run)
    rows = np.arange(len(table))
    if len(oof.ids) < len(table):  # some rows are never held out
        rows = np.flatnonzero(split(table, read_settings(run)).fold >= 0)
    if oof.ids != [table.ids[i] for i in rows]:
        problem = f"is not what train.py wrote for {read_settings(run).train}"
        raise UserError(f"{run.path / 'oof.csv'}: {problem} - train it again")
    return OutOfFold(rows, oof.fold, table.y[rows], oof.p)


def read_labelled_oof(run: Run, moved: list[str]) -> OofCSV:
    """oof.csv with groups and labels; of a run of older code they are read from its training files.

    `moved`: see `read_training`.
    """
    oof = read_oof_csv(run)
    if oof.y is None:
        table = read_training(run, moved)
        rows = read_oof(run, table).rows
        group = np.unique(table.groups, return_inverse=True)[1]
        oof = dataclasses.replace(oof, group=group[rows], y=table.y[rows])
    return oof


def some_texts(config: Config, moved: list[str]) -> Table:
    """The first 200 rows of the training file, or of the sample where that is gone; no labels."""
    path = [*moved, config.train][0]
    if not moved and not (os.path.isfile(path) and config.text_column in CsvFile(path).header):
        config = dataclasses.replace(config, text_column="text")
        path = str(HERE / "examples/test.csv")
    source = InputCSV(path, config, names=(), text_column=config.text_column)
    return next(read_chunks(source, 200))
