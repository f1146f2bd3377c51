"""A student's folds are taught by the teacher's own folds, and by nothing else.

python -m pytest tests/test_distil.py
"""

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import test_jobs
from cases.distil import ERRORS
from conftest import CUES, LABELS, WORDS, make_rows, outputs, write_csv
from sklearn.metrics import average_precision_score
from test_jobs import running, wait_until

import predict
import train
from config import Config
from data import read_table
from support.cli import parse
from support.finished import FinishedRun
from tools import compare, distil
from tools.parts.teaching import TaughtTable, read_taught


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    """60 new texts, with labels that must not be read; 5 of the training file, 3 of a test file."""
    rows = make_rows(60, seed=2) + make_rows(120)[:5] + make_rows(40, seed=1)[:3]
    path = tmp_path_factory.mktemp("texts") / "texts.csv"
    return write_csv(path, [[f"t{i}", row[1], *"?????"] for i, row in enumerate(rows)])


@pytest.fixture
def command(finished, bert, texts, test_csv) -> list[str]:
    argv = [str(finished), "--texts", str(texts), "--test", str(test_csv), "--model", str(bert)]
    return [*argv, "--epochs", "2", "--lr", "5e-3", "--precision", "fp32"]


@pytest.fixture(scope="module")
def student(tmp_path_factory, finished, bert, texts) -> Path:
    out = tmp_path_factory.mktemp("student") / "run"
    argv = [str(finished), "--texts", str(texts), "--model", str(bert), "--epochs", "1"]
    assert distil.main([*argv, "--precision", "fp32", "--out", str(out)]) == 0
    return out


def taught_by(command: list[str], *more: str) -> TaughtTable:
    argv = distil.expanded([*command, *more, "--out", "x", "--device", "cpu"])
    return read_taught(parse(distil.DistilConfig, argv))


def test_a_fold_learns_from_the_teachers_own_fold(command, finished, train_csv, texts):
    table = taught_by(command)
    plain, n = read_table(str(train_csv), Config()), 120
    assert len(table) == n + 60 and np.isnan(table.targets[n:]).all()
    assert table.ids[:n] == plain.ids and table.ids[n:] == [f"t{i}" for i in range(60)]
    ensemble = predict.Ensemble(FinishedRun(str(finished), "cpu", "fp32"))
    for k in range(3):
        p, targets = ensemble.predict_test(table.inputs, fold_numbers=[k]), table.targets_of(k)
        held = table.fold == k
        assert held.sum() == 40 and np.array_equal(targets[held], plain.y[held[:n]])
        others = ~held & (np.arange(n + 60) < n)
        half = (plain.y[others[:n]] + p[others]) / 2
        assert np.allclose(targets[others], half, atol=1e-6) and targets.dtype == np.float32
        assert np.array_equal(targets[n:], p[n:])
    hard = taught_by(command, "--teacher-share", "0")
    assert np.array_equal(hard.targets_of(0)[:n], plain.y)
    softest = taught_by(command, "--teacher-share", "1")
    assert np.allclose(softest.targets_of(2)[others], p[others], atol=1e-6)


def test_trained_in_two_processes_killed_and_gone_on_with(command, tmp_path, monkeypatch, capsys):
    """The same bytes as one process gives that nobody disturbs; and a run as any other."""
    command += ["--epochs", "4", "--batch-size", "4"]
    assert distil.main([*command, "--out", str(tmp_path / "whole")]) == 0
    said = capsys.readouterr().out
    assert (
        "60 texts; left out, as known or duplicate: 8" in said
        and "held-out labels chose its epochs" in said
    )
    out, driver = tmp_path / "killed", test_jobs.DRIVER.replace("train.main", "distil.main")
    driver = driver.replace("import train", "import train; from tools import distil")
    monkeypatch.setattr(test_jobs, "DRIVER", driver)
    first, helper = test_jobs.start(command, out, tmp_path / "log")
    first.send_signal(signal.SIGKILL)
    first.wait()
    wait_until(lambda: not running(helper))  # it stops at its next step
    assert not (out / "DONE.json").exists()
    assert distil.main([*command, "--out", str(out)]) == 0
    assert "resumes at" in capsys.readouterr().out
    assert outputs(out) == outputs(tmp_path / "whole")


