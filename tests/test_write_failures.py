"""Writing that fails: full disks, limits, paths that can't be written, a reader that has gone.

One line of error, nothing half written; with room again the same command gives the bytes of a run
that nothing disturbed. python -m pytest tests/test_write_failures.py
"""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from faults import HERE, Killed, assert_survived, at_call, at_step, die, one_line
from safetensors import SafetensorError

import predict
import train
from support import files
from support.files import atomic_write, sweep
from support.process import UserError

pytestmark = pytest.mark.usefixtures("one_thread")


def no_space(*_):
    raise OSError(28, "No space left on device")


def fail_write(monkeypatch, folder: Path, name: str, number: int) -> list[int]:
    """Let the call of that number raise ENOSPC: os.replace, os.fsync, or an open for writing below
    `folder`."""
    if name != "open":
        return at_call(monkeypatch, os, name, number, no_space, after=False)
    import builtins

    real, calls = open, [0]

    def failing(file, mode="r", *args, **kwargs):
        if (
            set(mode) & set("wax+")
            and isinstance(file, (str, Path))
            and folder in Path(file).parents
        ):
            calls[0] += 1
            if calls[0] == number:
                no_space()
        return real(file, mode, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", failing)
    return calls


@pytest.mark.parametrize("name, stride", [("replace", 17), ("fsync", 43), ("open", 5)])
def test_a_write_that_fails(name, stride, command, tmp_path, test_csv, wanted, monkeypatch, capsys):
    number, done = 1, False
    while not done:
        out = tmp_path / str(number)
        with monkeypatch.context() as m:
            calls = fail_write(m, tmp_path, name, number)
            code = train.main([*command, "--out", str(out)])
        done = calls[0] < number
        assert code == 0 if done else code in (1, 2), (name, number)
        if not done:
            one_line(capsys, "No space left on device")
            assert not [p for p in out.rglob("*") if ".tmp" in p.name]
        assert_survived(command, out, test_csv, wanted)
        shutil.rmtree(out)
        number += stride
    assert number > stride  # at least one has failed


@pytest.mark.parametrize("name", ["replace", "fsync", "open"])
def test_a_write_of_predict_that_fails(
    name, clean, tmp_path, test_csv, wanted, monkeypatch, capsys
):
    argv = ["--run", str(clean), "--input", str(test_csv), "--output", str(tmp_path / "s.csv")]
    argv += ["--probabilities", str(tmp_path / "p.csv")]
    (tmp_path / "s.csv").write_text("old")
    number = 0
    done = False
    while not done:
        number += 1
        with monkeypatch.context() as m:
            calls = fail_write(m, tmp_path, name, number)
            code = predict.main(argv)
        done = calls[0] < number
        if not done:
            assert code == 1, number
            one_line(capsys, "No space left on device")
            assert (tmp_path / "s.csv").read_bytes() in (b"old", wanted["submission"])
    assert number > 2 and code == 0
    assert (tmp_path / "s.csv").read_bytes() == wanted["submission"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p.csv", "s.csv"]


def test_a_reader_that_has_gone_and_a_full_disk_behind_the_output(clean, test_csv, tmp_path):
    argv = [
        sys.executable,
        str(HERE.parent / "predict.py"),
        "--run",
        str(clean),
        "--input",
        str(test_csv),
    ]
    p = subprocess.Popen(
        [*argv, "--output", str(tmp_path / "s.csv")], stdout=-1, stderr=-1, text=True
    )
    p.stdout.close()
    err = p.stderr.read()
    assert (
        p.wait() == 128 + signal.SIGPIPE
        and "Traceback" not in err
        and "Exception ignored" not in err
    )
    assert (
        err.splitlines()[-1] == "stopped: nobody reads the output - run the same command to resume"
    )
    with open("/dev/full", "w") as full:
        p = subprocess.run(
            [*argv, "--output", str(tmp_path / "t.csv")], stdout=full, stderr=-1, text=True
        )
    assert p.returncode == 2 and "error: output: No space left on device" in p.stderr


@pytest.mark.parametrize("limit", [10, 900, 3000, 30_000, 100_000, 170_000])
def test_a_limit_on_the_size_of_files(limit, command, tmp_path, test_csv, wanted, capsys):
    """As on a full disk, but in the middle of a file: JSON, tokenizer, weights, state."""
    out, old = tmp_path / "run", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
    try:
        assert train.main([*command, "--out", str(out)]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    one_line(capsys, "can't be written", "make room")
    assert not [p for p in out.rglob("*") if ".tmp" in p.name]
    assert_survived(command, out, test_csv, wanted)


def test_paths_that_cannot_be_written(command, clean, tmp_path, test_csv, capsys, monkeypatch):
    trained = at_step(monkeypatch, 0, die)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in (
        "file",
        "file/below",
        "file/below/deep",
        "full",
        "dangling",
        "/dev/null",
        "/dev/full",
        "/proc/none",
    ):
        began = time.monotonic()
        assert train.main([*command, "--out", str(tmp_path / name)]) == 2
        one_line(capsys, name)
        assert time.monotonic() - began < 3
    assert trained == [0]
    assert (tmp_path / "file").read_text() == "mine" and sorted(os.listdir(tmp_path)) == [
        "dangling",
        "file",
        "full",
    ]
    for name in ("/dev/full", "/dev/null", "file/s.csv", "full", "nowhere/s.csv", "/proc/s.csv"):
        assert predict.main(
            ["--run", str(clean), "--input", str(test_csv), "--output", str(tmp_path / name)]
        ) in (1, 2)
        one_line(capsys, name.split("/s.csv")[0])
    for name in ("file", "/dev/null", "/dev/full", "full", "nowhere"):
        assert (
            predict.main(
                [
                    "--run",
                    str(tmp_path / name),
                    "--input",
                    str(test_csv),
                    "--output",
                    str(tmp_path / "s.csv"),
                ]
            )
            == 2
        )
        one_line(capsys, name)


def test_what_is_not_written_whole_leaves_nothing_behind(tmp_path):
    (tmp_path / "x").write_text("old")
    for error in (OSError(28, "No space left"), RuntimeError("unexpected pos 64"), Killed()):
        expected = Killed if isinstance(error, Killed) else UserError
        with pytest.raises(expected), atomic_write(tmp_path) as temporary:
            (temporary / "x").write_text("half")
            raise error
        assert os.listdir(tmp_path) == ["x"] and (tmp_path / "x").read_text() == "old"
    (tmp_path / ".tmp-123").mkdir()
    sweep(tmp_path)
    assert os.listdir(tmp_path) == ["x"]


def test_a_bug_within_a_write_is_no_full_disk(tmp_path):
    """Only what files and the libraries' writers raise is said as such."""
    for bug in (KeyError("x"), ValueError("no such fold"), RuntimeError("size of tensor a")):
        with pytest.raises(type(bug)), files.writing(tmp_path):
            raise bug
    full = (OSError(28, "No space left on device"), RuntimeError("PytorchStreamWriter failed"))
    for error in (*full, SafetensorError("I/O error: No space left on device (os error 28)")):
        with pytest.raises(UserError, match="make room"), files.writing(tmp_path):
            raise error
