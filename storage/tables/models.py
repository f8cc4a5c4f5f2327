"""Models and tokenizers on disk: fetching pretrained ones, saving and loading those of each generation."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from fortifai_core.errors import DataError
from fortifai_core.parsing import local_path
from storage.store.tree import is_stray

# what no loader reads: notes, and weights in formats that are never opened
_UNREAD = (".md", ".txt.license", ".gitattributes", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".ot", ".onnx",
           ".tflite", ".gguf", ".png", ".jpg", ".pdf")  # fmt: skip
ADAPTER = "adapter"


def is_local(path: str) -> bool:
    """Whether a model's `path` means a folder rather than a hub id (`owner/name`)."""
    return not re.fullmatch(r"[\w.-]{1,96}(/[\w.-]{1,96})?", path) or path.startswith(".") or Path(path).exists()


def model_identity(path: str, revision: str | None) -> str:
    """What enters the key: the digest of a local folder's files, or the hub id with its revision.

    Raises:
        DataError: the folder is not there, or holds no model.
    """
    if not is_local(path):
        return f"hub:{path}@{revision or 'main'}"
    folder = local_path(path, "model.path")
    # everything else that lies there may be read: vocabularies, merges, special tokens, how to generate
    files = sorted(file for file in folder.glob("*") if file.is_file() and _may_be_read(file.name))
    if not any(file.suffix == ".safetensors" for file in files):
        raise DataError("model.path", path, "is no folder with a config.json and .safetensors weights")
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode())
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    base = _adapted(folder)
    if base is not None and is_local(base):
        digest.update(model_identity(base, None).encode())
    return f"sha256:{digest.hexdigest()}"


def _may_be_read(name: str) -> bool:
    return not (is_stray(name) or name.startswith("LICENSE") or name.endswith(_UNREAD))


def _adapted(folder: Path) -> str | None:
    """The model that the folder's adapter belongs to, where it holds an adapter."""
    try:
        named = json.loads((folder / "adapter_config.json").read_bytes()).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        return None
    return named if isinstance(named, str) and Path(named) != folder else None


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
    return str(local_path(path, "model.path")) if is_local(path) else path


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
