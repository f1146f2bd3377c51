"""Each recipes/*.patch: a change of one place, and seen to work in training and in predict.py.

A patch is applied to a copy of the code. There one process trains two folds of a tiny encoder,
predicts, and trains once more with a stop in the middle. EFFECTS says what must come of it; the
same checks must fail for a copy without a patch.
"""

import csv
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from copies import STOP_AND_RESUME, run_driver
from conftest import CUES, LABELS, make_rows, outputs, write_csv
from safetensors.torch import load_file
from sklearn.metrics import fbeta_score

import train
from tools.parts.plan import copy_code

ROOT = Path(train.__file__).parent
PATCHES = sorted(ROOT.glob("recipes/*.patch"))
MOST = 15  # changed lines of a recipe
HEADER = ("id", "text", *LABELS, "topic")
TEXT, TOPIC, OTHER_TOPIC = f"i am so {CUES['joy']}", "storm", "party"
FLAGS = ["--folds", "2", "--epochs", "2", "--batch-size", "8", "--lr", "5e-3", "--dropout", "0.1"]
FLAGS += ["--keep", "last", "--precision", "fp32", "--device", "cpu"]

# Run with `text`, `topic`, `flags` and the CSVs' folder `files`, after the beginning in copies.py.
DRIVER = """
csv = {name: f"{files}/{name}.csv" for name in ("train", "test", "other")}
flags = [*flags, "--train", csv["train"]]
assert train.main([*flags, "--out", "run"]) == 0

print("=== predict")
how = ["--run", "run", "--precision", "fp32", "--device", "cpu"]
for name in ("test", "other"):
    paths = ["--output", f"{name}-said.csv", "--probabilities", f"{name}.csv"]
    assert predict.main([*how, "--input", csv[name], *paths]) == 0

print("=== text")
assert predict.main([*how, "--text", text, f"{topic}: {text}"]) == 0

print("=== fold 0 alone")
ensemble = predict.load_run("run", "cpu", "fp32")
table = next(data.read_chunks(inputcsv.InputCSV(csv["train"], Config(), names=())))
np.save("fold_0.npy", ensemble.predict_test(table.inputs, fold_numbers=[0]))

print("=== stopped, and gone on")
"""
DRIVER += STOP_AND_RESUME


@dataclass
class Trained:
    """What the driver left in a copy of the code."""

    folder: Path
    printed: str

    def __post_init__(self):
        run = self.folder / "run"
        self.head = load_file(run / "fold_0/head.safetensors")
        self.encoder = load_file(run / "fold_0/model.safetensors")
        self.log = [json.loads(x) for x in (run / "fold_0/log.jsonl").read_text().splitlines()]
        self.metrics = json.loads((run / "metrics.json").read_text())
        self.fold, *self.oof = column(run / "oof.csv", "fold", *LABELS)
        self.oof = np.stack(self.oof, 1)
        self.test, self.other = (table(self.folder / f"{x}.csv") for x in ("test", "other"))
        self.training, *_ = parts = self.printed.split("=== ")
        self.said = {p.split("\n")[0]: p for p in parts}

    @property
    def texts(self) -> list[list[float]]:
        """The probabilities that `--text` printed, of each text."""
        blocks = self.said["text"].split("Text: ")[1:]
        return [[float(x) for x in re.findall(r"^  \S+ +([\d.]+)$", b, re.M)] for b in blocks]


def column(path: Path, *names: str) -> list[np.ndarray]:
    with open(path, newline="") as f:
        rows = list(csv.DictReader(f))
    return [np.array([float(row[name]) for row in rows]) for name in names]


def table(path: Path) -> np.ndarray:
    return np.stack(column(path, *LABELS), 1)


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> Path:
    """train.csv, test.csv, and other.csv: test.csv with other topics."""
    folder, topics = tmp_path_factory.mktemp("recipes"), (TOPIC, OTHER_TOPIC)
    rows = [[*row, topics[i % 2]] for i, row in enumerate(make_rows(60))]
    write_csv(folder / "train.csv", rows, HEADER)
    rows = [["first", TEXT, 0, 0, 1, 0, 0], *make_rows(20, seed=1)]
    write_csv(folder / "test.csv", [[*row, TOPIC] for row in rows], HEADER)
    write_csv(folder / "other.csv", [[*row, OTHER_TOPIC] for row in rows], HEADER)
    return folder


