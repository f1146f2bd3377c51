"""Is B better than A: scores, intervals, verdicts and refusals of tools/compare.py.

python -m pytest tests/test_compare.py
"""

import json
import shutil

import numpy as np
import pytest
from conftest import LABELS, make_rows, write_csv
from sklearn.metrics import average_precision_score, f1_score

import predict
import train
from support import files, finished
from support.process import UserError
from tools import compare
from tools.parts import difference
from tools.parts.difference import Judged


def judged(y, pred, fold, p=None) -> Judged:
    return Judged(np.arange(len(y)), fold, y, p, pred)


def test_scores_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    y, p = (rng.random((90, 4)) < 0.4).astype(float), rng.random((90, 4))
    keep = rng.random(90) < 0.7
    got = judged(y, p > 0.5, np.zeros(90, int), p).scores(keep)
    y, pred, p = y[keep], (p > 0.5)[keep], p[keep]
    by_label = f1_score(y, pred, average=None)
    means = [f1_score(y, pred, average=a) for a in ("macro", "micro")]
    assert np.allclose(got, [*means, average_precision_score(y, p, average="macro"), *by_label])


def test_jackknife_of_a_mean_is_the_textbooks_variance():
    x = np.random.default_rng(0).normal(size=50)
    without = np.array([np.delete(x, i).mean() for i in range(50)])
    assert np.isclose(difference.jackknife(np.stack([0 * without, without])), x.var(ddof=1) / 50)


def simulated(rng, rows: int, right: float, shift: float, fold: np.ndarray, y) -> Judged:
    """Verdicts right with this probability; `shift`: how far a training moves that of its fold."""
    chance = right + shift * rng.normal(size=fold.max() + 1)[fold, None]
    return judged(y, np.where(rng.random(y.shape) < chance, y, 1 - y) > 0, fold)


@pytest.mark.parametrize("shift", [0.0, 0.05])
def test_equal_sides_are_called_different_in_about_one_of_twenty(shift):
    """Also where a training moves a whole fold, which rows drawn with replacement don't show."""
    rng, fold, wrong, by_rows = np.random.default_rng(1), np.arange(500) % 5, [], []
    for _ in range(30):
        y = (rng.random((500, 3)) < 0.4).astype(float)
        a, b = (simulated(rng, 500, 0.8, shift, fold, y) for _ in "ab")
        found = difference.differ([([a], [b])], np.arange(500))
        gap = abs(found.b[0] - found.a[0])
        wrong.append(gap > found.half[0])
        block = np.arange(500) % 100
        without = np.array([difference.scores_without(run, block) for run in (a, b)])
        rows = difference.jackknife(without)
        by_rows.append(gap > 1.96 * np.sqrt(rows[0]))
    assert np.mean(wrong) <= 0.12
    if shift:
        assert np.mean(by_rows) >= 0.2  # so the folds are needed


def test_a_better_side_is_found_and_more_seeds_narrow_the_interval():
    rng, fold, half = np.random.default_rng(2), np.arange(400) % 5, []
    y = (rng.random((400, 3)) < 0.4).astype(float)
    for seeds in (1, 6):
        a = [simulated(rng, 400, 0.75, 0, fold, y) for _ in range(seeds)]
        b = [simulated(rng, 400, 0.85, 0, fold, y) for _ in range(seeds)]
        found = difference.differ([(a, b)], np.arange(400))
        half.append(found.half[0])
        assert difference.verdict(found, seeds, 400) == "B is better"
        turned = difference.differ([(b, a)], np.arange(400))
        assert difference.verdict(turned, seeds, 400) == "A is better"
    assert half[1] < 0.6 * half[0]


def test_rows_of_a_group_count_once():
    """Each row four times, as one group: the interval of a quarter of the rows."""
    rng, fold = np.random.default_rng(3), np.zeros(300, int)  # no folds: rows alone
    y = (rng.random((300, 3)) < 0.4).astype(float)
    a, b = (simulated(rng, 300, 0.8, 0, fold, y) for _ in "ab")
    one = difference.differ([([a], [b])], np.arange(300))
    a4, b4 = (judged(*(np.repeat(x, 4, 0) for x in (s.y, s.pred, s.fold))) for s in (a, b))
    four = difference.differ([([a4], [b4])], np.repeat(np.arange(300), 4))
    alone = difference.differ([([a4], [b4])], np.arange(1200))
    assert np.isclose(one.error[0], four.error[0], rtol=0.15)
    assert alone.error[0] < 0.7 * four.error[0]


