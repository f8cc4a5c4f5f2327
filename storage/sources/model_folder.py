"""Is a folder a model that can be trained from? Found out from its headers, before anything is computed.

No code that a folder brings along is run, no pickle is read, and no weights are.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fortifai_core.errors import DataError
from storage.tables.models import SAFELY, why_not

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
Shapes = dict[str, tuple[int, ...]]


def check_folder(path: str, folder: Path) -> int:
    """Check the folder in which the model lies that `model.path` names; gives how many tokens the model knows.

    Raises:
        DataError: the folder is not there or wants to run code of its own; its weights are pickled, damaged, incomplete
            or do not fit its config.json.
    """
    if not (folder / "config.json").is_file():
        held = sorted(file.name for file in folder.glob("*.gguf"))
        hint = f"; of a GGUF, say which: model.gguf_file={held[0]}" if held else ""
        raise DataError("model.path", path, f"is no folder with a config.json and .safetensors weights{hint}")
    if (folder / "adapter_config.json").exists():
        raise DataError("model.path", path, "holds an adapter: merge it into its base model, and name the result")
    model, quantized = _empty_model(path, folder)
    stored = _stored_shapes(path, folder)
    if not quantized:
        _check_shapes(path, model, stored)
    return int(model.get_input_embeddings().weight.shape[0])


def check_settings(path: str, folder: Path) -> None:
    """Check what a model's config.json says, where no more of the model has been fetched yet.

    Raises:
        DataError: it cannot be used, or wants to run code of its own.
    """
    _empty_model(path, folder)


def is_whole(path: str, folder: Path) -> bool:
    """Whether weights and tokenizer are there, as far as the folder of a model says what belongs to it.

    Raises:
        DataError: its index of weights makes no sense.
    """
    if not any((folder / name).is_file() for name in (SINGLE, INDEX)):
        return False
    weights = all((folder / name).is_file() for name in _weight_files(path, folder))
    return weights and (folder / "tokenizer_config.json").is_file()


def _empty_model(path: str, folder: Path) -> tuple[Any, bool]:
    """The model that config.json describes, without weights; and whether those are stored in another form."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder, **SAFELY)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, **SAFELY)
    except Exception as error:
        raise DataError("model.path", path, f"its config.json cannot be used: {why_not(error)}") from error
    return model, getattr(config, "quantization_config", None) is not None


def _stored_shapes(path: str, folder: Path) -> Shapes:
    """The shape of every tensor that would be loaded, from the headers of the files."""
    from safetensors import SafetensorError, safe_open

    shapes: Shapes = {}
    for name in _weight_files(path, folder):
        try:
            with safe_open(folder / name, framework="pt") as opened:
                names = opened.keys()
                shapes |= {key: tuple(opened.get_slice(key).get_shape()) for key in names}
        except (OSError, SafetensorError) as error:
            raise DataError("model.path", path, f"its {name} cannot be read: {why_not(error)}") from error
    return shapes


def _weight_files(path: str, folder: Path) -> list[str]:
    if (folder / SINGLE).is_file():
        return [SINGLE]
    if (folder / INDEX).is_file():
        try:
            names = sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
            if names and all(Path(name).name == name and name.endswith(".safetensors") for name in names):
                return names
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise DataError("model.path", path, f"its {INDEX} cannot be read: {why_not(error)}") from error
        raise DataError("model.path", path, f"its {INDEX} names no .safetensors files of this folder")
    pickled = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLED)
    remedy = (
        f"its weights are pickled ({pickled[0]}), and no pickle is loaded: save it as safetensors" if pickled else ""
    )
    raise DataError("model.path", path, remedy or f"has neither {SINGLE} nor {INDEX}")


def _check_shapes(path: str, model: Any, stored: Shapes) -> None:
    expected: Shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    for name in sorted(stored.keys() & expected.keys()):
        if stored[name] != expected[name]:
            remedy = f"its {name} has the shape {stored[name]}, and by its config.json {expected[name]}"
            raise DataError("model.path", path, remedy)
    if stored.keys() <= expected.keys():  # else it is stored under other names, which the loader knows
        tied = set(getattr(model, "all_tied_weights_keys", None) or {})
        missing = [name for name, _ in model.named_parameters() if name not in stored and name not in tied]
        if missing:
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise DataError("model.path", path, f"its weights lack {missing[0]}{more}")
