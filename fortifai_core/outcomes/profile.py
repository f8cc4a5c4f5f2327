"""The collapse profile: for every arm and every definition of collapse a verdict, and for every arm how it compares.

A verdict is one of three: collapsed in generation g, did not, cannot be told at this size. "Did not" is a claim of its
own, shown by a test in every generation, and not the absence of the other.

**Verdicts.** With p_g the one-sided p of "not beyond the threshold in generation g", p of "never beyond" is the least
of them times their number (Bonferroni); p of "ever beyond" is the greatest p of "beyond in g" (an intersection-union
test: Berger, Technometrics 24, 1982). Twice the smaller of the two is the cell's p. Holm's correction goes over all
cells, arms × definitions. A cell whose corrected p is at or below the level is told, on the side of the smaller. The
generation it names is the first whose own p, with the number of generations and Holm's factor, is as low.

**Comparisons** with the first arm are of the last generation that both reached, paired by seed and by document. Two
tests each: that the two differ, and that they differ by less than the definition's margin (TOST). Holm's correction
goes over all comparisons, of either kind apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Literal

from fortifai_core.outcomes.definitions import FIRST, Definition, not_measured
from fortifai_core.outcomes.inference import Effect, LogRank, Sampled, effect_of, holm, logrank
from fortifai_core.outcomes.time_to_failure import TimeToFailure

LEVEL = 0.05
ONE_RUN = "one run, so no interval"  # of what is no mean over documents
# Statistics by generation, of one run; -1 is the real text.
Course = Mapping[int, Sampled]
# arm → measure → seed → course
Observed = Mapping[str, Mapping[str, Mapping[int, Course]]]

Status = Literal["collapsed", "did not", "cannot be told"]
Outcome = Literal["differs", "equal", "cannot be told"]


@dataclass(frozen=True)
class Verdict:
    """One arm by one definition.

    Attributes:
        generation: where it collapsed first, as far as can be told; None otherwise.
        at: the generation that `effect` is of: that one, or the one nearest to collapse.
        until: for "did not", the last generation that was judged, where some run of the arm went further.
        effect: the statistic that the definition judges; None where nothing was measured.
        p, adjusted: of the verdict, before and after Holm's correction; NaN where there is no error.
        why: for "cannot be told".
    """

    arm: str
    definition: Definition
    status: Status
    generation: int | None
    at: int | None
    effect: Effect | None
    p: float
    adjusted: float
    why: str = ""
    until: int | None = None

    @property
    def words(self) -> str:
        """`collapsed in M3`, `did not`, `did not to M2`, `cannot be told`."""
        if self.status == "collapsed":
            return f"collapsed in M{self.generation}"
        return self.status if self.until is None else f"{self.status} to M{self.until}"

    def describe(self) -> str:
        """The same with its reason: `cannot be told: one run, so no interval`."""
        return f"{self.words}: {self.why}" if self.why else self.words


@dataclass(frozen=True)
class Compared:
    """One arm minus the first one, by one measure, in generation `at`. p values as in `Verdict`."""

    arm: str
    definition: Definition
    outcome: Outcome
    at: int
    effect: Effect
    p_differs: float
    p_equal: float

    def describe(self, against: str) -> str:
        """`differs from CE: +3.1 points`, `no difference of 5 points or more`, `cannot be told apart from CE`."""
        if self.outcome == "differs":
            return f"differs from {against}: {self.definition.difference(self.effect.value)}"
        if self.outcome == "equal":
            return f"no difference from {against} as large as {self.definition.difference(self.definition.tolerance)}"
        return f"cannot be told apart from {against}, nor shown to be equal to it"


@dataclass(frozen=True)
class Rank:
    """An arm's place by the headline: between `best` and `worst`, with all pairs compared under Holm's correction."""

    arm: str
    best: int
    worst: int
    value: Effect


@dataclass(frozen=True)
class Profile:
    """Everything the profile says.

    Attributes:
        arms: in order; the first is the one that the others are compared with.
        definitions: those of which any arm has a measure.
        missing: definitions of the literature that nothing here stands for, and why.
        ranking: by `headline`, at generation `ranked_at`; the best first.
        failures: log-rank test of every other arm's times to failure against the first's, where there is one.
    """

    arms: tuple[str, ...]
    definitions: tuple[Definition, ...]
    verdicts: tuple[Verdict, ...]
    compared: tuple[Compared, ...]
    missing: Mapping[str, str]
    headline: Definition | None = None
    ranked_at: int | None = None
    ranking: tuple[Rank, ...] = ()
    failures: Mapping[str, LogRank] = field(default_factory=dict)
    level: float = LEVEL

    def verdict(self, arm: str, name: str) -> Verdict:
        return next(v for v in self.verdicts if v.arm == arm and v.definition.name == name)

    def of(self, arm: str) -> tuple[Verdict, ...]:
        """An arm's verdicts, in the order of the definitions."""
        return tuple(v for v in self.verdicts if v.arm == arm)

    @property
    def collapsed(self) -> bool:
        """Whether any arm collapsed by any definition."""
        return any(v.status == "collapsed" for v in self.verdicts)


