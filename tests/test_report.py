"""What a run prints, draws and leaves to quote. python -m pytest tests/test_report.py"""

import csv
import io
import itertools
import json
import re
import shutil
import warnings
from types import SimpleNamespace

import matplotlib.figure
import numpy as np
import pytest
from conftest import LABELS, make_rows, write_csv
from matplotlib import rcParams
from matplotlib.font_manager import findfont

import metrics
import train
from config import Config
from data import OutOfFold, Table
from metrics import Summary
from support import fonts, pictures, quote, report
from support.files import read_json, write_json
from support.finished import FinishedRun
from support.process import UserError


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


def panel(figure, title: str):
    (ax,) = (ax for ax in figure.axes if ax.get_title().startswith(title))
    return ax


def label_ticks(figure) -> list[str]:
    bars = panel(figure, "Cross-fitted F1")
    return sorted(t.get_text() for t in bars.get_yticklabels())


@pytest.mark.parametrize(
    "labels, name",
    [(1, "label"), (5, "$"), (5, "愤怒"), (5, "x" * 300), (30, "label"), (60, "label")],
)
def test_draws_the_same_picture_twice_whatever_the_labels(labels, name, figures):
    args = arguments([f"{name} {j}" for j in range(labels)])
    files = []
    for _ in range(2):
        f = io.BytesIO()
        pictures.draw_report(f, *args)
        files.append(f.getvalue())
    bars = panel(figures[0], "Cross-fitted F1")
    ticks = sorted(t.get_window_extent().extents[[1, 3]].tolist() for t in bars.get_yticklabels())
    assert len(ticks) == labels and all(a[1] <= b[0] + 1 for a, b in itertools.pairwise(ticks))
    assert min(ax.get_window_extent().width for ax in figures[0].axes) > 150
    losses = panel(figures[0], "Loss")
    assert all(line.get_marker() == "o" for line in losses.lines)  # one epoch is a point
    assert files[0] == files[1] and files[0].startswith(b"\x89PNG") and len(files[0]) > 20_000


@pytest.mark.parametrize("name", ["愤怒", "गुस्सा", "joy 🫠", "a\x01"])
def test_names_that_no_font_has_are_numbered_and_the_picture_says_it(name, figures, monkeypatch):
    monkeypatch.setattr(fonts, "installed_fonts", lambda: [])
    *args, _ = arguments(["joy", name, "fear"])
    pictures.draw_report(io.BytesIO(), *args, "模型: macro-F1 0.5")
    (figure,) = figures
    assert [x.split(" (")[0] for x in label_ticks(figure)] == ["fear", "joy", "label 2"]
    assert figure.get_supxlabel() == "No font here has the letters of some names: " + (
        "label N is the N-th in th.json"
    )
    assert figure.get_suptitle() == "??: macro-F1 0.5"


def test_names_in_latin_letters_leave_the_picture_as_it_is(figures, monkeypatch):
    monkeypatch.setattr(fonts, "installed_fonts", lambda: pytest.fail("no font is looked for"))
    pictures.draw_report(io.BytesIO(), *arguments(["joy", "Ärger", "страх"]))
    assert figures[0].get_supxlabel() == ""


def test_another_font_draws_what_the_first_lacks(figures, monkeypatch):
    """Of matplotlib's own fonts STIX has letters that DejaVu lacks."""
    path = findfont("STIXGeneral")
    monkeypatch.setattr(fonts, "installed_fonts", lambda: [("none", "no"), ("STIXGeneral", path)])
    own = fonts.letters_of(findfont("DejaVu Sans"))
    letter = min(x for x in fonts.letters_of(path) - own if x.isprintable())
    pictures.draw_report(io.BytesIO(), *arguments(["joy", f"{letter}{letter}"]))
    assert any(letter in tick for tick in label_ticks(figures[0]))
    assert figures[0].get_supxlabel() == ""
    assert rcParams["font.family"] == ["sans-serif"]  # as it was


def test_the_fonts_that_are_installed_can_be_read():
    families = fonts.installed_fonts()
    assert ("DejaVu Sans", findfont("DejaVu Sans")) in families
    assert not any("Last Resort" in family for family, _ in families)


def real_like(n: int = 300) -> tuple[OutOfFold, Summary, list[str]]:
    """Three labels, the rarest first, found the better the more frequent they are."""
    rng = np.random.default_rng(0)
    share = np.array([0.05, 0.5, 0.3])
    y = (rng.random((n, 3)) < share).astype(np.float32)
    p = np.clip(0.4 * y + 0.6 * rng.random((n, 3)) * (1 - 0.2 * share), 0, 1).astype(np.float32)
    names = ["rare", "common", "between"]
    fold = np.arange(n) % 3
    summary = metrics.summary(y, p, fold, names)
    return OutOfFold(np.arange(n), fold, y, p), summary, names


