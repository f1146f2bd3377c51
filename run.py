"""The run folder: whole files, checksums, locks, resuming, signals.

Promises: a file is there whole or not at all; a fold without DONE.json does not exist; what DONE.json names is checked
by size and sha256 before use; one process works on a fold at a time; a signal stops a run between two steps.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import pickle
import shutil
import signal
from pathlib import Path

import numpy as np
import torch

from config import UserError

STATE_EVERY = 600.0  # seconds between states within an epoch
_umask = os.umask(0)
os.umask(_umask)


class Interrupted(UserError):
    """A signal came; exit code 128 + its number."""

    label = "stopped"

    def __init__(self, signum: int):
        super().__init__(f"by {signal.Signals(signum).name} - the same command goes on from here", 128 + signum)


class Signals:
    """SIGINT, SIGTERM and SIGHUP raise Interrupted: at once, or while `hold` is set at the next `check()`.

    A second signal leaves at once; no file can be half-written by it.
    """

    def __init__(self):
        self.got, self.hold = 0, False

    def __enter__(self) -> "Signals":
        wanted = (s for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) is not signal.SIG_IGN)
        self.old = {s: signal.signal(s, self._handle) for s in wanted}  # what nohup ignores stays ignored
        return self

    def __exit__(self, *_) -> None:
        for s, old in self.old.items():
            signal.signal(s, old)

    def _handle(self, signum, frame) -> None:
        if self.got:
            os._exit(128 + signum)
        self.got = signum
        if not self.hold:
            raise Interrupted(signum)

    def check(self) -> None:
        if self.got:
            raise Interrupted(self.got)


def commit(temporary: Path, path: Path) -> None:
    """Give a finished temporary file its name: contents on disk, mode by the umask, renamed, the name on disk."""
    with open(temporary, "rb+") as f:
        os.fsync(f.fileno())
    os.chmod(temporary, 0o666 & ~_umask)
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextlib.contextmanager
def writing(path: Path):
    """Whatever goes wrong while `path` is written, in one line: torch and safetensors disguise a full disk."""
    try:
        yield
    except UserError:
        raise
    except Exception as e:
        why = getattr(e, "strerror", None) or f"{type(e).__name__}: {e}"
        raise UserError(f"{path}: can't be written ({why}) - make room or mend the path; the same command then goes on", 1) from e


@contextlib.contextmanager
def whole_file(path: Path):
    """A binary file to write; it becomes `path` when the block ends well, and is gone when it doesn't."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with writing(path):
            with open(temporary, "wb") as f:
                yield f
            commit(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value) -> None:
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    with whole_file(path) as f:
        f.write(text.encode(errors="backslashreplace"))  # a file name that is not UTF-8 becomes \udcxx, as JSON writes it


def read_json(path: Path) -> dict:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise UserError(f"{path}: missing or damaged ({type(e).__name__})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: damaged (not an object)")
    return value


def read_npy(path: Path, kind: str, what: str) -> np.ndarray:
    """An array whose dtype is of `kind`; nothing is unpickled. UserError for anything else."""
    try:
        with open(path, "rb") as f:
            array = np.lib.format.read_array(f, allow_pickle=False)
        if array.dtype.kind != kind:
            raise ValueError(f"holds {array.dtype}")
        return array
    except Exception as e:  # numpy parses the header as Python: a damaged one raises nearly anything
        raise UserError(f"{path}: not an array of {what} ({str(e)[:80]}) - use the one that train.py wrote") from None


