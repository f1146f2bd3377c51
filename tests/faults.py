"""What the tests of faults share: how a fault is made, and what it means to survive one.

To survive means: the same command again ends with the same bytes as a run that nothing disturbed.
Each fault comes with its control: the run had written something before it, and a state that lacks
a part gives other bytes. SIGKILL leaves the page cache alone, so nothing here says anything about
a power cut. The run that nothing disturbed is the fixture `clean` of conftest.py.
"""

import os
import signal
from pathlib import Path

from conftest import outputs

import predict
import train
from support.checkpoint import Checkpoint

HERE = Path(__file__).resolve().parent
STEPS = 16  # of a whole run of `command`: 2 folds, 2 epochs, 4 steps


class Killed(BaseException):
    """Stands for a process that is gone: no code of ours catches it."""


def everything(folder: Path, texts: Path) -> dict[str, bytes]:
    """The outputs of a run and the submission that it makes of `texts`."""
    submission = folder.parent / f"{folder.name}.csv"
    assert (
        predict.main(["--run", str(folder), "--input", str(texts), "--output", str(submission)])
        == 0
    )
    return {**outputs(folder), "submission": submission.read_bytes()}


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
    """Replace owner.name by itself plus `act()` at the call of that number (from 1); a list that
    counts the calls."""
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
    """`act()` before the training step of that number (from 1; 0: never); a list that counts the
    steps begun."""
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
    """A signal in the training step of that number: when it is computed, and not yet noted. Counts
    the steps."""
    act = lambda: os.kill(os.getpid(), signum)  # noqa: E731
    return at_call(monkeypatch, Checkpoint, "after_step", number, act, after=False)


def die():
    raise Killed


def stopped(command: list[str], out: Path, monkeypatch, step: int = 6) -> Path:
    """A run stopped by a signal after `step` steps; the path of its state."""
    with monkeypatch.context() as m:
        at_step_end(m, step)
        assert train.main([*command, "--out", str(out)]) == 143
    state = out / "fold_0" / "state.pt"
    assert state.exists()
    return state


def flip(path: Path, at: int, mask: int = 1) -> None:
    raw = bytearray(path.read_bytes())
    raw[at % len(raw)] ^= mask
    path.write_bytes(raw)
