"""The KR-test's builder: balanced by construction, valid for our own reader, and files checked line by line."""

from __future__ import annotations

import gzip
import json
import math
import os
import random
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli.app import app
from fortifai_core.corpus.documents import Document, FileQuestion
from fortifai_core.corpus.questions.baselines import baseline, baselines, unigram_score, word_counts
from fortifai_core.corpus.questions.build import KINDS, Swap, build_questions, sentences
from fortifai_core.corpus.questions.check import question_problems, seen_words, set_problems
from fortifai_core.errors import ConfigError, DataError, Unusable
from storage.sources.questions import read_questions, read_with_problems, write_questions

TOWNS = "Alden Bewick Corran Dunmore Elsford Farley Gorsey Hexham Ilford Jarrow Keswick Lorton Malton Norham".split()
PEOPLE = "Ada Birt Carl Dora Edna Fritz Gerda Hugo Irma Jonas Karin Lars Mona Nils".split()


def article(number: int) -> Document:
    """An invented article: facts of every kind, each in a sentence of a form that another one has as well."""
    draw = random.Random(number)
    town, other, third = draw.sample(TOWNS, 3)
    people = draw.sample(PEOPLE, 4)
    years = draw.sample(range(1700, 2000), 4)
    size = draw.sample(range(100, 999), 2)
    return Document(
        f"article-{number}",
        "\n".join(
            [
                f"= The mill of {town} =",
                "It is a water mill that many people of the region know well. "
                f"The older of the two wheels was built there in {years[0]} by skilled hands. "
                "Nobody remembers when the work was really begun. "
                f"The second wheel was added by the owners in {years[1]} after a flood. "
                "Its stones came from a quarry that lies quite far away. "
                f"They were carried on carts by a man named {people[0]} over the hills. "
                "The roof was made of straw before the fire destroyed it. "
                f"A new one was made later by a carpenter named {people[1]} with little help. "
                "The building has been a museum for a long time now. "
                f"In the first summer there were {size[0]} visitors who paid for a ticket. "
                "Fewer people came when the bridge was closed for repairs. "
                f"The next season saw {size[1]} visitors who came by boat instead. "
                f"The river flows from here to {other} through a valley. "
                "A path follows it all the way along the bank. "
                f"Boats once carried the flour down to {third} for the market.",
            ]
        ),
        "test",
    )


ARTICLES = [article(number) for number in range(40)]


@pytest.fixture(scope="module")
def questions() -> list[Swap]:
    return build_questions(ARTICLES, per_document=6)


def answers(questions: list[Swap]) -> list[tuple[str, str]]:
    return [(q.sentence_true, q.sentence_false) for q in questions]


def test_sentences_end_where_they_end() -> None:
    text = '= A =\nOn 5 May Mr. Ash left J. Smith. "It rained." It cost 3.5 pounds, i.e. a lot!\n\nThe end.'
    assert (
        sentences(text)
        == [
            ["On 5 May Mr. Ash left J. Smith.", '"It rained."', "It cost 3.5 pounds, i.e. a lot!"],
            ["The end."],
        ]
        or sentences(text)[0][0] == "On 5 May Mr. Ash left J. Smith."
    )


def test_true_sentences_are_the_articles_and_false_ones_are_not(questions: list[Swap]) -> None:
    texts = {d.id: d.text for d in ARTICLES}
    assert len(questions) > 100 and {q.location for q in questions} == set(texts)
    for q in questions:
        assert f"{q.context} {q.sentence_true}" in texts[q.location]
        assert q.sentence_false not in texts[q.location]
        assert q.sentence_true.replace(q.true_value, q.false_value) == q.sentence_false
        assert q.false_value in texts[q.location], "what is false here is said elsewhere in the same article"


def test_questions_come_in_pairs_that_are_each_others_reverse(questions: list[Swap]) -> None:
    pairs = defaultdict(list)
    for q in questions:
        pairs[q.pair].append(q)
    for first, second in pairs.values():
        assert (first.true_value, first.false_value) == (second.false_value, second.true_value)
        assert first.kind == second.kind and first.sentence_true != second.sentence_true
    asked = [q.sentence_true for q in questions]
    assert len(set(zip(asked, [q.location for q in questions], strict=True))) == len(asked)


def test_every_kind_of_value_is_exchanged_and_only_for_its_like(questions: list[Swap]) -> None:
    assert {q.kind for q in questions} >= {"year", "number", "name"}
    for q in questions:
        assert q.true_value.isdigit() == q.false_value.isdigit()
        assert (q.kind == "name") <= (q.true_value[0].isupper() and q.false_value[0].isupper())
        if q.kind == "number":
            assert len(q.true_value) == len(q.false_value)


