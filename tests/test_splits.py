"""The user's own splits, soft labels, a run that stays loaded.

What is trained on and scored is compared with the files' rows; folds, thresholds, losses and counts
with the same computed here; rows that stand together with components found by brute force; a run
that was stopped, or repeated from its config.json, with the undisturbed run, byte for byte; threads
at once with one call after the other.
python -m pytest tests/test_splits.py
"""

import contextlib
import csv
import io
import itertools
import json
import os
import re
import shutil
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas
import pytest
import torch
from cases.splits import ERRORS, FOLD, GROUP, LARGE_GROUPS, ROWS, sheet
from conftest import LABELS, WORDS, make_rows, outputs, write_csv
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

import data
import metrics
import model
import predict
import train
from config import Config
from data import Table, assign_folds, text_hashes
from support import encoders, splits
from support.checkpoint import Checkpoint
from support.process import UserError

BASE = ["--epochs", "2", "--batch-size", "8", "--lr", "5e-3", "--precision", "fp32"]
KINDS = ("valid", "fold", "group", "soft")


class Stop(BaseException):
    """Ends a run at once; no code of ours catches it."""


def column(path: Path, name: str) -> list[str]:
    with open(path, encoding="utf-8-sig", newline="") as f:
        return [row[name].strip() for row in csv.DictReader(f)]


def numbers(path: Path) -> np.ndarray:
    """float32 (N, C): the label columns."""
    return np.array([column(path, name) for name in LABELS], dtype=np.float32).T


def macro_f1(y, pred) -> float:
    return f1_score(y, pred, average="macro", zero_division=0)


