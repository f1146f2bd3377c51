"""What the benchmarks share: flags; run a command and measure it, in turns; a median as text."""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent  # the project
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def call(argv: list, threads: int | None = None) -> tuple[float, float, str]:
    """Seconds, peak resident MB (Linux) and output of a Python command; ends where it fails."""
    env = {**os.environ, **({"OMP_NUM_THREADS": str(threads)} if threads else {})}
    command, start, peak_kb = [sys.executable, *map(str, argv)], time.monotonic(), 0
    with tempfile.TemporaryFile("w+") as out:
        p = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=env)
        status = Path(f"/proc/{p.pid}/status")  # os.wait4 would count the parent's memory
        while p.poll() is None:
            lines = status.read_text().splitlines() if status.exists() else []
            peak_kb = max([peak_kb, *(int(x.split()[1]) for x in lines if x.startswith("VmHWM"))])
            time.sleep(0.05)
        seconds = time.monotonic() - start
        out.seek(0)
        if p.returncode:
            sys.exit(f"{' '.join(command)}\n{out.read()}exit {p.returncode}")
        return seconds, peak_kb / 1024, out.read()


def flag_parser(doc: str) -> argparse.ArgumentParser:
    """Shows the docstring as it is; --seed is not short for --seeds."""
    raw = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(description=doc, formatter_class=raw, allow_abbrev=False)


def in_turns(runs: int, ways: dict) -> dict[str, list]:
    """What each way gives, `runs` times: forward, backward, forward ..."""
    found = {name: [] for name in ways}
    for i in range(runs):
        for name in list(ways)[:: -1 if i % 2 else 1]:
            found[name].append(ways[name]())
            print(name, found[name][-1], flush=True)
    return found


def middle(values, form: str = ".0f") -> str:
    """Median (lowest to highest)."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"
