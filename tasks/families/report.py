"""Builder of a family's report: gathers what every run measured and hands it to `fortifai_core.report.page`."""

from __future__ import annotations

import itertools
from typing import Any

from fortifai_core.families.base import Arrays, Generation, Results, Run
from fortifai_core.families.registry import FamilyExperiment, draw
from storage.tables.arrays import read_arrays
from tasks.engine.context import Context
from tasks.engine.reports import environment, write_report
from tasks.families.builders import DATA, read_metrics, read_models, read_sample
from tasks.families.specs import ReportSpec, RunResults


def build_report(context: Context[ReportSpec]) -> dict[str, Any]:
    """report.html, figures and tables, and table.json for the terminal."""
    from fortifai_core.report.family_analysis import FamilyReport

    config = FamilyExperiment.model_validate(context.spec.config)
    order = itertools.product(config.arm_labels, config.seeds)
    runs = {(run.arm, run.seed): run for run in context.spec.runs}
    results = Results(
        config=config.family,
        arms=tuple(config.arm_labels),
        real=_real(context),
        runs=tuple(_run(context, config, run) for run in map(runs.__getitem__, order)),
    )
    first = context.spec.runs[0].segments[0].segment
    report = FamilyReport(
        experiment=config.name,
        config=context.spec.config,
        command=context.spec.command,
        environment=environment(context, first, ("numpy", "scikit-learn", "torch")),
        results=results,
        figures=tuple(draw(results, context.directory / "figures")),
        failure=config.failure,
        seconds=_seconds(context),
        differences={arm.label: arm.difference for arm in config.resolved_arms() if config.named},
    )
    write_report(context, report)
    return {}


def _real(context: Context[ReportSpec]) -> Arrays:
    """The real data of the first seed; empty for a class that draws its own."""
    data = context.spec.runs[0].data
    return read_arrays(context.artifact(data).file(DATA)) if data else {}


def _run(context: Context[ReportSpec], config: FamilyExperiment, run: RunResults) -> Run:
    """One run. Samples of the first seed, and everybody's last: figures show no more, and memory is finite."""
    generations: list[Generation] = []
    for part in run.segments:
        artifact = context.artifact(part.segment)
        metrics, models = read_metrics([artifact]), read_models(artifact)
        for i in range(part.first, part.last + 1):
            shown = run.seed == config.seeds[0] or i == config.generations - 1
            generations.append(Generation(i, metrics[i], read_sample(artifact, i) if shown else {}, models[i]))
    return Run(arm=run.arm, seed=run.seed, generations=tuple(generations))


def _seconds(context: Context[ReportSpec]) -> dict[str, dict[str, float]]:
    """Computing time by stage and arm."""
    seconds: dict[str, dict[str, float]] = {}
    for run in context.spec.runs:
        for part in run.segments:
            for role, reference in (("generations", part.segment), ("failure", part.failure)):
                if reference is not None:
                    of_role = seconds.setdefault(role, {})
                    of_role[run.arm] = of_role.get(run.arm, 0.0) + context.manifest(reference).seconds
    return seconds
