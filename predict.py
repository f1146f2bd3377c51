"""Average the folds of a finished run over new texts: python predict.py --help

rows in chunks -> tokens (once for all folds) -> probabilities of each fold -> their mean -> thresholds -> CSV.
Memory does not grow with the input; a killed call goes on at the last whole chunk. From Python: `predict_emotions`.
"""

from config import PredictConfig, check_flags, exit_codes, parse

if __name__ == "__main__":
    check_flags(PredictConfig)

import csv
import gzip
import io
import os
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import metrics
from config import UserError, warn
from data import Collator, check_file, normalise, read_chunks, text_hashes, tokenize
from model import EmotionClassifier, inspect_encoder, predict_logits, resolve_device, sigmoid
from run import Run, Signals, commit, damage, file_sha256, json_sha256, locked, read_env, read_json, read_npy, write_json, writing

CHUNK = 10_000  # rows read, tokenised, predicted and appended at a time


@dataclass
class Ensemble:
    """The fold models of a finished run. With `keep` they stay loaded, as far as half of the free memory goes."""

    run: Run
    labels: list[str]
    settings: dict
    device: str
    precision: str
    tokenizer: object
    models: dict = field(default_factory=dict)
    keep: bool = False

    @classmethod
    def open(cls, folder: str | None, device: str = "auto", precision: str = "auto") -> "Ensemble":
        """Check every file of every fold. UserError that names what is missing, damaged or of another run."""
        path = Path(folder) if folder else newest_run()
        if not os.path.isdir(path):
            raise UserError(f"--run {path}: no such run folder - give one that train.py made")
        env = read_env(path)
        run = Run(path, env["same"]["settings"]["folds"], env["key"])
        unfinished = [f"fold {k}" for k in range(run.folds) if not run.done(k)]
        if unfinished or not (path / "DONE.json").exists():
            what = ", ".join(unfinished) or "DONE.json"
            raise UserError(f"{path}: {what} is missing - run the same train.py command again; it goes on")
        for folder in (path, *map(run.fold, range(run.folds))):
            wrong = damage(folder, run.key)
            if wrong:
                raise UserError(f"{wrong} - run the same train.py command again; it redoes what is damaged")
        settings = read_json(path / "config.json")
        tokenizer = inspect_encoder(str(run.fold(0))).tokenizer
        return cls(run, settings["labels"], settings, *resolve_device(device, precision), tokenizer)

    def model(self, k: int) -> EmotionClassifier:
        if k not in self.models:
            size = (self.run.fold(k) / "model.safetensors").stat().st_size
            free = torch.cuda.mem_get_info()[0] if self.device == "cuda" else os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # fmt: skip
            if not self.keep or size > 0.5 * free:
                self.models.clear()
            model = EmotionClassifier.load(self.run.fold(k), len(self.labels), self.settings["pooling"])
            self.models[k] = model.to(self.device)
        return self.models[k]

    def probabilities(self, texts: list[str], check=lambda: None, say=lambda text: None) -> np.ndarray:
        """float32 (N, C): the mean of the folds' probabilities."""
        tokens = tokenize(self.tokenizer, texts, self.settings["max_length"])
        collate = Collator(self.tokenizer.pad_token_id, max_length=self.settings["max_length"])
        total = np.zeros((len(texts), len(self.labels)), dtype=np.float64)
        for k in range(self.run.folds):
            say(f"Predicting fold {k} ...")
            model = self.model(k)
            total += sigmoid(predict_logits(model, tokens, collate, self.device, self.precision, check))
        return (total / self.run.folds).astype(np.float32)


def newest_run() -> Path:
    """The run in runs/ that finished last."""
    finished = sorted(Path("runs").glob("*/DONE.json"), key=lambda p: p.stat().st_mtime_ns)
    if not finished:
        raise UserError("no finished run in runs/ - train one first (python train.py), or name its folder with --run")
    print(f"run {finished[-1].parent} (finished last of {len(finished)})")
    return finished[-1].parent