def soften(rows: list[list], seed: int) -> list[list]:
    """A 0 becomes a share below a half, a 1 one from a half on; some are a half exactly."""
    rng, low = np.random.default_rng(seed), {"0": 0.0, "1": 0.5}
    more = [0, 0.13, 0.31, 0.44]
    return [[*r[:2], *(f"{low[y] + rng.choice(more):.2f}" for y in r[2:])] for r in rows]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """dev.csv, and the training file of each kind. In group.csv texts join the first four
    authors."""
    d, rows = tmp_path_factory.mktemp("splits"), make_rows(48)
    sheet(d / "valid.csv", rows)
    sheet(d / "dev.csv", make_rows(40, seed=5))
    sheet(d / "fold.csv", rows, part=lambda i: -1 if i % 8 == 7 else i // 2 % 3)
    sheet(d / "soft.csv", soften(rows, 0))
    for i in (3, 6, 9, 47):
        rows[i] = [rows[i][0], rows[i - 3][1].upper(), *rows[i][2:]]
    sheet(d / "group.csv", rows, author=lambda i: "" if i % 9 == 8 else f" a{i // 3} ")
    return d


@pytest.fixture(scope="module")
def commands(place, bert) -> dict[str, list[str]]:
    more = ["--fold-column part", "--group-column author --folds 3", "--soft-labels --folds 2"]
    more = dict(zip(KINDS, [f"--valid {place}/dev.csv", *more], strict=True))
    return {
        k: ["--model", str(bert), *BASE, "--train", f"{place}/{k}.csv", *more[k].split()]
        for k in KINDS
    }


@pytest.fixture(scope="module")
def runs(tmp_path_factory, commands) -> dict[str, SimpleNamespace]:
    """Each kind of run, undisturbed: its folder, what it said, and of each fold what it learned
    from."""
    d, found, build = tmp_path_factory.mktemp("runs"), {}, train.build_model
    real, loader = train.make_criterion, train.train_loader

    def build_model(*args):
        run.heads.append((m := build(*args)).head.bias.detach().sigmoid().numpy())
        run.learned.append([])
        return m

    def make_criterion(*args):
        criterion = real(*args)
        return lambda z, t: (
            z.requires_grad and run.learned[-1].append(t.numpy()),
            criterion(z, t),
        )[1]

    def train_loader(*args):
        run.rows.setdefault(args[3].fold, []).append(sorted(np.concatenate(args[3].steps).tolist()))
        return loader(*args)

    with pytest.MonkeyPatch.context() as m:
        for f in (build_model, make_criterion, train_loader):
            m.setattr(train, f.__name__, f)
        for kind in KINDS:
            run = found[kind] = SimpleNamespace(path=d / kind, heads=[], learned=[], rows={})
            with contextlib.redirect_stdout(io.StringIO()) as said:
                assert train.main([*commands[kind], "--out", str(run.path)]) == 0
            run.said = said.getvalue()
    return found


def until_start(monkeypatch, argv: list) -> tuple:
    """(run folder, Config, Table) as train.py has them before it writes anything."""
    found = []

    def start_run(*args):
        found.extend(args[:3])
        raise Stop

    with monkeypatch.context() as m, pytest.raises(Stop):
        m.setattr(train, "start_run", start_run)
        raise AssertionError(f"exit {train.main(list(map(str, argv)))}")
    return tuple(found)


# What a run learns from and is scored on

TEXTS = {"a": "a", "A ": "a", "\uff41": "a", "b": "b", "c": "c", "d": "d", "e": "e"}
TEXTS |= dict.fromkeys(["", " ", "\u200b"])  # None: blank


def components(texts: list, groups: list) -> np.ndarray:
    """Two rows at a time, renumbered where they are alike; None is no text, '' no group."""
    of = np.arange(len(texts))
    for i in range(len(of)):
        for j in range(i):
            if texts[i] == texts[j] is not None or groups[i] == groups[j] != "":
                of[(of == of[i]) | (of == of[j])] = min(of[i], of[j])
    return of


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(sorted(TEXTS)), st.sampled_from(["", "", *"xyzwa"])),
        min_size=1,
        max_size=14,
    )
)
def test_rows_that_stand_together_are_components(rows):
    texts, groups = map(list, zip(*rows, strict=True))
    table = Table(texts, texts, texts, None, "text", group=np.array(groups, object))
    same = table.groups[:, None] == table.groups
    of = components([TEXTS[t] for t in texts], groups)
    assert np.array_equal(same, of[:, None] == of)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_learns_from_and_is_scored_on_the_rows_of_its_split(kind, place, runs):
    """Learned are the cells as they are; scored, split and chosen by is what is a half or more."""
    files = [place / f"{kind}.csv", *([place / "dev.csv"] if kind == "valid" else [])]
    targets = np.concatenate([numbers(f) for f in files])
    ids, texts = (np.array(sum((column(f, name) for f in files), [])) for name in ("id", "text"))
    y, hashes, run = (targets >= 0.5).astype(np.float32), text_hashes(texts.tolist()), runs[kind]
    if kind == "valid":
        fold = np.repeat([-1, 0], [48, 40])
    elif kind == "fold":
        fold = np.array(column(files[0], "part"), int)
        assert set(fold) == {-1, 0, 1, 2}
    elif kind == "group":
        authors, folded = column(files[0], "author"), [t.lower() for t in texts]
        fold = assign_folds(y, of := components(folded, authors), 3, 42)
        alone = components(folded, [""] * 48), components([None] * 48, authors)
        assert len(set(of)) < min(len(set(alone[0])), len(set(alone[1])))  # both join
        assert all(len(set(fold[of == n])) == 1 for n in set(of))
    else:
        fold = assign_folds(y, hashes, 2, 42)
        assert not np.array_equal(fold, assign_folds(np.ceil(targets), hashes, 2, 42))
    held, K = fold >= 0, max(fold) + 1
    assert run.rows == {k: [np.flatnonzero(fold != k).tolist()] * 2 for k in range(K)}
    for k in range(K):
        want = targets[fold != k]
        assert np.array_equal(
            np.sort(np.concatenate(run.learned[k]), 0), np.sort(np.tile(want, (2, 1)), 0)
        )
        assert np.allclose(run.heads[k], want.mean(0).clip(0.001, 0.999), atol=1e-6)
    p = numbers(oof := run.path / "oof.csv")
    assert column(oof, "id") == ids[held].tolist()
    assert column(oof, "fold") == list(map(str, fold[held]))
    # The epoch kept is the best on the held-out rows, and its loss that of the cells as they are.
    log = list(map(json.loads, (run.path / "log.jsonl").read_text().splitlines()))
    targets, y, hashes, ids, fold = (x[held] for x in (targets, y, hashes, ids, fold))
    loss = -(targets * np.log(p) + (1 - targets) * np.log1p(-p)).mean(1)
    for k in range(K):
        mine = [r for r in log if r["fold"] == k]
        best = max(mine, key=lambda r: (r["macro_f1"], -r["val_loss"]))
        assert best["val_loss"] == pytest.approx(loss[fold == k].mean(), rel=1e-4)
        assert best["macro_f1"] == pytest.approx(macro_f1(y[fold == k], p[fold == k] >= 0.5))
    assert np.array_equal(th := np.load(run.path / "th.npy"), metrics.tune_thresholds(y, p))
    # Each fold (of one: each fifth) is judged by the thresholds of the others.
    part, crossed = fold if K > 1 else assign_folds(y, hashes, 5, 42), p > 2
    for k in set(part):
        crossed[part == k] = p[part == k] >= metrics.tune_thresholds(y[part != k], p[part != k])
    assert f"cross-fitted macro-F1 {macro_f1(y, crossed):.4f}," in run.said
    assert macro_f1(y, crossed) != macro_f1(y, p >= th)
    given = zip(
        *(column(run.path / "errors.csv", n) for n in ("id", "label", "given")), strict=True
    )
    cells = {(i, LABELS.index(label)): int(value) for i, label, value in given}
    assert cells == {(i, j): y[n, j] for n, i in enumerate(ids) for j in range(5)}


