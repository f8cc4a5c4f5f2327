"""The controller of gamma: on a plant whose law is known, then on the Gaussian itself."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pydantic import ValidationError

from fortifai_core.errors import DataError
from fortifai_core.families.base import ThresholdMask
from fortifai_core.families.gaussian import theory
from fortifai_core.families.gaussian.adaptive import BalanceSettings, BalanceState, observe, start
from fortifai_core.families.gaussian.chain import run_chain
from fortifai_core.families.gaussian.config import AdaptiveMask, GaussianConfig
from fortifai_core.outcomes.time_to_failure import crossings


def drive(settings: BalanceSettings, *, bias: float, generations: int) -> tuple[list[float], BalanceState]:
    """The controller against the theory itself: no noise, infinitely many samples."""
    state, seen = start(settings), []
    for _ in range(generations):
        seen.append(float(state.gamma))
        amplification = theory.amplification(theory.threshold_of(state.gamma))
        state = observe(settings, state, contraction=bias**2, amplification=amplification)
    return seen, state


@pytest.mark.parametrize("bias", [0.98, 0.9, 0.8])
@pytest.mark.parametrize("begin", [0.3, 0.7, 1.0])
def test_without_noise_it_reaches_the_fixed_point_and_restores_the_spread(bias: float, begin: float) -> None:
    settings = BalanceSettings(start=begin, low=0.2)
    seen, state = drive(settings, bias=bias, generations=400)
    assert seen[0] == begin
    assert seen[-1] == pytest.approx(theory.optimal_gamma(bias), abs=1e-3)
    assert float(state.drift) == pytest.approx(0, abs=1e-3)


def test_without_contraction_it_stops_masking_for_nothing_undoes_an_expansion() -> None:
    seen, state = drive(BalanceSettings(start=0.7), bias=1.0, generations=100)
    assert seen[-1] == 1
    assert float(state.drift) > 0.3


def test_without_restoring_it_balances_but_keeps_what_was_lost() -> None:
    seen, state = drive(BalanceSettings(restore=0.0), bias=0.9, generations=400)
    assert seen[-1] == pytest.approx(theory.optimal_gamma(0.9), abs=1e-3)
    assert float(state.drift) < -0.3


def test_it_stays_within_its_bounds() -> None:
    seen, _ = drive(BalanceSettings(start=0.9, low=0.85, high=0.95), bias=0.8, generations=50)
    assert min(seen) == 0.85 and max(seen) <= 0.95
    # A mask that does nothing asks for ever more: the bound holds, and nothing divides by zero.
    settings = BalanceSettings(start=0.9, low=0.4)
    state = start(settings)
    for _ in range(100):
        state = observe(settings, state, contraction=0.8, amplification=1.0)
    assert float(state.gamma) == 0.4


def test_states_of_one_shape_are_independent_controllers() -> None:
    settings = BalanceSettings()
    rng = np.random.default_rng(0)
    observations = rng.uniform(0.7, 1.3, (20, 2, 3))
    together, alone = start(settings, shape=(3,)), [start(settings) for _ in range(3)]
    for contraction, amplification in observations:
        together = observe(settings, together, contraction=contraction, amplification=amplification)
        alone = [
            observe(settings, state, contraction=contraction[i], amplification=amplification[i])
            for i, state in enumerate(alone)
        ]
    assert together.gamma.tolist() == [float(state.gamma) for state in alone]


def test_a_state_goes_through_json_without_a_change() -> None:
    settings = BalanceSettings()
    state = start(settings, shape=(2,))
    for contraction in (0.81, 0.8, 0.83):
        state = observe(settings, state, contraction=[contraction, 0.9], amplification=[1.01, 1.1])
    text = json.dumps({name: array.tolist() for name, array in state.arrays().items()})
    again = BalanceState.from_arrays(json.loads(text))
    for _ in range(3):
        state, again = (observe(settings, s, contraction=0.9, amplification=1.2) for s in (state, again))
    assert all((state.arrays()[name] == array).all() for name, array in again.arrays().items())


def test_bad_observations_states_and_settings_are_refused() -> None:
    settings = BalanceSettings()
    for value in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(DataError, match=r"contraction = .* must be positive and finite"):
            observe(settings, start(settings), contraction=value, amplification=1.0)
    arrays = start(settings).arrays()
    with pytest.raises(DataError, match="lacks 'drift'"):
        BalanceState.from_arrays({name: array for name, array in arrays.items() if name != "drift"})
    with pytest.raises(DataError, match="must be finite"):
        BalanceState.from_arrays({**arrays, "gamma": np.nan})
    with pytest.raises(DataError, match="same shape"):
        BalanceState.from_arrays({**arrays, "gamma": np.ones(2)})
    for bad in ({"low": 0.9, "high": 0.8}, {"start": 0.4, "low": 0.5}, {"smoothing": 0}):
        with pytest.raises(ValidationError):
            BalanceSettings(**bad)


@pytest.mark.parametrize("bias", [0.95, 0.9, 0.8])
@pytest.mark.parametrize("begin", [0.45, 1.0])
def test_on_the_gaussian_it_finds_the_predicted_optimum(bias: float, begin: float) -> None:
    config = GaussianConfig(sampling_bias=bias, method="central-limit", replicates=20)
    gamma = run_chain(config, AdaptiveMask(start=begin, low=0.4), seed=1, generations=200).arrays["gamma"]
    assert (gamma[1] == begin).all()
    optimum = theory.optimal_gamma(bias)
    # What 100 generations can tell of the optimum: log variance is measured with var_log each, and the response of
    # log amplification to the masked share is at least 1.
    moments = theory.refit_moments(theory.threshold_of(optimum), samples=config.samples)
    error = float(np.sqrt(moments.var_log / 100))
    np.testing.assert_allclose(gamma[-100:].mean(axis=0), optimum, atol=4 * error)
    np.testing.assert_allclose(gamma[-100:].mean(), optimum, atol=4 * error / np.sqrt(20))
    np.testing.assert_allclose(gamma[-100:], optimum, atol=0.03)


def test_it_keeps_sigma_in_a_band_for_300_generations_where_fixed_thresholds_do_not() -> None:
    config = GaussianConfig(method="central-limit", replicates=50)
    exits = {}
    for mask in (AdaptiveMask(), ThresholdMask(gamma=0.85), ThresholdMask(gamma=0.95), ThresholdMask(gamma=0.75)):
        sigma = run_chain(config, mask, seed=0, generations=300).arrays["sigma"]
        exits[mask.label] = np.minimum(crossings(sigma.T, 0.8), crossings(sigma.T, 1.25, falls=False))
    assert np.isinf(exits.pop("tce-adaptive")).all()
    assert all(np.isfinite(exit_).all() for exit_ in exits.values())


def test_it_works_on_raw_draws_too() -> None:
    config = GaussianConfig(method="raw", replicates=2, samples=5000)
    gamma = run_chain(config, AdaptiveMask(), seed=3, generations=60).arrays["gamma"]
    np.testing.assert_allclose(gamma[-20:].mean(axis=0), theory.optimal_gamma(0.9), atol=0.01)
