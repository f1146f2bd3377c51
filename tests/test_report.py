"""The pictures and what they are drawn from. python -m pytest tests/test_report.py"""

import io

import numpy as np
import pytest

import metrics
import report


def test_reliability_and_calibration_error_by_hand():
    p = np.array([0.05, 0.05, 0.95, 0.95], np.float32)
    mean, share, error = report.reliability(np.array([0, 1, 1, 1]), p)
    assert mean == pytest.approx([0.05, 0.95]) and share.tolist() == [0.5, 1.0] and error == pytest.approx(0.25)
    assert report.reliability(np.array([1, 1]), np.array([1.0, 1.0]))[2] == 0


def test_co_occurrence_by_hand():
    y = np.array([[1, 1, 0], [1, 0, 0], [0, 1, 0]])
    assert report.co_occurrence(y).tolist() == [[1, 0.5, 0], [0.5, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize("labels", [1, 5, 30])
def test_draws_the_same_picture_twice_whatever_the_labels(labels):
    rng = np.random.default_rng(0)
    y = (rng.random((80, labels)) < 0.3).astype(np.float32)
    y[:, -1] = 0  # a label without positives
    p = rng.random((80, labels)).astype(np.float32)
    log = [
        {"fold": k, "epoch": e, "train_loss": 1 / (e + 1), "val_loss": 0.5, "macro_f1": 0.1 * e}
        for k in range(3)
        for e in range(4)
    ]
    args = (
        log,
        y,
        p,
        p > 0.5,
        np.full(labels, 0.5),
        metrics.bootstrap_f1(y, p > 0.5, 20),
        [f"label {j}" for j in range(labels)],
        "t",
    )
    pictures = []
    for _ in range(2):
        f = io.BytesIO()
        report.draw_report(f, *args)
        pictures.append(f.getvalue())
    assert pictures[0] == pictures[1] and pictures[0].startswith(b"\x89PNG") and len(pictures[0]) > 20_000
