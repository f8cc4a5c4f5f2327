"""A disk that fails when told: errors raised by the interpreter's own hook, where a file is opened, made or renamed."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

EVERY = -1
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass
class Disk:
    """Calls that touch files below `root`: number `failing` (from 1, or EVERY one) and any on `broken` get `error`."""

    root: Path
    error: int
    writes: bool
    failing: int = 0
    broken: frozenset[str] = frozenset()
    calls: list[str] = field(default_factory=list)

    def meet(self, event: str, arguments: tuple[Any, ...]) -> None:
        path = arguments[0] if arguments else None
        if not isinstance(path, (str, os.PathLike)) or not os.fspath(path).startswith(str(self.root)):
            return
        writes = event in ("os.mkdir", "os.rename", "os.link") or bool(event == "open" and arguments[2] & _WRITES)
        if writes != self.writes or (event != "open" and not writes):
            return
        self.calls.append(f"{event} {os.fspath(path)}")
        if self.failing in (EVERY, len(self.calls)) or os.fspath(path) in self.broken:
            raise OSError(self.error, os.strerror(self.error), os.fspath(path))


_armed: list[Disk] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _armed and event in ("open", "os.mkdir", "os.rename", "os.link"):
        _armed[-1].meet(event, arguments)


@contextmanager
def disk(
    root: Path, error: int, *, writes: bool, failing: int = 0, broken: frozenset[str] = frozenset()
) -> Iterator[Disk]:
    """Inside the block the disk below `root` fails as it is told. A hook stays with the process, and is quiet after."""
    if not hasattr(sys, "_fortifai_hook"):
        sys.addaudithook(_hook)
        sys._fortifai_hook = True  # type: ignore[attr-defined]
    _armed.append(Disk(root, error, writes, failing, broken))
    try:
        yield _armed[-1]
    finally:
        _armed.pop()
