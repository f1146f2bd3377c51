"""The files of an encoder's folder: what is missing or damaged, and what to do."""

import errno
import json
import os
import re
from pathlib import Path
from pickle import UnpicklingError

from safetensors import SafetensorError, safe_open

POINTER = b"version https://git-lfs"  # how a file begins that Git LFS has not fetched
DAMAGED = (json.JSONDecodeError, UnicodeDecodeError, EOFError, UnpicklingError, SafetensorError)
WEIGHTS = re.compile(r"\.(safetensors|bin)$")
TOKENIZER = re.compile(r"^tokenizer\.|vocab|merges|bpe|\.model$")  # without tokenizer_config.json
SAVE = "save the tokenizer there too: tokenizer.save_pretrained"


def folder_problem(folder: str) -> str | None:
    """What is wrong with a folder, from the names and first bytes of its files, and what to do."""
    files = sorted(os.listdir(folder))
    if "adapter_config.json" in files:
        hint = "merge it first: PeftModel's merge_and_unload(), then save_pretrained"
        return f"the folder holds an adapter (adapter_config.json) - {hint}"
    for name in files:  # safetensors says of these that they don't exist
        if not os.access(os.path.join(folder, name), os.R_OK):
            return f"{name}: Permission denied - its owner makes it readable: chmod a+r {name}"
    if "config.json" not in files:
        return "the folder holds no config.json - give one that save_pretrained wrote"
    weights = list(filter(WEIGHTS.search, files))
    pointers = pointers_in(folder)
    if pointers and (set(weights) <= set(pointers) or any(map(TOKENIZER.search, pointers))):
        return pointer_problem(pointers)
    if not any(map(TOKENIZER.search, files)):
        return f"the folder holds no tokenizer file (tokenizer.json, vocab.txt ...) - {SAVE}"


def pointers_in(folder: str) -> list[str]:
    """The files of weights and tokenizers that Git LFS has not fetched."""
    found = []
    for path in sorted(Path(folder).iterdir()):
        known = WEIGHTS.search(path.name) or TOKENIZER.search(path.name)
        if known and path.is_file():
            with open(path, "rb") as f:
                if f.read(len(POINTER)) == POINTER:
                    found.append(path.name)
    return found


def pointer_problem(names: list[str]) -> str:
    return f"{names[0]} is a Git LFS pointer, not the file itself - run git lfs pull there"


def loading_problem(folder: str, error: Exception) -> str:
    """Why transformers could not load it, and what to do: damaged and wrong files told apart."""
    if os.path.isdir(folder):
        if pointers := pointers_in(folder):
            return pointer_problem(pointers)
        if damage := damaged_file(Path(folder)):
            return f"{damage} - use a sound copy, such as a new download"
        if not any(map(WEIGHTS.search, os.listdir(folder))):
            return "the folder holds no weights (model.safetensors) - save them by save_pretrained"
    reason = str(error).split("Re-running")[0][:200]  # without torch's advice to unpickle
    hint = "give a folder as save_pretrained writes it, or another encoder"
    if isinstance(error, DAMAGED) or "JSON" in reason:
        hint = "use a sound copy, such as a new download"
    elif isinstance(error, ImportError):
        hint = "install what it names"
    elif "model_type" in reason:
        hint = 'add "model_type" to its config.json: "bert", say'
    return f"can't be loaded ({type(error).__name__}: {reason}) - {hint}"


def damaged_file(folder: Path) -> str | None:
    """The first file that is empty, cut short or no JSON, with the reason."""
    for path in sorted(folder.glob("*")):
        try:
            if path.suffix == ".json":
                json.loads(path.read_text(encoding="utf-8"))
            if path.suffix == ".safetensors":
                with safe_open(path, "pt"):
                    pass
            if path.suffix == ".bin" and not path.stat().st_size:
                raise EOFError("it is empty")
        except (*DAMAGED, OSError, RecursionError) as e:
            return f"{path.name} is damaged or cut short ({str(e)[:100]})"


def wrapper_prefix(missing: list[str], unexpected: list[str]) -> str | None:
    """What stands before every missing weight's name among the others: `module.`, say."""
    others = set(unexpected)
    for key in sorted(others):
        prefix = key.removesuffix(missing[0])
        if prefix not in (key, "") and {prefix + name for name in missing} <= others:
            return prefix


def hub_problem(name: str, error: BaseException, offline: bool) -> str:
    """Why a model did not come from the Hub, by the errors behind `error`, and what to do."""
    causes = []
    while error is not None and error not in causes:
        causes.append(error)
        error = error.__cause__ or error.__context__
    kinds = {type(cause).__name__ for cause in causes}
    codes = {getattr(getattr(cause, "response", None), "status_code", None) for cause in causes}
    for cause in causes:
        if "SSL" in type(cause).__name__ or "SSL" in str(cause):
            hint = "behind a proxy that reads along, point SSL_CERT_FILE at its certificate"
            return f"no secure connection to the Hub ({cause!s:.80}) - {hint}"
    for cause in causes:
        if isinstance(cause, OSError) and cause.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            place = cause.filename or "the cache"
            return f"{cause.strerror}: {place} - name a folder to write to: HF_HOME=/path"
    if "GatedRepoError" in kinds or 403 in codes:
        hint = "accept its terms on its page at huggingface.co, and log in: hf auth login"
        return f"the Hub gives it only to those who accepted its terms - {hint}"
    if 407 in codes:
        return "the proxy asks for a login (407) - HTTPS_PROXY=http://user:password@host:port"
    if 429 in codes:
        return "the Hub had too many requests from here (429) - wait some minutes, or hf auth login"
    if any(code and code >= 500 for code in codes):
        return f"the Hub has trouble of its own ({max(filter(None, codes))}) - try again later"
    place = (
        "in the Hub cache, and HF_HUB_OFFLINE is set" if offline else "on the Hub or in its cache"
    )
    private = "; if it is private, log in: hf auth login" if 401 in codes else ""
    return (
        f"not {place} - check the name{private}; download it where there is a network (hf download"
        f" {name}); give a local folder; or leave --model out for the bundled encoder"
    )
