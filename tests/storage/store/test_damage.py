"""Damage: seen, set aside, built anew."""

from __future__ import annotations

from pathlib import Path

import pytest

from artifacts import KEY, put
from fortifai_core.errors import ArtifactDamaged
from storage.store.store import ArtifactDamagedWarning, ArtifactStore, Verification


def test_a_truncated_file_is_set_aside_and_rebuilt(store: ArtifactStore) -> None:
    artifact = put(store, "model", KEY)
    (artifact.path / "a.txt").write_text("hell")
    with pytest.warns(ArtifactDamagedWarning, match=r"a\.txt has 4 bytes, its manifest says 5"):
        assert store.find("model", KEY) is None
    (aside,) = (store.root / "damaged").iterdir()
    assert aside.name.endswith(f"-model-{KEY}")
    assert (aside / "a.txt").read_text() == "hell"
    assert put(store, "model", KEY).file("a.txt").read_text() == "hello"


def test_a_flipped_bit_is_caught_by_digest(store: ArtifactStore) -> None:
    artifact = put(store, "model", KEY)
    (artifact.path / "a.txt").write_text("jello")
    assert store.find("model", KEY) is not None
    with pytest.warns(ArtifactDamagedWarning, match="sha256"):
        assert store.find("model", KEY, verify=True) is None
    assert put(store, "model", KEY).file("a.txt").read_text() == "hello"


def test_verify_sets_aside_what_is_damaged_and_counts_the_rest(store: ArtifactStore) -> None:
    flipped, cut, gone, forged, whole = (put(store, kind, KEY) for kind in ("b", "c", "d", "e", "f"))
    (flipped.path / "inner" / "b.txt").write_text("c")
    (cut.path / "a.txt").write_text("hell")
    (gone.path / "a.txt").unlink()
    (forged.path / "manifest.json").write_text("{}")
    verified = store.verify()
    assert verified.sound == 1
    assert [(d.kind, d.key, d.file) for d in verified.damaged] == [
        ("b", KEY, "inner/b.txt"),
        ("c", KEY, "a.txt"),
        ("d", KEY, "a.txt"),
        ("e", KEY, "manifest.json"),
    ]
    for damage, said in zip(verified.damaged, ("sha256", "4 bytes", "missing", "not a manifest"), strict=True):
        assert said in damage.problem
        assert Path(damage.moved_to).is_dir() and Path(damage.moved_to).parent == store.root / "damaged"
        assert store.find(damage.kind, KEY) is None
    assert (Path(verified.damaged[0].moved_to) / "inner" / "b.txt").read_text() == "c"
    assert store.find("f", KEY) == whole
    assert store.verify() == Verification(sound=1, damaged=[])


@pytest.mark.parametrize("text", ["", "{}", "not json"])
def test_a_damaged_manifest_is_damage_and_not_absence(store: ArtifactStore, text: str) -> None:
    artifact = put(store, "model", KEY)
    (artifact.path / "manifest.json").write_text(text)
    with pytest.warns(ArtifactDamagedWarning):
        assert store.ls() == []
    with pytest.warns(ArtifactDamagedWarning, match="set aside"):
        assert store.find("model", KEY) is None


def test_a_manifest_in_the_wrong_place_is_refused(store: ArtifactStore) -> None:
    artifact = put(store, "model", KEY)
    artifact.path.rename(artifact.path.with_name("c" * 64))
    with pytest.warns(ArtifactDamagedWarning, match="belongs to"):
        assert store.find("model", "c" * 64) is None


def test_a_missing_file_is_damage(store: ArtifactStore) -> None:
    artifact = put(store, "model", KEY)
    (artifact.path / "inner" / "b.txt").unlink()
    with pytest.raises(ArtifactDamaged, match="gone"):
        artifact.file("inner/b.txt")
    with pytest.warns(ArtifactDamagedWarning, match="missing"):
        assert store.find("model", KEY) is None
