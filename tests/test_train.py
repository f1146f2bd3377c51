"""The loop and the run folder it leaves. python -m pytest tests/test_train.py"""

import csv
import dataclasses
import functools
import json
import math
import re
import stat
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import LABELS, WORDS, make_rows, outputs, write_csv
from sklearn.metrics import f1_score

import metrics
import model as M
import train
from config import Config
from data import Table, assign_folds, read_table
from support.encoders import load_encoder


def config(**kw) -> Config:
    return dataclasses.replace(
        Config(),
        device="cpu",
        precision="fp32",
        lr=1e-3,
        epochs=1,
        pooling="mean",
        dropout=0.0,
        **kw,
    )


@pytest.fixture
def tiny(bert):
    torch.manual_seed(0)
    return M.EmotionClassifier(load_encoder(str(bert)), config()).eval()


def random_batch(n, seed=0):
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 30, (n, 8), generator=g)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": torch.randint(0, 2, (n, 5), generator=g).float(),
    }


def part(batch, a, b):
    return {k: v[a:b] for k, v in batch.items()}


def one_step(model, optimizer, micro_batches, c, scaler=None, criterion=None, scheduler=None):
    """train_one_epoch on a single step: (loss, gradient norm before clipping), steps taken."""
    found, rows = [], sum(len(b["labels"]) for b in micro_batches)
    scheduler = scheduler or torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    scaler = scaler or torch.amp.GradScaler("cpu", enabled=False)
    criterion = criterion or train.make_criterion(c, np.ones((1, 5), np.float32))
    taken = train.train_one_epoch(
        model,
        [(micro_batches, rows, 0)],
        criterion,
        optimizer,
        scheduler,
        scaler,
        c,
        SimpleNamespace(after_step=lambda *both: found.extend(both)),
    )
    return torch.stack(found), taken


@pytest.mark.parametrize("cuts", [(0, 16, 32, 37), (0, 5, 37), (0, 1, 36, 37)])
def test_accumulated_gradient_is_the_undivided_batchs(tiny, cuts):
    batch, steps = random_batch(37), []
    for edges in ((0, 37), cuts):
        torch.manual_seed(1)
        m = M.EmotionClassifier(tiny.encoder, config()).eval()
        m.train = lambda m=m: m  # no dropout: its masks differ by the cuts
        grads = {}

        class Spy(torch.optim.SGD):
            def step(self, closure=None, m=m, grads=grads):
                grads.update({n: p.grad.clone() for n, p in m.named_parameters()})

        micro = [part(batch, a, b) for a, b in zip(edges, edges[1:], strict=False)]
        out, _ = one_step(m, Spy(m.parameters(), 0.1), micro, config(max_grad_norm=1e9))
        steps.append((out, grads))
    (a, grads), (b, others) = steps
    assert torch.allclose(a, b, atol=1e-6)
    assert grads and all(torch.allclose(g, others[n], atol=1e-6) for n, g in grads.items())


def test_gradient_is_unscaled_before_it_is_clipped(tiny):
    """With a scaler the clipped gradient has the asked norm; clipped before, it would be 65536
    times smaller."""
    seen = []

    class Spy(torch.optim.SGD):
        def step(self, *a, **k):
            norms = [p.grad.norm() for g in self.param_groups for p in g["params"]]
            seen.append(torch.stack(norms).norm().item())

    scaler = torch.amp.GradScaler("cpu", enabled=True)
    optimizer = Spy(tiny.parameters(), 0.1)
    (_, norm), _ = one_step(tiny, optimizer, [random_batch(8)], config(max_grad_norm=0.01), scaler)
    assert norm > 0.01 and seen == [pytest.approx(0.01, rel=1e-3)]


