"""Average the folds of a finished run over new texts: python predict.py --help

rows in chunks -> tokens (once for all folds) -> probabilities of each fold -> their mean -> thresholds -> CSV.
Memory does not grow with the input; a killed call goes on at the last whole chunk. From Python: `predict_emotions`.
"""

from config import PredictConfig, check_flags, exit_codes, parse

if __name__ == "__main__":
    check_flags(PredictConfig)

import contextlib
import dataclasses
import gzip
import itertools
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import metrics
from config import UserError, warn
from data import Collator, check_file, csv_text, normalise, read_chunks, text_hashes, tokenize
from model import EmotionClassifier, inspect_encoder, predict_logits, resolve_device, sigmoid
from run import Run, Signals, commit, damage, file_sha256, json_sha256, locked, read_env, read_json, read_npy, write_json, writing  # fmt: skip

CHUNK = 10_000  # rows read, tokenised, predicted and appended at a time


class Ensemble:
    """The fold models of a finished run. With `keep` they stay loaded, as far as half of the free memory goes."""

    def __init__(self, folder: str | None, device: str = "auto", precision: str = "auto"):
        """Check every file of every fold. UserError that names what is missing, damaged or of another run."""
        if not folder:
            finished = sorted(Path("runs").glob("*/DONE.json"), key=lambda p: p.stat().st_mtime_ns)
            if not finished:
                raise UserError("no finished run in runs/ - train one first (python train.py), or name its folder with --run")
            folder = finished[-1].parent
            print(f"run {folder} (finished last of {len(finished)})")
        path = Path(folder)
        if not os.path.isdir(path):
            raise UserError(f"--run {path}: no such run folder - give one that train.py made")
        env = read_env(path)
        self.run = run = Run(path, env["same"]["settings"]["folds"], env["key"])
        unfinished = ", ".join(f"fold {k}" for k in range(run.folds) if not run.done(k))
        if unfinished or not (path / "DONE.json").exists():
            what = unfinished or "DONE.json"
            raise UserError(f"{path}: {what} is missing - run the same train.py command again; it goes on")
        for folder in (path, *map(run.fold, range(run.folds))):
            if wrong := damage(folder, run.key):
                raise UserError(f"{wrong} - run the same train.py command again; it redoes what is damaged")
        self.settings = read_json(path / "config.json")
        self.labels = self.settings["labels"]
        self.tokenizer = inspect_encoder(str(run.fold(0))).tokenizer
        self.device, self.precision = resolve_device(device, precision)
        self.models, self.keep = {}, False

    def model(self, k: int) -> EmotionClassifier:
        if k not in self.models:
            size = (self.run.fold(k) / "model.safetensors").stat().st_size
            free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
            if self.device == "cuda":
                free = torch.cuda.mem_get_info()[0]
            if not self.keep or size > 0.5 * free:
                self.models.clear()
            model = EmotionClassifier.load(self.run.fold(k), len(self.labels), self.settings["pooling"])
            self.models[k] = model.to(self.device)
        return self.models[k]

    def probabilities(self, texts: list[str], check=lambda: None, say: bool = False) -> np.ndarray:
        """float32 (N, C): the mean of the folds' probabilities."""
        tokens = tokenize(self.tokenizer, texts, self.settings["max_length"])
        collate = Collator(self.tokenizer.pad_token_id, max_length=self.settings["max_length"])
        total = np.zeros((len(texts), len(self.labels)), dtype=np.float64)
        for k in range(self.run.folds):
            if say:
                print(f"Predicting fold {k} ...", flush=True)
            total += sigmoid(predict_logits(self.model(k), tokens, collate, self.device, self.precision, check))
        return (total / self.run.folds).astype(np.float32)


def read_thresholds(given: str | None, run: Run, labels: list[str]) -> np.ndarray:
    """float32 (C,) from a number, a path as given or inside the run; None: the run's own th.npy."""
    with contextlib.suppress(TypeError, ValueError):  # None, or a path
        number = float(given)
        if not 0 <= number <= 1:
            raise UserError(f"--thresholds {given}: a threshold lies between 0 and 1")
        return np.full(len(labels), number, dtype=np.float32)
    places = [p for p in (Path(given), run.path / given) if os.path.exists(p)] if given else [run.path / "th.npy"]
    if not places:
        mend = "train.py writes th.npy; or give a number such as 0.5"
        raise UserError(f"--thresholds {given}: no such file, nor in {run.path} - {mend}")
    if len(places) == 2 and all(map(os.path.isfile, places)) and len(set(map(file_sha256, places))) == 2:
        both = " and ".join(map(str, places))
        raise UserError(f"--thresholds {given}: {both} differ - give the whole path of the one you mean")
    path = check_file(places[0], "thresholds: a th.npy that train.py wrote, or a number such as 0.5")
    th = read_npy(path, "f", "thresholds")
    if th.shape != (len(labels),):
        raise UserError(f"{path}: shape {th.shape}, but the run has {len(labels)} labels - use the run's own th.npy")
    for name, value in zip(labels, th, strict=True):
        if not 0 <= value <= 1:  # nan as well
            raise UserError(f"{path}: the threshold of {name} is {value} - it must lie between 0 and 1")
    beside = path.with_suffix(".json")
    if beside.is_file():
        origin = read_json(beside)
        if origin.get("labels") != labels:
            theirs = f"its labels are {origin.get('labels')}, the run's are {labels}"
            raise UserError(f"{path}: {theirs} - use the run's own th.npy")
        if origin.get("run") != run.key:
            warn(f"{path}: these thresholds were chosen for another run")
    return th.astype(np.float32)


