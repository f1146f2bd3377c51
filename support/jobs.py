"""Folds in parallel: threads, processes, and the helpers that train.py starts.

train.py is one of the processes. A helper is the same command in a session of its own, so that
Ctrl-C reaches train.py alone. Each process takes the next fold whose lock is free. A helper sends
its lines and its steps through a pipe; when train.py is gone, it stops at its next step.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import torch
from joblib import cpu_count  # of the cores that affinity and a container's quota allow
from tqdm import tqdm
from tqdm.contrib import DummyTqdmFile

from config import Config
from support.device import free_memory
from support.encoders import EncoderInfo
from support.files import read_json
from support.process import LEADS, UserError, in_notebook, rank_and_size

HELPER_VARIABLE = "TRAIN_HELPER"  # set in a helper's environment
LINE_EVERY = 60.0  # seconds between lines of progress, off a terminal
STEPS = "\0"  # begins a helper's line that is a number of steps


@dataclass(frozen=True)
class Command:
    """What starts this command again."""

    program: str
    flags: list[str]
    typed: bool  # False: called from Python or a notebook; then no helpers unless --jobs asks

    @classmethod
    def of(cls, program: str, argv: list[str] | None) -> "Command":
        """Of a `main(argv)` in the file `program`."""
        if argv is not None:
            return cls(program, argv, typed=False)
        if sys.argv[0] != "-c":  # else code that calls it
            program = sys.argv[0]
        return cls(program, sys.argv[1:], typed=not in_notebook())

    @property
    def text(self) -> str:
        return " ".join([Path(self.program).name, *self.flags])


def set_threads(config: Config, path: Path) -> None:
    """Take --threads, or those that the run at `path` began with, or cores divided by folds."""
    threads = config.threads
    if not threads and "OMP_NUM_THREADS" in os.environ:
        threads = torch.get_num_threads()
    if not threads and not config.restart:
        with contextlib.suppress(UserError):  # no run yet
            threads = read_json(path / "env.json", sealed=True)["same"]["threads"]
    torch.set_num_threads(threads or max(1, cpu_count() // min(cpu_count(), config.folds)))


def memory_of_a_fold(encoder_info: EncoderInfo, config: Config, longest: int) -> float:
    """An estimate in bytes: the libraries; every weight, its gradient and AdamW's two means; what
    a batch of texts of `longest` tokens keeps for its backward pass."""
    heads = getattr(encoder_info.config, "num_attention_heads", 0)  # FNet has none
    hidden = encoder_info.config.hidden_size
    layer = 17 * hidden + 3 * heads * longest
    kept = encoder_info.layers * layer  # numbers for each token
    if config.gradient_checkpointing:  # the input of each layer; one at work, four times its size
        kept = min(kept, encoder_info.layers * hidden + 4 * layer)  # as measured: docs/scaling.md
    numbers = config.batch_size * longest * kept
    return 5e8 + 16 * encoder_info.num_parameters + 4 * numbers


def gpus() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else map(str, range(torch.cuda.device_count()))
    return list(names)[: torch.cuda.device_count()]


def count_jobs(config: Config, folds: int, memory: float, typed: bool) -> int:
    """--jobs; left out: one a GPU, or what cores and memory allow. At most `folds`.

    `memory`: bytes that a fold needs. `typed`: see `Command`.
    """
    jobs = config.jobs
    if rank_and_size()[1] > 1 or (jobs is None and not typed):
        jobs = 1
    elif jobs is None and config.device == "cpu":
        by_cores = cpu_count() // torch.get_num_threads()
        by_memory = int(free_memory() / memory)
        jobs = min(by_cores, by_memory)
        if by_memory < min(by_cores, folds):
            at_a_time = max(1, by_memory)
            print(f"memory for {at_a_time} at a time: a fold may need {memory / 1e9:.1f} GB")
    elif jobs is None:
        jobs = len(gpus()) if config.device == "cuda" else 1
    return max(1, min(jobs, folds))


class StepsToParent:
    """A helper's progress bar: it tells its steps to train.py, which started it."""

    def __init__(self):
        self.update(0)  # its folds begin

    def update(self, steps: int, describe: Callable[[], str] | None = None) -> None:
        print(f"{STEPS}{steps}", flush=True)


