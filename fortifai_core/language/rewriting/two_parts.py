"""A causal language model in two parts: text to hidden states, and hidden states to the tokens chosen after them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fortifai_core.errors import ConfigError
from fortifai_core.language.decoding import choose
from fortifai_core.language.parts import Parts
from fortifai_core.language.rewriting.attention import Slots, cache_keyword, reference_instead
from fortifai_core.language.rewriting.blocks import Rewriting


class TwoParts:
    """The model that `decoding.inference` yields, taken apart between its last hidden states and its head.

    Raises:
        ConfigError: the two parts are not the whole of it, or its positions are too few.
    """

    def __init__(self, core: Any, rewriting: Rewriting) -> None:
        self.core, self.config, self.device = core, rewriting.config, core.device
        self.cache_keyword = cache_keyword(core.base_model)
        self.suppress = torch.tensor(sorted({*rewriting.suppress, rewriting.pad_id}), device=self.device)
        text, longest = core.config.get_text_config(), self.config.longest_input
        positions = getattr(text, "max_position_embeddings", None)
        if positions is not None and positions < longest:
            field = "context_tokens" if self.config.context == "cut" else "chunk_tokens"
            remedy = f"inputs of {longest} tokens are asked for, the model has {positions} positions"
            raise ConfigError(f"regeneration.{field}", getattr(self.config, field), remedy)
        self.parts = Parts(core)
        if not self.parts.whole:
            raise reference_instead(f"{type(core).__name__} does more than its head between states and logits")

    def tensor(self, values: Any) -> torch.Tensor:
        """The values on the model's device."""
        return torch.as_tensor(values, device=self.device)

    def hidden(self, ids: torch.Tensor, positions: torch.Tensor, store: Slots) -> torch.Tensor:
        """States [rows, length, width] after the tokens, whose keys and values go where the store's layout says."""
        given = {"position_ids": positions, self.cache_keyword: store, "use_cache": True, "layout": store.layout}
        output: torch.Tensor = self.parts.body(input_ids=ids, **given).last_hidden_state
        return output

    def choices(self, hidden: torch.Tensor, seen: np.ndarray | None, uniforms: np.ndarray | None) -> np.ndarray:
        """Tokens int64 [rows] after states [rows, width]; `seen` and `uniforms` as `decoding.choose` takes them."""
        parts = []
        for first in range(0, len(hidden), self.parts.rows):
            part = slice(first, first + self.parts.rows)
            parts.append(
                choose(
                    self.parts.logits(hidden[part]),
                    self.config,
                    suppress=self.suppress,
                    seen=None if seen is None else self.tensor(seen[part]),
                    uniforms=None if uniforms is None else self.tensor(uniforms[part]),
                )
            )
        return torch.cat(parts).cpu().numpy()
