"""Scores and thresholds against scikit-learn. python -m pytest tests/test_metrics.py"""

import warnings

import numpy as np
import pytest
from sklearn.metrics import f1_score, precision_recall_fscore_support

import metrics
from support import report


def sample(n=200, c=5, seed=0, empty=False):
    rng = np.random.default_rng(seed)
    y = (rng.random((n, c)) < 0.3).astype(np.float32)
    if empty:
        y[:, 0], y[:, 1] = 0, 1
    return y, rng.random((n, c)).astype(np.float32)


@pytest.mark.parametrize("empty", [False, True])
def test_scores_equal_scikit_learns(empty):
    y, p = sample(empty=empty)
    pred = p >= 0.5
    pred[:, 2] = False
    s = metrics.scores(y, pred)
    for average in ("macro", "micro"):
        expected = precision_recall_fscore_support(y, pred, average=average, zero_division=0)[:3]
        assert np.allclose([s[f"{average}_{m}"] for m in ("precision", "recall", "f1")], expected)
    assert s["exact_match"] == pytest.approx((y == pred).all(1).mean())


@pytest.mark.parametrize("grid", [metrics.GRID, np.linspace(0, 1, 101)])
@pytest.mark.parametrize("seed", range(3))
def test_sweep_equals_scikit_learns_f1(grid, seed):
    y, p = sample(60, seed=seed, empty=seed == 2)
    p = np.round(p, 2)  # many probabilities exactly on a threshold
    curve = metrics.f1_by_threshold(y, p, grid)
    for j in range(5):
        for i, t in enumerate(np.asarray(grid, np.float32)):
            assert curve[j, i] == pytest.approx(
                f1_score(y[:, j], p[:, j] >= t, zero_division=0), abs=1e-12
            )


def test_thresholds_compare_in_float32():
    assert not np.float32(0.7) >= np.float64(0.7)  # the trap
    p = np.full((4, 1), 0.7, np.float32)
    assert metrics.detect(p, np.array([0.7])).all()
    assert metrics.GRID.dtype == np.float32 and len(metrics.GRID) == 17


def test_threshold_without_positives_is_half():
    y, p = np.zeros((10, 2), np.float32), np.full((10, 2), 0.3, np.float32)
    y[:5, 1], p[:5, 1] = 1, 0.8
    assert metrics.tune_thresholds(y, p)[0] == 0.5
    th = metrics.tune_thresholds(y, p)
    assert th.dtype == np.float32 and metrics.scores(y, metrics.detect(p, th))["macro_f1"] == 0.5


def test_a_threshold_is_the_middle_of_those_as_good_as_the_best():
    y = np.arange(100)[:, None] >= 80
    p = np.where(y, 0.72, 0.23).astype(np.float32)  # F1 is 1 from 0.25 to 0.70
    assert metrics.tune_thresholds(y, p)[0] == pytest.approx(0.475)
    p[0] = 0.52  # one false positive more up to 0.50: F1 0.976, further off than 0.01
    assert metrics.tune_thresholds(y, p)[0] == pytest.approx(0.625)
    assert metrics.tune_thresholds(y, p, near=0.03)[0] == pytest.approx(0.475)


def test_thresholds_below_the_grid_where_its_lowest_is_best():
    y = np.arange(100)[:, None] >= 95
    p = np.where(y, 0.055, 0.015).astype(
        np.float32
    )  # a rare label that a model hardly dares to name
    th = metrics.tune_thresholds(y, p)
    assert (
        th[0] == pytest.approx(0.035) and metrics.scores(y, metrics.detect(p, th))["macro_f1"] == 1
    )


def test_cross_fit_judges_no_row_by_its_own_label():
    y, p = sample(100, 2)
    fold = np.arange(100) % 4
    pred = metrics.cross_fit(y, p, fold)
    flipped = y.copy()
    flipped[fold == 2] = (
        1 - flipped[fold == 2]
    )  # fold 2's labels must not matter for fold 2's verdicts
    assert np.array_equal(metrics.cross_fit(flipped, p, fold)[fold == 2], pred[fold == 2])
    th = metrics.tune_thresholds(y[fold != 1], p[fold != 1])
    assert np.array_equal(pred[fold == 1], p[fold == 1] >= th)


def test_tuning_on_the_same_rows_is_optimistic_and_cross_fitting_is_not():
    """Scores that say nothing: the true macro-F1 of 'always yes' is the best there is."""
    gain = []
    for seed in range(30):
        y, p = sample(60, 5, seed)
        fold = np.arange(60) % 5
        tuned = metrics.scores(y, metrics.detect(p, metrics.tune_thresholds(y, p)))["macro_f1"]
        gain.append(tuned - metrics.scores(y, metrics.cross_fit(y, p, fold))["macro_f1"])
    assert np.mean(gain) > 0.02


def test_bootstrap_interval():
    y, p = sample(400, 3)
    p = 0.3 * y + 0.7 * p
    draws = metrics.bootstrap_f1(y, p >= 0.5, 300, seed=1)
    assert draws.shape == (300, 3) and np.array_equal(
        draws, metrics.bootstrap_f1(y, p >= 0.5, 300, seed=1)
    )
    low, high = metrics.interval(draws.mean(1))
    assert low < metrics.scores(y, p >= 0.5)["macro_f1"] < high and 0.005 < high - low < 0.2


def test_label_table_and_missing_classes():
    y, p = sample(empty=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = metrics.per_label(y, p, p >= 0.5, np.full(5, 0.5), list("abcde"))
    assert (
        table["a"]["roc_auc"] is None
        and table["b"]["average_precision"] is None
        and 0 < table["c"]["roc_auc"] < 1
    )
    assert table["a"]["support"] == 0 and table["b"]["tp"] + table["b"]["fn"] == 200
    assert len(report.label_table(table).splitlines()) == 6


def test_platt_mends_probabilities_and_keeps_their_order():
    rng = np.random.default_rng(0)
    z = rng.normal(0, 2, 4000)
    y = rng.random(4000) < 1 / (1 + np.exp(-(0.5 * z - 1)))  # the truth: slope 0.5, shift -1
    p = (1 / (1 + np.exp(-z))).astype(np.float32)
    a, b = metrics.platt(y, p)
    assert a == pytest.approx(0.5, abs=0.08) and b == pytest.approx(-1, abs=0.1)
    mended = 1 / (1 + np.exp(-(a * metrics.logit(p) + b)))
    assert metrics.reliability(y, mended)[2] < 0.03 < 0.1 < metrics.reliability(y, p)[2]
    assert np.array_equal(
        np.argsort(mended, kind="stable"), np.argsort(metrics.logit(p), kind="stable")
    )
    assert metrics.platt(np.ones(9), np.full(9, 0.3)) == metrics.platt(y, 1 - p) == (1.0, 0.0)


def test_platt_of_a_few_separable_rows_is_no_step():
    """Three positives above all else: by 0/1 the best slope is endless, by Platt's targets it is
    not."""
    y, p = np.zeros(500), np.random.default_rng(0).uniform(0.001, 0.3, 500).astype(np.float32)
    y[:3], p[:3] = 1, (0.32, 0.4, 0.6)
    a, b = metrics.platt(y, p)
    assert 1 < a < 10
    assert 1 / (1 + np.exp(-(a * metrics.logit(0.4) + b))) < 0.99