def train_copy(code: Path, files: Path, bert: Path, patch: Path | None) -> Trained:
    copy_code(code, *([patch] if patch else []))
    flags = ["--model", str(bert), *FLAGS]
    names = {"files": str(files), "text": TEXT, "topic": TOPIC, "flags": flags}
    exit_code, printed = run_driver(DRIVER, code, threads=1, **names)
    assert exit_code == 0, printed
    return Trained(code, printed)


@pytest.fixture(scope="session")
def default(tmp_path_factory, files, bert) -> Trained:
    return train_copy(tmp_path_factory.mktemp("default") / "code", files, bert, None)


# What must come of each recipe; `d` is a copy without a patch


def differs(r: Trained, d: Trained) -> bool:
    """Whether other weights were trained with other outputs; predict.py's come from these."""
    other = any(not w.equal(d.encoder[name]) for name, w in r.encoder.items())
    return other and np.abs(r.oof - d.oof).max() > 1e-4 < np.abs(r.test - d.test).max()


def moved(r: Trained, bert: Path, block: str = "") -> float:
    """How far the encoder's weights (of this block) are from the pretrained ones."""
    before = load_file(bert / "model.safetensors")
    names = [n for n in r.encoder if n.startswith(block)]
    return sum(float((r.encoder[n] - before[n]).abs().sum()) for n in names)


def attention_pooling(r, d, files, bert):
    names = {"attention.0.weight", "attention.0.bias", "attention.2.weight"}
    assert r.head.keys() == {"head.weight", "head.bias"} | names
    assert r.head["attention.2.weight"].shape == (1, 32)
    assert differs(r, d)


def two_layer_head(r, d, files, bert):
    assert r.head.keys() == {f"head.{x}" for x in ("0.weight", "0.bias", "3.weight", "3.bias")}
    assert r.head["head.0.weight"].shape == (32, 32)
    assert differs(r, d)


def layer_rates(r, d, files, bert):
    """AdamW goes about as far as its rates tell it to."""
    for block, layers in ("embeddings", 3), ("encoder.layer.0", 2), ("encoder.layer.1", 1):
        way, usual = (moved(x, bert, block) for x in (r, d))
        assert way / usual == pytest.approx(0.85**layers, rel=0.08), block
    assert differs(r, d)


def r_drop(r, d, files, bert):
    assert r.log[0]["train_loss"] != d.log[0]["train_loss"]
    assert differs(r, d)


def adversarial(r, d, files, bert):
    """Texts are moved to where the loss is higher."""
    assert r.log[0]["train_loss"] > d.log[0]["train_loss"] + 0.05
    assert differs(r, d)


def multi_sample_dropout(r, d, files, bert):
    assert r.log[0]["train_loss"] != d.log[0]["train_loss"]
    assert differs(r, d)


def augmentation(r, d, files, bert):
    """Rows are shorter in training: their last positions are trained less often."""
    name = "embeddings.position_embeddings.weight"
    before = load_file(bert / "model.safetensors")[name]
    way, usual = (float((x.encoder[name] - before)[12:].norm()) for x in (r, d))
    assert way < 0.97 * usual
    assert differs(r, d)


def weight_ema(r, d, files, bert):
    """The same steps are taken; the mean, which lags behind, is judged and kept."""
    assert [x["train_loss"] for x in r.log] == [x["train_loss"] for x in d.log]
    assert r.log[0]["val_loss"] != d.log[0]["val_loss"]
    assert 0.5 < moved(r, bert) / moved(d, bert) < 0.99
    assert differs(r, d)


def asymmetric_loss(r, d, files, bert):
    y, p = (x[r.fold == 0] for x in (table(files / "train.csv"), r.oof))
    low = (p - 0.05).clip(0)
    loss = -(y * np.log(p) + (1 - y) * low**4 * np.log(1 - low))
    assert r.log[-1]["val_loss"] == pytest.approx(loss.mean(), rel=1e-4)
    assert differs(r, d)


def other_optimizer(r, d, files, bert):
    assert differs(r, d)


def second_column(r, d, files, bert):
    assert (np.abs(r.test - r.other).max(1) > 1e-6).all()  # same texts, other topics
    assert r.texts[1] == pytest.approx(r.test[0], abs=1e-4)
    assert r.texts[0] != pytest.approx(r.test[0], abs=1e-3)  # a text alone
    assert differs(r, d)


