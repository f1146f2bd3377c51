"""What the tests share: a tiny encoder with its tokenizer, a small CSV, and a finished run on them.

No test needs a network: sockets are refused, and the Hub is a folder laid out as its cache.

Where what is tested
--------------------
test_config.py          flags, their ranges, --config, --help
test_data.py            reading CSV, doubled texts, folds, tokens, batches
test_bad_inputs.py      files, flags and folders that are wrong or odd: one table
test_odd_files.py       what would give a wrong answer without a word
test_surprises.py       what nobody foresaw: machines, file systems, the Hub, callers; averaged runs
test_mutations.py       random damage to files and flags
test_splits.py          your own folds, groups, validation file, soft labels; a run kept loaded

test_model.py           every architecture, tokenizers, pooling, the head
test_recompute.py       --gradient-checkpointing
test_train.py           the loop, the losses, the schedule, what a run folder holds
test_metrics.py         scores, thresholds, calibration
test_missing.py         label cells that are empty: neither learned nor scored
test_numbers.py         memory that runs out, nan and inf, the same numbers in any batch
test_report.py          pictures, what is printed, quote.md, errors.csv
test_jobs.py            folds in parallel, threads
test_ranks.py           torchrun
test_notebook.py        in a notebook: errors, the stop button
test_examples.py        examples/notebook.ipynb, from start to end

test_predict.py         predict.py, thresholds, damaged runs, the commands of the README
test_predict_resume.py  a killed predict.py resumes

test_resume.py          run the same command to resume, with the same bytes
test_signals.py         Ctrl-C, SIGTERM, kill -9
test_environment.py     what env.json records beside the settings; room on the disk
test_damage.py          damaged and missing files
test_write_failures.py  full disks, paths that can't be written
test_other_runs.py      another command or other data, --restart, locks
test_harm.py            pickles, program code in a model folder, no network

test_compare.py, test_distil.py, test_export.py: tools/; test_recipes.py: recipes/
test_sweep.py           tools/sweep.py, tools/leaderboard.py
test_look.py            tools/look.py: the numbers, rows and words of its page
test_look_browser.py    the page in Chromium, where there is one
test_layout.py          tokens, density, the reading path, the documents

faults.py holds what the tests of faults share, cases/ the tables of cases.
"""

import csv
import os
import shutil
import signal
import socket
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # tiny models gain nothing from more
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the same bytes again are promised on a CPU only
# A background shell or nohup ignores these, and we honour that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

pytest.register_assert_rewrite("faults")  # its assertions, too, say what differs

