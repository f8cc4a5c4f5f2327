"""What the stages of one experiment share while it runs: the store, the workers, and who is told."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Protocol

from storage.store.manifest import Manifest
from storage.store.provenance import collect, drift, rooms_of
from storage.store.store import ArtifactStore
from tasks.engine.plans import AnyExperiment, Plan
from tasks.engine.pool import WorkerPool, pool_size
from tasks.engine.stages import Reference, Stage


class Reporter(Protocol):
    """Told what happens to each stage; the terminal and the logs each have one."""

    def started(self, stage: Stage) -> None: ...

    def progressed(self, stage: Stage, done: int, total: int, unit: str) -> None: ...

    def finished(self, stage: Stage, *, found: bool, seconds: float) -> None: ...

    def noted(self, message: str) -> None: ...


@dataclass
class Circumstances:
    """Found artifacts that other code, packages or hardware made: how many, and of each difference how many.

    Args:
        threads: those that a worker computes with here, whatever this process, which builds nothing, would use.
        processes: those that share a training.
    """

    threads: int
    processes: int = 1
    count: int = 0
    differences: Counter[str] = field(default_factory=Counter)
    _here: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, config: AnyExperiment) -> Circumstances:
        """Those under which this experiment is computed here."""
        return cls(pool_size(config)[1], getattr(config.runtime, "processes", 1))

    def note(self, manifest: Manifest) -> None:
        """Compare what made a found artifact with what would make it here and now."""
        if manifest.kind not in self._here:
            here = {"torch_threads": self.threads, "processes": self.processes}
            self._here[manifest.kind] = collect(rooms_of(manifest.kind)) | here
        lines = drift(manifest.provenance, self._here[manifest.kind])
        self.count += bool(lines)
        self.differences.update(lines)

    def tell(self, reporter: Reporter) -> None:
        """Say once of all stages found what differs; of a field with several old values, the one most have."""
        if not self.count:
            return
        told = list[str]()
        for _, alike in groupby(sorted(self.differences), key=lambda line: line.partition(": ")[0]):
            lines = sorted(alike, key=lambda line: -self.differences[line])
            count = sum(self.differences[line] for line in lines)
            more = f", and {len(lines) - 1} more" if len(lines) > 1 else ""
            told.append(f"{lines[0]}{more}" + (f" ({count} of them)" if count < self.count else ""))
        reporter.noted(
            f"warning: {self.count} stages were found that were made under other circumstances and are used as they "
            f"are ({'; '.join(told)}); --refresh ROLE builds them anew"
        )


@dataclass
class Session:
    """One experiment in progress."""

    plan: Plan
    store: ArtifactStore
    pool: WorkerPool
    reporter: Reporter
    circumstances: Circumstances
    built: list[Stage] = field(default_factory=list)
    found: list[Stage] = field(default_factory=list)
    stage_seconds: float = 0.0
    stopped: dict[tuple[str, int], int] = field(default_factory=dict)
    references: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    _there: defaultdict[Reference, asyncio.Event] = field(default_factory=lambda: defaultdict(asyncio.Event))

    def remember(self, stage: Stage, metrics: dict[str, Any]) -> dict[str, Any]:
        """The reference of a stage's artifact, which is all that stages exchange."""
        self.references[stage.reference] = {"kind": stage.kind, "key": stage.key, "metrics": metrics}
        self._there[stage.reference].set()
        return self.references[stage.reference]

    async def made(self, artifacts: Iterable[Reference]) -> None:
        """Wait until other runs have built or found these."""
        for artifact in artifacts:
            await self._there[artifact].wait()


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
        LookupError: outside of one; a stage's task runs only within a flow run of an experiment.
    """
    return _current.get()
