"""Fused linear + masked cross entropy, a leaf that any training code can import.

Kept free of `torch` and of `__version__` at import: transformers probes any package named `kernels`.
The names below are loaded when they are first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kernels.dispatch import LossOutput, LossStatistics, cross_entropy, linear_cross_entropy
    from kernels.install import Handle, install_loss_head
    from kernels.losses import TokenLoss

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
    "Handle": "kernels.install",
    "LossOutput": "kernels.dispatch",
    "LossStatistics": "kernels.dispatch",
    "TokenLoss": "kernels.losses",
    "cross_entropy": "kernels.dispatch",
    "install_loss_head": "kernels.install",
    "linear_cross_entropy": "kernels.dispatch",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'kernels' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