def predict_emotions(
    texts: list[str], run: str | None = None, thresholds: str | None = None, device: str = "auto", precision: str = "auto"
) -> list[dict]:
    """For each text {"text", "probabilities": {label: p}, "emotions": [detected labels]}; arguments as the flags."""
    ensemble = Ensemble(run, device, precision)
    names, th = ensemble.labels, read_thresholds(thresholds, ensemble.run, ensemble.labels)
    rows = []
    for text, p in zip(texts, ensemble.probabilities(list(texts)), strict=True):
        found = [name for name, yes in zip(names, metrics.detect(p, th), strict=True) if yes]
        rows.append({"text": text, "probabilities": dict(zip(names, p.tolist(), strict=True)), "emotions": found})
    return rows


@exit_codes
def main(argv: list[str] | None = None) -> int:
    config = parse(PredictConfig, argv)
    with Signals() as signals:
        if config.text is not None:
            for r in predict_emotions(config.text, config.run, config.thresholds, config.device, config.precision):
                print(f"Text: {r['text']}")
                for name, p in r["probabilities"].items():
                    print(f"  {name:<12} {p:.4f}")
                print(f"Detected emotions: {', '.join(r['emotions']) or 'None'}")
        else:
            predict_file(config, signals)
    return 0


def check_outputs(config: PredictConfig) -> list[Path]:
    """The files to write, in order: submission and, if asked for, probabilities. UserError for unusable paths."""
    paths = [Path(os.path.realpath(p)) for p in (config.output, config.probabilities) if p]
    files = [p.with_name(p.name + end) for end in ("", ".part") for p in paths]
    files.append(paths[0].with_name(paths[0].name + ".part.json"))
    run = Path(os.path.realpath(config.run or "runs"))
    read = [p for p in (config.input, config.thresholds) if p and os.path.exists(p)]
    for path in files:
        if files.count(path) > 1 or os.path.exists(path) and any(os.path.samefile(path, p) for p in read):
            raise UserError(f"{path}: input, --thresholds, --output and --probabilities must be different files")
        if run in path.parents and (path.name == "oof.csv" or path in paths and not path.name.endswith((".csv", ".csv.gz"))):
            raise UserError(f"{path}: lies in the run - name a new .csv, or another folder")
        if len(os.fsencode(path.name)) > 220:  # temporary names are longer
            raise UserError(f"{path}: File name too long - choose a shorter one")
        if os.path.lexists(path) and not os.path.isfile(path):
            raise UserError(f"{path}: {'is a folder' if path.is_dir() else 'not a regular file'} - name a file to write to")
        if not os.path.isdir(path.parent):
            raise UserError(f"{path.parent}: no such folder - make it first")
        if not os.access(path.parent, os.W_OK):
            raise UserError(f"{path.parent}: not writable - choose another folder")
    return paths


def predict_file(config: PredictConfig, signals: Signals) -> None:
    """Read twice: once to check everything and count, once to predict, chunk by chunk."""
    paths = check_outputs(config)
    check_file(config.input, "--input")
    ensemble = Ensemble(config.run, config.device, config.precision)
    run, labels = ensemble.run, ensemble.labels
    config = dataclasses.replace(config, text_column=config.text_column or ensemble.settings["text_column"])
    th = read_thresholds(config.thresholds, run, labels)
    n, scored = survey(config, run, labels)
    ensemble.keep = n > CHUNK
    free, need = shutil.disk_usage(paths[0].parent).free, n * 16 * (1 + len(labels)) * len(paths)
    if free < need:
        raise UserError(f"{paths[0].parent}: {free / 1e9:.2f} GB free, about {need / 1e9:.2f} GB needed - make room")
    key = [run.key, file_sha256(config.input), th.tolist(), ensemble.precision, ensemble.device, config.text_column]
    work = Work(paths, json_sha256([*key, CHUNK, list(map(str, paths))]), len(labels))
    begun, rows = work.chunks, min(work.chunks * CHUNK, n)
    if rows:
        print(f"goes on after row {rows} of {n}")
    with tqdm(total=n, initial=rows, unit="row", disable=None) as bar:
        chunks = read_chunks(config.input, config.text_column, labels, required=False, rows=CHUNK, quiet=True)
        for number, table in itertools.islice(enumerate(chunks), begun, None):
            p = np.zeros((0, len(labels)))
            if len(table):
                p = ensemble.probabilities(table.texts, signals.check, number == begun)
            found = metrics.detect(p, th)
            if scored:
                work.counts += metrics.confusion(table.labels, found)
                work.exact += int((table.labels == found).all(1).sum())
            work.append(table.ids, labels, found, p)
            bar.update(len(table))
    work.finish()
    for path in paths:
        print(f"wrote {path} ({n} rows)")
    with (gzip.open if paths[0].suffix == ".gz" else open)(paths[0], "rt", encoding="utf-8", newline="") as f:
        print("".join(itertools.islice(f, 6)).rstrip("\n"))
    if scored and n:
        support = work.counts[0] + work.counts[2]
        columns = zip(*metrics.precision_recall_f1(work.counts), th, support, strict=True)
        keys = ("precision", "recall", "f1", "threshold", "support")
        print(metrics.label_table({k: dict(zip(keys, c, strict=True)) for k, c in zip(labels, columns, strict=True)}))
        s = metrics.scores_from_counts(work.counts, work.exact / n)
        print(" | ".join(f"{name} {s[name]:.4f}" for name in ("macro_f1", "micro_f1", "exact_match")))


