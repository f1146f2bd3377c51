"""Average the folds of a finished run over new texts: python predict.py --help

Rows in chunks -> tokens -> mean of the folds' probabilities -> thresholds -> CSV. Memory does not
grow with the input; a killed call goes on at the last whole chunk. From Python: `predict_emotions`.
"""

from config import PredictConfig
from support.cli import check_flags, checked, parse
from support.errors import Signals, UserError, exit_codes

if __name__ == "__main__":
    check_flags(PredictConfig)

import itertools
import sys

import numpy as np
from tqdm import tqdm

import metrics
from data import DataCollator, encode, ensure_text_column, make_inputs, read_chunks
from model import EmotionClassifier, run_over_rows, sigmoid
from support.csvfile import check_columns, read_header
from support.encoders import inspect_encoder
from support.files import json_sha256, read_npy, unchanged
from support.findings import Findings
from support.output import GrowingCSV, check_no_files, check_paths
from support.report import label_table
from support.results import check_texts, find_run, fits_in_memory
from support.results import read_platt, read_settings, read_thresholds
from support.speed import resolve_device

CHUNK = 10_000  # rows read, tokenised, predicted and appended at a time


class Ensemble:
    """The fold models of a finished run. With `keep` all stay loaded, else one at a time."""

    def __init__(self, folder: str | None, device: str = "auto", precision: str = "auto"):
        """UserError that names what is missing, damaged or of another run."""
        self.run = find_run(folder)
        self.config = read_settings(self.run, *resolve_device(device, precision))
        self.labels = self.config.labels
        self.slope, self.shift = read_platt(self.run, self.labels)  # (C,) each
        self.seen = read_npy(self.run.path / "texts.npy", "u", "text hashes")
        self.tokenizer = inspect_encoder(str(self.run.fold(0))).tokenizer
        self.models, self.keep = {}, False

    def model(self, k: int) -> EmotionClassifier:
        if k not in self.models:
            if not self.keep:
                self.models.clear()
            model = EmotionClassifier.load(self.run.fold(k), len(self.labels), self.config.pooling)
            self.models[k] = model.to(self.config.device)
        return self.models[k]

    def predict_test(self, inputs: list[str], check=lambda: None, say: bool = False) -> np.ndarray:
        """float32 (N, C): the mean of the folds' probabilities."""
        dataset = encode(self.tokenizer, inputs, self.config.max_length)
        pad_id, c = self.tokenizer.pad_token_id, self.config
        collate = DataCollator(pad_id, c.max_length, c.device, c.precision)
        total = np.zeros((len(inputs), len(self.labels)), dtype=np.float64)
        for k in range(self.run.folds):
            if say:
                print(f"Predicting fold {k} ...", flush=True)
            logits, _ = run_over_rows(self.model(k), dataset, collate, c, check=check)
            if not np.isfinite(logits).all():
                raise UserError(f"fold {k}: logits are not finite - use --precision fp32", 1)
            total += sigmoid(logits)
        return (total / self.run.folds).astype(np.float32)

    def calibrated(self, p: np.ndarray) -> np.ndarray:
        """Probabilities (N, C) as often right as they say on out-of-fold rows; same order."""
        z = self.slope * metrics.logit(p) + self.shift  # float64: float32 would tie near 1
        return 1 / (1 + np.exp(-z))


def predict_emotions(
    texts: list[str], run=None, thresholds=None, device="auto", precision="auto", calibrate=False
) -> list[dict]:
    """{"text", "probabilities": {label: p}, "emotions": [detected]} of each text.

    texts: a list of str, or a column of a DataFrame. thresholds: also a list, an array or a dict by
    label. UserError says what the command says. A call loads all folds: pass all texts at once.
    """
    checked(PredictConfig(run=run and str(run), device=device, precision=precision))
    texts, ensemble = check_texts(texts), Ensemble(run, device, precision)
    names, th = ensemble.labels, read_thresholds(thresholds, ensemble.run, ensemble.labels)
    p, rows = ensemble.predict_test(make_inputs(texts)), []
    said = ensemble.calibrated(p) if calibrate else p
    for text, found, values in zip(texts, metrics.detect(p, th), said.tolist(), strict=True):
        emotions = [name for name, yes in zip(names, found, strict=True) if yes]
        probabilities = dict(zip(names, values, strict=True))
        rows.append({"text": text, "probabilities": probabilities, "emotions": emotions})
    return rows


@exit_codes
def main(argv: list[str] | None = None) -> int:
    config = parse(PredictConfig, argv)
    with Signals() as signals:
        if config.text is None:
            return predict_file(config, signals)
        check_no_files(config)
        how = (config.run, config.thresholds, config.device, config.precision, config.calibrate)
        for row in predict_emotions(config.text, *how):
            print(f"Text: {row['text']}")
            for name, p in row["probabilities"].items():
                print(f"  {name:<12} {p:.4f}")
            print(f"Detected emotions: {', '.join(row['emotions']) or 'None'}")
    return 0


def predict_file(config: PredictConfig, signals: Signals) -> int:
    """Read twice: once to check everything and count, once to predict, chunk by chunk."""
    ensemble = Ensemble(config.run, config.device, config.precision)
    run, labels = ensemble.run, ensemble.labels
    paths = check_paths(config, ensemble.config.train)
    th = read_thresholds(config.thresholds, run, labels)
    with unchanged(config.input, run.path / "DONE.json") as before:
        column, n, scored = survey(config, ensemble)
        ensemble.keep = n > CHUNK and fits_in_memory(run, ensemble.config.device)
        how = [ensemble.config.device, ensemble.config.precision, column, config.calibrate, CHUNK]
        key = json_sha256([before, th.tolist(), how, *map(str, paths)])
        out = GrowingCSV(paths, labels, n, key)
        counts, exact, begun = np.array(out.progress[0]), out.progress[1], out.chunks
        chunks = read_chunks(config.input, column, labels, CHUNK, Findings(config.input, True))
        bar = {"total": -(-n // CHUNK), "initial": begun, "unit": "chunk", "disable": None}
        for table in tqdm(itertools.islice(chunks, begun, None), **bar):
            p = ensemble.predict_test(table.inputs, signals.check, say=out.chunks == begun)
            found = metrics.detect(p, th)
            if scored:
                rows = ~np.isnan(table.labels).any(1)  # those marked -1 are not scored
                counts += metrics.confusion(table.labels[rows], found[rows])
                exact += int((table.labels[rows] == found[rows]).all(1).sum())
            said = ensemble.calibrated(p) if config.calibrate else p
            out.append(table.ids, [counts.tolist(), exact], found, said)
    out.finish()
    if scored and (n := counts[:, 0].sum()):
        print(label_table(metrics.table_from_counts(counts, th, labels)))
        scores = metrics.shown(metrics.scores_from_counts(counts, exact / n))
        print(" | ".join(f"{name} {score:.4f}" for name, score in scores.items()))
    return 0


def survey(config: PredictConfig, ensemble: Ensemble) -> tuple[str, int, bool]:
    """Text column, rows, whether every row has sound labels; warns of what looks wrong."""
    path, labels, scored = config.input, ensemble.labels, True
    header, findings, prefer = read_header(path), Findings(path, True), ensemble.config.text_column
    column = ensure_text_column(path, header, labels, config.text_column, prefer)
    check_columns(path, header, labels, required=False)
    for table in read_chunks(path, column, labels, CHUNK, findings):
        findings.add_known(table.hashes, ensemble.seen)
        scored = scored and table.labels is not None
    findings.say()
    return column, findings.rows, scored


if __name__ == "__main__":
    sys.exit(main())
