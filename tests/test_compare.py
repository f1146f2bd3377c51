"""Is B better than A: scores, intervals, verdicts and refusals of tools/compare.py.

python -m pytest tests/test_compare.py
"""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import LABELS, make_rows, write_csv
from scipy.stats import t
from sklearn.metrics import average_precision_score, f1_score

import metrics
import predict
import train
from data import OutOfFold
from support import files, finished
from support.process import UserError
from tools import compare
from tools.parts import difference, verdict
from tools.parts.difference import Judged


def judged(y, pred, fold, p=None) -> Judged:
    return Judged(np.arange(len(y)), fold, y, p, pred)


def out_of_fold(rng, y, fold, signal=1.0, by_fold=0.0) -> OutOfFold:
    """A run made up: scores that know the labels, and luck by row and by fold."""
    luck = by_fold * rng.standard_normal((fold.max() + 1, y.shape[1]))[fold]
    z = signal * (2 * y - 1) + rng.standard_normal(y.shape) + luck
    return OutOfFold(np.arange(len(y)), fold, y, (1 / (1 + np.exp(-1.5 * z))).astype(np.float32))


def labels(rng, rows: int, share=(0.4, 0.4, 0.4)) -> np.ndarray:
    return (rng.random((rows, len(share))) < share).astype(float)


def times_of(rows: np.ndarray, n: int) -> np.ndarray:
    return np.bincount(rows, minlength=n)[None].astype(np.float32)


# Scores


@pytest.mark.parametrize("rows", ["all", "some", "repeated"])
def test_scores_are_those_of_scikit_learn(rows):
    rng = np.random.default_rng(0)
    y, p = labels(rng, 90, (0.4, 0.1, 0.7, 0.5)), rng.random((90, 4)).round(1)  # with ties
    chosen = {"all": np.arange(90), "some": np.flatnonzero(rng.random(90) < 0.7)}
    chosen["repeated"] = rng.integers(0, 90, 90)
    take = chosen[rows]
    (got,) = judged(y, p > 0.5, np.zeros(90, int), p).scores(times_of(take, 90))
    y, pred, p = y[take], (p > 0.5)[take], p[take]
    by_label = f1_score(y, pred, average=None)
    means = [f1_score(y, pred, average=a) for a in ("macro", "micro")]
    assert np.allclose(got, [*means, average_precision_score(y, p, average="macro"), *by_label])


def test_unknown_cells_are_left_out():
    rng = np.random.default_rng(1)
    y, p = labels(rng, 80), rng.random((80, 3))
    y[rng.random(y.shape) < 0.3] = np.nan
    y = np.hstack([y, np.full((80, 1), np.nan)])  # and a label that no row knows
    p = np.hstack([p, p[:, :1]])
    (got,) = judged(y, p > 0.5, np.zeros(80, int), p).scores(np.ones((1, 80), np.float32))
    for j in range(3):
        known = ~np.isnan(y[:, j])
        assert np.isclose(got[3 + j], f1_score(y[known, j], p[known, j] > 0.5))
    ap = [average_precision_score(y[k, j], p[k, j]) for j, k in enumerate((~np.isnan(y[:, :3])).T)]
    assert np.isclose(got[2], np.mean(ap)) and np.isclose(got[0], got[3:6].mean())


def test_each_draw_chooses_thresholds_again():
    rng = np.random.default_rng(2)
    y, fold = labels(rng, 200), np.arange(200) % 5
    run = difference.judge(out_of_fold(rng, y, fold), np.arange(200))
    take = rng.integers(0, 200, 200)
    (got,) = run.scores_chosen_again(times_of(take, 200))
    take = np.sort(take)
    pred = metrics.cross_fit(y[take], run.p[take], fold[take])
    assert np.isclose(got[0], f1_score(y[take], pred, average="macro"))
    assert got[0] != run.scores(times_of(take, 200))[0, 0]


