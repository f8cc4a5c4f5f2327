"""Equal splits at document boundaries, questions in their document's split, and the tokenizer that counts."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fortifai_core.corpus.documents import Question
from fortifai_core.corpus.splitting import assign_questions, cut
from fortifai_core.corpus.tokenization import END_OF_TEXT, encode_documents, train_tokenizer
from fortifai_core.errors import DataError


def sizes(lengths: list[int], parts: list[int], splits: int) -> list[int]:
    return [sum(n for n, part in zip(lengths, parts, strict=True) if part == k) for k in range(splits)]


@st.composite
def corpora(draw: st.DrawFn) -> tuple[list[int], list[str], int]:
    """Lengths of documents, the source of each, and a number of splits that every source has documents for."""
    splits = draw(st.integers(1, 6))
    length = st.integers(1, 10) | st.integers(1, 10_000)  # some documents are longer than a whole part
    sources = draw(st.lists(st.lists(length, min_size=splits, max_size=20), min_size=1, max_size=3))
    documents = [(size, f"source {number}") for number, sizes in enumerate(sources) for size in sizes]
    documents = draw(st.permutations(documents))
    return [size for size, _ in documents], [source for _, source in documents], splits


@given(corpora())
def test_every_sources_parts_are_equal_to_within_one_document(corpus: tuple[list[int], list[str], int]) -> None:
    lengths, sources, splits = corpus
    parts = cut(lengths, splits=splits, group=sources)
    for source in set(sources):
        of_source = [(size, part) for size, name, part in zip(lengths, sources, parts, strict=True) if name == source]
        own_lengths, own_parts = [size for size, _ in of_source], [part for _, part in of_source]
        assert own_parts == sorted(own_parts), "the documents' order is kept"
        assert set(own_parts) == set(range(splits)), "no split is empty"
        share = sum(own_lengths) / splits
        assert all(abs(size - share) < max(own_lengths) for size in sizes(own_lengths, own_parts, splits))


def test_equal_documents_make_exactly_equal_parts() -> None:
    assert cut([7] * 12, splits=6) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


def test_borders_are_the_nearest_document_boundaries() -> None:
    assert cut([10, 10, 1, 19], splits=2) == [0, 0, 1, 1]
    assert cut([10, 8, 1, 21], splits=2) == [0, 0, 0, 1]


def test_a_long_document_leaves_no_split_empty() -> None:
    assert cut([1, 1, 1, 100], splits=4) == [0, 1, 2, 3]
    assert cut([100, 1, 1, 1], splits=4) == [0, 1, 2, 3]


def test_every_source_of_a_mixture_is_cut_by_itself() -> None:
    rng = random.Random(5)
    group = [name for name in ("articles", "puzzles", "stories") for _ in range(rng.randint(30, 50))]
    lengths = [rng.randint(1, 200) for _ in group]
    parts = cut(lengths, splits=6, group=group)
    for name in set(group):
        own = [i for i, g in enumerate(group) if g == name]
        assert [parts[i] for i in own] == cut([lengths[i] for i in own], splits=6)


def test_sources_may_be_interleaved() -> None:
    assert cut([1, 5, 1, 5], splits=2, group=["a", "b", "a", "b"]) == [0, 0, 1, 1]


def test_too_few_documents_are_refused() -> None:
    with pytest.raises(DataError, match=r"only 2 documents of b .*lower splits") as caught:
        cut([1, 1, 1, 1, 1], splits=3, group=["a", "a", "a", "b", "b"])
    assert (caught.value.field, caught.value.value) == ("splits", 3)
    with pytest.raises(DataError, match="no documents"):
        cut([], splits=2)
    with pytest.raises(DataError, match="no tokens"):
        cut([0, 0, 0], splits=2)


def test_questions_follow_their_document() -> None:
    questions = [Question("q0", "b", "c", "t", "f"), Question("q1", "a", "c", "t", "f")]
    assert [(q.id, q.split) for q in assign_questions(questions, {"a": 4, "b": 2})] == [("q0", 2), ("q1", 4)]
    with pytest.raises(DataError, match="'a' is in no split"):
        assign_questions(questions, {"b": 2})


# ------------------------------------------------------------------------------------------- tokenizer

TEXTS = [f"The {w} of Lake {w.title()} is {n}, naïve — 戦場 🙂.\n" for n, w in enumerate(["ore", "oar", "oak"] * 30)]


def test_decoding_gives_every_text_back() -> None:
    tokenizer = train_tokenizer(TEXTS, vocabulary=380)
    unheard = [" two  blanks ", "\ttab\r\n", "日本語 ﬁ ½ e\u0301", "x 's , don't .", "\x00\u2028"]
    encoded = encode_documents(tokenizer, TEXTS + unheard)
    assert [tokenizer.decode(ids) for ids in encoded] == TEXTS + unheard
    assert len(tokenizer) == 380
    assert sum(map(len, encoded[: len(TEXTS)])) < sum(len(t.encode()) for t in TEXTS) / 3


def test_the_same_texts_give_the_same_tokenizer() -> None:
    first, second = (train_tokenizer(iter(TEXTS), vocabulary=380).backend_tokenizer.to_str() for _ in range(2))
    assert first == second


def test_a_special_token_in_a_document_is_text() -> None:
    tokenizer = train_tokenizer(TEXTS, vocabulary=300)
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == tokenizer.pad_token_id == 0
    [ids] = encode_documents(tokenizer, [f"a{END_OF_TEXT}b"])
    assert tokenizer.eos_token_id not in ids
    assert tokenizer.decode(ids) == f"a{END_OF_TEXT}b"


def test_many_documents_are_encoded_as_each_alone() -> None:
    tokenizer = train_tokenizer(TEXTS, vocabulary=300)
    documents = [TEXTS[i % len(TEXTS)] * (1 + i % 3) for i in range(1100)]
    encoded = encode_documents(tokenizer, documents)
    assert len(encoded) == 1100
    assert [encode_documents(tokenizer, [d])[0] for d in documents[500:530]] == encoded[500:530]
    assert encode_documents(tokenizer, []) == []


def test_a_saved_tokenizer_encodes_the_same(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = train_tokenizer(TEXTS, vocabulary=300)
    tokenizer.save_pretrained(tmp_path)
    documents = [TEXTS[0] + " don 't , stop . " + END_OF_TEXT]
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert encode_documents(loaded, documents) == encode_documents(tokenizer, documents)
    assert loaded.decode(encode_documents(loaded, documents)[0]) == documents[0]


def test_a_tokenizer_needs_text_and_all_bytes() -> None:
    with pytest.raises(DataError, match="at least 257"):
        train_tokenizer(TEXTS, vocabulary=256)
    with pytest.raises(DataError, match="no pretraining text"):
        train_tokenizer([], vocabulary=300)
