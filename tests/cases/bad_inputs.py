"""The cases of test_bad_inputs.py: one row each, and what makes their files."""

import gzip
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
from conftest import LABELS, WORDS, make_rows
from safetensors.torch import load_file, save_file

from data import text_hashes

TEXTS = [
    f"{a} {b} {c}" for a, b, c in zip(WORDS, WORDS[5:], WORDS[10:], strict=False)
]  # 13 distinct ones
ROWS = [f"{i},{t},{i % 2},{int(i % 3 == 0)}" for i, t in enumerate(TEXTS)]
IDS = [str(i) for i in range(len(ROWS))]
HEAD = "id,text,joy,anger"
NEW = "id,text\n1,i am so happy\n2,a dog\n"


def sheet(*more: str, head: str = HEAD, rows: list[str] = ROWS) -> str:
    """A sound training CSV, with other rows after it (row 15 is the first of them)."""
    return "\n".join([head, *rows, *more, ""])


def npy(array, **kw) -> bytes:
    f = io.BytesIO()
    np.save(f, array, **kw)
    return f.getvalue()


def edit(name: str, change):
    """A file of the folder after change(its bytes)."""
    return lambda d: (d / name).write_bytes(change((d / name).read_bytes()))


def edit_json(name: str, **values):
    return edit(name, lambda raw: json.dumps({**json.loads(raw), **values}).encode())


def remove(name: str):
    return lambda d: shutil.rmtree(d / name) if (d / name).is_dir() else (d / name).unlink()


def link(name: str, target: str):
    return lambda d: (d / name).symlink_to(d / target)


def copy(name: str, target: str):
    return lambda d: (
        shutil.copytree(d / name, d / target)
        if (d / name).is_dir()
        else shutil.copy(d / name, d / target)
    )


def folder(name: str):
    return lambda d: (d / name).mkdir()


def fifo(name: str):
    return lambda d: os.mkfifo(d / name)


def nan_weights(d: Path) -> None:
    tensors = load_file(d / "bert/model.safetensors")
    tensors["embeddings.LayerNorm.weight"][3] = float("nan")
    save_file(tensors, d / "bert/model.safetensors", {"format": "pt"})


def flags(*values: str) -> list[tuple]:
    return [(v, sheet(), v.split(), [v.split()[0]]) for v in values]


