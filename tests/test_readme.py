"""What the README claims of the code. python -m pytest tests/test_readme.py"""

import re
import subprocess
import sys

import config

README = (config.HERE / "README.md").read_text(encoding="utf-8")
SIX = ("config.py", "data.py", "model.py", "metrics.py", "train.py", "predict.py")


TORCHRUN = {"--nproc-per-node", "--nnodes", "--rdzv-backend", "--rdzv-endpoint"}


def lines(name: str) -> int:
    return len((config.HERE / name).read_text(encoding="utf-8").splitlines())


def test_line_counts_are_true():
    claimed = dict(re.findall(r"\| \[?`?(\w+\.py)`?\]?[^|]*\| +([\d,]+) \|", README))
    assert set(claimed) >= {*SIX, "run.py", "fast.py", "report.py"}
    assert {n: int(c.replace(",", "")) for n, c in claimed.items()} == {n: lines(n) for n in claimed}
    total = int(re.search(r"from ([\d,]+) lines of code in six files", README)[1].replace(",", ""))
    assert total == sum(map(lines, SIX))


def test_every_flag_the_readme_names_exists():
    known = {
        config.flag(f) for kind in (config.Config, config.PredictConfig) for f in kind.__dataclass_fields__
    }
    known |= {
        "--config",
        "--help",
        "--max-restarts",
        "--quick",
        "--profile",
        "--rows",
        "--transfer",
        "--notebook",
        "--repeats",
        "--seeds",
        "--only",
        "--whole",
        "--against",
    } | TORCHRUN
    assert {f for f in re.findall(r"(?<![\w-])--[a-z][a-z-]+", README)} <= known


def test_what_to_edit_exists():
    for name, file in re.findall(r"\| `([\w.]+)` in (\w+\.py) \|", README):
        source = (config.HERE / file).read_text(encoding="utf-8")
        assert all(re.search(rf"(def|class) {part}\b", source) for part in name.split(".")), name


def test_importing_does_nothing(tmp_path):
    """Importing every module in an empty folder prints nothing and leaves it empty; predict.py is quick."""
    code = f"import sys; sys.path.insert(0, {str(config.HERE)!r}); import predict; "
    code += "assert not {'sklearn', 'matplotlib', 'pandas'} & set(sys.modules); import train"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "") and not list(tmp_path.iterdir())
