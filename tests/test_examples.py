"""examples/notebook.ipynb runs from start to end, and what it shows was made by it.

pytest tests/test_examples.py
"""

import json
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from config import HERE
from support.files import read_json

NOTEBOOK = HERE / "examples/notebook.ipynb"
SECONDS = 180  # for one cell, on a busy machine; the whole takes about 40 s alone


def stored() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def shown(cell) -> str:
    """What a cell has printed and shown, as text."""
    parts = [out.get("text", "") for out in cell.outputs]
    parts += [str(out.get("data", {}).get("text/plain", "")) for out in cell.outputs]
    return "".join(parts)


def cell_with(notebook, source: str):
    (cell,) = (c for c in notebook.cells if c.cell_type == "code" and source in c.source)
    return cell


@pytest.fixture(scope="module")
def done(tmp_path_factory, bert) -> tuple[nbformat.NotebookNode, Path]:
    """The notebook after a run in a copy of the project, with the tests' tiny encoder. The tiny
    encoder's name is all that is changed in it, and the install, for which there is no network."""
    code = tmp_path_factory.mktemp("notebook") / "emotions"
    code.mkdir()
    for path in HERE.glob("*.py"):
        shutil.copy(path, code)
    no_cache = shutil.ignore_patterns("__pycache__", "runs")
    for name in ("support", "tools", "examples"):
        shutil.copytree(HERE / name, code / name, ignore=no_cache)
    notebook = stored()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    parameters = cell_with(notebook, "MODEL = None")
    parameters.source = parameters.source.replace("MODEL = None", f"MODEL = {str(bert)!r}", 1)
    cell_with(notebook, "%pip install").source = "pass"
    where = {"metadata": {"path": str(code / "examples")}}
    client = NotebookClient(notebook, timeout=SECONDS, kernel_name="python3", resources=where)
    client.execute()  # CellExecutionError for a cell that fails
    return notebook, code / "examples/runs/notebook"


def test_the_notebook_runs_from_start_to_end(done):
    """With what each cell is there to show."""
    notebook, runs = done
    said = shown(cell_with(notebook, 'A = str(FOLDER / "mean")'))
    score = read_json(runs / "mean/metrics.json")["macro_f1_cross_fitted"]
    assert f"cross-fitted macro-F1 {score:.4f}, 95 % interval" in said and "to quote" in said
    (picture,) = cell_with(notebook, "report.png").outputs
    assert "image/png" in picture["data"]
    (quote,) = cell_with(notebook, "quote.md").outputs
    assert f"a cross-fitted macro-F1 of {score:.3f}" in quote["data"]["text/markdown"]
    assert "detected" in shown(cell_with(notebook, "load_run"))
    assert len((runs / "submission.csv").read_text().splitlines()) == 161
    verdicts = r"(A is better|B is better|can't be told apart)"
    for source in ("compare.main([A, B])", "compare.main([A, C])"):
        assert re.search(verdicts, shown(cell_with(notebook, source)))
    assert "verdicts that differ" in shown(cell_with(notebook, "export.main"))
    assert (runs / "model/model.onnx").exists()


def test_the_edit_of_the_notebook_reaches_the_training(done):
    """Only the third run has the other loss; of its own code it says so."""
    _, runs = done
    same = [read_json(runs / name / "env.json")["same"] for name in ("mean", "cls", "weighted")]
    changed = [{key for key in same[0] if same[0][key] != other[key]} for other in same[1:]]
    assert changed == [{"settings.pooling"}, {"code.train.py"}]
    log = [(runs / name / "log.jsonl").read_text().splitlines()[0] for name in ("mean", "weighted")]
    first, weighted = (json.loads(line) for line in log)
    assert weighted["train_loss"] > 1.4 * first["train_loss"]


def test_what_the_notebook_shows_was_made_by_it():
    """Outputs are stored, for those who read it on the web: of a whole run, and of no one's
    machine."""
    cells = [cell for cell in stored().cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {out.output_type for cell in cells for out in cell.outputs}
    assert "error" not in kinds and {"stream", "execute_result"} <= kinds
    text = "".join(map(shown, cells))
    assert "cross-fitted (quote this one)" in text and "verdicts that differ" in text
    outputs = json.dumps([cell.outputs for cell in cells])
    assert not re.search(r"/(home|root|Users|content|kaggle|opt|tmp)", outputs)
    assert NOTEBOOK.stat().st_size < 1_000_000
