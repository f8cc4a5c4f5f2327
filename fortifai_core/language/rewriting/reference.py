"""The reference engine: each block with its context as a prompt of transformers' `generate`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from fortifai_core.language.decoding import decode
from fortifai_core.language.rewriting.blocks import Block, OldText, Rewriting, RewrittenBlock, plan_batches, uniforms_of


def reference_blocks(
    core: Any, texts: Sequence[OldText], blocks: Sequence[Block], rewriting: Rewriting
) -> Iterator[list[RewrittenBlock]]:
    """Rewrite the blocks, batch by batch.

    Args:
        core: what `decoding.inference` yields; the caller is inside that block.
        texts: the old text, by `Block.document`.

    Raises:
        StageFailed: the model's logits are not finite.
    """
    config = rewriting.config
    rows = max(1, rewriting.batch_blocks // (config.beams if config.decoding == "beam" else 1))
    for batch in plan_batches(blocks, size=rows):
        rewritten = decode(
            core,
            [texts[b.document].tokens[b.context_start : b.start] for b in batch],
            max(block.length for block in batch),
            config,
            suppress=rewriting.suppress,
            pad_id=rewriting.pad_id,
            uniforms=uniforms_of(batch, texts, rewriting),
        )
        yield [RewrittenBlock(block, tokens[: block.length]) for block, tokens in zip(batch, rewritten, strict=True)]
