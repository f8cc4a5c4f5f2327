"""Effects, tests, equivalence, Holm and log-rank: cases worked by hand, and what a simulation must show."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from fortifai_core.errors import InputError
from fortifai_core.outcomes.inference import Clusters, Effect, Sampled, effect_of, holm, logrank
from fortifai_core.outcomes.time_to_failure import TimeToFailure, effort


def clusters(sums: list[float], counts: list[float] | None = None, names: str = "abcdefghij") -> Sampled:
    found = np.array(counts or [1.0] * len(sums))
    return Sampled.of(Clusters(tuple(names[: len(sums)]), np.array(sums, dtype=float), found))


def test_runs_without_clusters_have_the_standard_error_of_their_mean() -> None:
    effect = effect_of({1: Sampled(1.0), 2: Sampled(2.0), 3: Sampled(3.0)})
    assert effect is not None
    assert (effect.value, effect.runs, effect.freedom) == (2.0, 3, 2)
    assert effect.error == pytest.approx(1 / math.sqrt(3))
    margin = 4.302653 / math.sqrt(3)  # t(2) at 97.5%
    assert (effect.interval().low, effect.interval().high) == pytest.approx((2 - margin, 2 + margin), abs=1e-5)


def test_pairs_take_out_what_two_arms_share() -> None:
    """Seeds far apart, differences 1, 1 and 4: 2 ± t · √3 / √3."""
    a = {1: Sampled(11.0), 2: Sampled(101.0), 3: Sampled(1004.0), 4: Sampled(5.0)}
    b = {1: Sampled(10.0), 2: Sampled(100.0), 3: Sampled(1000.0)}
    effect = effect_of(a, b)
    assert effect is not None and effect.runs == 3
    assert (effect.value, effect.error) == pytest.approx((2.0, 1.0))
    assert effect.p_differs() == pytest.approx(2 * stats.t.sf(2.0, 2))
    assert effect_of({4: Sampled(5.0)}, b) is None


def test_the_error_of_one_run_is_that_of_its_documents() -> None:
    """A ratio r of sums to counts has the error √(n/(n−1) · Σ(sum − r · count)²) / Σ count, n documents."""
    sums, counts = [3.0, 1.0, 0.0, 4.0, 2.0, 5.0, 1.0, 0.0], [5.0, 4.0, 2.0, 5.0, 3.0, 5.0, 4.0, 1.0]
    effect = effect_of({1: clusters(sums, counts)})
    assert effect is not None
    ratio = sum(sums) / sum(counts)
    by_hand = math.sqrt(sum((s - ratio * n) ** 2 for s, n in zip(sums, counts, strict=True))) / sum(counts)
    assert effect.value == pytest.approx(ratio)
    assert effect.error == pytest.approx(by_hand * math.sqrt(8 / 7), rel=0.05)
    assert (effect.runs, effect.clusters, effect.freedom) == (1, 8, 7)


def test_pairing_by_document_leaves_what_differs() -> None:
    """Documents from easy to hard, each lower by the same amount: the difference has no error at all."""
    hard = [0.0, 2.0, 4.0, 6.0, 8.0]
    effect = effect_of({1: clusters([h - 1 for h in hard])}, {1: clusters(hard)})
    assert effect is not None
    assert (effect.value, effect.error) == pytest.approx((-1.0, 0.0), abs=1e-12)
    alone = effect_of({1: clusters(hard)})
    assert alone is not None and alone.error > 1


def test_only_documents_that_both_have_are_paired() -> None:
    a, b = clusters([1.0, 5.0, 2.0], names="abc"), clusters([9.0, 1.0, 0.0], names="xbc")
    effect = effect_of({1: a}, {1: b})
    assert effect is not None and (effect.value, effect.clusters) == (pytest.approx(3.0), 2)


def test_one_run_without_documents_tells_nothing() -> None:
    effect = effect_of({1: Sampled(0.3)})
    assert effect is not None and not effect.known
    assert math.isnan(effect.p_above(0)) and math.isnan(effect.p_differs()) and not effect.interval().known


def test_all_documents_alike_still_leave_room_for_exceptions() -> None:
    """Ten of ten right: the lower end of Clopper and Pearson, 0.025^(1/10)."""
    effect = effect_of({1: clusters([1.0] * 10)}, share=True)
    assert effect is not None
    assert effect.interval().low == pytest.approx(0.025**0.1, abs=1e-6)


@pytest.mark.parametrize("seeds", [3, 7, 10])
def test_all_documents_alike_in_many_runs_leave_as_much_room(seeds: int) -> None:
    """A seventh seven times is not 1 to the last digit: rounding is no spread, which would make it certain."""
    effect = effect_of({seed: clusters([3.0] * 8, [3.0] * 8) for seed in range(seeds)}, share=True)
    assert effect is not None
    assert effect.interval().low == pytest.approx(0.025 ** (1 / 8), abs=1e-6)
    assert effect.p_below(0.5) > 0.9 and effect.p_above(0.5) > 1e-4


def test_rounding_between_runs_is_no_spread() -> None:
    effect = effect_of({1: Sampled(0.1 + 0.2), 2: Sampled(0.3), 3: Sampled(0.3)}, {s: Sampled(0.3) for s in (1, 2, 3)})
    assert effect is not None and effect.error == 0 and effect.spread == 0


def test_two_runs_alike_do_not_say_that_runs_do_not_vary() -> None:
    two, three = (effect_of({seed: Sampled(1.0) for seed in range(n)}) for n in (2, 3))
    assert two is not None and not two.known and math.isnan(two.p_below(2.0))
    assert three is not None and three.error == 0


def test_a_run_that_is_not_a_number_is_not_left_out() -> None:
    effect = effect_of({1: Sampled(0.9), 2: Sampled(0.91), 3: Sampled(math.nan)})
    assert effect is not None and effect.runs == 3 and not effect.known and math.isnan(effect.p_above(0.5))


def test_the_level_holds_with_few_documents() -> None:
    """Three documents of a normal distribution, one run: the t test's 5%, in 1,000 worlds (0.073 without n/(n−1))."""
    rng = np.random.default_rng(0)
    drawn = rng.standard_normal((1000, 3))
    effects = (effect_of({1: clusters(list(world))}) for world in drawn)
    wrong = np.mean([effect is not None and effect.p_differs() <= 0.05 for effect in effects])
    assert 0.029 < wrong < 0.071  # three standard errors