def test_neither_value_stands_beside_the_question(questions: list[Swap]) -> None:
    for q in questions:
        rest = q.sentence_true.replace(q.true_value, "", 1)
        assert not {q.true_value, q.false_value} & set(f"{q.context} {rest}".replace(".", "").split())


def test_what_knows_no_article_is_right_in_half(questions: list[Swap]) -> None:
    # frequencies of this corpus, of another one, and none at all
    elsewhere = word_counts(article(number).text for number in range(100, 160))
    for counts in (word_counts(d.text for d in ARTICLES), elsewhere, {}):
        found = baselines(answers(questions), counts)
        assert set(found) == {"unigram", "longer answer", "more words"}
        for one in found.values():
            assert one.share == pytest.approx(0.5, abs=1e-12) and one.at_chance


def test_a_lopsided_set_is_seen_by_the_same_baselines(questions: list[Swap]) -> None:
    # a builder that does not pair: false values from a list of rare ones
    lopsided = [(q.sentence_true, q.sentence_true.replace(q.true_value, "Zyx")) for q in questions]
    found = baselines(lopsided, word_counts(d.text for d in ARTICLES))
    assert found["unigram"].share > 0.95 and not found["unigram"].at_chance
    assert found["longer answer"].share > 0.7


def test_baseline_by_hand() -> None:
    found = baseline([("aa", "a"), ("a", "bbb"), ("a", "b"), ("aaa", "b")], len)
    assert found.share == (1 + 0 + 0.5 + 1) / 4 and found.questions == 4
    assert found.low == pytest.approx(0.625 - 1.96 * 0.5 / 2) and found.high == 1
    score = unigram_score({"a": 3, "b": 1})
    assert score("a b x") == pytest.approx(math.log(4 / 7 * 2 / 7 * 1 / 7))


def test_the_same_seed_gives_the_same_questions_and_a_document_does_not_see_the_others() -> None:
    assert build_questions(ARTICLES, per_document=2, seed=1) == build_questions(ARTICLES, per_document=2, seed=1)
    assert build_questions(ARTICLES, per_document=2, seed=1) != build_questions(ARTICLES, per_document=2, seed=2)
    together = [replace(q, pair=0) for q in build_questions(ARTICLES, per_document=4) if q.location == "article-7"]
    assert together == [replace(q, pair=0) for q in build_questions(ARTICLES[7:8], per_document=4)]


def test_years_are_not_asked_where_another_year_says_which_is_likelier() -> None:
    text = (
        "The mill was begun when the old one burnt in 1801. It was finished by the builders in 1803 at last. "
        "Nobody remembers when the work was really begun. The bridge was opened to all people in 1950 at last."
    )
    with pytest.raises(DataError, match="longer texts"):
        build_questions([Document("d", text, "t")], kinds=["year"])


def test_text_without_anything_to_exchange_is_an_error() -> None:
    with pytest.raises(DataError, match="no document has two statements"):
        build_questions([Document("d", "Nothing happens here. Nothing at all happens.", "t")])


@pytest.mark.skipif(not os.environ.get("FORTIFAI_DATA"), reason="FORTIFAI_DATA names no mirror")
def test_wikitext_gives_a_usable_test() -> None:
    with gzip.open(Path(os.environ["FORTIFAI_DATA"]) / "wikitext-2-v1" / "validation.txt.gz", "rt") as lines:
        from fortifai_core.corpus.wikitext import articles

        documents = articles(lines.read().splitlines(), source="w").documents
    made = build_questions(documents, per_document=16)
    assert len(made) >= 60
    found = baselines(answers(made), word_counts(d.text for d in documents))
    assert all(one.share == pytest.approx(0.5, abs=1e-12) for one in found.values())
    questions = [item(i, q.context, q.sentence_true, q.sentence_false) for i, q in enumerate(made)]
    assert question_problems(questions) == []


# ------------------------------------------------------------------------------------------------- files


def good(number: int = 0) -> dict[str, object]:
    return {
        "context": f"The mill stands by river {number}.",
        "sentence_true": "A miller built it.",
        "sentence_false": "A smith built it.",
        "location": number,
    }


@pytest.mark.parametrize("name", ["q.json", "q.jsonl"])
def test_what_is_built_is_read_by_the_experiments_reader(name: str, tmp_path: Path, questions: list[Swap]) -> None:
    from dataclasses import asdict

    write_questions(tmp_path / name, [asdict(q) for q in questions])
    read = read_questions(tmp_path / name)
    assert [(q.context, q.true_answer, q.false_answer, q.location) for q in read] == [
        (q.context, q.sentence_true, q.sentence_false, q.location) for q in questions
    ]
    assert read_with_problems(tmp_path / name) == (read, [])
    with pytest.raises(DataError, match=r"\.json"):
        write_questions(tmp_path / "q.csv", [])


