"""Keys and values of many documents in one fixed store, and the attention that decodes their blocks side by side.

`Slots` is a transformers `Cache`; `attend` is registered as an attention function of transformers under `NAME`. Both
are public interfaces (`Cache.update`, `AttentionInterface`), so that the models' own code runs unaltered, whatever
they do around attention. What a forward pass means is said by its layout, passed through the model as a keyword:

- `Prefill`: rows of the store are read as text, from their first token on, causally.
- `Decode`: one packed row of queries. Query n belongs to document `row[n]`; it sees that document's tokens before
  `prefix[n]`, and the new tokens of its own block up to its own position. Keys and values are written where
  they belong once, and read where they lie: the prefix is shared by all blocks of a document and is never copied.

A layer with a sliding window sees of these what is nearer than its window, as in transformers' own masks.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface
from transformers.cache_utils import Cache

from fortifai_core.errors import ConfigError

NAME = "fortifai-aligned"


def reference_instead(what: str) -> ConfigError:
    """The error for a model that the aligned engine does not know how to run."""
    return ConfigError("regeneration.engine", "aligned", f"{what}; use the engine `reference` for this model")


def cache_keyword(model: Any) -> str:
    """The name under which the model's forward takes a `Cache`: transformers changed it in 5.24."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


@dataclass
class Prefill:
    """Rows [first, first + rows) of the store, from position 0 on."""

    first: int
    _masks: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)

    def mask(self, length: int, window: int | None, device: torch.device) -> torch.Tensor | None:
        """bool [length, length]; None for plain causal attention, which needs none."""
        if window is None or window >= length:
            return None
        if (length, window) not in self._masks:
            at = torch.arange(length, device=device)
            distance = at[:, None] - at[None, :]
            self._masks[length, window] = (distance >= 0) & (distance < window)
        return self._masks[length, window]


@dataclass
class Decode:
    """N queries in one packed row, over the store's first `rows` rows.

    Attributes:
        row, place: int64 [N], document and the query's number within it: cells of a grid [rows, places].
        slot: int64 [N], where in its row each query's key and value go: behind the text.
        prefix: int64 [rows, places], how many of the row's text tokens a query sees; 0 where no query is.
        position: int64 [rows, places], the query's position.
        block: int64 [rows, places], the query's block; −1 where no query is.
        owner, at: int64 [rows, slots], the block and the position that belong to a slot.
        used: slots that are in use, from the first on.
    """

    row: torch.Tensor
    place: torch.Tensor
    slot: torch.Tensor
    prefix: torch.Tensor
    position: torch.Tensor
    block: torch.Tensor
    owner: torch.Tensor
    at: torch.Tensor
    text: int
    used: int
    dtype: torch.dtype
    _masks: dict[int | None, torch.Tensor] = field(default_factory=dict)

    def mask(self, window: int | None) -> torch.Tensor:
        """Additive [rows, 1, places, text + used]: 0 where a query may look, −inf elsewhere."""
        if window not in self._masks:
            text = torch.arange(self.text, device=self.prefix.device)
            owner, at = self.owner[:, None, : self.used], self.at[:, None, : self.used]
            old = text < self.prefix[..., None]
            new = (owner == self.block[..., None]) & (at <= self.position[..., None])
            seen = torch.cat([old, new], -1)
            if window is not None:
                key = torch.cat([text.expand(len(self.at), -1), self.at[:, : self.used]], -1)
                seen &= self.position[..., None] - key[:, None] < window
            seen[..., 0] |= self.block < 0  # an empty cell looks somewhere, or its softmax would be 0/0
            mask = torch.zeros(seen.shape, dtype=self.dtype, device=seen.device)
            self._masks[window] = mask.masked_fill_(~seen, -torch.inf)[:, None]
        return self._masks[window]


