"""Faster masks for dropout on a CPU."""

import math

import numpy as np
import torch
from torch import nn


def byte_dropout(x: torch.Tensor, p: float) -> torch.Tensor:
    """Dropout on the CPU with masks from numpy's SFC64; torch's own generator is serial there.

    16 bits a number: p is rounded to 1/65536. The seed is drawn from torch, whose seed governs it.
    """
    seed = int(torch.randint(2**62, ()))
    words = math.ceil(x.numel() / 4)  # of 64 bits
    numbers = np.random.SFC64(seed).random_raw(words).view(np.int16)
    numbers = torch.from_numpy(numbers[: x.numel()]).view(x.shape)
    mask = torch.empty(x.shape, dtype=x.dtype)
    torch.ge(numbers, round(p * 65536) - 32768, out=mask)
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
