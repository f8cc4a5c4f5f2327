"""Models and tokenizers in artifacts: loading those of each generation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

ADAPTER = "adapter"


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
