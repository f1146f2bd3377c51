"""torchrun: two processes take the steps of one.

Real torchrun, gloo, CPU. Compared with one process: the weights after 24 steps (fp32, no dropout)
to 1e-5, and the rows of oof.csv. Compared with an undisturbed run of two: the bytes after a worker
was killed, or a signal came.
python -m pytest tests/test_ranks.py
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_rows, outputs, write_csv
from safetensors.torch import load_file

import train
from config import HERE
from support import process, ranks
from support.checkpoint import load_state
from support.process import UserError, exit_codes, rank_and_size
from support.ranks import Ranks
from tools.parts.plan import copy_code

# Rank 1 dies by SIGKILL before a step, or says when that step is reached: once, as the file tells.
WORKER = f"""
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {str(HERE)!r})
import torch
import train
what, number, marker = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
real, calls = train.train_loader, [0]
def loader(*args):
    for step in real(*args):
        calls[0] += 1
        if calls[0] == number and os.environ["RANK"] == "1" and not marker.exists():
            marker.touch()
            if what == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
        if what == "signal" and calls[0] > number:
            import time
            time.sleep(0.2)
        yield step
train.train_loader = loader
sys.exit(train.main(sys.argv[4:]))
"""


def torchrun(*argv, restarts: int = 0) -> subprocess.Popen:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--max-restarts",
        str(restarts),
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", *map(str, argv)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory, bert):
    """A training file, an encoder without dropout, a worker script and a finished run of two
    ranks."""
    d = tmp_path_factory.mktemp("ranks")
    write_csv(d / "train.csv", make_rows(57))
    (d / "bert").mkdir()
    for path in Path(bert).iterdir():
        (d / "bert" / path.name).write_bytes(path.read_bytes())
    settings = json.loads((d / "bert/config.json").read_text())
    settings |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (d / "bert/config.json").write_text(json.dumps(settings))
    (d / "worker.py").write_text(WORKER)
    p = torchrun(HERE / "train.py", *argv(d), "--out", d / "two")
    out = p.communicate(timeout=300)[0]
    assert p.returncode == 0, out
    (d / "two.log").write_text(out)
    return d


def argv(d: Path) -> list[str]:
    """2 folds of 29 and 28 rows, 6 epochs, 4 steps of 9, 9, 9 and 1 or 2 rows: shares of 5 and 4,
    and of 1 and none."""
    flags = ["--folds", "2", "--epochs", "6", "--batch-size", "9", "--lr", "5e-3"]
    flags += ["--precision", "fp32", "--dropout", "0", "--device", "cpu"]
    return ["--model", str(d / "bert"), "--train", str(d / "train.csv"), *flags]


@pytest.mark.parametrize(
    "size, accumulate, pieces", [(16, 1, [8]), (8, 2, [4, 4]), (4, 4, [2, 2, 2, 2])]
)
def test_accumulating_divides_each_ranks_rows(
    size, accumulate, pieces, bert, train_csv, tmp_path, monkeypatch
):
    """Rank 0 of two, alone: the rows of its first step, by forward pass."""
    seen, real = [], train.train_loader

    def first_step(*args):
        micro, *_ = next(real(*args))
        seen.append([len(batch["labels"]) for batch in micro])
        raise UserError("enough")

    monkeypatch.setattr(train, "train_loader", first_step)
    monkeypatch.setattr(Ranks, "__enter__", lambda self: vars(self).update(size=2) or self)
    monkeypatch.setattr(Ranks, "__exit__", lambda self, *_: None)
    monkeypatch.setattr(Ranks, "agree", lambda self, number=0: number)
    monkeypatch.setattr(Ranks, "wrap", lambda self, model, token_id: model)
    flags = [
        "--batch-size",
        str(size),
        "--accumulate",
        str(accumulate),
        "--out",
        str(tmp_path / "run"),
    ]
    assert (
        train.main(["--model", str(bert), "--train", str(train_csv), "--folds", "1", *flags]) == 2
    )
    assert seen == [pieces]


def test_two_ranks_take_the_steps_of_one_process(place):
    assert train.main([*argv(place), "--out", str(place / "one")]) == 0
    for k in range(2):
        one, two = (
            load_file(place / name / f"fold_{k}/model.safetensors") for name in ("one", "two")
        )
        start = load_file(place / "bert/model.safetensors")
        for name in one:
            if "key.bias" not in name:  # its gradient is rounding alone
                assert (one[name] - two[name]).abs().max() <= 1e-5, name
        moved = max((one[n] - start[n]).abs().max() for n in one)
        assert moved > 0.01  # the control: training did change them
    rows = [
        [line.split(",") for line in (place / name / "oof.csv").read_text().splitlines()]
        for name in ("one", "two")
    ]
    assert [r[:2] for r in rows[0]] == [r[:2] for r in rows[1]] and len(rows[0]) == 58
    p = [np.array([r[2:7] for r in part[1:]], dtype=float) for part in rows]
    assert np.abs(p[0] - p[1]).max() < 1e-4
    text = (place / "two.log").read_text()
    assert (
        text.count("epoch  1/6") == 2 and text.count("cross-fitted (quote this one)") == 1
    )  # one rank prints
    assert json.loads((place / "two/env.json").read_text())["same"]["world_size"] == 2


def test_layers_that_a_fork_unfreezes_later_are_the_same_on_all_ranks(place, tmp_path):
    """The fork trains the head alone in the first epochs. Two ranks still take the steps of one."""
    code = copy_code(tmp_path / "code")
    text = (code / "train.py").read_text()
    old = "            net = run.ranks.wrap(model, collate.pad_id)"
    assert text.count(old) == 1
    new = "            model.encoder.requires_grad_(progress.epoch >= 4)\n"
    (code / "train.py").write_text(text.replace(old, new + old))
    flags = [*argv(place), "--freeze", "2", "--fold", "0", "--threads", "1"]
    one = subprocess.run(
        [sys.executable, code / "train.py", *flags, "--out", tmp_path / "one"],
        capture_output=True,
        text=True,
    )
    assert one.returncode == 0, one.stderr
    two = torchrun(code / "train.py", *flags, "--out", tmp_path / "two")
    out = two.communicate(timeout=300)[0]
    assert two.returncode == 0, out
    start = load_file(place / "bert/model.safetensors")
    weights = [load_file(tmp_path / n / "fold_0/model.safetensors") for n in ("one", "two")]
    for name in weights[0]:
        if "key.bias" not in name:  # its gradient is rounding alone
            assert (weights[0][name] - weights[1][name]).abs().max() <= 1e-5, name
    name = "encoder.layer.0.attention.self.query.weight"
    assert (weights[1][name] - start[name]).abs().max() > 0.001  # two epochs trained it


def test_a_killed_worker(place):
    """In the third epoch of fold 0: torchrun starts both again, and they go on from the second
    epoch's state."""
    p = torchrun(
        place / "worker.py",
        "kill",
        10,
        place / "killed",
        *argv(place),
        "--out",
        place / "again",
        restarts=1,
    )
    out = p.communicate(timeout=300)[0]
    assert p.returncode == 0 and (place / "killed").exists(), out
    assert "fold 0: resumes at epoch 3, step 0 of" in out
    assert outputs(place / "again") == outputs(place / "two")