def read_thresholds(given: str | None, run: Run, labels: list[str]) -> np.ndarray:
    """float32 (C,) from a number, a path as given or inside the run; None: the run's own th.npy."""
    try:
        number = float(given) if given is not None else None
    except ValueError:
        number = None
    if number is not None:
        if not 0 <= number <= 1:
            raise UserError(f"--thresholds {given}: a threshold lies between 0 and 1")
        return np.full(len(labels), number, dtype=np.float32)
    places = [p for p in (Path(given), run.path / given) if os.path.exists(p)] if given else [run.path / "th.npy"]
    if len(places) == 2 and all(map(os.path.isfile, places)) and file_sha256(places[0]) != file_sha256(places[1]):
        raise UserError(f"--thresholds {given}: {places[0]} and {places[1]} differ - give the whole path of the one you mean")
    if not places:
        raise UserError(f"--thresholds {given}: no such file, nor in {run.path} - train.py writes th.npy; or give a number such as 0.5")
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
            raise UserError(f"{path}: its labels are {origin.get('labels')}, the run's are {labels} - use the run's own th.npy")
        if origin.get("run") != run.key:
            warn(f"{path}: these thresholds were chosen for another run")
    return th.astype(np.float32)


def predict_emotions(texts: list[str], run: str | None = None, thresholds: str | None = None, device: str = "auto", precision: str = "auto") -> list[dict]:  # fmt: skip
    """For each text {"text", "probabilities": {label: p}, "emotions": [detected labels]}; arguments as the flags."""
    ensemble = Ensemble.open(run, device, precision)
    th = read_thresholds(thresholds, ensemble.run, ensemble.labels)
    p = ensemble.probabilities(list(texts))
    found = metrics.detect(p, th)
    return [
        {
            "text": text,
            "probabilities": dict(zip(ensemble.labels, map(float, row), strict=True)),
            "emotions": [name for name, yes in zip(ensemble.labels, hits, strict=True) if yes],
        }
        for text, row, hits in zip(texts, p, found, strict=True)
    ]


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
    files, run = [*paths, *growing(paths)], Path(os.path.realpath(config.run or "runs"))
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
    ensemble = Ensemble.open(config.run, config.device, config.precision)
    run, labels = ensemble.run, ensemble.labels
    th = read_thresholds(config.thresholds, run, labels)
    n, scored = survey(config, run, labels)
    ensemble.keep = n > CHUNK
    free, need = shutil.disk_usage(paths[0].parent).free, n * 16 * (1 + len(labels)) * len(paths)
    if free < need:
        raise UserError(f"{paths[0].parent}: {free / 1e9:.2f} GB free, about {need / 1e9:.2f} GB needed - make room")
    key = [run.key, file_sha256(config.input), th.tolist(), ensemble.precision, ensemble.device, config.text_column, list(map(str, paths))]
    work = Work(paths, json_sha256(key), len(labels))
    if work.rows:
        print(f"goes on after row {work.rows} of {n}")
    said = set()

    def say(text: str) -> None:
        if text not in said:
            said.add(text)
            print(text, flush=True)

    with tqdm(total=n, initial=work.rows, unit="row", disable=None) as bar:
        chunks = read_chunks(config.input, config.text_column, labels, required=False, rows=CHUNK, quiet=True)
        for number, table in enumerate(chunks):
            if number < work.chunks:
                continue
            p = ensemble.probabilities(table.texts, signals.check, say) if len(table) else np.zeros((0, len(labels)))
            found = metrics.detect(p, th)
            if scored:
                work.counts += metrics.confusion(table.labels, found)
                work.exact += int((table.labels == found).all(1).sum())
            work.append([to_csv(table.ids, found, labels, number == 0), to_csv(table.ids, p, labels, number == 0)], len(table))
            bar.update(len(table))
    head = work.finish()
    for path in paths:
        print(f"wrote {path} ({n} rows)")
    print(head)
    if scored and n:
        print_scores(work, th, labels, n)


def survey(config: PredictConfig, run: Run, labels: list[str]) -> tuple[int, bool]:
    """Rows, and whether all label columns are there and sound; warns of what looks wrong."""
    seen_path = run.path / "texts.npy"
    seen = read_npy(seen_path, "u", "text hashes") if seen_path.is_file() else np.zeros(0, np.uint64)
    n = blank = nul = known = 0
    scored = True
    for table in read_chunks(config.input, config.text_column, labels, required=False, rows=CHUNK):
        n += len(table)
        scored = scored and table.labels is not None
        blank += sum(not normalise(t) for t in table.texts)
        nul += sum("\0" in t for t in table.texts)
        known += int(np.isin(text_hashes(table.texts), seen).sum())
    for count, what in (
        (blank, "texts are blank; they are kept"),
        (nul, "texts hold NUL characters; the tokenizer drops them"),
        (known, "texts are among those this run was trained on; scores on them are too good"),
    ):
        if count:
            warn(f"{config.input}: {count} of {n} {what}")
    if not n:
        warn(f"{config.input}: no rows; the output is a header alone")
    return n, scored


