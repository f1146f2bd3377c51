"""Predict with an exported run: python predict_onnx.py new.csv out.csv [probabilities.csv]
It needs numpy, onnxruntime, tokenizers, the files beside it, and memory for all of new.csv."""

import csv
import json
import os
import re
import sys
import unicodedata
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

HERE = Path(__file__).resolve().parent
MODEL = json.loads((HERE / "model.json").read_text(encoding="utf-8"))
TOKENIZER = Tokenizer.from_file(str(HERE / "tokenizer.json"))  # it cuts long texts
options = onnxruntime.SessionOptions()
threads = re.match(r"\d*", os.environ.get("OMP_NUM_THREADS", ""))[0]  # of "4,2" the first
options.intra_op_num_threads = int(threads or 0)  # 0: all cores
SESSION = onnxruntime.InferenceSession(HERE / "model.onnx", options)
TEXT_COLUMNS = ("text", "comment_text", "sentence", "content", "review")
csv.field_size_limit(2**31 - 1)  # the default refuses long texts


def run(texts: list[str], output: str) -> np.ndarray:
    """One batch through the graph."""
    rows = [encoding.ids or [MODEL["pad_id"]] for encoding in TOKENIZER.encode_batch(texts)]
    width = max(map(len, rows))
    ids = np.full((len(rows), width), MODEL["pad_id"])
    mask = np.arange(width) < [[len(row)] for row in rows]
    ids[mask] = np.concatenate(rows)
    return SESSION.run([output], {"input_ids": ids, "attention_mask": mask.astype(int)})[0]


def check_texts(texts) -> list[str]:
    """A str, a list of str, or a column of a DataFrame as a list; TypeError for what is no text."""
    if isinstance(texts, str):
        texts = [texts]
    for name in ("to_list", "tolist"):  # a Series of pandas or polars, an array
        if hasattr(texts, name):
            texts = getattr(texts, name)()
    if not isinstance(texts, (list, tuple)):
        hint = "give a list of str, or one column, such as df['text']"
        raise TypeError(f"texts: is a {type(texts).__name__} - {hint}")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            problem = f"is {text!r:.40}, a {type(text).__name__}"
            raise TypeError(f"texts[{i}]: {problem} - give a str, '' for a blank text")
    # Halves of characters, as JSON's \\ud83d leaves them, joined; one alone becomes U+FFFD.
    return [t.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for t in texts]


def predict(texts: list[str]) -> np.ndarray:
    """Probabilities, float32 (N, C). In int8 the texts of a batch would change each other."""
    texts = check_texts(texts)
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
            sign = separator(first)
            header, *rows = csv.reader(f, delimiter=sign, strict=True)
        names = [unicodedata.normalize("NFC", name.strip("\ufeff \t")) for name in header]
        if len(names) == 1 and "|" in names[0]:
            raise ValueError("separate the fields by commas, not '|'")
        for name in names:
            if name and names.count(name) > 1:
                raise ValueError(f"two columns are called {name!r}")
        if len(names) > 1:  # else a blank line is a blank text
            rows = [row for row in rows if any(map(str.strip, row))]
        rows = [dict(zip(names, row or [""], strict=True)) for row in rows]
        column = text_column(names)
        if column not in names:
            raise KeyError(column)
        texts = [row[column] for row in rows]
        warn_of_rows_inside(path, rows, column, sign)
    except (OSError, KeyError, ValueError, csv.Error) as e:
        need = f"a CSV in UTF-8, a column {MODEL['text_column']!r}, rows of one length"
        sys.exit(f"error: {path}: {e!s:.200} - needed: {need}")
    if "id" in names:
        return {"id": [row["id"] for row in rows]}, texts
    return {"id": list(range(len(rows))), "text": texts}, texts


def warn_of_rows_inside(path: str, rows: list[dict], column: str, sign: str) -> None:
    """A quote that opens in one row and closes in a later one makes one text of many rows."""
    for number, row in enumerate(rows, 2):
        found = 0
        for n, line in enumerate(row[column].splitlines()[1:], 1):
            cells = dict(zip(row, line.split(sign), strict=False))
            if len(cells) == len(row) and "id" in row:
                found += alike(row["id"], cells["id"], n)
        if found:
            hint = 'a quote opens there and closes rows later; write it ""'
            words = f"{found} rows stand inside the text of row {number}, and are lost - {hint}"
            print(f"warning: {path}: {words}", file=sys.stderr)


def alike(a: str, b: str, rows: int) -> bool:
    """Whether two cells may be ids of one file, `rows` apart."""
    if a.isdecimal() and b.isdecimal():
        return int(b) == int(a) + rows or len(a) >= 8 and abs(len(a) - len(b)) <= 1
    shapes = [re.sub("[0-9A-Fa-f]", "0", cell) for cell in (a, b)]
    return "0" in a + b and shapes[0] == shapes[1] != ""


def separator(header: list[str]) -> str:
    """What splits a header that commas leave whole: semicolons or tabs."""
    if len(header) > 1:
        return ","
    return max(",;\t", key=header[0].count)


def text_column(names: list[str]) -> str:
    """That of the training, else a usual name, else the only one that is no id and no label."""
    usual = MODEL["text_column"]
    others = []
    for name in names:
        if name not in ("", *MODEL["labels"]) and name.lower() != "id":
            others.append(name)
    if usual in names:
        return usual
    known = [name for name in TEXT_COLUMNS if name in others and usual in TEXT_COLUMNS]
    return next(iter(known), others[0] if len(others) == 1 else usual)


def write_csv(path: str, columns: dict[str, list], values: np.ndarray) -> None:
    """A row for each text: 0/1, or probabilities to 9 digits."""
    with open(path, "w", encoding="utf-8", newline="") as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow([*columns, *MODEL["labels"]])
        before = zip(*columns.values(), strict=True)
        for cells, row in zip(before, values.tolist(), strict=True):
            numbers = [f"{x:.9g}" for x in row]
            writer.writerow([*cells, *numbers])


def check_paths(source: str, outputs: list[str]) -> None:
    """End with one line where a file would be lost, or can't be written."""
    paths = [os.path.realpath(path) for path in (source, *outputs)]
    for path in paths[1:]:
        folder = os.path.dirname(path)
        if paths.count(path) > 1 or os.path.exists(path) and os.path.samefile(path, paths[0]):
            sys.exit(f"error: {path}: input and outputs must be different files")
        if os.path.isdir(path) or not path.endswith(".csv"):
            sys.exit(f"error: {path}: name a file that ends in .csv")
        if not os.access(folder, os.W_OK):
            sys.exit(f"error: {folder}: no such folder, or not writable")


def main(source: str, *outputs: str) -> None:
    check_paths(source, outputs)
    columns, texts = read_csv(source)
    p = predict(texts)
    detected = p >= np.float32(MODEL["thresholds"])
    write_csv(outputs[0], columns, detected)
    if len(outputs) > 1:
        write_csv(outputs[1], columns, p)


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    main(*sys.argv[1:])
