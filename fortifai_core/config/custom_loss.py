"""A user's own loss: loads the function that a configuration names, and tries it before any training is spent on it.

Nothing here imports torch before a loss is tried, so that a configuration can be checked without it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from fortifai_core.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


def load_custom(function: str, options: Mapping[str, Any]) -> Callable[[Tensor], Tensor]:
    """Import a user's own f(nll, **options) from `module:function`.

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
    loss = getattr(module, name, None)
    if loss is None:
        raise ConfigError(field, function, f"module {module_name!r} has no {name!r}")
    if not callable(loss):
        raise ConfigError(field, function, f"{name!r} is a {type(loss).__name__}, not a function of nll")
    try:
        signature = inspect.signature(loss)
    except ValueError:
        signature = None  # functions written in C state none; the call itself will tell
    if signature is not None:
        try:
            signature.bind(None, **options)
        except TypeError as error:
            raise ConfigError(
                "losses.options", dict(options), f"{function} is called as f(nll, **options), but {error}"
            ) from error
    return partial(loss, **options)


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
