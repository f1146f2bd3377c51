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
    rows = [encoding.ids or [MODEL["pad_id"]] for encoding in TOKENIZER.encode_batch(texts)]
    width = max(map(len, rows))
    ids = np.full((len(rows), width), MODEL["pad_id"])
    mask = np.arange(width) < [[len(row)] for row in rows]
    ids[mask] = np.concatenate(rows)
    return SESSION.run([output], {"input_ids": ids, "attention_mask": mask.astype(int)})[0]


def predict(texts: list[str]) -> np.ndarray:
    """Probabilities, float32 (N, C). In int8 the texts of a batch would change each other."""
    p = np.zeros((len(texts), len(MODEL["labels"])), np.float32)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # a batch of similar length
    size = 1 if MODEL["int8"] else max(1, 2048 // MODEL["max_length"])
    for start in range(0, len(order), size):
        batch = order[start : start + size]
        p[batch] = run([texts[i] for i in batch], "probabilities")
    return p


def read_csv(path: str) -> tuple[list, list[str]]:
    """Ids, or row numbers, and texts."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as f:
            header, *rows = csv.reader(f, strict=True)
        names = [name.strip() for name in header]
        rows = [row or [""] for row in rows if row or len(names) == 1]  # without blank lines
        rows = [dict(zip(names, row, strict=True)) for row in rows]
        texts = [row[MODEL["text_column"]] for row in rows]
    except (OSError, KeyError, ValueError, csv.Error) as e:
        need = f"a CSV in UTF-8, a column {MODEL['text_column']!r}, rows of one length"
        sys.exit(f"error: {path}: {e!s:.200} - needed: {need}")
    return [row.get("id", i) for i, row in enumerate(rows)], texts


def write_csv(path: str, ids: list, values: np.ndarray) -> None:
    """A row for each id: 0/1, or probabilities to 9 digits."""
    with open(path, "w", encoding="utf-8", newline="") as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow(["id", *MODEL["labels"]])
        for i, row in zip(ids, values.tolist(), strict=True):
            cells = [f"{x:.9g}" for x in row]
            writer.writerow([i, *cells])


def main(source: str, *outputs: str) -> None:
    ids, texts = read_csv(source)
    p = predict(texts)
    detected = p >= np.float32(MODEL["thresholds"])
    write_csv(outputs[0], ids, detected)
    if len(outputs) > 1:
        write_csv(outputs[1], ids, p)


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4) or len(set(sys.argv)) < len(sys.argv):  # no file twice
        sys.exit(__doc__)
    main(*sys.argv[1:])
