"""`impl="chunked"`: the logits of some rows at a time, and gradients for live rows only. Plain torch, any device.

Memory: one buffer for the logits of a chunk, in the type of the GEMMs, used for all chunks (a fresh one for each
would be cleared page by page by the system, at a third of a GEMM's cost); a few rows of scratch; the gradients.
Compaction: on the CPU a chunk's logits are worked on in blocks that stay in the cache. The live rows of a block become
d_logits right after its softmax, and are written behind those of the blocks before it, so never over a row that is
still to be read. On other devices the chunk is one block.

Numerics: GEMMs in the type of the input (or autocast's), everything on logits in float32 (float64 for float64), the
weight gradient summed over chunks in float32 but for what follows. No atomics: the same input gives the same bits.

Short types on the CPU: torch has no GEMM from them to float32 there. The weight gradient's is done in float32, at less
than half the rate; or, for bfloat16 where targets are rare (a large vocabulary), by `kernels.bfloat16_sum`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from . import head
from .bfloat16_sum import Bfloat16Sum
from .losses import RowStatistics
from .plain import Linear, Options, Rows, Terms, wide

# Chosen on 2 cores with 32 MB of shared cache. A larger chunk spares round trips of the weight gradient's sum and
# costs memory: 2**25 logits are 1024 rows of 32768, 128 MiB in float32 and 64 in bfloat16.
_CHUNK_LOGITS = 2**25
_BLOCK_LOGITS = 2**20  # scratch that stays in the cache, 4 MiB in float32
_LOG2_E = math.log2(math.e)
_NOTHING = -200.0  # exp of it adds nothing to a sum that is at least 1
_RARE = 8  # targets are rare in a chunk where the vocabulary is this many times its rows
_TILE_NUMBERS = 2**21  # of a product that is added right away, or of what is widened for one


def linear_terms(linear: Linear, rows: Rows, options: Options) -> Terms:
    """As `plain.linear_terms`."""
    return head.linear_terms(_Chunked, linear, rows, options)


class _Chunked(head.Engine):
    impl = "chunked"

    def __init__(self, hidden: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> None:
        super().__init__(hidden, weight, *args, **kwargs)
        vocabulary, kind = self.matrix.shape[0], wide(self.compute)
        self.buffer = self.matrix.new_empty(self.at_once, vocabulary)
        on_cpu = self.matrix.device.type == "cpu"
        block = max(1, _BLOCK_LOGITS // vocabulary) if on_cpu else self.at_once
        self.block = min(self.at_once, block)
        self.in_place = self.compute == kind
        self.moved = self.matrix.new_empty(self.block, vocabulary, dtype=kind)
        self.scratch = self.moved if self.in_place else torch.empty_like(self.moved)
        self.needs = self.options.needs
        self.spare = torch.empty_like(self.moved) if self.needs & {"entropy", "tempered"} else None
        self.weight_dtype = weight.dtype
        self.short_sum: Bfloat16Sum | None = None
        rare = self.at_once * _RARE <= vocabulary
        if on_cpu and rare and self.wanted[1] and self.compute == torch.bfloat16:
            self.short_sum = Bfloat16Sum(self.matrix)

    def chunk_rows(self, rows: int) -> int:
        if self.options.chunk_rows is not None:
            return self.options.chunk_rows
        vocabulary, width = self.matrix.shape
        # a large weight is read for few rows otherwise; somewhat smaller than its gradient, which stays
        most = max(_CHUNK_LOGITS // vocabulary, width * 13 // 16)
        return head.even_chunks(rows, most, 16)

    def chunk(
        self, rows: Tensor, x: Tensor, targets: Tensor, coefficient: head.Coefficient
    ) -> tuple[RowStatistics, Tensor]:
        n = x.shape[0]
        logits = self.buffer[:n]
        if self.offset is None:
            torch.mm(x, self.matrix.T, out=logits)
        else:
            torch.addmm(self.offset, x, self.matrix.T, out=logits)
        found: list[RowStatistics] = []
        hits, alive, rest, done = [], [], [], 0
        for start in range(0, n, self.block):
            part = slice(start, min(n, start + self.block))
            z, slope = self._shaped(logits[part])
            t = targets[part, None]
            chosen, highest = z.gather(1, t), z.amax(1, keepdim=True)
            if self.needs:
                total, others = self._exponentiate_asked(z.sub_(highest), highest)
            else:
                total, others = self._exponentiate(z.sub_(highest)).sum(1, keepdim=True), {}
            # total >= 1, so both terms are >= 0: rounding never makes nll negative
            found.append(RowStatistics((total.log() + (highest - chosen)).squeeze(1), **others))
            hits.append((chosen >= highest).squeeze(1))
            c = coefficient(part, found[-1])
            if not any(self.wanted):
                continue
            here = c.any(0).nonzero().squeeze(1)
            live = here.numel()
            if live < z.shape[0] or (self.in_place and done < start):  # never onto rows that are still to be read
                z = torch.index_select(z, 0, here, out=self.moved[:live])
                t, total, c = t[here], total[here], c[:, here]
                slope = None if slope is None else slope[here]
            place = logits[done : done + live]
            rest.append(self._d_logits(place, z, t, total, c[..., None] * self.options.logit_scale, slope))
            alive.append(here + start)
            done += live
        if done:
            self._add(rows, x, targets, torch.cat(alive), torch.cat(rest))
        return head.joined(found), torch.cat(hits)

    def _shaped(self, logits: Tensor) -> tuple[Tensor, Tensor | None]:
        """Scaled and capped, of the wide type, free to be written to; and the derivative of a cap."""
        z = logits if self.in_place else self.scratch[: logits.shape[0]].copy_(logits)
        if self.options.logit_scale != 1:
            z.mul_(self.options.logit_scale)
        cap = self.options.softcap
        if cap is None:
            return z, None
        z.div_(cap).tanh_()
        slope = 1 - z.square()
        return z.mul_(cap), slope

    def _exponentiate(self, below: Tensor) -> Tensor:
        """exp, in place. exp2 is three times as fast; its extra rounding is little beside that of short logits."""
        return below.exp_() if self.in_place else below.mul_(_LOG2_E).exp2_()

    def _exponentiate_asked(self, below: Tensor, highest: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The same, of z - max z (n, vocabulary), summed to (n, 1); and what is needed beside nll, (n,) each."""
        average = below.mean(1) if "smooth" in self.needs else None
        powers = kept = None
        if self.spare is not None:
            spare = self.spare[: below.shape[0]]
            if "tempered" in self.needs:
                powers = torch.mul(below, 1 / self.options.temperature, out=spare).exp_().sum(1)
            if "entropy" in self.needs:
                kept = torch.clamp(below, min=_NOTHING, out=spare)  # -inf times 0 would be no number
        total = self._exponentiate(below).sum(1, keepdim=True)
        log_total = total.log().squeeze(1)
        found = {}
        if "lse" in self.needs:
            found["lse"] = highest.squeeze(1) + log_total
        if average is not None:
            found["smooth"] = log_total - average
        if powers is not None:
            found["tempered"] = powers.log() - log_total / self.options.temperature
        if kept is not None:
            found["entropy"] = (log_total - kept.mul_(below).sum(1) / total.squeeze(1)).clamp_min_(0)
        return total, found

    def _d_logits(
        self, place: Tensor, exponentials: Tensor, t: Tensor, total: Tensor, c: Tensor, slope: Tensor | None
    ) -> Tensor:
        """Into `place`, from exp(z - max). Returns what rounding took from the targets' entries, (n,) of the wide type.

        place, exponentials, slope (of the soft cap): (n, vocabulary). t (targets), total: (n, 1). c: (k, n, 1), see
        `losses.slopes_of`.
        """
        of_target = c[min(1, len(c) - 1)]
        scale: Tensor | None = None
        if len(c) == 3:
            exponentials = exponentials.mul_(c[0] / total).sub_(c[2] / exponentials.shape[1])
            at_target = exponentials.gather(1, t) - of_target
        else:
            scale = c[0] / total
            at_target = exponentials.gather(1, t) * scale - of_target  # before anything is rounded to a short type
        if slope is not None:
            exponentials = exponentials.mul_(slope)
            at_target *= slope.gather(1, t)
        if self.in_place:
            torch.mul(exponentials, 1.0 if scale is None else scale, out=place)
        else:  # an operation that rounds as it writes takes twice as long
            place.copy_(exponentials if scale is None else exponentials.mul_(scale))
        rounded = at_target.to(place.dtype)
        place[torch.arange(place.shape[0], device=place.device), t.squeeze(1)] = rounded.squeeze(1)
        return (at_target - rounded).squeeze(1)

    def _add(self, rows: Tensor, x: Tensor, targets: Tensor, alive: Tensor, rest: Tensor) -> None:
        """The gradients from d_logits, which stand at the front of the buffer."""
        d_logits, x = self.buffer[: alive.numel()], head.take(x, alive)
        if self.d_hidden is not None:
            product = torch.mm(d_logits, self.matrix).to(self.d_hidden.dtype)
            self.d_hidden.index_copy_(0, head.take(rows, alive), product)
        if self.wanted[2]:
            total = d_logits.sum(0, dtype=wide(self.compute))
            self.d_bias = total if self.d_bias is None else self.d_bias.add_(total)
        if self.wanted[1]:
            self._add_weight(d_logits, x, head.take(targets, alive), rest)

    def _add_weight(self, d_logits: Tensor, x: Tensor, targets: Tensor, rest: Tensor) -> None:
        if self.short_sum is not None:
            self.short_sum.add(d_logits, x, targets, rest)
            return
        first, kind = self.d_weight is None, wide(self.compute)
        if self.d_weight is None:
            self.d_weight = self.matrix.new_empty(self.matrix.shape, dtype=kind)
        if x.is_cuda or x.dtype == kind:
            head.add_product(self.d_weight, d_logits.T, x, first=first)
            return
        x = x.to(kind)
        step = max(1, _TILE_NUMBERS // max(x.shape))
        for start in range(0, self.d_weight.shape[0], step):
            tile = slice(start, start + step)
            head.add_product(self.d_weight[tile], d_logits[:, tile].T.to(kind), x, first=first)

    def gradients(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """As `head.Engine.gradients`; no chunk may follow."""
        del self.buffer, self.moved, self.scratch, self.spare
        if self.short_sum is not None and self.short_sum.products:
            self.d_weight = self.short_sum.result(self.weight_dtype)
        return super().gradients()
