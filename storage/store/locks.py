"""One builder per artifact: a file lock on a local store, a lease with a heartbeat on object storage.

The file lock is the system's own and ends with its owner. Object storage has no locks, so there a lease is a
series of small objects `<lock>/<n>`: whoever creates n (creation is exclusive) holds it, and beats by
overwriting n. n is over when it says so, or when its beat stood still for `expiry` seconds on the clock of
the one who waits (no two machines' clocks are compared); then n + 1 may be created. The newest object is
never deleted, so a slow contender cannot bring an old number back to life.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from fortifai_core.errors import StageFailed, StoreError

if TYPE_CHECKING:
    from storage.store.remote import Remote

log = logging.getLogger("fortifai.storage")


@dataclass(frozen=True)
class LeaseTimes:
    """Seconds: between two beats, until a silent owner counts as dead, between two looks while waiting."""

    beat: float = 10.0
    expiry: float = 60.0
    poll: float = 2.0


class LockHeld(StoreError):
    """Another process holds the lock, and it was not to be waited for."""


@contextmanager
def file_lock(path: Path, *, what: str, wait: bool = True) -> Iterator[None]:
    """Hold the lock file `path`, waiting for it as long as it takes; the system releases it when this process dies.

    Args:
        what: named in the warning that is logged, once, while the lock is not free.

    Raises:
        StoreError: the lock file cannot be made.
        LockHeld: it is not free, and this does not `wait`.
    """
    import filelock

    # thread_local=False: a context may be left in another thread than the one that entered it.
    lock = filelock.FileLock(path, thread_local=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except filelock.Timeout:  # an OSError by inheritance, so it has to be named first
        if not wait:
            raise LockHeld(str(path), f"another process holds {what}", "try again when it has ended") from None
        log.warning("waiting for another process that holds %s", what)
        lock.acquire(poll_interval=0.1)
    except OSError as error:
        remedy = "choose a place where you may read and write"
        raise StoreError(str(path), error.strerror or str(error), remedy) from error
    try:
        yield
    finally:
        lock.release()


@dataclass
class Lease:
    """Our number in a lease's series, kept alive by a thread."""

    objects: Remote
    directory: str
    number: int
    owner: str
    times: LeaseTimes
    _count: int = 0
    _beaten: float = field(default_factory=time.monotonic)
    _stop: threading.Event = field(default_factory=threading.Event)
    _taken_over: bool = False

    def check(self) -> None:
        """Raise `StageFailed` when another builder took over, or when we could not beat for too long."""
        if not self._taken_over and self._newest() > self.number:
            self._taken_over = True
        silent = time.monotonic() - self._beaten
        if self._taken_over or silent > self.times.expiry:
            raise StageFailed(
                f"{self.directory}: the lease was lost after {silent:.0f} s without a heartbeat; "
                "another builder may have taken over, run again to take its result"
            )

    def beat_until_stopped(self) -> None:
        """The thread's body."""
        while not self._stop.wait(self.times.beat):
            try:
                if self._newest() > self.number:
                    self._taken_over = True
                    return
                self.beat()
            except StoreError as error:
                # Not fatal yet: check() judges by how long the silence has lasted.
                log.warning("%s: heartbeat failed, trying again: %s", self.directory, error)

    def beat(self, *, over: bool = False) -> None:
        """Say that we live, or that we are done."""
        self._count += 1
        # The silence counts from before the write: what counts is when others could have seen it.
        started = time.monotonic()
        self.objects.write(f"{self.directory}/{self.number:08d}", _record(self.owner, self._count, over=over))
        self._beaten = started

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()

    def release(self) -> None:
        """Say that we are done, unless somebody took over."""
        try:
            if self._newest() == self.number:
                self.beat(over=True)
        except StoreError as error:
            log.warning("%s: not released, it will expire: %s", self.directory, error)

    def _newest(self) -> int:
        return max(_numbers(self.objects, self.directory), default=0)


@contextmanager
def lease(objects: Remote, directory: str, *, what: str, times: LeaseTimes | None = None) -> Iterator[Lease]:
    """Hold the lease `directory` on object storage, waiting for it as long as it takes.

    Args:
        directory: name of the lease, relative to the store.
        what: as for `file_lock`.
    """
    times = times or LeaseTimes()
    owner = f"{os.getpid()}-{uuid.uuid4().hex}"
    held = _acquire(objects, directory, owner, what, times)
    thread = threading.Thread(target=held.beat_until_stopped, name=f"lease {what}", daemon=True)
    thread.start()
    try:
        yield held
    finally:
        held.stop()
        thread.join()
        held.release()


def _acquire(objects: Remote, directory: str, owner: str, what: str, times: LeaseTimes) -> Lease:
    told = False
    seen: tuple[int, bytes | None] = (-1, None)
    since = time.monotonic()
    while True:
        newest = max(_numbers(objects, directory), default=0)
        record = objects.read(f"{directory}/{newest:08d}") if newest else None
        if (newest, record) != seen:
            seen, since = (newest, record), time.monotonic()
        free = newest == 0 or _is_over(record) or time.monotonic() - since > times.expiry
        if free and _claim(objects, directory, newest + 1, owner):
            return Lease(objects, directory, newest + 1, owner, times)
        if not free and not told:
            told = True
            log.warning("waiting for another machine that holds %s", what)
        time.sleep(0 if free else times.poll)


def _claim(objects: Remote, directory: str, number: int, owner: str) -> bool:
    name, record = f"{directory}/{number:08d}", _record(owner, 0, over=False)
    if not objects.create(name, record):
        return False
    numbers = _numbers(objects, directory)
    if max(numbers) != number:  # we woke from a long sleep and revived a number that was over
        objects.delete(name)
        return False
    if objects.read(name) != record:  # a store whose exclusive creation is not quite exclusive
        return False
    for old in numbers:
        if old < number:
            objects.delete(f"{directory}/{old:08d}")
    return True


def _numbers(objects: Remote, directory: str) -> list[int]:
    return [int(name) for name in objects.names(directory) if name.isdigit()]


def _record(owner: str, count: int, *, over: bool) -> bytes:
    return json.dumps({"owner": owner, "beat": count, "over": over}).encode()


def _is_over(record: bytes | None) -> bool:
    if record is None:
        return False
    try:
        return bool(json.loads(record)["over"])
    except (ValueError, KeyError, TypeError):
        return False  # half-written or foreign: wait until it expires
