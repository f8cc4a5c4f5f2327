"""The recursive-family flow: any other model class on its own samples. It differs in its form in the UI alone."""

from __future__ import annotations

from typing import Annotated, Any

from prefect import flow
from pydantic import Field

from flows.experiment import run_asked
from fortifai_core.families.registry import FamilyExperiment
from fortifai_core.settings import Seed


@flow(
    name="recursive-family",
    flow_run_name="{experiment.name}",
    description="Fit a model to its own samples, generation after generation: Gaussian, mixture, VAE, diffusion, Zipf.",
    persist_result=False,
)
async def recursive_family(
    experiment: FamilyExperiment,
    generations: Annotated[int, Field(ge=1)] | None = Field(None, description="Overrides `experiment.generations`."),
    seeds: list[Seed] | None = Field(None, description="Overrides `experiment.seeds`."),
    store: str | None = Field(None, description="The artifact store; by default FORTIFAI_STORE or the user's own."),
    refresh: list[str] | None = Field(None, description="Stages to build anew, with all that follows from them."),
) -> dict[str, Any]:
    """Run one experiment. Whatever was computed before, by this run or another, is found and not computed again."""
    return await run_asked(experiment, generations=generations, seeds=seeds, store=store, refresh=refresh)
