"""From raw results to what a report may claim: intervals, paired differences, time to failure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fortifai_core.config.stages import Reading
from fortifai_core.interval import Measured
from fortifai_core.outcomes.bootstrap import (
    FailureInterval,
    McNemar,
    RatioInterval,
    bootstrap_failure_ratio,
    bootstrap_retention,
    bootstrap_time_to_failure,
    mcnemar,
    paired_difference,
    scope_of,
)
from fortifai_core.outcomes.time_to_failure import (
    UNITS,
    Ratio,
    TimeToFailure,
    Unit,
    ratio,
    relative_threshold,
    time_to_crossing,
    time_to_failure,
)
from fortifai_core.report.data import ArmResult, GenerationResult, ReportData, RunResult
from fortifai_core.report.failures import RunFailures, failures_of
from fortifai_core.seeds import derive_seed

Series = tuple[float | None, ...]
Options = Mapping[str, Any]  # draws, seed and level of a bootstrap


@dataclass(frozen=True)
class Comparison:
    """One arm against the baseline, on the seeds, generations and questions that both have.

    Attributes:
        differences, totals: of retention, on split 0 and on all splits seen, paired; one a generation.
        discordant: of the last compared generation, questions on split 0 that one arm had right alone.
        ratio: of the two times to failure; None where it is not by retention, or undefined.
    """

    differences: tuple[Measured, ...]
    totals: tuple[Measured, ...]
    discordant: McNemar
    ratio: RatioInterval | None


@dataclass(frozen=True)
class ArmSummary:
    """One arm's results over its runs; tuples have one element a generation.

    Attributes:
        split0, total: retention of split 0 and of all splits seen; empty where there are no questions.
        failure, relative: of the mean curve, at the absolute and at the relative threshold.
        runs: each run's time to failure at the absolute threshold.
        ratios: of `failure` to that of the baseline; empty for the baseline itself.
        change: retention of split 0, last generation against M_0, on the same questions.
        compared: with the baseline; None for the baseline itself, and where they have no question in common.
        drift, benchmarks: means over runs, by the name of the measure.
        before: M_-1's retention of every split, and of all together (None); empty where it was not asked.
        perplexity_before: M_-1's, on held-out real text.
    """

    arm: ArmResult
    split0: tuple[Measured, ...]
    total: tuple[Measured, ...]
    change: Measured | None
    failure: TimeToFailure | None
    failure_interval: FailureInterval | None
    relative: TimeToFailure | None
    runs: RunFailures
    ratios: Mapping[Unit, Ratio]
    compared: Comparison | None
    perplexity: Series
    unigram_kl: Series
    live_fraction: Series
    drift: Mapping[str, Series]
    benchmarks: Mapping[str, Series]
    before: Mapping[int | None, Measured]
    perplexity_before: float | None

    @property
    def differences(self) -> tuple[Measured, ...]:
        return () if self.compared is None else self.compared.differences


@dataclass(frozen=True)
class Analysis:
    """All arms, the baseline first, and what the intervals cover."""

    data: ReportData
    arms: tuple[ArmSummary, ...]
    relative_threshold: float | None
    units: tuple[Unit, ...]
    scope: str

    @property
    def baseline(self) -> str:
        return self.arms[0].arm.title


def analyse(data: ReportData) -> Analysis:
    """Compute everything a report or a terminal table shows; the same data gives the same numbers."""
    labels = [arm.label for arm in data.arms]
    first = labels.index(data.baseline) if data.baseline in labels else 0
    ordered = [data.arms[first], *data.arms[:first], *data.arms[first + 1 :]]
    start = _mean([run.generations[0].retention(0) for run in ordered[0].runs])
    half_way = relative_threshold(data.chance, start) if start is not None and start > data.chance else None
    failures = {arm.label: _failures_by_run(data, arm) for arm in ordered}
    horizon = _horizon(failures.values())
    arms: list[ArmSummary] = []
    for arm in ordered:
        runs = failures_of(failures[arm.label], horizon=horizon, level=data.level)
        arms.append(_summary(data, arm, arms[0] if arms else None, half_way, runs))
    tokens = all(_tokens(arm) is not None for arm in ordered)
    units = tuple(unit for unit in UNITS if tokens or not unit.endswith("_tokens"))
    return Analysis(data, tuple(arms), half_way, units, scope_of(min(len(arm.runs) for arm in ordered)))


def _summary(
    data: ReportData, arm: ArmResult, baseline: ArmSummary | None, half_way: float | None, runs: RunFailures
) -> ArmSummary:
    options: Options = {"draws": data.draws, "seed": derive_seed("report", "retention"), "level": data.level}
    split0, total, change, failure_interval = _retention(data, arm, options)
    mean = _mean_failure(data, arm)
    ratios: dict[Unit, Ratio] = {}
    if mean is not None and baseline is not None and baseline.failure is not None:
        ratios = {unit: ratio(mean, baseline.failure, unit=unit) for unit in UNITS}
    relative = None
    if split0 and half_way is not None:
        curve = [interval.estimate for interval in split0]
        relative = time_to_failure(curve, threshold=half_way, regime=_reading(data, arm), tokens=_tokens(arm))
    return ArmSummary(
        arm=arm,
        split0=split0,
        total=total,
        change=change,
        failure=mean,
        failure_interval=failure_interval,
        relative=relative,
        runs=runs,
        ratios=ratios,
        compared=None if baseline is None else _compared(data, arm, baseline.arm, options),
        perplexity=_series(arm, lambda g: g.perplexity),
        unigram_kl=_series(arm, lambda g: g.unigram_kl.get(0)),
        live_fraction=_series(arm, lambda g: g.live_fraction),
        drift=_named(arm, lambda g: g.drift),
        benchmarks=_named(arm, lambda g: g.benchmarks),
        before=_before(arm, options),
        perplexity_before=_mean([run.before.perplexity if run.before else None for run in arm.runs]),
    )


def _reading(data: ReportData, arm: ArmResult) -> Reading:
    """What makes up an arm's text."""
    return data.regime if arm.reading is None else arm.reading


