"""Damaged and missing files: named by predict.py, made again by train.py.

Afterwards the run must have the bytes of one that nothing disturbed.
python -m pytest tests/test_damage.py
"""

import os

import numpy as np
import pytest
from faults import STEPS, assert_survived, at_step, die, flip, one_line, stopped

import predict
import train
from support import files
from support.checkpoint import load_state
from support.files import damage
from support.run import Run

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("size", [0, 1, 8, "half", "n-1"])
def test_a_truncated_state(size, command, tmp_path, test_csv, wanted, monkeypatch, capsys):
    path = stopped(command, tmp_path / "run", monkeypatch)
    n = path.stat().st_size
    os.truncate(path, {"half": n // 2, "n-1": n - 1}.get(size, size))
    capsys.readouterr()
    assert_survived(command, tmp_path / "run", test_csv, wanted)
    assert "state.pt: truncated or damaged - this fold starts again" in capsys.readouterr().out


def test_a_flipped_byte_in_a_state(command, tmp_path, test_csv, wanted, monkeypatch):
    path = stopped(command, tmp_path / "run", monkeypatch)
    whole = path.read_bytes()
    assert load_state(path)
    for at in np.random.default_rng(0).integers(0, len(whole), 40):
        flip(path, int(at))
        assert load_state(path) is None
        path.write_bytes(whole)
    flip(path, 5000)
    assert_survived(command, tmp_path / "run", test_csv, wanted)


def test_flipped_bytes_in_the_files_of_a_run(command, copy, test_csv, wanted, capsys, monkeypatch):
    key = Run(copy).key
    rng = np.random.default_rng(0)
    for path in sorted(
        p for p in copy.rglob("*") if p.is_file() and p.name not in ("lock", "env.json")
    ):
        whole = path.read_bytes()
        for at in [0, len(whole) - 1, *rng.integers(0, len(whole), 4)]:
            flip(path, int(at), 1 << int(rng.integers(8)))
            assert str(path) in damage(path.parent, key), (path, at)
        argv = [
            "--run",
            str(copy),
            "--input",
            str(test_csv),
            "--output",
            str(copy.parent / "no.csv"),
        ]
        assert predict.main(argv) == 2
        one_line(capsys, str(path), "run the same train.py command again")
        assert not (copy.parent / "no.csv").exists()
        path.write_bytes(whole)
    flip(copy / "fold_1" / "head.safetensors", 200)
    flip(copy / "th.npy", 130)
    flip(copy / "config.json", 130)
    flip(copy / "texts.npy", 130)
    begun = at_step(monkeypatch, 0, die)
    assert_survived(command, copy, test_csv, wanted)
    assert begun == [STEPS // 2]  # just that fold


def test_a_flipped_byte_in_env_json_is_refused_by_both(command, copy, test_csv, capsys):
    text = (copy / "env.json").read_text()
    for old in ('"settings.lr": 0.005', text[text.index('"sha256": "') :][:15], '"same"'):
        assert old in text
        (copy / "env.json").write_text(
            text.replace(old, old[:-1] + ("7" if old[-1] != "7" else "8"))
        )
        assert (
            predict.main(
                [
                    "--run",
                    str(copy),
                    "--input",
                    str(test_csv),
                    "--output",
                    str(copy.parent / "no.csv"),
                ]
            )
            == 2
        )
        one_line(capsys, "env.json")
        assert train.main([*command, "--out", str(copy)]) == 2
        one_line(capsys, "env.json", "--restart")


def test_each_missing_file_is_named(command, copy, test_csv, wanted, capsys):
    argv = ["--run", str(copy), "--input", str(test_csv), "--output", str(copy.parent / "no.csv")]
    names = [
        p.relative_to(copy) for p in sorted(copy.rglob("*")) if p.is_file() and p.name != "lock"
    ]
    assert len(names) > 15
    for name in names:
        (copy / name).rename(copy.parent / "aside")
        assert predict.main(argv) == 2, name
        line = one_line(capsys)
        assert (
            name.name in line
            or name.name == "DONE.json"
            and name.parent.name.replace("_", " ") in line
        ), line
        assert str(copy) in line
        (copy.parent / "aside").rename(copy / name)
    for name in (
        "fold_0/tokenizer.json",
        "th.json",
        "fold_1/DONE.json",
        "DONE.json",
        "texts.npy",
        "config.json",
    ):
        (copy / name).unlink()
    assert_survived(command, copy, test_csv, wanted)


def test_a_file_of_the_kept_epoch_lost_before_the_fold_ends(
    command, tmp_path, test_csv, wanted, monkeypatch, capsys
):
    """Its checksum is taken when it is written, so that DONE.json can't vouch for what was damaged
    since."""
    path = stopped(command, tmp_path / "run", monkeypatch, step=7)
    weights = path.with_name("model.safetensors")
    assert weights.exists()
    assert load_state(path)["progress"]["kept"]["epoch"] == 0
    flip(weights, 3000)
    with monkeypatch.context() as m:
        m.setattr(train, "better", lambda row, old: old is None)  # no later epoch writes it again
        assert train.main([*command, "--out", str(tmp_path / "run"), "--fold", "0"]) == 0
    capsys.readouterr()
    assert_survived(command, tmp_path / "run", test_csv, wanted)
    assert (
        "model.safetensors: missing or damaged - fold 0 is trained again" in capsys.readouterr().out
    )


def test_a_damaged_fold_is_not_put_into_the_totals(command, copy, test_csv, wanted, capsys):
    flip(copy / "fold_1" / "oof.npy", 300)
    assert train.main([*command, "--out", str(copy), "--fold", "0"]) == 1
    one_line(capsys, "fold_1/oof.npy: missing or damaged")
    assert_survived(command, copy, test_csv, wanted)


def test_a_file_that_may_not_be_read(clean, capsys, monkeypatch):
    def refused(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(files, "file_sha256", refused)
    assert predict.main(["--run", str(clean), "--text", "x"]) == 2
    one_line(capsys, "Permission denied", str(clean))
