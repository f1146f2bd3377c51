"""Gradient checkpointing (Chen et al. 2016): less memory for more time.

For every encoder with a list of layers, also those for which transformers has none (MPNet, ALBERT).
"""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from support.process import UserError


class Recomputed:
    """Stands before the class of a layer: in training only the layer's input is kept.

    The backward pass computes the layer again, with the same dropout masks: torch's generator is
    put back for it, and `byte_dropout` draws its seeds there.
    """

    def forward(self, *inputs, **options):
        if not (self.training and torch.is_grad_enabled()):
            return super().forward(*inputs, **options)
        return checkpoint(super().forward, *inputs, use_reentrant=False, **options)


def recompute(layers: list[nn.Module]) -> None:
    """Only their class changes: names of weights and what is saved stay."""
    for layer in layers:
        kind = type(layer)
        layer.__class__ = type(kind.__name__, (Recomputed, kind), {})


def check_recompute(
    name: str, encoder: nn.Module, layers: list[nn.Module], ids: torch.Tensor
) -> None:
    """Try it on ids (1, T). UserError for an encoder without a list of layers, and for layers that
    can't be computed twice: XLM's keep what they computed before."""
    hint = "leave --gradient-checkpointing out"
    if not layers:
        raise UserError(f"--model {name}: it has no list of layers to compute twice - {hint}")
    recompute(layers)
    first = next(layers[0].parameters())
    try:
        hidden = encoder.train()(input_ids=ids, attention_mask=torch.ones_like(ids))
        torch.autograd.grad(hidden.last_hidden_state.sum(), first)
    except RuntimeError as e:  # torch's CheckpointError is one
        raise UserError(f"--model {name}: its layers can't be computed twice - {hint}") from e
