"""Bootstrap over clusters (documents, samples) of whatever is computed from totals; it needs numpy alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fortifai_core.errors import InputError
from fortifai_core.interval import Interval

Floats = NDArray[np.float64]

# Of the resampled worlds, how many may have no value before there is no interval.
_UNDEFINED = 0.025


def cluster_weights(rng: np.random.Generator, size: int, clusters: int) -> Floats:
    """How often each cluster was drawn: [size, clusters]."""
    picks = rng.integers(clusters, size=(size, clusters)) + clusters * np.arange(size)[:, None]
    return np.bincount(picks.ravel(), minlength=size * clusters).reshape(size, clusters).astype(float)


def bootstrap_totals(
    columns: Floats, statistic: Callable[[Floats], Floats], *, draws: int = 1000, seed: int = 0, level: float = 0.95
) -> Interval:
    """A statistic of the columns' totals, with its percentile interval over clusters drawn with replacement.

    A ratio of two totals, a difference of two ratios on the same clusters: whatever is computed of the totals.

    Args:
        columns: float64 [clusters, columns].
        statistic: totals [worlds, columns] → float64 [worlds]; NaN where it has no value.
        draws: resampled worlds.
        seed: of the resampling; the same seed gives the same interval.

    Returns:
        The interval; without ends where there is one cluster only, or too many worlds have no value.

    Raises:
        InputError: there are no clusters.
    """
    if not len(columns):
        raise InputError("clusters", 0, "there is nothing to resample")
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        estimate = float(statistic(columns.sum(axis=0)[None])[0])
        if len(columns) < 2 or not np.isfinite(estimate):
            return Interval(estimate, np.nan, np.nan, level)
        drawn = statistic(cluster_weights(np.random.default_rng(seed), draws, len(columns)) @ columns)
    there = drawn[np.isfinite(drawn)]
    if len(there) < (1 - _UNDEFINED) * draws:
        return Interval(estimate, np.nan, np.nan, level)
    low, high = (float(q) for q in np.quantile(there, [(1 - level) / 2, (1 + level) / 2]))
    return Interval(estimate, min(low, estimate), max(high, estimate), level)
