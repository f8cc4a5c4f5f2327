"""What `chunked` and `triton` share: the loop over chunks of rows, the seam, and autograd. An `Engine` does the work.

Ignored rows are skipped from the start. For a sum over rows the gradient is computed in the forward pass, while
a chunk's logits are there: with the seam's f', the gradient of row i is

    c_i * (softmax(z_i) - onehot(t_i)),    c_i = weight_i * f'(nll_i),

so rows with c_i = 0 are left out of both gradient GEMMs. A loss of more than nll has up to three such coefficients
for each row, see `losses.slopes_of`; a row is left out where all are 0. The backward pass multiplies what was stored by
the upstream scalar. When the caller wants a loss for each row, the upstream gradient of each row is only known in
the backward pass, and a weight gradient that is already summed over rows cannot be corrected: then only c is
kept, and the backward pass computes the logits of rows with c_i * upstream_i != 0 anew.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .losses import RowStatistics, coefficients_of, cross_entropy, slopes_of, value_of
from .plain import Linear, Options, Rows, Terms, wide

_SCALED_AT_ONCE = 2**20  # elements: what stays in the cache

# From a slice of a chunk's rows and what is known of them to c (k, n), of the wide type; 0 where dead.
Coefficient = Callable[[slice, RowStatistics], Tensor]


class Engine(ABC):
    """The logits of one chunk at a time, and the gradients summed over chunks.

    Args:
        hidden: (rows, width), weight: (vocabulary, width), bias: (vocabulary,) or none, all as the caller has them.
        rows: how many of them will be handed in altogether.
        wanted: whether gradients of hidden, weight and bias are asked for.
        compute: the type of the GEMMs.
    """

    impl: str

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        *,
        rows: int,
        wanted: tuple[bool, bool, bool],
        compute: torch.dtype,
        options: Options,
    ) -> None:
        self.compute, self.options, self.wanted = compute, options, wanted
        self.matrix, self.offset = weight.to(compute), None if bias is None else bias.to(compute)
        self.d_hidden = torch.zeros_like(hidden, memory_format=torch.contiguous_format) if wanted[0] else None
        self.d_weight: Tensor | None = None  # float32 (float64 for float64), there from the first live row on
        self.d_bias: Tensor | None = None
        self.at_once = max(1, min(rows, self.chunk_rows(rows)))

    @abstractmethod
    def chunk_rows(self, rows: int) -> int:
        """How many rows make a chunk, from the options or from what memory allows."""

    @abstractmethod
    def chunk(self, rows: Tensor, x: Tensor, targets: Tensor, coefficient: Coefficient) -> tuple[RowStatistics, Tensor]:
        """Make a chunk's logits and add its gradients.

        rows: (n,) where its rows stand in `hidden`. x: (n, width) these rows, in the type of the GEMMs.
        coefficient: asked once for each row, in order, and in as many parts as the engine likes.

        Returns what the options need of the rows, and hits (n,), whether no logit is above the target's.
        """

    def gradients(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Of hidden in its own type, of weight in that or the wide one, of bias in the wide one."""
        kind, width = wide(self.compute), self.matrix.shape[1]
        if self.wanted[1] and self.d_weight is None:
            self.d_weight = self.matrix.new_zeros((self.matrix.shape[0], width), dtype=kind)
        if self.wanted[2] and self.d_bias is None:
            self.d_bias = self.matrix.new_zeros((self.matrix.shape[0],), dtype=kind)
        return self.d_hidden, self.d_weight, self.d_bias


def take(tensor: Tensor, rows: Tensor) -> Tensor:
    """tensor[rows] for ascending rows; without a copy when that is all of it."""
    return tensor if rows.numel() == tensor.shape[0] else tensor.index_select(0, rows)


def joined(parts: Sequence[RowStatistics]) -> RowStatistics:
    """The statistics of consecutive rows, as one."""
    if len(parts) == 1:
        return parts[0]
    return RowStatistics._make(None if each[0] is None else torch.cat(each) for each in zip(*parts, strict=True))


