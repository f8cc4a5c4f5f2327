"""The almanac: an invented world of encyclopedic paragraphs that knows its own ground truth.

Every paragraph states `facts` facts about one entity, each once to three times in different words. A question
takes a frame that no paragraph of a split uses, and a wording that the entity's own paragraph does not use for
that fact; its false answer is the true value of another entity of the same split for the same attribute. So
true and false answers have the same distribution by construction, and what tells them apart is the paragraph.

The pretraining text is about other entities. It shows the question frame too (for those entities only, away
from their paragraphs), so that the base model knows the form of a question and none of the answers.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from fortifai_core.config.corpus import AlmanacCorpus
from fortifai_core.corpus.almanac.words import ATTRIBUTES, ENDINGS, FRAMES, KINDS, QUESTION_FRAME, SYLLABLES, Attribute
from fortifai_core.corpus.documents import Document, Question, Source
from fortifai_core.errors import DataError
from fortifai_core.seeds import derive_seed

_BY_NAME = {attribute.name: attribute for attribute in ATTRIBUTES}
# Every name is the image of a number under a permutation; text that must be disjoint draws from disjoint numbers.
NAMES = len(SYLLABLES) ** 2 * len(ENDINGS)
_STEP = 1_640_531_527  # coprime to NAMES, so that neighbours get names without likeness
_PERSONS = NAMES // 2
_SPLITS_FROM = NAMES // 8
_VALIDATION_FROM = NAMES // 16
MENTIONS = (1, 2, 2, 3, 3, 3)


@dataclass(frozen=True)
class Fact:
    """One thing that is true of an entity, and which of the attribute's clauses its document says it with."""

    attribute: str
    value: str
    clauses: tuple[int, ...]


@dataclass(frozen=True)
class Entity:
    """An entity of the invented world with everything that is stated about it."""

    id: str
    name: str
    kind: str
    facts: tuple[Fact, ...]


def name_of(number: int) -> str:
    """The name with that number, 0 ≤ number < NAMES; different numbers have different names."""
    number = (number * _STEP + 97) % NAMES
    number, first = divmod(number, len(SYLLABLES))
    number, second = divmod(number, len(SYLLABLES))
    return (SYLLABLES[first] + SYLLABLES[second] + ENDINGS[number]).capitalize()


def _value(draw: random.Random, attribute: Attribute, numbers: range, own: int) -> str:
    match attribute.type:
        case "year":
            return str(draw.randint(1000, 1999))
        case "number":
            return str(draw.randint(1000, 9999))
        case "person":
            return name_of(_PERSONS + draw.randrange(NAMES - _PERSONS))
        case "entity":
            return name_of(draw.choice([n for n in draw.sample(numbers, 2) if n != own]))
        case "category":
            weights = [1 / (rank + 1) ** 0.5 for rank in range(len(attribute.values))]
            return draw.choices(attribute.values, weights)[0]


def _entities(draw: random.Random, numbers: range, *, prefix: str, facts: int) -> Iterator[Entity]:
    kinds = list(KINDS)
    for index, number in enumerate(numbers):
        chosen = draw.sample(ATTRIBUTES, facts)
        stated = []
        for attribute in chosen:
            mentions = draw.choice(MENTIONS)
            clauses = tuple(draw.sample(range(len(attribute.clauses)), mentions))
            stated.append(Fact(attribute.name, _value(draw, attribute, numbers, number), clauses))
        yield Entity(f"{prefix}-{index}", name_of(number), kinds[draw.randrange(len(kinds))], tuple(stated))


def paragraph(draw: random.Random, entity: Entity) -> str:
    """The entity's paragraph: one sentence for each mention of each fact, in an order drawn at random."""
    said = [(fact, clause) for fact in entity.facts for clause in fact.clauses]
    draw.shuffle(said)
    kind = KINDS[entity.kind].format(n=entity.name)
    return " ".join(
        draw.choice(FRAMES).format(
            n=entity.name, kind=kind, c=f"{_BY_NAME[fact.attribute].clauses[clause]} {fact.value}"
        )
        for fact, clause in said
    )


def question_text(draw: random.Random, entity: Entity, fact: Fact) -> str:
    """The question's wording: a frame of its own around a clause that the entity's paragraph does not use."""
    clauses = _BY_NAME[fact.attribute].clauses
    unused = [c for index, c in enumerate(clauses) if index not in fact.clauses]
    return QUESTION_FRAME.format(n=entity.name, c=draw.choice(unused))


