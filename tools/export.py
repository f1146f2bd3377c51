"""A finished run as one folder that needs no torch: python tools/export.py RUN FOLDER [--int8]

FOLDER gets model.onnx (token ids -> probabilities, the mean over the folds), model.json (labels,
thresholds, calibration), tokenizer.json and predict_onnx.py. At the end the folder's own program
predicts real texts, beside predict.py. K folds, C labels; B rows of a batch, T tokens.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.cli import Parser, start_script


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        "tools/export.py",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", help="finished run")
    parser.add_argument("folder", help="new folder to write")
    parser.add_argument("--fold", type=int, help="this fold's model alone")
    parser.add_argument("--int8", action="store_true", help="weights in 8 bits")
    moved = "the training CSV, and that of --valid, where they lie now"
    parser.add_argument("--train", nargs="+", default=[], metavar="CSV", help=moved)
    return parser.parse_args(argv)


start_script(parse, __name__, unused=("matplotlib",))

import shlex
import shutil
import tempfile

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn

import metrics
from data import Table, encode
from model import compute_loss
from predict import Ensemble
from support.files import read_json, write_json
from support.finished import FinishedRun, some_texts
from support.process import Signals, UserError, exit_codes
from support.versions import numbers
from tools.parts.int8 import judge, load_program, quantise, quiet

LARGE = 1.8e9  # bytes of weights; protobuf takes 2 GB in one file


class FoldMean(nn.Module):
    """Token ids and mask (B, T) -> probabilities: mean of the folds (B, C), and each (K, B, C)."""

    def __init__(self, models: list[nn.Module]):
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, input_ids, attention_mask):
        batch = {"input_ids": input_ids, "attention_mask": attention_mask}
        by_fold = torch.stack([compute_loss(m, batch)[0].sigmoid() for m in self.models])
        return by_fold.mean(0), by_fold


def write_graph(models: list[nn.Module], path: Path) -> bool:
    """model.onnx, for any B and T; whether its weights are in a file of their own beside it.
    UserError for what can't be exported."""
    mean = FoldMean(models).eval()
    large = 4 * sum(p.numel() for p in mean.parameters()) > LARGE
    ids = torch.ones(2, 7, dtype=torch.long)
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[1, 5:] = 0
    any_size = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens")}
    try:
        with quiet():
            torch.onnx.export(
                mean,
                (ids, mask),
                path,
                dynamo=True,
                verbose=False,
                input_names=["input_ids", "attention_mask"],
                output_names=["probabilities", "by_fold"],
                dynamic_shapes=(any_size, any_size),
                external_data=large,
            )
    except ImportError as e:
        raise UserError(f"{e} - pip install -r requirements-dev.txt") from e
    except (OSError, MemoryError):
        raise
    except Exception as e:  # whatever the exporter meets in an encoder
        kind = models[0].encoder.config.model_type
        problem = f"torch's exporter makes no graph of it ({type(e).__name__}: {str(e)[:150]})"
        raise UserError(f"{kind}: {problem} - use predict.py") from e
    return large


def build(ensemble: Ensemble, fold_numbers: list[int], folder: Path, int8: bool) -> None:
    """The folder with all that is in it, thresholds and calibration being the run's."""
    run = ensemble.run
    tokenizer = ensemble.tokenizer
    if not getattr(tokenizer, "backend_tokenizer", None):
        kind = type(tokenizer).__name__
        raise UserError(f"{kind}: is in Python alone, without a tokenizer.json - use predict.py")
    long_text = " ".join(map(str, range(run.config.max_length + 1)))
    if encode(tokenizer, [long_text], run.config.max_length).lengths[0] > run.config.max_length:
        problem = "this code reads more of a text than --max-length; the exported program would not"
        raise UserError(f"{run.path}: {problem} - use predict.py")
    folder.mkdir()
    shutil.copy(Path(__file__).with_name("parts") / "predict_onnx.py", folder)
    model = {
        "labels": run.names,
        "thresholds": run.th.tolist(),
        "run": run.key,
        "calibration": run.platt.tolist(),
        "pad_id": tokenizer.pad_token_id,
        "max_length": run.config.max_length,
        "text_column": run.config.text_column,
        "int8": int8,
    }
    write_json(folder / "model.json", model)
    exported = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())  # a copy
    exported.no_padding()
    exported.enable_truncation(run.config.max_length, direction=tokenizer.truncation_side)
    exported.save(str(folder / "tokenizer.json"))
    models = [ensemble.model(k) for k in fold_numbers]
    with tempfile.TemporaryDirectory(prefix=".tmp-", dir=folder.parent) as temporary:
        path = Path(temporary if int8 else folder, "model.onnx")
        large = write_graph(models, path)
        if int8:
            quantise(path, folder / "model.onnx", large)


