"""What a fold resumes from after a kill: its state, the epoch that is kept, and the end."""

import contextlib
import hashlib
import json
import math
import pickle
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from config import Config
from support.active import ActiveRun
from support.files import atomic_write, describe, file_sha256, write_json
from support.process import Interrupted, UserError, warn

STATE_EVERY = 600.0  # seconds between states within an epoch


def save_state(path: Path, state: dict) -> None:
    """torch.save of plain data, followed by its own sha256: no format notices a flipped byte."""
    with atomic_write(path.parent) as temporary:
        torch.save(state, temporary / path.name)
        with open(temporary / path.name, "ab") as f:
            f.write(bytes.fromhex(file_sha256(f.name)))


def load_state(path: Path) -> dict | None:
    """What `save_state` wrote, by weights_only=True; None when there is none, or a damaged one."""
    if not path.exists():
        return None
    with contextlib.suppress(pickle.UnpicklingError, ValueError):  # no plain data; an empty file
        raw = np.memmap(path, np.uint8, "r")
        if hashlib.sha256(raw[:-32]).digest() == bytes(raw[-32:]):
            return torch.load(path, map_location="cpu", weights_only=True)
    print(f"{path}: truncated or damaged - this fold starts again", flush=True)


class Progress:
    """How far a fold has come: epoch, step, the epoch kept, the log. It is part of the state.

    An epoch is: `start_epoch`, `Checkpoint.after_step` for each step, `end_of_steps`, `log_entry`,
    `Checkpoint.keep` if it is the one to keep, `Checkpoint.end_epoch`.
    """

    SAVED = ("epoch", "step", "kept", "files", "log", "losses", "seconds")

    def __init__(self, fold: int, steps_per_epoch: int, config: Config, ids: list[str]):
        """`ids`: of the rows of the Table, for errors."""
        self.fold = fold
        self.config = config
        self.ids = ids
        self.epoch = self.step = 0
        self.kept: dict | None = None  # the log's entry of the epoch that is kept
        self.files: dict[str, dict] = {}  # size and checksum of its files
        self.log: list[dict] = []
        # The loss and the gradient's norm of each step of this epoch
        self.losses = torch.zeros(steps_per_epoch, 2, device=config.device)
        self.began = time.monotonic()
        # Of the epoch at work: row numbers of each step; where it started or resumed, and when.
        self.steps: list[np.ndarray] = []
        self.first_step = 0
        self.epoch_began = self.began
        self.train_loss = self.rows_per_s = math.nan

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def state_dict(self) -> dict:
        return {name: getattr(self, name) for name in self.SAVED}

    def load_state_dict(self, state: dict) -> None:
        for name in self.SAVED:
            if name != "seconds":
                setattr(self, name, state[name])
        self.losses = self.losses.to(self.config.device)
        self.began -= state["seconds"]

    def start_epoch(self, steps: list[np.ndarray]) -> None:
        """Start the epoch, or resume it. `steps`: row numbers of every step, also of those done."""
        if len(steps) != len(self.losses):
            raise ValueError(f"an epoch of {len(steps)} steps where {len(self.losses)} are planned")
        self.steps = steps
        self.first_step = self.step
        self.epoch_began = time.monotonic()

    def add_step(self, loss_and_norm: torch.Tensor) -> None:
        self.losses[self.step] = loss_and_norm
        self.step += 1

    def loss_so_far(self) -> str:
        """The mean loss of this epoch's steps, in words. It waits for a GPU to compute them."""
        losses = self.losses[: self.step, 0]
        if not len(losses):  # a fold or an epoch begins
            return ""
        return f"fold {self.fold} epoch {self.epoch + 1} loss {float(losses.mean()):.4f}"

    def end_of_steps(self, taken: int) -> None:
        """Note the mean loss and rows per second. A warning if fp16 took no step."""
        self.check_finite()
        if self.step > self.first_step and not taken:
            problem = f"fp16 overflowed in every step of epoch {self.epoch + 1}"
            warn(f"fold {self.fold}: {problem} - see --precision")
        sizes = torch.tensor([len(rows) for rows in self.steps])
        losses = self.losses[:, 0].cpu()
        self.train_loss = float((losses * sizes).sum() / sizes.sum())
        rows = float(sizes[self.first_step :].sum())
        self.rows_per_s = rows / (time.monotonic() - self.epoch_began)

    def log_entry(self, val_loss: float, y_prob: np.ndarray, scores: dict, lr: float) -> dict:
        """The epoch's line of log.jsonl. UserError (exit 1) where the outputs overflowed."""
        if not np.isfinite(val_loss + y_prob.sum()):
            raise self._not_finite("", "outputs on held-out rows are")
        return {
            "fold": self.fold,
            "epoch": self.epoch,
            "train_loss": self.train_loss,
            "val_loss": val_loss,
            **scores,
            "lr": lr,
            "rows_per_s": self.rows_per_s,
        }

    def keep(self, entry: dict, files: dict) -> None:
        """Note which epoch is kept, with sizes and checksums of its files."""
        self.kept = entry
        self.files = files

    def next_epoch(self, entry: dict) -> None:
        self.log.append(entry)
        self.epoch += 1
        self.step = 0

    def check_finite(self) -> None:
        """UserError (exit 1) that names the first step whose loss or gradient was not finite."""
        losses = self.losses[: self.step].cpu()
        if self.config.precision == "fp16":  # gradients that overflow are the scaler's
            losses = losses[:, :1]
        bad = ~losses.isfinite().all(1)
        if bad.any():
            step = int(bad.nonzero()[0])
            ids = ", ".join(self.ids[i] for i in self.steps[step][:16])
            raise self._not_finite(f", step {step + 1}", f"loss or gradient of rows {ids} is")

    def _not_finite(self, step: str, value: str) -> UserError:
        where = f"fold {self.fold}, epoch {self.epoch + 1}{step}"
        return UserError(f"{where}: {value} not finite - try a lower --lr or --precision fp32", 1)


