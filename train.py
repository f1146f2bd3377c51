"""Fine-tune an encoder on a CSV, fold by fold: python train.py --help

settings -> rows -> folds -> tokens -> one model per fold -> out-of-fold probabilities -> thresholds and scores.
Another loss: `loss_per_row`. Another optimizer: `make_optimizer`. Another schedule: `lr_factor`. The loop: `train_fold`.
B rows of a step, C labels, N data rows, K folds.
"""

import sys

from config import Config, check_flags, exit_codes, parse

if __name__ == "__main__":
    check_flags(Config)

import contextlib
import dataclasses
import hashlib
import json
import math
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
from config import BUNDLED, NOT_IDENTITY, UserError, identity, warn
from data import Collator, EmotionDataset, Table, Tokens, assign_folds, csv_text, length_batches, read_csv, text_hashes, tokenize  # fmt: skip
from model import EmotionClassifier, EncoderInfo, autocast, hub_revision, inspect_encoder, layers_of, load_encoder, predict_logits, resolve_device, sigmoid  # fmt: skip
from report import data_report, draw_report
from run import STATE_EVERY, Interrupted, Run, Signals, code_sha256, damage, describe, file_sha256, finish, load_state, locked, publish, read_json, read_npy, save_state, whole_file, write_json  # fmt: skip

SMALL = 50_000_000  # encoders with fewer parameters want a higher rate


@dataclass(frozen=True)
class Job:
    """Everything the folds share. `fold` is -1 for rows that are never held out (--folds 1)."""

    config: Config
    table: Table
    hashes: np.ndarray  # uint64 (N,)
    fold: np.ndarray  # int16 (N,)
    tokens: Tokens
    info: EncoderInfo
    signals: Signals
    pad_id: int
    used: np.ndarray | None = None  # token ids of a shrunk embedding table; `tokens` and `pad_id` then count in these

    def collator(self) -> Collator:
        return Collator(self.pad_id, max_length=self.info.max_positions or self.config.max_length)


@exit_codes
def main(argv: list[str] | None = None) -> int:
    config = parse(Config, argv)
    with Signals() as signals:
        job = prepare(config, signals)
        config = job.config
        encoder = load_encoder(job.info.path)
        run = open_run(job, encoder, argv)
        job = shrink_vocabulary(job, encoder)
        del encoder
        for k in run.take(config.fold):
            train_fold(job, run, k)
        missing = [k for k in range(config.folds) if not run.done(k)]
        if missing:
            print(f"nothing left to take here; unfinished: fold {', '.join(map(str, missing))} (totals come with the last)")
        else:
            write_totals(job, run)
    return 0


def prepare(config: Config, signals: Signals) -> Job:
    """Read and check everything that can be checked before a model is loaded. UserError when something is wrong."""
    if config.fold is not None and config.fold >= config.folds:
        raise UserError(f"--fold {config.fold}: folds are numbered from 0 to {config.folds - 1}")
    device, precision = resolve_device(config.device, config.precision)
    table = read_csv(config.train, config.text_column, config.labels)
    hashes = text_hashes(table.texts)
    fold = assign_folds(table.labels, hashes, max(config.folds, 5 if config.folds == 1 else 2), config.seed)
    info = inspect_encoder(config.model)
    small = info.parameters < SMALL
    config = dataclasses.replace(
        config,
        device=device,
        precision=precision,
        lr=config.lr or (1.5e-4 if small else 5e-5),
    )
    if info.max_positions and config.max_length > info.max_positions:
        raise UserError(f"--max-length {config.max_length}: {config.model} takes at most {info.max_positions} tokens")
    if config.freeze > info.layers:
        raise UserError(f"--freeze {config.freeze}: {config.model} has {info.layers} layers")
    tokens = tokenize(info.tokenizer, table.texts, config.max_length)
    print(f"device {device} ({torch.get_num_threads()} threads) | {precision} | encoder {config.model} ({info.config.model_type}), {info.parameters:,} parameters | lr {config.lr:g} | epochs {config.epochs} | pooling {config.pooling}")  # fmt: skip
    print(data_report(table, config.labels, tokens, info.tokenizer, hashes, fold), flush=True)
    if config.folds == 1:  # fold 0 of five is held out, the other rows never are
        fold = np.where(fold == 0, 0, -1).astype(fold.dtype)
    warn_of_seen_texts(info.path, hashes)
    return Job(config, table, hashes, fold, tokens, info, signals, info.tokenizer.pad_token_id)


