"""The plan for a model class other than a language model: every stage with its key. No torch, no Prefect."""

from __future__ import annotations

from collections.abc import Mapping

from fortifai_core.families.registry import FamilyArm, FamilyExperiment
from tasks.engine.plans import GenerationPlan, Plan, RunPlan, Stopped, present, unique
from tasks.engine.stages import Reference, Stage
from tasks.families.specs import DataSpec, FailureSpec, ReportSpec, RunResults, SegmentResults, SegmentSpec


def plan_family(config: FamilyExperiment, *, data_digests: Mapping[str, str]) -> Plan:
    """Every stage of the experiment, with its key.

    Args:
        data_digests: content digests of the files that the real data come from (`storage.sources.family_data`).
    """
    data = {seed: _data(config, seed, data_digests) for seed in config.seeds}
    runs = tuple(_run(config, arm, seed, data[seed]) for seed in config.seeds for arm in config.resolved_arms())
    return Plan(config, tuple(unique(present(*data.values())).values()), runs, _report, "tasks.families.publish:show")


def _data(config: FamilyExperiment, seed: int, digests: Mapping[str, str]) -> Stage | None:
    family = config.family
    if family.draws_real_data:
        return None
    return Stage(DataSpec(family=family, digests=dict(digests), seed=seed if family.seeded_data else 0))


def _spans(config: FamilyExperiment) -> list[tuple[int, int]]:
    """First and last generation of every segment.

    A segment's key holds both, so only one that is cut short by `generations` is computed anew when that is raised.
    """
    segment, end = config.family.segment, config.generations
    return [(first, min(first + segment, end) - 1) for first in range(0, end, segment)]


def _run(config: FamilyExperiment, arm: FamilyArm, seed: int, data: Stage | None) -> RunPlan:
    segments = list[Stage]()
    generations = []
    for first, last in _spans(config):
        before = tuple(stage.reference for stage in segments)
        spec = SegmentSpec(
            family=config.family,
            mask=arm.mask,
            regime=arm.regime,
            seed=seed,
            first=first,
            last=last,
            data=_reference(data),
            earlier=before if arm.regime == "accumulate" else before[-1:],
            start=before[0] if before else None,
        )
        segments.append(Stage(spec, arm=arm.label, seed=seed, generation=last))
        failure = None
        if config.failure is not None:
            measured = tuple(stage.reference for stage in segments)
            check = FailureSpec(rule=config.failure, measured=measured)
            failure = Stage(check, arm=arm.label, seed=seed, generation=last)
        generations.append(GenerationPlan(first, last, segments[-1], failure=failure))
    return RunPlan(arm.label, seed, data, tuple(generations))


def _report(plan: Plan, stopped: Stopped) -> Stage:
    config = plan.config
    runs = []
    for run in plan.runs:
        segments = tuple(
            SegmentResults(first=g.first, last=g.last, segment=g.train.reference, failure=_reference(g.failure))
            for g in run.until(stopped.get((run.arm, run.seed)))
        )
        runs.append(RunResults(arm=run.arm, seed=run.seed, data=_reference(run.data), segments=segments))
    command = f"fortifai resume {config.name}"
    return Stage(ReportSpec(config=config.model_dump(mode="json"), command=command, runs=tuple(runs)))


def _reference(stage: Stage | None) -> Reference | None:
    return stage.reference if stage else None
