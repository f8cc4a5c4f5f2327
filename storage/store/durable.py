"""Files that are complete or absent, also after a power cut: write aside, fsync, rename, fsync."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fortifai_core.errors import FortifaiError, StoreError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_WORDS = ("No space left on device", "Disk quota exceeded", "(os error 28)")
_NOTHING_LEFT = 1 << 20  # bytes: who cannot write with less than this free lacks space, whatever they say


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
    """Turn "no space left" into a `StoreError` that says where, also as torch, safetensors and pyarrow say it."""
    try:
        yield
    except FortifaiError:
        raise
    except Exception as error:
        if _is_of_full_disk(error, path):
            problem = error.strerror if isinstance(error, OSError) and error.strerror else "No space left on device"
            raise StoreError(str(path), problem, "free some space, or choose another store") from error
        raise


def _is_of_full_disk(error: Exception, path: Path) -> bool:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _FULL
    if any(words in str(error) for words in _FULL_WORDS):
        return True
    # torch tells of a write that failed and not why
    if not (isinstance(error, (OSError, RuntimeError)) and "writ" in str(error)):
        return False
    place = next((place for place in (path, *path.parents) if place.exists()), None)
    return place is not None and shutil.disk_usage(place).free < _NOTHING_LEFT
