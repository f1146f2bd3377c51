"""What needs no fine-tuning, on the same folds, thresholds and scores: python benchmarks/baseline.py [CSV]

Logistic regression on words and pairs of words (TF-IDF, sublinear counts), and on the bundled encoder's vectors as it
comes (mean over tokens, standardised). C of the regression is chosen by the cross-fitted macro-F1 itself, which
flatters the baselines a little. Prints what train.py calls 'cross-fitted', with its interval.
"""

import sys
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import metrics
from config import BUNDLED, EMOTIONS, HERE
from data import Collator, assign_folds, read_csv, text_hashes, tokenize
from model import EmotionClassifier, inspect_encoder, load_encoder, predict_logits


def vectors(texts: list[str]) -> np.ndarray:
    """float32 (N, H): the mean over the tokens of the bundled encoder, which no label has touched."""
    info = inspect_encoder(BUNDLED)
    model = EmotionClassifier(load_encoder(info.path), info.config.hidden_size)
    model.head = nn.Identity()
    tokens = tokenize(info.tokenizer, texts, 128)
    return predict_logits(model, tokens, Collator(info.tokenizer.pad_token_id), "cpu", "fp32")


def main(path: str) -> None:
    table = read_csv(path, None, list(EMOTIONS))
    y, fold = table.labels, assign_folds(table.labels, text_hashes(table.texts), 5, 42)
    words = lambda: TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)  # noqa: E731
    texts = np.array(table.texts, dtype=object)
    for name, x, prepare, strengths in (
        ("TF-IDF", texts, words, (0.3, 1, 3, 10, 30, 100)),
        ("frozen vectors", vectors(table.texts), StandardScaler, (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03)),
    ):
        results = []
        for c in strengths:
            p = np.zeros(y.shape, dtype=np.float32)
            for k in range(5):
                regression = OneVsRestClassifier(LogisticRegression(C=c, max_iter=1000))
                fit = make_pipeline(prepare(), regression).fit(x[fold != k], y[fold != k])
                p[fold == k] = fit.predict_proba(x[fold == k])
            pred = metrics.cross_fit(y, p, fold)
            results.append((metrics.scores(y, pred)["macro_f1"], c, pred))
        print([(round(a, 4), c) for a, c, _ in results])
        best, c, pred = max(results, key=lambda r: r[0])
        low, high = metrics.interval(metrics.bootstrap_f1(y, pred).mean(1))
        score = f"cross-fitted macro-F1 {best:.4f} [{low:.4f}, {high:.4f}]"
        print(f"{path}: {len(table)} rows | {name} + logistic regression (C {c:g}): {score}")


if __name__ == "__main__":
    for name in sys.argv[1:] or [str(HERE / "examples" / "train.csv")]:
        main(name)