def pretraining_text(config: AlmanacCorpus) -> list[Document]:
    """Text about entities of no split: paragraphs, and pages of facts in the wording of questions."""
    draw = random.Random(derive_seed("almanac", "pretraining", config.seed))
    numbers = range(config.pretraining_entities)
    entities = list(_entities(draw, numbers, prefix="pretraining", facts=config.facts))
    texts = [paragraph(draw, entity) for entity in entities]
    lines = [f"{question_text(draw, e, fact)} {fact.value}." for e in entities for fact in e.facts]
    draw.shuffle(lines)
    texts += [" ".join(lines[start : start + 8]) for start in range(0, len(lines), 8)]
    draw.shuffle(texts)
    return [Document(f"pretraining-{index}", text, "almanac") for index, text in enumerate(texts)]


def validation_text(config: AlmanacCorpus) -> list[Document]:
    """Paragraphs about further entities, for perplexity and for choosing checkpoints."""
    draw = random.Random(derive_seed("almanac", "validation", config.seed))
    numbers = range(_VALIDATION_FROM, _VALIDATION_FROM + config.validation_entities)
    entities = _entities(draw, numbers, prefix="validation", facts=config.facts)
    return [Document(entity.id, paragraph(draw, entity), "almanac") for entity in entities]


def check_entities(config: AlmanacCorpus, *, splits: int) -> None:
    """That there is a name for every entity.

    Raises:
        DataError: more entities than there are names.
    """
    if _SPLITS_FROM + splits * config.entities > _PERSONS:
        remedy = f"the almanac has names for {_PERSONS - _SPLITS_FROM:,} in all splits together: lower it, or splits"
        raise DataError("corpus.entities", config.entities, remedy)
    for name, value, most in (
        ("pretraining_entities", config.pretraining_entities, _VALIDATION_FROM),
        ("validation_entities", config.validation_entities, _SPLITS_FROM - _VALIDATION_FROM),
    ):
        if value > most:
            raise DataError(f"corpus.{name}", value, f"the almanac has names for {most:,}: lower it")


def entities_of(config: AlmanacCorpus, *, splits: int, seed: int) -> list[list[Entity]]:
    """The entities of every split with their facts: the ground truth.

    Raises:
        DataError: more entities than there are names.
    """
    check_entities(config, splits=splits)
    total = splits * config.entities
    draw = random.Random(derive_seed("almanac", "world", config.seed, seed))
    # seeds start at different places of the range, so that different runs tell of different entities
    start = _SPLITS_FROM + derive_seed("almanac", "names", seed) % (_PERSONS - _SPLITS_FROM - total + 1)
    return [
        list(
            _entities(
                draw,
                range(start + split * config.entities, start + (split + 1) * config.entities),
                prefix=f"split-{split}",
                facts=config.facts,
            )
        )
        for split in range(splits)
    ]


def _derangement(draw: random.Random, values: list[str]) -> list[str] | None:
    """The same values in an order in which none stays in its place; None where one has more than half of them."""
    longest = max(Counter(values).values(), default=0)
    if len(values) < 2 or longest * 2 > len(values):
        return None
    # equal values side by side, the groups in an order drawn at random: a rotation by the longest group then
    # moves every value off its own, and says nothing about which of two values is the greater
    rank = {value: draw.random() for value in sorted(set(values))}
    order = sorted(range(len(values)), key=lambda i: (rank[values[i]], draw.random()))
    swapped = [""] * len(values)
    for place, index in enumerate(order):
        swapped[index] = values[order[(place + longest) % len(order)]]
    return swapped


def _false_values(draw: random.Random, asked: list[tuple[Entity, Fact]]) -> list[str] | None:
    for _ in range(50):
        values = _derangement(draw, [fact.value for _, fact in asked])
        # nobody takes an entity for its own ally: that answer would give itself away
        if values is None or all(value != e.name for value, (e, _) in zip(values, asked, strict=True)):
            return values
    return None


def _questions(draw: random.Random, entities: list[Entity]) -> Iterator[Question]:
    for attribute in ATTRIBUTES:
        asked = [(e, fact) for e in entities for fact in e.facts if fact.attribute == attribute.name]
        false_values = _false_values(draw, asked)
        if false_values is None:
            continue  # too few entities to swap values: no question rather than a lopsided one
        for (entity, fact), false in zip(asked, false_values, strict=True):
            text = question_text(draw, entity, fact)
            yield Question(f"{entity.id}-{attribute.name}", entity.id, text, f"{fact.value}.", f"{false}.")


def generate_almanac(config: AlmanacCorpus, *, splits: int, seed: int) -> Source:
    """The whole corpus: splits × entities paragraphs with their questions, validation and pretraining text.

    `seed` (the run's) and `config.seed` determine the splits; the other texts depend on `config.seed` alone.
    """
    draw = random.Random(derive_seed("almanac", "text", config.seed, seed))
    documents, questions = [], []
    for entities in entities_of(config, splits=splits, seed=seed):
        documents += [Document(entity.id, paragraph(draw, entity), "almanac") for entity in entities]
        questions += list(_questions(draw, entities))
    return Source(documents, questions, validation_text(config), pretraining_text(config))
