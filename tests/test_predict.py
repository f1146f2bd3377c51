"""Prediction with a finished run, and the literal commands.

python -m pytest tests/test_predict.py
"""

import csv
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cases.predict import SPOILT
from conftest import LABELS, make_bert, make_rows, write_csv
from safetensors.torch import load_file, save_file
from tokenizers import processors

import data
import metrics
import model as M
import predict
from config import HERE, Config
from data import encode, read_table, text_hashes
from support import finished as finished_module
from support.active import ActiveRun, Session
from support.encoders import inspect_encoder
from support.files import describe, read_json, write_json
from support.finished import FinishedRun
from support.jobs import Command
from support.process import UserError
from support.run import Run


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the finished run, to be spoiled."""
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def read(path):
    opener = gzip.open if str(path).endswith(".gz") else open
    with opener(path, "rt", encoding="utf-8", newline="") as f:
        return list(csv.reader(f))


def expected(finished, texts):
    """The mean of the folds' probabilities, one text at a time, by plain calls."""
    tokenizer = inspect_encoder(str(finished / "fold_0")).tokenizer
    models = [M.EmotionClassifier.load(finished / f"fold_{k}", Config()) for k in range(3)]
    with torch.no_grad():
        one = [
            torch.stack(
                [
                    torch.sigmoid(
                        m(**tokenizer(t, return_tensors="pt", return_token_type_ids=False))
                    )
                    for m in models
                ]
            ).mean(0)
            for t in texts
        ]
    return torch.cat(one).numpy()


def both_files(run, input_csv) -> list[str]:
    argv = ["--run", str(run), "--input", str(input_csv), "--precision", "fp32"]
    return [*argv, "--output", "s.csv", "--probabilities", "p.csv"]


def test_submission_probabilities_and_scores(finished, test_csv, capsys):
    assert predict.main(both_files(finished, test_csv)) == 0
    table = read_table(test_csv, Config(labels=LABELS))
    s, p = read("s.csv"), read("p.csv")
    assert (
        s[0] == p[0] == ["id", *LABELS]
        and [r[0] for r in s[1:]] == [r[0] for r in p[1:]] == table.ids
    )
    values, th = np.array([r[1:] for r in p[1:]], dtype=np.float32), np.load(finished / "th.npy")
    assert np.allclose(values, expected(finished, table.texts), atol=1e-5)
    found = np.array([r[1:] for r in s[1:]], dtype=int)
    assert np.array_equal(found, metrics.detect(values, th))
    out = capsys.readouterr().out
    assert (
        f"macro_f1 {metrics.scores(table.y, found)['macro_f1']:.4f}" in out
        and "s.csv (40 rows)" in out
    )
    assert all(f"Predicting fold {k} ..." in out for k in range(3))


@pytest.mark.parametrize("chunk", [1, 7, 40, 1000])
def test_chunks_do_not_matter(finished, test_csv, chunk, monkeypatch):
    monkeypatch.setattr(predict, "CHUNK", chunk)
    assert predict.main(both_files(finished, test_csv)) == 0
    p = read("p.csv")
    assert [r[0] for r in p[1:]] == read_table(test_csv, Config(labels=LABELS)).ids
    want = expected(finished, read_table(test_csv, Config(labels=LABELS)).texts)
    assert np.allclose(np.array([r[1:] for r in p[1:]], dtype=np.float32), want, atol=1e-5)


def test_calibrated_probabilities(finished, test_csv):
    """Verdicts stay; each label's probabilities move by its own slope and shift, and keep their
    order."""
    argv = [
        "--run",
        str(finished),
        "--input",
        str(test_csv),
        "--precision",
        "fp32",
        "--probabilities",
    ]
    assert predict.main([*argv, "raw.csv", "--output", "a.csv"]) == 0
    assert predict.main([*argv, "mended.csv", "--output", "b.csv", "--calibrate"]) == 0
    assert read("a.csv") == read("b.csv")
    raw, mended = (
        np.array([r[1:] for r in read(name)[1:]], dtype=float) for name in ("raw.csv", "mended.csv")
    )
    table = json.loads((finished / "metrics.json").read_text())["per_label"]
    for j, name in enumerate(LABELS):
        a, b = table[name]["platt"]
        assert a > 0 and np.allclose(
            mended[:, j], 1 / (1 + np.exp(-(a * metrics.logit(raw[:, j]) + b))), atol=1e-5
        )
    assert not np.allclose(raw, mended, atol=1e-3)
    text = predict.predict_emotions(
        ["i am so happy"], str(finished), calibrate=True, precision="fp32"
    )[0]
    assert text["emotions"] == ["joy"] and list(text["probabilities"]) == LABELS


