"""The recursive-training flow: a language model on its own output, generation after generation."""

from __future__ import annotations

from typing import Annotated, Any

from prefect import flow
from pydantic import Field

from flows.experiment import run_asked
from fortifai_core.config.experiment import ExperimentConfig
from fortifai_core.settings import Seed


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
    seeds: list[Seed] | None = Field(None, description="Overrides `experiment.seeds`."),
    store: str | None = Field(None, description="The artifact store; by default FORTIFAI_STORE or the user's own."),
    refresh: list[str] | None = Field(None, description="Stages to build anew, with all that follows from them."),
) -> dict[str, Any]:
    """Run one experiment. Whatever was computed before, by this run or another, is found and not computed again."""
    return await run_asked(experiment, generations=generations, seeds=seeds, store=store, refresh=refresh)
