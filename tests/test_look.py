"""tools/look.py without a browser: what Python computes for the page, against plain loops; the
file; mistakes. In a browser: test_look_browser.py.
"""

import csv
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import metrics
import train
from conftest import LABELS, make_rows, write_csv
from data import DataCollator, encode
from model import EmotionClassifier
from support.encoders import inspect_encoder
from support.files import read_json
from support.finished import FinishedRun, read_thresholds
from support.process import UserError
from tools import compare, look
from tools.parts import look_numbers, look_rows, words
from tools.parts.sides import open_finished, read_all


def made_up(n=300, seed=0):
    """y (n, 4) with unknown cells, a rare label, one without positives; p (n, 4) with ties."""
    rng = np.random.default_rng(seed)
    y = (rng.random((n, 4)) < (0.4, 0.2, 0.02, 0)).astype(np.float64)
    p = np.clip(0.4 * y + rng.normal(0.3, 0.2, y.shape), 0, 1).round(2).astype(np.float32)
    p[:, 2] *= 0.01
    y[rng.random(y.shape) < 0.1] = np.nan
    return y, p


def page(*argv) -> dict:
    return look.page_data(look.parse(list(map(str, argv))))


# Numbers


def test_counts_at_each_threshold_are_those_of_metrics():
    y, p = made_up()
    for j in range(4):
        found = look_numbers.threshold_counts(y[:, j], p[:, j], today=0.35)
        grid = np.array(found["grid"], np.float32)
        assert len(grid) >= 200 and (np.diff(grid) > 0).all()
        for i, th in enumerate(grid):
            tp, fp, fn, tn = metrics.confusion(y[:, [j]], metrics.detect(p[:, [j]], th))[:, 0]
            assert (tp, fp) == (found["tp"][i], found["fp"][i])
            assert (tp + fn, tp + fp + fn + tn) == (found["positives"], found["known"])
        assert grid[found["today"]] == np.float32(0.35)


def test_the_best_threshold_has_the_highest_f1_of_all():
    y, p = made_up()
    for j in range(3):
        found = look_numbers.threshold_counts(y[:, j], p[:, j], today=0.5)
        best = np.float32(found["grid"][found["best"]])
        of_all = [metrics.f1_by_threshold(y[:, [j]], p[:, [j]], [th])[0, 0] for th in p[:, j]]
        assert metrics.f1_by_threshold(y[:, [j]], p[:, [j]], [best])[0, 0] == max(of_all)
    assert look_numbers.threshold_counts(y[:, 3], p[:, 3], today=0.5)["best"] is None


def test_the_slider_of_a_rare_label_is_fine_near_0():
    y, p = made_up()
    found = look_numbers.threshold_counts(y[:, 2], p[:, 2], today=0.004)
    assert found["grid"][-1] == 0.01 and found["grid"][1] <= 0.0001


def test_thresholds_stand_on_the_page_as_the_same_float32():
    values = np.random.default_rng(0).random(500).astype(np.float32)
    text = json.dumps(look_numbers.exact(values))
    assert np.array_equal(np.array(json.loads(text)).astype(np.float32), values)


def test_labels_that_go_together_are_counted():
    y, p = made_up()
    pred = p >= 0.4
    together = look_numbers.given_together(y)
    taken = look_numbers.taken_for(y, pred)
    assert taken.sum() > 0
    for a in range(4):
        for b in range(4):
            assert together[a, b] == sum(row[a] == 1 and row[b] == 1 for row in y)
            swapped = 0
            for row, verdict in zip(y, pred, strict=True):
                missed = row[a] == 1 and not verdict[a]
                swapped += bool(missed and row[b] == 0 and verdict[b])
            assert taken[a, b] == swapped


