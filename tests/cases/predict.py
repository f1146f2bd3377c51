"""Spoilt runs for test_predict.py, bad thresholds for test_odd_files.py: one row each."""

import json
import shutil

import numpy as np
import pandas
from conftest import LABELS

SPOILT = [  # what is done to the run; words of the error
    (lambda run: shutil.rmtree(run / "fold_1"), "fold 1 is missing"),
    (lambda run: (run / "fold_1" / "DONE.json").unlink(), "fold 1 is missing"),
    (lambda run: (run / "fold_2" / "head.safetensors").unlink(), "head.safetensors: missing"),
    (lambda run: (run / "fold_2" / "model.safetensors").write_bytes(b"x"), "model.safetensors: missing or damaged"),
    (lambda run: (run / "metrics.json").unlink(), "metrics.json: missing"),
    (lambda run: (run / "config.json").unlink(), "config.json: missing"),
    (lambda run: (run / "th.npy").unlink(), "th.npy: missing"),
    (lambda run: (run / "th.json").write_text(json.dumps({"labels": list("abcde"), "run": "x"})), "th.json: missing or damaged"),
    (lambda run: (run / "fold_0" / "DONE.json").write_text((run / "fold_0" / "DONE.json").read_text().replace('"run": "', '"run": "f')), "DONE.json: missing or damaged"),
    (lambda run: (run / "DONE.json").unlink(), "DONE.json is missing"),
]  # fmt: skip

THRESHOLDS = [  # as given from Python; words of the error
    ([0.5] * 4, "thresholds: shape (4,), but the run has 5 labels - use its own"),
    ([[0.5] * 5], "thresholds: shape (1, 5), but the run has 5 labels"),
    ([], "thresholds: shape (0,)"),
    ([0.5] * 4 + [2.0], "thresholds: threshold of surprise is 2.0 - must lie between 0 and 1"),
    ([0.5] * 4 + [None], "threshold of surprise is nan"),
    (["a"], "thresholds: ['a'] are no numbers - give one number for each label"),
    (["a"] * 5, "are no numbers"),
    (["a\nb"] * 500, "are no numbers"),
    ([0.5, [0.5]], "are no numbers"),
    ([10**400] * 5, "are no numbers"),
    (np.array(["a"] * 5), "are no numbers"),
    ({0.5}, "thresholds: {0.5} are no numbers"),
    (object, "are no numbers"),
    ({"anger": 0.5}, "thresholds: are for 'anger', the run's labels are anger, fear, joy, sadness, surprise - give a value for each label"),
    (dict.fromkeys([*LABELS, "more"], 0.5), "are for 'anger', 'fear', 'joy', 'sadness', 'surprise', 'more', the run's"),
    (dict.fromkeys(LABELS, "a"), "are no numbers"),
    (dict.fromkeys(map(str, range(999)), 0.5), "are for '0', '1'"),
    (pandas.Series([0.5] * 5), "thresholds: are for 0, 1, 2, 3, 4, the run's labels are"),
    (pandas.Series([0.5] * 5, index=[*LABELS[:4], "x"]), "are for 'anger', 'fear', 'joy', 'sadness', 'x', the run's"),
    (pandas.Series([0.5] * 6, index=[*LABELS, "joy"]), "are for 'anger', 'fear', 'joy', 'sadness', 'surprise', 'joy', the run's"),
    (pandas.Series(["a"] * 5, index=LABELS), "are no numbers"),
    (pandas.DataFrame({name: [0.5, 0.4] for name in LABELS}), "thresholds: shape (5, 2), but the run has 5 labels"),
    (2, "--thresholds 2: threshold of anger is 2.0"),
    (float("nan"), "threshold of anger is nan"),
]  # fmt: skip
