"""Folds side by side: threads, processes, and the helpers that train.py starts.

train.py is one of the processes. A helper is the same command in a session of its own, so that
Ctrl-C reaches train.py alone. Each process takes the next fold whose lock is free. A helper tells
its lines and its steps through a pipe; when train.py is gone, it stops at its next step.
"""

import contextlib
import math
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from joblib import cpu_count  # of the cores that affinity and a container's quota allow
from tqdm import tqdm
from tqdm.contrib import DummyTqdmFile

from config import HERE, Config
from support.encoders import EncoderInfo
from support.errors import HELPER, LEADS, UserError, rank_and_size
from support.files import read_json
from support.speed import free_memory

STEPS = "\0"  # begins a helper's line that is a number of steps


def set_threads(config: Config, path: Path) -> None:
    """As given, as the run at `path` began, or the cores divided by the folds that share them."""
    threads = config.threads or "OMP_NUM_THREADS" in os.environ and torch.get_num_threads()
    with contextlib.suppress(UserError):  # no run yet
        if not (threads or config.restart):
            threads = read_json(path / "env.json", sealed=True)["same"]["threads"]
    torch.set_num_threads(threads or max(1, cpu_count() // min(cpu_count(), config.folds)))


def memory_of_a_fold(encoder: EncoderInfo, config: Config, longest: int) -> float:
    """An estimate in bytes: the libraries; every weight, its gradient and AdamW's two means; what
    a batch of texts of `longest` tokens keeps for its backward pass."""
    heads = getattr(encoder.config, "num_attention_heads", 0)  # FNet has none
    width = 17 * encoder.config.hidden_size + 3 * heads * longest
    numbers = config.batch_size * longest * encoder.layers * width
    return 5e8 + 16 * encoder.num_parameters + 4 * numbers


def gpus() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else map(str, range(torch.cuda.device_count()))
    return list(names)[: torch.cuda.device_count()]


def count_jobs(config: Config, folds: int, need: float, alone: bool) -> int:
    """--jobs; left out: one a GPU, or what cores and memory allow. At most `folds`."""
    jobs = config.jobs
    if rank_and_size()[1] > 1 or jobs is None and alone:
        jobs = 1
    elif jobs is None and config.device == "cpu":
        cores, memory = cpu_count() // torch.get_num_threads(), int(free_memory() / need)
        jobs = min(cores, memory)
        if memory < min(cores, folds):
            print(f"memory for {max(1, memory)} at a time: a fold may need {need / 1e9:.1f} GB")
    elif jobs is None:
        jobs = len(gpus()) if config.device == "cuda" else 1
    return max(1, min(jobs, folds))


def start_helper(i: int, run, config: Config, argv: list[str]) -> subprocess.Popen:
    env = {**os.environ, "TRAIN_HELPER": "1"}
    if config.device == "cuda":  # train.py itself is on the first
        env["CUDA_VISIBLE_DEVICES"] = gpus()[i % len(gpus())]
    same = [f"--out={run.path}", f"--threads={torch.get_num_threads()}", "--no-restart"]
    same += [f"--device={config.device}", f"--precision={config.precision}"]
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    pipe |= {"encoding": "utf-8", "errors": "replace", "start_new_session": True}
    return subprocess.Popen([sys.executable, *argv, *same], env=env, **pipe)


def follow(helper: subprocess.Popen, bar: tqdm) -> int:
    """Show a helper's lines and steps; its exit code. Until its first fold it repeats train.py."""
    begun, line = False, ""
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
        print(f"error: a process was ended by {name} - the same command goes on", file=sys.stderr)
    return 1 if code < 0 else code


@contextlib.contextmanager
def side_by_side(run, config: Config, fold_of_row, encoder: EncoderInfo, lengths, argv):
    """Run the block beside helpers, with one bar over all steps. Yields their exit codes."""
    if HELPER:
        run.bar = SimpleNamespace(update=lambda n: print(f"{STEPS}{n}", flush=True))
        run.bar.update(0)
        yield []
        return
    folds = [k for k in run.missing() if config.fold in (None, k)]
    rows = config.batch_size * config.accumulate
    steps = config.epochs * sum(math.ceil(np.sum(fold_of_row != k) / rows) for k in folds)
    need = memory_of_a_fold(encoder, config, int(lengths.max()))
    jobs = count_jobs(config, len(folds), need, argv is not None or "ipykernel" in sys.modules)
    own = sys.argv if argv is None else [str(HERE / "train.py"), *argv]
    how, shown = dict.fromkeys(("delay", "mininterval", "maxinterval"), 60), sys.stdout
    how["bar_format"] = "{l_bar}{bar}{r_bar}\n"  # in a file: a line a minute
    if shown.isatty():
        how, shown = {"file": shown, "leave": False}, DummyTqdmFile(shown)  # lines go above the bar
    bar = tqdm(total=steps, unit="step", disable=not LEADS, **how)
    with bar as run.bar, contextlib.redirect_stdout(shown), ThreadPoolExecutor(jobs) as pool:
        helpers, codes = [], []
        try:
            for i in range(1, jobs):
                helpers.append(start_helper(i, run, config, own))
                codes.append(pool.submit(follow, helpers[-1], bar))
            yield codes
            wait(codes)
        except BaseException:
            for helper in helpers:
                helper.terminate()
            raise