def test_the_schedule_waits_for_a_step_that_fp16_skipped(tiny):
    optimizer = torch.optim.SGD(tiny.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", enabled=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    real, times = train.make_criterion(config(), np.ones((1, 5), np.float32)), math.inf
    weights = tiny.head.weight.detach().clone()
    for times, taken in ((math.inf, 0), (1.0, 1)):
        criterion = lambda logits, y, times=times: real(logits, y) * times  # noqa: E731
        more = (config(), scaler, criterion, scheduler)
        assert one_step(tiny, optimizer, [random_batch(8)], *more)[1] == taken
        assert scheduler.last_epoch == taken
        assert torch.equal(weights, tiny.head.weight) == (not taken)


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant"])
def test_learning_rate_rises_then_falls_and_is_never_0(kind):
    c = config(scheduler=kind, warmup_ratio=0.1)
    f = [train.lr_factor(i, 100, c) for i in range(100)]
    assert all(a < b for a, b in zip(f[:10], f[1:11], strict=True)) and f[10] == 1 and min(f) > 0
    assert (
        f[99]
        == {"linear": pytest.approx(1 / 90), "cosine": pytest.approx(0, abs=1e-3), "constant": 1}[
            kind
        ]
    )
    assert (
        all(a >= b for a, b in zip(f[10:], f[11:], strict=False))
        and train.lr_factor(0, 5, config(scheduler=kind, warmup_ratio=0)) == 1
    )


def criterion_of(**kw):
    return train.make_criterion(config(**kw), np.zeros((2, 5), np.float32))


def test_losses_against_their_formulas():
    z, y = torch.randn(7, 5), torch.randint(0, 2, (7, 5)).float()
    p = torch.sigmoid(z)
    bce = -(y * p.log() + (1 - y) * (1 - p).log())
    assert torch.allclose(criterion_of()(z, y), bce.mean(1), atol=1e-5)
    pt = torch.where(y == 1, p, 1 - p)
    focal = (bce * (1 - pt) ** 2).mean(1)
    assert torch.allclose(criterion_of(loss="focal")(z, y), focal, atol=1e-5)
    w = torch.tensor([1.0, 2, 3, 4, 5])
    labels = np.zeros((60, 5), np.float32)
    for j, odds in enumerate(w):  # 60 / (1 + odds) positives: odds negatives for each of them
        labels[: round(60 / (1 + float(odds))), j] = 1
    weighted = -(w * y * p.log() + (1 - y) * (1 - p).log())
    weigh = train.make_criterion(config(pos_weight=True), labels)
    assert torch.allclose(weigh(z, y), weighted.mean(1), atol=1e-5)
    t = y * 0.8 + 0.1
    smooth = -(t * p.log() + (1 - t) * (1 - p).log()).mean(1)
    assert torch.allclose(criterion_of(label_smoothing=0.2)(z, y), smooth, atol=1e-5)


def test_no_decay_on_vectors(tiny):
    decayed, not_decayed = train.get_optimizer_params(tiny, config())
    names = {id(p): n for n, p in tiny.named_parameters()}
    vectors = [names[id(p)] for p in not_decayed["params"]]
    assert all("bias" in n or "LayerNorm" in n for n in vectors)
    assert not_decayed["weight_decay"] == 0 and decayed["weight_decay"] == 0.01
    assert all("LayerNorm" not in names[id(p)] for p in decayed["params"])
    assert len(decayed["params"]) + len(not_decayed["params"]) == len(names)


def test_better_epoch():
    row = {"macro_f1": 0.0, "val_loss": 0.5}
    assert train.better(row, None) and not train.better(row, row)
    assert train.better({**row, "val_loss": 0.4}, row) and train.better(
        {"macro_f1": 0.1, "val_loss": 9.0}, row
    )


def test_run_folder(finished, train_csv):
    """Every file of the contract, and every number recomputed from oof.csv."""
    assert {p.name for p in finished.iterdir()} >= {
        "config.json",
        "env.json",
        "texts.npy",
        "log.jsonl",
        "oof.csv",
        "th.npy",
        "metrics.json",
    }
    want = {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "head.safetensors",
        "oof.npy",
        "log.jsonl",
        "DONE.json",
        "lock",
    }
    assert all(want <= {p.name for p in (finished / f"fold_{k}").iterdir()} for k in range(3))
    assert not list(finished.rglob("state.pt")) and not list(finished.rglob(".*tmp*"))
    assert stat.S_IMODE((finished / "fold_0" / "model.safetensors").stat().st_mode) == stat.S_IMODE(
        (finished / "oof.csv").stat().st_mode
    )
    table = read_table(train_csv, Config(labels=LABELS))
    rows = list(csv.DictReader((finished / "oof.csv").read_text().splitlines()))
    given = [f"given_{name}" for name in LABELS]
    assert list(rows[0]) == ["id", "fold", *LABELS, "group", *given]
    assert [r["id"] for r in rows] == table.ids
    assert (np.array([[r[name] for name in given] for r in rows], float) == table.y).all()
    group = np.array([int(r["group"]) for r in rows])
    same = table.groups[:, None] == table.groups
    assert ((group[:, None] == group) == same).all()
    p = np.array([[float(r[n]) for n in LABELS] for r in rows], dtype=np.float32)
    fold = np.array([int(r["fold"]) for r in rows])
    th, m = np.load(finished / "th.npy"), json.loads((finished / "metrics.json").read_text())
    assert th.dtype == np.float32 and th.shape == (5,)
    y = table.y
    assert m["macro_f1_at_half"] == pytest.approx(
        f1_score(y, p >= np.float32(0.5), average="macro", zero_division=0)
    )
    assert m["macro_f1_tuned"] == pytest.approx(
        f1_score(y, p >= th, average="macro", zero_division=0)
    )
    crossed = metrics.cross_fit(y, p, fold)
    assert m["macro_f1_cross_fitted"] == pytest.approx(
        f1_score(y, crossed, average="macro", zero_division=0)
    )
    assert m["exact_match_cross_fitted"] == pytest.approx((crossed == y).all(1).mean())
    low, high = m["macro_f1_cross_fitted_ci95"]
    assert low <= m["macro_f1_cross_fitted"] <= high and set(m["per_label"]) == set(LABELS)
    assert {
        "macro_precision_cross_fitted",
        "macro_recall_cross_fitted",
        "micro_precision_cross_fitted",
        "micro_f1_cross_fitted",
    } <= set(m)
    assert {"train_rows_per_s", "seconds", "peak_rss_mb", "folds"} <= set(m) and len(
        m["folds"]
    ) == 3
    log = [json.loads(x) for x in (finished / "log.jsonl").read_text().splitlines()]
    assert [(r["fold"], r["epoch"]) for r in log] == [(k, e) for k in range(3) for e in range(10)]
    assert {"train_loss", "val_loss", "macro_f1", "lr", "rows_per_s"} <= set(log[0]) and log[9][
        "train_loss"
    ] < log[0]["train_loss"]
    for k in range(3):  # the stored probabilities are those of the best epoch
        best = max(log[10 * k : 10 * k + 10], key=lambda r: (r["macro_f1"], -r["val_loss"]))
        mine = fold == k
        assert metrics.scores(y[mine], p[mine] >= np.float32(0.5))["macro_f1"] == pytest.approx(
            best["macro_f1"]
        )
    assert m["macro_f1_cross_fitted"] > 0.9  # the cue words are learned


def test_saved_encoder_is_transformers_own_and_goes_on(finished, tmp_path, train_csv, capsys):
    from transformers import AutoModel

    plain = AutoModel.from_pretrained(finished / "fold_0").eval()
    ours = M.EmotionClassifier.load(finished / "fold_0", Config()).encoder
    ids = torch.tensor([[2, 7, 9, 3]])
    with torch.no_grad():
        assert torch.equal(plain(ids).last_hidden_state, ours(ids).last_hidden_state)
    argv = [
        "--model",
        str(finished / "fold_0"),
        "--train",
        str(train_csv),
        "--folds",
        "2",
        "--epochs",
        "1",
        "--out",
        str(tmp_path / "on"),
    ]
    assert train.main(argv) == 0
    assert "120 of 120 texts are among those this encoder was trained on" in capsys.readouterr().err
    argv[1], argv[3], argv[-1] = (str(tmp_path / x) for x in ("on/fold_0", "other.csv", "further"))
    write_csv(tmp_path / "other.csv", make_rows(20, seed=7))
    assert train.main(argv) == 0
    before, after = (np.load(run / "texts.npy") for run in (tmp_path / "on", tmp_path / "further"))
    assert set(before) < set(after) and len(after) <= len(before) + 20


def test_what_is_printed(flags, tmp_path, capsys):
    assert train.main([*flags, "--out", str(tmp_path / "a")]) == 0
    out = capsys.readouterr().out
    for words in (
        "device cpu",
        "fp32",
        "parameters",
        "rows 120",
        "label combinations",
        "duplicate texts",
        "cut at --max-length",
        "row 0: [CLS]",
    ):
        assert words in out, words
    line = r"fold 0 epoch +1/2 \| train loss [\d.]+ \| val loss [\d.]+ \| exact match [\d.]+ "
    line += r"\| macro-F1 [\d.]+ \| lr [\d.e-]+ \| \d+ rows/s"
    assert re.search(line, out)
    for words in (
        "Precision",
        "thresholds: anger 0.",
        "at 0.5",
        "optimistic",
        "cross-fitted (quote this one)",
        "95 % interval",
    ):
        assert words in out, words


def test_hold_out(flags, tmp_path):
    i = flags.index("--folds")
    assert (
        train.main([*flags[:i], "--folds", "1", *flags[i + 2 :], "--out", str(tmp_path / "a")]) == 0
    )
    rows = list(csv.DictReader((tmp_path / "a" / "oof.csv").read_text().splitlines()))
    assert len(rows) == 24 and {r["fold"] for r in rows} == {"0"}
    m = json.loads((tmp_path / "a" / "metrics.json").read_text())
    assert (
        len(m["folds"]) == 1
        and sum(m["per_label"]["joy"][k] for k in ("tp", "fp", "fn", "tn")) == 24
    )


@pytest.mark.parametrize(
    "extra",
    [
        ["--loss", "focal"],
        ["--pos-weight"],
        ["--label-smoothing", "0.1"],
        ["--freeze", "1"],
        ["--scheduler", "cosine"],
        ["--pooling", "cls"],
        ["--accumulate", "3", "--batch-size", "5"],
        ["--precision", "fp16"],
        ["--precision", "bf16"],
        ["--warmup-ratio", "0"],
    ],
)
def test_every_option_trains(flags, tmp_path, extra, bert):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DeprecationWarning)
        assert (
            train.main(
                [*flags, "--folds", "2", *extra, "--fold", "0", "--out", str(tmp_path / "a")]
            )
            == 0
        )
    log = [
        json.loads(x) for x in (tmp_path / "a" / "fold_0" / "log.jsonl").read_text().splitlines()
    ]
    assert log[1]["train_loss"] < log[0]["train_loss"] and math.isfinite(log[1]["val_loss"])
    old, new = (
        load_encoder(str(bert)).state_dict(),
        load_encoder(str(tmp_path / "a" / "fold_0")).state_dict(),
    )
    frozen = [n for n in old if "embeddings" in n or "layer.0." in n]
    assert all(torch.equal(old[n], new[n]) for n in frozen) == ("--freeze" in extra)
    assert not torch.equal(
        old["encoder.layer.1.output.dense.weight"], new["encoder.layer.1.output.dense.weight"]
    )


