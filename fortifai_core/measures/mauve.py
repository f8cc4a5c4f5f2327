"""MAUVE: how near what a model writes is to real text, over clusters of embeddings.

Pillutla et al., "MAUVE: Measuring the Gap Between Neural Text and Human Text using Divergence Frontiers" (NeurIPS 2021,
arXiv 2102.01454). Both texts' embeddings are quantised together by k-means; between the two histograms p and q runs the
curve of exp(−c·KL(q ‖ r)) and exp(−c·KL(p ‖ r)), r = λp + (1 − λ)q, and MAUVE is the area under it: 1 where the
histograms are the same, and c·B(c + 1, c) where no cluster holds both texts (1/252 for c = 5).
"""

from __future__ import annotations

import numpy as np
from scipy.special import rel_entr

from fortifai_core.errors import DataError

SCALE = 5.0  # c: the paper's
_VARIANCE = 0.9  # what PCA keeps of it before k-means, as in the paper's appendix
_REPEATS, _ROUNDS, _SEED = 5, 500, 0
_POINTS = 4097  # of λ: the area's error is below 1e-6
WINDOWS_A_CLUSTER = 10


def mauve(real: np.ndarray, written: np.ndarray) -> float:
    """MAUVE of two texts by their embeddings, in (0, 1]; 1: no difference shows.

    Args:
        real, written: float [n, width] and [m, width], an embedding of each piece of text. There are a tenth as many
            clusters as pieces of the shorter text, and at least two.

    Raises:
        DataError: one of the texts has no pieces.
    """
    for name, embeddings in (("real", real), ("written", written)):
        if not len(embeddings):
            raise DataError(name, 0, "there is no text whose distance could be measured")
    clusters = max(2, round(min(len(real), len(written)) / WINDOWS_A_CLUSTER))
    labels = _clustered(np.concatenate([real, written]), clusters)
    p, q = (np.bincount(part, minlength=clusters) for part in (labels[: len(real)], labels[len(real) :]))
    return frontier_area(p / p.sum(), q / q.sum())


def frontier_area(p: np.ndarray, q: np.ndarray, *, scale: float = SCALE) -> float:
    """The area under the divergence curve of two histograms, float [k] each, in (0, 1]."""
    shares = np.linspace(0.0, 1.0, _POINTS)[1:-1, None]
    between = shares * p + (1 - shares) * q
    of_q, of_p = (np.exp(-scale * rel_entr(side, between).sum(1)) for side in (q, p))
    # λ = 0: r = q, and λ = 1: r = p, where the other text may have no place at all
    x, y = np.concatenate([[1.0], of_q, [0.0]]), np.concatenate([[0.0], of_p, [1.0]])
    return float(np.trapezoid(y[::-1], x[::-1]))


def _clustered(embeddings: np.ndarray, clusters: int) -> np.ndarray:
    """The cluster of each embedding: int [n]. In one thread: sums in another order could move a border."""
    import warnings

    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.preprocessing import normalize
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of a text that repeats itself: fewer pieces than clusters
        directions = normalize(np.asarray(embeddings, dtype=np.float64))
        if not np.ptp(directions, axis=0).any():  # all the same: nothing to tell apart
            return np.zeros(len(directions), dtype=np.int64)
        kept = PCA(n_components=_VARIANCE, svd_solver="full").fit_transform(directions)
        found = KMeans(clusters, n_init=_REPEATS, max_iter=_ROUNDS, random_state=_SEED).fit(kept)
    return np.asarray(found.labels_, dtype=np.int64)
