"""The code stays small and readable: budgets of lines, the reading path, what the README names.

Budgets, not counts: a fork may change any file. python -m pytest tests/test_layout.py
"""

import ast
import io
import re
import subprocess
import sys
import tokenize

import pytest

from config import HERE, Config, PredictConfig
from support.cli import flag
from tools.distil import DistilConfig

BUDGET = {"train": 300, "predict": 160, "model": 160, "data": 250, "metrics": 200, "config": 130}
SIX = [HERE / f"{name}.py" for name in BUDGET]
SUPPORT = sorted(HERE.glob("support/*.py"))
README = (HERE / "README.md").read_text(encoding="utf-8")


def lines(path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def test_budgets_of_lines():
    assert {p.name: lines(p) for p in SIX if lines(p) > BUDGET[p.stem]} == {}
    assert sum(map(lines, SIX)) <= 1200
    assert {p.name: lines(p) for p in SUPPORT if lines(p) >= 250} == {}
    assert sum(map(lines, SUPPORT)) <= 2200
    assert {p.name: lines(p) for p in HERE.glob("tools/*.py") if lines(p) > 150} == {}
    assert sum(map(lines, HERE.glob("benchmarks/*.py"))) <= 1500
    assert lines(HERE / "README.md") <= 170 and len(README.split()) <= 2200


def test_nothing_else_stands_at_the_top():
    done = subprocess.run(["git", "-C", HERE, "ls-files"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip("no git here")
    top = {name.split("/")[0] for name in done.stdout.splitlines()}
    folders = {"support", "tools", "recipes", "benchmarks", "docs", "tests", "examples", ".ci"}
    files = {"README.md", "requirements.txt", "requirements-dev.txt", "pyproject.toml", "LICENSE"}
    assert top <= {p.name for p in SIX} | folders | files | {".gitignore"}


def definitions(path):
    """(qualified name, node) of each function and method of a file."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            yield node.name, node
        elif isinstance(node, ast.ClassDef):
            for method in node.body:
                if isinstance(method, ast.FunctionDef):
                    yield f"{node.name}.{method.name}", method


def length(node) -> int:
    return node.end_lineno - min([node.lineno, *(d.lineno for d in node.decorator_list)]) + 1


def test_functions_of_at_most_50_lines():
    long = {}
    for path in [*SIX, *SUPPORT]:
        found = ((name, length(node)) for name, node in definitions(path))
        long |= {f"{path.name}:{name}": n for name, n in found if n > 50}
    assert long == {}


def test_at_most_two_blocks_around_a_loop():
    def deepest(node, blocks=0):
        blocks += isinstance(node, (ast.With, ast.Try))
        own = [blocks] if isinstance(node, (ast.For, ast.While)) else [0]
        return max(own + [deepest(child, blocks) for child in ast.iter_child_nodes(node)])

    deep = {p.name: deepest(ast.parse(p.read_text(encoding="utf-8"))) for p in [*SIX, *SUPPORT]}
    assert max(deep.values()) <= 2, deep


def test_about_one_line_in_six_explains():
    """Comments and docstrings of the six files together."""
    explained = 0
    for path in SIX:
        text, mine = path.read_text(encoding="utf-8"), set()
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                mine.add(token.start[0])
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(
                node
            ):
                mine |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
        explained += len(mine)
    assert 1 / 7 <= explained / sum(map(lines, SIX)) <= 1 / 4


AFTER_THE_STEP = {"validate", "run_over_rows", "sigmoid", "better", "quality", "out_of_patience"}
AFTER_THE_STEP |= {"summarise", "count_parameters"}


def reading_path() -> dict[str, int]:
    """Lines of what is read from `main` to the optimizer step: the definitions of the six files
    that are named on the way, but for the settings and the scores. Of a class without a loop
    of its own (EmotionClassifier) only what runs before the step counts."""
    nodes, found, order = {}, {}, ["main"]
    for name in ("train", "model", "data"):
        for node in ast.parse((HERE / f"{name}.py").read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                nodes[node.name] = node
    while order:
        name = order.pop()
        if name in nodes and name not in {*found, *AFTER_THE_STEP}:
            found[name] = length(nodes[name])
            order += [n.id for n in ast.walk(nodes[name]) if isinstance(n, ast.Name)]
    saving = {"head_names", "save", "load"}
    methods = nodes["EmotionClassifier"].body
    found["EmotionClassifier"] -= sum(length(m) for m in methods if getattr(m, "name", 0) in saving)
    return found


def test_the_reading_path_is_short():
    path, needed = reading_path(), {"main", "train_fold", "train_one_epoch", "compute_loss"}
    assert needed | {"EmotionClassifier", "DataCollator", "assign_folds"} <= set(path)
    assert len(path) <= 25 and sum(path.values()) <= 450, (len(path), sum(path.values()), path)


TORCHRUN = {"--nproc-per-node", "--nnodes", "--rdzv-backend", "--rdzv-endpoint", "--max-restarts"}


def documents() -> str:
    return README + "".join(p.read_text(encoding="utf-8") for p in HERE.glob("docs/*.md"))


def test_every_flag_the_documents_name_exists():
    kinds = (Config, PredictConfig, DistilConfig)
    known = {flag(f) for kind in kinds for f in kind.__dataclass_fields__}
    known |= {"--config", "--help"} | TORCHRUN
    for path in [*HERE.glob("benchmarks/*.py"), *HERE.glob("tools/*.py")]:
        known |= set(re.findall(r'"(--[a-z0-9-]+)"', path.read_text(encoding="utf-8")))
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", documents()))
    assert named <= known, named - known


def test_what_the_documents_say_to_edit_exists():
    found = re.findall(r"`([\w.]+)` in `?((?:\w+/)?\w+\.py)`?", documents())
    assert len(found) >= 10
    for name, file in found:
        source = (HERE / file).read_text(encoding="utf-8")
        parts = name.removesuffix(".py").split(".")
        assert all(re.search(rf"(def|class) {part}\b", source) for part in parts), (name, file)


def test_links_of_the_documents_lead_somewhere():
    for path in [HERE / "README.md", *HERE.glob("docs/*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8")):
            assert (path.parent / link).exists(), (path.name, link)


def test_importing_does_nothing(tmp_path):
    """Importing in an empty folder prints nothing and leaves it empty; predict.py is quick."""
    code = f"import sys; sys.path.insert(0, {str(HERE)!r}); import predict; "
    code += "assert not {'sklearn', 'matplotlib', 'pandas'} & set(sys.modules); import train"
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())