LONG = "x" * 300
TRAIN_ERRORS = [
    # name, train.csv or what to do in the folder (a list of both), flags, words on stderr
    ("empty", "", [], ["train.csv:1: the file or its header is empty"]),
    ("only a BOM", b"\xef\xbb\xbf", [], ["the file or its header is empty"]),
    ("one line end", "\n", [], ["train.csv:1: the file or its header is empty"]),
    ("blank header", ",,,\n1,a,1,0\n", [], ["train.csv:1: the file or its header is empty"]),
    ("header only", HEAD + "\n", [], ["a header and no rows - add rows"]),
    ("header and blank lines", HEAD + "\n\n\n\n", [], ["no rows"]),
    ("latin-1", sheet("13,café,1,0").encode("latin-1"), [], ["line 15: not UTF-8 (byte 0xe9 at 6) - save the file as UTF-8"]),
    ("latin-1 header", sheet(head=HEAD + ",é").encode("latin-1"), [], ["line 1: not UTF-8"]),
    ("cp1252", sheet("13,it\u2019s,1,0").encode("cp1252"), [], ["line 15: not UTF-8 (byte 0x92"]),
    ("utf-32", sheet().encode("utf-32"), [], ["not UTF-8 (byte 0xff at 0)"]),
    ("utf-16, cut", sheet().encode("utf-16")[:-1], [], ["train.csv:14: not utf-16-le (truncated data) - save the file as UTF-8"]),
    ("utf-16, half of a character", sheet().encode("utf-16") + b"\x00\xd8\x0a\x00", [], ["train.csv:1: not utf-16-le (illegal UTF-16 surrogate)"]),
    ("utf-16 without a mark", sheet().encode("utf-16-le"), [], ["no text column"]),
    ("a character cut at the end", sheet("13,x,1,0,é").encode()[:-2], [], ["not UTF-8"]),
    ("encoded surrogate", b"id,text,joy,anger\n1,\xed\xa0\x80,1,0\n", [], ["not UTF-8 (byte 0xed"]),
    ("zipped, but named .csv", gzip.compress(sheet().encode()), [], ["train.csv: is a gzip file, no CSV - name it .csv.gz"]),
    ("an xlsx", b"PK\x03\x04\x14\x00\x06\x00\x08\x00\x00\x00!\x00\xdf\xa4\xd2l" * 9, [], ["train.csv: is a zip or Excel file, no CSV"]),
    ("too few fields", sheet("13,short,1"), [], ["train.csv:15: 3 fields where the header has 4", "13,short,1"]),
    ("too many fields", sheet("13,so, long,1,0"), [], ["train.csv:15: 5 fields where the header has 4", "double quotes"]),
    ("one field more in every row", sheet(rows=[r + ",9" for r in ROWS]), [], ["train.csv:2: 5 fields where the header has 4"]),
    ("empty cells, too many", sheet(",,,,,,"), [], ["train.csv:15: 7 fields"]),
    ("x and blank", sheet(rows=[r.replace(",1", ",x").replace(",0", ",") for r in ROWS]), [], ["train.csv:2 column 'joy': must be 0 or 1 (", "26 cells in all", "they hold '', 'x' - make 0 and 1 of them: import pandas; df ="]),
    ("1 and blank beside 0", sheet("13,x,1,"), [], ["must be 0 or 1 ('') - write 0 or 1 in each cell"]),
    ("open quote", sheet('13,"never closed,1,0', "14,x,1,0"), [], ["train.csv:15: broken quoting", "close the quote"]),
    ("text after a quote", sheet('13,"closed" too soon,1,0'), [], ["train.csv:15: broken quoting"]),
    ("bars", sheet().replace(",", "|"), [], ["separate the fields by commas, not '|'"]),
    ("semicolons, too many fields", sheet("13,so, long,1,0").replace(",", ";"), [], ["train.csv:15: 5 fields where the header has 4 (it begins '13;so; long;1;0') - put texts that hold semicolons"]),
    ("label twice", sheet("13,x,1,0,1", head=HEAD + ",joy", rows=[]), [], ["train.csv:1 column 'joy': duplicate name"]),
    ("text twice", "text,text,joy,anger\na,b,1,0\n", [], ["column 'text': duplicate name"]),
    ("twice but for a space", "id,text,joy,anger, joy\n", [], ["column 'joy': duplicate name"]),
    ("Excel's separator line", "sep=;\n" + sheet().replace(",", ";"), [], ["train.csv:1: 'sep=;' is a line of Excel's, no header - remove it"]),
    ("Excel's separator line, commas", "sep=,\n" + sheet(), [], ["train.csv:1: 'sep=' is a line of Excel's", "remove it"]),
    ("no text column", sheet(head="id,words,more,joy", rows=[r + ",1" for r in ROWS[:0]]), ["--labels", "joy"], ["no text column; the columns are 'id', 'words'", "--text-column"]),
    ("two that could be the text", "sentence,review,joy,anger\na,b,1,0\n", [], ["sentence and review could both be the text"]),
    ("unknown text column", sheet(), ["--text-column", "tweet"], ["no column 'tweet'"]),
    ("text column is a label", sheet(), ["--text-column", "joy"], ["'joy' is the text column"]),
    ("no label columns", "id,text\n1,a\n", [], ["no label column joy, anger", "name yours with --labels"]),
    ("one label column missing", "id,text,joy\n1,a,1\n", [], ["no label column anger", "add it"]),
    ("label in other case", sheet(head="id,text,Joy,anger"), [], ["no label column joy"]),
    *((f"label cell {v!r}", sheet(f"13,x,1,{v}"), [], ["train.csv:15 column 'anger': must be 0 or 1", repr(v)])
      for v in ("2", "-1", "0.5", "", " ", "nan", "NA", "yes", "1e0", "01", "0x1", "inf", "1;0", "\u0661", "1\u200b")),
    ("very long label cell", sheet("13,x,1," + LONG), [], [f"('{'x' * 40}')"]),
    ("two wrong cells of a row", sheet("13,x,2,3"), [], ["train.csv:15 column 'joy': must be 0 or 1 ('2'; 2 cells in all)"]),
    ("many wrong label cells", sheet(*(f"{i},x,2,1" for i in range(13, 30))), [], ["train.csv:15 column 'joy'", "row 16, 17, 18, 19", "17 cells in all"]),
    ("wrong cell after a blank line and a long text", sheet("", '13,"a\nb",1,0', "14,x,1,7"), [], ["train.csv:17 column 'anger'", "('7')"]),
    ("quoted line breaks, then a short row", sheet('13,"a\n\nb",1,0', "14,x"), [], ["train.csv:16: 2 fields"]),
    ("missing file", "", ["--train", "{d}/trian.csv"], ["trian.csv: no such file - did you mean train.csv?"]),
    ("missing folder", "", ["--train", "{d}/no/such.csv"], ["no/such.csv: no such file"]),
    ("folder as file", folder("data.csv"), ["--train", "{d}/data.csv"], ["data.csv: is a folder"]),
    ("fifo", fifo("pipe"), ["--train", "{d}/pipe"], ["pipe: is not a regular file"]),
    ("device", "", ["--train", "/dev/null"], ["not a regular file"]),
    ("stdin", "", ["--train", "-"], ["-: no such file"]),
    ("name too long", "", ["--train", "{d}/" + LONG], ["File name too long"]),
    ("link to itself", link("loop.csv", "loop.csv"), ["--train", "{d}/loop.csv"], ["loop.csv: no such file"]),
    ("not gzip", [copy("run/oof.csv", "t.csv.gz")], ["--train", "{d}/t.csv.gz"], ["t.csv.gz:1: can't be read (Not a gzipped file"]),
    ("gzip cut short", lambda d: (d / "t.csv.gz").write_bytes(gzip.compress(sheet().encode())[:-20]), ["--train", "{d}/t.csv.gz"], ["t.csv.gz:", "can't be read"]),
    ("gzip damaged", lambda d: (d / "t.csv.gz").write_bytes(gzip.compress(sheet().encode() * 99)[:60] + b"\0" * 99), ["--train", "{d}/t.csv.gz"], ["t.csv.gz:", "can't be read"]),
    ("gzip of latin-1, cut short", lambda d: (d / "t.csv.gz").write_bytes(gzip.compress(b"id,text,joy,anger\n" + b"\xe9" * 200 + os.urandom(90_000), 1)[:-30_000]), ["--train", "{d}/t.csv.gz"], ["t.csv.gz:"]),
    # labels, folds, settings
    *flags("--labels joy joy", "--labels id joy", "--labels text", "--labels fold", "--folds 0", "--folds -1", "--folds 1.5", "--folds 99", "--folds 1001",
           "--fold 2", "--fold -1", "--epochs 0", "--epochs 1.5", "--epochs 1e3", "--epochs nan", "--batch-size 0", "--batch-size -1", "--batch-size 1.5", "--accumulate 0",
           "--lr -1", "--lr 0", "--lr nan", "--lr inf", "--lr 1e-400", "--lr x", "--weight-decay -0.1", "--weight-decay inf", "--warmup-ratio 1.5", "--max-grad-norm 0",
           "--max-length 2", "--max-length 4096", "--max-length 1.5", "--dropout 1", "--dropout -0.1", "--label-smoothing 1", "--patience 0", "--freeze -1", "--freeze 3",
           "--seed -1", "--seed 9999999999", "--scheduler step", "--pooling max", "--loss mse", "--precision fp8", "--device tpu", "--device cuda", "--device mps"),
    ("empty label name", "", ["--labels", ""], ["--labels holds an empty"]),
    ("no label named", "", ["--labels"], ["--labels", "expected at least one argument"]),
    ("zero in a name", "", ["--train", "a\0b"], ["--train holds an empty or unusable name"]),
    ("empty file name", "", ["--train", ""], ["--train holds an empty"]),
    ("empty out", "", ["--out", ""], ["--out holds an empty"]),
    ("unknown flag", "", ["--epoch", "3"], ["unrecognized arguments: --epoch", "--help"]),
    ("abbreviated flag", "", ["--batch", "3"], ["unrecognized arguments: --batch"]),
    ("stray word", "", ["--seed", "1", "go"], ["unrecognized arguments: go"]),
    ("flag without value", "", ["--seed"], ["--seed", "expected one argument"]),
    ("fewer texts than folds", sheet(rows=["1,same,1,0", "2,Same,0,1", "3, same ,0,0"]), [], ["only 1 distinct texts"]),
    ("too few texts for a hold-out", sheet(rows=ROWS[:3]), ["--folds", "1"], ["only 3 distinct texts or groups for 5 folds", "add rows"]),
    # --config
    ("config missing", "", ["--config", "{d}/none.json"], ["none.json"]),
    ("config a folder", "", ["--config", "{d}/run"], ["--config"]),
    ("config a fifo", fifo("pipe"), ["--config", "{d}/pipe"], ["--config"]),
    ("config endless", "", ["--config", "/dev/zero"], ["--config"]),
    *((f"config {text[:20]}", lambda d, text=text: (d / "c.json").write_text(text), ["--config", "{d}/c.json"], [words])
      for text, words in (
          ("", "not readable as JSON"), ("{", "not readable as JSON"), ("[]", "JSON object"), ("3", "JSON object"), ("[" * 100_000, "not readable as JSON"),
          ('{"epoch": 3}', "unknown keys epoch"), ('{"seed": "3"}', "--seed must be int"), ('{"seed": 1.0}', "--seed must be int"), ('{"seed": true}', "--seed must be int"),
          ('{"lr": NaN}', "--lr must lie in"), ('{"lr": 1e999}', "--lr must lie in"), ('{"epochs": null, "lr": -1}', "--lr must lie in"), ('{"seed": null}', "--seed must be int"),
          ('{"dropout": 1' + "0" * 400 + "}", "--dropout must lie in"), ('{"seed": 1' + "0" * 5000 + "}", "not readable as JSON"), ('{"pos_weight": 1}', "--pos-weight must be bool"),
          ('{"patience": [3]}', "--patience must be"), ('{"loss": {}}', "--loss must be"), ('{"text_column": ""}', "--text-column holds an empty"),
      )),
    *((f"config labels {value!r}", lambda d, v=value: (d / "c.json").write_text(json.dumps({"labels": v})), "no labels", [words])
      for value, words in (("joy", "--labels must be list"), ([], "--labels: none"), ([1], "--labels holds an empty or unusable name"), ([["joy"]], "--labels holds"), ([None], "--labels holds"))),
    # encoders
    ("model folder missing", sheet(), ["--model", "./nowhere"], ["--model ./nowhere: no such folder"]),
    ("model that is no name", sheet(), ["--model", "a b"], ["--model a b: no such folder"]),
    ("model a file", sheet(), ["--model", "{d}/train.csv"], ["train.csv: no such folder"]),
    ("model not in the cache", sheet(), ["--model", "nobody/nothing"], ["not in the Hub cache, and HF_HUB_OFFLINE is set"]),
    ("model name too long", sheet(), ["--model", LONG], ["--model xxx"]),
    ("model folder empty", [sheet(), folder("m")], ["--model", "{d}/m"], ["holds no config.json"]),
    ("model without tokenizer", [sheet(), remove("bert/tokenizer.json")], ["--model", "{d}/bert"], ["no tokenizer file"]),
    ("model with a damaged config", [sheet(), edit("bert/config.json", lambda b: b[:50])], ["--model", "{d}/bert"], ["config.json is damaged or cut short"]),
    ("model with an absurd config", [sheet(), edit_json("bert/config.json", hidden_size="many")], ["--model", "{d}/bert"], ["can't be loaded"]),
    ("model with a damaged tokenizer", [sheet(), edit("bert/tokenizer.json", lambda b: b[:200])], ["--model", "{d}/bert"], ["tokenizer.json is damaged or cut short"]),
    ("model smaller than its tokenizer", [sheet(), edit_json("bert/config.json", vocab_size=9)], ["--model", "{d}/bert"], ["the tokenizer knows", "the encoder 9"]),
    ("model no encoder", [sheet(), edit_json("bert/config.json", model_type="t5")], ["--model", "{d}/bert"], ["bert"]),
    ("model of an unknown kind", [sheet(), edit_json("bert/config.json", model_type="brt")], ["--model", "{d}/bert"], ["can't be loaded"]),
    ("texts.npy beside the model damaged", [sheet(), lambda d: [(d / n).write_bytes(b"x") for n in ("texts.npy", "env.json")]], ["--model", "{d}/bert"], ["texts.npy"]),
    ("weights missing", [sheet(), remove("bert/model.safetensors")], ["--model", "{d}/bert"], ["holds no weights"], 1),
    ("weights cut short", [sheet(), edit("bert/model.safetensors", lambda b: b[:-100])], ["--model", "{d}/bert"], ["model.safetensors is damaged or cut short"], 1),
    ("weights empty", [sheet(), edit("bert/model.safetensors", lambda b: b"")], ["--model", "{d}/bert"], ["model.safetensors is damaged or cut short"], 1),
    ("weights not finite", [sheet(), nan_weights], ["--model", "{d}/bert"], ["hold nan or inf"], 1),
    ("weights of another size", [sheet(), edit_json("bert/config.json", hidden_size=64)], ["--model", "{d}/bert"], ["bert"], 1),
    ("weights of another model", [sheet(), edit_json("bert/config.json", model_type="distilbert")], ["--model", "{d}/bert"], ["bert"], 1),
    # --out
    ("out a file", sheet(), ["--out", "{d}/train.csv"], ["train.csv: can't be written (File exists) - choose another --out"], 1),
    ("out below a file", sheet(), ["--out", "{d}/train.csv/run"], ["train.csv/run", "choose another --out"], 1),
    ("out with other files", sheet(), ["--out", "{d}"], ["holds files that are no run"]),
    ("out holds another run", sheet(), ["--out", "{d}/run"], ["holds another run", "--restart"], 1),
    ("out name too long", sheet(), ["--out", "{d}/" + LONG], ["File name too long"], 1),
    ("out no name at all", sheet(), ["--out", "{d}/\ud800"], ["--out"], 1),
    ("out not UTF-8", "", ["--out", "{d}/caf\udce9"], ["--out holds an empty or unusable name"]),
    ("model not UTF-8", "", ["--model", "{d}/caf\udce9"], ["--model holds"]),
    ("train not UTF-8", copy("run/oof.csv", "caf\udce9.csv"), ["--train", "{d}/caf\udce9.csv"], ["--train holds an empty or unusable name"]),
    ("out below no folder of ours", sheet(), ["--out", "/proc/nowhere/run"], ["/proc/nowhere/run"], 1),
    ("out a link to nowhere", [sheet(), link("gone", "nowhere")], ["--out", "{d}/gone"], ["gone: can't be written (File exists) - choose another --out"], 1),
    ("out with env.json of something else", [sheet(), lambda d: (d / "run/env.json").write_text("{}")], ["--out", "{d}/run"], ["env.json: missing or damaged"], 1),
    ("out with an odd env.json", [sheet(), lambda d: (d / "run/env.json").write_text('{"same": 3}')], ["--out", "{d}/run"], ["env.json: missing or damaged"], 1),
    ("out with a damaged env.json", [sheet(), edit("run/env.json", lambda b: b[:99])], ["--out", "{d}/run"], ["env.json: missing or damaged"], 1),
]  # fmt: skip

