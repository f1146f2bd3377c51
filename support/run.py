"""The run folder: made, found again, or refused.

A fold without DONE.json does not exist; its files are checked by sha256 before use; one process
works on a fold at a time. docs/reliability.md says what this survives.
"""

import contextlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import safetensors
import tokenizers
import torch
import transformers

from config import HERE, Config
from data import OutOfFold, Table
from support.encoders import EncoderInfo, hub_revision
from support.files import (
    atomic_write,
    damage,
    describe,
    file_sha256,
    json_sha256,
    locked,
    read_json,
    sweep,
    write_json,
    writing,
)
from support.process import UserError, warn

PACKAGES = (torch, transformers, tokenizers, safetensors, np)
SHOWS = ("cli", "process", "versions", "jobs", "report", "pictures", "quote", "fonts", "disk")
NOT_HASHED = tuple(f"support/{name}.py" for name in SHOWS)
# They show things, or set what is compared by itself: flags, threads.
AROUND = ("tests", "benchmarks", "tools")  # not used in training


class Run:
    """One run folder. `identity` is what must be the same to resume: settings, data, code.

    `key` is a short checksum of it.
    """

    def __init__(self, path: Path):
        try:
            self.identity = read_json(path / "env.json", sealed=True)["same"]
        except UserError as e:
            hint = "name the folder of a whole run, or put the file back (else train.py --restart)"
            raise UserError(f"{e} - {hint}") from e
        self.path = path
        self.folds = self.identity["settings.folds"]
        self.key = json_sha256(self.identity)[:16]

    def fold_dir(self, k: int) -> Path:
        return self.path / f"fold_{k}"

    def missing(self) -> list[int]:
        """The folds that are not finished."""
        return [k for k in range(self.folds) if not (self.fold_dir(k) / "DONE.json").exists()]

    def collect(self, table: Table) -> tuple[OutOfFold, list[dict], dict]:
        """Of all folds: the out-of-fold rows, the log, and metrics.json's part on the training.

        UserError (exit 1) for a fold that is damaged.
        """
        p = np.zeros(table.y.shape, np.float32)
        done = []
        log = []
        for k in range(self.folds):
            folder = self.fold_dir(k)
            if problem := damage(folder, self.key):
                raise UserError(f"{problem} - the same command without --fold redoes it", 1)
            done.append(read_json(folder / "DONE.json"))
            log += map(json.loads, (folder / "log.jsonl").read_text().splitlines())
            p[table.fold == k] = np.load(folder / "oof.npy", allow_pickle=False)
        rows = np.flatnonzero(table.fold >= 0)
        oof = OutOfFold(rows, table.fold[rows], table.y[rows], p[rows])
        best = [d["best"] for d in done]
        totals = {
            "folds": best,
            "seconds": sum(row["seconds"] for row in best),
            "train_rows_per_s": float(np.mean([row["rows_per_s"] for row in best])),
            "peak_rss_mb": max(d["peak_rss_mb"] for d in done),
        }
        return oof, log, totals

    @contextlib.contextmanager
    def writing_totals(self) -> Iterator[Path]:
        """A temporary folder for the files of the whole run; DONE.json is written last."""
        with locked(self.path / "lock", wait=True):
            with atomic_write(self.path) as temporary:
                yield temporary
                before = describe(self.path, ["config.json", "env.json", "texts.npy"])
                done = {"run": self.key, "files": describe(temporary) | before}
            write_json(self.path / "DONE.json", done, seal=True)


def place_run(config: Config, data_sha256: str) -> Path:
    """The run folder of a command. UserError for one that can't be used, before any work."""
    identity = config.identity
    if os.path.isdir(config.model):  # however its path is written
        identity["model"] = os.path.realpath(config.model)
    name = f"{Path(config.model).name}-{json_sha256([identity, data_sha256])[:8]}"
    path = Path(config.out or Path("runs", name))
    # Once, as another process may be making the run.
    names = os.listdir(path) if os.path.isdir(path) else []
    if "env.json" not in names and any(n != "lock" and n[0] != "." for n in names):
        raise UserError(f"--out {path}: holds files that are no run - choose another folder")
    return path


def run_identity(
    config: Config, table: Table, encoder_info: EncoderInfo, weights_sha256: str, world_size: int
) -> dict:
    """What must be the same to resume. A warning for an encoder that has learned these texts."""
    identity = {f"settings.{k}": v for k, v in config.identity.items()}
    if os.path.isdir(config.model):  # wherever it lies: its checksum counts
        del identity["settings.model"]
    identity |= {f"code.{name}": sha256 for name, sha256 in code_sha256().items()}
    identity |= {f"versions.{p.__name__}": p.__version__ for p in PACKAGES}
    identity["versions.python"] = platform.python_version()
    identity["threads"] = torch.get_num_threads()
    identity["encoder_sha256"] = weights_sha256
    identity["encoder_config_sha256"] = encoder_info.config_sha256
    identity["tokenizer_sha256"] = encoder_info.tokenizer_sha256
    identity["world_size"] = world_size
    identity |= table.identity
    known_texts = int(np.isin(table.hashes, encoder_info.seen).sum())
    identity["encoder_saw"] = known_texts
    if known_texts:
        count = f"{known_texts} of {len(table)} texts"
        warn(f"{count} are among those this encoder was trained on - scores on them are too good")
    for key, sha256 in zip(("data_sha256", "valid_sha256"), table.sha256.split(), strict=False):
        identity[key] = sha256
    return identity


