"""Kills, signals, flipped bytes and failing writes by the hundred: benchmarks/faults.py [--quick]

A fault is survived when the same command, run again, ends with the same bytes as an undisturbed run
(weights, oof.csv, th.npy, submission.csv). Prints a Markdown table; exit code 1 if anything did not
survive. SIGKILL leaves the page cache alone: nothing here says anything about a power cut. Every
run is a child forked after the imports; the parent never uses torch or a tokenizer, whose threads a
fork would lose.
"""

import builtins
import contextlib
import functools
import hashlib
import itertools
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from measure import HERE, flag_parser

sys.path[:0] = [str(HERE), str(HERE / "tests")]

import torch
import torch._dynamo  # else the first step of each child imports it
from conftest import make_bert, make_rows, outputs, write_csv

import predict
import train
from support.checkpoint import load_state, save_state
from support.errors import UserError
from support.files import damage
from support.run import Run

os.environ["OMP_NUM_THREADS"] = "1"  # for the helpers; here torch has begun
torch.set_num_threads(1)
WORK = Path(tempfile.mkdtemp(prefix="faults-"))
COMMAND = ["--model", str(WORK / "bert"), "--train", str(WORK / "train.csv")]
COMMAND += ["--folds", "2", "--batch-size", "8", "--lr", "5e-3", "--precision", "fp32"]
RNG, BEGAN = random.Random(0), time.monotonic()


def start(work: Callable[[], int], log: Path) -> int:
    """The id of a process that runs `work` and exits with its result; its prints go to `log`."""
    pid = os.fork()
    if not pid:
        code = 99
        try:
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
            os.dup2(1, 2)
            code = work()
        finally:
            sys.stdout.flush()
            os._exit(code)
    return pid


