"""MAUVE: the area under the divergence curve worked by hand, and what the clusters make of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.integrate import quad

from fortifai_core.errors import DataError
from fortifai_core.measures.mauve import frontier_area, mauve


def test_two_texts_without_a_common_cluster_by_hand() -> None:
    """KL(q ‖ r) = −ln(1 − λ), KL(p ‖ r) = −ln λ: the area is ∫ λ^c c(1 − λ)^(c−1) dλ = c·B(c + 1, c)."""
    apart = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    assert frontier_area(*apart) == pytest.approx(1 / 252, abs=1e-6)
    assert frontier_area(*apart, scale=1) == pytest.approx(1 / 2, abs=1e-6)


def test_equal_histograms_are_at_one() -> None:
    same = np.array([0.2, 0.5, 0.3])
    assert frontier_area(same, same) == pytest.approx(1)


def test_one_text_that_lost_a_cluster_by_hand() -> None:
    """p = (1/2, 1/2), q = (1, 0): r = (1 − λ/2, λ/2), and KL(q ‖ r) = −ln(1 − λ/2)."""
    c = 5.0

    def y(x: float) -> float:
        half = 1 - x ** (1 / c)  # λ/2, of x = (1 − λ/2)^c, where λ ≤ 1
        if half > 0.5:
            return 1.0
        kept = 0.5 * math.log(0.5 / (1 - half)) + (0.5 * math.log(0.5 / half) if half else math.inf)
        return math.exp(-c * kept)

    by_hand, _ = quad(y, 0, 1, points=[0.5**c])
    p, q = np.array([0.5, 0.5]), np.array([1.0, 0.0])
    assert frontier_area(p, q) == pytest.approx(by_hand, abs=1e-5)
    assert frontier_area(q, p) == pytest.approx(by_hand, abs=1e-5)


def clouds(*shares: tuple[int, int]) -> np.ndarray:
    """Embeddings around so many directions, far from each other: (direction, how many)."""
    random = np.random.default_rng(3)
    return np.concatenate([np.eye(6)[[at] * n] + random.normal(0, 0.01, (n, 6)) for at, n in shares])


def test_embeddings_are_told_apart_by_their_clusters() -> None:
    both, one, other = clouds((0, 10), (1, 10)), clouds((0, 20)), clouds((2, 20))
    assert mauve(both, clouds((0, 10), (1, 10))) == pytest.approx(1)
    assert mauve(both, one) == pytest.approx(frontier_area(np.array([0.5, 0.5]), np.array([1.0, 0.0])))
    assert mauve(one, other) == pytest.approx(1 / 252, abs=1e-6)
    assert mauve(one, other) == mauve(one, other)


def test_a_text_that_repeats_one_piece() -> None:
    alike = np.ones((30, 4))
    assert mauve(alike, alike) == 1
    assert mauve(alike, -alike) == pytest.approx(1 / 252, abs=1e-6)


def test_no_text_has_no_distance() -> None:
    with pytest.raises(DataError, match="written"):
        mauve(np.ones((3, 2)), np.ones((0, 2)))
