"""The recursive-training flow: one experiment, a subflow for each run (arm + seed), generation after generation."""

from __future__ import annotations

import asyncio
import contextlib
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Annotated, Any

from prefect import flow, tags
from pydantic import Field

from flows.prepare import Prepared, prepare_experiment
from flows.reporters import LogReporter
from fortifai_core.config import ExperimentConfig
from fortifai_core.failure_metrics import failure_metric
from storage.experiments import record_experiment
from tasks import publish, stage_tasks
from tasks.family_stages import AnyPlan
from tasks.pool import worker_pool
from tasks.session import Reporter, Session, current_session, session
from tasks.stages import GenerationPlan, Plan, Stage


@flow(
    name="recursive-training",
    flow_run_name="{experiment.name}",
    description="Train a model on its own output, generation after generation, and measure what it still knows.",
    persist_result=False,
)
async def recursive_training(
    experiment: ExperimentConfig,
    # the bound stands on the type, because the form in the UI would not show one in the default
    generations: Annotated[int, Field(ge=1)] | None = Field(None, description="Overrides `experiment.generations`."),
    seeds: list[Annotated[int, Field(ge=0)]] | None = Field(None, description="Overrides `experiment.seeds`."),
    store: str | None = Field(None, description="The artifact store; by default FORTIFAI_STORE or the user's own."),
    refresh: list[str] | None = Field(None, description="Stages to build anew, with all that follows from them."),
) -> dict[str, Any]:
    """Run one experiment. Whatever was computed before, by this run or another, is found and not computed again."""
    changes = {"generations": generations, "seeds": seeds}
    wanted = {name: value for name, value in changes.items() if value is not None}
    reporter = LogReporter()
    with warnings.catch_warnings(record=True) as said:  # what a terminal shows, nobody sees under a server
        warnings.simplefilter("always")
        experiment = ExperimentConfig.model_validate({**experiment.model_dump(), **wanted})
    for warning in said:
        reporter.noted(f"warning: {warning.message}")
    return await run_prepared(prepare_experiment(experiment, store=store, refresh=refresh or []), reporter)


@flow(name="recursive-training", flow_run_name="{experiment}", persist_result=False, validate_parameters=False)
async def _here(experiment: str) -> dict[str, Any]:
    """The same flow for `fortifai run`, which has checked and planned before Prefect is started."""
    return await run_prepared(*_handed_over.pop(experiment))


OneRun = Callable[[str, str, int], Awaitable[Any]]
_handed_over: dict[str, tuple[Prepared, Reporter]] = {}


async def run_experiment(prepared: Prepared, reporter: Reporter) -> dict[str, Any]:
    """Run a prepared experiment as a flow run of its own."""
    _handed_over[prepared.plan.config.name] = (prepared, reporter)
    return await _here(prepared.plan.config.name)


async def run_prepared(prepared: Prepared, reporter: Reporter, *, one_run: OneRun | None = None) -> dict[str, Any]:
    """Shared stages first, then the runs, then the report.

    Args:
        one_run: the subflow of a run, called with experiment, arm and seed; by default that of a language model.
    """
    plan, store = prepared.plan, prepared.store
    async with worker_pool(plan.config, store_url=store.url, logs=store.logs) as pool:
        with session(Session(plan=plan, store=store, pool=pool, reporter=reporter)) as running:
            config = plan.config.model_dump(mode="json")
            record_experiment(store, config=config, status="running")
            try:
                await _shared(plan)
                await _in_turns(plan, at_once=len(pool.workers), one_run=one_run)
                final = plan.report(running.stopped)
                report = await stage_tasks.reference(stage_tasks.write_report(final), final)
            except BaseException:
                record_experiment(store, config=config, status="failed")
                raise
            record_experiment(store, config=config, status="finished")
            running.circumstances.tell(reporter)
            return {
                "experiment": prepared.record_id,
                "report": report["key"],
                "built": len(running.built),
                "found": len(running.found),
                "stage_seconds": round(running.stage_seconds, 3),
                "computing_seconds": round(running.computing_seconds, 3),
            }


