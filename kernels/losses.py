"""The seam of the kernels: a loss is a function of a few numbers per token, with its derivative.

Most losses are f(nll), nll = -log p of the target. Every kernel computes nll and the gradient
f'(nll) * (softmax - onehot); all that tells one such loss from another is f. A token with f' = 0 is dead: nothing has
to be computed for it in the backward pass. Other losses also ask for what a row's softmax tells beside, see
`RowStatistics`. Any object with the attributes of `LossFunctions` will do; the constructors below make the usual ones.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    from torch import Tensor

Elementwise = Callable[..., "Tensor"]
Denominator = Literal["all", "live"]

# Keeps autograd through q**gamma finite where q = 1 - p underflows; a normal number in float32 and float64.
_TINY = 1e-37
_CLEARLY = 1 - 1e-4  # so much below a bound that it is no rounding
_CARRIED = ("lse", "smooth")  # what the gradient goes through, beside nll


class RowStatistics(NamedTuple):
    """What a row's softmax p over the vocabulary tells: (rows,) each, of the wide type; none if nobody asks for it.

    nll: -log p of the target.
    entropy: -sum_j p_j log p_j, in nats. A constant for the gradient, as in the papers that weigh by it.
    lse: log sum_j exp(z_j) of the logits z, after scale and soft cap.
    smooth: the mean of -log p_j over the vocabulary.
    tempered: log sum_j p_j^(1/T), T the loss's `temperature`. A constant for the gradient.
    """

    nll: Tensor
    entropy: Tensor | None = None
    lse: Tensor | None = None
    smooth: Tensor | None = None
    tempered: Tensor | None = None


class LossFunctions(Protocol):
    """What a kernel needs of a loss.

    value: f, from nll >= 0 (float32 or float64, any shape) to the loss of each token, of the same shape.
    derivative: f', likewise; None has it taken from f by autograd.
    denominator: a mean is over "all" target tokens, or over the "live" ones.

    It may have the other fields of `TokenLoss` too.
    """

    @property
    def value(self) -> Elementwise: ...
    @property
    def derivative(self) -> Elementwise | None: ...
    @property
    def denominator(self) -> Denominator: ...


@dataclass(frozen=True)
class TokenLoss:
    """A loss under its name. See `LossFunctions` for its functions.

    needs: fields of `RowStatistics` that f and f' are given after nll, in this order.
    temperature: T of `RowStatistics.tempered`.
    drop_sequences: this share of a call's sequences, those whose mean nll is least, is left out: see `tail`.
    """

    name: str
    value: Elementwise
    derivative: Elementwise | None = None
    denominator: Denominator = "all"
    needs: tuple[str, ...] = ()
    temperature: float = 1.0
    drop_sequences: float = 0.0


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


def truncated_by_entropy(factor: float = 1.0) -> TokenLoss:
    """Truncated cross entropy whose threshold is each row's own: -log p where it is at least factor * H, else 0.

    H is the entropy of the row's softmax, so with a factor of 1 a token is masked where it is more probable than is
    typical of its place (as locally typical sampling counts it: Meister et al. 2023, arXiv 2202.00666): such tokens are
    what decoding below a temperature of 1 writes too often. The mask is a constant for the gradient. With a factor of 1
    a row without a preference, whose -log p is H for all tokens, is kept: what is masked is below H by 1 in 10,000.

    Raises:
        ValueError: factor is negative or not finite.
    """
    if not 0 <= factor < math.inf:
        raise ValueError(f"factor = {factor}: must be finite and not negative; 0 is cross entropy")

    def masked(nll: Tensor, entropy: Tensor) -> Tensor:
        return nll < factor * _CLEARLY * entropy  # a NaN stays alive, as in `truncated`

    return TokenLoss(
        f"tce-entropy-{factor:g}",
        lambda nll, entropy: nll.masked_fill(masked(nll, entropy), 0.0),
        lambda nll, entropy: nll.new_ones(nll.shape).masked_fill(masked(nll, entropy), 0.0),
        needs=("entropy",),
    )


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


def label_smoothing(epsilon: float = 0.1) -> TokenLoss:
    """(1 - epsilon) nll + epsilon times the mean of -log p_j over the vocabulary (Szegedy et al. 2016).

    The same as torch's `label_smoothing`: a share epsilon of the target is spread over all tokens, the target's too.

    Raises:
        ValueError: epsilon outside [0, 1).
    """
    if not 0 <= epsilon < 1:
        raise ValueError(f"epsilon = {epsilon}: must lie in [0, 1); 0 is cross entropy")

    def value(nll: Tensor, smooth: Tensor) -> Tensor:
        return (1 - epsilon) * nll + epsilon * smooth

    return TokenLoss(f"smoothing-{epsilon:g}", value, needs=("smooth",))


def z_loss(weight: float = 1e-4, loss: TokenLoss | None = None) -> TokenLoss:
    """A loss (cross entropy by default) plus weight * log^2 Z, Z = sum_j exp(z_j) (PaLM, Chowdhery et al. 2022).

    The added term acts on every token, also on one that the other loss masks: no token is dead.

    Raises:
        ValueError: weight is negative or not finite.
    """
    if not 0 <= weight < math.inf:
        raise ValueError(f"weight = {weight}: must be finite and not negative; PaLM has 1e-4")
    base = cross_entropy() if loss is None else loss

    def value(nll: Tensor, *others: Tensor) -> Tensor:
        return base.value(nll, *others[:-1]) + weight * others[-1] ** 2

    return TokenLoss(
        f"{base.name}-z-{weight:g}",
        value,
        denominator=base.denominator,
        needs=(*base.needs, "lse"),
        temperature=base.temperature,
        drop_sequences=base.drop_sequences,
    )


def dft() -> TokenLoss:
    """Dynamic Fine-Tuning: p * -log p, p a constant for the gradient (Wu et al. 2025, arXiv 2508.05629)."""
    return TokenLoss("dft", lambda nll: (-nll).exp().detach() * nll, lambda nll: (-nll).exp())


def eaft(alpha: float = 1.0) -> TokenLoss:
    """Entropy-Adaptive Fine-Tuning: min(H / ln 20, 1)^alpha * -log p, H a constant for the gradient.

    Diao et al. 2026 (arXiv 2601.02151) gate each token by its entropy: what the model is sure of and what says
    otherwise is hardly learned. They take the entropy H of the 20 most probable tokens, divided by its maximum ln 20.
    Here H is that of the whole vocabulary, which the chunk gives along; above ln 20 the gate is open, so it lies in
    [0, 1] as theirs does.

    Raises:
        ValueError: alpha is negative or not finite.
    """
    if not 0 <= alpha < math.inf:
        raise ValueError(f"alpha = {alpha}: must be finite and not negative; 0 is cross entropy")

    def gate(nll: Tensor, entropy: Tensor) -> Tensor:
        return (entropy / math.log(20)).clamp(0, 1).detach() ** alpha

    return TokenLoss(f"eaft-{alpha:g}", lambda nll, entropy: gate(nll, entropy) * nll, gate, needs=("entropy",))


def undo_temperature(temperature: float, *, ceiling: float | None = None) -> TokenLoss:
    """-log p weighted by p^(1 - 1/T) Z, Z = sum_j p_j^(1/T): importance weights for text sampled at temperature T.

    Sampling at T draws a token with probability q = p^(1/T) / Z; the weight is p / q, so its mean over such text is 1,
    and the weighted loss is that of text sampled at temperature 1. It is a constant for the gradient. p is that of the
    model in training, in place of the one that wrote the text: right where training begins from it. Cuts such as top-p
    are not undone: what they removed is in no text.

    Args:
        temperature: T > 0; 1 is cross entropy.
        ceiling: no weight is larger, at the price of a bias; none by default. For T < 1 weights have no bound.

    Raises:
        ValueError: a temperature or ceiling that is not positive and finite.
    """
    for name, number in (("temperature", temperature), ("ceiling", 1.0 if ceiling is None else ceiling)):
        if not 0 < number < math.inf:
            raise ValueError(f"{name} = {number}: must be positive and finite")

    def weight(nll: Tensor, tempered: Tensor) -> Tensor:
        return (tempered - (1 - 1 / temperature) * nll).exp().clamp(max=ceiling or math.inf).detach()

    return TokenLoss(
        f"untempered-{temperature:g}" + ("" if ceiling is None else f"-{ceiling:g}"),
        lambda nll, tempered: weight(nll, tempered) * nll,
        weight,
        needs=("tempered",),
        temperature=temperature,
    )


def tail(drop: float = 0.2, loss: TokenLoss | None = None) -> TokenLoss:
    """TailSFT: a loss (cross entropy by default) over the sequences that are not yet fit (arXiv 2608.25756).

    A sequence is what stands along the last axis of the targets. Of each call the share `drop` of the sequences is left
    out (rounded, never all): those whose mean nll has fallen furthest below where it was before training, which the
    caller hands in as `sequence_baseline`. Without that, a sequence is judged by its own mean nll alone. The choice is
    a constant for the gradient; a mean is over the live tokens of the sequences that are left. (Malladi et al. 2026,
    Algorithm 1, as the example in TRL has it. Its share changes during training; here it stays. It chooses over all
    processes; here each call chooses among its own.)

    Raises:
        ValueError: drop outside [0, 1).
    """
    if not 0 <= drop < 1:
        raise ValueError(f"drop = {drop}: must lie in [0, 1); 0 drops no sequence")
    base = cross_entropy() if loss is None else loss
    return TokenLoss(
        f"{base.name}-tail-{drop:g}", base.value, base.derivative, "live", base.needs, base.temperature, drop
    )


def custom(fn: Elementwise, *, name: str = "custom", denominator: Denominator = "all") -> TokenLoss:
    """Any elementwise, differentiable f(nll), or f(nll, entropy); autograd gives the derivative.

    After nll, which comes first, f is given what its parameters without a default name of `RowStatistics`: entropy,
    lse or smooth. What shall be a constant for the gradient it detaches; entropy is one.
    """
    return TokenLoss(name, fn, None, denominator, named_needs(fn))


def named_needs(fn: Elementwise) -> tuple[str, ...]:
    """The fields of `RowStatistics` that a function asks for by the names of its parameters, beside the first."""
    try:
        parameters = list(inspect.signature(fn).parameters.values())[1:]
    except (TypeError, ValueError):  # a builtin, which takes nll alone
        return ()
    asked = (p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD)
    return tuple(name for name in asked if name in ("entropy", "lse", "smooth"))


def needs_of(loss: LossFunctions) -> tuple[str, ...]:
    """The fields of `RowStatistics` that the loss is given after nll."""
    return getattr(loss, "needs", ())


def coefficients_of(loss: LossFunctions) -> int:
    """How many numbers a row's gradient is made of: see `slopes_of`."""
    needs = needs_of(loss)
    return 3 if "smooth" in needs else 2 if "lse" in needs else 1


