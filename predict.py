"""Average the folds of a finished run over new texts: python predict.py --help

Rows in chunks -> tokens -> mean of the folds' probabilities -> thresholds -> CSV. Memory does not
grow with the input; a killed call resumes at the last whole chunk. From Python: `load_run`.
"""

from config import PredictConfig
from support.cli import checked, parse, start_script
from support.process import Signals, UserError, exit_codes

start_script(PredictConfig, __name__, unused=("joblib", "matplotlib", "scikit-learn", "scipy"))

import itertools
import math
import os
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

import metrics
from data import DataCollator, encode, make_inputs, read_chunks
from model import EmotionClassifier, run_over_rows, sigmoid
from support import report
from support.blend import BlendedRun, find_runs
from support.csvwriter import GrowingCSV, check_paths
from support.encoders import inspect_encoder
from support.files import json_sha256, unchanged
from support.finished import FinishedRun, read_thresholds
from support.inputcsv import InputCSV
from support.oddrows import check_texts

CHUNK = 10_000  # rows read, tokenised, predicted and appended at a time


class Ensemble:
    """The fold models of a finished run, or of several."""

    def __init__(self, run: FinishedRun | BlendedRun, keep: bool = False):
        """`keep`: all models are loaded now and stay; else one at a time."""
        self.run = run
        self.config = run.config
        self.names = run.names
        self.lock = threading.Lock()
        self.members = []  # of several runs
        if isinstance(run, BlendedRun):
            self.members = [Ensemble(one, keep) for one in run.runs]
            return
        self.tokenizer = inspect_encoder(str(run.fold_dir(0))).tokenizer
        self.keep = keep
        self.models: dict[int, EmotionClassifier] = {}
        for k in range(run.folds if keep else 0):
            self.model(k)

    def __repr__(self) -> str:
        return repr(self.run)

    def __getstate__(self) -> dict:
        return {name: value for name, value in vars(self).items() if name != "lock"}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state, lock=threading.Lock())  # a lock can't be copied

    def model(self, k: int) -> EmotionClassifier:
        if k not in self.models:
            if not self.keep:
                self.models = {}
            folder = self.run.fold_dir(k)
            model = EmotionClassifier.load(folder, self.config)
            self.models[k] = model.to(self.config.device)
        return self.models[k]

    def predict_test(
        self,
        inputs: list[str],
        fold_numbers: Sequence[int] | None = None,
        check: Callable[[], None] = lambda: None,
        print_folds: bool = False,
        extra: dict[str, np.ndarray] | None = None,
    ) -> np.ndarray:
        """float32 (N, C): the mean of the probabilities of all folds, or of these `fold_numbers`.

        inputs: texts, as `predict` takes them, or what `make_inputs` made of them. UserError for
        others. check: runs between batches. extra: see Table.
        """
        inputs = check_texts(inputs)
        if self.members:
            how = {"check": check, "print_folds": print_folds, "extra": extra}
            parts = [member.predict_test(inputs, fold_numbers, **how) for member in self.members]
            return np.mean(parts, axis=0, dtype=np.float64).astype(np.float32)
        if fold_numbers is None:
            fold_numbers = range(self.run.folds)
        if not len(fold_numbers) or not {*fold_numbers} <= {*range(self.run.folds)}:
            raise UserError(f"fold_numbers: give some of 0 to {self.run.folds - 1}")
        dataset = encode(self.tokenizer, inputs, self.config.max_length)
        dataset = replace(dataset, extra=extra or {})
        collate = DataCollator.of(self.tokenizer, self.config)
        total = np.zeros((len(inputs), len(self.names)), dtype=np.float64)
        for k in fold_numbers:
            if print_folds:
                print(f"Predicting fold {k} ...", flush=True)
            logits, _ = run_over_rows(self.model(k), dataset, collate, check=check)
            if not np.isfinite(logits).all():
                raise UserError(f"fold {k}: logits are not finite - use --precision fp32", 1)
            total += sigmoid(logits)
        return (total / len(fold_numbers)).astype(np.float32)

    def predict(self, texts: list[str], thresholds=None, calibrate: bool = False) -> list[dict]:
        """{"text", "probabilities": {label: p}, "emotions": [detected]} of each text.

        texts: a list of str, or a column of a DataFrame. thresholds: what --thresholds takes, or a
        list, an array, or a dict or Series by label. UserError says what the command says.
        """
        texts = check_texts(texts)
        th = self.run.th if thresholds is None else read_thresholds(thresholds, self.run)
        with self.lock:  # a server's threads; a tokenizer serves one at a time
            p = self.predict_test(make_inputs(texts))
        detected = metrics.detect(p, th)
        if calibrate:
            p = metrics.calibrated(p, *self.run.platt)
        return [
            {
                "text": texts[i],
                "probabilities": dict(zip(self.names, p[i].tolist(), strict=True)),
                "emotions": [self.names[j] for j in np.flatnonzero(detected[i])],
            }
            for i in range(len(texts))
        ]


