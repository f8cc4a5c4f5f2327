"""The aligned engine: one pass over the old text gives the context of all its blocks, and their drafts' verdict.

Every block's context is old text, so one teacher-forced pass over a document yields keys and values for all of its
blocks at once. The same pass says what the model would choose at each position after the *old* tokens before it. As
long as that is the old token itself, it is also what the model would choose in rewriting: the block's longest such
prefix is taken over, and the first deviation comes with it. What is left is decoded token by token, all unfinished
blocks of a batch side by side, each reading its document's keys and values where they lie (`aligned_attention`).

Choices are functions of the context and of the block's own uniforms (`decoding.choose`), so a draft only saves work:
the outcome is the reference engine's token for token, greedy or sampled, but for choices that are closer to another
one than floating-point rounding.

Memory is bounded by `budget`: positions in the store of keys and values, text and new tokens and padding together.
One row of the store holds a document, or a chunk of it, and never more than twice the longest input; so the bound
is max(budget, 2 · longest input), whatever the corpus.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch

from fortifai_core.config.stages import Regeneration
from fortifai_core.errors import ConfigError
from fortifai_core.language.decoding import choose
from fortifai_core.language.rewriting.attention import (
    Decode,
    Prefill,
    Slots,
    attention_of,
    cache_keyword,
    reference_instead,
)
from fortifai_core.language.rewriting.regenerate import Block, Statistics, block_uniforms

BUDGET = 32_768
# tokens that go through the model at a time in the first pass: few enough for a processor's cache
PREFILL_TOKENS = 2_048
# logits that exist at once
LOGITS = 2**22


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
    groups = [(key, tuple(group)) for key, group in groupby(ordered, key=lambda b: (b.document, b.context_start))]
    chunks = [Chunk(document, start, group) for (document, start), group in groups]
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


class Model:
    """The model in two parts: text to hidden states, and hidden states to the tokens chosen after them.

    Raises:
        ConfigError: the two parts are not the whole of it, or its positions are too few.
    """

    def __init__(self, core: Any, config: Regeneration, *, suppress: Sequence[int], pad_id: int) -> None:
        self.core, self.config, self.pad_id = core, config, pad_id
        self.device, self.cache_keyword = core.device, cache_keyword(core.base_model)
        self.suppress = torch.tensor(sorted({*suppress, pad_id}), device=self.device)
        text = core.config.get_text_config()
        self.cap = getattr(text, "final_logit_softcapping", None)
        self.vocabulary = text.vocab_size
        positions = getattr(text, "max_position_embeddings", None)
        if positions is not None and positions < config.longest_input:
            field = "context_tokens" if config.context == "cut" else "chunk_tokens"
            remedy = f"inputs of {config.longest_input} tokens are asked for, the model has {positions} positions"
            raise ConfigError(f"regeneration.{field}", getattr(config, field), remedy)

    def check(self) -> None:
        """Compare with the model's own forward pass, on a few tokens."""
        ids = torch.arange(min(8, self.vocabulary), device=self.device)[None]
        whole = self.core(input_ids=ids, use_cache=False).logits.float()
        parts = self.logits(self.core.base_model(input_ids=ids, use_cache=False).last_hidden_state)
        if not torch.allclose(whole, parts, rtol=1e-3, atol=1e-3, equal_nan=True):
            raise reference_instead(f"{type(self.core).__name__} does more than its head between states and logits")

    def hidden(self, ids: torch.Tensor, positions: torch.Tensor, store: Slots) -> torch.Tensor:
        """States [rows, length, width] after the tokens, whose keys and values go where the store's layout says."""
        given = {"position_ids": positions, self.cache_keyword: store, "use_cache": True, "layout": store.layout}
        output: torch.Tensor = self.core.base_model(input_ids=ids, **given).last_hidden_state
        return output

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.core.get_output_embeddings()(hidden).float()
        return torch.tanh(logits / self.cap) * self.cap if self.cap is not None else logits

    def choices(self, hidden: torch.Tensor, seen: np.ndarray | None, uniforms: np.ndarray | None) -> np.ndarray:
        """Tokens int64 [rows] after states [rows, width]; `seen` and `uniforms` as `decoding.choose` takes them."""
        size = max(1, LOGITS // self.vocabulary)
        parts = []
        for first in range(0, len(hidden), size):
            part = slice(first, first + size)
            parts.append(
                choose(
                    self.logits(hidden[part]),
                    self.config,
                    suppress=self.suppress,
                    seen=None if seen is None else torch.as_tensor(seen[part], device=self.device),
                    uniforms=None if uniforms is None else torch.as_tensor(uniforms[part], device=self.device),
                )
            )
        return torch.cat(parts).cpu().numpy()


class Batch:
    """Some chunks on their way: arrays over their blocks.

    Attributes:
        text: int64 [rows, width], the chunks' old tokens, padded.
        row, start, length: int64 [blocks], where a block's old tokens lie in `text`.
        tokens: int64 [blocks, longest block]: the new tokens, and behind them still the old ones.
        known: int64 [blocks], how many of the block's new tokens are known.
        accepted: int64 [blocks], how many of them are the old text's, taken over in the first pass.
    """

    def __init__(
        self, chunks: Sequence[Chunk], streams: Sequence[np.ndarray], uniforms: np.ndarray | None, *, pad_id: int
    ) -> None:
        self.blocks = [block for chunk in chunks for block in chunk.blocks]
        self.row = np.repeat(np.arange(len(chunks)), [len(chunk.blocks) for chunk in chunks])
        self.length = np.array([block.length for block in self.blocks])
        self.start = np.array([block.start - block.context_start for block in self.blocks])
        self.reads = np.array([chunk.text for chunk in chunks])
        self.slots = np.array([chunk.slots for chunk in chunks])
        self.text = np.full((len(chunks), self.reads.max() + 1), pad_id)
        for row, chunk in enumerate(chunks):
            self.text[row, : chunk.text + 1] = streams[chunk.document][chunk.start : chunk.start + chunk.text + 1]
        places = self.start[:, None] + np.arange(self.length.max())
        self.tokens = self.text[self.row[:, None], np.minimum(places, self.text.shape[1] - 1)]
        self.accepted = np.zeros_like(self.length)
        self.known = np.zeros_like(self.length)
        self.uniforms, self.pad_id = uniforms, pad_id

    def seen(self, blocks: np.ndarray, own: np.ndarray) -> np.ndarray:
        """int64 [n, text + block]: context and the first `own` new tokens of each of the blocks, padded."""
        text, tokens = self.text[self.row[blocks]], self.tokens[blocks]
        text = np.where(np.arange(text.shape[1]) < self.start[blocks, None], text, self.pad_id)
        tokens = np.where(np.arange(tokens.shape[1]) < own[:, None], tokens, self.pad_id)
        return np.concatenate([text, tokens], axis=1)

    def choose(self, model: Model, hidden: torch.Tensor, blocks: np.ndarray, index: np.ndarray) -> np.ndarray:
        """The token for place `index` [n] of each of `blocks` [n], from the states [n, width] before it."""
        seen = self.seen(blocks, index) if model.config.repetition_penalty != 1 else None
        return model.choices(hidden, seen, None if self.uniforms is None else self.uniforms[blocks, index])


def rewrite_blocks(
    core: Any,
    streams: Sequence[np.ndarray],
    blocks: Sequence[Block],
    config: Regeneration,
    *,
    names: Sequence[str],
    seed_parts: tuple[str | int, ...],
    suppress: Sequence[int],
    pad_id: int,
    budget: int = BUDGET,
    statistics: Statistics,
) -> Iterator[list[tuple[Block, np.ndarray, int]]]:
    """The blocks' new tokens, batch by batch.

    Args:
        core: what `decoding.inference` yields; the caller is inside that block.
        streams: the old text, by `Block.document`; `names` of them go into the blocks' random streams.
        budget: positions that the store of keys and values may hold; see the module's text.
        statistics: what was done is added to it.

    Yields:
        (block, its new tokens int64 [length], how many of them the first pass took over from the old text).

    Raises:
        ConfigError: the model cannot be run in this way, or has too few positions.
        StageFailed: the model's logits are not finite.
    """
    model = Model(core, config, suppress=suppress, pad_id=pad_id)
    budget = max(budget, 2 * config.longest_input)
    model.check()
    with attention_of(core):
        for chunks in plan_chunk_batches(plan_chunks(blocks), budget=budget):
            uniforms = None
            if config.decoding == "sample":
                steps = max(block.length for chunk in chunks for block in chunk.blocks)
                uniforms = np.stack(
                    [
                        block_uniforms(seed_parts, names[block.document], block.start, steps=steps)
                        for chunk in chunks
                        for block in chunk.blocks
                    ]
                )
            batch = Batch(chunks, streams, uniforms, pad_id=pad_id)
            store = Slots(rows=len(chunks), text=int(batch.reads.max()), slots=int(batch.slots.max()))
            statistics.positions = max(statistics.positions, store.rows * (store.text + store.slots))
            for rows, hidden in read(model, batch, store):
                verify(model, batch, hidden, first=rows.start, last=rows.stop)
            statistics.read += int(batch.reads.sum())
            statistics.accepted += int(batch.accepted.sum())
            statistics.rewritten += int(batch.length.sum())
            decode_rest(model, batch, store, statistics)
            yield [
                (block, tokens[: block.length], int(accepted))
                for block, tokens, accepted in zip(batch.blocks, batch.tokens, batch.accepted, strict=True)
            ]


def read(model: Model, batch: Batch, store: Slots) -> Iterator[tuple[slice, torch.Tensor]]:
    """The first pass: rows of the batch, a few at a time, with the states after each of their tokens."""
    first = 0
    while first < store.rows:
        length = int(batch.reads[first])  # the longest of what follows
        rows = slice(first, min(store.rows, first + max(1, PREFILL_TOKENS // max(1, length))))
        ids = torch.as_tensor(batch.text[rows, :length], device=model.device)
        store.layout = Prefill(first=first)
        yield rows, model.hidden(ids, torch.arange(length, device=model.device)[None], store)
        first = rows.stop


def verify(model: Model, batch: Batch, hidden: torch.Tensor, *, first: int, last: int) -> None:
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
        rows = torch.as_tensor(batch.row[of] - first, device=model.device)
        before = torch.as_tensor(batch.start[of] + index - 1, device=model.device)
        chosen = np.full(valid.shape, -1)
        chosen[valid] = batch.choose(model, hidden[rows, before], of, index)
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


def decode_rest(model: Model, batch: Batch, store: Slots, statistics: Statistics) -> None:
    """Token by token, all blocks that are not finished, side by side; a finished one makes room."""
    open_ = np.nonzero(batch.known < batch.length)[0]
    if not len(open_):
        return
    # by document, and within it the block with most to come first, so that a block's number in its document and
    # the slots of its tokens are known beforehand: slots are in the order in which they are used
    left = batch.length - batch.known
    open_ = open_[np.lexsort((open_, -left[open_], batch.row[open_]))]
    prefix, first = batch.start + batch.accepted, batch.known - 1
    rank = np.zeros_like(left)
    rank[open_] = places_of(batch.row[open_])
    rows = np.unique(batch.row[open_])
    slots_before = np.zeros((store.rows, int(left[open_].max()) + 1), dtype=int)
    for step in range(slots_before.shape[1] - 1):
        count = np.bincount(batch.row[open_][left[open_] > step], minlength=store.rows)
        slots_before[:, step + 1] = slots_before[:, step] + count
    owner = np.full((store.rows, store.slots), -2)
    at = np.zeros_like(owner)
    for step in range(slots_before.shape[1] - 1):
        going = open_[left[open_] > step]
        slot = slots_before[batch.row[going], step] + rank[going]
        owner[batch.row[going], slot], at[batch.row[going], slot] = going, prefix[going] + step
    here = np.arange(store.rows)  # where in the store a row of the batch lies
    for step in range(int(left[open_].max())):
        going = open_[left[open_] > step]
        rows = np.unique(batch.row[going])
        if len(rows) <= 0.75 * store.rows:
            store.keep(torch.as_tensor(here[rows], device=model.device))
            owner, at = owner[here[rows]], at[here[rows]]
            here[rows] = np.arange(len(rows))
        row, place = here[batch.row[going]], rank[going]
        slot = slots_before[batch.row[going], step] + place
        grid = np.full((store.rows, int(place.max()) + 1), -1)
        grid[row, place] = going
        position = prefix[going] + step
        fed = batch.tokens[going, first[going] + step]

        def tensor(values: Any) -> torch.Tensor:
            return torch.as_tensor(values, device=model.device)

        store.layout = Decode(
            row=tensor(row),
            place=tensor(place),
            slot=tensor(slot),
            prefix=tensor(np.where(grid < 0, 0, prefix[grid])),
            position=tensor(np.where(grid < 0, 0, prefix[grid] + step)),
            block=tensor(grid),
            owner=tensor(owner),
            at=tensor(at),
            text=store.text,
            used=int(slot.max()) + 1,
            dtype=model.core.dtype,
        )
        hidden = model.hidden(tensor(fed)[None], tensor(position)[None], store)[0]
        index = first[going] + step + 1
        batch.tokens[going, index] = batch.choose(model, hidden, going, index)
        statistics.steps += 1
        statistics.decoded += len(going)
    batch.known[open_] = batch.length[open_]


def places_of(rows: np.ndarray) -> np.ndarray:
    """The number of each element among those before it that have the same value; equal values stand together."""
    firsts = np.concatenate([[True], rows[1:] != rows[:-1]])
    return np.arange(len(rows)) - np.nonzero(firsts)[0][np.cumsum(firsts) - 1]
