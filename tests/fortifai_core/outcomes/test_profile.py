"""The collapse profile: three verdicts by hand, what correction does to them, and what theory says must come out."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy.special import digamma

from fortifai_core.outcomes.definitions import (
    FAMILIES,
    GAUSSIAN,
    NOT_MEASURED,
    Definition,
    language_definitions,
    not_measured,
)
from fortifai_core.outcomes.inference import Clusters, Sampled
from fortifai_core.outcomes.profile import Course, profile_of
from fortifai_core.report.profile import as_json

HALF = Definition("half", "Half", "share", "", "by hand", True, 0.5, 0.05, share=True)
DOUBLE = Definition("double", "Doubled", "loss", "", "by hand", False, 2.0, 0.1, against=0, log=True)


def runs(*curves: list[float]) -> dict[int, Course]:
    return {seed: {g: Sampled(value) for g, value in enumerate(curve)} for seed, curve in enumerate(curves)}


def test_three_verdicts() -> None:
    falls = runs([0.9, 0.7, 0.3], [0.9, 0.71, 0.31], [0.9, 0.69, 0.29])
    holds = runs([0.9, 0.9, 0.9], [0.9, 0.91, 0.89], [0.9, 0.89, 0.91])
    unsure = runs([0.9, 0.9, 0.9], [0.9, 0.8, 0.6], [0.9, 0.3, 0.1])
    found = profile_of({"a": {"share": falls}, "b": {"share": holds}, "c": {"share": unsure}}, [HALF])
    assert [found.verdict(arm, "half").status for arm in "abc"] == ["collapsed", "did not", "cannot be told"]
    first = found.verdict("a", "half")
    assert (first.generation, first.at) == (2, 2)
    assert first.effect is not None and first.effect.value == pytest.approx(0.3)
    # M1 and M2 were judged, the sum of both sides, and Holm over the three cells: t = 0.2 / (0.01 / √3)
    from scipy.stats import t

    assert first.p == pytest.approx(2 * 2 * t.sf(0.2 / (0.01 / math.sqrt(3)), 2))
    assert first.adjusted >= 2 * first.p


def test_one_run_without_documents_cannot_be_told_however_far_it_falls() -> None:
    found = profile_of({"a": {"share": runs([0.9, 0.1, 0.0])}}, [HALF])
    assert found.verdict("a", "half").status == "cannot be told"
    assert found.verdict("a", "half").why == "one run, so no interval"


def test_one_run_with_documents_can() -> None:
    names = tuple(map(str, range(30)))
    right = {0: 27, 1: 26, 2: 2}
    course = {g: Sampled.of(Clusters(names, np.array([1.0] * n + [0.0] * (30 - n)), np.ones(30)))
              for g, n in right.items()}  # fmt: skip
    found = profile_of({"a": {"share": {1: course}}}, [HALF])
    assert found.verdict("a", "half").describe() == "collapsed in M2"


def test_beyond_the_threshold_at_the_first_model_there_was_nothing_to_lose() -> None:
    low = runs([0.4, 0.2], [0.41, 0.2], [0.4, 0.21])
    verdict = profile_of({"a": {"share": low}}, [HALF]).verdict("a", "half")
    assert verdict.status == "cannot be told" and "nothing to lose" in verdict.why


def test_a_logarithm_is_judged_as_a_ratio_to_the_first_model() -> None:
    """Losses ln 10, ln 12, ln 30: ratios 1.2 and 3 to M0's, run by run."""
    curves = [[math.log(scale * x) for x in (10, 12, 30)] for scale in (1, 1.01, 5)]
    noisy = [[a, b + 0.01 * i, c - 0.01 * i] for i, (a, b, c) in enumerate(curves)]
    verdict = profile_of({"a": {"loss": runs(*noisy)}}, [DOUBLE]).verdict("a", "double")
    assert verdict.describe() == "collapsed in M2"
    assert verdict.effect is not None and math.exp(verdict.effect.value) == pytest.approx(3.0, rel=0.02)
    assert (DOUBLE.rule, DOUBLE.shown(math.log(3))) == ("above 2 × M0's", "3×")