def test_pos_weight_comes_from_the_training_fold_and_survives_zero(flags, tmp_path, monkeypatch):
    rows = make_rows(60)
    for r in rows:
        r[3] = "0"  # fear never
    seen, real = [], train.F.binary_cross_entropy_with_logits

    def bce(logits, target, pos_weight, reduction):
        seen.append(pos_weight)
        return real(logits, target, pos_weight=pos_weight, reduction=reduction)

    monkeypatch.setattr(train.F, "binary_cross_entropy_with_logits", bce)
    path = str(write_csv(tmp_path / "t.csv", rows))
    argv = [*flags, "--train", path, "--pos-weight", "--fold", "0", "--out", str(tmp_path / "a")]
    assert train.main(argv) == 0
    fold = np.array([int(x) for x in folds_of(path)])
    y = read_table(path, Config(labels=LABELS)).y[fold != 0]
    assert seen[0][1] == 1 and seen[0].isfinite().all()
    assert seen[0][0] == pytest.approx((len(y) - y[:, 0].sum()) / y[:, 0].sum())
    # Validation is judged by the same loss: all calls have the weights.
    assert all(torch.equal(w, seen[0]) for w in seen)


def folds_of(path, folds=3, seed=42):
    table = read_table(path, Config(labels=LABELS))
    return assign_folds(table.y, table.hashes, folds, seed)


