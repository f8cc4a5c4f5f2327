"""What an experiment on a family shows: means over runs with their intervals, differences, and a summary in words.

Intervals are Student's t over runs (seeds): they cover what differs from run to run, and take the runs' means to be
about normal. One run has none, unless the family ran replicates of its own: then a value comes with their quartiles,
and a difference is the median over replicates with the interval of its order statistics. Differences are taken seed by
seed, or replicate by replicate: two arms with one seed share their draws.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fortifai_core.families.base import Figure, Results

T = TypeVar("T")
# What a mask sets or does by itself: that it differs between arms is no finding.
SETTINGS = ("gamma", "live-fraction", "em-converged")


@dataclass(frozen=True)
class Estimate:
    """A mean over runs; `low` and `high` are NaN where no interval can be made.

    Attributes:
        runs: how many it is the mean of.
        replicates: where it is a median over the replicates of one run, how many these are; else 0.
    """

    mean: float
    low: float
    high: float
    runs: int
    replicates: int = 0

    @property
    def known(self) -> bool:
        return not math.isnan(self.low)

    @property
    def excludes_zero(self) -> bool:
        return self.known and (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class FailureRow:
    """Time to failure of an arm: `outcomes` of its runs in words, `failed` of how many, median generation."""

    arm: str
    outcomes: tuple[str, ...]
    failed: int
    never_learned: int
    median: float | None


@dataclass(frozen=True)
class FamilyReport:
    """Everything a report shows that is not derived.

    Attributes:
        config: the whole experiment, as JSON types.
        failures: metrics of the time-to-failure check at the end of each run, by (arm, seed); or empty.
        failure: the check's configuration, or None.
        seconds: computing time by stage and arm.
    """

    experiment: str
    config: dict[str, Any]
    command: str
    environment: dict[str, str]
    results: Results
    figures: tuple[Figure, ...]
    failures: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    failure: dict[str, Any] | None = None
    seconds: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    level: float = 0.95


def title_of(arm: str) -> str:
    """`CE`, `TCE 0.8` for `ce`, `tce-0.8`; numbers and words that follow stay as they are.

    >>> title_of("tce-0.8"), title_of("elbo"), title_of("dynamic-q0.8")
    ('TCE 0.8', 'ELBO', 'Dynamic q0.8')
    """
    first, _, rest = arm.partition("-")
    name = first.upper() if first in ("ce", "tce", "elbo") else first.capitalize()
    return " ".join([name, *([rest.replace("-", " ")] if rest else [])])


def estimate(values: Sequence[float], *, level: float = 0.95) -> Estimate:
    """The mean of one number a run, with Student's t interval."""
    mean, n = statistics.fmean(values), len(values)
    if n < 2 or not all(math.isfinite(v) for v in values):
        return Estimate(mean, math.nan, math.nan, n)
    from scipy.stats import t

    half = float(t.ppf(0.5 + level / 2, n - 1)) * statistics.stdev(values) / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half, n)


def median_estimate(values: Sequence[float], *, level: float = 0.95) -> Estimate:
    """The median of independent replicates, with the distribution-free interval of its order statistics.

    [x_(k+1), x_(n-k)] covers the median with probability 1 − 2 P(B ≤ k), B ~ Binomial(n, 1/2) (Conover 1999, 3.2).
    """
    from scipy.stats import binom

    ordered, n = sorted(values), len(values)
    k = int(binom.ppf((1 - level) / 2, n, 0.5)) - 1
    middle = statistics.median(ordered)
    if k < 0:
        return Estimate(middle, math.nan, math.nan, 1, n)
    return Estimate(middle, ordered[k], ordered[n - 1 - k], 1, n)


@dataclass(frozen=True)
class FamilyAnalysis:
    """Derived from a `FamilyReport`; see `analyse`."""

    report: FamilyReport
    measures: tuple[str, ...]
    estimates: Mapping[tuple[str, str], Mapping[int, Estimate]]
    differences: Mapping[tuple[str, str], Estimate]
    last: int
    shown: tuple[int, ...]
    failures: tuple[FailureRow, ...]
    headline: tuple[str, ...]
    scope: str

    def title(self, measure: str) -> str:
        """What a measure is, in words."""
        title = self.report.results.config.measures.get(measure, measure.replace("-", " "))
        return title[:1].upper() + title[1:]


def analyse(report: FamilyReport) -> FamilyAnalysis:
    """Estimates by (arm, measure) and generation, differences to the baseline at the end, and words."""
    results = report.results
    found = {name for run in results.runs for g in run.generations for name in g.metrics}
    known = [name for name in results.config.measures if name in found]
    measures = tuple(name for name in known + sorted(found - set(known)) if not _is_end(name, found))
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
    analysis = FamilyAnalysis(
        report=report,
        measures=measures,
        estimates=estimates,
        differences=differences,
        last=last,
        shown=spread(sorted({i for by in estimates.values() for i in by}), 5),
        failures=tuple(_failures(report, arm) for arm in results.arms) if report.failures else (),
        headline=(),
        scope=scope,
    )
    return FamilyAnalysis(**{**analysis.__dict__, "headline": tuple(_words(analysis))})


