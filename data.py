"""From a CSV to batches: texts and labels, folds, tokens, batches of similar length.

N data rows, C labels, K folds; B rows of a batch, T tokens. Texts are tokenised once, into one flat
array; a batch is as long as its longest text. What the encoder reads of a row (a tag, a second
column): `make_inputs`. Which rows share a batch, and their order: `length_batches`.
"""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase as Tokenizer

from config import Config
from support.csvfile import check_file
from support.files import unchanged
from support.inputcsv import InputCSV
from support.process import UserError
from support.splits import append_rows, join, read_split, text_hashes, warn_of_large_groups


@dataclass
class Table:
    """Rows of a CSV."""

    ids: list[str]
    texts: list[str]  # as written; rows with the same text are copies
    inputs: list[str]  # what the encoder reads
    targets: np.ndarray | None  # float32 (N, C): what is learned, 0 or 1 (a share); nan: unknown
    text_column: str
    named: object = None  # DataFrame of the columns that a flag names
    extra: dict[str, np.ndarray] = field(
        default_factory=dict
    )  # float32 (N,): other columns of numbers
    group: np.ndarray | None = None  # (N,): the cell of --group-column, '' for no group
    fold: np.ndarray | None = None  # int (N,): the fold that holds a row out; -1: none does
    sha256: str = ""  # of the file; of --train and --valid, with a space between
    identity: dict = field(default_factory=dict)  # what else decides a run (tools/distil.py)
    unlabelled: int = 0  # texts without labels, at the end (tools/distil.py)

    def __len__(self) -> int:
        return len(self.ids)

    @functools.cached_property
    def y(self) -> np.ndarray | None:
        """float32 (N, C), 0 or 1 (a share from 0.5 on), for folds and scores; nan: unknown."""
        if self.targets is None:
            return None
        return np.where(np.isnan(self.targets), self.targets, self.targets >= 0.5)

    @property
    def scored(self) -> np.ndarray:
        """bool (N,): the rows of which some label is known."""
        return ~np.isnan(self.y).all(1)

    @functools.cached_property
    def hashes(self) -> np.ndarray:
        """uint64 (N,): equal for copies of a text."""
        return text_hashes(self.texts)

    @functools.cached_property
    def groups(self) -> np.ndarray:
        """(N,): equal for rows that must share a fold: copies of a text, rows of one group."""
        return self.hashes if self.group is None else join(self.hashes, self.texts, self.group)

    def targets_of(self, k: int) -> np.ndarray:
        """float32 (N, C): what the model of fold k learns."""
        return self.targets


def make_inputs(texts: list[str], columns=None) -> list[str]:
    """What the encoder reads of each row: its text. Copies and folds go by `texts` all the same.

    `columns`: a DataFrame of all cells as written, or None (`predict.py --text` has texts alone).
    """
    return texts


def read_chunks(source: InputCSV, rows: int | None = None) -> Iterator[Table]:
    """Tables of at most `rows` rows (None: all) in the file's order; always one, even if empty.

    Ids and texts stay as written: 'NA' is a text, 007 an id.
    """
    table = None
    n = 0  # rows before
    for frame in source.frames(rows):
        texts = frame[source.text_column].tolist()
        targets = source.read_labels(frame)
        source.count_odd(frame, texts)
        ids, inputs = source.read_ids(frame, n), make_inputs(texts, frame)
        columns = frame[source.named], source.read_numbers(frame)
        table = Table(ids, texts, inputs, targets, source.text_column, *columns)
        yield table
        n += len(texts)
    if table is None:
        yield Table([], [], [], None, source.text_column)


def read_table(path: str, config: Config, text_column: str | None = None) -> Table:
    """A whole training CSV. UserError for the first thing that is wrong with it.

    `text_column`: the one to take, unless another name is all there is.
    """
    check_file(path, "a CSV")
    with unchanged(path, code=2) as (sha256,):
        source = InputCSV(path, config, text_column=text_column, training=True)
        (table,) = read_chunks(source)
        source.check_rows()
    source.warn_of_odd_rows()
    return replace(table, sha256=sha256, **read_split(table.named, config, path))


