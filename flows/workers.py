"""The workers of an experiment, which may begin before there is a server to tell. Imports no Prefect."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from flows.prepare import Prepared
from fortifai_core.families.registry import FamilyExperiment
from tasks.engine.pool import WorkerPool, worker_pool


@contextlib.asynccontextmanager
async def workers(prepared: Prepared) -> AsyncIterator[WorkerPool]:
    """The workers of an experiment. Of a quick model class they begin at once with all that is to do.

    A language model's stages take long enough that nobody need hurry; and where a run may stop early, nothing is built
    that may not be wanted.
    """
    plan, store = prepared.plan, prepared.store
    async with worker_pool(plan.config, store_url=store.url, logs=store.logs) as pool:
        stops = plan.config.failure is not None and plan.config.failure.stop_arm
        if isinstance(plan.config, FamilyExperiment) and not stops:
            pool.begin([stage for stage in plan.stages() if store.find(stage.kind, stage.key) is None])
        yield pool
