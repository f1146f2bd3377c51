"""An exported graph in 8 bits: made, and judged on its own out-of-fold rows.

n held-out rows, C labels.
"""

import contextlib
import importlib.util
import logging
import warnings
from pathlib import Path

import numpy as np

import metrics
from data import threshold_folds
from predict import Ensemble
from support.finished import read_oof, read_training

LOSS = 0.01  # of macro-F1, from which on int8 is advised against


@contextlib.contextmanager
def quiet():
    """Without the libraries' warnings on packages for images and on names of sizes."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def quantise(fp32: Path, int8: Path, large: bool) -> None:
    """Weights in 8 bits, each channel with a scale of its own. Only 7 of the bits are used: so no
    sum overflows on processors without VNNI, and all compute the same."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with quiet():
        quantize_dynamic(
            fp32,
            int8,
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=large,
        )


def load_program(folder: Path):
    """The folder's own predict_onnx.py as a module."""
    spec = importlib.util.spec_from_file_location("predict_onnx", folder / "predict_onnx.py")
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    return program


def judge(ensemble: Ensemble, folder: Path, moved: list[str]) -> dict:
    """Thresholds and calibration by the out-of-fold probabilities of the graph of all folds in
    `folder`; prints its cross-fitted macro-F1. `moved`: see `read_training`."""
    table = read_training(ensemble.run, moved)
    oof = read_oof(ensemble.run, table)
    program = load_program(folder)
    p = np.zeros_like(oof.p)
    for i, (row, k) in enumerate(zip(oof.rows, oof.fold, strict=True)):
        p[i] = program.run([table.inputs[row]], "by_fold")[k, 0]
    fold = threshold_folds(oof, table.groups, ensemble.config)
    new = metrics.scores(oof.y, metrics.cross_fit(oof.y, p, fold))["macro_f1"]
    old = metrics.scores(oof.y, metrics.cross_fit(oof.y, oof.p, fold))["macro_f1"]
    print(f"cross-fitted macro-F1: int8 {new:.4f}, fp32 {old:.4f} ({len(p)} rows)")
    if new < old - LOSS:
        print(f"int8 loses more than {LOSS} - leave out --int8 to keep fp32")
    platt = [metrics.platt(oof.y[:, j], p[:, j]) for j in range(p.shape[1])]
    th = metrics.tune_thresholds(oof.y, p)
    return {"thresholds": th.tolist(), "calibration": np.array(platt).T.tolist()}
