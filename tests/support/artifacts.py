"""Artifacts for tests of a store: one that is built by hand, and stores to put it into."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from storage.store.locks import LeaseTimes
from storage.store.store import Artifact, ArtifactStore, Draft

KEY = "a" * 64
QUICK = LeaseTimes(beat=0.05, expiry=0.4, poll=0.02)


def build(draft: Draft, text: str = "hello") -> None:
    """Commit an artifact of two files."""
    (draft.path / "inner").mkdir()
    (draft.path / "a.txt").write_text(text)
    (draft.path / "inner" / "b.txt").write_text("b")
    draft.commit(stage_version=2, content={"x": 1.0, "n": 1}, parents={"corpus": "b" * 64}, metrics={"loss": 0.5})


def put(store: ArtifactStore, kind: str, key: str, builder: Callable[[Draft], object] = build) -> Artifact:
    """The artifact, built by `builder(draft)` unless it is there."""
    with store.build(kind, key) as draft:
        if draft.found is None:
            builder(draft)
        assert draft.artifact is not None, "the builder committed nothing"
        return draft.artifact


def flip_one_of_each_kind(store: ArtifactStore, only: str | None = None) -> dict[str, str]:
    """Change one bit in the middle of one file of one artifact of every kind (or of one); the key of each, by kind."""
    flipped: dict[str, str] = {}
    for manifest in store.ls(only):
        if manifest.kind not in flipped:
            flipped[manifest.kind] = manifest.key
            path = Path(store.address(f"artifacts/{manifest.kind}/{manifest.key}/{manifest.files[-1]['name']}"))
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
    return flipped


def remote_store(tmp_path: Path, name: str, machine: str = "one") -> ArtifactStore:
    """A store in this process's memory, as one of several machines sees it."""
    return ArtifactStore(f"memory://{name}/prefix", cache=tmp_path / machine, lease_times=QUICK)
