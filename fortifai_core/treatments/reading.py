"""What a language model makes of documents: the probability of each of their tokens, window by window.

A document is read as in training, where it stands behind an end of text. Each token of it is foretold, the first one
too; a window begins with the last token of the one before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import numpy as np

from fortifai_core.treatments.documents import Document

T = TypeVar("T")


@dataclass(frozen=True)
class Reader:
    """A model that reads documents.

    Attributes:
        model: token ids [rows, length] → object with `.logits` [rows, length, vocabulary].
        first: the id of the end of text.
        window: tokens that are read at once, the first of them not foretold; at least 2.
        batch: windows at a time. No result depends on it but by rounding.
    """

    model: Any
    first: int
    window: int
    batch: int

    def windows(self, document: Document) -> list[list[int]]:
        """The windows of a document; each but the last has `window` tokens."""
        tokens = [self.first, *document.tokens]
        return [tokens[start : start + self.window] for start in range(0, len(tokens) - 1, self.window - 1)]

    def losses(self, documents: Iterable[Document]) -> Iterator[tuple[Document, float]]:
        """Each document with its mean −log p, in nats: the logarithm of its perplexity."""
        from fortifai_core.language.scoring import log_probabilities
        from fortifai_core.language.shared_contexts import ScoredSequence

        for group in batches(documents, self.batch):
            rows = [(n, window) for n, document in enumerate(group) for window in self.windows(document)]
            scored = [ScoredSequence(window, len(window) - 1) for _, window in rows]
            found = log_probabilities(self.model, scored, batch=self.batch, shared=False)
            sums = [0.0] * len(group)
            for (n, _), values in zip(rows, found, strict=True):
                sums[n] -= float(np.sum(values))
            yield from ((document, total / len(document.tokens)) for document, total in zip(group, sums, strict=True))

    def logits(self, documents: Iterable[Document]) -> Iterator[tuple[Document, Iterator[Any]]]:
        """Each document with the logits from which its tokens were foretold: parts, float32 [tokens, vocabulary].

        A part is made when it is asked for, so that no more than a few windows' logits exist at once.
        """
        from fortifai_core.language.decoding import inference

        with inference(self.model) as core:
            for document in documents:
                yield document, self._parts(core, document)

    def _parts(self, core: Any, document: Document) -> Iterator[Any]:
        import torch

        from fortifai_core.language.scoring import LOGITS_AT_ONCE, text_setting

        device = next((p.device for p in core.parameters()), torch.device("cpu"))
        rows = max(1, min(self.batch, LOGITS_AT_ONCE // (self.window * (text_setting(core, "vocab_size") or 1))))
        for group in batches(self.windows(document), rows):
            longest = max(map(len, group))
            ids = torch.tensor([[*row, *[self.first] * (longest - len(row))] for row in group], device=device)
            logits = core(input_ids=ids).logits.float()
            yield torch.cat([of_row[: len(row) - 1] for of_row, row in zip(logits, group, strict=True)])


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """The items in lists of `size`; the last may be shorter."""
    source = iter(items)
    while group := list(islice(source, size)):
        yield group