def even_chunks(rows: int, most: int, multiple: int) -> int:
    """Rows in a chunk of at most `most`, so that all chunks are about equal; a multiple where that fits."""
    chunks = max(1, math.ceil(rows / max(1, most)))
    return max(1, min(most, math.ceil(rows / chunks / multiple) * multiple))


def add_product(total: Tensor, a: Tensor, b: Tensor, *, first: bool) -> None:
    """total (+)= a b, summed and left in the type of `total` inside the GEMM: one read and one write of it.

    `first`: whatever `total` holds is overwritten, not read. Types shorter than that of `total` only on CUDA.
    """
    if a.dtype == total.dtype:
        if first:
            torch.mm(a, b, out=total)
        else:
            total.addmm_(a, b)
    elif first:
        torch.mm(a, b, out_dtype=total.dtype, out=total)
    else:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)


def linear_terms(engine: type[Engine], linear: Linear, rows: Rows, options: Options) -> Terms:
    """As `plain.linear_terms`, by the engine."""
    hidden, weight, bias = linear
    grad = torch.is_grad_enabled()
    wanted = (
        grad and hidden.requires_grad,
        grad and weight.requires_grad,
        grad and bias is not None and bias.requires_grad,
    )
    compute = hidden.dtype
    if torch.is_autocast_enabled(hidden.device.type) and compute != torch.float64:
        compute = torch.get_autocast_dtype(hidden.device.type)
    # what is computed in which type is decided above, once; autocast would also reach into the gradients
    with torch.autocast(hidden.device.type, enabled=False):
        terms = _LinearLoss.apply(engine, *linear, *rows, options, compute, wanted)
    return Terms(*terms)


class _LinearLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        make: type[Engine],
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        token_weights: Tensor | None,
        denominator: Tensor | None,
        options: Options,
        compute: torch.dtype,
        wanted: tuple[bool, bool, bool],
    ) -> tuple[Tensor | None, ...]:
        kind = wide(compute)
        losses = torch.zeros(targets.shape, dtype=kind, device=hidden.device)
        nll, coefficient = torch.zeros_like(losses), losses.new_zeros(coefficients_of(options.loss), targets.numel())
        entropy = torch.zeros_like(losses) if "entropy" in options.needs else None
        live = torch.zeros(targets.shape, dtype=torch.bool, device=hidden.device)
        hits = torch.zeros_like(live)
        by = losses.new_ones(()) if denominator is None else denominator.to(kind)
        # 1/denominator goes into the gradients here, which the backward pass then need not touch if the upstream
        # gradient is 1. In float16, where it would push them into the smallest numbers, a power of two of it is left
        # for the backward pass: what is stored in that type is not rounded again.
        mantissa, exponent = torch.frexp(1 / by)
        later = torch.ldexp(torch.ones_like(by), exponent)
        if torch.float16 not in (compute, hidden.dtype):
            mantissa, later = 1 / by, torch.ones_like(by)
        in_forward = options.reduce and any(wanted)
        now = wanted if in_forward else (False, False, False)

        keep = (targets != options.ignore_index).nonzero().squeeze(1)
        engine = make(hidden, weight, bias, rows=keep.numel(), wanted=now, compute=compute, options=options)
        for rows, x, chosen in _chunks(engine, hidden, targets, keep):
            factor = None if token_weights is None else token_weights[rows].to(kind)
            slopes: list[Tensor] = []

            def c(
                part: slice, found: RowStatistics, factor: Tensor | None = factor, slopes: list[Tensor] = slopes
            ) -> Tensor:
                slopes.append(slopes_of(options.loss, found))
                return (slopes[-1] if factor is None else slopes[-1] * factor[part]) * mantissa

            found, hits_ = engine.chunk(rows, x, chosen, c)
            value, slope = value_of(options.loss, found), torch.cat(slopes, 1)
            live[rows] = (slope != 0).any(0)
            if factor is not None:
                value, slope = value * factor, slope * factor
            losses[rows], nll[rows], hits[rows], coefficient[:, rows] = value, found.nll, hits_, slope
            if entropy is not None and found.entropy is not None:
                entropy[rows] = found.entropy

        ctx.make, ctx.options, ctx.compute, ctx.wanted = make, options, compute, wanted
        # saved through autograd, so that a second backward pass over freed tensors is refused by torch
        if options.reduce:
            ctx.save_for_backward(*engine.gradients(), later)
        else:
            ctx.save_for_backward(hidden, weight, bias, targets, coefficient)
        ctx.dtypes = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        ctx.mark_non_differentiable(nll, live, hits, *([] if entropy is None else [entropy]))
        return (losses.sum() / by if options.reduce else losses), nll, live, hits, entropy

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        refuse_second_derivative(ctx.make.impl)
        if ctx.options.reduce:
            *gradients, later = ctx.saved_tensors
            factor = upstream[0] * later
        else:
            with torch.autocast(upstream[0].device.type, enabled=False):
                gradients = _recompute(ctx, upstream[0])
            factor = None
        typed = zip(gradients, ctx.dtypes, strict=True)
        scaled = [None if g is None else _scaled(g, factor, dtype) for g, dtype in typed]
        return (None, *scaled, None, None, None, None, None, None)


