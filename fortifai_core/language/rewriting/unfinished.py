"""What the first pass left: blocks of a batch that are decoded token by token, side by side; a finished one makes room.

A step feeds every block that goes on its newest token, and gives its next one. The keys and values of a fed token go
into a slot behind the text of its row. Where each token will lie is known before the first step: the blocks of a row
are numbered by what is left of them, the one with most first, so that those which go on are always the first ones,
and the slots of a row are used in the order of their numbers, step by step.
"""

from __future__ import annotations

import numpy as np
import torch

from fortifai_core.language.rewriting.attention import Decode, Slots
from fortifai_core.language.rewriting.batch import Batch
from fortifai_core.language.rewriting.blocks import Statistics
from fortifai_core.language.rewriting.two_parts import TwoParts

# the store is made smaller once no more than this share of its rows has a block that goes on
STILL_READ = 0.75


class Unfinished:
    """The unfinished blocks of a batch, sorted by row and what is left of them, and the store of keys and values.

    Attributes:
        blocks: int64 [unfinished], their indices in the batch.
        row, place: int64 [unfinished], a block's row in the batch, and its number within the row.
        left: int64 [unfinished], tokens that are to be decoded.
        newest: int64 [unfinished], index in the block of the token that step 0 feeds.
        prefix: int64 [unfinished], how many text tokens of its row a block sees; its token of step 0 comes next.
        steps: as many as the block with most to come has tokens left.
        slots_before: int64 [steps + 1, rows of the batch], slots of each row that earlier steps have used.
        owner, at: int64 [rows of the store, slots], which unfinished block a slot is for, and at which position.
        store_row: int64 [rows of the batch], where a row of the batch lies in the store.
    """

    def __init__(self, model: TwoParts, batch: Batch, store: Slots) -> None:
        self.model, self.batch, self.store = model, batch, store
        left = batch.length - batch.known
        open_ = np.nonzero(left)[0]
        self.blocks = open_[np.lexsort((open_, -left[open_], batch.row[open_]))]
        self.row, self.left = batch.row[self.blocks], left[self.blocks]
        self.place = places_of(self.row)
        self.newest = batch.known[self.blocks] - 1
        self.prefix = batch.start[self.blocks] + batch.accepted[self.blocks]
        self.steps = int(self.left.max(initial=0))
        self.slots_before = np.zeros((self.steps + 1, store.rows), dtype=int)
        self.owner = np.full((store.rows, store.slots), -2)
        self.at = np.zeros_like(self.owner)
        self.store_row = np.arange(store.rows)
        for step in range(self.steps):
            going = self._going(step)
            self.slots_before[step + 1] = self.slots_before[step] + np.bincount(self.row[going], minlength=store.rows)
            row, slot = self.row[going], self._slot(going, step)
            self.owner[row, slot], self.at[row, slot] = going, self.prefix[going] + step

    def decode(self, statistics: Statistics) -> None:
        """Give every block all its tokens; what was done is added to `statistics`."""
        for step in range(self.steps):
            going = self._going(step)
            self._make_room(np.unique(self.row[going]))
            self.store.layout = self._layout(going, step)
            blocks, newest = self.blocks[going], self.newest[going] + step
            fed, position = self.batch.tokens[blocks, newest], self.prefix[going] + step
            hidden = self.model.hidden(self._tensor(fed)[None], self._tensor(position)[None], self.store)[0]
            self.batch.tokens[blocks, newest + 1] = self.batch.choose(self.model, hidden, blocks, newest + 1)
            statistics.steps += 1
            statistics.decoded += len(going)
        self.batch.known[self.blocks] = self.batch.length[self.blocks]

    def _going(self, step: int) -> np.ndarray:
        """The numbers of the blocks that a step feeds."""
        return np.nonzero(self.left > step)[0]

    def _slot(self, going: np.ndarray, step: int) -> np.ndarray:
        """Where in its row the token goes that a step feeds to each of these blocks."""
        return self.slots_before[step, self.row[going]] + self.place[going]

    def _make_room(self, rows: np.ndarray) -> None:
        """Keep these rows only, where that is worth the copy."""
        if len(rows) > STILL_READ * self.store.rows:
            return
        kept = self.store_row[rows]
        self.store.keep(self._tensor(kept))
        self.owner, self.at = self.owner[kept], self.at[kept]
        self.store_row[rows] = np.arange(len(rows))

    def _layout(self, going: np.ndarray, step: int) -> Decode:
        """What a step's forward pass means to attention."""
        row, place, slot = self.store_row[self.row[going]], self.place[going], self._slot(going, step)
        grid = np.full((self.store.rows, int(place.max()) + 1), -1)
        grid[row, place] = going
        return Decode(
            row=self._tensor(row),
            place=self._tensor(place),
            slot=self._tensor(slot),
            prefix=self._tensor(np.where(grid < 0, 0, self.prefix[grid])),
            position=self._tensor(np.where(grid < 0, 0, self.prefix[grid] + step)),
            block=self._tensor(grid),
            owner=self._tensor(self.owner),
            at=self._tensor(self.at),
            text=self.store.text,
            used=int(slot.max()) + 1,
            dtype=self.model.core.dtype,
        )

    def _tensor(self, values: np.ndarray) -> torch.Tensor:
        return self.model.tensor(values)


def places_of(rows: np.ndarray) -> np.ndarray:
    """The number of each element among those before it that have the same value; equal values stand together."""
    firsts = np.concatenate([[True], rows[1:] != rows[:-1]])
    return np.arange(len(rows)) - np.nonzero(firsts)[0][np.cumsum(firsts) - 1]
