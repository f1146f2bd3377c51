"""Many ideas against one baseline, the winner confirmed (tools/sweep.py); tools/leaderboard.py.

python -m pytest tests/test_sweep.py

Most trainings run in this process. The sweep of `swept` asks in processes which runs there will be,
and trains its patched code in one.
"""

import contextlib
import csv
import io
import json
import os
import re
import shutil
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
from conftest import make_rows, outputs, write_csv
from scipy.stats import t

import train
from config import HERE
from support.process import Interrupted, Signals, UserError
from tools import compare, leaderboard, sweep
from tools.parts import identities, plan

IDEAS = """
# the baseline's rate is far too low
fast: --lr 5e-3   # so this wins
recipes/multi_sample_dropout.patch
"""
real_training, real_ask = sweep.run_training, plan.ask_identities


class Runner:
    """Stands for `sweep.run_training`: the plain code trains in this process. Counts the runs."""

    def __init__(self, stop: bool = False):
        self.runs = []
        self.stop = stop  # the first training, in its second epoch

    def __call__(self, argv: list[str], log: Path) -> int:
        self.runs.append(argv[-1])
        model = Path(argv[0]).with_name("model.py").read_text()
        if model != (HERE / "model.py").read_text():
            return real_training(argv, log)
        with contextlib.ExitStack() as stack:
            f = stack.enter_context(open(log, "a"))
            stack.enter_context(contextlib.redirect_stdout(f))
            stack.enter_context(contextlib.redirect_stderr(f))
            if self.stop:
                patch = stack.enter_context(pytest.MonkeyPatch.context())
                patch.setattr(train, "train_loader", self.stopping(train.train_loader))
            code = train.main(argv[1:])
        if code == 143:
            raise Interrupted(143)
        return code

    def stopping(self, loader):
        steps = []

        def stopped(*args):
            for step in loader(*args):
                steps.append(step)
                if len(steps) == 6:  # the second of epoch 2
                    os.kill(os.getpid(), signal.SIGTERM)
                yield step

        self.stop = False
        return stopped


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with my.csv and ideas.txt."""
    folder = tmp_path_factory.mktemp("sweep")
    write_csv(folder / "my.csv", make_rows(64))
    (folder / "ideas.txt").write_text(IDEAS)
    return folder


@pytest.fixture(scope="module")
def flags(bert) -> list[str]:
    argv = ["--model", str(bert), "--folds", "2", "--epochs", "2", "--batch-size", "8"]
    return [*argv, "--lr", "1e-5", "--keep", "last", "--precision", "fp32", "--device", "cpu"]


@pytest.fixture(scope="module")
def swept(place, flags) -> tuple[Path, str]:
    """A whole sweep: the folder of its runs, and what it printed."""
    runs = place / "runs"
    argv = [str(place / "my.csv"), str(runs), str(place / "ideas.txt"), "--seeds", "1"]
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(sweep, "run_training", Runner())
        assert sweep.main([*argv, "--confirm", "1", *flags]) == 0
    return runs, printed.getvalue()


def ask_here(first: plan.Recipe, commands: list[list[str]]) -> list:
    """Stands for `plan.ask_identities`: of the plain code, without a process."""
    rows, weights, answers = [], {}, []
    for command in commands:
        try:
            answers.append(identities.identity_of(command, rows, weights))
        except UserError as e:
            answers.append(str(e))
    return answers


@pytest.fixture
def go(place, flags, tmp_path, monkeypatch):
    """go(ideas, *flags): a sweep into tmp_path/runs; its exit code and the runs it trained."""
    monkeypatch.setattr(plan, "ask_identities", ask_here)

    def start(ideas: str, *more: str, runner=None, data=None) -> tuple[int, list[str]]:
        runner = runner or Runner()
        monkeypatch.setattr(sweep, "run_training", runner)
        (tmp_path / "ideas.txt").write_text(ideas)
        argv = [str(data or place / "my.csv"), str(tmp_path / "runs"), str(tmp_path / "ideas.txt")]
        code = sweep.main([*argv, "--seeds", "1", "--confirm", "0", *flags, *more])
        return code, [Path(out).name for out in runner.runs]

    return start


def f1(run: Path) -> float:
    return json.loads((run / "metrics.json").read_text())["macro_f1_cross_fitted"]


def test_the_table_is_that_of_compare(swept, capsys):
    runs, printed = swept
    ideas = [str(runs / "fast-0"), str(runs / "multi_sample_dropout-0")]
    assert compare.main([str(runs / "baseline-0"), "--against", *ideas]) == 0
    rows = re.findall(r"\|    1 \|.*", capsys.readouterr().out)
    assert len(rows) == 3 and all(row in printed for row in rows)
    assert re.search(rf"^fast .* {f1(runs / 'fast-0'):.4f}", printed, re.M)
    assert "fast: lr: 1e-05 -> 0.005\n" in printed
    assert "multi_sample_dropout: model.py\n" in printed


def test_a_row_for_each_run_as_it_finishes(swept):
    runs, printed = swept
    rows = [line for line in printed.splitlines() if re.match(r" *\d of \d \|", line)]
    names = ["baseline-0", "fast-0", "multi_sample_dropout-0", "baseline-1000", "fast-1000"]
    assert len(rows) == len(names)
    for row, name in zip(rows, names, strict=True):
        recipe, seed = name.split("-")
        seconds = json.loads((runs / name / "metrics.json").read_text())["seconds"]
        words = f"{recipe:<20} | seed {seed:>4} | macro-F1 {f1(runs / name):.4f}"
        assert row.endswith(f" | {words} | {seconds / 60:.1f} minutes")
        assert (runs / f"{name}.log").read_text().startswith("$ python ") or recipe != names[2]
        assert not list((runs / name).glob("fold_*/*.safetensors"))
    assert "minutes a run: baseline " in printed


def test_the_winner_is_confirmed_on_new_seeds_and_folds(swept):
    runs, printed = swept
    found, again = (f1(runs / f"fast-{s}") - f1(runs / f"baseline-{s}") for s in (0, 1000))
    assert f"as found {found:+.4f}, as confirmed {again:+.4f} [" in printed
    assert printed.count("winner's curse") == 1 and "the best of 2 ideas looks better" in printed
    assert not (runs / "multi_sample_dropout-1000").exists()
    folds = {}
    for name in ("baseline-0", "fast-0", "baseline-1000", "fast-1000"):
        same = json.loads((runs / name / "env.json").read_text())["same"]
        assert same["settings.seed"] == int(name.split("-")[1])
        folds[name] = [line.split(",")[1] for line in (runs / name / "oof.csv").open()]
    assert folds["baseline-0"] == folds["fast-0"] != folds["fast-1000"] == folds["baseline-1000"]


def test_nothing_is_confirmed_where_no_idea_beats_the_baseline(go, capsys):
    code, trained = go("slow: --lr 1e-6\n", "--lr", "5e-3", "--confirm", "1")
    assert (code, trained) == (0, ["baseline-0", "slow-0"])
    out, err = capsys.readouterr()
    assert "no idea scores higher than the baseline" in out and not err


def test_a_stopped_sweep_goes_on(go, swept, tmp_path, capsys):
    """It is stopped in the second epoch of a run: no other is trained again, no byte differs."""
    runs, _ = swept
    shutil.copytree(runs / "baseline-0", tmp_path / "runs/baseline-0")
    code, trained = go("fast: --lr 5e-3\n", runner=Runner(stop=True))
    assert (code, trained) == (143, ["fast-0"])
    assert "stopped: by SIGTERM" in capsys.readouterr().err
    code, trained = go("fast: --lr 5e-3\n")
    assert (code, trained) == (0, ["fast-0"])
    assert "resumes at epoch 2, step 2" in (tmp_path / "runs/fast-0.log").read_text()
    assert outputs(tmp_path / "runs/fast-0") == outputs(runs / "fast-0")
    code, trained = go("fast: --lr 5e-3\n", "--jobs", "1", "--threads", "1")
    assert (code, trained) == (0, [])


def test_a_signal_stops_the_training_first(tmp_path):
    script = "import signal, sys, time\n"
    script += "signal.signal(signal.SIGTERM, lambda *_: (print('saved'), sys.exit(143)))\n"
    script += "print('ready', flush=True)\ntime.sleep(60)\n"
    (tmp_path / "train.py").write_text(script)
    log = tmp_path / "log"

    def stop():
        while not (log.exists() and "ready" in log.read_text()):
            pass
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted), Signals():
        threading.Thread(target=stop, daemon=True).start()
        real_training([str(tmp_path / "train.py")], log)
    assert log.read_text().splitlines()[-1] == "saved"


def test_an_idea_that_fails_is_left_out(go, capsys):
    plain = Runner()

    def runner(argv, log):
        if "broken" not in argv[-1]:
            return plain(argv, log)
        log.write_text("error: out of memory\n")
        return 1

    runner.runs = plain.runs
    code, trained = go("fast: --lr 5e-3\nbroken: --batch-size 9\n", "--seeds", "2", runner=runner)
    assert (code, trained) == (1, ["baseline-0", "fast-0", "baseline-1", "fast-1"])
    out, err = capsys.readouterr()
    assert "| seed    0 | failed: out of memory (exit code 1, see " in out
    assert "corrected for 1 idea" in out
    assert err.startswith("not trained to the end: broken: out of memory")


@pytest.mark.parametrize("code, tries", [(1, 1), (0, 3)])
def test_without_its_baseline_a_sweep_ends(code, tries, go, capsys):
    """0: train.py leaves folds to another process, again and again."""

    def runner(argv, log):
        runner.runs.append(argv[-1])
        log.write_text("error: out of memory\n")
        return code

    runner.runs = []
    assert go("fast: --lr 5e-3\n", runner=runner) == (1, ["baseline-0"] * tries)
    said = f"baseline-0: the baseline fails: out of memory (exit code {code}, "
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "change, words",
    [
        ("flags", "(settings.dropout: 0.3 -> 0.2)"),
        ("data", "(data_sha256: "),
        ("code", "(code.metrics.py changed)"),
        ("damage", "oof.csv: missing or damaged - remove "),
    ],
)
def test_a_folder_of_other_runs_is_refused(change, words, swept, go, tmp_path, capsys, monkeypatch):
    shutil.copytree(swept[0] / "baseline-0", tmp_path / "runs/baseline-0")
    data = None
    if change == "data":
        data = write_csv(tmp_path / "other.csv", make_rows(64, seed=5))
    if change == "code":
        code = plan.copy_code(tmp_path / "code")
        with open(code / "metrics.py", "a") as f:
            f.write("# another line\n")
        monkeypatch.setattr(plan, "HERE", code)
        monkeypatch.setattr(plan, "ask_identities", real_ask)
    if change == "damage":
        (tmp_path / "runs/baseline-0/oof.csv").write_text("id\n")
    flags = ["--dropout", "0.2"] if change == "flags" else []
    assert go("fast: --lr 5e-3\n", *flags, data=data) == (2, [])
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1
    assert words in err and "baseline-0" in err


def test_two_sweeps_in_one_folder(go, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sweep, "prepare", lambda *_: None)
    (tmp_path / "runs").mkdir()
    with sweep.locked(tmp_path / "runs/lock"):
        assert go("fast: --lr 5e-3\n") == (2, [])
    assert "another sweep is at work on it" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "ideas.txt: holds no idea"),
        ("# nothing\n", "ideas.txt: holds no idea"),
        ("a: --lr 1e-4\na: --lr 2e-4\n", "ideas.txt:2: the name a is that of line 1"),
        ("--lr 1e-4\n\n--lr 1e-4\n", "ideas.txt:3: the name lr-1e-4 is that of line 1"),
        ("Baseline: --lr 1e-4\n", "ideas.txt:1: the name Baseline is that of the runs without"),
        ("a: --lrr 1e-4\n", "ideas.txt:1: unrecognized arguments: --lrr 1e-4"),
        ("a: --lr 2\n", "ideas.txt:1: --lr must lie in"),
        ("a: --folds 3\n", "ideas.txt:1: --folds can't be an idea"),
        ("a: --split_seed=3\n", "ideas.txt:1: --split-seed can't be an idea"),
        ("a: --no-soft-labels\n", "ideas.txt:1: --soft-labels can't be an idea"),
        ("a:\n", "ideas.txt:1: a changes nothing"),
        ("a/b: --lr 1e-4\n", "ideas.txt:1: 'a/b' can't name a folder"),
        ('a: --model "x\n', "ideas.txt:1: No closing quotation"),
        ("x: none.patch --lr 1e-4\n", "ideas.txt:1: none.patch: no such patch"),
        ("x: {misfit}\n", "ideas.txt:1: {misfit}: does not fit the code as it is (error: "),
    ],
)
def test_a_line_that_is_no_idea(text, words, go, tmp_path, capsys):
    misfit = tmp_path / "misfit.patch"
    misfit.write_text("--- a/train.py\n+++ b/train.py\n@@ -1 +1 @@\n-not there\n+new\n")
    assert go(text.format(misfit=misfit)) == (2, [])
    err = capsys.readouterr().err
    assert words.format(misfit=misfit) in err and err.startswith("error: ")
    assert err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "text, words",
    [
        ("a: --lr 1e-4\nb: --dropout 0.3\n", "ideas.txt:2: b is the same as the baseline"),
        ("a: --lr 1e-4\nb: --lr 0.0001\n", "ideas.txt:2: b is the same as a (ideas.txt:1)"),
        ("a: --lr 1e-4\nb: --max-length 129\n", "ideas.txt:2: --max-length 129: "),
    ],
)
def test_an_idea_that_only_the_data_and_the_encoder_refuse(text, words, go, tmp_path, capsys):
    """Also the same settings in other words, or a default."""
    assert go(text) == (2, [])
    err = capsys.readouterr().err.replace(f"{tmp_path}/", "")
    assert words in err and err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_more_epochs_are_more_tries(go, capsys, monkeypatch):
    monkeypatch.setattr(sweep, "search", lambda *_: None)
    for keep, warned in ("best", True), ("last", False):
        assert go("a: --epochs 3\n", "--keep", keep) == (0, [])
        err = capsys.readouterr().err
        assert ("warning: recipes differ in epochs (2, 3): " in err) == warned


def test_patches_and_flags_of_a_line(tmp_path):
    path = tmp_path / "ideas.txt"
    path.write_text("recipes/r_drop.patch recipes/layer_rates.patch --lr 1e-4 # both\nb: --lr 1\n")
    both, other = plan.read_ideas(str(path))
    assert both.name == "r_drop-layer_rates-lr-1e-4" and both.flags == ["--lr", "1e-4"]
    assert [p.name for p in both.patches] == ["r_drop.patch", "layer_rates.patch"]
    assert (other.name, other.patches, other.flags) == ("b", (), ["--lr", "1"])
    code = plan.copy_code(tmp_path / "code", *both.patches)
    for name in ("model.py", "train.py"):  # one each
        assert (code / name).read_text() != (HERE / name).read_text()
    with pytest.raises(UserError, match="does not fit"):
        plan.copy_code(tmp_path / "again", both.patches[0], both.patches[0])


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--folds", "3", "a", "b", "c"], "--folds: name CSV, RUNS and IDEAS before the flags"),
        (["a", "b", "c", "--lrr", "3"], "unrecognized arguments: --lrr 3"),
        (["a", "b", "c", "--seed", "3"], "--seed: not for a sweep"),
        (["a", "b", "c", "--seeds", "0"], "--seeds must lie in 1 ... 999"),
        (["a", "b", "c", "--confirm", "-1"], "--confirm must lie in 0 ... 999"),
        (["a", "b", "/none"], "/none: no such file"),
    ],
)
def test_a_command_line_that_is_wrong(argv, words, capsys):
    assert sweep.main(argv) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {words}") and err.count("\n") == 1


# The leaderboard


@pytest.fixture
def board(swept, finished, tmp_path) -> Path:
    """A sweep, and beside it a run on other data, one unfinished, a damaged one, one renamed."""
    runs = tmp_path / "runs"
    for name in ("baseline-0", "baseline-1000", "fast-0", "fast-1000", "multi_sample_dropout-0"):
        shutil.copytree(swept[0] / name, runs / "ideas" / name)
    for name in ("other", "unfinished", "damaged", "other.old1"):
        shutil.copytree(finished, runs / name, ignore=shutil.ignore_patterns("fold_*"))
    (runs / "unfinished/DONE.json").unlink()
    (runs / "damaged/metrics.json").write_text("{}")
    return runs


LEFT_OUT = r"left out, 2 of 8: \S+/damaged \(damaged\), \S+/unfinished \(unfinished\)\n"


def mean(runs: Path, name: str, key: str) -> float:
    return np.mean([json.loads((p / "metrics.json").read_text())[key] for p in runs.glob(name)])


def test_the_leaderboard_as_csv(board, capsys):
    assert leaderboard.main([str(board), "--csv"]) == 0
    out, err = capsys.readouterr()
    assert re.fullmatch(LEFT_OUT, err)
    rows = list(csv.DictReader(out.splitlines()))
    assert len({row["data"] for row in rows}) == 2
    ideas = [row for row in rows if "ideas/" in row["recipe"]]
    names = [Path(row["recipe"]).name for row in ideas]
    assert sorted(names) == ["baseline", "fast", "multi_sample_dropout-0"]
    assert [row["runs"] for row in ideas if "fast" in row["recipe"]] == ["2"]
    keys = {"macro-F1": "macro_f1", "micro-F1": "micro_f1", "exact match": "exact_match"}
    for row in ideas:
        folders = f"ideas/{Path(row['recipe']).name}*"
        for column, key in keys.items():
            assert float(row[column]) == mean(board, folders, f"{key}_cross_fitted")
        assert float(row["minutes"]) == pytest.approx(mean(board, folders, "seconds") / 60)
    scores = [float(row["macro-F1"]) for row in ideas]
    assert scores == sorted(scores, reverse=True)
    by_name = dict(zip(names, ideas, strict=True))
    assert {name: row["lr"] for name, row in by_name.items()} == {
        "baseline": "1e-05",
        "fast": "0.005",
        "multi_sample_dropout-0": "1e-05",
    }
    assert by_name["multi_sample_dropout-0"]["changed"] == "model.py"
    assert by_name["fast"]["changed"] == "" and "dropout" not in by_name["fast"]


def test_the_intervals_of_the_leaderboard(board, capsys):
    """Of one run its own; of two, rows and trainings together, with few degrees of freedom."""
    leaderboard.main([str(board), "--csv"])
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    (one,) = (row for row in rows if row["recipe"].endswith("/other"))
    values = json.loads((board / "other/metrics.json").read_text())
    wanted = values["macro_f1_cross_fitted_ci95"]
    assert [float(one["low"]), float(one["high"])] == wanted
    by_label = [row["average_precision"] for row in values["per_label"].values()]
    assert float(one["mean AP"]) == pytest.approx(np.mean(by_label))
    (two,) = (row for row in rows if row["recipe"].endswith("/fast"))
    runs = [json.loads((p / "metrics.json").read_text()) for p in board.glob("ideas/fast-*")]
    halves = [np.diff(run["macro_f1_cross_fitted_ci95"])[0] / 2 for run in runs]
    by_rows = np.mean(np.square(halves)) / 1.96**2
    scores = [run["macro_f1_cross_fitted"] for run in runs]
    by_trainings = np.var(scores, ddof=1) / 2
    freedom = (by_rows + by_trainings) ** 2 / by_trainings**2
    half = t.ppf(0.975, freedom) * np.sqrt(by_rows + by_trainings)
    low, high = max(0, np.mean(scores) - half), min(1, np.mean(scores) + half)
    assert [float(two["low"]), float(two["high"])] == pytest.approx([low, high])


@pytest.mark.parametrize("markdown", [True, False])
def test_the_leaderboard_for_readers(markdown, board, capsys):
    assert leaderboard.main([str(board), *["--markdown"] * markdown]) == 0
    out, err = capsys.readouterr()
    assert re.fullmatch(LEFT_OUT, err)
    first, second = out.strip().split("labels (")[1:]
    lines = [line for part in (first, second) for line in part.splitlines() if " | " in line]
    table = [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines]
    (fast,) = (dict(zip(table[0], row, strict=True)) for row in table if "fast" in row[0])
    assert fast["macro-F1"] == f"{mean(board, 'ideas/fast-*', 'macro_f1_cross_fitted'):.4f}"
    assert fast["runs"] == "2" and re.fullmatch(r"0\.\d{4} to \d\.\d{4}", fast["95 % interval"])
    assert ("| --- | ---: |" in out) == markdown
    assert len(lines) == 4 + 2 + 2 * markdown


def test_a_folder_without_runs(tmp_path, capsys):
    assert leaderboard.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}: holds no runs - ")


def test_a_folder_without_a_finished_run(board, capsys):
    for path in board.rglob("DONE.json"):
        path.unlink()
    assert leaderboard.main([str(board)]) == 0
    assert capsys.readouterr().out == f"{board}: no run is finished\n"