def test_a_ratio_without_an_interval_has_no_ends() -> None:
    found = profile_of({"a": {"loss": runs([0.0, math.log(3)])}}, [DOUBLE])
    (row,) = as_json(found)["profile"]
    assert row["value"] == pytest.approx(3) and (row["low"], row["high"]) == (None, None)


def test_correction_takes_back_what_many_cells_would_find_by_chance() -> None:
    told = runs([0.9, 0.40], [0.9, 0.42], [0.9, 0.38], [0.9, 0.41])
    alone = profile_of({"a": {"share": told}}, [HALF])
    assert alone.verdict("a", "half").status == "collapsed"
    unsure = runs([0.9, 0.5], [0.9, 0.8], [0.9, 0.2], [0.9, 0.5])
    crowd = {"a": {"share": told}} | {f"b{i}": {"share": unsure} for i in range(40)}
    verdict = profile_of(crowd, [HALF]).verdict("a", "half")
    assert verdict.p == alone.verdict("a", "half").p and verdict.status == "cannot be told"


def test_the_generation_named_is_told_under_the_same_correction() -> None:
    """M1 is below half at p = 0.01, M2 at 10⁻⁸: of one cell M1 is told, of forty only M2."""
    curves = [[0.9, 0.40 + shift, 0.10 + 0.01 * shift] for shift in (0.0, 0.05, -0.05, 0.03, -0.03, 0.01)]
    alone = profile_of({"a": {"share": runs(*curves)}}, [HALF])
    assert alone.verdict("a", "half").generation == 1
    unsure = runs([0.9, 0.5, 0.5], [0.9, 0.8, 0.8], [0.9, 0.2, 0.2], [0.9, 0.5, 0.5])
    crowd = {"a": {"share": runs(*curves)}} | {f"b{i}": {"share": unsure} for i in range(40)}
    verdict = profile_of(crowd, [HALF]).verdict("a", "half")
    assert (verdict.status, verdict.generation, verdict.at) == ("collapsed", 2, 2)
    assert verdict.effect is not None and verdict.effect.value == pytest.approx(0.1, abs=1e-3)


def test_did_not_says_how_far_where_a_run_was_stopped() -> None:
    """The second seed was stopped after M1: of M2 the others show nothing that holds for all."""
    stopped = runs([0.9, 0.9, 0.89], [0.9, 0.91], [0.9, 0.89, 0.2])
    verdict = profile_of({"a": {"share": stopped}}, [HALF]).verdict("a", "half")
    assert (verdict.status, verdict.until, verdict.describe()) == ("did not", 1, "did not to M1")
    whole = runs([0.9, 0.9], [0.9, 0.91], [0.9, 0.89])
    assert profile_of({"a": {"share": whole}}, [HALF]).verdict("a", "half").describe() == "did not"
    # so does a measure that ends before the run does
    other = {"share": whole, "loss": runs([1.0, 1.0, 1.0], [1.0, 1.1, 1.0], [1.0, 1.0, 1.1])}
    assert profile_of({"a": other}, [HALF, DOUBLE]).verdict("a", "half").until == 1


def test_what_is_not_a_number_is_no_verdict() -> None:
    broken = runs([0.9, 0.9, 0.9], [0.9, 0.91, 0.89], [0.9, 0.89, math.nan])
    verdict = profile_of({"a": {"share": broken}}, [HALF]).verdict("a", "half")
    assert verdict.describe() == "cannot be told: not a number in M2"
    alike = runs([0.9, 0.9], [0.9, 0.9])
    assert profile_of({"a": {"share": alike}}, [HALF]).verdict("a", "half").why == "two runs alike, so no interval"


def test_no_difference_and_cannot_tell_are_two_outcomes() -> None:
    first = runs([0.9, 0.80], [0.9, 0.84], [0.9, 0.76], [0.9, 0.80])
    same = runs([0.9, 0.801], [0.9, 0.839], [0.9, 0.761], [0.9, 0.80])
    other = runs([0.9, 0.60], [0.9, 0.64], [0.9, 0.57], [0.9, 0.60])
    wild = runs([0.9, 0.95], [0.9, 0.60], [0.9, 0.85], [0.9, 0.70])
    observed = {name: {"share": side} for name, side in
                {"first": first, "same": same, "other": other, "wild": wild}.items()}  # fmt: skip
    found = profile_of(observed, [HALF])
    assert {c.arm: c.outcome for c in found.compared} == {
        "same": "equal", "other": "differs", "wild": "cannot be told",
    }  # fmt: skip
    words = {c.arm: c.describe("First") for c in found.compared}
    assert words["same"] == "no difference from First as large as +5.0 points"
    assert words["other"] == "differs from First: −19.8 points"
    assert words["wild"] == "cannot be told apart from First, nor shown to be equal to it"