@pytest.mark.parametrize(
    "extra", [[], ["--pos-weight"], ["--loss", "focal"], ["--label-smoothing", "0.2"]]
)
def test_val_loss_is_the_trainings_own_criterion(extra, flags, tmp_path):
    """Recomputed from oof.npy: the printed loss is that of the held-out rows, by the same
    formula."""
    argv = [*flags, *extra, "--fold", "0", "--keep", "last", "--out", str(tmp_path / "a")]
    assert train.main(argv) == 0
    path = flags[flags.index("--train") + 1]
    fold, y = folds_of(path), read_table(path, Config(labels=LABELS)).y
    names = {"--pos-weight": {"pos_weight": True}, "--loss": {"loss": "focal"}}
    names["--label-smoothing"] = {"label_smoothing": 0.2}
    criterion = train.make_criterion(config(**names[extra[0]] if extra else {}), y[fold != 0])
    p = torch.from_numpy(np.load(tmp_path / "a" / "fold_0" / "oof.npy"))
    loss = criterion(torch.logit(p.double()), torch.from_numpy(y[fold == 0]).double()).mean()
    log = (tmp_path / "a" / "fold_0" / "log.jsonl").read_text().splitlines()
    assert json.loads(log[-1])["val_loss"] == pytest.approx(float(loss), rel=1e-3)


