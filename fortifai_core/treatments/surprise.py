"""Surprise filter: a model is trained on the documents that surprise it most.

Gambetta et al., "Learning by surprise" (arXiv 2410.12341): training on the documents of lowest perplexity makes a model
collapse fastest, training on those of highest perplexity keeps it from collapsing, without knowledge of who wrote
them. Perplexity is that under the model that is trained next, exp of the mean −log p of a document's tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from fortifai_core.treatments.documents import Document, Documents, Dropped

Losses = Callable[[Iterable[Document]], Iterator[tuple[Document, float]]]


def surprise_filter(documents: Documents, *, losses: Losses, keep: float) -> Iterator[Document | Dropped]:
    """Keep the share `keep` of documents with the highest loss, at least one; of equal ones those that come first.

    Holds one number a document.

    Args:
        losses: each document with its mean −log p, in nats.
    """
    found = np.array([loss for _, loss in losses(documents)])
    if not len(found):
        return
    kept = math.ceil(round(keep * len(found), 9))  # 7% of 100 are 7
    chosen = set(np.argsort(-found, kind="stable")[:kept].tolist())
    least = min(found[index] for index in chosen)
    for index, document in enumerate(documents):
        loss = float(found[index])
        if index in chosen:
            yield document.scored(loss)
        else:
            yield Dropped(document, f"loss below {least:.4g}", loss)
