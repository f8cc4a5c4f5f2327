"""`impl="chunked"`: the logits of some rows at a time, and gradients for live rows only. Plain torch, any device.

Memory: one buffer for the logits of a chunk, in the type of the GEMMs, used for all chunks (a fresh one for each
would be cleared page by page by the system, at a third of a GEMM's cost); a few rows of scratch; the gradients.
Compaction: live rows are copied up to the front of the buffer, block by block and in order, so never over a row
that is still to be read, and made into d_logits on the way.

Numerics: GEMMs in the type of the input (or autocast's), everything on logits in float32 (float64 for float64), the
weight gradient summed over chunks in float32. No atomics: the same input gives the same bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels import head
from kernels.reference import Linear, Options, Rows, Terms, wide

# Chosen on 2 cores with 32 MB of shared cache. A larger chunk spares round trips of the weight gradient's sum and
# costs memory: 2**25 logits are 1024 rows of 32768, 128 MiB in float32.
_CHUNK_LOGITS = 2**25
_BLOCK_LOGITS = 2**20  # scratch that stays in the cache, 4 MiB in float32
_TILE_LOGITS = 2**21


def linear_terms(linear: Linear, rows: Rows, options: Options) -> Terms:
    """As `reference.linear_terms`."""
    return head.linear_terms(_Chunked, linear, rows, options)


class _Chunked(head.Engine):
    impl = "chunked"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        vocabulary, kind = self.matrix.shape[0], wide(self.compute)
        self.buffer = self.matrix.new_empty(self.at_once, vocabulary)
        # exp(z - max) may replace z in a wide buffer, unless the soft cap's derivative still needs z
        self.exponentiated = self.compute == kind and self.options.softcap is None
        block = max(1, _BLOCK_LOGITS // vocabulary) if self.matrix.device.type == "cpu" else self.at_once
        self.block = min(self.at_once, block)
        self.scratch = self.matrix.new_empty(self.block, vocabulary, dtype=kind)

    def chunk_rows(self, rows: int) -> int:
        if self.options.chunk_rows is not None:
            return self.options.chunk_rows
        return head.even_chunks(rows, _CHUNK_LOGITS // self.matrix.shape[0], 16)

    def forward(self, x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        n = x.shape[0]
        self.x, self.targets = x, targets
        if self.offset is None:
            torch.mm(x, self.matrix.T, out=self.buffer[:n])
        else:
            torch.addmm(self.offset, x, self.matrix.T, out=self.buffer[:n])
        self.highest, self.total, chosen = self.scratch.new_empty(3, n)
        for start in range(0, n, self.block):
            part = slice(start, min(n, start + self.block))
            z = self.buffer[part]
            if not self.exponentiated:
                z = self.scratch[: z.shape[0]].copy_(z)
            self._shape(z)
            chosen[part] = z.gather(1, targets[part, None]).squeeze(1)
            highest = torch.amax(z, 1, out=self.highest[part])
            torch.sum(z.sub_(highest[:, None]).exp_(), 1, out=self.total[part])
        # total >= 1, so both terms are >= 0: rounding never makes nll negative
        return self.total.log() + (self.highest - chosen), chosen >= self.highest

    def _shape(self, logits: Tensor) -> None:
        """Scale and soft cap, in place."""
        if self.options.logit_scale != 1:
            logits.mul_(self.options.logit_scale)
        if self.options.softcap is not None:
            logits.div_(self.options.softcap).tanh_().mul_(self.options.softcap)

    def backward(self, rows: Tensor, coefficient: Tensor) -> None:
        alive = coefficient.nonzero().squeeze(1)
        if not alive.numel():
            return
        still = alive.numel() == rows.numel()
        for start in range(0, alive.numel(), self.block):
            self._d_logits(start, alive[start : start + self.block], coefficient, still=still)
        d_logits, x = self.buffer[: alive.numel()], head.take(self.x, alive)
        if self.d_hidden is not None:
            product = torch.mm(d_logits, self.matrix).to(self.d_hidden.dtype)
            self.d_hidden.index_copy_(0, head.take(rows, alive), product)
        if self.wanted[1]:
            self._add_weight(d_logits, x)

    def _d_logits(self, start: int, alive: Tensor, coefficient: Tensor, *, still: bool) -> None:
        """Rows `alive` of the buffer become d_logits from row `start` on; `still`: that is where they stand."""
        n = alive.numel()
        place, c = self.buffer[start : start + n], coefficient[alive] * self.options.logit_scale
        targets = (torch.arange(n, device=alive.device), self.targets[alive])
        scale, slope = (c / self.total[alive])[:, None], None
        if self.exponentiated:
            d = place if still else torch.index_select(self.buffer, 0, alive, out=self.scratch[:n])
        else:
            d = self.scratch[:n].copy_(place if still else self.buffer.index_select(0, alive))
            self._shape(d)
            if self.options.softcap is not None:
                slope = 1 - (d / self.options.softcap).square_()
            d.sub_(self.highest[alive, None]).exp_()
        at_target = d[targets] * scale[:, 0] - c  # before anything is rounded to a short type
        if slope is not None:
            d.mul_(slope)
            at_target *= slope[targets]
        torch.mul(d, scale, out=place)
        place[targets] = at_target.to(place.dtype)
        if self.wanted[2]:
            total = place.sum(0, dtype=wide(self.compute))
            self.d_bias = total if self.d_bias is None else self.d_bias.add_(total)

    def _add_weight(self, d_logits: Tensor, x: Tensor) -> None:
        kind = wide(self.compute)
        first = self.d_weight is None
        if self.d_weight is None:
            self.d_weight = torch.empty_like(self.matrix, dtype=kind, memory_format=torch.contiguous_format)
        if x.is_cuda or x.dtype == kind:
            head.add_product(self.d_weight, d_logits.T, x, first=first)
            return
        # torch has no GEMM from bfloat16 to float32 on the CPU, and rounding each chunk's product would add up
        x, step = x.to(kind), max(1, _TILE_LOGITS // x.shape[0])
        for start in range(0, self.d_weight.shape[0], step):
            tile = slice(start, start + step)
            head.add_product(self.d_weight[tile], d_logits[:, tile].to(kind).T, x, first=first)