def test_scores_by_length():
    y, p = made_up(200)
    pred = p >= 0.4
    texts = ["x" * (5 + i % 40) for i in range(200)]
    texts[7] = None
    parts = look_numbers.scores_by_length(texts, y, pred)
    assert len(parts) == 4 and sum(part["rows"] for part in parts) == 199
    assert parts[0]["shortest"] == 5 and parts[-1]["longest"] == 44
    for part in parts:
        low, high = part["shortest"], part["longest"]
        rows = [i for i, t in enumerate(texts) if t is not None and low <= len(t) <= high]
        assert len(rows) == part["rows"]
        wanted = metrics.scores(y[rows], pred[rows])
        assert part["macro_f1"] == pytest.approx(wanted["macro_f1"], abs=1e-6)
        assert part["exact_match"] == pytest.approx(wanted["exact_match"], abs=1e-6)
    same = look_numbers.scores_by_length(["abc"] * 200, y, pred)
    assert [part["rows"] for part in same] == [200]
    assert look_numbers.scores_by_length([None] * 200, y, pred) == []


# Rows


def test_of_many_rows_the_worst_and_as_many_drawn_are_shown():
    losses = np.random.default_rng(0).random(100_000)
    shown = look_rows.shown_rows(losses)
    assert len(set(shown.tolist())) == len(shown) == 10_000
    assert set(shown[:5000]) == set(np.argsort(losses)[-5000:])
    others = losses[shown[5000:]]
    assert np.median(others) == pytest.approx(0.475, abs=0.02)  # of 0 to 0.95, evenly
    assert np.array_equal(shown, look_rows.shown_rows(losses))
    assert len(look_rows.shown_rows(losses[:10_000])) == 10_000
    assert "5,000 of highest loss and 5,000 drawn" in look_rows.shown_of(100_000)
    assert look_rows.shown_of(615) == "All 615 held-out rows."


def test_losses_of_rows_and_the_most_wrong_cells():
    y, p = made_up(50)
    y[3] = np.nan
    pred = p >= 0.4
    losses = look_rows.row_losses(y, p)
    wrong = []
    for i in range(50):
        cells = [j for j in range(4) if not np.isnan(y[i, j])]
        of_cells = [-np.log(max(p[i, j] if y[i, j] else 1 - p[i, j], 1e-12)) for j in cells]
        assert losses[i] == pytest.approx(np.mean(of_cells) if cells else -1, rel=1e-5)
        wrong += [(i, j) for j in cells if (y[i, j] == 1) != pred[i, j]]
    found = look_rows.most_wrong(y, p, pred, 10_000)
    assert sorted(map(tuple, found.tolist())) == sorted(wrong)
    ordered = look_rows.cell_losses(y, p)[found[:, 0], found[:, 1]]
    assert (np.diff(ordered) <= 0).all()
    assert len(look_rows.most_wrong(y, p, pred, 5)) == 5


def test_the_page_of_ten_thousand_tweets_is_under_five_megabytes():
    rng = np.random.default_rng(0)
    n = 10_000
    y, p = (rng.random((n, 5)) < 0.3).astype(float), rng.random((n, 5)).astype(np.float32)
    oof = SimpleNamespace(ids=[f"eng_train_{i:06d}" for i in range(n)], fold=np.zeros(n, int))
    one = SimpleNamespace(oof=oof, judged=SimpleNamespace(y=y, p=p, pred=p > 0.5))
    rows = [look_rows.row_cells(one, "word " * 28, i) for i in range(n)]
    assert len(look.fill({"rows": rows}, look.read_library()).encode()) < 5e6


