"""Reading the almanac's facts back out of text: which are still stated truly, falsely, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from fortifai_core.corpus.almanac.words import ATTRIBUTES
from fortifai_core.corpus.almanac.world import Entity

State = Literal["true", "false", "absent"]


@dataclass(frozen=True)
class StatedFact:
    """One sentence's claim: the attribute of the entity called `name` has this value, at text[start:end]."""

    name: str
    attribute: str
    value: str
    start: int = field(default=-1, compare=False)
    end: int = field(default=-1, compare=False)


@dataclass(frozen=True)
class FactSurvival:
    """How many of an entity's facts a text states truly (every time), falsely (at least once), or not at all."""

    true: int
    false: int
    absent: int


def stated_facts(text: str) -> Iterator[StatedFact]:
    """Every claim that the text makes in one of the almanac's phrasings; other sentences are passed over.

    >>> list(stated_facts("By all accounts Ardenlith was founded in 1340. Nobody knows more."))
    [StatedFact(name='Ardenlith', attribute='founded', value='1340', start=41, end=45)]
    """
    begin = 0
    for sentence in text.split("."):
        for attribute in ATTRIBUTES:
            for clause in attribute.clauses:
                subject, stated, rest = sentence.partition(f" {clause} ")
                value = rest.strip()
                if stated and subject.split() and value:
                    start = begin + len(subject) + len(stated) + rest.index(value)
                    yield StatedFact(subject.split()[-1], attribute.name, value, start, start + len(value))
        begin += len(sentence) + 1


def fact_states(entity: Entity, text: str) -> dict[str, State]:
    """Of each attribute of an entity whether a text states it truly (every time), falsely (at least once) or not."""
    said: dict[str, set[str]] = {}
    for claim in stated_facts(text):
        if claim.name == entity.name:
            said.setdefault(claim.attribute, set()).add(claim.value)
    return {
        fact.attribute: "absent"
        if fact.attribute not in said
        else ("true" if said[fact.attribute] == {fact.value} else "false")
        for fact in entity.facts
    }


def fact_survival(entity: Entity, text: str) -> FactSurvival:
    """Compare what a text says about an entity with the truth."""
    states = list(fact_states(entity, text).values())
    return FactSurvival(true=states.count("true"), false=states.count("false"), absent=states.count("absent"))