def read_data(config: Config) -> Table:
    """The rows of --train, and after them those of --valid, which alone are held out."""
    table = read_table(config.train, config)
    if config.valid:
        valid = read_table(config.valid, replace(config, text_column=None), table.text_column)
        fold = np.repeat([-1, 0], [len(table), len(valid)])
        return replace(append_rows(table, valid, fold), sha256=f"{table.sha256} {valid.sha256}")
    return table


# Folds


def split(table: Table, config: Config) -> Table:
    """The table with its folds: those that a file gave, or stratified ones."""
    if table.fold is not None:
        return table
    warn_of_large_groups(table, config.stratified_folds)
    fold = assign_folds(table.y, table.groups, config.stratified_folds, config.fold_seed)
    if config.folds == 1:
        k = 0
        if config.group_column:  # large groups fill the first folds: the one nearest to a fifth
            rows = np.bincount(fold)
            k = np.abs(rows - rows.mean()).argmin()
        fold = np.where(fold == k, 0, -1)
    return replace(table, fold=fold)


def assign_folds(y: np.ndarray, groups: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """int16 (N,): the fold of each row. Rows with equal `groups` share one; labels spread evenly.

    Iterative stratification (Sechidis et al. 2011, rarest label first) over whole groups.
    A group goes to the fold that has least of the label; among equals, to the one that has least of
    the group's combination of labels and gaps (nan), then fewest rows. UserError: too few groups.
    """
    _, group, size = np.unique(groups, return_inverse=True, return_counts=True)
    G = len(size)
    if folds > G:
        problem = f"only {G} distinct texts or groups for {folds} folds (a hold-out takes five)"
        raise UserError(f"--folds: {problem} - use fewer folds, or add rows")
    # (G, C + 1): positives of each label in each group. The last label stands for the rows.
    counts = np.stack([*(np.bincount(group, y_j > 0, G) for y_j in y.T), size], 1).astype(np.int64)
    todo = counts > 0  # groups without a fold, by label
    gaps = np.stack([np.bincount(group, np.isnan(y_j), G) > 0 for y_j in y.T], 1)
    kinds, combination = np.unique(np.hstack([todo, gaps]), axis=0, return_inverse=True)
    order = np.random.default_rng([seed, 0]).permutation(G)
    order = order[np.argsort(-size[order], kind="stable")]  # large groups are the hardest to place
    has = np.zeros((counts.shape[1], folds), dtype=np.int64)  # rows of each label in each fold
    mixed = np.zeros((len(kinds), folds), dtype=np.int64)  # rows of each combination in each fold
    fold = np.empty(G, dtype=np.int16)
    while todo.any():
        remaining = todo.sum(0)
        label = int(np.where(remaining > 0, remaining, G + 1).argmin())
        members = order[todo[order, label]]
        for g in members:
            k = fold[g] = np.lexsort((has[-1], mixed[combination[g]], has[label]))[0]
            has[:, k] += counts[g]
            mixed[combination[g], k] += size[g]
        todo[members] = False
    return fold[group]


@dataclass
class OutOfFold:
    """The held-out rows of a run: each is predicted by the one model that was not trained on it.

    n rows, in the order of the Table.
    """

    rows: np.ndarray  # int (n,): where they stand in the Table
    fold: np.ndarray  # int (n,)
    y: np.ndarray  # (n, C): 0 or 1; nan: unknown
    p: np.ndarray  # float32 (n, C): probabilities


def threshold_folds(oof: OutOfFold, groups: np.ndarray, config: Config) -> np.ndarray:
    """int (n,): thresholds for the rows of one number are chosen on all others. These are the
    folds; a hold-out is cut into five parts. groups (N,): of all rows of the Table."""
    if config.folds != 1:
        return oof.fold
    groups = groups[oof.rows]
    parts = min(5, len(np.unique(groups)))
    return assign_folds(oof.y, groups, parts, config.fold_seed)


# Tokens and batches


@dataclass
class EmotionDataset(torch.utils.data.Dataset):
    """Row i: `input_ids` int32 (T,), of one flat array, `labels` float32 (C,), and `extra`."""

    token_ids: np.ndarray  # int32 (all tokens,)
    offsets: np.ndarray  # int64 (N + 1,): row i is token_ids[offsets[i]:offsets[i + 1]]
    truncated: int = 0  # rows longer than max_length
    targets: np.ndarray | None = None  # float32 (N, C): what a fold learns
    extra: dict[str, np.ndarray] = field(default_factory=dict)  # (N,) each: `Table.extra`

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> dict:
        item = {"input_ids": self.token_ids[self.offsets[i] : self.offsets[i + 1]]}
        if self.targets is not None:
            item["labels"] = self.targets[i]
        return item | {name: values[i] for name, values in self.extra.items()}


def encode(tokenizer: Tokenizer, inputs: list[str], max_length: int) -> EmotionDataset:
    """All inputs tokenised, special tokens included. train.py and predict.py both come here."""
    tokenise = functools.partial(
        tokenizer,
        truncation=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    parts = [np.zeros(0, np.int32)]
    lengths = [0]
    truncated = 0
    for i in range(0, len(inputs), 1000):  # larger chunks leave the processor's cache
        rows = tokenise(inputs[i : i + 1000], max_length=max_length)["input_ids"]
        # Without special tokens a blank text has no tokens: give it one of padding.
        rows = [row or [tokenizer.pad_token_id] for row in rows]
        full = [inputs[i + j] for j, row in enumerate(rows) if len(row) >= max_length]
        if full:
            longer = tokenise(full, max_length=max_length + 1)["input_ids"]
            truncated += sum(len(row) > max_length for row in longer)  # exactly full is not cut
        lengths += map(len, rows)
        parts.append(np.fromiter((t for row in rows for t in row), np.int32, sum(map(len, rows))))
    offsets = np.cumsum(lengths, dtype=np.int64)
    return EmotionDataset(np.concatenate(parts), offsets, truncated)


@dataclass
class DataCollator:
    """Rows of an EmotionDataset -> tensors on the device, as long as the longest row."""

    pad_id: int
    max_length: int = 1_000_000  # what the encoder takes; the rounding up stops there
    device: str = "cpu"
    precision: str = "fp32"

    @classmethod
    def of(cls, tokenizer: Tokenizer, config: Config) -> "DataCollator":
        return cls(tokenizer.pad_token_id, config.max_length, config.device, config.precision)

    def __call__(self, items: list[dict]) -> dict[str, torch.Tensor]:
        rows = [item["input_ids"] for item in items]
        # Except for fp32 on a CPU, few different lengths: oneDNN (bf16) compiles for each shape.
        multiple = 1 if (self.device, self.precision) == ("cpu", "fp32") else 8
        longest = max(map(len, rows))
        width = min(math.ceil(longest / multiple) * multiple, self.max_length)
        mask = np.arange(width) < np.array([[len(row)] for row in rows])  # (B, T)
        ids = np.full(mask.shape, self.pad_id, dtype=np.int64)
        ids[mask] = np.concatenate(rows)
        arrays = {"input_ids": ids, "attention_mask": mask.astype(np.int64)}
        for name in items[0].keys() - {"input_ids"}:  # labels (B, C); extra columns (B,)
            arrays[name] = np.stack([item[name] for item in items])
        batch = {name: torch.from_numpy(x) for name, x in arrays.items()}
        pinned = self.device == "cuda"  # a copy from pinned memory need not be waited for
        if pinned:
            batch = {name: t.pin_memory() for name, t in batch.items()}
        return {name: t.to(self.device, non_blocking=pinned) for name, t in batch.items()}


def length_batches(lengths: np.ndarray, batch_size: int, seed: list[int]) -> list[np.ndarray]:
    """Positions 0..N-1 in batches of similar length, all in an order drawn from `seed`.

    The shuffled rows are sorted by length within pools of 50 batches: epochs differ in batches.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(lengths))
    order = order[np.lexsort((lengths[order], np.arange(len(order)) // (50 * batch_size)))]
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]
