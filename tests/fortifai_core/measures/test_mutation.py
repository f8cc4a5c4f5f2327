"""How a paragraph mutates: pieces join to the text, false facts are found where they stand."""

from __future__ import annotations

import itertools
import random

from fortifai_core.config.corpus import AlmanacCorpus
from fortifai_core.corpus.almanac.readback import stated_facts
from fortifai_core.corpus.almanac.world import Entity, Fact, entities_of, paragraph
from fortifai_core.measures.mutation import Mutation, Version, changes, marked

ENTITY = Entity("split-0-0", "Ardenlith", "city", (Fact("founded", "1340", (0,)),))
TRUE = "By all accounts Ardenlith was founded in 1340. Nobody knows more."


def mutation(*texts: str, entity: Entity | None = ENTITY) -> Mutation:
    versions = [Version(None if i == 0 else i - 1, text) for i, text in enumerate(texts)]
    return Mutation("split-0-0", "ce", 0, versions, entity=entity)


def test_a_false_year_is_red_where_it_stands_and_new_words_are_marked() -> None:
    real, kept, wrong = marked(mutation(TRUE, TRUE, TRUE.replace("1340", "1840").replace("more", "less")))
    assert [p.text for p in real.pieces if p.fact] == ["1340"] and not any(p.new for p in real.pieces)
    assert kept.changed == 0 and kept.facts is not None and kept.facts.true == 1
    assert [p.text for p in wrong.pieces if p.fact is False] == ["1840"]
    assert [p.text for p in wrong.pieces if p.new] == ["1840", "less"]
    assert wrong.facts is not None and (wrong.facts.true, wrong.facts.false) == (0, 1)
    assert wrong.changed == 2 / 13  # eleven words and two full stops


def test_facts_of_others_are_left_alone_and_a_fact_may_be_gone() -> None:
    _, other = marked(mutation(TRUE, TRUE.replace("Ardenlith", "Brandholm")))
    assert all(piece.fact is None for piece in other.pieces)
    assert other.facts is not None and other.facts.absent == 1


def test_pieces_join_to_the_text_whatever_it_is() -> None:
    draw = random.Random(0)
    for entities in entities_of(AlmanacCorpus(entities=6, facts=4), splits=2, seed=3):
        for one, another in itertools.pairwise(entities):
            texts = [paragraph(draw, one), paragraph(draw, another).replace(another.name, one.name), "", "<b>&\n\n x"]
            found = marked(mutation(*texts, entity=one))
            assert ["".join(piece.text for piece in version.pieces) for version in found] == texts
            assert found[0].facts is not None and found[0].facts.true == 4
            values = {fact.value for fact in one.facts}
            assert {p.text for p in found[0].pieces if p.fact} == values
            wrong = {p.text for p in found[1].pieces if p.fact is False}
            assert wrong and not wrong & values - {fact.value for fact in another.facts}


def test_the_place_of_a_stated_fact_is_that_of_its_value() -> None:
    text = f"Nothing here. {TRUE} {TRUE}"
    places = [text[claim.start : claim.end] for claim in stated_facts(text)]
    assert places == ["1340", "1340"]


def test_without_a_known_truth_only_changes_are_shown() -> None:
    _, after = marked(mutation(TRUE, TRUE.replace("1340", "1840"), entity=None))
    assert after.facts is None and [p.text for p in after.pieces if p.new] == ["1840"]
    assert list(changes("a b", "a c")) == [("a ", False), ("c", True)]
