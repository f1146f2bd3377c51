"""Average the folds of a finished run over new texts: python predict.py --help

Rows in chunks -> tokens, once for all folds -> mean of the folds' probabilities -> thresholds -> CSV. Memory
does not grow with the input; a killed call goes on at the last whole chunk. From Python: `predict_emotions`.
"""

from config import PredictConfig, Signals, UserError, check_flags, exit_codes, flag, parse, warn

if __name__ == "__main__":
    check_flags(PredictConfig)

import contextlib
import gzip
import hashlib
import itertools
import os
import shutil
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import metrics
from data import Collator, check_file, csv_text, is_blank, read_chunks, read_npy, text_hashes, tokenize
from model import EmotionClassifier, inspect_encoder, length_multiple, predict_logits, resolve_device, sigmoid
from run import Run, commit, damage, file_sha256, json_sha256, locked, read_json, sweep, write_json, writing

CHUNK = 10_000  # rows read, tokenised, predicted and appended at a time


class Ensemble:
    """The fold models of a finished run. With `keep` all stay loaded, else one at a time."""

    def __init__(self, folder: str | None, device: str = "auto", precision: str = "auto"):
        """Check every file of every fold. UserError that names what is missing, damaged or of another run."""
        if not folder:
            finished = [p for p in Path("runs").glob("*/DONE.json") if not p.parent.match("*.old[0-9]*")]
            if not finished:
                mend = "train one first (python train.py), or name its folder with --run"
                raise UserError(f"no finished run in runs/ - {mend}")
            folder = max(finished, key=lambda p: p.stat().st_mtime_ns).parent
            print(f"run {folder} (finished last of {len(finished)})")
        path = Path(folder)
        if not os.path.isdir(path):
            raise UserError(f"--run {path}: no such run folder - give one that train.py made")
        self.run = run = Run(path)
        again = "run the same train.py command again; it"
        missing = ", ".join(f"fold {k}" for k in range(run.folds) if not run.done(k))
        if missing or not (path / "DONE.json").exists():
            raise UserError(f"{path}: {missing or 'DONE.json'} is missing - {again} goes on")
        for folder in (path, *map(run.fold, range(run.folds))):
            if wrong := damage(folder, run.key):
                raise UserError(f"{wrong} - {again} redoes what is damaged")
        self.settings, table = read_json(path / "config.json"), read_json(path / "metrics.json")["per_label"]
        self.labels = self.settings["labels"]
        self.slope, self.shift = np.array([table[name]["platt"] for name in self.labels]).T  # (C,) each
        self.tokenizer = inspect_encoder(str(run.fold(0))).tokenizer
        self.device, self.precision = resolve_device(device, precision)
        self.models, self.keep = {}, False

    def model(self, k: int) -> EmotionClassifier:
        if k not in self.models:
            if not self.keep:
                self.models.clear()
            model = EmotionClassifier.load(self.run.fold(k), len(self.labels), self.settings["pooling"])
            self.models[k] = model.to(self.device)
        return self.models[k]

    def fits(self) -> bool:
        """Whether all folds take less than half of the memory."""
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if self.device == "cuda":
            memory = torch.cuda.mem_get_info()[0]
        return 2 * sum(p.stat().st_size for p in self.run.path.glob("fold_*/model.safetensors")) < memory

    def probabilities(self, texts: list[str], check=lambda: None, say: bool = False) -> np.ndarray:
        """float32 (N, C): the mean of the folds' probabilities."""
        tokens = tokenize(self.tokenizer, texts, self.settings["max_length"])
        multiple = length_multiple(self.device, self.precision)
        collate = Collator(self.tokenizer.pad_token_id, self.settings["max_length"], multiple)
        total = np.zeros((len(texts), len(self.labels)), dtype=np.float64)
        for k in range(self.run.folds):
            if say:
                print(f"Predicting fold {k} ...", flush=True)
            logits = predict_logits(self.model(k), tokens, collate, self.device, self.precision, check)
            if not np.isfinite(logits).all():
                raise UserError(f"fold {k}: logits are not finite - use --precision fp32", 1)
            total += sigmoid(logits)
        return (total / self.run.folds).astype(np.float32)

    def calibrated(self, p: np.ndarray) -> np.ndarray:
        """Probabilities (N, C) as often right as they say on out-of-fold rows; their order stays."""
        return 1 / (1 + np.exp(-(self.slope * metrics.logit(p) + self.shift)))  # float32 would tie at 1