LABELS = ["anger", "fear", "joy", "sadness", "surprise"]
WORDS = [
    "i",
    "am",
    "so",
    "the",
    "a",
    "of",
    "rain",
    "dog",
    "night",
    "storm",
    "lost",
    "won",
    "party",
    "grave",
    "shout",
    "door",
    "nobody",
    "came",
    "slammed",
    "gift",
    "laughed",
    "cried",
    "ran",
]
CUES = {
    "anger": "furious",
    "fear": "afraid",
    "joy": "happy",
    "sadness": "weeping",
    "surprise": "suddenly",
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Any connection but one within this machine fails the test."""
    real = socket.socket.connect

    def connect(self, address):
        if self.family != socket.AF_UNIX and not str(address[0]).startswith(
            ("127.", "localhost", "::1")
        ):
            raise AssertionError(f"the code tried to reach {address}")
        return real(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)


@pytest.fixture(autouse=True)
def quick(request, monkeypatch):
    """No drawing and no waiting for the disk, which are most of a tiny run.

    test_report.py draws for real, and runs in processes of their own do both; only a power cut
    would miss the fsync.
    """
    from support import pictures

    monkeypatch.setattr(os, "fsync", lambda handle: None)
    if request.path.name != "test_report.py":
        monkeypatch.setattr(
            pictures, "draw_report", lambda f, *args: Path(f).write_bytes(b"\x89PNG")
        )


def make_tokenizer(
    pad="[PAD]", unk="[UNK]", cls="[CLS]", sep="[SEP]", mask="[MASK]", first=()
) -> PreTrainedTokenizerFast:
    """A word-level tokenizer; `first` are the tokens with the lowest ids.

    RoBERTa's pad has id 1.
    """
    vocab = {
        t: i
        for i, t in enumerate(
            dict.fromkeys([*first, pad, unk, cls, sep, mask, *WORDS, *CUES.values()])
        )
    }
    t = Tokenizer(models.WordLevel(vocab, unk_token=unk))
    t.normalizer, t.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    t.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}", special_tokens=[(cls, vocab[cls]), (sep, vocab[sep])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=t,
        pad_token=pad,
        unk_token=unk,
        cls_token=cls,
        sep_token=sep,
        mask_token=mask,
    )


def make_bert(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_rows(n: int, seed: int = 0) -> list[list[str]]:
    """[id, text, 0/1 ...]: a label is 1 where its cue word stands in the text."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        y = (rng.random(5) < (0.2, 0.45, 0.3, 0.35, 0.3)).astype(int)
        words = list(rng.choice(WORDS, rng.integers(2, 14))) + [
            CUES[k] for k, on in zip(LABELS, y, strict=True) if on
        ]
        rng.shuffle(words)
        rows.append([f"{i:05d}", " ".join(words), *map(str, y)])
    return rows


def write_csv(path: Path, rows: list[list], header: list[str] = ("id", "text", *LABELS)) -> Path:
    with open(path, "w", encoding="utf-8", newline="") as f:
        csv.writer(f).writerows([header, *rows])
    return path


@pytest.fixture(scope="session")
def bert(tmp_path_factory) -> Path:
    return make_bert(tmp_path_factory.mktemp("models") / "tiny-bert")


@pytest.fixture(scope="session")
def train_csv(tmp_path_factory) -> Path:
    return write_csv(tmp_path_factory.mktemp("data") / "train.csv", make_rows(120))


@pytest.fixture(scope="session")
def test_csv(tmp_path_factory) -> Path:
    return write_csv(tmp_path_factory.mktemp("data") / "test.csv", make_rows(40, seed=1))


@pytest.fixture
def flags(bert, train_csv) -> list[str]:
    """A run of a second or two."""
    argv = ["--model", str(bert), "--train", str(train_csv), "--folds", "3", "--epochs", "2"]
    return [*argv, "--lr", "5e-3", "--dropout", "0.1", "--precision", "fp32"]


@pytest.fixture(scope="session")
def finished(tmp_path_factory, bert, train_csv) -> Path:
    """A finished run; tests that change it work on a copy."""
    import train

    out = tmp_path_factory.mktemp("runs") / "done"
    argv = ["--model", str(bert), "--train", str(train_csv), "--folds", "3", "--epochs", "10"]
    argv += ["--lr", "1e-2", "--batch-size", "8", "--dropout", "0", "--precision", "fp32"]
    assert train.main([*argv, "--out", str(out)]) == 0
    return out


# For the tests of faults (see faults.py): built once per process, and never changed.


@pytest.fixture(scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    return write_csv(tmp_path_factory.mktemp("faults") / "train.csv", make_rows(64))


@pytest.fixture(scope="session")
def command(bert, data) -> list[str]:
    argv = ["--model", str(bert), "--train", str(data), "--folds", "2", "--epochs", "2"]
    return [*argv, "--batch-size", "8", "--lr", "5e-3", "--precision", "fp32"]


@pytest.fixture(scope="session")
def clean(tmp_path_factory, command) -> Path:
    """The run that nothing disturbed."""
    import train

    out = tmp_path_factory.mktemp("clean") / "run"
    assert train.main([*command, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="session")
def wanted(clean, test_csv) -> dict[str, bytes]:
    from faults import everything

    return everything(clean, test_csv)


@pytest.fixture
def copy(clean, tmp_path) -> Path:
    return Path(shutil.copytree(clean, tmp_path / "copy"))


def outputs(run: Path) -> dict[str, bytes]:
    """What the same command must give again, byte for byte."""
    names = [
        "oof.csv",
        "th.npy",
        *(str(p.relative_to(run)) for p in sorted(run.glob("fold_*/*.safetensors"))),
    ]
    return {name: (run / name).read_bytes() for name in names}
