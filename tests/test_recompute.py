"""--gradient-checkpointing: the same bytes with fewer tensors kept.

Compared, bit for bit: the gradients of each architecture with dropout on, with and without the
flag; whole runs, in one piece and stopped. torchrun: test_ranks.py.
python -m pytest tests/test_recompute.py
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as T
from cases.models import ARCHITECTURES
from conftest import make_tokenizer, outputs
from copies import STOP_AND_RESUME, run_driver
from test_model import batch_of, make

import model as M
import predict
import train
from config import Config
from support import encoders, jobs
from support.device import autocast
from support.encoders import inspect_encoder, layers_of
from support.finished import FinishedRun
from tools.parts.plan import copy_code

ROOT = Path(train.__file__).parent
FLAG = "--gradient-checkpointing"


def gradients(path: str, precision: str, **settings) -> tuple[dict, int, int]:
    """Of one batch with dropout; bytes kept outside the layers, and layers computed again."""
    config = Config(labels=list("abc"), device="cpu", **settings)
    tokenizer = inspect_encoder(path).tokenizer
    _, batch = batch_of(tokenizer, labels=True)
    torch.manual_seed(0)
    m = M.build_model(path, config, batch["labels"].numpy(), np.arange(len(tokenizer)))
    kept, forwards = [], []
    for layer in layers_of(m.encoder):
        first = next(x for x in layer.modules() if isinstance(x, torch.nn.Linear))
        first.register_forward_pre_hook(lambda *x: forwards.append(1))
    torch.manual_seed(5)
    keep = torch.autograd.graph.saved_tensors_hooks(
        lambda x: kept.append(x.nbytes) or x, lambda x: x
    )
    with keep, autocast("cpu", precision):
        logits, _ = M.compute_loss(m.train(), batch)
    before = len(forwards)
    y = batch["labels"]
    torch.nn.functional.binary_cross_entropy_with_logits(logits, y).backward()
    grads = {n: p.grad for n, p in m.named_parameters() if p.grad is not None}
    return grads, sum(kept), len(forwards) - before


CASES = [(kind, "fp32", freeze) for kind in ARCHITECTURES for freeze in (0, 1)]
CASES += [("bert", "bf16", 0), ("modernbert", "bf16", 1)]


@pytest.mark.parametrize("kind, precision, freeze", CASES)
def test_gradients_are_the_same_bits_with_less_kept(kind, precision, freeze, tmp_path):
    path = make(tmp_path, kind)
    if kind in ("albert", "modernbert"):  # whose dropouts are 0
        config = json.loads((tmp_path / "config.json").read_text())
        names = [n for n in config if "dropout" in n and n != "classifier_dropout"]
        config |= {n: 0.1 for n in names}
        (tmp_path / "config.json").write_text(json.dumps(config))
    plain, usual, again = gradients(path, precision, freeze=freeze)
    assert again == 0
    grads, kept, again = gradients(path, precision, freeze=freeze, gradient_checkpointing=True)
    assert grads.keys() == plain.keys()
    assert [n for n in plain if not torch.equal(grads[n], plain[n])] == []
    if kind != "albert" or not freeze:  # whose one layer is frozen then
        assert kept < 0.6 * usual and again > 0


DRIVER = """
for name, more in ("plain", []), ("run", ["--gradient-checkpointing"]):
    assert train.main([*flags, *more, "--out", name]) == 0
    paths = ["--output", f"{name}.csv", "--probabilities", f"{name}-p.csv"]
    assert predict.main(["--run", name, "--input", csv, *paths, "--precision", "fp32"]) == 0
