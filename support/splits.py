"""Which rows belong together: copies of a text, rows of one group; and folds that a file gives.

N rows. Folds are numbered from 0; -1 is a row that is never held out.
"""

import dataclasses
import hashlib
import re
import unicodedata
from collections import Counter

import numpy as np

import metrics
from config import Config
from support.oddrows import is_blank
from support.process import UserError, warn

FEW = 500  # held-out rows, below which the best of several epochs is luck


# What nobody sees: control characters, and Unicode's Default_Ignorable_Code_Point (UAX 44)
UNSEEN = re.compile(
    "[\0-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f"
    "\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8"
    "\U000e0000-\U000e0fff]"
)


def normalise(text: str) -> str:
    """What makes two texts the same: NFKC; case, white space and unseen characters apart."""
    return " ".join(UNSEEN.sub("", unicodedata.normalize("NFKC", text)).casefold().split())


def group_name(cell: str) -> str:
    """What makes two groups the same. Where some are missing, pandas writes the number 1 as 1.0."""
    return re.sub(r"^(-?\d+)\.0+$", r"\1", normalise(cell))


def text_hashes(texts: list[str]) -> np.ndarray:
    """uint64 (N,): 8 bytes of BLAKE2b of each normalised text."""
    keys = (normalise(t).encode("utf-8", "replace") for t in texts)
    hashes = b"".join(hashlib.blake2b(k, digest_size=8).digest() for k in keys)
    return np.frombuffer(hashes, dtype="<u8")


def read_folds(column, path: str, folds: int | None) -> np.ndarray:
    """int16 (N,) from the cells of --fold-column, a Series indexed by row of the file.

    `folds`: --folds, where it is given. UserError for anything but 0 ... K - 1, and -1.
    """
    where = f"column {column.name!r}"
    wrong = {r: c for r, c in column.items() if not re.fullmatch(r"-1|[0-9]{1,3}", c.strip())}
    if wrong:
        row, cell = next(iter(wrong.items()))
        rows = ", ".join(map(str, [*wrong][:5]))
        problem = f"{cell[:40]!r} is no fold ({len(wrong)} such cells: row {rows})"
        hint = "write a whole number from 0 to 999, or -1 for a row that is never held out"
        raise UserError(f"{path}:{row} {where}: {problem} - {hint}")
    fold = column.astype(np.int16).to_numpy(copy=True)
    n = int(fold.max()) + 1
    if missing := sorted({*range(n)} - {*fold.tolist()}):
        problem = f"no row has fold {missing[0]}"
        raise UserError(f"{path} {where}: {problem} - number the folds from 0 without a gap")
    if len(np.unique(fold)) == 1:
        raise UserError(f"{path} {where}: every row has {fold[0]} - give some another fold")
    if folds not in (None, n):
        raise UserError(f"--folds {folds}: {path} {where} has {n} - leave --folds out")
    return fold


def read_split(named, config: Config, path: str) -> dict:
    """`group` and `fold` of a Table, from `named`, the DataFrame of the columns that flags name."""
    found = {}
    if config.group_column:
        found["group"] = named[config.group_column].map(group_name).to_numpy(object)
    if config.fold_column:
        found["fold"] = read_folds(named[config.fold_column], path, config.folds)
    return found


def append_rows(table, other, fold: np.ndarray):
    """A Table's rows, and after them another's, with folds for all.

    What one of them lacks of labels, groups and extra columns is nan or ''.
    """
    targets = other.targets
    if targets is None:
        targets = np.full((len(other), table.targets.shape[1]), np.nan, np.float32)
    group = table.group
    if group is not None:
        no_group = np.full(len(other), "", object)
        group = np.concatenate([group, no_group if other.group is None else other.group])
    extra = {}
    for name in table.extra.keys() | other.extra.keys():
        parts = [t.extra.get(name, np.full(len(t), np.nan, np.float32)) for t in (table, other)]
        extra[name] = np.concatenate(parts)
    return dataclasses.replace(
        table,
        ids=table.ids + other.ids,
        texts=table.texts + other.texts,
        inputs=table.inputs + other.inputs,
        targets=np.concatenate([table.targets, targets]),
        named=None,
        extra=extra,
        group=group,
        fold=fold,
    )