def read_thresholds(given: str | None, run: Run, labels: list[str]) -> np.ndarray:
    """float32 (C,) from a number, a path as given or inside the run; None: the run's own th.npy."""
    with contextlib.suppress(TypeError, ValueError):  # None, or a path
        if not 0 <= (number := float(given)) <= 1:
            raise UserError(f"--thresholds {given}: a threshold lies between 0 and 1")
        return np.full(len(labels), number, dtype=np.float32)
    here, inside = Path(given or run.path / "th.npy"), run.path / (given or "th.npy")
    what = "--thresholds: a th.npy that train.py wrote, here or in the run, or a number such as 0.5"
    path = check_file(here if os.path.exists(here) else inside, what)
    if path == here and inside.is_file() and file_sha256(inside) != file_sha256(here):
        both = f"{here} and {inside} differ"
        raise UserError(f"--thresholds {given}: {both} - give the whole path of the one you mean")
    th, mend = read_npy(path, "f", "thresholds"), "use the run's own th.npy"
    if th.shape != (len(labels),):
        raise UserError(f"{path}: shape {th.shape}, but the run has {len(labels)} labels - {mend}")
    for name, value in zip(labels, th, strict=True):
        if not 0 <= value <= 1:  # nan as well
            raise UserError(f"{path}: the threshold of {name} is {value} - it must lie between 0 and 1")
    beside = path.resolve().with_suffix(".json")
    origin = read_json(beside) if beside.is_file() else {}
    if (theirs := origin.get("labels", labels)) != labels:
        raise UserError(f"{path}: its labels are {theirs}, the run's are {labels} - {mend}")
    if not origin and not np.array_equal(th, read_npy(run.path / "th.npy", "f", "thresholds")):
        warn(f"{path}: no {beside.name} says whose thresholds; taken in the order {', '.join(labels)}")
    elif origin and origin.get("run") != run.key:
        warn(f"{path}: these thresholds were chosen for another run")
    return th.astype(np.float32)


def predict_emotions(
    texts: list[str], run=None, thresholds=None, device="auto", precision="auto", calibrate=False
) -> list[dict]:
    """{"text", "probabilities": {label: p}, "emotions": [detected]} of each text; arguments as the flags."""
    ensemble = Ensemble(run, device, precision)
    names, th = ensemble.labels, read_thresholds(thresholds, ensemble.run, ensemble.labels)
    texts = [texts] if isinstance(texts, str) else list(texts)
    p, rows = ensemble.probabilities(texts), []
    said = ensemble.calibrated(p) if calibrate else p
    for text, verdicts, values in zip(texts, metrics.detect(p, th), said.tolist(), strict=True):
        found = [name for name, yes in zip(names, verdicts, strict=True) if yes]
        rows.append({"text": text, "probabilities": dict(zip(names, values, strict=True)), "emotions": found})
    return rows


@exit_codes
def main(argv: list[str] | None = None) -> int:
    config = parse(PredictConfig, argv)
    with Signals() as signals:
        if config.text is not None:
            for name in ("input", "output", "probabilities"):
                if getattr(config, name) != getattr(PredictConfig(), name):
                    raise UserError(f"{flag(name)}: --text reads and writes no file - leave one of them out")
            how = (config.run, config.thresholds, config.device, config.precision, config.calibrate)
            for r in predict_emotions(config.text, *how):
                print(f"Text: {r['text']}")
                for name, p in r["probabilities"].items():
                    print(f"  {name:<12} {p:.4f}")
                print(f"Detected emotions: {', '.join(r['emotions']) or 'None'}")
        else:
            predict_file(config, signals)
    return 0


