"""What stands for a model folder in a key: every file that may be read from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from storage.tables.models import model_identity


def folder(place: Path) -> Path:
    place.mkdir(parents=True)
    (place / "model.safetensors").write_bytes(b"weights")
    (place / "config.json").write_text("{}")
    return place


@pytest.mark.parametrize(
    "name",
    ["merges.txt", "vocab.json", "tokenizer.model", "special_tokens_map.json", "generation_config.json",
     "added_tokens.json", "chat_template.jinja", "model.safetensors.index.json", "tokenizer.json"],
)  # fmt: skip
def test_whatever_may_be_read_is_in_the_identity(tmp_path: Path, name: str) -> None:
    place = folder(tmp_path / "model")
    before = model_identity(str(place), None)
    (place / name).write_text("a")
    there = model_identity(str(place), None)
    (place / name).write_text("b")
    assert len({before, there, model_identity(str(place), None)}) == 3


def test_place_notes_and_what_others_leave_there_are_not(tmp_path: Path) -> None:
    one, two = folder(tmp_path / "one"), folder(tmp_path / "two")
    for name in ("README.md", "LICENSE", ".gitattributes", ".DS_Store", "pytorch_model.bin"):
        (two / name).write_text("x")
    assert model_identity(str(one), None) == model_identity(str(two), None)


def test_an_adapters_base_in_a_folder_is_in_its_identity(tmp_path: Path) -> None:
    base, adapter = folder(tmp_path / "base"), folder(tmp_path / "adapter")
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    before = model_identity(str(adapter), None)
    (base / "model.safetensors").write_bytes(b"others!")
    assert model_identity(str(adapter), None) != before
