"""The run folder: whole files, checksums, locks, resuming, signals.

Promises: a file is there whole or not at all; a fold without DONE.json does not exist; what DONE.json names is checked
by size and sha256 before use; one process works on a fold at a time; a signal stops a run between two steps.
"""

import contextlib
import fcntl
import hashlib
import json
import os
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
        self.old = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
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
def whole_file(path: Path):
    """A binary file to write; it becomes `path` when the block ends well, and is gone when it doesn't."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as f:
            yield f
            f.flush()
        commit(temporary, path)
    except OSError as e:
        raise UserError(f"{path}: can't be written ({e.strerror or e}) - make room or mend the path; the same command then goes on", 1) from e  # fmt: skip
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value) -> None:
    with whole_file(path) as f:
        text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
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


def publish(folder: Path, write) -> None:
    """Run `write(temporary folder)`, then move each file it made into `folder`."""
    temporary = folder / f".tmp-{os.getpid()}"
    try:
        temporary.mkdir()
        write(temporary)
        for path in sorted(temporary.iterdir()):
            commit(path, folder / path.name)
    except OSError as e:
        raise UserError(f"{folder}: can't be written ({e.strerror or e}) - make room; the same command then goes on", 1) from e
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove the temporary files of processes that died; call it under the folder's lock."""
    for path in [*folder.glob(".*.tmp"), *folder.glob(".tmp-*")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def file_sha256(path: str | Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


@contextlib.contextmanager
def locked(path: Path, wait: bool = False):
    """True while this process holds the lock; False when another does. The kernel frees it when its holder dies."""
    with open(path, "ab") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True  # closing the file frees it


class _Hashing:
    def __init__(self, f):
        self.f, self.sha = f, hashlib.sha256()

    def write(self, b) -> int:
        self.sha.update(b)
        return self.f.write(b)

    def flush(self) -> None:
        self.f.flush()


def save_state(path: Path, state: dict) -> None:
    """torch.save of tensors, numbers and lists, followed by its own sha256: no format notices a flipped byte."""
    with whole_file(path) as f:
        hashing = _Hashing(f)
        torch.save(state, hashing)
        f.write(hashing.sha.digest())


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
    if not whole:
        print(f"{path}: truncated or damaged - this fold begins anew", flush=True)
        return None
    return torch.load(path, map_location="cpu", weights_only=True)


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


def key_of(same) -> str:
    return hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()[:16]


class Run:
    """One run folder. `same` (settings, data, code, versions) must be equal for a run to be gone on with."""

    def __init__(self, path: Path, folds: int, key: str):
        self.path, self.folds, self.key = path, folds, key

    @classmethod
    def open(cls, path: Path, folds: int, config: dict, env: dict, restart: bool, need_bytes: int) -> "Run":
        """Make the folder, or find the run in it. UserError: not a folder, another run, no room, not writable."""
        existing = path / "env.json"
        env["key"] = key_of(env["same"])
        if os.path.lexists(path) and not os.path.isdir(path):  # os.path: pathlib raises for names that are too long
            raise UserError(f"--out {path}: is a file - name a folder")
        if restart and os.path.exists(existing):
            if Path.cwd().is_relative_to(path.resolve()):
                raise UserError(f"{path}: --restart can't rename the working folder - call it from another one")
            for k in range(folds):
                if (path / f"fold_{k}").is_dir():
                    with locked(path / f"fold_{k}" / "lock") as free:
                        if not free:
                            raise UserError(f"{path}: another process is training fold {k} - end it before --restart")
            away = next(p for i in range(1, 10**6) if not (p := path.with_name(f"{path.name}.old{i}")).exists())
            path.rename(away)
            print(f"the old run is now {away}")
        if os.path.exists(existing):
            same = read_json(existing).get("same")
            changed = differences(same if isinstance(same, dict) else {}, env["same"])
            if changed:
                mend = "choose another --out, or --restart to rename it away"
                raise UserError(f"{path}: holds another run ({'; '.join(changed[:8])}) - {mend}")
        elif os.path.isdir(path) and any(p.name != "lock" and not p.name.startswith(".") for p in path.iterdir()):
            raise UserError(f"--out {path}: holds files that are no run - choose another folder")
        made = [p for p in (path, *path.parents) if not os.path.exists(p)]
        try:
            path.mkdir(parents=True, exist_ok=True)
            with locked(path / "lock", wait=True):
                sweep(path)
                free = shutil.disk_usage(path).free
                if free < need_bytes:
                    raise UserError(f"{path}: {free / 1e9:.2f} GB free, the run writes up to {need_bytes / 1e9:.2f} GB - make room")
                if not (path / "config.json").exists():
                    write_json(path / "config.json", config)
                if not existing.exists():
                    write_json(existing, env)
        except (OSError, UserError) as e:
            for p in made:  # leave nothing behind
                shutil.rmtree(p, ignore_errors=True)
            if isinstance(e, UserError):
                raise UserError(str(e)) from e
            raise UserError(f"--out {path}: can't be written ({e.strerror}) - choose another folder") from e
        return cls(path, folds, env["key"])

    def fold(self, k: int) -> Path:
        return self.path / f"fold_{k}"

    def damage(self, k: int) -> str | None:
        """What is wrong with a fold that DONE.json says is finished; None when all is well."""
        try:
            done = read_json(self.fold(k) / "DONE.json")
            if done["run"] != self.key:
                return f"{self.fold(k)}: belongs to another run"
            for name, want in done["files"].items():
                path = self.fold(k) / name
                if not path.is_file():
                    return f"{path}: missing"
                if path.stat().st_size != want["size"]:
                    return f"{path}: truncated ({path.stat().st_size} of {want['size']} bytes)"
                if file_sha256(path) != want["sha256"]:
                    return f"{path}: damaged (its sha256 differs)"
        except (UserError, KeyError, TypeError, AttributeError, OSError) as e:
            return f"{self.fold(k) / 'DONE.json'}: damaged ({e})"
        return None

    def done(self, k: int) -> bool:
        return (self.fold(k) / "DONE.json").exists()

    def finish_fold(self, k: int, result: dict) -> None:
        """Write DONE.json, the last file of a fold, and drop the state that only an unfinished fold needs."""
        names = sorted(p.name for p in self.fold(k).iterdir() if p.name not in ("state.pt", "lock", "DONE.json") and p.is_file())
        files = {n: {"size": (self.fold(k) / n).stat().st_size, "sha256": file_sha256(self.fold(k) / n)} for n in names}
        write_json(self.fold(k) / "DONE.json", {"run": self.key, "files": files, **result})
        (self.fold(k) / "state.pt").unlink(missing_ok=True)

    def take(self, only: int | None = None):
        """Yield, under its lock, each fold that is neither finished nor held by another process."""
        for k in [k for k in range(self.folds) if only in (None, k)]:
            self.fold(k).mkdir(exist_ok=True)
            with locked(self.fold(k) / "lock") as free:
                if not free:
                    print(f"fold {k}: another process is at work on it", flush=True)
                    continue
                sweep(self.fold(k))
                if self.done(k):
                    wrong = self.damage(k)
                    if wrong is None:
                        print(f"fold {k}: finished before, left as it is", flush=True)
                        (self.fold(k) / "state.pt").unlink(missing_ok=True)
                        continue
                    print(f"{wrong} - fold {k} is trained again", flush=True)
                    for path in self.fold(k).iterdir():
                        if path.name != "lock":
                            path.unlink()
                yield k


def peak_rss_mb() -> float:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