# Given splits


def test_few_dev_rows_are_said(commands, monkeypatch, capsys):
    for few, more, said in ((41, [], True), (40, [], False), (41, ["--keep", "last"], False)):
        monkeypatch.setattr(splits, "FEW", few)
        until_start(monkeypatch, [*commands["valid"], *more])
        assert ("only 40 rows choose" in (out := capsys.readouterr().out)) == said
        assert ("--keep last is advised" in out) == said


@pytest.mark.parametrize("kind", ["valid", "soft"])
def test_predict_scores_a_third_file(kind, runs, tmp_path, capsys):
    """By dev.csv's thresholds; shares by what is a half or more."""
    rows = make_rows(40, seed=3)
    new = write_csv(tmp_path / "new.csv", soften(rows, 1) if kind == "soft" else rows)
    argv = ["--run", str(runs[kind].path), "--input", str(new), "--output", str(tmp_path / "s.csv")]
    assert predict.main([*argv, "--probabilities", str(tmp_path / "p.csv")]) == 0
    pred = numbers(tmp_path / "p.csv") >= np.load(runs[kind].path / "th.npy")
    assert np.array_equal(numbers(tmp_path / "s.csv"), pred)
    assert f"macro_f1 {macro_f1(numbers(new) >= 0.5, pred):.4f}" in capsys.readouterr().out


def test_predict_does_not_write_over_dev(runs, place, test_csv):
    dev, argv = place / "dev.csv", ["--run", str(runs["valid"].path), "--input", str(test_csv)]
    before = dev.read_bytes()
    ended = predict.main([*argv, "--output", str(dev)]), dev.read_bytes()
    dev.write_bytes(before)  # other tests read it
    assert ended == (2, before)


