"""Any pretrained encoder, a text vector, dropout and a linear head; running it over rows.

B rows of a batch, T tokens, H hidden, C labels. Another pooling: `pool`. Another head:
`EmotionClassifier.__init__`. More outputs, a second pass, another loss than that of the logits:
`compute_loss`. The head is the first notebook's for every encoder, in fp32 outside autocast.
"""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from config import Config
from support.encoders import layers_of, load_encoder, plain_errors
from support.errors import UserError
from support.speed import TokenTable, fast_dropout, in_threads, use_token_table, whole_state


class EmotionClassifier(nn.Module):
    """Encoder -> text vector -> dropout -> linear: logits (B, C) in fp32."""

    def __init__(
        self, encoder: nn.Module, labels: int, pooling: str = "mean", dropout: float = 0.3
    ):
        super().__init__()
        self.encoder, self.num_labels, self.pooling = encoder, labels, pooling
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(encoder.config.hidden_size, labels)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        with torch.autocast(hidden.device.type, enabled=False):
            vector = pool(hidden.float(), attention_mask, self.pooling)  # (B, T, H) -> (B, H)
            return self.head(self.dropout(vector))  # (B, C)

    @torch.no_grad()
    def start_at(self, share: torch.Tensor) -> None:
        """Let the untrained head say each label's share (C,) of the rows (Lin et al. 2017, 3.3)."""
        last = [m for m in self.head.modules() if isinstance(m, nn.Linear)][-1]
        last.bias.copy_(torch.logit(share))

    def head_names(self) -> dict[str, str]:
        """Names in head.safetensors -> names here: all but the encoder's, what a fork adds too."""
        return {
            n.removeprefix("head."): n for n in self.state_dict() if not n.startswith("encoder.")
        }

    def save(self, folder: str | Path) -> None:
        """The encoder as transformers saves it, and head.safetensors."""
        self.encoder.save_pretrained(folder, state_dict=whole_state(self.encoder))
        weights, names = self.state_dict(), self.head_names()
        head = {k: weights[n].float().contiguous() for k, n in names.items()}
        save_file(head, Path(folder, "head.safetensors"))

    @classmethod
    def load(cls, folder: str | Path, labels: int, pooling: str) -> "EmotionClassifier":
        """A fold that train.py saved, in eval mode. UserError for a head of another shape."""
        model = cls(load_encoder(str(folder)), labels, pooling)
        path, names = Path(folder, "head.safetensors"), model.head_names()
        with plain_errors(str(folder)):
            weights = load_file(path)
            if differ := sorted(weights.keys() ^ names.keys()):
                what = f"made by other code (weights {', '.join(differ)})"
                raise UserError(f"{path}: {what} - use the code it was trained with")
            head = {names[k]: v for k, v in weights.items()}
            model.load_state_dict({**model.state_dict(), **head})
        return model.eval()


def autocast(device: str, precision: str):
    dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    return torch.autocast(device, dtype=dtype, enabled=dtype is not None)


def pool(hidden: torch.Tensor, mask: torch.Tensor, how: str) -> torch.Tensor:
    """(B, T, H) -> (B, H): the first token (BERT's [CLS]), or the mean over all but padding."""
    if how == "cls":
        return hidden[:, 0]
    weight = mask.unsqueeze(-1).to(hidden.dtype)  # (B, T, 1)
    return (hidden * weight).sum(1) / weight.sum(1).clamp(min=1)


def compute_loss(model: nn.Module, batch: dict, criterion=None) -> tuple:
    """Logits (B, C), and with a criterion the loss of each row (B,).

    Training, validation and prediction all come here: it alone knows what the model returns.
    """
    logits = model(batch["input_ids"], batch["attention_mask"])
    return logits, criterion(logits, batch["labels"]) if criterion else None


def build_model(
    path: str, config: Config, labels: np.ndarray, ids: np.ndarray
) -> EmotionClassifier:
    """A pretrained encoder with a new head. labels (N, C): to train on; ids: tokens that occur."""
    model = EmotionClassifier(load_encoder(path), labels.shape[1], config.pooling, config.dropout)
    encoder = model.encoder
    if not config.pos_weight:  # which makes all labels equally frequent
        model.start_at(torch.from_numpy(labels.mean(0).clip(0.001, 0.999)))
    use_token_table(encoder, ids)
    if config.freeze:
        parts = [encoder.get_input_embeddings(), getattr(encoder, "embeddings", None)]
        for part in filter(None, [*parts, *layers_of(encoder)[: config.freeze]]):
            part.requires_grad_(False)
    fast_dropout(encoder)
    return model.to(config.device)


def count_parameters(model: EmotionClassifier) -> str:
    table = model.encoder.get_input_embeddings()
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    head = [p for n, p in model.named_parameters() if not n.startswith("encoder.")]
    total = sum(p.numel() for p in [*whole_state(model.encoder).values(), *head])
    text = f"{total:,} parameters, {trainable:,} trainable"
    if isinstance(table, TokenTable):
        text += f" (token table: the {len(table.weight):,} rows that occur)"
    return text


def token_batches(lengths: np.ndarray, tokens: int) -> list[np.ndarray]:
    """Positions sorted by length, longest first, in batches of about `tokens` tokens."""
    order, batches = np.argsort(-lengths, kind="stable"), []
    while len(order):
        n = max(1, tokens // max(1, int(lengths[order[0]])))
        batches.append(order[:n])
        order = order[n:]
    return batches


def run_over_rows(model, dataset, collate, config, rows=None, criterion=None, check=lambda: None):
    """float32 logits (n, C) and losses (n,) of the dataset's `rows` (None: all), in their order.

    The one place that runs a model without training it. Rows go through sorted by length; `check`
    runs between batches (signals, progress). Of `config`: device and precision.
    """
    rows = np.arange(len(dataset)) if rows is None else rows
    # fp32 activations of 1024 tokens stay in a CPU's cache: 1.3 times as fast as 4096.
    tokens = 1024 if (config.device, config.precision) == ("cpu", "fp32") else 4096
    logits = np.zeros((len(rows), model.num_labels), np.float32)
    losses = np.zeros(len(rows), np.float32)
    model.eval()

    @torch.inference_mode()
    def run(part: np.ndarray) -> None:
        batch = collate([dataset[i] for i in rows[part]])
        with autocast(config.device, config.precision):
            out, loss = compute_loss(model, batch, criterion)
        logits[part] = out.float().cpu().numpy()
        if criterion:
            losses[part] = loss.float().cpu().numpy()

    for _ in in_threads(run, token_batches(dataset.lengths[rows], tokens), config.device):
        check()
    return logits, losses


def sigmoid(x: np.ndarray) -> np.ndarray:
    return torch.sigmoid(torch.from_numpy(np.asarray(x, dtype=np.float32))).numpy()
