"""Faster masks for dropout on a CPU."""

import math

import numpy as np
import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "sdpa_byte_dropout"  # the name by which transformers finds `byte_attention`


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


def byte_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    **options,
) -> tuple[torch.Tensor, None]:
    """transformers' SDPA; where it drops weights on a CPU, the same sums with `byte_dropout`.

    query, key, value (B, heads, T, d) -> (B, T, heads, d), None. It has transformers' signature;
    `options` are dropout (0 in eval mode), scaling and what only some models give.
    """
    p = options.get("dropout", 0.0)
    if not p or query.device.type != "cpu" or not is_plain(module, mask, options):
        return sdpa_attention_forward(module, query, key, value, mask, **options)
    scale = options.get("scaling") or query.shape[-1] ** -0.5
    weights = (query * scale) @ key.transpose(-1, -2)  # (B, heads, T, T)
    if mask is not None and mask.dtype == torch.bool:
        weights = weights.masked_fill(~mask, torch.finfo(weights.dtype).min)
    elif mask is not None:
        weights = weights + mask
    weights = byte_dropout(weights.softmax(-1), p)
    return (weights @ value).transpose(1, 2).contiguous(), None


def is_plain(module: nn.Module, mask: torch.Tensor | None, options: dict) -> bool:
    """Whether attention is a softmax over all tokens that `mask` leaves, for every head alike."""
    causal = options.get("is_causal")
    if causal is None:
        causal = getattr(module, "is_causal", True)
    grouped = getattr(module, "num_key_value_groups", 1) > 1
    return not (grouped or (causal and mask is None) or options.get("position_bias") is not None)


AttentionInterface.register(ATTENTION, byte_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def fast_dropout(encoder: nn.Module) -> None:
    """Use the faster masks in every nn.Dropout and, where it attends by SDPA, in its attention."""
    for parent in list(encoder.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                setattr(parent, name, ByteDropout(child.p))
    if encoder.config._attn_implementation == "sdpa":
        encoder.set_attn_implementation(ATTENTION)
