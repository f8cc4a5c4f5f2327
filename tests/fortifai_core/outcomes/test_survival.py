"""Kaplan-Meier over runs: a published data set, a case by hand, censoring, and runs that never learned."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fortifai_core.errors import InputError
from fortifai_core.interval import Interval
from fortifai_core.outcomes.survival import survival
from fortifai_core.outcomes.time_to_failure import TimeToFailure, effort, time_to_failure


def run(moment: float | None, *, last: int = 5) -> TimeToFailure:
    """A run that fails at `moment` (None: never, followed up to `last`)."""
    end = effort(last, last_generation=last)
    if moment is None:
        return TimeToFailure("censored", 0.75, last, None, end)
    return TimeToFailure("failed", 0.75, last, effort(moment, last_generation=last), end)


def test_by_hand() -> None:
    """Five runs: failures at 1, 2 and 4, censored at 3 and 5: S = 4/5, 3/5, and 3/5 · (1 − 1/2)."""
    runs = [run(1.0), run(2.0), run(None, last=3), run(4.0), run(None, last=5)]
    found = survival(runs, horizon=5)
    assert [step.time for step in found.steps] == pytest.approx([1, 2, 4])
    assert [step.share.estimate for step in found.steps] == pytest.approx([0.8, 0.6, 0.3])
    assert [step.at_risk for step in found.steps] == [5, 4, 2]
    assert (found.runs, found.failed, found.censored, found.never_learned) == (5, 3, 2, 0)
    assert found.median.estimate == pytest.approx(4.0)
    # area: 1·1 + 1·0.8 + 2·0.6 + 1·0.3
    assert found.restricted_mean.estimate == pytest.approx(3.3)
    # Greenwood: areas to come 2.3, 1.5, 0.3; d / n(n − d) = 1/20, 1/12, 1/2
    variance = 2.3**2 / 20 + 1.5**2 / 12 + 0.3**2 / 2
    assert found.restricted_mean.low == pytest.approx(3.3 - 1.959964 * math.sqrt(variance), abs=1e-5)
    assert found.restricted_mean.high == pytest.approx(min(5, 3.3 + 1.959964 * math.sqrt(variance)), abs=1e-5)


def test_without_censoring_it_is_the_plain_mean_and_share() -> None:
    moments = [0.5, 1.25, 1.25, 2.0, 3.75]
    found = survival([run(m) for m in moments], horizon=5)
    assert found.restricted_mean.estimate == pytest.approx(np.mean(moments))
    for step in found.steps:
        assert step.share.estimate == pytest.approx(np.mean(np.array(moments) > step.time + 1e-9), abs=1e-9)
    spread = np.std(moments) / math.sqrt(5)
    assert found.restricted_mean.estimate - found.restricted_mean.low == pytest.approx(1.959964 * spread, rel=1e-4)


def test_the_published_intervals_of_freireichs_leukemia_data() -> None:
    """6-MP arm (Freireich 1963; log-log intervals as R's survfit prints them): 0.857 [0.620, 0.952] at 6 weeks."""
    failed, censored = [6, 6, 6, 7, 10, 13, 16, 22, 23], [6, 9, 10, 11, 17, 19, 20, 25, 32, 32, 34, 35]
    runs = [run(t, last=35) for t in failed] + [run(None, last=t) for t in censored]
    found = survival(runs, horizon=35)
    first, last = found.steps[0], found.steps[-1]
    assert (first.share.estimate, first.share.low, first.share.high) == pytest.approx((0.857, 0.620, 0.952), abs=5e-4)
    assert (last.share.estimate, last.share.low, last.share.high) == pytest.approx((0.448, 0.188, 0.680), abs=5e-4)
    assert (found.median.estimate, found.median.low, found.median.high) == (23, 13, math.inf)


def test_censored_runs_alone_give_a_bound_and_nothing_else() -> None:
    found = survival([run(None), run(None), run(None)])
    assert found.steps == () and found.median.estimate == math.inf
    assert found.restricted_mean == Interval(5, 5, 5) and found.horizon == 5


def test_runs_that_never_learned_are_counted_apart() -> None:
    low = time_to_failure([0.6, 0.5])
    found = survival([run(1.5), run(None), low])
    assert (found.runs, found.never_learned) == (2, 1)
    with pytest.raises(InputError, match="none of the runs learned"):
        survival([low, low])


def test_the_interval_of_the_restricted_mean_holds_the_truth_about_as_often_as_it_says() -> None:
    draw = np.random.default_rng(0)
    hits = []
    for _ in range(200):
        moments = draw.exponential(2.0, size=12)
        runs = [run(float(np.ceil(m * 4) / 4)) if m < 4.9 else run(None) for m in moments]
        found = survival(runs, horizon=5)
        # mean of min(ceil(4X)/4, 5) for X exponential with mean 2
        edges = np.arange(0, 5, 0.25)
        truth = 0.25 * np.exp(-edges / 2).sum()
        hits.append(found.restricted_mean.low <= truth <= found.restricted_mean.high)
    assert 0.87 <= np.mean(hits) <= 0.99
