"""An estimate with its interval: the one type for every interval, whatever it was made from."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """An estimate between two ends, each of which may be infinite; both are NaN where no interval can be made.

    Attributes:
        level: how often such an interval should hold the truth.
    """

    estimate: float
    low: float
    high: float
    level: float = 0.95

    @property
    def known(self) -> bool:
        """Whether there is an interval."""
        return not math.isnan(self.low)

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0

    @property
    def margin(self) -> float:
        """The longer of its two arms: for `84.2 ± 3.1`, where there is no room for both ends."""
        return max(self.estimate - self.low, self.high - self.estimate)


@dataclass(frozen=True)
class Measured(Interval):
    """What was measured over runs, or over the replicates of one run: an interval, and how much it rests on.

    Attributes:
        runs: how many it is the mean of.
        questions, clusters: over all runs, where it is a share of questions; clusters are documents.
        replicates: where it is a median over the replicates of one run, how many these are; else 0.
    """

    runs: int = 1
    questions: int = 0
    clusters: int = 0
    replicates: int = 0
