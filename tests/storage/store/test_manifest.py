"""Manifests: they survive JSON, and show a flipped bit."""

from __future__ import annotations

import pytest

from artifacts import KEY
from fortifai_core.errors import ArtifactDamaged
from storage.store.keys import EncodingError
from storage.store.manifest import FileEntry, Manifest, Removal


def test_manifest_survives_json_and_shows_a_flipped_bit() -> None:
    entry = {"name": "a", "size": 1, "sha256": "0" * 64}
    manifest = Manifest(
        kind="model",
        key=KEY,
        stage_version=1,
        content={"g": 0.9, "n": 1},
        parents={"base": "b"},
        files=[entry],
        metrics={"loss": 0.1, "name": "x"},
        provenance={"p": {"q": [1]}},
        created="2026-01-01T00:00:00+00:00",
        seconds=1.5,
    )
    text = manifest.to_json()
    assert Manifest.from_json(text) == manifest
    assert isinstance(Manifest.from_json(text).content["n"], int)
    for damaged in (text.replace("0.9", "0.8"), text[:-20], "", "[]", text.replace('"seconds"', '"second"')):
        with pytest.raises(ArtifactDamaged):
            Manifest.from_json(damaged)
    with pytest.raises(EncodingError, match=r"metrics\.loss"):
        Manifest("model", KEY, 1, {}, {}, [], {"loss": float("nan")}).to_json()


@pytest.mark.parametrize("name", ["../../../planted.txt", "/planted.txt", "a/../../b", "manifest.json", "a\\b", ""])
def test_a_name_that_leaves_the_artifact_is_refused_when_the_manifest_is_read(name: str) -> None:
    """Before anybody writes there what an object of that name in a bucket holds."""
    entry: FileEntry = {"name": name, "size": 1, "sha256": "0" * 64}
    removed: Removal = {"by": "gc", "at": "2026-01-01T00:00:00+00:00", "files": [entry]}
    for manifest in (
        Manifest("model", KEY, 1, {}, {}, [entry]),
        Manifest("model", KEY, 1, {}, {}, [], removed=removed),
    ):
        with pytest.raises(ArtifactDamaged, match="cannot be the name of a file"):
            Manifest.from_json(manifest.to_json())
