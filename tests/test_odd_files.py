"""What people bring and would get a wrong answer for without a word.

python -m pytest tests/test_odd_files.py
"""

import csv
import gzip
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
import transformers as T
from cases.odd_files import COMMAS, FORMATS, NEAR_MISSES, NO_HEADER, NO_NAMES
from cases.models import FILES, GENERATORS, pointer
from cases.predict import THRESHOLDS
from conftest import LABELS, make_rows, make_tokenizer, write_csv
from safetensors.torch import load_file, save_file

import predict
import train
from support import encoders
from support.process import UserError


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def read(path: str, delimiter: str = ",") -> list[list[str]]:
    with open(path, encoding="utf-8", newline="") as f:
        return list(csv.reader(f, delimiter=delimiter))


def error(capsys) -> str:
    """The one `error:` line."""
    err = capsys.readouterr().err
    lines = [x for x in err.splitlines() if x.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in err, err
    return lines[0]


# Columns of 0 and 1 that nobody named


def six(header: list[str]) -> Path:
    rows = [[*r[:2], *r[2:], str(int(i % 3 == 0))] for i, r in enumerate(make_rows(30))]
    return write_csv(Path("six.csv"), rows, header)


def test_a_sixth_column_of_labels_is_refused_until_someone_says_what_it_is(bert, capsys):
    path = six(["id", "text", *LABELS, "self disgust"])
    argv = ["--model", str(bert), "--train", str(path), "--folds", "2", "--epochs", "1"]
    assert train.main([*argv, "--out", "a"]) == 2 and not Path("a").exists()
    line = error(capsys)
    assert "six.csv:1: 'self disgust' could be labels too" in line
    five, more = f"--labels {' '.join(LABELS)}", f"--labels {' '.join(LABELS)} 'self disgust'"
    assert line.endswith(f"say which: {more} or {five}")
    for name, said in (("five", five), ("six", more)):  # both commands work as they are printed
        assert train.main([*argv, *shlex.split(said), "--fold", "0", "--out", name]) == 0
        labels = json.loads(Path(name, "config.json").read_text())["labels"]
        assert labels == shlex.split(said)[1:]
        note = "no labels, though they hold 0 and 1 alone: 'self disgust'"
        assert (note in capsys.readouterr().out) == (name == "five")


def test_other_columns_are_no_forgotten_labels(bert, capsys):
    rows = [[*r, str(i % 4), "yes", ""] for i, r in enumerate(make_rows(30))]
    path = write_csv(Path("t.csv"), rows, ["id", "text", *LABELS, "rater", "known", "note"])
    argv = ["--model", str(bert), "--train", str(path), "--folds", "2", "--epochs", "1"]
    assert train.main([*argv, "--fold", "0", "--out", "a"]) == 0
    assert "no labels, though" not in capsys.readouterr().out


# Rows that stand inside a text


def swallowing(labels: bool) -> str:
    """20 rows; the text of row 7 begins with a quote that row 11 closes."""
    lines = ["id,text" + ",joy,anger" * labels]
    for i in range(20):
        text = {5: '"so happy today', 9: 'not me friend"'}.get(i, f"the dog ran {i}")
        lines.append(f"{i},{text}" + f",{i % 2},{int(i % 3 == 0)}" * labels)
    return "\n".join(lines) + "\n"


def test_rows_swallowed_by_a_quote_are_said(bert, finished, capsys):
    Path("t.csv").write_text(swallowing(True))
    argv = ["--model", str(bert), "--train", "t.csv", "--labels", "joy", "anger", "--folds", "2"]
    assert train.main([*argv, "--epochs", "1", "--fold", "0", "--out", "a"]) == 0
    said = "4 rows stand inside the text of row 7, and are lost: their ids too"
    assert f"t.csv: {said}" in capsys.readouterr().err
    Path("n.csv").write_text(swallowing(False))
    assert predict.main(["--run", str(finished), "--input", "n.csv"]) == 0
    assert f"n.csv: {said}" in capsys.readouterr().err
    assert len(read("submission.csv")) == 17


def test_honest_line_breaks_stay_silent(bert, finished, capsys):
    """Lists, commas, numbers: nothing that is a row of this file."""
    texts = [
        "one\ntwo",
        "a list:\n1, eggs\n2, milk",
        "so, so\nhappy, really, now, yes",
        "\n\n\n7,8\n",
    ]
    rows = [[f"x{i}", texts[i % 4], *r[2:4]] for i, r in enumerate(make_rows(40))]
    path = write_csv(Path("t.csv"), rows, ["id", "text", "joy", "anger"])
    argv = ["--model", str(bert), "--train", str(path), "--labels", "joy", "anger", "--folds", "2"]
    assert train.main([*argv, "--epochs", "1", "--fold", "0", "--out", "a"]) == 0
    write_csv(Path("n.csv"), [r[:2] for r in rows], ["id", "text"])
    assert predict.main(["--run", str(finished), "--input", "n.csv"]) == 0
    assert "stand inside" not in capsys.readouterr().err


# Models that are no encoders


@pytest.mark.parametrize("kind", GENERATORS)
def test_a_text_generator_is_no_encoder(kind, train_csv, capsys):
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    config = GENERATORS[kind]
    T.AutoModel.from_config(config).save_pretrained("m")
    tokenizer.save_pretrained("m")
    for pooling in ("cls", "mean"):
        argv = ["--model", "./m", "--train", str(train_csv), "--max-length", "32"]
        assert train.main([*argv, "--pooling", pooling, "--out", "run"]) == 2
        assert "a later word doesn't reach an earlier one" in error(capsys)
    assert not Path("run").exists()


@pytest.mark.parametrize("weights", [True, False])
def test_an_adapter_is_to_be_merged_first(weights, bert, train_csv, capsys):
    shutil.copytree(bert, "m")
    Path("m/adapter_config.json").write_text('{"peft_type": "LORA"}')
    Path("m/adapter_model.safetensors").write_bytes(b"x")
    if not weights:
        Path("m/model.safetensors").unlink()
        Path("m/config.json").unlink()
    assert train.main(["--model", "./m", "--train", str(train_csv), "--out", "run"]) == 2
    line = error(capsys)
    assert "holds an adapter (adapter_config.json) - merge it first: PeftModel's merge_and" in line


# Files under a false name


@pytest.mark.parametrize("name", ["s.xlsx", "s.csv.zip", "s.json", "s.parquet", "s", "s.csv.bz2"])
@pytest.mark.parametrize("flag", ["--output", "--probabilities"])
def test_a_csv_is_not_written_under_another_name(flag, name, finished, test_csv, capsys):
    argv = ["--run", str(finished), "--input", str(test_csv), flag, name]
    assert predict.main(argv) == 2 and not Path(name).exists()
    assert f"{name}: name it .csv, .csv.gz, .tsv or .tsv.gz" in error(capsys)


def test_a_tsv_is_written_with_tabs(finished, monkeypatch):
    ids = ["a\tb", "c,d", "e\rf", "g\nh", 'i"j', *map(str, range(20))]
    write_csv(Path("n.csv"), [[i, f"the dog {i}"] for i in ids], ["id", "text"])
    monkeypatch.setattr(predict, "CHUNK", 7)
    argv = ["--run", str(finished), "--input", "n.csv", "--output"]
    for ending in (".csv", ".tsv"):
        assert predict.main([*argv, f"s{ending}", "--probabilities", f"p{ending}"]) == 0
        assert predict.main([*argv, f"s{ending}.gz", "--probabilities", f"p{ending}.gz"]) == 0
        for name in (f"s{ending}", f"p{ending}"):
            assert gzip.decompress(Path(f"{name}.gz").read_bytes()) == Path(name).read_bytes()
    for name in ("s", "p"):
        rows = read(f"{name}.tsv", "\t")
        assert rows == read(f"{name}.csv") and rows[0] == ["id", *LABELS]
        assert [row[0] for row in rows[1:]] == ids
    assert predict.main([*argv, "s.csv", "--probabilities", "mixed.tsv"]) == 0
    assert read("mixed.tsv", "\t") == read("p.csv")


@pytest.mark.parametrize("n", [248, 300])
def test_a_name_too_long_is_one_line(n, finished, test_csv, capsys):
    argv = ["--run", str(finished), "--input", str(test_csv), "--output", "x" * n + ".csv"]
    assert predict.main(argv) == 1 and "File name too long" in error(capsys)


# The Python call


@pytest.mark.parametrize(
    "texts, words",
    [
        (pandas.DataFrame({"text": ["a"]}), "texts: is a DataFrame - give a list of str"),
        ({"text": "a"}, "texts: is a dict"),
        ([["a", "b"]], "texts[0]: is ['a', 'b'], a list"),
        (["a", None], "texts[1]: is None, a NoneType - give a str, '' for a blank text"),
        (["a", "b", float("nan")], "texts[2]: is nan, a float - give a str, '' for a blank text"),
        (pandas.Series(["a", 3]), "texts[1]: is 3, a int"),
        (7, "texts: is a int"),
    ],
)
def test_what_is_no_list_of_texts_is_said(texts, words, finished):
    with pytest.raises(UserError) as e:
        predict.predict_emotions(texts, finished)
    assert words in str(e.value)


def test_a_column_and_a_tuple_are_texts(finished):
    texts = ["so happy", "the dog"]
    want = predict.predict_emotions(texts, str(finished))
    assert predict.predict_emotions(pandas.Series(texts, index=[7, 3]), finished) == want
    assert predict.predict_emotions(tuple(texts), finished) == want
    assert predict.predict_emotions([], finished) == []


def test_thresholds_from_python(finished):
    """Each kind gives the same; by label in whatever order."""
    p = list(predict.predict_emotions("so happy", finished)[0]["probabilities"].values())
    th = [0.0, 1.0, p[2], 1.0, 0.0]
    by_label = dict(zip(LABELS[::-1], th[::-1], strict=True))
    kinds = [th, tuple(th), np.array(th), torch.tensor(th), by_label, pandas.Series(by_label)]
    for given in kinds:
        found = predict.predict_emotions("so happy", finished, thresholds=given)
        assert found[0]["emotions"] == ["anger", "joy", "surprise"], given
    for given in (0.0, np.float32(0), np.float64(0), np.array(0.0), 0):
        found = predict.predict_emotions("so happy", finished, thresholds=given)
        assert found[0]["emotions"] == LABELS, given


@pytest.mark.parametrize("given, words", THRESHOLDS)
def test_bad_thresholds_from_python_are_one_line(given, words, finished):
    with pytest.raises(UserError, match="^[^\n]+$") as e:
        predict.predict_emotions("so happy", finished, thresholds=given)
    assert words in str(e.value) and len(str(e.value)) < 700


@pytest.mark.parametrize("flag", [{"device": "cuda:0"}, {"precision": "bfloat16"}])
def test_flags_from_python_are_checked_as_on_the_command_line(flag, finished, capsys):
    (name, value) = next(iter(flag.items()))
    with pytest.raises(UserError, match=f"--{name} must be one of .*, got '{value}'"):
        predict.predict_emotions("x", finished, **flag)


# Folders named one level too high or too low


def test_a_run_where_a_fold_is_meant_and_the_reverse(finished, train_csv, capsys):
    assert train.main(["--model", str(finished), "--train", str(train_csv), "--out", "a"]) == 2
    line = error(capsys)
    assert f"is a run - name one of its folds: --model {finished}/fold_0" in line
    assert "--restart" not in line
    assert predict.main(["--run", str(finished / "fold_0"), "--text", "x"]) == 2
    line = error(capsys)
    assert line.endswith(f"fold_0: is one fold of a run - give {finished}")
    shutil.copytree(finished / "fold_0", "alone")
    assert predict.main(["--run", "alone", "--text", "x"]) == 2
    assert error(capsys) == "error: alone: is one fold of a run - give the whole run it is of"


@pytest.mark.parametrize("place, fold", [(".", "my runs/a/fold_1/"), ("my runs/a/fold_1", ".")])
def test_the_run_of_a_fold_can_be_pasted(place, fold, finished, monkeypatch, capsys):
    shutil.copytree(finished, "my runs/a")
    monkeypatch.chdir(place)
    assert predict.main(["--run", fold, "--text", "x"]) == 2
    _, run = error(capsys).split(" - give ")
    assert not Path(*shlex.split(run)).is_absolute()
    assert predict.main(["--run", *shlex.split(run), "--text", "x"]) == 0


def test_a_folder_of_runs_is_no_run(finished, capsys):
    shutil.copytree(finished, "runs/a")
    shutil.copytree(finished, "runs/b")
    assert predict.main(["--run", "runs", "--text", "x"]) == 2
    words = "holds runs and is none - give one of them: runs/a, runs/b"
    assert error(capsys) == f"error: runs: {words}"
    for i in range(10):
        Path(f"runs/c{i}").mkdir()
        Path(f"runs/c{i}/env.json").touch()
    assert predict.main(["--run", "runs", "--text", "x"]) == 2
    assert error(capsys).endswith("runs/c5, runs/c6 and 3 others")


# One reading for both programs


def test_what_training_says_of_a_file_prediction_says_too(finished, capsys):
    rows = [r[:2] for r in make_rows(9)] + [["00003", "twice"]]
    write_csv(Path("n.csv"), rows, ["id", "text"])
    assert predict.main(["--run", str(finished), "--input", "n.csv"]) == 0
    err = capsys.readouterr().err
    assert "n.csv: 1 ids occur more than once" in err


# Rows that are odd in many places: said once, with a count


def warnings_of(capsys) -> list[str]:
    lines = capsys.readouterr().err.splitlines()
    return [line for line in lines if line.startswith("warning: ")]


def test_rows_that_repeat_the_header_are_counted(finished, bert, capsys):
    """Files that were joined, the second with a byte order mark."""
    rows = [r[:2] for r in make_rows(6)]
    joined = [*rows, ["\ufeffid", " text"], *rows, ["id", "text"], ["id", "a text"]]
    write_csv(Path("n.csv"), joined, ["id", "text"])
    assert predict.main(["--run", str(finished), "--input", "n.csv"]) == 0
    found = [line for line in warnings_of(capsys) if "header" in line]
    assert found == ["warning: n.csv: 2 rows repeat the header - remove them"]
    header = ["id", "text", *LABELS]
    write_csv(Path("t.csv"), [*make_rows(9), header, *make_rows(9), header], header)
    argv = ["--model", str(bert), "--train", "t.csv", "--out", "a"]
    for flags in ([], ["--soft-labels"]):
        assert train.main([*argv, *flags]) == 2 and not Path("a").exists()
        line = error(capsys)
        assert "t.csv:11 column 'anger': must be" in line
        assert line.endswith("10 cells in all) - 2 rows repeat the header - remove them")
    for odd in ([["1", "x", "anger", *"0000"]], [["1", "x", "2", *"0000"], header]):
        write_csv(Path("t.csv"), [*make_rows(9), *odd], header)
        assert train.main(argv) == 2 and error(capsys).endswith("write 0 or 1 in each cell")


def test_texts_with_nul_are_counted(finished, bert, capsys):
    rows = make_rows(30)
    for i in (3, 7, 8):
        rows[i][1] += "\0\0"
    write_csv(Path("t.csv"), rows)
    words = "t.csv: 3 of 30 texts hold NUL characters; most tokenizers drop them"
    argv = ["--model", str(bert), "--train", "t.csv", "--folds", "2", "--epochs", "1"]
    assert train.main([*argv, "--fold", "0", "--out", "a"]) == 0
    assert [x for x in warnings_of(capsys) if "NUL" in x] == [f"warning: {words}"]
    assert predict.main(["--run", str(finished), "--input", "t.csv"]) == 0
    assert [x for x in warnings_of(capsys) if "NUL" in x] == [f"warning: {words}"]


def test_a_label_that_every_row_has_is_said(bert, capsys):
    rows = [[*r[:2], "1", *r[3:]] for r in make_rows(30)]
    write_csv(Path("t.csv"), rows)
    argv = ["--model", str(bert), "--train", "t.csv", "--folds", "2", "--epochs", "1"]
    assert train.main([*argv, "--fold", "0", "--out", "a"]) == 0
    found = [x for x in warnings_of(capsys) if "anger" in x]
    assert found == ["warning: label anger: all 30 rows have it - its scores will mean little"]
    rows[4][2] = "0"
    write_csv(Path("t.csv"), rows)
    assert train.main([*argv, "--fold", "0", "--out", "b"]) == 0
    assert not [x for x in warnings_of(capsys) if "anger" in x]


@pytest.mark.parametrize("copies", [9, 10, 12])
def test_the_text_of_many_rows_is_shown_with_its_labels(copies, bert, capsys):
    rows = make_rows(40)
    for i in range(copies):
        rows[i][1:] = ["Good  Morning" if i else "good morning", "0", "1", str(i % 2), "0", "0"]
    write_csv(Path("t.csv"), rows)
    argv = ["--model", str(bert), "--train", "t.csv", "--folds", "2", "--epochs", "1"]
    assert train.main([*argv, "--fold", "0", "--out", "a"]) == 0
    words = f"{copies} rows have the text 'good morning'; its labels: fear 1.00, joy 0.50"
    found = [x for x in warnings_of(capsys) if "the text" in x]
    assert found == ([f"warning: {words}"] if copies >= 10 else [])


# Files that are not what their name says


@pytest.mark.parametrize("start, words", FORMATS)
def test_the_first_bytes_tell_the_format(start, words, finished, bert, capsys):
    Path("x.csv").write_bytes(start + b"\x00\x01" * 40)
    assert train.main(["--model", str(bert), "--train", "x.csv", "--out", "a"]) == 2
    assert f"x.csv: is {words}" in error(capsys) and not Path("a").exists()
    assert predict.main(["--run", str(finished), "--input", "x.csv"]) == 2
    assert f"x.csv: is {words}" in error(capsys) and not Path("submission.csv").exists()


@pytest.mark.parametrize("name", ["x.csv", "x.csv.gz"])
def test_a_pointer_of_git_lfs_is_not_the_file(name, bert, capsys):
    oid = "4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393"
    lines = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize 12345\n"
    Path(name).write_text(lines)
    assert train.main(["--model", str(bert), "--train", name, "--out", "a"]) == 2
    line = error(capsys)
    assert f"{name}: is a Git LFS pointer, not the file" in line and "git lfs pull" in line


def test_the_json_line_makes_a_csv(bert, capsys):
    """The pandas of both lines works as it is printed."""
    table = pandas.DataFrame(make_rows(30), columns=["id", "text", *LABELS])
    for lines in (True, False):
        table.to_json("x.csv", orient="records", lines=lines)
        assert train.main(["--model", str(bert), "--train", "x.csv", "--out", "a"]) == 2
        exec(error(capsys).split("no CSV - ")[1], {"pandas": pandas})
        assert [row[1] for row in read("new.csv")] == ["text", *table["text"]]
        Path("new.csv").unlink()


# Names that print alike


def test_names_that_print_alike_are_alike(bert, finished, capsys):
    """Of labels and of columns, on the command line and in --config."""
    header = ["id", " tweet", "A\u0308rger", "joy ", "\u0394 part", "autho\u0301r"]
    rows = [[*r[:4], str(i % 2), str(i)] for i, r in enumerate(make_rows(30))]
    write_csv(Path("t.csv"), rows, header)
    flags = ["--labels", "\u00c4rger", " joy", "--text-column", "tweet\t"]
    argv = ["--model", str(bert), "--train", "t.csv", "--epochs", "1", "--fold", "0"]
    columns = ["--fold-column", " \u0394 part ", "--group-column", "auth\u00f3r "]
    assert train.main([*argv, *flags, *columns, "--out", "a"]) == 0
    kept = json.loads(Path("a/config.json").read_text())
    assert kept["labels"] == ["\u00c4rger", "joy"] and kept["text_column"] == "tweet"
    assert (kept["fold_column"], kept["group_column"]) == ("\u0394 part", "auth\u00f3r")
    settings = {"labels": ["A\u0308rger ", "joy"], "text_column": " tweet"}
    Path("c.json").write_text(json.dumps(settings))
    config = ["--config", "c.json", *columns]
    assert train.main([*argv, *config, "--out", "a"]) == 0
    assert "finished before" in capsys.readouterr().out  # the same run
    argv = ["--run", str(finished), "--input", "t.csv", "--text-column", "tweet "]
    assert predict.main(argv) == 0


@pytest.mark.parametrize("names", [[" "], ["joy", "joy "], ["a\u0308", "\u00e4"], [" id"]])
def test_names_are_checked_as_they_are_compared(names, bert, train_csv, capsys):
    argv = ["--model", str(bert), "--train", str(train_csv), "--out", "a", "--labels", *names]
    assert train.main(argv) == 2 and "--labels" in error(capsys) and not Path("a").exists()


@pytest.mark.parametrize("header, flags, words", NEAR_MISSES)
def test_a_near_miss_is_shown_as_it_is_written(header, flags, words, bert, capsys):
    rows = [[*r[:4], str(i % 2)] for i, r in enumerate(make_rows(30))]
    write_csv(Path("t.csv"), rows, header.split(","))
    argv = ["--model", str(bert), "--train", "t.csv", "--out", "a", *flags]
    assert train.main(argv) == 2 and not Path("a").exists()
    line = error(capsys)
    assert f"the columns are {', '.join(map(repr, header.split(',')))} - {words}" in line


def test_prediction_names_a_text_column_that_is_close(finished, capsys):
    write_csv(Path("n.csv"), [r[:2] for r in make_rows(3)], ["id", "Tweets"])
    argv = ["--run", str(finished), "--input", "n.csv", "--text-column", "tweet"]
    assert predict.main(argv) == 2 and not Path("submission.csv").exists()
    assert "no column 'tweet'; the columns are 'id', 'Tweets' - did you mean 'Tweets'?" in error(
        capsys
    )


@pytest.mark.parametrize("given, corrected", COMMAS)
def test_commas_between_label_names(given, corrected, bert, capsys):
    header = ["id", "text", "joy", "very happy"]
    write_csv(Path("t.csv"), [r[:4] for r in make_rows(30)], header)
    argv = ["--model", str(bert), "--train", "t.csv", "--folds", "2", "--epochs", "1"]
    argv += ["--fold", "0", "--out", "a"]
    assert train.main([*argv, *given]) == 2 and not Path("a").exists()
    hint = f" - names are separated by spaces: {corrected}"
    assert (line := error(capsys)).endswith(hint), line
    assert train.main([*argv, *shlex.split(corrected)]) == 0  # as it is printed


def test_a_label_name_with_a_comma_is_one_name(bert, capsys):
    write_csv(Path("t.csv"), [r[:5] for r in make_rows(30)], ["id", "text", "joy,fear", "joy", "x"])
    argv = ["--model", str(bert), "--train", "t.csv", "--folds", "2", "--epochs", "1"]
    assert train.main([*argv, "--fold", "0", "--out", "a", "--labels", "joy,fear", "joy"]) == 0
    assert "warning: --labels" not in capsys.readouterr().err
    assert train.main([*argv, "--out", "b", "--labels", "joy,fear", "joy,x"]) == 2
    assert "separated by spaces: --labels joy,fear joy x" in error(capsys)


# No header


@pytest.mark.parametrize("row, first_line", NO_HEADER)
def test_a_table_without_a_header_is_recognised(row, first_line, finished, bert, capsys):
    Path("t.csv").write_text(f"{row}\n" * 20)
    argv = ["--model", str(bert), "--train", "t.csv", "--out", "a", "--labels", "joy", "anger"]
    assert train.main(argv) == 2 and not Path("a").exists()
    line = error(capsys)
    assert "t.csv:1: the first row looks like data" in line
    assert line.endswith(f"add a first line, the names of the columns: {first_line}")
    assert predict.main(["--run", str(finished), "--input", "t.csv"]) == 2
    assert "t.csv:1: the first row looks like data" in error(capsys)


@pytest.mark.parametrize(
    "header", ["id,words,more,0,1", "comment,a,0,1", ",0,1,2,3", "a b,c d,e", "id,17,a b"]
)
def test_a_header_does_not_look_like_data(header, bert, capsys):
    Path("t.csv").write_text(f"{header}\n1,a,0,1\n")
    argv = ["--model", str(bert), "--train", "t.csv", "--out", "a", "--labels", "0", "1"]
    assert train.main(argv) == 2
    assert "no text column" in error(capsys)


# What is printed


def test_the_next_command_works_when_it_is_pasted(bert, capsys):
    write_csv(Path("t.csv"), make_rows(30))
    argv = ["--model", str(bert), "--train", "t.csv", "--folds", "2", "--epochs", "1"]
    assert train.main([*argv, "--out", "my runs/it's"]) == 0
    command = capsys.readouterr().out.splitlines()[-1].split("next: python predict.py ")[1]
    shutil.copy("t.csv", "new.csv")
    assert predict.main(shlex.split(command)) == 0


# One column of label names


def names_of_rows(separator: str) -> tuple[list, list]:
    """Rows of id, text, a cell of label names, yes or no; and the names of each row."""
    rows = []
    wanted = []
    for r in make_rows(40):
        names = [name for name, cell in zip(LABELS, r[2:], strict=True) if cell == "1"]
        if separator in ("one", "number"):
            names = names[:1] or ["joy"]
        cell = separator.join(names)
        if separator == "list":
            cell = str(names)
        elif separator == "number":
            names = [str(LABELS.index(names[0]))]
        if separator in ("one", "number"):
            cell = names[0]
        rows.append([*r[:2], cell, r[2]])
        wanted.append(names)
    return rows, wanted


SEPARATORS = ["#", "|", ";", "list"]


@pytest.mark.parametrize("separator", [*SEPARATORS, ", ", " | ", "one", "number"])
def test_label_names_in_one_column_come_with_the_pandas_that_splits_them(separator, bert, capsys):
    """The line works as it is printed, and what it writes can be trained on."""
    rows, wanted = names_of_rows(separator)
    Path("my files").mkdir()
    header = ["id", "text", "Label", "source"]
    rows = [[*row[:3], "ab"[i % 2]] for i, row in enumerate(rows)]
    write_csv(Path("my files/it's.csv"), rows, header)
    argv = ["--model", str(bert), "--folds", "2", "--epochs", "1", "--fold", "0", "--out", "a"]
    assert train.main([*argv, "--train", "my files/it's.csv"]) == 2 and not Path("a").exists()
    line = error(capsys)
    assert "it's.csv:1: no label column anger, fear, joy, sadness, surprise; column 'Label'" in line
    exec(line.split("make a 0/1 column of each: ")[1])
    header, *found = read("new.csv")
    assert header == ["id", "text", "source", *sorted({x for names in wanted for x in names})]
    for row, names in zip(found, wanted, strict=True):
        there = [name for name, cell in zip(header, row, strict=True) if cell == "1"]
        assert [name for name in there if name != "id"] == sorted(names)
    assert train.main([*argv, "--train", "new.csv", "--labels", *header[3:]]) == 0


@pytest.mark.parametrize("separator", SEPARATORS)
def test_label_names_in_one_column_are_split_as_the_documents_show(separator):
    rows, wanted = names_of_rows(separator)
    write_csv(Path("x.csv"), [row[:3] for row in rows], ["id", "text", "emotion"])
    document = (Path(train.__file__).parent / "docs/troubleshooting.md").read_text()
    plain, of_lists = re.findall(r"```python\n(.*?)```", document, re.DOTALL)
    exec(of_lists if separator == "list" else plain.replace("|", separator))
    header, *found = read("my.csv")
    assert header == ["id", "text", *sorted(LABELS)]
    for row, names in zip(found, wanted, strict=True):
        assert [n for n, cell in zip(header, row, strict=True) if cell == "1"] == sorted(names)


@pytest.mark.parametrize("header, cells", NO_NAMES)
def test_other_columns_are_no_column_of_label_names(header, cells, bert, capsys):
    rows = [[*r[:2], *(str(cell(i)) for cell in cells)] for i, r in enumerate(make_rows(40))]
    write_csv(Path("x.csv"), rows, ["id", "text", *header])
    assert train.main(["--model", str(bert), "--train", "x.csv", "--out", "a"]) == 2
    assert error(capsys).endswith(
        "name yours with --labels; label names in one column: docs/troubleshooting.md"
    )


WORDS_OF_LABELS = [("x", ""), ("X ", "  "), ("yes", "No"), ("1", ""), ("Ja", "nein"), ("✓", "-")]
WORDS_OF_LABELS += [("WAHR", "FALSCH")]


@pytest.mark.parametrize("separator", [",", ";"])
@pytest.mark.parametrize("yes, no", WORDS_OF_LABELS)
def test_labels_in_words_come_with_the_pandas_that_mends_them(yes, no, separator, bert, capsys):
    """The line works as it is printed, and what it writes can be trained on."""
    rows = make_rows(40)
    marked = [[*r[:2], *(yes if cell == "1" else no for cell in r[2:])] for r in rows]
    with open("x.csv", "w", newline="") as f:
        csv.writer(f, delimiter=separator).writerows([["id", "text", *LABELS], *marked])
        csv.writer(f, delimiter=separator).writerow([""] * 7)  # Excel's empty rows
    argv = ["--model", str(bert), "--folds", "2", "--epochs", "1", "--fold", "0", "--out", "a"]
    assert train.main([*argv, "--train", "x.csv"]) == 2 and not Path("a").exists()
    line = error(capsys)
    assert "must be 0 or 1" in line
    exec(line.split("make 0 and 1 of them: ")[1])
    assert read("labelled.csv") == [["id", "text", *LABELS], *rows]
    assert train.main([*argv, "--train", "labelled.csv"]) == 0


@pytest.mark.parametrize("cells", [["x", "y"], ["1", "", "0"], ["maybe", "yes"], ["-1", "1"], [""]])
def test_labels_in_unclear_words_come_without_pandas(cells, bert, capsys):
    """An empty cell beside 0 may be unknown as well."""
    rows = [[*r[:2], *(cells[i % len(cells)] for _ in LABELS)] for i, r in enumerate(make_rows(40))]
    write_csv(Path("x.csv"), rows)
    assert train.main(["--model", str(bert), "--train", "x.csv", "--out", "a"]) == 2
    hint = "write 0 or 1 in each cell"
    if "" in cells:
        hint += "; where a label is unknown, leave the cell empty, with --missing-labels"
    assert error(capsys).endswith(hint)


def test_a_slip_among_words_is_what_is_named(bert, capsys):
    rows = [[*r[:2], *("x" if cell == "1" else "" for cell in r[2:])] for r in make_rows(40)]
    rows[20][4] = "x?"
    write_csv(Path("x.csv"), rows)
    assert train.main(["--model", str(bert), "--train", "x.csv", "--out", "a"]) == 2
    assert "x.csv:22 column 'joy': must be 0 or 1 ('x?'" in error(capsys)


@pytest.mark.parametrize("labels", [["toxic,insult"], ["Toxic", "insult"], []])
def test_labels_that_are_not_there_are_named_before_the_text(labels, bert, capsys):
    """The text may be found once they are."""
    rows = [[r[1], *r[2:4]] for r in make_rows(40)]
    write_csv(Path("x.csv"), rows, ["Kommentar", "toxic", "insult"])
    argv = ["--model", str(bert), "--train", "x.csv", "--out", "a"]
    assert train.main([*argv, *(["--labels", *labels] if labels else [])]) == 2
    line = error(capsys)
    assert "x.csv:1: no label column" in line and "no text column" not in line
    assert ("separated by spaces: --labels toxic insult" in line) == (len(labels) == 1)


# Files as spreadsheets write them


@pytest.mark.parametrize("sign", [",", ";", "\t"])
def test_a_column_of_texts_alone(sign, finished, capsys):
    """No separator is in its header; texts with commas stand there without quotes."""
    other = ";" if sign != ";" else ","
    texts = ["so happy", f"sad{other} but fine", "" if sign == "," else "a"]
    Path("x.csv").write_text("\n".join(["Kommentar", *texts]) + "\n")
    assert predict.main(["--run", str(finished), "--input", "x.csv"]) == 0
    assert [row[:2] for row in read("submission.csv")[1:]] == [
        [str(i), text] for i, text in enumerate(texts)
    ]


@pytest.mark.parametrize("sign, name", [(";", "semicolons"), ("\t", "tabs")])
def test_another_separator_is_said_once(sign, name, finished, bert, capsys):
    with open("x.csv", "w", newline="") as f:
        rows = [["id", "text", *LABELS], *make_rows(40)]
        csv.writer(f, delimiter=sign, lineterminator="\n").writerows(rows)
    argv = ["--model", str(bert), "--train", "x.csv", "--folds", "2", "--epochs", "1", "--jobs"]
    assert train.main([*argv, "2", "--out", "a"]) == 0
    said = f"x.csv: its fields are separated by {name}\n"
    assert capsys.readouterr().out.count(said) == 1
    assert predict.main(["--run", str(finished), "--input", "x.csv"]) == 0
    assert capsys.readouterr().out.count(said) == 1
    assert [row[0] for row in read("submission.csv")[1:]] == [row[0] for row in make_rows(40)]


def test_the_only_other_column_is_the_text(finished, bert, capsys):
    """In training a column that a flag names is not it; in prediction another word will do."""
    rows = [[*r, i % 4] for i, r in enumerate(make_rows(40))]
    write_csv(Path("x.csv"), rows, ["id", "Kommentar", *LABELS, "author"])
    argv = ["--model", str(bert), "--train", "x.csv", "--folds", "2", "--epochs", "1", "--out"]
    assert train.main([*argv, "no"]) == 2
    assert "no text column; the columns are" in error(capsys)
    assert train.main([*argv, "a", "--group-column", "author"]) == 0
    assert "text column: Kommentar\n" in capsys.readouterr().out
    write_csv(Path("new.csv"), [["1", "so happy"]], ["id", "Tweet"])
    for run in ("a", str(finished)):
        assert predict.main(["--run", run, "--input", "new.csv"]) == 0
        assert "text column: Tweet\n" in capsys.readouterr().out


# Weights and models that don't fit


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module.bert."])
def test_weights_under_a_prefix_are_named(prefix, bert, train_csv, capsys):
    """As DataParallel, torch.compile or a wrapper of one's own save them."""
    shutil.copytree(bert, "m")
    weights = {prefix + k: v for k, v in load_file("m/model.safetensors").items()}
    save_file(weights, "m/model.safetensors", {"format": "pt"})
    assert train.main(["--model", "./m", "--train", str(train_csv), "--out", "a"]) == 2
    line = error(capsys)
    assert f"its weights are named '{prefix}' before" in line and "different models" not in line
    assert line.endswith(f"save the model inside: model.{prefix}save_pretrained()")


def test_a_model_that_shortens_the_text_is_refused(train_csv, capsys):
    """Funnel without its decoder gives fewer vectors than tokens."""
    tokenizer = make_tokenizer()
    config = T.FunnelConfig(
        vocab_size=len(tokenizer),
        block_sizes=[1, 1],
        num_decoder_layers=1,
        d_model=32,
        n_head=2,
        d_head=16,
        d_inner=64,
    )
    T.FunnelBaseModel(config).save_pretrained("m")
    tokenizer.save_pretrained("m")
    saved = json.loads(Path("m/config.json").read_text())
    assert saved["architectures"] == ["FunnelBaseModel"]
    assert train.main(["--model", "./m", "--train", str(train_csv), "--out", "a"]) == 2
    error(capsys)


@pytest.mark.parametrize("spoil, words", FILES)
def test_what_is_wrong_with_a_models_files_is_named(spoil, words, bert, train_csv, capsys):
    """Each has a hint of its own; nothing is written."""
    shutil.copytree(bert, "m")
    spoil(Path("m"))
    assert train.main(["--model", "./m", "--train", str(train_csv), "--out", "a"]) == 2
    line = error(capsys)
    assert line.startswith("error: --model ./m: ") and not Path("a").exists()
    assert words in line


def test_a_pointer_that_is_not_needed_is_no_mistake(bert, train_csv):
    shutil.copytree(bert, "m")
    pointer("pytorch_model.bin")(Path("m"))
    argv = ["--model", "./m", "--train", str(train_csv), "--folds", "2", "--epochs", "1"]
    assert train.main([*argv, "--fold", "0", "--out", "a"]) == 0


def test_a_library_that_is_missing_is_named(bert, train_csv, capsys, monkeypatch):
    def needs(*a, **k):
        raise ImportError("FastTokenizer requires the sentencepiece library")

    monkeypatch.setattr(encoders.AutoTokenizer, "from_pretrained", needs)
    assert train.main(["--model", str(bert), "--train", str(train_csv), "--out", "a"]) == 2
    assert "sentencepiece library) - install what it names" in error(capsys)


def test_a_damaged_file_in_the_hub_cache_is_no_missing_model(bert, train_csv, capsys, monkeypatch):
    def broken(*a, **k):
        raise OSError("the config file at x/config.json is not a valid JSON file")

    monkeypatch.setattr(encoders.AutoConfig, "from_pretrained", broken)
    assert train.main(["--model", "a/b", "--train", str(train_csv), "--out", "a"]) == 2
    line = error(capsys)
    assert line.endswith("valid JSON file) - use a sound copy, such as a new download")


def test_the_same_encoder_by_another_path_is_the_same_run(bert, train_csv, capsys, monkeypatch):
    shutil.copytree(bert, "m/bert")
    argv = ["--train", str(train_csv), "--folds", "2", "--epochs", "1", "--fold", "0", "--model"]
    for path in ("m/bert", "./m/bert", str(Path("m/bert").absolute()), "m/../m/bert/"):
        assert train.main([*argv, path]) == 0
        assert ("finished before" in capsys.readouterr().out) == (path != "m/bert")
    assert len(list(Path("runs").iterdir())) == 1
    shutil.move("m/bert", "elsewhere")  # with --out, wherever it lies
    (run,) = Path("runs").iterdir()
    assert train.main([*argv, "elsewhere", "--out", str(run)]) == 0
    assert "finished before" in capsys.readouterr().out
    weights = load_file("elsewhere/model.safetensors")
    next(iter(weights.values()))[0] += 1
    save_file(weights, "elsewhere/model.safetensors", {"format": "pt"})
    assert train.main([*argv, "elsewhere", "--out", str(run)]) == 2
    assert "encoder_sha256" in error(capsys)


# Rows that are not to be scored


def test_rows_marked_minus_one_are_left_out_of_the_scores(finished, bert, capsys):
    """The scores printed are those of the other rows alone; every row is predicted."""
    rows = make_rows(30, seed=2)
    write_csv(Path("scored.csv"), rows)
    marked = [[*r[:2], *["-1"] * 5] for r in make_rows(12, seed=3)]
    write_csv(
        Path("both.csv"),
        [x for pair in zip(rows, [*marked, *[None] * 18], strict=True) for x in pair if x],
    )
    argv = ["--run", str(finished), "--input"]
    assert predict.main([*argv, "scored.csv"]) == 0
    want = capsys.readouterr().out.splitlines()[-1]
    assert predict.main([*argv, "both.csv"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == want and "macro_f1" in want
    assert "both.csv: 12 rows are not scored: all their labels are -1" in err
    assert len(read("submission.csv")) == 1 + 42
    write_csv(Path("none.csv"), marked)
    assert predict.main([*argv, "none.csv"]) == 0 and "macro_f1" not in capsys.readouterr().out
    assert train.main(["--model", str(bert), "--train", "both.csv", "--out", "a"]) == 2
    assert "both.csv:3 column 'anger': must be 0 or 1 ('-1'" in error(capsys)
    some = [[*r[:6], "-1"] for r in rows]  # not all labels of the row: by cell
    write_csv(Path("some.csv"), some)
    capsys.readouterr()
    assert predict.main([*argv, "some.csv"]) == 0
    out, err = capsys.readouterr()
    assert "not scored" not in err and "not 0/1" not in err and "macro_f1" in out
