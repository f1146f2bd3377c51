"""Files, flags and folders as people really have them: one table.

An error is exit code 2 and one `error:` line, quickly, before any weights are read, with every file
left as it was. What is odd but usable is taken, with a warning where it may be a mistake, and every
row and id comes back.
python -m pytest tests/test_bad_inputs.py
"""

import csv
import io
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from cases.bad_inputs import PREDICT_ERRORS, PREDICT_ODD, TRAIN_ERRORS, TRAIN_ODD, sheet
from conftest import LABELS

import model
import predict
import train
from support import encoders


def rows_of(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text, newline="")))


@pytest.fixture
def place(tmp_path, bert, finished, monkeypatch):
    """A working folder with an encoder, an earlier run and an earlier submission; counts the
    weights that are read."""
    shutil.copytree(bert, tmp_path / "bert")
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "submission.csv").write_text("id,anger\nearlier,1\n")
    monkeypatch.chdir(tmp_path)
    loaded, real = [], model.load_encoder
    for module in (model, encoders):
        monkeypatch.setattr(module, "load_encoder", lambda path: loaded.append(path) or real(path))
    return tmp_path, loaded


def make(d: Path, content, name: str) -> None:
    for part in content if isinstance(content, list) else [content]:
        if callable(part):
            part(d)
        else:
            (d / name).write_bytes(part.encode() if isinstance(part, str) else part)


def listing(d: Path) -> dict:
    """Every file with its size and time of change, and every folder."""
    found = {}
    for p in sorted(d.rglob("*")):
        s = p.lstat()
        found[str(p)] = (
            None if p.is_dir() and not p.is_symlink() else (s.st_size, s.st_mtime_ns, s.st_ino)
        )
    return found


def train_argv(d: Path, more) -> list[str]:
    argv = ["--model", str(d / "bert"), "--train", str(d / "train.csv"), "--out", str(d / "out")]
    argv += ["--folds", "2", "--epochs", "1", "--precision", "fp32", "--max-length", "32"]
    if more == "no labels":
        return [*argv, "--config", str(d / "c.json")]
    return [*argv, "--labels", "joy", "anger", *(x.replace("{d}", str(d)) for x in more)]


def predict_argv(d: Path, more) -> list[str]:
    argv = ["--input", str(d / "new.csv"), "--output", str(d / "submission.csv")]
    return (
        argv
        if more == "no run"
        else ["--run", str(d / "run"), *argv, *(x.replace("{d}", str(d)) for x in more)]
    )


def check_error(main, argv: list[str], words: list[str], d: Path, capsys) -> None:
    before, start = listing(d), time.perf_counter()
    code = main(argv)
    seconds, err = time.perf_counter() - start, capsys.readouterr().err
    lines = err.splitlines()
    assert code == 2, err
    assert [x.startswith("error: ") for x in lines].count(True) == 1 and lines[-1].startswith(
        "error: "
    ), err
    assert "Traceback" not in err and len(lines[-1]) < 6000
    for word in words:
        assert word in lines[-1]
    assert seconds < 5
    assert listing(d) == before


def named(cases: list) -> list:
    return [pytest.param(*c[1:4], c[4] if len(c) > 4 else 0, id=c[0][:60]) for c in cases]


@pytest.mark.parametrize("content, more, words, weights", named(TRAIN_ERRORS))
def test_training_refuses(place, capsys, content, more, words, weights):
    d, loaded = place
    make(d, content, "train.csv")
    check_error(train.main, train_argv(d, more), words, d, capsys)
    assert len(loaded) <= weights


@pytest.mark.parametrize("content, more, words, weights", named(PREDICT_ERRORS))
def test_prediction_refuses(place, capsys, content, more, words, weights):
    d, loaded = place
    make(d, content, "new.csv")
    check_error(predict.main, predict_argv(d, more), words, d, capsys)
    assert not loaded


