"""Cells and texts of a CSV: what they mean, and what is odd in them."""

import contextlib
import unicodedata

import numpy as np

TRUTH = {"0": 0.0, "1": 1.0, "0.0": 0.0, "1.0": 1.0, "false": 0.0, "true": 1.0}


def is_blank(text: str) -> bool:
    """Whether there is nothing to see: white space, control and format characters alone."""
    return all(c.isspace() or unicodedata.category(c) in ("Cc", "Cf") for c in text)


def as_share(cell: str) -> float:
    """A number from 0 to 1, or one of the words of TRUTH; else nan."""
    x = TRUTH.get(cell, np.nan)
    with contextlib.suppress(ValueError):
        if cell.isascii() and "_" not in cell:  # float() takes 0_1 and other scripts' digits
            x = float(cell)
    return x if 0 <= x <= 1 else np.nan
