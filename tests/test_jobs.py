"""Folds in parallel: threads, the number of processes, helpers that are killed or left alone.

python -m pytest tests/test_jobs.py
"""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import make_rows, outputs, write_csv

import train
from config import Config
from support import checkpoint, jobs
from support.encoders import inspect_encoder
from support.files import locked

HERE = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def slow(tmp_path_factory, bert) -> list[str]:
    """Folds of some seconds each: long enough to be killed in."""
    csv = write_csv(tmp_path_factory.mktemp("jobs") / "train.csv", make_rows(160))
    argv = ["--model", str(bert), "--train", str(csv), "--folds", "3", "--epochs", "4"]
    return [*argv, "--batch-size", "4", "--precision", "fp32"]


@pytest.fixture(scope="module")
def alone(slow, tmp_path_factory) -> dict[str, bytes]:
    """The bytes of the run in one process."""
    out = tmp_path_factory.mktemp("alone") / "run"
    assert train.main([*slow, "--out", str(out), "--jobs", "1"]) == 0
    return outputs(out)


def wait_until(true, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def training(out: Path) -> list[int]:
    """The folds that some process holds."""
    held = []
    for path in out.glob("fold_*/lock"):
        with locked(path) as free:
            held += [] if free else [int(path.parent.name[5:])]
    return held


DRIVER = """
import sys, time
sys.path.insert(0, sys.argv.pop(1))
import train
real = train.train_fold
def waits(k, *args):
    while k == 0 and not (args[4].path / "fold_1/state.pt").exists():
        time.sleep(0.02)  # until its helper has trained an epoch
    real(k, *args)
train.train_fold = waits
sys.exit(train.main([*sys.argv[1:], "--jobs", "2"]))
"""


def start(argv: list[str], out: Path, log: Path) -> tuple[subprocess.Popen, int]:
    """train.py, and the id of its helper; both are at work on a fold."""
    command = [sys.executable, "-c", DRIVER, HERE, *argv, "--out", out]
    with open(log, "w") as out_and_err:
        first = subprocess.Popen(command, stdout=out_and_err, stderr=subprocess.STDOUT)
    wait_until(lambda: (out / "fold_1/state.pt").exists())
    [other] = children(first.pid)
    return first, other


# How many threads, how many processes


@pytest.mark.parametrize(
    ("cores", "folds", "threads"),
    [(1, 5, 1), (2, 5, 1), (2, 1, 2), (8, 5, 1), (8, 3, 2), (64, 5, 12), (64, 1, 64)],
)
def test_threads_are_the_cores_divided_by_the_folds(cores, folds, threads, monkeypatch, tmp_path):
    before, found = torch.get_num_threads(), []
    monkeypatch.setattr(jobs, "cpu_count", lambda: cores)
    monkeypatch.setattr(torch, "set_num_threads", found.append)
    monkeypatch.delenv("OMP_NUM_THREADS")
    jobs.set_threads(Config(folds=folds), tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the user's wish
    jobs.set_threads(Config(folds=folds), tmp_path)
    jobs.set_threads(Config(folds=folds, threads=7), tmp_path)
    assert found == [threads, before, 7]


def test_a_run_goes_on_with_the_threads_it_began_with(flags, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("OMP_NUM_THREADS")
    argv, before = [*flags, "--out", str(tmp_path / "a")], torch.get_num_threads()
    assert train.main([*argv, "--threads", "2", "--fold", "0"]) == 0
    assert torch.get_num_threads() == before  # as a notebook had them
    assert train.main([*argv, "--fold", "1"]) == 0
    assert capsys.readouterr().out.count("cpu (2 threads)") == 2
    assert train.main([*argv, "--threads", "1"]) == 2
    assert "threads: 2 -> 1" in capsys.readouterr().err


GB = 1e9


@pytest.mark.parametrize(
    ("settings", "cores", "threads", "free", "cards", "folds", "typed", "want"),
    [
        ({}, 2, 1, 64 * GB, 0, 5, True, 2),
        ({}, 64, 12, 64 * GB, 0, 5, True, 5),
        ({}, 8, 1, 64 * GB, 0, 5, True, 5),  # no more than folds
        ({}, 8, 1, 5 * GB, 0, 5, True, 2),  # 2 GB each
        ({}, 8, 1, 1 * GB, 0, 5, True, 1),
        ({}, 8, 1, 64 * GB, 0, 5, False, 1),  # main() called from Python
        ({"jobs": 3}, 2, 1, 1 * GB, 0, 5, False, 3),
        ({"jobs": 9}, 2, 1, 64 * GB, 0, 5, True, 5),
        ({"jobs": 3, "fold": 1}, 8, 1, 64 * GB, 0, 1, True, 1),
        ({"device": "cuda"}, 64, 12, 1 * GB, 2, 5, True, 2),
        ({"device": "mps"}, 8, 1, 64 * GB, 0, 5, True, 1),
        ({}, 8, 1, 64 * GB, 0, 0, True, 1),  # all folds are finished
    ],
)
def test_count_jobs(settings, cores, threads, free, cards, folds, typed, want, monkeypatch):
    monkeypatch.setattr(jobs, "cpu_count", lambda: cores)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    monkeypatch.setattr(jobs, "free_memory", lambda: free)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    config = Config(**{"device": "cpu", **settings})
    assert jobs.count_jobs(config, folds, 2 * GB, typed) == want
    monkeypatch.setattr(jobs, "rank_and_size", lambda: (0, 2))
    assert jobs.count_jobs(config, folds, 2 * GB, typed) == 1  # torchrun


@pytest.mark.parametrize("visible", [None, "7,4"])
def test_each_helper_has_a_card_of_its_own(visible, monkeypatch, tmp_path):
    started = []
    monkeypatch.setattr(
        subprocess, "Popen", lambda command, env, **how: started.append((command, env, how))
    )
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2 if visible else 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    want = {None: ["1", "2", "0", "1"], "7,4": ["4", "7", "4", "7"]}[visible]
    command = jobs.Command("t.py", ["--restart"], typed=True)
    for i in range(1, 5):
        jobs.start_helper(i, tmp_path, Config(device="cuda"), command)
    assert [env["CUDA_VISIBLE_DEVICES"] for _, env, _ in started] == want
    command, _, how = started[0]
    same = [f"--out={tmp_path}", "--threads=1", "--no-restart", "--device=cuda"]
    assert command[1:] == ["t.py", "--restart", *same, "--precision=auto"]
    assert how["start_new_session"]  # Ctrl-C reaches train.py alone


def test_free_memory_is_that_of_this_machine():
    assert 1e7 < jobs.free_memory() < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_the_estimate_of_memory_is_within_a_third_of_the_peak(tmp_path):
    """The bundled encoder in fp32, in a process of its own. MPNet-base: docs/scaling.md."""
    rows = make_rows(24)
    for row in rows:
        row[1] = " ".join([row[1]] * 12)
    csv = write_csv(tmp_path / "train.csv", rows)
    argv = [
        "--train",
        csv,
        "--folds",
        "2",
        "--fold",
        "0",
        "--epochs",
        "1",
        "--precision",
        "fp32",
        "--out",
        tmp_path / "run",
    ]
    subprocess.run([sys.executable, HERE / "train.py", *argv], check=True, capture_output=True)
    peak = json.loads((tmp_path / "run/fold_0/DONE.json").read_text())["peak_rss_mb"] * 2**20
    estimate = jobs.memory_of_a_fold(inspect_encoder(Config().model), Config(), 128)
    assert 2 / 3 < estimate / peak < 4 / 3, (estimate, peak)


# What helpers say, and how they end


def helper(code: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_a_helper_is_heard_from_its_first_step_on(capsys):
    steps = []
    said = (
        "print('again'); print('\\0' '3'); print('fold 1'); print('warning: w'); print('\\0' '4')"
    )
    bar = SimpleNamespace(update=steps.append)
    assert jobs.follow(helper(f"{said}; print('stopped: by SIGTERM')"), bar) == 0
    out, err = capsys.readouterr()
    assert (out, err, steps) == ("fold 1\n", "warning: w\n", [3, 4])


@pytest.mark.parametrize(
    ("code", "exit_code", "said"),
    [
        ("print('rows'); print('error: no memory'); raise SystemExit(1)", 1, "error: no memory\n"),
        ("print('\\0' '0'); print('error: nan'); raise SystemExit(2)", 2, "error: nan\n"),
        ("import os; os.kill(os.getpid(), 9)", 1, "by SIGKILL - run the same command to resume\n"),
    ],
)
def test_the_exit_code_of_a_helper(code, exit_code, said, capsys):
    bar = SimpleNamespace(update=lambda n: None)
    assert jobs.follow(helper(code), bar) == exit_code
    assert capsys.readouterr().err.endswith(said)


@pytest.mark.parametrize("n", [2, 3])
def test_the_bytes_do_not_depend_on_the_number_of_processes(
    n, slow, alone, tmp_path, monkeypatch, capfd
):
    out, real = tmp_path / "run", train.train_fold

    def waits(k, *args):
        if k == 0:  # until all the helpers have a fold
            wait_until(lambda: len(training(out)) >= n)
        real(k, *args)

    monkeypatch.setattr(train, "train_fold", waits)
    assert train.main([*slow, "--out", str(out), "--jobs", str(n)]) == 0
    assert outputs(out) == alone
    said = capfd.readouterr().out
    assert said.count("held out |") == 3 and said.count("run folder") == 1
    assert said.count("cross-fitted (quote") == 1 and "finished before" not in said


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM"])
def test_train_is_killed_and_its_helper_follows(name, slow, alone, tmp_path):
    out = tmp_path / "run"
    first, other = start(slow, out, tmp_path / "log")
    assert os.getsid(other) != os.getsid(first.pid)
    first.send_signal(getattr(signal, name))
    code = first.wait(30)
    assert code == (-9 if name == "SIGKILL" else 128 + getattr(signal, name))
    wait_until(lambda: not running(other), 10)
    assert not training(out) and not (out / "DONE.json").exists()
    said = (tmp_path / "log").read_text()
    assert name == "SIGKILL" or said.count("stopped: by") == 1 and name in said, said
    assert "Traceback" not in said
    assert train.main([*slow, "--out", str(out)]) == 0
    assert outputs(out) == alone


def test_a_killed_helper_is_said(slow, alone, tmp_path):
    out = tmp_path / "run"
    first, other = start(slow, out, tmp_path / "log")
    os.kill(other, signal.SIGKILL)
    assert first.wait(120) == 1
    said = (tmp_path / "log").read_text()
    assert "error: a process was ended by SIGKILL - run the same command to resume" in said, said
    assert train.main([*slow, "--out", str(out)]) == 0
    assert outputs(out) == alone


# Progress


class Clock:
    """time.monotonic, set by hand."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(jobs.time, "monotonic", lambda: self.now)


def test_off_a_terminal_a_line_a_minute_shows_steps_loss_and_time(monkeypatch, capsys):
    clock = Clock(monkeypatch)
    asked = []
    with jobs.progress_bar(140) as bar:
        assert isinstance(bar, jobs.Lines)
        bar.update(20)  # done before: no part of the rate
        for i in range(100):
            clock.now += 2
            bar.update(1, lambda i=i: asked.append(i) or f"loss 0.{i}")
        clock.now += 60
        bar.update(1)  # a helper's: the loss is the last one known
    assert capsys.readouterr().out.splitlines() == [
        "step 50 of 140 | loss 0.29 | 3.0 minutes left",
        "step 80 of 140 | loss 0.59 | 2.0 minutes left",
        "step 110 of 140 | loss 0.89 | 1.0 minutes left",
        "step 121 of 140 | loss 0.99 | 0.8 minutes left",
    ]
    assert asked == [29, 59, 89, 99]  # on a GPU each would wait


def test_helpers_alone_give_lines_without_a_loss(monkeypatch, capsys):
    clock = Clock(monkeypatch)
    bar = jobs.Lines(4)
    clock.now += 60
    bar.update(0)  # none done yet
    bar.update(1)
    assert capsys.readouterr().out == "step 1 of 4 | 3.0 minutes left\n"
    monkeypatch.setattr(jobs, "LEADS", False)  # another rank of torchrun
    clock.now += 60
    bar.update(1)
    assert capsys.readouterr().out == ""


def test_on_a_terminal_the_bar_shows_the_loss(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    asked = []
    with jobs.progress_bar(10) as bar:
        assert isinstance(bar, jobs.Bar)
        for i in range(5):
            bar.update(1, lambda i=i: asked.append(i) or "loss 0.5")
        assert asked == []  # within a second
        bar.bar.last_print_t -= 2
        bar.update(1, lambda: "loss 0.25")
        bar.bar.refresh()
    assert "6/10" in terminal.getvalue() and "loss 0.25" in terminal.getvalue()


def test_lines_of_a_training(slow, tmp_path, monkeypatch, capsys):
    """The mean loss of the epoch so far, and nothing more often than it is due."""
    argv = [*slow, "--fold", "0", "--epochs", "2", "--out"]
    assert train.main([*argv, str(tmp_path / "a")]) == 0
    assert "minutes left" not in capsys.readouterr().out
    monkeypatch.setattr(jobs, "LINE_EVERY", 0)
    losses = []
    real = checkpoint.Progress.add_step
    monkeypatch.setattr(
        checkpoint.Progress,
        "add_step",
        lambda self, both: losses.append((self.epoch, float(both[0]))) or real(self, both),
    )
    assert train.main([*argv, str(tmp_path / "b")]) == 0
    lines = [x for x in capsys.readouterr().out.splitlines() if x.startswith("step ")]
    assert len(lines) == len(losses) > 4
    for n, (line, (epoch, _)) in enumerate(zip(lines, losses, strict=True), 1):
        mean = np.mean([loss for e, loss in losses[:n] if e == epoch])
        words = rf"step {n} of {len(losses)} \| fold 0 epoch {epoch + 1} loss (\d\.\d{{4}})"
        found = re.fullmatch(words + r" \| \d+\.\d minutes left", line)
        assert found and float(found[1]) == pytest.approx(mean, abs=1e-4), line


# Threads that wait


def test_waiting_threads_sleep_where_the_user_set_nothing(tmp_path):
    code = """if True:
        import os, sys
        sys.path.insert(0, sys.argv.pop(1))
        from config import Config
        from support.cli import start_script
        assert "torch" not in sys.modules
        start_script(Config)
        print("torch" in sys.modules, os.environ.get("GOMP_SPINCOUNT"))
        """
    env = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_", "KMP_"))}
    command = [sys.executable, "-c", code, HERE]
    for own, want in (({}, "True None"), ({"OMP_NUM_THREADS": "2"}, "False None")):
        done = subprocess.run(command, env={**env, **own}, capture_output=True, text=True)
        assert done.stdout.strip() == want, done.stderr
