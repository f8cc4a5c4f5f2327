"""Power: at the difference that is promised, the paired bootstrap finds it in about 80 of 100 simulated experiments."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fortifai_core.errors import InputError
from fortifai_core.outcomes.bootstrap import paired_difference
from fortifai_core.outcomes.inference import freedom_of
from fortifai_core.outcomes.power import Z_LEVEL, Z_POWER, detectable, runs_for, smallest_difference


def simulate(
    rng: np.random.Generator, difference: float, *, documents: int, each: int, runs: int, shared: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of two arms, [run, question]: 30% differ; gaps about one document have the correlation 0.1.

    A question takes over what was drawn for its document with the probability √0.1, else it has a draw of its own.
    """
    gaps = [-1, 0, 1]
    chances = [(0.3 - difference) / 2, 0.7, (0.3 + difference) / 2]
    of_document = rng.choice(gaps, (1 if shared else runs, documents), p=chances).repeat(each, axis=1)
    own = rng.choice(gaps, (runs, documents * each), p=chances)
    gap = np.where(rng.random(own.shape) < math.sqrt(0.1), of_document, own)
    both = rng.random(own.shape) < 0.6
    return np.where(gap == 0, both, gap == 1), np.where(gap == 0, both, gap == -1)


@pytest.mark.parametrize(
    ("documents", "each", "runs", "shared"), [(32, 4, 1, True), (60, 10, 1, True), (40, 5, 4, True), (32, 4, 5, False)]
)
def test_the_paired_bootstrap_has_80_percent_power_there(documents: int, each: int, runs: int, shared: bool) -> None:
    found = smallest_difference(documents * each, documents, runs=runs, shared=shared)
    rng, worlds = np.random.default_rng(1), 300
    names = [[f"{0 if shared else run}-{d}" for d in range(documents) for _ in range(each)] for run in range(runs)]
    told = 0
    for world in range(worlds):
        first, second = simulate(rng, found.difference, documents=documents, each=each, runs=runs, shared=shared)
        told += paired_difference(first, second, clusters=names, draws=200, seed=world).excludes_zero
    assert 0.73 <= told / worlds <= 0.87  # three standard errors


def test_the_formula_by_hand() -> None:
    alone = smallest_difference(400, 400, correlation=0)
    z = Z_LEVEL + Z_POWER
    assert alone.difference == pytest.approx(z * math.sqrt((0.3 - alone.difference**2) / 400))
    assert alone.design_effect == 1
    clustered = smallest_difference(400, 40, correlation=0.2)
    assert clustered.design_effect == pytest.approx(2.8)
    assert clustered.difference == pytest.approx(z * math.sqrt((0.3 - clustered.difference**2) * 2.8 / 400))


def test_more_questions_documents_and_own_questions_tell_more() -> None:
    base = smallest_difference(120, 30).difference
    assert smallest_difference(480, 120).difference < base < smallest_difference(120, 10).difference
    shared, own = (smallest_difference(120, 30, runs=5, shared=s).difference for s in (True, False))
    assert own < shared < base


def test_seven_questions_tell_next_to_nothing() -> None:
    assert 0.5 < smallest_difference(7, 7).difference < 0.6


@pytest.mark.parametrize(
    "wrong", [{"questions": 0, "documents": 0}, {"documents": 11}, {"discordance": 0.0}, {"correlation": 1.5}]
)
def test_what_fits_no_experiment_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError):
        smallest_difference(**{"questions": 10, "documents": 5, **wrong})


def test_detectable_is_the_noncentral_t() -> None:
    """A standardised difference of 0.5 takes 34 pairs, of 1.0 takes 10, of 0.2 takes 199 (G*Power, paired t test)."""
    assert detectable(1 / math.sqrt(34), 33) == pytest.approx(0.4951, abs=2e-3)
    assert [runs_for(difference, 1.0) for difference in (0.5, 1.0, 0.2)] == [34, 10, 199]
    assert detectable(0.0, 4) == 0
    with pytest.raises(InputError, match=r"error"):
        detectable(math.nan, 4)


def test_seeds_do_not_help_where_documents_are_the_noise() -> None:
    assert runs_for(0.05, 0.02) is not None
    assert runs_for(0.05, 0.02, documents=0.03, count=30) is None
    # with documents of its own every run takes some of their noise away: √((0.02² + 0.03²) / n) is 0.0180 with four
    # runs and 0.0161 with five, times 2.9 (31 degrees of freedom) and 2.87 (41): 0.052 and 0.046
    assert runs_for(0.05, 0.02, documents=0.03, count=1000, shared=False) == 5


def test_where_documents_are_the_noise_runs_are_not_the_degrees_of_freedom() -> None:
    """Two runs that hardly vary, 200 documents: t has 199 degrees of freedom and not 1."""
    assert freedom_of(0.01**2, 200, 0.001**2 / 2, 2) == pytest.approx(199, rel=0.02)
    assert runs_for(0.05, 0.001, documents=0.01, count=200) == 2
    assert detectable(math.hypot(0.01, 0.001 / math.sqrt(2)), 199) == pytest.approx(0.0283, abs=1e-3)
