"""Which artifact store is meant: for the commands that only look into one, without what it takes to plan a run."""

from __future__ import annotations

import os
from pathlib import Path

from storage.store.store import ArtifactStore


def default_store() -> str:
    """Where artifacts go unless told otherwise: FORTIFAI_STORE, or the user's own folder."""
    return os.environ.get("FORTIFAI_STORE") or str(Path.home() / ".fortifai" / "store")


def open_store(url: str | None = None) -> ArtifactStore:
    """The artifact store at `url`, or the default one."""
    return ArtifactStore(url or default_store())
