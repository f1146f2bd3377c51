"""--missing-labels: a cell that is empty is unknown. It is not learned, and no score counts it.

Compared with loops over the known cells, one by one, and with the files without gaps.
python -m pytest tests/test_missing.py
"""

import csv
import dataclasses
import json
import re
import shlex
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import LABELS, make_rows, outputs, write_csv
from copies import run_driver
from faults import at_step_end, one_line
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

import data
import metrics
import model as M
import predict
import train
from config import HERE, Config
from data import OutOfFold, Table, assign_folds, read_data, split
from support import pictures
from support.blend import BlendedRun
from support.cli import parse
from support.files import read_json
from support.finished import (
    FinishedRun,
    read_labelled_oof,
    read_oof,
    read_oof_csv,
    read_settings,
    read_training,
)
from support.run import Run
from tools import compare
from support.versions import numbers
from tools import distil, export
from tools.parts.plan import copy_code
from tools.parts.teaching import read_taught

OLD = numbers(torch.__version__) < [2, 7]
EMPTY = (5, 17, 30)  # rows without a known cell
FLAGS = ["--folds", "2", "--epochs", "2", "--batch-size", "8", "--lr", "5e-3", "--dropout", "0.1"]
FLAGS += ["--precision", "fp32", "--device", "cpu", "--threads", "1"]


def with_gaps(rows: list[list], share: float = 0.3, seed: int = 0, empty=EMPTY) -> list[list]:
    """Rows with this share of their label cells empty, and `empty` rows of which none is known."""
    rng = np.random.default_rng(seed)
    gaps = rng.random((len(rows), 5)) < share
    gaps[list(empty)] = True
    return [
        [*row[:2], *("" if gap else cell for gap, cell in zip(g, row[2:], strict=True))]
        for row, g in zip(rows, gaps, strict=True)
    ]


def as_y(rows: list[list]) -> np.ndarray:
    cells = [[float(c) if c not in ("", "-1") else np.nan for c in row[2:7]] for row in rows]
    return np.array(cells, np.float32)


def read(path: Path) -> list[dict]:
    with open(path, newline="", encoding="utf-8-sig") as f:
        return list(csv.DictReader(f))


@pytest.fixture(scope="module")
def rows() -> list[list]:
    rows = make_rows(64)
    rows[9][1] = rows[2][1].upper()  # a copy, with gaps of its own
    return with_gaps(rows)


@pytest.fixture(scope="module")
def path(tmp_path_factory, rows) -> Path:
    return write_csv(tmp_path_factory.mktemp("missing") / "train.csv", rows)


@pytest.fixture(scope="module")
def command(bert, path) -> list[str]:
    return ["--model", str(bert), "--train", str(path), "--missing-labels", *FLAGS]


@pytest.fixture(scope="module")
def run(tmp_path_factory, command) -> Path:
    """Two folds, on a file with gaps."""
    out = tmp_path_factory.mktemp("missing") / "run"
    assert train.main([*command, "--out", str(out)]) == 0
    return out


# Scores


