"""Any pretrained encoder, a text vector, dropout and a linear head; running it over rows.

B rows of a batch, T tokens, H hidden, C labels. Another pooling: `pool`. Another head:
`EmotionClassifier.__init__`. More outputs, a second pass, another loss than that of the logits:
`compute_loss`. The head is the first notebook's for every encoder, in fp32 outside autocast.
"""

import copy
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import metrics
from config import Config
from data import DataCollator, EmotionDataset
from support.device import autocast, in_threads
from support.dropout import fast_dropout
from support.encoders import layers_of, load_encoder, lowest_parts, plain_errors
from support.process import UserError
from support.recompute import recompute
from support.tokentable import TokenTable, use_token_table, whole_state

Criterion = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # logits, targets -> losses (B,)


class EmotionClassifier(nn.Module):
    """Encoder -> text vector -> dropout -> linear: logits (B, C) in fp32; by the run's settings."""

    def __init__(self, encoder: nn.Module, config: Config):
        super().__init__()
        self.encoder = encoder
        self.num_labels = len(config.labels)
        self.pooling = config.pooling
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(encoder.config.hidden_size, self.num_labels)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        with torch.autocast(hidden.device.type, enabled=False):
            vector = pool(hidden.float(), attention_mask, self.pooling)  # (B, T, H) -> (B, H)
            return self.head(self.dropout(vector))  # (B, C); see `TextVectors`

    @torch.no_grad()
    def start_at(self, share: torch.Tensor) -> None:
        """Let the untrained head predict each label's share (C,) of the rows (Lin et al. 2017)."""
        last = [m for m in self.head.modules() if isinstance(m, nn.Linear)][-1]
        last.bias.copy_(torch.logit(share))

    def head_keys(self) -> list[str]:
        """What head.safetensors holds of the state_dict: all but the encoder, a fork's too."""
        return [key for key in self.state_dict() if not key.startswith("encoder.")]

    def save(self, folder: str | Path) -> None:
        """The encoder as transformers saves it, and head.safetensors."""
        self.encoder.save_pretrained(folder, state_dict=whole_state(self.encoder))
        weights = self.state_dict()
        head = {key: weights[key].float().contiguous() for key in self.head_keys()}
        save_file(head, Path(folder, "head.safetensors"))

    @classmethod
    def load(cls, folder: str | Path, config: Config) -> "EmotionClassifier":
        """A fold that train.py saved, in eval mode. UserError for a head of another shape.

        `config`: the settings of its run.
        """
        model = cls(load_encoder(str(folder)), config)
        path = Path(folder, "head.safetensors")
        with plain_errors(str(folder)):
            head = load_file(path)
            if different := sorted(head.keys() ^ set(model.head_keys())):
                problem = f"made by other code (weights {', '.join(different)})"
                raise UserError(f"{path}: {problem} - use the code it was trained with")
            model.load_state_dict({**model.state_dict(), **head})
        return model.eval()


class TextVectors(nn.Module):
    """What the head of a model reads, (B, H) in place of logits: for `run_over_rows`.

    What `forward` does to the logits after the head it does to these vectors, too.
    """

    def __init__(self, model: EmotionClassifier):
        super().__init__()
        self.model = twin(model)
        self.model.head = nn.Identity()
        self.num_labels = model.encoder.config.hidden_size

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids, attention_mask)


