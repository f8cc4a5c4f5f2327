"""Models and tokenizers on disk: fetching pretrained ones, saving and loading those of each generation."""

from __future__ import annotations

import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

from fortifai_core.errors import DataError

WEIGHTS = ("*.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "adapter_config.json")
ADAPTER = "adapter"


def is_local(path: str) -> bool:
    """Whether a model's `path` means a folder rather than a hub id (`owner/name`)."""
    return Path(path).exists() or path.startswith((".", "/", "~")) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path)


def model_identity(path: str, revision: str | None) -> str:
    """What enters the key: the digest of a local folder's files, or the hub id with its revision.

    Raises:
        DataError: the folder is not there, or holds no model.
    """
    if not is_local(path):
        return f"hub:{path}@{revision or 'main'}"
    folder = Path(path).expanduser()
    files = sorted({file for pattern in WEIGHTS for file in folder.glob(pattern)})
    if not any(file.suffix == ".safetensors" for file in files):
        raise DataError("model.path", path, "is no folder with a config.json and .safetensors weights")
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode())
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return f"sha256:{digest.hexdigest()}"


def model_shape(path: str) -> dict[str, int] | None:
    """Of a model in a local folder: parameters, layers, hidden, intermediate, and keys (values of a layer's keys for
    one token). None where the folder, its configuration or its weights do not say it."""
    folder = Path(path).expanduser()
    try:
        config = json.loads((folder / "config.json").read_text())
        parameters = sum(_parameters(file) for file in folder.glob("*.safetensors"))
        config = config.get("text_config", config)
        heads = config["num_attention_heads"]
        size = config.get("head_dim") or config["hidden_size"] // heads
        return {
            "parameters": parameters,
            "layers": config["num_hidden_layers"],
            "hidden": config["hidden_size"],
            "intermediate": config["intermediate_size"],
            "keys": (config.get("num_key_value_heads") or heads) * size,
        }
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _parameters(file: Path) -> int:
    """How many numbers a safetensors file holds, by its header."""
    with file.open("rb") as opened:
        header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")


def fetch_model(path: str, revision: str | None, *, dtype: str) -> Any:
    """A pretrained causal language model in evaluation mode.

    Raises:
        DataError: it is not there, and no hub can be reached.
    """
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_pretrained(_place(path), revision=revision, dtype=dtype, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise DataError("model.path", path, f"cannot be loaded: {_first_line(error)}") from error


def fetch_tokenizer(path: str, revision: str | None) -> Any:
    """A pretrained tokenizer, with a padding token.

    Raises:
        DataError: it is not there, and no hub can be reached.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(_place(path), revision=revision)
    except (OSError, ValueError) as error:
        raise DataError("model.path", path, f"its tokenizer cannot be loaded: {_first_line(error)}") from error
    if tokenizer.eos_token_id is None:
        raise DataError("model.path", path, "its tokenizer has no end-of-text token, which divides documents")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _place(path: str) -> str:
    return str(Path(path).expanduser()) if is_local(path) else path


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200]


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer saved in an artifact."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def load_model(folder: Path, *, base: Path | None = None, trainable: bool = False) -> Any:
    """The model saved in an artifact's folder, in evaluation mode.

    Args:
        base: the folder of M_-1, where `folder` holds only a LoRA adapter of it.
        trainable: an adapter is loaded so that its training can go on.
    """
    from transformers import AutoModelForCausalLM

    adapter = folder / ADAPTER
    place = base if adapter.is_dir() else folder
    if place is None:
        raise ValueError(f"{folder} holds a LoRA adapter: its base model is needed as well")
    model: Any = AutoModelForCausalLM.from_pretrained(place, dtype="auto", use_safetensors=True)
    if adapter.is_dir():
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(adapter), is_trainable=trainable)
    model.eval()
    return model
