"""Work side by side, of which nothing goes on behind a run that failed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from typing import Any


@contextlib.asynccontextmanager
async def task_group() -> AsyncIterator[asyncio.TaskGroup]:
    """A task group: at the first failure the rest is cancelled, so that nothing goes on behind a dead run."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def together(*work: Coroutine[Any, Any, Any]) -> None:
    """Wait for all of them; at the first failure the rest is cancelled."""
    async with task_group() as group:
        for coroutine in work:
            group.create_task(coroutine)