def pool(hidden: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """(B, T, H) -> (B, H): the first token (BERT's [CLS]), or the mean over all but padding."""
    if pooling == "cls":
        return hidden[:, 0]
    if pooling != "mean":
        raise NotImplementedError(f"pool in model.py has no pooling {pooling!r}")
    weight = mask.unsqueeze(-1).to(hidden.dtype)  # (B, T, 1)
    return (hidden * weight).sum(1) / weight.sum(1).clamp(min=1)


def compute_loss(
    model: nn.Module, batch: dict[str, torch.Tensor], criterion: Criterion | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Logits (B, C), and with a criterion the loss of each row (B,).

    Training, validation and prediction all come here: it alone knows what the model returns.
    """
    logits = model(batch["input_ids"], batch["attention_mask"])
    if "windows" in batch:  # the collator may give a row several sequences: so many (B,)
        logits = torch.segment_reduce(logits, "mean", lengths=batch["windows"])
    losses = criterion(logits, batch["labels"]) if criterion else None
    return logits, losses


def build_model(
    path: str, config: Config, targets: np.ndarray, token_ids: np.ndarray
) -> EmotionClassifier:
    """A pretrained encoder with a new head. targets (N, C): of the rows to train on, nan: unknown;
    token_ids: those that occur."""
    encoder = load_encoder(path)
    model = EmotionClassifier(encoder, config)
    if not config.pos_weight:  # which makes all labels equally frequent
        model.start_at(torch.from_numpy(metrics.known_share(targets).clip(0.001, 0.999)))
    use_token_table(encoder, token_ids)
    for part in lowest_parts(encoder, config.freeze):
        part.requires_grad_(False)
    fast_dropout(encoder)
    recompute(layers_of(encoder) if config.gradient_checkpointing else [])
    return model.to(config.device)


def count_parameters(model: EmotionClassifier) -> str:
    embedding = model.encoder.get_input_embeddings()
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    head = [p for n, p in model.named_parameters() if not n.startswith("encoder.")]
    total = sum(p.numel() for p in [*whole_state(model.encoder).values(), *head])
    text = f"{total:,} parameters, {trainable:,} trainable"
    if isinstance(embedding, TokenTable):
        text += f" (token table: the {len(embedding.weight):,} rows that occur)"
    return text


def token_batches(lengths: np.ndarray, tokens: int) -> list[np.ndarray]:
    """Positions sorted by length, longest first, in batches of about `tokens` tokens."""
    order = np.argsort(-lengths, kind="stable")
    batches = []
    while len(order):
        n = max(1, tokens // max(1, int(lengths[order[0]])))
        batches.append(order[:n])
        order = order[n:]
    return batches


def run_over_rows(
    model: EmotionClassifier,
    dataset: EmotionDataset,
    collate: DataCollator,
    rows: np.ndarray | None = None,
    criterion: Criterion | None = None,
    check: Callable[[], None] = lambda: None,
) -> tuple[np.ndarray, np.ndarray]:
    """float32 logits (n, C) and losses (n,) of the dataset's `rows` (None: all), in their order.

    The one place that runs a model without training it. Rows go through sorted by length; `check`
    runs between batches (signals, progress).
    """
    rows = np.arange(len(dataset)) if rows is None else rows
    # fp32 activations of 1024 tokens stay in a CPU's cache: 1.3 times as fast as 4096.
    tokens = 1024 if (collate.device, collate.precision) == ("cpu", "fp32") else 4096
    logits = np.zeros((len(rows), model.num_labels), np.float32)
    losses = np.zeros(len(rows), np.float32)
    model.eval()
    of_thread = threading.local()  # what `forward` sets on self must not be another batch's

    @torch.inference_mode()
    def run(part: np.ndarray) -> None:
        if not hasattr(of_thread, "model"):
            of_thread.model = twin(model)
        batch = collate([dataset[i] for i in rows[part]])
        with autocast(collate.device, collate.precision):
            batch_logits, batch_losses = compute_loss(of_thread.model, batch, criterion)
        logits[part] = batch_logits.float().cpu().numpy()
        if criterion:
            losses[part] = batch_losses.float().cpu().numpy()

    for _ in in_threads(run, token_batches(dataset.lengths[rows], tokens), collate.device):
        check()
    return logits, losses


def twin(module: nn.Module) -> nn.Module:
    """A tree of modules of its own over the same parameters and buffers."""
    copies: dict[int, nn.Module] = {}  # a module that stands in two places stays one

    def copied(old: nn.Module) -> nn.Module:
        if id(old) not in copies:
            new = copies[id(old)] = copy.copy(old)
            new._modules = {name: child and copied(child) for name, child in old._modules.items()}
            new._buffers = dict(old._buffers)
        return copies[id(old)]

    return copied(module)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return torch.sigmoid(torch.from_numpy(np.asarray(x, dtype=np.float32))).numpy()
