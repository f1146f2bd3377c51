"""Fine-tune an encoder on a CSV, fold by fold: python train.py --help

Read downwards: `main` calls `train_fold` for each fold, which calls `train_one_epoch` and
`validate` for each epoch; at the end `main` calls `summarise`. To change the loss, edit
`make_criterion`, or `compute_loss` in model.py if it needs more than the logits; the optimizer:
`make_optimizer`; the schedule: `lr_factor`; which epoch is kept: `quality`; what a step does:
`train_one_epoch`.
N data rows, C labels, K folds; B rows of a micro-batch.
"""

from config import Config
from support.cli import check_flags, parse

if __name__ == "__main__":
    check_flags(Config)  # before the slow imports: a mistyped flag is said at once

import functools
import math
import shlex
import sys

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

import metrics
from data import DataCollator, assign_folds, encode, length_batches, read_data, split
from model import autocast, build_model, compute_loss, count_parameters, run_over_rows, sigmoid
from support import report
from support.checkpoint import Checkpoint, Progress, write_log
from support.encoders import as_saved, check_weights, inspect_encoder
from support.errors import HELPER, Signals, exit_codes
from support.files import write_json
from support.jobs import set_threads, side_by_side
from support.ranks import Ranks
from support.run import Run, seen_hashes, start_run
from support.speed import resolve_device
from support.splits import say_split


@exit_codes
def main(argv: list[str] | None = None, kind=Config, read=None, finish=None) -> int:
    """Check everything, train each fold that is not finished, write the summary.

    `kind`, `read`, `finish`: tools/distil.py has settings, rows and a summary of its own.
    """
    config = parse(kind, argv)
    device, precision = resolve_device(config.device, config.precision)
    with Signals() as signals, Ranks() as ranks:
        data = (read or read_data)(config)
        fold_of_row = split(data, config)  # -1: never held out
        encoder = inspect_encoder(config.model)  # its config and tokenizer; no weights yet
        encoder.tokenizer = as_saved(encoder)  # as predict.py will read it from a fold
        config = config.resolved(encoder, data, int(fold_of_row.max()) + 1, device, precision)
        path = Run.place(config, data.sha256)
        set_threads(config, path)
        dataset = encode(encoder.tokenizer, data.inputs, config.max_length)
        print(
            f"device {device} ({torch.get_num_threads()} threads) | {precision}"
            f" | encoder {config.model} ({encoder.kind}), {encoder.num_parameters:,} parameters"
            f" | lr {config.lr:g} | epochs {config.epochs} | pooling {config.pooling}"
        )
        report.say_data(data, config.labels, dataset, encoder.tokenizer, fold_of_row)
        say_split(data, fold_of_row, config)
        encoder.seen = seen_hashes(encoder.path)  # what it learned as a fold of an earlier run
        check_weights(encoder, dataset)
        # The same command finds its run again; several processes may share the folds of a run.
        run = start_run(path, config, data, encoder, ranks, argv)
        with side_by_side(run, config, fold_of_row, encoder, dataset.lengths, argv) as codes:
            for k in ranks.follow(run.unfinished(config.fold)):
                train_fold(k, config, data, dataset, fold_of_row, encoder, run, signals, ranks)
        if HELPER:
            return 0
        if missing := ", ".join(map(str, run.missing())):
            print(f"unfinished: fold {missing} - totals come with the last")
        elif ranks.leads:
            (finish or summarise)(config, data, fold_of_row, run)
    return max((code.result() for code in codes), default=0)


