"""The cases of test_predict.py's spoilt runs: one row each."""

import json
import shutil

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