class Slots(Cache):
    """Keys and values [rows, heads, text + slots, head size] of each layer, allocated once at that size.

    Args:
        rows: documents (or chunks of documents) in the store.
        text: positions for the text of a row.
        slots: positions behind it for new tokens, of all blocks of a row.
    """

    def __init__(self, *, rows: int, text: int, slots: int) -> None:
        super().__init__(layers=[])
        self.rows, self.text, self.slots = rows, text, slots
        self.stored: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.layout: Prefill | Decode | None = None

    @property
    def bytes(self) -> int:
        return sum(part.nbytes for pair in self.stored for part in pair)

    def _layer(self, index: int, like: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        while len(self.stored) <= index:
            size = (self.rows, like.shape[1], self.text + self.slots)
            self.stored.append((like.new_zeros(*size, like.shape[3]), value.new_zeros(*size, value.shape[3])))
        return self.stored[index]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store what the layout says, and give what `attend` then reads."""
        keys, values = self._layer(layer_idx, key_states, value_states)
        layout = self.layout
        if isinstance(layout, Prefill):
            rows, length = slice(layout.first, layout.first + key_states.shape[0]), key_states.shape[2]
            keys[rows, :, :length] = key_states
            values[rows, :, :length] = value_states
            return key_states, value_states
        assert layout is not None
        keys[layout.row, :, self.text + layout.slot] = key_states[0].transpose(0, 1)
        values[layout.row, :, self.text + layout.slot] = value_states[0].transpose(0, 1)
        end = self.text + layout.used
        return keys[:, :, :end], values[:, :, :end]

    def keep(self, rows: torch.Tensor) -> None:
        """Only these rows remain, in this order. One layer after the other, so that little exists twice."""
        for index, (keys, values) in enumerate(self.stored):
            self.stored[index] = (keys[rows], values[rows])
        self.rows = len(rows)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    layout: Prefill | Decode | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention function for both layouts; [batch, heads, length, size] in, [batch, length, …] out."""
    odd = [name for name in ("softcap", "s_aux", "position_bias") if others.get(name) is not None]
    if odd or getattr(module, "is_causal", True) is False:
        raise reference_instead(f"{type(module).__name__} has attention with {odd[0] if odd else 'no causal mask'}")
    if layout is None:
        raise reference_instead(f"{type(module).__name__} does not hand on what attention is told")
    groups = query.shape[1] // key.shape[1]
    if isinstance(layout, Prefill):
        if groups > 1:
            key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        mask = layout.mask(query.shape[2], sliding_window, query.device)
        output = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, scale=scaling
        )
        return output.transpose(1, 2).contiguous(), None
    rows, places = layout.block.shape
    heads, size = query.shape[1], query.shape[3]
    grid = query.new_zeros(rows, places, heads, size)
    grid[layout.row, layout.place] = query[0].transpose(0, 1)
    # queries of the heads that share a key stand in one row, so that keys need no copy for every head
    grid = grid.view(rows, places, heads // groups, groups, size).permute(0, 2, 3, 1, 4)
    mask = layout.mask(sliding_window)
    output = functional.scaled_dot_product_attention(
        grid.reshape(rows, heads // groups, groups * places, size),
        key,
        value,
        attn_mask=mask.repeat(1, 1, groups, 1) if groups > 1 else mask,
        scale=scaling,
    )
    output = output.view(rows, heads, places, -1).transpose(1, 2)
    return output[layout.row, layout.place][None], None


@contextmanager
def attention_of(core: Any) -> Iterator[None]:
    """`attend` as the model's attention function; its own comes back afterwards.

    Raises:
        ConfigError: the model's attention cannot be replaced.
    """
    AttentionInterface.register(NAME, attend)
    models_own = core.config._attn_implementation
    core.set_attn_implementation(NAME)
    try:
        if core.config._attn_implementation != NAME:
            raise reference_instead(f"the attention of {type(core).__name__} cannot be replaced")
        yield
    finally:
        core.set_attn_implementation(models_own)
