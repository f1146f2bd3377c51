"""Kills, signals, flipped bytes and failing writes by the hundred: benchmarks/faults.py [--quick]

A fault is survived when the same command, run again, ends with the same bytes as an undisturbed run
(weights, oof.csv, th.npy, submission.csv). Prints a Markdown table; exit code 1 if anything did not
survive. SIGKILL leaves the page cache alone: nothing here says anything about a power cut. Every
run is a child forked after the imports; the parent never uses torch or a tokenizer, whose threads a
fork would lose.
"""

import argparse
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

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests")]

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
COMMAND += ["--batch-size", "8", "--lr", "5e-3", "--precision", "fp32"]
FOLDS = 2


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


def run_train(out: Path, epochs: int) -> int:
    return train.main([*COMMAND, "--folds", str(FOLDS), "--epochs", str(epochs), "--out", str(out)])


def finish(out: Path, epochs: int) -> dict[str, str] | None:
    """The same command again and a prediction: sha256 of everything, or None when it failed."""

    def work() -> int:
        argv = ["--run", str(out), "--input", str(WORK / "test.csv"), "--output", str(out) + ".csv"]
        return run_train(out, epochs) or predict.main(argv)

    if end(start(work, WORK / "log")):
        print((WORK / "log").read_text(), file=sys.stderr)
        return None
    files = {**outputs(out), "submission": Path(str(out) + ".csv").read_bytes()}
    left = [p for p in out.rglob("*") if ".tmp" in p.name or p.name == "state.pt"]
    return None if left else {name: hashlib.sha256(raw).hexdigest() for name, raw in files.items()}


class Table:
    def __init__(self):
        self.rows: list[tuple[str, int, int]] = []

    def add(self, fault: str, survived: list[bool]) -> None:
        self.rows.append((fault, len(survived), sum(survived)))
        print(
            f"{fault}: {sum(survived)} of {len(survived)} ({time.monotonic() - BEGAN:.0f} s)",
            file=sys.stderr,
            flush=True,
        )

    def say(self) -> int:
        print("| fault | injected | survived |\n|---|---:|---:|")
        for fault, injected, survived in self.rows:
            print(f"| {fault} | {injected} | {survived} |")
        return int(any(injected != survived or not injected for _, injected, survived in self.rows))


def last_saved(out: Path) -> float:
    """When the run last wrote something that going on starts from."""
    times = []
    for path in [out / "env.json", *out.glob("fold_*/state.pt"), *out.glob("fold_*/DONE.json")]:
        try:
            times.append(path.stat().st_mtime)
        except OSError:
            continue
    return max(times, default=0.0)


def kills(
    table: Table, number: int, wanted: dict, epochs: int, took: float, rng: random.Random
) -> None:
    """SIGKILL at times spread over a whole run."""
    survived, lost, inside, before_any = [], [0.0], 0, 0
    for i in range(number):
        out = WORK / "kill"
        pid = start(lambda out=out: run_train(out, epochs), WORK / "log")
        time.sleep(took * (i + rng.random()) / number)
        os.kill(pid, signal.SIGKILL)
        killed, code = time.time(), end(pid)
        inside += any(".tmp" in p.name for p in out.rglob("*"))
        if code == -9 and last_saved(out):
            lost.append(killed - last_saved(out))
        before_any += not last_saved(out)
        survived.append(code in (-9, 0) and finish(out, epochs) == wanted)
        shutil.rmtree(out)
    where = f"{inside} inside a save, {before_any} before env.json"
    what = f"{where}; at most {max(lost):.2f} s of {took:.1f} s lost"
    table.add(f"SIGKILL at a random time of a run ({what})", survived)


def kills_while_saving(table: Table, number: int, rng: random.Random) -> None:
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
            time.sleep(rng.random() * 0.2)
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
    table.add(
        f"SIGKILL in a loop of saves (control: writing in place tore {broken} of {number})",
        whole if broken else [],
    )


def signals(
    table: Table, number: int, wanted: dict, epochs: int, took: float, rng: random.Random
) -> None:
    """SIGTERM, SIGINT, SIGHUP at random times: 128 + number, one line, the same bytes after."""
    survived = []
    for i in range(number):
        signum = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)[i % 3]
        out, log = WORK / "signal", WORK / "log"
        pid = start(lambda out=out: run_train(out, epochs), log)
        time.sleep(0.1 + took * rng.random() * 0.8)  # 0.1: before the handlers stand it just dies
        os.kill(pid, signum)
        code, text = end(pid), log.read_text()
        said = "the same command goes on from here" in text and "Traceback" not in text
        ok = code == 128 + signum and said or code == 0 and "done:" in text
        if not ok:
            print(code, text, file=sys.stderr)
        survived.append(ok and finish(out, epochs) == wanted)
        shutil.rmtree(out, ignore_errors=True)
    table.add("SIGTERM, SIGINT, SIGHUP at a random time (exit 143, 130, 129)", survived)


