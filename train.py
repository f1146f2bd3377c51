"""Fine-tune an encoder on a CSV, fold by fold: python train.py --help

settings -> rows -> folds -> tokens -> a model per fold -> out-of-fold probabilities -> thresholds and scores.
Another loss: `loss_per_row`. Another optimizer: `make_optimizer`. Another schedule: `lr_factor`. The loop:
`train_fold`. B rows of a step, C labels, N data rows, K folds.
"""

import sys

from config import HERE, Config, Interrupted, Signals, UserError, check_flags, exit_codes, parse, warn

if __name__ == "__main__":
    check_flags(Config)

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import pickle
import platform
import resource
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import safetensors
import tokenizers
import torch
import torch.nn.functional as F
import transformers
from torch import nn
from tqdm import tqdm

import fast
import metrics
import report
from data import Collator, EmotionDataset, Table, Tokens, assign_folds, check_file, csv_text, length_batches
from data import read_csv, read_npy, text_hashes, tokenize
from model import EmotionClassifier, EncoderInfo, autocast, check_padding, hub_revision, inspect_encoder
from model import layers_of, length_multiple, load_encoder, predict_logits, resolve_device, saved_tokenizer
from model import sigmoid
from run import Run, damage, describe, differing, file_sha256, json_sha256
from run import locked, read_json, whole, write_json

SMALL = 50_000_000  # encoders with fewer parameters want a higher rate (what was tried: README)
STATE_EVERY = 600.0  # seconds between states within an epoch
REPEATS = ("cpu",)  # devices on which an epoch done again ends with the same bytes
CODE = ("data.py", "metrics.py", "model.py", "fast.py", "train.py")  # what decides what a run computes


@dataclass(frozen=True)
class Job:
    """Everything the folds share. `fold` is -1 for rows that are never held out (--folds 1)."""

    config: Config
    table: Table
    data_sha256: str
    hashes: np.ndarray  # uint64 (N,)
    fold: np.ndarray  # int16 (N,)
    tokens: Tokens
    info: EncoderInfo
    signals: Signals
    ranks: fast.Ranks
    pad_id: int
    path: Path  # of the run
    seen: np.ndarray  # hashes of the texts that the encoder has learned in earlier runs
    used: np.ndarray | None = None  # token ids of a shrunk table; `tokens` and `pad_id` then count in these

    def collator(self) -> Collator:
        longest = self.info.max_positions or self.config.max_length
        return Collator(self.pad_id, longest, length_multiple(self.config.device, self.config.precision))


@exit_codes
def main(argv: list[str] | None = None) -> int:
    config = parse(Config, argv)
    with Signals() as signals, fast.Ranks() as ranks:
        job = prepare(config, signals, ranks)
        config = job.config
        encoder = load_encoder(job.info.path)
        check_padding(config.model, encoder, job.tokens, job.collator())
        run = open_run(job, encoder, argv)
        job = shrink_vocabulary(job, encoder)
        del encoder
        for k in ranks.follow(run.take(config.fold)):
            train_fold(job, run, k)
        missing = ", ".join(str(k) for k in range(config.folds) if not run.done(k))
        if missing:
            print(f"nothing left to take here; unfinished: fold {missing} (totals come with the last)")
        elif ranks.rank == 0:
            write_totals(job, run)
    return 0


