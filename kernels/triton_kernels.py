"""The Triton kernels under `impl="triton"`, and the functions that launch them. The pipeline is in `kernels.fused`.

Imported lazily: triton is needed for this module only. With TRITON_INTERPRET=1 in the environment before triton is
first imported, the kernels run on tensors of the CPU, which is how they are tested without a GPU.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"
from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs

from .losses import RowStatistics

# Pipeline. One chunk of n rows lives in one buffer of logits, written by cuBLAS in the type of the GEMM (bf16, fp16,
# fp32, fp64). Around the three GEMMs the kernels read that buffer twice and write it once:
#
#   GEMM 1    z[n, V] = x W^T (+ bias)                                            write n V
#   _rows     online max m and sum s of exp(z - m), the target's logit           read  n V, one program a row
#             -> nll = log s + (m - z_t), hit = z_t >= m
#   (torch)   c = w f'(nll), elementwise on n numbers: the seam, so that any loss works
#             (entropy, mean logit and a tempered sum come from the same read, for a loss that asks for them; c is then
#             up to three numbers a row)
#   _ranks    prefix count of live rows (c != 0) and their list                  n numbers, one program
#   (host)    reads the live count L: the one wait of a chunk, GEMM 2 and 3 need it for their shapes
#   _sources  which row comes to stand in each of the first L slots              n numbers
#   _dlogits  slot j <- c (exp(z - m) / s - onehot) of row source[j], in place   read and write L V
#   GEMM 2    dx[L, D] = dz W
#   GEMM 3    dW[V, D] += dz^T x[source], in float32 (beta = 1: accumulated by cuBLAS, no pass of its own)
#
# Compaction in place, by filling holes: a live row below L stays where it is, and the rows that are live at L or above
# move into the dead slots below L, of which there are equally many. So a slot is written either from itself or from a
# row that nobody writes, and its old content is a dead row that nobody reads: all tiles are independent, no order and
# no second buffer is needed. The order of rows in the sums of GEMM 3 is another one than theirs; it is fixed by the
# input, and there are no atomics, so the same input gives the same bits.
#
# Why one wait per chunk, and not none: without the count, GEMM 2 and 3 would have to run over all n rows, which is the
# very work TCE saves, or over an upper bound, which nobody has. A wait leaves the device idle for some tens of
# microseconds; a chunk's GEMMs take milliseconds.
#
# Numerics. Logits are rounded once to the type of the buffer (as by any unfused head); scale and soft cap, the
# log-sum-exp and the softmax are in float32 (float64 for float64), exp(z - m) / s with m the row's true maximum, so s
# lies in [1, V] and nll >= 0 needs no clamp. NaN and infinity in a row make its s, and so its nll, NaN: it stays alive
# and is noticed. dz is rounded once, to the type of the buffer; its scale is c, in which a mean's 1/denominator is
# present as a number in [0.5, 1) only (see `kernels.head`), so short types lose nothing to underflow.
# The soft cap is cap (1 - 2 / (exp(2 z / cap) + 1)), which needs no library call; its absolute error is cap * 2^-24.

ROWS_AT_ONCE = 1024  # of the bookkeeping kernels: n numbers each


def interpreted() -> bool:
    """The kernels run in triton's interpreter, on any device's memory."""
    return bool(knobs.runtime.interpret)


@triton.jit
def _logit(z, SCALE: tl.constexpr, CAP: tl.constexpr):
    """Scale and soft cap (0: none), in the wide type that z has already."""
    if SCALE != 1.0:
        z = z * SCALE
    if CAP != 0.0:
        z = CAP * (1.0 - 2.0 / (tl.exp(2.0 * z / CAP) + 1.0))
    return z


@triton.jit
def _rows(
    logits_ptr, stride, targets_ptr, nll_ptr, highest_ptr, total_ptr, hits_ptr, others_ptr,
    vocabulary, ignore_index,
    SCALE: tl.constexpr, CAP: tl.constexpr, ENTROPY: tl.constexpr, MEAN: tl.constexpr, POWER: tl.constexpr,
    WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets_ptr + row)
    if target == ignore_index:
        return
    logits_ptr += row * stride
    lanes = tl.arange(0, BLOCK)
    highest = tl.full((), float("-inf"), WIDE)
    total = tl.full((), 0.0, WIDE)
    mixed = tl.full((), 0.0, WIDE)  # sum of exp(z - m) (z - m)
    plain = tl.full((), 0.0, WIDE)  # sum of z
    powers = tl.full((), 0.0, WIDE)  # sum of exp(z - m)^POWER
    for start in range(0, vocabulary, BLOCK):
        columns = start + lanes
        inside = columns < vocabulary
        z = tl.load(logits_ptr + columns, mask=inside, other=0.0).to(WIDE)
        z = _logit(z, SCALE, CAP)
        z = tl.where(inside, z, float("-inf"))
        higher = tl.maximum(highest, tl.max(z, 0))
        if ENTROPY:
            e = tl.exp(z - higher)
            # in the first step, nothing was summed: 0, and not 0 times minus infinity
            before = tl.where(total > 0, tl.exp(highest - higher) * (mixed + (highest - higher) * total), 0.0)
            mixed = before + tl.sum(tl.where(e > 0, e * (z - higher), 0.0), 0)
        if MEAN:
            plain += tl.sum(tl.where(inside, z, 0.0), 0)
        if POWER != 0.0:
            powers = powers * tl.exp(POWER * (highest - higher)) + tl.sum(tl.exp(POWER * (z - higher)), 0)
        total = total * tl.exp(highest - higher) + tl.sum(tl.exp(z - higher), 0)
        highest = higher
    # by the same operations as above, none of which a compiler may contract: the same bits, so never above `highest`
    chosen = tl.load(logits_ptr + target).to(WIDE)
    chosen = _logit(chosen, SCALE, CAP)
    tl.store(nll_ptr + row, tl.log(total) + (highest - chosen))
    tl.store(highest_ptr + row, highest)
    tl.store(total_ptr + row, total)
    if ENTROPY or MEAN or POWER != 0.0:
        rows = tl.num_programs(0)
        entropy = tl.log(total) - mixed / total
        tl.store(others_ptr + row, tl.where(entropy < 0, 0.0, entropy))  # by rounding; a NaN stays
        tl.store(others_ptr + rows + row, tl.log(total) + highest - plain / vocabulary)
        tl.store(others_ptr + 2 * rows + row, tl.log(powers) - POWER * tl.log(total))
    tl.store(hits_ptr + row, ((chosen >= highest) & (total == total)).to(tl.int8))


@triton.jit
def _ranks(coefficient_ptr, rank_ptr, where_ptr, count_ptr, rows, BLOCK: tl.constexpr):
    """rank[i]: live rows before i. where[k]: the k-th live row. count: live rows."""
    before = 0
    lanes = tl.arange(0, BLOCK)
    for start in range(0, rows, BLOCK):
        row = start + lanes
        live = (tl.load(coefficient_ptr + row, mask=row < rows, other=0.0) != 0).to(tl.int32)
        rank = before + tl.cumsum(live, 0) - live
        tl.store(rank_ptr + row, rank, mask=row < rows)
        tl.store(where_ptr + rank, row, mask=live != 0)
        before += tl.sum(live, 0)
    tl.store(count_ptr, before)


@triton.jit
def _sources(coefficient_ptr, rank_ptr, where_ptr, source_ptr, count, BLOCK: tl.constexpr):
    slot = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = slot < count
    live = tl.load(coefficient_ptr + slot, mask=inside, other=1.0) != 0
    rank = tl.load(rank_ptr + slot, mask=inside, other=0)
    # the k-th hole gets the k-th live row from `count` on; with no row from there on, there are no holes
    first = tl.load(rank_ptr + count)  # count < rows, or no program runs
    mover = tl.load(where_ptr + first + (slot - rank), mask=inside & (live == 0), other=0)
    tl.store(source_ptr + slot, tl.where(live, slot, mover).to(tl.int64), mask=inside)


@triton.jit
def _dlogits(
    logits_ptr, stride, out_ptr, out_stride, targets_ptr, highest_ptr, total_ptr, coefficient_ptr, coefficient_stride,
    upstream_ptr, source_ptr, vocabulary,
    SCALE: tl.constexpr, CAP: tl.constexpr, HAS_SOURCE: tl.constexpr, COEFFICIENTS: tl.constexpr,
    UPSTREAM: tl.constexpr, ROUND: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    slot = tl.program_id(0).to(tl.int64)
    row = slot
    if HAS_SOURCE:
        row = tl.load(source_ptr + slot)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < vocabulary
    out_ptr += slot * out_stride
    c = tl.load(coefficient_ptr + row)
    of_target = c
    of_all = c * 0
    if COEFFICIENTS > 1:
        of_target = tl.load(coefficient_ptr + coefficient_stride + row)
    if COEFFICIENTS > 2:
        of_all = tl.load(coefficient_ptr + 2 * coefficient_stride + row) / vocabulary
    if UPSTREAM != "none":
        which = row * 0
        if UPSTREAM == "rows":
            which = row
        factor = tl.load(upstream_ptr + which).to(WIDE)
        c *= factor
        of_target *= factor
        of_all *= factor
    if (c == 0) & (of_target == 0) & (of_all == 0):  # a dead row is not even read
        tl.store(out_ptr + columns, tl.zeros((BLOCK,), WIDE).to(out_ptr.dtype.element_ty), mask=inside)
        return
    target = tl.load(targets_ptr + row)
    highest = tl.load(highest_ptr + row)
    total = tl.load(total_ptr + row)
    z = tl.load(logits_ptr + row * stride + columns, mask=inside, other=0.0).to(WIDE)
    z = _logit(z, SCALE, CAP)
    d = tl.exp(z - highest) / total
    if COEFFICIENTS == 1:
        d = (c * SCALE) * (d - tl.where(columns == target, 1.0, 0.0))
    else:
        d = SCALE * (c * d - of_all - tl.where(columns == target, of_target, 0.0))
    if CAP != 0.0:
        d *= 1.0 - (z / CAP) * (z / CAP)
    if ROUND:  # to the nearest bfloat16, ties to even: what hardware does; triton's interpreter cuts off
        bits = d.to(tl.int32, bitcast=True)
        d = (bits + 0x7FFF + ((bits >> 16) & 1)).to(tl.float32, bitcast=True)
    tl.store(out_ptr + columns, d.to(out_ptr.dtype.element_ty), mask=inside)


def _block(vocabulary: int) -> tuple[int, int]:
    """Columns in one step of a program, and its warps."""
    block = min(4096, triton.next_power_of_2(vocabulary))
    return block, 8 if block >= 2048 else 4


def _wide(dtype: torch.dtype) -> tl.dtype:
    return tl.float64 if dtype == torch.float64 else tl.float32


class RowResults(NamedTuple):
    """What `_rows` found: (rows,) each, float32 or float64, `hits` bool; 0 where ignored.

    softmax(z) = exp(z - highest) / total. statistics: nll, and what was asked for.
    """

    nll: Tensor
    highest: Tensor
    total: Tensor
    hits: Tensor
    statistics: RowStatistics


def rows(
    logits: Tensor,
    targets: Tensor,
    *,
    ignore_index: int,
    scale: float,
    softcap: float | None,
    needs: Collection[str] = (),
    temperature: float = 1.0,
) -> RowResults:
    """logits (rows, vocabulary), any row stride, unit column stride; targets (rows,) int64, in range or ignored.

    needs: fields of `RowStatistics` beside nll. temperature: of its `tempered`.
    """
    kind = torch.float64 if logits.dtype == torch.float64 else torch.float32
    nll, highest, total = torch.zeros(3, logits.shape[0], dtype=kind, device=logits.device)
    others = torch.zeros(3, *nll.shape, dtype=kind, device=nll.device) if needs else nll
    asked = dict(zip(("entropy", "smooth", "tempered"), others, strict=True)) if needs else {}
    results = RowResults(
        nll,
        highest,
        total,
        torch.zeros(nll.shape, dtype=torch.bool, device=nll.device),
        RowStatistics(nll, **{name: numbers for name, numbers in asked.items() if name in needs}),
    )
    if not logits.numel():
        return results
    block, warps = _block(logits.shape[1])
    _rows[(logits.shape[0],)](
        logits, logits.stride(0), targets, nll, highest, total,
        results.hits.view(torch.int8), others, logits.shape[1], ignore_index,
        SCALE=scale, CAP=softcap or 0.0, ENTROPY="entropy" in needs, MEAN="smooth" in needs,
        POWER=1 / temperature if "tempered" in needs else 0.0, WIDE=_wide(logits.dtype), BLOCK=block,
        num_warps=warps,
    )  # fmt: skip
    if "lse" in needs:
        lse = (highest + total.log()).masked_fill(targets == ignore_index, 0)
        return results._replace(statistics=results.statistics._replace(lse=lse))
    return results


def live_rows(coefficient: Tensor) -> tuple[int, Tensor | None]:
    """How many rows have a coefficient that is not 0 (waits for the device), and which row goes to each such slot.

    coefficient: (rows,) or (k, rows). None instead of the rows if all are live, so that each stays where it is.
    """
    if coefficient.ndim == 2:
        coefficient = coefficient[0] if len(coefficient) == 1 else coefficient.any(0).to(coefficient.dtype)
    n = coefficient.shape[0]
    rank = torch.empty(n, dtype=torch.int32, device=coefficient.device)
    where, count = torch.empty_like(rank), torch.zeros((), dtype=torch.int32, device=rank.device)
    _ranks[(1,)](coefficient, rank, where, count, n, BLOCK=min(ROWS_AT_ONCE, triton.next_power_of_2(n)), num_warps=4)
    live = int(count)
    if live in (0, n):
        return live, None
    source = torch.empty(live, dtype=torch.int64, device=rank.device)
    block = min(ROWS_AT_ONCE, triton.next_power_of_2(live))
    _sources[(triton.cdiv(live, block),)](coefficient, rank, where, source, live, BLOCK=block, num_warps=4)
    return live, source


def dlogits(
    logits: Tensor,
    out: Tensor,
    targets: Tensor,
    coefficient: Tensor,
    *,
    highest: Tensor,
    total: Tensor,
    source: Tensor | None,
    upstream: Tensor | None,
    scale: float,
    softcap: float | None,
) -> None:
    """out[j] = c (softmax - onehot) of row source[j], through scale and soft cap; `out` may be the logits' own memory.

    coefficient: (rows,) c, or (k, rows) as `losses.slopes_of` has them, of the wide type. upstream: a scalar or (rows,)
    factor on them, or none.
    """
    if not out.numel():
        return
    block, warps = _block(logits.shape[1])
    coefficient = coefficient.view(-1, coefficient.shape[-1])
    kind = "none" if upstream is None else "scalar" if upstream.ndim == 0 else "rows"
    _dlogits[(out.shape[0], triton.cdiv(logits.shape[1], block))](
        logits, logits.stride(0), out, out.stride(0), targets, highest, total,
        coefficient, coefficient.stride(0), upstream if upstream is not None else coefficient,
        source if source is not None else targets, logits.shape[1],
        SCALE=scale, CAP=softcap or 0.0, HAS_SOURCE=source is not None,
        COEFFICIENTS=len(coefficient), UPSTREAM=kind,
        ROUND=interpreted() and out.dtype == torch.bfloat16, WIDE=_wide(logits.dtype), BLOCK=block, num_warps=warps,
    )  # fmt: skip
