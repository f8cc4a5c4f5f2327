"""The profile in words and rows, and from results to what it judges: nothing may say more than was shown."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import numpy as np
import pytest

from fortifai_core.families.base import Generation, Run
from fortifai_core.outcomes.definitions import Definition, language_definitions
from fortifai_core.outcomes.inference import Clusters, Sampled
from fortifai_core.outcomes.profile import Course, Observed, Profile, profile_of
from fortifai_core.report.observed import JUDGED, _judged, _named, _of_family
from fortifai_core.report.profile import as_json, profile_svg, ranking_words, summary, wide_rows

HALF = Definition("half", "Half", "share", "", "by hand", True, 0.5, 0.05, share=True)
ANY = Definition("any", "Risk, any rise", "risk", "", "by hand", False, 1.01, 0.02, against=0, log=True)
TWICE = Definition("twice", "Risk, doubled", "risk", "", "by hand", False, 2.0, 0.02, against=0, log=True)


def runs(*curves: list[float]) -> dict[int, Course]:
    return {seed: {g: Sampled(value) for g, value in enumerate(curve)} for seed, curve in enumerate(curves)}


def judged(observed: Observed, *definitions: Definition) -> Profile:
    return profile_of(observed, definitions)


def test_nothing_is_said_not_to_have_collapsed_where_some_cannot_be_told() -> None:
    holds, alone = runs([0.9, 0.9], [0.9, 0.91], [0.9, 0.89]), runs([0.9, 0.1])
    found = summary(judged({"a": {"share": holds}, "b": {"share": alone}}, HALF))
    assert found[0] == (
        "Nothing is shown to have collapsed: 1 of 2 verdicts are that it did not; the other 1 cannot be told."
    )
    assert summary(judged({"a": {"share": holds}}, HALF))[0].startswith("Nothing collapsed: 1 of 1")


def test_one_run_says_how_much_it_leaves_open() -> None:
    found = summary(judged({"a": {"share": runs([0.9, 0.1])}, "b": {"share": runs([0.9, 0.8])}}, HALF))
    told = "one run an arm: other seeds may differ; verdicts that cannot be told for want of a second: 2."
    assert found[-1].endswith(told)


def test_lists_of_definitions_can_be_read() -> None:
    """Two titles hold a comma; a comparison is of the measure, not of either threshold; KL stays KL, and MAUVE."""
    rising = runs([0.0, 0.5], [0.0, 0.51], [0.0, 0.49], [0.0, 0.5])
    flat = runs([0.0, 0.0], [0.0, 0.001], [0.0, -0.001], [0.0, 0.0])
    found = summary(judged({"a": {"risk": rising}, "b": {"risk": flat}}, ANY, TWICE))
    assert found[0] == "a: collapsed by risk (any rise, M1); did not by risk (doubled)."
    assert found[2] == "b against a: differs in risk (0.607×)."
    kl = next(d for d in language_definitions() if d.name == "model-kl")
    courses = runs([0.0, 0.1], [0.0, 0.11], [0.0, 0.09])
    assert summary(judged({"a": {"model-kl": courses}}, kl))[1] == "a: did not by model KL."
    mauve = next(d for d in language_definitions() if d.name == "mauve")
    near = runs([0.9, 0.9], [0.9, 0.91], [0.9, 0.89])
    assert summary(judged({"a": {"mauve-0": near}}, mauve))[1] == "a: did not by MAUVE."


def test_how_far_it_was_judged_stands_in_the_table_the_sentence_and_the_rows() -> None:
    profile = judged({"a": {"share": runs([0.9, 0.9, 0.9], [0.9, 0.91], [0.9, 0.89, 0.9])}}, HALF)
    assert wide_rows(profile)[1][0][2] == "did not to M1 (90%)"
    assert "did not by half (to M1)" in summary(profile)[1]
    assert as_json(profile)["profile"][0]["until"] == 1


def test_a_logarithm_without_an_interval_has_no_ends() -> None:
    """e^700 is no interval: of one run without documents only the value is known."""
    found = as_json(judged({"a": {"risk": runs([0.0, 0.5])}, "b": {"risk": runs([0.0, 0.7])}}, ANY))
    for row in (*found["profile"], *found["profile_differences"], *found["ranking"]):
        assert (row["low"], row["high"]) == (None, None)
    assert found["profile"][0]["value"] == pytest.approx(math.exp(0.5))
    assert "and for 0 comparisons" in found["summary"][-1]


def test_where_nothing_can_be_judged_nothing_is_said() -> None:
    found = as_json(judged({"a": {}}, HALF))
    assert (found["summary"], found["table"]["rows"]) == ([], [])


def test_shares_end_at_all_and_nothing() -> None:
    """Ten of ten right leave room below and none above; the ranking has it too."""
    names = tuple(map(str, range(10)))
    right = Sampled.of(Clusters(names, np.ones(10), np.ones(10)))
    profile = judged({arm: {"share": {1: {0: right, 1: right}}} for arm in ("a", "b")}, HALF)
    row = as_json(profile)["profile"][0]
    assert row["high"] == 1 and row["low"] == pytest.approx(0.025**0.1, abs=1e-6)
    assert ranking_words(profile)[0] == ("1 to 2", "a", "100.0% (69.2% to 100.0%)")


def test_an_arm_without_a_number_is_ranked_last_and_drawn() -> None:
    good, broken = runs([0.9, 0.8], [0.9, 0.81], [0.9, 0.79]), runs([0.9, 0.8], [0.9, math.nan], [0.9, 0.79])
    profile = judged({"broken": {"share": broken}, "good": {"share": good}}, HALF)
    assert [words[1:] for words in ranking_words(profile)][1] == ("broken", "–")
    assert "not a number in M1" in profile_svg(profile, width=760)


def test_the_last_heading_is_not_cut() -> None:
    arms = [*(f"arm {i}" for i in range(7)), "the noisiest-estimator"]
    profile = judged({arm: {"share": runs([0.9, 0.8], [0.9, 0.81])} for arm in arms}, HALF)
    drawn = ElementTree.fromstring(profile_svg(profile, width=760))
    names = [one for one in drawn.iter("text") if one.get("class", "").startswith("name")]
    assert len(names) == 8
    assert max(float(one.get("x", "nan")) + 6.5 / 2 * len(one.text or "") for one in names) < 760


def test_what_is_not_a_number_has_not_vanished() -> None:
    found = _named({"tail": Sampled(math.nan), "gone": Sampled(0.0)}, "log-tail")
    assert found is not None and math.isnan(found.value)
    gone = _named({"gone": Sampled(0.0)}, "log-gone")
    assert gone is not None and gone.value == pytest.approx(math.log(1e-12))


def test_runs_that_were_stopped_are_judged_where_all_were() -> None:
    """300, 131 and 57 generations: thinned each by itself they would have next to none in common."""
    lengths = (300, 131, 57)
    made = [Run("a", seed, tuple(Generation(g, {"share": 0.9}) for g in range(n))) for seed, n in enumerate(lengths)]
    kept = _judged(made)
    assert len(kept) <= JUDGED + 2
    shared = set.intersection(*(set(_of_family(run, "zipf", kept)) for run in made))
    assert 0 in shared and max(shared) == 56 and len(shared) >= 7
    assert _judged([]) == set()
