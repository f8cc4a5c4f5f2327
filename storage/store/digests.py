"""Digests of files that were taken before by this process: a file is read again when anything about it has changed."""

from __future__ import annotations

import os
import time
from pathlib import Path

from storage.store import durable
from storage.store.keys import file_digest

# a file that was written so recently may be written again without its times changing
SETTLED_NS = 2_000_000_000
_State = tuple[int, int, int, int, int]
_taken: dict[str, tuple[_State, str]] = {}


def _state(path: Path) -> _State:
    found = os.stat(path)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def digest_of(path: Path) -> str:
    """sha256 of a file. It is read once by this process, for as long as device, inode, size and both times stay.

    A file that was changed within the last two seconds, or by the clock in the future, is read every time.
    """
    before = _state(path)
    known = _taken.get(str(path))
    if known is not None and known[0] == before:
        return known[1]
    digest = file_digest(path)
    if _state(path) == before and max(before[3:]) + SETTLED_NS < time.time_ns():
        _taken[str(path)] = (before, digest)
    return digest


def seal(path: Path) -> None:
    """Keep a file's digest beside it: what has none was cut off, and what has another was altered."""
    durable.write_bytes(_seal_of(path), file_digest(path).encode())


def is_sealed(path: Path) -> bool:
    """Whether a file is there and what it was when it was sealed."""
    try:
        return _seal_of(path).read_bytes() == digest_of(path).encode()
    except OSError:
        return False


def _seal_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def forget() -> None:
    """Read every file again from now on."""
    _taken.clear()
