"""The recursive-training flow: one experiment, a subflow for each run (arm + seed), generation after generation."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Annotated, Any

from prefect import flow, tags
from pydantic import Field

from flows.experiment import run_asked, run_here, task_group, together
from flows.prepare import Prepared
from fortifai_core.config.experiment import ExperimentConfig
from fortifai_core.config.failure_metrics import failure_metric
from tasks.engine import prefect_tasks
from tasks.engine.session import Reporter, Session, current_session
from tasks.engine.stages import GenerationPlan, Plan, Stage
from tasks.language import publish


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
    return await run_asked(
        experiment, generations=generations, seeds=seeds, store=store, refresh=refresh, one_run=run_arm
    )


async def run_experiment(prepared: Prepared, reporter: Reporter) -> dict[str, Any]:
    """Run a prepared experiment as a flow run of its own."""
    return await run_here(prepared, reporter, flow_name=recursive_training.name, one_run=run_arm)


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
                await prefect_tasks.train(step.train)
                # the next generation needs the regenerations, not the measurements: these may overlap it
                if not late:
                    before = group.create_task(_measure(step, measured, after=before))
                for one in step.benchmarks:
                    group.create_task(_wait(prefect_tasks.run_benchmark(one)))
                if not late and failure.stop_arm and before is not None and await before:
                    return _stopped(running, experiment, arm, seed, step.generation)
                await together(*(prefect_tasks.regenerate(one) for one in step.regenerate))
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
    evaluation = await prefect_tasks.reference(prefect_tasks.evaluate(step.evaluate), step.evaluate)
    if drift is not None:
        await drift
    if after is not None:
        await after
    check = await prefect_tasks.reference(prefect_tasks.check_failure(step.failure), step.failure)
    measured.append({"generation": step.generation, **evaluation["metrics"]})
    await publish.publish_generation(step, measured, check["metrics"])
    return bool(check["metrics"]["status"] == "failed")


async def _drift(step: GenerationPlan, stage: Stage, drifted: list[dict[str, Any]]) -> None:
    """Measure the drift of one generation and show it."""
    found = await prefect_tasks.reference(prefect_tasks.measure_drift(stage), stage)
    drifted.append({"generation": step.generation, **found["metrics"]})
    await publish.publish_drift(step, drifted)


async def _wait(work: Awaitable[Any]) -> None:
    """A task run as the coroutine that a task group takes."""
    await work
