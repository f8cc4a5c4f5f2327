"""`fortifai bench`: the loss heads against each other, as ratios within one run on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, Literal

ROWS, HIDDEN, VOCABULARY = 4096, 256, 8192
REPEATS = 5


def bench_heads(*, repeats: int = REPEATS) -> list[dict[str, Any]]:
    """Forward and backward of the head alone, fp32: seconds (median) and ratios to torch's own two functions.

    The live fraction is set by choosing gamma from the rows' own probabilities, so the work that TCE saves is
    the work that it saves in training; every head computes the same loss and gradients.
    """
    import torch
    from torch.nn import functional

    from kernels import TokenLoss, linear_cross_entropy
    from kernels.losses import truncated

    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, HIDDEN, generator=draw, requires_grad=True)
    weight = (torch.randn(VOCABULARY, HIDDEN, generator=draw) / HIDDEN**0.5).requires_grad_()
    targets = torch.randint(0, VOCABULARY, (ROWS,), generator=draw)
    with torch.no_grad():
        nll = functional.cross_entropy(hidden @ weight.T, targets, reduction="none")

    def dense() -> torch.Tensor:
        return functional.cross_entropy(functional.linear(hidden, weight), targets)

    def head(impl: Literal["torch", "chunked"], loss: TokenLoss) -> Callable[[], torch.Tensor]:
        def run() -> torch.Tensor:
            loss_value: torch.Tensor = linear_cross_entropy(hidden, weight, targets, loss=loss, impl=impl).loss
            return loss_value

        return run

    cases: list[tuple[str, float, Callable[[], torch.Tensor]]] = [("linear + cross_entropy (torch)", 1.0, dense)]
    for live in (1.0, 0.5, 0.25):
        gamma = float(torch.exp(-torch.quantile(nll.double(), 1 - live))) if live < 1 else 1.0
        impls: tuple[Literal["torch", "chunked"], ...] = ("torch", "chunked")
        for impl in impls:
            cases.append((f"TCE, {impl}", live, head(impl, truncated(min(1.0, gamma)))))
    seconds: dict[int, list[float]] = {}
    for _ in range(repeats + 1):  # interleaved, so that a busy moment hits all alike; the first round warms up
        for index, (_, _, case) in enumerate(cases):
            hidden.grad = weight.grad = None
            started = time.perf_counter()
            torch.autograd.backward(case())
            seconds.setdefault(index, []).append(time.perf_counter() - started)
    base = statistics.median(seconds[0][1:])
    return [
        {
            "head": name,
            "live": live,
            "seconds": round(statistics.median(seconds[index][1:]), 4),
            "speed": round(base / statistics.median(seconds[index][1:]), 2),
        }
        for index, (name, live, _) in enumerate(cases)
    ]
