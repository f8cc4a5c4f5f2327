"""A user's own loss: loads the function that a configuration names, and tries it before any compute is spent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from fortifai_core.config import custom_code
from fortifai_core.config.custom_code import Kind, Source, line_of
from fortifai_core.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

LOSSES = Kind("fortifai.losses", "loss", "nll")


def source_of(function: str, field: str = "losses.function") -> Source:
    """The source of a loss, as `custom_code.source_of`; nothing of it is imported."""
    return custom_code.source_of(LOSSES, function, field)


def load_custom(
    function: str, options: Mapping[str, Any], field: str = "losses.function"
) -> Callable[[Tensor], Tensor]:
    """Import f(nll, **options), as `custom_code.load_function`."""
    return custom_code.load_function(LOSSES, function, options, field)


def check_elementwise(function: str, value: Callable[[Tensor], Tensor], field: str = "losses.function") -> None:
    """Try a custom loss on a few tokens, before any compute is spent.

    Raises:
        ConfigError: it fails, does not return one finite number with a finite derivative for each token, or one token's
            loss depends on others.
    """
    import torch

    def of(nll: Tensor) -> tuple[Tensor, Tensor]:
        """Losses and their derivatives."""
        leaf = nll.clone().requires_grad_()
        loss = value(leaf)
        if not isinstance(loss, torch.Tensor) or loss.shape != nll.shape:
            shape = tuple(loss.shape) if isinstance(loss, torch.Tensor) else type(loss).__name__
            remedy = f"must return one loss for each token; for shape {tuple(nll.shape)} it gave {shape}"
            raise ConfigError(field, function, remedy)
        if not loss.requires_grad:
            raise ConfigError(field, function, "has no derivative: it must be computed from nll by torch")
        (derivative,) = torch.autograd.grad(loss.sum(), leaf)
        return loss.detach(), derivative

    nll = torch.tensor([0.0, 1e-3, 0.1, 0.7, 2.0, 8.0, 100.0])
    try:
        loss, derivative = of(nll)
        alone = torch.cat([of(nll[i : i + 1])[0] for i in range(len(nll))])
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(field, function, f"fails on a few tokens: {line_of(error)}") from error
    for what, values in (("is", loss), ("has a derivative that is", derivative)):
        if not bool(values.isfinite().all()):
            raise ConfigError(field, function, f"{what} not finite for nll = {nll[~values.isfinite()].tolist()}")
    if not torch.allclose(alone, loss, rtol=1e-4, atol=1e-6):
        raise ConfigError(field, function, "is not elementwise: the loss of a token changes with the others")