def test_the_picture_shows_the_scores(figures):
    """First, and the largest, is the panel of the labels: F1 beside each bar is the one of
    metrics.json; the curves of the folds are the last."""
    oof, summary, names = real_like()
    log = arguments(["a"])[0]
    pictures.draw_report(io.BytesIO(), log, oof, summary, names, "run")
    axes = figures[0].axes
    size = [ax.get_window_extent().width * ax.get_window_extent().height for ax in axes]
    assert len(axes) == 6 and "Cross-fitted F1" in axes[0].get_title()
    assert size[0] == max(size) and size[0] > 3 * sorted(size)[-2]
    assert [ax.get_title().split()[0] for ax in axes[-2:]] == ["Loss", "Macro-F1"]
    by_label = summary.values["per_label"]
    order = ["common", "between", "rare"]  # by positives
    assert [t.get_text() for t in axes[0].texts] == [f"{by_label[n]['f1']:.3f}" for n in order]
    widths = [bar.get_width() for bar in axes[0].patches]
    assert widths == pytest.approx([by_label[n]["f1"] for n in order])
    on_screen = [axes[0].transData.transform((0, i))[1] for i in range(3)]
    assert on_screen == sorted(on_screen, reverse=True)  # the most frequent on top
    assert f"{summary.values['macro_f1_cross_fitted']:.3f}" in axes[0].get_title()
    for text, name in zip(axes[0].texts, order, strict=True):
        assert text.get_position()[0] > by_label[name]["f1_ci95"][1]  # beyond its interval


def test_curves_of_f1_and_their_dots_are_those_of_the_thresholds(figures):
    oof, summary, names = real_like()
    pictures.draw_report(io.BytesIO(), arguments(["a"])[0], oof, summary, names, "run")
    lines = panel(figures[0], "F1 over the threshold").lines
    for i, j in enumerate([1, 2, 0]):  # by positives: a curve, then its dot
        curve, dot = lines[2 * i : 2 * i + 2]
        th, f1 = (np.array(x) for x in curve.get_data())
        again = [metrics.detect(oof.p[:, [j]], t) for t in (0.2, 0.5, 0.8)]
        want = [metrics.scores(oof.y[:, [j]], pred)["macro_f1"] for pred in again]
        assert f1[[19, 49, 79]] == pytest.approx(want) and th[[19, 49, 79]] == pytest.approx(
            [0.2, 0.5, 0.8]
        )
        chosen = metrics.detect(oof.p[:, [j]], summary.th[j])
        score = metrics.scores(oof.y[:, [j]], chosen)["macro_f1"]
        assert [x[0] for x in dot.get_data()] == pytest.approx([summary.th[j], score])


def test_few_rows_are_no_dot_of_the_reliability():
    """Bins of nine and of ten rows; the calibration error counts all."""
    p = np.repeat([0.05, 0.55], [9, 10]).astype(np.float32)
    y = np.repeat([1, 0], [9, 10])
    assert [len(x) for x in metrics.reliability(y, p)[:2]] == [2, 2]
    mean, share, error = metrics.reliability(y, p, least=10)
    assert mean == pytest.approx([0.55]) and share.tolist() == [0]
    assert error == pytest.approx((9 * 0.95 + 10 * 0.55) / 19)


def test_dots_of_the_reliability_panel_stand_for_ten_rows(figures):
    oof, summary, names = real_like(60)
    pictures.draw_report(io.BytesIO(), arguments(["a"])[0], oof, summary, names, "run")
    drawn = panel(figures[0], "Reliability").lines
    rows = [np.bincount(np.minimum(oof.p[:, j] * 10, 9).astype(int)) for j in (1, 2, 0)]
    assert [len(line.get_xdata()) for line in drawn[:3]] == [(n >= 10).sum() for n in rows]
    assert any(0 < n < 10 for n in np.concatenate(rows))  # there are some to leave out


def test_long_names_keep_their_ends(figures):
    names = [f"a name that is too long for any axis, number {j}" for j in range(3)]
    pictures.draw_report(io.BytesIO(), *arguments(names))
    ticks = [x.split(" (")[0] for x in label_ticks(figures[0])]
    assert [x[-8:] for x in ticks] == ["number 0", "number 1", "number 2"]
    assert max(map(len, ticks)) == 32


# What is printed, and quote.md


def values_of(at_half: float, crossed: float, interval: list[float]) -> dict:
    return {
        "macro_f1_at_half": at_half,
        "macro_f1_cross_fitted": crossed,
        "macro_f1_cross_fitted_ci95": interval,
    }


