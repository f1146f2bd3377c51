"""An exported folder gives what predict.py gives, without torch.

python -m pytest tests/test_export.py
"""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
from cases.models import ARCHITECTURES
from conftest import LABELS, make_tokenizer, write_csv
from test_model import TEXTS
from transformers import AutoModel, PreTrainedTokenizerFast

import data
import predict
from config import Config
from data import DataCollator, encode
from model import EmotionClassifier, run_over_rows
from support.encoders import inspect_encoder, load_encoder
from support.finished import FinishedRun
from support.process import UserError
from support.versions import numbers
from tools import export
from tools.parts import int8

OLD = numbers(torch.__version__) < [2, 7]
pytestmark = pytest.mark.skipif(OLD, reason="the exporter of torch 2.6 can't make the graph")

LONG = [*TEXTS, "a dog " * 20, "storm", ""]


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "model"
    assert export.main([str(finished), str(folder)]) == 0  # which compares it with predict.py
    return folder


def as_exported(exported: Path):
    """In place of `write_graph`: the graph that is there, as the exporter takes its time."""

    def write(models, path: Path) -> bool:
        shutil.copy(exported / "model.onnx", path)
        return False

    return write


@pytest.fixture(scope="module")
def small(finished, exported, tmp_path_factory) -> Path:
    """In int8."""
    folder = tmp_path_factory.mktemp("export8") / "model"
    with pytest.MonkeyPatch.context() as m:
        m.setattr(export, "write_graph", as_exported(exported))
        assert export.main([str(finished), str(folder), "--int8"]) == 0
    return folder


def one_layer(folder: Path, kind: str) -> str:
    """The exporter's time grows with the layers. (ModernBERT has two kinds of them.)"""
    make_config, size, tokens = ARCHITECTURES[kind]
    n = 2 if kind == "modernbert" else 1
    size = {**size, **{name: n for name in ("num_hidden_layers", "n_layers") if name in size}}
    tokenizer = make_tokenizer(**tokens)
    encoder = AutoModel.from_config(make_config(vocab_size=len(tokenizer), **size))
    encoder.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_architecture(kind, tmp_path, monkeypatch):
    """Other batch sizes and lengths than those of the exporter's example, padding, one token. Of
    BERT two folds; DistilBERT's weights stand in a file of their own, as those over 2 GB must."""
    encoder_info, models = inspect_encoder(one_layer(tmp_path / "a", kind)), []
    for seed in (1, 2) if kind == "bert" else (1,):
        model = EmotionClassifier(load_encoder(encoder_info.path), Config(labels=list("abc")))
        torch.manual_seed(seed)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.05 * torch.randn_like(p))  # fresh weights hardly heed the text
        models.append(model.eval())
    large = kind == "distilbert"
    monkeypatch.setattr(export, "LARGE", 0 if large else export.LARGE)
    assert export.write_graph(models, tmp_path / "m.onnx") == large
    assert (tmp_path / "m.onnx.data").exists() == large
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    tokenizer = encoder_info.tokenizer
    dataset, pad = encode(tokenizer, LONG, 40), tokenizer.pad_token_id
    wanted = [run_over_rows(m, dataset, DataCollator(pad))[0] for m in models]
    wanted = 1 / (1 + np.exp(-np.stack(wanted)))  # (K, N, 3)
    for rows in (range(len(LONG)), [4], [6], [0, 5, 2]):
        batch = DataCollator(pad)([dataset[i] for i in rows])
        mean, by_fold = session.run(None, {name: x.numpy() for name, x in batch.items()})
        assert np.abs(by_fold - wanted[:, rows]).max() < 1e-5
        assert np.abs(mean - wanted[:, rows].mean(0)).max() < 1e-5
    assert wanted.std(1).min() > 1e-3
    int8.quantise(tmp_path / "m.onnx", tmp_path / "q.onnx", large)
    session = onnxruntime.InferenceSession(tmp_path / "q.onnx")
    alone = {name: x.numpy() for name, x in DataCollator(pad)([dataset[0]]).items()}
    rounded = session.run(["by_fold"], alone)[0][:, 0]
    assert np.abs(rounded - wanted[:, 0]).max() < 0.02


