"""The report's tables in full, as columns: they become CSV and Parquet files beside the page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fortifai_core.measures.mutation import marked
from fortifai_core.outcomes.bootstrap import FailureInterval, RatioInterval
from fortifai_core.outcomes.time_to_failure import TimeToFailure, Unit
from fortifai_core.report.analysis import Analysis
from fortifai_core.report.contents import ReportTable, finite, table
from fortifai_core.report.data import GenerationResult
from fortifai_core.report.survival_strip import fates

ALL = "all"


def report_tables(analysis: Analysis) -> list[ReportTable]:
    """Every table of the report that has rows. `seed` is `all` for what is over the runs together."""
    made = [
        table("results", _RESULTS, _results(analysis)),
        table("time-to-failure", _FAILURES, _failures(analysis)),
        table("survival-of-runs", _SURVIVAL, _survival(analysis)),
        table("questions", _QUESTIONS, _questions(analysis)),
        table("mutation", _MUTATION, _mutation(analysis)),
        table("quoted", _QUOTED, _quoted(analysis)),
    ]
    return [part for part in made if part.rows]


_RESULTS = ("experiment", "arm", "seed", "generation", "metric", "split", "value", "low", "high")
_FAILURES = (
    "arm", "seed", "metric", "threshold", "unit", "status", "value", "followed_to", "low", "high",
    "ratio_to_baseline", "ratio_is", "ratio_low", "ratio_high",
)  # fmt: skip
_SURVIVAL = ("arm", "generations", "survival", "low", "high", "at_risk", "failed")
_QUESTIONS = (
    "arm", "seed", "question", "document", "split", "first_asked", "last_asked", "last_right", "died_in", "fate",
)  # fmt: skip
_MUTATION = ("arm", "seed", "document", "version", "writer", "text", "changed", "true", "false", "absent")
_QUOTED = ("table", "dataset", "model", "arm", "generation", "split_0", "total")


def _results(analysis: Analysis) -> Iterator[tuple[Any, ...]]:
    """Every number in long form."""
    name = analysis.data.experiment
    for arm in analysis.arms:
        label = arm.arm.label
        for run in arm.arm.runs:
            for result in [*([run.before] if run.before else []), *run.generations]:
                for metric, split, value in measured(result):
                    yield (name, label, str(run.seed), result.generation, metric, split, float(value), None, None)
        means = {
            "kr-split-0": arm.split0,
            "kr-total": arm.total,
            "difference-split-0": arm.differences,
            "difference-total": arm.compared.totals if arm.compared else (),
        }
        for metric, intervals in means.items():
            split = 0 if metric.endswith("split-0") else None
            for generation, v in enumerate(intervals):
                yield (name, label, ALL, generation, metric, split, v.estimate, finite(v.low), finite(v.high))
        if arm.compared is not None:
            last = len(arm.differences) - 1
            for metric, value in (
                ("mcnemar-only-this-arm", arm.compared.discordant.only_a),
                ("mcnemar-only-baseline", arm.compared.discordant.only_b),
                ("mcnemar-p", arm.compared.discordant.p_value),
            ):
                yield (name, label, ALL, last, metric, 0, float(value), None, None)


def measured(result: GenerationResult) -> Iterator[tuple[str, int | None, float]]:
    """(metric, split, value) of one run's generation."""
    for split in sorted(set(result.scores.split)):
        share = result.retention(split)
        if share is not None:
            yield (f"kr-split-{split}", split, share)
    plain = {
        "kr-total": result.retention(None),
        "perplexity-real": result.perplexity,
        "live-fraction": result.live_fraction,
        "tokens-trained": result.tokens_trained,
        "tokens-synthetic": result.tokens_synthetic,
    }
    yield from ((metric, None, value) for metric, value in plain.items() if value is not None)
    for name, value in sorted(result.drift.items()):
        of_split = name.endswith("-0")
        if name != "live-fraction":
            yield (name.removesuffix("-0") if of_split else name, 0 if of_split else None, value)
    yield from ((metric, None, value) for metric, value in sorted(result.benchmarks.items()))
    yield from (("unigram-kl", split, value) for split, value in sorted(result.unigram_kl.items()))


def _failures(analysis: Analysis) -> Iterator[tuple[Any, ...]]:
    metric = analysis.data.metric
    for arm in analysis.arms:
        if arm.failure is not None:
            for unit in analysis.units:
                ratio = arm.ratios.get(unit)
                by_generation = unit == "generations"
                between = _ends(arm.failure_interval if by_generation else None)
                factor = _ends(arm.compared.ratio if by_generation and arm.compared else None)
                compared = (ratio.value, ratio.kind) if ratio is not None else (None, None)
                yield (*_outcome(arm.arm.label, ALL, metric, arm.failure, unit), *between, *compared, *factor)
        if arm.relative is not None:
            yield (*_outcome(arm.arm.label, ALL, "kr-split-0", arm.relative, "generations"), *[None] * 6)
        for run, failure in arm.runs.by_seed.items():
            yield (*_outcome(arm.arm.label, str(run), metric, failure, "generations"), *[None] * 6)


def _ends(bootstrapped: FailureInterval | RatioInterval | None) -> tuple[float | None, float | None]:
    if bootstrapped is None:
        return None, None
    return finite(bootstrapped.interval.low), finite(bootstrapped.interval.high)


def _outcome(label: str, seed: str, metric: str, failure: TimeToFailure, unit: Unit) -> tuple[Any, ...]:
    return (
        label, seed, metric, failure.threshold, unit, failure.status, failure.value(unit), failure.observed.value(unit),
    )  # fmt: skip


def _survival(analysis: Analysis) -> Iterator[tuple[Any, ...]]:
    for arm in analysis.arms:
        if arm.runs.survival is not None:
            for step in arm.runs.survival.steps:
                share = step.share
                yield (arm.arm.label, step.time, share.estimate, share.low, share.high, step.at_risk, step.failed)


def _questions(analysis: Analysis) -> Iterator[tuple[Any, ...]]:
    for arm in analysis.arms:
        for fate in fates(arm.arm):
            last = fate.first_asked + len(fate.answers) - 1
            asked = (fate.first_asked, last, fate.last_right, fate.died_in, fate.fate)
            yield (arm.arm.label, fate.seed, fate.question, fate.document, fate.split, *asked)


def _mutation(analysis: Analysis) -> Iterator[tuple[Any, ...]]:
    for mutation in analysis.data.mutations:
        for number, version in enumerate(marked(mutation)):
            facts = version.facts
            counts = (None, None, None) if facts is None else (facts.true, facts.false, facts.absent)
            text = "".join(piece.text for piece in version.pieces)
            which = (mutation.label, mutation.seed, mutation.document, number)
            yield (*which, version.writer, text, version.changed, *counts)


def _quoted(analysis: Analysis) -> Iterator[tuple[Any, ...]]:
    for arm in analysis.data.quoted:
        for generation, (first, total) in enumerate(zip(arm.retention, arm.total, strict=True)):
            yield (arm.table, arm.dataset, arm.model, arm.method, generation, first, total)
