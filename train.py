"""Fine-tune an encoder on a CSV, fold by fold: python train.py --help

Read downwards: `main` calls `train`, which calls `train_fold` for each fold, which calls
`train_one_epoch` and `validate` for each epoch; at the end comes `summarise`. To change the loss,
edit `make_criterion`, or `compute_loss` in model.py if it needs more than the logits; the
optimizer: `make_optimizer`; the default rate: `default_rate_and_epochs`; the schedule:
`lr_factor`; which epoch is kept: `quality`; what a step does: `train_one_epoch`.

N data rows, C labels; B rows of a micro-batch. The objects on the way:
Config: the flags. Table: the rows of the CSV, with labels, targets and folds. EmotionDataset: token
ids and targets of each row. EncoderInfo: tokenizer and size of the encoder, before its weights are
read. Session: this process, its signals and its Ranks (the processes of torchrun; else one). Run:
a run folder. ActiveRun: a Run that this process works on. Progress: where a fold is. Checkpoint:
saves and loads it, with model and optimizer.
"""

from config import Config
from support.cli import parse, start_script

start_script(Config, __name__)  # before the slow imports: a mistyped flag is reported at once

import functools
import math
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

import metrics
from data import (
    DataCollator,
    EmotionDataset,
    Table,
    encode,
    length_batches,
    read_data,
    split,
    threshold_folds,
)
from model import (
    Criterion,
    EmotionClassifier,
    build_model,
    compute_loss,
    count_parameters,
    run_over_rows,
    sigmoid,
)
from support import pictures, quote, report
from support.active import ActiveRun, Session, start_run
from support.checkpoint import Checkpoint, Progress, write_log
from support.device import autocast, resolve_device
from support.encoders import EncoderInfo, inspect_encoder
from support.files import write_json
from support.jobs import Command, set_threads
from support.process import exit_codes
from support.ranks import Ranks
from support.run import Run, place_run
from support.splits import warn_of_split

StepInput = tuple[list[dict[str, torch.Tensor]], float, int]  # see `train_loader`


@exit_codes  # an error becomes one line and an exit code
def main(argv: list[str] | None = None) -> int:
    """Train the run that the flags describe, or resume it. Return the exit code."""
    return train(parse(Config, argv, __file__), read_data, summarise, Command.of(__file__, argv))


def train(
    config: Config,
    read_rows: Callable[[Config], Table],
    write_summary: Callable[[Config, Table, Run], None],
    command: Command,
) -> int:
    """Check everything, train each fold that is not finished, write the summary. Return the exit
    code. tools/distil.py calls it too, with rows and a summary of its own."""
    device, precision = resolve_device(config.device, config.precision)
    config = replace(config, device=device, precision=precision)
    with Session.begin(command) as session:
        table = split(read_rows(config), config)
        encoder_info = inspect_encoder(config.model, as_saved=True)  # no weights yet
        rate, epochs = default_rate_and_epochs(encoder_info.num_parameters, len(table))
        config = config.resolved(encoder_info, table, rate, epochs)  # fills in what was left out
        path = place_run(config, table.sha256)
        set_threads(config, path)  # a resumed run keeps its number of threads
        dataset = encode(encoder_info.tokenizer, table.inputs, config.max_length)
        report.print_settings(config, encoder_info)
        report.print_data(table, config.labels, dataset, encoder_info.tokenizer)
        warn_of_split(table, config)
        # Resumes the run, if the folder has one. Several processes may share its folds.
        with start_run(path, config, table, dataset, encoder_info, session) as run:
            for k in run.folds_to_train(config.fold):
                train_fold(k, config, table, dataset, encoder_info, run)
        if run.wants_summary():  # all folds are finished
            write_summary(config, table, run)
    return run.exit_code