def train_fold(k, config, data, dataset, fold_of_row, encoder, run, signals, ranks) -> None:
    """Train on the other folds, validate on fold k after each epoch, keep one epoch on disk.

    Each step is seeded from (seed, fold, epoch, step, rank): resuming needs no saved RNG state.
    """
    train_idx, val_idx = np.flatnonzero(fold_of_row != k), np.flatnonzero(fold_of_row == k)
    pad_id = encoder.tokenizer.pad_token_id
    dataset.labels = data.targets_of(k)
    y_train, y_val = dataset.labels[train_idx], data.labels[val_idx]
    # Rows of the token table that no text uses have no gradient: only the others are trained.
    token_ids = np.union1d(dataset.ids, pad_id)
    torch.manual_seed(seed_of(config.seed, k))  # for the head's initial weights
    model = build_model(encoder.path, config, y_train, token_ids)
    optimizer = make_optimizer(model, config)
    rows_per_step = config.batch_size * config.accumulate
    steps_per_epoch = math.ceil(len(train_idx) / rows_per_step)
    factor = functools.partial(lr_factor, total=steps_per_epoch * config.epochs, config=config)
    scheduler = LambdaLR(optimizer, factor)
    scaler = torch.amp.GradScaler(config.device, enabled=config.precision == "fp16")
    criterion = make_criterion(config, y_train)
    progress = Progress(k, steps_per_epoch, config, data.ids)  # epoch, step, log, epoch kept
    state = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "scaler": scaler}
    checkpoint = Checkpoint(run, k, signals, ranks, progress, state)
    size = count_parameters(model)
    print(f"fold {k}: {len(train_idx)} rows to train on, {len(val_idx)} held out | {size}")
    checkpoint.load()  # go on from the last save, if there is one
    net = ranks.wrap(model)  # under torchrun the model in DistributedDataParallel
    collate = DataCollator(pad_id, config.max_length, config.device, config.precision)
    with checkpoint.saved_when_stopped():
        while progress.epoch < config.epochs and not out_of_patience(progress.log, config.patience):
            seed = [config.seed, k, progress.epoch]
            steps = length_batches(dataset.lengths[train_idx], rows_per_step, seed)
            progress.begin_or_resume_epoch([train_idx[s] for s in steps])
            loader = train_loader(dataset, collate, config, progress, ranks)
            taken = train_one_epoch(
                net, loader, criterion, optimizer, scheduler, scaler, config, checkpoint.after_step
            )
            progress.end_of_steps(taken)
            val_loss, y_prob = validate(
                model, dataset, val_idx, collate, criterion, config, ranks, signals.check
            )
            scores = metrics.scores(y_val, metrics.detect(y_prob, 0.5))
            lr = config.lr * factor(max(0, scheduler.last_epoch - 1))  # of the last step taken
            row = progress.row(val_loss, y_prob, scores, lr)
            if config.keep == "last" or better(row, progress.kept):
                checkpoint.keep(row, y_prob, model, encoder.tokenizer)
            checkpoint.end_epoch(row)
            print(report.epoch_line(row, config.epochs), flush=True)
    checkpoint.finish()


def train_one_epoch(
    model, loader, criterion, optimizer, scheduler, scaler, config, after_step
) -> int:
    """Run the epoch's remaining steps; return how many were taken (fp16 skips what overflows).

    However its rows are split into micro-batches, a step's gradient is that of their mean loss.
    """
    model.train()
    taken = 0
    for micro_batches, n_rows, seed in loader:  # n_rows: of the step, see `train_loader`
        torch.manual_seed(seed)  # dropout
        step_loss = 0.0
        for batch in micro_batches:
            # DDP averages gradients over the ranks: once a step. Another model ignores this.
            model.require_backward_grad_sync = batch is micro_batches[-1]
            with autocast(config.device, config.precision):
                _, row_losses = compute_loss(model, batch, criterion)  # (B,)
            loss = row_losses.sum() / n_rows
            scaler.scale(loss).backward()
            step_loss = step_loss + loss.detach()
        scaler.unscale_(optimizer)  # before clipping, so that the norm is the true one
        norm = nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        scale_before = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        # A skipped step lowers the scale, after very many to 0. Without fp16 it is always 1.
        skipped = scaler.get_scale() < scale_before or scale_before == 0
        if not skipped:
            scheduler.step()
            taken += 1
        after_step(step_loss, norm)  # counts the step; saves now and then, and when a signal came
    return taken


def validate(model, dataset, val_idx, collate, criterion, config, ranks, check) -> tuple:
    """Of the held-out rows: the mean loss, as in training, and the probabilities (rows, C)."""
    mine = np.arange(len(val_idx))[ranks.rank :: ranks.size]  # this rank's share
    logits = np.zeros((len(val_idx), model.num_labels), np.float32)
    losses = np.zeros(len(val_idx), np.float32)
    logits[mine], losses[mine] = run_over_rows(
        model, dataset, collate, config, val_idx[mine], criterion, check
    )
    # The other ranks' rows are 0 here: the sum puts them together.
    logits, losses = (ranks.sum(torch.from_numpy(x)).numpy() for x in (logits, losses))
    return float(losses.mean()), sigmoid(logits)


# Parts to replace


