"""Which member of a pool a document of its text is from: stated shares, drawn once for a text and a seed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np


def writers(documents: int, shares: Sequence[float], *, seed: int) -> list[int]:
    """For every document, in order, the place in `shares` of the member whose version is read.

    The documents are put in a random order and dealt out in one piece a member, so that each has its share of them to
    within one document. Every document is read once.

    Args:
        shares: of the members; they sum to 1.
    """
    order = np.random.default_rng(seed).permutation(documents)
    ends = [0, *(int(documents * end + 0.5) for end in accumulate(shares))]
    ends[-1] = documents  # whatever the sum was rounded to
    found = np.empty(documents, dtype=np.int64)
    for member, (start, end) in enumerate(pairwise(ends)):
        found[order[start:end]] = member
    return [int(member) for member in found]
