"""The almanac is honest: nothing but a split's own text tells its questions' answers, and it knows the truth."""

from __future__ import annotations

import hashlib
import json
import math
import random
import subprocess
import sys
from collections import Counter
from dataclasses import asdict

import pytest

from fortifai_core.config.corpus import AlmanacCorpus
from fortifai_core.corpus.almanac.readback import fact_survival, stated_facts
from fortifai_core.corpus.almanac.words import ATTRIBUTES, QUESTION_FRAME
from fortifai_core.corpus.almanac.world import (
    NAMES,
    Entity,
    entities_of,
    generate_almanac,
    name_of,
    pretraining_text,
    validation_text,
)
from fortifai_core.corpus.documents import Question, Source
from fortifai_core.errors import DataError

CONFIG = AlmanacCorpus(entities=40, facts=4)
SPLITS = 6


@pytest.fixture(scope="module")
def sources() -> list[Source]:
    return [generate_almanac(CONFIG, splits=SPLITS, seed=seed) for seed in range(5)]


@pytest.fixture(scope="module")
def questions(sources: list[Source]) -> list[Question]:
    return [q for source in sources for q in source.questions]


def splits_of(source: Source) -> list[list[Entity]]:
    """The entities of a source, found again by its texts."""
    seeds = [entities_of(CONFIG, splits=SPLITS, seed=seed) for seed in range(5)]
    return next(s for s in seeds if s[0][0].name in source.documents[0].text)


def within_99_percent(right: float, of: int) -> bool:
    """Whether a share of right answers may come from guessing: |z| < 2.58."""
    return abs(right - of / 2) < 2.58 * math.sqrt(of) / 2


def score(rule: object, questions: list[Question]) -> float:
    """Right answers of a rule that rates an answer; a tie counts one half."""
    rates = [(rule(q, q.true_answer), rule(q, q.false_answer)) for q in questions]  # type: ignore[operator]
    return sum(1.0 if t > f else 0.5 if t == f else 0.0 for t, f in rates)


def test_it_is_a_corpus_with_a_question_for_nearly_every_fact(sources: list[Source]) -> None:
    for source in sources:
        assert len(source.documents) == SPLITS * CONFIG.entities
        assert len(source.questions) > 0.97 * SPLITS * CONFIG.entities * CONFIG.facts
        assert len({d.id for d in source.documents}) == len(source.documents)
        assert len({q.id for q in source.questions}) == len(source.questions)
        assert {q.document for q in source.questions} <= {d.id for d in source.documents}


def test_a_unigram_baseline_scores_one_half(sources: list[Source], questions: list[Question]) -> None:
    for text in ("documents", "pretraining"):
        right = total = 0.0
        for source in sources:
            counts = Counter(w for d in getattr(source, text) for w in d.text.split())

            def likelihood(_: Question, answer: str, counts: Counter[str] = counts) -> float:
                return sum(math.log(counts[w] + 1) for w in answer.split())

            right += score(likelihood, source.questions)
            total += len(source.questions)
        assert within_99_percent(right, int(total)), (text, right / total)


@pytest.mark.parametrize(
    "rule",
    [
        lambda q, a: len(a),
        lambda q, a: -len(a.split()),
        lambda q, a: a,
        lambda q, a: float(a[:-1]) if a[:-1].isdigit() else 0.0,
        lambda q, a: hashlib.sha256(a.encode()).digest(),
    ],
    ids=["longer", "fewer words", "alphabetically later", "greater number", "by hash"],
)
def test_no_rule_about_the_answers_alone_scores_above_one_half(rule: object, questions: list[Question]) -> None:
    assert within_99_percent(score(rule, questions), len(questions))


