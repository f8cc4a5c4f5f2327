"""Files that are complete or absent, also after a power cut: write aside, fsync, rename, fsync."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fortifai_core.errors import StoreError

_FULL = (errno.ENOSPC, errno.EDQUOT)


def fsync_path(path: Path) -> None:
    """Make a file's bytes, or a directory's entries, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fsync_tree(root: Path) -> None:
    """`fsync_path` for every file and directory below `root`, and for `root`."""
    for directory, _, names in os.walk(root, topdown=False):
        for name in names:
            fsync_path(Path(directory) / name)
        fsync_path(Path(directory))


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; it takes `path`'s place if the block ends without error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield aside
        fsync_path(aside)
        os.replace(aside, path)
        fsync_path(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` by `data`, atomically and durably."""
    with replacing(path) as aside:
        aside.write_bytes(data)


def remove_tree(path: Path) -> None:
    """Remove a directory and what is in it; nothing happens when it is not there."""
    if path.exists():
        shutil.rmtree(path)


@contextmanager
def naming_full_disk(path: Path) -> Iterator[None]:
    """Turn "no space left" into a `StoreError` that says where."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StoreError(str(path), error.strerror, "free some space, or choose another store") from error
        raise
