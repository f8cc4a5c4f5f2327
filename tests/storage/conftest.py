"""What tests of the storage room share."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage.store.store import ArtifactStore


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "store")
