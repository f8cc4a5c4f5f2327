"""What is rewritten, and how: documents cut into blocks, each with its context of old text and its random stream.

Nothing here imports torch, so that a rewriting can be planned and counted without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fortifai_core.config.stages import Regeneration
from fortifai_core.seeds import derive_seed


@dataclass(frozen=True)
class TokenisedDocument:
    """One document of a split in its previous version. `id` is unique within the split."""

    id: str
    position: int
    tokens: Sequence[int]


@dataclass(frozen=True)
class Rewriting:
    """How a split is rewritten: as configured, with what the model, the run and the machine add to it.

    Attributes:
        config: blocks, contexts and decoding.
        seed_parts: names of this rewriting (run, generation, split, version); document and start are added to them.
        suppress: ids that are never generated: end of text and the other special tokens.
        pad_id: padding before shorter contexts; never generated either.
        batch_blocks: rows in memory at once with the reference engine; a block decoded with beams counts as that
            many rows.
        budget: positions of keys and values in memory at once with the aligned engine.
    """

    config: Regeneration
    seed_parts: tuple[str | int, ...]
    suppress: Sequence[int]
    pad_id: int
    batch_blocks: int = 256
    budget: int = 32_768


@dataclass(frozen=True)
class OldText:
    """The text that blocks are cut from: a document, or the whole split where contexts run across documents.

    `name` enters the random streams of its blocks.
    """

    name: str
    tokens: np.ndarray


@dataclass(frozen=True)
class Block:
    """Tokens [start, start + length) are rewritten from tokens [context_start, start) of the same document.

    With contexts that run across documents the split is one text: `document` is then 0, and positions count from
    the beginning of that text.
    """

    document: int
    start: int
    length: int
    context_start: int


@dataclass(frozen=True)
class RewrittenBlock:
    """A block's new tokens, int64 [length]; the first `accepted` of them are the old text's, taken over as a draft."""

    block: Block
    tokens: np.ndarray
    accepted: int = 0


@dataclass
class Statistics:
    """What the aligned engine did.

    Attributes:
        rewritten: tokens of all blocks.
        accepted: those of them that the first pass took over from the old text.
        read: tokens read in the first pass; contexts that chunks have in common are counted in each.
        decoded: tokens read after it, one for each token that a decoding step gave.
        steps: decoding steps, each over all open blocks of a batch.
        positions: most positions that the store of keys and values had.
    """

    rewritten: int = 0
    accepted: int = 0
    read: int = 0
    decoded: int = 0
    steps: int = 0
    positions: int = 0


def head_length(config: Regeneration) -> int:
    """How many tokens at the beginning are not rewritten, because they have no full context."""
    return config.context_tokens if config.head_tokens is None else config.head_tokens


def plan_blocks(documents: Sequence[TokenisedDocument], config: Regeneration) -> list[Block]:
    """All blocks that are to be rewritten, in reading order.

    Blocks begin after the head; one nearer to the beginning than `context_tokens` has a shorter context (only
    possible where `head_tokens` is below `context_tokens`). The last block of a document is as long as what is left.
    """
    lengths = [len(document.tokens) for document in documents]
    if config.across_documents:
        lengths = [sum(lengths)]
    blocks = []
    for index, length in enumerate(lengths):
        chunk = 0
        for start in range(head_length(config), length, config.block_tokens):
            size = min(config.block_tokens, length - start)
            cut = max(0, start - config.context_tokens)
            if start + size > chunk + config.longest_input:
                chunk = cut
            context_start = cut if config.context == "cut" else chunk
            blocks.append(Block(document=index, start=start, length=size, context_start=context_start))
    return blocks


def plan_batches(blocks: Sequence[Block], *, size: int) -> list[list[Block]]:
    """Blocks of similar shape side by side: by length first, since a batch takes the steps of its longest block."""
    ordered = sorted(blocks, key=lambda b: (b.length, b.start - b.context_start, b.document, b.start))
    return [ordered[i : i + size] for i in range(0, len(ordered), size)]


def block_uniforms(seed_parts: tuple[str | int, ...], document: str, start: int, *, steps: int) -> np.ndarray:
    """One block's stream: float64 [steps] in [0, 1). A longer stream begins with the shorter one."""
    seed = derive_seed(*seed_parts, document, start)
    return np.random.Generator(np.random.Philox(key=seed)).random(steps)


def uniforms_of(blocks: Sequence[Block], texts: Sequence[OldText], rewriting: Rewriting) -> np.ndarray | None:
    """The streams of some blocks, float64 [blocks, longest block]; None where nothing is sampled."""
    if rewriting.config.decoding != "sample":
        return None
    steps = max(block.length for block in blocks)
    return np.stack(
        [block_uniforms(rewriting.seed_parts, texts[b.document].name, b.start, steps=steps) for b in blocks]
    )
