"""Intervals: coverage on simulated worlds, nesting, pairing, clusters, and what one run cannot show."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from scipy.stats import binomtest

from fortifai_core.errors import InputError
from fortifai_core.outcomes.bootstrap import (
    bootstrap_failure_ratio,
    bootstrap_retention,
    bootstrap_time_to_failure,
    mcnemar,
    paired_difference,
    scope_of,
)
from fortifai_core.outcomes.time_to_failure import crossings, time_to_failure

DOCUMENTS, PER_DOCUMENT = 60, 6
CLUSTERS = np.repeat([f"document-{i}" for i in range(DOCUMENTS)], PER_DOCUMENT)


def simulate(rng: np.random.Generator, *, runs: int, document_sd: float = 0.15, run_sd: float = 0.0) -> np.ndarray:
    """correct[run, question] with mean 0.7; documents differ in difficulty, runs in luck."""
    easy = rng.normal(0, document_sd, DOCUMENTS).repeat(PER_DOCUMENT)
    luck = rng.normal(0, run_sd, runs) if run_sd else np.zeros(runs)
    return rng.random((runs, DOCUMENTS * PER_DOCUMENT)) < np.clip(0.7 + easy + luck[:, None], 0, 1)


@pytest.mark.parametrize(("runs", "run_sd"), [(1, 0.0), (3, 0.02), (5, 0.03)])
def test_a_95_percent_interval_holds_the_truth_about_95_times_in_100(runs: int, run_sd: float) -> None:
    rng, worlds = np.random.default_rng(runs), 300
    hits = 0
    for world in range(worlds):
        scores = simulate(rng, runs=runs, run_sd=run_sd)
        interval = bootstrap_retention(scores, clusters=CLUSTERS, draws=300, seed=world)
        hits += interval.low <= 0.7 <= interval.high
    assert 0.91 <= hits / worlds <= 0.995


def test_questions_treated_as_independent_would_be_too_sure() -> None:
    scores = simulate(np.random.default_rng(0), runs=1, document_sd=0.4)
    by_document = bootstrap_retention(scores, clusters=CLUSTERS)
    by_question = bootstrap_retention(scores, clusters=np.arange(len(CLUSTERS)))
    assert by_document.high - by_document.low > 1.3 * (by_question.high - by_question.low)
    assert by_document.estimate == by_question.estimate == scores.mean()


def test_retraining_noise_widens_the_interval_and_one_run_says_it_cannot_see_it() -> None:
    rng = np.random.default_rng(1)
    one = simulate(rng, runs=1)
    assert scope_of(bootstrap_retention(one, clusters=CLUSTERS).runs) == (
        "questions of one run: does not cover retraining noise"
    )
    chance = rng.random((3, 360))
    calm, wild = (
        bootstrap_retention(chance < np.array(levels)[:, None], clusters=CLUSTERS)
        for levels in ([0.7, 0.7, 0.7], [0.55, 0.7, 0.85])
    )
    assert wild.high - wild.low > 2 * (calm.high - calm.low)
    assert "3 runs" in scope_of(wild.runs) and "does not cover" not in scope_of(wild.runs)


def test_wider_levels_contain_narrower_ones_and_the_estimate() -> None:
    rng = np.random.default_rng(2)
    for runs in (1, 4):
        scores = simulate(rng, runs=runs, run_sd=0.02)
        previous = None
        for level in (0.5, 0.8, 0.95, 0.99):
            interval = bootstrap_retention(scores, clusters=CLUSTERS, level=level)
            assert 0 <= interval.low <= interval.estimate <= interval.high <= 1
            if previous is not None:
                assert interval.low <= previous.low and interval.high >= previous.high
            previous = interval


def test_the_seed_decides_and_the_order_of_questions_does_not_matter() -> None:
    rng = np.random.default_rng(3)
    scores = simulate(rng, runs=2)
    first = bootstrap_retention(scores, clusters=CLUSTERS, seed=1)
    assert first == bootstrap_retention(scores, clusters=CLUSTERS, seed=1)
    assert first != bootstrap_retention(scores, clusters=CLUSTERS, seed=2)
    order = rng.permutation(len(CLUSTERS))
    shuffled = bootstrap_retention(scores[:, order], clusters=CLUSTERS[order], seed=1)
    assert (shuffled.low, shuffled.high) == pytest.approx((first.low, first.high))


def test_runs_may_have_their_own_questions() -> None:
    rng = np.random.default_rng(4)
    scores = [simulate(rng, runs=1)[0], simulate(rng, runs=1)[0][:300]]
    clusters = [CLUSTERS, np.char.add("other-", CLUSTERS[:300])]
    interval = bootstrap_retention(scores, clusters=clusters)
    assert interval.estimate == pytest.approx((scores[0].mean() + scores[1].mean()) / 2)
    assert (interval.runs, interval.questions, interval.clusters) == (2, 660, 110)


def test_no_exception_seen_is_not_certainty() -> None:
    perfect = bootstrap_retention(np.ones((1, 360), bool), clusters=CLUSTERS)
    assert perfect.high == 1 and 0.9 < perfect.low < 1
    same = paired_difference(np.ones(360), np.ones(360), clusters=CLUSTERS)
    assert same.estimate == 0 and same.low < 0 < same.high and not same.excludes_zero


def test_pairing_removes_the_questions_own_difficulty() -> None:
    rng = np.random.default_rng(5)
    easy = rng.normal(0, 0.35, DOCUMENTS).repeat(PER_DOCUMENT)
    luck = rng.random(360)
    a, b = luck < np.clip(0.75 + easy, 0, 1), luck < np.clip(0.70 + easy, 0, 1)
    gap = paired_difference(a, b, clusters=CLUSTERS)
    alone = bootstrap_retention(a, clusters=CLUSTERS)
    assert gap.estimate == pytest.approx(a.mean() - b.mean())
    assert gap.high - gap.low < alone.high - alone.low
    back = paired_difference(b, a, clusters=CLUSTERS)
    assert back.estimate == pytest.approx(-gap.estimate)
    assert (back.low, back.high) == pytest.approx((-gap.high, -gap.low), abs=0.01)


def test_two_equal_arms_are_rarely_told_apart() -> None:
    rng, worlds, alarms = np.random.default_rng(6), 200, 0
    for world in range(worlds):
        easy = rng.normal(0, 0.15, DOCUMENTS).repeat(PER_DOCUMENT)
        a, b = (rng.random((3, 360)) < 0.7 + easy for _ in range(2))
        alarms += paired_difference(a, b, clusters=CLUSTERS, draws=300, seed=world).excludes_zero
    assert alarms / worlds <= 0.08


def test_mcnemar_is_the_exact_binomial_test_on_the_questions_that_differ() -> None:
    rng = np.random.default_rng(7)
    a, b = rng.random((2, 400)) < [[0.75], [0.68]]
    outcome = mcnemar(a, b)
    expected = binomtest(outcome.only_a, outcome.only_a + outcome.only_b).pvalue
    assert outcome.p_value == pytest.approx(expected)
    assert mcnemar(b, a).p_value == outcome.p_value
    assert mcnemar(a, a).p_value == 1
    many = mcnemar(np.r_[np.ones(1600), np.zeros(1500)], np.r_[np.zeros(1600), np.ones(1500)])
    assert many.p_value == pytest.approx(binomtest(1600, 3100).pvalue)


def test_crossings_agree_with_time_to_failure_curve_by_curve() -> None:
    rng = np.random.default_rng(8)
    curves = np.round(rng.uniform(0.55, 1, (500, 5)), 2)
    for curve, moment in zip(curves, crossings(curves, 0.75), strict=True):
        outcome = time_to_failure(curve.tolist())
        expected = {"never-learned": -math.inf, "censored": math.inf}.get(outcome.status, outcome.generations)
        assert moment == pytest.approx(expected)


def test_interval_of_a_time_to_failure() -> None:
    rng = np.random.default_rng(9)
    levels = np.array([0.9, 0.82, 0.76, 0.72, 0.6])
    curves = rng.random((2, 5, 360)) < levels[:, None]
    interval = bootstrap_time_to_failure(curves, clusters=CLUSTERS)
    truth = time_to_failure(levels.tolist()).generations
    ends = interval.interval
    assert ends.low <= truth <= ends.high and ends.low < ends.estimate < ends.high and interval.failed == 1
    assert " to " in interval.describe() and ">" not in interval.describe()
    early = bootstrap_time_to_failure(curves, clusters=CLUSTERS, threshold=0.85)
    assert early.interval.high < ends.high
    never = bootstrap_time_to_failure(curves[:, 3:], clusters=CLUSTERS)
    assert never.never_learned > 0.5 and never.describe().startswith("never learned")
    lasting = bootstrap_time_to_failure(curves[:, :2], clusters=CLUSTERS)
    assert lasting.censored > 0.9 and lasting.describe() == "> 1" and lasting.describe("training_splits") == "> 3"


@pytest.mark.parametrize("own", [False, True])
def test_thousands_of_questions_and_2000_draws_take_less_than_a_second(own: bool) -> None:
    rng = np.random.default_rng(10)
    scores = rng.random((5, 6, 3000)) < 0.8
    shared = np.repeat(np.arange(500), 6)
    clusters = [shared + 1000 * run for run in range(5)] if own else shared
    start = time.perf_counter()
    bootstrap_time_to_failure(scores, clusters=clusters, draws=2000)
    assert time.perf_counter() - start < 1


def test_bad_input_is_named() -> None:
    scores = np.ones((2, 6), bool)
    with pytest.raises(InputError, match="clusters"):
        bootstrap_retention(scores, clusters=["a"] * 5)
    with pytest.raises(InputError, match="one document of one run"):
        bootstrap_retention(scores[0], clusters=["a"] * 6)
    with pytest.raises(InputError, match="no questions"):
        bootstrap_retention([], clusters=[])
    with pytest.raises(InputError, match="draws"):
        bootstrap_retention(scores, clusters=list("aabbcc"), draws=10)
    with pytest.raises(InputError, match="level"):
        bootstrap_retention(scores, clusters=list("aabbcc"), level=95)
    with pytest.raises(InputError, match="scores_b"):
        paired_difference(scores, scores[:, :5], clusters=list("aabbcc"))
    with pytest.raises(InputError, match="scores_b"):
        mcnemar(scores, scores[:1])
    with pytest.raises(InputError, match="generations"):
        bootstrap_time_to_failure([np.ones((2, 6)), np.ones((3, 6))], clusters=list("aabbcc"))


# --------------------------------------------------------------------------------- one time to failure over another


def worlds(levels: list[float], *, seed: int, documents: int = 60, each: int = 5) -> np.ndarray:
    """[generation, question], questions of about the given shares."""
    hard = np.random.default_rng(seed).random(documents * each)
    return np.array([hard < level for level in levels])


def test_the_ratio_of_two_times_to_failure_is_drawn_for_both_arms_together() -> None:
    names = [f"d{i // 5}" for i in range(300)]
    curve = worlds([0.9, 0.8, 0.7, 0.6], seed=0)
    same = bootstrap_failure_ratio(curve, curve, clusters=names, draws=300)
    assert same is not None and (same.interval.low, same.interval.high) == (1.0, 1.0), (
        "an arm lasts exactly as long as itself"
    )
    # apart, either time is uncertain by itself
    alone = bootstrap_time_to_failure(curve, clusters=names, draws=300)
    assert alone.interval.high > alone.interval.low
    slower = worlds([0.9, 0.86, 0.82, 0.6], seed=1)
    found = bootstrap_failure_ratio(slower, curve, clusters=names, draws=300)
    estimate = crossings(np.array([slower.mean(1)]), 0.75)[0] / crossings(np.array([curve.mean(1)]), 0.75)[0]
    assert found is not None and found.defined == 1.0
    ends = found.interval
    assert ends.estimate == pytest.approx(estimate) and 1 < ends.low < ends.estimate < ends.high
    back = bootstrap_failure_ratio(curve, slower, clusters=names, draws=300)
    assert back is not None
    assert (back.interval.low, back.interval.high) == pytest.approx((1 / ends.high, 1 / ends.low), rel=0.05)


def test_a_ratio_is_unbounded_where_one_lasts_and_nothing_where_neither_fails_or_learned() -> None:
    names = [f"d{i // 5}" for i in range(300)]
    falling, lasting = worlds([0.9, 0.5], seed=0), worlds([0.95, 0.95], seed=1)
    never = worlds([0.5, 0.4], seed=2)
    found = bootstrap_failure_ratio(lasting, falling, clusters=names, draws=200)
    assert found is not None and math.isinf(found.interval.high) and "and more" in found.describe()
    below = bootstrap_failure_ratio(falling, lasting, clusters=names, draws=200)
    assert below is not None and below.interval.low == 0.0
    assert bootstrap_failure_ratio(lasting, lasting, clusters=names, draws=200) is None
    assert bootstrap_failure_ratio(never, falling, clusters=names, draws=200) is None
    with pytest.raises(InputError, match="same runs"):
        bootstrap_failure_ratio(falling, lasting[:1], clusters=names)


def test_documents_that_all_runs_share_count_once_where_all_are_alike() -> None:
    """Ten documents without an exception leave room for 1 − 0.025^(1/10) = 30.8%, however many runs answer them."""
    right, names = np.ones((5, 10), dtype=bool), [f"d{n}" for n in range(10)]
    shared = bootstrap_retention(right, clusters=names, draws=200)
    assert shared.low == pytest.approx(1 - 0.3085, abs=1e-3)
    own = bootstrap_retention(right, clusters=[[f"{run}-{name}" for name in names] for run in range(5)], draws=200)
    assert own.low == pytest.approx(1 - (1 - 0.025 ** (1 / 50)), abs=1e-6)
