"""Time to failure: where the retention of split 0 first falls below a threshold, in every unit of effort.

The paper defines it in re-training tokens (Section 4) but quotes factors that come from different units of
its Table D2; so all are computed. "Splits" are splits' worth of text, cumulated over the generations:

generations         1.69 = between M_1 and M_2, found by linear interpolation
training_splits     text read by M_0 … M_i, M_0's included
retraining_splits   text read after M_0
synthetic_splits    the model-written part of it

A run that never crosses is censored ("> 5", never a number); one that starts below the threshold has never
learned the split and has no time to failure at all. Any other measure of any model class fails the same way, below
its threshold or above it; where text is not counted in splits, generations are the only unit.

"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fortifai_core.config.stages import Reading, Regime
from fortifai_core.corpus.schedule import training_splits
from fortifai_core.errors import ConfigError, InputError

Floats = NDArray[np.float64]

Status = Literal["failed", "censored", "never-learned"]
Unit = Literal[
    "generations",
    "training_splits",
    "retraining_splits",
    "synthetic_splits",
    "training_tokens",
    "retraining_tokens",
    "synthetic_tokens",
]
UNITS: tuple[Unit, ...] = get_args(Unit)
SPLIT_UNITS: tuple[Unit, ...] = UNITS[:4]
UNIT_TITLES: dict[Unit, str] = {unit: unit.replace("_", " ").replace("retraining", "re-training") for unit in UNITS}


@dataclass(frozen=True)
class Effort:
    """How far a run had come at one moment, in every unit; None where text is not counted in that unit."""

    generations: float
    training_splits: float | None = None
    retraining_splits: float | None = None
    synthetic_splits: float | None = None
    training_tokens: float | None = None
    retraining_tokens: float | None = None
    synthetic_tokens: float | None = None

    def value(self, unit: Unit) -> float | None:
        return getattr(self, unit)

    def describe(self, unit: Unit, *, bound: bool = False) -> str:
        """`1.69`, or as a bound `> 5`; `unknown` where text is not counted in that unit."""
        value = self.value(unit)
        if value is None:
            return "unknown"
        if unit.endswith("_tokens"):
            text = f"{value:,.0f}"
        else:
            text = f"{value:g}" if bound else f"{value:.2f}"
        return f"> {text}" if bound else text


@dataclass(frozen=True)
class TimeToFailure:
    """The outcome of one run or arm.

    Attributes:
        status: `failed`, `censored` (never beyond the threshold) or `never-learned` (beyond it from the first on).
        threshold: falling below it (or rising above it) is failure, being exactly at it is not.
        last_generation: the last generation that was measured.
        failure: when it failed; None unless `status` is `failed`.
        observed: how far the run was followed; the bound of a censored run.
        falls: failure is falling below the threshold; otherwise rising above it.
        failed_in: the first generation beyond the threshold; −1 where there is none.
    """

    status: Status
    threshold: float
    last_generation: int
    failure: Effort | None
    observed: Effort
    falls: bool = True
    failed_in: int = -1

    def value(self, unit: Unit = "generations") -> float | None:
        """The time to failure in `unit`; None unless it failed and the unit is known."""
        return None if self.failure is None else self.failure.value(unit)

    @property
    def generations(self) -> float | None:
        return self.value("generations")

    def describe(self, unit: Unit = "generations") -> str:
        """`1.69`, `> 5`, `never learned` (or `from the start`); `unknown` for a unit in which nothing was counted."""
        if self.status == "never-learned":
            return "never learned" if self.falls else "from the start"
        return self.observed.describe(unit, bound=True) if self.failure is None else self.failure.describe(unit)


@dataclass(frozen=True)
class Ratio:
    """One time to failure over another; `value` is a bound for `at-least` and `at-most`, or None."""

    kind: Literal["exact", "at-least", "at-most", "undefined"]
    value: float | None
    reason: str

    def describe(self) -> str:
        """`1.71×`, `> 1.71×`, `< 0.40×` or `–`."""
        sign = {"exact": "", "at-least": "> ", "at-most": "< "}.get(self.kind, "")
        return "–" if self.value is None else f"{sign}{self.value:.2f}×"


def time_to_failure(
    retention: Sequence[float],
    *,
    threshold: float = 0.75,
    regime: Reading = Regime.PAPER,
    tokens: Sequence[tuple[float, float]] | None = None,
) -> TimeToFailure:
    """Where retention first falls below the threshold, interpolated linearly between generations.

    Args:
        retention: retention of split 0 after M_0, M_1, …, as shares in [0, 1].
        threshold: the paper's 0.75 is half way between chance and perfect.
        regime: decides how much text each generation reads.
        tokens: for each generation, (tokens trained on, the synthetic part), epochs not counted twice.

    Raises:
        InputError: retention is empty or not a share, or `tokens` does not fit it.

    >>> time_to_failure([0.803, 0.779, 0.737]).describe()
    '1.69'
    """
    if not retention:
        raise InputError("retention", [], "give the retention of at least one generation")
    for share in retention:
        if not (math.isfinite(share) and 0 <= share <= 1):
            raise InputError("retention", share, "give shares between 0 and 1, not percent")
    if not 0 < threshold < 1:
        raise InputError("threshold", threshold, "give a share between 0 and 1")
    by_generation = dict(enumerate(retention))
    return time_to_crossing(by_generation, threshold=threshold, falls=True, regime=regime, tokens=tokens)


def crossings(curves: Floats, threshold: float, *, falls: bool = True, at: Sequence[int] | None = None) -> Floats:
    """Where each curve first lies beyond a threshold, interpolated linearly: the one place that computes it.

    Being exactly at the threshold is not beyond it; NaN is, for what cannot be measured any more has collapsed, and
    from a finite value to none at all there is no line to be drawn: it had crossed by that generation.

    Args:
        curves: [curve, generation].
        falls: beyond is below the threshold; otherwise above it.
        at: the generation of each column, rising; by default 0, 1, …

    Returns:
        [curve]: generations; −inf where a curve starts beyond the threshold, inf where it never is.
    """
    moments = np.arange(curves.shape[1]) if at is None else np.asarray(at)
    beyond = _beyond(curves, threshold, falls)
    first, rows = beyond.argmax(axis=1), np.arange(len(curves))
    before = np.maximum(first - 1, 0)
    old, new = curves[rows, before], curves[rows, first]
    with np.errstate(invalid="ignore", divide="ignore"):
        part = (old - threshold) / (old - new)
    crossed = moments[before] + np.where(np.isfinite(part) & np.isfinite(new), part, 1.0) * (
        moments[first] - moments[before]
    )
    return np.where(beyond[:, 0], -np.inf, np.where(beyond.any(axis=1), crossed, np.inf))


def _beyond(curves: Floats, threshold: float, falls: bool) -> NDArray[np.bool_]:
    return np.isnan(curves) | (curves < threshold if falls else curves > threshold)


def time_to_crossing(
    values: Mapping[int, float],
    *,
    threshold: float,
    falls: bool,
    relative: bool = False,
    regime: Reading | None = None,
    tokens: Sequence[tuple[float, float]] | None = None,
) -> TimeToFailure:
    """`time_to_failure` of any measure of any model class: where it is first beyond the threshold (`crossings`).

    Args:
        values: by generation; generations may be missing, and moments are counted from M_0 all the same.
        relative: the threshold is a share of the first value.
        regime: how much text each generation reads; None where text is not counted in splits.
        tokens: as in `time_to_failure`, for every generation from M_0 on.

    Raises:
        InputError: there are no values, or `tokens` does not fit.
        ConfigError: a share is asked for of what is not positive.
    """
    if not values:
        raise InputError("values", {}, "give the value of at least one generation")
    at = sorted(values)
    start, last = values[at[0]], at[-1]
    if tokens is not None and len(tokens) != last + 1:
        raise InputError("tokens", len(tokens), f"give one pair for each of the {last + 1} generations")
    if relative and not start > 0:
        raise ConfigError("failure.relative", True, f"M_0's value is {start:g}, and has no shares; set false")
    limit = threshold * start if relative else threshold
    curve = np.array([[values[i] for i in at]], dtype=np.float64)
    moment = float(crossings(curve, limit, falls=falls, at=at)[0])
    failed_in = -1 if moment == math.inf else at[int(_beyond(curve[0], limit, falls).argmax())]
    failure = effort(moment, last_generation=last, regime=regime, tokens=tokens) if math.isfinite(moment) else None
    status: Status = "failed" if failure else "censored" if moment == math.inf else "never-learned"
    observed = effort(last, last_generation=last, regime=regime, tokens=tokens)
    return TimeToFailure(status, limit, last, failure, observed, falls, failed_in)


def effort(
    generation: float,
    *,
    last_generation: int,
    regime: Reading | None = Regime.PAPER,
    tokens: Sequence[tuple[float, float]] | None = None,
) -> Effort:
    """What had been spent `generation` generations in (1.5: half way from M_1 to M_2), for 0 ≤ it ≤ last."""
    if regime is None:
        return Effort(float(generation))
    splits = _spent(generation, [training_splits(regime, i) for i in range(last_generation + 1)])
    return Effort(float(generation), *splits, *(_spent(generation, tokens) if tokens is not None else ()))


def relative_threshold(chance: float, ce_m0: float) -> float:
    """Half way between chance and the M_0 of cross entropy: a failure threshold for models that learn little.

    Raises:
        InputError: M_0 is not above chance, so there is nothing to lose.
    """
    if ce_m0 <= chance:
        raise InputError("ce_m0", ce_m0, f"is not above chance ({chance:g}): no relative threshold exists")
    return chance + (ce_m0 - chance) / 2


def ratio(a: TimeToFailure, b: TimeToFailure, *, unit: Unit = "generations") -> Ratio:
    """How many times longer `a` lasted than `b`; a labelled bound, or nothing, where one is not a number."""
    if "never-learned" in (a.status, b.status):
        return Ratio("undefined", None, "one of them never learned the split")
    if a.status == b.status == "censored":
        return Ratio("undefined", None, "neither fell below the threshold")
    top = (a.failure or a.observed).value(unit)
    bottom = (b.failure or b.observed).value(unit)
    if top is None or bottom is None:
        return Ratio("undefined", None, "text was not counted in this unit")
    if bottom == 0:
        return Ratio("undefined", None, "the second's time is zero")
    if a.status == "censored":
        return Ratio("at-least", top / bottom, "a lower bound: the first never fell below the threshold")
    if b.status == "censored":
        return Ratio("at-most", top / bottom, "an upper bound: the second never fell below the threshold")
    return Ratio("exact", top / bottom, "both fell below the threshold")


def _spent(generation: float, read: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    """(all, after M_0, synthetic) read until `generation`; read[i] = (all, synthetic) of generation i."""
    everything = list(accumulate(pair[0] for pair in read))
    synthetic = list(accumulate(pair[1] for pair in read))
    before = min(int(generation), len(read) - 1)
    after = min(before + 1, len(read) - 1)
    part = generation - before
    total = everything[before] + part * (everything[after] - everything[before])
    return (
        float(total),
        float(total - everything[0]),
        float(synthetic[before] + part * (synthetic[after] - synthetic[before])),
    )
