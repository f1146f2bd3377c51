"""What a fork changes in one place arrives everywhere, or is refused in one line.

Each fork is some lines put into a copy of the code. There one process trains two folds of a tiny
encoder, trains once more with a stop in the middle, and predicts with two threads. What the fork
does must be there each time: predict.py computes what training judged, and the stop changes no
byte. Every one of them was once silently wrong.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from copies import STOP_AND_RESUME, run_driver
from conftest import LABELS, make_rows, outputs, write_csv
from safetensors.torch import load_file
from transformers import BertConfig, BertModel

from tools.parts.plan import copy_code

ROOT = Path(__file__).resolve().parents[1]
FLAGS = ["--folds", "2", "--epochs", "2", "--batch-size", "8", "--lr", "5e-3", "--keep", "last"]
FLAGS += ["--precision", "fp32", "--device", "cpu", "--threads", "2"]

# Run with `train_csv` and `flags`, after the beginning in copies.py.
DRIVER = """
flags = [*flags, "--train", train_csv]
if exit_code := train.main([*flags, "--out", "run"]):
    sys.exit(exit_code)

"""
DRIVER += STOP_AND_RESUME
DRIVER += """
torch.set_num_threads(2)
ensemble = predict.load_run("run", "cpu", "fp32")
table = next(data.read_chunks(inputcsv.InputCSV(train_csv, Config())))
np.save("fold_0.npy", ensemble.predict_test(table.inputs, fold_numbers=[0], extra=table.extra))
paths = ["--output", "submission.csv", "--probabilities", "probabilities.csv"]
argv = ["--run", "run", "--input", train_csv, *paths, "--precision", "fp32", "--device", "cpu"]
assert predict.main(argv) == 0
"""


@dataclass
class Trained:
    """What the driver left in a copy of the code."""

    folder: Path
    exit_code: int
    printed: str

    @property
    def head(self) -> dict:
        return load_file(self.folder / "run/fold_0/head.safetensors")

    @property
    def encoder(self) -> dict:
        return load_file(self.folder / "run/fold_0/model.safetensors")

    @property
    def log(self) -> list[dict]:
        lines = (self.folder / "run/fold_0/log.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def check(self) -> None:
        """Prediction is what training judged; a stop and a resume change nothing."""
        assert self.exit_code == 0, self.printed
        oof = [line.split(",") for line in (self.folder / "run/oof.csv").read_text().splitlines()]
        held_out = np.array([row[1] == "0" for row in oof[1:]])
        judged = np.array([row[2:7] for row in oof[1:]], np.float32)
        predicted = np.load(self.folder / "fold_0.npy")
        assert predicted[held_out] == pytest.approx(judged[held_out], abs=1e-5)
        assert "fold 0: resumes at epoch 2, step 2" in self.printed
        assert outputs(self.folder / "again") == outputs(self.folder / "run")


@pytest.fixture(scope="module")
def weighted_csv(tmp_path_factory) -> Path:
    """With a column of numbers that is no label."""
    rows = [[*row, 1 + i % 3] for i, row in enumerate(make_rows(60))]
    path = tmp_path_factory.mktemp("forks") / "train.csv"
    return write_csv(path, rows, ("id", "text", *LABELS, "weight"))


@pytest.fixture
def fork(tmp_path, bert, weighted_csv):
    """fork(edits, *flags): a trained copy of the code with (file, old, new) edits."""

    def make(edits: list[tuple[str, str, str]], *flags: str, csv=weighted_csv) -> Trained:
        code = copy_code(tmp_path / "code")
        for file, old, new in edits:
            text = (code / file).read_text()
            assert text.count(old) == 1, (file, old)
            (code / file).write_text(text.replace(old, new))
        argv = ["--model", str(bert), *FLAGS, *flags]
        names = {"train_csv": str(csv), "flags": argv}
        exit_code, printed = run_driver(DRIVER, code, threads=2, **names)
        return Trained(code, exit_code, printed)

    return make


HEAD = "        self.head = nn.Linear(encoder.config.hidden_size, self.num_labels)\n"
LOGITS = "            return self.head(self.dropout(vector))"
LOSSES = '    losses = criterion(logits, batch["labels"]) if criterion else None\n'


def test_without_an_edit(fork):
    """What the others change: the plain code is sound, and knows nothing of the weights."""
    plain = fork([])
    plain.check()
    assert plain.head.keys() == {"head.weight", "head.bias"}


def test_a_parameter_named_like_the_heads(fork):
    new = HEAD + "        self.weight = nn.Parameter(torch.full((self.num_labels,), 0.5))\n"
    forked = fork([("model.py", HEAD, new), ("model.py", LOGITS, LOGITS + " * self.weight")])
    forked.check()
    assert forked.head.keys() == {"head.weight", "head.bias", "weight"}
    assert (forked.head["weight"] != 0.5).all()  # it was trained


def test_a_setting_of_the_model_reaches_predict(fork):
    flag = '    dropout: float = arg(0.3, "dropout before the linear head", 0, 0.99)\n'
    setting = flag + '    scale: float = arg(1.0, "logits times this", 0, 100)\n'
    edits = [
        ("config.py", flag, setting),
        ("model.py", HEAD, HEAD + "        self.scale = config.scale\n"),
        ("model.py", LOGITS, LOGITS + " * self.scale"),
    ]
    forked = fork(edits, "--scale", "7")
    forked.check()
    assert json.loads((forked.folder / "run/config.json").read_text())["scale"] == 7


def test_a_token_that_occurs_in_no_text_is_refused(fork, bert, tmp_path):
    """The last token of each row becomes [MASK], which no text has."""
    wide = shutil.copytree(bert, tmp_path / "wide")  # a table of more rows than occur
    config = BertConfig.from_pretrained(wide, vocab_size=60)
    BertModel(config).save_pretrained(wide)
    old = "        ids[mask] = np.concatenate(rows)\n"
    edit = ("data.py", old, old + "        ids[:, -1] = 4\n")
    forked = fork([edit], "--model", str(wide))
    assert forked.exit_code == 1 and "Traceback" not in forked.printed
    error = [line for line in forked.printed.splitlines() if line.startswith("error: ")]
    assert error == [
        "error: token id 4 occurs in no text, and so is not trained - add it to `token_ids` in "
        "train_fold"
    ]


def test_what_forward_leaves_on_self_is_the_batchs_own(fork):
    """compute_loss reads it a moment later, while another thread runs another batch."""
    forward = "        hidden = self.encoder(input_ids=input_ids"
    call = '    logits = model(batch["input_ids"], batch["attention_mask"])\n'
    read = call + "    time.sleep(0.02)\n    logits = logits / model.lengths\n"
    edits = [
        ("model.py", "import copy\n", "import copy\nimport time\n"),
        ("model.py", forward, "        self.lengths = attention_mask.sum(1, True)\n" + forward),
        ("model.py", call, read),
        ("model.py", "else 4096\n", "else 4096\n    tokens = 64\n"),  # many batches
    ]
    fork(edits).check()


def test_parameters_unfrozen_later_are_trained(fork, bert):
    old = "            net = run.ranks.wrap(model, collate.pad_id)"
    new = "            model.encoder.requires_grad_(progress.epoch > 0)\n"
    forked = fork([("train.py", old, new + old)], "--freeze", "2")
    forked.check()
    before = load_file(bert / "model.safetensors")
    name = "encoder.layer.0.attention.self.query.weight"
    assert not forked.encoder[name].equal(before[name])


def test_a_column_of_numbers_reaches_the_loss_by_its_name(fork):
    plain = fork([])
    first = shutil.move(plain.folder, plain.folder.with_name("plain"))
    weigh = '    losses = losses * batch["weight"] if criterion else None\n'
    forked = fork([("model.py", LOSSES, LOSSES + weigh)])
    forked.check()
    before = Trained(Path(first), 0, "").log
    assert forked.log[0]["train_loss"] > 1.5 * before[0]["train_loss"]  # the mean weight is 2


@pytest.mark.parametrize("cell", ["", "heavy"])
def test_a_row_without_its_weight_is_named(fork, weighted_csv, tmp_path, cell):
    """It must not end in a run without any weights."""
    lines = weighted_csv.read_text().splitlines()
    lines[7] = lines[7].rpartition(",")[0] + "," + cell
    path = tmp_path / "gap.csv"
    path.write_text("\n".join(lines) + "\n")
    weigh = '    losses = losses * batch["weight"] if criterion else None\n'
    forked = fork([("model.py", LOSSES, LOSSES + weigh)], csv=path)
    assert forked.exit_code == 1 and "Traceback" not in forked.printed
    assert "error: fold 0, epoch 1" in forked.printed and "not finite" in forked.printed


def test_the_epoch_is_known_in_the_loop(fork):
    old = "            loss = row_losses.sum() / n_rows\n"
    forked = fork(
        [("train.py", old, old + "            loss = loss * checkpoint.progress.epoch\n")]
    )
    forked.check()
    assert [entry["train_loss"] > 0 for entry in forked.log] == [False, True]


def test_an_array_is_saved_with_its_fold(fork):
    old = "checkpoint.keep(entry, y_prob, model, encoder_info.tokenizer)"
    new = old[:-1] + ", arrays={'vectors': vectors})"
    line = "            entry = progress.log_entry(val_loss"
    vectors = (
        "            vectors, _ = run_over_rows(TextVectors(model), dataset, collate, val_idx)\n"
    )
    edits = [
        ("train.py", "    EmotionClassifier,\n", "    EmotionClassifier,\n    TextVectors,\n"),
        ("train.py", old, new),
        ("train.py", line, vectors + line),
    ]
    forked = fork(edits)
    forked.check()
    saved = np.load(forked.folder / "run/fold_0/vectors.npy")
    assert saved.shape == (30, 32) and np.ptp(saved, axis=0).min() > 0
