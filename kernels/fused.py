"""`impl="triton"`, for CUDA: three cuBLAS GEMMs on large chunks, and Triton kernels for all that is bound by memory.

The pipeline and its numerics are described over the kernels, in `kernels.triton_kernels`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import head
from . import triton_kernels as kernels
from .losses import RowStatistics, slopes_of, value_of
from .plain import Linear, Options, Rows, Terms, wide

# The chunk's buffer of logits may take this share of the card's memory: 2.2 GB of an H200's 141, where 8192 rows of
# Llama 3's 128256 logits in bf16 are one chunk. A share of the whole, not of what is free: same card, same bits.
_SHARE_OF_CARD = 64
_BUDGET_INTERPRETED = 2**20
_ROWS_MULTIPLE = 128  # of cuBLAS's tiles
_ALIGNMENT = 16  # bytes: a row of logits starts there, whatever the vocabulary, or cuBLAS takes slow kernels


def check_device(device: torch.device) -> None:
    """Raises: RuntimeError, if the kernels cannot run on tensors of this device."""
    if device.type != "cuda" and not kernels.interpreted():
        raise RuntimeError(
            f"impl = 'triton' is not available for tensors on {device}: it needs a CUDA device; use impl = 'chunked', "
            "or 'auto', which chooses by the device"
        )


def linear_terms(linear: Linear, rows: Rows, options: Options) -> Terms:
    """As `plain.linear_terms`."""
    check_device(linear.hidden.device)
    return head.linear_terms(_Fused, linear, rows, options)


class _Fused(head.Engine):
    impl = "triton"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        vocabulary = self.matrix.shape[0]
        # one buffer for all chunks
        self.buffer = self.matrix.new_empty(self.at_once, self._pitch())[:, :vocabulary]

    def _pitch(self) -> int:
        step = max(1, _ALIGNMENT // self.matrix.element_size())
        return -(-self.matrix.shape[0] // step) * step

    def chunk_rows(self, rows: int) -> int:
        if self.options.chunk_rows is not None:
            return self.options.chunk_rows
        budget = _BUDGET_INTERPRETED
        if self.matrix.is_cuda:
            budget = torch.cuda.get_device_properties(self.matrix.device).total_memory // _SHARE_OF_CARD
        return head.even_chunks(rows, budget // (self._pitch() * self.matrix.element_size()), _ROWS_MULTIPLE)

    def chunk(
        self, rows: Tensor, x: Tensor, targets: Tensor, coefficient: head.Coefficient
    ) -> tuple[RowStatistics, Tensor]:
        logits = self.buffer[: x.shape[0]]
        if self.offset is None:
            torch.mm(x, self.matrix.T, out=logits)
        else:
            torch.addmm(self.offset, x, self.matrix.T, out=logits)
        results = _rows(logits, targets, self.options)
        c = coefficient(slice(0, x.shape[0]), results.statistics)
        if any(self.wanted):
            self._add(rows, x, targets, results, c)
        return results.statistics, results.hits

    def _add(self, rows: Tensor, x: Tensor, targets: Tensor, results: kernels.RowResults, coefficient: Tensor) -> None:
        live, source = kernels.live_rows(coefficient)
        if not live:
            return
        d_logits = self.buffer[:live]
        kernels.dlogits(
            self.buffer[: x.shape[0]],
            d_logits,
            targets,
            coefficient,
            highest=results.highest,
            total=results.total,
            source=source,
            upstream=None,
            scale=self.options.logit_scale,
            softcap=self.options.softcap,
        )
        if source is not None:
            x, rows = x.index_select(0, source), rows.index_select(0, source)
        if self.d_hidden is not None:
            self.d_hidden.index_copy_(0, rows, torch.mm(d_logits, self.matrix).to(self.d_hidden.dtype))
        if self.wanted[1]:
            self._add_weight(d_logits, x)
        if self.wanted[2]:
            total = d_logits.sum(0, dtype=wide(self.compute))
            self.d_bias = total if self.d_bias is None else self.d_bias.add_(total)

    def _add_weight(self, d_logits: Tensor, x: Tensor) -> None:
        first, kind = self.d_weight is None, wide(self.compute)
        if self.d_weight is None:
            self.d_weight = torch.empty_like(self.matrix, dtype=kind, memory_format=torch.contiguous_format)
        if not x.is_cuda:  # the interpreter, on whose CPU torch has no GEMM from a short type to float32
            d_logits, x = d_logits.to(kind), x.to(kind)
        head.add_product(self.d_weight, d_logits.T, x, first=first)


def _rows(logits: Tensor, targets: Tensor, options: Options) -> kernels.RowResults:
    return kernels.rows(
        logits,
        targets,
        ignore_index=options.ignore_index,
        scale=options.logit_scale,
        softcap=options.softcap,
        needs=options.needs,
        temperature=options.temperature,
    )


def logits_terms(logits: Tensor, rows: Rows, options: Options) -> Terms:
    """As `plain.logits_terms`: one read of the logits, and in the backward pass one read of live rows, one write.

    The two cannot be one pass over the caller's logits: f', which may be anybody's, is evaluated between them.
    """
    check_device(logits.device)
    return Terms(*_LogitsLoss.apply(logits, *rows, options))


class _LogitsLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        targets: Tensor,
        token_weights: Tensor | None,
        denominator: Tensor | None,
        options: Options,
    ) -> tuple[Tensor | None, ...]:
        if logits.stride(1) != 1:
            logits = logits.contiguous()
        results = _rows(logits, targets, options)
        ignored = targets == options.ignore_index
        value, slope = value_of(options.loss, results.statistics), slopes_of(options.loss, results.statistics)
        live = (slope != 0).any(0) & ~ignored
        if token_weights is not None:
            value, slope = value * token_weights, slope * token_weights
        value, slope = value.masked_fill(ignored, 0), slope.masked_fill(ignored, 0)
        by = value.new_ones(()) if denominator is None else denominator.to(value.dtype)
        ctx.options = options
        ctx.save_for_backward(logits, targets, results.highest, results.total, slope.to(value.dtype), by)
        entropy = results.statistics.entropy
        ctx.mark_non_differentiable(results.nll, live, results.hits, *([] if entropy is None else [entropy]))
        return (value.sum() / by if options.reduce else value), results.nll, live, results.hits, entropy

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        head.refuse_second_derivative("triton")
        logits, targets, highest, total, coefficient, by = ctx.saved_tensors
        gradient = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
        kernels.dlogits(
            logits,
            gradient,
            targets,
            coefficient,
            highest=highest,
            total=total,
            source=None,
            upstream=(upstream[0] / by).contiguous(),
            scale=ctx.options.logit_scale,
            softcap=ctx.options.softcap,
        )
        return gradient, None, None, None, None
