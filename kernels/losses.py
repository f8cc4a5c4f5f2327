"""The seam of the kernels: a loss is f(nll), elementwise per token, with its derivative f'(nll).

Every kernel computes nll = -log p of the target and the gradient f'(nll) * (softmax - onehot); all that tells
one loss from another is f. A token with f' = 0 is dead: nothing has to be computed for it in the backward pass.
Any object with the attributes of `LossFunctions` will do; the constructors below make the usual ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor

Elementwise = Callable[["Tensor"], "Tensor"]
Denominator = Literal["all", "live"]

# Keeps autograd through q**gamma finite where q = 1 - p underflows; a normal number in float32 and float64.
_TINY = 1e-37


class LossFunctions(Protocol):
    """What a kernel needs of a loss.

    value: f, from nll >= 0 (float32 or float64, any shape) to the loss of each token, of the same shape.
    derivative: f', likewise; None has it taken from f by autograd.
    denominator: a mean is over "all" target tokens, or over the "live" ones.
    """

    @property
    def value(self) -> Elementwise: ...
    @property
    def derivative(self) -> Elementwise | None: ...
    @property
    def denominator(self) -> Denominator: ...


@dataclass(frozen=True)
class TokenLoss:
    """A loss under its name. See `LossFunctions` for what the fields mean."""

    name: str
    value: Elementwise
    derivative: Elementwise | None = None
    denominator: Denominator = "all"


def cross_entropy() -> TokenLoss:
    """-log p: f is the identity, so no token is ever dead."""
    return TokenLoss("cross-entropy", lambda nll: nll, lambda nll: nll.new_ones(nll.shape))


def truncated(gamma: float, *, denominator: Denominator = "all") -> TokenLoss:
    """Truncated Cross Entropy: -log p where p <= gamma, else 0 (ForTIFAI, Section 4).

    The mask is a constant for the gradient. It is taken in log space: near p = 1 the numbers of bfloat16 are
    1/256 apart, those of nll are not.

    Raises:
        ValueError: gamma outside (0, 1].
    """
    if not 0 < gamma <= 1:
        raise ValueError(f"gamma = {gamma}: must lie in (0, 1]; 0 would mask every token, 1 is cross entropy")
    # At gamma = 1 nothing may be dead, not even a token whose nll was rounded to 0 or just below it.
    threshold = -math.log(gamma) if gamma < 1 else -math.inf

    # "below the threshold" rather than "not above it": a NaN must stay alive, or nobody would notice it
    def value(nll: Tensor) -> Tensor:
        return nll.masked_fill(nll < threshold, 0.0)

    def derivative(nll: Tensor) -> Tensor:
        return nll.new_ones(nll.shape).masked_fill(nll < threshold, 0.0)

    return TokenLoss(f"tce-{gamma:g}", value, derivative, denominator)


def focal(gamma: float = 2.0) -> TokenLoss:
    """Focal loss, (1 - p)^gamma * -log p (Lin et al. 2017); the factor takes part in the gradient.

    Raises:
        ValueError: gamma is negative or not finite.
    """
    if not 0 <= gamma < math.inf:
        raise ValueError(f"gamma = {gamma}: must be finite and not negative; 0 is cross entropy")

    def value(nll: Tensor) -> Tensor:
        return (-(-nll).expm1()).clamp_min(_TINY) ** gamma * nll

    def derivative(nll: Tensor) -> Tensor:
        # f' = q^g + g q^(g-1) p nll with q = 1 - p; written with nll/q, which goes to 1 (not to 0/0) as p -> 1
        nll = nll.clamp_min(0.0)
        q = -(-nll).expm1()
        ratio = (nll / q).masked_fill(q == 0, 1.0)
        return q**gamma * (1 + gamma * (-nll).exp() * ratio)

    return TokenLoss(f"focal-{gamma:g}", value, derivative)


def custom(fn: Elementwise, *, name: str = "custom", denominator: Denominator = "all") -> TokenLoss:
    """Any elementwise, differentiable f(nll); autograd gives the derivative."""
    return TokenLoss(name, fn, None, denominator)


def derivative_of(loss: LossFunctions, nll: Tensor) -> Tensor:
    """f'(nll), of the shape and dtype of `nll`, without a graph; taken by autograd where the loss states none.

    Raises:
        ValueError: f or f' does not keep the shape, so it is not elementwise.
    """
    import torch

    nll = nll.detach()
    if loss.derivative is not None:
        with torch.no_grad():
            slope = loss.derivative(nll)
    else:
        with torch.enable_grad():
            point = nll.clone().requires_grad_()
            value = loss.value(point)
            if value.shape != nll.shape:
                raise ValueError(f"loss.value: expected shape {tuple(nll.shape)}, got {tuple(value.shape)}")
            if value.requires_grad:
                (slope,) = torch.autograd.grad(value.sum(), point)
            else:  # a constant
                slope = torch.zeros_like(nll)
    if slope.shape != nll.shape:
        raise ValueError(f"loss.derivative: expected shape {tuple(nll.shape)}, got {tuple(slope.shape)}")
    return slope.to(nll.dtype)
