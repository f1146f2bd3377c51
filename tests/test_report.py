"""The pictures and what they are drawn from. python -m pytest tests/test_report.py"""

import csv
import io
import itertools
import json
import warnings

import matplotlib.figure
import numpy as np
import pytest
from conftest import LABELS, make_rows, write_csv
from matplotlib import rcParams
from matplotlib.font_manager import findfont

import metrics
import train
from data import OutOfFold, Table
from metrics import Summary
from support import fonts, report


def test_reliability_and_calibration_error_by_hand():
    p = np.array([0.05, 0.05, 0.95, 0.95], np.float32)
    mean, share, error = metrics.reliability(np.array([0, 1, 1, 1]), p)
    assert (
        mean == pytest.approx([0.05, 0.95])
        and share.tolist() == [0.5, 1.0]
        and error == pytest.approx(0.25)
    )
    assert metrics.reliability(np.array([1, 1]), np.array([1.0, 1.0]))[2] == 0


def arguments(names: list[str]) -> tuple:
    """What `draw_report` takes after the path: three folds, four epochs, random rows."""
    rng = np.random.default_rng(0)
    labels = len(names)
    y = (rng.random((80, labels)) < 0.3).astype(np.float32)
    y[:, -1] = 0  # a label without positives
    p = rng.random((80, labels)).astype(np.float32)
    log = [
        {"fold": k, "epoch": e, "train_loss": 1 / (e + 1), "val_loss": 0.5, "macro_f1": 0.1 * e}
        for k in range(3)
        for e in range(4)
    ]
    oof = OutOfFold(np.arange(80), np.arange(80) % 3, y, p)
    draws = metrics.bootstrap_f1(y, p > 0.5, 20)
    summary = Summary({}, np.full(labels, 0.5), p > 0.5, draws)
    return log, oof, summary, names, "t" * 300


