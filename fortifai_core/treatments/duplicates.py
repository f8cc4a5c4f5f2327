"""Deduplication: of documents that are equal, or nearly, the first is kept.

Equal means the same tokens. Nearly means a Jaccard similarity J(A, B) = |A ∩ B| / |A ∪ B| of the sets of runs of n
tokens, estimated by MinHash (Broder 1997): under a random permutation of all runs the first of A is that of B with
probability J, so that the share of equal minima over many permutations estimates it. Candidates are documents that
agree in a whole band of minima (locality-sensitive hashing), as in Lee et al., "Deduplicating training data makes
language models better" (ACL 2022, arXiv 2107.06499).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from fortifai_core.treatments.documents import Document, Documents, Dropped

MINIMA = 128
# A pair at the threshold shares a band with at least this probability.
FOUND = 0.99

Signature = NDArray[np.uint64]


def deduplicate(documents: Documents, *, near: float | None, ngram: int) -> Iterator[Document | Dropped]:
    """Keep the first of equal or nearly equal documents. Holds a digest a document, and its minima where `near`.

    Args:
        near: similarity from which two documents count as one; None: only equal ones do.
        ngram: tokens in a run.
    """
    equal: dict[bytes, str] = {}
    bands: dict[tuple[int, bytes], list[int]] = {}
    kept: list[tuple[str, Signature]] = []
    rows = rows_in_a_band(near) if near is not None else 1
    for document in documents:
        digest = hashlib.blake2b(np.asarray(document.tokens, dtype=np.int64).tobytes(), digest_size=16).digest()
        if digest in equal:
            yield Dropped(document, f"equal to {equal[digest]}", 1.0)
            continue
        equal[digest] = str(document.name)
        if near is None:
            yield document
            continue
        signature = minima(document.tokens, ngram=ngram)
        places = [(band, signature[start : start + rows].tobytes()) for band, start in _bands(rows)]
        candidates = sorted({index for place in places for index in bands.get(place, ())})
        likest = max(((similarity(signature, kept[i][1]), -i) for i in candidates), default=(0.0, 0))
        if candidates and likest[0] >= near:
            yield Dropped(document, f"near {kept[-likest[1]][0]}", likest[0])
            continue
        for place in places:
            bands.setdefault(place, []).append(len(kept))
        kept.append((str(document.name), signature))
        yield document.scored(likest[0])


def minima(tokens: Sequence[int], *, ngram: int) -> Signature:
    """The least hash of any run of `ngram` tokens under each of `MINIMA` permutations: uint64 [MINIMA].

    A document that is shorter than a run is one run.
    """
    ids = np.asarray(tokens, dtype=np.int64)
    windows = np.lib.stride_tricks.sliding_window_view(ids, min(ngram, len(ids)))
    runs = np.unique(np.array([_hash(window.tobytes()) for window in windows], dtype=np.uint64))
    # the same permutations for every text, in every run
    salts = np.random.default_rng(0).integers(0, 2**64, size=MINIMA, dtype=np.uint64)
    least: Signature = np.full(MINIMA, np.iinfo(np.uint64).max, dtype=np.uint64)
    for start in range(0, len(runs), 1024):
        least = np.minimum(least, _mixed(salts[:, None] ^ runs[None, start : start + 1024]).min(axis=1))
    return least


def _mixed(values: Signature) -> Signature:
    """A permutation of 64-bit numbers that leaves no trace of their order (the finalizer of splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def similarity(one: Signature, other: Signature) -> float:
    """Estimated Jaccard similarity of the documents of two signatures."""
    return float(np.mean(one == other))


def rows_in_a_band(near: float) -> int:
    """How many minima make up a band: as many as let a pair of similarity `near` be found with probability `FOUND`.

    Of MINIMA / r bands of r minima, one at least is shared with probability 1 − (1 − near^r)^(MINIMA / r).

    >>> rows_in_a_band(0.8)
    4
    """
    found = (r for r in (32, 16, 8, 4, 2) if 1 - (1 - near**r) ** (MINIMA // r) >= FOUND)
    return next(found, 1)


def _bands(rows: int) -> Iterator[tuple[int, int]]:
    return enumerate(range(0, MINIMA, rows))


def _hash(run: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(run, digest_size=8).digest(), "big")