def value_of(loss: LossFunctions, rows: RowStatistics) -> Tensor:
    """The loss of each row, (rows,), with the graph that `rows` has.

    Raises:
        ValueError: f does not keep the shape, so it is not elementwise.
    """
    value = loss.value(rows.nll, *(getattr(rows, name) for name in needs_of(loss)))
    if value.shape != rows.nll.shape:
        raise ValueError(f"loss.value: expected shape {tuple(rows.nll.shape)}, got {tuple(value.shape)}")
    return value


def slopes_of(loss: LossFunctions, rows: RowStatistics) -> Tensor:
    """(coefficients_of(loss), rows), without a graph: what the gradient of a row's logits is made of.

    That gradient is a * softmax - b * onehot - u / vocabulary. One number: a = b = f'(nll), u = 0. Two: a and b, where
    the loss goes through lse. Three: a, b and u, where it goes through smooth.
    """
    import torch

    needs, count = needs_of(loss), coefficients_of(loss)
    if count == 1:
        return derivative_of(loss, rows.nll, *(getattr(rows, name) for name in needs))[None]
    names = ["nll", *(name for name in _CARRIED if name in needs)]
    with torch.enable_grad():
        points = {name: getattr(rows, name).detach().clone().requires_grad_() for name in names}
        value = value_of(loss, rows._replace(**points))
        slopes = [torch.zeros_like(rows.nll) for _ in names]  # a constant's
        if value.requires_grad:
            slopes = list(
                torch.autograd.grad(value.sum(), [*points.values()], allow_unused=True, materialize_grads=True)
            )
    # d nll / dz = softmax - onehot, d lse / dz = softmax, d smooth / dz = softmax - 1 / vocabulary
    uniform = [slopes[names.index("smooth")]] if count == 3 else []
    return torch.stack([torch.stack(slopes).sum(0), slopes[0], *uniform]).to(rows.nll.dtype)


def derivative_of(loss: LossFunctions, nll: Tensor, *others: Tensor) -> Tensor:
    """f'(nll), of the shape and dtype of `nll`, without a graph; taken by autograd where the loss states none.

    others: what the loss needs beside nll, constants here.

    Raises:
        ValueError: f or f' does not keep the shape, so it is not elementwise.
    """
    import torch

    nll = nll.detach()
    if loss.derivative is not None:
        with torch.no_grad():
            slope = loss.derivative(nll, *others)
    else:
        with torch.enable_grad():
            point = nll.clone().requires_grad_()
            value = loss.value(point, *others)
            if value.shape != nll.shape:
                raise ValueError(f"loss.value: expected shape {tuple(nll.shape)}, got {tuple(value.shape)}")
            if value.requires_grad:
                (slope,) = torch.autograd.grad(value.sum(), point)
            else:  # a constant
                slope = torch.zeros_like(nll)
    if slope.shape != nll.shape:
        raise ValueError(f"loss.derivative: expected shape {tuple(nll.shape)}, got {tuple(slope.shape)}")
    return slope.to(nll.dtype)
