"""The tables between marks in README.md and docs/ are those of benchmarks/figures.json.

python -m pytest tests/test_figures.py
"""

import json
import re
import sys

import pytest

from config import HERE
from support.process import UserError

sys.path.insert(0, str(HERE / "benchmarks"))
import figures

KEPT = json.loads(figures.KEPT.read_text("utf-8"))


@pytest.mark.parametrize("path", figures.DOCUMENTS, ids=lambda path: path.name)
def test_documents_say_what_was_measured(path):
    text = path.read_text("utf-8")
    assert figures.written(text, KEPT) == text


def test_each_table_stands_somewhere_and_names_its_code():
    text = "".join(path.read_text("utf-8") for path in figures.DOCUMENTS)
    marks = re.findall(r"<!-- figure: (\w+) -->", text)
    assert sorted(marks) == sorted(KEPT) and {*KEPT} <= {*figures.TABLES}
    assert text.count("<!-- end -->") == len(marks)
    for entry in KEPT.values():
        assert re.fullmatch(r"[0-9a-f]{7}", entry["commit"]) and entry["machine"] and entry["date"]


def test_a_table_that_was_changed_by_hand_is_found():
    name, entry = next(iter(KEPT.items()))
    marked = f"before\n<!-- figure: {name} -->\n\n| 0.999 |\n\n<!-- end -->\nafter\n"
    found = figures.written(marked, KEPT)
    assert found != marked and entry["markdown"] in found and "0.999" not in found
    assert found.startswith("before\n") and found.endswith("-->\nafter\n")
    with pytest.raises(UserError, match="has no table other"):
        figures.written("<!-- figure: other -->\n<!-- end -->", KEPT)
