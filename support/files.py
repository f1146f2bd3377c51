"""Files that are there whole or not at all, their checksums, and locks between processes."""

import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors import SafetensorError

from support.process import UserError, warn

_umask = os.umask(0)
os.umask(_umask)


# What some file systems (Lustre, CIFS, exFAT, FUSE) say of what they can't do
UNSUPPORTED = (errno.ENOSYS, errno.ENOLCK, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTTY)


@contextlib.contextmanager
def where_possible(what: str, hint: str, others: tuple[int, ...] = ()) -> Iterator[None]:
    """A block that the file system may refuse: a warning then says, once, what is not safe there.

    `others`: numbers of errors that mean the same here.
    """
    try:
        yield
    except OSError as e:
        if e.errno not in UNSUPPORTED + others:
            raise
        warn_once(f"{what} ({e.strerror}) - {hint}")


warn_once = functools.cache(warn)


def hint_for(e: BaseException) -> str:
    """What helps against a file error."""
    number = getattr(e, "errno", None)
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "choose a folder that you may write to, with --out or --output"
    if number in (*UNSUPPORTED, errno.ENODEV):
        return "the file system can't do this: choose a folder on another one"
    return "make room, and run the same command"


@contextlib.contextmanager
def writing(path: Path, hint: str = "", code: int = 1):
    """What goes wrong in writing `path`, in one line. A bug in the block is none of that."""
    try:
        yield
    except Exception as e:
        if not is_file_error(e):
            raise
        reason = getattr(e, "strerror", None) or f"{type(e).__name__}: {e}"
        raise UserError(f"{path}: can't be written ({reason}) - {hint or hint_for(e)}", code) from e


def is_file_error(e: BaseException) -> bool:
    """Also of the libraries' own names for a full disk or a folder that can't be written."""
    disguised = ("PytorchStreamWriter", "unexpected pos", "I/O error", "os error")
    if isinstance(e, (RuntimeError, SafetensorError)) or type(e) is Exception:
        return any(words in str(e) for words in disguised)
    return isinstance(e, OSError)


def commit(temporary: Path, path: Path) -> None:
    """Give a finished file its name: contents on disk, mode by the umask, renamed, name on disk."""
    with where_possible("modes of files can't be set here", "others may read them", (errno.EPERM,)):
        os.chmod(temporary, 0o666 & ~_umask)  # safetensors writes 0600
    with open(temporary, "rb") as f:
        os.fsync(f.fileno())
    os.replace(temporary, path)
    place = os.open(path.parent, os.O_RDONLY)
    hint = "after a power failure the newest files may be missing; a kill loses nothing"
    with where_possible("names of files can't be synced here", hint, (errno.EBADF, errno.EACCES)):
        os.fsync(place)
    os.close(place)


@contextlib.contextmanager
def atomic_write(folder: Path) -> Iterator[Path]:
    """A temporary folder (.tmp-...). When the block ends well, its files move into `folder`."""
    with (
        writing(folder),
        tempfile.TemporaryDirectory(
            prefix=".tmp-", dir=folder, ignore_cleanup_errors=True
        ) as temporary,
    ):
        yield Path(temporary)
        for name in sorted(os.listdir(temporary)):
            commit(Path(temporary, name), folder / name)


def sweep(folder: Path, everything: bool = False) -> None:
    """Remove what dead processes left half-written, or all but the lock. Call it under the lock."""
    with writing(folder):
        for path in folder.iterdir():
            if path.name.startswith(".tmp-") or everything and path.name != "lock":
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path, wait: bool = False) -> Iterator[bool]:
    """True while this process holds the lock, else False. It is freed when its holder dies."""
    with writing(path):
        path.parent.mkdir(exist_ok=True)
        f = open(path, "ab")  # noqa: SIM115
        free = True
        try:
            fcntl.flock(f, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            free = False
        except OSError as e:
            hint = "start one command at a time on a folder"
            with where_possible("there are no file locks here", hint):
                raise e
    with f:  # closing the file frees it
        yield free


def write_json(path: Path, value: dict, seal: bool = False) -> None:
    """With `seal` the value carries a checksum of its own, which `read_json` then asks for."""
    value = {**value, "sha256": json_sha256(value)} if seal else value
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic_write(path.parent) as temporary:
        (temporary / path.name).write_text(text, encoding="utf-8")


def read_json(path: Path, sealed: bool = False) -> dict:
    try:
        value = {**json.loads(path.read_text(encoding="utf-8"))}  # TypeError: no JSON object
        if sealed and value.pop("sha256", None) != json_sha256(value):
            raise ValueError("not what was written")
        return value
    except (OSError, TypeError, ValueError, RecursionError) as e:
        raise UserError(f"{path}: missing or damaged") from e


def read_npy(path: Path, kind: str, content: str) -> np.ndarray:
    """An array whose dtype is of `kind`; nothing is unpickled. UserError for anything else."""
    try:
        with open(path, "rb") as f:
            array = np.lib.format.read_array(f, allow_pickle=False)
        if array.dtype.kind != kind:
            raise ValueError(f"holds {array.dtype}")
        return array
    except Exception as e:  # numpy parses the header: a damaged one raises nearly anything
        problem = f"not an array of {content} ({str(e)[:80]})"
        raise UserError(f"{path}: {problem} - use the one that train.py wrote") from None


def file_sha256(path: str | Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


@contextlib.contextmanager
def unchanged(*paths: str | Path, code: int = 1) -> Iterator[list[str]]:
    """The paths' checksums; UserError if one is another at the end of the block."""
    before = list(map(file_sha256, paths))
    yield before
    for path, sha256 in zip(paths, before, strict=True):
        if file_sha256(path) != sha256:
            raise UserError(f"{path}: changed while it was read - run the same command again", code)


def json_sha256(value) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def describe(folder: Path, names: list[str] | None = None) -> dict:
    """Size and sha256 of these files of `folder` (or of all), for `damage` to compare."""
    paths = [folder / name for name in names or sorted(os.listdir(folder))]
    return {p.name: {"size": p.stat().st_size, "sha256": file_sha256(p)} for p in paths}


def damage(folder: Path, key: str) -> str | None:
    """What is wrong with a folder that DONE.json says is finished; None when all is well."""
    try:
        done = read_json(folder / "DONE.json", sealed=True)
    except UserError as e:
        return str(e)
    other_fold = "fold" in done and folder.name != f"fold_{done['fold']}"
    if done["run"] != key or other_fold:
        return f"{folder}: belongs to another run or fold"
    for name, wanted in done["files"].items():
        path = folder / name
        if not path.is_file() or file_sha256(path) != wanted["sha256"]:
            return f"{path}: missing or damaged"
