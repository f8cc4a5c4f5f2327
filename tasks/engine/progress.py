"""How far a stage is and how long it will still take: what the terminal's bars and the UI's progress artifacts say."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass
class StageProgress:
    """What a stage at work has told.

    The time left is estimated from the pace since its first word: waiting for a worker, and what an earlier attempt
    had finished, count neither as time nor as work.

    Attributes:
        done, total: in the unit's items; `total` is 0 as long as nothing was told.
        unit: what is counted, with what else the stage has to say: `tokens, 2,000 a second, acceptance 40%`.
    """

    done: int = 0
    total: int = 0
    unit: str = ""
    _first: tuple[float, int] = (0.0, 0)
    _latest: float = 0.0

    def tell(self, done: int, total: int, unit: str, *, now: float | None = None) -> None:
        """Take in what the stage says. `now`: seconds of a clock that only goes forward."""
        self._latest = time.monotonic() if now is None else now
        if total != self.total or done < self.done:
            self._first = (self._latest, done)
        self.done, self.total, self.unit = done, total, unit

    @property
    def percent(self) -> float:
        return 100.0 * self.done / max(1, self.total)

    @property
    def seconds_left(self) -> float | None:
        """None as long as there is no pace to tell it from."""
        begun, before = self._first
        if self.done == before:
            return None
        return (self._latest - begun) * (self.total - self.done) / (self.done - before)

    def __str__(self) -> str:
        from fortifai_core.wording import duration

        left = self.seconds_left
        text = f"{self.done:,} of {self.total:,} {self.unit}"
        return text if left is None or self.done == self.total else f"{text}, {duration(left)} left"
