"""predict.py that was killed resumes after its last chunk, with one writer a file and one run.

The output is compared with that of a prediction that nothing disturbed.
python -m pytest tests/test_predict_resume.py
"""

import json
import os
import shutil
from pathlib import Path

import pytest
from faults import Killed, at_call, die, flip, one_line

import predict
from support import csvwriter, files
from support.files import locked, write_json
from support.csvwriter import GrowingCSV

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_flipped_byte_in_the_growing_output(clean, tmp_path, test_csv, monkeypatch, capsys):
    out = tmp_path / "s.csv"
    argv = ["--run", str(clean), "--input", str(test_csv), "--output", str(out)]
    monkeypatch.setattr(predict, "CHUNK", 11)
    assert predict.main(argv) == 0
    want = out.read_bytes()
    with monkeypatch.context() as m:
        at_call(m, csvwriter, "write_json", 3, die)
        with pytest.raises(Killed):
            predict.main(argv)
    flip(tmp_path / "s.csv.part" / "1.json", 200)
    capsys.readouterr()
    assert predict.main(argv) == 0 and out.read_bytes() == want
    assert "resumes after row 11 of 40" in capsys.readouterr().out


@pytest.mark.parametrize("ending", [".csv", ".csv.gz"])
def test_predict_goes_on_after_death_at_every_chunk(
    ending, clean, tmp_path, test_csv, monkeypatch, capsys
):
    out = tmp_path / f"s{ending}"
    argv = [
        "--run",
        str(clean),
        "--input",
        str(test_csv),
        "--output",
        str(out),
        "--probabilities",
        str(tmp_path / f"p{ending}"),
    ]
    monkeypatch.setattr(predict, "CHUNK", 11)  # 40 rows: 4 chunks
    assert predict.main(argv) == 0
    want = [out.read_bytes(), (tmp_path / f"p{ending}").read_bytes()]
    scores = capsys.readouterr().out.splitlines()[-1]
    for name in ("write_json", "commit"):
        for number in range(1, 5 if name == "write_json" else 3):
            out.unlink()
            with monkeypatch.context() as m:
                at_call(m, csvwriter, name, number, die)
                with pytest.raises(Killed):
                    predict.main(argv)
            part = out.with_name(out.name + ".part")
            assert (part / f"{number - 1}.json").exists()
            (part / ".tmp-x").mkdir()
            (part / ".tmp-x" / f"{number}.json").write_text("half a chu")
            if number == 2:
                flip(part / "0.json", 40)  # then it starts again
            if number == 3:
                os.truncate(part / "0.json", 30)
            capsys.readouterr()
            assert predict.main(argv) == 0
            said = capsys.readouterr().out
            assert [out.read_bytes(), (tmp_path / f"p{ending}").read_bytes()] == want
            assert said.splitlines()[-1] == scores and "macro_f1" in scores
            assert ("resumes after row" in said) == (number not in (2, 3))
    assert sorted(os.listdir(tmp_path)) == [f"p{ending}", f"s{ending}"]


@pytest.mark.parametrize("taken", ["s.csv", "p.csv"])
def test_two_predictions_into_one_file(taken, clean, tmp_path, test_csv, capsys):
    argv = ["--run", str(clean), "--input", str(test_csv), "--output", str(tmp_path / "s.csv")]
    argv += ["--probabilities", str(tmp_path / "p.csv")]
    with locked(tmp_path / f"{taken}.part" / "lock") as free:
        assert free
        assert predict.main(argv) == 2
    one_line(capsys, f"{taken}: another predict.py is writing it")
    assert predict.main(argv) == 0


def test_a_prediction_killed_within_a_chunk_leaves_nothing(clean, tmp_path, test_csv, monkeypatch):
    """A process that is gone can't remove its temporary folder: the next one does, but no
    other's."""
    argv = ["--run", str(clean), "--input", str(test_csv), "--output", str(tmp_path / "s.csv")]
    for name in ("s.csv.part", "other.csv.part"):
        (tmp_path / name / ".tmp-abc").mkdir(parents=True)
        (tmp_path / name / "lock").touch()
        (tmp_path / name / ".tmp-abc" / "0.json").write_text("{")
    assert predict.main(argv) == 0
    assert sorted(os.listdir(tmp_path)) == ["other.csv.part", "s.csv"]
    assert sorted(os.listdir(tmp_path / "other.csv.part")) == [".tmp-abc", "lock"]
    made, real = [], files.tempfile.TemporaryDirectory

    def temporary(**k):
        if "dir" in k:  # else it is the system's own place, which the system sweeps
            made.append(k["dir"])
        return real(**k)

    monkeypatch.setattr(files.tempfile, "TemporaryDirectory", temporary)
    assert predict.main(argv) == 0
    assert set(made) == {tmp_path / "s.csv.part"}  # nowhere else


def test_a_run_trained_again_is_predicted_again(
    command, copy, tmp_path, test_csv, monkeypatch, capsys
):
    """Chunks written by the weights of before must not stay; settings and data are the same."""
    argv = ["--run", str(copy), "--input", str(test_csv), "--output", str(tmp_path / "s.csv")]
    monkeypatch.setattr(predict, "CHUNK", 11)
    with monkeypatch.context() as m:
        at_call(m, GrowingCSV, "append", 3, die)
        with pytest.raises(Killed):
            predict.main(argv)
    done = json.loads((copy / "DONE.json").read_text())
    done.pop("sha256")
    write_json(copy / "DONE.json", {**done, "again": 1}, seal=True)
    capsys.readouterr()
    assert predict.main(argv) == 0 and "resumes" not in capsys.readouterr().out


def test_a_run_that_is_replaced_while_it_predicts(clean, tmp_path, test_csv, monkeypatch, capsys):
    """Half of the rows would be of the old models."""
    copy = Path(shutil.copytree(clean, tmp_path / "run"))
    real = GrowingCSV.append

    def append(self, *args):
        done = json.loads((copy / "DONE.json").read_text())
        done.pop("sha256")
        write_json(copy / "DONE.json", {**done, "again": 1}, seal=True)
        return real(self, *args)

    with monkeypatch.context() as m:
        m.setattr(GrowingCSV, "append", append)
        out = str(tmp_path / "s.csv")
        assert predict.main(["--run", str(copy), "--input", str(test_csv), "--output", out]) == 1
    one_line(capsys, "DONE.json: changed while it was read")
    assert not (tmp_path / "s.csv").exists()