@pytest.mark.parametrize(
    "gap, half, error, seeds, runs, words",
    [
        (0.03, 0.02, 0.01, np.nan, 1, "B is better"),
        (-0.03, 0.02, 0.01, np.nan, 1, "A is better"),
        (-0.005, 0.009, 0.004, np.nan, 1, "the difference is at most 0.014"),
        (0.01, 0.02, 0.01, np.nan, 1, "at least 4 seeds a side (three a side"),
        (0.01, 0.02, 0.01, 3e-4, 3, "roughly 12 seeds a side"),  # 1e-4 = seeds / 3: no other luck
        (0.01, 0.02, 0.01, 9e-4, 3, "roughly 36 seeds a side"),  # more luck than the error has
        (0.01, 0.02, 0.01, 1.5e-4, 3, "about 4000 rows are needed; more seeds don't help"),
        (0.01, 0.02, 0.01, np.nan, 0, "about 4000 rows are needed"),
    ],
)
def test_what_would_tell(gap, half, error, seeds, runs, words):
    a, b, *others = (np.array([x]) for x in (0.5, 0.5 + gap, error, half, seeds))
    assert words in difference.verdict(difference.Difference(a, b, *others), runs, 1000)


# Run folders


@pytest.fixture(scope="module")
def runs(tmp_path_factory, bert, train_csv):
    """Two seeds on the same folds, other folds, a hold-out, and own dev rows, of a second each."""
    folder = tmp_path_factory.mktemp("compared")
    dev = write_csv(folder / "dev.csv", make_rows(40, seed=5))
    how = {
        "a": ["--seed", "1", "--split-seed", "7"],
        "b": ["--seed", "2", "--split-seed", "7"],
        "c": ["--seed", "3"],
        "half": ["--folds", "1"],
        "half2": ["--folds", "1", "--seed", "9"],
        "dev": ["--folds", "1", "--valid", str(dev)],
        "dev2": ["--folds", "1", "--valid", str(dev), "--seed", "9"],
    }
    for name, flags in how.items():
        argv = ["--model", str(bert), "--train", str(train_csv), "--folds", "3", "--epochs", "2"]
        argv += ["--lr", "1e-2", "--precision", "fp32", "--out", str(folder / name), *flags]
        assert train.main(argv) == 0
    return folder


@pytest.mark.parametrize("name", ["a", "half", "dev"])
def test_the_table_shows_each_runs_own_score(runs, name, capsys):
    assert compare.main([str(runs / name), str(runs / name), "--plot", str(runs / "p.png")]) == 0
    out = capsys.readouterr().out
    score = json.loads((runs / name / "metrics.json").read_text())["macro_f1_cross_fitted"]
    assert f"| {score:.4f} | {score:.4f} | +0.0000 | " in out and "can't be told apart" in out
    assert ("one held-out set" in out) == (name != "a")
    assert (runs / "p.png").read_bytes().startswith(b"\x89PNG")


def test_parts_of_a_hold_out_are_those_of_each_run(runs, capsys):
    """Of another seed: the score of compare.py is that of the run's own metrics.json."""
    names = ("dev", "dev2")
    assert compare.main([str(runs / name) for name in names]) == 0
    values = [json.loads((runs / name / "metrics.json").read_text()) for name in names]
    a, b = (x["macro_f1_cross_fitted"] for x in values)
    assert a != b and f"| {a:.4f} | {b:.4f} | " in capsys.readouterr().out


def test_hold_outs_of_several_seeds_are_paired_by_their_rows(runs, capsys):
    a, half, half2 = (str(runs / name) for name in ("a", "half", "half2"))
    pairs, *_ = compare.read_runs([half, half2, a], [half2, a, half], [])
    assert [list(map(len, pair)) for pair in pairs] == [[1, 1]] * 3
    assert not np.array_equal(pairs[0].rows, pairs[1].rows)
    assert compare.main([half, half2]) == 2 and compare.main([a, half]) == 2
    err = capsys.readouterr().err
    assert err.count("no run of the other side has its folds - train with the same") == 2


