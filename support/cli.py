"""The command line: flags from a dataclass, and --config under them.

Nothing here imports torch, so that `--help` and a mistyped flag answer at once.
"""

import argparse
import dataclasses
import json
import os
import signal
import sys
import typing
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Literal

from config import HERE, Config
from support.csvfile import check_file, column_names
from support.process import UserError, exit_codes, in_notebook
from support.versions import check_versions


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(f"{message} - python {self.prog} --help lists the flags")


def program_name(path: str) -> str:
    """A script as it is typed in the project's folder: train.py, tools/distil.py."""
    script = Path(path).resolve()
    return str(script.relative_to(HERE)) if script.is_relative_to(HERE) else script.name


def parse(kind: type, argv: list[str] | None = None, program: str | None = None):
    """A `kind` from the command line, over --config FILE.json, over the defaults; all checked.

    `program`: the script whose flags these are, for messages; None: the one that Python runs.
    UserError on an unknown or abbreviated flag, a wrong type or a value out of range (nan too).
    """
    given = vars(_parser(kind, program or sys.argv[0]).parse_args(argv))
    values = _read_config(given.pop("config")) if "config" in given else {}
    if given.get("valid") or given.get("fold_column"):  # their folds, not those of --config
        values.pop("folds", None)
    known = [f.name for f in dataclasses.fields(kind)]
    if unknown := sorted(set(values) - set(known)):
        names = ", ".join(unknown)
        raise UserError(f"--config: unknown keys {names}; known are {', '.join(known)}")
    config = with_plain_names(checked(kind(**(values | given))))
    if getattr(config, "valid", None) and (config.fold_column or config.folds not in (None, 1)):
        other = "--fold-column" if config.fold_column else "--folds"
        raise UserError(f"--valid gives the held-out rows - leave {other} out")
    for name in ("input", "output", "probabilities") if getattr(config, "text", None) else ():
        if getattr(config, name) != getattr(kind(), name):
            raise UserError(f"--{name}: --text reads and writes no file - leave one of them out")
    return config


def checked(config):
    """The same settings; UserError for a wrong type or a value out of range."""
    for f in dataclasses.fields(config):
        _check(f, getattr(config, f.name))
    return config


PATHS = ("train", "valid", "model", "out", "run", "input", "output", "probabilities", "thresholds")
PATHS += ("teacher", "texts", "test", "single")  # of tools/distil.py


def with_plain_names(config):
    """The same settings; names of columns written as `CsvFile` reads them from a header, and ~ as
    the home folder, which shells leave in `--out=~/x`."""
    changed = {}
    for name in PATHS:
        value = getattr(config, name, None)
        if isinstance(value, str):
            changed[name] = os.path.expanduser(value)
        elif value:  # several runs
            changed[name] = list(map(os.path.expanduser, value))
    for name in ("labels", "text_column", "fold_column", "group_column"):
        value = getattr(config, name, None)
        if isinstance(value, str):
            changed[name] = column_names([value])[0]
        elif value:
            changed[name] = column_names(value)
    changed = {name: value for name, value in changed.items() if value != getattr(config, name)}
    return checked(dataclasses.replace(config, **changed)) if changed else config


