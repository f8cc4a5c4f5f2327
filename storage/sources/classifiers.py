"""Sequence classifiers of Hugging Face that tell synthetic from real text: found, checked and loaded."""

from __future__ import annotations

from typing import Any

from fortifai_core.errors import ConfigError
from storage.sources.pretrained import Pretrained
from storage.tables.models import SAFELY, why_not


def check_classifier(path: str, *, synthetic_label: int, field: str) -> str:
    """What stands for the classifier in keys, once it is known to tell two classes apart.

    Args:
        path: a folder, or a name of the hub.

    Raises:
        InputError: it is not there, is no classifier, or has no such label.
    """
    from transformers import AutoConfig

    found = Pretrained.find(path)
    if found.folder is not None and not found.folder.is_dir():
        raise ConfigError(f"{field}.classifier", path, "cannot be read: there is no such folder")
    try:
        config = AutoConfig.from_pretrained(found.folder or path, **SAFELY)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{field}.classifier", path, f"cannot be read: {why_not(error)}") from error
    kinds = getattr(config, "architectures", None) or []
    if not any(kind.endswith("ForSequenceClassification") for kind in kinds):
        held = ", ".join(kinds) or "nothing"
        raise ConfigError(f"{field}.classifier", path, f"holds no sequence classifier, but {held}")
    if config.num_labels < 2:
        remedy = "has one label: a detector needs both classes, synthetic and real"
        raise ConfigError(f"{field}.classifier", path, remedy)
    if synthetic_label >= config.num_labels:
        labels = ", ".join(f"{number} ({name})" for number, name in sorted(config.id2label.items()))
        raise ConfigError(f"{field}.synthetic_label", synthetic_label, f"{path} has the labels {labels}")
    return found.identity


def load_classifier(path: str) -> tuple[Any, Any]:
    """The classifier, in evaluation mode, and its tokenizer."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    place = Pretrained.find(path).folder or path
    model = AutoModelForSequenceClassification.from_pretrained(place, **SAFELY, use_safetensors=True)
    return model.eval(), AutoTokenizer.from_pretrained(place, **SAFELY)
