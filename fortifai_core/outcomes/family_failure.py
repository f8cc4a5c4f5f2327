"""Time to failure of a run of any family: where a measure first lies beyond a threshold, in generations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from fortifai_core.errors import ConfigError

Status = Literal["failed", "censored", "never-learned"]


@dataclass(frozen=True)
class FamilyFailureTime:
    """The outcome of one run.

    Attributes:
        status: `failed`, `censored` (never beyond the threshold) or `never-learned` (beyond it from M_0 on).
        generations: when it failed, interpolated linearly; None unless it failed.
        failed_in: the first generation beyond the threshold; −1 where there is none.
        last: the last generation that was measured.
        threshold: the threshold itself, also where it was given as a share of M_0's value.
    """

    status: Status
    generations: float | None
    failed_in: int
    last: int
    threshold: float

    def describe(self) -> str:
        """`1.69`, `> 5` or `never learned`."""
        if self.status == "failed":
            assert self.generations is not None
            return f"{self.generations:.2f}"
        return f"> {self.last}" if self.status == "censored" else "never learned"


def first_beyond(
    values: Mapping[int, float], *, threshold: float, when: Literal["below", "above"], relative: bool = False
) -> FamilyFailureTime:
    """When `values`, by generation, first lie below (or above) the threshold; being exactly at it is not failure.

    A value that is not a number counts as beyond: nothing can be measured on what has collapsed altogether.

    Args:
        relative: the threshold is a share of the value at the first generation.

    Raises:
        ValueError: there are no values.
        ConfigError: a share is asked for of what is not positive.
    """
    if not values:
        raise ValueError("values: there are none to look at")
    generations = sorted(values)
    start = generations[0]
    if relative and not values[start] > 0:
        raise ConfigError("failure.relative", True, f"M_0's value is {values[start]:g}, and has no shares; set false")
    limit = threshold * values[start] if relative else threshold
    sign = 1.0 if when == "below" else -1.0

    def beyond(value: float) -> bool:
        return math.isnan(value) or sign * value < sign * limit

    found = next((i for i in generations if beyond(values[i])), None)
    if found is None:
        return FamilyFailureTime("censored", None, -1, generations[-1], limit)
    if found == start:
        return FamilyFailureTime("never-learned", None, found, generations[-1], limit)
    before = generations[generations.index(found) - 1]
    old, new = values[before], values[found]
    # from a finite value to none at all there is no line to be drawn: it had failed by that generation
    share = (old - limit) / (old - new) if math.isfinite(new) else 1.0
    return FamilyFailureTime("failed", before + share * (found - before), found, generations[-1], limit)