def test_an_interval_over_documents_and_runs_holds_the_truth() -> None:
    """Runs vary by 0.1 about the truth, documents by 0.3 and alike in all runs: 95% intervals, in 200 worlds."""
    rng = np.random.default_rng(5)
    names, held = tuple(map(str, range(40))), 0
    for _ in range(200):
        hard = 0.3 * rng.standard_normal(40)
        runs = {
            seed: Sampled.of(Clusters(names, hard + 0.1 * rng.standard_normal() + 0.2 * rng.standard_normal(40),
                                      np.ones(40)))
            for seed in range(5)
        }  # fmt: skip
        effect = effect_of(runs)
        assert effect is not None
        interval = effect.interval()
        held += interval.low <= 0 <= interval.high
    assert 182 <= held <= 200  # binomial(200, 0.95) is below 182 once in 500


def test_equivalence_is_two_one_sided_tests() -> None:
    effect = Effect(0.01, 0.01, 10, 11)
    assert effect.p_equivalent(0.05) == pytest.approx(stats.t.sf(4.0, 10))
    # a wide interval about 0 is not equality: nothing as large as the margin is excluded
    wide = Effect(0.0, 0.1, 10, 11)
    assert wide.p_equivalent(0.05) == pytest.approx(stats.t.sf(0.5, 10)) and wide.p_equivalent(0.05) > 0.3
    assert wide.p_differs() == pytest.approx(1.0)
    with pytest.raises(InputError, match=r"margin"):
        effect.p_equivalent(0.0)


def test_no_error_at_all_is_decided_by_the_value() -> None:
    sure = Effect(0.2, 0.0, 4, 5)
    assert (sure.p_above(0.1), sure.p_below(0.1), sure.p_above(0.2)) == (0, 1, 0.5)
    assert Effect(0.0, 0.0, 4, 5).p_differs() == 1
    assert Effect(0.0, 0.0, 4, 5).p_equivalent(0.01) == 0


def test_holm_by_hand() -> None:
    """0.005 · 4, 0.01 · 3, 0.03 · 2, 0.04 · 1 raised to the one before."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    with_gap = holm([0.02, math.nan, 0.01])
    assert with_gap[0] == pytest.approx(0.02) and math.isnan(with_gap[1]) and with_gap[2] == pytest.approx(0.02)


def run(moment: float | None, *, last: int = 9) -> TimeToFailure:
    end = effort(last, last_generation=last)
    if moment is None:
        return TimeToFailure("censored", 0.75, last, None, end)
    return TimeToFailure("failed", 0.75, last, effort(moment, last_generation=last), end)


def test_log_rank_by_hand() -> None:
    """Failures at 1, 2, 3 against 4, 5, 6: observed 3, expected 1/2 + 2/5 + 1/4, variance 1/4 + 6/25 + 3/16."""
    found = logrank([run(1), run(2), run(3)], [run(4), run(5), run(6)])
    assert found is not None and found.runs == (3, 3)
    z = (3 - 1.15) / math.sqrt(0.25 + 0.24 + 0.1875)
    assert abs(found.statistic) == pytest.approx(z)
    assert found.p_value == pytest.approx(2 * stats.norm.sf(z))


def test_log_rank_censors_and_leaves_out_who_never_learned() -> None:
    never = TimeToFailure("never-learned", 0.75, 9, None, effort(9, last_generation=9))
    found = logrank([run(1), run(2), run(3), never], [run(None), run(None), run(None)])
    assert found is not None and found.runs == (3, 3)
    assert found.p_value < 0.05
    assert logrank([run(1), run(2)], [run(3), run(4), run(5)]) is None
    assert logrank([run(None)] * 3, [run(None)] * 3) is None


def test_shares_alike_in_three_runs_leave_the_room_that_three_trials_leave() -> None:
    """Three of three without an exception: up to 1 − 0.025^(1/3) = 0.708 of others may differ (Clopper and Pearson)."""
    alike = {seed: Sampled(2 / 3) for seed in range(3)}
    effect = effect_of(alike, share=True)
    assert effect is not None and effect.interval().high == pytest.approx(2 / 3 + 0.708, abs=1e-3)
    between = effect_of(alike, alike, share=True)
    assert between is not None and between.p_equivalent(0.1) > 0.05
