"""Time to failure over several runs of an arm: the Kaplan-Meier estimate, its median and its restricted mean.

A run that never failed is right-censored: it counts as at risk up to its last generation, and as nothing after it. A
run that never learned the split has no time to failure: it is left out and counted apart. Times are in generations.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fortifai_core.errors import InputError
from fortifai_core.interval import Interval
from fortifai_core.outcomes.time_to_failure import TimeToFailure

# With two runs a curve has two steps, and its interval spans everything.
FEWEST_RUNS = 3


@dataclass(frozen=True)
class Step:
    """The curve from `time` on: the share that has not failed, with its pointwise interval."""

    time: float
    share: Interval
    at_risk: int
    failed: int


@dataclass(frozen=True)
class Survival:
    """An arm's runs together.

    Attributes:
        steps: one for each time at which a run failed; before the first, all survive.
        runs, failed, censored, never_learned: counts; `runs` are those that learned the split.
        median: where the curve first is at or below one half, inf if it never is.
        restricted_mean: mean time without failure up to `horizon`.
    """

    steps: tuple[Step, ...]
    runs: int
    failed: int
    censored: int
    never_learned: int
    median: Interval
    horizon: float
    restricted_mean: Interval


def survival(outcomes: Sequence[TimeToFailure], *, horizon: float | None = None, level: float = 0.95) -> Survival:
    """The Kaplan-Meier estimate of runs' times to failure.

    Pointwise intervals from Greenwood's variance on the log(-log) scale (Kalbfleisch and Prentice 2002), by scipy; the
    median's by inverting them (Brookmeyer and Crowley 1982); the restricted mean is the area under the curve up to
    `horizon`, its variance Greenwood's too (Klein and Moeschberger 2003, 4.5), its interval a normal one kept within
    [0, horizon]. All are large-sample formulas: with a handful of runs they are rough.

    Args:
        horizon: in generations; by default the last at which every run was still followed.

    Raises:
        InputError: no run learned the split.
    """
    from scipy.stats import CensoredData, ecdf, norm

    learned = [outcome for outcome in outcomes if outcome.status != "never-learned"]
    if not learned:
        raise InputError("outcomes", len(outcomes), "none of the runs learned the split: there is nothing to fail")
    times = [run.generations for run in learned if run.generations is not None]
    ends = [float(run.observed.generations) for run in learned if run.status == "censored"]
    limit = float(min(run.last_generation for run in learned)) if horizon is None else horizon
    steps: list[Step] = []
    if times:
        function = ecdf(CensoredData(uncensored=times, right=ends)).sf
        with warnings.catch_warnings():
            # where the curve is 0 or 1 the log scale has no interval: filled in below
            warnings.simplefilter("ignore", RuntimeWarning)
            band = function.confidence_interval(confidence_level=level, method="log-log")
        everybody = np.array([*times, *ends])
        for time in sorted(set(times)):
            at = int(np.searchsorted(function.quantiles, time))
            low, high = float(band.low.probabilities[at]), float(band.high.probabilities[at])
            value = float(function.probabilities[at])
            # at 0: nobody is left; an upper bound would be that of the step before
            low = 0.0 if math.isnan(low) else low
            high = (steps[-1].share.high if steps else 1.0) if math.isnan(high) else high
            share = Interval(value, low, high, level)
            steps.append(Step(time, share, int((everybody >= time).sum()), times.count(time)))
    mean, variance = _restricted_mean(steps, limit)
    margin = float(norm.ppf((1 + level) / 2)) * math.sqrt(variance)
    return Survival(
        steps=tuple(steps),
        runs=len(learned),
        failed=len(times),
        censored=len(ends),
        never_learned=len(outcomes) - len(learned),
        median=Interval(_half(steps, "estimate"), _half(steps, "low"), _half(steps, "high"), level),
        horizon=limit,
        restricted_mean=Interval(mean, max(0.0, mean - margin), min(limit, mean + margin), level),
    )


def _half(steps: Sequence[Step], end: str) -> float:
    """Where the curve, or one end of its interval, first is at or below one half."""
    return next((step.time for step in steps if getattr(step.share, end) <= 0.5 + 1e-12), math.inf)


def _restricted_mean(steps: Sequence[Step], limit: float) -> tuple[float, float]:
    """(area under the curve up to `limit`, its variance)."""
    within = [step for step in steps if step.time < limit]
    borders = [0.0, *(step.time for step in within), limit]
    heights = [1.0, *(step.share.estimate for step in within)]
    pieces = [(b - a) * h for a, b, h in zip(borders[:-1], borders[1:], heights, strict=True)]
    variance = 0.0
    for place, step in enumerate(within, start=1):
        rest = sum(pieces[place:])  # the area still to come after this failure
        if step.at_risk > step.failed:
            variance += rest**2 * step.failed / (step.at_risk * (step.at_risk - step.failed))
    return sum(pieces), variance
