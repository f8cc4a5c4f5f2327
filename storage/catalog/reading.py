"""A store's artifacts as a file system that DuckDB reads and cannot write: `fortifai:///artifacts/KIND/KEY/NAME`."""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from storage.store.store import ArtifactStore

PROTOCOL = "fortifai"
FOLDER = f"{PROTOCOL}:///artifacts/"


class ReadOnlyStore(AbstractFileSystem):
    """Single files below a store's `artifacts`. Whatever DuckDB asks of a file system besides reading raises an error.

    A name that leaves the artifacts, by `..` or by a link, is not found; nothing is listed.
    """

    protocol = PROTOCOL
    cachable = False

    def __init__(self, store: ArtifactStore) -> None:
        super().__init__()
        self._local = store.remote is None
        self._fs = LocalFileSystem() if store.remote is None else store.remote.fs
        self._root = f"{store.root if store.remote is None else store.remote.root}/artifacts"

    def _open(self, path: str, mode: str = "rb", *_: Any, **__: Any) -> Any:
        if mode != "rb":
            raise PermissionError(f"{path}: the store is read only")
        return self._fs.open(self._place(path), "rb")

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Name, size and type of a file."""
        return {**self._fs.info(self._place(path)), "name": self._strip_protocol(path)}

    def modified(self, path: str) -> datetime:
        """Always the same: an artifact's files never change."""
        return datetime.fromtimestamp(0, UTC)

    def glob(self, path: str, **_: Any) -> list[str]:
        """The file itself, where it is there: `views.literal_glob` undone; a pattern matches nothing."""
        name = re.sub(r"\[([*?\[])\]", r"\1", path)
        return [name] if self.exists(name) else []

    def _place(self, path: str) -> str:
        name = str(self._strip_protocol(path)).removeprefix("/artifacts/")
        place = f"{self._root}/{name}"
        inside = os.path.realpath(place).startswith(os.path.realpath(self._root) + os.sep) if self._local else True
        if not inside or ".." in name.split("/"):
            raise FileNotFoundError(f"{path} is no file of the store's artifacts")
        return place