def test_ranks_are_shared_by_arms_that_are_not_told_apart() -> None:
    def about(level: float) -> dict[int, Course]:
        return runs(*[[0.9, level + shift] for shift in (0.0, 0.01, -0.01, 0.005, -0.005)])

    observed = {"low": {"share": about(0.5)}, "high": {"share": about(0.8)}, "twin": {"share": about(0.8)}}
    found = profile_of(observed, [HALF])
    assert [(r.arm, r.best, r.worst) for r in found.ranking] == [("high", 1, 2), ("twin", 1, 2), ("low", 3, 3)]
    assert found.ranked_at == 1


def test_what_was_not_measured_is_named_with_its_reason() -> None:
    judged = language_definitions()
    missing = not_measured(judged)
    assert set(missing) == {
        "asymptotically diverging population risk", "change in scaling law", "entanglement of real data modes",
    }  # fmt: skip
    # no definition twice, and every threshold on the side where collapse can be
    for definitions in (judged, *FAMILIES.values()):
        assert len({d.name for d in definitions}) == len(definitions)
        for d in definitions:
            assert d.margin > 0 and (not d.log or d.threshold > 0)
            assert d.against is None or (d.bound < 0) == d.falls


def test_the_page_has_every_definition_with_its_rule() -> None:
    page = (Path(__file__).parents[3] / "docs" / "profile.md").read_text(encoding="utf-8")
    for definitions in (language_definitions(), *FAMILIES.values()):
        for d in definitions:
            assert f"| {d.title} | `{d.measure}` | {d.rule} |" in page
            assert d.number in page and d.source in page
    assert all(f"*{name}*: {why}" in page for name, why in NOT_MEASURED.items())


def gaussian(regime: str, *, samples: int, generations: int, chains: int = 200) -> dict[int, Course]:
    """Chains of Gaussians, each fitted (unbiased variance) to draws of the last, or to all draws so far."""
    rng = np.random.default_rng(11)
    variance, mean = np.ones(chains), np.zeros(chains)
    seen = rng.standard_normal((chains, samples))
    course: dict[int, Sampled] = {}
    names = tuple(map(str, range(chains)))
    for g in range(generations):
        mean, variance = seen.mean(axis=1), seen.var(axis=1, ddof=1)
        course[g] = Sampled.of(Clusters(names, np.log(variance), np.ones(chains)))
        drawn = mean[:, None] + np.sqrt(variance)[:, None] * rng.standard_normal((chains, samples))
        seen = drawn if regime == "replace" else np.concatenate([seen, drawn], axis=1)
    return {1: course}


def test_theory_replacing_collapses_in_variance_and_accumulating_does_not() -> None:
    """Replacing: E ln(s²) falls by ln((n−1)/2) − ψ((n−1)/2) a generation, here to a tenth within about 45 of them
    (Shumailov et al.; Alemohammad et al.). Accumulating: bounded away from 0 for ever (Kazdan et al., 2410.16713)."""
    samples, generations = 20, 81
    half = (samples - 1) / 2
    expected = math.log(0.1) / (digamma(half) - math.log(half))
    observed = {
        regime: {"log-variance": gaussian(regime, samples=samples, generations=generations)}
        for regime in ("replace", "accumulate")
    }
    found = profile_of(observed, GAUSSIAN)
    replaced = found.verdict("replace", "variance")
    assert replaced.status == "collapsed" and replaced.generation is not None
    assert expected - 5 < replaced.generation < expected + 25  # it must be told, so later than where the mean crosses
    kept = found.verdict("accumulate", "variance")
    assert kept.status == "did not" and kept.generation is None
    assert kept.effect is not None and math.exp(kept.effect.value) > 0.5