def both(folder: Path, run: Path, source: Path, d: Path) -> list[bytes]:
    """What the folder's program writes, without torch and pandas in reach; what predict.py does."""
    gone = dict.fromkeys(("torch", "transformers", "pandas", "sklearn"))
    code = f"import runpy, sys; sys.modules.update({gone}); sys.argv = sys.argv[1:]; "
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    program = [sys.executable, "-I", "-c", code, str(folder / "predict_onnx.py")]
    subprocess.run([*program, source, d / "a.csv", d / "ap.csv"], check=True, cwd=d)
    argv = ["--input", str(source), "--output", str(d / "b.csv")]
    argv += ["--probabilities", str(d / "bp.csv")]
    assert predict.main(["--run", str(run), "--precision", "fp32", *argv]) == 0
    return [(d / name).read_bytes() for name in ("a.csv", "b.csv", "ap.csv", "bp.csv")]


def numbers(table: bytes) -> np.ndarray:
    return np.array([line[1:] for line in csv.reader(table.decode().splitlines()[1:])], float)


def test_its_program_writes_what_predict_writes(exported, finished, test_csv, tmp_path):
    a, b, ap, bp = both(exported, finished, test_csv, tmp_path)
    assert a == b and a.count(b"\n") == 41
    assert (
        np.abs(numbers(ap) - numbers(bp)).max() < 1e-5 and ap.split(b"\n")[0] == bp.split(b"\n")[0]
    )
    names = {"model.onnx", "model.json", "tokenizer.json", "predict_onnx.py"}
    assert {p.name for p in exported.iterdir()} == names


def test_odd_rows(exported, finished, tmp_path):
    """Blank texts, quotes, line ends, emoji, ids as written; blank lines are left out; a long text
    is cut (the csv module's own limit is 131,072 characters)."""
    rows = [
        ["007", ""],
        ['x"y', 'the "dog"\nran'],
        ["é", "🌩️ storm"],
        ["NA", "NA"],
        ["5", "a dog " * 30_000],
    ]
    source = write_csv(tmp_path / "odd.csv", rows, ["id", "text"])
    source.write_text(
        "\ufeff" + source.read_text(encoding="utf-8").replace("NA,", "\nNA,"), encoding="utf-8"
    )
    a, b, ap, bp = both(exported, finished, source, tmp_path)
    assert a == b and np.abs(numbers(ap) - numbers(bp)).max() < 1e-5 and len(numbers(a)) == 5
    source = write_csv(tmp_path / "no_id.csv", [row[1:] for row in rows], ["text"])
    source.write_text(source.read_text(encoding="utf-8").replace("NA", "\nNA"), encoding="utf-8")
    a, b, *_ = both(exported, finished, source, tmp_path)  # there a blank line is a blank text
    head, *cells = csv.reader(io.StringIO(a.decode(), newline=""))
    assert a == b and head[:2] == ["id", "text"] and [row[0] for row in cells] == list("012345")