def join(hashes: np.ndarray, texts: list[str], group: np.ndarray) -> np.ndarray:
    """int (N,): rows of one text, and rows of one group, have the same number.

    hashes (N,) of the texts; group (N,): a name, '' for none. Groups that share a text become one.
    A blank text joins nothing.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n = len(hashes)
    text = np.unique(hashes, return_inverse=True)[1]
    name = np.unique(group, return_inverse=True)[1]
    # A graph: the nodes are rows, then texts, then groups; a row hangs on its text and its group.
    with_text = np.flatnonzero([not is_blank(text) for text in texts])
    with_group = np.flatnonzero(group != "")
    rows = np.concatenate([with_text, with_group])
    ends = np.concatenate([n + text[with_text], 2 * n + name[with_group]])
    graph = coo_array((np.ones(len(rows)), (rows, ends)), shape=(3 * n, 3 * n))
    return connected_components(graph, directed=False)[1][:n]


def warn_of_split(table, config: Config) -> None:
    """Warn of texts and groups on both sides of a given split; of few rows to choose an epoch."""
    if config.valid or config.fold_column:
        has_text = np.array([not is_blank(text) for text in table.texts])
        _warn_of_both_sides(table.fold, table.hashes, has_text, "text")
        if table.group is not None:
            _warn_of_both_sides(table.fold, table.group, table.group != "", "group")
    held_out = int((table.fold >= 0).sum())
    if config.valid and held_out < FEW and config.keep == "best":
        print(f"only {held_out} rows choose the epoch - with so few, --keep last is advised")


def warn_of_large_groups(table, folds: int) -> None:
    """Warn of rows that belong together and are more than a fold, and of the text that joins most
    groups of them."""
    _, joined, size = np.unique(table.groups, return_inverse=True, return_counts=True)
    if size.max() <= len(table) / folds:
        return
    largest = np.flatnonzero(joined == size.argmax())
    group = np.full(len(table), "") if table.group is None else table.group
    names = sorted({group[i][:40] for i in largest} - {""})
    text = " ".join(table.texts[largest[0]].split())[:40]
    reason = ", ".join(names[:3]) or f"copies of the text {text!r}"
    pairs = {(normalise(table.texts[i]), group[i]) for i in largest if group[i]}
    groups_of_text = Counter(text for text, _ in sorted(pairs) if not is_blank(text))
    for text, groups in groups_of_text.most_common(1):
        reason += f"; the text {text[:40]!r} joins {groups} groups" if groups > 1 else ""
    count = f"{len(largest)} of {len(table)} rows belong together"
    warn(f"{count}, more than 1/{folds} of all ({reason})")


def warn_of_common_text(table, names: list[str]) -> None:
    """A warning where one text is that of many rows; with the shares of its labels."""
    rows = np.arange(len(table) - table.unlabelled)
    _, text, copies = np.unique(table.hashes[rows], return_inverse=True, return_counts=True)
    n = copies.max()
    if n < max(10, len(rows) / 100):
        return
    rows = rows[text == copies.argmax()]
    y = table.y[rows]
    share = metrics.known_share(y)
    order = np.argsort(-share, kind="stable")[:5]
    shares = [f"{names[j]} {share[j]:.2f}" for j in order if share[j]]
    start = table.texts[rows[0]][:40]
    warn(f"{n} rows have the text {start!r}; its labels: {', '.join(shares) or 'none'}")


def _warn_of_both_sides(fold: np.ndarray, keys: np.ndarray, has: np.ndarray, kind: str) -> None:
    """`has` (N,): the rows that have a key at all. `kind`: what the keys stand for."""
    _, key = np.unique(keys, return_inverse=True)
    pairs = np.unique(np.stack([key, fold], 1)[has], axis=0)
    folds_of_key = np.bincount(pairs[:, 0], minlength=key.max() + 1)
    leaks = int(((folds_of_key[key] > 1) & has & (fold >= 0)).sum())
    if leaks:
        rows = f"{leaks} of {int((fold >= 0).sum())} held-out rows"
        warn(f"{rows} have a {kind} that rows outside their fold have too - scores are too good")
