"""Plans of blocks, chunks and batches: every token is rewritten once, from old text, within what was promised."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fortifai_core.config.stages import Regeneration
from fortifai_core.language.rewriting.blocks import TokenisedDocument, head_length, plan_batches, plan_blocks
from fortifai_core.language.rewriting.chunks import plan_chunk_batches, plan_chunks

LENGTHS = st.lists(st.integers(0, 120), min_size=1, max_size=8)


@st.composite
def rewritings(draw: st.DrawFn) -> Regeneration:
    block, context = draw(st.integers(1, 12)), draw(st.integers(1, 20))
    return Regeneration(
        block_tokens=block,
        context_tokens=context,
        context=draw(st.sampled_from(["cut", "document"])),
        chunk_tokens=draw(st.none() | st.integers(max(2, block + context), 80)),
        head_tokens=draw(st.none() | st.integers(1, 30)),
        across_documents=draw(st.booleans()),
    )


def documents_of(lengths: list[int]) -> list[TokenisedDocument]:
    return [TokenisedDocument(f"d{index}", index, [7] * length) for index, length in enumerate(lengths)]


@given(LENGTHS, rewritings())
def test_blocks_cover_every_token_after_the_head_once_and_see_old_text_before_them(
    lengths: list[int], config: Regeneration
) -> None:
    blocks = plan_blocks(documents_of(lengths), config)
    texts = [sum(lengths)] if config.across_documents else lengths
    covered = [(b.document, place) for b in blocks for place in range(b.start, b.start + b.length)]
    assert covered == [(index, place) for index, size in enumerate(texts) for place in range(head_length(config), size)]
    for block in blocks:
        assert 1 <= block.length <= config.block_tokens
        whole = min(block.start, config.context_tokens)
        assert block.start - block.context_start >= whole, "as much context as there is, up to C"
        assert block.start + block.length - block.context_start <= config.longest_input
        if config.context == "cut":
            assert block.start - block.context_start == whole


@given(LENGTHS, rewritings(), st.integers(1, 400))
def test_chunks_and_their_batches_hold_every_block_once_within_the_budget(
    lengths: list[int], config: Regeneration, budget: int
) -> None:
    blocks = plan_blocks(documents_of(lengths), config)
    chunks = plan_chunks(blocks)
    assert sorted((b for c in chunks for b in c.blocks), key=lambda b: (b.document, b.start)) == blocks
    for chunk in chunks:
        assert {(b.document, b.context_start) for b in chunk.blocks} == {(chunk.document, chunk.start)}
        assert 0 <= chunk.text < config.longest_input
    batches = list(plan_chunk_batches(chunks, budget=budget))
    assert [chunk for batch in batches for chunk in batch] == chunks
    for batch in batches:
        positions = len(batch) * (max(c.text for c in batch) + max(c.slots for c in batch))
        assert len(batch) == 1 or positions <= budget


@given(LENGTHS, rewritings(), st.integers(1, 9))
def test_batches_of_the_reference_engine_hold_every_block_once(
    lengths: list[int], config: Regeneration, size: int
) -> None:
    blocks = plan_blocks(documents_of(lengths), config)
    batches = plan_batches(blocks, size=size)
    assert sorted((b for batch in batches for b in batch), key=lambda b: (b.document, b.start)) == blocks
    assert all(len(batch) == size for batch in batches[:-1]) and all(batches)
    shapes = [block.length for batch in batches for block in batch]
    assert shapes == sorted(shapes)
