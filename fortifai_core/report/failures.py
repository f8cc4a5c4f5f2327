"""Times to failure of the runs of one arm, of whatever model class: each seed's, and all of them as a sample."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from fortifai_core.outcomes.survival import FEWEST_RUNS, Survival, survival
from fortifai_core.outcomes.time_to_failure import TimeToFailure


@dataclass(frozen=True)
class RunFailures:
    """The runs of one arm, and what they say together.

    Attributes:
        by_seed: each run's time to failure; empty where it was not measured.
        survival: of the runs, where at least three of them learned what they could lose.
    """

    by_seed: Mapping[int, TimeToFailure]
    survival: Survival | None = None

    @property
    def outcomes(self) -> tuple[str, ...]:
        """Each run's time to failure in words."""
        return tuple(outcome.describe() for outcome in self.by_seed.values())

    @property
    def failed(self) -> int:
        return sum(outcome.status == "failed" for outcome in self.by_seed.values())

    @property
    def never_learned(self) -> int:
        return sum(outcome.status == "never-learned" for outcome in self.by_seed.values())

    @property
    def median(self) -> float | None:
        """The plain median in generations; None where fewer than half of the runs that learned have failed."""
        learned = [outcome for outcome in self.by_seed.values() if outcome.status != "never-learned"]
        moments = [math.inf if outcome.generations is None else outcome.generations for outcome in learned]
        median = statistics.median(moments) if moments else math.inf
        return median if math.isfinite(median) else None


def failures_of(by_seed: Mapping[int, TimeToFailure], *, horizon: float | None, level: float) -> RunFailures:
    """The runs' times to failure together.

    Args:
        horizon: the last generation that every run was followed to; None where that is too short for a curve.
    """
    learned = sum(outcome.status != "never-learned" for outcome in by_seed.values())
    if horizon is None or learned < FEWEST_RUNS:
        return RunFailures(by_seed)
    return RunFailures(by_seed, survival(list(by_seed.values()), horizon=horizon, level=level))