def make_criterion(config: Config, y_train: np.ndarray):
    """The loss of each row, the mean over its labels: logits and targets (B, C) -> (B,).

    Binary cross-entropy, or focal loss with gamma 2 (Lin et al. 2017).
    """
    pos_weight = None
    if config.pos_weight:  # negatives per positive of each label; 1 without positives
        positives = y_train.sum(0)
        odds = (len(y_train) - positives) / np.maximum(positives, 1)
        weight = np.where(positives > 0, odds, 1.0).clip(0.01, 100)
        pos_weight = torch.tensor(weight, dtype=torch.float32, device=config.device)

    def criterion(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        target = y * (1 - config.label_smoothing) + config.label_smoothing / 2
        loss = F.binary_cross_entropy_with_logits(
            logits, target, pos_weight=pos_weight, reduction="none"
        )
        if config.loss == "focal":
            error = (torch.sigmoid(logits) - y).abs()  # 1 - the probability of the true answer
            loss = loss * error**2
        return loss.mean(1)

    return criterion


def make_optimizer(model: nn.Module, config: Config) -> torch.optim.Optimizer:
    return torch.optim.AdamW(get_optimizer_params(model, config), lr=config.lr, fused=True)


def get_optimizer_params(model: nn.Module, config: Config) -> list[dict]:
    """Weight decay on matrices only. Biases and norms are vectors, so no names are needed."""
    params = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in params if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0},
    ]


def lr_factor(step: int, total: int, config: Config) -> float:
    """The rate of step 0, 1, ... of `total` relative to --lr: warm-up, then by --scheduler."""
    warmup = int(config.warmup_ratio * total)
    if step < warmup:
        return (step + 1) / (warmup + 1)  # never 0
    done = (step - warmup) / max(1, total - warmup)
    if config.scheduler == "linear":
        return 1 - done
    if config.scheduler == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    return 1.0  # constant


def quality(row: dict) -> tuple:
    """By which an epoch is kept (without --keep last): macro-F1 at 0.5, then the lower loss."""
    return row["macro_f1"], -row["val_loss"]


def better(row: dict, best: dict | None) -> bool:
    return best is None or quality(row) > quality(best)


def out_of_patience(log: list[dict], patience: int | None) -> bool:
    if patience is None or not log:
        return False
    return log[-1]["epoch"] - max(log, key=quality)["epoch"] >= patience


def train_loader(dataset, collate, config, progress, ranks):
    """Yield, for each remaining step, its micro-batches, its number of rows and its seed.

    Under torchrun a rank gets its share of the rows, and the number of rows divided by the ranks:
    DDP then averages over the ranks.
    """
    fold, epoch = progress.fold, progress.epoch
    size = math.ceil(config.batch_size / ranks.size)  # rows of a micro-batch
    for step in range(progress.step, len(progress.steps)):
        mine, n_rows = ranks.share(progress.steps[step])
        parts = [mine[i : i + size] for i in range(0, len(mine), size)]
        micro_batches = [collate([dataset[i] for i in part]) for part in parts]
        yield micro_batches, n_rows, seed_of(config.seed, fold, epoch, step, *ranks.own)


def seed_of(*numbers: int) -> int:
    """One 63-bit seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


# After all folds


def summarise(config: Config, data, fold_of_row: np.ndarray, run: Run) -> None:
    """Choose thresholds and compute scores from the out-of-fold probabilities of all folds."""
    held_out = np.flatnonzero(fold_of_row >= 0)
    y_prob, log, totals = run.collect(fold_of_row, len(config.labels))
    y, y_prob, fold = data.labels[held_out], y_prob[held_out], fold_of_row[held_out]
    threshold_folds = fold
    if config.folds == 1:  # split the held-out rows again: thresholds are chosen on the others
        groups = data.groups[held_out]
        n = min(5, len(np.unique(groups)))
        threshold_folds = assign_folds(y, groups, n, config.fold_seed)
    values, th, crossed, draws = metrics.summary(y, y_prob, threshold_folds, config.labels)
    names, title = config.labels, report.title(config.model, values, len(y))
    with run.writing_totals() as folder:
        np.save(folder / "th.npy", th, allow_pickle=False)
        write_json(folder / "th.json", {"labels": names, "run": run.key})
        write_json(folder / "metrics.json", values | totals)
        write_log(folder, log)
        report.write_oof(folder, data, held_out, fold, y_prob, names)
        report.write_likely_errors(folder, data, held_out, fold, y, y_prob, names)
        report.draw_report(folder / "report.png", log, y, y_prob, crossed, th, draws, names, title)
    print(report.closing_table(values))
    more = "" if config.train == Config().train else " --input new.csv"  # the sample has one
    print(f"done: {run.path} | next: python predict.py --run {shlex.quote(str(run.path))}{more}")


if __name__ == "__main__":
    sys.exit(main())
