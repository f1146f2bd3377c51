"""A run while train.py works on it: the machinery around `train_fold`, in one object."""

import contextlib
import math
import os
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from config import Config
from data import EmotionDataset, Table
from support import disk, jobs
from support.encoders import EncoderInfo, check_weights
from support.files import damage, locked, sweep
from support.jobs import Command
from support.process import Signals
from support.ranks import Ranks
from support.run import Run, add_texts, open_run, run_identity


@dataclass(frozen=True)
class Session:
    """What a command holds from its first line to its last."""

    command: Command
    signals: Signals
    ranks: Ranks  # the processes of torchrun; without it, one

    @classmethod
    @contextlib.contextmanager
    def begin(cls, command: Command) -> Iterator["Session"]:
        with Signals() as signals, Ranks() as ranks:
            yield cls(command, signals, ranks)

    @property
    def is_helper(self) -> bool:
        """Whether train.py started this process, to train folds in parallel to its own."""
        return jobs.HELPER_VARIABLE in os.environ


class ActiveRun(Run):
    """A run folder, the session that works on it, its progress bar and its helpers."""

    def __init__(self, path: Path, session: Session, bar, helper_codes: list[Future]):
        """`bar`: over the steps of all folds. `helper_codes`: the helpers' exit codes."""
        super().__init__(path)
        self.signals = session.signals
        self.ranks = session.ranks
        self.is_helper = session.is_helper
        self.bar = bar
        self.helper_codes = helper_codes

    def folds_to_train(self, only: int | None = None) -> Iterator[int]:
        """Each fold that is neither finished nor held by another process, under its lock.

        `only`: --fold. Under torchrun every rank gets the folds that rank 0 takes.
        """
        yield from self.ranks.follow(self._unfinished(only))

    def _unfinished(self, only: int | None) -> Iterator[int]:
        missing_at_first = self.missing()
        for k in [k for k in range(self.folds) if only in (None, k)]:
            folder = self.fold_dir(k)
            with locked(folder / "lock") as free:
                if not free:
                    continue
                finished = (folder / "DONE.json").exists()
                problem = damage(folder, self.key) if finished else None
                if finished and not problem:
                    (folder / "state.pt").unlink(missing_ok=True)
                    if not (self.is_helper or k in missing_at_first):
                        print(f"fold {k}: finished before, skipped", flush=True)
                    continue
                if problem:
                    print(f"{problem} - fold {k} is trained again", flush=True)
                sweep(folder, everything=bool(problem))
                yield k

    def wants_summary(self) -> bool:
        """Whether all folds are finished, and it is for this process to write the summary."""
        if self.is_helper:
            return False
        if missing := ", ".join(map(str, self.missing())):
            print(f"unfinished: fold {missing} - totals come with the last")
        return not missing and self.ranks.leads

    @property
    def exit_code(self) -> int:
        """The highest of the helpers', once they have ended."""
        return max((code.result() for code in self.helper_codes), default=0)


def waiting_folds(path: Path, config: Config, restart: bool) -> list[int]:
    """The folds to train that a run at `path` has not finished. There need not be one yet."""
    folds = [k for k in range(config.folds) if config.fold in (None, k)]
    return [k for k in folds if restart or not (path / f"fold_{k}" / "DONE.json").exists()]


@contextlib.contextmanager
def start_run(
    path: Path,
    config: Config,
    table: Table,
    dataset: EmotionDataset,
    encoder_info: EncoderInfo,
    session: Session,
) -> Iterator[ActiveRun]:
    """Make the run folder, or find the run in it; the block runs in parallel to the helpers.

    UserError for weights that are not fit, a disk without room, and a folder that holds another
    run.
    """
    ranks = session.ranks
    restart = config.restart and ranks.restarts == "0"  # restarted by torchrun, it resumes
    waiting = waiting_folds(path, config, restart)
    steps = sum(math.ceil(np.sum(table.fold != k) / config.rows_per_step) for k in waiting)
    memory = jobs.memory_of_a_fold(encoder_info, config, int(dataset.lengths.max()))
    n = 1
    room = None
    if ranks.leads and not session.is_helper:
        n = jobs.count_jobs(config, len(waiting), memory, session.command.typed)
        finished = 0 if restart else len([*path.glob("fold_*/DONE.json")])
        used_tokens = len(np.unique(dataset.token_ids))
        room = disk.room_of_a_run(encoder_info, config, used_tokens, table, waiting, finished, n)
        disk.check_room(path, room, restart)
    weights_sha256 = check_weights(encoder_info, dataset, config)
    identity = run_identity(config, table, encoder_info, weights_sha256, ranks.size)
    if ranks.leads:
        open_run(path, config, identity, session.command.text, restart)
        add_texts(path, np.concatenate([table.hashes, encoder_info.seen]))
    ranks.agree()  # rank 0 has made it
    print(f"run folder {path}", flush=True)
    if waiting and room:
        print(room.line(path), flush=True)
    if session.is_helper:
        yield ActiveRun(path, session, jobs.StepsToParent(), [])
        return
    with (
        jobs.progress_bar(config.epochs * steps) as bar,
        jobs.helpers(n - 1, path, config, session.command, bar) as helper_codes,
    ):
        yield ActiveRun(path, session, bar, helper_codes)