PREDICT_ERRORS = [
    ("empty", "", [], ["new.csv:1: the file or its header is empty"]),
    ("latin-1", "id,text\n1,é\n".encode("latin-1"), [], ["line 2: not UTF-8"]),
    ("short row", NEW + "3\n", [], ["new.csv:4: 1 fields where the header has 2"]),
    ("long row", NEW + "3,a,b\n", [], ["new.csv:4: 3 fields"]),
    ("open quote in the last row", NEW + '3,"a', [], ["new.csv:4: broken quoting"]),
    ("no text", "id,words,more\n1,a,b\n", [], ["no text column"]),
    ("semicolons and commas", NEW.replace(",", ";") + "3,a\n", [], ["new.csv:4: 1 fields where the header has 2"]),
    ("text twice", "id,text,text\n1,a,b\n", [], ["duplicate name"]),
    ("id twice", "id,text,id\n1,a,b\n", [], ["column 'id': duplicate name"]),
    ("text column is a label", "id,joy\n1,a\n", ["--text-column", "joy"], ["'joy' is the text column"]),
    ("missing", "", ["--input", "{d}/nwe.csv"], ["did you mean new.csv?"]),
    ("folder", "", ["--input", "{d}/run"], ["is a folder"]),
    ("fifo", fifo("pipe"), ["--input", "{d}/pipe"], ["not a regular file"]),
    ("link to itself", link("loop.csv", "loop.csv"), ["--input", "{d}/loop.csv"], ["loop.csv: no such file"]),
    # what is written
    ("output is the input", NEW, ["--output", "{d}/new.csv"], ["must be different files"]),
    ("output is the input by a link", [NEW, link("l.csv", "new.csv")], ["--output", "{d}/l.csv"], ["must be different files"]),
    ("output is the input by another name", [NEW, lambda d: os.link(d / "new.csv", d / "l.csv")], ["--output", "{d}/l.csv"], ["must be different files"]),
    ("output is the probabilities", NEW, ["--probabilities", "{d}/submission.csv"], ["must be different files"]),
    ("output is the thresholds", [NEW, copy("run/th.npy", "my.npy")], ["--thresholds", "{d}/my.npy", "--output", "{d}/my.npy"], ["must be different files"]),
    ("output is a file of the run", NEW, ["--output", "{d}/run/oof.csv"], ["oof.csv"]),
    ("output is a table of the run", NEW, ["--output", "{d}/run/errors.csv"], ["errors.csv"]),
    ("probabilities are a file of the run", NEW, ["--probabilities", "{d}/run/fold_1/head.safetensors"], ["head.safetensors"]),
    ("the input stands where the chunks go", copy("run/oof.csv", "sub.csv.part"), ["--input", "{d}/sub.csv.part", "--output", "{d}/sub.csv", "--text-column", "id"], ["sub.csv.part: exists already"]),
    ("a folder of one's own stands where the chunks go", [NEW, folder("submission.csv.part"), copy("new.csv", "submission.csv.part/mine.csv")], [], ["submission.csv.part: exists already"]),
    ("output a folder", NEW, ["--output", "{d}/run"], ["run: is a folder"]),
    ("output a fifo", [NEW, fifo("pipe")], ["--output", "{d}/pipe"], ["not a regular file"]),
    ("output in no folder", NEW, ["--output", "{d}/no/s.csv"], ["no such folder"]),
    ("output below a file", NEW, ["--output", "{d}/new.csv/s.csv"], ["new.csv: no such folder"]),
    ("output a link to itself", [NEW, link("loop", "loop")], ["--output", "{d}/loop"], ["loop"]),
    ("output no name at all", NEW, ["--output", "{d}/\ud800"], ["--output"]),
    ("output empty", NEW, ["--output", ""], ["--output holds an empty"]),
    # thresholds
    *((f"thresholds {v}", NEW, ["--thresholds", v], ["--thresholds"]) for v in ("1.5", "-1", "nan", "inf", "none.npy", "0,5", "", LONG, "a\0b")),
    *((f"th.npy {name}", [NEW, lambda d, raw=raw: (d / "t.npy").write_bytes(raw)], ["--thresholds", "{d}/t.npy"], ["t.npy", words])
      for name, raw, words in (
          ("empty", b"", "not an array"), ("text", b"0.5", "not an array"), ("cut short", npy(np.full(5, 0.5))[:-4], "not an array"), ("header cut", npy(np.full(5, 0.5))[:40], "not an array"),
          ("too short", npy(np.full(4, 0.5)), "shape (4,)"), ("one number", npy(np.float32(0.5)), "shape ()"), ("a column", npy(np.full((5, 1), 0.5)), "shape (5, 1)"), ("none", npy(np.zeros(0)), "shape (0,)"),
          ("nan", npy(np.array([0.5, np.nan, 0.5, 0.5, 0.5])), "threshold of fear is nan"), ("inf", npy(np.full(5, np.inf)), "threshold of anger is inf"),
          ("above one", npy(np.array([0.5] * 4 + [1.01])), "threshold of surprise is 1.01"), ("below zero", npy(np.full(5, -0.1)), "must lie between 0 and 1"),
          ("integers", npy(np.ones(5, int)), "not an array of thresholds (holds"), ("true and false", npy(np.ones(5, bool)), "not an array of thresholds (holds"), ("words", npy(np.array(["0.5"] * 5)), "not an array of thresholds (holds"),
          ("complex", npy(np.ones(5, complex)), "not an array of thresholds (holds"), ("a pickle", npy(np.array([0.5] * 5, dtype=object), allow_pickle=True), "not an array"),
          ("records", npy(np.zeros(5, [("a", "f4")])), "not an array of thresholds (holds"),
          ("promising 8 TB", npy(np.full(5, 0.5)).replace(b"(5,), }           ", b"(999999999999,), }"), "not an array"),
      )),
    ("thresholds a folder", NEW, ["--thresholds", "{d}/run"], ["run: is a folder"]),
    ("thresholds a fifo", [NEW, fifo("pipe")], ["--thresholds", "{d}/pipe"], ["not a regular file"]),
    ("thresholds zipped", [NEW, lambda d: np.savez(d / "t.npz", np.ones(5))], ["--thresholds", "{d}/t.npz"], ["not an array"]),
    ("thresholds in two places", [NEW, lambda d: np.save(d / "th.npy", np.zeros(5))], ["--thresholds", "th.npy"], ["differ - give the whole path"]),
    ("thresholds of other labels", [NEW, lambda d: np.save(d / "t.npy", np.ones(5)), lambda d: (d / "t.json").write_text('{"labels": ["a"]}')], ["--thresholds", "{d}/t.npy"], ["its labels are ['a']"]),
    ("thresholds of the labels in another order", [NEW, copy("run/th.npy", "t.npy"), copy("run/th.json", "t.json"), edit_json("t.json", labels=LABELS[::-1])], ["--thresholds", "{d}/t.npy"], ["its labels are ['surprise'"]),
    ("a link to thresholds of other labels", [NEW, copy("run/th.npy", "x.npy"), copy("run/th.json", "x.json"), edit_json("x.json", labels=LABELS[::-1]), link("t.npy", "x.npy")], ["--thresholds", "{d}/t.npy"], ["its labels are ['surprise'"]),
    ("thresholds with a damaged note", [NEW, copy("run/th.npy", "t.npy"), copy("run/th.json", "t.json"), edit("t.json", lambda b: b[:9])], ["--thresholds", "{d}/t.npy"], ["t.json: missing or damaged"]),
    # runs
    ("run missing", NEW, ["--run", "{d}/none"], ["none: no such run folder"]),
    ("run a file", NEW, ["--run", "{d}/new.csv"], ["no such run folder"]),
    ("run not UTF-8", NEW, ["--run", "{d}/caf\udce9"], ["--run holds"]),
    ("input not UTF-8", copy("run/oof.csv", "caf\udce9.csv"), ["--input", "{d}/caf\udce9.csv", "--text-column", "id"], ["--input holds an empty or unusable name"]),
    ("output not UTF-8", NEW, ["--output", "{d}/caf\udce9.csv"], ["--output holds an empty or unusable name"]),
    ("run name too long", NEW, ["--run", LONG], ["no such run folder"]),
    ("run empty", [NEW, folder("e")], ["--run", "{d}/e"], ["env.json: missing"]),
    ("no run at all", NEW, "no run", ["no finished run in runs/"]),
    ("run unfinished", [NEW, remove("run/fold_1/DONE.json")], [], ["fold 1 is missing", "resumes"]),
    ("run without totals", [NEW, remove("run/metrics.json")], [], ["metrics.json: missing"]),
    ("run without thresholds", [NEW, remove("run/th.npy")], [], ["th.npy: missing"]),
    ("run without a fold", [NEW, remove("run/fold_2")], [], ["fold 2 is missing"]),
    ("weights cut short", [NEW, edit("run/fold_0/model.safetensors", lambda b: b[:-9])], [], ["fold_0/model.safetensors: missing or damaged", "redoes what is damaged"]),
    ("weights with a flipped bit", [NEW, edit("run/fold_2/model.safetensors", lambda b: b[:-9] + bytes([b[-9] ^ 1]) + b[-8:])], [], ["fold_2/model.safetensors: missing or damaged"]),
    ("head of another fold", [NEW, copy("run/fold_0/head.safetensors", "run/fold_1/head.safetensors")], [], ["head.safetensors: missing or damaged"]),
    ("fold of another run", [NEW, edit_json("run/fold_1/DONE.json", run="0123")], [], ["DONE.json: missing or damaged"]),
    ("DONE.json empty", [NEW, edit("run/fold_1/DONE.json", lambda b: b"")], [], ["DONE.json: missing or damaged"]),
    ("DONE.json odd", [NEW, edit_json("run/fold_1/DONE.json", files=3)], [], ["DONE.json: missing or damaged"]),
    *((f"config.json with {k} {v!r}", [NEW, edit_json("run/config.json", **{k: v})], [], ["config.json"])
      for k, v in (("labels", LABELS[::-1]), ("labels", LABELS[:2]), ("labels", None), ("folds", 2), ("folds", "3"), ("folds", None), ("max_length", 1), ("pooling", "cls"))),
    ("config.json empty", [NEW, lambda d: (d / "run/config.json").write_text("{}")], [], ["config.json"]),
    ("config.json cut short", [NEW, edit("run/config.json", lambda b: b[:30])], [], ["config.json: missing or damaged"]),
    ("env.json empty", [NEW, lambda d: (d / "run/env.json").write_text("{}")], [], ["run"]),
    ("texts.npy cut short", [NEW, edit("run/texts.npy", lambda b: b[:-9])], [], ["texts.npy"]),
    ("texts.npy of something else", [NEW, lambda d: (d / "run/texts.npy").write_bytes(npy(np.array(["a"])))], [], ["texts.npy"]),
    # flags
    ("unknown flag", NEW, ["--epochs", "3"], ["unrecognized arguments: --epochs"]),
    ("abbreviated flag", NEW, ["--prob", "p.csv"], ["unrecognized arguments: --prob"]),
    ("unknown device", NEW, ["--device", "tpu"], ["--device"]),
    ("device not here", NEW, ["--device", "mps"], ["--device mps", "--device auto"]),
    ("no text after --text", NEW, ["--text"], ["--text"]),
    ("text that is no text", NEW, ["--text", "caf\udce9"], ["--text"]),
    ("--text and files", NEW, ["--text", "x", "--probabilities", "{d}/p.csv"], ["--text reads and writes no file"]),
]  # fmt: skip

