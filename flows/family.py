"""The recursive-family flow: any other model class on its own samples, a subflow for each run (arm + seed)."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from prefect import flow, tags
from pydantic import Field

from flows.experiment import run_asked, run_here, task_group
from flows.prepare import Prepared
from fortifai_core.families.registry import FamilyExperiment
from tasks.engine import prefect_tasks
from tasks.engine.session import Reporter, current_session
from tasks.families import publish
from tasks.families.stages import FamilyPlan, FamilyRun, FamilyStep


@flow(
    name="recursive-family",
    flow_run_name="{experiment.name}",
    description="Fit a model to its own samples, generation after generation: Gaussian, mixture, VAE, diffusion, Zipf.",
    persist_result=False,
)
async def recursive_family(
    experiment: FamilyExperiment,
    generations: Annotated[int, Field(ge=1)] | None = Field(None, description="Overrides `experiment.generations`."),
    seeds: list[Annotated[int, Field(ge=0)]] | None = Field(None, description="Overrides `experiment.seeds`."),
    store: str | None = Field(None, description="The artifact store; by default FORTIFAI_STORE or the user's own."),
    refresh: list[str] | None = Field(None, description="Stages to build anew, with all that follows from them."),
) -> dict[str, Any]:
    """Run one experiment. Whatever was computed before, by this run or another, is found and not computed again."""
    return await run_asked(
        experiment, generations=generations, seeds=seeds, store=store, refresh=refresh, one_run=run_of_family
    )


async def run_family_experiment(prepared: Prepared, reporter: Reporter) -> dict[str, Any]:
    """Run a prepared experiment as a flow run of its own."""
    return await run_here(prepared, reporter, flow_name=recursive_family.name, one_run=run_of_family)


@flow(
    name="run-family",
    flow_run_name="{arm} · seed {seed}",
    description="One arm with one seed: train, sample, evaluate, check for failure, generation by generation.",
    persist_result=False,
)
async def run_of_family(experiment: str, arm: str, seed: int) -> str:
    """One run of the experiment in progress."""
    running = current_session()
    plan = running.plan
    assert isinstance(plan, FamilyPlan)
    run = plan.run(arm, seed)
    stop_arm = plan.config.failure is not None and plan.config.failure.stop_arm
    async with task_group() as group:
        before: asyncio.Task[bool] | None = None
        for step in run.steps:
            with tags(f"g{step.last}"):
                await prefect_tasks.train(step.train)
                if step.sample is not None:
                    await prefect_tasks.draw_sample(step.sample)
                # the next generation needs the samples, not the measures: these may overlap it
                before = group.create_task(_measure(run, step, after=before))
                if stop_arm and await before:
                    running.stopped[(arm, seed)] = step.last
                    running.reporter.noted(f"{arm} · seed {seed}: failed by generation {step.last}, stopped")
                    return f"{experiment}: {arm} · seed {seed} failed by generation {step.last}"
    return f"{experiment}: {arm} · seed {seed} finished"


async def _measure(run: FamilyRun, step: FamilyStep, after: asyncio.Task[bool] | None) -> bool:
    """Take the measures of one step, check for failure, show both; True when the run has failed by now."""
    if step.evaluate is not None:
        await prefect_tasks.evaluate(step.evaluate)
    if after is not None:
        await after
    check: dict[str, Any] = {}
    if step.failure is not None:
        found = await prefect_tasks.reference(prefect_tasks.check_failure(step.failure), step.failure)
        check = found["metrics"]
    await publish.publish_family(run, step, check)
    return bool(check.get("status") == "failed")
