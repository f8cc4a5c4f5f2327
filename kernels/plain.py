"""`impl="torch"`: the oracle every other implementation is tested against. Plain autograd, all logits at once.

Also the few definitions all implementations share: what they are given, and what they give back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .losses import LossFunctions, RowStatistics, needs_of, slopes_of, value_of


@dataclass(frozen=True)
class Options:
    """Everything that is not a tensor. `reduce`: the caller needs only the sum over rows.

    `chunk_rows`: None has the implementation choose by memory. `entropy`: the caller wants each row's.
    """

    loss: LossFunctions
    ignore_index: int = -100
    softcap: float | None = None
    logit_scale: float = 1.0
    chunk_rows: int | None = None
    reduce: bool = True
    entropy: bool = False

    @property
    def needs(self) -> frozenset[str]:
        """The fields of `RowStatistics` to be computed beside nll."""
        return frozenset((*needs_of(self.loss), *(["entropy"] if self.entropy else [])))

    @property
    def temperature(self) -> float:
        """Of `RowStatistics.tempered`."""
        return getattr(self.loss, "temperature", 1.0)


class Rows(NamedTuple):
    """What goes with every row: targets (rows,), token_weights (rows,) or none, and what their sum is divided by.

    `denominator`: a scalar; none with `Options.reduce` off.
    """

    targets: Tensor
    token_weights: Tensor | None
    denominator: Tensor | None


class Linear(NamedTuple):
    """The head's own tensors: hidden (rows, width), weight (vocabulary, width), bias (vocabulary,) or none."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None


class Terms(NamedTuple):
    """What an implementation returns. Ignored rows are 0 or False throughout.

    loss: weight * f(nll), summed over rows to a scalar or of shape (rows,); the only differentiable part.
    nll: (rows,) -log p of the target. live: (rows,) f' is not 0. hits: (rows,) no logit above the target's.
    entropy: (rows,) in nats, or none if nobody needs it.
    """

    loss: Tensor
    nll: Tensor
    live: Tensor
    hits: Tensor
    entropy: Tensor | None


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type of log-sum-exp, losses and sums: float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def linear_terms(head: Linear, rows: Rows, options: Options) -> Terms:
    """The loss of a head; the arguments were checked by the caller."""
    keep = (rows.targets != options.ignore_index).nonzero().squeeze(1)
    return _terms(F.linear(head.hidden[keep], head.weight, head.bias), keep, rows, options)


def logits_terms(logits: Tensor, rows: Rows, options: Options) -> Terms:
    """The same, from logits (rows, vocabulary)."""
    keep = (rows.targets != options.ignore_index).nonzero().squeeze(1)
    return _terms(logits[keep], keep, rows, options)


def _terms(logits: Tensor, keep: Tensor, given: Rows, options: Options) -> Terms:
    targets, token_weights, denominator = given
    logits = logits.to(wide(logits.dtype)) * options.logit_scale
    if options.softcap is not None:
        logits = options.softcap * torch.tanh(logits / options.softcap)
    chosen = targets[keep]
    found = _statistics(logits, F.cross_entropy(logits, chosen, reduction="none"), options)
    value = value_of(options.loss, found)
    if token_weights is not None:
        value = value * token_weights[keep].to(value.dtype)
    rows = value.new_zeros(targets.shape).index_put((keep,), value)
    loss = rows.sum() if options.reduce else rows
    if denominator is not None:
        loss = loss / denominator
    with torch.no_grad():
        found = RowStatistics._make(None if each is None else each.detach() for each in found)
        hits = logits.gather(1, chosen[:, None]).squeeze(1) >= logits.amax(1)
        live = slopes_of(options.loss, found).ne(0).any(0)
        numbers, flags = found.nll.new_zeros(targets.shape), torch.zeros_like(targets, dtype=torch.bool)
        return Terms(
            loss=loss,
            nll=numbers.index_put((keep,), found.nll),
            live=flags.index_put((keep,), live),
            hits=flags.index_put((keep,), hits),
            entropy=None if found.entropy is None else numbers.index_put((keep,), found.entropy),
        )


def _statistics(logits: Tensor, nll: Tensor, options: Options) -> RowStatistics:
    """What the loss needs of rows of logits, which are scaled and capped."""
    found: dict[str, Tensor] = {}
    if "lse" in options.needs:
        found["lse"] = logits.logsumexp(1)
    if "smooth" in options.needs:
        found["smooth"] = -logits.log_softmax(1).mean(1)
    with torch.no_grad():
        if "entropy" in options.needs:
            found["entropy"] = torch.special.entr(logits.softmax(1)).sum(1)
        if "tempered" in options.needs:
            found["tempered"] = (logits.log_softmax(1) / options.temperature).logsumexp(1)
    return RowStatistics(nll, **found)
