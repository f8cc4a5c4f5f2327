"""Some chunks on their way from old text to new: what is known of each of their blocks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from fortifai_core.language.rewriting.blocks import OldText, Rewriting, RewrittenBlock, uniforms_of
from fortifai_core.language.rewriting.chunks import Chunk
from fortifai_core.language.rewriting.two_parts import TwoParts


class Batch:
    """Arrays over the blocks of some chunks.

    Attributes:
        text: int64 [rows, width], the chunks' old tokens, padded.
        reads, slots: int64 [rows], the chunks' `text` and `slots`.
        row, start, length: int64 [blocks], where a block's old tokens lie in `text`.
        tokens: int64 [blocks, longest block]: the new tokens, and behind them still the old ones.
        known: int64 [blocks], how many of the block's new tokens are known.
        accepted: int64 [blocks], how many of them are the old text's, taken over in the first pass.
        uniforms: float64 [blocks, longest block], the blocks' random streams; or None.
    """

    def __init__(self, chunks: Sequence[Chunk], texts: Sequence[OldText], rewriting: Rewriting) -> None:
        self.blocks = [block for chunk in chunks for block in chunk.blocks]
        self.row = np.repeat(np.arange(len(chunks)), [len(chunk.blocks) for chunk in chunks])
        self.length = np.array([block.length for block in self.blocks])
        self.start = np.array([block.start - block.context_start for block in self.blocks])
        self.reads = np.array([chunk.text for chunk in chunks])
        self.slots = np.array([chunk.slots for chunk in chunks])
        self.text = np.full((len(chunks), self.reads.max() + 1), rewriting.pad_id)
        for row, chunk in enumerate(chunks):
            end = chunk.start + chunk.text + 1
            self.text[row, : chunk.text + 1] = texts[chunk.document].tokens[chunk.start : end]
        places = self.start[:, None] + np.arange(self.length.max())
        self.tokens = self.text[self.row[:, None], np.minimum(places, self.text.shape[1] - 1)]
        self.accepted = np.zeros_like(self.length)
        self.known = np.zeros_like(self.length)
        self.uniforms = uniforms_of(self.blocks, texts, rewriting)
        self.pad_id = rewriting.pad_id

    def seen(self, blocks: np.ndarray, count: np.ndarray) -> np.ndarray:
        """int64 [n, text + block]: context and the first `count` [n] new tokens of each of `blocks` [n], padded."""
        text, tokens = self.text[self.row[blocks]], self.tokens[blocks]
        text = np.where(np.arange(text.shape[1]) < self.start[blocks, None], text, self.pad_id)
        tokens = np.where(np.arange(tokens.shape[1]) < count[:, None], tokens, self.pad_id)
        return np.concatenate([text, tokens], axis=1)

    def choose(self, model: TwoParts, hidden: torch.Tensor, blocks: np.ndarray, index: np.ndarray) -> np.ndarray:
        """The token for place `index` [n] of each of `blocks` [n], from the states [n, width] before it."""
        seen = self.seen(blocks, index) if model.config.repetition_penalty != 1 else None
        return model.choices(hidden, seen, None if self.uniforms is None else self.uniforms[blocks, index])

    def rewritten(self) -> list[RewrittenBlock]:
        """The blocks with their new tokens."""
        return [
            RewrittenBlock(block, tokens[: block.length], int(accepted))
            for block, tokens, accepted in zip(self.blocks, self.tokens, self.accepted, strict=True)
        ]
