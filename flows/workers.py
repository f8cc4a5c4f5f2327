"""The workers of an experiment, which may begin before there is a server to tell. Imports no Prefect."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator

from flows.prepare import Prepared
from fortifai_core.families.registry import FamilyExperiment
from tasks.engine.needs import manifest_of
from tasks.engine.pool import WorkerPool, pool_size, process_workers
from tasks.engine.ray_workers import RayWorker


@contextlib.asynccontextmanager
async def workers(prepared: Prepared) -> AsyncIterator[WorkerPool]:
    """The workers of an experiment. Of a quick model class they begin at once with all that is to do.

    A language model's stages take long enough that nobody need hurry; and where a run may stop early, nothing is built
    that may not be wanted. Their processes are gone when the block ends, however it ends.
    """
    plan, store = prepared.plan, prepared.store
    count, threads = pool_size(plan.config)
    runtime = plan.config.runtime
    if runtime.engine == "ray":
        logs = [store.logs / f"worker-ray-{os.getpid()}-{index}.log" for index in range(count)]
        pool = WorkerPool([RayWorker(store.url, runtime, threads, log) for log in logs])
    else:
        pool = WorkerPool(
            process_workers(store_url=store.url, runtime=runtime, workers=count, threads=threads, logs=store.logs)
        )
    pool.anew = set(prepared.refresh)
    try:
        if isinstance(plan.config, FamilyExperiment) and not plan.may_stop:
            there = {s.reference for s in plan.stages() if manifest_of(store, s.reference)} - prepared.refresh
            pool.begin([stage for stage in plan.stages() if stage.reference not in there])
        yield pool
    finally:
        await pool.close()
