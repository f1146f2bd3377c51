"""What a run survives: kills, signals, full disks, flipped bytes, other processes. python -m pytest tests/test_faults.py

To survive means: the same command again ends with the same bytes as a run that nothing disturbed. Each fault comes with
its control: the run had written something before it, and a state that lacks a part gives other bytes. SIGKILL leaves
the page cache alone, so nothing here says anything about a power cut.
"""

import json
import os
import pickle
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import LABELS, make_rows, outputs, write_csv

import data as data_module
import model as model_module
import predict
import train
from support import checkpoint, encoders, files, output
from support import run as run_module
from support.checkpoint import Checkpoint, load_state, save_state
from support.errors import Interrupted, Signals, UserError
from support.files import atomic_write, damage, locked, sweep, write_json
from support.output import GrowingCSV
from support.run import Run

HERE = Path(__file__).resolve().parent
STEPS = 16  # of a whole run of `command`: 2 folds, 2 epochs, 4 steps


class Killed(BaseException):
    """Stands for a process that is gone: no code of ours catches it."""


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_csv(tmp_path_factory.mktemp("faults") / "train.csv", make_rows(64))


@pytest.fixture(scope="module")
def command(bert, data) -> list[str]:
    return ["--model", str(bert), "--train", str(data), "--folds", "2", "--epochs", "2", "--batch-size", "8", "--lr", "5e-3", "--precision", "fp32"]  # fmt: skip


def everything(folder: Path, texts: Path) -> dict[str, bytes]:
    """The outputs of a run and the submission that it makes of `texts`."""
    submission = folder.parent / f"{folder.name}.csv"
    assert (
        predict.main(["--run", str(folder), "--input", str(texts), "--output", str(submission)])
        == 0
    )
    return {**outputs(folder), "submission": submission.read_bytes()}


