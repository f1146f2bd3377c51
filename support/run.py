"""The run folder: made, found again, or refused.

A fold without DONE.json does not exist; its files are checked by sha256 before use; one process
works on a fold at a time. docs/reliability.md says what this survives.
"""

import contextlib
import json
import os
import platform
import sys
from pathlib import Path

import numpy as np
import safetensors
import tokenizers
import torch
import transformers

from config import HERE, Config
from support.encoders import EncoderInfo
from support.errors import HELPER, UserError, warn
from support.files import atomic_write, damage, describe, file_sha256, json_sha256, locked
from support.files import read_json, read_npy, sweep, write_json, writing

PACKAGES = (torch, transformers, tokenizers, safetensors, np)
ONLY_SHOWING = tuple(f"support/{name}.py" for name in ("cli", "errors", "jobs", "report"))
AROUND = ("tests", "benchmarks", "tools")  # programs and tests around a run


def code_sha256() -> dict[str, str]:
    """Checksums of the code that decides what a run computes, by name.

    The six files, support/ but what only shows things, and what else is imported of this folder.
    """
    six = ("config", "data", "metrics", "model", "predict", "train")
    paths = {*(HERE / f"{name}.py" for name in six), *HERE.glob("support/*.py")}
    loaded = (Path(m.__file__) for m in list(sys.modules.values()) if getattr(m, "__file__", None))
    own = [p.relative_to(HERE) for p in loaded if p.is_relative_to(HERE)]
    paths |= {HERE / p for p in own if p.parts[0] not in AROUND and "site-packages" not in p.parts}
    names = sorted({str(p.relative_to(HERE)) for p in paths} - set(ONLY_SHOWING))
    return {name: file_sha256(HERE / name) for name in names}


class Run:
    """One run folder. `key` stands for what must be the same to go on: settings, data, code."""

    def __init__(self, path: Path):
        try:
            self.same = read_json(path / "env.json", sealed=True)["same"]
        except UserError as e:
            mend = "name the folder of a whole run, or put the file back (else train.py --restart)"
            raise UserError(f"{e} - {mend}") from e
        self.path, self.folds = path, self.same["settings.folds"]
        self.key = json_sha256(self.same)[:16]
        self.bar = None  # over the steps, while it is trained

    @staticmethod
    def place(config: Config, data_sha256: str) -> Path:
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

    @classmethod
    def open(cls, path: Path, kept: dict, env: dict, restart: bool = False) -> "Run":
        """Make the folder, or find the run in it. UserError: another run, at work, unwritable."""
        with writing(path, "choose another --out", 2):
            if restart and (path / "env.json").exists():
                rename_away(path)
            path.mkdir(parents=True, exist_ok=True)
            with locked(path / "lock", wait=True):
                sweep(path)
                if not (path / "env.json").exists():
                    write_json(path / "env.json", env, seal=True)
                run, new = cls(path), env["same"]
                pairs = ((k, run.same.get(k), new.get(k)) for k in sorted({*run.same, *new}))
                changed = "; ".join(f"{k}: {a!s:.24} -> {b!s:.24}" for k, a, b in pairs if a != b)
                if changed:
                    raise UserError(f"{path}: holds another run ({changed}) - see --out, --restart")
                if damage(path, run.key):  # else the totals' checksum of it stands
                    write_json(path / "config.json", kept)
        return run

    def fold(self, k: int) -> Path:
        return self.path / f"fold_{k}"

    def done(self, k: int) -> bool:
        return (self.fold(k) / "DONE.json").exists()

    def missing(self) -> list[int]:
        return [k for k in range(self.folds) if not self.done(k)]

    def unfinished(self, only: int | None = None):
        """Yield, under its lock, each fold that is neither finished nor held by another process."""
        at_first = self.missing()
        for k in [k for k in range(self.folds) if only in (None, k)]:
            with locked(self.fold(k) / "lock") as free:
                wrong = damage(self.fold(k), self.key) if free and self.done(k) else ""
                if free and wrong is None:
                    (self.fold(k) / "state.pt").unlink(missing_ok=True)
                    if not (HELPER or k in at_first):
                        print(f"fold {k}: finished before, left as it is", flush=True)
                elif free:
                    if wrong:
                        print(f"{wrong} - fold {k} is trained again", flush=True)
                    sweep(self.fold(k), everything=bool(wrong))
                    yield k

    def collect(self, folds: np.ndarray, labels: int) -> tuple[np.ndarray, list[dict], dict]:
        """Of all folds: probabilities (N, C), log, and what metrics.json says of the training."""
        p, done, log = np.zeros((len(folds), labels), np.float32), [], []
        for k, folder in enumerate(map(self.fold, range(self.folds))):
            if wrong := damage(folder, self.key):
                raise UserError(f"{wrong} - the same command without --fold redoes it", 1)
            done.append(read_json(folder / "DONE.json"))
            log += map(json.loads, (folder / "log.jsonl").read_text().splitlines())
            p[folds == k] = np.load(folder / "oof.npy", allow_pickle=False)
        best = [r["best"] for r in done]
        totals = {"folds": best, "seconds": sum(r["seconds"] for r in best)}
        totals["train_rows_per_s"] = float(np.mean([r["rows_per_s"] for r in best]))
        totals["peak_rss_mb"] = max(r["peak_rss_mb"] for r in done)
        return p, log, totals

    @contextlib.contextmanager
    def writing_totals(self):
        """A temporary folder for the files of the whole run; DONE.json is written last."""
        with locked(self.path / "lock", wait=True):
            with atomic_write(self.path) as temporary:
                yield temporary
                before = describe(self.path, ["config.json", "env.json", "texts.npy"])
                done = {"run": self.key, "files": describe(temporary) | before}
            write_json(self.path / "DONE.json", done, seal=True)