def profile_of(
    observed: Observed,
    definitions: Sequence[Definition],
    *,
    headline: str = "",
    failures: Mapping[str, Sequence[TimeToFailure]] | None = None,
    level: float = LEVEL,
) -> Profile:
    """Judge every arm by every definition, compare it with the first one, and rank all.

    Args:
        observed: statistics as the definitions name them; what an arm lacks is left out.
        headline: name of the definition to rank by; the first one that was measured, if it is not among them.
        failures: each arm's times to failure, by arm.
        level: two-sided, over all cells together.
    """
    arms = tuple(observed)
    reached = {arm: _reached(observed[arm].values()) for arm in arms}
    judged = {
        d.name: [_draft(arm, d, observed[arm].get(d.measure, {}), reached[arm]) for arm in arms] for d in definitions
    }
    measured = tuple(d for d in definitions if any(draft.effect is not None for draft in judged[d.name]))
    drafts = [judged[d.name][place] for place in range(len(arms)) for d in measured]
    p_values = [draft.p for draft in drafts]
    verdicts = tuple(
        # Holm's factor for this cell: how many cells have a p as large
        _decided(draft, p, level, sum(q >= draft.p for q in p_values))
        for draft, p in zip(drafts, holm(p_values), strict=True)
    )
    ranked = next((d for d in measured if d.name == headline), measured[0] if measured else None)
    at, ranking = _ranking(observed, ranked, level) if ranked is not None else (None, ())
    times = failures or {}
    tested = {arm: logrank(times.get(arm, ()), times.get(arms[0], ())) for arm in arms[1:]}
    return Profile(
        arms=arms,
        definitions=measured,
        verdicts=verdicts,
        compared=_comparisons(observed, measured, level),
        missing=not_measured(measured),
        headline=ranked,
        ranked_at=at,
        ranking=ranking,
        failures={arm: test for arm, test in tested.items() if test is not None},
        level=level,
    )


@dataclass(frozen=True)
class _Draft:
    """A verdict before correction; `beyond` says to which side the evidence points.

    ever: for that side, each generation's effect and its p among all generations.
    """

    arm: str
    definition: Definition
    beyond: bool
    at: int | None
    effect: Effect | None
    p: float
    why: str = ""
    until: int | None = None
    ever: Mapping[int, tuple[Effect, float]] = field(default_factory=dict)


def _reached(measures: Iterable[Mapping[int, Course]]) -> int:
    """The last generation that any run of an arm has anything of."""
    return max((g for courses in measures for course in courses.values() for g in course), default=FIRST)


def _draft(arm: str, definition: Definition, courses: Mapping[int, Course], reached: int) -> _Draft:
    """Judge one arm by one definition, without regard to the others. `reached`: how far any run of the arm went."""

    def untold(why: str, at: int | None = None, effect: Effect | None = None) -> _Draft:
        return _Draft(arm, definition, False, at, effect, math.nan, why)

    if not courses:
        return untold("not measured")
    effects = _effects(definition, courses)
    if not effects:
        return untold("nothing to compare it with")
    # what falls below its bound is turned round, so that beyond is always above
    sign = -1.0 if definition.falls else 1.0
    worst = max(effects, key=lambda g: sign * effects[g].value)
    first = effects.get(FIRST)
    if first is not None and definition.learned and definition.against is None:
        if sign * first.value > sign * definition.bound:
            return untold("beyond it at M0 already, so there was nothing to lose", FIRST, first)
        effects = {g: effect for g, effect in effects.items() if g != FIRST}
        if not effects:
            return untold("one generation", FIRST, first)
        worst = max(effects, key=lambda g: sign * effects[g].value)
    if not all(effect.known for effect in effects.values()):
        worst, first_unknown = next((g, effect) for g, effect in sorted(effects.items()) if not effect.known)
        if not math.isfinite(first_unknown.value):
            return untold(f"not a number in M{worst}", worst, first_unknown)
        alone = first_unknown.runs == 1
        return untold(ONE_RUN if alone else "two runs alike, so no interval", worst, first_unknown)
    beyond = {g: e.p_below(definition.bound) if definition.falls else e.p_above(definition.bound)
              for g, e in effects.items()}  # fmt: skip
    p_ever = min(1.0, len(beyond) * min(beyond.values()))
    p_never = max(1 - p for p in beyond.values())
    if p_ever < p_never:
        ever = {g: (effects[g], min(1.0, 2 * len(beyond) * p)) for g, p in sorted(beyond.items())}
        return _Draft(arm, definition, True, worst, effects[worst], min(1.0, 2 * p_ever), ever=ever)
    until = max(effects) if max(effects) < reached else None
    return _Draft(arm, definition, False, worst, effects[worst], min(1.0, 2 * p_never), until=until)


