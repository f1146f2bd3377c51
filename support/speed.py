"""What makes training fast without changing what is learned: device, threads, tokens, masks."""

import contextlib
import functools
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import nn

from support.errors import UserError


def resolve_device(device: str, precision: str) -> tuple[str, str]:
    """`auto` made definite: bf16 where the hardware multiplies in it, fp16 on older CUDA cards."""
    has = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    device = next(d for d in has if has[d]) if device == "auto" else device
    if not has[device]:
        raise UserError(f"--device {device}: this machine or torch has none - use --device auto")
    if precision != "auto":
        return device, precision
    if device == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
        return device, "bf16" if fast else "fp16"
    fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return device, "bf16" if device == "cpu" and fast else "fp32"


def free_memory() -> float:
    """Bytes, also under a container's limit; half of the whole where the system doesn't tell."""
    free = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2]
    with contextlib.suppress(OSError, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = [1024 * int(x.split()[1]) for x in lines if x.startswith("MemAvailable")] or free
        group = Path("/proc/self/cgroup").read_text().strip().rpartition("::")[2]
        limit, used = (Path(f"/sys/fs/cgroup{group}/memory.{x}") for x in ("max", "stat"))
        free.append(int(limit.read_text()) - int(used.read_text().split()[1]))
    return min(free)


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
        alone = functools.partial(torch.set_num_threads, cores // workers)
        try:
            with ThreadPoolExecutor(workers, initializer=alone) as pool:
                yield from pool.map(work, items[:1])  # BigBird changes itself in its first batch
                yield from pool.map(work, items[1:])
        finally:
            torch.set_num_threads(cores)


class TokenTable(nn.Module):
    """The rows of a token table that occur, looked up by the same ids as the whole table's.

    The other rows get no gradient; they keep their pretrained values (weight decay included).
    """

    def __init__(self, whole: nn.Embedding, used: np.ndarray):
        """`used`: the ids that occur, sorted. Others must not be looked up."""
        super().__init__()
        used = torch.from_numpy(used).long()
        self.whole = [whole.weight.detach(), used]  # in a list: saved apart, see `whole_state`
        self.weight = nn.Parameter(whole.weight.detach()[used])
        row = torch.zeros(whole.num_embeddings, dtype=torch.long)
        row[used] = torch.arange(len(used))
        self.register_buffer("row", row, persistent=False)  # id -> row of `weight`

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return nn.functional.embedding(self.row[ids], self.weight)


def use_token_table(encoder: nn.Module, ids: np.ndarray) -> None:
    """Give the encoder a TokenTable of these ids, where that pays and works."""
    table, used = encoder.get_input_embeddings(), np.unique(ids)
    places = [m for m in encoder.modules() for child in m.children() if child is table]
    if type(table) is nn.Embedding and len(places) == 1 and len(used) <= 0.7 * len(table.weight):
        encoder.set_input_embeddings(TokenTable(table, used))


def whole_state(encoder: nn.Module) -> dict[str, torch.Tensor]:
    """The encoder's state_dict with its whole token table, for saving."""
    state = encoder.state_dict()
    for name, module in encoder.named_modules():
        if isinstance(module, TokenTable):
            whole, used = module.whole
            rows = module.weight.detach().to(whole)
            state[f"{name}.weight"] = whole.index_copy(0, used, rows)
    return state


def byte_dropout(x: torch.Tensor, p: float) -> torch.Tensor:
    """Dropout on the CPU with masks from numpy's SFC64; torch's own generator is serial there.

    16 bits a number: p is rounded to 1/65536. The seed is drawn from torch, whose seed governs it.
    """
    seed = int(torch.randint(2**62, ()))
    bits = np.random.SFC64(seed).random_raw(-(-x.numel() // 4)).view(np.int16)[: x.numel()]
    mask = torch.empty(x.shape, dtype=x.dtype)
    torch.ge(torch.from_numpy(bits).view(x.shape), round(p * 65536) - 32768, out=mask)
    return x * mask.mul_(1 / (1 - p))


class ByteDropout(nn.Dropout):
    """nn.Dropout by `byte_dropout` while training on a CPU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and self.p and x.device.type == "cpu":
            return byte_dropout(x, self.p)
        return super().forward(x)


def fast_dropout(encoder: nn.Module) -> None:
    """Use the faster masks in every nn.Dropout."""
    for parent in list(encoder.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                setattr(parent, name, ByteDropout(child.p))
