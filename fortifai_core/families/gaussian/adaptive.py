"""Adaptive gamma: choose how much to mask so that the measured amplification balances the measured contraction.

A generation of recursive training shrinks the spread of what a model produces (contraction: below 1) and a mask
that drops the densest share widens it again (amplification: above 1). Where their product is 1 the spread stays.
The controller sees these two numbers of each generation and nothing else, so it serves any model class that can
measure them: for the 1-D Gaussian they are ratios of variances; for a language model any positive measure of
spread would do.

    state = start(settings)                               # state.gamma is for the first generation
    state = observe(settings, state, contraction=c, amplification=a)      # state.gamma is for the next one

How the next gamma is found, with m = 1 − gamma the masked share:

1. log(amplification) = response · m, a line through the origin, fitted to past generations by least squares that
   forget. For a Gaussian the response is 1 at m → 0 (the prior) and 1.10 at m = 0.2, so a line does.
2. The share needed is m* = (−mean log contraction − restore · drift) / response. `drift` is the sum of all log
   contractions and amplifications so far, that is, the log of the spread now over the spread at the start. Without
   it (restore = 0) the spread would keep what it lost before the balance was found, and walk randomly after.
3. m moves by `rate` of the way to m*, within the bounds.

Everything is deterministic and elementwise: a state of shape (replicates,) is as many controllers side by side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, model_validator

from fortifai_core.errors import DataError
from fortifai_core.settings import Frozen, Inconsistent

Floats = NDArray[np.float64]

# What the response is believed to be before anything was measured, as if one generation had masked this share.
_PRIOR_RESPONSE = 1.0
_PRIOR_SHARE = 0.02
# A mask that hardly amplifies asks for a large share, not for an infinite or a negative one.
_LEAST_RESPONSE = 0.1


class BalanceSettings(Frozen):
    """Settings of the controller; the defaults settle within some ten generations."""

    start: float = Field(1.0, gt=0, le=1, description="gamma of the first generation that is masked.")
    low: float = Field(0.5, gt=0, lt=1, description="Smallest gamma allowed.")
    high: float = Field(1.0, gt=0, le=1, description="Largest gamma allowed; 1 allows no mask at all.")
    smoothing: float = Field(0.1, gt=0, le=1, description="Weight of the newest generation in the running means.")
    rate: float = Field(0.5, gt=0, le=1, description="Part of the way to the wanted gamma taken in one generation.")
    restore: float = Field(
        0.05, ge=0, le=1, description="Part of the accumulated drift in log variance undone in one generation."
    )

    @model_validator(mode="after")
    def _bounds_in_order(self) -> BalanceSettings:
        if self.low >= self.high:
            raise Inconsistent("mask.low", self.low, f"must be below mask.high = {self.high}")
        if not self.low <= self.start <= self.high:
            raise Inconsistent("mask.start", self.start, f"must lie between low = {self.low} and high = {self.high}")
        return self


@dataclass(frozen=True)
class BalanceState:
    """Memory of the controller; all arrays have one shape, () for a single controller.

    Attributes:
        gamma: least dense share to keep in the next generation.
        log_contraction: running mean of the log of the contraction.
        weight, product: sums of m² and of m · log(amplification), which fade; their ratio is the response.
        drift: log of the spread (variance) now over the spread at the start.
        observed: number of generations seen.
    """

    gamma: Floats
    log_contraction: Floats
    weight: Floats
    product: Floats
    drift: Floats
    observed: Floats

    @property
    def response(self) -> Floats:
        """log(amplification) per masked share, as measured so far; shrunk to its prior where little was masked."""
        prior = _PRIOR_SHARE**2
        fitted = (self.product + prior * _PRIOR_RESPONSE) / (self.weight + prior)
        return np.maximum(fitted, _LEAST_RESPONSE)

    def arrays(self) -> dict[str, Floats]:
        """The state as named arrays (copies), for a safetensors file or, through `tolist`, for JSON."""
        return {field.name: np.array(getattr(self, field.name)) for field in fields(self)}

    @staticmethod
    def from_arrays(arrays: Mapping[str, ArrayLike]) -> BalanceState:
        """Inverse of `arrays`; also takes lists and numbers. Raises DataError where one is missing or not finite."""
        found = {}
        for field in fields(BalanceState):
            if field.name not in arrays:
                raise DataError(
                    "controller state", sorted(arrays), f"lacks {field.name!r}; start from a complete state"
                )
            found[field.name] = np.array(arrays[field.name], dtype=np.float64)
            if not np.isfinite(found[field.name]).all():
                raise DataError(f"controller state.{field.name}", arrays[field.name], "must be finite")
        if len({value.shape for value in found.values()}) > 1:
            shapes = {name: value.shape for name, value in found.items()}
            raise DataError("controller state", shapes, "all arrays must have the same shape")
        return BalanceState(**found)


def start(settings: BalanceSettings, *, shape: tuple[int, ...] = ()) -> BalanceState:
    """Controllers that have seen nothing yet, as many as `shape` says."""
    zeros = {field.name: np.zeros(shape) for field in fields(BalanceState)}
    return BalanceState(**{**zeros, "gamma": np.full(shape, settings.start)})


def observe(
    settings: BalanceSettings, state: BalanceState, *, contraction: ArrayLike, amplification: ArrayLike
) -> BalanceState:
    """The state after one generation that was trained with `state.gamma`.

    Args:
        contraction: spread of the generated sample over that of the model that generated it; variances for a Gaussian.
        amplification: spread of the model fitted under the mask over that of the sample.

    Both have the state's shape (or broadcast to it). Raises DataError for values that are not positive and finite.
    """
    shrunk = _log(contraction, "contraction", state.gamma.shape)
    widened = _log(amplification, "amplification", state.gamma.shape)
    masked = 1 - state.gamma
    observed = state.observed + 1
    # A plain mean at first, so that the first generation is not diluted with the zero it started from.
    share = np.maximum(settings.smoothing, 1 / observed)
    seen = BalanceState(
        gamma=state.gamma,
        log_contraction=state.log_contraction + share * (shrunk - state.log_contraction),
        weight=(1 - settings.smoothing) * state.weight + masked**2,
        product=(1 - settings.smoothing) * state.product + masked * widened,
        drift=state.drift + shrunk + widened,
        observed=observed,
    )
    wanted = (-seen.log_contraction - settings.restore * seen.drift) / seen.response
    gamma = np.clip(1 - (masked + settings.rate * (wanted - masked)), settings.low, settings.high)
    return BalanceState(**{**seen.arrays(), "gamma": gamma})


def _log(value: ArrayLike, name: str, shape: tuple[int, ...]) -> Floats:
    array = np.asarray(value, dtype=np.float64)
    if not (np.isfinite(array).all() and (array > 0).all()):
        raise DataError(name, value, "must be positive and finite: it is a ratio of two spreads")
    return np.array(np.broadcast_to(np.log(array), shape))
