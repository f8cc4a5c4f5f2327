"""The Gaussian's theory, held against scipy's truncated normal, the paper's values, and Monte Carlo."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from fortifai_core.errors import ConfigError
from fortifai_core.families.gaussian import theory
from fortifai_core.families.gaussian.theory import Density

A = np.array([0.0, 1e-6, 0.05, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0])


def test_amplification_and_fourth_moment_are_the_truncated_normals() -> None:
    for a in A:
        # |z| given |z| ≥ a is z given z ≥ a, by symmetry.
        tail = stats.truncnorm(a, math.inf)
        assert theory.amplification(a) == pytest.approx(tail.moment(2), rel=1e-6)
        assert theory.fourth_moment(a) == pytest.approx(tail.moment(4), rel=1e-6)
        density = stats.norm.pdf(a) / stats.norm.sf(a)
        assert theory.amplification(a) == pytest.approx(1 + a * density, rel=1e-12)


def test_amplification_is_finite_where_both_tails_vanish() -> None:
    # Asymptotically eta(a) = a² + 2 + O(1/a²); a = 50 is far beyond where 1 − Phi underflows.
    assert theory.amplification(50.0) == pytest.approx(50.0**2 + 2, abs=1e-2)


def test_share_and_threshold_are_each_others_inverse() -> None:
    gamma = np.array([1.0, 0.999, 0.95, 0.8, 0.3, 0.01, 1e-8])
    a = theory.threshold_of(gamma)
    assert a[0] == 0
    np.testing.assert_allclose(theory.gamma_of(a), gamma, rtol=1e-10)
    np.testing.assert_allclose(stats.norm.cdf(a) - stats.norm.cdf(-a), 1 - gamma, atol=1e-12)


def test_the_papers_numbers() -> None:
    gamma = np.array([0.95, 0.90, 0.85, 0.80])
    eta = theory.amplification(theory.threshold_of(gamma))
    np.testing.assert_allclose(eta, [1.053, 1.111, 1.174, 1.245], atol=6e-4)
    on_sigma = theory.growth(np.array([1.0, 0.85, 0.80]), 0.9)
    np.testing.assert_allclose(on_sigma, [0.81, 0.951, 1.008], atol=5e-4)
    assert theory.growth(0.85, 0.9, bias_on="variance") == pytest.approx(1.057, abs=5e-4)


@pytest.mark.parametrize("bias_on", ["sigma", "variance"])
@pytest.mark.parametrize("density", ["fitted", "quantile", "sampler", "model"])
@pytest.mark.parametrize("bias", [1.0, 0.99, 0.9, 0.5, 0.05])
def test_the_fixed_point_balances(bias: float, density: Density, bias_on: theory.BiasOn) -> None:
    gamma = theory.optimal_gamma(bias, bias_on=bias_on, density=density)
    assert theory.growth(gamma, bias, bias_on=bias_on, density=density) == pytest.approx(1, abs=1e-9)
    assert (gamma == 1) == (bias == 1)


def test_the_fixed_point_of_a_finite_sample_has_no_drift() -> None:
    for density in ("fitted", "quantile", "sampler"):
        finite = theory.optimal_gamma(0.9, density=density, samples=1000)
        a = theory.threshold_of(finite)
        drift = math.log(0.81) + theory.refit_moments(a, samples=1000, density=density).mean_log
        assert drift == pytest.approx(0, abs=1e-10)
        # A finite sample loses log variance, so more has to be masked; with many samples the two meet.
        assert finite < theory.optimal_gamma(0.9, density=density)
        assert theory.optimal_gamma(0.9, density=density, samples=10**9) == pytest.approx(0.80691, abs=1e-5)


def test_without_a_mask_the_moments_are_those_of_chi_squared() -> None:
    for n in (100, 10_000):
        log_chi = stats.loggamma((n - 1) / 2)  # log of a chi² is log 2 plus the log of a gamma variate
        for density in ("fitted", "quantile", "sampler"):
            moments = theory.refit_moments(0.0, samples=n, density=density)
            assert moments.mean_log == pytest.approx(log_chi.mean() + math.log(2 / n), rel=1e-9)
            assert moments.var_log == pytest.approx(log_chi.var(), rel=1e-9)
            assert moments.covariance == pytest.approx(log_chi.var(), rel=1e-9)
            assert moments.var_mean == pytest.approx(1 / n, rel=1e-12)


@pytest.mark.parametrize("density", ["fitted", "quantile", "sampler"])
@pytest.mark.parametrize("gamma", [0.95, 0.85, 0.5])
def test_finite_sample_moments_against_monte_carlo(density: Density, gamma: float) -> None:
    n, trials = 100, 25_000
    rng = np.random.default_rng(7)
    z = rng.standard_normal((trials, n))
    a = float(theory.threshold_of(gamma))
    distance = np.abs(z - z.mean(axis=1, keepdims=True)) if density == "fitted" else np.abs(z)
    if density == "fitted":
        keep = distance >= a * z.std(axis=1, keepdims=True)
    elif density == "quantile":
        keep = distance >= np.sort(distance, axis=1)[:, [n - math.ceil(gamma * n)]]
    else:
        keep = distance >= a
    kept = np.where(keep, z, np.nan)
    mean, log_variance = np.nanmean(kept, axis=1), np.log(np.nanvar(kept, axis=1))
    moments = theory.refit_moments(a, samples=n, density=density)
    # What the theory leaves out is of order 1/n² (1/n³ for variances): a few hundredths of the correction itself.
    error = log_variance.std() / math.sqrt(trials)
    correction = abs(moments.mean_log - math.log(theory.amplification(a)))
    assert abs(log_variance.mean() - moments.mean_log) < 4 * error + 0.08 * correction
    assert correction > 20 * error  # or this test would pass without any correction
    assert log_variance.var() == pytest.approx(moments.var_log, rel=0.08)
    assert mean.var() == pytest.approx(moments.var_mean, rel=0.08)
    covariance = np.cov(log_variance, np.log(z.var(axis=1)))[0, 1]
    assert covariance == pytest.approx(moments.covariance, rel=0.08)


def test_the_noise_of_a_multiplicative_estimator() -> None:
    rng = np.random.default_rng(0)
    for scale in (0.1, 0.5, 2.0):
        logs = np.log(np.abs(1 + scale * rng.standard_normal(400_000)))
        mean, variance = theory.log_noise(scale)
        assert mean == pytest.approx(logs.mean(), abs=5 * logs.std() / math.sqrt(logs.size))
        assert variance == pytest.approx(logs.var(), rel=0.02)
    assert theory.log_noise(0.0) == (0.0, 0.0)


def test_the_predicted_curve_of_plain_estimation_is_the_known_law() -> None:
    # sigma_t² = c^t · Π chi²_{n−1}/n, so its expectation is (c (n−1)/n)^t with one factor more for generation 0.
    curve = theory.predicted_sigma(1.0, 0.9, generations=200, samples=100, sigma=3.0)
    expected = np.exp(2 * curve.log_sigma + 2 * curve.sd_log_sigma**2)
    law = 9 * 0.81 ** np.arange(200) * 0.99 ** np.arange(1, 201)
    np.testing.assert_allclose(expected, law, rtol=0.03)
    assert (curve.low < curve.median).all() and (curve.median < curve.high).all()


def test_half_life() -> None:
    # 0.9 a generation: log 2 / log(1/0.9) = 6.58 generations to halve.
    assert theory.half_life(1.0, 0.9) == pytest.approx(-6.579, abs=1e-3)
    times = theory.half_life(np.array([[1.0], [0.8]]), np.array([[0.9, 1.0]]))
    assert times.shape == (2, 2)
    assert times[1, 0] > 0 and math.isinf(times[0, 1])


def test_bad_values_are_named() -> None:
    for call, field in (
        (lambda: theory.threshold_of(0.0), "gamma"),
        (lambda: theory.threshold_of(1.1), "gamma"),
        (lambda: theory.threshold_of(float("nan")), "gamma"),
        (lambda: theory.amplification(-0.1), "a"),
        (lambda: theory.contraction(0.0), "sampling_bias"),
        (lambda: theory.optimal_gamma(1.5), "sampling_bias"),
    ):
        with pytest.raises(ConfigError) as error:
            call()
        assert error.value.field == field
