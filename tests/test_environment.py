"""What env.json records of code and encoder, and room on the disk.

python -m pytest tests/test_environment.py
"""

import json
import shutil
import subprocess
from collections import namedtuple
from pathlib import Path

import pytest

import train
from config import BUNDLED
from support import active, checkpoint, jobs
from support import run as run_module
from support.encoders import hub_revision, inspect_encoder
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


def test_too_little_room_is_said_before_training(flags, tmp_path, monkeypatch, capsys):
    set_free(monkeypatch, 50_000)
    monkeypatch.setattr(active, "check_weights", lambda *a: pytest.fail("no weights are read"))
    out = tmp_path / "deep" / "run"
    monkeypatch.setattr(jobs, "disk_of_a_run", lambda *a: 1.234e9)
    assert train.main([*flags, "--out", str(out)]) == 2
    err = capsys.readouterr().err
    figures = "0.00 GB free, 1.23 GB needed for this run"
    assert err == f"error: {out}: {figures} - make room, or choose another --out\n"
    assert not out.parent.exists()


def test_the_estimate_of_the_disk_is_what_a_run_takes(flags, tmp_path, monkeypatch):
    """Of the whole run, with two states at once; it is at most a fifth too large."""
    sizes = []
    real = checkpoint.save_state

    def save_state(path, state):
        real(path, state)
        files = sum(p.stat().st_size for p in path.parents[1].rglob("*.safetensors"))
        sizes.append(files + 2 * path.stat().st_size)

    monkeypatch.setattr(checkpoint, "save_state", save_state)
    estimates = []
    real_estimate = jobs.disk_of_a_run

    def estimate(*arguments):
        estimates.append(real_estimate(*arguments))
        return estimates[-1]

    monkeypatch.setattr(jobs, "disk_of_a_run", estimate)
    assert train.main([*flags, "--out", str(tmp_path / "run")]) == 0
    assert 0.8 < max(sizes) / estimates[0] < 1.2, (sizes, estimates)


def test_tokens_that_no_text_has_take_no_room_in_the_states():
    encoder_info = inspect_encoder(BUNDLED)
    weights = 4 * encoder_info.num_parameters
    vocabulary = encoder_info.config.vocab_size
    all_tokens = jobs.disk_of_a_run(encoder_info, vocabulary, 5, 2)
    assert all_tokens == (5 + 2 * 2 * 3) * weights
    fewer = jobs.disk_of_a_run(encoder_info, vocabulary // 10, 5, 2)
    table = 4 * encoder_info.token_numbers
    assert fewer == pytest.approx(all_tokens - 12 * 0.9 * table, rel=1e-3)
    assert jobs.disk_of_a_run(encoder_info, vocabulary, 1, 2) == 7 * weights  # one fold, one job
    assert jobs.disk_of_a_run(encoder_info, vocabulary, 0, 1) == 0


def test_a_finished_run_asks_for_no_room(flags, tmp_path, monkeypatch, capsys):
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


def test_what_an_unfinished_fold_holds_counts_as_room(tmp_path, monkeypatch):
    """To resume never needs more than to begin."""
    set_free(monkeypatch, 100)
    for k in range(2):
        (tmp_path / f"fold_{k}").mkdir()
        (tmp_path / f"fold_{k}" / "state.pt").write_bytes(bytes(1000))
    (tmp_path / "fold_1" / "DONE.json").write_text("{}")
    run_module.check_room(tmp_path, 1100)
    with pytest.raises(UserError, match="make room"):
        run_module.check_room(tmp_path, 1101)
    set_free(monkeypatch, 0, total=0)  # no size is known
    run_module.check_room(tmp_path, 1101)
