"""When to probe next: every so many steps, or so seldom that probes take at most a share of the training's time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from fortifai_core.errors import InputError

COST = 0.02
SLOWER = 2  # a probe may take so many times as long as those before it: the baseline reads no batch and knows no KL


class Pace:
    """Which steps are probed.

    By default the measured cost decides: a probe is made when it and a last one at the end fit into `cost` of the time
    that training has taken by then, probes not counted.

    Args:
        every: steps between probes, whatever they cost.
        cost: share of the training's time.
        clock: seconds.

    Raises:
        InputError: `every` is no whole number from 1, or `cost` no share.
    """

    def __init__(
        self, *, every: int | None = None, cost: float = COST, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        if every is not None and (type(every) is not int or every < 1):
            raise InputError("every", every, "give a whole number of steps from 1, or nothing")
        if not isinstance(cost, (int, float)) or not 0 < cost <= 1:
            raise InputError("cost", cost, "give a share of the training's time above 0 and at most 1")
        self._every, self._cost, self._clock = every, cost, clock
        self._began = clock()
        self.first = self.next = 0
        self.spent = self._longest = 0.0

    def begin(self, step: int) -> None:
        """Training begins, or goes on, after this step; before the baseline is taken."""
        self._began, self.first = self._clock(), step
        self.spent = self._longest = 0.0
        self.next = step + (self._every or 1)

    def count(self, seconds: float) -> None:
        """A probe took so long."""
        self.spent += seconds
        # the first is the slowest, kernels being chosen and memory being fetched: it weighs less with every other one
        self._longest = seconds if not self._longest else max(seconds, (self._longest + seconds) / 2)

    @property
    def trained(self) -> float:
        """Seconds since the beginning, probes not counted."""
        return max(0.0, self._clock() - self._began - self.spent)

    @property
    def share(self) -> float:
        """What the probes took, as a share of the training's time."""
        return self.spent / self.trained if self.trained else math.inf

    def due(self, step: int) -> bool:
        """Whether to probe after this step; sets `next`, the first step at which it is worth asking again."""
        if step < self.next:
            return False
        if self._every is not None:
            self.next = step + self._every
            return True
        needed = (self.spent + 2 * SLOWER * self._longest) / self._cost
        missing = needed - self.trained
        if missing <= 0:
            self.next = step + 1
            return True
        seconds_a_step = self.trained / max(1, step - self.first)
        self.next = step + (math.ceil(missing / seconds_a_step) if seconds_a_step else 1)
        return False
