"""The workers of an experiment, which may begin before there is a server to tell. Imports no Prefect."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from flows.prepare import Prepared
from fortifai_core.families.registry import FamilyExperiment
from tasks.engine.pool import WorkerPool, pool_size


@contextlib.asynccontextmanager
async def workers(prepared: Prepared) -> AsyncIterator[WorkerPool]:
    """The workers of an experiment. Of a quick model class they begin at once with all that is to do.

    A language model's stages take long enough that nobody need hurry; and where a run may stop early, nothing is built
    that may not be wanted. Their processes are gone when the block ends, however it ends.
    """
    plan, store = prepared.plan, prepared.store
    count, threads = pool_size(plan.config)
    pool = WorkerPool(store_url=store.url, runtime=plan.config.runtime, workers=count, threads=threads, logs=store.logs)
    pool.anew = set(prepared.refresh)
    try:
        if isinstance(plan.config, FamilyExperiment) and not plan.may_stop:
            there = {s.reference for s in plan.stages() if store.find(s.kind, s.key) is not None} - prepared.refresh
            pool.begin([stage for stage in plan.stages() if stage.reference not in there])
        yield pool
    finally:
        await pool.close()