def end(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class Undisturbed:
    """A run without a fault: how long it takes, and what one with a fault must end with."""

    def __init__(self, name: str, epochs: int):
        began, self.path, self.epochs = time.monotonic(), WORK / name, epochs
        self.outputs = self.finish(self.path)
        self.seconds = time.monotonic() - began
        assert self.outputs

    def train(self, out: Path, *more: str) -> int:
        return train.main([*COMMAND, "--epochs", str(self.epochs), "--out", str(out), *more])

    def finish(self, out: Path) -> dict[str, str] | None:
        """The same command again and a prediction: sha256 of everything, or None when it failed."""
        new, said = WORK / "test.csv", WORK / "submission.csv"
        argv = ["--run", str(out), "--input", str(new), "--output", str(said)]
        if end(start(lambda: self.train(out) or predict.main(argv), WORK / "log")):
            print((WORK / "log").read_text(), file=sys.stderr)
            return None
        files = {**outputs(out), "submission": said.read_bytes()}
        left = [p for p in out.rglob("*") if ".tmp" in p.name or p.name == "state.pt"]
        return None if left else {name: hashlib.sha256(x).hexdigest() for name, x in files.items()}

    def equals(self, out: Path) -> bool:
        """Whether the same command ends with the same; the folder is removed."""
        found = self.finish(out)
        shutil.rmtree(out, ignore_errors=True)
        return found == self.outputs


class Table:
    def __init__(self):
        self.rows: list[tuple[str, int, int]] = []

    def add(self, fault: str, survived: list[bool]) -> None:
        self.rows.append((fault, len(survived), sum(survived)))
        seconds = time.monotonic() - BEGAN
        said = f"{fault}: {sum(survived)} of {len(survived)} ({seconds:.0f} s)"
        print(said, file=sys.stderr, flush=True)

    def say(self) -> int:
        print("| fault | injected | survived |\n|---|---:|---:|")
        for fault, injected, survived in self.rows:
            print(f"| {fault} | {injected} | {survived} |")
        return int(any(injected != survived or not injected for _, injected, survived in self.rows))


def kills(table: Table, number: int, run: Undisturbed) -> None:
    """SIGKILL at times spread over a whole run."""
    survived, out = [], WORK / "kill"
    for i in range(number):
        pid = start(lambda: run.train(out), WORK / "log")
        time.sleep(run.seconds * (i + RNG.random()) / number)
        os.kill(pid, signal.SIGKILL)
        code = end(pid)
        survived.append(run.equals(out) and code in (-9, 0))
    table.add("SIGKILL at a random time of a run", survived)


def kills_while_saving(table: Table, number: int) -> None:
    """SIGKILL in a loop that does nothing but save, against the same loop that writes in place."""

    def save_in_place(path: Path, state: dict) -> None:
        with open(path, "wb") as f:
            torch.save(state, f)

    def loop(path: Path, save: Callable) -> int:
        state = {"weights": torch.zeros(2_000_000)}
        while True:
            save(path, state)

    whole, broken = [], 0
    for save in (save_state, save_in_place):
        for _ in range(number):
            path = WORK / "loop" / "state.pt"
            path.parent.mkdir()
            pid = start(lambda path=path, save=save: loop(path, save), WORK / "log")
            while not path.exists():
                time.sleep(0.002)
            time.sleep(RNG.random() * 0.2)
            os.kill(pid, signal.SIGKILL)
            end(pid)
            if save is save_state:
                whole.append(load_state(path) is not None)
            else:
                try:
                    torch.load(path, weights_only=True)
                except Exception:  # whatever a torn file makes torch raise
                    broken += 1
            shutil.rmtree(path.parent)
    control = f"control: writing in place tore {broken} of {number}"
    table.add(f"SIGKILL in a loop of saves ({control})", whole if broken else [])


def signals(table: Table, number: int, run: Undisturbed) -> None:
    """SIGTERM, SIGINT, SIGHUP at random times: 128 + number, one line, the same bytes after."""
    survived, out, log = [], WORK / "signal", WORK / "log"
    for i in range(number):
        signum = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)[i % 3]
        pid = start(lambda: run.train(out), log)
        time.sleep(0.1 + run.seconds * RNG.random() * 0.8)  # 0.1: before the handlers it just dies
        os.kill(pid, signum)
        code, text = end(pid), log.read_text()
        said = "the same command goes on from here" in text and "Traceback" not in text
        ok = code == 128 + signum and said or code == 0 and "done:" in text
        if not ok:
            print(code, text, file=sys.stderr)
        survived.append(run.equals(out) and ok)
    table.add("SIGTERM, SIGINT, SIGHUP at a random time (exit 143, 130, 129)", survived)


def jobs(table: Table, number: int, run: Undisturbed) -> None:
    """SIGKILL or SIGTERM of train.py, or of its helper, while both are at work on a fold."""
    out = WORK / "jobs"

    def work() -> int:
        real = train.train_fold

        def waits(k, *args):
            while k == 0 and not (out / "fold_1").exists():
                time.sleep(0.01)
            real(k, *args)

        train.train_fold = waits
        return run.train(out, "--jobs", "2")

    kinds = signal.SIGKILL, signal.SIGTERM
    for signum, whose in itertools.product(kinds, ("train.py", "helper")):
        survived = []
        for _ in range(number):
            pid = start(work, WORK / "log")
            while not (out / "fold_1").exists():
                time.sleep(0.01)
            [helper] = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            time.sleep(run.seconds / 2 * RNG.random())
            with contextlib.suppress(ProcessLookupError):  # it was done before
                os.kill(pid if whose == "train.py" else int(helper), signum)
            end(pid)
            waits = 100  # 10 seconds for a step: the machine may be busy
            while (left := os.path.exists(f"/proc/{helper}/exe")) and waits:
                time.sleep(0.1)
                waits -= 1
            survived.append(run.equals(out) and not left)
        table.add(f"{signum.name} of {whose}, with --jobs 2: no process is left", survived)


def noticed(run: Path) -> str | None:
    """What predict.py would say of the files of a run, without loading a model."""
    try:
        key = Run(run).key
    except UserError as e:
        return str(e)
    return next(filter(None, (damage(f, key) for f in (run, *sorted(run.glob("fold_*"))))), None)


