"""How one paragraph changes while it is rewritten: its versions, what is new in each, and which facts became false.

The paper's Table E6 shows such a paragraph. Here it is chosen by a rule (`RULE`), never by its looks.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fortifai_core.corpus.almanac.readback import FactSurvival, StatedFact, fact_survival, stated_facts
from fortifai_core.corpus.almanac.world import Entity

RULE = "the first document of split 0 that questions are asked about"
_TOKEN = re.compile(r"\s+|\w+|[^\w\s]")


@dataclass(frozen=True)
class Version:
    """A document as the model of one generation wrote it; `writer` is None for the real text."""

    writer: int | None
    text: str


@dataclass(frozen=True)
class Mutation:
    """One document in one run.

    Attributes:
        label: the arm's.
        versions: the real text first, then in the order of writing.
        excerpt: in words, which part of the document this is; empty where it is all of it.
        entity: whom the document is about, if its facts are known.
    """

    document: str
    label: str
    seed: int
    versions: Sequence[Version]
    excerpt: str = ""
    entity: Entity | None = None


@dataclass(frozen=True)
class Piece:
    """A stretch of text: `new` against the version before; `fact` says whether it states a fact truly or falsely."""

    text: str
    new: bool = False
    fact: bool | None = None


@dataclass(frozen=True)
class MarkedVersion:
    """A version in pieces that join to its text; `facts` is None where the truth is unknown."""

    writer: int | None
    pieces: tuple[Piece, ...]
    changed: float
    facts: FactSurvival | None = None


def changes(before: str, after: str) -> Iterator[tuple[str, bool]]:
    """`after` in pieces, each with whether it is new against `before`; word by word."""
    old, new = _TOKEN.findall(before), _TOKEN.findall(after)
    for kind, _, _, start, end in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if start < end:
            yield "".join(new[start:end]), kind != "equal"


def marked(mutation: Mutation) -> list[MarkedVersion]:
    """Every version with what is new against the one before it, and the facts that it states about its entity.

    `changed` is the share of its words (punctuation counts) that are new.
    """
    result = []
    before: str | None = None
    for version in mutation.versions:
        spans = [(version.text, False)] if before is None else list(changes(before, version.text))
        words = [(token, new) for text, new in spans for token in _TOKEN.findall(text) if not token.isspace()]
        share = sum(new for _, new in words) / len(words) if words else 0.0
        entity = mutation.entity
        claims = [] if entity is None else [c for c in stated_facts(version.text) if c.name == entity.name]
        pieces = tuple(_with_facts(spans, claims, entity))
        survival = None if entity is None else fact_survival(entity, version.text)
        result.append(MarkedVersion(version.writer, pieces, share, survival))
        before = version.text
    return result


def _with_facts(
    spans: Sequence[tuple[str, bool]], claims: Sequence[StatedFact], entity: Entity | None
) -> Iterator[Piece]:
    """Cut the spans where facts begin and end."""
    truth = {} if entity is None else {fact.attribute: fact.value for fact in entity.facts}
    # a claim about something the text never told of this entity is as false as a wrong value
    verdicts = {(claim.start, claim.end): truth.get(claim.attribute) == claim.value for claim in claims}
    borders = sorted({place for span in verdicts for place in span})
    begin = 0
    for text, new in spans:
        end = begin + len(text)
        cuts = [begin, *(border for border in borders if begin < border < end), end]
        for left, right in itertools.pairwise(cuts):
            fact = next((true for (start, stop), true in verdicts.items() if start <= left < stop), None)
            yield Piece(text[left - begin : right - begin], new, fact)
        begin = end
