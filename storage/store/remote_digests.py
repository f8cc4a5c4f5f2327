"""Digests of a remote store's objects: an object is read again when the storage says anything else of it."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fortifai_core.errors import StoreError
from storage.store import durable
from storage.store.remote import Remote

FILE = "remote-digests.json"
# what storages say of an object that is another one when it was written again
_MARKS = ("ETag", "etag", "md5Hash", "VersionId", "generation", "LastModified", "last_modified", "mtime", "created")


class RemoteDigests:
    """The digests that were taken before, by any process, beside our local copy of the store."""

    def __init__(self, remote: Remote, folder: Path) -> None:
        self._remote, self._file = remote, folder / FILE
        self._taken: dict[str, list[str]] = {}
        with contextlib.suppress(OSError, ValueError):
            kept = json.loads(self._file.read_text(encoding="utf-8"))
            pairs = isinstance(kept, dict) and all(isinstance(p, list) and len(p) == 2 for p in kept.values())
            self._taken = kept if pairs else {}
        self._before = dict(self._taken)

    def of(self, name: str, info: Mapping[str, Any]) -> str:
        """sha256 of the object of that name, of which the storage says `info` now."""
        state = state_of(info)
        known = self._taken.get(name)
        if known is not None and state and known[0] == state:
            return known[1]
        digest = self._remote.digest(name)
        self._taken[name] = [state, digest]
        return digest

    def keep(self) -> None:
        """Keep what was taken for other processes, where that is possible."""
        if self._taken != self._before:
            with contextlib.suppress(OSError, StoreError):
                durable.write_bytes(self._file, json.dumps(self._taken).encode())


def state_of(info: Mapping[str, Any]) -> str:
    """Size and marks of an object, which are others once it was written again; empty where the storage has no marks."""
    marks = [f"{mark}={info[mark]}" for mark in _MARKS if info.get(mark) is not None]
    return " ".join([f"size={info['size']}", *marks]) if marks else ""


def numbered(*states: str) -> int | None:
    """States of objects as one number; None where one of them says nothing."""
    if not all(states):
        return None
    return int.from_bytes(hashlib.sha256(repr(states).encode()).digest()[:8], signed=True)
