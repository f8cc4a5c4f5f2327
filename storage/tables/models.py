"""Models and tokenizers on disk: fetching pretrained ones, saving and loading those of each generation."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from fortifai_core.errors import ArtifactDamaged, DataError
from fortifai_core.parsing import local_path
from storage.store.tree import is_stray

# what no loader reads: notes, and weights in formats that are never opened
_UNREAD = (".md", ".txt.license", ".gitattributes", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".ot", ".onnx",
           ".tflite", ".gguf", ".png", ".jpg", ".pdf")  # fmt: skip
ADAPTER = "adapter"
# no folder or hub repository has code run; without a word, transformers asks on the terminal, and waits
SAFELY: dict[str, Any] = {"trust_remote_code": False}


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
    import httpx
    from transformers import AutoModelForCausalLM

    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            _place(path), revision=revision, dtype=dtype, output_loading_info=True, **SAFELY, use_safetensors=True
        )
    except httpx.HTTPError:
        raise  # trouble on the way to the hub, which is tried again
    except Exception as error:
        raise DataError("model.path", path, f"cannot be loaded: {why_not(error)}") from error
    model, found = loaded
    if found["missing_keys"]:  # the library fills in random ones
        raise DataError("model.path", path, f"its weights lack {', '.join(sorted(found['missing_keys'])[:3])}")
    return model


def fetch_tokenizer(path: str, revision: str | None) -> Any:
    """A pretrained tokenizer, with a padding token.

    Raises:
        DataError: it is not there, and no hub can be reached.
    """
    import httpx
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(_place(path), revision=revision, **SAFELY)
    except httpx.HTTPError:
        raise  # trouble on the way to the hub, which is tried again
    except Exception as error:
        raise DataError("model.path", path, f"its tokenizer cannot be loaded: {why_not(error)}") from error
    if tokenizer.eos_token_id is None:
        raise DataError("model.path", path, "its tokenizer has no end-of-text token, which divides documents")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _place(path: str) -> str:
    return str(local_path(path, "model.path")) if is_local(path) else path


def why_not(error: Exception) -> str:
    """In one line, what a library made of a model's files."""
    text = str(error).strip()
    if "trust_remote_code" in text:
        return "it wants to run code that it brings along, which is never done: choose one that transformers knows"
    return (text.splitlines() or [type(error).__name__])[0][:200]


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer saved in an artifact."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, **SAFELY)


def load_config(folder: Path) -> Any:
    """The configuration of the model saved in an artifact's folder."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder, **SAFELY)


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
    model: Any = AutoModelForCausalLM.from_pretrained(place, dtype="auto", **SAFELY, use_safetensors=True)
    if adapter.is_dir():
        if not (adapter / "adapter_model.safetensors").is_file():  # peft would look for a pickle
            raise ArtifactDamaged(
                f"{adapter} holds no adapter_model.safetensors", file=f"{ADAPTER}/adapter_model.safetensors"
            )
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(adapter), is_trainable=trainable)
    model.eval()
    return model
