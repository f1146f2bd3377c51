"""What makes training fast without changing what is learned.

`shrink_embedding`: train only the rows of the token table that occur (exact: the others get no gradient, and
their decay is put back at saving). `fast_dropout`: masks of the same distribution, faster (CPU only).
`Ranks`: the same steps by several processes that torchrun starts.
"""

import contextlib
import os
import sys

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from config import UserError, ranks
from data import Collator, EmotionDataset, Tokens


def byte_dropout(x: torch.Tensor, p: float) -> torch.Tensor:
    """Dropout on the CPU whose mask comes from 16 bits a number of SFC64 instead of torch's serial generator.

    The drop probability is rounded to 1/65536. torch.manual_seed governs it: the seed is drawn from torch.
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
    """transformers' SDPA; where that drops out attention weights on a CPU, the same sums with `byte_dropout`.

    query, key, value (B, heads, T, d) -> (B, T, heads, d), None.
    """
    causal = attention_mask is None and getattr(module, "is_causal", True)
    plain = not causal and kwargs.get("position_bias") is None
    grouped = getattr(module, "num_key_value_groups", 1) > 1
    if not (dropout and plain and not grouped and query.device.type == "cpu"):
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    weights = (query * (scaling or query.shape[-1] ** -0.5)) @ key.transpose(-1, -2)  # (B, heads, T, T)
    if attention_mask is not None:
        boolean = attention_mask.dtype == torch.bool
        weights = weights.masked_fill(~attention_mask, -torch.inf) if boolean else weights + attention_mask
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
    """Sorted ids that occur. Ids up to a small pad_id stay, so that it is itself (RoBERTa counts from it)."""
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
    """Whether the shrunk encoder gives the very outputs of the whole one on a few rows; changes `encoder`."""
    table = encoder.get_input_embeddings()
    if type(table) is not nn.Embedding or len(used) > 0.7 * table.num_embeddings:
        return False
    rows = EmotionDataset(tokens)
    few = [rows[i] for i in range(min(4, len(rows)))]
    batch = Collator(pad_id, max_length=int(tokens.lengths.max()))(few)
    with torch.inference_mode():
        before = encoder.eval()(**batch).last_hidden_state
        shrink_embedding(encoder, used)
        batch["input_ids"] = torch.from_numpy(np.searchsorted(used, batch["input_ids"].numpy()))
        return torch.equal(before, encoder(**batch).last_hidden_state)


@contextlib.contextmanager
def whole_embedding(encoder: nn.Module, decay: float):
    """The encoder with its whole token table, for saving. `decay`: what was left of an unused row."""
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


class Ranks:
    """The processes that torchrun started (nccl between GPUs, gloo between CPUs), or one alone.

    Each holds all rows and the whole model, and takes its share of each step's rows; rank 0 alone prints and
    writes. DistributedDataParallel averages the gradients.
    """

    def __init__(self):
        self.rank, self.size = ranks()
        self.own = [self.rank] if self.rank else []  # what tells a rank's dropout from rank 0's

    def __enter__(self) -> "Ranks":
        if self.size > 1:
            if not os.environ.keys() >= {"RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"}:
                raise UserError(f"WORLD_SIZE={self.size}, but not by torchrun - unset it, or use torchrun")
            if torch.cuda.is_available():
                torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
            store, *_ = next(dist.rendezvous("env://"))  # after a restart it may hold the dead ones' keys
            store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.size)
            if self.rank:
                sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        return self

    def __exit__(self, kind, error, trace) -> None:
        if self.size > 1 and error is None:
            dist.destroy_process_group()  # after an error it would wait for the others in vain

    def agree(self, number: int) -> int:
        """Rank 0's number, as soon as rank 0 has come here."""
        box = torch.tensor([number])
        if self.size > 1:
            dist.broadcast(box, 0)
        return int(box)

    def follow(self, folds):
        """Rank 0's folds, on every rank."""
        folds = iter(folds) if self.rank == 0 else iter(())
        while (k := self.agree(next(folds, -1))) >= 0:
            yield k

    def parallel(self, model: nn.Module) -> nn.Module:
        """The model in DDP, which would wait for parameters that no gradient reaches: they are frozen."""
        if self.size == 1:
            return model
        ids = torch.zeros((1, 8), dtype=torch.long, device=next(model.parameters()).device)
        model(ids, torch.ones_like(ids)).sum().backward()
        for p in model.parameters():
            p.requires_grad_(p.grad is not None)
        model.zero_grad()
        return DistributedDataParallel(model)

    def share(self, rows: np.ndarray) -> tuple[np.ndarray, float]:
        """This rank's part of a step's rows (sorted by length), and its weight in the ranks' mean."""
        mine = rows[self.rank :: self.size]  # none: it computes a row that counts nothing, as the others wait
        return (mine, len(mine) * self.size / len(rows)) if len(mine) else (rows[:1], 0.0)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        if self.size > 1:
            dist.all_reduce(values)
        return values
