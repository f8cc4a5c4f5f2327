"""The data regimes: what each generation trains on, and what has to be rewritten for it."""

from __future__ import annotations

import pytest

from fortifai_core.config.stages import SETTINGS, Mixture, Regime, reading_of
from fortifai_core.corpus.schedule import (
    SplitVersion,
    regenerated,
    splits_seen,
    subsample_splits,
    text_shares,
    training_set,
    training_splits,
)


def test_paper_regime_is_algorithm_1() -> None:
    assert [str(v) for v in training_set(Regime.PAPER, 2)] == ["D0^(2)", "D1^(1)", "D2^(0)"]
    # the real share is 1, 1/2, 1/3, … as the paper's Section 5 says
    for i in range(6):
        versions = training_set(Regime.PAPER, i)
        assert sum(v.real for v in versions) == 1
        assert len(versions) == i + 1


def test_paper_regime_counts_text_as_table_d2_does() -> None:
    totals = [training_splits(Regime.PAPER, i) for i in range(6)]
    assert sum(t for t, _ in totals) == 21
    assert sum(s for _, s in totals) == 15


@pytest.mark.parametrize("regime", list(Regime))
def test_every_synthetic_version_is_made_before_it_is_read(regime: Regime) -> None:
    made = set()
    for generation in range(6):
        for version in training_set(regime, generation):
            assert version.real or version in made, (regime, generation, version)
        for version in regenerated(regime, generation):
            assert version.real or version in made, (regime, generation, version)
            made.add(SplitVersion(version.split, version.version + 1))


@pytest.mark.parametrize("regime", list(Regime))
def test_nothing_is_rewritten_that_nobody_reads(regime: Regime) -> None:
    for generation in range(5):
        after = {SplitVersion(v.split, v.version + 1) for v in regenerated(regime, generation)}
        assert after <= set(training_set(regime, generation + 1))


@pytest.mark.parametrize("regime", list(Regime))
def test_no_split_is_asked_about_before_it_was_read(regime: Regime) -> None:
    for generation in range(6):
        seen = splits_seen(regime, generation)
        assert 0 in seen
        assert max(seen) <= generation
        assert {v.split for v in training_set(regime, generation)} <= set(seen)


def test_regimes_differ_in_size() -> None:
    sizes = {regime: [training_splits(regime, i)[0] for i in range(4)] for regime in Regime}
    assert sizes[Regime.REPLACE] == [1, 1, 1, 1]
    assert sizes[Regime.ACCUMULATE] == [1, 2, 3, 4]
    assert sizes[Regime.ACCUMULATE_SUBSAMPLE] == [1, 1, 1, 1]
    assert sizes[Regime.FRESH_MIX] == [1, 2, 2, 2]
    assert [subsample_splits(r) for r in Regime].count(1) == 1


def test_a_mixture_reads_its_share_of_split_0_and_of_the_real_text() -> None:
    tenth = Mixture(synthetic=0.1, real="original")
    assert training_set(tenth, 0) == [SplitVersion(0, 0)] and text_shares(tenth, 0) is None
    assert [str(v) for v in training_set(tenth, 3)] == ["D0^(3)", "D0^(0)"]
    assert text_shares(tenth, 3) == (0.1, 0.9)
    assert training_splits(tenth, 3) == (1.0, 0.1)
    assert splits_seen(tenth, 3) == [0]
    fresh = Mixture(synthetic=0.5, real="fresh")
    assert [str(v) for v in training_set(fresh, 3)] == ["D0^(3)", "D3^(0)"]
    assert splits_seen(fresh, 3) == [0, 1, 2, 3]


def test_a_mixture_without_one_kind_of_text_reads_the_other_alone() -> None:
    real, written = Mixture(synthetic=0, real="original"), Mixture(synthetic=1)
    assert training_set(real, 4) == [SplitVersion(0, 0)]
    assert training_set(written, 4) == [SplitVersion(0, 4)]
    assert text_shares(real, 4) is text_shares(written, 4) is None
    assert regenerated(real, 4) == [SplitVersion(0, 4)]  # measured, though not read


@pytest.mark.parametrize("regime", list(SETTINGS))
def test_regimes_that_are_mixtures_are_settings_of_one(regime: Regime) -> None:
    mixture = SETTINGS[regime]
    for i in range(5):
        assert training_set(mixture, i) == training_set(regime, i)
        assert training_splits(mixture, i) == training_splits(regime, i)
        assert text_shares(mixture, i) is text_shares(regime, i) is None
    assert reading_of(Regime.PAPER, mixture) is regime
