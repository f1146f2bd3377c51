"""The processes that torchrun started take the steps of one, or one process runs alone."""

import os
import sys

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_leaves

from support.process import UserError, rank_and_size


class Ranks:
    """Each process holds all rows and the whole model, and takes its share of each step's rows.

    Rank 0 alone prints and writes. DistributedDataParallel averages the gradients: by nccl between
    GPUs, by gloo between CPUs.
    """

    def __init__(self):
        self.rank, self.size = rank_and_size()
        self.leads = self.rank == 0
        self.own = [self.rank] if self.rank else []  # what tells a rank's dropout from rank 0's
        self.restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")

    def __enter__(self) -> "Ranks":
        self.threads = torch.get_num_threads()
        if self.size > 1:
            if not os.environ.keys() >= {"RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"}:
                raise UserError(f"WORLD_SIZE={self.size}, but not by torchrun - unset it")
            if torch.cuda.is_available():
                torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
            store, *_ = next(dist.rendezvous("env://"))
            store = dist.PrefixStore(self.restarts, store)  # else it may hold the dead ranks' keys
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.size)
            if not self.leads:
                sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        return self

    def __exit__(self, kind, error, trace) -> None:
        torch.set_num_threads(self.threads)  # as a notebook had them
        if self.size > 1 and error is None:
            dist.destroy_process_group()  # after an error it would wait for the others in vain

    def agree(self, number: int = 0) -> int:
        """Rank 0's number, as soon as rank 0 has come here."""
        box = torch.tensor([number])
        if self.size > 1:
            dist.broadcast(box, 0)
        return int(box)

    def follow(self, folds):
        """Rank 0's folds, on every rank."""
        folds = iter(folds) if self.leads else iter(())
        while (k := self.agree(next(folds, -1))) >= 0:
            yield k

    def wrap(self, model: nn.Module, token_id: int) -> nn.Module:
        """The model in DDP, with the parameters that are trained now: once an epoch.

        DDP waits for parameters that no gradient reaches: they are frozen, as a batch of this
        token shows.
        """
        if self.size == 1:
            return model
        device = next(model.parameters()).device
        ids = torch.full((1, 8), token_id, dtype=torch.long, device=device)
        found = model.train()(ids, torch.ones_like(ids))  # it may return more in training
        outputs = [x for x in tree_leaves(found) if x.requires_grad]
        sum(x.sum() for x in outputs).backward()
        for p in model.parameters():
            p.requires_grad_(p.grad is not None)
        model.zero_grad()
        return DistributedDataParallel(model, broadcast_buffers=False)

    def share(self, rows: np.ndarray) -> tuple[np.ndarray, float]:
        """This rank's part of a step's rows, and the number to divide its summed loss by.

        Divided so, the ranks' mean is the mean over all rows. A rank without rows computes one that
        counts nothing, as the others wait for it.
        """
        mine = rows[self.rank :: self.size]
        return (mine, len(rows) / self.size) if len(mine) else (rows[:1], float("inf"))

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        if self.size > 1:
            dist.all_reduce(values)
        return values