def load_run(
    run: str | Path | list | None = None,
    device: str = "auto",
    precision: str = "auto",
    keep: bool = True,
) -> Ensemble:
    """A finished run, to be asked many times: model = load_run("runs/x"); model.predict(texts).

    Of a list of runs the mean: seeds, or other encoders with the same labels.
    """
    folders = None
    if run is not None:
        folders = [run] if isinstance(run, (str, Path)) else list(run)
        folders = [os.path.expanduser(folder) for folder in folders]
        if not folders or "" in folders:
            raise UserError("run: names no folder - give one, or None for the newest")
    checked(PredictConfig(run=folders, device=device, precision=precision))
    return Ensemble(find_runs(folders, device, precision), keep)


def predict_emotions(
    texts: list[str],
    run: str | Path | list | None = None,
    thresholds=None,
    device: str = "auto",
    precision: str = "auto",
    calibrate: bool = False,
) -> list[dict]:
    """`Ensemble.predict`, once: each call loads all folds, one after the other."""
    return load_run(run, device, precision, keep=False).predict(texts, thresholds, calibrate)


@exit_codes
def main(argv: list[str] | None = None) -> int:
    config = parse(PredictConfig, argv, __file__)
    with Signals() as signals:
        if config.text is None:
            return predict_file(config, signals)
        answers = predict_emotions(
            config.text,
            run=config.run,
            thresholds=config.thresholds,
            device=config.device,
            precision=config.precision,
            calibrate=config.calibrate,
        )
        for answer in answers:
            print(report.text_lines(answer))
    return 0


def predict_file(config: PredictConfig, signals: Signals) -> int:
    """Read twice: once to check everything and count, once to predict, chunk by chunk."""
    run = find_runs(config.run, config.device, config.precision)
    runs = getattr(run, "runs", [run])
    paths = check_paths(config, [one.config for one in runs])
    th = run.th if config.thresholds is None else read_thresholds(config.thresholds, run)
    platt = run.platt if config.calibrate else None
    with unchanged(config.input, *(one.path / "DONE.json" for one in runs)) as checksums:
        source = InputCSV(config.input, run.config, text_column=config.text_column)
        rows = count_rows(source, run.seen)
        with_text = "id" not in source.header if config.with_text is None else config.with_text
        ensemble = Ensemble(run, keep=rows > CHUNK and run.fits_in_memory())
        settings = [
            run.config.device,
            run.config.precision,
            source.text_column,
            with_text,
            config.calibrate,
            CHUNK,
            2,  # the version of what a chunk holds
        ]
        key = json_sha256([checksums, th.tolist(), settings, *map(str, paths)])
        out = GrowingCSV(paths, run.names, rows, key)
        first = out.chunks  # those before are done
        counts = np.array(out.progress[0])
        exact = np.array(out.progress[1])
        tables = itertools.islice(read_chunks(source, CHUNK), first, None)
        chunks = math.ceil(rows / CHUNK)
        for table in tqdm(tables, total=chunks, initial=first, unit="chunk", disable=None):
            p = ensemble.predict_test(
                table.inputs,
                check=signals.check,
                print_folds=out.chunks == first,
                extra=table.extra,
            )
            detected = metrics.detect(p, th)
            if source.scored:
                counts += metrics.confusion(table.y, detected)
                exact += metrics.exact_matches(table.y, detected)
            if config.calibrate:
                p = metrics.calibrated(p, *platt)
            texts = table.texts if with_text else None
            out.append(table.ids, texts, [counts.tolist(), exact.tolist()], detected, p)
    out.finish()
    if source.scored:
        print(report.scores_of_counts(counts, exact, th, run.names))
    return 0


def count_rows(source: InputCSV, seen: np.ndarray) -> int:
    """Read the whole file once; warn of what is odd in it, and of texts that the run has seen."""
    for table in read_chunks(source, CHUNK):
        source.count_known(table.hashes, seen)
    source.warn_of_odd_rows()
    return source.rows


if __name__ == "__main__":
    sys.exit(main())
