"""What needs no fine-tuning, on the same folds: python benchmarks/baseline.py [CSV ...]

Logistic regression on words and pairs of words (TF-IDF, sublinear counts), and on the bundled
encoder's vectors as it comes (mean over tokens, standardised). The regression's C is chosen by the
cross-fitted macro-F1 itself, which flatters the baselines a little. Prints what train.py calls
'cross-fitted', with its interval.
"""

import sys

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
from data import DataCollator, assign_folds, encode, read_table
from model import EmotionClassifier, run_over_rows
from support.encoders import inspect_encoder, load_encoder

CONFIG = Config(device="cpu", precision="fp32")
WAYS = {  # what is fitted to the training rows before the regression, and the values of C
    "TF-IDF": (
        lambda: TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
        (0.3, 1, 3, 10, 30, 100),
    ),
    "frozen vectors": (StandardScaler, (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03)),
}


def vectors(inputs: list[str]) -> np.ndarray:
    """float32 (N, H): the mean over the tokens of the bundled encoder, which no label touched."""
    info = inspect_encoder(BUNDLED)
    model = EmotionClassifier(load_encoder(info.path), info.config.hidden_size)
    model.head = nn.Identity()
    dataset = encode(info.tokenizer, inputs, CONFIG.max_length)
    collate = DataCollator(info.tokenizer.pad_token_id, CONFIG.max_length)
    return run_over_rows(model, dataset, collate, CONFIG)[0]


def main(path: str) -> None:
    table = read_table(path, CONFIG.labels, None)
    y, fold = table.labels, assign_folds(table.labels, table.hashes, CONFIG.folds, CONFIG.seed)
    inputs = {"TF-IDF": np.array(table.inputs, dtype=object)}
    inputs["frozen vectors"] = vectors(table.inputs)
    for name, (prepare, strengths) in WAYS.items():
        x, results = inputs[name], []
        for c in strengths:
            p = np.zeros(y.shape, dtype=np.float32)
            for k in range(CONFIG.folds):
                regression = OneVsRestClassifier(LogisticRegression(C=c, max_iter=1000))
                fit = make_pipeline(prepare(), regression).fit(x[fold != k], y[fold != k])
                p[fold == k] = fit.predict_proba(x[fold == k])
            pred = metrics.cross_fit(y, p, fold)
            results.append((metrics.scores(y, pred)["macro_f1"], c, pred))
        print([(round(score, 4), c) for score, c, _ in results])
        best, c, pred = max(results, key=lambda r: r[0])
        low, high = metrics.interval(metrics.bootstrap_f1(y, pred).mean(1))
        score = f"cross-fitted macro-F1 {best:.4f} [{low:.4f}, {high:.4f}]"
        print(f"{path}: {len(table)} rows | {name} + logistic regression (C {c:g}): {score}")


if __name__ == "__main__":
    for name in sys.argv[1:] or [CONFIG.train]:
        main(name)
