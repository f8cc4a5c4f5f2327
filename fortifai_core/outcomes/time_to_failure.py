"""Time to failure: where the retention of split 0 first falls below a threshold, in every unit of effort.

The paper defines it in re-training tokens (Section 4) but quotes factors that come from different units of
its Table D2; so all are computed. "Splits" are splits' worth of text, cumulated over the generations:

generations         1.69 = between M_1 and M_2, found by linear interpolation
training_splits     text read by M_0 … M_i, M_0's included
retraining_splits   text read after M_0
synthetic_splits    the model-written part of it

A run that never crosses is censored ("> 5", never a number); one that starts below the threshold has never
learned the split and has no time to failure at all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, get_args

from fortifai_core.config.stages import Regime
from fortifai_core.corpus.schedule import training_splits
from fortifai_core.errors import InputError

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
    """How far a run had come at one moment, in every unit; token units are None where tokens are unknown."""

    generations: float
    training_splits: float
    retraining_splits: float
    synthetic_splits: float
    training_tokens: float | None = None
    retraining_tokens: float | None = None
    synthetic_tokens: float | None = None

    def value(self, unit: Unit) -> float | None:
        return getattr(self, unit)


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
    """

    status: Status
    threshold: float
    last_generation: int
    failure: Effort | None
    observed: Effort
    falls: bool = True

    def value(self, unit: Unit = "generations") -> float | None:
        """The time to failure in `unit`; None unless it failed and the unit is known."""
        return None if self.failure is None else self.failure.value(unit)

    @property
    def generations(self) -> float | None:
        return self.value("generations")

    @property
    def training_splits(self) -> float | None:
        return self.value("training_splits")

    @property
    def retraining_splits(self) -> float | None:
        return self.value("retraining_splits")

    @property
    def synthetic_splits(self) -> float | None:
        return self.value("synthetic_splits")

    def describe(self, unit: Unit = "generations") -> str:
        """`1.69`, `> 5`, `never learned` (or `from the start`); `unknown` for a token unit without token counts."""
        if self.status == "never-learned":
            return "never learned" if self.falls else "from the start"
        if self.status == "censored":
            bound = self.observed.value(unit)
            return "unknown" if bound is None else f"> {_number(bound, unit, exact=False)}"
        value = self.value(unit)
        return "unknown" if value is None else _number(value, unit, exact=True)


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
    regime: Regime = Regime.PAPER,
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
    return time_to_crossing(retention, threshold=threshold, falls=True, regime=regime, tokens=tokens)


def time_to_crossing(
    values: Sequence[float],
    *,
    threshold: float,
    falls: bool,
    first: int = 0,
    regime: Regime = Regime.PAPER,
    tokens: Sequence[tuple[float, float]] | None = None,
) -> TimeToFailure:
    """`time_to_failure` of any measure: where it first falls below the threshold, or (`falls` false) rises above it.

    Args:
        values: of M_first, M_first+1, …; linear in between.
        first: the generation of the first value; moments are counted from M_0 all the same.
        tokens: as there, for every generation from M_0 on.

    Raises:
        InputError: there are no values, one is no number, or `tokens` does not fit.
    """
    if not values:
        raise InputError("values", [], "give the value of at least one generation")
    for value in values:
        if not math.isfinite(value):
            raise InputError("values", value, "is not a finite number")
    last = first + len(values) - 1
    if tokens is not None and len(tokens) != last + 1:
        raise InputError("tokens", len(tokens), f"give one pair for each of the {last + 1} generations")
    # a threshold from above is one from below with all signs turned
    turned = [value - threshold if falls else threshold - value for value in values]
    observed = effort(last, last_generation=last, regime=regime, tokens=tokens)
    if turned[0] < 0:
        return TimeToFailure("never-learned", threshold, last, None, observed, falls)
    for i in range(1, len(turned)):
        before, after = turned[i - 1], turned[i]
        if after < 0:
            moment = first + i - 1 + before / (before - after)
            failure = effort(moment, last_generation=last, regime=regime, tokens=tokens)
            return TimeToFailure("failed", threshold, last, failure, observed, falls)
    return TimeToFailure("censored", threshold, last, None, observed, falls)


def effort(
    generation: float,
    *,
    last_generation: int,
    regime: Regime = Regime.PAPER,
    tokens: Sequence[tuple[float, float]] | None = None,
) -> Effort:
    """What had been spent `generation` generations in (1.5: half way from M_1 to M_2), for 0 ≤ it ≤ last."""
    read = [training_splits(regime, i) for i in range(last_generation + 1)]
    splits = _spent(generation, read)
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
        return Ratio("undefined", None, "the token counts are unknown")
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


def _number(value: float, unit: Unit, *, exact: bool) -> str:
    if unit.endswith("_tokens"):
        return f"{value:,.0f}"
    return f"{value:.2f}" if exact else f"{value:g}"
