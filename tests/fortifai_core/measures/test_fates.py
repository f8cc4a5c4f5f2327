"""Where facts die, worked by hand."""

from __future__ import annotations

import pytest

from fortifai_core.corpus.almanac.readback import fact_states
from fortifai_core.corpus.almanac.world import Entity, Fact
from fortifai_core.measures.fates import Share, State, Step, fates_of


def step(document: str, before: State, after: State, *, knew: bool, knows: bool, margin: float = 1.0) -> Step:
    return Step(("run", document), 1, before, after, knew=knew, knows=knows, margin=margin)


STEPS = [
    step("a", "true", "true", knew=True, knows=True, margin=4.0),
    step("a", "true", "true", knew=True, knows=False, margin=1.0),  # the text still says so: retraining
    step("a", "true", "false", knew=True, knows=False, margin=2.0),  # written otherwise: rewriting
    step("b", "true", "absent", knew=True, knows=False, margin=3.0),  # left out: rewriting
    step("b", "absent", "false", knew=True, knows=False, margin=0.5),  # was not in the text before
    step("b", "false", "true", knew=False, knows=True),
    step("b", "true", "true", knew=False, knows=False),
    step("b", "true", "absent", knew=False, knows=False),
]


def value(share: Share) -> tuple[int, float]:
    assert share.interval is not None
    assert not share.interval.known or share.interval.low <= share.interval.estimate <= share.interval.high
    return share.count, share.interval.estimate


def test_every_step_is_counted_where_it_belongs() -> None:
    fates = fates_of(STEPS)
    assert fates.steps == 8
    assert value(fates.rewritten_true["known before"]) == (4, 2 / 4)
    assert value(fates.rewritten_true["not known before"]) == (2, 1 / 2)
    assert value(fates.rewritten_false["known before"]) == (4, 1 / 4)
    assert value(fates.rewritten_false["not known before"]) == (2, 0)
    assert value(fates.learned["true"]) == (2, 1 / 2)
    assert value(fates.learned["false"]) == (2, 0)
    assert value(fates.learned["absent"]) == (1, 0)
    assert value(fates.deaths["in retraining"]) == (4, 1 / 4)
    assert value(fates.deaths["in rewriting"]) == (4, 2 / 4)
    assert value(fates.deaths["lost to the text before"]) == (4, 1 / 4)
    assert value(fates.margin["dies"]) == (4, pytest.approx(6.5 / 4))
    assert value(fates.margin["lives"]) == (1, 4.0)


def test_of_nothing_there_is_no_share_and_of_one_document_no_interval() -> None:
    fates = fates_of(STEPS[:1])
    assert fates.deaths["in rewriting"] == Share(0, None)
    lives = fates.margin["lives"].interval
    assert lives is not None and not lives.known


def test_a_fact_is_true_only_if_every_claim_is() -> None:
    entity = Entity("e", "Ardenlith", "town", (Fact("founded", "1340", ()), Fact("river", "Ise", ())))
    text = "Ardenlith was founded in 1340. Ardenlith was founded in 1341."
    assert fact_states(entity, text) == {"founded": "false", "river": "absent"}