def sample(seed: int, n: int = 150, c: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """y with gaps, p, fold; the last labels' probabilities lie below the grids of thresholds."""
    rng = np.random.default_rng(seed)
    y = (rng.random((n, c)) < 0.35).astype(np.float32)
    p = (0.35 * y + 0.65 * rng.random((n, c))).astype(np.float32)
    p[:, 3] *= 0.009
    p[:, 4] *= 0.06
    y[rng.random((n, c)) < 0.3] = np.nan
    y[:7] = np.nan  # rows of which nothing is known
    return y, p, rng.integers(0, 3, n)


def counted(y, pred) -> np.ndarray:
    """(4, C) by a loop over the known cells."""
    counts = np.zeros((4, y.shape[1]), int)
    for i, j in zip(*np.nonzero(~np.isnan(y)), strict=True):
        hit = {(1, 1): 0, (0, 1): 1, (1, 0): 2, (0, 0): 3}[int(y[i, j]), int(pred[i, j])]
        counts[hit, j] += 1
    return counts


def known(y, j: int) -> np.ndarray:
    return np.array([i for i in range(len(y)) if not np.isnan(y[i, j])])


def f1_of(y, pred) -> list[float]:
    """F1 of each label over its known rows."""
    rows = [known(y, j) for j in range(y.shape[1])]
    return [f1_score(y[r, j], pred[r, j], zero_division=0) for j, r in enumerate(rows)]


@pytest.mark.parametrize("seed", range(3))
def test_scores_count_the_known_cells(seed):
    y, p, _ = sample(seed)
    pred = p >= 0.5
    counts = counted(y, pred)
    assert np.array_equal(metrics.confusion(y, pred), counts)
    s = metrics.scores(y, pred)
    assert s["macro_f1"] == pytest.approx(np.mean(f1_of(y, pred)))
    cells = ~np.isnan(y)
    assert s["micro_f1"] == pytest.approx(f1_score(y[cells], pred[cells]))
    whole = [i for i in range(len(y)) if not np.isnan(y[i]).any()]
    right = sum((y[i] == pred[i]).all() for i in whole)
    assert 0 < len(whole) < len(y) and s["exact_match"] == pytest.approx(right / len(whole))
    assert metrics.exact_matches(y, pred) == (right, len(whole))


@pytest.mark.parametrize("seed", range(3))
def test_thresholds_are_those_of_the_known_cells(seed):
    y, p, fold = sample(seed)
    curve, th = metrics.f1_by_threshold(y, p), metrics.tune_thresholds(y, p)
    crossed = metrics.cross_fit(y, p, fold)
    for j in range(5):
        r = known(y, j)
        alone, p_j = y[r][:, [j]], p[r][:, [j]]
        assert not np.isnan(alone).any()
        for t, f1 in zip(metrics.GRID, curve[j], strict=True):
            assert f1 == pytest.approx(f1_score(alone[:, 0], p_j[:, 0] >= t, zero_division=0))
        assert th[j] == metrics.tune_thresholds(alone, p_j)[0]
        assert np.array_equal(crossed[r, j], metrics.cross_fit(alone, p_j, fold[r])[:, 0])
        for k in range(3):  # a row that is unknown is judged as well
            others = r[fold[r] != k]
            own = metrics.tune_thresholds(y[others][:, [j]], p[others][:, [j]])
            assert np.array_equal(crossed[fold == k, j], p[fold == k, j] >= own)
    assert th[3] < 0.009 and th[4] < 0.06  # the thresholds below the grid were asked


def test_the_bootstrap_draws_rows_and_counts_known_cells():
    y, p, _ = sample(1, 60)
    pred = p >= 0.5
    draws = metrics.bootstrap_f1(y, pred, 20, seed=3)
    rng = np.random.default_rng(3)
    for draw in draws:
        r = rng.integers(0, 60, 60)
        assert draw == pytest.approx(f1_of(y[r], pred[r]), abs=1e-6)


def test_the_table_of_labels_takes_the_known_cells():
    y, p, fold = sample(2)
    summary = metrics.summary(y, p, fold, list("abcde"))
    counts = counted(y, summary.pred)
    for j, row in enumerate(summary.values["per_label"].values()):
        r = known(y, j)
        assert [row[key] for key in ("tp", "fp", "fn", "tn")] == counts[:, j].tolist()
        y_j, p_j = y[r, j], p[r, j]
        assert row["average_precision"] == pytest.approx(average_precision_score(y_j, p_j))
        assert row["roc_auc"] == pytest.approx(roc_auc_score(y_j, p_j))
        assert row["platt"] == metrics.platt(y_j, p_j) == metrics.platt(y[:, j], p[:, j])
        error = 0.0
        for low in range(10):
            bin_ = [i for i in r if min(int(p[i, j] * 10), 9) == low]
            error += abs(p[bin_, j].sum(dtype=float) - y[bin_, j].sum()) / len(r)
        assert row["ece"] == pytest.approx(error, abs=1e-6)
        for a, b in zip(
            metrics.reliability(y[:, j], p[:, j]), metrics.reliability(y_j, p_j), strict=True
        ):
            assert np.array_equal(a, b)
    fold_scores = [np.mean(f1_of(y[fold == k], summary.pred[fold == k])) for k in range(3)]
    spread = summary.values["macro_f1_cross_fitted_fold_std"]
    assert spread == pytest.approx(np.std(fold_scores))
    low, high = summary.values["macro_f1_cross_fitted_ci95"]
    assert low < summary.values["macro_f1_cross_fitted"] < high
    json.dumps(summary.values, allow_nan=False)


def test_a_label_that_nobody_knows_is_in_no_mean():
    y, p, fold = sample(0)
    y[:, 2] = np.nan
    rest = [0, 1, 3, 4]
    whole, some = (
        metrics.summary(a, b, fold, list("abcde")[: a.shape[1]])
        for a, b in ((y, p), (y[:, rest], p[:, rest]))
    )
    for name in ("macro_f1_at_half", "micro_f1_tuned", "macro_f1_cross_fitted"):
        assert whole.values[name] == pytest.approx(some.values[name])
    ci = "macro_f1_cross_fitted_ci95"
    assert whole.values[ci] == pytest.approx(some.values[ci])
    assert whole.th[2] == 0.5 and whole.values["per_label"]["c"]["roc_auc"] is None
    nothing = metrics.summary(np.full_like(y, np.nan), p, fold, list("abcde"))
    json.dumps(nothing.values, allow_nan=False)


# Loss and gradient


def by_hand(z, y, loss="bce", weight=None, smooth=0.0) -> tuple[float, np.ndarray]:
    """The sum of the rows' losses and its gradient by cell, by a loop over the known cells."""
    total, slope = 0.0, np.zeros(z.shape)
    for i, j in zip(*np.nonzero(~np.isnan(y)), strict=True):
        x = torch.tensor(float(z[i, j]), dtype=torch.float64, requires_grad=True)
        p, t = torch.sigmoid(x), y[i, j] * (1 - smooth) + smooth / 2
        w = 1.0 if weight is None else float(weight[j])
        cell = -(w * t * p.log() + (1 - t) * (1 - p).log())
        cell = cell * (p - y[i, j]) ** 2 if loss == "focal" else cell
        cell = cell / z.shape[1]  # all labels, the unknown too
        cell.backward()
        total, slope[i, j] = total + cell.item(), x.grad.item()
    return total, slope


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(
    "kw", [{}, {"loss": "focal"}, {"label_smoothing": 0.2}, {"pos_weight": True}]
)
def test_loss_and_gradient_are_those_of_the_known_cells(kw, soft):
    rng = np.random.default_rng(4)
    y, z = sample(4, 40)[0], rng.normal(size=(40, 5)).astype(np.float32) * 3
    if soft:
        y = np.where(np.isnan(y), y, 0.25 + y / 2).astype(np.float32)
    z[np.isnan(y)] = np.where(rng.random(int(np.isnan(y).sum())) < 0.3, np.inf, 2.0)
    z[0] = np.nan  # nothing is known of this row
    weight = None
    if "pos_weight" in kw:
        weight = [(1 - y[known(y, j), j]).sum() / y[known(y, j), j].sum() for j in range(5)]
    smooth = kw.get("label_smoothing", 0.0)
    want, slope = by_hand(z, y, kw.get("loss", "bce"), weight, smooth)
    criterion = train.make_criterion(Config(device="cpu", missing_labels=True, **kw), y)
    logits = torch.tensor(z, requires_grad=True)
    losses = criterion(logits, torch.tensor(y))
    losses.sum().backward()
    assert losses.shape == (40,) and losses.sum().item() == pytest.approx(want, rel=1e-5)
    assert np.allclose(logits.grad, slope, atol=1e-6)
    assert (logits.grad.numpy()[np.isnan(y)] == 0).all() and (losses[:7] == 0).all()


def test_a_known_cell_weighs_as_without_the_gaps_beside_it():
    z, y = torch.randn(6, 5), torch.randint(0, 2, (6, 5)).float()
    criterion = train.make_criterion(Config(device="cpu"), y.numpy())
    gaps = y.clone()
    gaps[:, 1:4] = torch.nan
    slopes = []
    for targets in (y, gaps):
        logits = z.clone().requires_grad_()
        criterion(logits, targets).sum().backward()
        slopes.append(logits.grad[:, [0, 4]])
    assert torch.equal(*slopes)


def test_a_head_starts_at_the_share_of_the_known_cells(bert):
    y = sample(0)[0]
    y[:, 1] = np.nan
    config = dataclasses.replace(Config(), device="cpu", missing_labels=True)
    model = M.build_model(str(bert), config, y, np.arange(30))
    share = [y[known(y, j), j].mean() if len(known(y, j)) else 0 for j in range(5)]
    assert torch.sigmoid(model.head.bias).tolist() == pytest.approx(np.clip(share, 0.001, 0.999))


@pytest.mark.parametrize("sizes", [[12], [5, 7], [3, 3, 3, 3], [1] * 12])
def test_a_step_is_the_same_in_any_micro_batches(sizes, bert):
    """The sum of the parts' gradients, each divided by the rows of the step, as in training."""
    y = sample(3)[0][4:16]  # three rows, and so some of the parts, without a known cell
    config = dataclasses.replace(Config(), device="cpu", missing_labels=True)
    torch.manual_seed(0)
    model = M.build_model(str(bert), config, y, np.arange(34)).eval()
    criterion = train.make_criterion(config, y)
    ids = torch.randint(5, 30, (12, 8))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor(y)}
    slopes = []
    for parts in ([12], sizes):
        model.zero_grad()
        for part in zip(*(x.split(parts) for x in batch.values()), strict=True):
            _, losses = M.compute_loss(model, dict(zip(batch, part, strict=True)), criterion)
            (losses.sum() / 12).backward()
        slopes.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert slopes[0].abs().max() > 1e-3 and torch.allclose(*slopes, atol=1e-6)


