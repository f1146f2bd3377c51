"""What makes training fast without changing what it computes; train.py works the same without it.

`shrink_embedding`: train only the rows of the token table that occur (exact: the others get no gradient, and their
decay is put back at saving). `ByteDropout`: the same Bernoulli masks from a faster generator (CPU only).
"""

import contextlib

import numpy as np
import torch
from torch import nn

from data import Tokens


class ByteDropout(nn.Module):
    """nn.Dropout whose mask comes from 16 bits a number of SFC64 instead of torch's serial CPU generator.

    The keep probability is rounded to 1/65536. Seeded from torch's generator, so torch.manual_seed governs it.
    """

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or not self.p or x.device.type != "cpu":
            return nn.functional.dropout(x, self.p, self.training)
        seed = int(torch.randint(2**62, ()))
        bits = np.random.SFC64(seed).random_raw(-(-x.numel() // 4)).view(np.int16)[: x.numel()]
        mask = torch.empty(x.shape, dtype=x.dtype)
        torch.ge(torch.from_numpy(bits).view(x.shape), round(self.p * 65536) - 32768, out=mask)
        return x * mask.mul_(1 / (1 - self.p))


def fast_dropout(model: nn.Module) -> None:
    """Replace every nn.Dropout inside; functional dropouts (SDPA's, say) stay torch's."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                setattr(parent, name, ByteDropout(child.p))


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