def check_outputs(config: PredictConfig) -> list[Path]:
    """The files to write: submission and, if asked for, probabilities. UserError for unusable paths."""
    paths = [Path(os.path.realpath(p)) for p in (config.output, config.probabilities) if p]
    files = [*paths, *(Path(f"{p}.part") for p in paths), Path(f"{paths[0]}.part.json")]
    run = Path(os.path.realpath(config.run or "runs"))
    read = [p for p in (config.input, config.thresholds) if p and os.path.exists(p)]
    for path in files:
        same = files.count(path) > 1 or os.path.exists(path) and any(os.path.samefile(path, p) for p in read)
        table = path.name in ("oof.csv", "errors.csv")
        odd = table or path in paths and not path.name.endswith((".csv", ".csv.gz"))
        folder, special = path.parent, os.path.lexists(path) and not os.path.isfile(path)
        for wrong, where, words in (
            (same, path, "input, --thresholds, --output and --probabilities must be different files"),
            (odd and run in path.parents, path, "lies in the run - name a new .csv, or another folder"),
            # temporary names are longer
            (len(os.fsencode(path.name)) > 220, path, "File name too long - choose a shorter one"),
            (os.path.isdir(path), path, "is a folder - name a file to write to"),
            (special, path, "not a regular file - name a file to write to"),
            (not os.path.isdir(folder), folder, "no such folder - make it first"),
            (not os.access(folder, os.W_OK), folder, "not writable - choose another folder"),
        ):
            if wrong:
                raise UserError(f"{where}: {words}")
    return paths


def predict_file(config: PredictConfig, signals: Signals) -> None:
    """Read twice: once to check everything and count, once to predict, chunk by chunk."""
    paths = check_outputs(config)
    check_file(config.input, "--input")
    ensemble = Ensemble(config.run, config.device, config.precision)
    run, labels = ensemble.run, ensemble.labels
    if os.path.realpath(ensemble.settings["train"]) in map(str, paths):
        raise UserError(f"{config.output}: is what the run was trained on - choose another --output")
    prefer = ensemble.settings["text_column"]
    th = read_thresholds(config.thresholds, run, labels)
    reading = [config.input, run.path / "DONE.json"]
    before = list(map(file_sha256, reading))
    n, scored = survey(config, run, labels, prefer)
    if config.calibrate and not config.probabilities:
        warn("--calibrate changes probabilities alone, no verdicts - see --probabilities")
    ensemble.keep = n > CHUNK and ensemble.fits()
    free, need = shutil.disk_usage(paths[0].parent).free / 1e9, n * 16e-9 * (1 + len(labels)) * len(paths)
    if free < need:
        raise UserError(f"{paths[0].parent}: {free:.2f} GB free, about {need:.2f} GB needed - make room")
    how = [ensemble.precision, ensemble.device, config.text_column, config.calibrate, CHUNK, *map(str, paths)]
    key = json_sha256([before, th.tolist(), *how])
    work = Work(paths, key, len(labels))
    begun, done = work.chunks, min(work.chunks * CHUNK, n)
    if done:
        print(f"goes on after row {done} of {n}")
    with tqdm(total=n, initial=done, unit="row", disable=None) as bar:
        chunks = read_chunks(config.input, config.text_column, labels, CHUNK, False, True, prefer)
        for table in itertools.islice(chunks, begun, None):
            p = np.zeros((0, len(labels)))
            if len(table):
                p = ensemble.probabilities(table.texts, signals.check, work.chunks == begun)
            found = metrics.detect(p, th)
            if scored:
                work.counts += metrics.confusion(table.labels, found)
                work.exact += int((table.labels == found).all(1).sum())
            work.append(table.ids, labels, found, ensemble.calibrated(p) if config.calibrate else p)
            bar.update(len(table))
    for path, sha256 in zip(reading, before, strict=True):
        if file_sha256(path) != sha256:
            raise UserError(f"{path}: changed while it was read - the same command begins anew", 1)
    work.finish()
    print("\n".join(f"wrote {path} ({n} rows)" for path in paths))
    with (gzip.open if paths[0].suffix == ".gz" else open)(paths[0], "rt", encoding="utf-8", newline="") as f:
        print("".join(itertools.islice(f, 6)).rstrip("\n"))
    if scored and n:
        from report import label_table  # not above: matplotlib takes a second to import

        print(label_table(metrics.table_from_counts(work.counts, th, labels)))
        s = metrics.scores_from_counts(work.counts, work.exact / n)
        print(" | ".join(f"{name} {s[name]:.4f}" for name in ("macro_f1", "micro_f1", "exact_match")))


