"""Who wrote which document of a pool: by hand, and the shares that come out."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from fortifai_core.corpus.pooling import writers


def test_documents_are_dealt_out_in_the_order_of_the_draw() -> None:
    """Seed 7 draws 8 documents in an order of its own; a quarter, a quarter and a half are 2, 2 and 4 of them."""
    order = np.random.default_rng(7).permutation(8).tolist()
    expected = dict(zip(order, [0, 0, 1, 1, 2, 2, 2, 2], strict=True))
    assert writers(8, [0.25, 0.25, 0.5], seed=7) == [expected[n] for n in range(8)]


@pytest.mark.parametrize(
    ("documents", "shares", "counts"),
    [
        (10, [0.5, 0.5], [5, 5]),
        (10, [0.1, 0.9], [1, 9]),
        (5, [0.5, 0.5], [3, 2]),  # the odd one is the first's
        (10, [1 / 3, 1 / 3, 1 / 3], [3, 4, 3]),  # dealt out up to 3.33, 6.67 and 10
        (3, [0.05, 0.95], [0, 3]),  # less than half a document is none
        (1, [0.4, 0.6], [0, 1]),
        (0, [0.5, 0.5], [0, 0]),
    ],
)
def test_each_has_its_share_to_within_a_document(documents: int, shares: list[float], counts: list[int]) -> None:
    found = Counter(writers(documents, shares, seed=1))
    assert [found[member] for member in range(len(shares))] == counts


def test_a_seed_is_one_draw_and_another_is_another() -> None:
    halves = [0.5, 0.5]
    assert writers(100, halves, seed=1) == writers(100, halves, seed=1) != writers(100, halves, seed=2)


def test_the_documents_of_a_smaller_share_are_among_those_of_a_larger() -> None:
    tenth, quarter = (
        {n for n, w in enumerate(writers(200, [share, 1 - share], seed=3)) if w == 0} for share in (0.1, 0.25)
    )
    assert tenth < quarter
