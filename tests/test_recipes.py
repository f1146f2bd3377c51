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
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from copies import STOP_AND_RESUME, run_driver
from conftest import CUES, LABELS, make_rows, outputs, write_csv
from safetensors.torch import load_file
from sklearn.metrics import fbeta_score

import train
from config import Config
from data import EmotionDataset, read_chunks
from model import EmotionClassifier, TextVectors
from support.encoders import check_weights, inspect_encoder, load_encoder
from support.inputcsv import InputCSV
from support.process import UserError
from tools.parts.plan import copy_code

ROOT = Path(train.__file__).parent
PATCHES = sorted(ROOT.glob("recipes/*.patch"))
MOST = 15  # changed lines of a recipe
HEADER = ("id", "text", *LABELS, "topic", "weight", "score")
TEXT, TOPIC, OTHER_TOPIC = f"i am so {CUES['joy']}", "storm", "party"
FLAGS = ["--folds", "2", "--epochs", "2", "--batch-size", "8", "--lr", "5e-3", "--dropout", "0.1"]
FLAGS += ["--keep", "last", "--precision", "fp32", "--device", "cpu"]
MORE_FLAGS = {"windows": ["--max-length", "8"]}  # of a recipe, and of the default beside it

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
    """train.csv, test.csv, and other.csv: test.csv with other topics, and without numbers."""
    folder, topics = tmp_path_factory.mktemp("recipes"), (TOPIC, OTHER_TOPIC)
    rows = []
    for i, row in enumerate(make_rows(60)):
        score = "" if i % 7 == 0 else f"{len(row[1].split()) / 16:.2f}"  # of the text's length
        rows.append([*row, topics[i % 2], 1 + i % 3, score])
    write_csv(folder / "train.csv", rows, HEADER)
    rows = [["first", TEXT, 0, 0, 1, 0, 0], *make_rows(20, seed=1)]
    write_csv(folder / "test.csv", [[*row, TOPIC] for row in rows], HEADER[:-2])
    write_csv(folder / "other.csv", [[*row, OTHER_TOPIC] for row in rows], HEADER[:-2])
    return folder


def train_copy(
    code: Path, files: Path, bert: Path, patch: Path | None, more: list[str] = ()
) -> Trained:
    copy_code(code, *([patch] if patch else []))
    flags = ["--model", str(bert), *FLAGS, *more]
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


def windows(r, d, files, bert):
    """No text is cut; what predict.py says is the mean of windows that are cut by hand here."""
    assert "cut at --max-length: 0.0%" in r.training
    assert differs(r, d)
    tokenizer = inspect_encoder(str(bert)).tokenizer
    settings = json.loads((r.folder / "run/config.json").read_text())
    config = Config(labels=LABELS, dropout=settings["dropout"])
    models = [EmotionClassifier.load(r.folder / f"run/fold_{k}", config) for k in range(2)]
    texts = [TEXT, *(row[1] for row in make_rows(20, seed=1))]  # of test.csv
    lengths = []
    for text, said in zip(texts, r.test, strict=True):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        lengths.append(len(ids))
        # 6 tokens between [CLS] and [SEP], of which 2 stand in the window before
        cut = [torch.tensor([[2, *ids[i : i + 6], 3]]) for i in range(0, max(1, len(ids) - 2), 4)]
        with torch.inference_mode():
            logits = [torch.cat([m(x, torch.ones_like(x)) for x in cut]).mean(0) for m in models]
        assert said == pytest.approx(torch.stack(logits).sigmoid().mean(0).numpy(), abs=1e-5)
    assert max(lengths) > 10 and min(lengths) <= 6


def row_weights(r, d, files, bert):
    """The mean weight is 2: so is the loss that is learned, about."""
    assert 1.5 < r.log[0]["train_loss"] / d.log[0]["train_loss"] < 2.5
    assert differs(r, d)


def second_head(r, d, files, bert):
    """It learns the score: how long a text is. Its outputs follow it, as the folds read it."""
    assert r.head.keys() == {"head.weight", "head.bias", "second_head.weight", "second_head.bias"}
    assert r.log[0]["train_loss"] > d.log[0]["train_loss"]
    assert differs(r, d)
    model = EmotionClassifier(load_encoder(str(r.folder / "run/fold_0")), Config(labels=LABELS))
    vectors = TextVectors(model.eval())
    tokenizer = inspect_encoder(str(bert)).tokenizer
    texts, guesses = [row[1] for row in make_rows(60)], []
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.inference_mode():
            vector = vectors(ids, torch.ones_like(ids))
        guesses.append(float(vector @ r.head["second_head.weight"].T + r.head["second_head.bias"]))
    error = np.abs(np.array(guesses) - [len(text.split()) / 16 for text in texts])
    assert error.mean() < 0.2  # of 0.5 or so when untrained


def gradual_unfreezing(r, d, files, bert):
    """The encoder learns in the second of two epochs alone; the head in both."""
    for block in "embeddings", "encoder.layer.0", "encoder.layer.1":
        assert 0.05 < moved(r, bert, block) / moved(d, bert, block) < 0.7, block
    assert r.log[0]["train_loss"] != d.log[0]["train_loss"]
    assert differs(r, d)