def test_seeds_are_paired_by_folds(runs, capsys):
    a, b, c = (str(runs / name) for name in "abc")
    pairs, groups, names = compare.read_runs([a, c], [b, c], [])
    assert [list(map(len, pair)) for pair in pairs] == [[1, 1], [1, 1]] and names == LABELS
    assert np.array_equal(pairs[1].a[0].p, pairs[1].b[0].p) and len(groups) == 120
    assert compare.main(["--a", a, c, "--b", b, c]) == 0
    assert capsys.readouterr().out.startswith(f"A: {a}, {c}\nB: {b}, {c}\n")


def other_labels(run, data):
    env = json.loads((run / "env.json").read_text())
    env["same"]["settings.labels"] = ["joy"]
    del env["sha256"]
    files.write_json(run / "env.json", env, seal=True)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda run, data: (run / "DONE.json").unlink(), "is not finished, or damaged"),
        (
            lambda run, data: (run / "oof.csv").write_text("id,fold\n"),
            "is not finished, or damaged",
        ),
        (lambda run, data: shutil.rmtree(run), "is no run - name the folder"),
        (other_labels, "is not finished, or damaged"),
    ],
)
def test_a_run_that_cannot_be_compared(runs, tmp_path, change, words, capsys):
    run = tmp_path / "copy"
    shutil.copytree(runs / "b", run)
    change(run, None)
    assert compare.main([str(runs / "a"), str(run)]) == 2
    err = capsys.readouterr().err
    assert words in err and err.startswith("error: ") and err.count("\n") == 1


@pytest.mark.parametrize(
    "old, new",
    [
        ("00000", "00001"),
        ("fold", "fold "),
        ("id,fold", "id,part"),
        (",0.", ",7."),
        (",1,0", ",x,0"),
    ],
)
def test_oof_rewritten_by_hand(runs, tmp_path, old, new, capsys):
    """With a DONE.json that fits it: other ids, columns, probabilities or folds are refused."""
    shutil.copytree(runs / "b", tmp_path / "b")
    rewrite_oof(tmp_path / "b", lambda text: text.replace(old, new))
    code = compare.main([str(runs / "a"), str(tmp_path / "b")])
    err = capsys.readouterr().err
    words = "is not what train.py wrote" if old != "00000" else "no run of the other side has its"
    assert (code, err.count("\n")) == (2, 1) and words in err or old == "fold"


def test_a_side_names_each_run_once(runs, capsys):
    a, b = str(runs / "a"), str(runs / "b")
    assert compare.main(["--a", a, a, "--b", b]) == 2
    assert "equals another run of its side - take another --seed" in capsys.readouterr().err


def test_runs_on_other_folds_rows_or_labels(runs, tmp_path, bert, train_csv, capsys):
    a = str(runs / "a")
    assert compare.main([a, str(runs / "c")]) == 2
    assert "no run of the other side has its folds" in capsys.readouterr().err
    assert compare.main([a, str(runs / "dev")]) == 2
    assert "valid_sha256 is" in capsys.readouterr().err
    argv = ["--model", str(bert), "--folds", "2", "--epochs", "1", "--out", str(tmp_path / "joy")]
    assert train.main([*argv, "--train", str(train_csv), "--labels", "joy"]) == 0
    capsys.readouterr()
    assert compare.main([a, str(tmp_path / "joy")]) == 2
    assert "settings.labels is ['joy']" in capsys.readouterr().err


def rewrite_oof(run, edit) -> None:
    """Its oof.csv edited, with a DONE.json that fits it."""
    (run / "oof.csv").write_text(edit((run / "oof.csv").read_text()))
    done = json.loads((run / "DONE.json").read_text())
    done["files"] |= files.describe(run, ["oof.csv"])
    del done["sha256"]
    files.write_json(run / "DONE.json", done, seal=True)