@pytest.mark.parametrize(
    "at_half, crossed, warned",
    [(0.70, 0.64, True), (0.70, 0.66, False), (0.60, 0.66, False)],  # half the width is 0.05
)
def test_a_warning_where_thresholds_are_noisy(at_half, crossed, warned, capsys):
    report.warn_of_noisy_thresholds(values_of(at_half, crossed, [crossed - 0.04, crossed + 0.06]))
    said = capsys.readouterr().err
    assert bool(said) == warned
    if warned:
        assert f"at 0.5 {at_half:.4f}, cross-fitted {crossed:.4f} - --thresholds 0.5" in said
        assert "cross-fitted is still the score to quote" in said and said.count("\n") == 1


def test_the_table_says_which_thresholds_are_shown(capsys):
    _, summary, names = real_like()
    lines = report.closing_table(summary.values, 3).splitlines()
    assert "cross-fitted" in lines[0] and "Threshold: for new texts" in lines[0]
    assert "standard deviation over folds 0." in lines[-1] and "not the score's error" in lines[-1]
    hold_out = report.closing_table(summary.values, 1).splitlines()[-1]
    assert "standard deviation over parts of the held-out rows 0." in hold_out
    # predict.py scores rows with these very thresholds.
    counts = metrics.confusion(np.ones((4, 3)), np.ones((4, 3)))
    said = report.scores_of_counts(counts, np.array([4, 4]), summary.th, names)
    assert said.startswith("Label") and "cross-fitted" not in said


def sentence_of(oof: OutOfFold, summary: Summary, fold=None, seen: int = 0, **settings) -> str:
    config = Config(**{"model": "org/encoder", "folds": 3, **settings})
    run = SimpleNamespace(identity={"encoder_saw": seen})
    return quote.sentence(config, run, summary.values, oof, oof.fold if fold is None else fold)


def test_the_sentence_to_quote(tmp_path):
    oof, summary, _ = real_like()
    low, high = summary.values["macro_f1_cross_fitted_ci95"]
    score = f"a cross-fitted macro-F1 of {summary.values['macro_f1_cross_fitted']:.3f}"
    score += f" (95 % interval {low:.3f} to {high:.3f}, percentile bootstrap over rows)"
    said = sentence_of(oof, summary)
    judged = "each judged by a model and thresholds of the other folds"
    reached = f"reached {score} on 300 texts, {judged}."
    assert said == f"org/encoder, fine-tuned (3 folds, seed 42, best epoch), {reached}"
    said = sentence_of(oof, summary, seed=7, split_seed=42)
    assert "(3 folds, seed 7, split seed 42, best epoch)" in said
    assert "split" not in sentence_of(oof, summary, seed=7, split_seed=7)
    said = sentence_of(oof, summary, np.arange(300) % 5, folds=1)
    assert "fine-tuned (one hold-out, seed 42, best epoch)" in said
    assert said.endswith(" on 300 held-out texts, with thresholds cross-fitted in 5 parts of them.")
    said = sentence_of(oof, summary, np.arange(300) % 5, folds=1, valid="/x/dev.csv")
    assert (
        "(scored on dev.csv, seed 42, best epoch)" in said
        and " on 300 held-out texts, with" in said
    )
    assert "(3 folds of the column part, " in sentence_of(oof, summary, fold_column="part")
    assert "rows of one author together" in sentence_of(oof, summary, group_column="author")
    assert sentence_of(oof, summary, seen=9).endswith(
        f"on 300 texts, {judged}. The encoder had learned 9 of the run's texts before: "
        "the score is too high."
    )
    oof.y[0, 0] = np.nan
    assert "labels that are unknown are not counted" in sentence_of(oof, summary)
    for name in ("tiny", "run/fold_0"):  # a folder is not quoted with its path
        (tmp_path / name).mkdir(parents=True)
        said = sentence_of(oof, summary, model=str(tmp_path / name))
        assert said.startswith(f"{name}, fine-tuned")


