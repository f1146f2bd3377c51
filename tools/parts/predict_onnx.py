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


def read_csv(path: str) -> tuple[dict[str, list], list[str]]:
    """The columns to write before the labels, by name, and the texts."""
    try:
        with open(path, "rb") as f:
            start = f.read(2)
        encoding = "utf-8-sig"
        if start in (b"\xff\xfe", b"\xfe\xff"):  # as Excel writes "Unicode text"
            encoding = "utf-16"
        with open(path, encoding=encoding, newline="") as f:
            first = next(csv.reader(f), []) or [""]
            f.seek(0)
            header, *rows = csv.reader(f, delimiter=separator(first), strict=True)
        names = [name.strip() for name in header]
        if len(names) > 1:  # else a blank line is a blank text
            rows = [row for row in rows if any(map(str.strip, row))]
        rows = [dict(zip(names, row or [""], strict=True)) for row in rows]
        column = text_column(names)
        if column not in names:
            raise KeyError(column)
        texts = [row[column] for row in rows]
    except (OSError, KeyError, ValueError, csv.Error) as e:
        need = f"a CSV in UTF-8, a column {MODEL['text_column']!r}, rows of one length"
        sys.exit(f"error: {path}: {e!s:.200} - needed: {need}")
    if "id" in names:
        return {"id": [row["id"] for row in rows]}, texts
    return {"id": list(range(len(rows))), "text": texts}, texts


def separator(header: list[str]) -> str:
    """What splits a header that commas leave whole: semicolons or tabs."""
    if len(header) > 1:
        return ","
    return max(",;\t", key=header[0].count)


def text_column(names: list[str]) -> str:
    """That of the training, else the only one that is no id and no label."""
    usual = MODEL["text_column"]
    others = []
    for name in names:
        if name not in ("", *MODEL["labels"]) and name.lower() != "id":
            others.append(name)
    if usual not in names and len(others) == 1:
        return others[0]
    return usual


def write_csv(path: str, columns: dict[str, list], values: np.ndarray) -> None:
    """A row for each text: 0/1, or probabilities to 9 digits."""
    with open(path, "w", encoding="utf-8", newline="") as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow([*columns, *MODEL["labels"]])
        before = zip(*columns.values(), strict=True)
        for cells, row in zip(before, values.tolist(), strict=True):
            numbers = [f"{x:.9g}" for x in row]
            writer.writerow([*cells, *numbers])


def main(source: str, *outputs: str) -> None:
    columns, texts = read_csv(source)
    p = predict(texts)
    detected = p >= np.float32(MODEL["thresholds"])
    write_csv(outputs[0], columns, detected)
    if len(outputs) > 1:
        write_csv(outputs[1], columns, p)


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4) or len(set(sys.argv)) < len(sys.argv):  # no file twice
        sys.exit(__doc__)
    main(*sys.argv[1:])
