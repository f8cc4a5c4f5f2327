"""Agreement of two sets of questions: the correlation is scipy's, the interval covers what it says."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

from fortifai_core.errors import InputError
from fortifai_core.outcomes.agreement import Answered, agreement


def answered(shares: list[float], *, seed: int, documents: int = 40, splits: int = 2, each: int = 10) -> Answered:
    """Models whose chance of a right answer is `shares`; the models after the first have seen every split."""
    rng = np.random.default_rng(seed)
    names = [f"d{i}" for i in range(documents) for _ in range(each)]
    split = [i % splits for i in range(documents) for _ in range(each)]
    correct = rng.random((len(shares), len(names))) < np.array(shares)[:, None]
    asked = np.ones_like(correct)
    asked[0] = np.array(split) == 0
    return Answered(names, split, correct, asked)


FALLING = [0.9, 0.85, 0.75, 0.7, 0.6, 0.55]


def test_the_estimate_is_that_of_the_plain_shares() -> None:
    one, two = answered(FALLING, seed=0), answered(FALLING, seed=1, each=3)
    shares = [
        [one_model[there].mean() for one_model, there in zip(side.correct, side.asked, strict=True)]
        for side in (one, two)
    ]
    found = agreement(one, two, level="all splits", draws=100)
    assert found.points == 6
    assert found.pearson.estimate == pytest.approx(pearsonr(*shares).statistic)
    assert found.spearman.estimate == pytest.approx(spearmanr(*shares).statistic)
    # one point a model and split; the first model has not seen split 1
    assert agreement(one, two, level="each split", draws=100).points == 11
    assert agreement(one, two, level="split 0", draws=100).points == 6


def test_two_sets_about_the_same_fall_agree_and_unrelated_ones_do_not() -> None:
    alike = agreement(answered(FALLING, seed=0), answered(FALLING, seed=1), level="all splits", draws=300)
    assert alike.pearson.low > 0.8 and alike.pearson.low <= alike.pearson.estimate <= 1
    apart = agreement(answered(FALLING, seed=0), answered([0.7] * 6, seed=1), level="all splits", draws=300)
    wide, narrow = apart.pearson.high - apart.pearson.low, alike.pearson.high - alike.pearson.low
    assert apart.pearson.low < 0.3 and wide > 3 * narrow


def test_the_order_of_questions_and_the_documents_of_one_set_alone_change_nothing_in_the_estimate() -> None:
    one, two = answered(FALLING, seed=0), answered(FALLING, seed=1, documents=10)
    back = np.arange(len(two.document))[::-1]
    turned = Answered(
        [two.document[i] for i in back], [two.split[i] for i in back], two.correct[:, back], two.asked[:, back]
    )
    assert agreement(one, two, level="each split", draws=100) == agreement(one, turned, level="each split", draws=100)


def test_a_score_that_never_changes_has_no_correlation() -> None:
    flat = answered(FALLING, seed=0)
    flat.correct[:] = flat.correct[1]
    flat.asked[:] = True
    found = agreement(flat, answered(FALLING, seed=1), level="all splits", draws=100)
    assert math.isnan(found.pearson.estimate) and math.isnan(found.spearman.low)


def test_two_models_have_no_correlation_and_others_are_refused() -> None:
    one = answered(FALLING[:2], seed=0)
    found = agreement(one, one, level="split 0")
    assert found.points == 2 and math.isnan(found.pearson.estimate)
    with pytest.raises(InputError, match="same 2 models"):
        agreement(one, answered(FALLING, seed=0), level="split 0")
