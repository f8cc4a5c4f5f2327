"""Reading corpora: every format, every bad input's message, and the local mirror."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from spelling import both_forms, equal_share

from fortifai_core.config.corpus import AlmanacCorpus, HuggingFaceCorpus, MixtureCorpus, TextCorpus
from fortifai_core.corpus.documents import Question, Source
from fortifai_core.corpus.questions.baselines import baseline, unigram_score, word_counts
from fortifai_core.corpus.splitting import cut
from fortifai_core.corpus.wikitext import articles, ordinary_spelling, raw_text
from fortifai_core.errors import DataError
from storage.sources import hub, mirror
from storage.sources.sources import check_corpus, load_source, source_digests

MIRROR = os.environ.get("FORTIFAI_DATA")
needs_mirror = pytest.mark.skipif(not MIRROR, reason="FORTIFAI_DATA names no mirror")
TEXTS = [f"Document {n} tells of the island {n}.\nIts second line." for n in range(20)]
WIKITEXT = HuggingFaceCorpus(dataset="Salesforce/wikitext", config="wikitext-2-v1", questions="wikitext-2")


def question(location: object, **changes: object) -> dict[str, object]:
    fields = {
        "context": "It is",
        "sentence_true": "an island.",
        "sentence_false": "a lake.",
        "location": location,
    }
    return {k: v for k, v in {**fields, **changes}.items() if v is not None}


def write(path: Path, content: str | bytes) -> str:
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def text_corpus(folder: Path, questions: list | None = None, **changes: object) -> TextCorpus:
    file = write(folder / "islands.txt", "\n\n".join(TEXTS))
    asked = None if questions is None else write(folder / "questions.json", json.dumps(questions))
    return TextCorpus(files=[file], questions=asked, **changes)


def assert_disjoint(source: Source) -> None:
    groups = [source.documents, source.validation, source.pretraining]
    for attribute in ("id", "text"):
        values = [{getattr(d, attribute) for d in group} for group in groups]
        assert all(values)
        assert len(set.union(*values)) == sum(map(len, values)), attribute
    assert len({d.id for group in groups for d in group}) == sum(map(len, groups))
    assert {q.document for q in source.questions} <= {d.id for d in source.documents}
    assert len({q.id for q in source.questions}) == len(source.questions)


# ---------------------------------------------------------------------------------------- a user's files


def parquet(texts: list[str], path: Path, **columns: list) -> bytes:
    pq.write_table(pa.table({"text": texts, **columns}), path)
    return path.read_bytes()


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".parquet"])
def test_every_format_gives_the_same_documents(tmp_path: Path, kind: str, packed: str) -> None:
    match kind:
        case ".txt":
            content: str | bytes = "\ufeff\n" + "\n \t\n\n".join(TEXTS).replace("\n", "\r\n")
        case ".jsonl":
            content = "\n\n".join(json.dumps({"text": t, "other": 1}) for t in TEXTS)
        case _:
            content = parquet(TEXTS, tmp_path / "scratch")
    file = write(tmp_path / f"islands{kind}{packed}", content)
    corpus = TextCorpus(files=[file])
    check_corpus(corpus)
    source = load_source(corpus, splits=6, seed=0)
    assert_disjoint(source)
    everything = [*source.documents, *source.validation, *source.pretraining]
    assert sorted((int(d.id.split("-")[1]), d.text) for d in everything) == list(enumerate(TEXTS))
    assert len(source.pretraining) == 5 and len(source.validation) == 1
    assert [d.id for d in source.documents] == sorted((d.id for d in source.documents), key=lambda i: int(i[9:]))


def test_packing_a_file_does_not_change_its_digest(tmp_path: Path) -> None:
    plain = write(tmp_path / "a.txt", "one\n\ntwo")
    packed = write(tmp_path / "b.txt.gz", "one\n\ntwo")
    other = write(tmp_path / "c.txt", "one\n\nthree")
    digests = [source_digests(TextCorpus(files=[f])) for f in (plain, packed, other)]
    assert digests[0] == digests[1] != digests[2]
    assert "a.txt" not in str(digests)
    asked = TextCorpus(files=[plain], questions=write(tmp_path / "q.json", json.dumps([question(0)])))
    assert source_digests(asked).keys() == {"files.0", "questions"}


def test_a_file_without_blank_lines_is_one_document(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{n}.txt", text) for n, text in enumerate(TEXTS)]
    source = load_source(TextCorpus(files=files), splits=6, seed=0)
    assert {d.text for d in source.documents} < set(TEXTS)


def test_locations_are_numbers_or_ids(tmp_path: Path) -> None:
    rows = [json.dumps({"text": t, "id": f"island-{n}"}) for n, t in enumerate(TEXTS)]
    file = write(tmp_path / "islands.jsonl", "\n".join(rows))
    asked = [question(3), question("island-4")]
    corpus = TextCorpus(
        files=[file],
        questions=write(tmp_path / "q.jsonl.gz", "\n".join(map(json.dumps, asked))),
    )
    source = load_source(corpus, splits=6, seed=0)
    assert [q.document for q in source.questions] == ["island-3", "island-4"]
    assert source.questions[0].true_answer == "an island." and source.questions[0].false_answer == "a lake."


def test_documents_without_questions_are_kept_apart_first(tmp_path: Path) -> None:
    source = load_source(text_corpus(tmp_path, [question(n) for n in range(14)]), splits=6, seed=0)
    assert len(source.questions) == 14
    assert not any("left out" in note for note in source.notes)
    fewer = load_source(text_corpus(tmp_path, [question(n) for n in range(20)]), splits=6, seed=0)
    assert len(fewer.questions) == 14
    assert any("6 of 20 questions" in note and "14 are asked" in note for note in fewer.notes)
    assert_disjoint(fewer)


def test_the_ceiling_counts_words_that_never_occur(tmp_path: Path) -> None:
    asked = [
        question(0, sentence_true="An Island", sentence_false="a line"),  # all occur, in some case
        question(1, sentence_true="an island", sentence_false="a volcano"),
        question(2, sentence_true="a glacier", sentence_false="an island"),
        question(3, sentence_true="a volcano island", sentence_false="a volcano line"),  # in both answers
    ]
    source = load_source(text_corpus(tmp_path, asked), splits=6, seed=0)
    [ceiling] = [note for note in source.notes if note.startswith("Ceiling")]
    # "a" and "an" never occur in the corpus either, so questions 0 to 2 turn on an unseen word.
    assert "3 of 4 questions (75.0%)" in ceiling
    assert "(in 3 a word of the true answer)" in ceiling


def test_the_baseline_of_word_frequencies_is_counted_by_hand() -> None:
    texts = ["The cat saw a cat.", "a dog"]
    asked = [
        Question("0", "d", "", "The CAT", "the dog"),  # cat: 2 + 1 times, dog: 1 + 1
        Question("1", "d", "", "dog", "a dog"),  # one word is likelier than the same and another
        Question("2", "d", "", "a bird", "a cat"),
        Question("3", "d", "", "saw dog", "dog saw"),
    ]
    pairs = [(q.true_answer, q.false_answer) for q in asked]
    assert baseline(pairs, unigram_score(word_counts(texts))).share == (1 + 1 + 0 + 0.5) / 4


def test_a_test_that_word_frequencies_answer_is_said_to_be_one(tmp_path: Path) -> None:
    # "rare" never occurs, "island" is in every document
    lopsided = [question(i, sentence_true="rare", sentence_false="island") for i in range(20)]
    even = [question(i, sentence_true="island", sentence_false="rare") if i % 2 else lopsided[i] for i in range(20)]
    [baseline] = [n for n in load_source(text_corpus(tmp_path, lopsided), splits=2, seed=0).notes if "Baseline" in n]
    assert "in 0% of the" in baseline
    assert not any("Baseline" in n for n in load_source(text_corpus(tmp_path, even), splits=2, seed=0).notes)


def test_max_documents_leaves_out_questions_and_says_so(tmp_path: Path) -> None:
    corpus = text_corpus(tmp_path, [question(2), question(15)], max_documents=10)
    source = load_source(corpus, splits=2, seed=0)
    assert [q.document for q in source.questions] == ["document-2"]
    assert any("1 of 2 questions are about documents that are not used" in n for n in source.notes)


def test_the_same_text_twice_is_never_kept_and_used(tmp_path: Path) -> None:
    some = write(tmp_path / "some.txt", "\n\n".join(TEXTS + TEXTS[:5]))
    source = load_source(TextCorpus(files=[some]), splits=4, seed=0)
    assert (len(source.documents), len(source.pretraining), len(source.validation)) == (18, 6, 1)
    used, kept = ({d.text for d in group} for group in (source.documents, [*source.pretraining, *source.validation]))
    assert not used & kept and used | kept == set(TEXTS)
    more = write(tmp_path / "more.txt", "\n\n".join([*TEXTS[:8], *(t for t in TEXTS[8:] for _ in "ab")]))
    most = TextCorpus(files=[more], pretraining_fraction=0.2, validation_fraction=0.2)
    source = load_source(most, splits=4, seed=0)
    assert any("kept documents were dropped" in n for n in source.notes)
    assert not {d.text for d in source.documents} & {d.text for d in [*source.pretraining, *source.validation]}
    assert not {d.text for d in source.pretraining} & {d.text for d in source.validation}
    thrice = write(tmp_path / "thrice.txt", "\n\n".join(t for t in TEXTS for _ in "abc"))
    with pytest.raises(DataError, match="no text is left for pretraining"):
        load_source(TextCorpus(files=[thrice]), splits=4, seed=0)


def test_reading_does_not_depend_on_the_seed(tmp_path: Path) -> None:
    corpus = text_corpus(tmp_path)
    assert load_source(corpus, splits=6, seed=0) == load_source(corpus, splits=6, seed=1)


BAD_FILES = [
    ("a.txt", b"", "a.txt", "empty"),
    ("a.txt", b" \n\t\n", "a.txt", "no document"),
    ("a.txt", b"fine\n\nb\xffd", "a.txt:3", "not UTF-8"),
    ("a.doc", b"text", "a.doc", "must end in .txt, .jsonl, .parquet"),
    ("a.jsonl", b'{"text": "x"}\n{"text": \n', "a.jsonl:2", "not JSON"),
    ("a.jsonl", b'{"text": "x"}\n\n["x"]\n', "a.jsonl:3", "not a JSON object"),
    ("a.jsonl", b'{"body": "x"}\n', "a.jsonl:1", "no 'text' in it, only 'body': set text_field"),
    ("a.jsonl", b'{"text": " "}\n', "a.jsonl:1", "not blank"),
    (
        "a.jsonl",
        b'{"text": "x", "id": "i"}\n{"text": "y", "id": "i"}',
        "a.jsonl",
        "two documents have the id 'i'",
    ),
    ("a.jsonl", b'{"text": "x", "id": [1]}\n', "a.jsonl:1", "'id' is [1]"),
    ("a.parquet", b"not parquet at all", "a.parquet", "not a readable Parquet file"),
]


@pytest.mark.parametrize(("name", "content", "value", "remedy"), BAD_FILES)
def test_bad_files_are_named(tmp_path: Path, name: str, content: bytes, value: str, remedy: str) -> None:
    good = write(tmp_path / "good.txt", "\n\n".join(TEXTS))
    corpus = TextCorpus(files=[good, write(tmp_path / name, content)])
    with pytest.raises(DataError) as caught:
        load_source(corpus, splits=2, seed=0)
    assert caught.value.field == "corpus.files.1"
    assert str(caught.value.value).endswith(value)
    assert remedy in caught.value.remedy


def test_missing_folders_and_damaged_gzip_are_named(tmp_path: Path) -> None:
    damaged = tmp_path / "d.txt.gz"
    damaged.write_bytes(gzip.compress(os.urandom(5000).hex().encode())[:2000])
    not_gzip = tmp_path / "n.txt.gz"
    not_gzip.write_bytes(b"plain text")
    for path, remedy in [
        (tmp_path / "none.txt", "no such file"),
        (tmp_path / "folder.txt", "not a file"),
        (damaged, "damaged"),
        (not_gzip, "damaged"),
    ]:
        (tmp_path / "folder.txt").mkdir(exist_ok=True)
        with pytest.raises(DataError, match=remedy) as caught:
            load_source(TextCorpus(files=[str(path)]), splits=2, seed=0)
        assert (caught.value.field, caught.value.value) == ("corpus.files.0", str(path))


def test_parquet_columns_and_nulls_are_checked(tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    parquet(TEXTS, file)
    with pytest.raises(DataError, match="no 'body' in it, only 'text'"):
        load_source(TextCorpus(files=[str(file)], text_field="body"), splits=2, seed=0)
    pq.write_table(pa.table({"text": ["x", None]}), file)
    with pytest.raises(DataError, match=r"rows.parquet\[1\]"):
        load_source(TextCorpus(files=[str(file)]), splits=2, seed=0)


BAD_QUESTIONS = [
    ("q.json", "", "q.json", "empty"),
    ("q.json", "[]", "q.json", "no question"),
    ("q.json", "{}", "q.json:1", "must be one JSON list"),
    ("q.json", '[\n{"context": 1,}]', "q.json:2", "not JSON"),
    ("q.jsonl", json.dumps(question(0)) + "\n{", "q.jsonl:2", "not JSON"),
    ("q.json", json.dumps([question(0), 3]), "q.json[1]", "must be an object"),
    ("q.json", json.dumps([question(0), question(None)]), "q.json[1]", "has no location"),
    (
        "q.jsonl",
        json.dumps(question(0, context=None, sentence_true=None)),
        "q.jsonl:1",
        "no context, sentence_true",
    ),
    ("q.json", json.dumps([question(0, sentence_false="an island. ")]), "q.json[0]", "are the same"),
    ("q.json", json.dumps([question(0, sentence_true="")]), "q.json[0]", "sentence_true is ''"),
    ("q.json", json.dumps([question(0, context=7)]), "q.json[0]", "context is 7"),
    ("q.json", json.dumps([question(1.5)]), "q.json[0]", "location is 1.5"),
    ("q.json", json.dumps([question(True)]), "q.json[0]", "location is True"),
]


@pytest.mark.parametrize(("name", "content", "value", "remedy"), BAD_QUESTIONS)
def test_bad_questions_are_found_before_anything_runs(
    tmp_path: Path, name: str, content: str, value: str, remedy: str
) -> None:
    corpus = text_corpus(tmp_path).model_copy(update={"questions": write(tmp_path / name, content)})
    for use in (check_corpus, lambda c: load_source(c, splits=2, seed=0)):
        with pytest.raises(DataError) as caught:
            use(corpus)
        assert caught.value.field == "corpus.questions"
        assert str(caught.value.value).endswith(value)
        assert remedy in caught.value.remedy


@pytest.mark.parametrize("location", [20, -1, "document-20", ""])
def test_a_question_that_points_nowhere_is_refused(tmp_path: Path, location: object) -> None:
    with pytest.raises(DataError, match="is nowhere in the corpus") as caught:
        load_source(text_corpus(tmp_path, [question(0), question(location)]), splits=2, seed=0)
    assert caught.value.field == "corpus.questions" and str(caught.value.value).endswith("questions.json[1]")
    assert "0 to 19" in caught.value.remedy


def test_too_few_documents_for_the_splits(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="of 20 documents 14 are left for 15 splits") as caught:
        load_source(text_corpus(tmp_path), splits=15, seed=0)
    assert caught.value.field == "corpus.files"


# -------------------------------------------------------------------------------------- WikiText's lines

LINES = """
 = First article =

 Its text , with a list :
 = No result , Pts =
 Points .

 = = Part = =

 More @-@ or less .

 = Second article =

 Text