def train_fold(
    k: int,
    config: Config,
    table: Table,
    dataset: EmotionDataset,
    encoder_info: EncoderInfo,
    run: ActiveRun,
) -> None:
    """Train on the other folds, validate on fold k after each epoch, keep one epoch's weights.

    Each step is seeded from (seed, fold, epoch, step, rank): resuming needs no saved RNG state.
    """
    train_idx, val_idx = np.flatnonzero(table.fold != k), np.flatnonzero(table.fold == k)
    dataset = replace(dataset, targets=table.targets_of(k), extra=table.extra)
    targets = dataset.targets[train_idx]
    collate = DataCollator.of(encoder_info.tokenizer, config)
    torch.manual_seed(seed_of(config.seed, k))  # for the head's initial weights
    # Tokens that no text has get no gradient. Only the embeddings of the others are trained.
    token_ids = np.union1d(dataset.token_ids, collate.pad_id)
    model = build_model(encoder_info.path, config, targets, token_ids)
    optimizer = make_optimizer(model, config)
    steps_per_epoch = math.ceil(len(train_idx) / config.rows_per_step)
    factor = functools.partial(lr_factor, total=steps_per_epoch * config.epochs, config=config)
    scheduler = LambdaLR(optimizer, factor)
    scaler = torch.amp.GradScaler(config.device, enabled=config.precision == "fp16")
    criterion = make_criterion(config, targets)
    progress = Progress(k, steps_per_epoch, config, table.ids)
    state = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "scaler": scaler}
    checkpoint = Checkpoint(run, progress, state)
    print(report.fold_line(k, len(train_idx), len(val_idx), count_parameters(model)))
    checkpoint.load()  # resume from the last save, if there is one
    # The protocol of an epoch: start_epoch; after_step counts each step; end_of_steps; log_entry;
    # perhaps keep; end_epoch goes to the next. after_step and end_epoch save the state.
    with checkpoint.saved_when_stopped():
        while progress.epoch < config.epochs and not out_of_patience(progress.log, config.patience):
            net = run.ranks.wrap(model, collate.pad_id)  # in DDP; unfreeze parameters before it
            progress.start_epoch(steps_of_epoch(train_idx, dataset, config, progress))
            steps_taken = train_one_epoch(
                model=net,
                loader=train_loader(dataset, collate, config, progress, run.ranks),
                criterion=criterion,
                optimizer=optimizer,
                scheduler=scheduler,
                scaler=scaler,
                config=config,
                checkpoint=checkpoint,
            )
            progress.end_of_steps(steps_taken)
            val_loss, y_prob = validate(model, dataset, val_idx, collate, criterion, run)
            scores = metrics.scores(table.y[val_idx], metrics.detect(y_prob, 0.5))
            lr = config.lr * factor(max(0, scheduler.last_epoch - 1))  # last_epoch: the next step
            entry = progress.log_entry(val_loss, y_prob, scores, lr)
            if config.keep == "last" or better(entry, progress.kept):
                checkpoint.keep(entry, y_prob, model, encoder_info.tokenizer)
            checkpoint.end_epoch(entry)
            print(report.epoch_line(entry, config.epochs), flush=True)
    checkpoint.finish()


def train_one_epoch(
    model: nn.Module,
    loader: Iterator[StepInput],
    criterion: Criterion,
    optimizer: torch.optim.Optimizer,
    scheduler: LambdaLR,
    scaler: torch.amp.GradScaler,
    config: Config,
    checkpoint: Checkpoint,  # checkpoint.progress.epoch is the epoch, from 0
) -> int:
    """Run the epoch's remaining steps; return how many were taken (fp16 skips what overflows).

    A step's gradient is that of the mean loss of its rows, in whatever micro-batches they come.
    """
    model.train()
    taken = 0
    for micro_batches, n_rows, seed in loader:  # n_rows: of the whole step
        torch.manual_seed(seed)  # dropout
        step_loss = 0.0
        for batch in micro_batches:
            # DDP exchanges gradients with a step's last micro-batch. A plain module ignores this.
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
        # The scaler lowers its scale when it skips a step, at last to 0. Without fp16 it stays 1.
        skipped = scaler.get_scale() < scale_before or scale_before == 0
        if not skipped:
            scheduler.step()
            taken += 1
        # Counts the step; saves now and then, and when a signal came.
        checkpoint.after_step(step_loss, norm)
    return taken


