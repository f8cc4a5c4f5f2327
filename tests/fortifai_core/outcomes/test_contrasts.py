"""Contrasts of arms, seed by seed."""

from __future__ import annotations

import math

import pytest

from fortifai_core.outcomes.contrasts import Contrast

# seed → value; seed 4 was not finished in one arm
VALUES = {
    "ce": {1: 0.60, 2: 0.70, 3: 0.50, 4: 0.1},
    "tce": {1: 0.61, 2: 0.70, 3: 0.52, 4: 0.9},
    "ce-theirs": {1: 0.40, 2: 0.50, 3: 0.30},
    "tce-theirs": {1: 0.50, 2: 0.62, 3: 0.44, 4: 0.9},
}


def test_the_difference_of_two_differences_is_that_of_each_seed() -> None:
    """Theirs +10, +12, +14 points, ours +1, 0, +2: the differences are 9, 12, 12; mean 11, deviation √3."""
    contrast = Contrast("theirs", ("tce-theirs", "ce"), ("ce-theirs", "tce"))
    effect = contrast.effect(VALUES)
    assert effect is not None and effect.runs == 3 and effect.freedom == 2
    assert effect.value == pytest.approx(0.11)
    assert effect.error == pytest.approx(math.sqrt(3) / math.sqrt(3) / 100)
    assert contrast.words == "tce-theirs + ce − ce-theirs − tce"
    low, high = effect.interval().low, effect.interval().high  # t of two degrees of freedom: 4.3027
    assert (low, high) == (pytest.approx(0.11 - 0.043027, abs=1e-6), pytest.approx(0.11 + 0.043027, abs=1e-6))


def test_seeds_that_are_all_alike_do_not_show_that_shares_are_equal() -> None:
    """Three seeds without a difference leave room for a rate of up to 1 − 0.025^(1/3) = 0.708."""
    same = {arm: {1: 0.5, 2: 0.6, 3: 0.7} for arm in ("tce", "ce")}
    effect = Contrast("none", ("tce",), ("ce",)).effect(same, share=True)
    assert effect is not None and effect.value == 0
    assert effect.interval().high == pytest.approx(1 - 0.025 ** (1 / 3))
    assert effect.p_equivalent(0.05) > 0.05


def test_without_a_seed_that_all_arms_have_there_is_none() -> None:
    assert Contrast("none", ("tce",), ("ce",)).effect({"tce": {1: 0.5}, "ce": {2: 0.5}}) is None
    assert Contrast("none", ("tce",), ("gone",)).effect(VALUES) is None
    alone = Contrast("one", ("tce",), ("ce",)).effect({"tce": {1: 0.5}, "ce": {1: 0.4}})
    assert alone is not None and not alone.known