def growing(paths: list[Path]) -> list[Path]:
    """The files beside the outputs while they grow: one part each, and the note."""
    return [p.with_name(p.name + end) for p, end in (*((p, ".part") for p in paths), (paths[0], ".part.json"))]


class Work:
    """Files that grow as <name>.part, with a note of how far they are whole; renamed when finished."""

    def __init__(self, paths: list[Path], key: str, labels: int):
        self.paths, self.key = paths, key
        *self.parts, self.note = growing(paths)
        self.lock = locked(self.parts[0])  # until this object is gone
        if not self.lock.__enter__():
            raise UserError(f"{paths[0]}: another predict.py is writing it - wait for it, or choose another --output")
        self.rows, self.chunks, self.exact, self.counts, self.head = 0, 0, 0, np.zeros((4, labels), dtype=np.int64), ""
        sizes = [0] * len(paths)
        try:
            old = read_json(self.note)
        except UserError:  # none, or damaged: from the first row
            old = {}
        if old.get("sha256") == json_sha256([key, old.get("progress")]):
            there = [p.stat().st_size if p.is_file() else -1 for p in self.parts]
            if all(a >= b for a, b in zip(there, old["progress"][-1], strict=True)):
                self.rows, self.chunks, self.exact, self.head, counts, sizes = old["progress"]
                self.counts = np.array(counts)
        for part, size in zip(self.parts, sizes, strict=True):
            with writing(part), open(part, "ab") as f:
                f.truncate(size)

    def append(self, texts: list[str], rows: int) -> None:
        """Add one chunk's text to each file, on disk before the note says so."""
        self.head = self.head or "".join(texts[0].splitlines(keepends=True)[:6]).rstrip("\n")
        for path, part, text in zip(self.paths, self.parts, texts, strict=False):
            raw = text.encode()
            with writing(path), open(part, "ab") as f:
                f.write(gzip.compress(raw, mtime=0) if path.suffix == ".gz" else raw)
                f.flush()
                os.fsync(f.fileno())
        self.rows, self.chunks = self.rows + rows, self.chunks + 1
        sizes = [p.stat().st_size for p in self.parts]
        progress = [self.rows, self.chunks, self.exact, self.head, self.counts.tolist(), sizes]
        write_json(self.note, {"progress": progress, "sha256": json_sha256([self.key, progress])})

    def finish(self) -> str:
        for part, path in zip(self.parts, self.paths, strict=True):
            with writing(path):
                commit(part, path)
        self.note.unlink()
        return self.head


def to_csv(ids: list[str], values: np.ndarray, labels: list[str], header: bool) -> str:
    """Rows of id and values (0/1, or probabilities to 9 digits) as CSV text."""
    text = io.StringIO()
    quoting = csv.QUOTE_NONNUMERIC if any("\r" in x for x in (*ids, *labels)) else csv.QUOTE_MINIMAL  # leaves a \r bare
    out = csv.writer(text, lineterminator="\n", quoting=quoting)
    if header:
        out.writerow(["id", *labels])
    if values.dtype == bool:
        out.writerows([i, *row] for i, row in zip(ids, values.astype(int).tolist(), strict=True))
    else:
        out.writerows([i, *(f"{v:.9g}" for v in row)] for i, row in zip(ids, values.tolist(), strict=True))
    return text.getvalue()


def print_scores(work: Work, th: np.ndarray, labels: list[str], n: int) -> None:
    """The score table of an input that has the label columns."""
    tp, fp, fn, tn = work.counts
    columns = zip(labels, *metrics.precision_recall_f1(work.counts), th, tp + fn, strict=True)
    print(metrics.label_table({a: dict(precision=b, recall=c, f1=d, threshold=t, support=s) for a, b, c, d, t, s in columns}))
    s = metrics.scores_from_counts(work.counts, work.exact / n)
    print(" | ".join(f"{name} {s[name]:.4f}" for name in ("macro_f1", "micro_f1", "exact_match")))


if __name__ == "__main__":
    sys.exit(main())