def _is_end(name: str, found: set[str]) -> bool:
    """Whether a measure is the end of another's interval (`sigma-low`), and no measure of its own."""
    stem = name.removesuffix("-low").removesuffix("-high")
    return stem != name and stem in found


def spread(generations: Sequence[T], count: int) -> tuple[T, ...]:
    """At most `count` of them, evenly: the first and the last among them."""
    if len(generations) <= count:
        return tuple(generations)
    last = len(generations) - 1
    step = -(-last // (count - 1))
    return tuple(generations[i] for i in [*range(0, last - step // 2, step), last])


def _estimates(report: FamilyReport, arm: str, name: str) -> dict[int, Estimate]:
    values: dict[int, list[float]] = {}
    quartiles: dict[int, tuple[float, float]] = {}
    runs = report.results.of(arm)
    for run in runs:
        for g in run.generations:
            if name in g.metrics:
                values.setdefault(g.generation, []).append(g.metrics[name])
                if f"{name}-low" in g.metrics:
                    quartiles[g.generation] = g.metrics[f"{name}-low"], g.metrics[f"{name}-high"]
    one = len(runs) == 1
    return {
        i: Estimate(v[0], *quartiles[i], 1) if one and i in quartiles else estimate(v, level=report.level)
        for i, v in sorted(values.items())
    }


def _difference(report: FamilyReport, base: str, arm: str, name: str, at: int) -> Estimate | None:
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
    found = [
        g.parameters[name]
        for run in report.results.of(arm)
        for g in run.generations
        if g.generation == at and name in g.parameters and f"{name}-low" in g.metrics
    ]
    return [float(value) for value in found[0]] if found else []


def _failures(report: FamilyReport, arm: str) -> FailureRow:
    own = [report.failures[key] for key in sorted(report.failures) if key[0] == arm]
    moments = [float(one.get("generations", math.inf)) for one in own if one["status"] != "never-learned"]
    median = statistics.median(moments) if moments else math.inf
    return FailureRow(
        arm=arm,
        outcomes=tuple(str(one["time-to-failure"]) for one in own),
        failed=sum(one["status"] == "failed" for one in own),
        never_learned=sum(one["status"] == "never-learned" for one in own),
        median=median if math.isfinite(median) else None,
    )


def number(value: float) -> str:
    """Three significant digits, all of those before the point, and a true minus."""
    text = f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.3g}"
    return text.replace("-", "−")


def with_interval(value: Estimate) -> str:
    """`0.31 (0.25 to 0.38)`, or the mean alone."""
    there = value.known and value.low < value.high
    return number(value.mean) + (f" ({number(value.low)} to {number(value.high)})" if there else "")


def _words(analysis: FamilyAnalysis) -> list[str]:
    """What the headline measure and the time to failure say, claiming no more than the intervals allow."""
    report, results = analysis.report, analysis.report.results
    name, last, base = results.config.headline, analysis.last, results.arms[0]
    sentences = []
    at_end = [(arm, analysis.estimates[arm, name][last]) for arm in results.arms if (arm, name) in analysis.estimates]
    if at_end:
        values = ", ".join(f"{with_interval(value)} under {title_of(arm)}" for arm, value in at_end)
        sentences.append(f"{analysis.title(name)}, at M{last}: {values}.")
    for arm in results.arms[1:]:
        gap = analysis.differences.get((arm, name))
        if gap is not None:
            sentences.append(_compared(analysis, arm, base, gap))
    if report.failure is not None and analysis.failures:
        what = analysis.title(report.failure["metric"])
        sentences.append(f"{what}, {_threshold(report.failure)}: " + "; ".join(map(_failed, analysis.failures)) + ".")
    return sentences


def _compared(analysis: FamilyAnalysis, arm: str, base: str, gap: Estimate) -> str:
    """One difference in words."""
    which = f"{title_of(arm)} minus {title_of(base)}: {with_interval(gap)}"
    if not gap.known:
        return f"{which}; from one run nobody can tell what of it is chance."
    over = f"the median of {gap.replicates} replicates" if gap.replicates else f"{gap.runs} seeds"
    verdict = "told apart" if gap.excludes_zero else "not distinguishable at this size"
    config = analysis.report.results.config
    named = {n: analysis.differences.get((arm, n)) for n in config.measures if n not in (config.headline, *SETTINGS)}
    others = {n: own for n, own in named.items() if own is not None and own.known}
    told = [name for name, own in others.items() if own.excludes_zero]
    more = ""
    if others:
        which_ones = f" ({', '.join(told)})" if told else ""
        more = f" Of the {len(others)} other measures, {len(told) or 'none'} tell the two apart{which_ones}."
    return f"{which}, {over} compared one by one: {verdict}.{more}"


def _threshold(failure: Mapping[str, Any]) -> str:
    of_what = " of its value at M0" if failure["relative"] else ""
    return f"first {failure['when']} {number(failure['threshold'])}{of_what}"


def _failed(row: FailureRow) -> str:
    runs = len(row.outcomes)
    text = f"{title_of(row.arm)} in {row.failed} of {runs} runs"
    if row.median is not None and row.failed:
        text += f", in the median after {row.median:.2f} generations"
    if row.never_learned:
        text += f" ({row.never_learned} beyond it from M0 on)"
    return text
