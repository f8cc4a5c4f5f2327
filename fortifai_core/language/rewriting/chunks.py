"""Blocks that share a context's beginning make a chunk, chunks of like length a batch within a budget of positions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from fortifai_core.language.rewriting.blocks import Block


@dataclass(frozen=True)
class Chunk:
    """Blocks of one document with the same beginning of their contexts: they share keys and values."""

    document: int
    start: int
    blocks: tuple[Block, ...]

    @property
    def text(self) -> int:
        """Tokens that are read: up to the one before the last."""
        return self.blocks[-1].start + self.blocks[-1].length - 1 - self.start

    @property
    def slots(self) -> int:
        """New tokens that are read at most: every block's but its last one."""
        return sum(block.length - 1 for block in self.blocks)


def plan_chunks(blocks: Sequence[Block]) -> list[Chunk]:
    """Blocks with one document and one beginning of the context, together; the longest first."""
    ordered = sorted(blocks, key=lambda b: (b.document, b.context_start, b.start))
    groups = groupby(ordered, key=lambda b: (b.document, b.context_start))
    chunks = [Chunk(document, start, tuple(group)) for (document, start), group in groups]
    return sorted(chunks, key=lambda c: (-c.text, c.document, c.start))


def plan_chunk_batches(chunks: Sequence[Chunk], *, budget: int) -> Iterator[list[Chunk]]:
    """Chunks of similar length, as many as the budget of positions holds; at least one."""
    batch: list[Chunk] = []
    text = slots = 0
    for chunk in chunks:
        text, slots = max(text, chunk.text), max(slots, chunk.slots)
        if batch and (len(batch) + 1) * (text + slots) > budget:
            yield batch
            batch, text, slots = [], chunk.text, chunk.slots
        batch.append(chunk)
    if batch:
        yield batch