def code_files() -> set[str]:
    """The code at work: the six files, support/, and what else is imported of this folder."""
    six = ("config", "data", "metrics", "model", "predict", "train")
    paths = {*(HERE / f"{name}.py" for name in six), *HERE.glob("support/*.py")}
    loaded = (Path(m.__file__) for m in list(sys.modules.values()) if getattr(m, "__file__", None))
    own = [p.relative_to(HERE) for p in loaded if p.is_relative_to(HERE)]
    paths |= {HERE / p for p in own if p.parts[0] not in AROUND and "site-packages" not in p.parts}
    return {str(p.relative_to(HERE)) for p in paths}


def code_sha256() -> dict[str, str]:
    """Checksums of the code that decides what a run computes, by name: all but what only shows."""
    return {name: file_sha256(HERE / name) for name in sorted(code_files() - set(NOT_HASHED))}


def git_state() -> dict:
    """The git commit of the code, and whether a file differs from it. None where there is none."""
    commit = git("rev-parse", "HEAD")
    changed = git("status", "--porcelain", "--ignored", "--", *sorted(code_files()))
    if commit is None or changed is None:
        return {"git_commit": None, "git_changed": None}
    return {"git_commit": commit, "git_changed": bool(changed)}


def git(*arguments: str) -> str | None:
    """What git prints for the code's folder; None where git or the repository is missing."""
    command = ["git", "--no-optional-locks", "-C", str(HERE), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def open_run(path: Path, config: Config, identity: dict, command: str, restart: bool) -> None:
    """Make the folder, or find the run in it. UserError: another run, at work, unwritable."""
    with writing(path, "choose another --out", 2):
        if restart and (path / "env.json").exists():
            rename_away(path)
        path.mkdir(parents=True, exist_ok=True)
        with locked(path / "lock", wait=True):
            sweep(path)
            if not (path / "env.json").exists():
                env = {"command": command, **surroundings(config), "same": identity}
                write_json(path / "env.json", env, seal=True)
            run = Run(path)
            if changed := differences(run.identity, identity):
                hint = "choose another --out, or --restart"
                if [line.split(":")[0] for line in changed] == ["settings.precision"]:  # by auto
                    hint = f"resume with --precision {run.identity['settings.precision']}"
                raise UserError(f"{path}: holds another run ({'; '.join(changed)}) - {hint}")
            if damage(path, run.key):  # unfinished: else DONE.json has its checksum
                write_json(path / "config.json", config.identity | config.files)


def surroundings(config: Config) -> dict:
    """What env.json records beside the identity. It may differ when the run is resumed."""
    card = torch.cuda.get_device_name() if config.device == "cuda" else platform.machine()
    host = {"platform": platform.platform(), "device": card}
    return {"host": host, "code": git_state(), "hub_revision": hub_revision(config.model)}


def differences(old: dict, new: dict) -> list[str]:
    """What of a run's identity has changed: ["code.model.py changed", "settings.lr: 1 -> 2"]."""
    found = []
    for name in sorted({*old, *new}):
        a, b = old.get(name), new.get(name)
        if a != b:
            is_code = name.startswith("code.")  # its sha256 says nothing to a reader
            found.append(f"{name} changed" if is_code else f"{name}: {a!s:.24} -> {b!s:.24}")
    return found


def rename_away(path: Path) -> None:
    """Give an old run another name. UserError while a process is at work on it, or within it."""
    if Path.cwd().is_relative_to(path.resolve()):
        hint = "choose another --out, or leave it"
        raise UserError(
            f"{path}: can't be written under --restart: you are in this folder - {hint}"
        )
    for folder in path.glob("fold_*"):
        with locked(folder / "lock") as free:
            if not free:
                raise UserError(f"{folder}: another process is at work on it - end it first")
    names = (path.with_name(f"{path.name}.old{i}") for i in range(1, 10**6))
    print(f"the old run is now {path.rename(next(p for p in names if not p.exists()))}")


def add_texts(path: Path, hashes: np.ndarray) -> None:
    """texts.npy: the texts that the run, and its encoder before, have learned."""
    with locked(path / "lock", wait=True), atomic_write(path) as temporary:
        np.save(temporary / "texts.npy", np.unique(hashes), allow_pickle=False)