def prepare(config: Config, signals: Signals, ranks: fast.Ranks) -> Job:
    """Read and check all that can be checked before a model is loaded. UserError when something is wrong."""
    if config.fold is not None and config.fold >= config.folds:
        raise UserError(f"--fold {config.fold}: folds are numbered from 0 to {config.folds - 1}")
    device, precision = resolve_device(config.device, config.precision)
    data_sha256 = file_sha256(check_file(config.train, "a CSV"))
    table = read_csv(config.train, config.text_column, config.labels)
    if file_sha256(config.train) != data_sha256:
        raise UserError(f"{config.train}: changed while it was read - the same command reads it again")
    hashes = text_hashes(table.texts)
    fold = assign_folds(table.labels, hashes, config.folds if config.folds > 1 else 5, config.seed)
    info = inspect_encoder(config.model)
    info.tokenizer = saved_tokenizer(info)
    small, few = info.parameters < SMALL, len(table) < 1000
    lr = config.lr or (5e-5 if not small else 3e-4 if few else 1.5e-4)
    epochs = config.epochs or (3 if small else 4)
    first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"  # torchrun's restarts go on
    chosen = {"device": device, "precision": precision, "restart": config.restart and first}
    chosen |= {"model": config.model.rstrip("/") or "/", "text_column": table.text_column}
    config = dataclasses.replace(config, lr=lr, epochs=epochs, **chosen)
    if info.max_positions and config.max_length > info.max_positions:
        raise UserError(f"--max-length {config.max_length}: {config.model} takes {info.max_positions} tokens")
    if config.freeze > info.layers:
        raise UserError(f"--freeze {config.freeze}: {config.model} has {info.layers} layers")
    name = f"{Path(config.model).name}-{json_sha256([config.identity, data_sha256])[:8]}"
    path, need_bytes = Path(config.out or Path("runs", name)), (config.folds + 8) * 4 * info.parameters
    Run.check(path, (config.model, config.train), config.restart, need_bytes)
    tokens = tokenize(info.tokenizer, table.texts, config.max_length)
    encoder = f"encoder {config.model} ({info.config.model_type}), {info.parameters:,} parameters"
    where = f"device {device} ({torch.get_num_threads()} threads) | {precision}"
    print(f"{where} | {encoder} | lr {lr:g} | epochs {epochs} | pooling {config.pooling}")
    print(report.data_report(table, config.labels, tokens, info.tokenizer, hashes, fold), flush=True)
    if config.folds == 1:  # fold 0 of five is held out, the other rows never are
        fold = np.where(fold == 0, 0, -1).astype(fold.dtype)
    seen = Path(info.path).parent / "texts.npy"  # the encoder comes from a run
    of_run = seen.is_file() and seen.with_name("env.json").is_file()
    known = read_npy(seen, "u", "text hashes") if of_run else hashes[:0]
    if n := np.isin(hashes, known).sum():
        trained = "texts are among those this encoder was trained on"
        warn(f"{n} of {len(hashes)} {trained} - scores on them are too good")
    pad_id = info.tokenizer.pad_token_id
    return Job(config, table, data_sha256, hashes, fold, tokens, info, signals, ranks, pad_id, path, known)


def shrink_vocabulary(job: Job, encoder: nn.Module) -> Job:
    """The job with its tokens renumbered to those that occur, where the encoder allows it (see fast.py)."""
    used = fast.used_tokens(job.tokens, job.pad_id)
    if not fast.shrinkable(encoder, job.tokens, used, job.pad_id):
        return job
    tokens = dataclasses.replace(job.tokens, ids=np.searchsorted(used, job.tokens.ids).astype(np.int32))
    return dataclasses.replace(job, tokens=tokens, used=used, pad_id=int(np.searchsorted(used, job.pad_id)))


def open_run(job: Job, encoder: nn.Module, argv: list[str] | None) -> Run:
    """The run folder of this command, new or found again; see run.py. `same` must be equal to go on."""
    config, sha, path = job.config, hashlib.sha256(), job.path
    for name, tensor in sorted(encoder.state_dict().items()):
        if not tensor.isfinite().all():
            raise UserError(f"--model {config.model}: its weights {name} hold nan or inf - use a sound copy")
        sha.update(name.encode() + np.ascontiguousarray(tensor.numpy()).data)
    packages = (torch, transformers, tokenizers, safetensors, np)
    same = {f"settings.{k}": v for k, v in config.identity.items()}
    same |= {f"code.{name}": file_sha256(HERE / name) for name in CODE}
    same |= {f"versions.{p.__name__}": p.__version__ for p in packages}
    same |= {"versions.python": platform.python_version(), "threads": torch.get_num_threads()}
    same |= {"data_sha256": job.data_sha256, "encoder_sha256": sha.hexdigest(), "world_size": job.ranks.size}
    card = torch.cuda.get_device_name() if config.device == "cuda" else platform.machine()
    env = {
        "command": " ".join(["train.py", *(sys.argv[1:] if argv is None else argv)]),
        "host": {"platform": platform.platform(), "device": card},
        "hub_revision": hub_revision(job.info.path),
        "git_commit": git_commit(),
        "same": same,
    }
    if job.ranks.rank == 0:
        kept = {k: v for k, v in dataclasses.asdict(config).items() if k == "train" or k in config.identity}
        Run.open(path, kept, env, config.restart)
        with locked(path / "lock", wait=True), whole(path) as temporary:
            np.save(temporary / "texts.npy", np.union1d(job.hashes, job.seen), allow_pickle=False)
    job.ranks.agree(0)  # rank 0 has made it
    print(f"run folder {path}", flush=True)
    return Run(path)


