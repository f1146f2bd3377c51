"""Signals and kills: a stopped run says so, exits with 128 + the signal and loses no step.

Real processes get real signals; within this process a signal comes at a chosen place. The same
command again must give the bytes of a run that nothing disturbed.
python -m pytest tests/test_signals.py
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import outputs
from faults import HERE, assert_survived, at_call, everything, one_line

import train
from support import checkpoint, encoders, files
from support.active import ActiveRun
from support.checkpoint import Checkpoint, load_state
from support.process import Interrupted, Signals
from support.files import locked

pytestmark = pytest.mark.usefixtures("one_thread")

# Real processes and real signals


DRIVER = """
import json, os, sys, time
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
import predict, train
import torch._dynamo, transformers.models.bert.modeling_bert  # else each child imports them
loader = train.train_loader
def slow(*args):
    for step in loader(*args):
        print("STEP", flush=True)
        time.sleep(0.05)
        yield step
train.train_loader = slow
print("ready", flush=True)
for line in sys.stdin:
    order = json.loads(line)
    if isinstance(order, int):
        print(os.waitstatus_to_exitcode(os.waitpid(order, 0)[1]), flush=True)
        continue
    pid = os.fork()
    if not pid:
        os.dup2(os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        os.dup2(1, 2)
        sys.stdin = open(os.devnull)
        sys.exit(train.main(order["argv"]))
    print(pid, flush=True)
"""


class Processes:
    """Runs of train.main in processes of their own, forked from one that has imported
    everything."""

    def __init__(self):
        self.driver = subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(HERE.parent)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.driver.stdout.readline() == "ready\n"

    def ask(self, order) -> int:
        self.driver.stdin.write(json.dumps(order) + "\n")
        self.driver.stdin.flush()
        return int(self.driver.stdout.readline())

    def start(self, argv: list[str], log: Path) -> int:
        return self.ask({"argv": argv, "log": str(log)})

    def wait(self, pid: int) -> int:
        return self.ask(pid)


@pytest.fixture(scope="module")
def processes():
    p = Processes()
    yield p
    p.driver.stdin.close()
    p.driver.wait(20)


def wait_for_steps(log: Path, steps: int) -> None:
    for _ in range(3000):
        if log.exists() and log.read_text().count("STEP") >= steps:
            return
        time.sleep(0.02)
    raise AssertionError(f"no step {steps} in {log.read_text()}")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_real_signal(name, processes, command, tmp_path, test_csv, wanted):
    out, log = tmp_path / "run", tmp_path / "log"
    pid = processes.start([*command, "--out", str(out)], log)
    wait_for_steps(log, 6)
    os.kill(pid, getattr(signal, name))
    assert processes.wait(pid) == 128 + getattr(signal, name)
    text = log.read_text()
    assert f"stopped: by {name} - run the same command to resume" in text
    assert "Traceback" not in text
    state = load_state(out / "fold_0" / "state.pt")
    at = state["progress"]
    assert at["epoch"] * 4 + at["step"] == text.count("STEP")  # nothing is lost
    assert_survived(command, out, test_csv, wanted)


def test_the_script_itself_under_a_signal(command, tmp_path, test_csv, wanted):
    argv = [
        sys.executable,
        str(HERE.parent / "train.py"),
        *command,
        "--epochs",
        "1000",
        "--out",
        str(tmp_path / "run"),
    ]
    p = subprocess.Popen(
        argv,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    while "epoch" not in p.stdout.readline():
        assert p.poll() is None
    p.send_signal(signal.SIGINT)
    out, err = p.communicate(timeout=20)
    assert p.returncode == 130 and err.splitlines()[-1].startswith("stopped: by SIGINT"), err


def test_a_second_signal_leaves_at_once(processes, command, tmp_path, test_csv, wanted):
    out, log = tmp_path / "run", tmp_path / "log"
    pid = processes.start([*command, "--out", str(out)], log)
    wait_for_steps(log, 6)
    began = time.monotonic()
    os.kill(pid, signal.SIGINT)
    time.sleep(0.02)
    os.kill(pid, signal.SIGINT)
    assert processes.wait(pid) == 130
    assert time.monotonic() - began < 1
    assert_survived(command, out, test_csv, wanted)


@pytest.mark.parametrize("steps", [1, 5, 13])
def test_sigkill(steps, processes, command, tmp_path, test_csv, wanted):
    out, log = tmp_path / "run", tmp_path / "log"
    pid = processes.start([*command, "--out", str(out)], log)
    wait_for_steps(log, steps)
    time.sleep(0.015 * steps / 4)
    with locked(out / f"fold_{(steps - 1) // 8}" / "lock") as free:
        assert not free  # the control of the next line but two
    os.kill(pid, signal.SIGKILL)
    assert processes.wait(pid) == -9
    with locked(out / f"fold_{(steps - 1) // 8}" / "lock") as free:
        assert free
    assert (out / "env.json").exists()
    assert_survived(command, out, test_csv, wanted)


def test_three_processes_one_of_them_killed(processes, command, tmp_path, test_csv):
    argv = [*command, "--folds", "3"]
    assert train.main([*argv, "--out", str(tmp_path / "one")]) == 0
    want = everything(tmp_path / "one", test_csv)
    out, logs = tmp_path / "run", [tmp_path / f"log{i}" for i in range(3)]
    pids = [processes.start([*argv, "--out", str(out)], log) for log in logs]
    wait_for_steps(logs[1], 3)
    os.kill(pids[1], signal.SIGKILL)
    assert [processes.wait(p) for p in pids] == [0, -9, 0]
    assert "STEP" in logs[0].read_text() and "STEP" in logs[2].read_text()
    assert_survived(
        argv, out, test_csv, want
    )  # the others took the freed fold, or this command does


def test_interrupted_while_it_imports(tmp_path):
    code = "import os, signal, sys; sys.argv = ['train.py']; from config import Config; "
    code += "from support.cli import start_script; start_script(Config); "
    code += "os.kill(os.getpid(), signal.SIGINT)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=HERE.parent, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (130, "")


# Signals within this process


def test_an_ignored_signal_stays_ignored():
    """nohup ignores SIGHUP before we start."""
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            signals.check()
            assert signal.getsignal(signal.SIGTERM) == signals._handle
    finally:
        signal.signal(signal.SIGHUP, old)


@pytest.mark.parametrize(
    "owner, name",
    [
        (train, "read_data"),
        (encoders, "load_encoder"),
        (train, "build_model"),
        (train, "run_over_rows"),
        (Checkpoint, "keep"),
        (checkpoint, "write_json"),
        (train, "summarise"),
        (ActiveRun, "_unfinished"),
    ],
)
def test_a_signal_outside_the_loop(
    owner, name, command, tmp_path, test_csv, wanted, monkeypatch, capsys
):
    with monkeypatch.context() as m:
        at_call(m, owner, name, 1, lambda: os.kill(os.getpid(), signal.SIGTERM), after=False)
        assert train.main([*command, "--out", str(tmp_path / "run")]) == 143
    one_line(capsys, "SIGTERM")
    assert_survived(command, tmp_path / "run", test_csv, wanted)


def test_a_signal_while_the_run_folder_is_made(
    command, tmp_path, test_csv, wanted, monkeypatch, capsys
):
    for number in (1, 2, 3):
        with monkeypatch.context() as m:
            at_call(m, files, "commit", number, lambda: os.kill(os.getpid(), signal.SIGINT))
            assert train.main([*command, "--out", str(tmp_path / "new" / "run")]) == 130
        one_line(capsys, "SIGINT")
    assert_survived(command, tmp_path / "new" / "run", test_csv, wanted)


def test_a_signal_while_a_finished_fold_is_read(command, copy, monkeypatch, capsys):
    """It is no damage: the fold is not trained again, nor its files removed."""
    before = outputs(copy)
    (copy / "DONE.json").unlink()
    with monkeypatch.context() as m:
        read, real = [], files.read_json
        m.setattr(files, "read_json", lambda path, **k: read.append(path) or real(path, **k))
        at_call(m, files, "read_json", 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert train.main([*command, "--out", str(copy)]) == 143
    assert read == [copy / "DONE.json", copy / "fold_0" / "DONE.json"]
    one_line(capsys, "SIGTERM")
    assert outputs(copy) == before


def test_a_signal_that_a_library_turns_into_another_error():
    """numpy's sort of rows makes a TypeError of what a signal raises: it ends as a signal does."""
    with pytest.raises(Interrupted) as caught, Signals():
        try:
            signal.raise_signal(signal.SIGTERM)
        except Interrupted:
            raise TypeError("from within a comparison") from None
    assert caught.value.code == 128 + signal.SIGTERM
    with pytest.raises(TypeError), Signals():
        raise TypeError("without a signal")