def flips(table: Table, number: int, run: Undisturbed) -> None:
    """One flipped bit in a random byte of a random file: named; every eighth time also mended."""
    copy, found, whole = Path(shutil.copytree(run.path, WORK / "flip")), [], []
    assert noticed(copy) is None
    paths = sorted(p for p in copy.rglob("*") if p.is_file() and p.name != "lock")
    for i in range(number):
        path = paths[i % len(paths)]
        raw = path.read_bytes()
        changed = bytearray(raw)
        changed[RNG.randrange(len(raw))] ^= 1 << RNG.randrange(8)
        path.write_bytes(changed)
        found.append(path.name in (noticed(copy) or ""))
        # Without env.json nobody can say which run this is: refused.
        if i % 8 == 0 and path.name != "env.json":
            whole.append(run.equals(copy))
            shutil.copytree(run.path, copy)
        path.write_bytes(raw)
    table.add(f"a flipped bit in one of the {len(paths)} files of a run is named", found)
    table.add("... and mended by the same train.py command", whole)
    missing = []
    for path in paths:
        path.rename(WORK / "aside")
        said = noticed(copy)
        missing.append(said is not None and str(path) in said)
        (WORK / "aside").rename(path)
    table.add("a missing file of a run is named", missing)
    shutil.rmtree(copy)


def failing_writes(table: Table, name: str, stride: int, run: Undisturbed) -> None:
    """The k-th os.replace, os.fsync or open-for-writing says that the disk is full; k = 1, 2 ..."""
    owner = builtins if name == "open" else os
    out, log = WORK / "sweep", WORK / "log"

    def opens_to_write(path, mode="r", **_) -> bool:
        inside = isinstance(path, (str, Path)) and out in Path(path).parents
        return inside and bool(set(mode) & set("wax+"))

    def work(number: int) -> int:
        real, calls = getattr(owner, name), 0

        def failing(*args, **kwargs):
            nonlocal calls
            if name != "open" or opens_to_write(*args[:2], **kwargs):
                calls += 1
                if calls == number:
                    raise OSError(28, "No space left on device")
            return real(*args, **kwargs)

        setattr(owner, name, failing)
        code = run.train(out)
        return 98 if calls < number else code

    survived, number = [], 1
    while True:
        code = end(start(functools.partial(work, number), log))
        text = log.read_text()
        if code == 98:
            break
        ok = code in (1, 2) and text.count("error: ") == 1 and "Traceback" not in text
        if not ok:
            print(number, code, text, file=sys.stderr)
        survived.append(run.equals(out) and ok)
        number += stride
    shutil.rmtree(out)
    every = f" (every {stride}th)" if stride > 1 else ""
    table.add(f"the k-th {name} fails with 'No space left on device'{every}", survived)


def main(argv: list[str] | None = None) -> int:
    parser = flag_parser(__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the faults")
    quick = parser.parse_args(argv).quick
    table = Table()

    def make() -> int:
        make_bert(WORK / "bert")
        write_csv(WORK / "train.csv", make_rows(64))
        write_csv(WORK / "test.csv", make_rows(40, seed=1))
        return 0

    assert end(start(make, WORK / "log")) == 0, (WORK / "log").read_text()
    short, long = Undisturbed("short", 1), Undisturbed("long", 4)
    assert short.outputs != long.outputs and long.equals(WORK / "again")
    kills(table, 6 if quick else 50, long)
    kills_while_saving(table, 6 if quick else 24)
    signals(table, 3 if quick else 24, long)
    jobs(table, 2 if quick else 20, long)
    flips(table, 25 if quick else 200, short)
    for name in ("replace", "fsync", "open"):
        failing_writes(table, name, 10 if quick else 1, short)
    return table.say()


if __name__ == "__main__":
    try:
        sys.exit(main())
    finally:
        shutil.rmtree(WORK, ignore_errors=True)