@pytest.fixture(scope="module")
def clean(tmp_path_factory, command) -> Path:
    """The run that nothing disturbed."""
    out = tmp_path_factory.mktemp("clean") / "run"
    assert train.main([*command, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def wanted(clean, test_csv) -> dict[str, bytes]:
    return everything(clean, test_csv)


@pytest.fixture
def copy(clean, tmp_path) -> Path:
    return Path(shutil.copytree(clean, tmp_path / "copy"))


def leftovers(folder: Path) -> list[str]:
    return [p.name for p in folder.rglob("*") if ".tmp" in p.name or p.name == "state.pt"]


def assert_survived(
    command: list[str], out: Path, test_csv: Path, wanted: dict[str, bytes]
) -> None:
    assert train.main([*command, "--out", str(out)]) == 0
    assert everything(out, test_csv) == wanted
    assert not leftovers(out)


def one_line(capsys, *parts: str) -> str:
    """The `error:` line of a refused command; it must hold all `parts`."""
    err = capsys.readouterr().err
    assert "Traceback" not in err
    lines = [x for x in err.splitlines() if x.startswith(("error: ", "stopped: "))]
    assert len(lines) == 1 and all(p in lines[0] for p in parts), (err, parts)
    return lines[0]


def at_call(monkeypatch, owner, name: str, number: int, act, after: bool = True) -> list[int]:
    """Replace owner.name by itself plus `act()` at the call of that number (from 1); a list that counts the calls."""
    real, calls = getattr(owner, name), [0]

    def wrapper(*args, **kwargs):
        calls[0] += 1
        if calls[0] == number and not after:
            act()
        result = real(*args, **kwargs)
        if calls[0] == number and after:
            act()
        return result

    monkeypatch.setattr(owner, name, wrapper)
    return calls


def at_step(monkeypatch, number: int, act) -> list[int]:
    """`act()` before the training step of that number (from 1; 0: never); a list that counts the steps begun."""
    real, begun = train.train_loader, [0]

    def loader(*args):
        for step in real(*args):
            begun[0] += 1
            if begun[0] == number:
                act()
            yield step

    monkeypatch.setattr(train, "train_loader", loader)
    return begun


def at_step_end(monkeypatch, number: int, signum: int = signal.SIGTERM) -> list[int]:
    """A signal in the training step of that number: when it is computed, and not yet noted. Counts the steps."""
    act = lambda: os.kill(os.getpid(), signum)  # noqa: E731
    return at_call(monkeypatch, Checkpoint, "after_step", number, act, after=False)


def die():
    raise Killed


# Same bytes, and going on


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_two_runs_give_the_same_bytes(precision, command, tmp_path, test_csv, clean, wanted):
    argv = [*command[:-1], precision]
    a = tmp_path / "a"
    assert train.main([*argv, "--out", str(a)]) == 0
    if precision == "fp32":
        b = wanted
    else:
        assert train.main([*argv, "--out", str(tmp_path / "b")]) == 0
        b = everything(tmp_path / "b", test_csv)
        assert b != wanted  # the flag does something
    assert everything(a, test_csv) == b
    assert train.main([*argv, "--out", str(tmp_path / "other"), "--seed", "43"]) == 0
    assert outputs(tmp_path / "other") != outputs(a)


@pytest.mark.parametrize(
    "owner, name, numbers",
    [
        (checkpoint, "save_state", (1, 2)),
        (Checkpoint, "keep", (1, 4)),
        (checkpoint, "write_log", (1, 5)),
        (checkpoint, "write_json", (1, 2)),  # DONE.json of each fold
        (run_module, "write_json", (3,)),  # that of the run, after env.json and config.json
        (Checkpoint, "after_step", (1, 6, 15)),
    ],
)
def test_death_after_each_part_of_a_run(
    owner, name, numbers, command, tmp_path, test_csv, wanted, monkeypatch
):
    for number in numbers:
        out = tmp_path / str(number)
        with monkeypatch.context() as m:
            at_call(m, owner, name, number, die)
            with pytest.raises(Killed):
                train.main([*command, "--out", str(out)])
        written = [p for p in out.rglob("*") if p.is_file() and p.name != "lock"]
        assert len(written) >= 3, "the run had written nothing before it died"
        assert_survived(command, out, test_csv, wanted)


def test_death_after_every_second_state_within_an_epoch(
    command, tmp_path, test_csv, wanted, monkeypatch
):
    """States after each step, as a long epoch writes them every ten minutes."""
    out, deaths = tmp_path / "run", 0
    monkeypatch.setattr(checkpoint, "STATE_EVERY", -1.0)
    while True:
        with monkeypatch.context() as m:
            calls = at_call(m, checkpoint, "save_state", 2, die)
            try:
                assert train.main([*command, "--out", str(out)]) == 0
                break
            except Killed:
                assert calls == [2]
                deaths += 1
    assert deaths >= STEPS // 2
    assert everything(out, test_csv) == wanted


def test_a_signal_at_every_step(command, tmp_path, test_csv, wanted, monkeypatch, capsys):
    """One run stopped after each of its steps in turn."""
    out = tmp_path / "run"
    for step in range(STEPS):
        with monkeypatch.context() as m:
            begun, ended = at_step(m, 0, die), at_step_end(m, 1)
            assert train.main([*command, "--out", str(out)]) == 143
        assert begun == ended == [1]  # no step is lost, none is made after the signal
        state = load_state(out / f"fold_{step // 8}" / "state.pt")
        at = state["progress"]
        assert (at["epoch"] * 4 + at["step"]) % 8 == (step + 1) % 8 or step % 8 == 7
        one_line(capsys, "SIGTERM", "the same command goes on from here")
    with monkeypatch.context() as m:
        begun = at_step(m, 0, die)
        assert_survived(command, out, test_csv, wanted)
    assert begun == [0]


def stopped(command: list[str], out: Path, monkeypatch, step: int = 6) -> Path:
    """A run stopped by a signal after `step` steps; the path of its state."""
    with monkeypatch.context() as m:
        at_step_end(m, step)
        assert train.main([*command, "--out", str(out)]) == 143
    state = out / "fold_0" / "state.pt"
    assert state.exists()
    return state


def forget_moments(state):
    for moments in state["optimizer"]["state"].values():
        moments["exp_avg"].zero_()


def forget_step(state):
    state["progress"]["step"] = 0


def forget_taken(state):
    state["scheduler"]["last_epoch"] = 0


def forget_weights(state):
    for name in state["model"]:
        if "layer.0" in name:
            state["model"][name] = torch.zeros_like(state["model"][name])


@pytest.mark.parametrize(
    "forget", [forget_moments, forget_step, forget_taken, forget_weights, lambda state: None]
)
def test_a_state_without_a_part_is_noticed(
    forget, command, tmp_path, test_csv, wanted, monkeypatch
):
    path = stopped(command, tmp_path / "run", monkeypatch)
    state = load_state(path)
    forget(state)
    save_state(path, state)
    assert train.main([*command, "--out", str(tmp_path / "run")]) == 0
    same = everything(tmp_path / "run", test_csv) == wanted
    assert same == (forget.__name__ == "<lambda>")


def test_finished_folds_are_left_as_they_are(command, copy, capsys, test_csv, wanted, monkeypatch):
    before = {p: p.stat().st_mtime_ns for p in copy.rglob("fold_*/*") if p.name != "lock"}
    shutil.rmtree(copy / "fold_1")
    capsys.readouterr()
    begun = at_step(monkeypatch, 0, die)
    assert_survived(command, copy, test_csv, wanted)
    assert begun == [STEPS // 2]
    assert "fold 0: finished before, left as it is" in capsys.readouterr().out
    assert all(p.stat().st_mtime_ns == t for p, t in before.items() if "fold_0" in str(p))


def test_one_fold_alone_and_the_rest_later(command, tmp_path, test_csv, wanted, capsys):
    out = tmp_path / "run"
    assert train.main([*command, "--out", str(out), "--fold", "1"]) == 0
    assert not (out / "fold_0").exists() and "unfinished: fold 0" in capsys.readouterr().out
    assert (
        predict.main(
            ["--run", str(out), "--input", str(test_csv), "--output", str(tmp_path / "s.csv")]
        )
        == 2
    )
    one_line(capsys, "fold 0", "run the same train.py command again")
    assert_survived(command, out, test_csv, wanted)


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
    """Runs of train.main in processes of their own, forked from one that has imported everything."""

    def __init__(self):
        self.driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(HERE.parent)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # fmt: skip
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
    assert f"stopped: by {name} - the same command goes on" in text and "Traceback" not in text
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


def test_a_locked_fold_is_not_taken(command, tmp_path, capsys, test_csv, wanted):
    out = tmp_path / "run"
    assert train.main([*command, "--out", str(out), "--fold", "1"]) == 0
    (out / "fold_0").mkdir()
    with locked(out / "fold_0" / "lock") as free:
        assert free
        assert train.main([*command, "--out", str(out)]) == 0
        assert "unfinished: fold 0 - totals come with the last" in capsys.readouterr().out
        assert train.main([*command, "--out", str(out), "--restart"]) == 2
        one_line(capsys, "another process")
        assert [p.name for p in (out / "fold_0").iterdir()] == ["lock"]
    assert_survived(command, out, test_csv, wanted)


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
        (Run, "unfinished"),
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


# Damaged and missing files


@pytest.mark.parametrize("size", [0, 1, 8, "half", "n-1"])
def test_a_truncated_state(size, command, tmp_path, test_csv, wanted, monkeypatch, capsys):
    path = stopped(command, tmp_path / "run", monkeypatch)
    n = path.stat().st_size
    os.truncate(path, {"half": n // 2, "n-1": n - 1}.get(size, size))
    capsys.readouterr()
    assert_survived(command, tmp_path / "run", test_csv, wanted)
    assert "state.pt: truncated or damaged - this fold begins anew" in capsys.readouterr().out


def flip(path: Path, at: int, mask: int = 1) -> None:
    raw = bytearray(path.read_bytes())
    raw[at % len(raw)] ^= mask
    path.write_bytes(raw)


def test_a_flipped_byte_in_a_state(command, tmp_path, test_csv, wanted, monkeypatch):
    path = stopped(command, tmp_path / "run", monkeypatch)
    whole = path.read_bytes()
    assert load_state(path)
    for at in np.random.default_rng(0).integers(0, len(whole), 40):
        flip(path, int(at))
        assert load_state(path) is None
        path.write_bytes(whole)
    flip(path, 5000)
    assert_survived(command, tmp_path / "run", test_csv, wanted)


def test_flipped_bytes_in_the_files_of_a_run(command, copy, test_csv, wanted, capsys, monkeypatch):
    key = Run(copy).key
    rng = np.random.default_rng(0)
    for path in sorted(
        p for p in copy.rglob("*") if p.is_file() and p.name not in ("lock", "env.json")
    ):
        whole = path.read_bytes()
        for at in [0, len(whole) - 1, *rng.integers(0, len(whole), 4)]:
            flip(path, int(at), 1 << int(rng.integers(8)))
            assert str(path) in damage(path.parent, key), (path, at)
        argv = [
            "--run",
            str(copy),
            "--input",
            str(test_csv),
            "--output",
            str(copy.parent / "no.csv"),
        ]
        assert predict.main(argv) == 2
        one_line(capsys, str(path), "run the same train.py command again")
        assert not (copy.parent / "no.csv").exists()
        path.write_bytes(whole)
    flip(copy / "fold_1" / "head.safetensors", 200)
    flip(copy / "th.npy", 130)
    flip(copy / "config.json", 130)
    flip(copy / "texts.npy", 130)
    begun = at_step(monkeypatch, 0, die)
    assert_survived(command, copy, test_csv, wanted)
    assert begun == [STEPS // 2]  # just that fold


def test_a_flipped_byte_in_env_json_is_refused_by_both(command, copy, test_csv, capsys):
    text = (copy / "env.json").read_text()
    for old in ('"settings.lr": 0.005', text[text.index('"sha256": "') :][:15], '"same"'):
        assert old in text
        (copy / "env.json").write_text(
            text.replace(old, old[:-1] + ("7" if old[-1] != "7" else "8"))
        )
        assert (
            predict.main(
                [
                    "--run",
                    str(copy),
                    "--input",
                    str(test_csv),
                    "--output",
                    str(copy.parent / "no.csv"),
                ]
            )
            == 2
        )
        one_line(capsys, "env.json")
        assert train.main([*command, "--out", str(copy)]) == 2
        one_line(capsys, "env.json", "--restart")


def test_each_missing_file_is_named(command, copy, test_csv, wanted, capsys):
    argv = ["--run", str(copy), "--input", str(test_csv), "--output", str(copy.parent / "no.csv")]
    names = [
        p.relative_to(copy) for p in sorted(copy.rglob("*")) if p.is_file() and p.name != "lock"
    ]
    assert len(names) > 15
    for name in names:
        (copy / name).rename(copy.parent / "aside")
        assert predict.main(argv) == 2, name
        line = one_line(capsys)
        assert (
            name.name in line
            or name.name == "DONE.json"
            and name.parent.name.replace("_", " ") in line
        ), line
        assert str(copy) in line
        (copy.parent / "aside").rename(copy / name)
    for name in (
        "fold_0/tokenizer.json",
        "th.json",
        "fold_1/DONE.json",
        "DONE.json",
        "texts.npy",
        "config.json",
    ):
        (copy / name).unlink()
    assert_survived(command, copy, test_csv, wanted)


def test_a_file_of_the_kept_epoch_lost_before_the_fold_ends(
    command, tmp_path, test_csv, wanted, monkeypatch, capsys
):
    """Its checksum is taken when it is written, so that DONE.json can't vouch for what was damaged since."""
    path = stopped(command, tmp_path / "run", monkeypatch, step=7)
    weights = path.with_name("model.safetensors")
    assert weights.exists()
    assert load_state(path)["progress"]["kept"]["epoch"] == 0
    flip(weights, 3000)
    with monkeypatch.context() as m:
        m.setattr(train, "better", lambda row, old: old is None)  # no later epoch writes it anew
        assert train.main([*command, "--out", str(tmp_path / "run"), "--fold", "0"]) == 0
    capsys.readouterr()
    assert_survived(command, tmp_path / "run", test_csv, wanted)
    assert (
        "model.safetensors: missing or damaged - fold 0 is trained again" in capsys.readouterr().out
    )


def test_a_damaged_fold_is_not_put_into_the_totals(command, copy, test_csv, wanted, capsys):
    flip(copy / "fold_1" / "oof.npy", 300)
    assert train.main([*command, "--out", str(copy), "--fold", "0"]) == 1
    one_line(capsys, "fold_1/oof.npy: missing or damaged")
    assert_survived(command, copy, test_csv, wanted)


# Writing that fails


def no_space(*_):
    raise OSError(28, "No space left on device")


def fail_write(monkeypatch, folder: Path, name: str, number: int) -> list[int]:
    """Let the call of that number raise ENOSPC: os.replace, os.fsync, or an open for writing below `folder`."""
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
    argv = ["--run", str(clean), "--input", str(test_csv), "--output", str(tmp_path / "s.csv"), "--probabilities", str(tmp_path / "p.csv")]  # fmt: skip
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


def test_a_flipped_byte_in_the_growing_output(clean, tmp_path, test_csv, monkeypatch, capsys):
    out = tmp_path / "s.csv"
    argv = ["--run", str(clean), "--input", str(test_csv), "--output", str(out)]
    monkeypatch.setattr(predict, "CHUNK", 11)
    assert predict.main(argv) == 0
    want = out.read_bytes()
    with monkeypatch.context() as m:
        at_call(m, output, "write_json", 3, die)
        with pytest.raises(Killed):
            predict.main(argv)
    flip(tmp_path / "s.csv.part" / "1.json", 200)
    capsys.readouterr()
    assert predict.main(argv) == 0 and out.read_bytes() == want
    assert "goes on after row 11 of 40" in capsys.readouterr().out


@pytest.mark.parametrize("ending", [".csv", ".csv.gz"])
def test_predict_goes_on_after_death_at_every_chunk(
    ending, clean, tmp_path, test_csv, monkeypatch, capsys
):
    out = tmp_path / f"s{ending}"
    argv = [
        "--run",
        str(clean),
        "--input",
        str(test_csv),
        "--output",
        str(out),
        "--probabilities",
        str(tmp_path / f"p{ending}"),
    ]
    monkeypatch.setattr(predict, "CHUNK", 11)  # 40 rows: 4 chunks
    assert predict.main(argv) == 0
    want = [out.read_bytes(), (tmp_path / f"p{ending}").read_bytes()]
    scores = capsys.readouterr().out.splitlines()[-1]
    for name in ("write_json", "commit"):
        for number in range(1, 5 if name == "write_json" else 3):
            out.unlink()
            with monkeypatch.context() as m:
                at_call(m, output, name, number, die)
                with pytest.raises(Killed):
                    predict.main(argv)
            part = out.with_name(out.name + ".part")
            assert (part / f"{number - 1}.json").exists()
            (part / ".tmp-x").mkdir()
            (part / ".tmp-x" / f"{number}.json").write_text("half a chu")
            if number == 2:
                flip(part / "0.json", 40)  # then it begins anew
            if number == 3:
                os.truncate(part / "0.json", 30)
            capsys.readouterr()
            assert predict.main(argv) == 0
            said = capsys.readouterr().out
            assert [out.read_bytes(), (tmp_path / f"p{ending}").read_bytes()] == want
            assert said.splitlines()[-1] == scores and "macro_f1" in scores
            assert ("goes on after row" in said) == (number not in (2, 3))
    assert sorted(os.listdir(tmp_path)) == [f"p{ending}", f"s{ending}"]


@pytest.mark.parametrize("taken", ["s.csv", "p.csv"])
def test_two_predictions_into_one_file(taken, clean, tmp_path, test_csv, capsys):
    argv = ["--run", str(clean), "--input", str(test_csv), "--output", str(tmp_path / "s.csv")]
    argv += ["--probabilities", str(tmp_path / "p.csv")]
    with locked(tmp_path / f"{taken}.part" / "lock") as free:
        assert free
        assert predict.main(argv) == 2
    one_line(capsys, f"{taken}: another predict.py is writing it")
    assert predict.main(argv) == 0


def test_a_prediction_killed_within_a_chunk_leaves_nothing(clean, tmp_path, test_csv, monkeypatch):
    """A process that is gone can't remove its temporary folder: the next one does, but no other's."""
    argv = ["--run", str(clean), "--input", str(test_csv), "--output", str(tmp_path / "s.csv")]
    for name in ("s.csv.part", "other.csv.part"):
        (tmp_path / name / ".tmp-abc").mkdir(parents=True)
        (tmp_path / name / "lock").touch()
        (tmp_path / name / ".tmp-abc" / "0.json").write_text("{")
    assert predict.main(argv) == 0
    assert sorted(os.listdir(tmp_path)) == ["other.csv.part", "s.csv"]
    assert sorted(os.listdir(tmp_path / "other.csv.part")) == [".tmp-abc", "lock"]
    made, real = [], files.tempfile.TemporaryDirectory

    def temporary(**k):
        if "dir" in k:  # else it is the system's own place, which the system sweeps
            made.append(k["dir"])
        return real(**k)

    monkeypatch.setattr(files.tempfile, "TemporaryDirectory", temporary)
    assert predict.main(argv) == 0
    assert set(made) == {tmp_path / "s.csv.part"}  # nowhere else


def test_a_run_trained_anew_is_predicted_anew(
    command, copy, tmp_path, test_csv, monkeypatch, capsys
):
    """Chunks written by the weights of before must not stay; settings and data are the same."""
    argv = ["--run", str(copy), "--input", str(test_csv), "--output", str(tmp_path / "s.csv")]
    monkeypatch.setattr(predict, "CHUNK", 11)
    with monkeypatch.context() as m:
        at_call(m, GrowingCSV, "append", 3, die)
        with pytest.raises(Killed):
            predict.main(argv)
    done = json.loads((copy / "DONE.json").read_text())
    done.pop("sha256")
    write_json(copy / "DONE.json", {**done, "again": 1}, seal=True)
    capsys.readouterr()
    assert predict.main(argv) == 0 and "goes on" not in capsys.readouterr().out


def test_a_run_that_is_replaced_while_it_predicts(clean, tmp_path, test_csv, monkeypatch, capsys):
    """Half of the rows would be of the old models."""
    copy = Path(shutil.copytree(clean, tmp_path / "run"))
    real = GrowingCSV.append

    def append(self, *args):
        done = json.loads((copy / "DONE.json").read_text())
        done.pop("sha256")
        write_json(copy / "DONE.json", {**done, "again": 1}, seal=True)
        return real(self, *args)

    with monkeypatch.context() as m:
        m.setattr(GrowingCSV, "append", append)
        out = str(tmp_path / "s.csv")
        assert predict.main(["--run", str(copy), "--input", str(test_csv), "--output", out]) == 1
    one_line(capsys, "DONE.json: changed while it was read")
    assert not (tmp_path / "s.csv").exists()


def test_totals_of_another_fold_are_no_totals(command, clean, tmp_path, monkeypatch, capsys):
    """A damaged fold is trained again, and the process dies before the totals: the old ones are not used."""
    run = Path(shutil.copytree(clean, tmp_path / "run"))
    (run / "fold_1" / "oof.npy").write_bytes(b"x")
    with monkeypatch.context() as m:
        at_call(m, train, "summarise", 1, die, after=False)
        with pytest.raises(Killed):
            train.main([*command, "--out", str(run)])
    assert (run / "fold_1" / "DONE.json").exists()
    assert predict.main(["--run", str(run)]) == 2
    one_line(capsys, "DONE.json is missing")


@pytest.mark.parametrize("when", ["train", "predict"])
def test_a_file_saved_while_it_is_read(
    when, command, clean, tmp_path, test_csv, data, monkeypatch, capsys
):
    """Half of what was read would be of the old file, and checksums of the new one."""
    if when == "train":
        path, program = shutil.copy(data, tmp_path / "x.csv"), train
        module, name = data_module, "read_chunks"
        argv = [*command, "--train", str(path), "--out", str(tmp_path / "run")]
    else:
        path, program = shutil.copy(test_csv, tmp_path / "x.csv"), predict
        module, name = predict, "survey"
        argv = ["--run", str(clean), "--input", str(path), "--output", str(tmp_path / "s.csv")]
    real = getattr(module, name)

    def saved(*args):
        found = real(*args)
        found = list(found) if when == "train" else found  # a generator: else nothing was read yet
        with open(path, "a") as f:
            f.write("late,a dog,0,1,0,0,1\n")
        return found

    with monkeypatch.context() as m:
        m.setattr(module, name, saved)
        assert program.main(argv) == (2 if when == "train" else 1)
    one_line(capsys, "x.csv: changed while it was read")
    assert not (tmp_path / "run").exists() and not (tmp_path / "s.csv").exists()
    assert program.main(argv) == 0
    if when == "predict":
        assert (tmp_path / "s.csv").read_text().splitlines()[-1].startswith("late,")


def test_another_path_to_the_same_data_leaves_a_finished_run_whole(
    command, copy, data, tmp_path, monkeypatch
):
    """Stopped before the totals are written again."""
    same = shutil.copy(data, tmp_path / "same.csv")
    with monkeypatch.context() as m:
        at_call(m, train, "summarise", 1, die, after=False)
        with pytest.raises(Killed):
            train.main([*command, "--train", str(same), "--out", str(copy)])
    assert predict.main(["--run", str(copy), "--text", "x"]) == 0


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
        err.splitlines()[-1]
        == "stopped: nobody reads the output - the same command goes on from here"
    )
    with open("/dev/full", "w") as full:
        p = subprocess.run(
            [*argv, "--output", str(tmp_path / "t.csv")], stdout=full, stderr=-1, text=True
        )
    assert p.returncode == 2 and "error: output: No space left on device" in p.stderr


def test_a_file_that_may_not_be_read(clean, capsys, monkeypatch):
    def refused(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(files, "file_sha256", refused)
    assert predict.main(["--run", str(clean), "--text", "x"]) == 2
    one_line(capsys, "Permission denied", str(clean))


def test_interrupted_while_it_imports(tmp_path):
    code = "import os, signal, sys; sys.argv = ['train.py']; from config import Config; from support.cli import check_flags; check_flags(Config); os.kill(os.getpid(), signal.SIGINT)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=HERE.parent, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (130, "")


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


# Memory and numbers


def test_out_of_memory(command, tmp_path, monkeypatch, capsys, test_csv, wanted):
    def no_memory():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    for step in (1, 6):
        with monkeypatch.context() as m:
            at_call(m, train, "compute_loss", step, no_memory, after=False)
            assert train.main([*command, "--out", str(tmp_path / "run")]) == 1
        one_line(capsys, "--batch-size", "--accumulate")
    assert (tmp_path / "run" / "fold_0" / "state.pt").exists()
    assert_survived(command, tmp_path / "run", test_csv, wanted)
    with (
        monkeypatch.context() as m,
        pytest.raises(RuntimeError, match="size mismatch"),
    ):  # others are not disguised
        at_call(
            m,
            train,
            "compute_loss",
            1,
            lambda: (_ for _ in ()).throw(RuntimeError("size mismatch")),
            after=False,
        )
        train.main([*command, "--out", str(tmp_path / "other")])


@pytest.mark.parametrize(
    "words",
    (
        "CUDA out of memory. Tried to allocate 2.00 GiB",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "Invalid buffer size: 9.75 GB",  # MPS
    ),
)
def test_out_of_memory_in_prediction(words, clean, tmp_path, test_csv, monkeypatch, capsys):
    def no_memory(*_, **__):
        raise RuntimeError(words)

    argv = ["--run", str(clean), "--input", str(test_csv), "--output", str(tmp_path / "s.csv")]
    with monkeypatch.context() as m:
        m.setattr(predict, "run_over_rows", no_memory)
        assert predict.main(argv) == 1
        one_line(capsys, "out of memory", "the same command goes on")
        with pytest.raises(RuntimeError):
            predict.main([*argv, "--debug"])
    assert not (tmp_path / "s.csv").exists()
    assert predict.main(argv) == 0


def spoil(loss: torch.Tensor) -> torch.Tensor:
    return loss * torch.nan


@pytest.mark.parametrize("step, stop", [(1, None), (6, None), (6, 7), (12, None)])
def test_a_loss_that_is_not_a_number(
    step, stop, command, data, tmp_path, monkeypatch, capsys, test_csv, wanted
):
    """With `stop`, a signal arrives between the step and the end of its epoch."""
    out = tmp_path / "run"
    with monkeypatch.context() as m:
        real, calls = train.compute_loss, [0]

        def spoiled(*args):
            calls[0] += 1
            logits, loss = real(*args)
            return logits, spoil(loss) if calls[0] == step else loss

        m.setattr(train, "compute_loss", spoiled)
        at_step_end(m, stop)
        assert train.main([*command, "--out", str(out)]) == 1
    assert calls[0] == (
        stop or -(-step // 4) * 4
    )  # it is noticed at the epoch's end, or when a signal came
    line = one_line(
        capsys,
        f"fold {(step - 1) // 8}, epoch {(step - 1) % 8 // 4 + 1}, step {(step - 1) % 4 + 1}: loss",
        "--lr",
    )
    ids = re.search("rows ([0-9, ]+) is not finite -", line)[1].split(", ")
    assert len(ids) == 8 and set(ids) <= {r[0] for r in make_rows(64)}
    for path in out.rglob("state.pt"):
        assert all(t.isfinite().all() for t in load_state(path)["model"].values())
    assert_survived(command, out, test_csv, wanted)


def test_logits_that_are_not_numbers(command, tmp_path, monkeypatch, capsys, test_csv, wanted):
    """Finite losses, but weights that are not: nothing of that epoch is kept."""
    out = tmp_path / "run"
    with monkeypatch.context() as m:
        real = train.run_over_rows

        def spoiled(*args):
            logits, losses = real(*args)
            return logits * np.nan, losses

        m.setattr(train, "run_over_rows", spoiled)
        assert train.main([*command, "--out", str(out)]) == 1
    one_line(capsys, "fold 0, epoch 1: outputs on held-out rows are not finite")
    assert not list(out.rglob("*.safetensors")) and not list(out.rglob("state.pt"))
    assert_survived(command, out, test_csv, wanted)


# Another command, other data


@pytest.mark.parametrize(
    "extra, named",
    [
        (["--lr", "1e-3"], "settings.lr: 0.005 -> 0.001"),
        (["--epochs", "3"], "settings.epochs: 2 -> 3"),
        (["--folds", "3"], "settings.folds: 2 -> 3"),
        (["--labels", *LABELS[:4]], "settings.labels"),
        (["--pooling", "cls"], "settings.pooling: mean -> cls"),
        (
            ["--seed", "7", "--dropout", "0.2"],
            "settings.dropout: 0.3 -> 0.2; settings.seed: 42 -> 7",
        ),
    ],
)
def test_another_command_is_refused(extra, named, command, copy, capsys, clean):
    assert train.main([*command, *extra, "--out", str(copy)]) == 2
    one_line(capsys, "holds another run", named, "--restart")
    assert outputs(copy) == outputs(clean) and Run(copy).key == Run(clean).key


def test_other_data_code_versions_or_weights_are_refused(
    command, copy, capsys, data, tmp_path, monkeypatch, bert
):
    rows = make_rows(64)
    rows[3][1] += " dog"
    changed = write_csv(tmp_path / "changed.csv", rows)
    assert train.main([*command, "--train", str(changed), "--out", str(copy)]) == 2
    one_line(capsys, "data_sha256")
    with monkeypatch.context() as m:
        real = run_module.code_sha256
        m.setattr(run_module, "code_sha256", lambda: {**real(), "train.py": "0" * 64})
        assert train.main([*command, "--out", str(copy)]) == 2
    one_line(capsys, "(code.train.py: ")
    with monkeypatch.context() as m:
        m.setattr(run_module.platform, "python_version", lambda: "3.0")
        assert train.main([*command, "--out", str(copy)]) == 2
    one_line(capsys, "versions.python")
    torch.set_num_threads(2)
    assert train.main([*command, "--out", str(copy)]) == 2
    torch.set_num_threads(1)
    one_line(capsys, "threads: 1 -> 2")
    other = Path(shutil.copytree(bert, tmp_path / bert.name))
    from safetensors.torch import load_file, save_file

    weights = load_file(other / "model.safetensors")
    next(iter(weights.values()))[0] += 1
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    assert train.main([*command, "--model", str(other), "--out", str(copy)]) == 2
    one_line(capsys, "encoder_sha256")
    assert (
        train.main(
            [*command, "--train", str(shutil.copy(data, tmp_path / "same.csv")), "--out", str(copy)]
        )
        == 0
    )


def test_restart_renames_away(command, copy, capsys, clean):
    assert train.main([*command, "--epochs", "1", "--out", str(copy), "--restart"]) == 0
    old = copy.with_name("copy.old1")
    assert f"the old run is now {old}" in capsys.readouterr().out
    assert outputs(old) == outputs(clean) != outputs(copy)
    (copy / "env.json").write_text("{")
    assert train.main([*command, "--epochs", "1", "--out", str(copy), "--restart"]) == 0
    assert copy.with_name("copy.old2").is_dir()


def test_two_commands_that_begin_at_once_do_not_share_a_folder(
    command, tmp_path, capsys, monkeypatch
):
    """The other command's env.json appears while we wait for the lock."""
    real = run_module.locked

    def slow(path, wait=False):
        if wait and not (tmp_path / "run" / "env.json").exists():
            write_json(
                tmp_path / "run" / "env.json",
                {"same": {"settings.lr": 1, "settings.folds": 2}},
                seal=True,
            )
        return real(path, wait)

    monkeypatch.setattr(run_module, "locked", slow)
    assert train.main([*command, "--out", str(tmp_path / "run")]) == 2
    one_line(capsys, "holds another run", "settings.lr: 1 -> 0.005")
    assert sorted(os.listdir(tmp_path / "run")) == ["env.json", "lock"]  # theirs is left to them


# Parity and invariance


def test_folds_share_no_row_and_no_text(clean):
    oof = [line.split(",") for line in (clean / "oof.csv").read_text().splitlines()[1:]]
    texts = {r[0]: " ".join(r[1].casefold().split()) for r in make_rows(64)}
    assert sorted(r[0] for r in oof) == sorted(texts) and len(oof) == 64
    a, b = ({texts[r[0]] for r in oof if r[1] == k} for k in "01")
    assert a and b and not a & b


def test_predicting_the_held_out_rows_gives_the_stored_probabilities(clean, bert):
    ensemble = predict.Ensemble(str(clean), "cpu", "fp32")
    oof = [line.split(",") for line in (clean / "oof.csv").read_text().splitlines()[1:]]
    texts = {r[0]: r[1] for r in make_rows(64)}
    for k in range(2):
        held = [r for r in oof if r[1] == str(k)]
        dataset = predict.encode(ensemble.tokenizer, [texts[r[0]] for r in held], 128)
        collate = data_module.DataCollator(ensemble.tokenizer.pad_token_id)
        stored = np.array([r[2:] for r in held], dtype=np.float32)
        for model_of, close in ((k, True), (1 - k, False)):
            model = ensemble.model(model_of)
            logits, _ = model_module.run_over_rows(model, dataset, collate, ensemble.config)
            p = model_module.sigmoid(logits)
            assert (np.abs(p - stored).max() <= 1e-5) == close


def test_predictions_do_not_depend_on_batch_or_order(clean, monkeypatch):
    ensemble = predict.Ensemble(str(clean), "cpu", "fp32")
    model, collate = ensemble.model(0), data_module.DataCollator(ensemble.tokenizer.pad_token_id)
    real, batches = model_module.token_batches, []
    texts = [r[1] for r in make_rows(64, seed=3)]

    def logits(texts: list[str], batch_tokens: int) -> np.ndarray:
        batch = lambda lengths, _: batches.append(real(lengths, batch_tokens)) or batches[-1]  # noqa: E731
        monkeypatch.setattr(model_module, "token_batches", batch)
        dataset = predict.encode(ensemble.tokenizer, texts, 128)
        return model_module.run_over_rows(model, dataset, collate, ensemble.config)[0]

    want = logits(texts, 4096)
    assert np.ptp(want, axis=0).min() > 0.01  # rows do differ
    for batch_tokens in (1, 7 * 16, 64 * 16):
        assert np.abs(logits(texts, batch_tokens) - want).max() <= 1e-5
    assert len(batches[1]) == 64 and len({len(b) for b in batches}) >= 3  # the batches did differ
    order = np.random.default_rng(0).permutation(len(texts))
    assert np.abs(logits([texts[i] for i in order], 200) - want[order]).max() <= 1e-5
    one = np.concatenate([logits([t], 4096) for t in texts[:8]])
    assert np.abs(one - want[:8]).max() <= 1e-5


# Files that mean harm


class Harm:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


def test_pickles_are_not_executed(clean, command, tmp_path, test_csv, wanted, capsys, monkeypatch):
    made = tmp_path / "executed"
    argv = ["--run", str(clean), "--input", str(test_csv), "--output", str(tmp_path / "s.csv")]
    evil = tmp_path / "th.npy"
    pickle.loads(pickle.dumps(Harm(made)))
    assert made.exists()  # the payload works
    made.unlink()
    np.save(evil, np.array([Harm(made)], dtype=object), allow_pickle=True)
    assert predict.main([*argv, "--thresholds", str(evil)]) == 2
    one_line(capsys, "th.npy: not an array of thresholds")
    evil.write_bytes(pickle.dumps(Harm(made)))
    assert predict.main([*argv, "--thresholds", str(evil)]) == 2
    one_line(capsys, "th.npy: not an array of thresholds")
    state = stopped(command, tmp_path / "run", monkeypatch)
    save_state(state, {"model": Harm(made)})  # with the right sha256
    assert_survived(command, tmp_path / "run", test_csv, wanted)
    assert "state.pt: truncated or damaged - this fold begins anew" in capsys.readouterr().out
    assert not made.exists()


def test_model_folders_that_mean_harm(bert, command, tmp_path, capsys):
    made = tmp_path / "executed"

    def folder(name: str) -> Path:
        return Path(shutil.copytree(bert, tmp_path / name))

    remote = folder("remote")
    config = json.loads((remote / "config.json").read_text())
    config |= {
        "model_type": "evil",
        "auto_map": {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"},
    }
    (remote / "config.json").write_text(json.dumps(config))
    (remote / "evil.py").write_text(f"open({str(made)!r}, 'w')\nclass Evil: pass\n")
    header = folder("header")
    with open(header / "model.safetensors", "r+b") as f:
        f.write(struct.pack("<Q", 200_000_000))
        f.truncate(200_000_100)  # sparse
    bomb = folder("bomb")
    (bomb / "model.safetensors").unlink()
    (bomb / "pytorch_model.bin").write_bytes(pickle.dumps(Harm(made)))
    for name in (remote, header, bomb):
        assert train.main([*command, "--model", str(name), "--out", str(tmp_path / "run")]) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1 and str(name) in err
        assert "Re-running" not in err  # torch's advice to unpickle
    assert not made.exists() and not (tmp_path / "run").exists()


def test_hashes_of_seen_texts_that_are_damaged(clean, command, copy, tmp_path, capsys):
    """texts.npy beside an encoder that comes from a run."""
    made = tmp_path / "executed"
    np.save(copy / "texts.npy", np.array([Harm(made)], dtype=object), allow_pickle=True)
    argv = [
        *command,
        "--model",
        str(copy / "fold_0"),
        "--epochs",
        "1",
        "--out",
        str(tmp_path / "run"),
    ]
    assert train.main(argv) == 2
    one_line(capsys, "texts.npy")
    shutil.copy(clean / "texts.npy", copy / "texts.npy")
    assert train.main(argv) == 0
    assert "64 of 64 texts are among those this encoder was trained on" in capsys.readouterr().err
    assert not made.exists()


# No network


def test_offline(command, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    began = time.monotonic()
    assert (
        train.main([*command, "--model", "nobody/nothing-here", "--out", str(tmp_path / "run")])
        == 2
    )
    one_line(capsys, "nobody/nothing-here", "HF_HUB_OFFLINE", "local folder")
    assert time.monotonic() - began < 5 and not (tmp_path / "run").exists()


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
