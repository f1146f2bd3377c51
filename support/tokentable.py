"""Only the rows of the token table that occur are trained: most of a small encoder's parameters."""

import numpy as np
import torch
from torch import nn

from support.process import UserError

MOST_ROWS = 0.7  # a larger share of the table is trained as a whole


class TokenTable(nn.Module):
    """The rows of a token table that occur, looked up by the same ids as the whole table's.

    The other rows get no gradient; they keep their pretrained values (weight decay included).
    """

    def __init__(self, whole: nn.Embedding, used: np.ndarray):
        """`used`: the ids that occur, sorted. Others can't be looked up."""
        super().__init__()
        used = torch.from_numpy(used).long()
        self.whole = [whole.weight.detach(), used]  # in a list: saved apart, see `whole_state`
        self.weight = nn.Parameter(whole.weight.detach()[used])
        row = torch.full((whole.num_embeddings,), -1)
        row[used] = torch.arange(len(used))
        self.register_buffer("row", row, persistent=False)  # id -> row of `weight`

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """(B, T) -> (B, T, H). UserError for an id that is not there (on CUDA: an assert)."""
        rows = self.row[ids]
        if rows.device.type == "cpu" and rows.min() < 0:
            unknown = int(ids[rows < 0][0])
            problem = f"token id {unknown} occurs in no text, and so is not trained"
            raise UserError(f"{problem} - add it to `token_ids` in train_fold", 1)
        return nn.functional.embedding(rows, self.weight)


def use_token_table(encoder: nn.Module, ids: np.ndarray) -> None:
    """Give the encoder a TokenTable of these ids, where that pays and works."""
    embedding = encoder.get_input_embeddings()
    used = np.unique(ids)
    places = [m for m in encoder.modules() for child in m.children() if child is embedding]
    pays = type(embedding) is nn.Embedding and len(used) <= MOST_ROWS * len(embedding.weight)
    if pays and len(places) == 1:
        encoder.set_input_embeddings(TokenTable(embedding, used))


def whole_state(encoder: nn.Module) -> dict[str, torch.Tensor]:
    """The encoder's state_dict with its whole token table, for saving."""
    state = encoder.state_dict()
    for name, module in encoder.named_modules():
        if isinstance(module, TokenTable):
            whole, used = module.whole
            rows = module.weight.detach().to(whole)
            state[f"{name}.weight"] = whole.index_copy(0, used, rows)
    return state
