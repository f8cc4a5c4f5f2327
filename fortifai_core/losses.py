"""The losses of the arms as functions of nll = -log p, the surprise at each target token, with derivatives.

With z the logits and t the target, every loss here has the gradient f'(nll) * (softmax(z) - onehot(t)): the loss
head computes nll, its gradient and the mean over tokens; f and f' are all that an arm adds. A token with f' = 0
is dead: the model learns nothing from it.

Sources: TCE, ForTIFAI (Section 4); focal, Lin et al. 2017 (Section 3). Nothing here imports torch before a tensor
comes in, so that a configuration can be checked without it.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from fortifai_core.config.loss import CrossEntropyLoss, CustomLoss, FocalLoss, Loss, TruncatedCrossEntropyLoss
from fortifai_core.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

# Keeps autograd through q**gamma finite where q = 1 - p underflows; a normal number in float32 and float64.
_TINY = 1e-37


@dataclass(frozen=True)
class TokenLossFunctions:
    """One arm's loss, as a loss head takes it.

    value: f, elementwise over nll (float32 or float64, any shape, >= 0). derivative: f', likewise, or None to have
    it from autograd. denominator: what the mean is over: "all" target tokens, or the "live" ones.
    """

    name: str
    value: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor], Tensor] | None
    denominator: Literal["all", "live"] = "all"


def cross_entropy(nll: Tensor) -> Tensor:
    """f(nll) = nll, that is -log p."""
    return nll


def cross_entropy_derivative(nll: Tensor) -> Tensor:
    """f'(nll) = 1."""
    return nll.new_ones(nll.shape)


def _threshold(gamma: float) -> float:
    if not 0 < gamma <= 1:
        raise ConfigError("gamma", gamma, "must lie in (0, 1]; 0 would mask every token, 1 is cross entropy")
    # At gamma = 1 nothing may be masked, not even a token whose nll was rounded to 0 or just below it.
    return -math.log(gamma) if gamma < 1 else -math.inf


def truncated(nll: Tensor, *, gamma: float) -> Tensor:
    """Truncated Cross Entropy (ForTIFAI, Section 4): f = nll where p <= gamma, else 0.

    Compared in log space, p <= gamma being nll >= -log gamma: near p = 1 the numbers of a short float type are far
    apart, those of nll are not. A NaN is never masked. gamma = 1 is cross entropy, to the bit.

    Raises:
        ConfigError: gamma outside (0, 1].
    """
    return nll.masked_fill(nll < _threshold(gamma), 0.0)


def truncated_derivative(nll: Tensor, *, gamma: float) -> Tensor:
    """f' = 1 where p <= gamma, else 0: the mask is a constant for the gradient."""
    return nll.new_ones(nll.shape).masked_fill(nll < _threshold(gamma), 0.0)


def focal(nll: Tensor, *, gamma: float) -> Tensor:
    """Focal loss (Lin et al. 2017, eq. 4): f = (1 - p)^gamma nll, with 1 - p taken as -expm1(-nll)."""
    return (-(-nll).expm1()).clamp_min(_TINY) ** gamma * nll


def focal_derivative(nll: Tensor, *, gamma: float) -> Tensor:
    """f' = q^gamma (1 + gamma p nll / q), q = 1 - p; the quotient goes to 1 as p -> 1, where 0/0 would be NaN."""
    nll = nll.clamp_min(0.0)
    q = -(-nll).expm1()
    ratio = (nll / q).masked_fill(q == 0, 1.0)
    return q**gamma * (1 + gamma * (-nll).exp() * ratio)


def load_custom(function: str, options: Mapping[str, Any]) -> Callable[[Tensor], Tensor]:
    """A user's own f(nll, **options), imported from `module:function`.

    Raises:
        ConfigError: the module or the function is not there, cannot be called, or does not take the options.
    """
    field = "losses.function"
    module_name, separator, name = function.partition(":")
    if not (module_name and separator and name):
        raise ConfigError(field, function, "write it as `module:function`")
    try:
        module = import_module(module_name)
    except ImportError as error:
        raise ConfigError(
            field, function, f"{error}; the module must be importable, e.g. with its folder on PYTHONPATH"
        ) from error
    found = getattr(module, name, None)
    if found is None:
        raise ConfigError(field, function, f"module {module_name!r} has no {name!r}")
    if not callable(found):
        raise ConfigError(field, function, f"{name!r} is a {type(found).__name__}, not a function of nll")
    try:
        signature = inspect.signature(found)
    except ValueError:
        signature = None  # functions written in C state none; the call itself will tell
    if signature is not None:
        try:
            signature.bind(None, **options)
        except TypeError as error:
            raise ConfigError(
                "losses.options", dict(options), f"{function} is called as f(nll, **options), but {error}"
            ) from error
    return partial(found, **options)


def check_elementwise(function: str, value: Callable[[Tensor], Tensor]) -> None:
    """Try a custom loss on a few tokens, before any training is spent on it.

    Raises:
        ConfigError: it does not return one finite number for each token, or one token's loss depends on others.
    """
    import torch

    nll = torch.tensor([0.0, 1e-3, 0.1, 0.7, 2.0, 8.0])
    result = value(nll.clone())
    field = "losses.function"
    if not isinstance(result, torch.Tensor) or result.shape != nll.shape:
        shape = tuple(result.shape) if isinstance(result, torch.Tensor) else type(result).__name__
        raise ConfigError(field, function, f"must return one loss for each token; for shape (6,) it gave {shape}")
    if not bool(result.isfinite().all()):
        raise ConfigError(field, function, f"is not finite for nll = {nll[~result.isfinite()].tolist()}")
    alone = torch.cat([value(nll[i : i + 1].clone()) for i in range(len(nll))])
    if not torch.allclose(alone, result, rtol=1e-4, atol=1e-6):
        raise ConfigError(field, function, "is not elementwise: the loss of a token changes with the others")


def loss_from_config(loss: Loss) -> TokenLossFunctions:
    """The functions of one arm.

    Raises:
        ConfigError: a custom loss that cannot be loaded, or is not elementwise and finite.
    """
    if isinstance(loss, CrossEntropyLoss):
        return TokenLossFunctions(loss.label, cross_entropy, cross_entropy_derivative)
    if isinstance(loss, TruncatedCrossEntropyLoss):
        return TokenLossFunctions(
            loss.label,
            partial(truncated, gamma=loss.gamma),
            partial(truncated_derivative, gamma=loss.gamma),
            loss.denominator,
        )
    if isinstance(loss, FocalLoss):
        return TokenLossFunctions(
            loss.label, partial(focal, gamma=loss.gamma), partial(focal_derivative, gamma=loss.gamma)
        )
    assert isinstance(loss, CustomLoss)
    value = load_custom(loss.function, loss.options)
    check_elementwise(loss.function, value)
    return TokenLossFunctions(loss.label, value, None)