def _chunks(engine: Engine, hidden: Tensor, targets: Tensor, rows: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    whole = rows.numel() == hidden.shape[0]
    for part, start in zip(rows.split(engine.at_once), range(0, rows.numel(), engine.at_once), strict=False):
        if whole:  # views, no copies
            where = slice(start, start + engine.at_once)
            yield part, hidden[where].to(engine.compute), targets[where]
        else:
            yield part, hidden.index_select(0, part).to(engine.compute), targets.index_select(0, part)


def _recompute(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients for a loss per row, from an upstream gradient per row."""
    hidden, weight, bias, targets, coefficient = ctx.saved_tensors
    coefficient = coefficient * upstream.to(coefficient.dtype)
    keep = coefficient.any(0).nonzero().squeeze(1)
    options = replace(ctx.options, loss=cross_entropy(), entropy=False)  # what the loss needs is in the coefficients
    engine = ctx.make(hidden, weight, bias, rows=keep.numel(), wanted=ctx.wanted, compute=ctx.compute, options=options)
    for rows, x, chosen in _chunks(engine, hidden, targets, keep):
        c = coefficient[:, rows]
        engine.chunk(rows, x, chosen, lambda part, _, c=c: c[:, part])
    return engine.gradients()


def refuse_second_derivative(impl: str) -> None:
    """To be called first thing in a backward pass."""
    if torch.is_grad_enabled():
        raise RuntimeError(f"impl = {impl!r} has no second derivative (create_graph=True): use impl = 'torch' for that")


def _scaled(gradient: Tensor, factor: Tensor | None, dtype: torch.dtype) -> Tensor:
    """gradient * factor in `dtype`; in the gradient's own memory, where nobody will ask for it a second time."""
    if factor is None:
        return gradient.to(dtype)
    if gradient.dtype == dtype:
        if factor.device.type != "cpu" and dtype != factor.dtype:
            # a factor without a dimension would be rounded to the short type first
            return (gradient * factor.view(1)).to(dtype)
        if _graph_is_kept():
            return gradient * factor
        # reading a number waits for a GPU, but costs nothing on the CPU
        return gradient if factor.device.type == "cpu" and factor == 1 else gradient.mul_(factor)
    narrow = torch.empty_like(gradient, dtype=dtype)
    # in parts, since each makes a copy of the wide type
    step = gradient.numel() if gradient.is_cuda else _SCALED_AT_ONCE
    for wide_part, part in zip(gradient.view(-1).split(step), narrow.view(-1).split(step), strict=True):
        part.copy_(wide_part * factor)
    return narrow


def _graph_is_kept() -> bool:
    """Whether this backward pass runs under retain_graph=True, so that it may be run again."""
    ask = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return True if ask is None else bool(ask())
