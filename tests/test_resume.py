"""Resuming: run the same command to resume after a death and ends with the same bytes.

Compared with a run that nothing disturbed. A state that lacks a part must give other bytes.
python -m pytest tests/test_resume.py
"""

import shutil
from pathlib import Path

import pytest
import torch
from conftest import outputs
from faults import (
    STEPS,
    Killed,
    assert_survived,
    at_call,
    at_step,
    at_step_end,
    die,
    everything,
    one_line,
    stopped,
)

import predict
import train
from support import checkpoint
from support import run as run_module
from support.checkpoint import Checkpoint, load_state, save_state

pytestmark = pytest.mark.usefixtures("one_thread")

# The same bytes


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


# Going on


@pytest.mark.parametrize(
    "owner, name, numbers",
    [
        (checkpoint, "save_state", (1, 2)),
        (Checkpoint, "keep", (1, 2, 3)),  # a fourth comes with some versions of torch alone
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
        one_line(capsys, "SIGTERM", "run the same command to resume")
    with monkeypatch.context() as m:
        begun = at_step(m, 0, die)
        assert_survived(command, out, test_csv, wanted)
    assert begun == [0]


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
    assert "fold 0: finished before, skipped" in capsys.readouterr().out
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


def test_totals_of_another_fold_are_no_totals(command, clean, tmp_path, monkeypatch, capsys):
    """A damaged fold is trained again, and the process dies before the totals: the old ones are not
    used."""
    run = Path(shutil.copytree(clean, tmp_path / "run"))
    (run / "fold_1" / "oof.npy").write_bytes(b"x")
    with monkeypatch.context() as m:
        at_call(m, train, "summarise", 1, die, after=False)
        with pytest.raises(Killed):
            train.main([*command, "--out", str(run)])
    assert (run / "fold_1" / "DONE.json").exists()
    assert predict.main(["--run", str(run)]) == 2
    one_line(capsys, "DONE.json is missing")


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
