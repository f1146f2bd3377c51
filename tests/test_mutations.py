"""Random damage to files and flags: 0 or 2, one `error:` line, nothing lost.

Only the checking of input runs here: no weights are read, nothing is trained, probabilities come
from the text lengths. The same examples every time; each test prints how many there were and how
they ended.
python -m pytest tests/test_mutations.py -s
"""

import contextlib
import csv
import dataclasses
import io
import json
import os
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from cases.mutations import FLAG_WORDS, PIECES
from conftest import LABELS, make_rows
from hypothesis import given, settings
from hypothesis import strategies as st

import config
import predict
import train
from support import encoders
from support.cli import flag
from support.oddrows import TRUTH
from support.run import open_run


@st.composite
def damaged(draw, seeds: list[bytes]) -> bytes:
    """One of `seeds` after up to four changes: a piece put in or over, bytes taken out, doubled or
    cut off."""
    raw = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(0, 4))):
        i = draw(st.integers(0, len(raw)))
        j = min(len(raw), i + draw(st.sampled_from([0, 1, 1, 2, 7, 40])))
        new = draw(
            st.one_of(
                st.sampled_from(PIECES), st.just(b""), st.just(raw[i:j] * 2), st.binary(max_size=3)
            )
        )
        raw = raw[:i] + new + (b"" if draw(st.integers(0, 15)) == 7 else raw[j:])
    return raw


def sheets(header: str, rows: list[list[str]]) -> list[bytes]:
    """The same table with other line ends, quotes and marks."""
    plain, quoted = io.StringIO(), io.StringIO()
    csv.writer(plain, lineterminator="\n").writerows([header.split(","), *rows])
    csv.writer(quoted, lineterminator="\r\n", quoting=csv.QUOTE_ALL).writerows(
        [header.split(","), *rows]
    )
    odd = plain.getvalue().replace("so", '"so, ""so""\nso"') + "\n\n"
    return [
        plain.getvalue().encode(),
        quoted.getvalue().encode(),
        b"\xef\xbb\xbf" + odd.encode(),
        plain.getvalue().replace("\n", "\r").encode(),
    ]


def as_python_reads(raw: bytes, name: str = "id") -> list[str]:
    """The cells of a column that should come out; row numbers without an id column."""
    utf_16 = raw.startswith((b"\xff\xfe", b"\xfe\xff"))
    text = raw.decode("utf-16" if utf_16 else "utf-8-sig")
    for sign in ",;\t":
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=sign))
        if len(rows[0]) > 1:
            break
    header = [h.strip("\ufeff \t") for h in rows[0]]
    rows = [r for r in rows[1:] if r and (len(header) == 1 or any(map(str.strip, r)))]
    return (
        [r[header.index(name)] for r in rows]
        if name in header or name != "id"
        else [str(i) for i in range(len(rows))]
    )


def listing(d: Path) -> dict:
    return {str(p): p.is_file() and (p.stat().st_size, p.stat().st_mtime_ns) for p in d.rglob("*")}


def call(main, argv: list[str], d: Path, tried: Counter) -> int:
    """The exit code, after what holds for any input: 0 or 2; errors are one line and leave all
    files alone."""
    before, err = listing(d), io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = main(argv)
        except SystemExit as e:  # --help
            assert e.code == 0
            code = 0
    errors = [x for x in err.getvalue().split("\n") if x.startswith("error: ")]
    assert code in (0, 2) and len(errors) == (code == 2) and "Traceback" not in err.getvalue(), (
        err.getvalue()
    )
    assert code == 0 or listing(d) == before
    tried[code] += 1
    return code


def explore(examples: int, **strategies):
    """Run a test function on that many examples, the same each time; it counts them in `tried`."""

    def decorate(test):
        tried = Counter()
        settings(max_examples=examples, derandomize=True, deadline=None, database=None)(
            given(**strategies)(lambda **kw: test(tried, **kw))
        )()
        print(
            f"\n{test.__name__}: {tried.total()} examples, {tried[0]} accepted, {tried[2]} refused"
        )
        assert tried.total() >= examples and min(tried[0], tried[2]) > 1
        return tried

    return decorate


