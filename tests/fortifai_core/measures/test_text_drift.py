"""Drift of text: every measure against a case worked out by hand, self-BLEU against NLTK too."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fortifai_core.config.corpus import AlmanacCorpus
from fortifai_core.corpus.almanac.world import entities_of, generate_almanac
from fortifai_core.errors import DataError
from fortifai_core.measures.text_drift import (
    compressed_share,
    fact_shares,
    lengths,
    repeated_nearby,
    repeated_ngrams,
    self_bleu,
    tail,
    words,
)


def test_words_are_counted_as_people_do() -> None:
    assert words("In 1999, O'Neil's half-life — “Ça va?”") == ["in", "1999", "o'neil's", "half-life", "ça", "va"]


# ---------------------------------------------------------------------------------------------- self-BLEU


def test_self_bleu_by_hand() -> None:
    # each has three 1-grams, two of which the other has (b, c), and two 2-grams, one of which the other has (bc)
    assert self_bleu(["abc", "bcd"], order=2) == pytest.approx(math.sqrt(2 / 3 * 1 / 2))


def test_self_bleu_clips_and_punishes_brevity_by_hand() -> None:
    # "aa": one of its two a's is in the other; as long as that would be, it is shorter by one: exp(1 − 3/2)
    first = 1 / 2 * math.exp(1 - 3 / 2)
    # "abc": of its three words only the a
    assert self_bleu(["aa", "abc"], order=1) == pytest.approx((first + 1 / 3) / 2)


def test_texts_that_say_the_same_have_self_bleu_one_and_those_without_a_common_word_almost_none() -> None:
    assert self_bleu([[1, 2, 3, 4, 5]] * 3) == pytest.approx(1)
    assert self_bleu([[1, 2, 3, 4], [5, 6, 7, 8]]) < 0.1


def test_self_bleu_is_nltks() -> None:
    bleu = pytest.importorskip("nltk.translate.bleu_score")
    random = np.random.default_rng(0)
    texts = [random.integers(0, 6, size).tolist() for size in (12, 5, 30, 18, 9)]
    smoothing = bleu.SmoothingFunction(epsilon=0.1).method1
    expected = [
        bleu.sentence_bleu(texts[:i] + texts[i + 1 :], text, smoothing_function=smoothing)
        for i, text in enumerate(texts)
    ]
    assert self_bleu(texts) == pytest.approx(np.mean(expected), rel=1e-12)


def test_self_bleu_needs_two_texts() -> None:
    with pytest.raises(DataError, match="two sequences"):
        self_bleu([[1, 2, 3, 4], [1, 2, 3]])


# --------------------------------------------------------------------------------------------------- tail


def test_tail_by_hand() -> None:
    real = {"the": 80, "king": 10, "of": 4, "ardenlith": 3, "smelt": 2, "quern": 1}
    # the rarest that make up a tenth at most: quern 1, smelt 2, ardenlith 3, of 4 → 10 of 100
    found = tail(real, {"the": 95, "of": 3, "quern": 2, "new": 100}, share=0.1)
    assert (found.types, found.surviving) == (4, 2)
    assert found.real_mass == pytest.approx(10 / 100) and found.mass == pytest.approx(5 / 200)


def test_words_of_one_frequency_are_rare_together() -> None:
    # a sixth each: taking some of the three would be arbitrary, and all are above the share; so is the rarest count
    assert tail({"a": 1, "b": 1, "c": 1, "d": 3}, {"a": 1}, share=0.2).types == 3
    assert tail({"a": 1, "b": 2, "c": 2, "d": 95}, {"a": 1}, share=0.02).types == 1


def test_a_tail_of_no_text_is_refused() -> None:
    with pytest.raises(DataError, match="no text"):
        tail({"a": 1}, {})


# ------------------------------------------------------------------------------------- lengths, repetition


def test_lengths_by_hand() -> None:
    found = lengths(["The cat sat. It was 3.5 days!", "Yes"])
    # 3.5 is two words and no end of a sentence: no blank follows its point
    assert found.document_words == (3 + 5 + 1) / 2
    assert found.sentence_words == 9 / 3
    assert found.word_letters == (3 + 3 + 3 + 2 + 3 + 1 + 1 + 4 + 3) / 9
    with pytest.raises(DataError, match="no text"):
        lengths(["…"])


def test_repeated_ngrams_by_hand() -> None:
    # ababab: ab ba ab ba ab → two of five; abc: both different; a: none
    assert repeated_ngrams(["ababab", "abc", "a"], n=2) == pytest.approx((3 / 5 + 0) / 2)
    with pytest.raises(DataError, match="3 tokens"):
        repeated_ngrams(["ab"], n=3)


def test_repeated_nearby_by_hand() -> None:
    # a b a c b: the second a is one of the two before it; the second b is three back
    assert repeated_nearby(["abacb"], window=2) == 1 / 4
    assert repeated_nearby(["abacb", "x"], window=3) == 2 / 4
    with pytest.raises(DataError, match="two tokens"):
        repeated_nearby(["x"])


# --------------------------------------------------------------------------------------------------- facts


def test_facts_in_the_real_text_are_all_true_and_a_changed_value_is_false() -> None:
    config = AlmanacCorpus(entities=6, facts=3, pretraining_entities=4, validation_entities=2)
    entities = {e.id: e for split in entities_of(config, splits=2, seed=3) for e in split}
    documents = [(d.id, d.text) for d in generate_almanac(config, splits=2, seed=3).documents]
    whole = fact_shares(entities, documents)
    assert whole is not None and (whole.facts, whole.true, whole.absent) == (36, 1, 0)
    name, text = documents[0]
    changed = entities[name].facts[0].value
    damaged = [(name, text.replace(f" {changed}.", " nonsense.")), (documents[1][0], "Nothing is said."), ("other", "")]
    found = fact_shares(entities, damaged)
    # one of the first document's three is false now, the second's three are absent, the third is no entity's
    assert found is not None
    assert (found.facts, found.true, found.false, found.absent) == (6, 2 / 6, 1 / 6, 3 / 6)
    assert fact_shares(entities, [("other", text)]) is None


def test_compressed_share_by_hand() -> None:
    """zlib's header and checksum are 6 bytes; a block of its fixed code has 3 bits before it and 7 behind it.

    "a" and the end of the line are 8 bits each: 26 bits, so 4 bytes, 10 in all for 2. Two lines "a" and "b" are
    42 bits, so 6 bytes, 12 in all for 4.
    """
    assert compressed_share(["a"]) == 10 / 2
    assert compressed_share(["a", "b"]) == 12 / 4


def test_text_that_repeats_itself_is_compressed_further() -> None:
    lines = [f"Document {n} says that {n * n % 97} follows {n * 7919 % 1009}." for n in range(200)]
    plain, repeated = compressed_share(lines), compressed_share(lines[:20] * 10)
    assert repeated < plain / 2 < 0.5
    assert compressed_share(iter(["\ud800 half a pair"])) > 0
    with pytest.raises(DataError, match="no text to compress"):
        compressed_share([])
