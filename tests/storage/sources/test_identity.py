"""What stands for a model folder in a key: every file that may be read from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage.sources.pretrained import Pretrained


def identity(place: Path) -> str:
    return Pretrained.find(str(place)).identity


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
    before = identity(place)
    (place / name).write_text("a")
    there = identity(place)
    (place / name).write_text("b")
    assert len({before, there, identity(place)}) == 3


def test_place_notes_and_what_others_leave_there_are_not(tmp_path: Path) -> None:
    one, two = folder(tmp_path / "one"), folder(tmp_path / "two")
    for name in ("README.md", "LICENSE", ".gitattributes", ".DS_Store", "pytorch_model.bin"):
        (two / name).write_text("x")
    assert identity(one) == identity(two)
