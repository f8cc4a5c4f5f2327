"""The aligned engine: one pass over the old text gives the context of all its blocks, and their drafts' verdict.

Every block's context is old text, so one teacher-forced pass over a document yields keys and values for all of its
blocks at once. The same pass says what the model would choose at each position after the *old* tokens before it. As
long as that is the old token itself, it is also what the model would choose in rewriting: the block's longest such
prefix is taken over, and the first deviation comes with it. What is left is decoded token by token, all unfinished
blocks of a batch side by side, each reading its document's keys and values where they lie (`attention`).

Choices are functions of the context and of the block's own uniforms (`decoding.choose`), so a draft only saves work:
the outcome is the reference engine's token for token, greedy or sampled, but for choices that are closer to another
one than floating-point rounding.

Memory is bounded by `Rewriting.budget`: positions in the store of keys and values, text and new tokens and padding
together. One row of the store holds a document, or a chunk of it, and never more than twice the longest input; so the
bound is max(budget, 2 · longest input), whatever the corpus.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from fortifai_core.language.rewriting.attention import Prefill, Slots, attention_of
from fortifai_core.language.rewriting.batch import Batch
from fortifai_core.language.rewriting.blocks import Block, OldText, Rewriting, RewrittenBlock, Statistics
from fortifai_core.language.rewriting.chunks import plan_chunk_batches, plan_chunks
from fortifai_core.language.rewriting.two_parts import TwoParts
from fortifai_core.language.rewriting.unfinished import Unfinished

# tokens that go through the model at a time in the first pass: few enough for a processor's cache
PREFILL_TOKENS = 1_024


def aligned_blocks(
    core: Any, texts: Sequence[OldText], blocks: Sequence[Block], rewriting: Rewriting, statistics: Statistics
) -> Iterator[list[RewrittenBlock]]:
    """Rewrite the blocks, batch by batch.

    Args:
        core: what `decoding.inference` yields; the caller is inside that block.
        texts: the old text, by `Block.document`.
        statistics: what was done is added to it.

    Raises:
        ConfigError: the model cannot be run in this way, or has too few positions.
        StageFailed: the model's logits are not finite.
    """
    model = TwoParts(core, rewriting)
    budget = max(rewriting.budget, 2 * rewriting.config.longest_input)
    with attention_of(core):
        for chunks in plan_chunk_batches(plan_chunks(blocks), budget=budget):
            batch = Batch(chunks, texts, rewriting)
            store = Slots(rows=len(chunks), text=int(batch.reads.max()), slots=int(batch.slots.max()))
            statistics.positions = max(statistics.positions, store.rows * (store.text + store.slots))
            for rows, hidden in read(model, batch, store):
                verify(model, batch, hidden, first=rows.start, last=rows.stop)
            statistics.read += int(batch.reads.sum())
            statistics.accepted += int(batch.accepted.sum())
            statistics.rewritten += int(batch.length.sum())
            Unfinished(model, batch, store).decode(statistics)
            yield batch.rewritten()


def read(model: TwoParts, batch: Batch, store: Slots) -> Iterator[tuple[slice, torch.Tensor]]:
    """The first pass: rows of the batch, a few at a time, with the states after each of their tokens."""
    first = 0
    while first < store.rows:
        length = int(batch.reads[first])  # the longest of what follows
        rows = slice(first, min(store.rows, first + max(1, PREFILL_TOKENS // max(1, length))))
        store.layout = Prefill(first=first)
        positions = torch.arange(length, device=model.device)[None]
        yield rows, model.hidden(model.tensor(batch.text[rows, :length]), positions, store)
        first = rows.stop


def verify(model: TwoParts, batch: Batch, hidden: torch.Tensor, *, first: int, last: int) -> None:
    """Take over each block's longest prefix of old tokens that are the model's choice, and its choice after that.

    The first place of every block is looked at, then the next two of those that agreed, then four: a block that
    deviates early costs few logits.
    """
    begin, end = np.searchsorted(batch.row, [first, last])
    blocks, done, width = np.arange(begin, end), 0, 1
    while len(blocks):
        index = np.arange(done, done + width) + np.zeros((len(blocks), 1), dtype=int)
        valid = index < batch.length[blocks, None]
        of, index = blocks[np.nonzero(valid)[0]], index[valid]
        before = batch.start[of] + index - 1
        chosen = np.full(valid.shape, -1)
        states = hidden[model.tensor(batch.row[of] - first), model.tensor(before)]
        chosen[valid] = batch.choose(model, states, of, index)
        old = np.full(valid.shape, -1)
        old[valid] = batch.tokens[of, index]
        agreed = np.cumprod(chosen == old, axis=1).sum(1)  # beyond the end both are −1
        accepted = np.minimum(done + agreed, batch.length[blocks])
        batch.accepted[blocks] = batch.known[blocks] = accepted
        deviating = np.nonzero(agreed < width)[0]
        at = blocks[deviating]
        batch.tokens[at, accepted[deviating]] = chosen[deviating, agreed[deviating]]
        batch.known[at] += 1
        done, width = done + width, 2 * width
        blocks = blocks[(agreed == width // 2) & (batch.length[blocks] > done)]