def test_the_head_starts_at_each_labels_share(bert, train_csv):
    labels = read_table(train_csv, Config(labels=LABELS)).y
    c, ids = config(labels=LABELS), np.arange(30)
    model = M.build_model(str(bert), c, labels, ids)
    share = torch.from_numpy(labels.mean(0))
    assert torch.allclose(torch.sigmoid(model.head.bias), share)
    model.head = torch.nn.Sequential(
        torch.nn.Linear(32, 32), torch.nn.Tanh(), torch.nn.Linear(32, 5)
    )  # a fork's
    model.start_at(torch.tensor([0.001, 0.25, 0.5, 0.75, 0.999]))
    assert torch.allclose(torch.sigmoid(model.head[2].bias)[1:4], torch.tensor([0.25, 0.5, 0.75]))
    balanced = M.build_model(str(bert), dataclasses.replace(c, pos_weight=True), labels, ids)
    assert balanced.head.bias.abs().max() < 0.5  # there all labels count as equally frequent


def test_the_head_starts_from_the_rows_to_train_on(flags, tmp_path, monkeypatch):
    seen, real = [], train.build_model
    monkeypatch.setattr(train, "build_model", lambda *a: seen.append(a[2]) or real(*a))
    assert train.main([*flags, "--fold", "1", "--out", str(tmp_path / "a")]) == 0
    path = flags[flags.index("--train") + 1]
    y = read_table(path, Config(labels=LABELS)).y
    assert np.array_equal(seen[0], y[folds_of(path) != 1])


