"""What env.json records of code and encoder, and room on the disk.

python -m pytest tests/test_environment.py
"""

import json
import re
import shutil
import subprocess
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

import train
from config import BUNDLED, Config
from data import Table
from support import active, disk, files
from support import run as run_module
from support.disk import Room, check_room, readable
from support.encoders import hub_revision, inspect_encoder, load_encoder
from support.process import UserError


def git(folder: Path, *arguments: str) -> str:
    name = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    command = ["git", "-C", str(folder), *name, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path, monkeypatch) -> Path:
    """A repository with one commit of two files of code, in the place of this one."""
    folder = tmp_path / "code"
    folder.mkdir()
    for name in ("train.py", "model.py"):
        (folder / name).write_text("x = 1\n")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "one")
    monkeypatch.setattr(run_module, "HERE", folder)
    monkeypatch.setattr(run_module, "code_files", lambda: {"train.py", "model.py"})
    return folder


def test_the_commit_and_whether_the_code_differs_from_it(repository):
    clean = {"git_commit": git(repository, "rev-parse", "HEAD"), "git_changed": False}
    assert run_module.git_state() == clean
    (repository / "new.csv").write_text("no code")
    assert run_module.git_state() == clean
    (repository / "model.py").write_text("x = 2\n")
    assert run_module.git_state() == {**clean, "git_changed": True}


@pytest.mark.parametrize("ignored", [True, False])
def test_code_that_is_not_in_the_commit_differs_from_it(ignored, repository, monkeypatch):
    (repository / "mine.py").write_text("x = 1\n")
    if ignored:
        (repository / ".gitignore").write_text("mine.py\n")
    assert run_module.git_state()["git_changed"] is False
    monkeypatch.setattr(run_module, "code_files", lambda: {"train.py", "mine.py"})
    assert run_module.git_state()["git_changed"] is True


@pytest.mark.parametrize("missing", ["git", "repository", "commit"])
def test_without_git_there_is_no_commit(missing, tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "HERE", tmp_path)
    if missing == "git":
        monkeypatch.setenv("PATH", "")
    if missing == "commit":
        git(tmp_path, "init", "-q")
    assert run_module.git_state() == {"git_commit": None, "git_changed": None}


def test_the_revision_of_a_hub_model(tmp_path, monkeypatch):
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (tmp_path / "models--a--b" / "refs").mkdir()
    (tmp_path / "models--a--b" / "refs" / "main").write_text("0123")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert hub_revision("a/b") == "0123"
    assert hub_revision("a/c") is None
    assert hub_revision(BUNDLED) is None
    assert hub_revision(str(tmp_path)) is None


def test_env_json_records_them_and_a_run_is_resumed_without(flags, tmp_path, monkeypatch):
    out = tmp_path / "run"
    argv = [*flags, "--out", str(out), "--fold"]
    first = {"git_commit": "0123", "git_changed": False}
    monkeypatch.setattr(run_module, "git_state", lambda: first)
    assert train.main([*argv, "0"]) == 0
    before = (out / "env.json").read_bytes()
    env = json.loads(before)
    assert env["code"] == first and env["hub_revision"] is None and "host" in env
    other = {"git_commit": None, "git_changed": None}
    monkeypatch.setattr(run_module, "git_state", lambda: other)
    assert train.main([*argv, "1"]) == 0  # never compared
    assert (out / "env.json").read_bytes() == before


# Room on the disk


def set_free(monkeypatch, free: float, total: int = 10**12) -> None:
    usage = namedtuple("usage", "total used free")(total, 0, int(free))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)


@pytest.fixture
def rooms(monkeypatch) -> list[Room]:
    """The estimates that train.py makes."""
    made = []
    real = disk.room_of_a_run
    monkeypatch.setattr(disk, "room_of_a_run", lambda *a: made.append(real(*a)) or made[-1])
    return made


