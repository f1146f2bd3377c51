"""The run folder. A file is there whole or not at all; a fold without DONE.json does not exist; its files are
checked by size and sha256 before use; one process works on a fold at a time."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

from config import UserError

_umask = os.umask(0)
os.umask(_umask)


@contextlib.contextmanager
def writing(path: Path, mend="make room or mend the path; the same command then goes on", code: int = 1):
    """Whatever goes wrong in writing `path`, in one line: torch and safetensors disguise a full disk."""
    try:
        yield
    except UserError:
        raise
    except Exception as e:
        why = getattr(e, "strerror", None) or f"{type(e).__name__}: {e}"
        raise UserError(f"{path}: can't be written ({why}) - {mend}", code) from e


def commit(temporary: Path, path: Path) -> None:
    """Give a finished file its name: contents on disk, mode by the umask, renamed, the name on disk."""
    os.chmod(temporary, 0o666 & ~_umask)
    with open(temporary, "rb") as f:
        os.fsync(f.fileno())
    os.replace(temporary, path)
    place = os.open(path.parent, os.O_RDONLY)
    os.fsync(place)
    os.close(place)


@contextlib.contextmanager
def whole(folder: Path, of: str = ""):
    """A temporary folder (.tmp-<of>...); when the block ends well, its files move whole into `folder`."""
    new = {"prefix": f".tmp-{of}", "dir": folder, "ignore_cleanup_errors": True}
    with writing(folder), tempfile.TemporaryDirectory(**new) as temporary:
        yield Path(temporary)
        for name in sorted(os.listdir(temporary)):
            commit(Path(temporary, name), folder / name)


def write_json(path: Path, value: dict, seal: bool = False) -> None:
    """With `seal` the value carries a checksum of its own, which `read_json` then asks for."""
    value = {**value, "sha256": json_sha256(value)} if seal else value
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    with whole(path.parent, path.name) as temporary:  # what is not UTF-8 becomes \udcxx, as JSON writes it
        (temporary / path.name).write_bytes(text.encode(errors="backslashreplace"))


def read_json(path: Path, sealed: bool = False) -> dict:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict) or sealed and value.pop("sha256", None) != json_sha256(value):
            raise ValueError("not what was written")
        return value
    except (OSError, ValueError, RecursionError) as e:
        raise UserError(f"{path}: missing or damaged") from e


def file_sha256(path: str | Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def json_sha256(value) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def describe(folder: Path, names: list[str] | None = None) -> dict:
    """Size and sha256 of these files of `folder` (or of all), for `differing` to compare."""
    paths = [folder / name for name in names or sorted(os.listdir(folder))]
    return {p.name: {"size": p.stat().st_size, "sha256": file_sha256(p)} for p in paths}


def differing(folder: Path, files: dict) -> str | None:
    """The first of the files that is not as `describe` found it, and how; None when all are."""
    for path, want in ((folder / name, want) for name, want in files.items()):
        if not path.is_file():
            return f"{path}: missing"
        if path.stat().st_size != want["size"]:
            return f"{path}: truncated ({path.stat().st_size} of {want['size']} bytes)"
        if file_sha256(path) != want["sha256"]:
            return f"{path}: damaged (its sha256 differs)"


def damage(folder: Path, key: str) -> str | None:
    """What is wrong with a folder that DONE.json says is finished; None when all is well."""
    try:
        done = read_json(folder / "DONE.json", sealed=True)
    except UserError as e:
        return str(e)
    if done["run"] != key or f"fold_{done.get('fold')}" not in (folder.name, "fold_None"):
        return f"{folder}: belongs to another run or fold"
    return differing(folder, done["files"])


@contextlib.contextmanager
def locked(path: Path, wait: bool = False):
    """True while this process holds the lock, else False. The kernel frees it when its holder dies."""
    with writing(path):
        path.parent.mkdir(exist_ok=True)
        f, free = open(path, "ab"), True  # noqa: SIM115
        try:
            fcntl.flock(f, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            free = False
    with f:  # closing the file frees it
        yield free


def sweep(folder: Path, everything: bool = False, of: str = "") -> None:
    """Remove what dead processes left half-written, or all but the lock; call it under the folder's lock."""
    with writing(folder):
        for path in folder.iterdir():
            if path.name.startswith(f".tmp-{of}") or everything and path.name != "lock":
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