@pytest.fixture
def figures(monkeypatch) -> list:
    """The figures that are drawn. Each warning, of glyphs say, is an error."""
    drawn = []
    make = matplotlib.figure.Figure
    monkeypatch.setattr(
        matplotlib.figure, "Figure", lambda **kw: drawn.append(make(**kw)) or drawn[-1]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield drawn


def label_ticks(figure) -> list[str]:
    (bars,) = (ax for ax in figure.axes if "Cross-fitted F1" in ax.get_title())
    return sorted(t.get_text() for t in bars.get_yticklabels())


@pytest.mark.parametrize(
    "labels, name",
    [(1, "label"), (5, "$"), (5, "愤怒"), (5, "x" * 300), (30, "label"), (60, "label")],
)
def test_draws_the_same_picture_twice_whatever_the_labels(labels, name, figures):
    args = arguments([f"{name} {j}" for j in range(labels)])
    pictures = []
    for _ in range(2):
        f = io.BytesIO()
        report.draw_report(f, *args)
        pictures.append(f.getvalue())
    (bars,) = (ax for ax in figures[0].axes if "Cross-fitted F1" in ax.get_title())
    ticks = sorted(t.get_window_extent().extents[[1, 3]].tolist() for t in bars.get_yticklabels())
    assert len(ticks) == labels and all(a[1] <= b[0] + 1 for a, b in itertools.pairwise(ticks))
    assert min(ax.get_window_extent().width for ax in figures[0].axes) > 150
    assert all(
        line.get_marker() == "o" for line in figures[0].axes[0].lines
    )  # one epoch is a point
    assert (
        pictures[0] == pictures[1]
        and pictures[0].startswith(b"\x89PNG")
        and len(pictures[0]) > 20_000
    )


@pytest.mark.parametrize("name", ["愤怒", "गुस्सा", "joy 🫠", "a\x01"])
def test_names_that_no_font_has_are_numbered_and_the_picture_says_it(name, figures, monkeypatch):
    monkeypatch.setattr(fonts, "installed_fonts", lambda: [])
    *args, _ = arguments(["joy", name, "fear"])
    report.draw_report(io.BytesIO(), *args, "模型: macro-F1 0.5")
    (figure,) = figures
    assert [x.split(" (")[0] for x in label_ticks(figure)] == ["fear", "joy", "label 2"]
    assert figure.get_supxlabel() == "No font here has the letters of some names: " + (
        "label N is the N-th in th.json"
    )
    assert figure.get_suptitle() == "??: macro-F1 0.5"


def test_names_in_latin_letters_leave_the_picture_as_it_is(figures, monkeypatch):
    monkeypatch.setattr(fonts, "installed_fonts", lambda: pytest.fail("no font is looked for"))
    report.draw_report(io.BytesIO(), *arguments(["joy", "Ärger", "страх"]))
    assert figures[0].get_supxlabel() == ""


def test_another_font_draws_what_the_first_lacks(figures, monkeypatch):
    """Of matplotlib's own fonts STIX has letters that DejaVu lacks."""
    path = findfont("STIXGeneral")
    monkeypatch.setattr(fonts, "installed_fonts", lambda: [("none", "no"), ("STIXGeneral", path)])
    own = fonts.letters_of(findfont("DejaVu Sans"))
    letter = min(x for x in fonts.letters_of(path) - own if x.isprintable())
    report.draw_report(io.BytesIO(), *arguments(["joy", f"{letter}{letter}"]))
    assert any(letter in tick for tick in label_ticks(figures[0]))
    assert figures[0].get_supxlabel() == ""
    assert rcParams["font.family"] == ["sans-serif"]  # as it was


def test_the_fonts_that_are_installed_can_be_read():
    families = fonts.installed_fonts()
    assert ("DejaVu Sans", findfont("DejaVu Sans")) in families
    assert not any("Last Resort" in family for family, _ in families)


def test_flipped_labels_come_first_in_errors_csv(flags, tmp_path):
    """One label of five flipped in 5 % of the rows: at least five times as frequent in the file's
    first 5 %."""
    rows = make_rows(240, seed=4)
    flipped = {rows[i][0] for i in np.random.default_rng(0).choice(240, 12, replace=False)}
    for r in rows:
        if r[0] in flipped:
            r[4] = str(1 - int(r[4]))  # joy
    path = write_csv(tmp_path / "t.csv", rows)
    more = [
        "--train",
        str(path),
        "--folds",
        "2",
        "--epochs",
        "8",
        "--lr",
        "1e-2",
        "--batch-size",
        "8",
        "--dropout",
        "0",
    ]
    assert train.main([*flags, *more, "--out", str(tmp_path / "run")]) == 0
    cells = list(
        csv.DictReader((tmp_path / "run" / "errors.csv").read_text("utf-8-sig").splitlines())
    )
    assert (tmp_path / "run" / "errors.csv").read_bytes().startswith(b"\xef\xbb\xbfid,")  # Excel
    assert len(cells) == 240 * 5 and list(cells[0]) == [
        "id",
        "fold",
        "label",
        "given",
        "verdict",
        "probability",
        "loss",
        "text",
    ]
    scores = json.loads((tmp_path / "run/metrics.json").read_text())["per_label"]
    for name in LABELS:  # the verdicts are those that the printed scores count
        seen = [(c["given"], c["verdict"]) for c in cells if c["label"] == name]
        counts = [seen.count(pair) for pair in (("1", "1"), ("0", "1"), ("1", "0"), ("0", "0"))]
        assert counts == [scores[name][key] for key in ("tp", "fp", "fn", "tn")]
    loss = [float(c["loss"]) for c in cells]
    assert loss == sorted(loss, reverse=True)
    texts = {r[0]: r[1] for r in rows}
    assert all(texts[c["id"]] == c["text"] for c in cells)
    hit = [c["label"] == "joy" and c["id"] in flipped for c in cells]
    assert sum(hit) == 12 and sum(hit[:60]) / 60 >= 5 * 12 / len(cells)


def test_oof_csv_of_copies_groups_and_added_texts(tmp_path):
    """Groups have the numbers that they have without the texts of tools/distil.py; a label may be
    called group; shares are written as given."""
    texts = ["so happy", "So  HAPPY", "a storm", "new", "sad", "other"]
    y = np.array([[1, 0.25], [0.5, 0], [0, 1], [np.nan, np.nan], [0, 0], [1, 1]], np.float32)
    group = np.array(["", "", "bob", "", "bob", ""], object)
    ids = list("abcdef")
    table = Table(ids, texts, texts, y, "text", group=group)
    names = ["group", "given_group"]
    rows = np.array([0, 1, 2, 4, 5])
    oof = OutOfFold(rows, np.array([0, 0, 1, 1, 0]), table.y[rows], np.full((5, 2), 0.5))
    report.write_oof(tmp_path, table, oof, names)
    header, *found = csv.reader((tmp_path / "oof.csv").read_text().splitlines())
    given = ["given_group_", "given_given_group"]
    assert header == ["id", "fold", *names, "group_", *given]
    assert [row[0] for row in found] == list("abcef")
    number = [int(row[4]) for row in found]
    assert number[0] == number[1] and number[2] == number[3] and len(set(number)) == 3
    assert (np.array([row[5:] for row in found], np.float32) == y[rows]).all()
    known = [0, 1, 2, 4, 5]
    alone = Table(*([x[i] for i in known] for x in (ids, texts, texts)), y[known], "text")
    alone.group = group[known]
    oof = OutOfFold(np.arange(5), oof.fold, alone.y, oof.p)
    report.write_oof(tmp_path, alone, oof, names)
    again = list(csv.reader((tmp_path / "oof.csv").read_text().splitlines()))
    assert again == [header, *found]
