"""The report's tables in full, as columns: they become CSV and Parquet files beside the page."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fortifai_core.measures.mutation import marked
from fortifai_core.outcomes.time_to_failure import TimeToFailure, Unit
from fortifai_core.report.analysis import Analysis
from fortifai_core.report.data import GenerationResult
from fortifai_core.report.survival_strip import fates

ALL = "all"


@dataclass(frozen=True)
class ReportTable:
    """A table by columns; None where a cell is empty. Every column holds one type."""

    name: str
    columns: Mapping[str, Sequence[Any]]

    @property
    def rows(self) -> int:
        return max(len(values) for values in self.columns.values())

    def write_csv(self, path: Path) -> None:
        """Header and rows; an empty cell is nothing at all."""
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)  # with CR LF (RFC 4180): a model's text may hold either, and is then quoted
            writer.writerow(self.columns)
            writer.writerows(zip(*self.columns.values(), strict=True))


def report_tables(analysis: Analysis) -> list[ReportTable]:
    """Every table of the report that has rows. `seed` is `all` for what is over the runs together."""
    made = [
        _table("results", _RESULTS, _results(analysis)),
        _table("time-to-failure", _FAILURES, _failures(analysis)),
        _table("survival-of-runs", _SURVIVAL, _survival(analysis)),
        _table("questions", _QUESTIONS, _questions(analysis)),
        _table("mutation", _MUTATION, _mutation(analysis)),
        _table("quoted", _QUOTED, _quoted(analysis)),
    ]
    return [one for one in made if one.rows]


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


def _table(name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> ReportTable:
    gathered = list(rows)
    return ReportTable(name, {column: [row[i] for row in gathered] for i, column in enumerate(columns)})


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _results(analysis: Analysis) -> Iterator[tuple[Any, ...]]:
    """Every number in long form."""
    name = analysis.data.experiment
    for arm in analysis.arms:
        label = arm.arm.label
        for run in arm.arm.runs:
            for result in run.generations:
                for metric, split, value in measured(result):
                    yield (name, label, str(run.seed), result.generation, metric, split, float(value), None, None)
        means = {
            "kr-split-0": arm.split0,
            "kr-total": arm.total,
            "difference-split-0": arm.differences,
            "difference-total": arm.total_differences,
        }
        for metric, intervals in means.items():
            split = 0 if metric.endswith("split-0") else None
            for generation, v in enumerate(intervals):
                yield (name, label, ALL, generation, metric, split, v.estimate, _finite(v.low), _finite(v.high))
        if arm.discordant is not None:
            last = len(arm.differences) - 1
            for metric, value in (
                ("mcnemar-only-this-arm", arm.discordant.only_a),
                ("mcnemar-only-baseline", arm.discordant.only_b),
                ("mcnemar-p", arm.discordant.p_value),
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
    yield from ((f"seconds-{stage}", None, value) for stage, value in sorted(result.seconds.items()))


def _failures(analysis: Analysis) -> Iterator[tuple[Any, ...]]:
    metric = analysis.data.metric
    for arm in analysis.arms:
        if arm.failure is not None:
            for unit in analysis.units:
                ratio = arm.ratios.get(unit)
                between: tuple[float | None, float | None] = (None, None)
                if unit == "generations" and arm.failure_interval is not None:
                    between = _finite(arm.failure_interval.low), _finite(arm.failure_interval.high)
                compared = (ratio.value, ratio.kind) if ratio is not None else (None, None)
                ends: tuple[float | None, float | None] = (None, None)
                if unit == "generations" and arm.ratio_interval is not None:
                    ends = _finite(arm.ratio_interval.low), _finite(arm.ratio_interval.high)
                yield (*_outcome(arm.arm.label, ALL, metric, arm.failure, unit), *between, *compared, *ends)
        if arm.relative is not None:
            yield (*_outcome(arm.arm.label, ALL, "kr-split-0", arm.relative, "generations"), *[None] * 6)
        for run, failure in zip(arm.failure_seeds, arm.failures_by_run, strict=True):
            yield (*_outcome(arm.arm.label, str(run), metric, failure, "generations"), *[None] * 6)


def _outcome(label: str, seed: str, metric: str, failure: TimeToFailure, unit: Unit) -> tuple[Any, ...]:
    return (
        label, seed, metric, failure.threshold, unit, failure.status, failure.value(unit), failure.observed.value(unit),
    )  # fmt: skip


def _survival(analysis: Analysis) -> Iterator[tuple[Any, ...]]:
    for arm in analysis.arms:
        if arm.survival is not None:
            for step in arm.survival.steps:
                yield (arm.arm.label, step.time, step.survival, step.low, step.high, step.at_risk, step.failed)


def _questions(analysis: Analysis) -> Iterator[tuple[Any, ...]]:
    for arm in analysis.arms:
        for one in fates(arm.arm):
            last = one.first_asked + len(one.answers) - 1
            asked = (one.first_asked, last, one.last_right, one.died_in, one.fate)
            yield (arm.arm.label, one.seed, one.question, one.document, one.split, *asked)


def _mutation(analysis: Analysis) -> Iterator[tuple[Any, ...]]:
    for one in analysis.data.mutations:
        for number, version in enumerate(marked(one)):
            facts = version.facts
            counts = (None, None, None) if facts is None else (facts.true, facts.false, facts.absent)
            text = "".join(piece.text for piece in version.pieces)
            yield (one.label, one.seed, one.document, number, version.writer, text, version.changed, *counts)


def _quoted(analysis: Analysis) -> Iterator[tuple[Any, ...]]:
    for arm in analysis.data.quoted:
        for generation, (first, total) in enumerate(zip(arm.retention, arm.total, strict=True)):
            yield (arm.table, arm.dataset, arm.model, arm.method, generation, first, total)