@pytest.mark.parametrize("content, more, words, ids", named(TRAIN_ODD))
def test_training_takes(place, capsys, content, more, words, ids):
    d, _ = place
    if ids == "oof":  # the run's oof.csv with one label column more
        rows = rows_of((d / "run/oof.csv").read_text())
        (d / "run/oof.csv").write_text(
            "".join(
                ",".join([r[0], str(int(i % 2)) if i else "big"]) + "\n" for i, r in enumerate(rows)
            )
        )
        ids = [r[0] for r in rows[1:]]
    make(d, content, "train.csv")
    argv = train_argv(d, more)
    assert train.main(argv) == 0
    err = capsys.readouterr().err
    assert "error" not in err and all(w in err for w in words), err
    if not words:
        assert not [
            x
            for x in err.splitlines()
            if x.startswith("warning: ") and "positives" not in x and "unknown" not in x
        ], err
    out = Path(argv[len(argv) - 1 - argv[::-1].index("--out") + 1])
    rows = rows_of((out / "oof.csv").read_bytes().decode())
    if ids is not None:
        assert [r[0] for r in rows[1:]] == ids
    assert {len(r) for r in rows} == {len(rows[0])}
    assert all(np.isfinite(float(v)) for r in rows[1:] for v in r[1:])


@pytest.mark.parametrize("content, more, words, ids", named(PREDICT_ODD))
def test_prediction_takes(place, capsys, content, more, words, ids):
    d, _ = place
    if ids == "oof":
        ids = [r[0] for r in rows_of((d / "run/oof.csv").read_text())[1:]]
    make(d, content, "new.csv")
    assert predict.main([*predict_argv(d, more), "--probabilities", str(d / "p.csv")]) == 0
    err = capsys.readouterr().err
    assert all(w in err for w in words), err
    assert words or "warning" not in err
    for name in ("submission.csv", "p.csv"):
        rows = rows_of((d / name).read_bytes().decode())
        with_text = "--with-text" in more or "no id column" in str(words)
        text = ["text"] if with_text and "--no-with-text" not in more else []
        assert rows[0] == ["id", *text, *LABELS]
        assert [r[0] for r in rows[1:]] == ids
        assert all(len(r) == len(rows[0]) for r in rows)
    assert all(
        v in "01"
        for r in rows_of((d / "submission.csv").read_text())[1:]
        for v in r[-5:]
        if ids != ["c\rc"]
    )
    assert sorted(p.name for p in d.glob("*.part*")) == []


def test_prediction_of_texts_takes_blank_ones(place, capsys):
    d, _ = place
    assert (
        predict.main(
            ["--run", str(d / "run"), "--text", "", " ", "😀", "a\0b", "so happy " * 10_000]
        )
        == 0
    )
    assert capsys.readouterr().out.count("Detected emotions:") == 5


def test_restart_from_within_the_run(place, capsys, monkeypatch):
    d, _ = place
    make(d, sheet(), "train.csv")
    monkeypatch.chdir(d / "run")
    words = ["can't be written", "choose another --out"]
    check_error(train.main, [*train_argv(d, ["--out", "."]), "--restart"], words, d, capsys)


def test_restart_of_the_run_that_holds_the_model(place, capsys):
    """The run is renamed, as asked; then the model is no longer where the command says."""
    d, _ = place
    make(d, sheet(), "train.csv")
    kept = sorted(p.name for p in (d / "run").iterdir())
    argv = [*train_argv(d, ["--out", "{d}/run", "--restart"]), "--model", str(d / "run/fold_0")]
    assert train.main(argv) == 2
    err = capsys.readouterr().err
    assert err.count("error: ") == 1 and "run/fold_0" in err and "Traceback" not in err
    assert sorted(p.name for p in (d / "run.old1").iterdir()) == kept


def test_labels_named_like_a_text_column(place, capsys):
    """`review` is a label of the run, in this input with a wrong cell: it must not become a second
    text column."""
    d, _ = place
    make(d, sheet(head="id,content,review,anger"), "train.csv")
    assert train.main([*train_argv(d, []), "--labels", "review", "anger"]) == 0
    (d / "new.csv").write_text("id,content,review,anger\n1,a,maybe,0\n")
    assert predict.main(["--run", str(d / "out"), "--input", "new.csv", "--output", "s.csv"]) == 0
    assert rows_of((d / "s.csv").read_text())[1][0] == "1"


def test_a_run_without_its_config_is_repaired_by_the_same_command(place, capsys):
    d, _ = place
    make(d, sheet(), "train.csv")
    argv = train_argv(d, [])
    assert train.main(argv) == 0
    before = (d / "out/config.json").read_bytes()
    (d / "out/config.json").unlink()
    assert predict.main(["--run", str(d / "out"), "--text", "x"]) == 2
    assert train.main(argv) == 0 and (d / "out/config.json").read_bytes() == before
    assert predict.main(["--run", str(d / "out"), "--text", "x"]) == 0