def validate(
    model: EmotionClassifier,
    dataset: EmotionDataset,
    val_idx: np.ndarray,
    collate: DataCollator,
    criterion: Criterion,
    run: ActiveRun,
) -> tuple[float, np.ndarray]:
    """Return the mean loss of the held-out rows, by the training's criterion, and their
    probabilities (rows, C). Under torchrun each rank runs its share."""
    ranks = run.ranks
    mine = np.arange(len(val_idx))[ranks.rank :: ranks.size]  # this rank's share
    logits = np.zeros((len(val_idx), model.num_labels), np.float32)
    losses = np.zeros(len(val_idx), np.float32)
    logits[mine], losses[mine] = run_over_rows(
        model, dataset, collate, val_idx[mine], criterion, run.signals.check
    )
    # The other ranks' rows are 0 here: the sum puts them together.
    logits = ranks.sum(torch.from_numpy(logits)).numpy()
    losses = ranks.sum(torch.from_numpy(losses)).numpy()
    return float(losses.mean()), sigmoid(logits)


# Parts to replace


def make_criterion(config: Config, train_targets: np.ndarray) -> Criterion:
    """A function: logits and targets (B, C) -> the loss of each row (B,), the mean over its labels.

    Binary cross-entropy, or focal loss with gamma 2 (Lin et al. 2017). A target that is nan is
    unknown: its loss is 0. `train_targets` (n, C): of the rows to train on.
    """
    pos_weight = None
    if config.pos_weight:  # negatives per positive of each label; 1 for a label without positives
        positives, known = metrics.known_sums(train_targets)
        odds = (known - positives) / np.maximum(positives, 1)
        weight = np.where(positives > 0, odds, 1.0).clip(0.01, 100)
        pos_weight = torch.tensor(weight, dtype=torch.float32, device=config.device)

    def criterion(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        known = ~targets.isnan()  # replaced before the loss: after it 0 * nan would be nan
        logits, targets = torch.where(known, logits, 0), torch.where(known, targets, 0)
        smoothed = targets * (1 - config.label_smoothing) + config.label_smoothing / 2
        loss = F.binary_cross_entropy_with_logits(
            logits, smoothed, pos_weight=pos_weight, reduction="none"
        )
        if config.loss == "focal":
            error = (torch.sigmoid(logits) - targets).abs()  # of 0/1 labels: 1 - that of the truth
            loss = loss * error**2
        elif config.loss != "bce":
            raise NotImplementedError(f"make_criterion in train.py has no loss {config.loss!r}")
        return torch.where(known, loss, 0).mean(1)

    return criterion


def default_rate_and_epochs(num_parameters: int, rows: int) -> tuple[float, int]:
    """--lr and --epochs where they are left out. Why these: docs/results.md."""
    if num_parameters >= 50_000_000:
        return 5e-5, 4
    return (3e-4 if rows < 1000 else 1.5e-4), 3


def make_optimizer(model: nn.Module, config: Config) -> torch.optim.Optimizer:
    return torch.optim.AdamW(get_optimizer_params(model, config), lr=config.lr, fused=True)


def get_optimizer_params(model: nn.Module, config: Config) -> list[dict]:
    """Weight decay on matrices only. Biases and norms are vectors: no list of names is needed."""
    params = list(model.parameters())  # frozen ones, too: they may be unfrozen later
    return [
        {"params": [p for p in params if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0},
    ]


def lr_factor(step: int, total: int, config: Config) -> float:
    """What --lr is multiplied by in step 0, 1 ... total - 1: warm-up, then by --scheduler."""
    warmup = int(config.warmup_ratio * total)
    if step < warmup:
        return (step + 1) / (warmup + 1)  # never 0
    done = (step - warmup) / max(1, total - warmup)
    if config.scheduler == "linear":
        return 1 - done
    if config.scheduler == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    if config.scheduler == "constant":
        return 1.0
    raise NotImplementedError(f"lr_factor in train.py has no scheduler {config.scheduler!r}")


def quality(entry: dict) -> tuple:
    """The epoch kept has the largest (without --keep last): macro-F1 at 0.5, then lower loss.

    `entry`: of log.jsonl.
    """
    return entry["macro_f1"], -entry["val_loss"]


def better(entry: dict, best: dict | None) -> bool:
    return best is None or quality(entry) > quality(best)


def out_of_patience(log: list[dict], patience: int | None) -> bool:
    """Whether the last `patience` epochs brought nothing better."""
    if patience is None or not log:
        return False
    return log[-1]["epoch"] - max(log, key=quality)["epoch"] >= patience


def steps_of_epoch(
    train_idx: np.ndarray, dataset: EmotionDataset, config: Config, progress: Progress
) -> list[np.ndarray]:
    """The row numbers of each optimizer step. To sample rows otherwise, edit this: for the same
    seed, fold and epoch always the same steps (an epoch is resumed), `steps_per_epoch` of them."""
    seed = [config.seed, progress.fold, progress.epoch]
    steps = length_batches(dataset.lengths[train_idx], config.rows_per_step, seed)
    return [train_idx[step] for step in steps]


def train_loader(
    dataset: EmotionDataset, collate: DataCollator, config: Config, progress: Progress, ranks: Ranks
) -> Iterator[StepInput]:
    """Yield, for each remaining step, its micro-batches, its number of rows and its seed.

    Under torchrun a rank gets its share of the rows (at least one). Its number of rows is then that
    of the whole step, divided by the ranks: DDP averages over the ranks, not over the rows.
    """
    fold, epoch = progress.fold, progress.epoch
    size = math.ceil(config.batch_size / ranks.size)  # rows of a micro-batch, of all ranks together
    for step in range(progress.step, len(progress.steps)):
        rows, n_rows = ranks.share(progress.steps[step])
        parts = [rows[i : i + size] for i in range(0, len(rows), size)]
        micro_batches = [collate([dataset[i] for i in part]) for part in parts]
        yield micro_batches, n_rows, seed_of(config.seed, fold, epoch, step, *ranks.own)


def seed_of(*numbers: int) -> int:
    """One 63-bit seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) >> 1


# After all folds


def summarise(config: Config, table: Table, run: Run) -> None:
    """Choose thresholds and compute scores from the out-of-fold probabilities of all folds."""
    names = config.labels
    oof, log, totals = run.collect(table)
    fold = threshold_folds(oof, table.groups, config)
    summary = metrics.summary(oof.y, oof.p, fold, names)
    heading = report.title(config.model, summary.values, len(oof.y))
    sentence = quote.sentence(config, run, summary.values, oof, fold)
    with run.writing_totals() as folder:
        np.save(folder / "th.npy", summary.th, allow_pickle=False)
        write_json(folder / "th.json", {"labels": names, "run": run.key})
        write_json(folder / "metrics.json", summary.values | totals)
        write_log(folder, log)
        report.write_oof(folder, table, oof, names)
        report.write_likely_errors(folder, table, oof, summary.pred, names)
        pictures.draw_report(folder / "report.png", log, oof, summary, names, heading)
        quote.write_quote(folder / "quote.md", sentence, summary.values)
    print(report.closing_table(summary.values, config.folds))
    print(f"to quote (quote.md has tables, too): {sentence}")
    report.warn_of_undetected(summary.values["per_label"])
    report.warn_of_noisy_thresholds(summary.values)
    command = f"python predict.py --run {shlex.quote(str(run.path))}"
    if config.train != Config().train:  # for the bundled sample predict.py has an input
        command += " --input new.csv"
    print(f"done: {run.path} | next: {command}")


if __name__ == "__main__":
    sys.exit(main())
