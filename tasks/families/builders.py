"""Builders of a model class's stages: real data, a segment of generations, the time-to-failure check."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Iterator
from typing import Any

from fortifai_core.errors import ConfigError
from fortifai_core.families.base import Arrays, Before, Family, FamilyConfig, Fitted, Made, Span
from fortifai_core.families.registry import family_from_config, preview
from storage.store.store import Artifact
from storage.tables import parquet
from storage.tables.arrays import read_arrays, read_parameters, write_arrays, write_parameters
from tasks.engine.context import Context
from tasks.families.journal import Journal, by_generation, sample_name
from tasks.families.specs import DataSpec, FailureSpec, SegmentSpec

DATA, MODELS, METRICS, PREVIEW = "data.parquet", "models.safetensors", "metrics.parquet", "preview.png"


def family_of(config: FamilyConfig) -> Family:
    """The model class, with the folder that it reads real data from where they come from outside."""
    from storage.sources.family_data import data_folder

    return family_from_config(config, folder=data_folder(config))


def build_data(context: Context[DataSpec]) -> dict[str, Any]:
    """The real data: read where they come from outside, otherwise the class's own."""
    from storage.sources.family_data import load_data

    arrays = load_data(context.spec.family)
    if not arrays:
        family = family_of(context.spec.family)
        assert isinstance(family, Fitted)
        arrays = family.real(seed=context.spec.seed)
    return {"items": write_arrays(context.directory / DATA, arrays)}


def build_segment(context: Context[SegmentSpec]) -> dict[str, Any]:
    """Generations `first` to `last`. Those that an attempt before this one had finished are kept as they are."""
    spec, family = context.spec, family_of(context.spec.family)
    real = read_arrays(context.artifact(spec.data).file(DATA)) if spec.data else {}
    journal = Journal(context.workspace, first=spec.first, keep=family.resumable)
    rest = Span(spec.first + len(journal.made), spec.last, spec.seed, spec.regime)
    if rest.first <= rest.last:
        before = _before(context, journal)
        for made in family.generations(rest, mask=spec.mask, real=real, before=before, progress=context.progress):
            journal.add(made)
    last = journal.made[-1]
    preview(
        spec.family,
        real=real,
        sample=journal.sample(last.generation),
        parameters=last.parameters,
        title=f"M{last.generation}",  # not the arm's name: arms may share what is found by this key
        path=context.directory / PREVIEW,
    )
    models = {f"{made.generation}/{name}": array for made in journal.made for name, array in made.parameters.items()}
    write_parameters(context.directory / MODELS, models)
    parquet.write_table(context.directory / METRICS, _rows(journal.made), schema="family-metrics")
    for path in sorted(context.workspace.glob("sample-*.parquet")):
        shutil.copyfile(path, context.directory / path.name)
    # a manifest is JSON and knows no NaN; metrics.parquet has all of them
    return {name: float(value) for name, value in {**last.fit, **last.measures}.items() if math.isfinite(value)}


def _before(context: Context[SegmentSpec], journal: Journal) -> Before:
    """Where the run stands at the first generation that is still to be made."""
    spec = context.spec
    earlier = [context.artifact(reference) for reference in spec.earlier]
    parameters = start = None
    samples: list[Arrays] = []
    if earlier:
        models = read_models(earlier[-1])
        parameters = models[max(models)]
        start = read_models(context.artifact(spec.start))[0] if spec.start else None
        if spec.regime == "accumulate":
            samples = [read_arrays(path) for artifact in earlier for path in artifact.files("sample-*.parquet")]
        else:
            samples = [read_sample(earlier[-1], max(models))]
    if journal.made:
        parameters, start = journal.made[-1].parameters, start or journal.made[0].parameters
        drawn = [made.generation for made in journal.made]
        if spec.regime == "accumulate":
            samples += [journal.sample(generation) for generation in drawn]
        else:
            samples = [journal.sample(drawn[-1])]
    return Before(parameters, start, tuple(samples))


def read_models(artifact: Artifact) -> dict[int, Arrays]:
    """The parameters of a segment's models by generation."""
    return by_generation(read_parameters(artifact.file(MODELS)))


def read_sample(artifact: Artifact, generation: int) -> Arrays:
    """What M_i of a segment drew; nothing for a class that draws inside."""
    name = sample_name(generation)
    return read_arrays(artifact.file(name)) if artifact.has(name) else {}


def _rows(generations: Iterable[Made]) -> Iterator[dict[str, Any]]:
    """Of metrics.parquet: one row a generation and measure."""
    for made in generations:
        for metrics, count in ((made.fit, made.fitted), (made.measures, made.drawn)):
            for name, value in metrics.items():
                yield {"generation": made.generation, "metric": name, "value": float(value), "count": count}


def read_metrics(artifacts: Iterable[Artifact]) -> dict[int, dict[str, float]]:
    """Every measure by generation and name."""
    metrics: dict[int, dict[str, float]] = {}
    for artifact in artifacts:
        for row in parquet.read_rows(artifact.file(METRICS)):
            metrics.setdefault(row["generation"], {})[row["metric"]] = row["value"]
    return metrics


def build_failure(context: Context[FailureSpec]) -> dict[str, Any]:
    """Whether a measure lies beyond its threshold by now; `failed_in` is the first generation in which it does."""
    from fortifai_core.outcomes.time_to_failure import time_to_crossing

    rule = context.spec.rule
    measured = read_metrics(context.artifact(reference) for reference in context.spec.measured)
    values = {i: metrics[rule.metric] for i, metrics in measured.items() if rule.metric in metrics}
    if not values:
        raise ConfigError("failure.metric", rule.metric, "was not measured; `fortifai sql` lists the metrics")
    falls = rule.when == "below"
    outcome = time_to_crossing(values, threshold=rule.threshold, falls=falls, relative=rule.relative)
    result: dict[str, Any] = {name: getattr(outcome, name) for name in ("status", "failed_in", "threshold")}
    result["time-to-failure"] = outcome.describe()
    if outcome.generations is not None:
        result["generations"] = outcome.generations
    (context.directory / "failure.json").write_text(
        json.dumps({**result, "metric": rule.metric}, indent=2), encoding="utf-8"
    )
    return result