def survey(config: PredictConfig, run: Run, labels: list[str]) -> tuple[int, bool]:
    """Rows, and whether all label columns are there and sound; warns of what looks wrong."""
    seen = read_npy(run.path / "texts.npy", "u", "text hashes")
    counts, scored = np.zeros(4, dtype=np.int64), True
    for table in read_chunks(config.input, config.text_column, labels, required=False, rows=CHUNK):
        scored = scored and table.labels is not None
        blank, nul = sum(not normalise(t) for t in table.texts), sum("\0" in t for t in table.texts)
        counts += [len(table), blank, nul, np.isin(text_hashes(table.texts), seen).sum()]
    n, *odd = counts.tolist()
    what = (
        "texts are blank; they are kept",
        "texts hold NUL characters; the tokenizer drops them",
        "texts are among those this run was trained on; scores on them are too good",
    )
    for count, words in zip(odd, what, strict=True):
        if count:
            warn(f"{config.input}: {count} of {n} {words}")
    if not n:
        warn(f"{config.input}: no rows; the output is a header alone")
    return n, scored


class Work:
    """Files that grow as <name>.part, with a note of how far they are whole; renamed when finished."""

    def __init__(self, paths: list[Path], key: str, labels: int):
        self.paths, self.key = paths, key
        self.parts = [p.with_name(p.name + ".part") for p in paths]
        self.note = paths[0].with_name(paths[0].name + ".part.json")
        self.lock = locked(self.parts[0])  # until this object is gone
        if not self.lock.__enter__():
            raise UserError(f"{paths[0]}: another predict.py is writing it - wait for it, or choose another --output")
        progress = [0, 0, np.zeros((4, labels), dtype=np.int64).tolist(), [0] * len(paths)]
        with contextlib.suppress(UserError):  # no note, or a damaged one: from the first row
            old = read_json(self.note)
            if old.get("sha256") == json_sha256([key, old.get("progress")]):
                sizes = zip(self.parts, old["progress"][-1], strict=True)
                if all(part.is_file() and part.stat().st_size >= size for part, size in sizes):
                    progress = old["progress"]
        self.chunks, self.exact, counts, sizes = progress
        self.counts = np.array(counts)
        for part, size in zip(self.parts, sizes, strict=True):
            with writing(part), open(part, "ab") as f:
                f.truncate(size)

    def append(self, ids: list[str], labels: list[str], *values: np.ndarray) -> None:
        """Add one chunk's values to each file, on disk before the note says so."""
        for path, part, v in zip(self.paths, self.parts, values, strict=False):
            raw = to_csv(ids, v, labels, self.chunks == 0).encode()
            with writing(path), open(part, "ab") as f:
                f.write(gzip.compress(raw, mtime=0) if path.suffix == ".gz" else raw)
                f.flush()
                os.fsync(f.fileno())
        self.chunks += 1
        progress = [self.chunks, self.exact, self.counts.tolist(), [p.stat().st_size for p in self.parts]]
        write_json(self.note, {"progress": progress, "sha256": json_sha256([self.key, progress])})

    def finish(self) -> None:
        for part, path in zip(self.parts, self.paths, strict=True):
            with writing(path):
                commit(part, path)
        self.note.unlink()


def to_csv(ids: list[str], values: np.ndarray, labels: list[str], header: bool) -> str:
    """Rows of id and values (0/1, or probabilities to 9 digits) as CSV text."""
    cell = int if values.dtype == bool else "{:.9g}".format
    rows = ([i, *map(cell, row)] for i, row in zip(ids, values.tolist(), strict=True))
    return csv_text([["id", *labels], *rows] if header else rows)


if __name__ == "__main__":
    sys.exit(main())