def test_calibration_keeps_scores_near_one_apart():
    p = np.linspace(0.5, 0.98, 500, dtype=np.float32)[:, None]
    written = [float(f"{x:.9g}") for x in metrics.calibrated(p, 3.4, 3.1)[:, 0]]
    assert written == sorted(set(written))


def test_logits_that_are_not_finite_are_no_verdict(finished, test_csv, capsys, monkeypatch):
    """fp16 overflows in encoders that were trained in bf16: nan reaches no threshold."""
    nan = np.full((40, 5), np.nan, np.float32)
    monkeypatch.setattr(predict, "run_over_rows", lambda model, *a, **kw: (nan, None))
    assert predict.main(["--run", str(finished), "--input", str(test_csv)]) == 1
    assert (
        capsys.readouterr().err == "error: fold 0: logits are not finite - use --precision fp32\n"
    )
    assert not Path("submission.csv").exists()


def test_folds_that_do_not_fit_are_read_for_each_chunk(finished, test_csv, monkeypatch):
    monkeypatch.setattr(predict, "CHUNK", 10)
    read_folds, real = [], M.EmotionClassifier.load
    monkeypatch.setattr(M.EmotionClassifier, "load", lambda *a: read_folds.append(a) or real(*a))
    argv = ["--run", str(finished), "--input", str(test_csv), "--output"]
    assert predict.main([*argv, "a.csv"]) == 0 and len(read_folds) == 3
    assert FinishedRun(finished, "cpu").fits_in_memory()
    monkeypatch.setattr(FinishedRun, "fits_in_memory", lambda run: False)
    assert predict.main([*argv, "b.csv"]) == 0 and len(read_folds) == 3 + 4 * 3
    assert read("a.csv") == read("b.csv")


def test_each_fold_tokenises_no_more(finished, test_csv, monkeypatch):
    calls = []
    monkeypatch.setattr(predict, "encode", lambda *a: calls.append(a) or encode(*a))
    assert predict.main(["--run", str(finished), "--input", str(test_csv)]) == 0 and len(calls) == 1


def test_without_labels_and_with_other_order(finished):
    rows = [[r[1], r[0]] for r in make_rows(9, 3)]
    write_csv("in.csv", rows, ["comment_text", "id"])
    assert predict.main(["--run", str(finished), "--input", "in.csv"]) == 0
    assert [r[0] for r in read("submission.csv")] == ["id", *(r[1] for r in rows)]


def test_a_run_with_a_pooling_that_is_unknown_here(finished, tmp_path, capsys):
    """It must not be predicted with another one."""
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"pooling": "no-such-pooling"}))
    done = read_json(run / "DONE.json", sealed=True)
    done["files"] |= describe(run, ["config.json"])
    write_json(run / "DONE.json", done, seal=True)
    assert predict.main(["--run", str(run), "--text", "so happy"]) == 2
    line = capsys.readouterr().err
    assert "run/config.json: --pooling must be one of" in line and line.count("\n") == 1


TEXTS = ['so happy, "really"', "I\nam sad", "", "é 😀 \r"]