def jobs(table: Table, number: int, wanted: dict, epochs: int, took: float, rng) -> None:
    """SIGKILL or SIGTERM of train.py, or of its helper, while both are at work on a fold."""
    out = WORK / "jobs"

    def work() -> int:
        real = train.train_fold

        def waits(k, *args):
            while k == 0 and not (out / "fold_1").exists():
                time.sleep(0.01)
            real(k, *args)

        train.train_fold = waits
        argv = ["--folds", str(FOLDS), "--epochs", str(epochs), "--out", str(out), "--jobs", "2"]
        return train.main([*COMMAND, *argv])

    for signum, whose in itertools.product(
        (signal.SIGKILL, signal.SIGTERM), ("train.py", "helper")
    ):
        survived = []
        for _ in range(number):
            pid = start(work, WORK / "log")
            while not (out / "fold_1").exists():
                time.sleep(0.01)
            [helper] = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            time.sleep(took / 2 * rng.random())
            with contextlib.suppress(ProcessLookupError):  # it was done before
                os.kill(pid if whose == "train.py" else int(helper), signum)
            end(pid)
            time.sleep(1)
            left = os.path.exists(f"/proc/{helper}/exe")
            survived.append(not left and finish(out, epochs) == wanted)
            shutil.rmtree(out)
        table.add(f"{signum.name} of {whose}, with --jobs 2: no process is left", survived)


def noticed(run: Path) -> str | None:
    """What predict.py would say of the files of a run, without loading a model."""
    try:
        key = Run(run).key
    except UserError as e:
        return str(e)
    return next(filter(None, (damage(f, key) for f in (run, *sorted(run.glob("fold_*"))))), None)


def flips(
    table: Table, number: int, wanted: dict, run: Path, epochs: int, rng: random.Random
) -> None:
    """One flipped bit in a random byte of a random file: named; every eighth time also mended."""
    copy, found, whole = Path(shutil.copytree(run, WORK / "flip")), [], []
    assert noticed(copy) is None
    paths = sorted(p for p in copy.rglob("*") if p.is_file() and p.name != "lock")
    for i in range(number):
        path = paths[i % len(paths)]
        raw = path.read_bytes()
        changed = bytearray(raw)
        changed[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        found.append(path.name in (noticed(copy) or ""))
        # Without env.json nobody can say which run this is: refused.
        if i % 8 == 0 and path.name != "env.json":
            whole.append(finish(copy, epochs) == wanted)
            shutil.rmtree(copy)
            shutil.copytree(run, copy)
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


def failing_writes(table: Table, name: str, stride: int, wanted: dict, epochs: int) -> None:
    """The k-th os.replace, os.fsync or open-for-writing says that the disk is full; k = 1, 2 ..."""
    owner = builtins if name == "open" else os
    out, log = WORK / "sweep", WORK / "log"

    def work(number: int) -> int:
        real, calls = getattr(owner, name), 0

        def failing(*args, **kwargs):
            nonlocal calls
            mode = args[1] if len(args) > 1 else kwargs.get("mode", "r")
            if (
                name != "open"
                or isinstance(args[0], (str, Path))
                and out in Path(args[0]).parents
                and set(mode) & set("wax+")
            ):
                calls += 1
                if calls == number:
                    raise OSError(28, "No space left on device")
            return real(*args, **kwargs)

        setattr(owner, name, failing)
        code = run_train(out, epochs)
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
        survived.append(ok and finish(out, epochs) == wanted)
        shutil.rmtree(out, ignore_errors=True)
        number += stride
    shutil.rmtree(out)
    table.add(
        f"the k-th {name} fails with 'No space left on device'"
        + (f" (every {stride}th)" if stride > 1 else ""),
        survived,
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the faults")
    quick = parser.parse_args(argv).quick
    rng, table = random.Random(0), Table()

    def make() -> int:
        make_bert(WORK / "bert")
        write_csv(WORK / "train.csv", make_rows(64))
        write_csv(WORK / "test.csv", make_rows(40, seed=1))
        return 0

    assert end(start(make, WORK / "log")) == 0, (WORK / "log").read_text()
    short, long = finish(WORK / "short", 1), finish(WORK / "long", 4)
    began = time.monotonic()
    assert short and long and finish(WORK / "again", 4) == long != short
    took = time.monotonic() - began
    kills(table, 6 if quick else 50, long, 4, took, rng)
    kills_while_saving(table, 6 if quick else 24, rng)
    signals(table, 3 if quick else 24, long, 4, took, rng)
    jobs(table, 2 if quick else 20, long, 4, took, rng)
    flips(table, 25 if quick else 200, short, WORK / "short", 1, rng)
    for name in ("replace", "fsync", "open"):
        failing_writes(table, name, 10 if quick else 1, short, 1)
    return table.say()


if __name__ == "__main__":
    BEGAN = time.monotonic()
    try:
        sys.exit(main())
    finally:
        shutil.rmtree(WORK, ignore_errors=True)
