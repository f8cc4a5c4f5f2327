"""Weights of real and synthetic text in the training loss, the golden ratio among them.

He, Xu and Cheng, "Golden ratio weighting prevents model collapse" (arXiv 2502.18049): each generation is fitted to n
new real and m synthetic points with weights w and 1 − w of their means. In the long run the error of the fit is least
at

    w* = (√(k² + 4k) − k) / 2,   k = n / m,

which for k = 1 is 1/φ = 0.618…. For the mean of a Gaussian of variance σ² it follows in two lines: the variance V of
the estimate repeats itself when V = w² σ²/n + (1 − w)² (σ²/m + V), so V = σ²/n · (w² + k (1 − w)²) / (w (2 − w)),
whose derivative is zero where w² + k w − k = 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from fortifai_core.treatments.documents import Document, Documents


def golden_weight(real: float, synthetic: float) -> float:
    """The weight of real text that is best for these sizes of both, in any unit.

    >>> round(golden_weight(100, 100), 3)
    0.618
    """
    k = real / synthetic
    return (math.sqrt(k * k + 4 * k) - k) / 2


def weigh(
    documents: Documents, *, real: float | None, read: Callable[[Document], float] = lambda _: 1.0
) -> Iterator[Document]:
    """Give real documents together the weight `real` of the mean loss of a token, and synthetic ones the rest.

    The mean weight of a token is 1, also where documents had weights before. A weight in the loss is w N / n for
    each of n real tokens of N, and (1 − w) N / m for each of m synthetic ones. Without text of both origins all weights
    are 1. Holds two numbers.

    Args:
        real: by default the golden weight for their sizes.
        read: how much of a document's text the generation will read, where a mixture takes a part of it.
    """
    sizes = {True: 0.0, False: 0.0}
    for document in documents:
        sizes[document.real] += read(document) * document.weight * len(document.tokens)
    if not all(sizes.values()):
        yield from documents
        return
    share = golden_weight(sizes[True], sizes[False]) if real is None else real
    total = sizes[True] + sizes[False]
    weights = {True: share * total / sizes[True], False: (1 - share) * total / sizes[False]}
    for document in documents:
        yield document.weighed(weights[document.real] * document.weight).scored(share)