@pytest.mark.parametrize("flag, header", [("--with-text", ["id", "text"]), ("--debug", ["id"])])
@pytest.mark.parametrize("ending", ["csv", "tsv.gz"])
def test_the_texts_stand_beside_their_answers(flag, header, ending, tmp_path, finished, capsys):
    """In both files, as they were read; where there is no id, without being asked."""
    out = [tmp_path / f"{name}.{ending}" for name in ("out", "p")]
    rows = [(f"r{i}", text) for i, text in enumerate(TEXTS)]
    with_ids = write_csv(tmp_path / "a.csv", rows, ["id", "text"])
    without = write_csv(tmp_path / "b.csv", [(t, "x") for t in TEXTS], ["text", "more"])
    files = ["--output", str(out[0]), "--probabilities", str(out[1])]
    sign = "\t" if ending == "tsv.gz" else ","
    for path, columns in ((with_ids, header), (without, ["id", "text"])):
        assert predict.main(["--run", str(finished), "--input", str(path), *files, flag]) == 0
        ids = [f"r{i}" if path == with_ids else str(i) for i in range(4)]
        for written in out:
            opener = gzip.open if ending == "tsv.gz" else open
            with opener(written, "rt", encoding="utf-8", newline="") as f:
                head, *rows = csv.reader(f, delimiter=sign)
            assert head == [*columns, *LABELS]
            assert [row[0] for row in rows] == ids
            if "text" in columns:
                assert [row[1] for row in rows] == TEXTS
        shown = capsys.readouterr().out
        assert ('so happy, "really": ' in shown) == ("text" in columns)


@pytest.mark.parametrize("rows", [0, 3, 40])
def test_the_first_rows_are_shown(rows, finished, capsys):
    """Ids and detected labels, as they stand in the file; an odd id is one line."""
    table = make_rows(rows, seed=1)
    for row, odd in zip(table, ["a\rb", "c\n,d", "x" * 99], strict=False):
        row[0] = odd
    write_csv("in.csv", table)
    assert predict.main(["--run", str(finished), "--input", "in.csv"]) == 0
    out = capsys.readouterr().out
    wanted = []
    for row in read("submission.csv")[1:6]:
        names = [name for name, cell in zip(LABELS, row[1:], strict=True) if cell == "1"]
        row_id = {"a\rb": "a b", "c\n,d": "c ,d"}.get(row[0], row[0][:40])
        wanted.append(f"  {row_id}: {', '.join(names) or 'None'}")
    shown = out.split("rows)\n")[1].splitlines()
    assert shown[: len(wanted)] == wanted and len(wanted) == min(rows, 5)
    assert sum(line.startswith("  ") for line in shown) == len(wanted)
    assert rows < 40 or any("," in line for line in wanted)


def test_gzip_in_and_out(finished, test_csv, monkeypatch):
    with gzip.open("in.csv.gz", "wb") as f:
        f.write(test_csv.read_bytes())
    monkeypatch.setattr(predict, "CHUNK", 15)
    assert (
        predict.main(["--run", str(finished), "--input", "in.csv.gz", "--output", "s.csv.gz"]) == 0
    )
    assert (
        predict.main(["--run", str(finished), "--input", str(test_csv), "--output", "s.csv"]) == 0
    )
    assert read("s.csv.gz") == read("s.csv")


def test_empty_input_gives_a_header(finished):
    write_csv("in.csv", [])
    assert predict.main(["--run", str(finished), "--input", "in.csv"]) == 0
    assert read("submission.csv") == [["id", *LABELS]]


def test_text_and_predict_emotions(finished, capsys):
    texts = ["i am so happy", "the dog ran"]
    assert predict.main(["--run", str(finished), "--text", *texts, "--precision", "fp32"]) == 0
    out = capsys.readouterr().out
    p = expected(finished, texts)
    assert (
        float(re.search(r"Text: i am so happy\n  anger +([\d.]+)\n", out)[1])
        == pytest.approx(p[0, 0], abs=1e-4)
        and "Detected emotions: joy\n" in out
    )
    assert "Detected emotions: None" in out
    r = predict.predict_emotions(texts, str(finished), precision="fp32")
    assert [x["emotions"] for x in r] == [["joy"], []] and list(r[0]["probabilities"]) == LABELS
    assert np.allclose([list(x["probabilities"].values()) for x in r], p, atol=1e-5)
    everything = predict.predict_emotions(texts[0], str(finished), thresholds="0")
    assert everything[0]["emotions"] == LABELS


