"""Predict with an exported run: python predict_onnx.py new.csv out.csv [probabilities.csv]
It needs numpy, onnxruntime, tokenizers, the files beside it, and memory for all of new.csv."""

import csv
import json
import os
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

HERE = Path(__file__).resolve().parent
MODEL = json.loads((HERE / "model.json").read_text(encoding="utf-8"))
TOKENIZER = Tokenizer.from_file(str(HERE / "tokenizer.json"))  # it cuts long texts
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", 0))  # 0: all cores
SESSION = onnxruntime.InferenceSession(HERE / "model.onnx", options)
csv.field_size_limit(2**31 - 1)  # the default refuses long texts


def run(texts: list[str], output: str) -> np.ndarray:
    """One batch through the graph."""
    rows = [e.ids or [MODEL["pad_id"]] for e in TOKENIZER.encode_batch(texts)]
    ids = np.full((len(rows), max(map(len, rows))), MODEL["pad_id"])
    mask = np.arange(ids.shape[1]) < [[len(row)] for row in rows]
    ids[mask] = np.concatenate(rows)
    return SESSION.run([output], {"input_ids": ids, "attention_mask": mask.astype(int)})[0]


def predict(texts: list[str]) -> np.ndarray:
    """Probabilities, float32 (N, C). In int8 the texts of a batch would change each other."""
    out = np.zeros((len(texts), len(MODEL["labels"])), np.float32)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # a batch of similar length
    size = 1 if MODEL["int8"] else max(1, 2048 // MODEL["max_length"])
    for part in (order[i : i + size] for i in range(0, len(order), size)):
        out[part] = run([texts[i] for i in part], "probabilities")
    return out


def main(source: str, *paths: str) -> None:
    try:
        with open(source, encoding="utf-8-sig", newline="") as f:
            names, *rows = csv.reader(f, strict=True)
        rows = [row or [""] for row in rows if row or len(names) == 1]  # without blank lines
        rows = [dict(zip(map(str.strip, names), row, strict=True)) for row in rows]
        texts = [row[MODEL["text_column"]] for row in rows]
    except (OSError, KeyError, ValueError, csv.Error) as e:
        need = f"a CSV in UTF-8, a column {MODEL['text_column']!r}, rows of one length"
        sys.exit(f"error: {source}: {e!s:.200} - needed: {need}")
    ids, p = [row.get("id", i) for i, row in enumerate(rows)], predict(texts)
    for path, values in zip(paths, (p >= np.float32(MODEL["thresholds"]), p), strict=False):
        lines = ([i, *map("{:.9g}".format, v)] for i, v in zip(ids, values.tolist(), strict=True))
        with open(path, "w", encoding="utf-8", newline="") as f:
            csv.writer(f, lineterminator="\n").writerows([["id", *MODEL["labels"]], *lines])


if __name__ == "__main__":
    main(*sys.argv[1:]) if len(set(sys.argv)) in (3, 4) else sys.exit(__doc__)
