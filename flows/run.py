"""The subflow of one run (arm + seed), for every model class: generation after generation."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Coroutine
from typing import Any

from prefect import flow
from prefect.context import TagsContext

from tasks.engine import prefect_tasks, publish
from tasks.engine.plans import GenerationPlan, RunPlan
from tasks.engine.session import Session, current_session


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


@flow(
    name="run",
    flow_run_name="{arm} · seed {seed}",
    description="One arm with one seed: (pool, treat,) train, regenerate, evaluate, check for failure, by generations.",
    persist_result=False,
)
async def run_arm(experiment: str, arm: str, seed: int) -> str:
    """One run of the experiment in progress."""
    # the run's tags are for its flow run alone, and there is none of a generation: Prefect keeps a thread and a client
    # for every set of tags that a task ever had
    with TagsContext():
        return await _generations(experiment, arm, seed)


async def _generations(experiment: str, arm: str, seed: int) -> str:
    running = current_session()
    run, stops = running.plan.run(arm, seed), running.plan.may_stop
    async with task_group() as group:
        before: asyncio.Task[bool] | None = None
        drift: asyncio.Task[None] | None = None
        for step in run.generations:
            for text in step.pool:
                await running.made(text.parents.values())  # by runs of other arms
                await prefect_tasks.pool(text)
            for treatment in step.treat:  # each reads what the one before left
                await prefect_tasks.treat(treatment)
            await prefect_tasks.train(step.train)
            # the next generation needs the regenerations, not the measurements: these may overlap it
            if not step.judged_late:
                before = group.create_task(_measure(run, step, after=before))
            for benchmark in step.benchmarks:
                group.create_task(_wait(prefect_tasks.run_benchmark(benchmark)))
            if not step.judged_late and stops and before is not None and await before:
                return _stopped(running, run, step)
            await together(*(prefect_tasks.regenerate(stage) for stage in step.regenerate))
            drift = None if step.drift is None else group.create_task(_drift(run, step, after=drift))
            if step.judged_late:
                # what the rewriting is judged by is known after it
                before = group.create_task(_measure(run, step, after=before, drift=drift))
                if stops and await before:
                    return _stopped(running, run, step)
    return f"{experiment}: {arm} · seed {seed} finished"


def _stopped(running: Session, run: RunPlan, step: GenerationPlan) -> str:
    """Note that a run ends here because it failed."""
    running.stopped[run.arm, run.seed] = step.last
    running.reporter.noted(f"{run.arm} · seed {run.seed}: failed by generation {step.last}, stopped")
    return f"{running.plan.config.name}: {run.arm} · seed {run.seed} failed by generation {step.last}"


async def _measure(
    run: RunPlan, step: GenerationPlan, after: asyncio.Task[bool] | None, drift: asyncio.Task[None] | None = None
) -> bool:
    """Measure, check for failure (by the `drift` if given), show both; True when the run has failed by now."""
    if step.evaluate is not None:
        await prefect_tasks.evaluate(step.evaluate)
    if drift is not None:
        await drift
    if after is not None:
        await after
    check: dict[str, Any] = {}
    if step.failure is not None:
        check = (await prefect_tasks.reference(prefect_tasks.check_failure(step.failure), step.failure))["metrics"]
    await publish.publish_generation(run, step, check)
    return bool(check.get("status") == "failed")


async def _drift(run: RunPlan, step: GenerationPlan, after: asyncio.Task[None] | None) -> None:
    """Measure the drift of one generation and show it, `after` the one before: the newest is what the UI shows."""
    assert step.drift is not None
    await prefect_tasks.measure_drift(step.drift)
    if after is not None:
        await after
    await publish.publish_drift(run, step)


async def _wait(work: Awaitable[Any]) -> None:
    """A task run as the coroutine that a task group takes."""
    await work