def test_thresholds_as_a_number_as_given_and_inside_the_run(run, test_csv, capsys):
    base = ["--run", str(run), "--input", str(test_csv)]
    assert predict.main([*base, "--thresholds", "0"]) == 0
    assert all(r[1:] == ["1"] * 5 for r in read("submission.csv")[1:])
    assert predict.main([*base, "--thresholds", "th.npy"]) == 0  # found inside the run
    inside = read("submission.csv")
    shutil.copy(run / "th.npy", "th.npy")
    assert (
        predict.main([*base, "--thresholds", "th.npy"]) == 0 and read("submission.csv") == inside
    )  # the same at both places
    np.save("th.npy", np.full(5, 0.3, np.float32))
    assert (
        predict.main([*base, "--thresholds", "th.npy"]) == 2 and "differ" in capsys.readouterr().err
    )
    assert predict.main([*base, "--thresholds", "./missing.npy"]) == 2


@pytest.mark.parametrize("spoil, words", SPOILT)
def test_spoilt_runs_are_refused(run, test_csv, spoil, words, capsys):
    spoil(run)
    assert predict.main(["--run", str(run), "--input", str(test_csv)]) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1 and not os.path.exists("submission.csv")


def test_a_fold_of_another_run_is_refused(run, flags, tmp_path, test_csv, capsys):
    import train

    assert train.main([*flags, "--seed", "1", "--fold", "1", "--out", str(tmp_path / "other")]) == 0
    shutil.rmtree(run / "fold_1")
    shutil.copytree(tmp_path / "other" / "fold_1", run / "fold_1")
    assert predict.main(["--run", str(run), "--input", str(test_csv)]) == 2
    assert "fold_1: belongs to another run" in capsys.readouterr().err


def test_a_fold_in_the_place_of_another_is_refused_and_trained_again(run, test_csv, capsys):
    shutil.rmtree(run / "fold_1")
    shutil.copytree(run / "fold_0", run / "fold_1")
    assert predict.main(["--run", str(run), "--input", str(test_csv)]) == 2
    assert "fold_1: belongs to another run or fold" in capsys.readouterr().err
    with Session.begin(Command("train.py", [], typed=True)) as session:
        assert list(ActiveRun(run, session, None, []).folds_to_train()) == [1]
    assert "fold 1 is trained again" in capsys.readouterr().out