def test_quote_md_of_a_run(finished):
    """It is among the run's checked files, and has the numbers of metrics.json."""
    done = json.loads((finished / "DONE.json").read_text())
    text = (finished / "quote.md").read_text(encoding="utf-8")
    assert done["files"]["quote.md"]["size"] == len(text.encode())
    assert text.startswith(
        "tiny-bert, fine-tuned (3 folds, seed 42, best epoch), reached a cross-fitted macro"
    )
    m = json.loads((finished / "metrics.json").read_text())
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line[:1] == "|"]
    rows = {name: values for name, *values in cells[2:]}
    assert list(rows) == [*LABELS, "macro", "micro"]
    for name in LABELS:
        row = m["per_label"][name]
        low, high = row["f1_ci95"]
        want = [f"{row[key]:.3f}" for key in ("precision", "recall", "f1")]
        want += [f"{low:.3f} to {high:.3f}", f"{row['average_precision']:.3f}", f"{row['support']}"]
        assert rows[name] == want
    low, high = m["macro_f1_cross_fitted_ci95"]
    precision = np.mean([row["average_precision"] for row in m["per_label"].values()])
    total = str(sum(row["support"] for row in m["per_label"].values()))
    assert rows["macro"][2:] == [
        f"{m['macro_f1_cross_fitted']:.3f}",
        f"{low:.3f} to {high:.3f}",
        f"{precision:.3f}",
        total,
    ]
    assert rows["micro"][2:] == [f"{m['micro_f1_cross_fitted']:.3f}", "-", "-", total]
    latex = text[text.index(r"\begin{table}") : text.index(r"\end{table}")]
    lines = [line.removesuffix(r" \\") for line in latex.splitlines() if line.endswith(r"\\")]
    assert lines[1:] == [" & ".join(row) for row in cells[2:]]
    assert r"(95 \% interval" in latex


def test_odd_names_in_the_tables_of_quote_md(tmp_path):
    names = [r"a_b & 50% #1 $x$ {y} ~^\ ", "x|y\nz", "[*] <b>"]
    oof, summary, _ = real_like()
    summary = metrics.summary(oof.y, oof.p, oof.fold, names)
    quote.write_quote(tmp_path / "quote.md", "a 95 % b_c", summary.values)
    text = (tmp_path / "quote.md").read_text(encoding="utf-8")
    latex = text.split("```latex\n")[1].split("```")[0]
    first = r"a\_b \& 50\% \#1 \$x\$ \{y\} \textasciitilde{}\textasciicircum{}\textbackslash{} & "
    assert f"\n{first}" in latex and r"\caption{a 95 \% b\_c}" in latex
    assert "\nx\\textbar{}y z & 0." in latex and "\n{[}{*}] \\textless{}b" in latex
    rows = [line for line in latex.splitlines() if line.endswith(r" \\")]
    assert all(len(re.findall(r"(?<!\\)&", row)) == 6 for row in rows) and len(rows) == 6
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 8 for line in table) and len(table) == 7
    assert table[3].startswith("| x\\|y z | ") and "\\<b\\>" in table[4]


def test_a_label_of_one_class_has_no_average_precision(tmp_path):
    oof, _, names = real_like()
    oof.y[:, 0] = 0
    summary = metrics.summary(oof.y, oof.p, oof.fold, names)
    rows = {row[0]: row[1:] for row in quote.table_rows(summary.values)}
    known = [summary.values["per_label"][n]["average_precision"] for n in names[1:]]
    assert rows["rare"][4] == "-" and rows["macro"][4] == f"{np.mean(known):.3f}"


def test_a_run_without_quote_md_is_read(finished, tmp_path):
    """As older runs are."""
    run = shutil.copytree(finished, tmp_path / "old")
    (run / "quote.md").unlink()
    done = read_json(run / "DONE.json", sealed=True)
    del done["files"]["quote.md"]
    write_json(run / "DONE.json", done, seal=True)
    assert FinishedRun(run).names == LABELS
    write_json(
        run / "DONE.json", done | {"files": done["files"] | {"quote.md": {"sha256": ""}}}, True
    )
    with pytest.raises(UserError, match=r"quote\.md: missing or damaged"):
        FinishedRun(run)


def test_what_only_shows_is_no_part_of_a_run(finished):
    """An edit of it leaves a finished run as it is."""
    same = read_json(finished / "env.json", sealed=True)["same"]
    shows = [f"code.support/{name}.py" for name in ("report", "pictures", "quote")]
    assert not {*shows} & {*same} and "code.support/run.py" in same


def test_a_run_prints_what_to_quote(flags, tmp_path, capsys):
    """Of a hold-out: `train.main` prints the sentence of quote.md."""
    assert train.main([*flags[:4], *flags[6:], "--folds", "1", "--out", str(tmp_path / "a")]) == 0
    said = capsys.readouterr().out
    first = (tmp_path / "a/quote.md").read_text(encoding="utf-8").splitlines()[0]
    assert f"to quote (quote.md has tables, too): {first}\n" in said
    assert (
        "fine-tuned (one hold-out, seed 42, best epoch)" in first and "in 5 parts of them" in first
    )
    rows = len((tmp_path / "a/oof.csv").read_text().splitlines()) - 1
    assert f" on {rows} held-out texts" in first and rows < 120


# errors.csv


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
