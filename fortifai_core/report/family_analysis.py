"""What an experiment on another model class shows: means over runs with intervals, differences, and a summary in words.

Intervals are Student's t over runs (seeds): they cover what differs from run to run, and take the runs' means to be
about normal. One run has none, unless the model class ran replicates of its own: then a value comes with their
quartiles, and a difference is the median over replicates with the interval of its order statistics. Differences are
taken seed by seed, or replicate by replicate: two arms with one seed share their draws.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from fortifai_core.families.base import Figure, Generation, Results
from fortifai_core.families.registry import FamilyFailure
from fortifai_core.interval import Measured
from fortifai_core.outcomes.time_to_failure import TimeToFailure, time_to_crossing
from fortifai_core.report.data import Report
from fortifai_core.report.failures import RunFailures, failures_of
from fortifai_core.wording import arm_title, number, with_interval

T = TypeVar("T")
# What a mask sets or does by itself: that it differs between arms is no finding.
SETTINGS = ("gamma", "live-fraction", "em-converged")


@dataclass(frozen=True)
class FamilyReport(Report):
    """Everything that such a report shows and that is not derived.

    Attributes:
        failure: the time-to-failure check, or None.
        seconds: computing time by stage and arm.
    """

    results: Results
    figures: tuple[Figure, ...]
    failure: FamilyFailure | None = None
    seconds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def estimate(values: Sequence[float], *, level: float = 0.95) -> Measured:
    """The mean of one number a run, with Student's t interval."""
    from scipy.stats import ttest_1samp

    mean, runs = statistics.fmean(values), len(values)
    if runs < 2 or not all(math.isfinite(value) for value in values):
        return Measured(mean, math.nan, math.nan, level, runs=runs)
    if len(set(values)) == 1:
        return Measured(mean, mean, mean, level, runs=runs)
    low, high = ttest_1samp(values, 0.0).confidence_interval(level)
    return Measured(mean, float(low), float(high), level, runs=runs)


def median_estimate(values: Sequence[float], *, level: float = 0.95) -> Measured:
    """The median of independent replicates, with the distribution-free interval of its order statistics."""
    from scipy.stats import quantile_test

    middle = statistics.median(values)
    low, high = quantile_test(values, q=middle, p=0.5).confidence_interval(level)
    ends = (math.nan, math.nan) if math.isnan(low) or math.isnan(high) else (float(low), float(high))
    return Measured(middle, *ends, level, replicates=len(values))


@dataclass(frozen=True)
class FamilyAnalysis:
    """Estimates by (arm, measure) and generation, differences to the baseline at the end, times to failure by arm."""

    report: FamilyReport
    measures: tuple[str, ...]
    estimates: Mapping[tuple[str, str], Mapping[int, Measured]]
    differences: Mapping[tuple[str, str], Measured]
    last: int
    shown: tuple[int, ...]
    failures: Mapping[str, RunFailures]
    scope: str

    def title(self, measure: str) -> str:
        """What a measure is, in words."""
        title = self.report.results.config.measures.get(measure, measure.replace("-", " "))
        return title[:1].upper() + title[1:]


def analyse(report: FamilyReport) -> FamilyAnalysis:
    """Compute everything that is shown; the same data gives the same numbers."""
    results = report.results
    measured = {name for run in results.runs for g in run.generations for name in g.metrics}
    known = [name for name in results.config.measures if name in measured]
    measures = tuple(name for name in known + sorted(measured - set(known)) if not _is_end(name, measured))
    estimates = {
        (arm, name): by_generation
        for arm in results.arms
        for name in measures
        if (by_generation := _estimates(report, arm, name))
    }
    reached = [max(g.generation for g in run.generations) for run in results.runs]
    last = min(reached)
    base = results.arms[0]
    differences = {
        (arm, name): gap
        for arm in results.arms[1:]
        for name in measures
        if (gap := _difference(report, base, arm, name, last)) is not None
    }
    seeds = len({run.seed for run in results.runs})
    scope = f"over {seeds} seeds" if seeds > 1 else "one seed: no interval covers what another would give"
    return FamilyAnalysis(
        report=report,
        measures=measures,
        estimates=estimates,
        differences=differences,
        last=last,
        shown=spread(sorted({i for by in estimates.values() for i in by}), 5),
        failures={arm: _failures(report, arm, last) for arm in results.arms} if report.failure else {},
        scope=scope,
    )


def _is_end(name: str, measured: set[str]) -> bool:
    """Whether a measure is the end of another's interval (`sigma-low`), and no measure of its own."""
    stem = name.removesuffix("-low").removesuffix("-high")
    return stem != name and stem in measured


