"""What people's files, machines and programs do that nobody foresaw.

Each of these was once silently wrong, a crash, or a line that led nowhere.
"""

import copy
import csv
import errno
import fcntl
import http.server
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import LABELS, make_rows, write_csv
from faults import one_line

import metrics
import predict
import train
from config import HERE, Config, PredictConfig
from data import Table, read_table, split
from support import device, files, pictures, report
from support.cli import parse
from support.finished import FinishedRun
from support.process import STOPPING, Signals, UserError, exit_codes
from support.splits import normalise, text_hashes
from tools import compare, distil


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def quick(bert) -> list[str]:
    """Flags of a training of a second."""
    flags = ["--model", str(bert), "--folds", "2", "--epochs", "1", "--batch-size", "8"]
    return [*flags, "--precision", "fp32", "--device", "cpu"]


def read(path) -> list[list[str]]:
    with open(path, encoding="utf-8-sig", newline="") as f:
        return list(csv.reader(f))


# The encoder as it is used


@pytest.mark.parametrize(
    "file, change, named",
    [
        ("config.json", {"hidden_act": "relu"}, "encoder_config_sha256"),
        ("tokenizer_config.json", {"truncation_side": "left"}, "tokenizer_sha256"),
        ("tokenizer.json", {"normalizer": None}, "tokenizer_sha256"),
    ],
)
def test_a_run_of_another_config_or_tokenizer(
    file, change, named, bert, train_csv, quick, tmp_path, capsys
):
    """The weights are the same, what the encoder computes of a text is not."""
    own = Path(shutil.copytree(bert, tmp_path / "own"))
    argv = [*quick, "--model", "own", "--train", str(train_csv), "--out", "a"]
    assert train.main([*argv, "--fold", "0"]) == 0
    key = FinishedRun.__mro__[1](Path("a")).key
    moved = shutil.copytree(own, tmp_path / "moved")
    assert train.main([*argv, "--fold", "0", "--model", str(moved)]) == 0  # wherever it lies
    settings = json.loads((own / file).read_text())
    (own / file).write_text(json.dumps(settings | change))
    capsys.readouterr()
    assert train.main(argv) == 2
    one_line(capsys, "a: holds another run", named)
    assert train.main([*argv, "--restart"]) == 0
    assert FinishedRun(Path("a")).key != key  # so that a student of the old teacher is refused


# Rows inside a text


def swallowed(header: list[str], rows: list[list[str]], at: int, until: int) -> str:
    """CSV in which a stray quote before row `at`'s text closes at the end of row `until`'s."""
    lines = [",".join(header), *(",".join(row) for row in rows)]
    place = header.index("text")
    cells = rows[at].copy()
    cells[place] = '"' + cells[place]
    lines[at + 1] = ",".join(cells)
    cells = rows[until].copy()
    cells[place] += '"'
    lines[until + 1] = ",".join(cells)
    return "\n".join(lines) + "\n"


IDS = {
    "tweets": lambda i: str(1200000000000000000 + 7919 * i),
    "zeros": lambda i: f"{i:05d}",
    "hashes": lambda i: f"{hash((i, 'x')) % 16**16:016x}",
    "names": lambda i: f"train-{i * 31}",
    "numbers": lambda i: str(i),
}


@pytest.mark.parametrize("separator", [",", ";"])
@pytest.mark.parametrize("ids", [*IDS, None])
def test_rows_inside_a_text_are_counted(ids, separator, finished, quick, capsys):
    header = ["id", "text"] if ids else ["day", "text"]
    make = IDS[ids] if ids else lambda i: f"2024-01-{i % 28 + 1:02d}"
    rows = [[make(i), f"hello number {i}"] for i in range(30)]
    text = swallowed(header, rows, 5, 12).replace(",", separator)
    Path("x.csv").write_text(text)
    assert predict.main(["--run", str(finished), "--input", "x.csv"]) == 0
    warning = "x.csv: 7 rows stand inside the text of row 7, and are lost"
    assert warning in capsys.readouterr().err
    if ids == "tweets" and separator == ",":
        argv = [str(finished), "--texts", "x.csv", *quick[:2], *quick[4:], "--out", "s"]
        assert distil.main(argv) == 0
        assert warning in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    ["roses are red,\nviolets are blue,\nso are you", "1, 2 or 3\n4, 5 or 6", "a\n\n12, rue x"],
)
def test_lines_that_are_no_rows(text, finished, capsys):
    rows = [[f"{i:04d}", "so happy"] for i in range(9)]
    write_csv(Path("x.csv"), [*rows, ["0009", text]], ["id", "text"])
    assert predict.main(["--run", str(finished), "--input", "x.csv"]) == 0
    assert "stand inside" not in capsys.readouterr().err


