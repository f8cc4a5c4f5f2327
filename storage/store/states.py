"""What the file system says of files, as numbers: a number is another one once anything of its files was touched."""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import repeat
from pathlib import Path
from typing import Any

from storage.store.digests import SETTLED_NS

# inode, size, and seconds and nanoseconds of the last change and of the last writing
_Marks = tuple[int, ...]
# The same in what Linux's statx fills in, and its request for them (STATX_INO, SIZE, CTIME, MTIME).
_STATX = struct.Struct("=32xQQ48xqI4xqI4x128x")
_ASKED = 0x100 | 0x200 | 0x80 | 0x40
_AT_ONCE = 4_096  # files


def states_of(
    folder: Path, starts: Sequence[str], ends: Sequence[str], *, before: int | None = None
) -> Iterator[int | None]:
    """Of each of `starts` the state of the files `start + end` below a folder, in their order.

    Inode, size and both times of each file go into it.

    Args:
        before: ns since 1970. With it a state is None where a file is missing, or was touched so shortly before that
            its times may not show the next change: such a state is to be kept. Without, it is another one than any
            that was kept where a file is missing: such a state is to be compared.
    """
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        yield from repeat(None, len(starts))
        return
    step = max(1, _AT_ONCE // len(ends))
    names = [os.fsencode(end) for end in ends]
    try:
        for first in range(0, len(starts), step):
            some = os.fsencode("\0".join(starts[first : first + step])).split(b"\0")
            marks = iter(_marks(handle, [start + name for start in some for name in names]))
            artifacts = zip(*[marks] * len(ends), strict=True)
            # of integers it is the same in every process
            yield from map(hash, artifacts) if before is None else _settled(artifacts, before)
    finally:
        os.close(handle)


def _settled(artifacts: Iterable[tuple[_Marks | None, ...]], before: int) -> Iterator[int | None]:
    at = divmod(before - SETTLED_NS, 1_000_000_000)
    for files in artifacts:
        settled = all(marks is not None and marks[2:4] <= at and marks[4:] <= at for marks in files)
        yield hash(files) if settled else None


def _marks(handle: int, paths: Sequence[bytes]) -> Iterable[_Marks | None]:
    """Of each file below an open folder; None of one that is not there."""
    statx = _statx()
    return by_stat(handle, paths) if statx is None else by_statx(statx, handle, paths)


def by_stat(handle: int, paths: Sequence[bytes]) -> Iterator[_Marks | None]:
    """As every system tells it."""
    for path in paths:
        try:
            found = os.stat(path, dir_fd=handle)
        except OSError:
            yield None
        else:
            changed, written = (divmod(ns, 1_000_000_000) for ns in (found.st_ctime_ns, found.st_mtime_ns))
            yield (found.st_ino, found.st_size, *changed, *written)


def by_statx(statx: Callable[..., int], handle: int, paths: Sequence[bytes]) -> Iterable[_Marks | None]:
    """The same, without an object of twenty fields for each file: that takes three times as long as to ask."""
    told = bytearray(_STATX.size * len(paths))
    start = ctypes.addressof(ctypes.c_char.from_buffer(told))
    places = range(start, start + len(told), _STATX.size)
    failed = list(map(statx, repeat(handle), paths, repeat(0), repeat(_ASKED), places))
    found = _STATX.iter_unpack(told)
    return (None if code else marks for code, marks in zip(failed, found, strict=True)) if any(failed) else found


@lru_cache(maxsize=1)
def _statx() -> Callable[..., int] | None:
    """The C library's function; None where it has none, or its kernel refuses it."""
    if sys.platform != "linux":
        return None
    try:
        function: Any = ctypes.CDLL(None).statx
    except (OSError, AttributeError):
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p)
    function.restype = ctypes.c_int
    told = ctypes.create_string_buffer(_STATX.size)
    return function if function(-1, b"/", 0, _ASKED, ctypes.addressof(told)) == 0 else None