def test_a_signal_to_torchrun(place):
    p = torchrun(
        place / "worker.py",
        "signal",
        6,
        place / "reached",
        *argv(place),
        "--out",
        place / "stopped",
    )
    for _ in range(3000):
        if (place / "reached").exists() or p.poll() is not None:
            break
        time.sleep(0.02)
    p.send_signal(signal.SIGTERM)
    out = p.communicate(timeout=120)[0]
    assert (
        p.returncode != 0 and out.count("stopped: by SIGTERM - run the same command to resume") == 1
    ), out
    at = load_state(place / "stopped/fold_0/state.pt")["progress"]
    assert at["epoch"] == 1 and at["step"] >= 2


@pytest.mark.parametrize(
    "rank, local, code, lines", [(0, 0, 2, 1), (1, 1, 2, 0), (1, 0, 2, 1), (1, 1, 1, 1)]
)
def test_who_says_an_error(rank, local, code, lines, monkeypatch, capsys):
    """Rank 0 and the first rank of another machine say what is wrong with the input; each rank what
    goes wrong in a run."""

    def main(argv):
        raise UserError("no such file", code)

    monkeypatch.setattr(process, "LEADS", rank == 0)
    monkeypatch.setenv("LOCAL_RANK", str(local))
    assert exit_codes(main)([]) == code
    assert capsys.readouterr().err.count("error: no such file") == lines


