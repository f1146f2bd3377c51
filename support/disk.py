"""Room on the disk: what a run takes at the end and while it is trained, said and checked."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from config import Config
from data import Table
from support.encoders import EncoderInfo, lowest_parts, skeleton
from support.process import UserError
from support.report import ERRORS
from support.tokentable import MOST_ROWS

SMALL_FILES = 20_000  # bytes of a fold beside weights, tokenizer and probabilities
INDEX = 20_000  # bytes of state.pt that name the tensors of a layer and say where they are
TOKEN = 70  # bytes that tokenizer.json has for a token, at most
PICTURE = 600_000  # report.png, with room for quote.md


@dataclass(frozen=True)
class Room:
    """What a run takes, in bytes: an estimate from above."""

    folds: int  # at the end: those finished before, and those to train
    waiting: int  # those to train
    at_once: int  # at most so many of them at the same time
    fold: float  # that a finished fold keeps
    work: float  # that a fold takes on top of it, while it is trained
    tables: float  # of the whole run, at the end

    @property
    def at_end(self) -> float:
        return self.folds * self.fold + self.tables

    @property
    def peak(self) -> float:
        return self.folds * self.fold + max(self.tables, self.at_once * self.work)

    @property
    def wanted(self) -> float:
        """What the folds that are finished do not hold already."""
        return self.peak - (self.folds - self.waiting) * self.fold if self.waiting else 0

    def line(self, path: Path) -> str:
        folds = "1 fold" if self.folds == 1 else f"{self.folds} folds"
        end = f"{readable(self.at_end)} at the end ({folds} of {readable(self.fold)})"
        line = f"disk: {end}, up to {readable(self.peak)} while training"
        free = free_bytes(path)
        return line if free is None else f"{line}; {readable(free)} are free"


def readable(size: float) -> str:
    """87 MB, 1.4 GB: two digits or more."""
    power = 1
    while power < 3 and size >= 999.5 * 1000**power:
        power += 1
    size /= 1000**power
    digits = 0 if size >= 9.95 else 1
    return f"{size:.{digits}f} {' kMG'[power]}B"


def room_of_a_run(
    encoder_info: EncoderInfo,
    config: Config,
    used_tokens: int,
    table: Table,
    waiting: Sequence[int],
    finished: int,
    jobs: int,
) -> Room:
    """`used_tokens`: rows of the encoder's token table that are trained. `waiting`: the folds to
    train, at most `jobs` at a time; `finished`: how many folds are finished before.

    A fold keeps its weights. When they, or state.pt, are written anew, the old ones still stand.
    state.pt has each weight once, and twice more (AdamW's means) if it is trained; of the token
    table it has the rows that are used.
    """
    cells = len(table) * len(config.labels)
    texts = sum(map(len, table.texts)) / max(1, len(table))  # letters of a text
    head = (encoder_info.config.hidden_size + 1) * len(config.labels)
    numbers = encoder_info.num_parameters + head
    vocabulary = encoder_info.config.vocab_size
    unused = 0.0
    if used_tokens <= MOST_ROWS * vocabulary:
        unused = encoder_info.token_numbers * (1 - used_tokens / vocabulary)
    trained = numbers - (frozen_numbers(encoder_info, config.freeze) or unused)
    fold = 4 * (numbers + cells / config.folds)
    fold += TOKEN * len(encoder_info.tokenizer) + SMALL_FILES
    state = 4 * (numbers - unused + 2 * trained) + INDEX * (encoder_info.layers + 1)
    return Room(
        folds=finished + len(waiting),
        waiting=len(waiting),
        at_once=min(jobs, len(waiting)),
        fold=fold,
        work=state + max(state, fold),
        tables=30 * len(table) + 17 * cells + min(cells, ERRORS) * (60 + texts) + PICTURE,
    )


def frozen_numbers(encoder_info: EncoderInfo, layers: int) -> int:
    """How many numbers --freeze keeps as they are."""
    if not layers:
        return 0
    parts = lowest_parts(skeleton(encoder_info.config)[0], layers)
    return sum(p.numel() for p in {p for part in parts for p in part.parameters()})


def free_bytes(path: Path) -> int | None:
    """Of the disk that a folder is on, or will be; None where it has no size, as /proc."""
    existing = next(p for p in (path, *path.absolute().parents) if os.path.isdir(p))
    disk = shutil.disk_usage(existing)
    return disk.free if disk.total else None


def check_room(path: Path, room: Room, restart: bool = False) -> None:
    """UserError where the disk of a run folder has too little for it.

    What its unfinished folds hold already is part of them: they are written anew. After `restart`
    nothing is.
    """
    free = free_bytes(path)
    if free is None:
        return
    for folder in [] if restart else path.glob("fold_*"):
        if not (folder / "DONE.json").exists():
            free += sum(p.stat().st_size for p in folder.glob("*.*") if p.is_file())
    if free < room.wanted:
        figures = f"{readable(free)} are free, up to {readable(room.wanted)} are needed"
        parts = f"{room.waiting} x {readable(room.fold)} for the folds"
        parts += f", {room.at_once} x {readable(room.work)} while they are trained"
        hint = "make room, or choose --out on another disk"
        if room.at_once > 1:
            hint += f", or fewer --jobs than {room.at_once}"
        raise UserError(f"{path}: {figures} ({parts}) - {hint}")