def check(ensemble: Ensemble, fold_numbers: list[int], folder: Path, table: Table) -> None:
    """Say how far the folder's own program, which knows texts alone, is from predict.py. UserError
    beyond 1e-4 in fp32."""
    program = load_program(folder)
    ours = ensemble.predict_test(table.inputs, fold_numbers)
    exported = program.predict(table.texts)
    gap = float(np.abs(ours - exported).max())
    th = np.float32(program.MODEL["thresholds"])
    different = metrics.detect(ours, ensemble.run.th) != metrics.detect(exported, th)
    result = f"probabilities differ from predict.py's in fp32 by up to {gap:.1e}"
    verdicts = f"verdicts that differ: {int(different.sum())} of {ours.size}"
    print(f"{len(table)} texts: {result}; {verdicts}")
    if not (gap <= 1e-4 or program.MODEL["int8"]):
        raise UserError(f"{result}, more than 1e-4 - use predict.py for this encoder", 1)


@exit_codes
def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    if numbers(torch.__version__) < [2, 7]:
        hint = "pip install -U torch (tested: 2.13)"
        raise UserError(f"torch {torch.__version__} can't make the graph of an encoder - {hint}")
    folder = Path(args.folder).resolve()
    if not folder.parent.is_dir():
        raise UserError(f"{folder.parent}: no such folder - make it first")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{args.folder}: is not empty - name a new folder")
    run = FinishedRun(args.run, "cpu", "fp32")
    fold_numbers = [*range(run.folds)] if args.fold is None else [args.fold]
    if not 0 <= fold_numbers[-1] < run.folds:
        raise UserError(f"--fold {args.fold}: the run's folds are 0 to {run.folds - 1}")
    ensemble = Ensemble(run, keep=True)
    with (
        Signals(),
        tempfile.TemporaryDirectory(prefix=".tmp-", dir=folder.parent) as temporary,
    ):
        work = Path(temporary, "model")
        build(ensemble, fold_numbers, work, args.int8)
        if args.int8:
            judge_int8(ensemble, args, work)
        check(ensemble, fold_numbers, work, some_texts(run.config, args.train))
        size = sum(path.stat().st_size for path in work.iterdir()) / 1e6
        work.rename(folder)
    program = shlex.quote(str(Path(args.folder, "predict_onnx.py")))
    print(f"done: {args.folder}, {size:.0f} MB | next: python {program} new.csv out.csv")
    return 0


def judge_int8(ensemble: Ensemble, args: argparse.Namespace, work: Path) -> None:
    """Give the folder `work` the thresholds of the folds' own out-of-fold rows in int8."""
    single = read_json(ensemble.run.path / "config.json").get("single")
    folder = work
    if single:  # one model on all rows has none: those of the student's folds
        ensemble = Ensemble(FinishedRun(single, "cpu", "fp32"), keep=True)
    if single or args.fold is not None:
        folder = work.with_name("judged")
        build(ensemble, [*range(ensemble.run.folds)], folder, True)
    found = judge(ensemble, folder, args.train)
    write_json(work / "model.json", read_json(work / "model.json") | found)


if __name__ == "__main__":
    sys.exit(main())
