"""Which rows stand together: copies of a text, rows of one group; and folds that a file gives.

N rows. Folds are numbered from 0; -1 is a row that is never held out.
"""

import hashlib
import re
import unicodedata
from collections import Counter

import numpy as np

from support.errors import UserError, warn
from support.findings import is_blank

FEW = 500  # held-out rows, below which the best of several epochs is luck


def normalise(text: str) -> str:
    """What makes two texts the same: Unicode NFKC, case and white space apart."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


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
        (row, cell), rows = next(iter(wrong.items())), ", ".join(map(str, [*wrong][:5]))
        what = f"{cell[:40]!r} is no fold ({len(wrong)} such cells: row {rows})"
        mend = "write a whole number from 0 to 999, or -1 for a row that is never held out"
        raise UserError(f"{path}:{row} {where}: {what} - {mend}")
    fold = column.astype(np.int16).to_numpy(copy=True)
    n = int(fold.max()) + 1
    if missing := sorted({*range(n)} - {*fold.tolist()}):
        gap = f"no row has fold {missing[0]}"
        raise UserError(f"{path} {where}: {gap} - number the folds from 0 without a gap")
    if len(np.unique(fold)) == 1:
        raise UserError(f"{path} {where}: every row has {fold[0]} - give some another fold")
    if folds not in (None, n):
        raise UserError(f"--folds {folds}: {path} {where} has {n} - leave --folds out")
    return fold


def read_split(path: str, named, config) -> dict:
    """`group` and `folds` of a Table, from the DataFrame of the columns that flags name."""
    found = {}
    if config.group_column:
        found["group"] = named[config.group_column].str.strip().to_numpy(object)
    if config.fold_column:
        found["folds"] = read_folds(named[config.fold_column], path, config.folds)
    return found


def join(hashes: np.ndarray, texts: list[str], group: np.ndarray) -> np.ndarray:
    """int (N,): rows of one text, and rows of one group, have the same number.

    hashes (N,) of the texts; group (N,): a name, '' for none. Groups that share a text become one.
    A blank text joins nothing.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n = len(hashes)
    text, name = (np.unique(x, return_inverse=True)[1] for x in (hashes, group))
    # A graph: the nodes are rows, then texts, then groups; a row hangs on its text and its group.
    of_text = np.flatnonzero([not is_blank(text) for text in texts])
    of_group = np.flatnonzero(group != "")
    rows = np.concatenate([of_text, of_group])
    ends = np.concatenate([n + text[of_text], 2 * n + name[of_group]])
    graph = coo_array((np.ones(len(rows)), (rows, ends)), shape=(3 * n, 3 * n))
    return connected_components(graph, directed=False)[1][:n]


def say_split(data, fold: np.ndarray, config) -> None:
    """Warn of texts and groups on both sides of a given split; of few rows to choose an epoch."""
    if data.folds is not None:
        has_text = np.array([not is_blank(text) for text in data.texts])
        say_both_sides(fold, data.hashes, has_text, "text")
        if data.group is not None:
            say_both_sides(fold, data.group, data.group != "", "group")
    held_out = int((fold >= 0).sum())
    if config.valid and held_out < FEW and config.keep == "best":
        print(f"only {held_out} rows choose the epoch - with so few, --keep last is advised")


def say_large(data, folds: int) -> None:
    """Warn of rows that stand together and are more than a fold, and of the text that joins most
    groups of them."""
    _, joined, size = np.unique(data.groups, return_inverse=True, return_counts=True)
    if data.group is None or size.max() <= len(data) / folds:
        return
    mine = np.flatnonzero(joined == size.argmax())
    names = sorted({" ".join(data.group[i].split())[:40] for i in mine} - {""})
    why = ", ".join(names[:3]) or "one text"
    pairs = {(normalise(data.texts[i]), data.group[i]) for i in mine if data.group[i]}
    joins = Counter(text for text, _ in sorted(pairs) if not is_blank(text))
    for text, groups in joins.most_common(1):
        why += f"; the text {text[:40]!r} joins {groups} groups" if groups > 1 else ""
    warn(f"{len(mine)} of {len(data)} rows belong together, more than 1/{folds} of all ({why})")


def say_both_sides(fold: np.ndarray, keys: np.ndarray, has: np.ndarray, what: str) -> None:
    """`has` (N,): the rows that have a key at all."""
    _, key = np.unique(keys, return_inverse=True)
    pairs = np.unique(np.stack([key, fold], 1)[has], axis=0)
    folds_of_key = np.bincount(pairs[:, 0], minlength=key.max() + 1)
    both = int(((folds_of_key[key] > 1) & has & (fold >= 0)).sum())
    if both:
        where = f"{both} of {int((fold >= 0).sum())} held-out rows"
        warn(f"{where} have a {what} that rows outside their fold have too - scores are too good")