""".splitlines()


def test_articles_begin_at_headings_between_blank_lines() -> None:
    read = articles(LINES, source="w")
    assert [d.id for d in read.documents] == ["w:1", "w:11"]
    assert read.documents[0].text == (
        "= First article =\nIts text, with a list:\n= No result, Pts =\nPoints.\n== Part ==\nMore-or less."
    )


def test_a_line_belongs_to_the_article_around_it() -> None:
    read = articles(LINES, source="w")
    assert [read.locate(n) for n in (0, 1, 4, 10, 11, 13, 14, -1)] == [None] + ["w:1"] * 3 + ["w:11"] * 2 + [None] * 2
    assert articles(LINES[2:10], source="w").documents == []
    assert read.locate("w:11") == "w:11" and read.locate("w:2") is None


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (" the game 's 10 @,@ 000 copies , 7 @.@ 5 % \n", "the game's 10,000 copies, 7.5%"),
        (' " Nameless " , ( a unit ) ; they didn \'t ', '"Nameless", (a unit); they didn\'t'),
        (" characters ' turns , <unk> 29 – 46 at 24 km / h ", "characters' turns, <unk> 29–46 at 24 km/h"),
        (" = = = Music = = = ", "=== Music ==="),
        (" $ 5 for # 1 [ note 2 ] : fine ! ", "$5 for #1 [note 2]: fine!"),
    ],
)
def test_ordinary_spelling(found: str, expected: str) -> None:
    assert ordinary_spelling(found) == expected
    assert ordinary_spelling(expected) == expected


# ------------------------------------------------------------------------------------ the hub, unreachable


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (" = = = Music = = = ", "Music"),
        (" = Homarus gammarus = ", "Homarus gammarus"),
        (" the game 's 10 @,@ 000 copies , 7 @.@ 5 % , at 10 : 30 \n", "the game's 10,000 copies, 7.5%, at 10:30"),
        (" known as ' heel @-@ shaped <unk> ' , ' voes ' .", "known as 'heel-shaped <unk>', 'voes'."),
        (" characters ' turns and <unk> ' views", "characters' turns and <unk>' views"),
        (' " Nameless " , ( a " unit " [ note 2 ] ) ; didn \'t ', '"Nameless", (a "unit" [note 2]); didn\'t'),
        (" a .45 and / or R & B , 20 ° C — 5 – <unk> km . ", "a .45 and/or R&B, 20 °C—5–<unk> km."),
        (" x = y = z ; p = 0 @.@ 5 ", "x = y = z; p = 0.5"),
    ],
)
def test_raw_text(found: str, expected: str) -> None:
    assert raw_text(found) == expected
    assert raw_text(expected) == expected


def test_only_wikitext_is_asked_for_raw() -> None:
    with pytest.raises(DataError, match="only WikiText is tokenised") as caught:
        check_corpus(HuggingFaceCorpus(dataset="openai/gsm8k", config="main", text="raw"))
    assert (caught.value.field, caught.value.value) == ("corpus.text", "raw")


def test_an_unreachable_hub_is_one_error_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.delenv(mirror.VARIABLE, raising=False)
    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(DataError, match="Couldn't reach the Hub") as caught:
        load_source(HuggingFaceCorpus(dataset="openai/gsm8k", config="main"), splits=2, seed=0)
    assert (caught.value.field, caught.value.value) == ("corpus.dataset", "openai/gsm8k")
    assert "set FORTIFAI_DATA to a local mirror" in caught.value.remedy


def test_rows_of_the_hub_become_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    rows = {
        "train": [{"ctx": f"He {n}", "endings": ["sits", "runs", "a", "b"], "label": str(n % 2)} for n in range(20)],
        "validation": [{"ctx": "She", "endings": ["sits", "runs", "a", "b"], "label": "1"}],
    }
    asked = []

    def load(dataset: str, config: str | None, *, split: str, revision: str | None) -> datasets.Dataset:
        asked.append((dataset, config, split, revision))
        return datasets.Dataset.from_list(rows[split])

    monkeypatch.delenv(mirror.VARIABLE, raising=False)
    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda *_, **__: list(rows))
    corpus = HuggingFaceCorpus(dataset="Rowan/hellaswag", revision="abc", max_documents=12)
    source = load_source(corpus, splits=2, seed=0)
    assert_disjoint(source)
    assert asked == [("Rowan/hellaswag", None, split, "abc") for split in ("train", "validation")]
    assert len(source.documents) + len(source.pretraining) == 12
    assert source.documents[0].text == "He 0 sits" and source.validation[0].text == "She runs"
    assert source_digests(corpus) == {"hub": "Rowan/hellaswag/default@abc"}
    rows["train"][3]["label"] = ""
    with pytest.raises(DataError, match="row 3 has the label ''"):
        load_source(corpus, splits=2, seed=0)
    rows["train"] = [{"body": "x"}]
    with pytest.raises(DataError, match="no 'text', only 'body'"):
        load_source(corpus, splits=2, seed=0)


# ------------------------------------------------------------------------------------------- the mirror


def test_the_mirror_must_be_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(mirror.VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="is not a folder") as caught:
        check_corpus(WIKITEXT)
    assert caught.value.field == "FORTIFAI_DATA"


@pytest.mark.parametrize(
    ("changes", "field", "remedy"),
    [
        ({}, "corpus.dataset", "lacks wikitext-2-v1/train.txt.gz"),
        ({"dataset": "someone/else", "questions": None}, "corpus.dataset", "does not know it"),
        (
            {"config": "wikitext-103-v1", "questions": None},
            "corpus.config",
            "as wikitext-2-raw-v1, wikitext-2-v1",
        ),
        ({"config": None}, "corpus.config", "needs one"),
        ({"split": "test"}, "corpus.questions", "train split"),
    ],
)
def test_what_the_mirror_lacks_is_never_fetched_or_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict, field: str, remedy: str
) -> None:
    monkeypatch.setenv(mirror.VARIABLE, str(tmp_path))
    corpus = WIKITEXT.model_copy(update=changes)
    for use in (check_corpus, lambda c: load_source(c, splits=2, seed=0)):
        with pytest.raises(DataError) as caught:
            use(corpus)
        assert caught.value.field == field and remedy in caught.value.remedy


def test_damaged_files_of_the_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(mirror.VARIABLE, str(tmp_path))
    file = tmp_path / "gsm8k" / "train.jsonl.gz"
    file.parent.mkdir()
    corpus = HuggingFaceCorpus(dataset="gsm8k")
    whole = gzip.compress(os.urandom(3000).hex().encode())
    row = gzip.compress(json.dumps({"question": "1 + 1?", "answer": "2"}).encode())
    for content, remedy in [
        (b"", "empty"),
        (gzip.compress(b""), "empty"),
        (whole[:1000], "damaged"),
        (row, "holds 1 rows, not 7,473"),
    ]:
        file.write_bytes(content)
        with pytest.raises(DataError, match=remedy):
            load_source(corpus, splits=2, seed=0)
    with pytest.raises(DataError, match="only train of gsm8k") as caught:
        check_corpus(corpus.model_copy(update={"split": "test"}))
    assert caught.value.field == "corpus.split"


def test_the_authors_questions_need_a_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(mirror.VARIABLE, raising=False)
    with pytest.raises(DataError, match="set FORTIFAI_DATA to a mirror that holds kr-test") as caught:
        check_corpus(WIKITEXT)
    assert (caught.value.field, caught.value.value) == ("corpus.questions", "wikitext-2")
    monkeypatch.setenv(mirror.VARIABLE, str(tmp_path))
    (tmp_path / "kr-test").mkdir()
    (tmp_path / "kr-test" / "wikitext-2.json").write_text(json.dumps([question(1)]))
    with pytest.raises(DataError, match="holds 1 rows, not 4,975"):
        mirror.kr_questions()


@pytest.fixture(scope="module")
def wikitext() -> Source:
    return load_source(WIKITEXT, splits=6, seed=0)


@needs_mirror
def test_wikitext_is_disjoint_and_complete(wikitext: Source) -> None:
    check_corpus(WIKITEXT)
    assert_disjoint(wikitext)
    assert (len(wikitext.documents), len(wikitext.pretraining), len(wikitext.validation)) == (450, 150, 60)
    assert len(wikitext.questions) == 3_734
    assert any("1,241 of 4,975 questions" in n and "3,734 are asked" in n for n in wikitext.notes)
    [ceiling] = [n for n in wikitext.notes if n.startswith("Ceiling")]
    assert "726 of 3,734 questions (19.4%)" in ceiling
    # false answers are made of commoner words than true ones
    [baseline] = [n for n in wikitext.notes if n.startswith("Baseline")]
    assert "in 46% of the 3,734 questions" in baseline


@needs_mirror
def test_all_questions_of_the_authors_find_their_article() -> None:
    path = mirror.kr_questions()
    rows = json.loads(path.read_text(encoding="utf-8"))
    lines = [row["text"] for row in hub.load_dataset_rows("wikitext", "wikitext-2-v1", "train").rows]
    read = articles(lines, source="wikitext-2")
    assert len(read.documents) == 600
    texts = {d.id: d.text for d in read.documents}
    found = [read.locate(row["location"]) for row in rows]
    assert len(found) == 4_975 and set(found) == set(texts), "every article is asked about"
    at_heading = {row["location"] for row in rows} & set(read.starts)
    assert len(at_heading) == 600, "ten more locations lie inside an article"

    def content_words(text: str) -> set[str]:
        return {w for w in re.findall(r"\w+", text.casefold()) if len(w) > 5}

    def shared(shift: int) -> float:
        names = list(texts)
        total = 0.0
        for row, name in zip(rows, found, strict=True):
            words = content_words(row["context"] + " " + row["sentence_true"])
            other = words_of[names[(names.index(name) + shift) % len(names)]]
            total += len(words & other) / max(1, len(words))
        return total / len(rows)

    words_of = {name: content_words(text) for name, text in texts.items()}
    assert shared(0) > 0.6 > 0.35 > shared(1), "questions share their own article's words, not the next one's"


@needs_mirror
def test_splits_of_wikitext_hold_equal_text(wikitext: Source) -> None:
    lengths = [len(d.text) for d in wikitext.documents]
    parts = cut(lengths, splits=6)
    sizes = [sum(n for n, part in zip(lengths, parts, strict=True) if part == k) for k in range(6)]
    assert max(abs(size - sum(lengths) / 6) for size in sizes) < max(lengths)


@needs_mirror
def test_the_raw_train_split_is_only_a_prefix() -> None:
    raw = WIKITEXT.model_copy(update={"config": "wikitext-2-raw-v1"})
    for use in (check_corpus, lambda c: load_source(c, splits=2, seed=0)):
        with pytest.raises(DataError) as caught:
            use(raw)
        assert "only the first 3,279 of 36,718 lines" in caught.value.remedy
        assert "config wikitext-2-v1" in caught.value.remedy
    with pytest.raises(DataError, match="only 51 whole articles"):
        load_source(raw.model_copy(update={"max_documents": 52}), splits=2, seed=0)
    some = load_source(raw.model_copy(update={"max_documents": 51}), splits=2, seed=0)
    assert_disjoint(some)
    assert not any("<unk>" in d.text for d in some.documents)


@needs_mirror
@pytest.mark.parametrize(("name", "lines", "least"), [("validation", 2_461, 0.997), ("test", 2_891, 0.995)])
def test_both_forms_of_wikitext_give_the_same_raw_text(name: str, lines: int, least: float) -> None:
    pairs = list(both_forms(Path(os.environ[mirror.VARIABLE]), name))
    assert len(pairs) == lines
    assert equal_share(pairs, raw_text) >= least > equal_share(pairs, ordinary_spelling)
    known = [(raw, words) for raw, words in pairs if "<unk>" not in words]
    assert len(known) > 600 and equal_share(known, raw_text) == 1


@needs_mirror
def test_raw_text_is_another_corpus_with_the_same_articles(wikitext: Source) -> None:
    raw = load_source(WIKITEXT.model_copy(update={"text": "raw"}), splits=6, seed=0)
    assert [d.id for d in raw.documents] == [d.id for d in wikitext.documents]
    assert len(raw.questions) == len(wikitext.questions)
    assert not any(mark in d.text for d in raw.documents for mark in (" @-@ ", " , ", "= = "))
    assert any("as raw text" in note for note in raw.notes)
    spelled, as_raw = (source_digests(WIKITEXT.model_copy(update={"text": text})) for text in ("spelled", "raw"))
    assert {name for name in spelled if spelled[name] != as_raw[name]} == {"spelling"}


@needs_mirror
def test_the_imagination_mixture() -> None:
    corpus = MixtureCorpus(
        parts=[
            WIKITEXT.model_copy(update={"fraction": 0.5}),
            HuggingFaceCorpus(dataset="Rowan/hellaswag", max_documents=3000),
            HuggingFaceCorpus(dataset="openai/gsm8k", config="main"),
        ]
    )
    check_corpus(corpus)
    source = load_source(corpus, splits=6, seed=0)
    assert_disjoint(source)
    group = [d.source for d in source.documents]
    assert list(dict.fromkeys(group)) == ["wikitext-2", "hellaswag", "gsm8k"]
    assert group.count("wikitext-2") == 225 and group.count("hellaswag") == 2250
    parts = cut([len(d.text) for d in source.documents], splits=6, group=group)
    assert {(name, part) for name, part in zip(group, parts, strict=True)} == {(n, k) for n in group for k in range(6)}
    heads = [int(q.document.split(":")[1]) for q in source.questions]
    assert max(heads) < 36_718 / 2, "questions are about the first half only"
    assert len(source.questions) == 1_899
    assert source_digests(corpus).keys() == {
        *(f"parts.0.{name}" for name in ("mirror.train", "mirror.validation", "spelling", "questions")),
        *("parts.1.mirror.train", "parts.1.mirror.validation", "parts.2.mirror.train"),
    }
    unlimited = corpus.model_copy(update={"parts": [*corpus.parts[:1], HuggingFaceCorpus(dataset="Rowan/hellaswag")]})
    with pytest.raises(DataError, match="only the first 3,368 of 39,905 items") as caught:
        check_corpus(unlimited)
    assert caught.value.field == "corpus.parts.1.dataset"


@needs_mirror
def test_the_same_part_twice_keeps_ids_apart(tmp_path: Path) -> None:
    part = HuggingFaceCorpus(dataset="gsm8k", max_documents=40)
    text = text_corpus(tmp_path, [question(1)])
    source = load_source(MixtureCorpus(parts=[part, text, text]), splits=2, seed=0)
    assert list(dict.fromkeys(d.source for d in source.documents)) == ["gsm8k", "text", "text-2"]
    ids = {d.id for d in source.documents}
    assert len(ids) == len(source.documents) and {q.document for q in source.questions} <= ids
    assert len(source.questions) == 2 and len({q.id for q in source.questions}) == 2
    assert re.fullmatch(r"(?s).+\n.+#### [\d,.-]+", source.documents[0].text)


@needs_mirror
def test_a_mirror_with_a_part_removed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(Path(MIRROR or "") / "wikitext-2-v1", tmp_path / "wikitext-2-v1", copy_function=os.symlink)
    (tmp_path / "wikitext-2-v1" / "train.txt.gz").unlink()
    monkeypatch.setenv(mirror.VARIABLE, str(tmp_path))
    with pytest.raises(DataError, match="has only validation, test"):
        load_source(WIKITEXT.model_copy(update={"questions": None}), splits=2, seed=0)


@needs_mirror
def test_blimp_is_in_the_mirror() -> None:
    pairs = hub.load_dataset_rows("nyu-mll/blimp", "wh_island", "train").rows
    assert len(pairs) == 1000 and {"sentence_good", "sentence_bad"} <= pairs[0].keys()


def test_the_almanac_and_texts_may_be_mixed(tmp_path: Path) -> None:
    pytest.importorskip("fortifai_core.corpus.almanac.world")
    small = AlmanacCorpus(entities=8, pretraining_entities=10, validation_entities=4)
    corpus = MixtureCorpus(parts=[small, text_corpus(tmp_path, [question(1)])])
    check_corpus(corpus)
    assert source_digests(corpus).keys() == {"parts.1.files.0", "parts.1.questions"}
    first, again, other = (load_source(corpus, splits=3, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first.documents != other.documents, "the almanac's world depends on the seed"
    assert_disjoint(first)
    # a value that too many entities of a small split share cannot be swapped, and is not asked about
    assert 0.9 * 8 * 3 * small.facts < len(first.questions) - 1 <= 8 * 3 * small.facts


def test_a_dataset_in_a_folder_goes_by_its_files_and_not_by_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.language.specs import corpus_content

    monkeypatch.delenv(mirror.VARIABLE, raising=False)

    def content(place: Path) -> dict:
        corpus = HuggingFaceCorpus(dataset=str(place))
        return corpus_content(corpus, source_digests(corpus))

    one, two = (tmp_path / name / "islands" for name in ("one", "two"))
    for place in (one, two):
        (place / "data").mkdir(parents=True)
        write(place / "data" / "train.jsonl", json.dumps({"text": TEXTS[0]}))
    before = content(one)
    assert before == content(two) and str(tmp_path) not in str(before)
    (two / ".DS_Store").write_text("x")
    assert content(two) == before
    write(two / "data" / "train.jsonl", json.dumps({"text": TEXTS[1][: len(TEXTS[0])]}))
    assert content(two) != before
    write(one / "data" / "more.jsonl", json.dumps({"text": TEXTS[1]}))
    assert content(one) != before


def test_text_that_changes_between_plan_and_reading_is_refused(tmp_path: Path) -> None:
    from tasks.language.prepare import _refuse_change

    corpus = text_corpus(tmp_path)
    planned = source_digests(corpus)
    _refuse_change(corpus, planned)
    write(Path(corpus.files[0]), "other text")
    with pytest.raises(DataError, match=r"corpus\.files\.0.*run again"):
        _refuse_change(corpus, planned)