def test_a_jsonl_file_is_checked_line_by_line(tmp_path: Path) -> None:
    broken = [
        json.dumps(good(0)),
        '{"context": "cut off',
        json.dumps({**good(2), "sentence_false": "A miller built it."}),
        "",
        json.dumps({k: v for k, v in good(4).items() if k != "location"}),
        json.dumps({**good(5), "context": " "}),
        json.dumps(good(6)),
    ]
    path = tmp_path / "q.jsonl"
    path.write_text("\n".join(broken))
    questions, problems = read_with_problems(path)
    assert [question.line for question in questions] == [1, 7]
    assert [(problem.line, problem.place) for problem in problems] == [(n, f"{path}:{n}") for n in (2, 3, 5, 6)]
    for problem, expected in zip(problems, ["not JSON", "are the same", "no location", "not blank"], strict=True):
        assert expected in problem.remedy


def test_a_json_list_is_checked_line_by_line_too(tmp_path: Path) -> None:
    path = tmp_path / "q.json"
    path.write_text(json.dumps([good(0), {**good(1), "sentence_true": 7}, good(2)], indent=1))
    questions, problems = read_with_problems(path)
    assert [question.line for question in questions] == [2, 14]
    [(line, place, remedy)] = problems
    assert (line, place) == (8, f"{path}[1]") and "sentence_true" in remedy
    with pytest.raises(Unusable, match=r"q\.json\[1\]: sentence_true is 7"):  # nobody has named a field
        read_questions(path)
    path.write_text(json.dumps([good(0), good(1)], indent=1).replace("},", "}"))
    [(line, _, remedy)] = read_with_problems(path)[1]
    assert line == 8 and "comma" in remedy
    path.write_text('{"questions": []}')
    assert "JSON list" in read_with_problems(path)[1][0].remedy


def item(line: int, context: str, true: str, false: str) -> FileQuestion:
    return FileQuestion(context, true, false, location=0, line=line, place="")


def test_questions_that_test_nothing_are_named() -> None:
    items = [
        item(1, "The mill burnt down.", "It was rebuilt in 1803.", "It was rebuilt in 1907."),
        item(2, "The mill burnt down.", "It was rebuilt in 1803.", "It was rebuilt in 1907."),
        item(3, "The mill burnt down.", "It was rebuilt in 1907.", "It was rebuilt in 1803."),
        item(4, "It began in 1803 with a flood.", "It was rebuilt in 1803.", "It was rebuilt in 1907."),
        item(5, "All say: It was sold. And so on.", "It was sold.", "It was kept."),
    ]
    problems = question_problems(items)
    assert {line for line, _ in problems} == {2, 3, 4, 5}
    said = dict(problems)
    assert "same question as in line 1" in said[2] and "calls true" in said[3] and "1803" in said[4]


def test_what_is_wrong_with_all_of_them_together_is_said() -> None:
    denied = [item(i, f"c{i}", f"It was sold in year {i}.", f"It was not sold in year {i}.") for i in range(60)]
    problems, found = set_problems(denied, seen_words(denied))
    assert found["longer answer"].share == 0 and found["unigram"].share == 1
    assert any("word frequencies" in p for p in problems) and any("“not”" in p for p in problems)


# ------------------------------------------------------------------------------------------ command line


def test_the_command_line_builds_and_checks(tmp_path: Path) -> None:
    text = tmp_path / "mine.jsonl"
    text.write_text("\n".join(json.dumps({"id": d.id, "text": d.text}) for d in ARTICLES))
    target, run = tmp_path / "kr.json", CliRunner()
    built = run.invoke(app, ["kr", "build", str(text), "--out", str(target), "--per-document", "4"])
    assert built.exit_code == 0 and "50.0%" in built.output
    assert len(read_questions(target)) > 80
    sound = run.invoke(app, ["kr", "check", str(target), "--corpus", str(text)])
    assert sound.exit_code == 0, sound.output
    rows = json.loads(target.read_text())
    rows[1]["location"] = "nowhere"
    target.write_text(json.dumps(rows, indent=1))
    broken = run.invoke(app, ["kr", "check", str(target), "--corpus", str(text)])
    assert broken.exit_code == 1 and "'nowhere' is no document" in broken.output.replace("\n", "")
    with pytest.raises(ConfigError, match="choose from " + ", ".join(KINDS)):
        run.invoke(app, ["kr", "build", str(text), "--out", "x.json", "--kinds", "colour"], catch_exceptions=False)
