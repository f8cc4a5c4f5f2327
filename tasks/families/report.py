"""Builder of a family's report: gathers what every run measured and hands it to `fortifai_core.report.family_page`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from fortifai_core.families.base import Arrays, Generation, Results, Run
from fortifai_core.families.registry import FamilyExperiment
from storage.tables import parquet
from storage.tables.arrays import read_arrays, read_parameters
from tasks.families.builders import CHAIN, DATA, PARAMETERS, SAMPLE, read_chain

if TYPE_CHECKING:
    from tasks.engine.build import Context


def build_family_report(context: Context) -> dict[str, Any]:
    """report.html, figures and tables, and table.json for the terminal."""
    from fortifai_core.families.pictures import draw
    from fortifai_core.report.family_analysis import FamilyReport
    from fortifai_core.report.family_page import result_rows, terminal_table, write_family_report

    config = FamilyExperiment.model_validate(context.stage.recipe["config"])
    results = Results(
        config=config.family,
        arms=tuple(config.arm_labels),
        real=_real(context),
        runs=tuple(_run(context, config, arm, seed) for arm in config.arm_labels for seed in config.seeds),
    )
    report = FamilyReport(
        experiment=config.name,
        config=context.stage.recipe["config"],
        command=context.stage.recipe["command"],
        environment=_environment(context),
        results=results,
        figures=tuple(draw(results, context.directory)),
        failures=_failures(context),
        failure=config.failure.model_dump(mode="json") if config.failure else None,
        seconds=_seconds(context),
    )
    analysis = write_family_report(report, context.directory)
    parquet.write_table(context.directory / "results.parquet", result_rows(analysis), schema="family-results")
    table = {**asdict(terminal_table(analysis)), "headline": list(analysis.headline), "notes": list(report.notes)}
    (context.directory / "table.json").write_text(json.dumps(table, indent=1, ensure_ascii=False))
    return {}


def _place(name: str) -> tuple[str, int, int, str]:
    """A parent's name, as `FamilyPlan.report` gives it, in its parts: arm, seed, last generation, role."""
    arm, seed, last, role = name.rsplit("/", 3)
    return arm, int(seed), int(last), role


def _places(context: Context) -> list[tuple[str, tuple[str, int, int, str]]]:
    return [(name, _place(name)) for name in context.stage.parents if not name.startswith("data/")]


def _real(context: Context) -> Arrays:
    """The real data of the first seed; empty for a chain, which draws its own."""
    name = next((name for name in context.stage.parents if name.startswith("data/")), None)
    return read_arrays(context.parent(name).file(DATA)) if name else {}


def _run(context: Context, config: FamilyExperiment, arm: str, seed: int) -> Run:
    """One run. Samples of the first seed, and everybody's last: figures show no more, and memory is finite."""
    metrics: dict[int, dict[str, float]] = {}
    arrays: dict[int, tuple[Arrays, Arrays]] = {}
    for name, (of_arm, of_seed, last, role) in _places(context):
        if (of_arm, of_seed) != (arm, seed):
            continue
        if role in ("family-evaluate", "family-train", "family-segment"):
            for row in parquet.read_rows(context.parent(name).file("metrics.parquet")):
                metrics.setdefault(row["generation"], {})[row["metric"]] = row["value"]
        sample, parameters = arrays.get(last, ({}, {}))
        if role == "family-segment":
            arrays |= {i: ({}, chain) for i, chain in read_chain(context.parent(name).file(CHAIN)).items()}
            continue
        if role == "family-sample" and (seed == config.seeds[0] or last == config.generations - 1):
            sample = read_arrays(context.parent(name).file(SAMPLE))
        if role == "family-train":
            parameters = read_parameters(context.parent(name).file(PARAMETERS))
        arrays[last] = sample, parameters
    return Run(
        arm=arm,
        seed=seed,
        generations=tuple(Generation(i, metrics[i], *arrays.get(i, ({}, {}))) for i in sorted(metrics)),
    )


def _failures(context: Context) -> dict[tuple[str, int], dict[str, Any]]:
    """The last check of every run."""
    found: dict[tuple[str, int], tuple[int, dict[str, Any]]] = {}
    for name, (arm, seed, last, role) in _places(context):
        if role == "family-failure" and last >= found.get((arm, seed), (-1, {}))[0]:
            found[arm, seed] = last, context.parent(name).manifest.metrics
    return {key: metrics for key, (_, metrics) in found.items()}


def _seconds(context: Context) -> dict[str, dict[str, float]]:
    """Computing time by stage and arm."""
    seconds: dict[str, dict[str, float]] = {}
    for name, (arm, _, _, role) in _places(context):
        own = seconds.setdefault(role.removeprefix("family-"), {})
        own[arm] = own.get(arm, 0.0) + context.parent(name).manifest.seconds
    return seconds


def _environment(context: Context) -> dict[str, str]:
    """Where the models were fitted, from the provenance of the first of them."""
    first = next(name for name, (*_, role) in _places(context) if role in ("family-train", "family-segment"))
    provenance = context.parent(first).manifest.provenance
    packages = provenance.get("packages", {})
    shown = [f"{name} {packages[name]}" for name in ("numpy", "scikit-learn", "torch") if name in packages]
    return {
        "processor": f"{provenance.get('cpu', 'unknown')}, {provenance.get('cpu_count', '?')} cores",
        "software": ", ".join([f"Python {provenance.get('python', '?')}", *shown]),
        "code": str((provenance.get("git") or {}).get("revision", "not from a git checkout"))[:12],
    }