async def _in_turns(plan: AnyPlan, *, at_once: int, one_run: OneRun | None = None) -> None:
    """All runs, as many at once as there are workers: more would only wait for each other, and flood the server."""
    turn = asyncio.Semaphore(at_once)

    async def one(arm: str, seed: int) -> None:
        async with turn:
            await (one_run or run_arm)(plan.config.name, arm, seed)

    await together(*(one(run.arm, run.seed) for run in plan.runs))


async def _shared(plan: AnyPlan) -> None:
    """What several runs build on. Each stage waits for its own parents only."""
    started: dict[tuple[str, str], asyncio.Task[Any]] = {}

    async def after_parents(stage: Stage) -> None:
        await asyncio.gather(*(started[parent] for parent in stage.parents.values()))
        await stage_tasks.prepare(stage)

    async with task_group() as group:
        for stage in plan.shared:  # parents come first in the plan
            started[stage.reference] = group.create_task(after_parents(stage))


@flow(
    name="run",
    flow_run_name="{arm} · seed {seed}",
    description="One arm with one seed: train, regenerate, evaluate, check for failure, generation by generation.",
    persist_result=False,
)
async def run_arm(experiment: str, arm: str, seed: int) -> str:
    """One run of the experiment in progress."""
    running = current_session()
    plan = running.plan
    assert isinstance(plan, Plan)
    run, failure = plan.run(arm, seed), plan.config.failure
    # what the rewriting is judged by is known after it; anything else lets an arm stop before it
    late = failure_metric(failure.metric).role == "drift"
    measured: list[dict[str, Any]] = []
    drifted: list[dict[str, Any]] = []
    async with task_group() as group:
        before: asyncio.Task[bool] | None = None
        for step in run.generations:
            with tags(f"g{step.generation}"):
                await stage_tasks.train(step.train)
                # the next generation needs the regenerations, not the measurements: these may overlap it
                if not late:
                    before = group.create_task(_measure(step, measured, after=before))
                for one in step.benchmarks:
                    group.create_task(_wait(stage_tasks.run_benchmark(one)))
                if not late and failure.stop_arm and before is not None and await before:
                    return _stopped(running, experiment, arm, seed, step.generation)
                await together(*(stage_tasks.regenerate(one) for one in step.regenerate))
                drift = None
                if step.drift is not None:
                    drift = group.create_task(_drift(step, step.drift, drifted))
                if late:
                    before = group.create_task(_measure(step, measured, after=before, drift=drift))
                    if failure.stop_arm and await before:
                        return _stopped(running, experiment, arm, seed, step.generation)
    return f"{experiment}: {arm} · seed {seed} finished"


def _stopped(running: Session, experiment: str, arm: str, seed: int, generation: int) -> str:
    """Note that an arm ends here because it failed."""
    running.stopped[(arm, seed)] = generation
    running.reporter.noted(f"{arm} · seed {seed}: failed in generation {generation}, stopped")
    return f"{experiment}: {arm} · seed {seed} failed in generation {generation}"


async def _measure(
    step: GenerationPlan,
    measured: list[dict[str, Any]],
    after: asyncio.Task[bool] | None,
    drift: asyncio.Task[None] | None = None,
) -> bool:
    """Evaluate one generation and check for failure, by its `drift` if given; True when the arm has failed by now."""
    evaluation = await stage_tasks.reference(stage_tasks.evaluate(step.evaluate), step.evaluate)
    if drift is not None:
        await drift
    if after is not None:
        await after
    check = await stage_tasks.reference(stage_tasks.check_failure(step.failure), step.failure)
    measured.append({"generation": step.generation, **evaluation["metrics"]})
    await publish.publish_generation(step, measured, check["metrics"])
    return bool(check["metrics"]["status"] == "failed")


async def _drift(step: GenerationPlan, stage: Stage, drifted: list[dict[str, Any]]) -> None:
    """Measure the drift of one generation and show it."""
    found = await stage_tasks.reference(stage_tasks.measure_drift(stage), stage)
    drifted.append({"generation": step.generation, **found["metrics"]})
    await publish.publish_drift(step, drifted)


async def _wait(work: Awaitable[Any]) -> None:
    """A task run as the coroutine that a task group takes."""
    await work


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
        for one in work:
            group.create_task(one)