class Bar:
    """tqdm's bar, on a terminal."""

    def __init__(self, bar: tqdm):
        self.bar = bar

    def update(self, steps: int, describe: Callable[[], str] | None = None) -> None:
        """`describe`: the loss so far, in words. It may wait for a GPU: once a second at most."""
        shown = self.bar.update(steps)
        if shown and describe:
            self.bar.set_postfix_str(describe(), refresh=False)


class Lines:
    """In a file or a notebook: a line a minute with the steps, the loss and the time left."""

    def __init__(self, total: int):
        self.total = total
        self.done = 0
        self.resumed = 0  # steps done before this command
        self.began = self.printed = time.monotonic()
        self.describe: Callable[[], str] | None = None
        self.lock = threading.Lock()  # the helpers' steps come in threads

    def update(self, steps: int, describe: Callable[[], str] | None = None) -> None:
        """`describe`: as for Bar; it is called for a line alone."""
        with self.lock:
            self.done += steps
            if steps > 1:
                self.resumed += steps
            self.describe = describe or self.describe
            now = time.monotonic()
            due = now - self.printed >= LINE_EVERY and self.done > self.resumed
            if due and LEADS:
                self.printed = now
                print(self.line(now), flush=True)

    def line(self, now: float) -> str:
        rate = (self.done - self.resumed) / (now - self.began)
        left = (self.total - self.done) / rate
        parts = [f"step {self.done} of {self.total}", self.describe() if self.describe else ""]
        parts.append(f"{left / 60:.1f} minutes left")
        return " | ".join(filter(None, parts))


@contextlib.contextmanager
def progress_bar(steps: int) -> Iterator[Bar | Lines]:
    """Over all steps: a bar below the lines that are printed; off a terminal, a line a minute."""
    stream = sys.stdout
    if not stream.isatty():
        yield Lines(steps)
        return
    off = not LEADS
    bar = tqdm(total=steps, unit="step", disable=off, file=stream, leave=False, mininterval=1)
    with bar, contextlib.redirect_stdout(DummyTqdmFile(stream)):
        yield Bar(bar)


@contextlib.contextmanager
def helpers(
    number: int, path: Path, config: Config, command: Command, bar: Bar | Lines
) -> Iterator[list[Future]]:
    """The block runs in parallel to so many helpers on the run at `path`. Yields their exit codes,
    as futures; they end with the block, or are stopped if it fails."""
    with ThreadPoolExecutor(max(1, number)) as pool:
        processes: list[subprocess.Popen] = []
        codes: list[Future] = []
        try:
            for i in range(number):
                processes.append(start_helper(i + 1, path, config, command))
                codes.append(pool.submit(follow, processes[-1], bar))
            yield codes
            wait(codes)
        except BaseException:
            for process in processes:
                process.terminate()
            raise


def start_helper(i: int, path: Path, config: Config, command: Command) -> subprocess.Popen:
    env = {**os.environ, HELPER_VARIABLE: "1"}
    if config.device == "cuda":  # train.py itself is on the first
        env["CUDA_VISIBLE_DEVICES"] = gpus()[i % len(gpus())]
    as_here = [
        f"--out={path}",
        f"--threads={torch.get_num_threads()}",
        "--no-restart",
        f"--device={config.device}",
        f"--precision={config.precision}",
    ]
    return subprocess.Popen(
        [sys.executable, command.program, *command.flags, *as_here],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )


def follow(helper: subprocess.Popen, bar: Bar | Lines) -> int:
    """Show a helper's lines and steps; its exit code. Until its first fold it repeats train.py."""
    begun = False
    line = ""
    for line in helper.stdout:
        if line.startswith(STEPS):
            begun = True
            bar.update(int(line[1:]))
        elif begun and not line.startswith("stopped: "):
            stream = sys.stderr if line.startswith(("error: ", "warning: ")) else sys.stdout
            print(line, end="", file=stream, flush=True)
    code = helper.wait()
    if code > 0 and not begun and not line.startswith("stopped: "):
        print(line, end="", file=sys.stderr)
    if code < 0 and code != -signal.SIGTERM:  # train.py was stopped, and it with it
        name = signal.Signals(-code).name
        hint = "run the same command to resume"
        print(f"error: a process was ended by {name} - {hint}", file=sys.stderr)
    return 1 if code < 0 else code
