"""A causal language model taken apart before its head, which then runs only where it is asked."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

# logits that exist at once, as float32: 128 MiB. Enough rows for a GEMM at its full rate, few enough for fresh memory
# to cost little
LOGITS_AT_ONCE = 2**25


class Parts:
    """Body and head of a causal language model of transformers.

    Attributes:
        whole: whether the two are all of it.
        rows: states whose logits may exist at once.
    """

    def __init__(self, core: Any) -> None:
        text = core.config.get_text_config()
        self.body: Any = core.base_model
        self._head: Any = core.get_output_embeddings()
        self._cap: float | None = getattr(text, "final_logit_softcapping", None)
        self.rows = max(1, LOGITS_AT_ONCE // text.vocab_size)
        ids = torch.arange(min(8, text.vocab_size), device=core.device)[None]
        own = core(input_ids=ids, use_cache=False).logits.float()
        parts = self.logits(self.body(input_ids=ids, use_cache=False).last_hidden_state)
        near = 1e-3 if core.dtype in (torch.float32, torch.float64) else 0.05  # a soft cap is taken in float32 here
        self.whole = torch.allclose(own, parts, rtol=near, atol=near, equal_nan=True)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits [..., vocabulary] in float32 of states [..., width], as the whole model gives them."""
        logits: torch.Tensor = self._head(hidden).float()
        return torch.tanh(logits / self._cap) * self._cap if self._cap is not None else logits


def parts_of(core: Any) -> Parts | None:
    """The model's parts; None where it has no such two, or does more than its head between states and logits."""
    body, head = getattr(core, "base_model", None), getattr(core, "get_output_embeddings", None)
    if not isinstance(body, nn.Module) or body is core or head is None or not isinstance(head(), nn.Linear):
        return None
    parts = Parts(core)
    return parts if parts.whole else None