def test_token_rows_that_never_occur_keep_their_pretrained_values(
    flags, tmp_path, bert, monkeypatch
):
    """The others are trained as with the whole table: without decay the saved weights are the
    same."""
    rows = [[i, "a dog" if "1" in y[:2] else "the rain", *y] for i, _, *y in make_rows(60)]
    rows = [[i, f"{t} {WORDS[int(i) % 9]} {WORDS[int(i) // 9]}", *y] for i, t, *y in rows]
    argv = [*flags, "--train", str(write_csv(tmp_path / "t.csv", rows)), "--fold", "0"]
    saved = {}
    for decay in ("0", "0.5"):
        for whole in (False, True):
            out = tmp_path / f"{decay}{whole}"
            with monkeypatch.context() as m:
                if whole:
                    m.setattr(M, "use_token_table", lambda *a: None)
                assert train.main([*argv, "--weight-decay", decay, "--out", str(out)]) == 0
            saved[decay, whole] = load_encoder(str(out / "fold_0")).state_dict()
    name = "embeddings.word_embeddings.weight"
    before = load_encoder(str(bert)).state_dict()[name]
    for decay in ("0", "0.5"):
        few, all_ = saved[decay, False], saved[decay, True]
        still = (few[name] == before).all(1)
        assert 0 < still.sum() < len(before) - 5
        moved = not torch.equal(all_[name][still], before[still])
        assert moved == (decay == "0.5")  # in the whole table decay alone moves them
        assert all(
            torch.allclose(p, all_[n], rtol=0, atol=1e-7) for n, p in few.items() if n != name
        )
        assert torch.allclose(few[name][~still], all_[name][~still], rtol=0, atol=1e-7)


def test_fp16_that_never_takes_a_step_is_said(flags, tmp_path, capsys, monkeypatch):
    real = train.make_criterion
    argv = [*flags, "--fold", "0", "--precision", "fp16", "--epochs", "1", "--out"]
    said = "fold 0: fp16 overflowed in every step of epoch 1"

    def criteria(change):
        def make(*args):
            criterion = real(*args)
            return lambda logits, y: change(criterion(logits, y), logits.requires_grad)

        monkeypatch.setattr(train, "make_criterion", make)

    assert train.main([*argv, str(tmp_path / "a")]) == 0
    assert "overflowed" not in capsys.readouterr().err
    criteria(lambda loss, training: 1e20 * loss if training else loss)
    assert train.main([*argv, str(tmp_path / "b")]) == 0
    assert said in capsys.readouterr().err
    # gradients that are not finite at any scale: after some 160 steps the scale itself is 0
    criteria(lambda loss, training: loss + (0 * loss).sqrt() if training else loss)
    scaler = functools.partial(torch.amp.GradScaler, init_scale=1e-44)
    monkeypatch.setattr(torch.amp, "GradScaler", scaler)
    assert train.main([*argv, str(tmp_path / "c")]) == 0
    assert said in capsys.readouterr().err


def test_a_slash_after_the_model_is_no_other_model(flags, tmp_path, capsys):
    assert train.main([*flags, "--fold", "0", "--out", str(tmp_path / "a")]) == 0
    flags[flags.index("--model") + 1] += "/"
    assert train.main([*flags, "--fold", "0", "--out", str(tmp_path / "a")]) == 0
    assert "finished before" in capsys.readouterr().out


