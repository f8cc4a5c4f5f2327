"""Provenance: what made an artifact, and what has changed since."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from storage.store import provenance


def test_provenance_is_json_and_names_no_host() -> None:
    import socket

    found = provenance.collect(["kernels", "storage"])
    text = json.dumps(found)
    assert set(found["sources"]) == {"kernels", "storage"}
    assert found["packages"]["pyarrow"].count(".") == 2
    assert found["peak_rss_bytes"] > 10**6
    assert len(socket.gethostname()) < 4 or socket.gethostname() not in text
    assert "hostname" not in text


def test_drift_names_the_fields_that_differ() -> None:
    old = {
        "git": {"revision": "a" * 40, "dirty": False},
        "sources": {"kernels": "1" * 64, "storage": "2" * 64},
        "packages": {"torch": "2.12.0", "numpy": "2.0"},
        "python": "3.11.7",
        "torch_threads": 2,
        "peak_rss_bytes": 1,
    }
    assert provenance.drift(old, {**old, "peak_rss_bytes": 99, "torch_threads": None}) == []
    assert provenance.drift(old, {**old, "git": {"revision": "b" * 40}}) == []  # same sources, another commit
    new = {
        **old,
        "git": {"revision": "b" * 40},
        "sources": {"kernels": "3" * 64},
        "packages": {"torch": "2.13.0", "peft": "1"},
    }
    lines = provenance.drift(old, new)
    assert lines == [
        "packages.torch: 2.12.0 → 2.13.0",
        f"sources.kernels: {'1' * 12} → {'3' * 12}",
        f"git.revision: {'a' * 12} → {'b' * 12}",
    ]


def test_source_hash_follows_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "roomtest"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)

    def fresh() -> str:
        provenance.source_hash.cache_clear()
        return provenance.source_hash("roomtest")

    before = fresh()
    (package / "notes.txt").write_text("not code")
    assert fresh() == before
    (package / "a.py").write_text("x = 2\n")
    changed = fresh()
    (package / "a.py").rename(package / "b.py")
    assert len({before, changed, fresh()}) == 3
    with pytest.raises(ValueError, match="no_such_room"):
        provenance.source_hash("no_such_room")