def _before(arm: ArmResult, options: Options) -> Mapping[int | None, Measured]:
    """What M_-1 answered before any training, by split."""
    known = [run.before.scores for run in arm.runs if run.before is not None]
    asked = sorted({split for scores in known for split in scores.split})
    found: dict[int | None, Measured] = {}
    for split in [*asked, None] if asked else []:
        given = [answers for scores in known if (answers := scores.of(split))]
        right = [np.array([[correct for _, correct in answers.values()]], dtype=bool) for answers in given]
        documents = [[document for document, _ in answers.values()] for answers in given]
        found[split] = _share([one[0] for one in right], documents, options)
    return found


def _retention(
    data: ReportData, arm: ArmResult, options: Options
) -> tuple[tuple[Measured, ...], tuple[Measured, ...], Measured | None, FailureInterval | None]:
    """`split0`, `total`, `change` and `failure_interval` of a summary; empty without questions on split 0."""
    curves, documents = _curves([arm], 0)
    if not curves:
        return (), (), None, None
    generations = range(arm.generations)
    totals = [_curves([arm], None, only=g) for g in generations]
    failure_interval = None
    if data.by_retention and _resamplable(documents):
        failure_interval = bootstrap_time_to_failure(
            curves[0], clusters=documents, threshold=data.threshold, regime=_reading(data, arm), **options
        )
    ends = [c[-1] for c in curves[0]], [c[0] for c in curves[0]]
    return (
        tuple(_share([c[g] for c in curves[0]], documents, options) for g in generations),
        tuple(_share([c[0] for c in answers[0]], names, options) for answers, names in totals),
        _difference(*ends, documents, options) if arm.generations > 1 else None,
        failure_interval,
    )


def _judged(data: ReportData, run: RunResult, last: int) -> dict[int, float] | None:
    """What failure is judged by, up to M_last; None where a generation was not measured."""
    judged = data.judged
    values = {g: run.generations[g].value(judged.name) for g in range(judged.first, last + 1)}
    measured = {g: value for g, value in values.items() if value is not None}
    return measured if values and len(measured) == len(values) else None


def _crossed(data: ReportData, arm: ArmResult, runs: Sequence[RunResult], curve: Mapping[int, float]) -> TimeToFailure:
    tokens = _tokens_of(runs, max(curve) + 1)
    return time_to_crossing(
        curve, threshold=data.threshold, falls=data.judged.falls, regime=_reading(data, arm), tokens=tokens
    )


def _failures_by_run(data: ReportData, arm: ArmResult) -> dict[int, TimeToFailure]:
    """Time to failure of each run, as far as it went; runs that were not measured throughout are left out."""
    curves = {run.seed: (run, _judged(data, run, len(run.generations) - 1)) for run in arm.runs}
    return {seed: _crossed(data, arm, [run], curve) for seed, (run, curve) in curves.items() if curve is not None}


def _horizon(arms: Iterable[Mapping[int, TimeToFailure]]) -> float | None:
    """The last generation to which every run was followed that did not fail before; None where none was.

    A run that was stopped because it had failed is known for ever.
    """
    runs = [run for by_seed in arms for run in by_seed.values()]
    lasted = [run.last_generation for run in runs if run.status == "censored"]
    last = min(lasted) if lasted else max((run.last_generation for run in runs), default=0)
    return float(last) if last > 0 else None