def _effects(definition: Definition, courses: Mapping[int, Course]) -> dict[int, Effect]:
    """What the definition judges, by generation: those that every run has."""
    against = definition.against
    if against is not None:
        courses = {seed: course for seed, course in courses.items() if against in course}
    if not courses:
        return {}
    reached = set.intersection(*(set(course) for course in courses.values()))
    generations = sorted(g for g in reached if g >= FIRST and g != against)
    found = {}
    for g in generations:
        values = {seed: course[g] for seed, course in courses.items()}
        minus = None if against is None else {seed: course[against] for seed, course in courses.items()}
        effect = effect_of(values, minus, share=definition.share)
        if effect is not None:
            found[g] = effect
    return found


def _decided(draft: _Draft, adjusted: float, level: float, factor: int) -> Verdict:
    arm, definition, at, effect = draft.arm, draft.definition, draft.at, draft.effect
    if math.isnan(adjusted) or adjusted > level:
        return Verdict(arm, definition, "cannot be told", None, at, effect, draft.p, adjusted, draft.why)
    if not draft.beyond:
        return Verdict(arm, definition, "did not", None, at, effect, draft.p, adjusted, draft.why, draft.until)
    # the smallest p is among them: a cell that is told has a generation that is
    smallest = min(p for _, p in draft.ever.values())
    first = next(g for g, (_, p) in draft.ever.items() if factor * p <= level or p == smallest)
    return Verdict(arm, definition, "collapsed", first, first, draft.ever[first][0], draft.p, adjusted, draft.why)


def _comparisons(observed: Observed, definitions: Iterable[Definition], level: float) -> tuple[Compared, ...]:
    """Every arm but the first against the first, one comparison for each measure."""
    arms, seen = list(observed), set[str]()
    found: list[tuple[str, Definition, int, Effect]] = []
    for definition in definitions:
        if definition.measure in seen:  # two thresholds on one measure are one comparison
            continue
        seen.add(definition.measure)
        for arm in arms[1:]:
            ours, first = (observed[label].get(definition.measure, {}) for label in (arm, arms[0]))
            at = _last([ours, first])
            effect = _between(ours, first, at, definition) if at is not None else None
            if at is not None and effect is not None:
                found.append((arm, definition, at, effect))
    return compared(found, level)


def compared(found: Sequence[tuple[str, Definition, int, Effect]], level: float = LEVEL) -> tuple[Compared, ...]:
    """What can be told of differences, (name, definition, generation, effect) each, under one correction (Holm)."""
    differs = holm([effect.p_differs() for *_, effect in found])
    equal = holm([effect.p_equivalent(definition.tolerance) for _, definition, _, effect in found])
    return tuple(
        Compared(arm, definition, _outcome(p, q, level), at, effect, p, q)
        for (arm, definition, at, effect), p, q in zip(found, differs, equal, strict=True)
    )


def _outcome(p_differs: float, p_equal: float, level: float) -> Outcome:
    """A difference that is told but smaller than the margin is called equal: it is too small to matter."""
    if p_equal <= level:
        return "equal"
    return "differs" if p_differs <= level else "cannot be told"


def _last(sides: Sequence[Mapping[int, Course]]) -> int | None:
    """The last generation that every run of each side has."""
    courses = [course for side in sides for course in side.values()]
    shared = set.intersection(*(set(course) for course in courses)) if courses and all(sides) else set[int]()
    reached = [g for g in shared if g >= FIRST]
    return max(reached) if reached else None


def _between(
    first: Mapping[int, Course], second: Mapping[int, Course], at: int, definition: Definition
) -> Effect | None:
    a, b = ({seed: course[at] for seed, course in side.items()} for side in (first, second))
    return effect_of(a, b, share=definition.share)


def _ranking(observed: Observed, by: Definition, level: float) -> tuple[int | None, tuple[Rank, ...]]:
    """Places by one measure, each from the number of arms told to be better to that of those told to be worse."""
    sides = {arm: measures[by.measure] for arm, measures in observed.items() if measures.get(by.measure)}
    at = _last(list(sides.values()))
    if at is None:
        return None, ()
    pairs = list(combinations(sides, 2))
    gaps = [_between(sides[a], sides[b], at, by) for a, b in pairs]
    adjusted = holm([math.nan if gap is None else gap.p_differs() for gap in gaps])
    better: dict[str, int] = dict.fromkeys(sides, 0)
    worse: dict[str, int] = dict.fromkeys(sides, 0)
    for (a, b), gap, p in zip(pairs, gaps, adjusted, strict=True):
        if gap is not None and p <= level:
            winner, loser = (a, b) if (gap.value > 0) == by.falls else (b, a)
            better[loser] += 1
            worse[winner] += 1
    values = {
        arm: effect_of({s: course[at] for s, course in side.items()}, share=by.share) for arm, side in sides.items()
    }
    ranks = [
        Rank(arm, 1 + better[arm], len(sides) - worse[arm], value) for arm, value in values.items() if value is not None
    ]

    def place(rank: Rank) -> float:
        value = -rank.value.value if by.falls else rank.value.value
        return math.inf if math.isnan(value) else value

    return at, tuple(sorted(ranks, key=place))