def test_a_long_text_is_cut_and_says_so():
    assert look_rows.short("a" * 2000) == "a" * 2000
    assert look_rows.short("a" * 2001) == "a" * 2000 + " … (cut: 2,001 characters)"
    for n in (1999, 2000, 2001, 5000):
        pieces = [("a" * 7, 0.5)] * (n // 7) + [("a" * (n % 7), 0.0)]
        kept = look_rows.short_pieces(pieces)
        assert "".join(text for text, _ in kept) == look_rows.short("a" * n)


# The page


def test_the_page_has_the_numbers_of_the_run(finished):
    data = page(finished, "--no-words")
    scores = read_json(finished / "metrics.json")
    (one,), _, _ = read_all([str(finished)], [])
    th = read_thresholds(None, one.run)
    assert data["about"]["macro_f1"] == pytest.approx(scores["macro_f1_cross_fitted"], abs=1e-6)
    tuned = []
    for j, name in enumerate(LABELS):
        wanted = scores["per_label"][name]
        for key in ("precision", "recall", "f1", "average_precision", "threshold", "support"):
            assert data["labels"][j][key] == pytest.approx(wanted[key], abs=1e-6)
        t = data["thresholds"][j]
        i = t["today"]
        assert np.float32(t["grid"][i]) == th[j]
        counts = [t["tp"][i], t["fp"][i], t["positives"] - t["tp"][i]]
        tuned.append(metrics.precision_recall_f1(counts)[2])
    assert np.mean(tuned) == pytest.approx(scores["macro_f1_tuned"])
    others = one.judged.fold != 0
    of_fold_0 = metrics.tune_thresholds(one.judged.y[others], one.judged.p[others])
    low, high = np.float32(data["fold_thresholds"]).T
    assert (low <= of_fold_0).all() and (of_fold_0 <= high).all()
    confusion = metrics.confusion(one.judged.y, one.judged.pred)
    assert confusion[0].tolist() == [scores["per_label"][name]["tp"] for name in LABELS]


def test_each_row_has_its_text_and_verdicts(finished, train_csv):
    data = page(finished, "--no-words")
    with open(train_csv, encoding="utf-8") as f:
        texts = {row["id"]: row for row in csv.DictReader(f)}
    with open(finished / "errors.csv", encoding="utf-8-sig") as f:
        cells = {(row["id"], row["label"]): row for row in csv.DictReader(f)}
    assert len(data["rows"]) == 120
    for name, fold, text, given, verdicts, logits in data["rows"]:
        assert text == texts[name]["text"]
        for j, label in enumerate(LABELS):
            cell = cells[name, label]
            assert (cell["given"], cell["verdict"]) == (given[j], verdicts[j])
            assert int(cell["fold"]) == fold
            assert 1 / (1 + np.exp(-logits[j])) == pytest.approx(
                float(cell["probability"]), abs=2e-4
            )


def test_the_run_stays_whole_and_the_line_says_what_the_page_holds(finished, tmp_path, capsys):
    run = shutil.copytree(finished, tmp_path / "run")
    assert look.main([str(run)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"wrote {run / 'look.html'} (") and "it holds your texts" in out
    text = (run / "look.html").read_text(encoding="utf-8")
    assert text.count("<script") == text.count("</script>") == 3
    FinishedRun(str(run))
    open_finished(str(run))
    assert look.main([str(run), "--output", str(tmp_path / "b.html"), "--no-words"]) == 0
    assert (tmp_path / "b.html").stat().st_size < 1.5e6


def test_no_text_can_close_the_script_element():
    value = ["</script><script>alert(1)</script>", "<!--", "&amp;", "\0", "\ud83d", "😀", "\u2028"]
    text = look.as_json(value)
    assert "<" not in text and json.loads(text) == value
    text.encode()


ODD = ["joy", "</script><b>", 'it\'s "odd" & 日本', "never"]


def odd_rows(kind: str) -> list[list[str]]:
    rows = []
    for i, (name, text, *cells) in enumerate(make_rows(60)):
        cells = [*cells[:3], "0"]
        if kind == "missing" and i % 4 == 0:
            cells[i // 4 % 3] = ""
        if kind == "missing" and i == 5:
            cells = [""] * 4
        if kind == "soft":
            cells = [{"0": "0.25", "1": "0.75"}[x] for x in cells]
        rows.append([name, text, *cells])
    return rows


@pytest.mark.parametrize(
    "kind, flags, held_out",
    [
        ("missing", ["--missing-labels", "--folds", "2"], 60),
        ("soft", ["--soft-labels", "--folds", "1"], 12),
        ("valid", ["--valid"], 40),
    ],
)
def test_other_kinds_of_runs(kind, flags, held_out, bert, tmp_path):
    header = ["id", "text", *ODD]
    rows_csv = write_csv(tmp_path / "train.csv", odd_rows(kind), header)
    if kind == "valid":
        rows = [[i, t, *cells[:3], "0"] for i, t, *cells in make_rows(40, seed=1)]
        flags = [*flags, str(write_csv(tmp_path / "dev.csv", rows, header))]
    argv = ["--model", str(bert), "--train", str(rows_csv), "--labels", *ODD, "--epochs", "1"]
    out = tmp_path / "run"
    assert train.main([*argv, *flags, "--precision", "fp32", "--out", str(out)]) == 0
    data = page(out)
    scores = read_json(out / "metrics.json")
    assert len(data["rows"]) == held_out
    assert data["missing"] == "" and None not in [row[2] for row in data["rows"]]
    for t, name in zip(data["thresholds"], ODD, strict=True):
        assert t["positives"] == scores["per_label"][name]["support"]
    assert data["thresholds"][3]["best"] is None
    assert data["words"], data["why_no_words"]
    if kind == "missing":
        assert data["rows"][-1][3] == "????"  # the row of which nothing is known comes last
        rows_csv.unlink()  # its text stands in no line of errors.csv
        data = page(out, "--no-words")
        assert data["rows"][-1][2] is None and data["missing"].startswith("1 texts are not at hand")
    assert look.main([str(out), "--no-words"]) == 0


# Words


def test_scores_of_tokens_are_what_a_small_change_of_their_embeddings_does(finished):
    run = FinishedRun(str(finished), precision="fp32")
    tokenizer = inspect_encoder(str(run.fold_dir(0))).tokenizer
    model = EmotionClassifier.load(run.fold_dir(0), run.config)
    texts = ["the furious dog cried", "happy party of the night so happy"]
    dataset = encode(tokenizer, texts, 128)
    collate = DataCollator.of(tokenizer, run.config)
    scores, p = words.token_scores(model, dataset, collate, np.array([0, 1]), [0, 2])
    embedding = model.encoder.get_input_embeddings()
    for row, label in ((0, 0), (1, 2)):
        batch = collate([dataset[row]])
        values = []
        for token in range(len(scores[row])):
            logits = []
            for factor in (0.99, 1.01):

                def scaled(module, args, output, factor=factor, token=token):
                    output = output.clone()
                    output[0, token] *= factor
                    return output

                handle = embedding.register_forward_hook(scaled)
                with torch.no_grad():
                    out = model(batch["input_ids"], batch["attention_mask"])
                handle.remove()
                logits.append(out[0, label].item())
            values.append((logits[1] - logits[0]) / 0.02)
        assert np.abs(values).max() > 0.01
        np.testing.assert_allclose(scores[row], values, atol=2e-3)
        whole = model(batch["input_ids"], batch["attention_mask"])
        assert p[row] == pytest.approx(torch.sigmoid(whole)[0, label].item(), abs=1e-5)


def test_pieces_are_the_whole_text_and_the_cue_word_counts_most(finished):
    run = FinishedRun(str(finished), precision="fp32")
    (one,), _, _ = read_all([str(finished)], [])
    texts, _ = look_rows.read_texts(one, [])
    i = next(i for i, text in enumerate(texts) if "happy" in text)
    joy = LABELS.index("joy")
    p = float(one.judged.p[i, joy])
    cell = words.Cell(texts[i], joy, int(one.oof.fold[i]), p)
    (pieces,) = words.word_scores(run, [cell])
    assert "".join(text for text, _ in pieces) == texts[i]
    assert max(abs(score) for _, score in pieces) == 1
    score = dict(pieces)["happy"]
    assert score > 0.3  # it speaks for joy
    other = words.Cell(cell.text, joy, cell.fold, 1 - p)
    with pytest.raises(UserError, match="other probabilities than oof.csv"):
        words.word_scores(run, [other])


def test_tokens_are_put_together_to_words():
    spans = words.word_spans(
        [None, 0, 0, 1, 2, None],
        [(0, 0), (0, 3), (3, 6), (7, 8), (8, 9), (0, 0)],
        np.array([9.0, 1.0, 1.0, -4.0, 0.5, 9.0]),
    )
    assert spans == [(0, 6, 2.0), (7, 8, -4.0), (8, 9, 0.5)]
    pieces = words.cut("lovely 😀! end", spans)
    assert pieces == [("lovely", 0.5), (" ", 0.0), ("😀", -1.0), ("!", 0.12), (" end", 0.0)]
    overlapping = words.cut("😀b", [(0, 1, 1.0), (0, 1, 1.0), (1, 2, 1.0)])
    assert "".join(text for text, _ in overlapping) == "😀b"


def test_without_weights_there_are_no_words(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("fold_*"))
    data = page(run)
    assert data["words"] == [] and "fold 0" in data["why_no_words"]
    assert len(data["rows"]) == 120
    assert page(run, "--no-words")["why_no_words"] == "--no-words was given"


# Two runs


@pytest.fixture(scope="module")
def second(tmp_path_factory, finished, bert, train_csv):
    """Another seed on the same folds."""
    out = tmp_path_factory.mktemp("second") / "b"
    argv = ["--model", str(bert), "--train", str(train_csv), "--folds", "3", "--epochs", "2"]
    argv += ["--lr", "1e-2", "--batch-size", "8", "--precision", "fp32", "--seed", "1"]
    assert train.main([*argv, "--split-seed", "42", "--out", str(out)]) == 0
    return out


def test_two_runs_are_compared_row_by_row(finished, second):
    data = page(finished, second, "--no-words")
    (a, b), _, names = read_all([str(finished), str(second)], [])
    assert np.array_equal(a.rows, b.rows) and names == LABELS
    differ = a.judged.pred != b.judged.pred
    assert data["other"]["differ"] == sum(row.any() for row in differ) > 0
    for j, label in enumerate(data["other"]["labels"]):
        right_a = right_b = 0
        for i in np.flatnonzero(differ[:, j]):
            right_a += a.judged.pred[i, j] == (a.judged.y[i, j] == 1)
            right_b += b.judged.pred[i, j] == (b.judged.y[i, j] == 1)
        assert label == {"name": LABELS[j], "a": right_a, "b": right_b}
    of_b = {b.oof.ids[i]: look_rows.marks(b.judged.pred[i]) for i in range(120)}
    assert all(row[6] == of_b[row[0]] for row in data["rows"])
    name, *values = data["other"]["table"][0]
    assert name == "macro-F1" and values[0] == pytest.approx(data["about"]["macro_f1"], abs=1e-6)


def test_what_compare_prints_stands_on_the_page(finished, second, capsys):
    data = page(finished, second, "--no-words")
    capsys.readouterr()
    assert compare.main([str(finished), str(second)]) == 0
    printed = capsys.readouterr().out
    assert all(line in printed for line in data["other"]["lines"])


def test_runs_with_other_folds_are_compared_by_rows_alone(finished, bert, train_csv, tmp_path):
    argv = ["--model", str(bert), "--train", str(train_csv), "--folds", "2", "--epochs", "1"]
    assert train.main([*argv, "--precision", "fp32", "--out", str(tmp_path / "b")]) == 0
    other = page(finished, tmp_path / "b", "--no-words")["other"]
    assert other["rows"] == 120 and other["table"] == []
    assert other["lines"][0].startswith("Whether B is better can't be told: ")


# Mistakes


def test_mistakes_are_one_line(finished, clean, tmp_path, capsys, monkeypatch):
    unfinished = shutil.copytree(finished, tmp_path / "half")
    (unfinished / "DONE.json").unlink()
    cases = {
        "holds runs and is none": [tmp_path],
        "is no run": [tmp_path / "nothing"],
        "is one fold of a run": [finished / "fold_0"],
        "is not finished": [unfinished],
        "holds out none of the rows": [finished, clean],
        "name it .html": [finished, "--output", tmp_path / "look.csv"],
        "is no folder": [finished, "--output", tmp_path / "none/look.html"],
        "is a folder": [finished, "--output", tmp_path / "d.html"],
    }
    (tmp_path / "d.html").mkdir()
    before = sorted(tmp_path.rglob("*"))
    for problem, argv in cases.items():
        assert look.main([*map(str, argv)]) == 2
        lines = capsys.readouterr().err.splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        assert len(errors) == 1 and problem in errors[0]
    monkeypatch.setattr(look, "LIBRARY", "itables/none.js")
    assert look.main([str(finished)]) == 2
    assert 'pip install "itables>=2.2"' in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
