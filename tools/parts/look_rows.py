"""The rows of tools/look.py's page: their texts, which of them are shown, what stands in each.

n held-out rows, C labels. Texts are those of errors.csv, so that a copied run is enough; the
training CSV has those that errors.csv lacks.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

import metrics
from support.csvfile import CsvFile
from support.finished import read_oof, read_training
from support.process import UserError
from tools.parts.look_numbers import number
from tools.parts.sides import Finished

HALF = 5_000  # with more than twice as many rows: so many by loss, and so many drawn
LONGEST = 2_000  # characters of a text that are shown


def read_texts(one: Finished, moved: list[str]) -> tuple[list[str | None], str]:
    """The texts (n,) of the held-out rows; None where one is not at hand, and why.

    `moved`: see `read_training`.
    """
    ids = one.oof.ids
    of_id = defaultdict(set)
    for frame in CsvFile(one.run.path / "errors.csv").frames(10_000):
        for name, text in zip(frame["id"], frame["text"], strict=True):
            of_id[name].add(text)
    times = Counter(ids)
    # errors.csv has no row numbers: of two rows of one id it doesn't say whose text is whose.
    texts = [next(iter(of_id[x])) if times[x] == 1 and of_id[x] else None for x in ids]
    if None not in texts:
        return texts, ""
    try:
        table = read_training(one.run, moved)
        rows = read_oof(one.run, table).rows
    except UserError as e:
        return texts, str(e)
    return [table.texts[i] for i in rows], ""


def cell_losses(y: np.ndarray, p: np.ndarray) -> np.ndarray:
    """(n, C): cross-entropy, as in errors.csv; nan: unknown."""
    right = np.where(y > 0, p, 1 - p).astype(np.float64)
    right[np.isnan(y)] = np.nan
    return -np.log(np.maximum(right, 1e-12))


def row_losses(y: np.ndarray, p: np.ndarray) -> np.ndarray:
    """(n,): the mean over a row's known cells; -1 where there are none, so that they come last."""
    losses = cell_losses(y, p)
    known = (~np.isnan(losses)).sum(1)
    return np.where(known > 0, np.nansum(losses, 1) / np.maximum(known, 1), -1.0)


def shown_rows(losses: np.ndarray, half: int = HALF) -> np.ndarray:
    """Positions of the rows shown, by falling loss: all, or the first ones and as many drawn from
    the others, always the same."""
    order = np.argsort(-losses, kind="stable")
    if len(order) <= 2 * half:
        return order
    drawn = np.random.default_rng(0).choice(len(order) - half, half, replace=False)
    return np.concatenate([order[:half], order[half:][np.sort(drawn)]])


def shown_of(rows: int, half: int = HALF) -> str:
    """What the page says of the rows it has."""
    if rows <= 2 * half:
        return f"All {rows:,} held-out rows."
    some = f"the {half:,} of highest loss and {half:,} drawn at random"
    return f"Of {rows:,} held-out rows {some}; all numbers above are of all rows."


def most_wrong(y: np.ndarray, p: np.ndarray, pred: np.ndarray, most: int) -> np.ndarray:
    """int (m, 2): row and label of the known cells whose verdict is wrong, by falling loss."""
    losses = cell_losses(y, p)
    losses[(y > 0) == pred] = np.nan
    order = np.argsort(-losses, axis=None, kind="stable")  # nan comes last
    wrong = int((~np.isnan(losses)).sum())
    return np.stack(np.unravel_index(order[: min(most, wrong)], losses.shape), 1)


def marks(cells: np.ndarray) -> str:
    """A row's 0/1 cells as a word, ? for unknown: '01?0'."""
    return "".join("?" if np.isnan(x) else "1" if x > 0 else "0" for x in cells)


def logits(p: np.ndarray) -> list[float | None]:
    """With three digits: the page makes probability and loss of it."""
    return [number(z, 3) for z in metrics.logit(p)]


def short(text: str | None) -> str | None:
    if text is None or len(text) <= LONGEST:
        return text
    return f"{text[:LONGEST]} … (cut: {len(text):,} characters)"


def short_pieces(pieces: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """Pieces of a text (see tools/parts/words.py) up to where `short` cuts it."""
    kept = []
    room = LONGEST
    for text, score in pieces:
        if len(text) > room:
            total = sum(len(piece) for piece, _ in pieces)
            return [*kept, (f"{text[:room]} … (cut: {total:,} characters)", score)]
        kept.append((text, score))
        room -= len(text)
    return kept


def row_cells(
    one: Finished, text: str | None, i: int, of_b: Sequence[np.ndarray] | None = None
) -> list:
    """Row i as the page has it: id, fold, text, given, verdicts, logits; of B (see `against`)
    verdicts and logits."""
    judged = one.judged
    row = [one.oof.ids[i], int(one.oof.fold[i]), short(text)]
    row += [marks(judged.y[i]), marks(judged.pred[i]), logits(judged.p[i])]
    if of_b is not None:
        verdicts, p = of_b
        row += [marks(verdicts[i]), logits(p[i])]
    return row
