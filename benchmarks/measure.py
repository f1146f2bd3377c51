"""What the benchmarks share: flags; run a command and measure it, in turns; a median as text."""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent  # the project
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def call(argv: list, threads: int | None = None) -> tuple[float, float, str]:
    """Seconds, peak resident MB (Linux) and output of a Python command; ends where it fails."""
    env = dict(os.environ)
    if threads:
        env["OMP_NUM_THREADS"] = str(threads)
    command = [sys.executable, *map(str, argv)]
    start = time.monotonic()
    peak_kb = 0
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=env)
        while process.poll() is None:
            peak_kb = max(peak_kb, peak_resident_kb(process.pid))
            time.sleep(0.05)
        seconds = time.monotonic() - start
        out.seek(0)
        if process.returncode:
            sys.exit(f"{' '.join(command)}\n{out.read()}exit {process.returncode}")
        return seconds, peak_kb / 1024, out.read()


def peak_resident_kb(pid: int) -> int:
    """So far; 0 where the system doesn't tell. (os.wait4 would count the parent's memory.)"""
    status = Path(f"/proc/{pid}/status")
    lines = status.read_text().splitlines() if status.exists() else []
    peaks = [int(line.split()[1]) for line in lines if line.startswith("VmHWM")]
    return max(peaks, default=0)


def flag_parser(doc: str) -> argparse.ArgumentParser:
    """Shows the docstring as it is; --seed is not short for --seeds."""
    raw = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(description=doc, formatter_class=raw, allow_abbrev=False)


def in_turns(runs: int, ways: dict[str, Callable]) -> dict[str, list]:
    """What each way gives, `runs` times: forward, backward, forward ..."""
    results = {name: [] for name in ways}
    for i in range(runs):
        names = list(ways) if i % 2 == 0 else list(reversed(ways))
        for name in names:
            result = ways[name]()
            results[name].append(result)
            print(name, result, flush=True)
    return results


def middle(values: list[float], form: str = ".0f") -> str:
    """Median (lowest to highest)."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"