@pytest.fixture(scope="module")
def place(tmp_path_factory, bert, finished):
    """A working folder with a run in which only the checks are real; `jobs` holds what training
    would have begun with."""
    d, jobs = tmp_path_factory.mktemp("mutations"), []
    shutil.copytree(finished, d / "run")
    info, tokenizer = (
        encoders.inspect_encoder(str(bert)),
        encoders.inspect_encoder(str(finished / "fold_0")).tokenizer,
    )
    real, weights = encoders.inspect_encoder, encoders.load_encoder(str(bert))

    def inspect_encoder(name, as_saved):
        return info if name == str(bert) else real(name, as_saved)

    @contextlib.contextmanager
    def start_run(path, config, table, dataset, encoder_info, session):
        if config.out:  # the real folder, and away with it: each example finds the same files
            identity = {f"settings.{name}": value for name, value in config.identity.items()}
            open_run(path, config, identity, "train.py", config.restart)
            shutil.rmtree(path)
        yield SimpleNamespace(
            folds_to_train=lambda only: [], wants_summary=lambda: True, exit_code=0
        )

    def summarise(config, table, run):
        jobs.append(SimpleNamespace(config=config, table=table))

    def predict_test(self, inputs, check=None, print_folds=None, extra=None):
        return np.array(
            [[len(t) % 7 / 7] * len(self.names) for t in inputs], dtype=np.float32
        ).reshape(len(inputs), -1)

    with pytest.MonkeyPatch.context() as m:
        m.chdir(d)
        m.setattr(train, "inspect_encoder", inspect_encoder)
        m.setattr(encoders, "load_encoder", lambda path: weights)
        m.setattr(train, "start_run", start_run)
        m.setattr(train, "summarise", summarise)
        m.setattr(predict, "inspect_encoder", lambda name: SimpleNamespace(tokenizer=tokenizer))
        m.setattr(predict.Ensemble, "predict_test", predict_test)
        m.setattr(os, "fsync", lambda f: None)
        yield SimpleNamespace(d=d, jobs=jobs, bert=str(bert))


def test_training_files(place):
    rows = [[*r[:2], r[4], r[2]] for r in make_rows(12)]
    argv = ["--model", place.bert, "--train", "t.csv", "--labels", "joy", "anger", "--folds", "2"]

    @explore(110, raw=damaged(sheets("id,text,joy,anger", rows)))
    def training_files(tried, raw):
        Path("t.csv").write_bytes(raw)
        place.jobs.clear()
        if call(train.main, argv, place.d, tried) == 0:
            table = place.jobs[0].table
            assert table.ids == as_python_reads(raw)
            assert len(table.texts) == len(table.y) == len(table.fold) == len(table.ids)
            assert np.isin(table.y, (0, 1)).all() and table.y.shape[1] == 2
            assert table.texts == as_python_reads(raw, table.text_column)
            cells = [as_python_reads(raw, name) for name in ("joy", "anger")]
            given = [[TRUTH[c.strip().lower()] for c in row] for row in zip(*cells, strict=True)]
            assert table.y.tolist() == given


def test_files_to_predict(place):
    rows = [r[:2] for r in make_rows(7, seed=5)]
    labelled = [r[:7] for r in make_rows(7, seed=6)]
    seeds = [
        *sheets("id,text", rows),
        *sheets("id,text," + ",".join(LABELS), labelled),
        *sheets("review,n", [r[::-1] for r in rows]),
    ]

    @explore(110, raw=damaged(seeds))
    def files_to_predict(tried, raw):
        Path("n.csv").write_bytes(raw)
        if (
            call(
                predict.main,
                [
                    "--run",
                    "run",
                    "--input",
                    "n.csv",
                    "--output",
                    "s.csv",
                    "--probabilities",
                    "p.csv",
                ],
                place.d,
                tried,
            )
            == 0
        ):
            for name in ("s.csv", "p.csv"):
                out = list(csv.reader(io.StringIO(Path(name).read_bytes().decode(), newline="")))
                first = out[0].index(LABELS[0])  # the text stands before, where there is no id
                assert out[0][first:] == LABELS and out[0][:first] in (["id"], ["id", "text"])
                assert [r[0] for r in out[1:]] == as_python_reads(raw)
                assert {len(r) for r in out} == {len(out[0])}
                assert all(0 <= float(v) <= 1 for r in out[1:] for v in r[first:])
            assert not list(place.d.glob("*.part*"))


def test_zipped_files(place):
    import gzip

    raw = b"id,text\n" + b"".join(b"%d,so \xc3\xa9 %d\n" % (i, i * i) for i in range(900))
    seeds = [gzip.compress(raw, 1, mtime=0), gzip.compress(raw.replace(b"\xc3", b""), 1, mtime=0)]

    @explore(50, data=damaged(seeds))
    def zipped_files(tried, data):
        Path("n.csv.gz").write_bytes(data)
        call(
            predict.main,
            ["--run", "run", "--input", "n.csv.gz", "--output", "s.csv"],
            place.d,
            tried,
        )