# What nobody sees


UNSEEN = [0x200B, 0xFEFF, 0xAD, 0x200D, 0xFE0F, 0x2060, 0x200E, 0x202E, 0x180E, 0x1F, 0x7F, 0xE0061]


@pytest.mark.parametrize("code", UNSEEN)
def test_copies_that_differ_by_what_nobody_sees(code):
    texts = ["so happy today", f"so ha{chr(code)}ppy today", f"{chr(code)}So happy  today"]
    if chr(code).isspace():  # U+001F counts as white space
        texts.pop(1)
    assert len(set(text_hashes(texts))) == 1
    assert normalise("résumé ñ 你好 👍🏽 e\u0301") == "résumé ñ 你好 👍🏽 é"


def test_names_of_groups_are_compared_as_texts_are():
    cells = ["Bob", "bob ", "BO\u200bB", "1", "1.0", "01", "", "-2", "-2.00", "2.5", "v1.0"]
    rows = [[i, f"text number {i}", *"10101", c] for i, c in enumerate(cells)]
    write_csv(Path("x.csv"), rows, ["id", "text", *LABELS, "author"])
    group = read_table("x.csv", Config(group_column="author")).group.tolist()
    assert group == ["bob"] * 3 + ["1", "1", "01", "", "-2", "-2", "2.5", "v1.0"]


def test_a_text_that_fills_a_fold_is_said(capsys):
    texts = ["OK  thanks"] * 60 + [f"text {i}" for i in range(40)]
    y = np.random.default_rng(0).integers(0, 2, (100, 2)).astype(np.float32)
    table = Table([*map(str, range(100))], texts, texts, y, "text")
    split(table, Config(folds=5))
    err = capsys.readouterr().err
    assert "60 of 100 rows belong together, more than 1/5 of all" in err
    assert "copies of the text 'OK thanks'" in err


# A rare label


