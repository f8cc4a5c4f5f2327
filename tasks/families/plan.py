"""The plan of an experiment on a family: every stage with its key, before anything runs. No torch, no Prefect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fortifai_core.families.base import FamilyConfig, Mask
from fortifai_core.families.registry import FamilyExperiment
from tasks.engine.stages import Stage, stage
from tasks.families.stages import FamilyPlan, FamilyRun, FamilyStep


def plan_family(config: FamilyExperiment, *, data_digests: Mapping[str, str]) -> FamilyPlan:
    """Every stage of the experiment, with its key.

    Args:
        data_digests: content digests of the files that the real data come from (`storage.sources.family_data`).
    """
    if config.family.chained:
        runs = [_plan_chain(config, mask=mask, seed=seed) for seed in config.seeds for mask in config.arms]
        return FamilyPlan(config=config, shared=[], runs=runs)
    data = {seed: _data_stage(config, seed if config.family.seeded_data else 0, data_digests) for seed in config.seeds}
    runs = [_plan_run(config, mask=mask, seed=seed, data=data[seed]) for seed in config.seeds for mask in config.arms]
    shared = list({one.reference: one for one in data.values()}.values())
    return FamilyPlan(config=config, shared=shared, runs=runs)


def _fields(family: FamilyConfig, *, exclude: frozenset[str]) -> dict[str, Any]:
    return family.model_dump(mode="json", exclude=set(exclude))


def _data_stage(config: FamilyExperiment, seed: int, digests: Mapping[str, str]) -> Stage:
    family = config.family
    content = family.model_dump(mode="json", include={"type", *family.data_fields})
    for name, part in content.items():
        if isinstance(part, dict):  # a file enters by its digest, never by its path
            content[name] = {field: value for field, value in part.items() if field not in family.path_fields}
    return stage(
        "family-data",
        content={"family": content, "seed": seed, "digests": dict(digests)},
        parents={},
        recipe={"family": family.model_dump(mode="json")},
    )


def _masked(family: FamilyConfig, mask: Mask, generation: int) -> dict[str, Any] | None:
    """The mask, where it has a say: some families fit M_0 to all of the real data under every arm."""
    return mask.model_dump(mode="json") if generation or family.masks_real_data else None


def _plan_run(config: FamilyExperiment, *, mask: Mask, seed: int, data: Stage) -> FamilyRun:
    family, arm = config.family, config.label_of(mask)
    recipe = {"family": family.model_dump(mode="json"), "mask": mask.model_dump(mode="json")}
    fitted = _fields(family, exclude=family.data_fields | family.measure_fields)
    measured = family.model_dump(mode="json", include={"type", *family.measure_fields})
    steps: list[FamilyStep] = []
    evaluations: dict[str, Stage] = {}
    for i in range(config.generations):
        names: dict[str, Any] = {"arm": arm, "seed": seed, "generation": i}
        drawn = {f"X_{step.last + 1}": step.sample for step in steps if step.sample is not None}
        if config.regime == "replace" and steps:
            read = dict(list(drawn.items())[-1:])
        else:
            read = {"data": data, **drawn}
        train = stage(
            "family-train",
            content={"family": fitted, "mask": _masked(family, mask, i), "seed": seed, "generation": i},
            parents={**read, **({"model": steps[-1].train} if steps else {})},
            recipe=recipe,
            **names,
        )
        sample = stage(
            "family-sample",
            content={"family": fitted, "seed": seed, "generation": i},
            parents={"model": train, "data": data},
            recipe=recipe,
            **names,
        )
        evaluate = stage(
            "family-evaluate",
            content={"family": measured, "seed": seed, "generation": i},
            parents={"model": train, "sample": sample, "data": data, "first": steps[0].train if steps else train},
            recipe=recipe,
            **names,
        )
        evaluations[f"g{i}"] = evaluate
        steps.append(FamilyStep(i, i, train, sample, evaluate, _failure(config, evaluations, names)))
    return FamilyRun(arm=arm, seed=seed, data=data, steps=steps)


def _plan_chain(config: FamilyExperiment, *, mask: Mask, seed: int) -> FamilyRun:
    """Segments of generations: each goes on where the one before it ended.

    A segment's key holds its own first and last generation, so only one that is cut short by `generations` is
    computed anew when that is raised.
    """
    family, arm = config.family, config.label_of(mask)
    fitted = _fields(family, exclude=family.measure_fields | {"segment"})
    steps: list[FamilyStep] = []
    measured: dict[str, Stage] = {}
    for first in range(0, config.generations, family.generations_at_once):
        last = min(first + family.generations_at_once, config.generations) - 1
        names: dict[str, Any] = {"arm": arm, "seed": seed, "generation": last}
        segment = stage(
            "family-segment",
            content={
                "family": fitted,
                "mask": mask.model_dump(mode="json"),
                "seed": seed,
                "first": first,
                "last": last,
            },
            parents={"before": steps[-1].train} if steps else {},
            recipe={"family": family.model_dump(mode="json"), "mask": mask.model_dump(mode="json")},
            **names,
        )
        measured[f"g{last}"] = segment
        steps.append(FamilyStep(first, last, segment, failure=_failure(config, measured, names)))
    return FamilyRun(arm=arm, seed=seed, data=None, steps=steps)


def _failure(config: FamilyExperiment, measured: Mapping[str, Stage], names: Mapping[str, Any]) -> Stage | None:
    if config.failure is None:
        return None
    content = config.failure.model_dump(mode="json", exclude={"stop_arm"})
    return stage("family-failure", content=content, parents=dict(measured), **names)