def test_threshold_files(place):
    f = io.BytesIO()
    np.save(f, np.linspace(0.1, 0.9, 5, dtype=np.float32))
    seeds = [f.getvalue(), (place.d / "run/th.npy").read_bytes()]

    @explore(80, raw=damaged(seeds))
    def threshold_files(tried, raw):
        Path("t.npy").write_bytes(raw)
        Path("n.csv").write_text("id,text\n1,a\n")
        call(
            predict.main,
            ["--run", "run", "--input", "n.csv", "--output", "s.csv", "--thresholds", "t.npy"],
            place.d,
            tried,
        )


NUMBERS = st.one_of(
    st.integers(-3, 300),
    st.integers(),
    st.floats(),
    st.sampled_from([0.1, 0.5, 1e-5, 1e308, 10**30]),
)
WORDS = st.one_of(
    st.sampled_from(FLAG_WORDS),
    st.text(st.characters(exclude_characters="/"), max_size=8),
    NUMBERS.map(str),
)


def flags_of(kind: type):
    """A few flags of `kind` with a word or two each; what is written to stays within the folder."""

    def joined(name: str, words: list[str]) -> list[str]:
        if name in ("out", "output", "probabilities"):
            words = ["./" + w.lstrip("/") for w in words[:1]]
        return [flag(name), *words]

    names = st.sampled_from(
        [f.name for f in dataclasses.fields(kind) if f.name != "debug"]
        + ["config", "help", "lables"]
    )
    pair = st.builds(
        joined,
        names,
        st.lists(WORDS, min_size=1, max_size=2).map(lambda w: w[: 1 + (len(w[0]) > 7)]),
    )
    return st.lists(pair, min_size=1, max_size=2).map(lambda pairs: [x for p in pairs for x in p])


def sound_files() -> None:
    rows = "".join(f"{r[0]},{r[1]},{r[4]},{r[2]}\n" for r in make_rows(12))
    Path("t.csv").write_text("id,text,joy,anger\n" + rows)
    Path("n.csv").write_text("id,text\n1,a\n2,b\n")


def test_flags_of_training(place):
    @explore(80, more=flags_of(config.Config))
    def flags_of_training(tried, more):
        sound_files()
        argv = [
            "--model",
            place.bert,
            "--train",
            "t.csv",
            "--labels",
            "joy",
            "anger",
            "--folds",
            "2",
            *more,
        ]
        call(train.main, argv, place.d, tried)


def test_flags_of_prediction(place):
    @explore(80, more=flags_of(config.PredictConfig))
    def flags_of_prediction(tried, more):
        sound_files()
        kept = set(place.d.iterdir())
        call(
            predict.main,
            ["--run", "run", "--input", "n.csv", "--output", "s.csv", *more],
            place.d,
            tried,
        )
        for path in set(place.d.iterdir()) - kept:
            path.unlink()


def test_settings_of_config_files(place):
    names = [
        f.name
        for f in dataclasses.fields(config.Config)
        if f.name not in ("debug", "out", "train", "model", "labels")
    ]
    values = st.recursive(
        st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=5)),
        lambda x: st.one_of(
            st.lists(x, max_size=2), st.dictionaries(st.text(max_size=3), x, max_size=2)
        ),
    )
    written = json.dumps(
        {
            **json.loads((place.d / "run/config.json").read_text()),
            "labels": ["joy"],
            "train": "t.csv",
            "model": place.bert,
        }
    )
    files = st.one_of(
        st.dictionaries(
            st.sampled_from([*names, "labels", "text", "\ud800"]), values, min_size=1, max_size=2
        ).map(lambda v: json.dumps(v).encode()),
        damaged([written.encode()]),
    )

    @explore(80, raw=files)
    def settings_of_config_files(tried, raw):
        sound_files()
        Path("c.json").write_bytes(raw)
        call(
            train.main,
            ["--model", place.bert, "--train", "t.csv", "--config", "c.json"],
            place.d,
            tried,
        )


def test_files_of_a_run(place):
    """Whatever stands in a run's small files, prediction ends well or says which one it is."""
    names = ["config.json", "env.json", "th.npy", "th.json", "texts.npy", "fold_1/DONE.json"]
    sound = {n: (place.d / "run" / n).read_bytes() for n in names}

    @explore(80, name=st.sampled_from(names), data=st.data())
    def files_of_a_run(tried, name, data):
        Path("n.csv").write_text("id,text\n1,a\n")
        Path("run", name).write_bytes(
            data.draw(damaged([sound[name], sound[name], b"{}", b"[]", b"null"]))
        )
        try:
            call(
                predict.main,
                ["--run", "run", "--input", "n.csv", "--output", "s.csv"],
                place.d,
                tried,
            )
        finally:
            Path("run", name).write_bytes(sound[name])