def test_it_is_compared_with_its_teacher(student, finished, capsys):
    assert compare.main([str(finished), str(student)]) == 0
    assert "macro-F1" in capsys.readouterr().out


def test_other_texts_another_teacher_or_another_share_are_another_run(student, command, capsys):
    argv = [*command[:1], *command[3:], "--texts", command[2], "--out", str(student)]
    assert distil.main([*argv, "--teacher-share", "0.7"]) == 2
    assert "settings.teacher_share: 0.5 -> 0.7" in capsys.readouterr().err
    identity = json.loads((student / "env.json").read_text())["same"]
    code = {"code.tools/distil.py", "code.tools/parts/teaching.py"}
    assert {"teacher", "texts_sha256", *code} <= set(identity)


def test_what_a_run_gives_stands_in_front(student, finished):
    """Later flags win. However the runs are named; and twice is once, as helpers do it again."""
    data = distil.expanded([str(finished), "--lr", "1"])
    assert data == distil.expanded(data)[-len(data) :] and data[-2:] == ["--lr", "1"]
    assert data[-4:-2] == ["--teacher", str(finished)] and data[:2] == [
        "--train",
        str(Path(data[1])),
    ]
    named = distil.expanded([f"--teacher={finished}", "--lr", "1"])
    assert named[:-3] == data[:-4]
    for argv in (["--single", "s"], ["t", "--single=s"]):
        assert distil.expanded(argv)[:4] == ["--config", "s/config.json", "--keep", "last"]


def test_the_file_of_test_decides_too(command, tmp_path):
    """By what it leaves out."""
    other = write_csv(tmp_path / "test.csv", make_rows(60, seed=2)[:9])
    argv = [*command, "--test", str(other)]
    a, b = (taught_by(x).identity for x in (command, argv))
    assert a["texts_sha256"] != b["texts_sha256"] and a["teacher"] == b["teacher"]


