"""The signals by hand: value, change, limit, alert."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fortifai_core.errors import InputError
from fortifai_core.outcomes.resampling import bootstrap_totals
from fortifai_core.watch.signals import NAMES, SIGNALS, compare, limits_of

LIMITS = limits_of(None)


def columns(counted: list[float], over: float = 10.0) -> np.ndarray:
    return np.array([(value, over) for value in counted])


def found(name: str, now: np.ndarray, before: np.ndarray | None, **limits: float):  # type: ignore[no-untyped-def]
    baseline = None if before is None else {name: before}
    (watched,) = compare({name: now}, baseline, step=3, limits=limits_of(limits))
    return watched


def test_a_ratio_of_totals_with_its_interval_is_that_of_the_mean_where_all_weigh_alike() -> None:
    values = np.arange(100.0)
    interval = bootstrap_totals(np.stack([values, np.ones(100)], axis=1), lambda t: t[:, 0] / t[:, 1])
    error = values.std() / math.sqrt(100)
    assert interval.estimate == 49.5
    assert interval.low == pytest.approx(49.5 - 1.96 * error, abs=0.15 * error * 1.96)
    assert interval.high == pytest.approx(49.5 + 1.96 * error, abs=0.15 * error * 1.96)


def test_one_cluster_has_no_interval_and_none_is_refused() -> None:
    assert not bootstrap_totals(np.ones((1, 2)), lambda t: t[:, 0] / t[:, 1]).known
    with pytest.raises(InputError, match="clusters = 0"):
        bootstrap_totals(np.ones((0, 2)), lambda t: t[:, 0])


def test_a_statistic_without_a_value_in_many_worlds_has_no_interval() -> None:
    rare = np.array([(1.0, 0.0)] * 9 + [(1.0, 1.0)])  # a world without the last cluster divides by nothing
    assert not bootstrap_totals(rare, lambda t: t[:, 0] / t[:, 1]).known


def test_perplexity_is_exp_of_the_mean_and_its_change_a_ratio() -> None:
    watched = found("held-out-perplexity", columns([20.0] * 8), columns([10.0] * 8))
    assert watched.value.estimate == pytest.approx(math.exp(2))
    assert watched.baseline == pytest.approx(math.e)
    assert watched.change.estimate == pytest.approx(math.e - 1)
    assert watched.alert


def test_a_change_within_the_limit_does_not_alert_and_one_beyond_does() -> None:
    before = columns([10.0] * 8)
    assert not found("entropy", columns([8.1] * 8), before).alert
    assert found("entropy", columns([7.9] * 8), before).alert
    assert not found("entropy", columns([15.0] * 8), before).alert, "more entropy is no collapse"


def test_a_change_whose_interval_reaches_the_limit_does_not_alert() -> None:
    before = columns([10.0] * 8)
    mixed = columns([2.0, 10.0, 2.0, 10.0, 9.0, 9.0, 9.0, 9.0])  # 25% less, but not in every document
    watched = found("entropy", mixed, before)
    assert watched.change.estimate == pytest.approx(-0.25) and watched.change.high > -0.20
    assert not watched.alert


def test_documents_are_paired_so_a_change_that_all_share_is_seen_through_their_differences() -> None:
    hard = np.array([5.0, 10, 20, 40, 80, 160, 320, 640])
    watched = found("entropy", columns(list(0.7 * hard)), columns(list(hard)))
    assert watched.change.low == pytest.approx(-0.3) == pytest.approx(watched.change.high)
    assert watched.alert


def test_a_difference_and_a_value() -> None:
    repeats = found("repeated-4-grams", columns([0.08] * 8, 1.0), columns([0.02] * 8, 1.0))
    assert repeats.change.estimate == pytest.approx(0.06) and repeats.alert
    live = found("live-fraction", columns([0.4] * 8), None)  # 4% of the batch: no baseline is needed
    assert live.change.estimate == pytest.approx(0.04) and live.alert
    assert not found("live-fraction", columns([0.6] * 8), None).alert


def test_without_a_baseline_there_is_no_change_and_no_alert() -> None:
    watched = found("entropy", columns([0.0] * 8), None)
    assert watched.change is None and not watched.alert


def test_a_perplexity_that_is_no_number_alerts() -> None:
    watched = found("held-out-perplexity", columns([math.nan] * 8), columns([10.0] * 8))
    assert watched.alert and not watched.value.known


def test_a_tail_that_the_baseline_never_had_gives_no_alert() -> None:
    watched = found("tail-mass", columns([0.0] * 8), columns([0.0] * 8))
    assert not watched.alert and not watched.change.known


def test_limits_are_checked() -> None:
    assert limits_of({"kl": 2})["kl"] == 2 and LIMITS["kl"] == 0.5
    with pytest.raises(InputError, match="no such signal"):
        limits_of({"entropie": 1})
    with pytest.raises(InputError, match="give a number"):
        limits_of({"kl": math.inf})


def test_every_signal_has_a_reason_and_a_limit_on_the_worse_side() -> None:
    assert len(set(NAMES)) == len(SIGNALS) == 10
    for signal in SIGNALS:
        assert signal.why
        if signal.by != "value":
            assert (signal.limit > 0) == (signal.worse == "up")


def test_a_line_says_value_baseline_change_and_limit() -> None:
    watched = found("distinct-2", columns([0.4] * 8, 1.0), columns([0.8] * 8, 1.0))
    assert str(watched) == "step 3: distinct-2 is 0.4 (0.4 to 0.4), baseline 0.8; -50% (-50% to -50%), limit -20%"
