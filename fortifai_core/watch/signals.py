"""The signals of collapse: what each is, which way is worse, and the limit that was fixed before anything was measured.

A signal alerts when the 95% interval of its change lies wholly beyond its limit: noise alone rarely does that, and a
change that is smaller than the limit never does. Whether a signal warns in time is another question, which was
measured: docs/watch.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fortifai_core.errors import InputError
from fortifai_core.interval import Interval
from fortifai_core.outcomes.resampling import Floats, bootstrap_totals

LEVEL = 0.95


@dataclass(frozen=True)
class Signal:
    """One thing that is watched. Its value is a ratio of two totals over documents or samples.

    Attributes:
        worse: which way collapse moves it.
        by: what is held against the limit: `ratio`, value / baseline − 1; `difference`, value − baseline; `value`, the
            value itself, which needs no baseline.
        limit: of that; negative where falling is worse and the change counts.
        exponential: the value is exp of the ratio (a perplexity).
        why: the reason for the limit.
    """

    name: str
    title: str
    worse: Literal["up", "down"]
    by: Literal["ratio", "difference", "value"]
    limit: float
    why: str
    exponential: bool = False

    def value(self, totals: Floats) -> Floats:
        """The signal of totals [worlds, 2]: of what is counted, and of what it is counted over."""
        ratio = totals[:, 0] / totals[:, 1]
        return np.exp(ratio) if self.exponential else ratio

    def change(self, totals: Floats) -> Floats:
        """What is held against the limit; totals [worlds, 4]: the model's two, the baseline's two."""
        now = self.value(totals[:, :2])
        if self.by == "value":
            return now
        before = self.value(totals[:, 2:])
        return now - before if self.by == "difference" else now / before - 1

    def beyond(self, change: Interval, limit: float) -> bool:
        """Whether the whole interval of the change lies beyond the limit."""
        return bool(change.low > limit if self.worse == "up" else change.high < limit)


_FIFTH = "a round fifth: a step of training on text of the same kind changes it by less"
SIGNALS = (
    Signal(
        "held-out-perplexity", "Perplexity on held-out text", "up", "ratio", 0.10,
        "at 3 nats a token, what a model with a third fewer parameters loses (Kaplan et al. 2020: loss ∝ N^−0.076)",
        exponential=True,
    ),
    Signal("own-perplexity", "Perplexity on its own text", "down", "ratio", -0.20, _FIFTH, exponential=True),
    Signal("entropy", "Next-token entropy, nats", "down", "ratio", -0.20, _FIFTH),
    Signal(
        "top-mass", "Mass of the likeliest token", "up", "difference", 0.10,
        "ten points: one token in ten more is foreseen",
    ),
    Signal(
        "live-fraction", "Live fraction at γ, batch just seen", "down", "value", 0.05,
        "fewer than one token in twenty of the batch has p ≤ γ: it teaches next to nothing",
    ),
    Signal("distinct-2", "Distinct pairs of tokens, samples", "down", "ratio", -0.20, _FIFTH),
    Signal("compression-ratio", "Compression ratio, samples", "up", "ratio", 0.20, _FIFTH),
    Signal(
        "repeated-4-grams", "Repeated 4-grams within a sample", "up", "difference", 0.05,
        "human text has about 0.01 to 0.03 at this length (Welleck et al. 2020): five points more are loops",
    ),
    Signal(
        "tail-mass", "Mass of rare words, samples", "down", "ratio", -0.30,
        "rare words are few, so their count is noisy: a fifth could not be told from nothing",
    ),
    Signal(
        "kl", "KL from the baseline, nats", "up", "value", 0.50,
        "half a nat: on average the baseline's tokens have 0.6 times the probability that they had",
    ),
)  # fmt: skip
NAMES = tuple(signal.name for signal in SIGNALS)


@dataclass(frozen=True)
class Watched:
    """One signal at one step.

    Attributes:
        value: with its interval over documents, samples or pieces of the batch.
        baseline: the baseline's value; None where the change needs none.
        change: what is held against `limit`, with its interval; None where there is no baseline yet.
        clusters: what was resampled.
    """

    step: int
    signal: Signal
    value: Interval
    baseline: float | None
    change: Interval | None
    limit: float
    alert: bool
    clusters: int

    def __str__(self) -> str:
        """`step 300: distinct-2 is 0.41 (0.38 to 0.44), baseline 0.72; −43% (−47% to −39%), limit −20%`."""
        text = f"step {self.step}: {self.signal.name} is {_spread(self.value, '{:.4g}')}"
        if self.signal.by == "value" or self.change is None:
            return f"{text}, limit {self.limit:g}" if self.signal.by == "value" else text
        form = "{:+.0%}" if self.signal.by == "ratio" else "{:+.3f}"
        baseline = "" if self.baseline is None else f", baseline {self.baseline:.4g}"
        return f"{text}{baseline}; {_spread(self.change, form)}, limit {form.format(self.limit)}"


def _spread(value: Interval, form: str) -> str:
    ends = f" ({form.format(value.low)} to {form.format(value.high)})" if value.known else ""
    return form.format(value.estimate) + ends


def limits_of(changed: Mapping[str, float] | None) -> dict[str, float]:
    """The limit of every signal, with those that somebody changed.

    Raises:
        InputError: no such signal, or no number.
    """
    limits = {signal.name: signal.limit for signal in SIGNALS}
    for name, limit in (changed or {}).items():
        if name not in limits:
            raise InputError("limits", name, f"no such signal: choose {', '.join(NAMES)}")
        if not isinstance(limit, (int, float)) or not np.isfinite(limit):
            raise InputError(f"limits.{name}", limit, "give a number")
        limits[name] = float(limit)
    return limits


def compare(
    now: Mapping[str, Floats], baseline: Mapping[str, Floats] | None, *, step: int, limits: Mapping[str, float]
) -> list[Watched]:
    """Every signal that was measured, with its interval, its change from the baseline, and whether it alerts.

    Model and baseline were measured on the same documents and prompts, with the same random numbers, so each cluster's
    two are resampled together. A held-out perplexity that is not a number alerts: the training has diverged.

    Args:
        now, baseline: by signal, float64 [clusters, 2]: what is counted, and what it is counted over.
    """
    found = []
    for signal in SIGNALS:
        columns = now.get(signal.name)
        if columns is None or not len(columns):
            continue
        value = bootstrap_totals(columns, signal.value, level=LEVEL)
        before = baseline.get(signal.name) if baseline is not None else None
        change: Interval | None = None
        if signal.by == "value":
            change = value
        elif before is not None and len(before) == len(columns):
            change = bootstrap_totals(np.hstack([columns, before]), signal.change, level=LEVEL)
        limit = limits[signal.name]
        alert = change is not None and signal.beyond(change, limit)
        if signal.name == "held-out-perplexity" and not np.isfinite(value.estimate):
            alert = True
        was = None
        if signal.by != "value" and before is not None:
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                was = float(signal.value(before.sum(axis=0)[None])[0])
        found.append(Watched(step, signal, value, was, change, limit, alert, len(columns)))
    return found
