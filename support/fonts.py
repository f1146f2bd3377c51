"""Letters of label names that the picture's font lacks: another font, or a plain note."""

import contextlib
import re

NOTE = "No font here has the letters of some names: label N is the N-th in th.json"


def letters_of(path: str) -> set[str]:
    """What a font file can draw; nothing for one that can't be read, such as coloured emoji."""
    from matplotlib.font_manager import get_font

    with contextlib.suppress(OSError, RuntimeError):
        return set(map(chr, get_font(path).get_charmap()))
    return set()


def installed_fonts() -> list[tuple[str, str]]:
    """(family, file) of the upright ones, always in the same order."""
    from matplotlib.font_manager import fontManager

    fonts = {(f.name, f.fname) for f in fontManager.ttflist if f.style == "normal"}
    # Last Resort draws a box for every letter. The mathematical ones are no scripts.
    return sorted(font for font in fonts if not re.match("Last ?Resort|STIX|cm[a-z]+10", font[0]))


def fonts_for(texts: list[str]) -> tuple[list[str], set[str]]:
    """Families that have what matplotlib's default font lacks, and the letters that none has."""
    from matplotlib.font_manager import FontProperties, findfont

    missing = set("".join(texts)) - letters_of(findfont(FontProperties())) - {"\n"}
    families = []
    for family, path in installed_fonts() if missing else []:
        found = missing & letters_of(path)
        if found:
            families.append(family)
            missing -= found
        if not missing:
            break
    return families, missing


def drawable(names: list[str], missing: set[str]) -> list[str]:
    """Label names to draw: one with a letter that no font has becomes `label 3`, say."""
    return [f"label {j}" if missing & set(name) else name for j, name in enumerate(names, 1)]