def size(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def test_too_little_room_is_said_before_training(flags, tmp_path, monkeypatch, capsys):
    set_free(monkeypatch, 50_000)
    monkeypatch.setattr(active, "check_weights", lambda *a: pytest.fail("no weights are read"))
    out = tmp_path / "deep" / "run"
    for at_once, needed, fewer in ((2, "900", ", or fewer --jobs than 2"), (1, "600", "")):
        room = Room(folds=3, waiting=3, at_once=at_once, fold=1e8, work=3e8, tables=4e7)
        monkeypatch.setattr(disk, "room_of_a_run", lambda *a, room=room: room)
        assert train.main([*flags, "--out", str(out)]) == 2
        parts = f"3 x 100 MB for the folds, {at_once} x 300 MB while they are trained"
        figures = f"50 kB are free, up to {needed} MB are needed ({parts})"
        hint = f"make room, or choose --out on another disk{fewer}"
        assert capsys.readouterr().err == f"error: {out}: {figures} - {hint}\n"
    assert not out.parent.exists()


@pytest.mark.parametrize("extra", [[], ["--freeze", "1"], ["--freeze", "2"], ["--labels", "joy"]])
def test_the_estimate_is_a_little_more_than_the_peak(extra, flags, rooms, tmp_path, monkeypatch):
    """The folder is largest just before a new state.pt, or new weights, take the old one's name.

    Each fold reaches its own peak: two at once may reach it together.
    """
    out = tmp_path / "run"
    sizes = []
    of_fold = {}
    real = files.commit

    def commit(temporary, path):
        if path.is_relative_to(out):
            sizes.append(size(out))
            of_fold[path.parent.name] = max(of_fold.get(path.parent.name, 0), size(path.parent))
        real(temporary, path)

    monkeypatch.setattr(files, "commit", commit)
    assert train.main([*flags, "--epochs", "3", "--out", str(out), *extra]) == 0
    (room,) = rooms
    work = room.folds * room.fold + room.work  # the tables of so few rows are more than that
    assert 0.6 * work < max(sizes) < work <= room.peak, (max(sizes), room)
    for k in range(3):
        one = room.fold + room.work
        assert 0.6 * one < of_fold[f"fold_{k}"] < one, (of_fold, room)
    folds = [size(out / f"fold_{k}") for k in range(3)]
    assert 0.6 * room.fold < min(folds) and max(folds) < room.fold, (folds, room)
    assert sum(folds) < size(out) < room.at_end


def test_what_train_py_says_of_the_disk(flags, rooms, tmp_path, monkeypatch, capsys):
    """Once, below the folder's name, also with a helper; nothing of a finished run."""
    set_free(monkeypatch, 5e9)
    argv = [*flags, "--out", str(tmp_path / "run"), "--jobs", "2"]
    assert train.main(argv) == 0
    said = capsys.readouterr().out
    room = rooms[0]
    end = f"{readable(room.at_end)} at the end (3 folds of {readable(room.fold)})"
    line = f"disk: {end}, up to {readable(room.peak)} while training; 5.0 GB are free"
    assert said.count("disk: ") == 1 and f"run folder {tmp_path / 'run'}\n{line}\n" in said
    assert room.at_once == 2
    assert train.main(argv) == 0
    assert "disk: " not in capsys.readouterr().out


def test_the_parts_of_an_estimate():
    room = Room(folds=5, waiting=3, at_once=2, fold=100, work=400, tables=10)
    assert (room.at_end, room.peak, room.wanted) == (510, 1300, 1100)
    assert Room(5, 5, 1, fold=100, work=400, tables=1000).peak == 1500
    assert Room(5, 0, 0, fold=100, work=400, tables=10).wanted == 0
    assert room.line(Path("/proc/none")).endswith("1.3 kB while training")  # /proc has no size


@pytest.mark.parametrize(
    "number, text",
    [
        (0, "0.0 kB"),
        (50_000, "50 kB"),
        (999_499, "999 kB"),
        (999_500, "1.0 MB"),
        (9_949_999, "9.9 MB"),
        (9_950_000, "10 MB"),
        (435e6, "435 MB"),
        (1.25e9, "1.2 GB"),
        (12e12, "12000 GB"),
    ],
)
def test_sizes_are_readable(number, text):
    assert readable(number) == text


def estimate(used_tokens: int, waiting=range(5), jobs: int = 1, **settings) -> Room:
    table = Table([], [], [], np.zeros((0, 5)), "text")
    config = Config(folds=5, **settings)
    encoder_info = inspect_encoder(config.model)
    return disk.room_of_a_run(encoder_info, config, used_tokens, table, waiting, 0, jobs)


def test_tokens_that_no_text_has_take_no_room_in_the_states():
    encoder_info = inspect_encoder(BUNDLED)
    vocabulary = encoder_info.config.vocab_size
    table = 4 * encoder_info.token_numbers
    whole = estimate(vocabulary)
    fewer = estimate(vocabulary // 10)
    states = 2 * 3 * 4 * encoder_info.num_parameters  # two of three times the weights
    assert whole.work == pytest.approx(states, rel=0.01)
    assert whole.work - fewer.work == pytest.approx(2 * 3 * 0.9 * table, rel=1e-3)
    assert fewer.fold == whole.fold > 4 * encoder_info.num_parameters


@pytest.mark.parametrize("layers", [0, 1, 6])
def test_frozen_weights_have_no_means_in_the_states(layers):
    encoder_info = inspect_encoder(BUNDLED)
    below = ["embeddings.", *(f"encoder.layer.{i}." for i in range(layers))]
    named = load_encoder(encoder_info.path).named_parameters()
    numbers = sum(p.numel() for name, p in named if name.startswith(tuple(below)))
    assert disk.frozen_numbers(encoder_info, layers) == (numbers if layers else 0)
    vocabulary = encoder_info.config.vocab_size
    work = estimate(vocabulary).work
    frozen = estimate(vocabulary, freeze=layers)
    saved = 2 * 2 * 4 * numbers if layers else 0
    if layers == 6:  # the state is smaller than the weights, which are then written twice
        assert frozen.work < 2.1 * frozen.fold
    else:
        assert frozen.work == pytest.approx(work - saved, rel=1e-3)


def test_a_finished_run_asks_for_no_room(flags, rooms, tmp_path, monkeypatch, capsys):
    """A resumed one for less than a new one."""
    out = tmp_path / "run"
    assert train.main([*flags, "--out", str(out)]) == 0
    set_free(monkeypatch, 0)
    assert train.main([*flags, "--out", str(out)]) == 0
    assert train.main([*flags, "--out", str(out), "--restart"]) == 2
    assert "make room" in capsys.readouterr().err
    assert not out.with_name("run.old1").exists()
    shutil.rmtree(out / "fold_1")
    assert train.main([*flags, "--out", str(out)]) == 2
    assert "make room" in capsys.readouterr().err
    new, finished, restarted, resumed = rooms
    assert (finished.wanted, restarted) == (0, new)
    assert resumed.wanted == pytest.approx(new.wanted - 2 * new.fold)
    set_free(monkeypatch, resumed.wanted + 1)
    assert train.main([*flags, "--out", str(out)]) == 0
    end = re.search("disk: (.*?), up", capsys.readouterr().out)[1]
    assert end == f"{readable(new.at_end)} at the end (3 folds of {readable(new.fold)})"


def test_what_an_unfinished_fold_holds_counts_as_room(tmp_path, monkeypatch):
    """To resume never needs more than to begin; --restart keeps the old folds."""
    set_free(monkeypatch, 100)
    for k in range(2):
        (tmp_path / f"fold_{k}").mkdir()
        (tmp_path / f"fold_{k}" / "state.pt").write_bytes(bytes(1000))
    (tmp_path / "fold_1" / "DONE.json").write_text("{}")
    check_room(tmp_path, Room(1, 1, 1, fold=100, work=1000, tables=0))
    too_large = Room(1, 1, 1, fold=101, work=1000, tables=0)
    with pytest.raises(UserError, match="make room"):
        check_room(tmp_path, too_large)
    with pytest.raises(UserError, match="make room"):
        check_room(tmp_path, Room(1, 1, 1, fold=1, work=100, tables=0), restart=True)
    set_free(monkeypatch, 0, total=0)  # no size is known
    check_room(tmp_path, too_large)
