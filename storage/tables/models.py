"""Models and tokenizers in artifacts: those of each generation are kept and loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fortifai_core.errors import ArtifactDamaged

ADAPTER = "adapter"


def is_weights(kind: str, name: str) -> bool:
    """Whether a file of an artifact holds a model's weights."""
    return kind == "model" and name.endswith(".safetensors")


# no folder or hub repository has code run; without a word, transformers asks on the terminal, and waits
SAFELY: dict[str, Any] = {"trust_remote_code": False}


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


def load_model(folder: Path, *, base: Path | None = None, trainable: bool = False, dtype: str | None = None) -> Any:
    """The model saved in an artifact's folder, in evaluation mode.

    Args:
        base: the folder of M_-1, where `folder` holds only a LoRA adapter of it.
        trainable: an adapter is loaded so that its training can go on.
        dtype: the type that the weights are turned into, an adapter's as well; None: as they are kept.
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
    return cast(model, dtype).eval()


def save_model(model: Any, folder: Path, *, dtype: str | None = None, weights: dict[str, Any] | None = None) -> None:
    """Write what `load_model` reads: weights as safetensors; of an adapter, only its own.

    Args:
        dtype: what the file holds instead of the weights' own type. The configuration still names that one, into which
            whoever loads the model turns them.
        weights: instead of the model's own, of which it has only a part.
    """
    from peft import PeftModel

    if weights is None:
        model = model.to("cpu")
        weights = _rounded(model, dtype) if dtype else None
    if isinstance(model, PeftModel):
        model.save_pretrained(str(folder / ADAPTER), state_dict=weights)
        _forget_circumstances(folder / ADAPTER)
    else:
        model.save_pretrained(folder, state_dict=weights)


def cast(model: Any, dtype: str | None) -> Any:
    """The model with its weights in the type of that name; as it is where there is none."""
    import torch

    return model if dtype is None else model.to(getattr(torch, dtype))


def _rounded(model: Any, dtype: str) -> dict[str, Any]:
    """A model's weights in another type; what two names share they still share."""
    import torch

    made: dict[Any, Any] = {}
    kept = getattr(torch, dtype)
    return {
        name: made.setdefault((weight.data_ptr(), weight.shape), weight.to(kept))
        if weight.is_floating_point()
        else weight
        for name, weight in model.state_dict().items()
    }


def _forget_circumstances(adapter: Path) -> None:
    """Take out of a saved adapter what differs between equal runs: the store's path, and the order of sets."""
    path = adapter / "adapter_config.json"
    saved = json.loads(path.read_text(encoding="utf-8"))
    config = {name: sorted(value) if isinstance(value, list) else value for name, value in saved.items()}
    config["base_model_name_or_path"] = None  # it lies in the store, and is found there by its key
    path.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
    (adapter / "README.md").unlink(missing_ok=True)  # peft's form of a model card, with that path
