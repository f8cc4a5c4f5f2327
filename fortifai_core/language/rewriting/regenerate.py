"""Rewrite a split with the current model: D_k^(j) → D_k^(j+1), block by block, each from old text only.

The previous version's tokens are cut into blocks of B = `block_tokens`. Each block is replaced by as many new tokens,
drawn after tokens of the *previous version* before it: exactly C = `context_tokens` of them (`context="cut"`, as the
authors do), or all that stand before it in its document (`context="document"`); a document of more than
`chunk_tokens` is then divided, each chunk beginning with C tokens of the one before. New text is never a context, so
errors spread from version to version and not along the text, and all blocks are independent of each other
(ForTIFAI, Section 5; block, context and decoding of the authors' code stand in `config.Regeneration`).

Two engines give the same tokens: `reference` is transformers' `generate`, block after block; `aligned` reads each
document once, with the old text as a draft of the new (`fortifai_core.language.rewriting.aligned`).

Every block has a random stream of its own, derived from (seed parts, document, start of the block). So neither batch
size nor order nor what stands in the other documents changes a draw, up to floating-point rounding: batches of other
shapes add up in another order, and where two tokens (greedy) or a draw and the edge of a token's interval (sampling)
are closer than that rounding, the choice may differ, and the block's remaining tokens with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fortifai_core.config.stages import Regeneration
from fortifai_core.errors import DataError
from fortifai_core.seeds import derive_seed

STREAM = "stream"


@dataclass(frozen=True)
class TokenisedDocument:
    """One document of a split in its previous version. `id` is unique within the split."""

    id: str
    position: int
    tokens: Sequence[int]


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


@dataclass(frozen=True)
class Block:
    """Tokens [start, start + length) are rewritten from tokens [context_start, start) of the same document.

    With contexts that run across documents the split is one stream: `document` is then 0, and positions count from
    the beginning of the stream.
    """

    document: int
    start: int
    length: int
    context_start: int


# Blocks with their new tokens, and how many of these are the old text's, taken over as a draft.
Rewritten = list[tuple[Block, np.ndarray, int]]


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


def block_uniforms(seed_parts: tuple[str | int, ...], document: str, start: int, *, steps: int) -> np.ndarray:
    """One block's stream: float64 [steps] in [0, 1). A longer stream begins with the shorter one."""
    seed = derive_seed(*seed_parts, document, start)
    return np.random.Generator(np.random.Philox(key=seed)).random(steps)


def plan_batches(blocks: Sequence[Block], *, size: int) -> list[list[Block]]:
    """Blocks of similar shape side by side: by length first, since a batch takes the steps of its longest block."""
    ordered = sorted(blocks, key=lambda b: (b.length, b.start - b.context_start, b.document, b.start))
    return [ordered[i : i + size] for i in range(0, len(ordered), size)]


def _checked(documents: Sequence[TokenisedDocument]) -> list[np.ndarray]:
    if not documents:
        raise DataError("documents", 0, "there is nothing to rewrite: a split has at least one document")
    ids = [document.id for document in documents]
    if len(set(ids)) < len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise DataError("document", twice, "occurs twice in one split, and would draw the same numbers twice")
    return [np.asarray(document.tokens, dtype=np.int64) for document in documents]


