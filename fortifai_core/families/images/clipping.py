"""Which terms an arm masks: those with −log p below a floor, fixed or from the distribution of confidences."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fortifai_core.errors import ConfigError
from fortifai_core.families.base import Mask, NoMask, ThresholdMask
from fortifai_core.families.images.config import DynamicIntersectionMask, DynamicQuantileMask

# EM on more values changes the third digit of gamma and costs seconds an epoch.
_FITTED = 20_000


def is_dynamic(mask: Mask) -> bool:
    """Whether the arm's threshold is set anew each epoch."""
    return isinstance(mask, DynamicQuantileMask | DynamicIntersectionMask)


def fixed_floor(mask: Mask) -> float:
    """The least −log p that counts, before any confidence is known: −log gamma, or −inf where nothing is masked.

    Raises:
        ConfigError: an arm that a VAE does not have.
    """
    if isinstance(mask, ThresholdMask):
        return floor_of(mask.gamma)
    if isinstance(mask, NoMask) or is_dynamic(mask):
        return -math.inf
    remedy = "a VAE's arms are none, threshold, dynamic-quantile and dynamic-intersection"
    raise ConfigError("arms.type", mask.type, remedy)


def dynamic_floor(mask: Mask, nll: NDArray[Any]) -> float:
    """The least −log p that counts in a dynamic arm, from the −log p of pixels."""
    if isinstance(mask, DynamicQuantileMask):
        return quantile_floor(nll, quantile=mask.quantile)
    assert isinstance(mask, DynamicIntersectionMask)
    return floor_of(intersection_gamma(np.exp(-nll)))


def floor_of(gamma: float) -> float:
    """−log gamma; −inf for gamma = 1, which masks nothing, not even a term that was rounded to 0."""
    return -math.log(gamma) if gamma < 1 else -math.inf


def gamma_of(floor: float) -> float:
    """The threshold on p, 1 where nothing is masked; so near 1 that it cannot be told from it, it is 1 as well."""
    return min(1.0, math.exp(-floor)) if floor > -math.inf else 1.0


def quantile_floor(nll: NDArray[Any], *, quantile: float) -> float:
    """−log of the quantile of the confidences exp(−nll): taken on −log p, where confidences near 1 still differ."""
    return float(np.quantile(nll, 1 - quantile))


def intersection_gamma(confidence: NDArray[Any]) -> float:
    """Where two Gaussians fitted to the confidences cross between their means; 1 (mask nothing) if they do not.

    Fitted by EM (scikit-learn), which begins with k-means, to at most 20,000 values evenly spread over the sorted ones.
    """
    from sklearn.mixture import GaussianMixture

    values = np.sort(confidence, axis=None)
    if values[0] == values[-1]:
        return 1.0
    if len(values) > _FITTED:
        values = values[np.linspace(0, len(values) - 1, _FITTED).astype(int)]
    fitted = GaussianMixture(2, random_state=0, reg_covar=1e-8).fit(values[:, None])
    low, high = np.argsort(fitted.means_[:, 0])
    return gaussian_crossing(
        *((fitted.weights_[i], fitted.means_[i, 0], math.sqrt(fitted.covariances_[i, 0, 0])) for i in (low, high))
    )


def gaussian_crossing(low: tuple[float, float, float], high: tuple[float, float, float]) -> float:
    """x between the means of two weighted Gaussians (weight, mean, sigma) where their densities are equal; or 1.

    log w − log σ − (x−μ)²/2σ² is the same for both: a quadratic in x. Between the means one density only falls and
    the other only rises, so at most one root lies there.
    """
    (w0, m0, s0), (w1, m1, s1) = low, high
    a = 1 / (2 * s1**2) - 1 / (2 * s0**2)
    b = m0 / s0**2 - m1 / s1**2
    c = m1**2 / (2 * s1**2) - m0**2 / (2 * s0**2) + math.log(w0 * s1 / (w1 * s0))
    roots = np.roots([a, b, c]) if abs(a) > 1e-12 * abs(b) else np.array([-c / b])
    between = [float(root.real) for root in roots if abs(root.imag) < 1e-9 and m0 < root.real < m1]
    return between[0] if between and 0 < between[0] < 1 else 1.0
