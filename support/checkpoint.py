"""What a fold goes on from after a kill: its state, the epoch that is kept, and the end."""

import contextlib
import hashlib
import json
import pickle
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch

from config import Config
from support.errors import Interrupted, UserError, warn
from support.files import atomic_write, describe, file_sha256, write_json
from support.run import Run

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
    print(f"{path}: truncated or damaged - this fold begins anew", flush=True)


class Progress:
    """How far a fold has come: epoch, step, the epoch kept, the log. It is part of the state."""

    SAVED = ("epoch", "step", "kept", "files", "log", "losses", "seconds")

    def __init__(self, fold: int, steps: int, config: Config, ids: list[str]):
        self.fold, self.config, self.ids = fold, config, ids
        self.epoch, self.step, self.kept, self.files, self.log = 0, 0, None, {}, []
        self.losses = torch.zeros(steps, 2, device=config.device)  # and gradient norms, by step
        self.began = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def state_dict(self) -> dict:
        return {name: getattr(self, name) for name in self.SAVED}

    def load_state_dict(self, state: dict) -> None:
        self.began -= state.pop("seconds")
        vars(self).update(state, losses=state["losses"].to(self.config.device))

    def begin_or_resume_epoch(self, steps: list[np.ndarray]) -> None:
        """`steps`: the row numbers of each step of the epoch, also of those that are done."""
        self.steps, self.first, self.clock = steps, self.step, time.monotonic()

    def end_of_steps(self, taken: int) -> None:
        """After the epoch's steps: their mean loss, and rows per second."""
        self.check_finite()
        if self.step > self.first and not taken:
            what = f"fp16 overflowed in every step of epoch {self.epoch + 1}"
            warn(f"fold {self.fold}: {what} - see --precision")
        sizes = torch.tensor([len(rows) for rows in self.steps])
        self.train_loss = float((self.losses[:, 0].cpu() * sizes).sum() / sizes.sum())
        self.rows_per_s = float(sizes[self.first :].sum()) / (time.monotonic() - self.clock)

    def row(self, val_loss: float, y_prob: np.ndarray, scores: dict, lr: float) -> dict:
        """The epoch's line of log.jsonl. UserError (exit 1) where the outputs overflowed."""
        if not np.isfinite(val_loss + y_prob.sum()):
            raise self.not_finite("", "outputs on held-out rows are")
        row = {"fold": self.fold, "epoch": self.epoch, "train_loss": self.train_loss}
        return row | {"val_loss": val_loss, **scores, "lr": lr, "rows_per_s": self.rows_per_s}

    def check_finite(self) -> None:
        """UserError (exit 1) that names the first step whose loss or gradient was not finite."""
        losses = self.losses[: self.step].cpu()
        if self.config.precision == "fp16":  # gradients that overflow are the scaler's
            losses = losses[:, :1]
        bad = ~losses.isfinite().all(1)
        if bad.any():
            step = int(bad.nonzero()[0])
            ids = ", ".join(self.ids[i] for i in self.steps[step][:16])
            raise self.not_finite(f", step {step + 1}", f"loss or gradient of rows {ids} is")

    def not_finite(self, step: str, what: str) -> UserError:
        where = f"fold {self.fold}, epoch {self.epoch + 1}{step}"
        return UserError(f"{where}: {what} not finite - try a lower --lr or --precision fp32", 1)


class Checkpoint:
    """The state of one fold in state.pt, the epoch that is kept, and the end.

    `progress`, and what `state` names, is saved and loaded by its state_dict.
    """

    def __init__(self, run: Run, k: int, signals, ranks, progress: Progress, state: dict):
        self.run, self.folder, self.signals, self.ranks = run, run.fold(k), signals, ranks
        self.progress, self.state = progress, {**state, "progress": progress}
        self.saved_at = time.monotonic()

    def load(self) -> None:
        """Go on from state.pt, if there is one."""
        if saved := load_state(self.folder / "state.pt"):
            for name, part in self.state.items():
                part.load_state_dict(saved[name])
            p = self.progress
            where = f"epoch {p.epoch + 1}, step {p.step} of {len(p.losses)}"
            print(f"fold {p.fold}: goes on at {where}", flush=True)
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
        p, both = self.progress, torch.stack([loss, norm])
        p.losses[p.step] = self.ranks.sum(both) / self.ranks.size
        p.step += 1
        self.run.bar.update(1)
        self.signals.check()
        if time.monotonic() - self.saved_at > STATE_EVERY:
            self.save()

    @contextlib.contextmanager
    def saved_when_stopped(self):
        """Signals wait for the end of a step; then the state is saved."""
        self.signals.hold = True
        try:
            yield
            self.signals.check()
        except (Interrupted, BrokenPipeError):  # nobody reads what it says: train.py was killed
            self.save()
            raise
        except RuntimeError:
            self.signals.check(True)  # under torchrun the other ranks have left
            raise
        finally:
            self.signals.hold = False

    def keep(self, row: dict, y_prob: np.ndarray, model, tokenizer) -> None:
        """Write this epoch's model and probabilities now: a live state_dict goes on changing."""
        self.progress.kept = row
        if self.ranks.leads:
            with atomic_write(self.folder) as temporary:
                model.save(temporary)
                tokenizer.save_pretrained(temporary)
                np.save(temporary / "oof.npy", y_prob, allow_pickle=False)
                self.progress.files = describe(temporary)

    def end_epoch(self, row: dict) -> None:
        p = self.progress
        p.log.append(row)
        p.epoch, p.step = p.epoch + 1, 0
        if self.ranks.leads:
            write_log(self.folder, p.log)
        if p.epoch < p.config.epochs:
            self.save()

    def finish(self) -> None:
        """DONE.json, written last, makes the fold a finished one."""
        if self.ranks.leads:
            p, unit = self.progress, 2**20 if sys.platform == "darwin" else 2**10
            rates = [r["rows_per_s"] for r in p.log if r["rows_per_s"]]  # 0: stopped at its end
            best = {**p.kept, "seconds": p.seconds, "rows_per_s": float(np.mean(rates or 0))}
            done = {"run": self.run.key, "fold": p.fold, "best": best}
            done["peak_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
            # Checksums of the files as they were written: damage since then is noticed.
            done["files"] = {**p.files, **write_log(self.folder, p.log)}
            (self.run.path / "DONE.json").unlink(missing_ok=True)  # of totals with another fold
            write_json(self.folder / "DONE.json", done, seal=True)
            (self.folder / "state.pt").unlink(missing_ok=True)
        self.ranks.agree()  # all see the fold finished


def write_log(folder: Path, rows: list[dict]) -> dict:
    with atomic_write(folder) as temporary:
        (temporary / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return describe(temporary)
