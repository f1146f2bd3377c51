"""TF-IDF + logistic regression on the same folds, thresholds and scores: python benchmarks/baseline.py [CSV]

Words and pairs of words, sublinear counts; C of the regression chosen by the cross-fitted macro-F1 itself, which
flatters the baseline a little. Prints what train.py calls 'cross-fitted', with its interval.
"""

import sys
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import metrics
from config import EMOTIONS, HERE
from data import assign_folds, read_csv, text_hashes


def main(path: str) -> None:
    table = read_csv(path, None, list(EMOTIONS))
    y, fold = table.labels, assign_folds(table.labels, text_hashes(table.texts), 5, 42)
    results = []
    for c in (0.3, 1.0, 3.0, 10.0, 30.0, 100.0):
        p = np.zeros(y.shape, dtype=np.float32)
        for k in range(5):
            train, held = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
            tfidf = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
            x = tfidf.fit_transform([table.texts[i] for i in train])
            model = OneVsRestClassifier(LogisticRegression(C=c, max_iter=1000)).fit(x, y[train])
            p[held] = model.predict_proba(tfidf.transform([table.texts[i] for i in held]))
        pred = metrics.cross_fit(y, p, fold)
        results.append((metrics.scores(y, pred)["macro_f1"], c, pred))
    print([(round(a, 4), c) for a, c, _ in results])
    best, c, pred = max(results, key=lambda r: r[0])
    low, high = metrics.interval(metrics.bootstrap_f1(y, pred).mean(1))
    print(
        f"{path}: {len(table)} rows | TF-IDF + logistic regression (C {c:g}): cross-fitted macro-F1 {best:.4f} [{low:.4f}, {high:.4f}]"
    )


if __name__ == "__main__":
    for name in sys.argv[1:] or [str(HERE / "examples" / "train.csv")]:
        main(name)
