"""Gaussian mixtures as arrays: density, sampling, moments, and the distances by which a collapse is measured.

A mixture is `weights` (k,), `means` (k, d) and `covariances` (k, d, d). Natural logarithms throughout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Mixture:
    """One Gaussian mixture: `weights` (k,), `means` (k, d), `covariances` (k, d, d)."""

    weights: Floats
    means: Floats
    covariances: Floats


def log_density(mixture: Mixture, points: Floats) -> Floats:
    """log p(x) of each of `points` (n, d), in nats: shape (n,)."""
    from scipy.special import logsumexp

    dimensions = points.shape[1]
    terms = np.empty((len(points), len(mixture.weights)))
    for k, (mean, covariance) in enumerate(zip(mixture.means, mixture.covariances, strict=True)):
        root = np.linalg.cholesky(covariance)
        scaled = np.linalg.solve(root, (points - mean).T)
        log_determinant = 2.0 * np.log(np.diag(root)).sum()
        terms[:, k] = -0.5 * (dimensions * np.log(2 * np.pi) + log_determinant + (scaled**2).sum(axis=0))
    with np.errstate(divide="ignore"):  # a component of weight 0 adds nothing
        return np.asarray(logsumexp(terms + np.log(mixture.weights), axis=1), dtype=np.float64)


def draw(mixture: Mixture, *, count: int, generator: np.random.Generator) -> Floats:
    """`count` points from the mixture: shape (count, d)."""
    chosen = generator.choice(len(mixture.weights), size=count, p=mixture.weights / mixture.weights.sum())
    noise = generator.standard_normal((count, mixture.means.shape[1]))
    roots = np.linalg.cholesky(mixture.covariances)
    moved: Floats = mixture.means[chosen] + np.einsum("nij,nj->ni", roots[chosen], noise)
    return moved


def total_covariance(mixture: Mixture) -> Floats:
    """The covariance of the whole distribution (d, d): within components and between their means."""
    mean = mixture.weights @ mixture.means
    away = mixture.means - mean
    within = np.einsum("k,kij->ij", mixture.weights, mixture.covariances)
    between: Floats = np.einsum("k,ki,kj->ij", mixture.weights, away, away)
    return within + between


def surviving(first: Mixture, now: Mixture, *, radius: float) -> int:
    """How many components of `first` have a component of `now` with its mean within `radius` of their own sigmas.

    The distance is Mahalanobis', under the covariance of the component of `first`.
    """
    alive = 0
    for mean, covariance in zip(first.means, first.covariances, strict=True):
        scaled = np.linalg.solve(np.linalg.cholesky(covariance), (now.means - mean).T)
        alive += bool((np.sqrt((scaled**2).sum(axis=0)) <= radius).any())
    return alive


def directions(count: int, *, dimensions: int, seed: int) -> Floats:
    """`count` unit vectors, uniform on the sphere: shape (count, d). In one dimension there is only one."""
    if dimensions == 1:
        return np.ones((1, 1))
    drawn = np.random.default_rng(seed).standard_normal((count, dimensions))
    unit: Floats = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    return unit


def sliced_wasserstein(one: Floats, other: Floats, *, along: Floats) -> float:
    """Mean over the directions `along` (l, d) of the Wasserstein-1 distance between the projections of two samples.

    The samples may differ in size. Bonneel et al. 2015 (with the absolute in place of the squared distance).
    """
    from scipy.stats import wasserstein_distance

    distances = [wasserstein_distance(one @ direction, other @ direction) for direction in along]
    return float(np.mean(distances))


def fit(
    points: Floats,
    *,
    components: int,
    covariance: str,
    regularization: float,
    iterations: int,
    restarts: int,
    seed: int,
) -> tuple[Mixture, bool]:
    """The mixture that EM fits (scikit-learn), and whether it converged. Covariances always in full."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    model = GaussianMixture(
        n_components=components,
        covariance_type=covariance,
        reg_covar=regularization,
        max_iter=iterations,
        n_init=restarts,
        random_state=seed % 2**32,
    )
    with warnings.catch_warnings():
        # that EM did not converge is returned; that a collapsed sample has fewer points than clusters is measured
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(points)
    return Mixture(model.weights_, model.means_, _in_full(model, points.shape[1])), bool(model.converged_)


def _in_full(model: Any, dimensions: int) -> Floats:
    """scikit-learn's covariances, in whatever shape the type keeps them, as (k, d, d)."""
    kept, k = np.asarray(model.covariances_, dtype=np.float64), len(model.weights_)
    identity = np.eye(dimensions)
    shapes = {
        "full": lambda: kept,
        "tied": lambda: np.repeat(kept[None], k, axis=0),
        "diag": lambda: kept[:, :, None] * identity,
        "spherical": lambda: kept[:, None, None] * identity,
    }
    full: Floats = shapes[model.covariance_type]()
    return full