def test_a_rank_that_is_left_alone_says_so_in_one_line(monkeypatch, capsys):
    def main(argv):
        raise RuntimeError("Connection closed\nby peer")

    with pytest.raises(RuntimeError):
        exit_codes(main)([])
    monkeypatch.setattr(process, "LEADS", False)
    monkeypatch.setenv("RANK", "3")
    assert exit_codes(main)([]) == 1
    assert capsys.readouterr().err == "rank 3: Connection closed by peer\n"


def test_a_world_size_that_torchrun_did_not_set_is_named(tmp_path):
    """A cluster's environment may export it; predict.py, which never meets other ranks, goes on."""
    csv, env = write_csv(tmp_path / "a.csv", make_rows(10)), {**os.environ, "WORLD_SIZE": "2"}
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        env.pop(name, None)
    for program, words in (
        ("train.py", "WORLD_SIZE=2, but not by torchrun"),
        ("predict.py", "no finished run"),
    ):
        argv = [
            sys.executable,
            str(HERE / program),
            *(["--train", csv] if program == "train.py" else []),
        ]
        done = subprocess.run(argv, env=env, cwd=tmp_path, capture_output=True, text=True)
        assert (
            done.returncode == 2 and done.stderr.startswith("error: ") and words in done.stderr
        ), done.stderr
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "rank, size", [("1", None), ("", ""), ("", None), (None, "abc"), ("x", "1"), ("0", "0")]
)
def test_a_rank_that_torchrun_did_not_set_is_none(rank, size, monkeypatch):
    for name, value in (("RANK", rank), ("WORLD_SIZE", size)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert rank_and_size() == (0, 1)
    with Ranks() as r:
        assert (r.rank, r.size, r.own) == (0, 1, [])


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_shares_are_whole_and_near_equal(ranks, monkeypatch):
    """Every row once; the ranks' weights make their mean the mean of all; sorted rows give
    near-equal tokens."""
    rng = np.random.default_rng(0)
    for n in (1, 2, 7, 16, 64):
        lengths = np.sort(rng.integers(3, 128, n))
        seen, tokens, weight = [], [], 0.0
        for rank in range(ranks):
            monkeypatch.setenv("RANK", str(rank))
            monkeypatch.setenv("WORLD_SIZE", str(ranks))
            rows, divisor = Ranks().share(np.arange(n))
            assert len(rows)
            share = len(rows) / divisor  # 0 of a rank without rows, whose divisor is inf
            if share:
                assert share == pytest.approx(len(rows) * ranks / n)
                seen += rows.tolist()
                tokens.append(lengths[rows].sum())
            weight += share / ranks
        assert sorted(seen) == list(range(n)) and weight == pytest.approx(1)
        assert n < 2 * ranks or max(tokens) - min(tokens) <= 128  # less than one long row


def test_gradient_checkpointing_under_torchrun_changes_no_byte(place):
    out = place / "recomputed"
    p = torchrun(HERE / "train.py", *argv(place), "--gradient-checkpointing", "--out", out)
    printed = p.communicate(timeout=300)[0]
    assert p.returncode == 0, printed
    assert outputs(out) == outputs(place / "two")


def test_what_a_model_returns_in_training_alone_is_trained_in_every_epoch(monkeypatch):
    """After the first epoch's validation it is in eval mode."""

    class TwoHeads(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = torch.nn.Linear(8, 1), torch.nn.Linear(8, 1)
            self.unused = torch.nn.Linear(8, 1)

        def forward(self, ids, mask):
            x = ids.float()
            return (self.first(x), self.second(x)) if self.training else self.first(x)

    monkeypatch.setattr(ranks, "DistributedDataParallel", lambda model, **_: model)
    two = Ranks()
    two.size = 2
    model = two.wrap(TwoHeads().eval(), 1)
    trained = {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {"first", "second"}