class Run:
    """One run folder; `key` stands for what must be the same to go on: settings, data, code, versions."""

    def __init__(self, path: Path):
        try:
            self.same = read_json(path / "env.json", sealed=True)["same"]
        except UserError as e:
            raise UserError(f"{e} - no run, or put it back from a copy (else train.py --restart)") from e
        self.path, self.key, self.folds = path, json_sha256(self.same)[:16], self.same["settings.folds"]

    @staticmethod
    def check(path: Path, reading: tuple, restart: bool, need_bytes: int) -> None:
        """What can be told before any work. UserError: no folder, no run, no room, about to be renamed."""
        names = os.listdir(path) if os.path.isdir(path) else []  # once: another may be making the run
        if os.path.lexists(path) and not os.path.isdir(path):
            raise UserError(f"--out {path}: is a file - name a folder")
        for used in (Path.cwd(), *reading) if restart else ():
            if Path(used).resolve().is_relative_to(path.resolve()):
                raise UserError(f"{path}: --restart can't rename it, {used} is in use - choose another --out")
        if "env.json" not in names and any(n != "lock" and n[0] != "." for n in names):
            raise UserError(f"--out {path}: holds files that are no run - choose another folder")
        free = shutil.disk_usage(next(p for p in (path, *path.parents) if os.path.isdir(p))).free
        free += 0 if restart else sum(p.stat().st_size for p in path.glob("fold_*/*.safetensors"))
        if free < need_bytes and (restart or "DONE.json" not in names):
            raise UserError(f"{path}: {free / 1e9:.2f} GB free, not {need_bytes / 1e9:.2f} - make room")

    @classmethod
    def open(cls, path: Path, config: dict, env: dict, restart: bool) -> "Run":
        """Make the folder, or find the run in it. UserError: another run, at work, unwritable."""
        with writing(path, "choose another --out", 2):
            if restart and (path / "env.json").exists():
                for folder in path.glob("fold_*"):
                    with locked(folder / "lock") as free:
                        if not free:
                            raise UserError(f"{folder}: another process is at work on it - end it first")
                old = (path.with_name(f"{path.name}.old{i}") for i in range(1, 10**6))
                print(f"the old run is now {path.rename(next(p for p in old if not p.exists()))}")
            path.mkdir(parents=True, exist_ok=True)
            with locked(path / "lock", wait=True):
                sweep(path)
                if not (path / "env.json").exists():
                    write_json(path / "env.json", env, seal=True)
                run, new = cls(path), env["same"]
                pairs = ((k, run.same.get(k), new.get(k)) for k in sorted({*run.same, *new}))
                if changed := "; ".join(f"{k}: {a!s:.24} -> {b!s:.24}" for k, a, b in pairs if a != b):
                    raise UserError(f"{path}: holds another run ({changed}) - other --out, or --restart")
                if damage(path, run.key):  # else the totals' checksum of it stands
                    write_json(path / "config.json", config)
        return run

    def fold(self, k: int) -> Path:
        return self.path / f"fold_{k}"

    def done(self, k: int) -> bool:
        return (self.fold(k) / "DONE.json").exists()

    def take(self, only: int | None = None):
        """Yield, under its lock, each fold that is neither finished nor held by another process."""
        for k in [k for k in range(self.folds) if only in (None, k)]:
            with locked(self.fold(k) / "lock") as free:
                wrong = damage(self.fold(k), self.key) if free and self.done(k) else ""
                if not free or wrong is None:
                    if free:
                        (self.fold(k) / "state.pt").unlink(missing_ok=True)
                    what = "finished before, left as it is" if free else "another process is at work on it"
                    print(f"fold {k}: {what}", flush=True)
                    continue
                if wrong:
                    print(f"{wrong} - fold {k} is trained again", flush=True)
                sweep(self.fold(k), everything=bool(wrong))
                yield k
