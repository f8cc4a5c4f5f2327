"""What counting tokens says of a text and of a model: unigram KL, perplexity, distinct n-grams.

**Unigram KL.** The paper's Figures 7 and A3 show "KL divergence between the distribution of model-generated outputs
and the original training data distribution" and give neither formula nor direction. In its authors' notebook these
are token frequencies of synthetic text against those of real text, with a floor of 1e-10. Here:

    D(synthetic ‖ real) = Σ_v p(v) ln(p(v) / max(q(v), floor)),   p: synthetic, q: real token frequencies,

in nats; tokens that the synthetic text lacks contribute nothing, so this direction sees what was invented rather than
what was forgotten. A token that is missing from the real text costs up to ln(1/floor) = 23 nats times its frequency.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np

from fortifai_core.errors import DataError
from fortifai_core.language.scoring import log_probabilities
from fortifai_core.language.shared_contexts import ScoredSequence

# batches of sequences that are sorted by length together
SORTED_BATCHES = 32


class UnigramCounts:
    """Token counts, added to document by document, so that no text has to be in memory whole."""

    def __init__(self, vocabulary: int) -> None:
        self.counts = np.zeros(vocabulary, dtype=np.int64)

    def add(self, tokens: Sequence[int] | np.ndarray) -> None:
        """Count one document's tokens.

        Raises:
            DataError: an id outside the vocabulary.
        """
        ids = np.asarray(tokens, dtype=np.int64)
        if ids.size and (ids.min() < 0 or ids.max() >= len(self.counts)):
            stranger = int(ids.min()) if ids.min() < 0 else int(ids.max())
            raise DataError(
                "token id", stranger, f"is not in the vocabulary of {len(self.counts)}: another tokenizer's?"
            )
        self.counts += np.bincount(ids, minlength=len(self.counts))

    @property
    def total(self) -> int:
        """Tokens counted."""
        return int(self.counts.sum())

    def kl_from(self, real: UnigramCounts, *, floor: float = 1e-10) -> float:
        """D(self ‖ real) in nats; see the module's formula.

        Raises:
            DataError: either side has no tokens, or the vocabularies differ.
        """
        if len(self.counts) != len(real.counts):
            raise DataError("vocabulary", len(self.counts), f"the real text's has {len(real.counts)} entries")
        for name, side in (("synthetic tokens", self), ("real tokens", real)):
            if not side.total:
                raise DataError(name, 0, "there is no text to compare; was all of it shorter than the dropped head?")
        p, q = self.counts / self.total, real.counts / real.total
        seen = p > 0
        return float(np.sum(p[seen] * np.log(p[seen] / np.maximum(q[seen], floor))))


def windows(token_sequences: Iterable[Sequence[int]], length: int) -> Iterator[Sequence[int]]:
    """Sequences cut into windows of at most `length` tokens; one token alone predicts nothing and is left out."""
    for tokens in token_sequences:
        for start in range(0, len(tokens), length):
            window = tokens[start : start + length]
            if len(window) > 1:
                yield window


def perplexity(
    model: Any, token_sequences: Iterable[Sequence[int]], *, batch: int, sequence_length: int
) -> tuple[float, int]:
    """exp of the mean negative log-probability per token on held-out text, and the tokens it was taken over.

    Raises as `losses_by_sequence`, which it sums up.
    """
    losses, tokens = losses_by_sequence(model, token_sequences, batch=batch, sequence_length=sequence_length)
    return perplexity_of(losses, tokens), int(tokens.sum())


def perplexity_of(losses: np.ndarray, tokens: np.ndarray) -> float:
    """exp of the mean loss, from what `losses_by_sequence` returns."""
    with np.errstate(over="ignore"):
        return float(np.exp(np.float64(losses.sum() / tokens.sum())))


def losses_by_sequence(
    model: Any, token_sequences: Iterable[Sequence[int]], *, batch: int, sequence_length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Negative log-probability in nats, and the tokens it was summed over: float64 [sequence] each.

    Sequences are cut into windows of `sequence_length` that do not overlap. The first token of a window is given, not
    scored; a sequence of one token has 0 and 0. The sequences are read as they come, so they may be more than memory
    holds.

    Raises:
        DataError: no sequence has two tokens.
        StageFailed: the model's logits are not numbers.
    """
    if sequence_length < 2:
        raise ValueError(f"a window of {sequence_length} tokens predicts nothing")
    losses: list[float] = []
    tokens: list[int] = []

    def numbered() -> Iterator[tuple[int, Sequence[int]]]:
        for number, sequence in enumerate(token_sequences):
            losses.append(0.0)
            tokens.append(0)
            yield from ((number, window) for window in windows([sequence], sequence_length))

    pieces = numbered()
    while group := list(islice(pieces, batch * SORTED_BATCHES)):
        scored = [ScoredSequence(window, len(window) - 1) for _, window in group]
        for (number, _), logs in zip(group, log_probabilities(model, scored, batch=batch, shared=False), strict=True):
            losses[number] -= float(logs.sum())
            tokens[number] += len(logs)
    if not sum(tokens):
        raise DataError("validation tokens", 0, "perplexity needs a text of two tokens at least")
    return np.array(losses), np.array(tokens, dtype=np.float64)


def distinct_n(token_sequences: Iterable[Sequence[int]], *, n: int) -> float:
    """Share of different n-grams among all n-grams, in (0, 1]; falls as text repeats itself (Li et al. 2016).

    N-grams do not cross from one sequence into the next. The share falls with the amount of text as well: compare
    texts of the same size only.

    Raises:
        DataError: no sequence has n tokens.
    """
    grams = [
        np.lib.stride_tricks.sliding_window_view(np.asarray(tokens, dtype=np.int64), n)
        for tokens in token_sequences
        if len(tokens) >= n
    ]
    if not grams:
        raise DataError("tokens", 0, f"there is no sequence of {n} tokens")
    every = np.concatenate(grams)
    return len(np.unique(every, axis=0)) / len(every)
