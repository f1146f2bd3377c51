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
from predict import Ensemble
from tools.runs import cross_fit, read_oof, read_training

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

    how = {"per_channel": True, "reduce_range": True, "weight_type": QuantType.QInt8}
    with quiet():
        quantize_dynamic(fp32, int8, use_external_data_format=large, **how)


def load_program(folder: Path):
    """The folder's own predict_onnx.py as a module."""
    spec = importlib.util.spec_from_file_location("predict_onnx", folder / "predict_onnx.py")
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    return program


def judge(ensemble: Ensemble, folder: Path, moved: list[str]) -> dict:
    """Thresholds and calibration by the out-of-fold probabilities of the graph of all folds in
    `folder`; prints its cross-fitted macro-F1. `moved`: see `read_training`."""
    data, program = read_training(ensemble.run, moved), load_program(folder)
    scored = read_oof(ensemble.run, data, ensemble.labels)
    held_out = zip(scored.rows, scored.fold, strict=True)
    p = np.stack([program.run([data.inputs[i]], "by_fold")[k, 0] for i, k in held_out])
    crossed = cross_fit(scored, p, data, ensemble.config)
    new, old = (metrics.scores(scored.y, pred)["macro_f1"] for pred in (crossed, scored.pred))
    print(f"cross-fitted macro-F1: int8 {new:.4f}, fp32 {old:.4f} ({len(p)} rows)")
    if new < old - LOSS:
        print(f"int8 loses more than {LOSS} - leave out --int8 to keep fp32")
    platt = [metrics.platt(y, q) for y, q in zip(scored.y.T, p.T, strict=True)]
    th = metrics.tune_thresholds(scored.y, p)
    return {"thresholds": th.tolist(), "calibration": np.array(platt).T.tolist()}