class Checkpoint:
    """The state of one fold in state.pt, the epoch that is kept, and the end.

    `progress`, and what `state` names, is saved and loaded by its state_dict.
    """

    def __init__(self, run: ActiveRun, progress: Progress, state: dict):
        self.run = run
        self.ranks = run.ranks
        self.signals = run.signals
        self.folder = run.fold_dir(progress.fold)
        self.progress = progress
        self.state = {**state, "progress": progress}
        self.saved_at = time.monotonic()

    def load(self) -> None:
        """Resume from state.pt, if there is one."""
        if saved := load_state(self.folder / "state.pt"):
            for name, part in self.state.items():
                part.load_state_dict(saved[name])
            p = self.progress
            where = f"epoch {p.epoch + 1}, step {p.step} of {len(p.losses)}"
            print(f"fold {p.fold}: resumes at {where}", flush=True)
            self.run.bar.update(p.epoch * len(p.losses) + p.step)

    def save(self) -> None:
        """A state that is not finite is refused (UserError)."""
        self.progress.check_finite()
        if self.ranks.leads:
            saved = {name: part.state_dict() for name, part in self.state.items()}
            save_state(self.folder / "state.pt", saved)
        self.saved_at = time.monotonic()

    def after_step(self, loss: torch.Tensor, norm: torch.Tensor) -> None:
        """Note the step; stop if a signal came; save if the last state is ten minutes old."""
        self.progress.add_step(self.ranks.sum(torch.stack([loss, norm])) / self.ranks.size)
        self.run.bar.update(1, self.progress.loss_so_far)  # which is not asked at every step
        self.signals.check()
        if time.monotonic() - self.saved_at > STATE_EVERY:
            self.save()

    @contextlib.contextmanager
    def saved_when_stopped(self) -> Iterator[None]:
        """Signals wait for the end of a step; then the state is saved."""
        with self.signals.held():
            try:
                yield
                self.signals.check()
            except (Interrupted, BrokenPipeError):  # the pipe to train.py, which was killed
                self.save()
                raise
            except RuntimeError:
                self.signals.check(True)  # under torchrun the other ranks have left
                raise

    def keep(
        self,
        entry: dict,
        y_prob: np.ndarray,
        model,
        tokenizer: PreTrainedTokenizerBase,
        arrays: dict[str, np.ndarray] | None = None,
    ) -> None:
        """Write this epoch's model and probabilities now: a live state_dict changes later.

        `arrays`: more to save with the fold, as <name>.npy.
        """
        files = {}
        if self.ranks.leads:
            with atomic_write(self.folder) as temporary:
                model.save(temporary)
                tokenizer.save_pretrained(temporary)
                for name, array in {"oof": y_prob, **(arrays or {})}.items():
                    np.save(temporary / f"{name}.npy", array, allow_pickle=False)
                files = describe(temporary)
        self.progress.keep(entry, files)

    def end_epoch(self, entry: dict) -> None:
        """Append the log's entry, go to the next epoch, save the state."""
        progress = self.progress
        progress.next_epoch(entry)
        if self.ranks.leads:
            write_log(self.folder, progress.log)
        if progress.epoch < progress.config.epochs:
            self.save()

    def finish(self) -> None:
        """DONE.json, written last, makes the fold a finished one."""
        if self.ranks.leads:
            p = self.progress
            rates = [
                entry["rows_per_s"] for entry in p.log if entry["rows_per_s"]
            ]  # 0: stopped there
            unit = 2**20 if sys.platform == "darwin" else 2**10
            done = {
                "run": self.run.key,
                "fold": p.fold,
                "best": {**p.kept, "seconds": p.seconds, "rows_per_s": float(np.mean(rates or 0))},
                "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit,
                # Checksums of the files as they were written: damage since then is noticed.
                "files": {**p.files, **write_log(self.folder, p.log)},
            }
            (self.run.path / "DONE.json").unlink(missing_ok=True)  # of totals with another fold
            write_json(self.folder / "DONE.json", done, seal=True)
            (self.folder / "state.pt").unlink(missing_ok=True)
        self.ranks.agree()  # all see the fold finished


def write_log(folder: Path, rows: list[dict]) -> dict:
    with atomic_write(folder) as temporary:
        (temporary / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return describe(temporary)
