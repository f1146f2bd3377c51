"""Files that mean harm are refused and nothing of them is executed; no network is asked.

The payload is shown to work before it is refused. python -m pytest tests/test_harm.py
"""

import json
import os
import pickle
import shutil
import struct
import time
from pathlib import Path

import numpy as np
import pytest
from faults import assert_survived, one_line, stopped

import predict
import train
from support.checkpoint import save_state

pytestmark = pytest.mark.usefixtures("one_thread")

# Files that mean harm


class Harm:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


def test_pickles_are_not_executed(clean, command, tmp_path, test_csv, wanted, capsys, monkeypatch):
    made = tmp_path / "executed"
    argv = ["--run", str(clean), "--input", str(test_csv), "--output", str(tmp_path / "s.csv")]
    evil = tmp_path / "th.npy"
    pickle.loads(pickle.dumps(Harm(made)))
    assert made.exists()  # the payload works
    made.unlink()
    np.save(evil, np.array([Harm(made)], dtype=object), allow_pickle=True)
    assert predict.main([*argv, "--thresholds", str(evil)]) == 2
    one_line(capsys, "th.npy: not an array of thresholds")
    evil.write_bytes(pickle.dumps(Harm(made)))
    assert predict.main([*argv, "--thresholds", str(evil)]) == 2
    one_line(capsys, "th.npy: not an array of thresholds")
    state = stopped(command, tmp_path / "run", monkeypatch)
    save_state(state, {"model": Harm(made)})  # with the right sha256
    assert_survived(command, tmp_path / "run", test_csv, wanted)
    assert "state.pt: truncated or damaged - this fold starts again" in capsys.readouterr().out
    assert not made.exists()


def test_model_folders_that_mean_harm(bert, command, tmp_path, capsys):
    made = tmp_path / "executed"

    def folder(name: str) -> Path:
        return Path(shutil.copytree(bert, tmp_path / name))

    remote = folder("remote")
    config = json.loads((remote / "config.json").read_text())
    config |= {
        "model_type": "evil",
        "auto_map": {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"},
    }
    (remote / "config.json").write_text(json.dumps(config))
    (remote / "evil.py").write_text(f"open({str(made)!r}, 'w')\nclass Evil: pass\n")
    header = folder("header")
    with open(header / "model.safetensors", "r+b") as f:
        f.write(struct.pack("<Q", 200_000_000))
        f.truncate(200_000_100)  # sparse
    bomb = folder("bomb")
    (bomb / "model.safetensors").unlink()
    (bomb / "pytorch_model.bin").write_bytes(pickle.dumps(Harm(made)))
    for name in (remote, header, bomb):
        assert train.main([*command, "--model", str(name), "--out", str(tmp_path / "run")]) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1 and str(name) in err
        assert "Re-running" not in err  # torch's advice to unpickle
    assert not made.exists() and not (tmp_path / "run").exists()


def test_hashes_of_seen_texts_that_are_damaged(clean, command, copy, tmp_path, capsys):
    """texts.npy beside an encoder that comes from a run."""
    made = tmp_path / "executed"
    np.save(copy / "texts.npy", np.array([Harm(made)], dtype=object), allow_pickle=True)
    argv = [
        *command,
        "--model",
        str(copy / "fold_0"),
        "--epochs",
        "1",
        "--out",
        str(tmp_path / "run"),
    ]
    assert train.main(argv) == 2
    one_line(capsys, "texts.npy")
    shutil.copy(clean / "texts.npy", copy / "texts.npy")
    assert train.main(argv) == 0
    assert "64 of 64 texts are among those this encoder was trained on" in capsys.readouterr().err
    assert not made.exists()


# No network


def test_offline(command, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    began = time.monotonic()
    assert (
        train.main([*command, "--model", "nobody/nothing-here", "--out", str(tmp_path / "run")])
        == 2
    )
    one_line(capsys, "nobody/nothing-here", "HF_HUB_OFFLINE", "local folder")
    assert time.monotonic() - began < 5 and not (tmp_path / "run").exists()
