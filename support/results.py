"""A finished run as predict.py reads it: found, checked, its settings and thresholds."""

import contextlib
import dataclasses
import os
from pathlib import Path

import numpy as np
import torch

from config import HERE, Config
from support.csvfile import check_file
from support.errors import UserError, warn
from support.files import damage, file_sha256, read_json, read_npy
from support.run import Run
from support.speed import free_memory


def find_run(folder: str | None) -> Run:
    """The run of this folder, or the one in runs/ that finished last; every file of it checked."""
    if not folder:
        done = Path("runs").glob("*/DONE.json")
        done = [p for p in done if not p.parent.match("*.old[0-9]*")]
        if not done:
            raise UserError("no finished run in runs/ - run train.py first, or name one with --run")
        folder = max(done, key=lambda p: p.stat().st_mtime_ns).parent
        print(f"run {folder} (finished last of {len(done)})")
    path = Path(str(folder))
    if not os.path.isdir(path):
        raise UserError(f"{path}: no such run folder - give one that train.py made")
    run, again = Run(path), "run the same train.py command again; it"
    missing = ", ".join(f"fold {k}" for k in run.missing())
    if missing or not (path / "DONE.json").exists():
        raise UserError(f"{path}: {missing or 'DONE.json'} is missing - {again} goes on")
    for part in (path, *map(run.fold, range(run.folds))):
        if wrong := damage(part, run.key):
            raise UserError(f"{wrong} - {again} redoes what is damaged")
    code = {n.removeprefix("code."): sha for n, sha in run.same.items() if n.startswith("code.")}
    now = {name: (HERE / name).is_file() and file_sha256(HERE / name) for name in code}
    if other := [name for name, sha in code.items() if now[name] != sha]:
        warn(f"{path}: made by other code than this ({', '.join(other)}) - scores may differ")
    return run


def read_settings(run: Run, device: str, precision: str) -> Config:
    known = {f.name for f in dataclasses.fields(Config)}
    settings = read_json(run.path / "config.json") | {"device": device, "precision": precision}
    return Config(**{name: value for name, value in settings.items() if name in known})


def read_platt(run: Run, labels: list[str]) -> np.ndarray:
    """(2, C): slope and shift of each label's logits."""
    table = read_json(run.path / "metrics.json")["per_label"]
    return np.array([table[name]["platt"] for name in labels]).T


def fits_in_memory(run: Run, device: str) -> bool:
    """Whether all folds take less than half of the memory."""
    memory = torch.cuda.mem_get_info()[0] if device == "cuda" else free_memory()
    return 2 * sum(p.stat().st_size for p in run.path.glob("fold_*/model.safetensors")) < memory


def check_texts(texts) -> list[str]:
    """A str, a list of str or a Series as a list; UserError with the place of what is no str."""
    texts = [texts] if isinstance(texts, str) else texts
    texts = texts.tolist() if type(texts).__name__ == "Series" else texts
    if not isinstance(texts, (list, tuple)):
        mend = "give a list of str, or one column, such as df['text']"
        raise UserError(f"texts: is a {type(texts).__name__} - {mend}")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            what = f"is {text!r:.40}, a {type(text).__name__}"
            raise UserError(f"texts[{i}]: {what} - give a str, '' for a blank text")
    return list(texts)


def read_thresholds(given, run: Run, labels: list[str]) -> np.ndarray:
    """float32 (C,) from a number, a path as given or inside the run; None: the run's own th.npy.

    From Python also a list, an array, or a dict by label.
    """
    if isinstance(given, dict):
        if set(given) != set(labels):
            raise UserError(f"thresholds: are for {sorted(given)}, the run's labels are {labels}")
        given = [given[name] for name in labels]
    if isinstance(given, (list, tuple, np.ndarray)):
        return check_thresholds("thresholds", np.array(given, dtype=np.float64), labels)
    with contextlib.suppress(TypeError, ValueError):  # None, or a path
        same = np.full(len(labels), float(given))
        return check_thresholds(f"--thresholds {given}", same, labels)
    here, inside = Path(given or run.path / "th.npy"), run.path / (given or "th.npy")
    what = "--thresholds: a th.npy that train.py wrote, here or in the run, or a number such as 0.5"
    path = check_file(here if os.path.exists(here) else inside, what)
    if path == here and inside.is_file() and file_sha256(inside) != file_sha256(here):
        both = f"{here} and {inside} differ - give the whole path of the one you mean"
        raise UserError(f"--thresholds {given}: {both}")
    th = check_thresholds(path, read_npy(path, "f", "thresholds"), labels)
    beside = path.resolve().with_suffix(".json")
    origin = read_json(beside) if beside.is_file() else {}
    if (theirs := origin.get("labels", labels)) != labels:
        raise UserError(f"{path}: its labels are {theirs}, the run's are {labels} - use its own")
    own = not origin and np.array_equal(th, read_npy(run.path / "th.npy", "f", "thresholds"))
    if not own and origin.get("run") != run.key:
        warn(f"{path}: chosen for another run, or no {beside.name} says whose thresholds they are")
    return th


def check_thresholds(where, th: np.ndarray, labels: list[str]) -> np.ndarray:
    if th.shape != (len(labels),):
        what = f"shape {th.shape}, but the run has {len(labels)} labels"
        raise UserError(f"{where}: {what} - use its own")
    for name, value in zip(labels, th, strict=True):
        if not 0 <= value <= 1:  # nan as well
            raise UserError(f"{where}: threshold of {name} is {value} - must lie between 0 and 1")
    return th.astype(np.float32)
