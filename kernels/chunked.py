"""`impl="chunked"`: the logits of a few thousand rows at a time, and gradients for live rows only. Any device.

Ignored rows are skipped from the start. For a sum over rows the gradient is computed in the forward pass, while
a chunk's logits are there: with the seam's f', the gradient of row i is

    c_i * (softmax(z_i) - onehot(t_i)),    c_i = weight_i * f'(nll_i),

so rows with c_i = 0 are left out of both gradient GEMMs. The backward pass multiplies what was stored by the
upstream scalar. When the caller wants a loss for each row, the upstream gradient of each row is only known in
the backward pass, and a weight gradient that is already summed over rows cannot be corrected: then only c is
kept, and the backward pass computes the logits of rows with c_i * upstream_i != 0 anew.

Numerics: GEMMs in the type of the input (or autocast's), everything on logits in float32 (float64 for float64),
the weight gradient accumulated over chunks in float32. No atomics: the same input gives the same bits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.losses import derivative_of
from kernels.reference import Options, Terms, wide


class _Chunk(NamedTuple):
    """Some rows after the forward pass: softmax = exponentials / total."""

    exponentials: Tensor  # (n, vocabulary), ours to overwrite
    total: Tensor  # (n,)
    nll: Tensor  # (n,)
    hits: Tensor  # (n,)
    slope: Tensor | None  # (n, vocabulary), the softcap's derivative


def linear_terms(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    token_weights: Tensor | None,
    denominator: Tensor | None,
    options: Options,
) -> Terms:
    """As `reference.linear_terms`."""
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
        terms = _ChunkedLinearLoss.apply(
            hidden, weight, bias, targets, token_weights, denominator, options, compute, wanted
        )
    return Terms(*terms)


class _ChunkedLinearLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        token_weights: Tensor | None,
        denominator: Tensor | None,
        options: Options,
        compute: torch.dtype,
        wanted: tuple[bool, bool, bool],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        kind = wide(compute)
        losses = torch.zeros(targets.shape, dtype=kind, device=hidden.device)
        nll, coefficient = torch.zeros_like(losses), torch.zeros_like(losses)
        live = torch.zeros(targets.shape, dtype=torch.bool, device=hidden.device)
        hits = torch.zeros_like(live)
        by = losses.new_ones(()) if denominator is None else denominator.to(kind)
        # Part of 1/denominator goes into the gradients here, so that what is left for the backward pass is a power
        # of two: stored in a short type, they are rounded once, and not pushed into its smallest numbers either.
        mantissa, exponent = torch.frexp(1 / by)
        in_forward = options.reduce and any(wanted)
        gradients = _Gradients(hidden, weight, bias, wanted if in_forward else (False, False, False), kind)
        matrix, offset = weight.to(compute), None if bias is None else bias.to(compute)

        keep = (targets != options.ignore_index).nonzero().squeeze(1)
        for rows in keep.split(options.chunk_rows):
            x, chosen = _take(hidden, rows).to(compute), _take(targets, rows)
            chunk = _forward(x, matrix, offset, chosen, options)
            value, slope = options.loss.value(chunk.nll), derivative_of(options.loss, chunk.nll)
            if value.shape != chunk.nll.shape:
                raise ValueError(f"loss.value: expected shape {tuple(chunk.nll.shape)}, got {tuple(value.shape)}")
            live[rows] = slope != 0
            if token_weights is not None:
                factor = token_weights[rows].to(kind)
                value, slope = value * factor, slope * factor
            losses[rows], nll[rows], hits[rows], coefficient[rows] = value, chunk.nll, chunk.hits, slope
            if in_forward:
                gradients.add(chunk, x, matrix, chosen, rows, slope * mantissa, options)

        ctx.options, ctx.compute, ctx.wanted, ctx.kind = options, compute, wanted, kind
        # saved through autograd, so that a second backward pass over freed tensors is refused by torch
        if options.reduce:
            later = torch.ldexp(torch.ones_like(by), exponent)
            ctx.save_for_backward(gradients.hidden, gradients.weight, gradients.bias, later)
        else:
            ctx.save_for_backward(hidden, weight, bias, targets, coefficient)
        ctx.dtypes = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        ctx.mark_non_differentiable(nll, live, hits)
        return (losses.sum() / by if options.reduce else losses), nll, live, hits

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "impl = 'chunked' has no second derivative (create_graph=True): use impl = 'torch' for that"
            )
        if ctx.options.reduce:
            *stored, later = ctx.saved_tensors
            found = [None if g is None else g * (upstream[0] * later) for g in stored]
        else:
            with torch.autocast(upstream[0].device.type, enabled=False):
                found = _recompute(ctx, upstream[0])
        grads = [None if g is None else g.to(dtype) for g, dtype in zip(found, ctx.dtypes, strict=True)]
        return (*grads, None, None, None, None, None, None)


def _recompute(ctx: Any, upstream: Tensor) -> list[Tensor | None]:
    """The gradients for a loss per row, from an upstream gradient per row."""
    hidden, weight, bias, targets, coefficient = ctx.saved_tensors
    gradients = _Gradients(hidden, weight, bias, ctx.wanted, ctx.kind)
    coefficient = coefficient * upstream.to(ctx.kind)
    matrix, offset = weight.to(ctx.compute), None if bias is None else bias.to(ctx.compute)
    for rows in coefficient.nonzero().squeeze(1).split(ctx.options.chunk_rows):
        x, chosen = _take(hidden, rows).to(ctx.compute), _take(targets, rows)
        chunk = _forward(x, matrix, offset, chosen, ctx.options)
        gradients.add(chunk, x, matrix, chosen, rows, coefficient[rows], ctx.options)
    return [gradients.hidden, gradients.weight, gradients.bias]


def _take(tensor: Tensor, rows: Tensor) -> Tensor:
    """tensor[rows]; without a copy when that is all of it."""
    return tensor if rows.numel() == tensor.shape[0] else tensor.index_select(0, rows)


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, chosen: Tensor, options: Options) -> _Chunk:
    logits = F.linear(x, weight, bias)
    logits = logits.to(wide(logits.dtype))  # a new tensor or our own: from here on in place
    if options.logit_scale != 1:
        logits.mul_(options.logit_scale)
    slope = None
    if options.softcap is not None:
        logits.div_(options.softcap).tanh_()
        slope = 1 - logits.square()
        logits.mul_(options.softcap)
    target = logits.gather(1, chosen[:, None]).squeeze(1)
    highest = logits.amax(1)
    exponentials = logits.sub_(highest[:, None]).exp_()
    total = exponentials.sum(1)
    # total >= 1, so both terms are >= 0: rounding never makes nll negative
    nll = total.log() + (highest - target)
    return _Chunk(exponentials, total, nll, target >= highest, slope)


class _Gradients:
    """The sums over chunks: hidden (rows, width) in its own type, weight and bias in the wide one."""

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        wanted: tuple[bool, bool, bool],
        kind: torch.dtype,
    ) -> None:
        self.hidden = torch.zeros_like(hidden) if wanted[0] else None
        self.weight = torch.zeros_like(weight, dtype=kind) if wanted[1] else None
        self.bias = torch.zeros_like(bias, dtype=kind) if wanted[2] and bias is not None else None

    def add(
        self,
        chunk: _Chunk,
        x: Tensor,
        weight: Tensor,
        chosen: Tensor,
        rows: Tensor,
        coefficient: Tensor,
        options: Options,
    ) -> None:
        """Add one chunk's part; overwrites `chunk.exponentials`."""
        alive = coefficient.nonzero().squeeze(1)
        if not alive.numel():
            return
        d_logits = _take(chunk.exponentials, alive)
        x, chosen, rows, total, coefficient = (_take(t, alive) for t in (x, chosen, rows, chunk.total, coefficient))
        coefficient = coefficient * options.logit_scale
        d_logits.mul_((coefficient / total)[:, None])
        each = torch.arange(alive.numel(), device=x.device)
        d_logits[each, chosen] -= coefficient
        if chunk.slope is not None:
            d_logits.mul_(_take(chunk.slope, alive))
        if self.bias is not None:
            self.bias += d_logits.sum(0)
        narrow = d_logits.to(x.dtype)
        if self.hidden is not None:
            self.hidden.index_copy_(0, rows, (narrow @ weight).to(self.hidden.dtype))
        if self.weight is not None:
            if x.is_cuda and x.dtype != self.weight.dtype:
                # summed and left in float32: rounding the product of every chunk would add up
                self.weight += torch.mm(narrow.T, x, out_dtype=self.weight.dtype)
            else:
                self.weight.addmm_(d_logits.T, x.to(self.weight.dtype))