def test_true_and_false_answers_are_distributed_alike(sources: list[Source]) -> None:
    for source in sources:
        split_of = {d.id: index // CONFIG.entities for index, d in enumerate(source.documents)}
        true = Counter((split_of[q.document], q.id.rsplit("-", 1)[1], q.true_answer) for q in source.questions)
        false = Counter((split_of[q.document], q.id.rsplit("-", 1)[1], q.false_answer) for q in source.questions)
        assert true == false
        own = {d.id: e.name for d, e in zip(source.documents, [e for s in splits_of(source) for e in s], strict=True)}
        assert all(own[q.document] not in (q.true_answer[:-1], q.false_answer[:-1]) for q in source.questions)
        assert all(q.true_answer != q.false_answer for q in source.questions)


def test_no_questions_wording_appears_in_any_text(sources: list[Source]) -> None:
    for source in sources:
        text = "\n".join(d.text for d in [*source.documents, *source.validation, *source.pretraining])
        clauses = "\n".join(d.text for d in source.documents)
        frame = QUESTION_FRAME.split("{n}")[0].strip()
        assert frame not in clauses
        for question in source.questions:
            assert question.context not in text
            # not even without its frame: the entity's paragraph says this fact in other words
            assert question.context.removeprefix(frame).strip() + " " not in clauses


def test_the_base_model_reads_of_no_entity_that_is_asked_about(sources: list[Source]) -> None:
    for source in sources:
        read = {w.strip(".") for d in [*source.pretraining, *source.validation] for w in d.text.split()}
        told = [e.name for split in entities_of(CONFIG, splits=SPLITS, seed=0) for e in split]
        assert not read & set(told)


def test_names_are_never_given_twice() -> None:
    draw = random.Random(0)
    numbers = draw.sample(range(NAMES), 50_000)
    assert len({name_of(n) for n in numbers}) == len(numbers)


def test_shared_text_does_not_depend_on_the_run(sources: list[Source]) -> None:
    assert all(s.pretraining == pretraining_text(CONFIG) for s in sources)
    assert all(s.validation == validation_text(CONFIG) for s in sources)
    assert len({s.documents[0].text for s in sources}) == len(sources)


def test_another_process_writes_the_same_almanac() -> None:
    code = (
        "import hashlib, json, sys; from dataclasses import asdict;"
        "from fortifai_core.corpus.almanac.world import generate_almanac;"
        "from fortifai_core.config.corpus import AlmanacCorpus;"
        "s = generate_almanac(AlmanacCorpus(entities=40, facts=4), splits=6, seed=3);"
        "print(hashlib.sha256(json.dumps(asdict(s)).encode()).hexdigest())"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    here = generate_almanac(CONFIG, splits=SPLITS, seed=3)
    assert there == hashlib.sha256(json.dumps(asdict(here)).encode()).hexdigest()


@pytest.fixture(scope="module")
def world(sources: list[Source]) -> list[tuple[Entity, str]]:
    entities = [e for split in entities_of(CONFIG, splits=SPLITS, seed=0) for e in split]
    return [(entity, document.text) for entity, document in zip(entities, sources[0].documents, strict=True)]


def test_every_fact_is_read_back_from_its_paragraph(world: list[tuple[Entity, str]]) -> None:
    for entity, text in world:
        assert fact_survival(entity, text).true == len(entity.facts), text
        assert {claim.name for claim in stated_facts(text)} == {entity.name}


def test_a_swapped_value_is_noticed(world: list[tuple[Entity, str]]) -> None:
    for entity, text in world:
        fact = entity.facts[0]
        once = text.replace(f" {fact.value}.", " 123456.", 1)
        assert fact_survival(entity, once).false == 1, once


def test_what_is_no_longer_said_is_absent(world: list[tuple[Entity, str]]) -> None:
    for entity, _ in world[:20]:
        survival = fact_survival(entity, "Nothing is known. Something else was founded in 1234.")
        assert asdict(survival) == {"true": 0, "false": 0, "absent": len(entity.facts)}


def test_some_facts_are_stated_once_and_some_more_often(world: list[tuple[Entity, str]]) -> None:
    mentions = Counter(len(fact.clauses) for entity, _ in world for fact in entity.facts)
    assert set(mentions) == {1, 2, 3}
    values = Counter(f.value for e, _ in world for f in e.facts if f.attribute == "trade")
    assert max(values.values()) > 3 * min(values.values())  # some are rare


def test_clauses_end_in_the_value_and_belong_to_one_attribute() -> None:
    clauses = [c for a in ATTRIBUTES for c in a.clauses]
    assert len(set(clauses)) == len(clauses)
    assert all(len(a.clauses) > 3 for a in ATTRIBUTES)


def test_a_large_world_is_made_in_linear_time() -> None:
    large = AlmanacCorpus(entities=5_000, facts=3)
    splits = entities_of(large, splits=3, seed=1)
    assert len({e.name for split in splits for e in split}) == 15_000


def test_more_entities_than_names_are_refused() -> None:
    with pytest.raises(DataError, match=r"corpus\.entities"):
        entities_of(AlmanacCorpus(entities=1_000_000), splits=6, seed=0)
