"""What makes training fast without changing what it computes; train.py works the same without it.

`shrink_embedding`: train only the rows of the token table that occur (exact: the others get no gradient, and their
decay is put back at saving). `fast_dropout`: masks of the same kind from a faster generator (CPU only).
"""

import contextlib

import numpy as np
import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from data import Tokens


def byte_dropout(x: torch.Tensor, p: float) -> torch.Tensor:
    """Dropout on the CPU whose mask comes from 16 bits a number of SFC64 instead of torch's serial generator.

    The drop probability is rounded to 1/65536. Seeded from torch's generator, so torch.manual_seed governs it.
    """
    seed = int(torch.randint(2**62, ()))
    bits = np.random.SFC64(seed).random_raw(-(-x.numel() // 4)).view(np.int16)[: x.numel()]
    mask = torch.empty(x.shape, dtype=x.dtype)
    torch.ge(torch.from_numpy(bits).view(x.shape), round(p * 65536) - 32768, out=mask)
    return x * mask.mul_(1 / (1 - p))


class ByteDropout(nn.Module):
    """nn.Dropout by `byte_dropout` while training on a CPU."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and self.p and x.device.type == "cpu":
            return byte_dropout(x, self.p)
        return nn.functional.dropout(x, self.p, self.training)


def byte_attention(module, query, key, value, attention_mask, dropout=0.0, scaling=None, **kwargs):
    """transformers' SDPA; where that would drop out attention weights on a CPU, the same sums with `byte_dropout`.

    query, key, value (B, heads, T, d) -> (B, T, heads, d), None.
    """
    causal = attention_mask is None and getattr(module, "is_causal", True)
    plain = kwargs.get("position_bias") is None and getattr(module, "num_key_value_groups", 1) == 1 and not causal
    if not (dropout and plain and query.device.type == "cpu"):
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    weights = (query * (scaling or query.shape[-1] ** -0.5)) @ key.transpose(-1, -2)  # (B, heads, T, T)
    if attention_mask is not None:
        bias = torch.zeros(attention_mask.shape, dtype=weights.dtype)
        weights = weights + (
            bias.masked_fill_(~attention_mask, -torch.inf) if attention_mask.dtype == torch.bool else attention_mask
        )
    weights = byte_dropout(weights.softmax(-1), dropout)
    return (weights @ value).transpose(1, 2).contiguous(), None


AttentionInterface.register("sdpa_byte_dropout", byte_attention)
AttentionMaskInterface.register("sdpa_byte_dropout", sdpa_mask)


def fast_dropout(encoder: nn.Module) -> None:
    """Use the faster masks in every nn.Dropout and, where the encoder attends by SDPA, in its attention."""
    for parent in list(encoder.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                setattr(parent, name, ByteDropout(child.p))
    if encoder.config._attn_implementation == "sdpa":
        encoder.set_attn_implementation("sdpa_byte_dropout")


def used_tokens(tokens: Tokens, pad_id: int) -> np.ndarray:
    """Sorted ids that occur. Ids up to a small pad_id are kept, so that it stays itself (RoBERTa counts from it)."""
    low = np.arange(pad_id + 1) if pad_id < 1000 else [pad_id]
    return np.union1d(tokens.ids, low)


@torch.no_grad()
def shrink_embedding(encoder: nn.Module, used: np.ndarray) -> None:
    """Leave only the rows `used` in the token table; `whole_embedding` undoes it for saving."""
    table = encoder.get_input_embeddings()
    pad = table.padding_idx
    pad = int(np.searchsorted(used, pad)) if pad is not None and pad in used else None
    small = nn.Embedding(len(used), table.embedding_dim, padding_idx=pad)
    small.weight.copy_(table.weight[torch.from_numpy(used)])
    small.whole = [table, used]  # in a list: no submodule, no parameter
    encoder.set_input_embeddings(small)


def shrinkable(encoder: nn.Module, tokens: Tokens, used: np.ndarray, pad_id: int) -> bool:
    """Whether the shrunk encoder, on a few rows, gives the very outputs of the whole one; changes `encoder`."""
    table = encoder.get_input_embeddings()
    if type(table) is not nn.Embedding or len(used) > 0.7 * table.num_embeddings:
        return False
    rows = [tokens.ids[a:b] for a, b in zip(tokens.offsets[:4], tokens.offsets[1:5], strict=True)] if len(tokens.offsets) > 4 else [tokens.ids]  # fmt: skip
    width = max(map(len, rows))
    ids = torch.tensor(np.array([np.pad(r, (0, width - len(r)), constant_values=pad_id) for r in rows]), dtype=torch.long)
    mask = torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in rows])
    with torch.inference_mode():
        before = encoder.eval()(input_ids=ids, attention_mask=mask).last_hidden_state
        shrink_embedding(encoder, used)
        small = torch.from_numpy(np.searchsorted(used, ids.numpy()))
        return torch.equal(before, encoder(input_ids=small, attention_mask=mask).last_hidden_state)


@contextlib.contextmanager
def whole_embedding(encoder: nn.Module, decay: float):
    """The encoder with its whole token table, for saving. `decay`: what weight decay left of an unused row."""
    small = encoder.get_input_embeddings()
    if not hasattr(small, "whole"):
        yield encoder
        return
    table, used = small.whole
    whole = nn.Embedding(table.num_embeddings, table.embedding_dim, table.padding_idx, device="meta")
    weight = table.weight.detach() * decay
    weight[torch.from_numpy(used)] = small.weight.detach().to(weight)
    whole.weight = nn.Parameter(weight)
    encoder.set_input_embeddings(whole)
    try:
        yield encoder
    finally:
        encoder.set_input_embeddings(small)
