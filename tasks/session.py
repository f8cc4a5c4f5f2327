"""What the stages of one experiment share while it runs: the store, the workers, and who is told."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol

from storage.store import ArtifactStore
from tasks.pool import WorkerPool
from tasks.stages import Plan, Stage


class Reporter(Protocol):
    """Told what happens to each stage; the terminal and the logs each have one."""

    def started(self, stage: Stage) -> None: ...

    def progressed(self, stage: Stage, done: int, total: int, unit: str) -> None: ...

    def finished(self, stage: Stage, *, found: bool, seconds: float) -> None: ...

    def noted(self, message: str) -> None: ...


@dataclass
class Session:
    """One experiment in progress."""

    plan: Plan
    store: ArtifactStore
    pool: WorkerPool
    reporter: Reporter
    built: list[Stage] = field(default_factory=list)
    found: list[Stage] = field(default_factory=list)
    stage_seconds: float = 0.0
    stopped: dict[tuple[str, int], int] = field(default_factory=dict)


_current: ContextVar[Session] = ContextVar("fortifai_session")


@contextlib.contextmanager
def session(value: Session) -> Iterator[Session]:
    """Make `value` the session of everything called inside the block."""
    token = _current.set(value)
    try:
        yield value
    finally:
        _current.reset(token)


def current_session() -> Session:
    """The session of the running experiment.

    Raises:
        LookupError: outside of one; a stage's task runs only within a flow of `flows.recursive`.
    """
    return _current.get()
