"""Another command, other data, another process: a run folder belongs to one run at a time.

What is refused must leave the folder as it was, compared with the run that nothing disturbed.
python -m pytest tests/test_other_runs.py
"""

import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import LABELS, make_rows, outputs, write_csv
from faults import assert_survived, one_line

import data as data_module
import predict
import train
from support import run as run_module
from support.files import locked, write_json
from support.run import Run

pytestmark = pytest.mark.usefixtures("one_thread")

# Another command, other data


@pytest.mark.parametrize(
    "extra, named",
    [
        (["--lr", "1e-3"], "settings.lr: 0.005 -> 0.001"),
        (["--epochs", "3"], "settings.epochs: 2 -> 3"),
        (["--folds", "3"], "settings.folds: 2 -> 3"),
        (["--labels", *LABELS[:4]], "settings.labels"),
        (["--pooling", "cls"], "settings.pooling: mean -> cls"),
        (
            ["--seed", "7", "--dropout", "0.2"],
            "settings.dropout: 0.3 -> 0.2; settings.seed: 42 -> 7",
        ),
    ],
)
def test_another_command_is_refused(extra, named, command, copy, capsys, clean):
    assert train.main([*command, *extra, "--out", str(copy)]) == 2
    one_line(capsys, "holds another run", named, "--restart")
    assert outputs(copy) == outputs(clean) and Run(copy).key == Run(clean).key


def test_other_data_code_versions_or_weights_are_refused(
    command, copy, capsys, data, tmp_path, monkeypatch, bert
):
    rows = make_rows(64)
    rows[3][1] += " dog"
    changed = write_csv(tmp_path / "changed.csv", rows)
    assert train.main([*command, "--train", str(changed), "--out", str(copy)]) == 2
    one_line(capsys, "data_sha256")
    with monkeypatch.context() as m:
        real = run_module.code_sha256
        m.setattr(run_module, "code_sha256", lambda: {**real(), "train.py": "0" * 64})
        assert train.main([*command, "--out", str(copy)]) == 2
    one_line(capsys, "(code.train.py changed)")
    with monkeypatch.context() as m:
        m.setattr(run_module.platform, "python_version", lambda: "3.0")
        assert train.main([*command, "--out", str(copy)]) == 2
    one_line(capsys, "versions.python")
    torch.set_num_threads(2)
    assert train.main([*command, "--out", str(copy)]) == 2
    torch.set_num_threads(1)
    one_line(capsys, "threads: 1 -> 2")
    other = Path(shutil.copytree(bert, tmp_path / bert.name))
    from safetensors.torch import load_file, save_file

    weights = load_file(other / "model.safetensors")
    next(iter(weights.values()))[0] += 1
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    assert train.main([*command, "--model", str(other), "--out", str(copy)]) == 2
    one_line(capsys, "encoder_sha256")
    assert (
        train.main(
            [*command, "--train", str(shutil.copy(data, tmp_path / "same.csv")), "--out", str(copy)]
        )
        == 0
    )


def test_restart_renames_away(command, copy, capsys, clean):
    assert train.main([*command, "--epochs", "1", "--out", str(copy), "--restart"]) == 0
    old = copy.with_name("copy.old1")
    assert f"the old run is now {old}" in capsys.readouterr().out
    assert outputs(old) == outputs(clean) != outputs(copy)
    (copy / "env.json").write_text("{")
    assert train.main([*command, "--epochs", "1", "--out", str(copy), "--restart"]) == 0
    assert copy.with_name("copy.old2").is_dir()


@pytest.mark.parametrize("when", ["train", "predict"])
def test_a_file_saved_while_it_is_read(
    when, command, clean, tmp_path, test_csv, data, monkeypatch, capsys
):
    """Half of what was read would be of the old file, and checksums of the new one."""
    if when == "train":
        path, program = shutil.copy(data, tmp_path / "x.csv"), train
        module, name = data_module, "read_chunks"
        argv = [*command, "--train", str(path), "--out", str(tmp_path / "run")]
    else:
        path, program = shutil.copy(test_csv, tmp_path / "x.csv"), predict
        module, name = predict, "count_rows"
        argv = ["--run", str(clean), "--input", str(path), "--output", str(tmp_path / "s.csv")]
    real = getattr(module, name)

    def saved(*args):
        found = real(*args)
        found = list(found) if when == "train" else found  # a generator: else nothing was read yet
        with open(path, "a") as f:
            f.write("late,a dog,0,1,0,0,1\n")
        return found

    with monkeypatch.context() as m:
        m.setattr(module, name, saved)
        assert program.main(argv) == (2 if when == "train" else 1)
    one_line(capsys, "x.csv: changed while it was read")
    assert not (tmp_path / "run").exists() and not (tmp_path / "s.csv").exists()
    assert program.main(argv) == 0
    if when == "predict":
        assert (tmp_path / "s.csv").read_text().splitlines()[-1].startswith("late,")


# Two at once


def test_two_commands_that_begin_at_once_do_not_share_a_folder(
    command, tmp_path, capsys, monkeypatch
):
    """The other command's env.json appears while we wait for the lock."""
    real = run_module.locked

    def slow(path, wait=False):
        if wait and not (tmp_path / "run" / "env.json").exists():
            write_json(
                tmp_path / "run" / "env.json",
                {"same": {"settings.lr": 1, "settings.folds": 2}},
                seal=True,
            )
        return real(path, wait)

    monkeypatch.setattr(run_module, "locked", slow)
    assert train.main([*command, "--out", str(tmp_path / "run")]) == 2
    one_line(capsys, "holds another run", "settings.lr: 1 -> 0.005")
    assert sorted(os.listdir(tmp_path / "run")) == ["env.json", "lock"]  # theirs is left to them


def test_a_locked_fold_is_not_taken(command, tmp_path, capsys, test_csv, wanted):
    out = tmp_path / "run"
    assert train.main([*command, "--out", str(out), "--fold", "1"]) == 0
    (out / "fold_0").mkdir()
    with locked(out / "fold_0" / "lock") as free:
        assert free
        assert train.main([*command, "--out", str(out)]) == 0
        assert "unfinished: fold 0 - totals come with the last" in capsys.readouterr().out
        assert train.main([*command, "--out", str(out), "--restart"]) == 2
        one_line(capsys, "another process")
        assert [p.name for p in (out / "fold_0").iterdir()] == ["lock"]
    assert_survived(command, out, test_csv, wanted)