def test_rows_that_are_never_held_out_need_no_positives(bert, tmp_path, monkeypatch, capsys):
    rows = [[*r[:4], str(int(i >= 8 and i % 2)), *r[5:]] for i, r in enumerate(make_rows(40))]
    path = sheet(tmp_path / "f.csv", rows, part=lambda i: -1 if i < 4 else i // 2 % 3)
    until_start(monkeypatch, ["--model", bert, "--train", path, "--fold-column", "part"])
    assert "joy" not in capsys.readouterr().err  # each fold is trained on the joy of the others


@pytest.mark.parametrize("kind", ["valid", "fold"])
def test_texts_and_groups_on_both_sides_are_counted(kind, bert, tmp_path, monkeypatch, capsys):
    rng, rows, n = np.random.default_rng(1), make_rows(60), range(60)
    keys = {"text": rng.choice([*WORDS, *(r[1] for r in rows), "", " "], 60).tolist()}
    keys["group"] = rng.choice(["", "", "p", " p", *"qrstuvwxyzabcdefg"], 60).tolist()
    rows = [
        [rows[i][0], keys["text"][i].upper() if i % 2 else keys["text"][i], *rows[i][2:]] for i in n
    ]
    fold = (
        np.repeat([-1, 0], [40, 20]) if kind == "valid" else rng.permutation(np.arange(60) % 4 - 1)
    )
    monkeypatch.chdir(tmp_path)
    for name, s in (("a", slice(40)), ("b", slice(40, 60))):
        sheet(Path(f"{name}.csv"), rows[s], g=keys["group"][s])
    sheet(Path("f.csv"), rows, g=keys["group"], part=fold.tolist())
    files = "f.csv --fold-column part" if kind == "fold" else "a.csv --valid b.csv"
    until_start(monkeypatch, ["--model", bert, "--group-column", "g", "--train", *files.split()])
    err, held = capsys.readouterr().err, np.flatnonzero(fold >= 0)
    for what, of in keys.items():
        of = [key.strip() for key in of]
        both = sum(any(of[i] == of[j] != "" and fold[i] != fold[j] for j in n) for i in held)
        found = re.findall(rf"(\d+) of (\d+) held-out rows have a {what} that", err)
        assert 0 < both < len(held) and found == [(str(both), str(len(held)))]
    until_start(monkeypatch, ["--model", bert, "--train", "f.csv", "--folds", "2"])
    assert "held-out rows have" not in capsys.readouterr().err  # our own folds keep them apart


# --group-column


def test_a_hold_out_of_groups_is_no_more_than_its_share(bert, tmp_path, monkeypatch):
    path = sheet(tmp_path / "g.csv", make_rows(40), author=lambda i: 0 if i < 30 else i)
    argv = ["--model", bert, "--train", path, "--group-column", "author", "--folds", "1"]
    _, _, table = until_start(monkeypatch, argv)
    assert 1 <= (table.fold == 0).sum() <= 10  # not the 30


@pytest.mark.parametrize("author, text, words, no", LARGE_GROUPS)
def test_a_large_group_is_said(author, text, words, no, bert, tmp_path, monkeypatch, capsys):
    rows = [[r[0], text(i) or r[1], *r[2:]] for i, r in enumerate(make_rows(40))]
    path = sheet(tmp_path / "g.csv", rows, author=author)
    until_start(monkeypatch, ["--model", bert, "--train", path, "--group-column", "author"])
    err = capsys.readouterr().err
    assert all(w in err for w in words) and no not in err


# Going on, and again


def at_step(monkeypatch, number: int, act) -> None:
    """`act()` in the step of that number."""
    real, steps = Checkpoint.after_step, itertools.count(1)
    after_step = lambda *args: (next(steps) == number and act(), real(*args))[1]  # noqa: E731
    monkeypatch.setattr(Checkpoint, "after_step", after_step)


def die():
    raise Stop


@pytest.mark.parametrize("kind", KINDS)
def test_stopped_killed_and_repeated_by_its_config_it_is_the_same_run(
    kind, commands, runs, tmp_path, monkeypatch
):
    argv = [*commands[kind], "--out", str(tmp_path / "run")]
    with monkeypatch.context() as m:
        at_step(m, 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert train.main(argv) == 143
    assert (tmp_path / "run/fold_0/state.pt").exists()
    with monkeypatch.context() as m, pytest.raises(Stop):
        at_step(m, 4, die)
        train.main(argv)
    assert train.main(argv) == 0 and outputs(tmp_path / "run") == outputs(runs[kind].path)
    config, out = str(tmp_path / "run/config.json"), tmp_path / "again"
    assert train.main(["--config", config, "--out", str(out)]) == 0
    assert outputs(out) == outputs(runs[kind].path)


def test_a_split_given_by_a_flag_goes_before_the_folds_of_a_config(runs, place, monkeypatch):
    argv = ["--config", runs["soft"].path / "config.json", "--train", place / "fold.csv"]
    for more, folds in ((["--valid", place / "dev.csv"], 1), (["--fold-column", "part"], 3)):
        assert until_start(monkeypatch, [*argv, *more])[1].folds == folds


def test_the_same_command_finds_its_run(commands, place, tmp_path, monkeypatch, capsys):
    """By the content of dev.csv, wherever it lies."""
    monkeypatch.chdir(tmp_path)
    first = {k: until_start(monkeypatch, commands[k])[0] for k in KINDS}
    assert len({*first.values(), until_start(monkeypatch, commands["valid"][:-2])[0]}) == 5
    assert until_start(monkeypatch, [*commands["fold"], "--folds", "3"])[0] == first["fold"]
    shutil.copy(place / "dev.csv", "d.csv")
    write_csv(Path("e.csv"), make_rows(40, seed=6))
    dev = commands["valid"][:-1]
    found = [until_start(monkeypatch, [*dev, f])[0] == first["valid"] for f in ("d.csv", "e.csv")]
    assert found == [True, False]
    files = f"{place}/dev.csv", "d.csv", "e.csv"
    ends = [train.main([*dev, f, "--epochs", "1", "--out", "run"]) for f in files]
    said = capsys.readouterr()
    assert ends == [0, 0, 2] and said.out.count("fold 0: finished before") == 1
    a, b = re.search(r"sha256: (\S.*?) -> (.*?)[;)]", said.err).groups()
    assert a != b  # the two differ where they are shown


def test_split_seed_governs_every_call_that_assigns_folds(place, bert, tmp_path, monkeypatch):
    """--seed 1 and 2 with --split-seed 7: the rows held out are those of --seed 7, the
    probabilities differ."""
    seeds, held, p = [], [], []
    monkeypatch.setattr(data, "assign_folds", lambda *a: seeds.append(a[3]) or assign_folds(*a))
    argv = ["--model", str(bert), *BASE, "--epochs", "1", "--train", f"{place}/valid.csv", "--seed"]
    for i, how in enumerate((["1", "--split-seed", "7"], ["2", "--split-seed", "7"], ["7"])):
        out = str(tmp_path / f"{i}")
        assert train.main([*argv, *how, "--folds", "1", "--out", out]) == 0
        held.append(column(f"{out}/oof.csv", "id"))
        p.append(numbers(f"{out}/oof.csv"))
        until_start(monkeypatch, [*argv, *how, "--folds", "2"])
    assert (
        train.main(
            [*argv, "1", "--split-seed", "7", "--valid", f"{place}/dev.csv", "--out", f"{out}v"]
        )
        == 0
    )
    assert seeds == [7] * 10  # twice in a hold-out, then in folds; of dev.csv's rows once
    assert held[0] == held[1] == held[2] and not np.array_equal(p[0], p[1])
    _, _, table = until_start(monkeypatch, [*argv, "1", "--folds", "1"])
    assert held[0] != np.array(table.ids)[table.fold == 0].tolist()


# Bad input


@pytest.mark.parametrize("make, more, words", ERRORS)
def test_bad_input_is_one_line(make, more, words, bert, tmp_path, monkeypatch, capsys):
    """Exit 2, no weights read, no file written or changed."""
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "train.csv", ROWS)
    make(tmp_path)
    files = lambda: sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*"))  # noqa: E731
    before, loaded = files(), []
    for module in (model, encoders):
        monkeypatch.setattr(module, "load_encoder", loaded.append)
    assert train.main(["--model", str(bert), "--train", "train.csv", *more]) == 2
    *rest, last = capsys.readouterr().err.splitlines()
    assert last.startswith("error: ") and not any(x.startswith(("error", "Traceb")) for x in rest)
    assert all((w.lstrip("!") in last) != w.startswith("!") for w in words), last
    assert files() == before and not loaded


def test_columns_that_a_flag_names_are_no_forgotten_labels(bert, tmp_path, monkeypatch, capsys):
    path = sheet(tmp_path / "a.csv", ROWS, part=lambda i: i % 2, author=lambda i: i // 3 % 2)
    argv = ["--model", str(bert), "--train", str(path), *FOLD]
    until_start(monkeypatch, [*argv, *GROUP])
    assert "could be" not in capsys.readouterr().err and train.main(argv) == 2
    assert ":1: 'author' could be labels too" in capsys.readouterr().err


# --soft-labels


@pytest.mark.parametrize("kw", [{"loss": "focal"}, {"pos_weight": True}, {"label_smoothing": 0.2}])
def test_losses_of_shares_against_their_formulas(kw):
    """Focal weighs by the squared distance to the target; pos-weight is the shares missing, by the
    shares."""
    g = torch.Generator().manual_seed(0)
    z, y = torch.randn(9, 5, generator=g), torch.rand(9, 5, generator=g)
    known = torch.rand(30, 5, generator=g) * torch.tensor([1, 0.5, 0.2, 0.9, 0.0])
    p, t, w = torch.sigmoid(z), y, torch.ones(5)
    if "pos_weight" in kw:
        w[:4] = ((1 - known).sum(0) / known.sum(0))[:4]  # the last has none
    if "label_smoothing" in kw:
        t = y * 0.8 + 0.1
    loss = -(w * t * p.log() + (1 - t) * (1 - p).log())
    loss = loss * (p - y) ** 2 if "loss" in kw else loss
    criterion = train.make_criterion(Config(device="cpu", **kw), known.numpy())
    assert torch.allclose(criterion(z, y), loss.mean(1), rtol=1e-4)


# load_run


def test_threads_ask_one_loaded_run(runs, monkeypatch):
    """Six threads at once against one call after the other; each fold's weights are read once."""
    run, loads, real = (runs["group"].path, "cpu", "fp32"), [], predict.EmotionClassifier.load
    texts = [[r[1] for r in make_rows(7 + i, seed=i)] for i in range(6)]
    want = [predict.predict_emotions(t, run[0], None, *run[1:]) for t in texts]

    def load(folder, *rest):
        loads.append(Path(folder).name)
        time.sleep(0.05)  # another thread comes meanwhile
        return real(folder, *rest)

    def encode(*args):  # a tokenizer serves one thread at a time
        inside.append(len(inside))
        time.sleep(0.01)
        assert inside.pop() == 0
        return data.encode(*args)

    inside = []
    monkeypatch.setattr(predict, "encode", encode)
    monkeypatch.setattr(predict.EmotionClassifier, "load", load)
    model, got, barrier = predict.load_run(*run), [None] * 6, threading.Barrier(6)

    def ask(i):
        barrier.wait()
        got[i] = [model.predict(texts[i]) for _ in range(2)]

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(6)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert got == [[w] * 2 for w in want] and sorted(loads) == ["fold_0", "fold_1", "fold_2"]
    assert [r["text"] for r in want[3]] == texts[3] and model.predict([]) == []


def test_a_loaded_run_needs_its_folder_no_more(runs, tmp_path, monkeypatch):
    """Named by a relative path: another working folder, other thresholds, no weights."""
    shutil.copytree(runs["valid"].path, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    texts, want = [r[1] for r in make_rows(5)], predict.load_run("run")
    model, want = predict.load_run("run"), want.predict(texts)
    np.save(tmp_path / "run/th.npy", np.zeros(5, np.float32))
    (tmp_path / "run/fold_0/model.safetensors").unlink()
    monkeypatch.chdir("/")
    assert model.predict(texts) == want


def test_a_loaded_run_says_what_it_is(runs):
    run = runs["group"].path
    model = predict.load_run(run, "cpu", "fp32")
    score = json.loads((run / "metrics.json").read_text())["macro_f1_cross_fitted"]
    line = f"{run}: 3 folds of {model.config.model} on cpu (fp32)"
    assert repr(model).splitlines() == [
        f"{line}, cross-fitted macro-F1 {score:.4f}",
        f"labels: {', '.join(LABELS)}",
    ]
    model.run.names = [f"label_{i}" for i in range(1000)]
    assert len(repr(model).splitlines()[1]) <= 208 and repr(model).endswith(" ...")


def test_probabilities_of_what_predict_takes(runs):
    model = predict.load_run(runs["group"].path, "cpu", "fp32")
    texts = [r[1] for r in make_rows(5)]
    want = [list(row["probabilities"].values()) for row in model.predict(texts)]
    for those in (texts, tuple(texts), pandas.Series(texts, index=range(9, 14))):
        assert np.array_equal(model.predict_test(those), np.float32(want))
    assert model.predict_test(texts[0]).shape == (1, 5)
    for wrong, said in ((texts[:2] + [None], "texts[2]: is None"), ({"text": 1}, "is a dict")):
        for ask in (model.predict, model.predict_test):
            with pytest.raises(UserError, match=re.escape(said)):
                ask(wrong)