def one_more_metric(r, d, files, bert):
    f2 = {"beta": 2, "average": "macro", "zero_division": 0}
    th = np.load(r.folder / "run/th.npy")
    tuned = fbeta_score(table(files / "train.csv"), r.oof >= th, **f2)
    assert r.metrics.get("macro_f2_tuned") == pytest.approx(tuned) and tuned > 0
    titles = next(x for x in r.training.splitlines() if x.startswith("out-of-fold"))
    assert titles.endswith("| macro-F2")
    quoted = next(x for x in r.training.splitlines() if x.startswith("cross-fitted (quote"))
    assert quoted.endswith(f"{r.metrics['macro_f2_cross_fitted']:.4f}")
    new = fbeta_score(table(files / "test.csv"), table(r.folder / "test-said.csv"), **f2)
    assert f"macro_f2 {new:.4f}" in r.said["predict"]
    assert all("macro_f2" in x for x in r.log)
    assert not differs(r, d)


RECIPES = (attention_pooling, two_layer_head, layer_rates, r_drop, adversarial, augmentation)
RECIPES += (multi_sample_dropout, weight_ema, asymmetric_loss, other_optimizer, second_column)
EFFECTS = {check.__name__: check for check in (*RECIPES, one_more_metric)}


@pytest.mark.parametrize("patch", PATCHES, ids=lambda p: p.stem)
def test_a_recipe_works_in_training_and_in_predict(patch, tmp_path, files, bert, default):
    assert patch.stem in EFFECTS, "say there what must come of this recipe"
    r = train_copy(tmp_path / "code", files, bert, patch)
    EFFECTS[patch.stem](r, default, files, bert)
    with pytest.raises((AssertionError, KeyError)):  # so a patch without effect would be seen
        EFFECTS[patch.stem](default, default, files, bert)
    check_sound(r, files, text_alone=patch.stem != "second_column")
    if patch.stem != "asymmetric_loss":  # validation is by the plain loss, whatever the training's
        y, p = (x[r.fold == 0] for x in (table(files / "train.csv"), r.oof))
        plain = -np.log(np.where(y > 0, p, 1 - p)).mean()
        assert r.log[-1]["val_loss"] == pytest.approx(plain, rel=1e-4)


def check_sound(r: Trained, files: Path, text_alone: bool = True) -> None:
    """predict.py computes what training judged and kept, and a stop changes no byte."""
    held_out = r.fold == 0
    assert np.load(r.folder / "fold_0.npy")[held_out] == pytest.approx(r.oof[held_out], abs=1e-6)
    if text_alone:
        assert r.texts[0] == pytest.approx(r.test[0], abs=1e-4)
    assert "fold 0: resumes at epoch 2, step 2" in r.said["stopped, and gone on"]
    assert outputs(r.folder / "again") == outputs(r.folder / "run")


def test_a_copy_without_a_patch_is_the_default(files, bert, default, tmp_path):
    """Byte for byte: what differs elsewhere comes of the patches, not of the copying."""
    flags = ["--model", str(bert), *FLAGS, "--train", str(files / "train.csv")]
    assert train.main([*flags, "--out", str(tmp_path / "run")]) == 0
    assert outputs(tmp_path / "run") == outputs(default.folder / "run")
    env = [
        json.loads((p / "env.json").read_text()) for p in (tmp_path / "run", default.folder / "run")
    ]
    assert env[0]["same"] == env[1]["same"]
    check_sound(default, files)


@pytest.mark.parametrize("patch", PATCHES, ids=lambda p: p.stem)
def test_a_recipe_is_a_small_change_of_one_place(patch, tmp_path):
    words, diff = patch.read_text().split("\ndiff --git ", 1)
    assert 2 <= len(words.splitlines()) <= 3
    lines = diff.splitlines()
    assert sum(x.startswith("+++ ") for x in lines) == 1
    body = lines[[x.startswith("+++ ") for x in lines].index(True) + 1 :]
    changed = [x for x in body if x.startswith(("+", "-"))]
    assert 0 < len(changed) <= MOST
    assert max(map(len, changed)) <= 101
    if shutil.which("patch"):  # `git apply` is what the other test uses
        code = copy_code(tmp_path / "code")
        command = ["patch", "-p1", "--fuzz=0", "--input", patch]
        done = subprocess.run(command, cwd=code, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