LONG_TEXT = " ".join(WORDS) + " " + "so happy " * 11_000
TRAIN_ODD = [
    # name, train.csv (or a list, as above), flags, words on stderr, ids
    ("plain", sheet(), [], [], IDS),
    ("BOM", b"\xef\xbb\xbf" + sheet().encode(), [], [], IDS),
    ("two BOMs", b"\xef\xbb\xbf" * 2 + sheet().encode(), [], [], IDS),
    ("BOM and quoted header", b"\xef\xbb\xbf" + sheet(head='"id","text","joy","anger"').encode(), [], [], IDS),
    ("spaces in the header", sheet(head="id , text,\tjoy, anger"), [], [], IDS),
    ("CRLF", sheet().replace("\n", "\r\n"), [], [], IDS),
    ("CR", sheet().replace("\n", "\r"), [], [], IDS),
    ("no line end at the end", sheet().rstrip("\n"), [], [], IDS),
    ("NUL bytes", sheet("13,so\0 happy,1,0"), [], ["1 of 14 texts hold NUL characters"], [*IDS, "13"]),
    ("control characters", sheet("13,\x01\x02\x1b,1,0"), [], ["1 of 14 texts are blank"], [*IDS, "13"]),
    ("texts that look like nothing", sheet("a,NA,1,0", "b,null,1,0", "c,None,1,0", "d,nan,1,0", "e,0123,1,0"), [], [], [*IDS, *"abcde"]),
    ("ids that look like numbers", sheet("007,x,1,0", "1e3,y,1,0", "NA,z,0,0", " 5 ,w,1,1"), [], [], [*IDS, "007", "1e3", "NA", " 5 "]),
    ("ids to quote", sheet('"a,b",x,1,0', '"q""q",y,1,0', '"l\nl",z,1,0', '"c\rc",w,1,0', '"b\r\nb",v,1,0'), [], [], [*IDS, "a,b", 'q"q', "l\nl", "c\rc", "b\r\nb"]),
    ("blank texts", sheet("13,,1,0", "14,  ,0,1", "15,\u200b,0,1", "16,\u00a0,0,1"), [], ["4 of 17 texts are blank; they are kept"], [*IDS, "13", "14", "15", "16"]),
    ("emoji", sheet(*(f"{i},{'😀 ' * 9}{i},1,0" for i in range(13, 19))), [], ["of the tokens are unknown"], [*IDS, *map(str, range(13, 19))]),
    ("right to left, marks, entities", sheet("13,\u0634\u0643\u0631\u0627,1,0", "14,e\u0301\u0302\u0303,1,0", "15,&amp;lt;,1,0"), [], [], [*IDS, "13", "14", "15"]),
    ("99,000 characters", sheet(f"13,{LONG_TEXT},1,0", f"14,{'a' * 100_000},0,0"), [], [], [*IDS, "13", "14"]),
    ("quoted text", sheet('13,"one, ""two""\nthree",1,0'), [], [], [*IDS, "13"]),
    ("blank lines", sheet("", "", "13,x,1,0", ""), [], ["3 blank line(s) skipped"], [*IDS, "13"]),
    ("rows of empty cells", sheet(",,,", " ,, ,", "13,x,1,0", "  ", ",,"), [], ["4 blank line(s) skipped (also rows of empty cells)"], [*IDS, "13"]),
    ("semicolons", sheet('13,"a;b, c",1,0').replace(",", ";").replace("; c", ", c"), [], [], [*IDS, "13"]),
    ("tabs", sheet("13,a;b,1,0").replace(",", "\t"), [], [], [*IDS, "13"]),
    ("Excel's Unicode text", sheet("13,😀 é,1,0").replace(",", "\t").encode("utf-16"), [], [], [*IDS, "13"]),
    ("UTF-16, the other way round", b"\xfe\xff" + sheet().encode("utf-16-be"), [], [], IDS),
    ("another word for the text", sheet(head="id,comment,joy,anger"), [], [], IDS),
    ("another word, and ID", sheet(head="ID,Kommentar,joy,anger"), [], ["no id column (but 'ID': rename it)"], IDS),
    ("no id column", sheet(head="text,joy,anger", rows=[r.split(",", 1)[1] for r in ROWS]), [], ["no id column - row numbers from 0"], IDS),
    ("no id column and blank lines", "text,joy,anger\n\n" + "\n".join(r.split(",", 1)[1] for r in ROWS), [], ["no id column", "1 blank line"], IDS),
    ("ids doubled", sheet("1,x,1,0", "1,y,0,1"), [], ["2 ids occur more than once"], [*IDS, "1", "1"]),
    ("ids blank", sheet(",x,1,0"), [], [], [*IDS, ""]),
    ("another name for the text", sheet(head="id,comment_text,joy,anger"), [], [], IDS),
    ("text and another name", sheet(head="id,text,joy,anger,review", rows=[r + ",x" for r in ROWS]), [], [], IDS),
    ("extra columns", sheet(head="rater_id,text,joy,anger,length,id", rows=[f"{r},3,x{r[0]}" for r in ROWS[:10]]), [], [], [f"x{i}" for i in range(10)]),
    ("labels in other words", sheet("13,x,1.0,0.0", "14,y,True,FALSE", "15,z, 1 ,false"), [], [], [*IDS, "13", "14", "15"]),
    ("label all 1", sheet(rows=[r[:-1] + "1" for r in ROWS]), [], ["label anger: all 13 rows have it"], IDS),
    ("label all 0", sheet(rows=[r[:-1] + "0" for r in ROWS]), [], ["label anger: 0 positives"], IDS),
    ("no labels in any row", sheet(rows=[r[:-3] + "0,0" for r in ROWS]), [], ["label joy: 0 positives"], IDS),
    ("one label", sheet(), ["--labels", "joy"], [], IDS),
    ("a label named label", sheet().replace("joy", "label"), ["--labels", "label"], [], IDS),
    ("same text, other labels", sheet("13,i am so,1,0", "14,I  AM so,0,1"), [], [], [*IDS, "13", "14"]),
    ("as many folds as texts", sheet(rows=ROWS[:3]), ["--folds", "3"], ["positives for 3 folds"], IDS[:3]),
    ("hold-out of few texts", sheet(rows=ROWS[:5]), ["--folds", "1"], ["held out - its scores will mean little"], None),
    ("zipped", lambda d: (d / "t.csv.gz").write_bytes(gzip.compress(sheet().encode())), ["--train", "{d}/t.csv.gz"], [], IDS),
    ("odd file name", copy("run/oof.csv", "café \n😀.csv"), ["--train", "{d}/café \n😀.csv", "--text-column", "id", "--labels", "big"], [], "oof"),
    ("out in odd folders", sheet(), ["--out", "{d}/new/ü 😀/out"], [], IDS),
    ("out an empty folder", [sheet(), folder("out")], [], [], IDS),
    ("flags with underscores", sheet(), ["--batch_size", "4", "--max_length=24"], [], IDS),
    ("texts seen by the encoder", [sheet(), lambda d: [(d / "texts.npy").write_bytes(npy(text_hashes(TEXTS))), (d / "env.json").write_text("{}")]], ["--model", "{d}/bert"], ["13 of 13 texts are among those this encoder was trained on"], IDS),
]  # fmt: skip