def test_a_run_of_other_code_is_said(finished, test_csv, tmp_path, monkeypatch, capsys):
    """The files of the code as env.json knows them, with one changed since and one gone: both are
    named."""
    argv = ["--run", str(finished), "--input", str(test_csv)]
    assert predict.main(argv) == 0 and "warning" not in capsys.readouterr().err
    want = read("submission.csv")
    code = [n.removeprefix("code.") for n in Run(finished).identity if n.startswith("code.")]
    assert {"config.py", "data.py", "model.py", "metrics.py", "support/device.py"} <= set(code)
    for name in code:
        (tmp_path / "code" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(HERE / name, tmp_path / "code" / name)
    with open(tmp_path / "code" / "model.py", "a") as f:
        f.write("# changed\n")
    (tmp_path / "code" / "support" / "device.py").unlink()
    monkeypatch.setattr(finished_module, "HERE", tmp_path / "code")
    assert predict.main(argv) == 0 and read("submission.csv") == want
    said = "made by other code than this (model.py, support/device.py) - scores may differ"
    assert capsys.readouterr().err == f"warning: {finished}: {said}\n"


@pytest.mark.parametrize(
    "change, names",
    [
        (lambda head: head.pop("head.bias"), "head.bias"),
        (lambda head: head.update(scale=torch.ones(5)), "scale"),
        (lambda head: head.update({"a.weight": head.pop("head.weight")}), "a.weight, head.weight"),
    ],
)
def test_a_head_of_other_code_is_refused(run, test_csv, change, names, capsys):
    """Its checksum is right, its weights have other names: nothing is left as it was drawn at
    random."""
    path = run / "fold_1" / "head.safetensors"
    head = load_file(path)
    change(head)
    save_file(head, path)
    done = read_json(run / "fold_1" / "DONE.json", sealed=True)
    done["files"] |= describe(run / "fold_1", [path.name])
    write_json(run / "fold_1" / "DONE.json", done, seal=True)
    words = f"{path}: made by other code (weights {names})"
    with pytest.raises(UserError, match=re.escape(words)):
        M.EmotionClassifier.load(run / "fold_1", Config())
    assert predict.main(["--run", str(run), "--input", str(test_csv)]) == 2
    said = f"error: {words} - use the code it was trained with\n"
    assert capsys.readouterr().err == said and not os.path.exists("submission.csv")


def test_what_is_read_beside_the_text_is_read_everywhere(flags, tmp_path, monkeypatch, capsys):
    """make_inputs puts a word before each text: train.py, files and --text all read it; copies go
    by the texts."""
    import train

    def tag(texts, columns=None):
        return [f"suddenly {t}" for t in texts]

    path = str(write_csv(tmp_path / "t.csv", make_rows(30)))
    texts = [r[1] for r in make_rows(30)]
    more = ["--train", path, "--folds", "2", "--epochs", "1", "--out"]
    assert train.main([*flags, *more, "plain"]) == 0
    for module in (data, predict):
        monkeypatch.setattr(module, "make_inputs", tag)
    encoded = []
    monkeypatch.setattr(
        train, "encode", lambda t, inputs, *a: encoded.append(inputs) or encode(t, inputs, *a)
    )
    assert train.main([*flags, *more, "tagged"]) == 0
    assert encoded == [tag(texts)]
    assert np.array_equal(np.load("tagged/texts.npy"), np.unique(text_hashes(texts)))
    plain, tagged = read("plain/oof.csv"), read("tagged/oof.csv")
    assert [r[:2] for r in plain] == [r[:2] for r in tagged] and plain != tagged
    assert sorted({r[-1] for r in read("tagged/errors.csv")[1:]}) == sorted(set(texts))
    capsys.readouterr()
    argv = ["--run", "tagged", "--input", path, "--probabilities", "p.csv", "--precision", "fp32"]
    assert predict.main(argv) == 0
    assert "30 of 30 texts are among those this run was trained on" in capsys.readouterr().err
    want = predict.load_run("tagged", precision="fp32").predict_test(tag(texts))
    assert np.array_equal(np.array([r[1:] for r in read("p.csv")[1:]], np.float32), want)
    emotions = predict.predict_emotions(texts, "tagged", precision="fp32")
    assert [x["text"] for x in emotions] == texts
    assert np.array_equal(
        np.array([list(x["probabilities"].values()) for x in emotions], np.float32), want
    )
    assert predict.main(["--run", "tagged", "--text", texts[0], "--precision", "fp32"]) == 0
    out = capsys.readouterr().out
    assert f"Text: {texts[0]}\n  anger        {want[0, 0]:.4f}\n" in out


def test_the_text_column_of_the_training_is_read_again(flags, tmp_path):
    import train

    rows = [[r[0], "the dog", r[1], *r[2:]] for r in make_rows(30)]
    path = str(write_csv(tmp_path / "t.csv", rows, ["id", "text", "body", *LABELS]))
    assert (
        train.main(
            [
                *flags,
                "--train",
                path,
                "--text-column",
                "body",
                "--folds",
                "2",
                "--out",
                str(tmp_path / "r"),
            ]
        )
        == 0
    )
    argv = ["--run", str(tmp_path / "r"), "--input", path, "--probabilities"]
    assert (
        predict.main([*argv, "a.csv"]) == 0
        and predict.main([*argv, "b.csv", "--text-column", "text"]) == 0
    )
    assert (
        len({tuple(r[1:]) for r in read("a.csv")}) > 20
        and len({tuple(r[1:]) for r in read("b.csv")}) == 2
    )


def test_the_column_learned_from_goes_before_text(flags, tmp_path, monkeypatch, capsys):
    """Trained on `review`, for want of `text`: of a file with both, `review` is read; of one with
    `text` alone, that."""
    import train

    monkeypatch.chdir(tmp_path)
    rows = make_rows(30)
    path = str(write_csv(tmp_path / "t.csv", rows, ["id", "review", *LABELS]))
    assert train.main([*flags, "--train", path, "--folds", "2", "--out", "r"]) == 0
    assert capsys.readouterr().out.endswith("next: python predict.py --run r --input new.csv\n")
    both = str(
        write_csv(
            tmp_path / "both.csv", [[r[0], "the dog", r[1]] for r in rows], ["id", "text", "review"]
        )
    )
    one = str(write_csv(tmp_path / "one.csv", [[r[0], "the dog"] for r in rows], ["id", "text"]))
    argv = ["--run", "r", "--probabilities", "p.csv", "--input"]
    for new, column, distinct in ((path, "review", 20), (both, "review", 20), (one, None, 0)):
        capsys.readouterr()
        assert predict.main([*argv, new]) == 0
        assert f"text column: {column}" in capsys.readouterr().out or column is None
        assert len({tuple(r[1:]) for r in read("p.csv")}) > distinct
    assert predict.main(["--run", "r", "--input", one, "--output", path]) == 2
    assert "is what the run was trained on" in capsys.readouterr().err
    assert (
        train.main(
            [*flags, "--config", "r/config.json", "--train", path, "--folds", "2", "--out", "r"]
        )
        == 0
    )


def test_a_second_column_that_could_be_the_text_is_said(finished, capsys):
    Path("new.csv").write_text("id,comment_text,text\n1,a,b\n")
    assert predict.main(["--run", str(finished), "--input", "new.csv"]) == 0
    assert "text column: text\n" in capsys.readouterr().out
    Path("new.csv").write_text("id,text\n1,a\n")
    assert predict.main(["--run", str(finished), "--input", "new.csv"]) == 0
    assert "text column" not in capsys.readouterr().out


def test_a_run_that_was_renamed_away_is_not_the_newest(finished, capsys):
    shutil.copytree(finished, "runs/a")
    shutil.copytree(finished, "runs/a.old1")
    os.utime("runs/a/DONE.json", (1, 1))
    assert predict.main(["--text", "a dog"]) == 0
    assert "run runs/a (finished last of 1)" in capsys.readouterr().out


def test_a_blank_text_without_special_tokens(finished):
    tokenizer = inspect_encoder(str(finished / "fold_0")).tokenizer
    tokenizer.backend_tokenizer.post_processor = processors.Sequence([])
    tokens = encode(tokenizer, ["", "a dog"], 8)
    assert tokens.lengths.tolist() == [1, 2] and tokens.token_ids[0] == tokenizer.pad_token_id


def test_seen_texts_are_counted(finished, train_csv, capsys):
    assert predict.main(["--run", str(finished), "--input", str(train_csv)]) == 0
    assert "120 of 120 texts are among those this run was trained on" in capsys.readouterr().err


def test_a_killed_prediction_goes_on(finished, test_csv, monkeypatch, capsys):
    """Killed after each chunk in turn: the same bytes, and no chunk predicted twice."""
    monkeypatch.setattr(predict, "CHUNK", 10)
    argv = [
        "--run",
        str(finished),
        "--input",
        str(test_csv),
        "--output",
        "s.csv",
        "--probabilities",
        "p.csv",
    ]
    assert predict.main(argv) == 0
    want = (Path("s.csv").read_text(), Path("p.csv").read_text())
    want_out = capsys.readouterr().out.splitlines()[-8:]
    real, calls = predict.Ensemble.predict_test, []

    def killed(self, inputs, *a, **kw):
        calls.append(1)
        if len(calls) % 2 == 0:
            raise UserError("killed", 137)
        return real(self, inputs, *a, **kw)

    os.unlink("s.csv")
    monkeypatch.setattr(predict.Ensemble, "predict_test", killed)
    codes = [predict.main(argv) for _ in range(4)]
    assert codes == [137, 137, 137, 0] and len(calls) == 7  # four chunks, three of them begun twice
    assert (Path("s.csv").read_text(), Path("p.csv").read_text()) == want
    out = capsys.readouterr().out
    assert (
        "resumes after row 30 of 40" in out and out.splitlines()[-8:] == want_out
    )  # the scores, too, are of all rows
    assert not [n for n in os.listdir() if "part" in n]


def test_it_says_how_many_rows_are_done_where_lines_are_blank(finished, monkeypatch, capsys):
    """A chunk counts lines; ten of twenty are blank here."""
    lines = [f"{r[0]},{r[1]}\n\n" for r in make_rows(10, 9)] + [f"x{i},a dog\n" for i in range(10)]
    Path("in.csv").write_text("id,text\n" + "".join(lines))
    monkeypatch.setattr(predict, "CHUNK", 10)
    real, calls = predict.Ensemble.predict_test, []

    def stop(self, texts, *a, **k):
        calls.append(len(texts))
        return real(self, texts, *a, **k) if len(calls) != 3 else sys.exit(9)

    monkeypatch.setattr(predict.Ensemble, "predict_test", stop)
    argv = ["--run", str(finished), "--input", "in.csv"]
    with pytest.raises(SystemExit):
        predict.main(argv)
    assert predict.main(argv) == 0 and calls == [5, 5, 10, 10]
    assert "resumes after row 10 of 20" in capsys.readouterr().out
    assert len(read("submission.csv")) == 21


def test_a_changed_input_starts_again(finished, test_csv, monkeypatch, capsys):
    monkeypatch.setattr(predict, "CHUNK", 10)
    shutil.copy(test_csv, "in.csv")
    argv = ["--run", str(finished), "--input", "in.csv"]
    real, calls = predict.Ensemble.predict_test, []

    def stop(self, inputs, *a, **kw):
        calls.append(1)
        return real(self, inputs, *a, **kw) if len(calls) != 3 else sys.exit(9)

    monkeypatch.setattr(predict.Ensemble, "predict_test", stop)
    with pytest.raises(SystemExit):
        predict.main(argv)
    write_csv("in.csv", make_rows(30, 9))
    assert predict.main(argv) == 0 and len(read("submission.csv")) == 31
    assert "resumes" not in capsys.readouterr().out and len(calls) == 6


def test_the_literal_commands(tmp_path):
    """python train.py --model bert-base-uncased --folds 5; python predict.py --thresholds th.npy:
    so typed, from a Hub cache."""
    revision = "0123456789abcdef" * 2 + "01234567"
    snapshot = tmp_path / "hub" / "models--bert-base-uncased" / "snapshots" / revision
    snapshot.parent.mkdir(parents=True)
    make_bert(snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(revision)
    env = {
        **os.environ,
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    env["MPLBACKEND"] = "a_notebooks"  # which the matplotlib here need not have

    def call(*argv):
        return subprocess.run(
            [sys.executable, HERE / argv[0], *argv[1:]],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=env,
        )

    done = call("train.py", "--model", "bert-base-uncased", "--folds", "5")
    assert done.returncode == 0, done.stderr
    assert (
        "unknown to this tokenizer" in done.stderr
        and done.stderr.count("\n") == 1
        and "cross-fitted (quote this one)" in done.stdout
    )
    run = next((tmp_path / "runs").iterdir())
    assert done.stdout.endswith(f"next: python predict.py --run runs/{run.name}\n")  # on the sample
    assert run.name.startswith("bert-base-uncased-")
    assert json.loads((run / "env.json").read_text())["hub_revision"] == revision
    done = call("predict.py", "--thresholds", "th.npy")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    test = read_table(HERE / "examples" / "test.csv", Config(labels=LABELS))
    assert [r[0] for r in read(tmp_path / "submission.csv")][1:] == test.ids


def test_the_whole_pipeline_on_the_bundled_encoder_without_a_network(tmp_path):
    """Sockets are refused (conftest.py): train, resume, predict with the real MiniLM."""
    import train

    argv = [
        "--train",
        str(write_csv(tmp_path / "t.csv", make_rows(24))),
        "--folds",
        "2",
        "--epochs",
        "1",
        "--max-length",
        "16",
    ]
    assert train.main(argv) == 0 and train.main(argv) == 0
    run = next((tmp_path / "runs").iterdir())
    assert (
        run.name.startswith("all-MiniLM-L6-v2-")
        and predict.main(["--thresholds", "th.npy", "--input", str(tmp_path / "t.csv")]) == 0
    )
    assert len(read("submission.csv")) == 25


def test_a_text_is_predicted_without_writing_anywhere(finished, monkeypatch):
    """In a read-only container there is no temporary folder either."""

    def refused(*a, **k):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryDirectory", refused)
    assert predict.main(["--run", str(finished), "--text", "a dog"]) == 0


def test_an_unknown_model_offline_is_one_line(capsys, monkeypatch, train_csv):
    import train

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert train.main(["--train", str(train_csv), "--model", "no-such/model"]) == 2
    err = capsys.readouterr().err
    assert (
        err.count("\n") == 1
        and "HF_HUB_OFFLINE" in err
        and "local folder" in err
        and not os.path.exists("runs")
    )