def warn_of_seen_texts(folder: str, hashes: np.ndarray) -> None:
    """Warn when the encoder comes from a run (fold_k beside texts.npy) that was trained on some of these texts."""
    seen = Path(folder).parent / "texts.npy"
    if seen.is_file():
        n = int(np.isin(hashes, read_npy(seen, "u", "text hashes")).sum())
        if n:
            warn(f"{n} of {len(hashes)} texts are among those this encoder was trained on - scores on them are too good")


def shrink_vocabulary(job: Job, encoder: nn.Module) -> Job:
    """The job with its tokens renumbered to those that occur, where the encoder allows it (see fast.py)."""
    used = fast.used_tokens(job.tokens, job.pad_id)
    if not fast.shrinkable(encoder, job.tokens, used, job.pad_id):
        return job
    tokens = dataclasses.replace(job.tokens, ids=np.searchsorted(used, job.tokens.ids).astype(np.int32))
    return dataclasses.replace(job, tokens=tokens, used=used, pad_id=int(np.searchsorted(used, job.pad_id)))


def open_run(job: Job, encoder: nn.Module, argv: list[str] | None) -> Run:
    """The run folder of this command, new or found again; see run.py."""
    config, info = job.config, job.info
    sha = hashlib.sha256()
    for name, tensor in sorted(encoder.state_dict().items()):
        if not tensor.isfinite().all():
            raise UserError(f"--model {config.model}: its weights {name} hold nan or inf - use a sound copy")
        sha.update(name.encode() + np.ascontiguousarray(tensor.numpy()).data)
    size = sum(t.nbytes for t in encoder.state_dict().values())
    data_sha = file_sha256(config.train)
    packages = (torch, transformers, tokenizers, safetensors, np)
    env = {
        "command": " ".join(["train.py", *(sys.argv[1:] if argv is None else argv)]),
        "host": {"platform": platform.platform(), "device": _device_name(config.device)},
        "hub_revision": hub_revision(info.path),
        "git_commit": _git_commit(),
        "same": {
            "settings": identity(config),
            "data_sha256": data_sha,
            "encoder_sha256": sha.hexdigest(),
            "code_sha256": code_sha256(),
            "versions": {"python": platform.python_version(), **{p.__name__: p.__version__ for p in packages}},
            "threads": torch.get_num_threads(),
            "world_size": 1,
        },
    }
    key = json.dumps([identity(config), data_sha], sort_keys=True).encode()
    name = f"{Path(config.model).name}-{hashlib.sha256(key).hexdigest()[:8]}"
    path = Path(config.out or Path("runs", name))
    kept = {k: v for k, v in dataclasses.asdict(config).items() if k not in NOT_IDENTITY}
    run = Run.open(path, config.folds, kept, env, config.restart, (config.folds + 6) * size)
    with locked(path / "lock", wait=True), whole_file(path / "texts.npy") as f:  # unlocked, another process would sweep it
        np.save(f, np.unique(job.hashes), allow_pickle=False)
    print(f"run folder {path}", flush=True)
    return run


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()


def _git_commit() -> str | None:
    try:
        found = subprocess.run(["git", "-C", Path(__file__).parent, "rev-parse", "HEAD"], capture_output=True, text=True)
    except OSError:  # no git here
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None


def loss_per_row(logits: torch.Tensor, y: torch.Tensor, config: Config, pos_weight: torch.Tensor | None) -> torch.Tensor:
    """(B, C) logits and 0/1 targets -> (B,): binary cross-entropy (or focal loss, Lin et al. 2017), mean over labels."""
    target = y * (1 - config.label_smoothing) + config.label_smoothing / 2
    loss = F.binary_cross_entropy_with_logits(logits, target, pos_weight=pos_weight, reduction="none")
    if config.loss == "focal":
        p = torch.sigmoid(logits)
        loss = loss * (p * (1 - y) + (1 - p) * y) ** 2
    return loss.mean(1)


