"""One experiment of any model class, from its shared stages over its runs to its report."""

from __future__ import annotations

import asyncio
import contextlib
import os
import warnings
from collections.abc import Sequence
from typing import Any

from prefect import flow, tags

from flows.prepare import Prepared, prepare_experiment, stage_records
from flows.report_pages import report_link
from flows.reporters import LogReporter
from flows.run import run_arm, task_group, together
from flows.workers import workers
from fortifai_core.config.experiment import ExperimentConfig
from fortifai_core.errors import FortifaiError
from storage.store.experiments import is_finished, record_experiment
from tasks.engine import prefect_tasks
from tasks.engine.children import FOLDER
from tasks.engine.plans import AnyExperiment, Plan, RunPlan
from tasks.engine.pool import WorkerPool
from tasks.engine.publish import publish_experiment
from tasks.engine.session import Circumstances, Reporter, Session, session
from tasks.engine.stages import Reference, Stage


async def run_asked(
    experiment: AnyExperiment,
    *,
    generations: int | None,
    seeds: list[int] | None,
    store: str | None,
    refresh: list[str] | None,
) -> dict[str, Any]:
    """What a flow does with its parameters: check, plan, run, and tell the log of the flow run."""
    if FOLDER in os.environ:
        with contextlib.suppress(OSError):  # it may be gone by now, and absolute paths need none
            os.chdir(os.environ[FOLDER])
    changes = {"generations": generations, "seeds": seeds}
    wanted = {name: value for name, value in changes.items() if value is not None}
    reporter = LogReporter()
    with warnings.catch_warnings(record=True) as said:  # what a terminal shows, nobody sees under a server
        warnings.simplefilter("always")
        experiment = type(experiment).model_validate({**experiment.model_dump(), **wanted})
    for warning in said:
        reporter.noted(f"warning: {warning.message}")
    prepared = prepare_experiment(experiment, store=store, refresh=refresh or [])
    async with workers(prepared) as pool:
        return await run_prepared(prepared, reporter, pool)


async def run_here(prepared: Prepared, reporter: Reporter, pool: WorkerPool) -> dict[str, Any]:
    """The same for `fortifai run`, which has checked and planned before Prefect is started: a flow run of that name."""
    language = isinstance(prepared.plan.config, ExperimentConfig)

    @flow(
        name="recursive-training" if language else "recursive-family",
        flow_run_name="{experiment}",
        persist_result=False,
        validate_parameters=False,
    )
    async def here(experiment: str) -> dict[str, Any]:
        return await run_prepared(prepared, reporter, pool)

    return await here(prepared.plan.config.name)


async def run_prepared(prepared: Prepared, reporter: Reporter, pool: WorkerPool) -> dict[str, Any]:
    """Shared stages first, then the runs, then the report."""
    plan, store = prepared.plan, prepared.store
    circumstances = Circumstances.of(plan.config)
    with session(Session(plan, store, pool, reporter, circumstances)) as running:
        config = plan.config.model_dump(mode="json")
        finished = is_finished(store, config)  # then this run only looks, and what becomes of it says nothing
        if not finished:
            record_experiment(store, config=config, status="running")
        try:
            await _shared(plan)
            measured = (prefect_tasks.evaluate(stage) for stage in plan.before)
            await together(_in_turns(plan, at_once=len(pool.workers)), *measured)
            final = plan.report(running.stopped)
            if plan.report().reference in prepared.refresh:
                pool.anew.add(final.reference)
            report = await prefect_tasks.reference(prefect_tasks.write_report(final), final)
        except BaseException:
            try:
                if running.built or not finished:
                    record_experiment(store, config=config, status="failed")
            except FortifaiError as error:  # what went wrong first is what counts
                reporter.noted(f"warning: that it failed could not be recorded: {error}")
            raise
        stages = stage_records(final if stage.role == "report" else stage for stage in plan.uses())
        record_experiment(store, config=config, status="finished", stages=stages)
        made = store.find("report", report["key"])
        if made is not None:
            await publish_experiment(plan.config, made.path, link=report_link(store, made.key))
        running.circumstances.tell(reporter)
        return {
            "experiment": prepared.record_id,
            "report": report["key"],
            "built": len(running.built),
            "found": len(running.found),
            "stage_seconds": round(running.stage_seconds, 3),
            "computing_seconds": round(pool.clock.seconds, 3),
        }


async def _in_turns(plan: Plan, *, at_once: int) -> None:
    """All runs, as many at once as there are workers: more would only wait for each other, and flood the server.

    Runs that read each other's text take their turn together, for each waits for the others.
    """
    turn = asyncio.Semaphore(at_once)

    async def one(run: RunPlan) -> None:
        with tags(f"arm: {run.arm}", f"seed: {run.seed}"):  # to find its flow run by
            await run_arm(plan.config.name, run.arm, run.seed)

    async def in_turn(runs: Sequence[RunPlan]) -> None:
        async with turn:
            await together(*(one(run) for run in runs))

    await together(*(in_turn(runs) for runs in plan.together()))


async def _shared(plan: Plan) -> None:
    """What several runs build on. Each stage waits for its own parents only."""
    started: dict[Reference, asyncio.Task[Any]] = {}

    async def after_parents(stage: Stage) -> None:
        await asyncio.gather(*(started[parent] for parent in stage.parents.values()))
        await prefect_tasks.prepare(stage)

    async with task_group() as group:
        for stage in plan.shared:  # parents come first in the plan
            started[stage.reference] = group.create_task(after_parents(stage))