flags = [*flags, "--gradient-checkpointing"]
"""


@pytest.mark.parametrize("more", [[], ["--freeze", "1", "--accumulate", "2"]])
def test_a_run_gives_the_same_bytes_also_after_a_stop(more, tmp_path, bert, train_csv):
    code = copy_code(tmp_path / "code")
    flags = ["--model", str(bert), "--train", str(train_csv), "--folds", "2", "--epochs", "2"]
    flags += ["--batch-size", "15", "--precision", "fp32", "--device", "cpu", "--lr", "5e-3", *more]
    driver = DRIVER + STOP_AND_RESUME.replace("== 6", f"== {4 if more else 6}")
    exit_code, printed = run_driver(driver, code, 1, flags=flags, csv=str(train_csv))
    assert exit_code == 0, printed
    assert "fold 0: resumes at epoch 2, step 2" in printed
    assert outputs(code / "run") == outputs(code / "plain") == outputs(code / "again")
    for end in (".csv", "-p.csv"):
        assert (code / f"run{end}").read_bytes() == (code / f"plain{end}").read_bytes()
    settings = [json.loads((code / f"{x}/config.json").read_text()) for x in ("run", "plain")]
    assert [s.get("gradient_checkpointing") for s in settings] == [True, None]


def test_a_run_without_it_is_named_and_identified_as_before_there_was_the_flag(
    finished, tmp_path, flags, capsys
):
    """Runs made then have no such setting: they are found again, read and resumed."""
    off, on = Config(), Config(gradient_checkpointing=True)
    assert on.identity == off.identity | {"gradient_checkpointing": True}
    assert "gradient_checkpointing" not in off.identity
    assert not any("checkpointing" in key for key in FinishedRun(finished).identity)
    assert FinishedRun(finished).config.gradient_checkpointing is False
    out = ["--out", str(tmp_path / "run")]
    assert train.main([*flags, *out]) == 0
    assert train.main([*flags, *out, FLAG]) == 2
    assert "settings.gradient_checkpointing: None -> True" in capsys.readouterr().err
    assert train.main([*flags, *out, "--no-gradient-checkpointing"]) == 0


def test_the_layers_are_not_touched_where_a_run_is_read(tmp_path, flags):
    assert train.main([*flags, "--out", str(tmp_path / "run"), FLAG]) == 0
    ensemble = predict.load_run(tmp_path / "run", "cpu", "fp32")
    assert ensemble.config.gradient_checkpointing
    layers = layers_of(ensemble.model(0).encoder)
    assert {type(x).__module__ for x in layers} == {"transformers.models.bert.modeling_bert"}


@pytest.mark.parametrize("kind, problem", [("xlm", "can't be computed twice"), ("none", "no list")])
def test_an_encoder_that_cant_is_refused_in_one_line(
    kind, problem, tmp_path, bert, flags, monkeypatch, capsys
):
    """XLM's layers add to what they kept at the first time."""
    folder = bert
    if kind == "xlm":
        folder, tokenizer = tmp_path / "xlm", make_tokenizer()
        config = T.XLMConfig(vocab_size=len(tokenizer), emb_dim=32, n_layers=2, n_heads=2)
        T.AutoModel.from_config(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    else:
        monkeypatch.setattr(encoders, "layers_of", lambda encoder: [])
    run = tmp_path / "run"
    argv = [*flags, "--model", str(folder), "--out", str(run), FLAG]
    assert train.main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: --model {folder}: ") and problem in line
    assert line.endswith("leave --gradient-checkpointing out")
    assert not run.exists()


def test_the_estimate_of_the_memory_knows_it(bert):
    encoder_info = dataclasses.replace(inspect_encoder(str(bert)), layers=12)
    config = Config(batch_size=16)
    fixed = 5e8 + 16 * encoder_info.num_parameters
    with_it = dataclasses.replace(config, gradient_checkpointing=True)
    usual, less = (jobs.memory_of_a_fold(encoder_info, c, 100) - fixed for c in (config, with_it))
    assert less == pytest.approx(4 / 12 * usual + 12 * 4 * 16 * 100 * 32)  # hidden: 32
    one = dataclasses.replace(encoder_info, layers=1)
    assert len({jobs.memory_of_a_fold(one, c, 100) for c in (config, with_it)}) == 1
