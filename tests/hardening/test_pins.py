"""Presets name what they load from the hub by commit; the keys of what a mirror holds don't depend on it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from flows.load import load_any_config, presets
from fortifai_core.config.corpus import HuggingFaceCorpus
from storage.sources import hub, mirror
from storage.sources.model_packages import PACKAGES
from tasks.language.specs import corpus_content

COMMIT = re.compile(r"[0-9a-f]{40}")


def named(value: Any) -> Iterator[dict[str, Any]]:
    """Every dataset and every pretrained model of a configuration."""
    if isinstance(value, dict):
        if value.get("type") in ("huggingface", "pretrained"):
            yield value
        for inner in value.values():
            yield from named(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from named(inner)


@pytest.mark.parametrize("preset", presets())
def test_what_a_preset_loads_from_the_hub_has_a_commit(preset: str) -> None:
    fetched = {(package.hub_id, package.file) for package in PACKAGES}  # by `make models`, with a digest
    for part in named(load_any_config(preset).model_dump(mode="json")):
        if (part.get("path"), part.get("gguf_file")) in fetched:
            continue
        assert COMMIT.fullmatch(part["revision"] or ""), part


def test_some_presets_load_from_the_hub_and_mnist_has_a_commit_too() -> None:
    assert len(list(named([load_any_config(preset).model_dump(mode="json") for preset in presets()]))) >= 4
    assert COMMIT.fullmatch(hub.MNIST_REVISION)


def test_a_revision_enters_a_key_by_the_digest_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = HuggingFaceCorpus(dataset="a/b")
    pinned = plain.model_copy(update={"revision": "c" * 40})
    assert corpus_content(plain, {"x": "1"}) == corpus_content(pinned, {"x": "1"})
    monkeypatch.delenv(mirror.VARIABLE, raising=False)  # of what comes from the hub
    digests = [hub.dataset_digests("a/b", None, ["train"], revision) for revision in (None, "c" * 40)]
    assert digests[0] != digests[1]