# Folds


def test_folds_spread_the_known_positives():
    """As evenly as in a file where unknown cells were written 0; known cells evenly, too."""
    rng = np.random.default_rng(0)
    y = (rng.random((400, 4)) < [0.1, 0.3, 0.5, 0.2]).astype(np.float32)
    y[rng.random((400, 4)) < [0.5, 0.2, 0.0, 0.9]] = np.nan
    fold = assign_folds(y, np.arange(400), 5, 0)
    for j in range(4):
        positives = [int((y[fold == k, j] == 1).sum()) for k in range(5)]
        assert sum(positives) and max(positives) - min(positives) <= 2
        negatives = [int((y[fold == k, j] == 0).sum()) for k in range(5)]
        assert max(negatives) - min(negatives) <= 8
    assert np.ptp(np.bincount(fold)) <= 1


def table_of(path: Path, **kw) -> tuple[Table, Config]:
    config = dataclasses.replace(Config(), train=str(path), missing_labels=True, **kw)
    return split(read_data(config), config), config


@pytest.mark.parametrize("folds", [1, 3])
def test_copies_and_groups_stay_together(rows, tmp_path, folds):
    grouped = [[*row, f"a{i // 3}"] for i, row in enumerate(rows)]
    path = write_csv(tmp_path / "g.csv", grouped, ("id", "text", *LABELS, "author"))
    table, config = table_of(path, group_column="author", folds=folds)
    assert all(len({*table.fold[i : i + 3]}) == 1 for i in range(0, 63, 3))
    assert table.fold[9] == table.fold[2] and set(table.fold) == ({0, -1}, {0, 1, 2})[folds > 1]
    oof = np.flatnonzero(table.fold >= 0)
    oof = OutOfFold(oof, table.fold[oof], table.y[oof], np.zeros((len(oof), 5), np.float32))
    parts = data.threshold_folds(oof, table.groups, config)
    assert len(parts) == len(oof.rows)


