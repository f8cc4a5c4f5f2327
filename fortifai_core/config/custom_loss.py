"""A user's own loss: loads the function that a configuration names, and tries it before any compute is spent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from fortifai_core.config import custom_code
from fortifai_core.config.custom_code import Kind, Source, line_of
from fortifai_core.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

LOSSES = Kind("fortifai.losses", "loss", "nll", ("entropy", "lse", "smooth"))  # of `kernels.losses.RowStatistics`


def source_of(function: str, field: str = "losses.function") -> Source:
    """The source of a loss, as `custom_code.source_of`; nothing of it is imported."""
    return custom_code.source_of(LOSSES, function, field)


def load_custom(function: str, options: Mapping[str, Any], field: str = "losses.function") -> Callable[..., Tensor]:
    """Import f(nll, **options) or, say, f(nll, entropy, **options), as `custom_code.load_function`."""
    return custom_code.load_function(LOSSES, function, options, field)


def check_elementwise(function: str, value: Callable[..., Tensor], field: str = "losses.function") -> None:
    """Try a custom loss on a few tokens, before any compute is spent.

    Raises:
        ConfigError: it fails, does not return one finite number with a finite derivative for each token, or one token's
            loss depends on others.
    """
    import torch

    trial = {
        "nll": torch.tensor([0.0, 1e-3, 0.1, 0.7, 2.0, 8.0, 100.0]),
        "entropy": torch.tensor([0.0, 9.0, 1e-3, 0.5, 3.0, 6.0, 0.1]),
        "lse": torch.tensor([-3.0, 0.0, 9.0, 30.0, 1.0, 2.0, 3.0]),
        "smooth": torch.tensor([9.0, 12.0, 30.0, 10.0, 11.0, 3.0, 100.0]),
    }
    names = ["nll", *LOSSES.asked(value)]

    def of(tokens: slice) -> tuple[Tensor, Tensor]:
        """Losses and their derivatives, by all that they are given but the entropy, which is a constant."""
        given = {name: trial[name][tokens].clone().requires_grad_(name != "entropy") for name in names}
        loss, shape = value(*given.values()), tuple(given["nll"].shape)
        if not isinstance(loss, torch.Tensor) or loss.shape != shape:
            got = tuple(loss.shape) if isinstance(loss, torch.Tensor) else type(loss).__name__
            remedy = f"must return one loss for each token; for shape {shape} it gave {got}"
            raise ConfigError(field, function, remedy)
        if not loss.requires_grad:
            raise ConfigError(field, function, f"has no derivative: torch must compute it from {', '.join(names)}")
        leaves = [each for each in given.values() if each.requires_grad]
        derivatives = torch.autograd.grad(loss.sum(), leaves, allow_unused=True, materialize_grads=True)
        return loss.detach(), torch.stack(derivatives).sum(0)

    nll = trial["nll"]
    try:
        loss, derivative = of(slice(None))
        alone = torch.cat([of(slice(i, i + 1))[0] for i in range(len(nll))])
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(field, function, f"fails on a few tokens: {line_of(error)}") from error
    for what, values in (("is", loss), ("has a derivative that is", derivative)):
        if not bool(values.isfinite().all()):
            raise ConfigError(field, function, f"{what} not finite for nll = {nll[~values.isfinite()].tolist()}")
    if not torch.allclose(alone, loss, rtol=1e-4, atol=1e-6):
        raise ConfigError(field, function, "is not elementwise: the loss of a token changes with the others")