def regenerate(
    model: Any,
    documents: Sequence[TokenisedDocument],
    config: Regeneration,
    *,
    seed_parts: tuple[str | int, ...],
    batch_blocks: int,
    suppress: list[int],
    pad_id: int,
    budget: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    statistics: Statistics | None = None,
) -> list[RegeneratedDocument]:
    """The next version of the documents, in the same order and under the same ids.

    Documents no longer than the head are copied (`head="copy"`) or left empty (`head="drop"`); either way they
    are returned, so that none gets lost unnoticed. Across documents, the boundaries stay where they were, counted
    in tokens, and only the head of the whole stream is copied or dropped.

    Args:
        model: a causal language model of transformers, with or without a peft adapter; left in the mode it was in.
        seed_parts: names of this rewriting (run, generation, split, version); document and start are added to them.
        batch_blocks: rows in memory at once with the reference engine; a block decoded with beams counts as that
            many rows.
        suppress: ids that are never generated: end of text and the other special tokens.
        pad_id: padding before shorter contexts; never generated either.
        budget: positions of keys and values in memory at once with the aligned engine; `aligned.BUDGET` by default.
        on_progress: called after each batch with (blocks done, blocks in all).
        statistics: what the aligned engine did is added to it.

    Raises:
        DataError: no documents, or two of the same id.
        ConfigError: the aligned engine cannot run this model.
        StageFailed: the model's logits are not finite.
    """
    from fortifai_core.language.decoding import inference

    old = _checked(documents)
    names = [document.id for document in documents]
    streams = [np.concatenate(old)] if config.across_documents else old
    if config.across_documents:
        names = [STREAM]
    rewritten = [stream.copy() for stream in streams]
    taken = [np.zeros(len(stream), dtype=bool) for stream in streams]
    blocks = plan_blocks(documents, config)
    aligned = config.engine_used == "aligned"
    done = 0
    with inference(model) as core:
        shared: dict[str, Any] = {"names": names, "seed_parts": seed_parts, "suppress": suppress, "pad_id": pad_id}
        if not blocks:
            batches: Iterator[Rewritten] = iter(())
        elif aligned:
            from fortifai_core.language.rewriting.aligned import BUDGET, rewrite_blocks

            counted = statistics if statistics is not None else Statistics()
            shared |= {"budget": budget or BUDGET, "statistics": counted}
            batches = rewrite_blocks(core, streams, blocks, config, **shared)
        else:
            batches = _reference(core, streams, blocks, config, batch_blocks=batch_blocks, **shared)
        for batch in batches:
            for block, tokens, accepted in batch:
                rewritten[block.document][block.start : block.start + block.length] = tokens
                taken[block.document][block.start : block.start + accepted] = True
            done += len(batch)
            if on_progress is not None:
                on_progress(done, len(blocks))
    return _assemble(documents, old, rewritten, taken if aligned else None, config)


def _reference(
    core: Any,
    streams: Sequence[np.ndarray],
    blocks: Sequence[Block],
    config: Regeneration,
    *,
    names: Sequence[str],
    seed_parts: tuple[str | int, ...],
    batch_blocks: int,
    suppress: list[int],
    pad_id: int,
) -> Iterator[Rewritten]:
    """The reference engine: each block with its context as a prompt of `generate`."""
    from fortifai_core.language.decoding import decode

    rows = max(1, batch_blocks // (config.beams if config.decoding == "beam" else 1))
    for batch in plan_batches(blocks, size=rows):
        steps = batch[-1].length
        uniforms = None
        if config.decoding == "sample":
            uniforms = np.stack([block_uniforms(seed_parts, names[b.document], b.start, steps=steps) for b in batch])
        new = decode(
            core,
            [streams[b.document][b.context_start : b.start] for b in batch],
            steps,
            config,
            suppress=suppress,
            pad_id=pad_id,
            uniforms=uniforms,
        )
        yield [(block, tokens[: block.length], 0) for block, tokens in zip(batch, new, strict=True)]


def _assemble(
    documents: Sequence[TokenisedDocument],
    old: list[np.ndarray],
    rewritten: list[np.ndarray],
    taken: list[np.ndarray] | None,
    config: Regeneration,
) -> list[RegeneratedDocument]:
    dropped = head_length(config) if config.head == "drop" else 0
    drops = [dropped] * len(old)
    if config.across_documents:
        ends = np.cumsum([len(tokens) for tokens in old])
        rewritten = np.split(rewritten[0], ends[:-1])
        taken = taken and np.split(taken[0], ends[:-1])
        drops = [max(0, dropped - int(end) + len(tokens)) for end, tokens in zip(ends, old, strict=True)]
    result = []
    for index, (document, drop) in enumerate(zip(documents, drops, strict=True)):
        same = rewritten[index][drop:] == old[index][drop:]
        result.append(
            RegeneratedDocument(
                id=document.id,
                position=document.position,
                tokens=rewritten[index][drop:].tolist(),
                same=same.tolist(),
                kept=int(same.sum()),
                accepted=None if taken is None else int(taken[index].sum()),
            )
        )
    return result
