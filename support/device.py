"""Where the work is done: device, precision, free memory, threads."""

import contextlib
import functools
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from support.process import UserError


def resolve_device(device: str, precision: str) -> tuple[str, str]:
    """`auto` made definite: bf16 where the hardware multiplies in it, fp16 on older CUDA cards."""
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if device == "auto":
        device = next(name for name, found in there.items() if found)
    if not there[device]:
        raise UserError(f"--device {device}: this machine or torch has none - use --device auto")
    if precision != "auto":
        return device, precision
    if device == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
        return device, "bf16" if fast else "fp16"
    fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return device, "bf16" if device == "cpu" and fast else "fp32"


def autocast(device: str, precision: str) -> torch.autocast:
    """Off for fp32."""
    dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    return torch.autocast(device, dtype=dtype, enabled=dtype is not None)


def free_memory() -> float:
    """Bytes, also under a container's limit; half of the whole where the system doesn't tell."""
    free = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2]
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable"):
                free = [1024 * int(line.split()[1])]
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            free += free_in_groups(*line.split(":", 2)[1:])
    return min(free)


def free_in_groups(controllers: str, group: str) -> list[float]:
    """Bytes below the limit of a control group and of each of its parents, where they have one.

    Version 1 names its controllers, version 2 has none to name.
    """
    if controllers and "memory" not in controllers.split(","):
        return []
    root = Path("/sys/fs/cgroup/memory" if controllers else "/sys/fs/cgroup")
    limit_file = "memory.limit_in_bytes" if controllers else "memory.max"
    free = []
    for path in (Path(group), *Path(group).parents):
        folder = root / str(path).lstrip("/")
        with contextlib.suppress(OSError, ValueError):  # "max", or none of its own
            limit = int((folder / limit_file).read_text())
            if controllers:
                used = int((folder / "memory.usage_in_bytes").read_text())
            else:
                used = int((folder / "memory.stat").read_text().split()[1])
            free.append(limit - used)
    return free


ONE_AT_A_TIME = threading.Lock()  # torch's number of threads is one for all


def in_threads(work, items: list, device: str):
    """Yield work(item) of each item in order. On a CPU by Python threads, which share the cores.

    torch's own threads wait for each other thousands of times a batch: slower, and beside another
    busy process they crawl.
    """
    if device != "cpu":  # one queue of kernels
        yield from map(work, items)
        return
    with ONE_AT_A_TIME:
        cores = torch.get_num_threads()
        workers = min(cores, 8)  # more would wait for Python
        set_threads = functools.partial(torch.set_num_threads, cores // workers)
        try:
            with ThreadPoolExecutor(workers, initializer=set_threads) as pool:
                yield from pool.map(work, items[:1])  # BigBird changes itself in its first batch
                yield from pool.map(work, items[1:])
        finally:
            torch.set_num_threads(cores)
