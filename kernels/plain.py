"""`impl="torch"`: the oracle every other implementation is tested against. Plain autograd, all logits at once.

Also the few definitions all implementations share: what they are given, and what they give back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.losses import LossFunctions, derivative_of


@dataclass(frozen=True)
class Options:
    """Everything that is not a tensor. `reduce`: the caller needs only the sum over rows.

    `chunk_rows`: None has the implementation choose by memory.
    """

    loss: LossFunctions
    ignore_index: int = -100
    softcap: float | None = None
    logit_scale: float = 1.0
    chunk_rows: int | None = None
    reduce: bool = True


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
    """

    loss: Tensor
    nll: Tensor
    live: Tensor
    hits: Tensor


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
    nll = F.cross_entropy(logits, chosen, reduction="none")
    value = options.loss.value(nll)
    if value.shape != nll.shape:
        raise ValueError(f"loss.value: expected shape {tuple(nll.shape)}, got {tuple(value.shape)}")
    if token_weights is not None:
        value = value * token_weights[keep].to(value.dtype)
    rows = value.new_zeros(targets.shape).index_put((keep,), value)
    loss = rows.sum() if options.reduce else rows
    if denominator is not None:
        loss = loss / denominator
    with torch.no_grad():
        hits = logits.gather(1, chosen[:, None]).squeeze(1) >= logits.amax(1)
        live = derivative_of(options.loss, nll) != 0
        flags = torch.zeros_like(targets, dtype=torch.bool)
        return Terms(
            loss=loss,
            nll=nll.new_zeros(targets.shape).index_put((keep,), nll.detach()),
            live=flags.index_put((keep,), live),
            hits=flags.index_put((keep,), hits),
        )
