"""Rewrite a split with the current model: D_k^(j) → D_k^(j+1), block by block, each from old text only.

The previous version's tokens are cut into blocks of B = `block_tokens`. Each block is replaced by as many new tokens,
drawn after tokens of the *previous version* before it: exactly C = `context_tokens` of them (`context="cut"`, as the
authors do), or all that stand before it in its document (`context="document"`); a document of more than
`chunk_tokens` is then divided, each chunk beginning with C tokens of the one before. New text is never a context, so
errors spread from version to version and not along the text, and all blocks are independent of each other
(ForTIFAI, Section 5; block, context and decoding of the authors' code stand in `config.stages.Regeneration`).

Two engines give the same tokens: `reference` is transformers' `generate`, block after block; `aligned` reads each
document once, with the old text as a draft of the new.

Every block has a random stream of its own, derived from (seed parts, document, start of the block). So neither batch
size nor order nor what stands in the other documents changes a draw, up to floating-point rounding: batches of other
shapes add up in another order, and where two tokens (greedy) or a draw and the edge of a token's interval (sampling)
are closer than that rounding, the choice may differ, and the block's remaining tokens with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fortifai_core.errors import DataError
from fortifai_core.language.decoding import inference
from fortifai_core.language.rewriting.aligned import aligned_blocks
from fortifai_core.language.rewriting.blocks import (
    OldText,
    Rewriting,
    Statistics,
    TokenisedDocument,
    head_length,
    plan_blocks,
)
from fortifai_core.language.rewriting.reference import reference_blocks

# the name of the text that all documents make together, where contexts run across them
STREAM = "stream"


@dataclass(frozen=True)
class RegeneratedDocument:
    """The document in its next version.

    Attributes:
        tokens: as many as before; with `head="drop"` fewer by the head, down to none.
        same: for each of `tokens`, whether it is the previous version's token in the same place.
        kept: how many of them are.
        accepted: how many were taken over from the previous version without a decoding step; null where the
            reference engine rewrote, which has no drafts.
    """

    id: str
    position: int
    tokens: list[int]
    same: list[bool]
    kept: int
    accepted: int | None = None


def regenerate(
    model: Any,
    documents: Sequence[TokenisedDocument],
    rewriting: Rewriting,
    *,
    on_progress: Callable[[int, int], None] | None = None,
    statistics: Statistics | None = None,
) -> list[RegeneratedDocument]:
    """The next version of the documents, in the same order and under the same ids.

    Documents no longer than the head are copied (`head="copy"`) or left empty (`head="drop"`); either way they
    are returned, so that none gets lost unnoticed. Across documents, the boundaries stay where they were, counted
    in tokens, and only the head of the whole text is copied or dropped.

    Args:
        model: a causal language model of transformers, with or without a peft adapter; left in the mode it was in.
        on_progress: called after each batch with (blocks done, blocks in all).
        statistics: what the aligned engine did is added to it.

    Raises:
        DataError: no documents, or two of the same id.
        ConfigError: the aligned engine cannot run this model.
        StageFailed: the model's logits are not finite.
    """
    config = rewriting.config
    old = _checked(documents)
    texts = [OldText(document.id, tokens) for document, tokens in zip(documents, old, strict=True)]
    if config.across_documents:
        texts = [OldText(STREAM, np.concatenate(old))]
    new = [text.tokens.copy() for text in texts]
    accepted = [np.zeros(len(text.tokens), dtype=bool) for text in texts]
    blocks = plan_blocks(documents, config)
    aligned = config.engine_used == "aligned"
    if blocks:
        done = 0
        with inference(model) as core:
            if aligned:
                batches = aligned_blocks(core, texts, blocks, rewriting, statistics or Statistics())
            else:
                batches = reference_blocks(core, texts, blocks, rewriting)
            for batch in batches:
                for rewritten in batch:
                    text, start = rewritten.block.document, rewritten.block.start
                    new[text][start : start + rewritten.block.length] = rewritten.tokens
                    accepted[text][start : start + rewritten.accepted] = True
                done += len(batch)
                if on_progress is not None:
                    on_progress(done, len(blocks))
    lengths = np.array([len(tokens) for tokens in old])
    starts = np.zeros_like(lengths)
    if config.across_documents:
        starts = np.cumsum(lengths) - lengths
        new, accepted = np.split(new[0], starts[1:]), np.split(accepted[0], starts[1:])
    drops = np.maximum(0, head_length(config) - starts) if config.head == "drop" else np.zeros_like(lengths)
    return [
        _next_version(document, *of_document, drafts=aligned)
        for document, *of_document in zip(documents, old, new, accepted, drops.tolist(), strict=True)
    ]


def _checked(documents: Sequence[TokenisedDocument]) -> list[np.ndarray]:
    if not documents:
        raise DataError("documents", 0, "there is nothing to rewrite: a split has at least one document")
    ids = [document.id for document in documents]
    if len(set(ids)) < len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise DataError("document", twice, "occurs twice in one split, and would draw the same numbers twice")
    return [np.asarray(document.tokens, dtype=np.int64) for document in documents]


def _next_version(
    document: TokenisedDocument, old: np.ndarray, new: np.ndarray, accepted: np.ndarray, drop: int, *, drafts: bool
) -> RegeneratedDocument:
    same = new[drop:] == old[drop:]
    return RegeneratedDocument(
        id=document.id,
        position=document.position,
        tokens=new[drop:].tolist(),
        same=same.tolist(),
        kept=int(same.sum()),
        accepted=int(accepted.sum()) if drafts else None,
    )