def test_a_label_without_both_classes_is_not_ranked():
    y = np.array([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    p = np.array([[0.9, 0.1], [0.2, 0.3], [0.8, 0.2]])
    run = judged(y, p > 0.5, np.zeros(3, int), p)
    assert run.average_precision(np.ones((1, 3)))[0] == 1.0
    assert np.isnan(run.average_precision(np.array([[1.0, 0.0, 1.0]]))[0])


# Intervals


def loop(a: list, b: list, groups) -> tuple[np.ndarray, np.ndarray]:
    """B - A and its standard error in macro-F1, by plain loops over runs on one set of folds."""
    f1 = lambda y, pred: np.mean([f1_score(y[:, j], pred[:, j]) for j in range(y.shape[1])])  # noqa: E731
    y, fold = a[0].y, a[0].fold
    pred = {id(r): metrics.cross_fit(y, r.p, fold) for r in (*a, *b)}
    mean = lambda side, score: np.mean([score(r) for r in side])  # noqa: E731
    gap = lambda score: mean(b, score) - mean(a, score)  # noqa: E731
    own = lambda rows: lambda r: f1(y[rows], pred[id(r)][rows])  # noqa: E731
    again, kept, each = [], [], {id(r): [] for r in (*a, *b)}
    names = np.unique(groups)
    rng = np.random.default_rng(0)
    for drawn in rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=50):
        rows = np.concatenate(
            [np.repeat(np.flatnonzero(groups == n), k) for n, k in zip(names, drawn, strict=True)]
        )
        new = {
            id(r): f1(y[rows], metrics.cross_fit(y[rows], r.p[rows], fold[rows])) for r in (*a, *b)
        }
        again.append(gap(lambda r, new=new: new[id(r)]))
        kept.append(gap(own(rows)))
        for key, value in new.items():
            each[key].append(value)
    by_rows = np.var(again, ddof=1)
    views = []
    K = fold.max() + 1
    if K > 1:
        without = [gap(own(np.flatnonzero(fold != k))) for k in range(K)]
        views.append(((K - 1) * np.var(without) - np.var(kept, ddof=1), K - 1))
    degrees = len(a) + len(b) - 2
    if degrees:
        excess = 0.0
        for side in (a, b):
            of_all = np.array([own(np.arange(len(y)))(r) for r in side])
            of_draws = np.array([each[id(r)] for r in side])
            excess += ((of_all - of_all.mean()) ** 2).sum()
            excess -= (of_draws - of_draws.mean(0)).var(1, ddof=1).sum()
        views.append((excess / degrees * (1 / len(a) + 1 / len(b)), degrees))
    beyond, freedom = 0.0, 0
    if views:
        freedom = sum(d for _, d in views) + 1
        guess = len(names) / K / 800 * by_rows
        beyond = max(0.0, (sum(v * d for v, d in views) + guess) / freedom)
    total = by_rows + beyond
    degrees = total**2 / (by_rows**2 / 49 + beyond * total / max(1, freedom))
    error = np.sqrt(total)
    return gap(own(np.arange(len(y)))), t.ppf(0.975, degrees) * error


@pytest.mark.parametrize("folds, runs", [(5, (1, 1)), (5, (3, 2)), (1, (1, 1)), (1, (2, 3))])
@pytest.mark.parametrize("groups", [0, 25])
def test_the_interval_is_that_of_plain_loops(folds, runs, groups):
    rng = np.random.default_rng(3)
    y = labels(rng, 150)
    group = rng.integers(0, groups, 150) if groups else np.arange(150)
    fold = group % folds
    a, b = ([out_of_fold(rng, y, fold, by_fold=0.5) for _ in range(k)] for k in runs)
    if folds == 1:  # thresholds at 0.5, so that loops need no parts
        make = lambda r: Judged(r.rows, r.fold, y, r.p, r.p >= 0.5)  # noqa: E731
        found = difference.differ([([*map(make, a)], [*map(make, b)])], group)
        real = metrics.cross_fit
        metrics.cross_fit = lambda y, p, fold: p >= 0.5
        try:
            expected = loop(a, b, group)
        finally:
            metrics.cross_fit = real
    else:
        found = difference.differ([(a, b)], group)
        expected = loop(a, b, group)
    assert np.allclose([found.b[0] - found.a[0], found.half[0]], expected, atol=1e-6)


def test_nothing_differs():
    rng = np.random.default_rng(4)
    y, fold = labels(rng, 100), np.arange(100) % 5
    run = out_of_fold(rng, y, fold)
    found = difference.differ([([run], [run])], np.arange(100))
    assert np.array_equal(found.a, found.b) and not found.error.any()
    assert np.isnan(found.p_value).all()
    assert verdict.verdict(found, 100) == (
        "can't be told apart: B - A lies between +0.0000 and +0.0000"
    )


def test_one_fold_that_failed_widens_the_interval():
    """B is A but for one fold, whose scores are noise: no 'A is better' of one accident."""
    rng = np.random.default_rng(5)
    y, fold = labels(rng, 500), np.arange(500) % 5
    a = out_of_fold(rng, y, fold, signal=2.0)
    p = a.p.copy()
    p[fold == 0] = rng.random((100, 3)).astype(np.float32)
    b = OutOfFold(a.rows, fold, y, p)
    found = difference.differ([([a], [b])], np.arange(500))
    gap = found.a[0] - found.b[0]
    whole = [judged(y, metrics.cross_fit(y, run.p, fold), 0 * fold) for run in (a, b)]
    by_rows = difference.differ([tuple([run] for run in whole)], np.arange(500))
    assert by_rows.half[0] < gap < found.half[0] and gap > 0.03


def test_a_label_of_three_positives():
    """The interval of a rare label is wide, and the others are told apart all the same."""
    rng = np.random.default_rng(6)
    y, fold = labels(rng, 600), np.arange(600) % 5
    y[:, 2] = 0
    y[[0, 6, 12], 2] = 1
    a, b = (out_of_fold(rng, y, fold, signal) for signal in (1.0, 2.0))
    found = difference.differ([([a], [b])], np.arange(600))
    assert found.half[5] > 5 * found.half[3] and np.isfinite(found.half).all()
    rows = dict(verdict.table_rows(found, ["x", "y", "rare"]))
    assert -1 <= rows["rare"][3] <= rows["rare"][4] <= 1
    assert verdict.remarks(found, ["x", "y", "rare"])[0].endswith("(Holm): x, y")


@pytest.mark.parametrize("by_fold", [0.0, 0.5])
def test_equal_sides_are_called_different_in_about_one_of_twenty(by_fold):
    """Also where a training moves a whole fold, which rows drawn with replacement don't show."""
    rng, fold, wrong = np.random.default_rng(1), np.arange(500) % 5, []
    for _ in range(30):
        y = labels(rng, 500)
        a, b = (out_of_fold(rng, y, fold, by_fold=by_fold) for _ in "ab")
        found = difference.differ([([a], [b])], np.arange(500))
        gap = abs(found.b[0] - found.a[0])
        wrong.append(gap > found.half[0])
    assert np.mean(wrong) <= 0.14


def test_on_a_hold_out_seeds_show_the_luck_of_trainings():
    """Trainings of unequal quality: three runs a side give an interval that knows it, one doesn't
    and so gives no verdict on the recipe."""
    rng, fold = np.random.default_rng(2), np.zeros(1500, int)
    missed = {1: 0, 3: 0}
    for _ in range(8):
        y = labels(rng, 1500)
        for k in missed:
            a, b = (
                [out_of_fold(rng, y, fold, 1 + 0.15 * rng.normal()) for _ in range(k)] for _ in "ab"
            )
            found = difference.differ([(a, b)], np.arange(1500))
            missed[k] += abs(found.b[0] - found.a[0]) > found.half[0]
            assert (found.seen > 0) == (k == 3)
            said = verdict.verdict(found, 1500)
            assert ("one run a side says nothing about the recipes" in said) == (k == 1)
            assert k == 3 or not said.startswith(("A", "B"))
    assert missed[1] >= 3 and missed[3] <= 1


def test_a_better_side_is_found_and_more_seeds_narrow_the_interval():
    rng, fold, half = np.random.default_rng(2), np.arange(400) % 5, []
    y = labels(rng, 400)
    for seeds in (1, 6):
        a = [out_of_fold(rng, y, fold) for _ in range(seeds)]
        b = [out_of_fold(rng, y, fold, 2.0) for _ in range(seeds)]
        found = difference.differ([(a, b)], np.arange(400))
        half.append(found.half[0])
        assert verdict.verdict(found, 400) == "B is better"
        turned = difference.differ([(b, a)], np.arange(400))
        assert verdict.verdict(turned, 400) == "A is better"
        assert np.isclose(turned.half[0], found.half[0])
    assert half[1] < 0.6 * half[0]


def test_rows_of_a_group_count_once():
    """Each row four times, as one group: the interval of a quarter of the rows."""
    rng, fold = np.random.default_rng(3), np.zeros(300, int)  # no folds: rows alone
    y = labels(rng, 300)
    a, b = (judged(y, run.p > 0.5, fold) for run in (out_of_fold(rng, y, fold) for _ in "ab"))
    one = difference.differ([([a], [b])], np.arange(300))
    a4, b4 = (judged(*(np.repeat(x, 4, 0) for x in (s.y, s.pred, s.fold))) for s in (a, b))
    four = difference.differ([([a4], [b4])], np.repeat(np.arange(300), 4))
    alone = difference.differ([([a4], [b4])], np.arange(1200))
    assert np.isclose(one.error[0], four.error[0], rtol=0.01)
    assert alone.error[0] < 0.7 * four.error[0]


def test_sets_of_folds_that_disagree_widen_the_interval():
    rng, half = np.random.default_rng(7), []
    y = labels(rng, 400)
    for shift in (0.0, 0.8):
        pairs = []
        for better in (1, -1, 1, -1):
            fold = rng.permutation(400) % 5
            sides = (out_of_fold(rng, y, fold, 2 + s * better * shift / 2) for s in (-1, 1))
            pairs.append(tuple([run] for run in sides))
        half.append(difference.differ(pairs, np.arange(400)).half[0])
    assert half[1] > 1.5 * half[0]


# What is said


def a_difference(gap, error, luck=np.nan, runs=1, folds=5) -> difference.Difference:
    one = np.ones(5)
    scores = (0.5 * one, (0.5 + gap) * one, error * one, 1e6 * one, luck * one)
    return difference.Difference(*scores, runs, folds, seen=folds - 1)


@pytest.mark.parametrize(
    "found, words",
    [
        (a_difference(0.03, 0.01), "B is better"),
        (a_difference(-0.03, 0.01), "A is better"),
        (a_difference(-0.03, 0.01, runs=0, folds=1), "A is better (these predictions, on rows"),
        (a_difference(0.03, 0.01, folds=1), "on these rows B's model is better; one run a side"),
        (a_difference(0.01, 0.01, folds=1), "the two models can't be told apart; one run a side"),
        (a_difference(0.01, 0.01), "B - A lies between -0.0096 and +0.0296"),
        (a_difference(0.9, 0.6), "lies between -0.2760 and +1.0000"),
        # (1.96 / 1)^2 = 3.8 and (2.8 / 1)^2 = 7.8 times the runs of one side
        (
            a_difference(0.01, 0.01),
            "4 seeds a side show it in half of the cases, at best, 8 in",
        ),
        (
            a_difference(0.01, 0.01, 1e-4, 3),
            "12 seeds a side show it in half of the cases, 24 in four",
        ),
        (a_difference(0.001, 0.01), "not even 30 seeds a side would show it reliably"),
        (
            a_difference(0.01, 0.01, 5e-5, 3),
            "about 3900 to 7900 rows would show it; more seeds hardly",
        ),
        (
            a_difference(1e-3, 0.01, 5e-5, 3),
            "not even 20 times as many rows would show it reliably",
        ),
        (a_difference(0.01, 0.01, runs=0, folds=1), "about 3900 to 7900 rows would show it"),
    ],
)
def test_the_verdict(found, words):
    assert words in verdict.verdict(found, 1000, files=found.runs == 0)


def test_no_advice_names_thousands_of_seeds():
    for gap in 10.0 ** -np.arange(1, 9):
        for luck in (np.nan, 1e-9, 5e-5, 1e-4):
            said = verdict.verdict(a_difference(gap, 0.01, luck, 3), 100)
            assert all(
                int(word) <= 30
                for word in said.split()
                if word.isdecimal() and "seeds" in said and "rows" not in said
            )


def test_labels_are_corrected_for_their_number():
    p = np.array([0.01, 0.04, 0.03, 0.5, np.nan])
    assert np.allclose(verdict.holm(p), [0.05, 0.12, 0.12, 1, 1])
    found = a_difference(np.array([0, 0, 0, 0.03, 0.022]), 0.01)
    said = verdict.remarks(found, ["joy", "fear"])
    assert said == ["labels that differ, corrected for 2 labels (Holm): joy, fear"]
    found = a_difference(np.array([0, 0, 0, 0.021, 0.01]), 0.01)  # p 0.036: not of two
    assert verdict.remarks(found, ["joy", "fear"])[0].endswith(": none")


@pytest.mark.parametrize(
    "folds, runs, said", [(2, 1, True), (3, 1, True), (5, 1, False), (2, 3, False)]
)
def test_few_folds_tell_little(folds, runs, said):
    lines = verdict.remarks(a_difference(0.01, 0.01, runs=runs, folds=folds), ["joy", "fear"])
    assert any(f"{folds} folds show little" in line for line in lines) == said


def test_every_run_beats_every_run():
    assert verdict.ranking([0.1, 0.2, 0.3], [0.4, 0.5, 0.6]).endswith(
        "for one of both sides in 2 of 20"
    )
    assert verdict.ranking([0.4, 0.5, 0.6], [0.1, 0.2, 0.3]).startswith("every run of A beats")
    assert verdict.ranking([0.1, 0.2, 0.3], [0.3, 0.5, 0.6]) is None
    assert verdict.ranking([0.1, 0.2], [0.4, 0.5, 0.6]) is None


def test_seeds_have_a_standard_deviation_and_zero_has_no_sign():
    said = "macro-F1, mean of the runs (standard deviation): A 0.2000 (0.1000), B 0.5000 (0.1414)"
    assert verdict.spread([0.1, 0.2, 0.3], [0.4, 0.6]) == said
    assert verdict.spread([0.1], [0.4, 0.6]) is None
    table = verdict.difference_table(a_difference(-1e-9, 0.01), ["joy", "fear"])
    assert "| +0.0000 |" in table and "-0.0000" not in table


def test_latex_is_escaped():
    lines = verdict.latex_table(a_difference(0.01, 0.01), ["a_b & 50 %", "x"]).splitlines()
    assert lines[0] == r"\begin{tabular}{lrrrr}" and lines[-1] == r"\end{tabular}"
    assert any(line.startswith(r"a\_b \& 50 \% & 0.5000 & 0.5100 & $+0.0100$ & ") for line in lines)
    assert len(lines) == 8


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


def train_run(runs, name, csv, *flags) -> str:
    """A run of a second on the folds of `a` and `b`; its path."""
    model = json.loads((runs / "a/config.json").read_text())["model"]
    argv = ["--model", model, "--train", str(csv), "--folds", "3", "--lr", "1e-2"]
    argv += ["--precision", "fp32", "--split-seed", "7", "--out", str(runs / name), *flags]
    assert train.main(argv) == 0
    return str(runs / name)


@pytest.fixture(scope="module")
def more(runs, train_csv) -> dict[str, str]:
    """Paths of runs on the folds of `a`: soft labels, and two seeds of a second idea."""
    header, *lines = train_csv.read_text().splitlines()
    soft = runs / "soft.csv"
    rows = [line.rsplit(",", len(LABELS)) for line in lines]
    shares = {"0": "0.2", "1": "0.8"}
    rows = [[text, *(shares[cell] for cell in cells)] for text, *cells in rows]
    soft.write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n")
    flags = ["--seed", "3", "--epochs", "2"]
    paths = {"soft": train_run(runs, "soft", soft, "--soft-labels", *flags)}
    for seed in ("1", "2"):
        how = ["--seed", seed, "--epochs", "3", "--pooling", "cls"]
        paths[f"cls_{seed}"] = train_run(runs, f"cls_{seed}", train_csv, *how)
    rows[5][1] = "0.8" if rows[5][1] == "0.2" else "0.2"
    soft.write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n")
    paths["changed"] = train_run(runs, "changed", soft, "--soft-labels", *flags)
    return paths


def test_soft_labels_are_compared_with_hard_ones(runs, more, capsys):
    a = str(runs / "a")
    assert compare.main([a, more["soft"]]) == 0
    out = capsys.readouterr().out
    score = json.loads((runs / "soft/metrics.json").read_text())["macro_f1_cross_fitted"]
    assert f"| {score:.4f} | " in out and "B has changed: soft_labels: False -> True" in out
    assert compare.main([a, more["changed"]]) == 2  # another label, and so other folds perhaps
    err = capsys.readouterr().err
    assert re.search(
        r"changed: row 0000\d: anger is [01], elsewhere [01] - compare runs on the", err
    )


def test_cells_unknown_to_one_run_are_left_out_of_both(runs, train_csv, capsys):
    """Of a run on all labels and one with gaps, on given folds: scores of the cells both know."""
    header, *lines = train_csv.read_text().splitlines()
    rows = [line.rsplit(",", len(LABELS)) for line in lines]
    paths = []
    for name, flags in (("whole", []), ("gaps", ["--missing-labels"])):
        if name == "gaps":
            for i in range(0, 120, 3):
                rows[i][1 + i % len(LABELS)] = ""
        text = [",".join([*row, str(i % 3)]) for i, row in enumerate(rows)]
        csv = runs / f"{name}.csv"
        csv.write_text("\n".join([f"{header},fold", *text]) + "\n")
        model = json.loads((runs / "a/config.json").read_text())["model"]
        argv = ["--model", model, "--train", str(csv), "--fold-column", "fold", "--epochs", "2"]
        argv += ["--lr", "1e-2", "--precision", "fp32", "--out", str(runs / name), *flags]
        assert train.main(argv) == 0
        paths.append(str(runs / name))
    pairs, _, names = compare.read_runs(paths[:1], paths[1:], [])
    (whole,), (gaps,) = pairs[0]
    assert np.array_equal(whole.y, gaps.y, equal_nan=True) and np.isnan(whole.y).sum() == 40
    values = json.loads((runs / "gaps/metrics.json").read_text())
    assert np.isclose(gaps.macro_f1, values["macro_f1_cross_fitted"])
    known = ~np.isnan(whole.y)
    f1 = [f1_score(whole.y[k, j], whole.pred[k, j]) for j, k in enumerate(known.T)]
    assert np.isclose(whole.macro_f1, np.mean(f1))
    assert compare.main(paths) == 0
    assert "B has changed: missing_labels: False -> True" in capsys.readouterr().out


def test_the_same_ids_with_other_texts_are_refused(runs, tmp_path, train_csv, capsys):
    other = tmp_path / "other.csv"
    other.write_text(train_csv.read_text().replace(" ", " x "))
    path = train_run(runs, "texts", other, "--epochs", "1")
    capsys.readouterr()
    assert compare.main([str(runs / "a"), path]) == 2
    assert "texts: has other texts than " in capsys.readouterr().err


def test_many_ideas_against_one_baseline(runs, more, tmp_path, capsys):
    base = [str(runs / "a"), str(runs / "b")]
    ideas = [more["cls_1"], more["soft"], more["cls_2"]]
    path = tmp_path / "ideas.json"
    assert compare.main([*base, "--against", *ideas, "--json", str(path)]) == 0
    out = capsys.readouterr().out
    assert "corrected for 2 ideas" in out and f"{runs}/cls (2 runs)" in out
    assert f"{runs}/cls (2 runs): epochs: 2 -> 3; pooling: mean -> cls" in out
    told = json.loads(path.read_text())["ideas"]
    assert [idea["difference"] for idea in told] == sorted(
        (i["difference"] for i in told), key=lambda x: -x
    )
    (cls,) = (idea for idea in told if len(idea["runs"]) == 2)
    pairs, groups, _ = compare.read_runs(base, [more["cls_1"], more["cls_2"]], [])
    one = difference.differ(pairs, groups)
    half = one.half_at(0.95**0.5)[0]  # of two ideas
    gap = one.b[0] - one.a[0]
    low, high = verdict.bounds(gap, half)
    assert np.allclose([cls["difference"], *cls["interval"]], [gap, low, high])
    assert half > one.half[0]
    best = max([0, *(i["difference"] for i in told)])
    assert all(i["as_good_as_the_best"] for i in told if i["difference"] == best)
    assert compare.main([*base, "--against", str(runs / "a")]) == 2
    assert "is of the baseline's recipe" in capsys.readouterr().err
    assert compare.main(["--against", *ideas]) == 2
    assert "name the baseline's runs before it" in capsys.readouterr().err


def test_json_and_latex(runs, tmp_path, capsys):
    a, b = str(runs / "a"), str(runs / "b")
    path = tmp_path / "told.json"
    assert compare.main([a, b, "--json", str(path), "--latex"]) == 0
    out = capsys.readouterr().out
    told = json.loads(path.read_text())
    macro = told["scores"]["macro-F1"]
    values = json.loads((runs / "b/metrics.json").read_text())
    assert np.isclose(macro["b"], values["macro_f1_cross_fitted"])
    assert (
        macro["ci95"][0] <= macro["difference"] <= macro["ci95"][1] and 0 <= macro["p_value"] <= 1
    )
    assert told["macro_f1_of_runs"] == {"a": [macro["a"]], "b": [macro["b"]]}
    assert told["a"] == [a] and told["rows"] == 120 and told["verdict"].split("\n")[0] in out
    assert set(LABELS) == set(told["labels"]) and r"\begin{tabular}" in out
    around = out.split(r"\begin{tabular}")[0] + out.split(r"\end{tabular}")[1]
    assert all(line.startswith(("% ", "wrote ")) for line in around.splitlines() if line)
    assert compare.main([a, b, "--json", str(tmp_path / "none/x.json")]) == 2
    assert "name another --json" in capsys.readouterr().err


def test_sides_that_differ_in_more_than_the_idea(runs, more, tmp_path, capsys):
    """Epochs to choose from, precision, torch, machine: a warning each."""
    a = runs / "a"
    assert compare.main([str(a), more["cls_1"]]) == 0
    captured = capsys.readouterr()
    assert "the sides differ in epochs (A 2; B 3): --keep best takes the best epoch" in captured.err
    assert "seeds of A: 1; of B: 1; folds: split seed 7" in captured.out
    b = shutil.copytree(runs / "b", tmp_path / "b")
    env = json.loads((b / "env.json").read_text())
    env["same"] |= {"settings.precision": "bf16", "versions.torch": "2.6.0"}
    env["host"]["device"] = "another"
    del env["sha256"]
    files.write_json(b / "env.json", env, seal=True)
    done = json.loads((b / "DONE.json").read_text())
    done["run"] = files.json_sha256(env["same"])[:16]
    done["files"] |= files.describe(b, ["env.json"])
    del done["sha256"]
    files.write_json(b / "DONE.json", done, seal=True)
    assert compare.main([str(a), str(b)]) == 0
    err = capsys.readouterr().err
    assert "differ in precision (A fp32; B bf16)" in err and "B 2.6.0)" in err
    assert "differ in machine" in err and err.count("warning: ") == 3
    assert compare.main([str(a), str(runs / "b")]) == 0
    assert "warning" not in capsys.readouterr().err


def test_a_side_of_several_recipes_is_named(runs, more, capsys):
    """As by a pattern that takes in too much; and one recipe, or one run, on both sides."""
    a, b = str(runs / "a"), str(runs / "b")
    assert compare.main(["--a", a, more["cls_1"], "--b", b, more["soft"]]) == 0
    err = capsys.readouterr().err
    assert f"the runs of A are of several recipes: {more['cls_1']} differs from {a} (epochs" in err
    assert "the runs of B are of several recipes" in err
    assert compare.main([a, b]) == 0
    captured = capsys.readouterr()
    assert "B has changed: nothing" in captured.out and "show it" not in captured.out
    assert captured.out.endswith("both sides are of one recipe: a difference is luck\n")
    assert not captured.err
    assert compare.main(["--a", a, "--b", b, a]) == 0
    assert f"{a}: stands on both sides, or equals a run of A" in capsys.readouterr().err
    assert compare.main([a, more["cls_1"], "--against", more["cls_2"]]) == 2
    assert "is of the baseline's recipe" in capsys.readouterr().err
    assert compare.main([a, "--against"]) == 2
    assert "--against" in capsys.readouterr().err


def test_luck_that_cannot_be_seen_is_not_printed_as_an_interval():
    found = a_difference(0.01, np.array([0.01, 0.01, np.nan, 0.01, 0.01]))
    table = verdict.difference_table(found, ["joy", "fear"]).splitlines()
    assert table[3] == "mean average precision  | 0.5000 | 0.5100 | +0.0100 | -"
    told = verdict.as_json(found, ["joy", "macro-F1"])
    assert told["scores"]["mean average precision"]["ci95"] == [None, None]
    assert [*told["scores"]] == verdict.MEANS and [*told["labels"]] == ["joy", "macro-F1"]


@pytest.mark.parametrize("name", ["a", "half", "dev"])
def test_the_table_shows_each_runs_own_score(runs, name, capsys):
    assert compare.main([str(runs / name), str(runs / name), "--plot", str(runs / "p.png")]) == 0
    out = capsys.readouterr().out
    score = json.loads((runs / name / "metrics.json").read_text())["macro_f1_cross_fitted"]
    assert f"| {score:.4f} | {score:.4f} | +0.0000 | " in out and "can't be told apart" in out
    assert ("one run a side says nothing about the recipes" in out) == (name != "a")
    assert f"wrote {runs / 'p.png'}" in out
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
    assert not np.array_equal(pairs[0].a[0].rows, pairs[1].a[0].rows)
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
    assert "no run of the other side has its folds" in capsys.readouterr().err
    other = tmp_path / "other.csv"
    other.write_text(train_csv.read_text().replace("joy", "delight", 1))
    argv = ["--model", str(bert), "--folds", "2", "--epochs", "1", "--out", str(tmp_path / "o")]
    assert train.main([*argv, "--train", str(other), "--labels", "delight"]) == 0
    capsys.readouterr()
    assert compare.main([a, str(tmp_path / "o")]) == 2
    err = capsys.readouterr().err
    assert f"{tmp_path / 'o'}: labels delight, of {a} anger fear joy" in err
    assert "compare runs with a label in common" in err


def test_runs_with_some_labels_in_common(runs, tmp_path, bert, train_csv, capsys):
    """Other columns, in another order, and more rows that no fold holds out: what is common is
    compared, and each run has the score of its own metrics.json there."""
    a = runs / "a"
    table = pd.read_csv(train_csv, dtype=str, keep_default_na=False)
    table["fold"] = pd.read_csv(a / "oof.csv")["fold"].astype(str)
    table["question"] = "1"
    more = tmp_path / "more.csv"
    others = table[:9].assign(id="m", text=[f"another {i}" for i in range(9)], fold="-1")
    pd.concat([table, others]).to_csv(more, index=False)
    argv = ["--model", str(bert), "--epochs", "1", "--out", str(tmp_path / "more")]
    argv += ["--train", str(more), "--fold-column", "fold", "--labels", "question", "joy", "fear"]
    assert train.main(argv) == 0
    capsys.readouterr()
    for pair in ([str(a), str(tmp_path / "more")], [str(tmp_path / "more"), str(a)]):
        assert compare.main([*pair, "--json", str(tmp_path / "x.json")]) == 0
        printed = capsys.readouterr()
        assert "not in all runs: " in printed.err and "question" in printed.err
        told = json.loads((tmp_path / "x.json").read_text())
        assert {*told["labels"]} == {"joy", "fear"} and told["rows"] == 120
        for side, path in zip("ab", pair, strict=True):
            by_label = json.loads((Path(path) / "metrics.json").read_text())["per_label"]
            for name in ("joy", "fear"):
                assert np.isclose(told["labels"][name][side], by_label[name]["f1"], atol=1e-6)
            mean = np.mean([by_label[name]["f1"] for name in ("joy", "fear")])
            assert np.isclose(told["scores"]["macro-F1"][side], mean, atol=1e-6)


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