def publish(folder: Path, write) -> dict:
    """Run `write(temporary folder)`, then move each file it made into `folder`; `describe` of them."""
    temporary = folder / f".tmp-{os.getpid()}"
    try:
        with writing(folder):
            temporary.mkdir()
            write(temporary)
            files = describe(temporary, sorted(os.listdir(temporary)))
            for name in files:
                commit(temporary / name, folder / name)
            return files
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sweep(folder: Path, everything: bool = False) -> None:
    """Remove the temporary files of processes that died, or all but the lock; call it under the folder's lock."""
    with writing(folder):
        for path in folder.iterdir():
            if path.name != "lock" and (everything or path.match(".*.tmp") or path.match(".tmp-*")):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def file_sha256(path: str | Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def json_sha256(value) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def describe(folder: Path, names: list[str]) -> dict:
    return {n: {"size": (folder / n).stat().st_size, "sha256": file_sha256(folder / n)} for n in names}


def finish(folder: Path, key: str, files: dict, **result) -> None:
    """Write DONE.json, the last file of a folder: what its files must be, and a checksum of its own."""
    value = {"run": key, "files": files, **result}
    write_json(folder / "DONE.json", {**value, "sha256": json_sha256(value)})


def damage(folder: Path, key: str) -> str | None:
    """What is wrong with a folder that DONE.json says is finished; None when all is well."""
    try:
        done = read_json(folder / "DONE.json")
        if done.pop("sha256") != json_sha256(done):
            return f"{folder / 'DONE.json'}: damaged (its own sha256 differs)"
        if done["run"] != key:
            return f"{folder}: belongs to another run"
        for name, want in done["files"].items():
            path = folder / name
            if not path.is_file():
                return f"{path}: missing"
            if path.stat().st_size != want["size"]:
                return f"{path}: truncated ({path.stat().st_size} of {want['size']} bytes)"
            if file_sha256(path) != want["sha256"]:
                return f"{path}: damaged (its sha256 differs)"
    except (UserError, KeyError, TypeError, AttributeError, OSError) as e:
        return f"{folder / 'DONE.json'}: damaged ({e})"
    return None


def read_env(path: Path) -> dict:
    """env.json of a run folder, whose key is the checksum of what must be the same."""
    with contextlib.suppress(UserError):
        env = read_json(path / "env.json")
        if env.get("key") == json_sha256(env.get("same"))[:16]:
            return env
    raise UserError(f"{path / 'env.json'}: missing or damaged - put it back from a copy, or begin anew with --restart")


@contextlib.contextmanager
def locked(path: Path, wait: bool = False):
    """True while this process holds the lock; False when another does. The kernel frees it when its holder dies."""
    with writing(path):
        f = open(path, "ab")  # noqa: SIM115
    with f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True  # closing the file frees it


def save_state(path: Path, state: dict) -> None:
    """torch.save of tensors, numbers and lists, followed by its own sha256: no format notices a flipped byte."""
    with whole_file(path) as f:
        torch.save(state, f)
        f.flush()
        f.write(bytes.fromhex(file_sha256(f.name)))


def load_state(path: Path) -> dict | None:
    """What `save_state` wrote, read with weights_only=True; None when there is none, or a damaged one (said so)."""
    if not path.exists():
        return None
    data = path.stat().st_size - 32
    with open(path, "rb") as f:
        sha = hashlib.sha256()
        for start in range(0, data, 1 << 20):
            sha.update(f.read(min(1 << 20, data - start)))
        whole = data > 0 and f.read() == sha.digest()
    with contextlib.suppress(pickle.UnpicklingError):  # whole, but of something that is no plain data
        if whole:
            return torch.load(path, map_location="cpu", weights_only=True)
    print(f"{path}: truncated or damaged - this fold begins anew", flush=True)
    return None


def code_sha256() -> dict[str, str]:
    """Of the modules that decide what a run computes."""
    names = ("data.py", "metrics.py", "model.py", "fast.py", "train.py")
    return {n: file_sha256(Path(__file__).with_name(n)) for n in names if Path(__file__).with_name(n).exists()}


def differences(old: dict, new: dict, prefix: str = "") -> list[str]:
    """Every key whose value differs, as `key: old -> new`."""
    out = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            out += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            out.append(f"{prefix}{key}: {str(a)[:24]} -> {str(b)[:24]}")
    return out


class Run:
    """One run folder. `same` (settings, data, code, versions) must be equal for a run to be gone on with."""

    def __init__(self, path: Path, folds: int, key: str):
        self.path, self.folds, self.key = path, folds, key

    @classmethod
    def open(cls, path: Path, folds: int, config: dict, env: dict, restart: bool, need_bytes: int) -> "Run":
        """Make the folder, or find the run in it. UserError: not a folder, another run, no room, not writable."""
        existing, env["key"] = path / "env.json", json_sha256(env["same"])[:16]
        if os.path.lexists(path) and not os.path.isdir(path):  # os.path: pathlib raises for names that are too long
            raise UserError(f"--out {path}: is a file - name a folder")
        if restart and Path.cwd().is_relative_to(path.resolve()):
            raise UserError(f"{path}: --restart can't rename the working folder - call it from another one")
        if (
            not os.path.exists(existing)
            and os.path.isdir(path)
            and any(p.name != "lock" and p.name[0] != "." for p in path.iterdir())
        ):
            raise UserError(f"--out {path}: holds files that are no run - choose another folder")
        made = [p for p in (path, *path.parents) if not os.path.exists(p)]
        try:
            if restart and existing.exists():
                cls._rename_away(path)
            path.mkdir(parents=True, exist_ok=True)
            with locked(path / "lock", wait=True):
                sweep(path)
                if existing.exists():
                    changed = differences(read_env(path)["same"], env["same"])
                    if changed:
                        mend = "choose another --out, or --restart to rename it away"
                        raise UserError(f"{path}: holds another run ({'; '.join(changed)}) - {mend}")
                free, there = (
                    shutil.disk_usage(path).free,
                    sum(p.stat().st_size for p in path.glob("fold_*/[!.]*") if p.is_file()),
                )
                if free + there < need_bytes:
                    raise UserError(
                        f"{path}: {free / 1e9:.2f} GB free, the run writes up to {need_bytes / 1e9:.2f} GB - make room"
                    )
                if not existing.exists():
                    write_json(existing, env)
                write_json(path / "config.json", config)
        except BaseException as e:
            with contextlib.suppress(OSError):  # leave nothing behind, but for what another process has made meanwhile
                if made and not os.path.exists(existing):
                    (path / "lock").unlink(missing_ok=True)
                for p in made:
                    p.rmdir()
            if isinstance(e, OSError):
                raise UserError(f"--out {path}: can't be written ({e.strerror}) - choose another folder") from e
            raise
        return cls(path, folds, env["key"])

    @staticmethod
    def _rename_away(path: Path) -> None:
        for folder in path.glob("fold_*"):
            with locked(folder / "lock") as free:
                if not free:
                    raise UserError(f"{folder}: another process is at work on it - end it before --restart")
        away = next(p for i in range(1, 10**6) if not (p := path.with_name(f"{path.name}.old{i}")).exists())
        path.rename(away)
        print(f"the old run is now {away}")

    def fold(self, k: int) -> Path:
        return self.path / f"fold_{k}"

    def done(self, k: int) -> bool:
        return (self.fold(k) / "DONE.json").exists()

    def take(self, only: int | None = None):
        """Yield, under its lock, each fold that is neither finished nor held by another process."""
        for k in [k for k in range(self.folds) if only in (None, k)]:
            with writing(self.fold(k)):
                self.fold(k).mkdir(exist_ok=True)
            with locked(self.fold(k) / "lock") as free:
                if not free:
                    print(f"fold {k}: another process is at work on it", flush=True)
                    continue
                sweep(self.fold(k))
                if self.done(k):
                    wrong = damage(self.fold(k), self.key)
                    if wrong is None:
                        print(f"fold {k}: finished before, left as it is", flush=True)
                        (self.fold(k) / "state.pt").unlink(missing_ok=True)
                        continue
                    print(f"{wrong} - fold {k} is trained again", flush=True)
                    sweep(self.fold(k), everything=True)
                yield k
