"""The 1-D Gaussian's theory: amplification by a mask, the fixed point, and the spread predicted with its noise.

A generation draws n samples from N(mean, c·sigma²), where c is the contraction (λ² with λ on the standard deviation,
ForTIFAI Eq. 1; λ with λ on the variance, Eq. 4), drops those nearer to the centre than a standard deviations of the
sample, and fits mean and variance to the rest by maximum likelihood. In units of the sample's standard deviation, z:

    kept share       gamma = P(|z| ≥ a) = 2 (1 − Phi(a))
    amplification    eta   = E[z² | |z| ≥ a] = 1 + a r,       r = phi(a) / (1 − Phi(a))              (Eq. 3)
    fourth moment    kappa = E[z⁴ | |z| ≥ a] = 3 + (a³ + 3a) r

**Finite samples.** One generation multiplies the variance by R = c·s², where s² is the variance of the kept part of
n standard normals. Whatever the state of the chain, R is drawn from the same distribution and independently, so
log variance is a random walk: after t generations its mean has moved by t·E[log R], and its variance grown by
t·Var[log R]. `refit_moments` gives both to order 1/n, from the expansion of log s² = log A − log B − M²/(A B)
about the true distribution (A, B, M: the sample's means of z²·1, 1, z·1 over the kept part), to second order in the
fluctuations. They depend on what the threshold is measured against:

    no mask     exact: s² n is chi² with n − 1 degrees of freedom, E[log s²] = psi((n−1)/2) + log(2/n) ≈ −2/n, and
                Var = psi'((n−1)/2) ≈ 2/n. Of the −2/n, half is the bias (n−1)/n and half the concavity of the log.
    sampler     a known interval: n gamma values from the truncated normal.  n gamma Var = kappa/eta² − 1,
                E = log eta − (1/(n gamma)) (1 + (kappa/eta² − 1)/2).
    fitted      the interval mean ± a·s of the sample itself. Mean and variance of the whole sample move the ends of
                the interval, which adds boundary terms: with W the influence function
                W = (z²/eta − 1)·1/gamma + d (z² − 1),  d = (a phi/gamma)(1 − a²/eta),  n Var = E[W²].
                By Basu's theorem s²/s²_all does not depend on s²_all, so the two noises add.
    quantile    the ⌈gamma n⌉ values farthest from the known centre: the kept ones are a sample beyond the order
                statistic, n gamma Var = (kappa − 2a² eta + a⁴)/eta² − gamma (1 − a²/eta)².

Where no terms are dropped (a = 0) all of them agree with the exact result. The mean walks too:
Var[(mean' − mean)/sd of the sample] = eta/(n gamma), and for `fitted` (gamma eta − 2k gamma eta + k²)/(n gamma²)
with k = 2 a phi(a), since the interval follows the sample's mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.special import digamma, erfcx, ndtr, ndtri, polygamma

from fortifai_core.errors import ConfigError

Floats = NDArray[np.float64]
BiasOn = Literal["sigma", "variance"]
Density = Literal["fitted", "quantile", "sampler", "model"]


def tail_ratio(a: ArrayLike) -> Floats:
    """phi(a) / (1 − Phi(a)), the inverse Mills ratio; accurate for any a, where both vanish too."""
    return math.sqrt(2 / math.pi) / erfcx(np.asarray(a, dtype=np.float64) / math.sqrt(2))


def amplification(a: ArrayLike) -> Floats:
    """eta(a) = 1 + a phi(a)/(1 − Phi(a)): variance of N(0, 1) given |z| ≥ a (Eq. 3)."""
    threshold = _threshold(a)
    return 1 + threshold * tail_ratio(threshold)


def fourth_moment(a: ArrayLike) -> Floats:
    """kappa(a) = E[z⁴ | |z| ≥ a] = 3 + (a³ + 3a) phi(a)/(1 − Phi(a))."""
    threshold = _threshold(a)
    return 3 + (threshold**3 + 3 * threshold) * tail_ratio(threshold)


def threshold_of(gamma: ArrayLike) -> Floats:
    """The a beyond which the share `gamma` of a normal distribution lies: P(|z| < a) = 1 − gamma."""
    share = np.asarray(gamma, dtype=np.float64)
    if not ((share > 0) & (share <= 1)).all():
        raise ConfigError("gamma", gamma, "must lie in (0, 1]: it is the share that is kept")
    return np.abs(ndtri(share / 2))


def gamma_of(a: ArrayLike) -> Floats:
    """The share kept, P(|z| ≥ a)."""
    return 2 * ndtr(-_threshold(a))


def contraction(sampling_bias: ArrayLike, *, bias_on: BiasOn = "sigma") -> Floats:
    """What sampling multiplies the variance by: λ² where λ is on the standard deviation, λ where on the variance."""
    bias = np.asarray(sampling_bias, dtype=np.float64)
    if not ((bias > 0) & (bias <= 1)).all():
        raise ConfigError("sampling_bias", sampling_bias, "must lie in (0, 1]: 1 samples the model as it is")
    return bias**2 if bias_on == "sigma" else bias


def interval(gamma: ArrayLike, *, contraction: ArrayLike = 1.0, density: Density = "fitted") -> Floats:
    """The a that a mask uses, in standard deviations of the sample.

    Only `model` differs: its interval is a standard deviations of the model, which are a/√c of the sample.
    """
    a = threshold_of(gamma)
    return a / np.sqrt(contraction) if density == "model" else a


def growth(
    gamma: ArrayLike, sampling_bias: ArrayLike, *, bias_on: BiasOn = "sigma", density: Density = "fitted"
) -> Floats:
    """c·eta: what a generation of infinitely many samples multiplies the variance by; 1 is the fixed point."""
    c = contraction(sampling_bias, bias_on=bias_on)
    return c * amplification(interval(gamma, contraction=c, density=density))


def optimal_gamma(
    sampling_bias: float, *, bias_on: BiasOn = "sigma", density: Density = "fitted", samples: int | None = None
) -> float:
    """The gamma at the fixed point, where amplification undoes contraction: c·eta(a) = 1.

    With `samples`, the fixed point of a finite sample instead: E[log R] = 0, so that log variance has no drift and
    the median of sigma stays; gamma is then smaller, by about 1.5/samples and more where little is kept.

    >>> round(optimal_gamma(0.9), 3), round(optimal_gamma(0.9, bias_on="variance"), 3)
    (0.807, 0.9)
    """
    c = float(contraction(sampling_bias, bias_on=bias_on))

    def excess(a: float) -> float:
        if samples is None:
            return math.log(c) + math.log(amplification(a))
        return math.log(c) + float(refit_moments(a, samples=samples, density=density).mean_log)

    # eta(a) > 1 + a², so the root lies below √(1/c − 1); room is left for the finite sample's loss.
    upper = math.sqrt(1 / c - 1) + (0.5 if samples is not None else 1e-9)
    a = 0.0 if c == 1 and samples is None else float(brentq(excess, 0.0, upper, xtol=1e-14))
    return float(gamma_of(a * math.sqrt(c) if density == "model" else a))


@dataclass(frozen=True)
class RefitMoments:
    """Mean and variance estimated from the kept part of n standard normals, to order 1/n.

    Attributes:
        mean_log, var_log: of log s², s² the variance of the kept part.
        var_mean: of its mean (the mean's expectation is 0, uncorrelated with log s²).
        covariance: of log s² with the log variance of the whole sample.
    """

    mean_log: Floats
    var_log: Floats
    var_mean: Floats
    covariance: Floats


def refit_moments(a: ArrayLike, *, samples: int, density: Density = "fitted") -> RefitMoments:
    """How the estimates of one generation scatter; `a` as from `interval`, elementwise. The module says whence."""
    a = _threshold(a)
    n = float(samples)
    gamma, eta, kappa = gamma_of(a), amplification(a), fourth_moment(a)
    if density == "fitted":
        bias, variance, var_mean, covariance = _fitted(a, gamma, eta, kappa)
    elif density == "quantile":
        bias, variance, var_mean, covariance = _quantile(a, gamma, eta, kappa)
    else:
        variance = (kappa / eta**2 - 1) / gamma
        bias = -(1 / gamma) - variance / 2
        var_mean = eta / gamma
        covariance = kappa / eta - eta
    # The expansion corrects the exact result for no mask, which it meets at a = 0 (bias −2, variance 2).
    return RefitMoments(
        mean_log=np.log(eta) + digamma((n - 1) / 2) + math.log(2 / n) + (bias + 2) / n,
        var_log=polygamma(1, (n - 1) / 2) + (variance - 2) / n,
        var_mean=var_mean / n,
        covariance=polygamma(1, (n - 1) / 2) + (covariance - 2) / n,
    )


def _fitted(a: Floats, gamma: Floats, eta: Floats, kappa: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """n times (bias of log s², its variance, variance of the mean, covariance); interval mean ± a s of the sample."""
    phi = np.exp(-(a**2) / 2) / math.sqrt(2 * math.pi)
    d = a * phi / gamma * (1 - a**2 / eta)
    variance = (kappa / eta**2 - 1) / gamma + 2 * d * (kappa / eta - eta) + 2 * d**2
    # Second order: ends of the interval that move with the sample's own mean and variance.
    bias_share = a * phi * (1.5 - a**2 / 2)
    bias_square = phi * (-2 * a + a**3 / 2 - a**5 / 2)
    var_share = gamma * (1 - gamma) - 2 * a * phi * gamma * (eta - 1) + 2 * (a * phi) ** 2
    square = gamma * eta
    var_square = gamma * kappa - square**2 - 2 * a**3 * phi * gamma * (kappa - eta) + 2 * (a**3 * phi) ** 2
    k = 2 * a * phi
    var_sum = square - 2 * k * square + k**2
    bias = (
        bias_square / square
        - bias_share / gamma
        - var_square / (2 * square**2)
        + var_share / (2 * gamma**2)
        - var_sum / (gamma * square)
    )
    return bias, variance, var_sum / gamma**2, np.full_like(a, 2.0)


def _quantile(a: Floats, gamma: Floats, eta: Floats, kappa: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """The same for the gamma·n values farthest from the known centre."""
    phi = np.exp(-(a**2) / 2) / math.sqrt(2 * math.pi)
    r = tail_ratio(a)
    variance = (kappa - 2 * a**2 * eta + a**4) / (gamma * eta**2) - (1 - a**2 / eta) ** 2
    # eta as a function of the dropped share u, at the order statistic's mean (1−gamma)(1 − 1/n), variance u gamma/n.
    first = r * (1 - a**2 + a * r)
    second = r * (r - a) * (1 - a**2 + a * r) + r * (-2 * a + r + a * r * (r - a))
    slope, curvature = first / (2 * phi), (second + a * first) / (4 * phi**2)
    dropped = 1 - gamma
    bias = (curvature * dropped * gamma / 2 - slope * dropped) / eta - variance / 2 - 1 / gamma
    return bias, variance, eta / gamma, (kappa - eta - a**2 * (eta - 1)) / eta


@dataclass(frozen=True)
class Prediction:
    """Predicted standard deviation by generation, each of shape (generations,).

    Attributes:
        log_sigma, sd_log_sigma: mean and standard deviation of log sigma over replicates.
        median, low, high: of sigma: median and quartiles, log sigma being nearly normal.
    """

    log_sigma: Floats
    sd_log_sigma: Floats

    @property
    def median(self) -> Floats:
        return np.exp(self.log_sigma)

    @property
    def low(self) -> Floats:
        return np.exp(self.log_sigma - _QUARTILE * self.sd_log_sigma)

    @property
    def high(self) -> Floats:
        return np.exp(self.log_sigma + _QUARTILE * self.sd_log_sigma)


_QUARTILE = float(ndtri(0.75))


def predicted_sigma(
    gamma: float,
    sampling_bias: float,
    *,
    generations: int,
    samples: int,
    bias_on: BiasOn = "sigma",
    density: Density = "fitted",
    noise_scale: float = 0.0,
    noise_on: BiasOn = "sigma",
    sigma: float = 1.0,
    mask_real: bool = False,
) -> Prediction:
    """The curve of sigma, generation 0 (a fit to n real samples) included.

    Args:
        noise_scale: of multiplicative estimator noise, estimate · |1 + scale w|; it adds E[log |1 + scale w|] < 0 to
            the drift, which is why a noisy estimator collapses though it is right on average.
        sigma: standard deviation of the real data.
    """
    c = float(contraction(sampling_bias, bias_on=bias_on))
    step = refit_moments(interval(gamma, contraction=c, density=density), samples=samples, density=density)
    real = refit_moments(threshold_of(gamma if mask_real else 1.0), samples=samples, density=density)
    noise_mean, noise_variance = log_noise(noise_scale)
    per = 2.0 if noise_on == "sigma" else 1.0
    t = np.arange(generations)
    mean = float(real.mean_log) + per * noise_mean + t * (math.log(c) + float(step.mean_log) + per * noise_mean)
    variance = float(real.var_log) + per**2 * noise_variance + t * (float(step.var_log) + per**2 * noise_variance)
    return Prediction(log_sigma=math.log(sigma) + mean / 2, sd_log_sigma=np.sqrt(variance) / 2)


def log_noise(scale: float) -> tuple[float, float]:
    """Mean and variance of log |1 + scale·w|, w ~ N(0, 1), by quadrature."""
    if scale == 0:
        return 0.0, 0.0

    def moment(power: int) -> float:
        def density(w: float) -> float:
            return math.log(abs(1 + scale * w)) ** power * math.exp(-w * w / 2) / math.sqrt(2 * math.pi)

        # The logarithm's singularity must be an end of an interval; beyond 12 standard deviations nothing is left.
        pole = max(-12.0, -1 / scale)
        return sum(quad(density, low, high, limit=200)[0] for low, high in ((-12.0, pole), (pole, 12.0)) if low < high)

    mean = moment(1)
    return mean, moment(2) - mean**2


def half_life(gamma: ArrayLike, sampling_bias: ArrayLike, *, bias_on: BiasOn = "sigma") -> Floats:
    """Signed generations until the standard deviation has halved (negative) or doubled (positive), for n → ∞.

    Broadcasts: the stability map is `half_life(gammas[:, None], biases[None, :])`. Infinite on the fixed point.
    """
    rate = np.log(growth(gamma, sampling_bias, bias_on=bias_on)) / 2
    with np.errstate(divide="ignore"):
        return math.log(2) / rate


def _threshold(a: ArrayLike) -> Floats:
    threshold = np.asarray(a, dtype=np.float64)
    if not (threshold >= 0).all():
        raise ConfigError("a", a, "must be 0 or more: |x| below a·sigma is dropped")
    return threshold
