"""Fused linear + masked cross entropy, a leaf that any training code can import.

Kept free of `torch` and of `__version__` at import: transformers probes any package named `kernels`. Imports inside are
relative: the same folder is also the package `fortifai_kernels`, beside which another `kernels` may be installed.
The names below are loaded when they are first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .dispatch import LossOutput, LossStatistics, cross_entropy, linear_cross_entropy
    from .install import Handle, install_loss_head
    from .losses import TokenLoss

__all__ = [
    "Handle",
    "LossOutput",
    "LossStatistics",
    "TokenLoss",
    "cross_entropy",
    "install_loss_head",
    "linear_cross_entropy",
]

# No module may carry the name of a function exported here: importing it would hide the function.
_HOME = {
    "Handle": "install",
    "LossOutput": "dispatch",
    "LossStatistics": "dispatch",
    "TokenLoss": "losses",
    "cross_entropy": "dispatch",
    "install_loss_head": "install",
    "linear_cross_entropy": "dispatch",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
