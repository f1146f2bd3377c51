"""This process: how a command ends (one-line errors, exit codes), and the signals it gets.

Nothing here imports torch.
"""

import contextlib
import functools
import os
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator


def rank_and_size() -> tuple[int, int]:
    """torchrun's number of this process, and of how many; clusters set these variables too."""
    rank = os.environ.get("RANK", "")
    size = os.environ.get("WORLD_SIZE", "")
    size = max(1, int(size)) if size.isdecimal() else 1
    return int(rank) if size > 1 and rank.isdecimal() else 0, size


LEADS = rank_and_size()[0] == 0  # the process that prints, writes and reacts to signals


def in_notebook() -> bool:
    """Whether this code runs in IPython: in a notebook's kernel, or in its shell."""
    get_ipython = getattr(sys.modules.get("IPython"), "get_ipython", None)
    return get_ipython is not None and get_ipython() is not None


class UserError(Exception):
    """What the user can fix, in one line. Exit code 2; 1 when a run that had begun can't go on."""

    debug = False  # True: a notebook shows the traceback, too

    def __init__(self, message: str, code: int = 2):
        super().__init__(" ".join(line.strip() for line in str(message).splitlines()))
        self.code = code

    def _render_traceback_(self) -> list[str]:
        """What IPython shows of it, in place of its traceback."""
        trace = "".join(traceback.format_exception(self)).splitlines()
        return trace if self.debug else [f"error: {self}"]


class Interrupted(SystemExit):
    """A signal came; exit code 128 + its number. No `except Exception` takes it for an error."""


def warn(message: str) -> None:
    if LEADS:
        print(f"warning: {message}", file=sys.stderr, flush=True)


def exit_codes(main):
    """Wrap a `main(argv) -> int`: what the user can fix is one `error:` line and an exit code.

    In a notebook it is raised, so that no later cell runs: UserError, or KeyboardInterrupt.
    """

    @functools.wraps(main)
    def wrapped(argv: list[str] | None = None) -> int:
        debug = "--debug" in (sys.argv[1:] if argv is None else argv)
        prepare_streams()
        before = dict(os.environ)
        # Nothing forks after a tokenizer was used, so that its threads are safe.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"  # else transformers asks the network
        try:
            with warnings.catch_warnings():
                code = main(argv)
        except (Interrupted, UserError, OSError, RuntimeError, MemoryError) as e:
            line, code = _ending(e)
            if code is None or debug and not isinstance(e, (Interrupted, BrokenPipeError)):
                e.debug = True
                raise
            if in_notebook() and isinstance(e, UserError):
                raise
            if in_notebook():
                raise _for_notebook(e, line, code) from e
            if line:
                print(line, file=sys.stderr, flush=True)
        except SystemExit as e:  # --help
            if e.code or not in_notebook():
                raise
            code = 0
        finally:  # as a notebook had it
            os.environ.clear()
            os.environ.update(before)
        if code and in_notebook():
            raise UserError(f"exit code {code} - the lines above say why", code)
        return code

    return wrapped


def prepare_streams() -> None:
    """Standard output and error as libraries expect them, whatever stands there."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed, as by `>&-`
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif not hasattr(stream, "isatty"):  # an object that copies what is printed
            with contextlib.suppress(AttributeError):  # one that takes no attribute
                stream.isatty = lambda: False
        elif hasattr(stream, "reconfigure"):  # an emoji must not end a run on an ASCII terminal
            stream.reconfigure(errors="backslashreplace")


def _ending(e: BaseException) -> tuple[str, int | None]:
    """The line to print (empty: another rank prints it) and the exit code; None for a bug."""
    hint = "run the same command to resume"
    if isinstance(e, BrokenPipeError):  # `| head` has read enough; the rest goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return f"stopped: nobody reads the output - {hint}", 128 + signal.SIGPIPE
    if isinstance(e, Interrupted):
        name = signal.Signals(e.code - 128).name
        return f"stopped: by {name} - {hint}" if LEADS else "", e.code
    if isinstance(e, OSError):  # a file that may not be read, a full disk behind stdout
        e = UserError(f"{e.filename or 'output'}: {e.strerror or e}")
    if isinstance(e, UserError):
        # One rank of a machine says what is wrong with the input, each what goes wrong in a run.
        prints = LEADS or e.code == 1 or os.environ.get("LOCAL_RANK", "0") == "0"
        return f"error: {e}" if prints else "", e.code
    message = " ".join(str(e).split())[:200]
    out_of_memory = "out of memory|allocate memory|ALLOC_FAILED|Invalid buffer size"
    if isinstance(e, MemoryError) or re.search(out_of_memory, message):
        hint = "free some and run the same command to resume; or see --batch-size and --accumulate"
        return f"error: out of memory ({message}) - {hint}", 1
    return ("", None) if LEADS else (f"rank {os.environ['RANK']}: {message}", 1)


def _for_notebook(e: BaseException, line: str, code: int) -> BaseException:
    """The exception that a notebook shows as this line."""
    if isinstance(e, Interrupted):
        stopped = KeyboardInterrupt(line)
        stopped._render_traceback_ = lambda: [line]
        return stopped
    return UserError(line.removeprefix("error: "), code)


# Ctrl-C; and what batch systems send before they kill, by `#SBATCH --signal=USR1@120` too
STOPPING = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")


class Signals:
    """Signals that stop raise Interrupted: at once, or with `hold` at the next `check()`.

    Only the main thread can react to them: in another one nothing is changed.
    A second signal ends the process at once; no file can be half-written by it.
    """

    def __init__(self):
        self.received = 0
        self.hold = False
        self.old = {}  # the handlers before

    def __enter__(self) -> "Signals":
        if threading.current_thread() is not threading.main_thread():
            return self
        for number in (getattr(signal, name) for name in STOPPING):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup's stay ignored
                self.old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind, error, trace) -> None:
        for number, handler in self.old.items():
            signal.signal(number, handler)
        if self.received and isinstance(error, TypeError):  # numpy's sorts make one of Interrupted
            raise Interrupted(128 + self.received) from error

    def _handle(self, number: int, frame) -> None:
        if self.received and in_notebook():  # a notebook's kernel is not ours to end
            raise KeyboardInterrupt
        if self.received:
            os._exit(128 + number)
        self.received = number
        if not self.hold:
            self.check(True)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Signals wait for `check()` within the block."""
        self.hold = True
        try:
            yield
        finally:
            self.hold = False

    def check(self, react: bool = LEADS) -> None:
        """Raise Interrupted if a signal came. The other ranks of torchrun leave that to rank 0."""
        if self.received and react:
            raise Interrupted(128 + self.received)