def rename_away(path: Path) -> None:
    """Give an old run another name. UserError while a process is at work on it."""
    for folder in path.glob("fold_*"):
        with locked(folder / "lock") as free:
            if not free:
                raise UserError(f"{folder}: another process is at work on it - end it first")
    names = (path.with_name(f"{path.name}.old{i}") for i in range(1, 10**6))
    print(f"the old run is now {path.rename(next(p for p in names if not p.exists()))}")


def start_run(path: Path, config: Config, data, info: EncoderInfo, ranks, argv) -> Run:
    """Make the run folder, or find the run in it. UserError where another run is in it."""
    same = {f"settings.{k}": v for k, v in config.identity.items()}
    if os.path.isdir(config.model):  # wherever it lies: its checksum counts
        del same["settings.model"]
    same |= {f"code.{name}": sha256 for name, sha256 in code_sha256().items()}
    same |= {f"versions.{p.__name__}": p.__version__ for p in PACKAGES}
    same |= {"versions.python": platform.python_version(), "threads": torch.get_num_threads()}
    same |= {"encoder_sha256": info.sha256, "world_size": ranks.size, **data.origin}
    same["encoder_saw"] = n = int(np.isin(data.hashes, info.seen).sum())
    if n:
        what = f"{n} of {len(data)} texts are among those this encoder was trained on"
        warn(f"{what} - scores on them are too good")
    same |= dict(zip(("data_sha256", "valid_sha256"), data.sha256.split(), strict=False))
    card = torch.cuda.get_device_name() if config.device == "cuda" else platform.machine()
    command = [Path(sys.argv[0]).name, *sys.argv[1:]] if argv is None else ["train.py", *argv]
    host = {"platform": platform.platform(), "device": card}
    env = {"command": " ".join(command), "host": host, "same": same}
    if ranks.leads:
        kept = config.identity | {name: getattr(config, name) for name in config.FILES}
        anew = config.restart and ranks.restarts == "0"  # restarted by torchrun, it goes on
        Run.open(path, kept, env, anew)
        hashes = np.union1d(data.hashes, info.seen)
        with locked(path / "lock", wait=True), atomic_write(path) as temporary:
            np.save(temporary / "texts.npy", hashes, allow_pickle=False)
    ranks.agree()  # rank 0 has made it
    print(f"run folder {path}", flush=True)
    return Run(path)


def seen_hashes(encoder_path: str) -> np.ndarray:
    """Hashes of the texts that an encoder has learned, where it is a fold of an earlier run."""
    seen = Path(encoder_path).parent / "texts.npy"
    if seen.is_file() and seen.with_name("env.json").is_file():
        return read_npy(seen, "u", "text hashes")
    return np.zeros(0, np.uint64)
