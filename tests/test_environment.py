"""What env.json records of code and encoder, and room on the disk.

python -m pytest tests/test_environment.py
"""

import json
import subprocess
from pathlib import Path

import pytest

import train
from config import BUNDLED
from support import run as run_module
from support.encoders import hub_revision


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