def survey(config: PredictConfig, run: Run, labels: list[str], prefer: str) -> tuple[int, bool]:
    """Rows, and whether all label columns are there and sound; warns of what looks wrong."""
    seen = read_npy(run.path / "texts.npy", "u", "text hashes")
    n, scored, odd = 0, True, Counter()
    for table in read_chunks(config.input, config.text_column, labels, CHUNK, False, prefer=prefer):
        n, scored = n + len(table), scored and table.labels is not None
        known = np.isin(text_hashes(table.texts), seen).sum()
        odd["are blank; they are kept"] += sum(map(is_blank, table.texts))
        odd["hold NUL characters; the tokenizer drops them"] += sum("\0" in t for t in table.texts)
        odd["are among those this run was trained on; scores on them are too good"] += known
    for words, count in odd.items():
        if count:
            warn(f"{config.input}: {count} of {n} texts {words}")
    if not n:
        warn(f"{config.input}: no rows; the output is a header alone")
    return n, scored


class Work:
    """Files that grow as <name>.part, with a note of how far they are whole; renamed when finished."""

    def __init__(self, paths: list[Path], key: str, labels: int):
        self.paths, self.key, self.note = paths, key, Path(f"{paths[0]}.part.json")
        self.parts = [Path(f"{p}.part") for p in paths]
        self.locks = [locked(part) for part in self.parts]  # until this object is gone
        for path, lock in zip(paths, self.locks, strict=True):
            if not lock.__enter__():
                mend = "wait for it, or choose another --output"
                raise UserError(f"{path}: another predict.py is writing it - {mend}")
        sweep(self.note.parent, of=self.note.name)
        nothing = [[0, hashlib.sha256().hexdigest()]] * len(paths)
        notes = [{"key": key, "progress": [0, 0, [[0] * labels] * 4], "written": nothing}]
        with contextlib.suppress(UserError):  # no note, or a damaged one: from the first row
            notes.insert(0, read_json(self.note, sealed=True))
        for note in (note for note in notes if note["key"] == key):
            sizes, sums = zip(*note["written"], strict=True)
            self.sums = list(map(_cut, self.parts, sizes))
            if tuple(h.hexdigest() for h in self.sums) == sums:
                break
        self.chunks, self.exact, counts = note["progress"]
        self.counts = np.array(counts)

    def append(self, ids: list[str], labels: list[str], *values: np.ndarray) -> None:
        """Add one chunk's values to each file, on disk before the note says so."""
        for path, part, v, h in zip(self.paths, self.parts, values, self.sums, strict=False):
            raw = to_csv(ids, v, labels, self.chunks == 0).encode()
            raw = gzip.compress(raw, mtime=0) if path.suffix == ".gz" else raw
            h.update(raw)
            with writing(path), open(part, "ab") as f:
                f.write(raw)
                f.flush()
                os.fsync(f.fileno())
        self.chunks += 1
        progress = [self.chunks, self.exact, self.counts.tolist()]
        written = [[p.stat().st_size, h.hexdigest()] for p, h in zip(self.parts, self.sums, strict=True)]
        write_json(self.note, {"key": self.key, "progress": progress, "written": written}, seal=True)

    def finish(self) -> None:
        for part, path in zip(self.parts, self.paths, strict=True):
            with writing(path):
                commit(part, path)
        self.note.unlink()


def _cut(part: Path, size: int):
    """Cut the file to this size; the sha256 of what is left, to be updated by what follows."""
    with writing(part):
        os.truncate(part, size)
        with open(part, "rb") as f:
            return hashlib.file_digest(f, "sha256")


def to_csv(ids: list[str], values: np.ndarray, labels: list[str], header: bool) -> str:
    """Rows of id and values (0/1, or probabilities to 9 digits) as CSV text."""
    cell = int if values.dtype == bool else "{:.9g}".format
    rows = ([i, *map(cell, row)] for i, row in zip(ids, values.tolist(), strict=True))
    return csv_text([["id", *labels], *rows] if header else rows)


if __name__ == "__main__":
    sys.exit(main())