def test_patience_stops_early(flags, tmp_path, monkeypatch):
    scores = iter([0.5, 0.4, 0.3, 0.9, 0.9, 0.9])
    real = train.Progress.log_entry

    def row(*a):
        return {**real(*a), "macro_f1": next(scores)}

    monkeypatch.setattr(train.Progress, "log_entry", row)
    out = tmp_path / "a"
    more = ["--epochs", "6", "--patience", "2", "--fold", "0", "--out", str(out)]
    assert train.main([*flags, *more]) == 0
    done = json.loads((out / "fold_0" / "DONE.json").read_text())
    assert done["best"]["epoch"] == 0
    assert len((out / "fold_0" / "log.jsonl").read_text().splitlines()) == 3


def test_the_last_epoch_can_be_kept(flags, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "better", lambda row, best: best is None)
    for keep, epoch in (("best", 0), ("last", 1)):
        out = tmp_path / keep
        assert train.main([*flags, "--fold", "0", "--keep", keep, "--out", str(out)]) == 0
        assert json.loads((out / "fold_0" / "DONE.json").read_text())["best"]["epoch"] == epoch


def test_rate_and_epochs_follow_the_encoder_and_the_rows(flags, tmp_path, capsys):
    """Left out: 3 epochs at 3e-4 for a small encoder and few rows, at 1.5e-4 from 1,000 rows on; 4
    at 5e-5 for a large one."""
    small = 22_000_000

    def chosen(parameters: int, rows: int) -> tuple:
        info = SimpleNamespace(name="x", max_positions=None, layers=6)
        table = Table(["x"] * rows, [], [], None, "text", fold=np.arange(5))
        c = Config().resolved(info, table, *train.default_rate_and_epochs(parameters, rows))
        return c.lr, c.epochs

    assert chosen(small, 999) == (3e-4, 3)
    assert chosen(small, 1000) == (1.5e-4, 3)
    assert chosen(50_000_000, 10) == (5e-5, 4)
    i = flags.index("--train")
    argv = [*flags[:2], *flags[i : i + 2], "--folds", "2", "--fold", "0", "--out"]
    assert train.main([*argv, str(tmp_path / "a")]) == 0
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert (config["lr"], config["epochs"]) == (3e-4, 3)
    assert "lr 0.0003 | epochs 3" in capsys.readouterr().out


def test_duplicates_never_straddle_folds(flags, tmp_path):
    rows = make_rows(60) + [
        [f"d{i}", f"  {r[1].upper()} ", *r[2:]] for i, r in enumerate(make_rows(60))
    ]
    i = flags.index("--train")
    assert (
        train.main(
            [
                *flags[:i],
                *flags[i + 2 :],
                "--train",
                str(write_csv(tmp_path / "t.csv", rows)),
                "--out",
                str(tmp_path / "a"),
            ]
        )
        == 0
    )
    fold = [
        r["fold"] for r in csv.DictReader((tmp_path / "a" / "oof.csv").read_text().splitlines())
    ]
    assert fold[:60] == fold[60:] and len(set(fold)) == 3


def test_default_run_folder_is_found_again(flags, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert train.main(flags) == 0
    first = sorted(p.name for p in (tmp_path / "runs").iterdir())
    assert train.main(flags) == 0 and "finished before" in capsys.readouterr().out
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == first and first[0].startswith(
        "tiny-bert-"
    )
    assert train.main([*flags, "--seed", "1"]) == 0
    assert len(list((tmp_path / "runs").iterdir())) == 2
    again = [
        "--config",
        str(tmp_path / "runs" / first[0] / "config.json"),
        "--out",
        str(tmp_path / "b"),
    ]
    assert train.main(again) == 0
    assert outputs(tmp_path / "b") == outputs(tmp_path / "runs" / first[0])


def test_folds_trained_apart_equal_folds_in_a_row(flags, tmp_path):
    assert train.main([*flags, "--out", str(tmp_path / "a")]) == 0
    for k in (2, 0, 1):
        assert not (tmp_path / "b" / "metrics.json").exists()
        assert train.main([*flags, "--out", str(tmp_path / "b"), "--fold", str(k)]) == 0
    assert outputs(tmp_path / "a") == outputs(tmp_path / "b")
