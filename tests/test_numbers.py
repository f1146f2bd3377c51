"""Memory that runs out, numbers that are not finite, and numbers that must agree.

After an error the same command must give the bytes of a run that nothing disturbed. Predictions
are compared with the stored out-of-fold ones, and across batches and orders of rows.
python -m pytest tests/test_numbers.py
"""

import re

import numpy as np
import pytest
import torch
from conftest import make_rows
from faults import assert_survived, at_call, at_step_end, one_line

import data as data_module
import model as model_module
import predict
import train
from support.checkpoint import load_state
from support.finished import FinishedRun

pytestmark = pytest.mark.usefixtures("one_thread")

# Memory and numbers


def test_out_of_memory(command, tmp_path, monkeypatch, capsys, test_csv, wanted):
    def no_memory():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    for step in (1, 6):
        with monkeypatch.context() as m:
            at_call(m, train, "compute_loss", step, no_memory, after=False)
            assert train.main([*command, "--out", str(tmp_path / "run")]) == 1
        one_line(capsys, "--batch-size", "--accumulate")
    assert (tmp_path / "run" / "fold_0" / "state.pt").exists()
    assert_survived(command, tmp_path / "run", test_csv, wanted)
    with (
        monkeypatch.context() as m,
        pytest.raises(RuntimeError, match="size mismatch"),
    ):  # others are not disguised
        at_call(
            m,
            train,
            "compute_loss",
            1,
            lambda: (_ for _ in ()).throw(RuntimeError("size mismatch")),
            after=False,
        )
        train.main([*command, "--out", str(tmp_path / "other")])


@pytest.mark.parametrize(
    "words",
    (
        "CUDA out of memory. Tried to allocate 2.00 GiB",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "Invalid buffer size: 9.75 GB",  # MPS
    ),
)
def test_out_of_memory_in_prediction(words, clean, tmp_path, test_csv, monkeypatch, capsys):
    def no_memory(*_, **__):
        raise RuntimeError(words)

    argv = ["--run", str(clean), "--input", str(test_csv), "--output", str(tmp_path / "s.csv")]
    with monkeypatch.context() as m:
        m.setattr(predict, "run_over_rows", no_memory)
        assert predict.main(argv) == 1
        one_line(capsys, "out of memory", "run the same command to resume")
        with pytest.raises(RuntimeError):
            predict.main([*argv, "--debug"])
    assert not (tmp_path / "s.csv").exists()
    assert predict.main(argv) == 0


def spoil(loss: torch.Tensor) -> torch.Tensor:
    return loss * torch.nan


@pytest.mark.parametrize("step, stop", [(1, None), (6, None), (6, 7), (12, None)])
def test_a_loss_that_is_not_a_number(
    step, stop, command, data, tmp_path, monkeypatch, capsys, test_csv, wanted
):
    """With `stop`, a signal arrives between the step and the end of its epoch."""
    out = tmp_path / "run"
    with monkeypatch.context() as m:
        real, calls = train.compute_loss, [0]

        def spoiled(*args):
            calls[0] += 1
            logits, loss = real(*args)
            return logits, spoil(loss) if calls[0] == step else loss

        m.setattr(train, "compute_loss", spoiled)
        at_step_end(m, stop)
        assert train.main([*command, "--out", str(out)]) == 1
    assert calls[0] == (
        stop or -(-step // 4) * 4
    )  # it is noticed at the epoch's end, or when a signal came
    line = one_line(
        capsys,
        f"fold {(step - 1) // 8}, epoch {(step - 1) % 8 // 4 + 1}, step {(step - 1) % 4 + 1}: loss",
        "--lr",
    )
    ids = re.search("rows ([0-9, ]+) is not finite -", line)[1].split(", ")
    assert len(ids) == 8 and set(ids) <= {r[0] for r in make_rows(64)}
    for path in out.rglob("state.pt"):
        assert all(t.isfinite().all() for t in load_state(path)["model"].values())
    assert_survived(command, out, test_csv, wanted)


def test_logits_that_are_not_numbers(command, tmp_path, monkeypatch, capsys, test_csv, wanted):
    """Finite losses, but weights that are not: nothing of that epoch is kept."""
    out = tmp_path / "run"
    with monkeypatch.context() as m:
        real = train.run_over_rows

        def spoiled(*args):
            logits, losses = real(*args)
            return logits * np.nan, losses

        m.setattr(train, "run_over_rows", spoiled)
        assert train.main([*command, "--out", str(out)]) == 1
    one_line(capsys, "fold 0, epoch 1: outputs on held-out rows are not finite")
    assert not list(out.rglob("*.safetensors")) and not list(out.rglob("state.pt"))
    assert_survived(command, out, test_csv, wanted)


# Parity and invariance


def test_folds_share_no_row_and_no_text(clean):
    oof = [line.split(",") for line in (clean / "oof.csv").read_text().splitlines()[1:]]
    texts = {r[0]: " ".join(r[1].casefold().split()) for r in make_rows(64)}
    assert sorted(r[0] for r in oof) == sorted(texts) and len(oof) == 64
    a, b = ({texts[r[0]] for r in oof if r[1] == k} for k in "01")
    assert a and b and not a & b


def test_predicting_the_held_out_rows_gives_the_stored_probabilities(clean, bert):
    ensemble = predict.Ensemble(FinishedRun(clean, "cpu", "fp32"))
    oof = [line.split(",") for line in (clean / "oof.csv").read_text().splitlines()[1:]]
    texts = {r[0]: r[1] for r in make_rows(64)}
    for k in range(2):
        held = [r for r in oof if r[1] == str(k)]
        dataset = predict.encode(ensemble.tokenizer, [texts[r[0]] for r in held], 128)
        collate = data_module.DataCollator(ensemble.tokenizer.pad_token_id)
        stored = np.array([r[2:7] for r in held], dtype=np.float32)
        for model_of, close in ((k, True), (1 - k, False)):
            model = ensemble.model(model_of)
            logits, _ = model_module.run_over_rows(model, dataset, collate)
            p = model_module.sigmoid(logits)
            assert (np.abs(p - stored).max() <= 1e-5) == close


def test_predictions_do_not_depend_on_batch_or_order(clean, monkeypatch):
    ensemble = predict.Ensemble(FinishedRun(clean, "cpu", "fp32"))
    model, collate = ensemble.model(0), data_module.DataCollator(ensemble.tokenizer.pad_token_id)
    real, batches = model_module.token_batches, []
    texts = [r[1] for r in make_rows(64, seed=3)]

    def logits(texts: list[str], batch_tokens: int) -> np.ndarray:
        batch = lambda lengths, _: batches.append(real(lengths, batch_tokens)) or batches[-1]  # noqa: E731
        monkeypatch.setattr(model_module, "token_batches", batch)
        dataset = predict.encode(ensemble.tokenizer, texts, 128)
        return model_module.run_over_rows(model, dataset, collate)[0]

    want = logits(texts, 4096)
    assert np.ptp(want, axis=0).min() > 0.01  # rows do differ
    for batch_tokens in (1, 7 * 16, 64 * 16):
        assert np.abs(logits(texts, batch_tokens) - want).max() <= 1e-5
    assert len(batches[1]) == 64 and len({len(b) for b in batches}) >= 3  # the batches did differ
    order = np.random.default_rng(0).permutation(len(texts))
    assert np.abs(logits([texts[i] for i in order], 200) - want[order]).max() <= 1e-5
    one = np.concatenate([logits([t], 4096) for t in texts[:8]])
    assert np.abs(one - want[:8]).max() <= 1e-5
