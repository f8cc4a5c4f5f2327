"""The Gaussian's chain: against the closed form, against raw draws, and the same bits however it is cut."""

from __future__ import annotations

import math

import numpy as np
import pytest
from pydantic import ValidationError

from fortifai_core.errors import ConfigError, DataError, StageFailed
from fortifai_core.families.base import Mask, NoMask, ThresholdMask
from fortifai_core.families.gaussian import theory
from fortifai_core.families.gaussian.chain import mask_gamma, predict, run_chain, sample_of, summary
from fortifai_core.families.gaussian.config import (
    AdaptiveMask,
    EstimatorNoise,
    GaussianConfig,
    NoisyEstimator,
    PredictedOptimumMask,
)

MASKS: list[Mask] = [NoMask(), ThresholdMask(gamma=0.85), PredictedOptimumMask(), AdaptiveMask()]


def small(**changes: object) -> GaussianConfig:
    return GaussianConfig(**{"samples": 1000, "replicates": 5, **changes})  # type: ignore[arg-type]


def same_bits(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("mask", MASKS, ids=lambda mask: mask.label)
@pytest.mark.parametrize("method", ["auto", "central-limit"])
def test_cut_into_any_segments_a_run_has_the_same_bits(mask: Mask, method: str) -> None:
    config = small(method=method, noise=EstimatorNoise(type="multiplicative"))
    whole = run_chain(config, mask, seed=4, generations=12)
    state, parts = None, []
    for length in (1, 4, 7):
        part = run_chain(config, mask, seed=4, generations=length, state=state)
        state = part.state
        parts.append(part.arrays)
    joined = {name: np.concatenate([part[name] for part in parts]) for name in whole.arrays}
    assert same_bits(joined, whole.arrays)
    assert state is not None and same_bits(state, whole.state)
    assert not same_bits(run_chain(config, mask, seed=5, generations=12).arrays, whole.arrays)


@pytest.mark.parametrize("method", ["auto", "raw", "central-limit"])
@pytest.mark.parametrize("density", ["fitted", "quantile", "sampler", "model"])
def test_gamma_1_is_plain_estimation_to_the_bit(method: str, density: str) -> None:
    config = small(method=method, density=density)
    plain = run_chain(config, NoMask(), seed=0, generations=6)
    assert same_bits(run_chain(config, ThresholdMask(gamma=1.0), seed=0, generations=6).arrays, plain.arrays)
    assert (plain.arrays["live-fraction"] == 1).all()


def test_without_bias_the_optimum_is_plain_estimation() -> None:
    config = small(method="raw", sampling_bias=1.0)
    plain = run_chain(config, NoMask(), seed=0, generations=4)
    assert mask_gamma(config, PredictedOptimumMask()) == 1
    assert same_bits(run_chain(config, PredictedOptimumMask(), seed=0, generations=4).arrays, plain.arrays)


@pytest.mark.parametrize("density", ["fitted", "quantile", "sampler", "model"])
def test_one_generation_against_a_plain_computation_of_its_samples(density: str) -> None:
    config = small(method="raw", density=density, mean=2.0, sigma=3.0)
    gamma = 0.8
    chain = run_chain(config, ThresholdMask(gamma=gamma), seed=9, generations=3)
    for replicate in (0, 3):
        mean, sigma = 2.0, 3.0
        for generation in range(3):
            x = sample_of(config, seed=9, generation=generation, mean=mean, sigma=sigma, replicate=replicate)
            kept = x
            if generation:
                a = float(theory.threshold_of(gamma))
                if density == "fitted":
                    kept = x[np.abs(x - x.mean()) >= a * x.std()]
                elif density == "quantile":
                    kept = x[np.argsort(np.abs(x - mean))[200:]]
                else:
                    kept = x[np.abs(x - mean) >= a * (0.9 * sigma if density == "sampler" else sigma)]
            mean, sigma = kept.mean(), kept.std()
            # The draws are float32, so a value may lie on the other side of the threshold by a rounding.
            assert chain.arrays["live-fraction"][generation, replicate] == kept.size / x.size
            assert chain.arrays["mean"][generation, replicate] == pytest.approx(mean, abs=1e-5)
            assert chain.arrays["sigma"][generation, replicate] == pytest.approx(sigma, rel=1e-5)


@pytest.mark.parametrize("bias_on", ["sigma", "variance"])
@pytest.mark.parametrize("method", ["raw", "exact"])
def test_plain_collapse_is_the_closed_form(method: str, bias_on: theory.BiasOn) -> None:
    # E[sigma_t²] = c^t ((n − 1)/n)^(t+1), exactly, for any n: here n = 100, where the bias is plain to see.
    config = small(samples=100, replicates=400, method=method, bias_on=bias_on)
    variance = run_chain(config, NoMask(), seed=0, generations=40).arrays["sigma"] ** 2
    c = 0.81 if bias_on == "sigma" else 0.9
    t = np.arange(40)
    ratio = variance / (c**t * 0.99 ** (t + 1))[:, None]
    error = ratio.std(axis=1) / 20
    assert (np.abs(ratio.mean(axis=1) - 1) < 4 * error).all()
    assert abs(ratio[-1].mean() / 0.99**40 - 1) > 4 * error[-1]  # without (n − 1)/n it would fail


@pytest.mark.parametrize("density", ["fitted", "quantile", "sampler", "model"])
@pytest.mark.parametrize("gamma", [0.85, 0.8])
def test_masked_chains_follow_the_prediction(gamma: float, density: str) -> None:
    config = small(method="raw", density=density, replicates=60)
    log_sigma = np.log(run_chain(config, ThresholdMask(gamma=gamma), seed=2, generations=30).arrays["sigma"])
    curve = predict(config, ThresholdMask(gamma=gamma), generations=30)
    assert curve is not None
    error = curve.sd_log_sigma / math.sqrt(60)
    assert (np.abs(log_sigma.mean(axis=1) - curve.log_sigma) < 4 * error).all()
    # The variance of a variance from 60 values has relative error √(2/59).
    assert log_sigma[-1].var(ddof=1) == pytest.approx(curve.sd_log_sigma[-1] ** 2, rel=4 * math.sqrt(2 / 59))


@pytest.mark.parametrize("density", ["fitted", "quantile", "sampler", "model"])
def test_the_central_limit_shortcut_has_the_moments_of_raw_draws(density: str) -> None:
    mask, moments = ThresholdMask(gamma=0.8), {}
    for method in ("raw", "central-limit"):
        config = small(method=method, density=density, samples=4000, replicates=1500)
        second = {name: values[1] for name, values in run_chain(config, mask, seed=1, generations=2).arrays.items()}
        logs = [np.log(second["contraction"]), np.log(second["amplification"])]
        columns = np.stack([second["mean"], *logs])
        moments[method] = (columns.mean(axis=1), np.cov(columns), columns.std(axis=1))
    (mean, covariance, sd), (other_mean, other_covariance, _) = moments["raw"], moments["central-limit"]
    assert (np.abs(mean - other_mean) < 4 * math.sqrt(2 / 1500) * sd).all()
    # The sampling error of a covariance is √((c_ii c_jj + c_ij²)/replicates). The shortcut is exact to order 1/n; with
    # `quantile` the amplification scatters so little that the next order shows.
    error = np.sqrt((np.outer(sd, sd) ** 2 + covariance**2) * 2 / 1500)
    assert (np.abs(covariance - other_covariance) < 4 * error + 0.5 / 4000**2).all()


def test_replicates_do_not_depend_on_how_many_there_are() -> None:
    few = run_chain(small(method="raw", replicates=2), ThresholdMask(), seed=0, generations=3).arrays["sigma"]
    many = run_chain(small(method="raw", replicates=4), ThresholdMask(), seed=0, generations=3).arrays["sigma"]
    assert np.array_equal(few, many[:, :2])


def test_a_noisy_estimator_collapses_as_predicted_and_a_perfect_one_hardly_drifts() -> None:
    settings = {"sampling_bias": 1.0, "samples": 10_000, "replicates": 200}
    noisy = GaussianConfig(**settings, noise=EstimatorNoise(type="multiplicative"))
    for config in (GaussianConfig(**settings), noisy):
        log_sigma = np.log(run_chain(config, NoMask(), seed=0, generations=300).arrays["sigma"])
        curve = predict(config, NoMask(), generations=300)
        assert curve is not None
        assert (np.abs(log_sigma.mean(axis=1) - curve.log_sigma) < 4 * curve.sd_log_sigma / math.sqrt(200)).all()
    assert curve.median[-1] < 0.25
    assert predict(GaussianConfig(**settings), NoMask(), generations=300).median[-1] > 0.95  # type: ignore[union-attr]


def test_a_noisy_estimator_is_an_arm_or_a_setting_of_all_arms() -> None:
    noise = EstimatorNoise(type="multiplicative", scale=0.3)
    arm = run_chain(small(), NoisyEstimator(noise=noise), seed=0, generations=4).arrays
    setting = run_chain(small(noise=noise), NoMask(), seed=0, generations=4).arrays
    assert same_bits(arm, setting)
    assert NoisyEstimator(noise=noise).label == "ce-noisy-multiplicative-0.3"
    with pytest.raises(ValidationError, match="needs additive or multiplicative"):
        NoisyEstimator(noise=EstimatorNoise())


def test_additive_noise_reflects_at_zero_and_cannot_collapse() -> None:
    config = small(sampling_bias=1.0, replicates=300, noise=EstimatorNoise(type="additive"))
    sigma = run_chain(config, NoMask(), seed=0, generations=200).arrays["sigma"]
    assert (sigma > 0).all()
    # A random walk of unit steps reflected at 0 is |N(1, t)| after t steps, up to the (small) sampling error.
    rng = np.random.default_rng(0)
    walk = np.abs(1 + math.sqrt(200) * rng.standard_normal(100_000))
    assert np.median(sigma[-1]) == pytest.approx(np.median(walk), rel=0.25)
    assert predict(config, NoMask(), generations=5) is None


def test_noise_may_be_put_on_the_variance() -> None:
    noise = EstimatorNoise(type="multiplicative", scale=0.2)
    on_sigma = run_chain(small(noise=noise), NoMask(), seed=0, generations=1).arrays["sigma"]
    other = noise.model_copy(update={"on": "variance"})
    on_variance = run_chain(small(noise=other), NoMask(), seed=0, generations=1).arrays["sigma"]
    plain = run_chain(small(), NoMask(), seed=0, generations=1).arrays["sigma"]
    np.testing.assert_allclose((on_variance / plain) ** 2, on_sigma / plain, rtol=1e-12)


def test_masking_the_real_data_too() -> None:
    config = small(method="raw", mask_real=True)
    first = run_chain(config, ThresholdMask(gamma=0.85), seed=0, generations=1).arrays
    assert first["live-fraction"].mean() == pytest.approx(0.85, abs=0.02)
    unmasked = run_chain(small(method="raw"), ThresholdMask(gamma=0.85), seed=0, generations=1).arrays
    assert (unmasked["live-fraction"] == 1).all()


def test_the_measures_are_medians_and_quartiles_over_replicates() -> None:
    config = small(replicates=101)
    chain = run_chain(config, NoMask(), seed=0, generations=5)
    measures = summary(chain.arrays, config=config, mask=NoMask())
    assert measures.keys() == GaussianConfig.measures.keys()
    assert measures["sigma"][3] == np.sort(chain.arrays["sigma"][3])[50]
    assert (measures["sigma-low"] < measures["sigma"]).all() and (measures["sigma"] < measures["sigma-high"]).all()
    # A segment's prediction is that of its own generations.
    later = summary({name: values[2:] for name, values in chain.arrays.items()}, config=config, mask=NoMask(), first=2)
    assert np.array_equal(later["sigma-predicted"], measures["sigma-predicted"][2:])


def test_progress_counts_generations() -> None:
    seen: list[tuple[int, int, str]] = []
    run_chain(small(), NoMask(), seed=0, generations=3, progress=lambda *step: seen.append(step))
    assert seen == [(1, 3, "generations"), (2, 3, "generations"), (3, 3, "generations")]


def test_settings_that_do_not_fit_are_refused_before_anything_is_drawn() -> None:
    for bad in ({"sampling_bias": 1.2}, {"sampling_bias": 0}, {"samples": 10}, {"replicates": 0}, {"sigma": 0}):
        with pytest.raises(ValidationError):
            small(**bad)
    with pytest.raises(ValidationError, match="central-limit method needs 1000"):
        small(samples=500, method="central-limit")
    with pytest.raises(ConfigError, match="keeps 10 samples of 1000"):
        run_chain(small(), ThresholdMask(gamma=0.01), seed=0, generations=1)
    with pytest.raises(ConfigError, match="no exact shortcut with a mask"):
        run_chain(small(method="exact"), ThresholdMask(), seed=0, generations=1)
    with pytest.raises(ConfigError, match="generations = 0"):
        run_chain(small(), NoMask(), seed=0, generations=0)

    class Other(Mask):
        type: str = "other"
        label: str = "other"

    with pytest.raises(ConfigError, match="none, threshold, predicted-optimum, adaptive or noisy"):
        run_chain(small(), Other(), seed=0, generations=1)


def test_a_state_of_another_run_is_refused() -> None:
    config = small()
    plain = run_chain(config, NoMask(), seed=0, generations=2).state
    adaptive = run_chain(config, AdaptiveMask(), seed=0, generations=2).state
    for state, mask, field in (
        (plain, AdaptiveMask(), "state"),
        (adaptive, NoMask(), "state"),
        ({**plain, "mean": plain["mean"][:3]}, NoMask(), "state.mean"),
        ({"generation": plain["generation"], "mean": plain["mean"]}, NoMask(), "state.sigma"),
        ({**plain, "sigma": 0 * plain["sigma"]}, NoMask(), "state.sigma"),
        ({**plain, "generation": np.array([0])}, NoMask(), "state.generation"),
    ):
        with pytest.raises(DataError) as error:
            run_chain(config, mask, seed=0, generations=1, state=state)
        assert error.value.field == field


def test_a_spread_beyond_all_numbers_stops_the_run() -> None:
    config = GaussianConfig(method="central-limit", replicates=1)
    with pytest.raises(StageFailed, match="left the range of numbers"):
        run_chain(config, ThresholdMask(gamma=0.06), seed=0, generations=1500)
