"""Flags, ranges, --config and --help. python -m pytest tests/test_config.py"""

import dataclasses
import importlib
import json
import subprocess
import sys
import time

import pytest

from config import HERE, Config, PredictConfig, arg
from support.cli import parse
from support.process import UserError, exit_codes


def test_defaults_are_the_contracts():
    c = parse(Config, [])
    assert (c.stratified_folds, c.batch_size, c.warmup_ratio, c.weight_decay, c.max_grad_norm) == (
        5,
        16,
        0.1,
        0.01,
        1.0,
    )
    assert (c.max_length, c.dropout, c.seed) == (128, 0.3, 42)
    assert (
        c.labels == ["anger", "fear", "joy", "sadness", "surprise"]
        and c.lr is None
        and not c.pos_weight
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        c.lr = 1.0


def test_dash_and_underscore_and_lists():
    assert parse(Config, ["--batch_size", "4"]) == parse(Config, ["--batch-size", "4"])
    assert parse(Config, ["--labels", "toxic", "insult"]).labels == ["toxic", "insult"]
    assert parse(Config, ["--pos-weight"]).pos_weight and parse(
        PredictConfig, ["--text", "a", "b"]
    ).text == [
        "a",
        "b",
    ]


@pytest.mark.parametrize(
    "argv, words",
    [
        ("--batch-size 0", "--batch-size must lie in 1"),
        ("--batch-size 1.5", "invalid int"),
        ("--batch-size -1", "must lie"),
        ("--lr nan", "--lr must lie"),
        ("--lr inf", "--lr must lie"),
        ("--lr -1", "must lie"),
        ("--epochs 0", "--epochs must lie"),
        ("--dropout 2", "must lie"),
        ("--warmup-ratio 1.5", "must lie"),
        ("--seed -1", "must lie"),
        ("--nonsense 3", "unrecognized"),
        ("--epoch 3", "unrecognized"),
        ("--pooling no-such-pooling", "invalid choice"),
        ("--labels joy joy", "name each label once"),
        ("--labels id joy", "none id"),
        ("--folds 0", "must lie"),
        ("--max-length 1", "must lie"),
        ("--config nowhere.json", "nowhere.json: no such file"),
        ("extra", "unrecognized"),
        ("--lr", "expected one argument"),
    ],
)
def test_wrong_flags_are_one_line(argv, words, capsys):
    main = exit_codes(lambda argv: parse(Config, argv) and 0)
    assert main(argv.split()) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and words in err


@pytest.mark.parametrize(
    "values, words",
    [
        ({"lr": "0.1"}, "--lr must be float"),
        ({"batch_size": True}, "--batch-size must be int"),
        ({"batch_size": 4.0}, "must be int"),
        ({"labels": "joy"}, "--labels must be list"),
        ({"labels": [1]}, "unusable"),
        ({"foo": 1}, "unknown keys foo"),
        ({"lr": float("nan")}, "must lie"),
        ({"scheduler": "step"}, "one of linear"),
        ({"pos_weight": 1}, "must be bool"),
        ([], "JSON object"),
    ],
)
def test_config_files_are_checked_like_flags(tmp_path, values, words):
    (tmp_path / "c.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=words):
        parse(Config, ["--config", str(tmp_path / "c.json")])


def test_config_file_lies_under_the_flags(tmp_path):
    text = json.dumps({"lr": 1, "epochs": 7, "patience": None})
    (tmp_path / "c.json").write_text("\ufeff" + text)  # as Notepad saves it
    c = parse(Config, ["--epochs", "3", "--config", str(tmp_path / "c.json")])
    assert c.lr == 1 and c.epochs == 3 and c.batch_size == 16


@pytest.mark.parametrize("script, kind", [("train.py", Config), ("predict.py", PredictConfig)])
def test_help_answers_at_once_and_names_every_flag(script, kind):
    start = time.perf_counter()
    out = subprocess.run(
        [sys.executable, HERE / script, "--help"], capture_output=True, text=True, cwd="/"
    )
    assert out.returncode == 0 and time.perf_counter() - start < 3
    for f in dataclasses.fields(kind):
        assert f"--{f.name.replace('_', '-')}" in out.stdout and f.metadata["help"][:20].replace(
            "%", "%"
        ) in " ".join(out.stdout.split())


def test_help_of_a_default_with_a_percent_sign(capsys):
    """A path may hold one: Jenkins writes %2F for a slash."""

    @dataclasses.dataclass(frozen=True)
    class Settings:
        file: str = arg("/a%20b/x.csv", "100 % of it")

    with pytest.raises(SystemExit):
        parse(Settings, ["--help"])
    assert "100 % of it (default: /a%20b/x.csv)" in " ".join(capsys.readouterr().out.split())


def test_abbreviated_flag_from_the_shell():
    out = subprocess.run(
        [sys.executable, HERE / "train.py", "--batch", "3"], capture_output=True, text=True
    )
    assert out.returncode == 2 and out.stderr.startswith("error: ") and out.stderr.count("\n") == 1


@pytest.mark.parametrize("debug", [[], ["--debug"]])
def test_output_that_nobody_reads_is_one_line(debug):
    """`| head` has read enough, with --debug too."""
    code = "from support.process import exit_codes\n@exit_codes\ndef main(argv=None):\n"
    code += "    raise BrokenPipeError\nraise SystemExit(main())"
    out = subprocess.run(
        [sys.executable, "-c", code, *debug], capture_output=True, text=True, cwd=HERE
    )
    assert out.returncode == 141 and out.stderr.count("\n") == 1
    assert out.stderr.startswith("stopped: nobody reads the output")


@pytest.mark.parametrize("name", ["train", "predict", "tools.distil", "tools.export"])
def test_an_error_names_the_script_whose_main_was_called(name, capsys, monkeypatch):
    """And not the program that called it."""
    monkeypatch.setattr(sys, "argv", ["/usr/bin/launcher.py", "--other"])
    main = importlib.import_module(name).main
    assert main(["a", "b", "--nope"] if name == "tools.export" else ["--nope"]) == 2
    script = f"python {name.replace('.', '/')}.py --help lists the flags"
    assert capsys.readouterr().err == f"error: unrecognized arguments: --nope - {script}\n"
