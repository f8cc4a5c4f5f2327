"""Refuses to go on with numbers that are none: a loss before its step, and weights before they are kept."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.distributed.tensor import DTensor

from fortifai_core.errors import NonFiniteLoss

SHOWN = 8


def check_loss(loss: float, *, where: str, batch: Sequence[int], remedy: str) -> None:
    """To be called before the optimizer takes the step.

    Args:
        loss: of one batch.
        where: generation, epoch or step.
        batch: numbers of its rows in the training set.
        remedy: what to change.

    Raises:
        NonFiniteLoss: it is NaN or infinite.
    """
    if not math.isfinite(loss):
        rows = ", ".join(map(str, batch[:SHOWN])) + (", …" if len(batch) > SHOWN else "")
        raise NonFiniteLoss(f"{where}: the training loss became {loss} on the batch of rows {rows}; {remedy}")


def check_weights(model: torch.nn.Module, *, where: str, remedy: str) -> None:
    """To be called after the last step, which may have spoilt them though its loss was finite.

    Raises:
        NonFiniteLoss: a weight is NaN or infinite; it is named.
    """
    for name, weight in model.named_parameters():
        here = weight.to_local() if isinstance(weight, DTensor) else weight  # each process looks at its part
        if not torch.isfinite(here).all():
            raise NonFiniteLoss(f"{where}: the weights of {name} became NaN or infinite; {remedy}")