PREDICT_ODD = [
    ("plain", NEW, [], [], ["1", "2"]),
    ("BOM", b"\xef\xbb\xbf" + NEW.encode(), [], [], ["1", "2"]),
    ("CRLF", NEW.replace("\n", "\r\n"), [], [], ["1", "2"]),
    ("CR", NEW.replace("\n", "\r"), [], [], ["1", "2"]),
    ("header only", "id,text\n", [], [], []),
    ("header without a line end", "id,text", [], [], []),
    ("NUL bytes", NEW + "3,a\0b\n", [], ["1 of 3 texts hold NUL characters"], ["1", "2", "3"]),
    ("texts that look like nothing", NEW + "3,NA\n4,null\n5,nan\n6,0123\n", [], [], ["1", "2", "3", "4", "5", "6"]),
    ("blank texts", NEW + "3,\n4,  \n5,\u200b\n", [], ["3 of 5 texts are blank"], ["1", "2", "3", "4", "5"]),
    ("emoji", NEW + "3,😀😀😀\n", [], [], ["1", "2", "3"]),
    ("100,000 characters", NEW + f"3,{LONG_TEXT}\n4,{'a' * 100_000}\n", [], [], ["1", "2", "3", "4"]),
    ("no id column", "text\na\n\nb\n\n", [], ["no id column - row numbers from 0 are used", "2 of 4 texts are blank; they are kept"], ["0", "1", "2", "3"]),
    ("ids doubled", NEW + "2,x\n", [], ["1 ids occur more than once"], ["1", "2", "2"]),
    ("ids to quote", 'id,text\n"a,b",x\n"q""q",y\n"l\nl",z\n"c\rc",w\n"b\r\nb",v\n007,u\n"",t\n', [], [], ["a,b", 'q"q', "l\nl", "c\rc", "b\r\nb", "007", ""]),
    ("another name for the text", "id,sentence\n1,a\n", [], [], ["1"]),
    ("another word for the text", "id,tweet\n1,a\n", [], [], ["1"]),
    ("semicolons", NEW.replace(",", ";"), [], [], ["1", "2"]),
    ("Excel's Unicode text", NEW.replace(",", "\t").encode("utf-16"), [], [], ["1", "2"]),
    ("rows of empty cells", NEW + ",\n , \n3,a\n,\n", [], ["3 blank line(s) skipped"], ["1", "2", "3"]),
    ("no id and labels", f"comment,{','.join(LABELS)}\na,1,0,0,0,1\n", [], ["no id column"], ["0"]),
    ("text asked for", NEW, ["--with-text"], [], ["1", "2"]),
    ("no text asked for", "text\na\n", ["--no-with-text"], ["no id column"], ["0"]),
    ("one column named", "id,a,b\n1,x,y\n", ["--text-column", "b"], [], ["1"]),
    ("some label columns", "id,text,joy\n1,a,1\n", [], ["no scores"], ["1"]),
    ("labels unknown", f"id,text,{','.join(LABELS)}\n1,a,,,,,\n2,b,0,1,0,1,9\n", [], ["1 label cells are not 0/1", "no scores are printed"], ["1", "2"]),
    ("labels in another order", f"{','.join(LABELS[::-1])},text,id\n1,0,0,0,1,furious,7\n", [], [], ["7"]),
    ("texts of the training", "id,text\n1," + make_rows(120)[0][1].upper() + "\n", [], ["1 of 1 texts are among those this run was trained on"], ["1"]),
    ("thresholds a number", NEW, ["--thresholds", "0.3"], [], ["1", "2"]),
    ("thresholds by name in the run", NEW, ["--thresholds", "th.npy"], [], ["1", "2"]),
    ("thresholds a file here, a folder in the run", [NEW, copy("run/th.npy", "fold_0")], ["--thresholds", "fold_0"], [], ["1", "2"]),
    ("thresholds that say nothing of a run", [NEW, copy("run/th.npy", "t.npy"), lambda d: (d / "t.json").write_text('{"mine": 1}')], ["--thresholds", "{d}/t.npy"], ["chosen for another run"], ["1", "2"]),
    ("an id in capitals", NEW.replace("id", "ID"), [], ["no id column (but 'ID': rename it)"], ["0", "1"]),
    ("thresholds of another run", [NEW, copy("run/th.npy", "t.npy"), copy("run/th.json", "t.json"), edit_json("t.json", run="0")], ["--thresholds", "{d}/t.npy"], ["chosen for another run"], ["1", "2"]),
    ("thresholds as float64, big-endian", [NEW, lambda d: np.save(d / "t.npy", np.full(5, 0.5, ">f8"))], ["--thresholds", "{d}/t.npy"], ["no t.json says whose thresholds"], ["1", "2"]),
    ("an old chunk that is no chunk", [NEW, folder("submission.csv.part"), lambda d: [(d / "submission.csv.part" / n).write_text("[]") for n in ("lock", "0.json")]], [], [], ["1", "2"]),
    ("an empty folder where the chunks go", [NEW, folder("submission.csv.part")], [], [], ["1", "2"]),
    ("odd file names", copy("run/oof.csv", "café \n😀.csv"), ["--input", "{d}/café \n😀.csv", "--text-column", "id"], ["600 label cells"], "oof"),
    ("zipped", lambda d: (d / "n.csv.gz").write_bytes(gzip.compress(NEW.encode())), ["--input", "{d}/n.csv.gz"], [], ["1", "2"]),
]  # fmt: skip