def spread(generations: Sequence[T], count: int) -> tuple[T, ...]:
    """At most `count` of them, evenly: the first and the last among them."""
    if len(generations) <= count:
        return tuple(generations)
    last = len(generations) - 1
    step = -(-last // (count - 1))
    return tuple(generations[i] for i in [*range(0, last - step // 2, step), last])


def _estimates(report: FamilyReport, arm: str, name: str) -> dict[int, Measured]:
    values: dict[int, list[float]] = {}
    quartiles: dict[int, tuple[float, float]] = {}
    runs = report.results.of(arm)
    for run in runs:
        for g in run.generations:
            if name in g.metrics:
                values.setdefault(g.generation, []).append(g.metrics[name])
                if f"{name}-low" in g.metrics:
                    quartiles[g.generation] = g.metrics[f"{name}-low"], g.metrics[f"{name}-high"]
    alone = len(runs) == 1
    return {
        i: Measured(v[0], *quartiles[i], 0.5) if alone and i in quartiles else estimate(v, level=report.level)
        for i, v in sorted(values.items())
    }


def _difference(report: FamilyReport, base: str, arm: str, name: str, at: int) -> Measured | None:
    def by_seed(label: str) -> dict[int, float]:
        return {
            run.seed: g.metrics[name]
            for run in report.results.of(label)
            for g in run.generations
            if g.generation == at and name in g.metrics
        }

    mine, theirs = by_seed(arm), by_seed(base)
    both = sorted(mine.keys() & theirs.keys())
    if len(both) == 1:
        pair = [_replicates(report, label, name, at) for label in (arm, base)]
        if len(pair[0]) == len(pair[1]) > 1:
            return median_estimate([a - b for a, b in zip(*pair, strict=True)], level=report.level)
    return estimate([mine[s] - theirs[s] for s in both], level=report.level) if both else None


def _replicates(report: FamilyReport, arm: str, name: str, at: int) -> list[float]:
    """The values of the replicates of the one run of an arm; none where the measure is no array of the model's."""
    replicates = [
        g.parameters[name]
        for run in report.results.of(arm)
        for g in run.generations
        if g.generation == at and name in g.parameters and f"{name}-low" in g.metrics
    ]
    return [float(value) for value in replicates[0]] if replicates else []


def _failures(report: FamilyReport, arm: str, last: int) -> RunFailures:
    rule = report.failure
    assert rule is not None

    def crossed(generations: Sequence[Generation]) -> TimeToFailure:
        values = {g.generation: g.metrics[rule.metric] for g in generations if rule.metric in g.metrics}
        falls = rule.when == "below"
        return time_to_crossing(values, threshold=rule.threshold, falls=falls, relative=rule.relative)

    by_seed = {run.seed: crossed(run.generations) for run in report.results.of(arm)}
    return failures_of(by_seed, horizon=float(last) if last else None, level=report.level)


def headline(analysis: FamilyAnalysis) -> list[str]:
    """What the headline measure and the time to failure say, claiming no more than the intervals allow."""
    report, results = analysis.report, analysis.report.results
    name, last, base = results.config.headline, analysis.last, results.arms[0]
    sentences = []
    at_end = [(arm, analysis.estimates[arm, name][last]) for arm in results.arms if (arm, name) in analysis.estimates]
    if at_end:
        values = ", ".join(f"{with_interval(value)} under {arm_title(arm)}" for arm, value in at_end)
        sentences.append(f"{analysis.title(name)}, at M{last}: {values}.")
    for arm in results.arms[1:]:
        gap = analysis.differences.get((arm, name))
        if gap is not None:
            sentences.append(_compared(analysis, arm, base, gap))
    if report.failure is not None:
        runs = "; ".join(_failed(arm, failures) for arm, failures in analysis.failures.items())
        sentences.append(f"{analysis.title(report.failure.metric)}, {threshold_of(report.failure)}: {runs}.")
    return sentences


def _compared(analysis: FamilyAnalysis, arm: str, base: str, gap: Measured) -> str:
    """One difference in words."""
    which = f"{arm_title(arm)} minus {arm_title(base)}: {with_interval(gap)}"
    if not gap.known:
        return f"{which}; from one run nobody can tell what of it is chance."
    over = f"the median of {gap.replicates} replicates" if gap.replicates else f"{gap.runs} seeds"
    verdict = "told apart" if gap.excludes_zero else "not distinguishable at this size"
    config = analysis.report.results.config
    named = {n: analysis.differences.get((arm, n)) for n in config.measures if n not in (config.headline, *SETTINGS)}
    others = {n: difference for n, difference in named.items() if difference is not None and difference.known}
    told = [name for name, difference in others.items() if difference.excludes_zero]
    more = ""
    if others:
        which_ones = f" ({', '.join(told)})" if told else ""
        more = f" Of the {len(others)} other measures, {len(told) or 'none'} tell the two apart{which_ones}."
    return f"{which}, {over} compared one by one: {verdict}.{more}"


def threshold_of(failure: FamilyFailure) -> str:
    """`first below 0.5 of its value at M0`."""
    of_what = " of its value at M0" if failure.relative else ""
    return f"first {failure.when} {number(failure.threshold)}{of_what}"


def _failed(arm: str, runs: RunFailures) -> str:
    text = f"{arm_title(arm)} in {runs.failed} of {len(runs.by_seed)} runs"
    if runs.median is not None and runs.failed:
        text += f", in the median after {runs.median:.2f} generations"
    if runs.never_learned:
        text += f" ({runs.never_learned} beyond it from M0 on)"
    return text
