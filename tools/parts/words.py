"""Which words moved a model: gradient times input.

Of a label's logit the gradient by each token's input embedding, times that embedding, summed over
its dimensions: what the token adds to the logit, to first order (Simonyan et al. 2013; times the
input: Shrikumar et al. 2016). The model is the one of the fold that holds the row out. A hint, no
proof: what the model would do without a word is another question.

B cells of a batch, T tokens, H hidden, C labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from data import DataCollator, EmotionDataset, encode, make_inputs
from model import EmotionClassifier, compute_loss, sigmoid, token_batches
from support.encoders import inspect_encoder
from support.finished import FinishedRun
from support.process import UserError

TOKENS = 1024  # of a batch
FAR = 0.05  # probabilities that differ by more are another model's


@dataclass
class Cell:
    """A row and a label, the fold that holds the row out, and what oof.csv has for it."""

    text: str
    label: int
    fold: int
    p: float


def word_scores(run: FinishedRun, cells: Sequence[Cell]) -> list[list[tuple[str, float]]]:
    """Of each cell its text in pieces, each with its score: from -1 to 1, the largest of the cell
    being 1 or -1; 0 for what no token stands for, and for what --max-length cuts off.

    UserError for what this can't do.
    """
    tokenizer = inspect_encoder(str(run.fold_dir(0))).tokenizer
    if not tokenizer.is_fast:
        raise UserError("the tokenizer doesn't say where its tokens stand in a text")
    inputs = make_inputs([cell.text for cell in cells])
    dataset = encode(tokenizer, inputs, run.config.max_length)
    collate = DataCollator.of(tokenizer, run.config)
    scores = [np.zeros(0)] * len(cells)
    for k in sorted({cell.fold for cell in cells}):
        model = EmotionClassifier.load(run.fold_dir(k), run.config).to(run.config.device)
        model.requires_grad_(False)
        mine = np.flatnonzero([cell.fold == k for cell in cells])
        for part in token_batches(dataset.lengths[mine], TOKENS):
            rows = mine[part]
            found, p = token_scores(model, dataset, collate, rows, [cells[i].label for i in rows])
            check_same_model(k, p, [cells[i].p for i in rows])
            for i, of_tokens in zip(rows, found, strict=True):
                scores[i] = of_tokens
    pieces = []
    for text, of_tokens in zip(inputs, scores, strict=True):
        coded = tokenizer(
            text, truncation=True, max_length=run.config.max_length, return_offsets_mapping=True
        )
        spans = word_spans(coded.word_ids(), coded["offset_mapping"], of_tokens)
        pieces.append(cut(text, spans))
    return pieces


def token_scores(
    model: EmotionClassifier,
    dataset: EmotionDataset,
    collate: DataCollator,
    rows: np.ndarray,
    labels: Sequence[int],
) -> tuple[list[np.ndarray], np.ndarray]:
    """Of each of the dataset's `rows` (B,) the scores of its tokens (T,), for its label; and the
    label's probabilities (B,)."""
    batch = collate([dataset[i] for i in rows])
    if len(batch["input_ids"]) != len(rows):
        raise UserError("a text is read as several sequences")
    embedded = []

    def keep(module, args, output: torch.Tensor) -> torch.Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    handle = model.encoder.get_input_embeddings().register_forward_hook(keep)
    try:
        logits, _ = compute_loss(model, batch)  # (B, C)
    finally:
        handle.remove()
    chosen = logits[torch.arange(len(rows)), torch.tensor(labels)]
    (vectors,) = embedded  # (B, T, H)
    (gradient,) = torch.autograd.grad(chosen.sum(), [vectors])
    scores = (gradient * vectors).sum(-1).detach().float().cpu().numpy()
    lengths = dataset.lengths[rows]
    p = sigmoid(chosen.detach().float().cpu().numpy())
    return [one[:length] for one, length in zip(scores, lengths, strict=True)], p


def check_same_model(k: int, p: np.ndarray, recorded: Sequence[float]) -> None:
    """UserError where a fold's model doesn't give the probabilities of oof.csv."""
    far = float(np.abs(p - recorded).max())
    if not far <= FAR:  # nan as well
        raise UserError(f"fold {k} gives other probabilities than oof.csv (by {far:.2f})")


def word_spans(
    words: Sequence[int | None], offsets: Sequence[tuple[int, int]], scores: np.ndarray
) -> list[tuple[int, int, float]]:
    """(start, end, score) of each word: its tokens together. Special tokens belong to none."""
    spans: list[tuple[int, int, float]] = []
    before = None
    for word, (start, end), score in zip(words, offsets, scores.tolist(), strict=True):
        if word is None or start == end:
            continue
        if word == before:
            first, last, total = spans[-1]
            spans[-1] = first, max(last, end), total + score
        else:
            spans.append((start, end, score))
        before = word
    return spans


def cut(text: str, spans: Sequence[tuple[int, int, float]]) -> list[tuple[str, float]]:
    """All of a text in pieces, with scores as `word_scores` has them."""
    largest = max((abs(score) for _, _, score in spans), default=0) or 1
    pieces = []
    place = 0
    for start, end, score in spans:
        start = max(start, place)  # tokens of one letter, such as an emoji's bytes, overlap
        if place < start:
            pieces.append((text[place:start], 0.0))
        if start < end:
            pieces.append((text[start:end], round(score / largest, 2)))
        place = max(place, end)
    if text[place:]:
        pieces.append((text[place:], 0.0))
    return pieces
