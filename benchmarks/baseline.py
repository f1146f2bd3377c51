"""What needs no fine-tuning, on the same folds: python benchmarks/baseline.py [flags of train.py]

Logistic regression on words and pairs of words (TF-IDF, sublinear counts), and on the bundled
encoder's vectors as it comes (mean over tokens, standardised). The regression's C is chosen by the
cross-fitted macro-F1 itself, which flatters the baselines a little. Prints what train.py calls
'cross-fitted', with its interval. With --out each leaves a run folder in that folder, without
models, for tools/compare.py.
"""

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from measure import HERE

sys.path.insert(0, str(HERE))

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import metrics
from config import BUNDLED, Config
from data import DataCollator, OutOfFold, Table, encode, read_data, split
from model import EmotionClassifier, TextVectors, run_over_rows
from support import report
from support.cli import parse
from support.encoders import inspect_encoder, load_encoder
from support.files import describe, write_json
from support.process import UserError, exit_codes
from support.run import Run


@dataclass(frozen=True)
class Baseline:
    name: str
    features: Callable[[Table, Config], np.ndarray]  # (N, ...): what is known of each row
    transformer: Callable  # makes what is fitted to the training rows before the regression
    strengths: tuple[float, ...]  # values of C to try


def texts(table: Table, config: Config) -> np.ndarray:
    return np.array(table.inputs, dtype=object)


def frozen_vectors(table: Table, config: Config) -> np.ndarray:
    """float32 (N, H): the mean over the tokens of the bundled encoder, which no label touched."""
    encoder_info = inspect_encoder(BUNDLED)
    encoder = load_encoder(encoder_info.path)
    model = TextVectors(EmotionClassifier(encoder, Config()))
    dataset = encode(encoder_info.tokenizer, table.inputs, config.max_length)
    collate = DataCollator.of(encoder_info.tokenizer, config)
    return run_over_rows(model, dataset, collate)[0]


def tf_idf() -> TfidfVectorizer:
    return TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)


BASELINES = [
    Baseline("TF-IDF", texts, tf_idf, (0.3, 1, 3, 10, 30, 100)),
    Baseline(
        "frozen vectors",
        frozen_vectors,
        StandardScaler,
        (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03),
    ),
]


def out_of_fold(baseline: Baseline, x: np.ndarray, table: Table, strength: float) -> np.ndarray:
    """float32 (N, C): what regressions on the other folds predict."""
    p = np.zeros(table.y.shape, np.float32)
    for k in np.unique(table.fold):
        held_out = table.fold == k
        regression = OneVsRestClassifier(LogisticRegression(C=strength, max_iter=1000))
        pipeline = make_pipeline(baseline.transformer(), regression)
        pipeline.fit(x[~held_out], table.y[~held_out])
        p[held_out] = pipeline.predict_proba(x[held_out])
    return p


@dataclass
class Result:
    """Of one baseline with one C."""

    strength: float
    p: np.ndarray  # float32 (N, C): out-of-fold probabilities
    pred: np.ndarray  # bool (N, C): cross-fitted verdicts
    macro_f1: float  # of pred


def try_strengths(baseline: Baseline, table: Table, config: Config) -> list[Result]:
    results = []
    x = baseline.features(table, config)
    for strength in baseline.strengths:
        p = out_of_fold(baseline, x, table, strength)
        pred = metrics.cross_fit(table.y, p, table.fold)
        macro_f1 = metrics.scores(table.y, pred)["macro_f1"]
        results.append(Result(strength, p, pred, macro_f1))
    return results


def write_run(folder: Path, config: Config, table: Table, p: np.ndarray) -> None:
    """What tools/compare.py reads of a run: settings, checksums, out-of-fold probabilities."""
    folder.mkdir(parents=True)
    identity = {f"settings.{name}": value for name, value in config.identity.items()}
    identity["data_sha256"] = table.sha256
    write_json(folder / "env.json", {"same": identity}, seal=True)
    write_json(folder / "config.json", config.identity | {"train": config.train})
    oof = OutOfFold(np.arange(len(table)), table.fold, table.y, p)
    report.write_oof(folder, table, oof, config.labels)
    done = {"run": Run(folder).key, "files": describe(folder)}
    write_json(folder / "DONE.json", done, seal=True)


@exit_codes
def main(argv: list[str] | None = None) -> int:
    config = parse(Config, argv, __file__)
    table = split(read_data(config), config)
    folds = int(table.fold.max()) + 1
    if (table.fold < 0).any() or folds == 1:
        problem = "every row must be held out once"
        raise UserError(f"{problem} - no --folds 1, no --valid, no -1 in --fold-column")
    config = dataclasses.replace(config, folds=folds, device="cpu", precision="fp32")
    for baseline in BASELINES:
        results = try_strengths(baseline, table, config)
        print([(round(result.macro_f1, 4), result.strength) for result in results])
        best = max(results, key=lambda result: result.macro_f1)
        low, high = metrics.interval(metrics.bootstrap_f1(table.y, best.pred).mean(1))
        name = f"{baseline.name} + logistic regression (C {best.strength:g})"
        score = f"cross-fitted macro-F1 {best.macro_f1:.4f} [{low:.4f}, {high:.4f}]"
        print(f"{config.train}: {len(table)} rows | {name}: {score}")
        if config.out:
            folder = Path(config.out, baseline.name.replace(" ", "_"))
            write_run(folder, config, table, best.p)
    return 0


if __name__ == "__main__":
    sys.exit(main())