def _parser(kind: type, program: str) -> Parser:
    parser = Parser(
        program_name(program),
        description=kind.__doc__,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    for f in dataclasses.fields(kind):
        type_, choices, _ = _plain(f.type)
        text = f.metadata["help"]
        default = f.default_factory()
        if default is not None and type_ is not bool:
            text += f" (default: {' '.join(default) if type_ is list else default})"
        if type_ is bool:
            options = {"action": argparse.BooleanOptionalAction}
        elif type_ is list:
            options = {"nargs": "+", "metavar": f.name.rstrip("s").upper()}
            if not issubclass(kind, Config):  # predict.py: --run a --run b; elsewhere the last wins
                options["action"] = "extend"
        else:
            options = {"type": type_, "choices": choices, "metavar": None if choices else "X"}
        names = dict.fromkeys([flag(f.name), "--" + f.name])  # - and _ are both understood
        parser.add_argument(*names, help=text.replace("%", "%%"), **options)
    if issubclass(kind, Config):
        text = "config.json of a run; flags go before"
        parser.add_argument("--config", metavar="FILE", help=text)
    return parser


def _plain(hint) -> tuple[type, tuple | None, bool]:
    """What a field may be: its plain type, the choices of a Literal, and whether also None."""
    optional = type(None) in typing.get_args(hint)
    hint = typing.get_args(hint)[0] if optional else hint
    if typing.get_origin(hint) is Literal:
        return str, typing.get_args(hint), optional
    return typing.get_origin(hint) or hint, None, optional


def _check(f: dataclasses.Field, value) -> None:
    type_, choices, optional = _plain(f.type)
    low = f.metadata["low"]
    high = f.metadata["high"]
    if value is None and optional:
        return
    if type(value) is not type_ and (type(value), type_) != (int, float):  # JSON writes 1.0 as 1
        raise UserError(f"{flag(f.name)} must be {type_.__name__}, got {value!r:.40}")
    if choices and value not in choices:
        raise UserError(f"{flag(f.name)} must be one of {', '.join(choices)}, got {value!r:.40}")
    if low is not None and not low <= value <= high:  # false for nan as well
        raise UserError(f"{flag(f.name)} must lie in {low:g} ... {high:g}, got {value}")
    for text in {str: [value], list: value}.get(type_, []):
        utf8 = isinstance(text, str) and text.encode(errors="ignore").decode() == text
        if not utf8 or f.name != "text" and (text == "" or "\0" in text):  # a text may be blank
            raise UserError(f"{flag(f.name)} holds an empty or unusable name {text!r:.40}")
    if f.name == "labels":
        wrong = sorted(x for x in set(value) if value.count(x) > 1 or x in ("id", "fold", "text"))
        if wrong or not value:
            names = ", ".join(wrong) or "none"
            raise UserError(f"--labels: {names} - name each label once, and none id, fold or text")


def _read_config(path: str) -> dict:
    try:
        return {**json.loads(check_file(path, "--config").read_text(encoding="utf-8-sig"))}
    except (OSError, TypeError, ValueError, RecursionError) as e:
        raise UserError(f"--config {path}: not readable as JSON, or no JSON object ({e})") from None


def start_script(
    kind: type | Callable, name: str = "__main__", unused: Collection[str] = ()
) -> None:
    """For a script's first lines, before its slow imports: --help and a mistyped flag answer, so
    do packages that are too old or missing, and Ctrl-C ends it without a traceback of the imports.
    Where the script is imported, UserError for such packages.

    `kind`: what `parse` makes, or the script's own function of argv. `name`: the script's __name__.
    `unused`: packages of requirements.txt that it does without.
    """
    if name != "__main__":
        check_versions(unused)
        return

    @exit_codes
    def check(argv: list[str] | None) -> int:
        words = {word.split("=")[0] for word in sys.argv[1:]}
        if not words & {"-h", "--help"}:
            check_versions({*unused, "pandas"} if "--text" in words else unused)
        parse(kind, argv) if isinstance(kind, type) else kind(argv)
        return 0

    if code := check(None):
        sys.exit(code)
    if in_notebook():  # there the handler would end the kernel
        return
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda number, _: os._exit(128 + number))
    import_torch_with_short_waits()


def import_torch_with_short_waits() -> None:
    """Threads that wait for each other spin for some microseconds, then sleep.

    Spinning without end they crawl beside another busy process; sleeping at once they are slower.
    Measured: docs/scaling.md.
    """
    if any(name.startswith(("OMP_", "GOMP_", "KMP_")) for name in os.environ):
        return
    os.environ["GOMP_SPINCOUNT"] = "3000"
    import torch  # noqa: F401  it reads the variable now

    del os.environ["GOMP_SPINCOUNT"]