@pytest.mark.parametrize(
    "header", ["id,comment_text,rater", "\ufeff\ufeffid,text,rater", "ID,text,x"]
)
def test_headers_as_predict_reads_them(header, exported, finished, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2,1")  # as OpenMP allows
    (tmp_path / "x.csv").write_text(f"{header}\n007,a dog,1\n8,storm,2\n", encoding="utf-8")
    a, b, *_ = both(exported, finished, tmp_path / "x.csv", tmp_path)
    assert a == b and len(a.splitlines()) == 3


def test_files_as_spreadsheets_write_them(exported, finished, tmp_path):
    rows = [["1", "so happy; really, yes"], ["", ""], ["2", "🌩️ storm"], [" ", ""]]
    for sign, encoding in ((";", "utf-8"), ("\t", "utf-16"), (",", "utf-8-sig")):
        source = tmp_path / f"{encoding}.csv"
        with open(source, "w", encoding=encoding, newline="") as f:
            csv.writer(f, delimiter=sign).writerows([["id", "Kommentar"], *rows])
        a, b, *_ = both(exported, finished, source, tmp_path)
        assert a == b and len(numbers(a)) == 2


@pytest.mark.parametrize(
    ("header", "row"),
    [
        (["id", "words", "more"], ["1", "a", "b"]),
        (["id", "text"], ["1", "a", "b"]),
        (["text", "text"], ["a", "b"]),
    ],
)
def test_its_program_names_what_is_wrong(header, row, exported, tmp_path):
    source = write_csv(tmp_path / "odd.csv", [row], header)
    argv = [sys.executable, exported / "predict_onnx.py", source, tmp_path / "out.csv"]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith(f"error: {source}"), done.stderr
    assert len(done.stderr.splitlines()) == 1 and not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize(
    "content", [None, b"", b"\n", b"id|text\n1|a\n", b"id,text\n1,\xe9\n", b'id,text\n1,"a']
)
def test_its_program_says_what_is_no_csv(content, exported, tmp_path):
    source = tmp_path / "odd.csv"
    if content is not None:
        source.write_bytes(content)
    argv = [sys.executable, exported / "predict_onnx.py", source, tmp_path / "out.csv"]
    done = subprocess.run(argv, capture_output=True, text=True)
    (line,) = done.stderr.splitlines()
    assert (
        done.returncode == 1
        and line.startswith(f"error: {source}: ")
        and "needed: a CSV in UTF-8" in line
    )


@pytest.mark.parametrize("header", [["id", "text"], ["id", "text", *LABELS]])
def test_its_program_counts_rows_inside_a_text(header, exported, tmp_path):
    rows = [[str(1200000000000000000 + 7919 * i), f"hello {i}", *"01010"] for i in range(20)]
    rows = [row[: len(header)] for row in rows]
    lines = [",".join(row) for row in [header, *rows]]
    lines[6] = lines[6].replace("hello", '"hello')
    lines[9] = lines[9].replace("hello 8", 'hello 8"')
    (tmp_path / "x.csv").write_text("\n".join(lines) + "\n")
    argv = [sys.executable, exported / "predict_onnx.py", tmp_path / "x.csv", tmp_path / "o.csv"]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    whole = 3 if len(header) == 2 else 2  # the quote cuts the last one
    assert f"{whole} rows stand inside the text of row 7, and are lost" in done.stderr


@pytest.mark.parametrize("outputs", [["./new.csv"], ["o.csv", "./o.csv"], ["link.csv"], ["o.txt"]])
def test_its_program_loses_no_file(outputs, exported, tmp_path):
    source = write_csv(tmp_path / "new.csv", [["1", "a dog"]], ["id", "text"])
    before = source.read_bytes()
    (tmp_path / "link.csv").symlink_to(source)
    argv = [sys.executable, exported / "predict_onnx.py", "new.csv", *outputs]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.startswith("error: "), done.stderr
    assert source.read_bytes() == before and not (tmp_path / "o.csv").exists()
    argv = [sys.executable, exported / "predict_onnx.py", "new.csv", "none/o.csv"]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and "no such folder" in done.stderr


ODD_TEXTS = {
    "a Series": pd.Series(["a dog", "storm", "so sad"]).iloc[[2, 0, 1]],
    "a filtered Series": pd.Series(["a dog", "storm", "so sad"]).iloc[1:],
    "one str": "so happy",
    "a tuple": ("a dog", "storm"),
    "an array": np.array(["a dog", "storm"], object),
    "half a character": ["so \ud83d happy", "\ud83d\ude00"],
    "none": [],
    "None": ["a", None],
    "nan": ["a", float("nan")],
    "a frame": pd.DataFrame({"text": ["a"]}),
    "a dict": {"text": "a"},
    "bytes": [b"a"],
    "a number": 7,
}


@pytest.mark.parametrize("texts", ODD_TEXTS.values(), ids=[*ODD_TEXTS])
def test_its_program_takes_and_refuses_what_load_run_does(texts, exported, finished):
    program = int8.load_program(exported)
    model = predict.load_run(finished, "cpu", "fp32")
    try:
        wanted = model.predict_test(texts)
    except UserError as e:
        with pytest.raises(TypeError) as refused:
            program.predict(texts)
        assert str(refused.value) == str(e)
    else:
        assert program.predict(texts) == pytest.approx(wanted, abs=1e-5)


def test_its_program_writes_over_no_input(exported, tmp_path):
    source = write_csv(tmp_path / "a.csv", [["1", "a dog"]], ["id", "text"])
    before = source.read_bytes()
    argv = [sys.executable, exported / "predict_onnx.py", source, source]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 1 and "must be different files" in done.stderr
    assert source.read_bytes() == before


def test_a_batch_stays_small(exported, monkeypatch):
    """However long the texts may be: 2,048 tokens, but for a text that is longer alone."""
    program, sizes = int8.load_program(exported), []
    assert program.MODEL["max_length"] == 128
    monkeypatch.setattr(program, "run", lambda texts, _: sizes.append(len(texts)) or 0.5)
    for length, most in ((128, 16), (512, 4), (5000, 1)):
        monkeypatch.setitem(program.MODEL, "max_length", length)
        sizes.clear()
        assert (program.predict(["a"] * 17) == 0.5).all()
        assert max(sizes) == most and sum(sizes) == 17


def test_one_fold(finished, exported, tmp_path, monkeypatch, capsys):
    made, compared, write = [], [], as_exported(exported)
    monkeypatch.setattr(export, "write_graph", lambda m, path: made.append(m) or write(m, path))
    monkeypatch.setattr(export, "check", lambda ensemble, folds, *_: compared.append(folds))
    assert export.main([str(finished), str(tmp_path / "m"), "--fold", "1"]) == 0
    ((model,),) = made
    wanted = EmotionClassifier.load(finished / "fold_1", Config()).head.weight
    assert torch.equal(model.head.weight, wanted) and compared == [[1]]


def test_int8_is_judged_on_its_own_out_of_fold_rows(
    small, finished, exported, train_csv, monkeypatch, capsys
):
    rows, oof = (
        list(csv.DictReader(path.read_text().splitlines()))
        for path in (train_csv, finished / "oof.csv")
    )
    program = int8.load_program(small)
    p = np.array(
        [
            program.run([r["text"]], "by_fold")[int(o["fold"]), 0]
            for r, o in zip(rows, oof, strict=True)
        ]
    )
    fp32 = np.array([[float(o[name]) for name in LABELS] for o in oof])
    assert 1e-4 < np.abs(p - fp32).max() < 0.1  # of the other folds it would be far more
    y = np.array([[int(r[name]) for name in LABELS] for r in rows])
    th = int8.metrics.tune_thresholds(y, p)
    assert np.array_equal(np.float32(program.MODEL["thresholds"]), th)
    slope, shift = int8.metrics.platt(y[:, 0], p[:, 0])
    assert np.allclose(np.array(program.MODEL["calibration"])[:, 0], [slope, shift])
    assert (small / "model.onnx").stat().st_size < (exported / "model.onnx").stat().st_size
    # It says when it loses too much.
    monkeypatch.setattr(int8, "LOSS", -1.0)
    int8.judge(predict.Ensemble(FinishedRun(str(finished), "cpu", "fp32")), small, [])
    assert "int8 loses more than" in capsys.readouterr().out


def test_in_int8_a_text_alone_is_a_text_among_others(small):
    program = int8.load_program(small)
    together = program.predict(LONG)
    assert all(
        np.array_equal(program.predict([text])[0], row)
        for text, row in zip(LONG, together, strict=True)
    )


def test_int8_of_one_student_on_all_rows(finished, tmp_path, monkeypatch):
    """It has no out-of-fold rows: those of the run it is the sum of give the thresholds."""
    one = shutil.copytree(finished, tmp_path / "one")
    config = json.loads((one / "config.json").read_text())
    (one / "config.json").write_text(json.dumps(config | {"single": str(finished)}))
    seen = []
    monkeypatch.setattr(export, "judge", lambda e, folder, _: seen.append((e, folder)) or {})
    monkeypatch.setattr(export, "FinishedRun", lambda path, *a: FinishedRun(str(finished), *a))
    monkeypatch.setattr(
        export, "build", lambda ensemble, folds, folder, _: folder.mkdir() or seen.append(folds)
    )
    monkeypatch.setattr(export, "check", lambda *_: None)
    monkeypatch.setattr(export, "read_json", lambda path: config | {"single": "x"})
    assert export.main([str(one), str(tmp_path / "m"), "--fold", "0", "--int8"]) == 0
    folds, all_folds, (ensemble, folder) = seen
    assert folds == [0] and all_folds == [0, 1, 2] and folder.name == "judged"
    assert ensemble.run.path == finished


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["{d}/none", "{d}/m"], "none: no such run folder"),
        (["{d}/half", "{d}/m"], "fold 1 is missing"),
        (["{run}", "{d}"], "is not empty - name a new folder"),
        (["{run}", "{d}/half/th.npy"], "is not empty - name a new folder"),
        (["{run}", "{d}/m", "--fold", "3"], "--fold 3: the run's folds are 0 to 2"),
        (["{run}", "{d}/m", "--int8", "--train", "{test}"], "test.csv: not what"),
        (["{run}", "{d}/m", "--train", "{d}/x.csv"], "x.csv: no such file"),
        (["{run}", "{d}/no/m"], "no such folder - make it first"),
        (["{run}"], "the following arguments are required: folder"),
    ],
)
def test_bad_input_is_one_line(argv, words, finished, test_csv, tmp_path, monkeypatch, capsys):
    half = shutil.copytree(finished, tmp_path / "half")
    (half / "fold_1/DONE.json").unlink()
    monkeypatch.setattr(export, "build", lambda ensemble, folds, folder, _: folder.mkdir())
    monkeypatch.setattr(int8, "load_program", lambda folder: None)
    before = sorted(os.listdir(tmp_path))
    argv = [x.format(d=tmp_path, run=finished, test=test_csv) for x in argv]
    assert export.main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and words in line
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            RuntimeError("no such\noperator"),
            "bert: torch's exporter makes no graph of it (RuntimeError: no such",
        ),
        (
            ModuleNotFoundError("No module named 'onnxscript'"),
            "onnxscript' - pip install -r requirements-dev.txt",
        ),
    ],
)
def test_what_cannot_be_exported_leaves_nothing(
    error, words, finished, tmp_path, monkeypatch, capsys
):
    def fails(*args, **how):
        raise error

    monkeypatch.setattr(torch.onnx, "export", fails)
    assert export.main([str(finished), str(tmp_path / "m")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and words in line and not list(tmp_path.iterdir())


def test_a_tokenizer_in_python_is_named(finished, tmp_path, monkeypatch, capsys):
    """As BERTweet's and PhoBERT's: there is nothing for the package tokenizers to read."""
    monkeypatch.delattr(PreTrainedTokenizerFast, "backend_tokenizer")
    assert export.main([str(finished), str(tmp_path / "m")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "is in Python alone" in line and not list(tmp_path.iterdir())


def test_a_run_that_reads_more_than_texts_is_refused(
    finished, exported, tmp_path, monkeypatch, capsys
):
    """`make_inputs` may be edited; the folder's program does not know it."""
    monkeypatch.setattr(export, "write_graph", as_exported(exported))
    monkeypatch.setattr(
        data, "make_inputs", lambda texts, columns=None: [f"{t} happy" for t in texts]
    )
    assert export.main([str(finished), str(tmp_path / "m")]) == 1
    assert "more than 1e-4 - use predict.py" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_graph_that_differs_is_refused(finished, exported, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export, "write_graph", as_exported(exported))
    real = predict.Ensemble.predict_test
    monkeypatch.setattr(predict.Ensemble, "predict_test", lambda *a, **k: real(*a, **k) + 2e-4)
    assert export.main([str(finished), str(tmp_path / "m")]) == 1
    assert "more than 1e-4 - use predict.py" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