def older(text: str) -> str:
    """oof.csv as older code wrote it: id, fold and probabilities alone."""
    lines = [line.split(",")[: 2 + len(LABELS)] for line in text.splitlines()]
    return "".join(",".join(cells) + "\n" for cells in lines)


@pytest.mark.parametrize("names", [("a", "b"), ("dev", "dev2"), ("half", "half2")])
def test_the_training_file_is_not_needed(names, runs, tmp_path, train_csv, capsys, monkeypatch):
    """The labels and groups of oof.csv give what the training file gives for runs of older code."""
    for name in names:
        rewrite_oof(shutil.copytree(runs / name, tmp_path / name), older)
    code = compare.main([str(tmp_path / name) for name in names])
    table = capsys.readouterr()
    monkeypatch.setattr(finished, "read_data", None)
    assert compare.main([str(runs / name) for name in names]) == code
    assert capsys.readouterr().out.splitlines()[2:] == table.out.splitlines()[2:]
    assert code == (2 if names[0] == "half" else 0)  # other seeds hold out other rows


def test_the_training_file_of_an_older_run_may_have_moved(runs, tmp_path, train_csv, capsys):
    moved, other = tmp_path / "moved.csv", write_csv(tmp_path / "other.csv", make_rows(120, seed=9))
    for name in ("a", "b"):
        rewrite_oof(shutil.copytree(runs / name, tmp_path / name), older)
        config = json.loads((tmp_path / name / "config.json").read_text())
    sides = [str(tmp_path / "a")], [str(tmp_path / "b")]
    shutil.copy(train_csv, moved)
    pairs, *_ = compare.read_runs(*sides, [str(moved)])
    assert config["train"] == str(train_csv) and len(pairs[0].a[0].rows) == 120
    with pytest.raises(UserError, match="not what .* was trained on - give its new path with"):
        compare.read_runs(*sides, [str(other)])
    with pytest.raises(UserError, match="no such file"):
        compare.read_runs(*sides, [str(tmp_path / "none.csv")])


@pytest.mark.parametrize(
    "argv",
    [[], ["x"], ["x", "y", "z"], ["--a", "x"], ["x", "y", "--a", "z"], ["x", "y", "--tes", "z"]],
)
def test_a_command_that_names_too_little_or_too_much(argv, capsys):
    assert compare.main(argv) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_two_files_of_verdicts(finished, tmp_path, test_csv, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, th in (("a", "0.5"), ("b", "0.999")):
        argv = ["--run", str(finished), "--input", str(test_csv), "--thresholds", th]
        argv += ["--output", f"{name}.csv", "--probabilities", "p.csv", "--precision", "fp32"]
        assert predict.main(argv) == 0
    printed = capsys.readouterr().out
    assert compare.main(["--test", str(test_csv), "a.csv", "b.csv"]) == 0
    out = capsys.readouterr().out
    macro = printed.split("macro_f1 ")[1][:6]
    assert f"macro-F1                | {macro} | " in out and "average precision" not in out
    assert "A is better" in out
    assert compare.main(["--test", str(test_csv), "a.csv", "p.csv"]) == 2
    assert "p.csv:2: a verdict is 0 or 1 - give the file of --output" in capsys.readouterr().err
    lines = (tmp_path / "a.csv").read_text().splitlines(keepends=True)
    (tmp_path / "short.csv").write_text("".join(lines[:-1]))
    assert compare.main(["--test", str(test_csv), "a.csv", "short.csv"]) == 2
    assert "short.csv: needs id, the labels of a.csv" in capsys.readouterr().err
    (tmp_path / "short.csv").write_text(lines[0])
    assert compare.main(["--test", str(test_csv), "short.csv", "a.csv"]) == 2
    assert "short.csv: needs id" in capsys.readouterr().err
    few = write_csv(tmp_path / "few.csv", make_rows(40, seed=1)[:10])
    (tmp_path / "few_a.csv").write_text("".join(lines[:11]))
    assert compare.main(["--test", str(few), "few_a.csv", "few_a.csv"]) == 2
    assert "10 distinct held-out texts or groups: at least 20" in capsys.readouterr().err