def test_one_student_on_all_rows(student, tmp_path, test_csv, capsys):
    out = tmp_path / "one"
    assert distil.main(["--single", str(student), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "agreement with the teacher on 4 texts held back" in said  # of 63
    assert "179 rows to train on, 4 held out" in said and "cross-fitted" not in said
    assert (out / "th.npy").read_bytes() == (student / "th.npy").read_bytes()
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["scores_of"] == str(student) and not (out / "oof.csv").exists()
    argv = ["--input", str(test_csv), "--output", str(tmp_path / "s.csv"), "--run", str(out)]
    assert predict.main(argv) == 0
    again = ["--single", f"{student}/", "--out", str(out)]  # paths are no part of a run
    assert distil.main(again) == 0 and "finished before" in capsys.readouterr().out
    assert distil.main([str(out), *["--texts", str(test_csv), "--out", str(tmp_path / "x")]]) == 2
    assert "one model on all rows teaches no folds" in capsys.readouterr().err


def test_one_student_is_taught_by_the_mean_of_all_folds(student, finished, monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(train, "train_fold", lambda k, config, table, *_: seen.append((k, table)))
    distil.main(["--single", str(student), "--out", str(tmp_path / "one")])
    ((k, table),) = seen
    p = predict.Ensemble(FinishedRun(str(finished), "cpu", "fp32")).predict_test(table.inputs)
    assert k == 0 and np.allclose(table.targets_of(0)[120:], p[120:], atol=1e-6)
    assert (table.fold[:120] == -1).all() and (table.fold[120:] == 0).sum() == 4


def near_copies(path: Path, rows: list[list[str]], rng) -> Path:
    """The texts of `rows`, one word of each changed."""
    near = []
    for row in rows:
        words = row[1].split()
        words[rng.integers(len(words))] = str(rng.choice(WORDS))
        near.append([f"n{row[0]}", " ".join(words)])
    return write_csv(path, near, ["id", "text"])


def test_no_label_of_a_held_out_row_reaches_its_student(bert, tmp_path, monkeypatch):
    """Labels are noise, and the texts are the rows with one word changed. Who learned a row's label
    gives it away. The student of fold k hears the teacher's fold k alone, which never saw it."""
    rng, words, names = np.random.default_rng(0), [*WORDS, *CUES.values()], ["a", "b", "c", "d"]
    rows = [[i, " ".join(rng.choice(words, 6)), *rng.integers(0, 2, 4)] for i in range(80)]
    write_csv(tmp_path / "noise.csv", rows, ["id", "text", *names])
    near = near_copies(tmp_path / "near.csv", rows, rng)
    how = ["--model", str(bert), "--precision", "fp32", "--dropout", "0", "--keep", "last"]
    how += ["--lr", "5e-3"]
    teacher = [*how, "--train", str(tmp_path / "noise.csv"), "--labels", *names, "--folds", "2"]
    teacher += ["--epochs", "40", "--scheduler", "constant", "--out", str(tmp_path / "teacher")]
    assert train.main(teacher) == 0
    argv = [str(tmp_path / "teacher"), "--texts", str(near), *how, "--epochs", "8", "--out"]
    assert distil.main([*argv, str(tmp_path / "own")]) == 0

    def by_all(self, k: int) -> np.ndarray:
        return np.where((self.fold == k)[:, None], self.targets, self.taught(None))

    monkeypatch.setattr(TaughtTable, "targets_of", by_all)
    assert distil.main([*argv, str(tmp_path / "all")]) == 0
    y, ap = np.array([row[2:] for row in rows]), {}
    for name in ("teacher", "own", "all"):
        lines = (tmp_path / name / "oof.csv").read_text().splitlines()[1:]
        p = np.array([line.split(",")[2:6] for line in lines], float)
        ap[name] = average_precision_score(y, p)
    chance = y.mean()
    assert abs(ap["teacher"] - chance) < 0.08 and abs(ap["own"] - chance) < 0.08, ap
    assert ap["all"] > chance + 0.12, ap


@pytest.mark.parametrize("why, argv, words", ERRORS)
def test_bad_input_is_one_line(
    why, argv, words, finished, texts, train_csv, test_csv, tmp_path, capsys
):
    (tmp_path / "empty.csv").touch()
    (tmp_path / "header.csv").write_text("id,text\n")
    (tmp_path / "odd.csv").write_text("id,words\n1,a\n")
    shutil.copytree(finished, tmp_path / "half")
    (tmp_path / "half/fold_1/DONE.json").unlink()
    places = {"d": tmp_path, "run": finished, "texts": texts, "train": train_csv, "test": test_csv}
    out = tmp_path / "out"
    argv = [x.format(**places) for x in argv]
    assert distil.main([*argv, "--out", str(out)]) == 2
    err = [x for x in capsys.readouterr().err.splitlines() if not x.startswith("warning:")]
    assert len(err) == 1 and err[0].startswith("error: "), (why, err)
    assert all(word in err[0] for word in words), (why, err)
    assert not out.exists()


def test_a_teacher_whose_encoder_knew_the_rows_is_refused(
    finished, train_csv, texts, tmp_path, capsys
):
    """Its encoder learned the labels of all rows but those of its own fold."""
    argv = ["--model", str(finished / "fold_0"), "--train", str(train_csv), "--folds", "2"]
    argv += ["--epochs", "1", "--precision", "fp32", "--out", str(tmp_path / "second")]
    assert train.main(argv) == 0
    assert "120 of 120 texts are among those" in capsys.readouterr().err
    argv = [str(tmp_path / "second"), "--texts", str(texts), "--out", str(tmp_path / "x")]
    assert distil.main(argv) == 2
    assert "its encoder had been trained on 120 of these texts" in capsys.readouterr().err


def test_a_fixed_validation_file(bert, train_csv, test_csv, texts, tmp_path, capsys):
    """With --valid there is one fold. Texts that stand in the validation file are left out, too."""
    how = ["--model", str(bert), "--epochs", "1", "--precision", "fp32", "--keep", "last"]
    argv = [*how, "--train", str(train_csv), "--valid", str(test_csv), "--labels", *LABELS]
    assert train.main([*argv, "--out", str(tmp_path / "t")]) == 0
    capsys.readouterr()
    argv = [str(tmp_path / "t"), *how, "--texts", str(texts), "--out", str(tmp_path / "s")]
    assert distil.main(argv) == 0
    said = capsys.readouterr().out
    assert "left out, as known or duplicate: 8" in said and "held-out labels chose" not in said
    assert "180 rows to train on, 40 held out" in said