def git_commit() -> str | None:
    command = ["git", "-C", HERE, "rev-parse", "HEAD"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):  # no git here, or no clone
        return subprocess.check_output(command, stderr=subprocess.DEVNULL, text=True).strip()


def loss_per_row(logits: torch.Tensor, y: torch.Tensor, config: Config, pos_weight=None) -> torch.Tensor:
    """(B, C) logits and targets -> (B,): cross-entropy (or focal loss, Lin et al. 2017), mean over labels."""
    target = y * (1 - config.label_smoothing) + config.label_smoothing / 2
    loss = F.binary_cross_entropy_with_logits(logits, target, pos_weight=pos_weight, reduction="none")
    if config.loss == "focal":
        loss = loss * (torch.sigmoid(logits) - y) ** 2  # 1 - the probability of what is true
    return loss.mean(1)


def lr_factor(step: int, total: int, warmup: int, scheduler: str) -> float:
    """The rate of step 0..total-1 relative to its peak: a rise (never 0), then linear, cosine or constant."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, total - warmup)  # 0 ... just under 1
    return {"linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done)), "constant": 1.0}[scheduler]


def make_optimizer(model: nn.Module, config: Config) -> torch.optim.Optimizer:
    """AdamW. Decay on matrices only: biases and norms are vectors, whatever an architecture calls them."""
    params = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in params if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, fused=True)


def make_model(job: Job, k: int) -> EmotionClassifier:
    """The pretrained encoder with the head of fold k, on the device; lower layers frozen as asked."""
    config = job.config
    torch.manual_seed(seed_of(config.seed, k))
    model = EmotionClassifier(load_encoder(job.info.path), len(config.labels), config.pooling, config.dropout)
    if not config.pos_weight:  # which makes all labels equally frequent; rare ones else spend an epoch on it
        share = job.table.labels[job.fold != k].mean(0).clip(0.001, 0.999)
        model.start_at(torch.from_numpy(share))
    if job.used is not None:
        fast.shrink_embedding(model.encoder, job.used)
    if config.freeze:
        low = [model.encoder.get_input_embeddings(), getattr(model.encoder, "embeddings", None)]
        for part in filter(None, [*low, *layers_of(model.encoder)[: config.freeze]]):
            part.requires_grad_(False)
    fast.fast_dropout(model.encoder)
    return model.to(config.device).train()


def seed_of(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def train_step(model, optimizer, scaler, micro_batches: list[dict], config: Config, pos_weight, share=1.0):
    """One optimizer step on the rows of all micro-batches: the gradient is that of the undivided batch.

    Returns (2,): mean loss of the rows, gradient norm before clipping; both stay on the device. `share` makes
    the mean over torchrun's ranks the mean over all rows.
    """
    rows, total = sum(len(b["labels"]) for b in micro_batches), 0.0
    for batch in micro_batches:
        model.require_backward_grad_sync = batch is micro_batches[-1]  # DDP's: ranks meet once a step
        y = batch.pop("labels")
        with autocast(config.device, config.precision):
            logits = model(**batch)
        loss = loss_per_row(logits, y, config, pos_weight).sum() / rows * share
        scaler.scale(loss).backward()
        total = total + loss.detach()
    scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return torch.stack([total, norm])


@dataclass
class Fold:
    """What training fold k holds. `at`, weights and optimizer are all that going on needs. `taken`: steps the
    scaler did not skip; `stats`: loss and gradient norm of each step of an epoch, on the device."""

    job: Job
    k: int
    folder: Path
    train: np.ndarray  # row numbers
    held: np.ndarray
    model: EmotionClassifier
    net: nn.Module  # the model, under torchrun wrapped in DistributedDataParallel
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    pos_weight: torch.Tensor | None
    at: dict
    mean: list[torch.Tensor] = field(default_factory=list)  # running mean of the trainable weights
    batches: list[np.ndarray] = field(default_factory=list)  # row numbers of each step of the epoch
    last_state: float = field(default_factory=time.monotonic)

    def lr_factor(self, taken: int) -> float:
        config, total = self.job.config, len(self.at["stats"]) * self.job.config.epochs
        return lr_factor(taken, total, int(config.warmup_ratio * total), config.scheduler)

    def weights(self) -> list[torch.Tensor]:
        return [p for p in self.model.parameters() if p.requires_grad]

    @torch.no_grad()
    def update_mean(self) -> None:
        """After a step. The decay grows to --ema: the start is soon forgotten (as in TensorFlow's EMA)."""
        if self.mean:
            torch._foreach_lerp_(self.mean, self.weights(), self.part(self.at["taken"]))

    def part(self, taken: int) -> float:
        """The share of the mean that a step replaces; 1 with --ema 0."""
        return 1 - min(self.job.config.ema, (1 + taken) / (10 + taken))

    @contextlib.contextmanager
    def averaged(self):
        """The model with the running mean in the place of its last weights."""
        pairs = list(zip(self.weights(), self.mean, strict=True)) if self.mean else []
        for p, m in pairs:
            p.data, m.data = m.data, p.data
        try:
            yield self.model
        finally:
            for p, m in pairs:
                p.data, m.data = m.data, p.data

    def save(self) -> None:
        """Write the state to go on from; a state that is not finite is refused."""
        check_finite(self)
        if self.job.ranks.rank == 0:
            parts = {n: getattr(self, n).state_dict() for n in ("model", "optimizer", "scaler")}
            save_state(self.folder / "state.pt", {**parts, "mean": self.mean, "at": self.at})
        self.last_state = time.monotonic()


def save_state(path: Path, state: dict) -> None:
    """torch.save of plain data, followed by its own sha256: no format notices a flipped byte."""
    with whole(path.parent) as temporary:
        torch.save(state, temporary / path.name)
        with open(temporary / path.name, "ab") as f:
            f.write(bytes.fromhex(file_sha256(f.name)))


def load_state(path: Path) -> dict | None:
    """What `save_state` wrote, by weights_only=True; None when there is none, or a damaged one (said so)."""
    if not path.exists():
        return None
    with contextlib.suppress(pickle.UnpicklingError, ValueError):  # of something that is no plain data; empty
        data = np.memmap(path, np.uint8, "r")
        if hashlib.sha256(data[:-32]).digest() == bytes(data[-32:]):
            return torch.load(path, map_location="cpu", weights_only=True)
    print(f"{path}: truncated or damaged - this fold begins anew", flush=True)


def start_fold(job: Job, folder: Path, k: int) -> Fold:
    """Fold k at its beginning, or where state.pt left it."""
    config, labels = job.config, job.table.labels
    train, held = np.flatnonzero(job.fold != k), np.flatnonzero(job.fold == k)
    model = make_model(job, k)
    optimizer = make_optimizer(model, config)
    scaler = torch.amp.GradScaler(config.device, enabled=config.precision == "fp16")
    pos_weight = None
    if config.pos_weight:
        positives = labels[train].sum(0)
        odds = (len(train) - positives) / np.maximum(positives, 1)
        weight = np.where(positives > 0, odds, 1.0).clip(0.01, 100)
        pos_weight = torch.tensor(weight, dtype=torch.float32, device=config.device)
    at = {"epoch": 0, "step": 0, "taken": 0, "best": None, "files": {}, "log": [], "seconds": 0.0}
    at["stats"] = torch.zeros(-(-len(train) // (config.batch_size * config.accumulate)), 2)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    parameters = job.info.parameters + sum(model.state_dict()[n].numel() for n in model.head_names().values())
    table = "" if job.used is None else f" (token table: the {len(job.used):,} rows that occur)"
    rows = f"{len(train)} rows to train on, {len(held)} held out"
    print(f"fold {k}: {rows} | {parameters:,} parameters, {trainable:,} trainable{table}")
    if saved := load_state(folder / "state.pt"):
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        scaler.load_state_dict(saved["scaler"])
        at = saved["at"]
        if config.device not in REPEATS and differing(folder, at["files"]):
            at["best"] = None  # a later epoch had taken its place, and was lost with its state
        print(f"fold {k}: goes on at epoch {at['epoch'] + 1}, step {at['step']} of {len(at['stats'])}")
    at["stats"] = at["stats"].to(config.device)
    net = job.ranks.parallel(model)
    fold = Fold(job, k, folder, train, held, model, net, optimizer, scaler, pos_weight, at)
    if config.ema:
        mean = saved["mean"] if saved else [p.detach().clone() for p in fold.weights()]
        fold.mean = [m.to(config.device) for m in mean]
    return fold


def train_fold(job: Job, run: Run, k: int) -> None:
    """Train fold k, from its start or from state.pt, and leave its folder finished.

    Each epoch: train, predict the held-out rows, keep the epoch if it is the best, write the state. What is
    random in a step comes from (seed, fold, epoch, step): going on needs no generator's state.
    """
    config, ranks, fold = job.config, job.ranks, start_fold(job, run.fold(k), k)
    at, began = fold.at, time.monotonic() - fold.at["seconds"]
    job.signals.hold = True
    try:
        while at["epoch"] < config.epochs and not out_of_patience(at["log"], config.patience):
            rate = train_epoch(fold)
            with fold.averaged():
                row, p = judge(fold, rate)
                at["log"].append(row)
                if config.keep == "last" or better(row, at["best"]):
                    at["best"] = row
                    at["files"] = keep_epoch(fold, p) if ranks.rank == 0 else {}
            if ranks.rank == 0:
                write_log(fold.folder, at["log"])
            at["epoch"], at["step"], at["seconds"] = at["epoch"] + 1, 0, time.monotonic() - began
            if at["epoch"] < config.epochs:
                fold.save()
            print(report.epoch_line(row, config.epochs), flush=True)
            job.signals.check()
    except Interrupted:
        at["seconds"] = time.monotonic() - began
        fold.save()
        raise
    except RuntimeError:
        job.signals.check(True)  # under torchrun the others have left
        raise
    finally:
        job.signals.hold = False
    if ranks.rank == 0:
        unit = 2**20 if sys.platform == "darwin" else 2**10
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
        rate = float(np.mean([r["rows_per_s"] for r in at["log"] if r["rows_per_s"]] or 0))
        done = {"run": run.key, "fold": k, "best": at["best"], "rows_per_s": rate, "seconds": at["seconds"]}
        files = {**at["files"], **write_log(fold.folder, at["log"])}  # as written: a flip since is noticed
        (run.path / "DONE.json").unlink(missing_ok=True)  # the totals, if there are any, are of another fold
        write_json(fold.folder / "DONE.json", {**done, "peak_rss_mb": peak, "files": files}, seal=True)
        (fold.folder / "state.pt").unlink(missing_ok=True)
    ranks.agree(0)  # all see the fold finished


def train_epoch(fold: Fold) -> float:
    """The steps of the epoch that are still to do; rows per second."""
    job, config, at, k = fold.job, fold.job.config, fold.at, fold.k
    epoch, size, ranks = at["epoch"], config.batch_size, job.ranks
    dataset, collate = EmotionDataset(job.tokens, job.table.labels), job.collator()
    order = length_batches(job.tokens.lengths[fold.train], size * config.accumulate, [config.seed, k, epoch])
    fold.batches, pinned = [fold.train[b] for b in order], config.device == "cuda"
    piece = -(-size // ranks.size)  # rows of a rank's forward pass
    todo, taken, clock = range(at["step"], len(at["stats"])), at["taken"], time.monotonic()
    for step in tqdm(todo, f"fold {k} epoch {epoch + 1}", unit="step", leave=False, disable=None):
        torch.manual_seed(seed_of(config.seed, k, epoch, step, *ranks.own))
        for group in fold.optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * fold.lr_factor(at["taken"])
        rows, share = ranks.share(fold.batches[step])
        micro = [collate([dataset[i] for i in rows[j : j + piece]]) for j in range(0, len(rows), piece)]
        if pinned:
            micro = [{name: t.pin_memory() for name, t in b.items()} for b in micro]
        micro = [{name: t.to(config.device, non_blocking=pinned) for name, t in b.items()} for b in micro]
        scale = fold.scaler.get_scale()
        stats = train_step(fold.net, fold.optimizer, fold.scaler, micro, config, fold.pos_weight, share)
        at["stats"][step] = ranks.sum(stats) / ranks.size
        at["taken"] += fold.scaler.get_scale() >= scale > 0  # fp16: smaller means that the step was skipped
        at["step"] = step + 1
        fold.update_mean()
        job.signals.check()
        if time.monotonic() - fold.last_state > STATE_EVERY:
            fold.save()
    check_finite(fold)
    if todo and at["taken"] == taken:
        warn(f"fold {k}: fp16 overflowed in every step of epoch {epoch + 1} - see --precision")
    return sum(len(fold.batches[i]) for i in todo) / max(1e-9, time.monotonic() - clock)


def judge(fold: Fold, rate: float) -> tuple[dict, np.ndarray]:
    """The epoch's log row, and the held-out rows' probabilities (N, C)."""
    job, config, at = fold.job, fold.job.config, fold.at
    y = job.table.labels[fold.held]
    logits = np.zeros_like(y)
    mine = np.arange(len(y))[job.ranks.rank :: job.ranks.size]
    tokens = subset(job.tokens, fold.held[mine])
    check = job.signals.check
    logits[mine] = predict_logits(fold.model, tokens, job.collator(), config.device, config.precision, check)
    logits = job.ranks.sum(torch.from_numpy(logits)).numpy()
    if not np.isfinite(logits).all():
        where = f"fold {fold.k}, epoch {at['epoch'] + 1}: held-out logits are not finite"
        raise UserError(f"{where} - try a lower --lr or --precision fp32", 1)
    p, sizes = sigmoid(logits), torch.tensor([len(b) for b in fold.batches])
    s = metrics.scores(y, metrics.detect(p, np.float32(0.5)))
    return {
        "fold": fold.k,
        "epoch": at["epoch"],
        "train_loss": float((at["stats"][:, 0].cpu() * sizes).sum() / sizes.sum()),
        "val_loss": float(loss_per_row(torch.from_numpy(logits), torch.from_numpy(y), config).mean()),
        "exact_match": s["exact_match"],
        "macro_f1": s["macro_f1"],
        "lr": config.lr * fold.lr_factor(max(0, at["taken"] - 1)),
        "rows_per_s": rate,
    }, p


def subset(tokens: Tokens, rows: np.ndarray) -> Tokens:
    ids = [tokens.ids[tokens.offsets[i] : tokens.offsets[i + 1]] for i in rows]
    return Tokens(np.concatenate([np.zeros(0, np.int32), *ids]), np.cumsum([0, *tokens.lengths[rows]]))


def check_finite(fold: Fold) -> None:
    """UserError (exit 1) naming the first step whose loss, or outside fp16 whose gradient, was not finite."""
    stats, job = fold.at["stats"][: fold.at["step"]].cpu(), fold.job
    bad = ~stats[:, 0].isfinite() if job.config.precision == "fp16" else ~stats.isfinite().all(1)
    if bad.any():
        step = int(bad.nonzero()[0])
        ids = ", ".join(job.table.ids[i] for i in fold.batches[step][:16])
        where = f"fold {fold.k}, epoch {fold.at['epoch'] + 1}, step {step + 1}"
        what = f"loss or gradient is not finite; rows {ids}"
        raise UserError(f"{where}: {what} - try a lower --lr or --precision fp32", 1)


def better(row: dict, best: dict | None) -> bool:
    """Higher macro-F1 at 0.5; of equals, also where all are 0, the lower validation loss."""
    return best is None or (row["macro_f1"], -row["val_loss"]) > (best["macro_f1"], -best["val_loss"])


def out_of_patience(log: list[dict], patience: int | None) -> bool:
    best = max(log, key=lambda r: (r["macro_f1"], -r["val_loss"]), default=None)
    return patience is not None and best is not None and log[-1]["epoch"] - best["epoch"] >= patience


def keep_epoch(fold: Fold, p: np.ndarray) -> dict:
    """Write this epoch's model and probabilities: at once, since a live state_dict goes on changing."""
    config = fold.job.config
    rate, last, left = config.lr * config.weight_decay, 1.0, 1.0
    for i in range(0 if config.freeze else fold.at["taken"]):  # what decay leaves of token rows that never
        last *= 1 - rate * fold.lr_factor(i)  # occur, and of their running mean
        left += (last - left) * fold.part(i + 1)
    with whole(fold.folder) as temporary:
        with fast.whole_embedding(fold.model.encoder, left) as encoder:
            encoder.save_pretrained(temporary)
        fold.job.info.tokenizer.save_pretrained(temporary)
        fold.model.save_head(temporary / "head.safetensors")
        np.save(temporary / "oof.npy", p, allow_pickle=False)
        return describe(temporary)


def write_log(folder: Path, rows: list[dict]) -> dict:
    with whole(folder) as temporary:
        (temporary / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        return describe(temporary)


def write_totals(job: Job, run: Run) -> None:
    """All folds are done: oof.csv, th.npy, metrics.json, pictures from their files; closing tables."""
    config, names, rows = job.config, job.config.labels, np.flatnonzero(job.fold >= 0)
    p, results, log = np.zeros_like(job.table.labels), [], []
    for k, folder in enumerate(map(run.fold, range(config.folds))):
        if wrong := damage(folder, run.key):
            raise UserError(f"{wrong} - the same command without --fold redoes fold {k}", 1)
        results.append(read_json(folder / "DONE.json"))
        log += map(json.loads, (folder / "log.jsonl").read_text().splitlines())
        p[job.fold == k] = np.load(folder / "oof.npy", allow_pickle=False)
    y, p, fold, hashes = job.table.labels[rows], p[rows], job.fold[rows], job.hashes[rows]
    ids, texts = ([x[i] for i in rows] for x in (job.table.ids, job.table.texts))
    parts = fold
    if config.folds == 1:  # the thresholds have five folds of their own, of the held-out rows
        parts = assign_folds(y, hashes, min(5, len(set(hashes.tolist()))), config.seed)
    values, th, crossed, draws = metrics.summary(y, p, parts, names)
    values |= {
        "folds": [{**r["best"], "seconds": r["seconds"], "rows_per_s": r["rows_per_s"]} for r in results],
        "train_rows_per_s": float(np.mean([r["rows_per_s"] for r in results])),
        "seconds": float(sum(r["seconds"] for r in results)),
        "peak_rss_mb": float(max(r["peak_rss_mb"] for r in results)),
    }
    (low, high), score = values["macro_f1_cross_fitted_ci95"], values["macro_f1_cross_fitted"]
    title = f"{config.model}: cross-fitted macro-F1 {score:.3f} [{low:.3f}, {high:.3f}], {len(rows)} rows"
    lines = ([i, k, *(f"{v:.9g}" for v in q)] for i, k, q in zip(ids, fold, p, strict=True))
    with locked(run.path / "lock", wait=True):
        with whole(run.path) as temporary:
            (temporary / "oof.csv").write_bytes(csv_text([["id", "fold", *names], *lines]).encode())
            errors = csv_text(report.likely_errors(ids, texts, fold, y, p, names))
            (temporary / "errors.csv").write_bytes(errors.encode())
            np.save(temporary / "th.npy", th, allow_pickle=False)
            report.draw_report(temporary / "report.png", log, y, p, crossed, th, draws, names, title)
            write_json(temporary / "th.json", {"labels": names, "run": run.key})
            write_json(temporary / "metrics.json", values)
            write_log(temporary, log)
            files = describe(temporary) | describe(run.path, ["config.json", "env.json", "texts.npy"])
        write_json(run.path / "DONE.json", {"run": run.key, "files": files}, seal=True)
    print(report.closing_table(values))
    more = "" if config.train == Config().train else " --input new.csv"
    print(f"done: {run.path} | next: python predict.py --run {run.path}{more}")


if __name__ == "__main__":
    sys.exit(main())
