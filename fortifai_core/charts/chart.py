"""What a chart over generations shows: plain values, which `svg` draws."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from fortifai_core.interval import Interval


@dataclass(frozen=True)
class Point:
    """One generation of one series; `low` and `high` are None or NaN where there is no interval."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, x: float, value: Interval, scale: float = 1.0) -> Point:
        return cls(x, scale * value.estimate, scale * value.low, scale * value.high)

    @property
    def interval(self) -> tuple[float, float] | None:
        if self.low is None or self.high is None or math.isnan(self.low) or math.isnan(self.high):
            return None
        return self.low, self.high


@dataclass(frozen=True)
class Series:
    """One arm. `colour` is its place among all arms; `crossing` where it meets the threshold."""

    title: str
    colour: int
    points: tuple[Point, ...]
    crossing: float | None = None


@dataclass(frozen=True)
class Chart:
    """A chart over generations.

    Attributes:
        title: says what is shown, for screen readers.
        style: `curve` with a band, or `dots` with whiskers, side by side.
        unit: follows the number on the axis (`%`).
        rule: a dashed line with its label; a threshold.
        floor, ceiling: at least this much of the axis is shown.
        marks: every point has its arm's mark; staircases have none.
    """

    title: str
    series: tuple[Series, ...]
    style: Literal["curve", "dots"] = "curve"
    unit: str = ""
    signed: bool = False
    rule: tuple[float, str] | None = None
    floor: float | None = None
    ceiling: float | None = None
    marks: bool = True

    @property
    def empty(self) -> bool:
        return not any(series.points for series in self.series)

    @property
    def last(self) -> int:
        """The last generation on the axis."""
        return max(1, math.ceil(max(p.x for s in self.series for p in s.points) - 1e-9))

    @property
    def first(self) -> int:
        """The first generation on the axis: 0, or -1 where M_-1 is shown."""
        return min(0, math.floor(min(p.x for s in self.series for p in s.points) + 1e-9))
