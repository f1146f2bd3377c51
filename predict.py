"""Average the folds of a finished run over new texts: python predict.py --help

Rows in chunks -> tokens -> mean of the folds' probabilities -> thresholds -> CSV. Memory does not
grow with the input; a killed call goes on at the last whole chunk. From Python: `load_run`.
"""

from config import PredictConfig
from support.cli import check_flags, checked, parse
from support.errors import Signals, UserError, exit_codes

if __name__ == "__main__":
    check_flags(PredictConfig)

import itertools
import sys
import threading

import numpy as np
from tqdm import tqdm

import metrics
from data import DataCollator, encode, make_inputs, read_chunks
from model import EmotionClassifier, run_over_rows, sigmoid
from support import report, results
from support.csvfile import check_columns, ensure_text_column, read_header
from support.encoders import inspect_encoder
from support.files import json_sha256, read_npy, unchanged
from support.findings import Findings
from support.output import GrowingCSV, check_paths
from support.speed import resolve_device

CHUNK = 10_000  # rows read, tokenised, predicted and appended at a time


class Ensemble:
    """The fold models of a finished run (UserError: none, damaged). `keep`: all stay loaded."""

    def __init__(self, folder: str | None, device="auto", precision="auto", keep: bool = False):
        self.run = results.find_run(folder)
        self.config = results.read_settings(self.run, *resolve_device(device, precision))
        self.labels = self.config.labels
        self.platt = results.read_platt(self.run, self.labels)  # (2, C)
        self.seen = read_npy(self.run.path / "texts.npy", "u", "text hashes")
        self.tokenizer = inspect_encoder(str(self.run.fold(0))).tokenizer
        self.models, self.keep, self.lock = {}, keep, threading.Lock()
        self.th = results.read_thresholds(None, self.run, self.labels)
        for k in range(self.run.folds if keep else 0):  # now, as its files were checked
            self.model(k)

    def model(self, k: int) -> EmotionClassifier:
        if k not in self.models:
            self.models = self.models if self.keep else {}
            model = EmotionClassifier.load(self.run.fold(k), len(self.labels), self.config.pooling)
            self.models[k] = model.to(self.config.device)
        return self.models[k]

    def predict_test(self, inputs, check=lambda: None, say=False, folds=None) -> np.ndarray:
        """float32 (N, C): the mean of the folds' probabilities, or of these `folds` alone."""
        folds = range(self.run.folds) if folds is None else folds
        dataset = encode(self.tokenizer, inputs, self.config.max_length)
        pad_id, c = self.tokenizer.pad_token_id, self.config
        collate = DataCollator(pad_id, c.max_length, c.device, c.precision)
        total = np.zeros((len(inputs), len(self.labels)), dtype=np.float64)
        for k in folds:
            if say:
                print(f"Predicting fold {k} ...", flush=True)
            logits, _ = run_over_rows(self.model(k), dataset, collate, c, check=check)
            if not np.isfinite(logits).all():
                raise UserError(f"fold {k}: logits are not finite - use --precision fp32", 1)
            total += sigmoid(logits)
        return (total / len(folds)).astype(np.float32)

    def predict(self, texts: list[str], thresholds=None, calibrate: bool = False) -> list[dict]:
        """{"text", "probabilities": {label: p}, "emotions": [detected]} of each text.

        texts: a list of str, or a column of a DataFrame. thresholds: what --thresholds takes, or a
        list, an array or a dict by label. UserError says what the command says.
        """
        texts, given = results.check_texts(texts), self.th if thresholds is None else thresholds
        th = results.read_thresholds(given, self.run, self.labels)
        with self.lock:  # a server's threads; a tokenizer serves one at a time
            p = self.predict_test(make_inputs(texts))
        said, rows = metrics.calibrated(p, *self.platt) if calibrate else p, []
        for text, found, values in zip(texts, metrics.detect(p, th), said.tolist(), strict=True):
            emotions = [name for name, yes in zip(self.labels, found, strict=True) if yes]
            probabilities = dict(zip(self.labels, values, strict=True))
            rows.append({"text": text, "probabilities": probabilities, "emotions": emotions})
        return rows


def load_run(run=None, device: str = "auto", precision: str = "auto", keep=True) -> Ensemble:
    """A finished run, to be asked many times: model = load_run("runs/x"); model.predict(texts)."""
    checked(PredictConfig(run=run and str(run), device=device, precision=precision))
    return Ensemble(run, device, precision, keep)


def predict_emotions(
    texts, run=None, thresholds=None, device="auto", precision="auto", calibrate=False
) -> list[dict]:
    """`Ensemble.predict`, once: each call loads all folds, one after the other."""
    return load_run(run, device, precision, keep=False).predict(texts, thresholds, calibrate)


@exit_codes
def main(argv: list[str] | None = None) -> int:
    config = parse(PredictConfig, argv)
    with Signals() as signals:
        if config.text is None:
            return predict_file(config, signals)
        how = (config.run, config.thresholds, config.device, config.precision, config.calibrate)
        for row in predict_emotions(config.text, *how):
            print(report.text_lines(row))
    return 0


def predict_file(config: PredictConfig, signals: Signals) -> int:
    """Read twice: once to check everything and count, once to predict, chunk by chunk."""
    ensemble = Ensemble(config.run, config.device, config.precision)
    run, labels = ensemble.run, ensemble.labels
    paths = check_paths(config, ensemble.config)
    th = results.read_thresholds(config.thresholds, run, labels)
    with unchanged(config.input, run.path / "DONE.json") as before:
        findings = Findings(config.input, True, ensemble.config.soft_labels)
        column, n = survey(config, ensemble, findings)
        ensemble.keep = n > CHUNK and results.fits_in_memory(run, ensemble.config.device)
        how = [ensemble.config.device, ensemble.config.precision, column, config.calibrate, CHUNK]
        key = json_sha256([before, th.tolist(), how, *map(str, paths)])
        out = GrowingCSV(paths, labels, n, key)
        counts, exact, begun = np.array(out.progress[0]), out.progress[1], out.chunks
        chunks = read_chunks(config.input, column, labels, CHUNK, findings)
        bar = {"total": -(-n // CHUNK), "initial": begun, "unit": "chunk", "disable": None}
        for table in tqdm(itertools.islice(chunks, begun, None), **bar):
            p = ensemble.predict_test(table.inputs, signals.check, say=out.chunks == begun)
            found = metrics.detect(p, th)
            if findings.scored:
                rows = ~np.isnan(table.labels).any(1)  # those marked -1 are not scored
                counts += metrics.confusion(table.labels[rows], found[rows])
                exact += int((table.labels[rows] == found[rows]).all(1).sum())
            said = metrics.calibrated(p, *ensemble.platt) if config.calibrate else p
            out.append(table.ids, [counts.tolist(), exact], found, said)
    out.finish()
    if findings.scored:
        print(report.scores_of_counts(counts, exact, th, labels))
    return 0


def survey(config: PredictConfig, ensemble: Ensemble, findings: Findings) -> tuple[str, int]:
    """Text column and number of rows; counts what is odd in the whole file, and warns of it."""
    path, labels, header = config.input, ensemble.labels, read_header(config.input)
    prefer = ensemble.config.text_column
    column = ensure_text_column(path, header, labels, config.text_column, prefer)
    check_columns(path, header, labels, required=False)
    for table in read_chunks(path, column, labels, CHUNK, findings):
        findings.add_known(table.hashes, ensemble.seen)
    findings.say()
    return column, findings.rows


if __name__ == "__main__":
    sys.exit(main())
