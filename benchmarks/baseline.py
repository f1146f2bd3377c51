"""What needs no fine-tuning, on the same folds: python benchmarks/baseline.py [flags of train.py]

Logistic regression on words and pairs of words (TF-IDF, sublinear counts), and on the bundled
encoder's vectors as it comes (mean over tokens, standardised). The regression's C is chosen by the
cross-fitted macro-F1 itself, which flatters the baselines a little. Prints what train.py calls
'cross-fitted', with its interval. With --out each leaves a run folder in that folder, without
models, for tools/compare.py.
"""

import dataclasses
import sys
from pathlib import Path

from measure import HERE

sys.path.insert(0, str(HERE))

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

import metrics
from config import BUNDLED, Config
from data import DataCollator, encode, read_data, split
from model import EmotionClassifier, run_over_rows
from support import report
from support.cli import parse
from support.encoders import inspect_encoder, load_encoder
from support.files import describe, write_json
from support.run import Run

WAYS = {  # what is fitted to the training rows before the regression, and the values of C
    "TF-IDF": (
        lambda: TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
        (0.3, 1, 3, 10, 30, 100),
    ),
    "frozen vectors": (StandardScaler, (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03)),
}


def vectors(inputs: list[str], config: Config) -> np.ndarray:
    """float32 (N, H): the mean over the tokens of the bundled encoder, which no label touched."""
    info = inspect_encoder(BUNDLED)
    model = EmotionClassifier(load_encoder(info.path), info.config.hidden_size)
    model.head = nn.Identity()
    dataset = encode(info.tokenizer, inputs, config.max_length)
    collate = DataCollator(info.tokenizer.pad_token_id, config.max_length)
    return run_over_rows(model, dataset, collate, config)[0]


def write_run(folder: Path, config: Config, data, fold: np.ndarray, p: np.ndarray) -> None:
    """What tools/compare.py reads of a run: settings, checksums, out-of-fold probabilities."""
    folder.mkdir(parents=True)
    same = {f"settings.{k}": v for k, v in config.identity.items()} | {"data_sha256": data.sha256}
    write_json(folder / "env.json", {"same": same}, seal=True)
    write_json(folder / "config.json", {**config.identity, "train": config.train})
    report.write_oof(folder, data, np.arange(len(data)), fold, p, config.labels)
    done = {"run": Run(folder).key, "files": describe(folder)}
    write_json(folder / "DONE.json", done, seal=True)


def main(argv: list[str] | None = None) -> None:
    config = parse(Config, argv)
    data = read_data(config)
    y, fold = data.labels, split(data, config)
    config = dataclasses.replace(config, folds=int(fold.max()) + 1, device="cpu", precision="fp32")
    if (fold < 0).any() or config.folds == 1:
        sys.exit("every row must be held out once: no --folds 1, --valid or -1 in --fold-column")
    inputs = {"TF-IDF": np.array(data.inputs, dtype=object)}
    inputs["frozen vectors"] = vectors(data.inputs, config)
    for name, (prepare, strengths) in WAYS.items():
        x, results = inputs[name], []
        for c in strengths:
            p = np.zeros(y.shape, dtype=np.float32)
            for k in range(config.folds):
                regression = OneVsRestClassifier(LogisticRegression(C=c, max_iter=1000))
                fit = make_pipeline(prepare(), regression).fit(x[fold != k], y[fold != k])
                p[fold == k] = fit.predict_proba(x[fold == k])
            pred = metrics.cross_fit(y, p, fold)
            results.append((metrics.scores(y, pred)["macro_f1"], c, pred, p))
        print([(round(score, 4), c) for score, c, *_ in results])
        best, c, pred, p = max(results, key=lambda r: r[0])
        low, high = metrics.interval(metrics.bootstrap_f1(y, pred).mean(1))
        score = f"cross-fitted macro-F1 {best:.4f} [{low:.4f}, {high:.4f}]"
        print(f"{config.train}: {len(data)} rows | {name} + logistic regression (C {c:g}): {score}")
        if config.out:
            write_run(Path(config.out, name.replace(" ", "_")), config, data, fold, p)


if __name__ == "__main__":
    main()