def rare(n: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that rank 40 rows perfectly and stay below 0.01."""
    rng = np.random.default_rng(0)
    y = np.zeros((n, 1))
    y[:40] = 1
    low, high = rng.uniform(0.0002, 0.004, y.shape), rng.uniform(0.005, 0.009, y.shape)
    return y, np.where(y > 0, high, low).astype(np.float32)


def test_the_threshold_of_a_rare_label_follows_its_probabilities():
    y, p = rare()
    th = metrics.tune_thresholds(y, p)
    best = metrics.scores(y, metrics.detect(p, np.float32([0.0045])))["macro_f1"]
    assert best == 1 and 0.0039 < th[0] < 0.006
    assert metrics.scores(y, metrics.detect(p, th))["macro_f1"] > 0.95
    usual = np.concatenate([p, np.full_like(p, 0.3)], 1)  # the labels don't change each other
    assert metrics.tune_thresholds(np.concatenate([y, y], 1), usual)[0] == th[0]


def test_a_label_that_is_never_detected_is_said(capsys):
    y, p = rare(200)
    fold = np.arange(200) % 2
    fold[:40] = 0  # the thresholds of fold 0 are chosen without a positive: 0.5
    found = metrics.summary(y, p, fold, ["rare"])
    report.warn_of_undetected(found.values["per_label"])
    assert "label rare is detected in no held-out row" in capsys.readouterr().err
    report.warn_of_undetected(
        metrics.summary(y, p, np.arange(200) % 2, ["rare"]).values["per_label"]
    )
    assert capsys.readouterr().err == ""


# Machines


def fake_files(monkeypatch, contents: dict[str, str]) -> None:
    real = Path.read_text

    def read_text(self, *args, **kwargs):
        path = str(self)
        if path in contents:
            return contents[path]
        if path.startswith("/sys/fs/cgroup"):
            raise FileNotFoundError(2, "No such file", path)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", read_text)


MEMINFO = {"/proc/meminfo": "MemTotal: 500000000 kB\nMemAvailable: 480000000 kB\n"}
JOB = "/slurm/job_7/step_0/task_0"
V2 = {
    "/proc/self/cgroup": f"0::{JOB}\n",
    f"/sys/fs/cgroup{JOB}/memory.max": "max\n",
    "/sys/fs/cgroup/slurm/job_7/memory.max": "2000000000\n",
    "/sys/fs/cgroup/slurm/job_7/memory.stat": "anon 500000000\nfile 0\n",
}
V1 = {
    "/proc/self/cgroup": f"5:cpuset:/x\n12:memory:{JOB}\n1:name=systemd:/y\n",
    "/sys/fs/cgroup/memory/slurm/job_7/memory.limit_in_bytes": "2000000000\n",
    "/sys/fs/cgroup/memory/slurm/job_7/memory.usage_in_bytes": "500000000\n",
}
NONE = {"/proc/self/cgroup": "0::/user.slice\n"}


@pytest.mark.parametrize("contents, wanted", [(V2, 1.5e9), (V1, 1.5e9), (NONE, 480e6 * 1024)])
def test_the_memory_of_a_job(contents, wanted, monkeypatch):
    """A limit that is set on a parent of the process's own group, in both versions."""
    fake_files(monkeypatch, MEMINFO | contents)
    assert device.free_memory() == wanted


def test_a_home_folder_that_the_shell_left(train_csv, quick, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    assert train.main([*quick, "--train", str(train_csv), "--fold", "0", "--out=~/runs/x"]) == 0
    assert Path("home/runs/x/env.json").exists() and not Path("~").exists()
    config = parse(PredictConfig, ["--run", "~/a", "~b/c", "--text", "~/ is my home"], "predict.py")
    assert config.run[0] == str(tmp_path / "home/a") and config.text == ["~/ is my home"]


def refuse(number: int, when=lambda *args: True):
    def call(real):
        def wrapped(*args, **kwargs):
            if when(*args):
                raise OSError(number, os.strerror(number))
            return real(*args, **kwargs)

        return wrapped

    return call


def is_folder(handle) -> bool:
    return os.path.isdir(f"/proc/self/fd/{handle}")


@pytest.mark.parametrize(
    "module, name, number, when, words",
    [
        (fcntl, "flock", errno.ENOSYS, lambda *a: True, "there are no file locks here"),
        (fcntl, "flock", errno.ENOLCK, lambda *a: True, "there are no file locks here"),
        (os, "fsync", errno.EINVAL, is_folder, "names of files can't be synced here"),
        (os, "chmod", errno.EPERM, lambda *a: True, "modes of files can't be set here"),
    ],
)
def test_file_systems_that_can_do_less(
    module, name, number, when, words, train_csv, quick, monkeypatch, capsys
):
    """What can be done without is done without, with one warning."""
    files.warn_once.cache_clear()
    monkeypatch.setattr(module, name, refuse(number, when)(getattr(module, name)))
    assert train.main([*quick, "--train", str(train_csv), "--out", "a", "--jobs", "1"]) == 0
    assert predict.main(["--run", "a", "--input", str(train_csv)]) == 0
    err = capsys.readouterr().err
    assert err.count(words) == 1 and "make room" not in err


@pytest.mark.parametrize(
    "number, hint",
    [
        (errno.ENOSPC, "make room"),
        (errno.EACCES, "choose a folder that you may write to"),
        (errno.EROFS, "choose a folder that you may write to"),
        (errno.ENODEV, "choose a folder on another one"),
    ],
)
def test_a_file_error_has_its_own_hint(number, hint, tmp_path):
    with pytest.raises(UserError, match=hint), files.writing(tmp_path):
        raise OSError(number, os.strerror(number))


def test_weights_that_may_not_be_read(bert, tmp_path, quick, train_csv, monkeypatch, capsys):
    """safetensors says 'No such file' of them."""
    own = Path(shutil.copytree(bert, tmp_path / "own"))
    (own / "model.safetensors").chmod(0)
    real = os.access
    monkeypatch.setattr(
        os, "access", lambda p, *a: "model.safetensors" not in str(p) and real(p, *a)
    )
    assert train.main([*quick, "--model", "own", "--train", str(train_csv), "--out", "a"]) == 2
    one_line(capsys, "model.safetensors", "Permission denied")


class Hub(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        code, kind = self.server.answer
        self.send_response(code)
        if kind:
            self.send_header("X-Error-Code", kind)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *args):
        """Nothing is printed."""


HUB = """
import sys, time
time.sleep = lambda seconds: None  # huggingface_hub waits before it tries again
sys.path.insert(0, sys.argv[1])
from support.encoders import inspect_encoder
from support.process import UserError
try:
    inspect_encoder("some/model")
except UserError as e:
    print(e)
"""


@pytest.mark.parametrize(
    "code, kind, words",
    [
        (401, "GatedRepo", "accept its terms"),
        (403, "GatedRepo", "accept its terms"),
        (401, "RepoNotFound", "check the name; if it is private, log in"),
        (404, "RepoNotFound", "check the name; download it"),
        (407, None, "the proxy asks for a login"),
        (429, None, "too many requests"),
        (503, None, "trouble of its own (503)"),
        (200, "TLS", "no secure connection to the Hub"),
    ],
)
def test_what_the_hub_answers(code, kind, words, tmp_path):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.answer = code, kind
    threading.Thread(target=server.serve_forever, daemon=True).start()
    protocol = "https" if kind == "TLS" else "http"
    env = {**os.environ, "HF_ENDPOINT": f"{protocol}://127.0.0.1:{server.server_port}"}
    env |= {"HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path), "NO_PROXY": "*"}
    command = [sys.executable, "-c", HUB, str(HERE)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
    server.shutdown()
    assert words in done.stdout and done.stdout.count("\n") == 1, done.stdout + done.stderr


# Programs around ours


@pytest.mark.parametrize(
    "error", [RuntimeError("no latex"), ValueError("x"), ImportError("no mpl")]
)
def test_a_picture_that_cant_be_drawn(error, train_csv, quick, monkeypatch, capsys):
    def fail(*args):
        Path(args[0]).write_bytes(b"half")
        raise error

    monkeypatch.setattr(pictures, "draw_figure", fail)
    assert train.main([*quick, "--train", str(train_csv), "--out", "a"]) == 0
    assert "warning: report.png can't be drawn" in capsys.readouterr().err
    assert Path("a/DONE.json").exists() and not Path("a/report.png").exists()
    assert predict.main(["--run", "a", "--input", str(train_csv)]) == 0


PLAIN = """
import sys
class Tee:
    def __init__(self, *files): self.files = files
    def write(self, x): return [f.write(x) for f in self.files]
    def flush(self): [f.flush() for f in self.files]
if sys.argv[1] == "tee":
    sys.stdout, sys.stderr = Tee(sys.__stdout__), Tee(sys.__stderr__)
elif sys.argv[1] == "none":
    sys.stdout = None
sys.path.insert(0, sys.argv[2])
import train
sys.exit(train.main(sys.argv[3:]))
"""


@pytest.mark.parametrize("kind", ["tee", "none"])
def test_an_output_that_is_no_stream(kind, train_csv, quick):
    argv = [*quick, "--train", str(train_csv), "--fold", "0", "--out", "a"]
    command = [sys.executable, "-c", PLAIN, kind, str(HERE), *argv]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert ("fold 0 epoch" in done.stdout) == (kind == "tee")


def test_python_c_with_jobs(train_csv, quick):
    """The helpers run train.py, not the code after -c."""
    code = "import sys, train; sys.exit(train.main())"
    argv = [*quick, "--train", str(train_csv), "--jobs", "2", "--out", "a"]
    env = {**os.environ, "PYTHONPATH": str(HERE)}
    done = subprocess.run(
        [sys.executable, "-c", code, *argv], capture_output=True, text=True, env=env
    )
    assert done.returncode == 0 and "Error" not in done.stderr, done.stderr


@pytest.mark.parametrize("module", [train, predict])
def test_main_in_a_thread(module, finished, train_csv, quick):
    """Handlers of signals can't be set there."""
    argv = ["--run", str(finished), "--text", "so happy"]
    if module is train:
        argv = [*quick, "--train", str(train_csv), "--fold", "0", "--jobs", "1", "--out", "a"]
    codes = []
    thread = threading.Thread(target=lambda: codes.append(module.main(argv)))
    thread.start()
    thread.join()
    assert codes == [0]


@pytest.mark.parametrize("name", STOPPING)
def test_every_signal_of_a_batch_system_stops_and_saves(name):
    number = getattr(signal, name)

    @exit_codes
    def main(argv):
        with Signals() as signals, signals.held():
            os.kill(os.getpid(), number)
            signals.check()
        return 0

    before = signal.getsignal(number)
    assert main([]) == 128 + number
    assert signal.getsignal(number) is before


def test_half_a_character(finished):
    """json.loads gives such strings."""
    model = predict.load_run(finished)
    texts = ["so happy \ud83d now", "so \ud83d\ude00"]
    first, second = model.predict(texts)
    assert first["text"] == "so happy \ufffd now" and second["text"] == "so 😀"
    whole = model.predict("so happy \ufffd now")[0]["probabilities"]
    assert first["probabilities"] == pytest.approx(whole, abs=1e-5)


@pytest.mark.parametrize(
    "texts", [["a", None], ["a", float("nan")], pd.DataFrame({"a": ["b"]}), {}]
)
def test_what_is_no_text(texts, finished):
    with pytest.raises(UserError, match="texts"):
        predict.load_run(finished).predict(texts)


def test_columns_of_texts(finished):
    model = predict.load_run(finished)
    texts = ["so happy", "I am sad", "what a storm"]
    wanted = model.predict(texts)
    shuffled = pd.Series(texts).iloc[[2, 0, 1]]
    assert model.predict(shuffled) == [wanted[2], wanted[0], wanted[1]]
    assert model.predict(np.array(texts, object)) == wanted

    class Polars:
        def to_list(self):
            return texts

    assert model.predict(Polars()) == wanted


def test_a_loaded_run_is_pickled_and_copied(finished):
    model = predict.load_run(finished)
    wanted = model.predict(["so happy"])
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert other.predict(["so happy"]) == wanted and other.lock is not model.lock


# Lines that lead


def test_a_teacher_of_seed_0(bert, train_csv, quick, capsys):
    argv = [*quick, "--train", str(train_csv), "--seed", "0", "--keep", "last", "--out", "t"]
    assert train.main(argv) == 0
    write_csv(Path("new.csv"), [[i, f"a new text {i}"] for i in range(20)], ["id", "text"])
    assert distil.main(["t", "--texts", "new.csv", *quick[:2], "--epochs", "1", "--out", "s"]) == 0
    fold = [row[1] for row in read("t/oof.csv")]
    assert [row[1] for row in read("s/oof.csv")] == fold


def test_from_another_folder_than_the_training(bert, quick, tmp_path, monkeypatch, capsys):
    write_csv(Path("train.csv"), make_rows(60))
    assert train.main([*quick, "--train", "train.csv", "--keep", "last", "--out", "runs/t"]) == 0
    write_csv(Path("new.csv"), [[i, f"a new text {i}"] for i in range(20)], ["id", "text"])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    argv = ["../runs/t", "--texts", "../new.csv", *quick[:2], "--epochs", "1", "--out", "s"]
    assert distil.main(argv) == 0
    assert compare.main(["../runs/t", "../runs/t"]) == 0
    Path("../train.csv").rename("../moved.csv")
    capsys.readouterr()
    assert distil.main([*argv[:-1], "s2"]) == 2
    one_line(capsys, "train.csv: no such file", "--train")
    assert distil.main([*argv[:-1], "s2", "--train", "../moved.csv"]) == 0


@pytest.mark.parametrize("column, more", [("sentence", []), ("anything", []), ("text", ["words"])])
def test_a_validation_file_with_another_text_column(column, more, train_csv, quick):
    rows = [[r[1], r[0], *["x" for _ in more], *r[2:]] for r in make_rows(40, seed=5)]
    write_csv(Path("v.csv"), rows, [column, "id", *more, *LABELS])
    argv = [*quick[:2], *quick[4:], "--train", str(train_csv), "--valid", "v.csv", "--out", "a"]
    assert train.main(argv) == 0
    assert [row[0] for row in read("a/oof.csv")[1:]] == [row[1] for row in rows]


def test_a_column_of_folds_is_no_label(quick, capsys):
    rows = [[*r, i % 2] for i, r in enumerate(make_rows(40))]
    write_csv(Path("x.csv"), rows, ["id", "text", *LABELS, "fold"])
    argv = [*quick[:2], *quick[4:], "--train", "x.csv", "--out", "a"]
    assert train.main(argv) == 2
    one_line(capsys, "'fold' could be the folds", "--fold-column fold")
    assert train.main([*argv, "--fold-column", "fold"]) == 0


def test_a_run_of_another_precision_names_its_own(train_csv, quick, capsys):
    argv = [*quick, "--train", str(train_csv), "--out", "a"]
    assert train.main([*argv, "--fold", "0"]) == 0
    capsys.readouterr()
    assert train.main([*argv, "--precision", "bf16"]) == 2
    one_line(capsys, "fp32 -> bf16", "resume with --precision fp32")


def test_verdicts_on_labels_as_kaggle_publishes_them(finished, capsys):
    """Rows that are -1 in all labels are not scored."""
    rows = make_rows(60)
    unknown = [[*r[:2], *["-1"] * 5] if i % 4 == 0 else r for i, r in enumerate(rows)]
    write_csv(Path("gold.csv"), unknown)
    write_csv(Path("known.csv"), [r for i, r in enumerate(rows) if i % 4])
    for name, th in (("a", "0.5"), ("b", "0.2")):
        for gold in ("gold", "known"):
            argv = ["--run", str(finished), "--input", f"{gold}.csv", "--thresholds", th]
            assert predict.main([*argv, "--output", f"{name}_{gold}.csv"]) == 0
    tables = []
    for gold in ("gold", "known"):
        capsys.readouterr()
        assert compare.main(["--test", f"{gold}.csv", f"a_{gold}.csv", f"b_{gold}.csv"]) == 0
        tables.append(capsys.readouterr().out.splitlines()[2:])
    assert tables[0] == tables[1]
    write_csv(Path("bare.csv"), [r[:2] for r in rows], ["id", "text"])
    write_csv(Path("words.csv"), [[r[0], *r[2:]] for r in rows], ["id", *LABELS])
    for gold in ("bare.csv", "words.csv"):
        assert compare.main(["--test", gold, "a_gold.csv", "b_gold.csv"]) == 2
        assert "--text-column" not in one_line(capsys, f"{gold}: needs id, text and 0/1 columns")


# Several runs


@pytest.fixture(scope="module")
def seeds(tmp_path_factory, bert, train_csv) -> list[str]:
    folder = tmp_path_factory.mktemp("seeds")
    flags = ["--model", str(bert), "--train", str(train_csv), "--folds", "2", "--epochs", "4"]
    flags += ["--lr", "1e-2", "--precision", "fp32", "--device", "cpu"]
    found = []
    for seed, more in ((1, []), (2, []), (3, ["--split-seed", "9", "--pooling", "cls"])):
        found.append(str(folder / f"seed_{seed}"))
        assert train.main([*flags, "--seed", str(seed), *more, "--out", found[-1]]) == 0
    return found


def test_the_average_of_several_runs(seeds, test_csv, capsys):
    p = []
    for i, run in enumerate(seeds):
        argv = ["--run", run, "--input", str(test_csv), "--output", f"{i}.csv"]
        assert predict.main([*argv, "--probabilities", f"p{i}.csv"]) == 0
        p.append(np.array([row[1:] for row in read(f"p{i}.csv")[1:]], float))
    capsys.readouterr()
    each = [word for run in seeds for word in ("--run", run)]
    assert parse(PredictConfig, each, "predict.py").run == [*seeds]
    argv = ["--run", *seeds, "--input", str(test_csv), "--output", "all.csv"]
    assert predict.main([*argv, "--probabilities", "pall.csv"]) == 0
    mean = np.array([row[1:] for row in read("pall.csv")[1:]], float)
    assert mean == pytest.approx(np.mean(p, 0), abs=1e-6)
    # Thresholds and score by the mean of the out-of-fold probabilities.
    frames = [pd.read_csv(Path(run, "oof.csv"), dtype={"id": str}) for run in seeds]
    y = frames[0][[f"given_{name}" for name in LABELS]].to_numpy()
    oof = np.mean([f[LABELS].to_numpy(np.float32) for f in frames], 0).astype(np.float32)
    crossed = metrics.cross_fit(y, oof, frames[0]["fold"].to_numpy())
    score = metrics.scores(y, crossed)["macro_f1"]
    said = f"the mean of 3 runs: cross-fitted macro-F1 {score:.4f} (120 rows)"
    assert capsys.readouterr().out.count(said) == 1
    th = metrics.tune_thresholds(y, oof)
    detected = np.array([row[1:] for row in read("all.csv")[1:]], int)
    assert (detected == (mean.astype(np.float32) >= th)).all()


def test_several_runs_from_python(seeds):
    model = predict.load_run(seeds[:2])
    texts = ["so happy", "a storm"]
    parts = [predict.load_run(run).predict_test(texts) for run in seeds[:2]]
    assert model.predict_test(texts) == pytest.approx(np.mean(parts, 0), abs=1e-6)
    assert "the mean of" in repr(model) and all(run in repr(model) for run in seeds[:2])
    found = model.predict(texts, calibrate=True)
    assert [list(answer) for answer in found] == [["text", "probabilities", "emotions"]] * 2


def test_runs_that_can_not_be_averaged(seeds, bert, train_csv, finished, quick, test_csv, capsys):
    """Other labels: never. Other rows: with thresholds of the user's."""
    argv = [*quick, "--train", str(train_csv)]
    assert train.main([*argv, "--labels", "joy", "fear", "--out", "two"]) == 0
    write_csv(Path("other.csv"), make_rows(60, seed=8))
    assert train.main([*quick, "--train", "other.csv", "--out", "other"]) == 0
    capsys.readouterr()
    run = ["--input", str(test_csv), "--run", seeds[0]]
    assert predict.main([*run, "two"]) == 2
    one_line(capsys, "two: its labels are joy, fear")
    assert predict.main([*run, seeds[0]]) == 2
    one_line(capsys, "name each run once")
    assert predict.main([*run, "other"]) == 2
    one_line(capsys, "other: held out other rows", "--thresholds")
    assert predict.main([*run, "other", "--thresholds", "0.5"]) == 0
    assert "cross-fitted" not in capsys.readouterr().out


def test_an_average_writes_over_no_training_file(seeds, train_csv, test_csv, quick, capsys):
    own = write_csv(Path("own.csv"), make_rows(60, seed=8))
    assert train.main([*quick, "--train", "own.csv", "--out", "own"]) == 0
    before = own.read_bytes()
    argv = ["--run", seeds[0], "own", "--input", str(test_csv), "--thresholds", "0.5"]
    assert predict.main([*argv, "--output", "own.csv"]) == 2
    one_line(capsys, "own.csv: is what the run was trained on")
    assert own.read_bytes() == before
    assert predict.main([*argv, "--calibrate"]) == 2
    one_line(capsys, "leave --calibrate out")
    np.save("mine.npy", np.full(5, 0.4, np.float32))
    assert predict.main([*argv[:-1], "mine.npy"]) == 0


def test_an_average_of_runs_on_other_text_columns(quick, capsys):
    rows = [[*r[:2], f"body {r[0]}", *r[2:]] for r in make_rows(40)]
    write_csv(Path("x.csv"), rows, ["id", "title", "body", *LABELS])
    for name in ("title", "body"):
        argv = [*quick, "--train", "x.csv", "--text-column", name, "--out", name]
        assert train.main(argv) == 0
    argv = ["--input", "x.csv", "--thresholds", "0.5", "--run", "title", "body"]
    assert predict.main(argv) == 2
    one_line(capsys, "body: reads 'body'", "average runs on one text column")


@pytest.mark.parametrize("run", [[], "", [""]])
def test_no_run_is_not_the_newest_run(run):
    with pytest.raises(UserError, match="names no folder"):
        predict.load_run(run)


def test_runs_named_in_other_ways(seeds):
    texts = ["so happy"]
    wanted = predict.load_run(seeds[:2]).predict_test(texts)
    for runs in (np.array(seeds[:2]), iter(seeds[:2]), (Path(run) for run in seeds[:2])):
        assert np.array_equal(predict.load_run(runs).predict_test(texts), wanted)
    for numbers in ([], [9], [-1]):
        with pytest.raises(UserError, match="fold_numbers"):
            predict.load_run(seeds[0]).predict_test(texts, numbers)


def test_columns_without_a_name(finished, quick, capsys):
    """Excel's commas at the ends of all lines."""
    rows = [[*r, "", "7"] for r in make_rows(40)]
    write_csv(Path("x.csv"), rows, ["id", "text", *LABELS, "", ""])
    assert train.main([*quick, "--train", "x.csv", "--out", "a"]) == 0
    assert predict.main(["--run", str(finished), "--input", "x.csv"]) == 0


@pytest.mark.parametrize("cells", [["0.25", "0.5"], ["-1", "-1"]])
def test_rows_inside_a_text_with_shares_or_unknown_labels(cells, finished, capsys):
    header = ["id", "text", "joy", "fear"]
    rows = [[f"{i * 7919 + 10**12:x}0000", f"hello {i}", *cells] for i in range(20)]
    Path("x.csv").write_text(swallowed(header, rows, 5, 9))
    assert predict.main(["--run", str(finished), "--input", "x.csv"]) == 0
    assert "stand inside the text of row 7, and are lost" in capsys.readouterr().err
