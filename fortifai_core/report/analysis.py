"""From raw results to what a report may claim: intervals, paired differences, time to failure, headline."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fortifai_core.outcomes.bootstrap import (
    FailureInterval,
    Interval,
    McNemar,
    RatioInterval,
    bootstrap_failure_ratio,
    bootstrap_retention,
    bootstrap_time_to_failure,
    mcnemar,
    paired_difference,
    scope_of,
)
from fortifai_core.outcomes.survival import FEWEST_RUNS, Survival, survival
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
from fortifai_core.report.data import ArmResult, GenerationResult, ReportData
from fortifai_core.seeds import derive_seed

NO_INTERVAL = "one document of one run: no interval can be made"


@dataclass(frozen=True)
class ArmSummary:
    """One arm's results over its runs; tuples have one element a generation.

    Attributes:
        split0, total: retention of split 0 and of all splits seen; empty where there are no questions.
        failure, relative: of the mean curve, at the absolute and at the relative threshold.
        failures_by_run: the same at the absolute threshold, one for each of `failure_seeds`.
        survival: of the runs, where at least three of them learned the split.
        change: retention of split 0, last generation against M_0, on the same questions.
        differences, total_differences: to the baseline arm, paired; empty for the baseline itself.
        drift, benchmarks: means over runs, by the name of the measure.
        discordant: of the last compared generation, questions on split 0 that one arm had right alone.
    """

    arm: ArmResult
    split0: tuple[Interval, ...] = ()
    total: tuple[Interval, ...] = ()
    failure: TimeToFailure | None = None
    failure_interval: FailureInterval | None = None
    relative: TimeToFailure | None = None
    failures_by_run: tuple[TimeToFailure, ...] = ()
    failure_seeds: tuple[int, ...] = ()
    survival: Survival | None = None
    ratios: dict[Unit, Ratio] = field(default_factory=dict)
    ratio_interval: RatioInterval | None = None
    change: Interval | None = None
    differences: tuple[Interval, ...] = ()
    total_differences: tuple[Interval, ...] = ()
    discordant: McNemar | None = None
    perplexity: tuple[float | None, ...] = ()
    unigram_kl: tuple[float | None, ...] = ()
    live_fraction: tuple[float | None, ...] = ()
    drift: dict[str, tuple[float | None, ...]] = field(default_factory=dict)
    benchmarks: dict[str, tuple[float | None, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Analysis:
    """All arms, the baseline first, and what may be said about them."""

    data: ReportData
    arms: tuple[ArmSummary, ...]
    relative_threshold: float | None
    units: tuple[Unit, ...]
    headline: tuple[str, ...]
    scope: str


def analyse(data: ReportData) -> Analysis:
    """Compute everything a report or a terminal table shows; the same data gives the same numbers."""
    labels = [arm.label for arm in data.arms]
    first = labels.index(data.baseline) if data.baseline in labels else 0
    ordered = [data.arms[first], *data.arms[:first], *data.arms[first + 1 :]]
    start = [_mean([run.generations[0].retention(0) for run in ordered[0].runs])]
    half_way = None
    if start[0] is not None and start[0] > data.chance:
        half_way = relative_threshold(data.chance, start[0])
    arms: list[ArmSummary] = []
    horizon = min(arm.generations for arm in ordered) - 1
    for arm in ordered:
        arms.append(_summary(data, arm, arms[0] if arms else None, half_way, horizon))
    tokens = all(_tokens(arm) is not None for arm in ordered)
    units = UNITS if tokens else tuple(unit for unit in UNITS if not unit.endswith("_tokens"))
    runs = min(len(arm.runs) for arm in ordered)
    return Analysis(data, tuple(arms), half_way, units, tuple(_headline(data, arms)), scope_of(runs))


def _summary(
    data: ReportData, arm: ArmResult, baseline: ArmSummary | None, half_way: float | None, horizon: int
) -> ArmSummary:
    generations = range(arm.generations)
    values: dict[str, Any] = {
        "perplexity": _series(arm, lambda g: g.perplexity),
        "unigram_kl": _series(arm, lambda g: g.unigram_kl.get(0)),
        "live_fraction": _series(arm, lambda g: g.live_fraction),
        "drift": _named(arm, lambda g: g.drift),
        "benchmarks": _named(arm, lambda g: g.benchmarks),
    }
    curves, documents = _curves([arm], 0)
    seed = derive_seed("report", "retention")
    options: dict[str, Any] = {"draws": data.draws, "seed": seed, "level": data.level}
    rule: dict[str, Any] = {"regime": data.regime, "tokens": _tokens(arm)}
    if curves:
        values["split0"] = tuple(_retention([c[g] for c in curves[0]], documents, options) for g in generations)
        totals = [_curves([arm], None, only=g) for g in generations]
        values["total"] = tuple(_retention([c[0] for c in own[0]], names, options) for own, names in totals)
        if arm.generations > 1:
            ends = [c[-1] for c in curves[0]], [c[0] for c in curves[0]]
            values["change"] = _difference(*ends, documents, options)
        if half_way is not None:
            mean = [interval.estimate for interval in values["split0"]]
            values["relative"] = time_to_failure(mean, threshold=half_way, **rule)
        if data.by_retention and _resamplable(documents):
            how = {"threshold": data.threshold, "regime": data.regime, **options}
            values["failure_interval"] = bootstrap_time_to_failure(curves[0], clusters=documents, **how)
    values |= _failure(data, arm, rule, horizon)
    if baseline is not None:
        if "failure" in values and baseline.failure is not None:
            values["ratios"] = {unit: ratio(values["failure"], baseline.failure, unit=unit) for unit in UNITS}
        values |= _compared(arm, baseline.arm, options)
        if data.by_retention:
            values["ratio_interval"] = _ratio_interval(data, arm, baseline.arm, options)
    return ArmSummary(arm, **values)


def _failure(data: ReportData, arm: ArmResult, rule: dict[str, Any], horizon: int) -> dict[str, Any]:
    """Time to failure of the mean curve, of each run, and over the runs together; empty where it was not measured."""
    judged = data.judged
    reached = range(judged.first, arm.generations)
    runs = [[run.generations[g].value(judged.name) for g in reached] for run in arm.runs]
    known = [
        (run.seed, [value for value in values if value is not None]) for run, values in zip(arm.runs, runs, strict=True)
    ]
    complete = [(seed, values) for seed, values in known if values and len(values) == len(reached)]
    if not complete:
        return {}
    how: dict[str, Any] = {"threshold": data.threshold, "falls": judged.falls, "first": judged.first, **rule}
    mean = [sum(column) / len(column) for column in zip(*(values for _, values in complete), strict=True)]
    outcomes = tuple(time_to_crossing(values, **how) for _, values in complete)
    found: dict[str, Any] = {
        "failure": time_to_crossing(mean, **how),
        "failures_by_run": outcomes,
        "failure_seeds": tuple(seed for seed, _ in complete),
    }
    if sum(one.status != "never-learned" for one in outcomes) >= FEWEST_RUNS and horizon > judged.first:
        found["survival"] = survival(outcomes, horizon=float(horizon), level=data.level)
    return found


def _compared(arm: ArmResult, baseline: ArmResult, options: dict[str, Any]) -> dict[str, Any]:
    """Paired differences on the seeds, generations and questions that both arms have."""
    pairs, documents = _curves([arm, baseline], 0)
    if not pairs:
        return {}
    own, other = pairs
    both = range(min(arm.generations, baseline.generations))
    totals = [_curves([arm, baseline], None, only=g) for g in both]
    last = both[-1]
    return {
        "differences": tuple(_difference([c[g] for c in own], [c[g] for c in other], documents, options) for g in both),
        "total_differences": tuple(
            _difference([c[0] for c in ours], [c[0] for c in theirs], names, options)
            for (ours, theirs), names in totals
        ),
        "discordant": mcnemar([c[last] for c in own], [c[last] for c in other]),
    }


def _ratio_interval(
    data: ReportData, arm: ArmResult, baseline: ArmResult, options: dict[str, Any]
) -> RatioInterval | None:
    """Of the two times to failure, on the seeds, generations and questions that both arms have."""
    pairs, documents = _curves([arm, baseline], 0)
    if not pairs or not _resamplable(documents):
        return None
    return bootstrap_failure_ratio(pairs[0], pairs[1], clusters=documents, threshold=data.threshold, **options)


def _curves(
    arms: Sequence[ArmResult], split: int | None, only: int | None = None
) -> tuple[list[list[Any]], list[list[str]]]:
    """Right or wrong as [arm][run] -> [generation, question], with the questions' documents for each run.

    Runs are those of the seeds that all arms have; questions those asked in every generation taken: all that
    every arm reached, or `only` one. No questions in common: an empty list.
    """
    import numpy as np

    seeds = [seed for seed in arms[0].seeds if all(seed in arm.seeds for arm in arms)]
    reached = range(min(arm.generations for arm in arms)) if only is None else [only]
    curves: list[list[Any]] = [[] for _ in arms]
    documents = []
    for seed in seeds:
        runs = [next(run for run in arm.runs if run.seed == seed) for arm in arms]
        answers = [[run.generations[g].scores.of(split) for g in reached] for run in runs]
        common = sorted(set.intersection(*(set(one) for own in answers for one in own)))
        if not common:
            continue
        documents.append([answers[0][0][question][0] for question in common])
        for table, own in zip(curves, answers, strict=True):
            table.append(np.array([[one[question][1] for question in common] for one in own], dtype=bool))
    return (curves, documents) if documents else ([], [])


def _resamplable(documents: Sequence[Sequence[str]]) -> bool:
    return len(documents) > 1 or len(set(documents[0])) > 1


def _retention(runs: list[Any], documents: list[list[str]], options: dict[str, Any]) -> Interval:
    if _resamplable(documents):
        return bootstrap_retention(runs, clusters=documents, **options)
    return _point(float(runs[0].mean()), len(runs[0]), options)


def _difference(first: list[Any], second: list[Any], documents: list[list[str]], options: dict[str, Any]) -> Interval:
    if _resamplable(documents):
        return paired_difference(first, second, clusters=documents, **options)
    return _point(float(first[0].mean() - second[0].mean()), len(first[0]), options)


def _point(estimate: float, questions: int, options: dict[str, Any]) -> Interval:
    return Interval(estimate, math.nan, math.nan, options["level"], 1, questions, 1, NO_INTERVAL)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _series(arm: ArmResult, value: Callable[[GenerationResult], float | int | None]) -> tuple[float | None, ...]:
    """The mean over runs in every generation; None where a run lacks it."""
    return tuple(_mean([value(run.generations[g]) for run in arm.runs]) for g in range(arm.generations))


def _named(
    arm: ArmResult, values: Callable[[GenerationResult], Mapping[str, float]]
) -> dict[str, tuple[float | None, ...]]:
    """`_series` of every measure that any generation has."""
    names = dict.fromkeys(name for run in arm.runs for g in run.generations for name in values(g))
    return {name: _series(arm, lambda g, name=name: values(g).get(name)) for name in names}  # type: ignore[misc]


def _tokens(arm: ArmResult) -> list[tuple[float, float]] | None:
    trained = _series(arm, lambda g: g.tokens_trained)
    synthetic = _series(arm, lambda g: g.tokens_synthetic)
    pairs = [(a, b) for a, b in zip(trained, synthetic, strict=True) if a is not None and b is not None]
    return pairs if len(pairs) == arm.generations else None


# ------------------------------------------------------------------------------------------- in words


def points(value: float) -> str:
    """A difference of shares in points, with its sign: `+3.1`, `−0.4`, `0.0`."""
    text = f"{abs(100 * value):.1f}"
    return text if text == "0.0" else f"{'+' if value > 0 else '−'}{text}"


def _between(interval: Interval) -> str:
    if math.isnan(interval.low):
        return "no interval: one document"
    return f"{interval.level:.0%} interval {points(interval.low)} to {points(interval.high)}"


def _ends(interval: Interval) -> str:
    """The interval of a share in brackets, or nothing where there is none."""
    if math.isnan(interval.low):
        return ""
    return f" ({interval.level:.0%} interval {100 * interval.low:.0f} to {100 * interval.high:.0f}%)"


def _headline(data: ReportData, arms: Sequence[ArmSummary]) -> list[str]:
    """Plain sentences that claim no more than the intervals allow."""
    base = arms[0]
    judged = [] if data.by_retention else [_judged(data, arm) for arm in arms]
    if not base.split0:
        return ["There are no questions about split 0, so retention was not measured.", *judged]
    sentences = [_own_story(data, base), *judged]
    for other in arms[1:]:
        if other.differences:
            sentences.append(_comparison(other, base))
        else:
            sentences.append(f"{other.arm.title} shares no seed and question with {base.arm.title}.")
    return sentences


def _judged(data: ReportData, arm: ArmSummary) -> str:
    """When an arm failed, by a measure that has no interval of its own."""
    judged, title = data.judged, arm.arm.title
    rule = f"{judged.title} {judged.verb} {judged.level(data.threshold)}"
    if arm.failure is None:
        return f"Under {title}, {judged.title} was not measured, so nothing is said about failure."
    if arm.failure.status == "never-learned":
        side = "below" if judged.falls else "above"
        return f"Under {title}, {judged.title} was {side} {judged.level(data.threshold)} from the start."
    if arm.failure.status == "censored":
        return f"Under {title}, it was never seen that {rule}."
    return f"Under {title}, {rule} after {arm.failure.describe()} generations (no interval)."


def _own_story(data: ReportData, arm: ArmSummary) -> str:
    title, first, last = arm.arm.title, arm.split0[0], arm.split0[-1]
    final = f"M{len(arm.split0) - 1}"
    failure = arm.failure if data.by_retention else None
    if failure is not None and failure.status == "never-learned":
        guess = not first.low > data.chance
        return (
            f"Under {title}, M0 answered {first.estimate:.0%} of the questions on split 0{_ends(first)}"
            + (f", not distinguishable from guessing ({data.chance:.0%})" if guess else "")
            + f". That is below the failure threshold of {data.threshold:.0%}: it never learned the split, "
            "and has no time to failure."
        )
    if arm.change is None:
        return f"Under {title}, M0 answered {first.estimate:.0%} of the questions on split 0{_ends(first)}."
    ends = f"{first.estimate:.0%} at M0 to {last.estimate:.0%} at {final}"
    if arm.change.high < 0:
        story = f"Under {title}, retention of split 0 fell from {ends}"
    elif arm.change.low > 0:
        story = f"Under {title}, retention of split 0 rose from {ends}"
    else:
        return (
            f"Under {title}, retention of split 0 went from {ends} ({points(arm.change.estimate)} points, "
            f"{_between(arm.change)}): not distinguishable from no change at this size."
        )
    if failure is None:
        return f"{story}."
    if failure.status == "failed":
        when = f"{failure.describe()} generations"
        if arm.failure_interval is not None:
            when += f" ({data.level:.0%} interval {arm.failure_interval.describe()})"
        return f"{story}; it first fell below {data.threshold:.0%} after {when}."
    return f"{story}; it never fell below {data.threshold:.0%}."


def _comparison(arm: ArmSummary, base: ArmSummary) -> str:
    gap, last = arm.differences[-1], len(arm.differences) - 1
    title, other = arm.arm.title, base.arm.title
    reached = min(arm.arm.generations, base.arm.generations) == max(arm.arm.generations, base.arm.generations)
    verb = "ended" if reached else f"stood, at M{last} (the last that both reached),"
    if last == 0 and reached:
        verb = "stood, at M0,"
    if points(gap.estimate) == "0.0":
        place = f"level with {other}"
    else:
        side = "above" if gap.estimate > 0 else "below"
        place = f"{points(gap.estimate)[1:]} points {side} {other}"
    claim = f"{title} {verb} {place} ({_between(gap)})"
    if not gap.excludes_zero:
        return f"{claim}: not distinguishable at this size."
    if gap.runs == 1:
        return f"{claim}: a difference on these questions, but one run cannot tell it from retraining noise."
    return f"{claim}: a difference over {gap.runs} runs."