def _mean_failure(data: ReportData, arm: ArmResult) -> TimeToFailure | None:
    """Time to failure of the mean over the runs that were measured throughout, as far as all of the arm's went."""
    curves = [curve for run in arm.runs if (curve := _judged(data, run, arm.generations - 1)) is not None]
    if not curves:
        return None
    return _crossed(data, arm, arm.runs, {g: sum(curve[g] for curve in curves) / len(curves) for g in curves[0]})


def _compared(data: ReportData, arm: ArmResult, baseline: ArmResult, options: Options) -> Comparison | None:
    pairs, documents = _curves([arm, baseline], 0)
    if not pairs:
        return None
    ours, theirs = pairs
    both = range(min(arm.generations, baseline.generations))
    totals = [_curves([arm, baseline], None, only=g) for g in both]
    between = None
    if data.by_retention and _resamplable(documents):
        between = bootstrap_failure_ratio(ours, theirs, clusters=documents, threshold=data.threshold, **options)
    return Comparison(
        differences=tuple(_difference([c[g] for c in ours], [c[g] for c in theirs], documents, options) for g in both),
        totals=tuple(
            _difference([c[0] for c in first], [c[0] for c in second], names, options)
            for (first, second), names in totals
        ),
        discordant=mcnemar([c[both[-1]] for c in ours], [c[both[-1]] for c in theirs]),
        ratio=between,
    )


def _curves(
    arms: Sequence[ArmResult], split: int | None, only: int | None = None
) -> tuple[list[list[Any]], list[list[str]]]:
    """Right or wrong as [arm][run] -> [generation, question], with the questions' documents for each run.

    Runs are those of the seeds that all arms have; questions those asked in every generation taken: all that
    every arm reached, or `only` one. No questions in common: an empty list.
    """
    seeds = [seed for seed in arms[0].seeds if all(seed in arm.seeds for arm in arms)]
    reached = range(min(arm.generations for arm in arms)) if only is None else [only]
    curves: list[list[Any]] = [[] for _ in arms]
    documents = []
    for seed in seeds:
        runs = [next(run for run in arm.runs if run.seed == seed) for arm in arms]
        answers = [[run.generations[g].scores.of(split) for g in reached] for run in runs]
        common = sorted(set.intersection(*(set(given) for of_run in answers for given in of_run)))
        if not common:
            continue
        documents.append([answers[0][0][question][0] for question in common])
        for table, of_run in zip(curves, answers, strict=True):
            table.append(np.array([[given[question][1] for question in common] for given in of_run], dtype=bool))
    return (curves, documents) if documents else ([], [])


def _resamplable(documents: Sequence[Sequence[str]]) -> bool:
    return len(documents) > 1 or len(set(documents[0])) > 1


def _share(runs: list[Any], documents: list[list[str]], options: Options) -> Measured:
    if _resamplable(documents):
        return bootstrap_retention(runs, clusters=documents, **options)
    return _alone(float(runs[0].mean()), len(runs[0]), options)


def _difference(first: list[Any], second: list[Any], documents: list[list[str]], options: Options) -> Measured:
    if _resamplable(documents):
        return paired_difference(first, second, clusters=documents, **options)
    return _alone(float(first[0].mean() - second[0].mean()), len(first[0]), options)


def _alone(estimate: float, questions: int, options: Options) -> Measured:
    """One document of one run: no interval can be made."""
    return Measured(estimate, math.nan, math.nan, options["level"], questions=questions, clusters=1)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _series(arm: ArmResult, value: Callable[[GenerationResult], float | int | None]) -> Series:
    """The mean over runs in every generation; None where a run lacks it."""
    return tuple(_mean([value(run.generations[g]) for run in arm.runs]) for g in range(arm.generations))


def _named(arm: ArmResult, values: Callable[[GenerationResult], Mapping[str, float]]) -> dict[str, Series]:
    """`_series` of every measure that any generation has."""
    names = dict.fromkeys(name for run in arm.runs for g in run.generations for name in values(g))
    return {name: _series(arm, lambda g, name=name: values(g).get(name)) for name in names}  # type: ignore[misc]


def _tokens(arm: ArmResult) -> list[tuple[float, float]] | None:
    return _tokens_of(arm.runs, arm.generations)


def _tokens_of(runs: Sequence[RunResult], generations: int) -> list[tuple[float, float]] | None:
    """Tokens read (all, synthetic) in each generation, a mean over runs; None where some were not counted."""
    found = []
    for g in range(generations):
        trained = _mean([run.generations[g].tokens_trained for run in runs])
        synthetic = _mean([run.generations[g].tokens_synthetic for run in runs])
        if trained is None or synthetic is None:
            return None
        found.append((trained, synthetic))
    return found