@pytest.mark.parametrize("more", [["--folds", "1"], ["--fold-column", "part"], ["--valid"]])
def test_other_splits(more, rows, bert, tmp_path, capsys):
    """Trained to the end; only known cells of held-out rows are counted."""
    given = [[*row, (i // 2) % 3 - 1] for i, row in enumerate(rows)]
    path = write_csv(tmp_path / "f.csv", given, ("id", "text", *LABELS, "part"))
    dev = with_gaps(make_rows(40, seed=5), seed=1)
    if more == ["--valid"]:
        more = ["--valid", str(write_csv(tmp_path / "dev.csv", dev))]
    flags = FLAGS if "--folds" in more else FLAGS[2:]
    argv = ["--model", str(bert), "--train", str(path), "--missing-labels", *flags, *more]
    out = tmp_path / "run"
    assert train.main([*argv, "--epochs", "1", "--out", str(out)]) == 0
    oof = read_oof_csv(Run(out))
    by_id = {row[0]: row for row in (dev if "--valid" in more else rows)}
    y = as_y([by_id[i] for i in oof.ids])
    assert 0 < len(y) < 64 and np.array_equal(oof.y, y, equal_nan=True)
    per_label = json.loads((out / "metrics.json").read_text())["per_label"]
    found = [sum(row[key] for key in ("tp", "fp", "fn", "tn")) for row in per_label.values()]
    assert found == (~np.isnan(y)).sum(0).tolist()


# From the command to its files


def test_what_a_run_leaves(run, rows, path):
    y = as_y(rows)
    oof = read(run / "oof.csv")
    assert [row["id"] for row in oof] == [row[0] for row in rows]
    assert [[row[f"given_{name}"] for name in LABELS] for row in oof] == [r[2:] for r in rows]
    groups = [row["group"] for row in oof]
    assert groups[2] == groups[9] and len({*groups}) == 63
    found = read_oof_csv(Run(run))
    assert np.array_equal(found.y, y, equal_nan=True)
    table = read_training(Run(run), [])
    again = read_oof(Run(run), table)
    assert np.array_equal(again.y, y, equal_nan=True) and np.array_equal(again.p, found.p)
    want = metrics.summary(y, found.p, found.fold, LABELS)
    values = json.loads((run / "metrics.json").read_text())
    assert values["per_label"] == json.loads(json.dumps(want.values["per_label"]))
    assert np.array_equal(np.load(run / "th.npy"), want.th)
    cells = read(run / "errors.csv")
    given = {(c["id"], c["label"]): c["given"] for c in cells}
    all_known = {(r[0], n): c for r in rows for n, c in zip(LABELS, r[2:], strict=True) if c}
    assert given == all_known and len(cells) == len(all_known)
    losses = [float(c["loss"]) for c in cells]
    assert losses == sorted(losses, reverse=True)
    log = [json.loads(line) for line in (run / "fold_0/log.jsonl").read_text().splitlines()]
    kept = max(log, key=lambda r: (r["macro_f1"], -r["val_loss"]))
    mine = found.fold == 0
    losses = -np.log(np.where(y[mine] > 0, found.p[mine], 1 - found.p[mine]))
    assert kept["val_loss"] == pytest.approx(
        np.where(np.isnan(y[mine]), 0, losses).mean(), rel=1e-4
    )


def test_the_report_is_drawn(run, rows, tmp_path):
    oof = read_oof_csv(Run(run))
    held_out = OutOfFold(np.arange(64), oof.fold, oof.y, oof.p)
    summary = metrics.summary(oof.y, oof.p, oof.fold, LABELS)
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    pictures.draw_figure(tmp_path / "r.png", log, held_out, summary, LABELS, "a run")
    assert (tmp_path / "r.png").stat().st_size > 10_000


def test_what_is_printed(command, rows, tmp_path, capsys):
    assert train.main([*command, "--epochs", "1", "--out", str(tmp_path / "run")]) == 0
    out, err = capsys.readouterr()
    assert "train.csv: 3 rows have no known label: none is learned or scored" in err
    y = as_y(rows)
    for j, name in enumerate(LABELS):
        (line,) = (x for x in out.splitlines() if x.startswith(f"  {name} ") and "(" in x)
        share = y[known(y, j), j].mean()
        assert line.split()[1] == f"{share:.3f}"
        assert line.endswith(f", {64 - len(known(y, j))} unknown")
    rest = y[[i for i in range(64) if i not in EMPTY]]
    none = 1 - (np.nan_to_num(y) > 0).any(1).mean()
    assert "rows 64 | " in out and f"rows with no label {none:.1%}" in out and len(rest) == 61
    assert "duplicate texts 1 (" in out


def test_labels_without_a_known_class_are_warned_of(rows, command, tmp_path, capsys):
    odd = [[*r[:2], r[2] and "1", r[3] and "0", *r[4:]] for r in rows]
    path = write_csv(tmp_path / "odd.csv", odd)
    argv = [*command, "--train", str(path), "--epochs", "1", "--out", str(tmp_path / "run")]
    assert train.main(argv) == 0
    err = capsys.readouterr().err
    n = sum(r[2] == "1" for r in odd)
    assert f"warning: label anger: all {n} known rows have it" in err
    assert "warning: label fear: 0 positives" in err
    values = json.loads((tmp_path / "run/metrics.json").read_text())["per_label"]
    assert values["anger"]["roc_auc"] is None is values["fear"]["roc_auc"]


def test_a_file_without_gaps_gives_the_same_bytes(bert, train_csv, tmp_path):
    argv = ["--model", str(bert), "--train", str(train_csv), *FLAGS, "--epochs", "1"]
    assert train.main([*argv, "--out", str(tmp_path / "a")]) == 0
    assert train.main([*argv, "--missing-labels", "--out", str(tmp_path / "b")]) == 0
    assert outputs(tmp_path / "a") == outputs(tmp_path / "b")
    a, b = (read_json(tmp_path / x / "metrics.json") for x in "ab")
    assert a["per_label"] == b["per_label"]


def test_stopped_and_resumed(command, run, tmp_path, monkeypatch, capsys):
    out = str(tmp_path / "run")
    with monkeypatch.context() as m:
        at_step_end(m, 6, signal.SIGTERM)
        assert train.main([*command, "--out", out]) == 143
    assert train.main([*command, "--out", out]) == 0
    assert "resumes at epoch 2" in capsys.readouterr().out
    assert outputs(Path(out)) == outputs(run)


@pytest.mark.parametrize(
    "more", [["--pos-weight", "--label-smoothing", "0.1"], ["--loss", "focal"]]
)
def test_soft_labels_with_gaps(more, rows, command, tmp_path):
    soft = [[*r[:2], *(c and str(0.1 + 0.7 * int(c)) for c in r[2:])] for r in rows]
    path = write_csv(tmp_path / "soft.csv", soft)
    argv = [*command, "--train", str(path), "--soft-labels", "--epochs", "1", *more]
    assert train.main([*argv, "--out", str(tmp_path / "run")]) == 0
    oof = read(tmp_path / "run/oof.csv")
    given = [[row[f"given_{name}"] for name in LABELS] for row in oof]
    shares = [[c and f"{np.float32(c):.9g}" for c in r[2:]] for r in soft]
    assert given == shares
    assert np.array_equal(read_oof_csv(Run(tmp_path / "run")).y, as_y(rows), equal_nan=True)


# Runs of before the setting was there


def test_a_run_without_the_flag_is_that_of_before(bert, train_csv, tmp_path):
    without, with_flag = Config(), dataclasses.replace(Config(), missing_labels=True)
    assert "missing_labels" not in without.identity and with_flag.identity["missing_labels"]
    argv = ["--model", str(bert), "--train", str(train_csv), *FLAGS, "--epochs", "1"]
    assert train.main([*argv, "--out", str(tmp_path / "a")]) == 0
    assert "missing_labels" not in read_json(tmp_path / "a/config.json")
    assert read_settings(Run(tmp_path / "a")).missing_labels is False
    assert train.main([*argv, "--missing-labels", "--out", str(tmp_path / "a")]) == 2
    assert train.main([*argv, "--out", str(tmp_path / "a")]) == 0


# predict.py


def labelled(n: int = 40) -> list[list]:
    rows = with_gaps(make_rows(n, seed=3), 0.2, seed=2)
    return [
        [*r[:2], *("-1" if c == "" and i % 2 else c for c in r[2:])] for i, r in enumerate(rows)
    ]


@pytest.mark.parametrize("chunk", [10_000, 7])
def test_predict_scores_the_known_cells(chunk, run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(predict, "CHUNK", chunk)
    new = labelled()
    path = write_csv(tmp_path / "new.csv", new)
    argv = ["--run", str(run), "--input", str(path), "--output", str(tmp_path / "s.csv")]
    assert predict.main([*argv, "--calibrate"]) == 0
    out, err = capsys.readouterr()
    pred = np.array([[int(r[name]) for name in LABELS] for r in read(tmp_path / "s.csv")])
    y = as_y(new)
    cells = ~np.isnan(y)
    whole = cells.all(1)
    scores = {
        "macro_f1": np.mean(f1_of(y, pred)),
        "micro_f1": f1_score(y[cells], pred[cells]),
        "exact_match": (y[whole] == pred[whole]).all(1).mean(),
    }
    line = " | ".join(f"{name} {score:.4f}" for name, score in scores.items())
    assert out.splitlines()[-1] == line and 0 < whole.sum() < 37
    assert "new.csv: 3 rows are not scored: all their labels are -1" in err
    assert len(pred) == 40


def test_predict_with_nothing_to_score(run, tmp_path, capsys):
    new = [[*r[:2], *[""] * 5] for r in make_rows(6, seed=3)]
    path = write_csv(tmp_path / "new.csv", new)
    argv = ["--run", str(run), "--input", str(path), "--output", str(tmp_path / "s.csv")]
    assert predict.main(argv) == 0
    out, err = capsys.readouterr()
    assert "no row to score" in out and "6 rows are not scored" in err


def test_runs_averaged(command, run, tmp_path, capsys):
    other = tmp_path / "other"
    argv = [*command, "--seed", "7", "--split-seed", "42", "--epochs", "1", "--out", str(other)]
    assert train.main(argv) == 0
    blend = BlendedRun([FinishedRun(str(x), "cpu", "fp32") for x in (run, other)])
    p = np.mean([read_oof_csv(Run(x)).p for x in (run, other)], axis=0, dtype=float)
    y = read_oof_csv(Run(run)).y
    assert np.array_equal(blend.th, metrics.tune_thresholds(y, p.astype(np.float32)))
    assert np.isfinite(blend.platt).all()
    assert "the mean of 2 runs" in capsys.readouterr().out


# tools/


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    rows = [[f"t{i}", row[1]] for i, row in enumerate(make_rows(30, seed=2))]
    return write_csv(tmp_path_factory.mktemp("texts") / "texts.csv", rows, ("id", "text"))


def taught_by(*argv: str):
    argv = distil.expanded([*argv, "--out", "x", "--device", "cpu", "--precision", "fp32"])
    return read_taught(parse(distil.DistilConfig, argv))


def test_an_unknown_cell_learns_the_teachers_probability(run, texts, rows):
    table = taught_by(str(run), "--texts", str(texts))
    y, n = as_y(rows), 64
    assert table.unlabelled == 30 and len(table) == n + 30
    labelled = np.arange(n + 30) < n
    ensemble = predict.Ensemble(FinishedRun(str(run), "cpu", "fp32"))
    for k in range(2):
        p, targets = ensemble.predict_test(table.inputs, [k]), table.targets_of(k)
        held_out = table.fold == k
        assert np.array_equal(targets[held_out], y[held_out[:n]], equal_nan=True)
        learned = ~held_out & labelled
        given = y[learned[:n]]
        want = np.where(np.isnan(given), p[learned], (given + p[learned]) / 2)
        assert np.allclose(targets[learned], want, atol=1e-6)
        assert np.array_equal(targets[n:], p[n:])


def test_no_label_of_a_held_out_row_reaches_the_student(run, texts, rows, command, tmp_path):
    """Other labels and other gaps in the rows of fold 0, teacher and student anew: the student's
    weights of fold 0 stay, and its epochs are not chosen."""
    fold = read_oof_csv(Run(run)).fold
    shift = lambda r: [*r[:2], *({"": "1", "1": "", "0": "1"}[c] for c in r[2:])]  # noqa: E731
    other = [shift(r) if fold[i] == 0 else r for i, r in enumerate(rows)]
    weights = []
    for name, lines in (("a", rows), ("b", other)):
        given = [[*r, k] for r, k in zip(lines, fold, strict=True)]
        path = write_csv(tmp_path / f"{name}.csv", given, ("id", "text", *LABELS, "part"))
        teacher, student = tmp_path / f"teacher-{name}", tmp_path / f"student-{name}"
        argv = [*command[:2], "--train", str(path), "--missing-labels", *FLAGS[2:]]
        argv += ["--fold-column", "part", "--keep", "last", "--out", str(teacher)]
        assert train.main(argv) == 0
        argv = [str(teacher), "--texts", str(texts), *command[:2], *FLAGS[4:], "--epochs", "1"]
        assert distil.main([*argv, "--keep", "last", "--out", str(student)]) == 0
        weights.append([(student / f"fold_{k}/head.safetensors").read_bytes() for k in (0, 1)])
        assert read_labelled_oof(Run(student), []).group.tolist() == (
            read_oof_csv(Run(teacher)).group.tolist()
        )
    (a0, a1), (b0, b1) = weights
    assert a0 == b0 and a1 != b1


def test_one_student_on_all_rows(run, texts, command, tmp_path, capsys):
    student, one = tmp_path / "student", tmp_path / "one"
    argv = [str(run), "--texts", str(texts), *command[:2], *FLAGS[4:], "--epochs", "1"]
    assert distil.main([*argv, "--out", str(student)]) == 0
    assert read_settings(Run(student)).missing_labels
    capsys.readouterr()
    assert distil.main(["--single", str(student), "--out", str(one)]) == 0
    assert "agreement with the teacher on 2 texts held back" in capsys.readouterr().out  # of 30
    assert np.load(one / "fold_0/oof.npy").shape == (2, 5)


@pytest.mark.skipif(OLD, reason="the exporter of torch 2.6 can't make the graph")
def test_export_in_int8(run, tmp_path, capsys):
    assert export.main([str(run), str(tmp_path / "model"), "--int8"]) == 0
    said = capsys.readouterr().out
    oof = read_oof_csv(Run(run))
    fp32 = metrics.scores(oof.y, metrics.cross_fit(oof.y, oof.p, oof.fold))["macro_f1"]
    assert f"fp32 {fp32:.4f} (64 rows)" in said
    model = json.loads((tmp_path / "model/model.json").read_text())
    assert np.isfinite(model["calibration"]).all() and np.isfinite(model["thresholds"]).all()


# Recipes: the loss of a label that is known nowhere moves nothing of its head

DRIVER = """
assert train.main([*flags, "--out", "run"]) == 0
import dataclasses, model
config = dataclasses.replace(Config(), device="cpu", precision="fp32")
y = np.random.default_rng(0).integers(0, 2, (6, 5)).astype(np.float32)
y[:, 3] = y[2] = np.nan
net = model.build_model(bert, config, y, np.arange(34)).train()
batch = {"input_ids": torch.randint(5, 30, (6, 8)), "labels": torch.tensor(y)}
batch["attention_mask"] = torch.ones_like(batch["input_ids"])
_, losses = model.compute_loss(net, batch, train.make_criterion(config, y))
losses.sum().backward()
moved = net.head.weight.grad.abs().sum(1)
assert torch.isfinite(losses).all() and losses[2] == 0, losses
assert moved[3] == 0 and (moved[[0, 1, 2, 4]] > 0).all(), moved
assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)
"""


@pytest.mark.parametrize(
    "name", ["r_drop", "adversarial", "multi_sample_dropout", "asymmetric_loss"]
)
def test_a_recipe_works_with_gaps(name, command, bert, tmp_path):
    code = copy_code(tmp_path / "code", HERE / f"recipes/{name}.patch")
    flags = [*command, "--epochs", "1"]
    exit_code, printed = run_driver(DRIVER, code, threads=1, flags=flags, bert=str(bert))
    assert exit_code == 0, printed
    oof = read(code / "run/oof.csv")
    assert len(oof) == 64 and all(0 < float(row["joy"]) < 1 for row in oof)


# Bad input


def emptied(rows, *labels: str) -> list[list]:
    places = [2 + LABELS.index(name) for name in labels]
    return [["" if j in places else c for j, c in enumerate(row)] for row in rows]


BAD = {
    "no cell of a label": (
        lambda rows: emptied(rows, "joy"),
        ["--missing-labels"],
        ["column 'joy': every cell is empty"],
    ),
    "no cell is 0": (
        lambda rows: [[*r[:2], *(c.replace("0", "") for c in r[2:])] for r in rows],
        ["--missing-labels"],
        ["no label cell is 0, so nothing tells yes from no", "where empty means no, write 0"],
    ),
    "all gaps": (
        lambda rows: emptied(rows, *LABELS),
        ["--missing-labels"],
        ["'anger'", "'surprise': every cell is empty"],
    ),
    "without the flag": (lambda rows: rows, [], ["must be 0 or 1 (''", "--missing-labels"]),
    "-1 is no label": (
        lambda rows: [[c or "-1" for c in row] for row in rows],
        ["--missing-labels"],
        ["must be 0 or 1 ('-1'", "leave the cell empty"],
    ),
    "a word": (
        lambda rows: [*rows[:3], [*rows[3][:6], "maybe"], *rows[4:]],
        ["--missing-labels"],
        [
            "train.csv:5 column 'surprise': must be 0 or 1 ('maybe'",
            "or leave it empty where the label",
        ],
    ),
}


@pytest.mark.parametrize("which", ["train", "valid"])
@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_refused(kind, which, rows, bert, tmp_path, monkeypatch, capsys):
    make, more, words = BAD[kind]
    monkeypatch.chdir(tmp_path)
    bad, good = write_csv(Path("train.csv"), make(rows)), write_csv(Path("good.csv"), make_rows(40))
    files = ["--train", bad] if which == "train" else ["--train", good, "--valid", bad]
    monkeypatch.setattr(train, "build_model", None)
    argv = ["--model", bert, *files, *more, "--out", "run"]
    assert train.main(list(map(str, argv))) == 2
    one_line(capsys, *words)
    assert not Path("run").exists() and not Path("runs").exists()


@pytest.mark.parametrize("columns", ["of their own", "shared"])
def test_two_data_sets_as_the_documents_show(columns, bert, tmp_path, monkeypatch, capsys):
    """docs/recipes.md: the same folds, no copy on both sides, scores of the first file's rows."""
    monkeypatch.chdir(tmp_path)
    mine, theirs = make_rows(60), make_rows(40, seed=5)
    theirs[7][1] = f" {mine[3][1].upper()}  "  # a copy
    header = ["id", "text", *LABELS]
    write_csv(Path("mine.csv"), mine, header)
    write_csv(Path("theirs.csv"), [[f"t{row[0]}", *row[1:]] for row in theirs], header)
    argv = ["--model", str(bert), "--epochs", "1"]
    base = ["--folds", "2", "--labels", "joy", "fear", "--out", "runs/base"]
    assert train.main([*argv, "--train", "mine.csv", *base]) == 0
    document = (Path(train.__file__).parent / "docs/recipes.md").read_text()
    section = document.split("## Two data sets, one model")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.S)
    if columns == "shared":
        code = "".join(line for line in code.splitlines(True) if "rename(" not in line)
    exec(code, {})
    two = pd.read_csv("both.csv", dtype=str, keep_default_na=False)
    texts = {row[1] for row in mine}
    assert len(two) == 60 + sum(row[1].strip().lower() not in texts for row in theirs)
    assert two["fold"][60:].eq("-1").all() and {*two["fold"][:60]} == {"0", "1"}
    flags = shlex.split(re.search(r"python train.py (.*)", section)[1])
    if columns == "shared":
        del flags[flags.index("--missing-labels")], flags[-4:-2]
    capsys.readouterr()
    assert train.main([*argv, *flags]) == 0
    assert "on both sides" not in capsys.readouterr().err
    assert compare.main(shlex.split(re.search(r"compare.py (.*)", section)[1])) == 0
    out = capsys.readouterr().out
    assert "\nfear" in out and "\njoy" in out and "their" not in out.split("B has changed")[0]
    assert len(Path("runs/both/oof.csv").read_text().splitlines()) == 61


def test_graded_labels_as_the_documents_show(bert, tmp_path, monkeypatch, capsys):
    """docs/recipes.md: the same rows count as positives, and compare.py takes both runs."""
    monkeypatch.chdir(tmp_path)
    rows = make_rows(60)
    header = ["id", "text", *LABELS]
    write_csv(Path("hard.csv"), rows, header)
    grades = [
        [*r[:2], *(c and str(int(c) * (1 + i % 3)) for c in r[2:])] for i, r in enumerate(rows)
    ]
    write_csv(Path("graded.csv"), grades, header)
    argv = ["--model", str(bert), "--epochs", "1", "--folds", "2"]
    base = ["--split-seed", "42", "--labels", "joy", "fear", "--out", "runs/base"]
    assert train.main([*argv, "--train", "hard.csv", *base]) == 0
    section = (HERE / "docs/recipes.md").read_text().split("\n## Graded labels")[1]
    exec(re.search(r"```python\n(.*?)```", section, re.S)[1], {})
    assert {*pd.read_csv("shares.csv")["joy"]} == {0.05, 0.6, 0.85, 1.0}
    assert train.main([*argv, *shlex.split(re.search(r"python train.py (.*)", section)[1])]) == 0
    capsys.readouterr()
    assert compare.main(shlex.split(re.search(r"compare.py (.*)", section)[1])) == 0
    assert "soft_labels: False -> True" in capsys.readouterr().out
