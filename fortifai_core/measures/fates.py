"""Where facts die: when a model rewrites them, or when the next one is trained on the text that still states them.

A fact's way from M_(i-1) to M_i has two steps. M_(i-1) writes the text that M_i reads, and may write the fact otherwise
or leave it out. M_i is trained on that text, and may not learn what it states. The almanac knows the truth, so both
are seen: in the text by the claims that it makes, in the model by the question about the fact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fortifai_core.corpus.almanac.readback import State
from fortifai_core.interval import Interval
from fortifai_core.outcomes.resampling import bootstrap_totals


@dataclass(frozen=True)
class Step:
    """One fact between two models.

    Attributes:
        document: which states the fact, and its run: what stands and falls together.
        generation: i, of the later model.
        before, after: how the text that M_(i-1) and that M_i was trained on states it.
        knew, knows: whether M_(i-1) and M_i prefer the true answer to the false one; by chance half are.
        margin: nats by which M_(i-1) preferred the true answer.
    """

    document: tuple[str, ...]
    generation: int
    before: State
    after: State
    knew: bool
    knows: bool
    margin: float


@dataclass(frozen=True)
class Share:
    """A share of `count` facts, with its interval over documents; without a value where there are none."""

    count: int
    interval: Interval | None


@dataclass(frozen=True)
class Fates:
    """What became of facts from one model to the next, over all generations and runs that were looked at.

    Attributes:
        steps: facts × generations.
        rewritten_true: of facts that the old text states truly, how many the new one does, where M_(i-1) knew them and
            where it did not.
        rewritten_false: and how many the new one states falsely.
        learned: of facts that the text states truly, falsely or not at all, how many M_i knows where M_(i-1) did.
        deaths: of facts that M_(i-1) knew and M_i does not: those that the text that M_i read still states truly (they
            died in retraining), those that it states no more while the text before did (in rewriting), and those that
            were lost to the text before.
        margin: mean nats by which M_(i-1) preferred the answer that M_i does not know any more, and that it does.
    """

    steps: int
    rewritten_true: dict[str, Share]
    rewritten_false: dict[str, Share]
    learned: dict[str, Share]
    deaths: dict[str, Share]
    margin: dict[str, Share]


def fates_of(steps: Sequence[Step], *, seed: int = 0) -> Fates:
    """Count.

    Args:
        seed: of the resampling.
    """
    places = {document: n for n, document in enumerate(dict.fromkeys(step.document for step in steps))}
    rows = np.array([places[step.document] for step in steps], dtype=int)

    def mean(of: Callable[[Step], bool], value: Callable[[Step], float]) -> Share:
        """The mean of a value over the steps that are meant."""
        meant = np.array([of(step) for step in steps], dtype=float)
        values = np.array([value(step) if m else 0.0 for step, m in zip(steps, meant, strict=True)])
        count = int(meant.sum())
        if not count:
            return Share(0, None)
        columns = np.zeros((len(places), 2))
        np.add.at(columns, rows, np.stack([values * meant, meant], axis=1))
        return Share(count, bootstrap_totals(columns[columns[:, 1] > 0], _ratio, seed=seed))

    stated = {"known before": True, "not known before": False}
    states: tuple[State, ...] = ("true", "false", "absent")

    def rewritten(state: State) -> dict[str, Share]:
        return {
            name: mean(lambda s, knew=knew: s.before == "true" and s.knew is knew, lambda s: s.after == state)  # type: ignore[misc]
            for name, knew in stated.items()
        }

    def died(step: Step) -> bool:
        return step.knew and not step.knows

    return Fates(
        steps=len(steps),
        rewritten_true=rewritten("true"),
        rewritten_false=rewritten("false"),
        learned={
            state: mean(lambda s, state=state: s.knew and s.after == state, lambda s: s.knows)  # type: ignore[misc]
            for state in states
        },
        deaths={
            "in retraining": mean(died, lambda s: s.after == "true"),
            "in rewriting": mean(died, lambda s: s.after != "true" and s.before == "true"),
            "lost to the text before": mean(died, lambda s: s.after != "true" and s.before != "true"),
        },
        margin={
            "dies": mean(died, lambda s: s.margin),
            "lives": mean(lambda s: s.knew and s.knows, lambda s: s.margin),
        },
    )


def _ratio(totals: NDArray[np.float64]) -> NDArray[np.float64]:
    ratio: NDArray[np.float64] = totals[:, 0] / totals[:, 1]
    return ratio
