"""Copies of the code at work: each in a process that has the libraries, but no file of ours."""

import multiprocessing
from pathlib import Path

# How a driver begins. It runs with `code` (the copy's folder) and `threads`, and prints to
# code/printed.
BEGIN = """
import os, signal, sys
from pathlib import Path
import numpy as np
import torch

for stream in (1, 2):
    os.dup2(os.open(f"{code}/printed", os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
os.chdir(code)
sys.path.insert(0, code)
torch.set_num_threads(threads)
import data, predict, train
from config import Config
from support import inputcsv, pictures

assert Path(train.__file__).parent == Path(data.__file__).parent == Path(code)
os.fsync = lambda handle: None
pictures.draw_report = lambda f, *args: Path(f).write_bytes(b"PNG")
"""

# A training with these `flags` that is stopped in the middle, and resumed.
STOP_AND_RESUME = """
loader, steps = train.train_loader, []
def stopping(*args):
    for step in loader(*args):
        steps.append(step)
        if len(steps) == 6:  # the second of epoch 2
            os.kill(os.getpid(), signal.SIGTERM)
        yield step
train.train_loader = stopping
assert train.main([*flags, "--out", "again"]) == 143
assert train.main([*flags, "--out", "again"]) == 0
"""

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    [
        "torch",
        "torch.optim.swa_utils",
        "transformers.models.bert.modeling_bert",
        "pandas",
        "sklearn.metrics",
        "sklearn.linear_model",
    ]
)


def run_driver(driver: str, code: Path, threads: int, **names) -> tuple[int | None, str]:
    """Exit code and what was printed. `names`: the driver's variables."""
    names |= {"code": str(code), "threads": threads}
    process = PROCESSES.Process(target=exec, args=(BEGIN + driver, names))
    process.start()
    process.join(300)
    process.kill()  # if it still runs
    return process.exitcode, (code / "printed").read_text()