def lr_factor(step: int, total: int, warmup: int, scheduler: str) -> float:
    """The rate of step 0..total-1 relative to its peak: a linear rise (never 0), then linear, cosine or constant."""
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
    if job.used is not None:
        fast.shrink_embedding(model.encoder, job.used)
    if config.freeze:
        for part in (model.encoder.get_input_embeddings(), getattr(model.encoder, "embeddings", None), *layers_of(model.encoder)[: config.freeze]):  # fmt: skip
            if part is not None:
                part.requires_grad_(False)
    fast.fast_dropout(model.encoder)
    return model.to(config.device).train()


def seed_of(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def train_step(model, optimizer, scaler, micro_batches: list[dict], config: Config, pos_weight) -> torch.Tensor:
    """One optimizer step on the rows of all micro-batches: the gradient is that of the undivided batch.

    Returns (2,): mean loss of the rows, gradient norm before clipping; both stay on the device.
    """
    rows = sum(len(b["labels"]) for b in micro_batches)
    total = 0.0
    for batch in micro_batches:
        y = batch.pop("labels")
        with autocast(config.device, config.precision):
            logits = model(**batch)
        loss = loss_per_row(logits, y, config, pos_weight).sum() / rows
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
    """What training fold k holds. `at` is, beside weights and optimizer, all that going on needs; `taken` counts the
    steps the scaler did not skip, `stats` holds loss and gradient norm of each step of the epoch, on the device."""

    job: Job
    k: int
    folder: Path
    train: np.ndarray  # row numbers
    held: np.ndarray
    model: EmotionClassifier
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    pos_weight: torch.Tensor | None
    at: dict
    mean: list[torch.Tensor]  # running mean of the trainable weights
    batches: list[np.ndarray] = field(default_factory=list)  # row numbers of each step of the epoch
    last_state: float = field(default_factory=time.monotonic)

    @property
    def steps(self) -> int:
        """Optimizer steps of an epoch."""
        return len(self.at["stats"])

    def lr_factor(self, taken: int) -> float:
        config, total = self.job.config, self.steps * self.job.config.epochs
        return lr_factor(taken, total, int(config.warmup_ratio * total), config.scheduler)

    def weights(self) -> list[torch.Tensor]:
        return [p for p in self.model.parameters() if p.requires_grad]

    @torch.no_grad()
    def update_mean(self) -> None:
        """After a step. The decay grows to --ema, so that the start is soon forgotten (as in TensorFlow's EMA)."""
        if self.mean:
            decay = min(self.job.config.ema, (1 + self.at["taken"]) / (10 + self.at["taken"]))
            torch._foreach_lerp_(self.mean, self.weights(), 1 - decay)

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
        parts = {n: getattr(self, n).state_dict() for n in ("model", "optimizer", "scaler")}
        save_state(self.folder / "state.pt", {**parts, "mean": self.mean, "at": {**self.at, "stats": self.at["stats"].cpu()}})
        self.last_state = time.monotonic()


def start_fold(job: Job, run: Run, k: int) -> Fold:
    """Fold k at its beginning, or where state.pt left it."""
    config, labels = job.config, job.table.labels
    train, held = np.flatnonzero(job.fold != k), np.flatnonzero(job.fold == k)
    model = make_model(job, k)
    optimizer = make_optimizer(model, config)
    scaler = torch.amp.GradScaler(config.device, enabled=config.precision == "fp16")
    pos_weight = None
    if config.pos_weight:
        positives = labels[train].sum(0)
        weight = np.where(positives > 0, (len(train) - positives) / np.maximum(positives, 1), 1.0)
        pos_weight = torch.tensor(weight.clip(0.01, 100), dtype=torch.float32, device=config.device)
    steps = -(-len(train) // (config.batch_size * config.accumulate))
    at = {"epoch": 0, "step": 0, "taken": 0, "best": None, "log": [], "files": {}, "seconds": 0.0}
    at["stats"] = torch.zeros(steps, 2)
    parameters = job.info.parameters + sum(model.state_dict()[n].numel() for n in model.head_names().values())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    table = "" if job.used is None else f" (token table: the {len(job.used):,} rows that occur)"
    print(
        f"fold {k}: {len(train)} rows to train on, {len(held)} held out | {parameters:,} parameters, {trainable:,} trainable{table}"
    )
    saved = load_state(run.fold(k) / "state.pt")
    if saved:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        if scaler.is_enabled():
            scaler.load_state_dict(saved["scaler"])
        at = saved["at"]
        print(f"fold {k}: goes on at epoch {at['epoch'] + 1}, step {at['step']} of {steps}", flush=True)
    at["stats"] = at["stats"].to(config.device)
    fold = Fold(job, k, run.fold(k), train, held, model, optimizer, scaler, pos_weight, at, [])
    if config.ema:
        fold.mean = [m.to(config.device) for m in saved["mean"]] if saved else [p.detach().clone() for p in fold.weights()]
    return fold


def train_fold(job: Job, run: Run, k: int) -> None:
    """Train fold k, from its start or from state.pt, and leave its folder finished.

    Each epoch: train, predict the held-out rows, keep the epoch if it is the best, write the state. Everything random
    of a step comes from (seed, fold, epoch, step), so that going on needs no generator's state.
    """
    config, fold = job.config, start_fold(job, run, k)
    at, began = fold.at, time.monotonic() - fold.at["seconds"]
    job.signals.hold = True
    try:
        while at["epoch"] < config.epochs and not out_of_patience(at, config):
            rate = train_epoch(fold)
            with fold.averaged():
                row, p = judge(fold, rate)
                at["log"].append(row)
                print(epoch_line(row, config.epochs), flush=True)
                if better(row, at["best"]):
                    at["best"] = row
                    at["files"] = keep_epoch(fold, p)
            write_log(fold.folder / "log.jsonl", at["log"])
            at["epoch"], at["step"], at["seconds"] = at["epoch"] + 1, 0, time.monotonic() - began
            if at["epoch"] < config.epochs:
                fold.save()
            job.signals.check()
    except Interrupted:
        at["seconds"] = time.monotonic() - began
        fold.save()
        raise
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as e:
        if isinstance(e, RuntimeError) and "memory" not in str(e).lower():
            raise
        mend = "a smaller --batch-size with a larger --accumulate gives the same steps"
        raise UserError(
            f"fold {k}: out of memory at --batch-size {config.batch_size} - {mend}; what was saved stays in {run.path}", 1
        ) from e
    finally:
        job.signals.hold = False
    write_log(fold.folder / "log.jsonl", at["log"])
    result = {
        "fold": k,
        "best": at["best"],
        "rows_per_s": float(np.mean([r["rows_per_s"] for r in at["log"]])),
        "seconds": at["seconds"],
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10),
    }
    files = {**at["files"], **describe(fold.folder, ["log.jsonl"])}  # as they were written: a later flip is noticed
    finish(fold.folder, run.key, files, **result)
    (fold.folder / "state.pt").unlink(missing_ok=True)


def train_epoch(fold: Fold) -> float:
    """The steps of the epoch that are still to do; rows per second."""
    job, config, at, k = fold.job, fold.job.config, fold.at, fold.k
    epoch, size = at["epoch"], config.batch_size
    dataset, collate = EmotionDataset(job.tokens, job.table.labels), job.collator()
    order = length_batches(job.tokens.lengths[fold.train], size * config.accumulate, [config.seed, k, epoch])
    fold.batches = [fold.train[b] for b in order]
    todo, clock = range(at["step"], fold.steps), time.monotonic()
    for step in tqdm(todo, f"fold {k} epoch {epoch + 1}", unit="step", leave=False, disable=None):
        torch.manual_seed(seed_of(config.seed, k, epoch, step))
        for group in fold.optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * fold.lr_factor(at["taken"])
        rows = fold.batches[step]
        micro = [collate([dataset[i] for i in rows[j : j + size]]) for j in range(0, len(rows), size)]
        micro = [to_device(batch, config.device) for batch in micro]
        scale = fold.scaler.get_scale()
        at["stats"][step] = train_step(fold.model, fold.optimizer, fold.scaler, micro, config, fold.pos_weight)
        at["taken"] += fold.scaler.get_scale() >= scale  # fp16: smaller means that the step was skipped
        at["step"] = step + 1
        fold.update_mean()
        job.signals.check()
        if time.monotonic() - fold.last_state > STATE_EVERY:
            fold.save()
    check_finite(fold)
    return sum(len(fold.batches[i]) for i in todo) / max(1e-9, time.monotonic() - clock)


def judge(fold: Fold, rate: float) -> tuple[dict, np.ndarray]:
    """The epoch's log row, and the held-out rows' probabilities (N, C)."""
    job, config, at = fold.job, fold.job.config, fold.at
    logits = predict_logits(
        fold.model, subset(job.tokens, fold.held), job.collator(), config.device, config.precision, job.signals.check
    )
    if not np.isfinite(logits).all():
        raise UserError(
            f"fold {fold.k}, epoch {at['epoch'] + 1}: held-out logits are not finite - try a lower --lr or --precision fp32", 1
        )
    y, p = job.table.labels[fold.held], sigmoid(logits)
    sizes = torch.tensor([len(b) for b in fold.batches])
    s = metrics.scores(y, metrics.detect(p, np.float32(0.5)))
    return {
        "fold": fold.k,
        "epoch": at["epoch"],
        "train_loss": float((at["stats"][:, 0].cpu() * sizes).sum() / sizes.sum()),
        "val_loss": float(loss_per_row(torch.from_numpy(logits), torch.from_numpy(y), config, None).mean()),
        "exact_match": s["exact_match"],
        "macro_f1": s["macro_f1"],
        "lr": config.lr * fold.lr_factor(max(0, at["taken"] - 1)),
        "rows_per_s": rate,
    }, p


def to_device(batch: dict, device: str) -> dict:
    if device == "cuda":
        batch = {k: v.pin_memory() for k, v in batch.items()}
    return {k: v.to(device, non_blocking=True) for k, v in batch.items()}


def subset(tokens: Tokens, rows: np.ndarray) -> Tokens:
    lengths = tokens.lengths[rows]
    ids = [tokens.ids[tokens.offsets[i] : tokens.offsets[i + 1]] for i in rows]
    return Tokens(np.concatenate(ids), np.concatenate([[0], np.cumsum(lengths)]))


def check_finite(fold: Fold) -> None:
    """UserError (exit 1) that names the first step whose loss, or outside fp16 whose gradient, was not finite."""
    stats, job = fold.at["stats"][: fold.at["step"]].cpu(), fold.job
    bad = ~stats[:, 0].isfinite() if job.config.precision == "fp16" else ~stats.isfinite().all(1)
    if bad.any():
        step = int(bad.nonzero()[0])
        ids = ", ".join(job.table.ids[i] for i in fold.batches[step][:16])
        where = f"fold {fold.k}, epoch {fold.at['epoch'] + 1}, step {step + 1}"
        raise UserError(f"{where}: loss or gradient is not finite; rows {ids} - try a lower --lr or --precision fp32", 1)


def out_of_patience(at: dict, config: Config) -> bool:
    return config.patience is not None and bool(at["log"]) and at["epoch"] - 1 - at["best"]["epoch"] >= config.patience


def better(row: dict, best: dict | None) -> bool:
    """Higher macro-F1 at 0.5; of equals, also where all are 0, the lower validation loss."""
    return best is None or (row["macro_f1"], -row["val_loss"]) > (best["macro_f1"], -best["val_loss"])


def epoch_line(r: dict, epochs: int) -> str:
    return (
        f"fold {r['fold']} epoch {r['epoch'] + 1:>2}/{epochs} | train loss {r['train_loss']:.4f} | val loss {r['val_loss']:.4f} | "
        f"exact match {r['exact_match']:.4f} | macro-F1 {r['macro_f1']:.4f} | lr {r['lr']:.1e} | {r['rows_per_s']:.0f} rows/s"
    )


def keep_epoch(fold: Fold, p: np.ndarray) -> dict:
    """Write this epoch's model and held-out probabilities: on disk at once, since a live state_dict goes on changing."""
    config = fold.job.config
    rate = config.lr * config.weight_decay
    decay = [1 - rate * fold.lr_factor(i) for i in range(fold.at["taken"])]  # of token rows that never occur

    def write(temporary: Path) -> None:
        with fast.whole_embedding(fold.model.encoder, 1.0 if config.freeze else math.prod(decay)) as encoder:
            encoder.save_pretrained(temporary)
        fold.job.info.tokenizer.save_pretrained(temporary)
        fold.model.save_head(temporary / "head.safetensors")
        np.save(temporary / "oof.npy", p, allow_pickle=False)

    return publish(fold.folder, write)


def write_log(path: Path, rows: list[dict]) -> None:
    with whole_file(path) as f:
        f.write("".join(json.dumps(r) + "\n" for r in rows).encode())


def write_totals(job: Job, run: Run) -> None:
    """All folds are done: oof.csv, th.npy, log.jsonl, report.png and metrics.json from their files; closing tables."""
    config, names = job.config, job.config.labels
    for k in range(config.folds):
        wrong = damage(run.fold(k), run.key)
        if wrong:
            raise UserError(f"{wrong} - the same command without --fold redoes fold {k}", 1)
    results = [read_json(run.fold(k) / "DONE.json") for k in range(config.folds)]
    log = [json.loads(x) for k in range(config.folds) for x in (run.fold(k) / "log.jsonl").read_text().splitlines()]
    p = np.zeros(job.table.labels.shape, dtype=np.float32)
    for k in range(config.folds):
        p[job.fold == k] = np.load(run.fold(k) / "oof.npy", allow_pickle=False)
    rows = np.flatnonzero(job.fold >= 0)
    y, p, fold = job.table.labels[rows], p[rows], job.fold[rows]
    if config.folds == 1:  # the thresholds have five folds of their own, of the held-out rows
        hashes = job.hashes[rows]
        values, th, crossed, draws = metrics.summary(
            y, p, assign_folds(y, hashes, min(5, len(set(hashes.tolist()))), config.seed), names
        )
    else:
        values, th, crossed, draws = metrics.summary(y, p, fold, names)
    values |= {
        "folds": [{**r["best"], "seconds": r["seconds"], "rows_per_s": r["rows_per_s"]} for r in results],
        "train_rows_per_s": float(np.mean([r["rows_per_s"] for r in results])),
        "seconds": float(sum(r["seconds"] for r in results)),
        "peak_rss_mb": float(max(r["peak_rss_mb"] for r in results)),
    }
    lines = ([job.table.ids[i], k, *(f"{v:.9g}" for v in q)] for i, k, q in zip(rows, fold, p, strict=True))
    with locked(run.path / "lock", wait=True):
        with whole_file(run.path / "oof.csv") as f:
            f.write(csv_text([["id", "fold", *names], *lines]).encode())
        with whole_file(run.path / "th.npy") as f:
            np.save(f, th, allow_pickle=False)
        write_json(run.path / "th.json", {"labels": names, "run": run.key})
        write_log(run.path / "log.jsonl", log)
        with whole_file(run.path / "report.png") as f:
            low, high = values["macro_f1_cross_fitted_ci95"]
            title = f"{config.model}: cross-fitted macro-F1 {values['macro_f1_cross_fitted']:.3f} [{low:.3f}, {high:.3f}], {len(rows)} rows"
            draw_report(f, log, y, p, crossed, th, draws, names, title)
        write_json(run.path / "metrics.json", values)
        files = [
            "env.json",
            "config.json",
            "texts.npy",
            "oof.csv",
            "th.npy",
            "th.json",
            "log.jsonl",
            "report.png",
            "metrics.json",
        ]
        finish(run.path, run.key, describe(run.path, files))
    print(metrics.closing_table(values))
    default = Path(config.train).parent.name == "examples" and config.model == BUNDLED
    print(f"done: {run.path} | next: python predict.py --run {run.path}" + ("" if default else " --input new.csv"))


if __name__ == "__main__":
    sys.exit(main())