def test_time_averaging(r, d, files, bert):
    """Nothing changes in what is learned, only in what is said."""
    assert all(w.equal(d.encoder[name]) for name, w in r.encoder.items())
    assert [x["train_loss"] for x in r.log] == [x["train_loss"] for x in d.log]
    assert r.log[0]["val_loss"] != d.log[0]["val_loss"]
    for ours, plain in (r.oof, d.oof), (r.test, d.test):
        assert 1e-3 < np.abs(ours - plain).max() < 0.2
    assert r.test == pytest.approx(r.other, abs=1e-5)  # the same texts again


test_time_averaging.__test__ = False  # its name is the recipe's

RECIPES = (attention_pooling, two_layer_head, layer_rates, r_drop, adversarial, augmentation)
RECIPES += (multi_sample_dropout, weight_ema, asymmetric_loss, other_optimizer, second_column)
RECIPES += (windows, row_weights, second_head, gradual_unfreezing, test_time_averaging)
EFFECTS = {check.__name__: check for check in (*RECIPES, one_more_metric)}


@pytest.mark.parametrize("patch", PATCHES, ids=lambda p: p.stem)
def test_a_recipe_works_in_training_and_in_predict(patch, tmp_path, files, bert, default):
    assert patch.stem in EFFECTS, "say there what must come of this recipe"
    more = MORE_FLAGS.get(patch.stem, [])
    r = train_copy(tmp_path / "code", files, bert, patch, more)
    if more:
        default = train_copy(tmp_path / "default", files, bert, None, more)
    EFFECTS[patch.stem](r, default, files, bert)
    with pytest.raises((AssertionError, KeyError)):  # so a patch without effect would be seen
        EFFECTS[patch.stem](default, default, files, bert)
    check_sound(r, files, text_alone=patch.stem != "second_column")
    if patch.stem != "asymmetric_loss":  # validation is by the plain loss, whatever the training's
        y, p = (x[r.fold == 0] for x in (table(files / "train.csv"), r.oof))
        plain = -np.log(np.where(y > 0, p, 1 - p)).mean()
        assert r.log[-1]["val_loss"] == pytest.approx(plain, rel=1e-4)


@pytest.mark.parametrize("name, column", [("row_weights", "weight"), ("second_head", "score")])
def test_a_recipe_whose_column_is_missing_says_so(name, column, tmp_path, files, bert):
    code = copy_code(tmp_path / "code", ROOT / f"recipes/{name}.patch")
    driver = 'sys.exit(train.main([*flags, "--out", "run"]))'
    argv = ["--model", str(bert), *FLAGS, "--train", str(files / "test.csv")]
    exit_code, printed = run_driver(driver, code, threads=1, flags=argv)
    assert exit_code == 2 and "Traceback" not in printed
    (line,) = [x for x in printed.splitlines() if x.startswith("error: ")]
    assert line.startswith(f"error: no column '{column}' of numbers - add it")


@pytest.mark.parametrize(
    "name, problem",
    [
        ("windows", "reads more of a text than --max-length; the exported program would not"),
        ("test_time_averaging", "torch's exporter makes no graph of it"),
    ],
)
def test_a_recipe_that_cant_be_exported_says_so(name, problem, tmp_path, files, bert):
    pytest.importorskip("onnxscript")
    r = train_copy(tmp_path / "code", files, bert, ROOT / f"recipes/{name}.patch")
    shutil.copytree(ROOT / "tools", r.folder / "tools")
    command = [sys.executable, r.folder / "tools/export.py", r.folder / "run", tmp_path / "model"]
    done = subprocess.run(command, capture_output=True, text=True)
    errors = [x for x in done.stderr.splitlines() if x.startswith("error: ")]
    assert done.returncode == 2 and len(errors) == 1, done.stderr
    assert problem in errors[0] and errors[0].endswith("use predict.py")
    assert "Traceback" not in done.stderr and not (tmp_path / "model").exists()


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


def test_rows_longer_than_the_encoder_takes_have_room(bert, tmp_path):
    """As recipes/windows.patch makes them: their beginning is what an encoder is checked on. A
    column of the CSV can't be taken for their number of windows."""
    encoder_info = inspect_encoder(str(bert))
    ids = np.arange(200, dtype=np.int32) % 30
    dataset = EmotionDataset(ids, np.array([0, 3, 200]))  # 197 tokens, of 128 that it takes
    assert len(check_weights(encoder_info, dataset, Config())) == 64
    with pytest.raises(UserError):
        check_weights(encoder_info, dataset)
    rows = [[*row, 1, 2] for row in make_rows(3)]
    path = write_csv(tmp_path / "x.csv", rows, ("id", "text", *LABELS, "windows", "weight"))
    (table,) = read_chunks(InputCSV(str(path), Config()))
    assert table.extra.keys() == {"weight"}
