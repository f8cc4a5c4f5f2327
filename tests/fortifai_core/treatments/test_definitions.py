"""Every treatment against its paper's definition, on cases worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from treated import Letters, document, documents, reader

from fortifai_core.corpus.almanac.world import Entity, Fact
from fortifai_core.errors import DataError
from fortifai_core.treatments.detection import (
    Detector,
    best_temperature,
    calibrated,
    calibration_error,
    draws,
    fold_of,
    make_detector,
    resample,
)
from fortifai_core.treatments.documents import Document, Documents, Dropped, apply
from fortifai_core.treatments.duplicates import deduplicate, minima, similarity
from fortifai_core.treatments.editing import token_edit
from fortifai_core.treatments.surprise import surprise_filter
from fortifai_core.treatments.verification import almanac_checker, verify
from fortifai_core.treatments.weights import golden_weight, weigh

# P(· | end of text), P(· | a), P(· | b), P(· | c) over (end of text, a, b, c)
TABLE = [[0.0, 0.5, 0.25, 0.25], [0.0, 0.0, 0.6, 0.4], [0.0, 0.125, 0.875, 0.0], [0.0, 0.5, 0.25, 0.25]]


# ------------------------------------------------------------------------------------------- surprise filter


@pytest.mark.parametrize("window", [2, 3, 8])
def test_the_loss_of_a_document_is_the_mean_of_its_tokens_whatever_the_window(window: int) -> None:
    (_, first), (_, second) = reader(TABLE, window=window).losses(documents("abba", "c"))
    # a after the end of text, b after a, b after b, a after b
    assert first == pytest.approx(-math.log(0.5 * 0.6 * 0.875 * 0.125) / 4, rel=1e-6)
    assert second == pytest.approx(-math.log(0.25), rel=1e-6)


def test_the_documents_of_highest_loss_are_kept() -> None:
    # losses: ln 2, ln 4, ln 4, (ln 2 + ln 2.5) / 2
    made = list(surprise_filter(documents("a", "b", "c", "ac"), losses=reader(TABLE).losses, keep=0.5))
    assert [type(item) for item in made] == [Dropped, Document, Document, Dropped]
    assert [item.score for item in made] == pytest.approx([math.log(2), math.log(4), math.log(4), math.log(5) / 2])


@pytest.mark.parametrize(("keep", "kept"), [(0.1, "b"), (0.3, "bc"), (0.75, "bcd"), (1.0, "abcd")])
def test_of_equal_losses_the_first_is_kept_and_one_at_least(keep: float, kept: str) -> None:
    losses = {"a": 1.0, "b": 3.0, "c": 3.0, "d": 2.0}
    made = surprise_filter(
        documents(*losses), losses=lambda given: ((one, losses[one.text]) for one in given), keep=keep
    )
    assert "".join(one.text for one in made if isinstance(one, Document)) == kept


# ------------------------------------------------------------------------------------------- token editing


def edit(
    text: str, *, threshold: float, suppress: tuple[int, ...] = (0,), count: int = 1, **options: float
) -> list[str]:
    settings = {"temperature": 1.0, "top_k": 0} | options
    made = token_edit(
        documents(*[text] * count),
        logits=reader(TABLE).logits,
        threshold=threshold,
        temperature=settings["temperature"],
        top_k=int(settings["top_k"]),
        suppress=suppress,
        seed=0,
    )
    return ["".join(Letters().decode(one.tokens)) for one in made]


def test_tokens_below_the_threshold_stay() -> None:
    assert edit("acbb", threshold=0.9) == ["acbb"]


def test_a_token_at_the_threshold_is_drawn_from_the_prior() -> None:
    # of "ab", P(a) = 0.5 and P(b | a) = 0.6: the second alone is drawn, and becomes c with probability 0.4
    made = edit("ab", threshold=0.55, count=800)
    assert set(made) == {"ab", "ac"}
    assert made.count("ac") / 800 == pytest.approx(0.4, abs=3 * math.sqrt(0.4 * 0.6 / 800))


def test_what_is_drawn_is_judged_by_the_text_as_it_came() -> None:
    # both b's are sure enough; the second is drawn given the first one as it was: never c, which may not follow a b
    made = edit("abb", threshold=0.55, count=800)
    assert {text[2] for text in made} == {"a", "b"}
    changed = sum(text[2] == "a" for text in made) / 800
    assert changed == pytest.approx(0.125, abs=3 * math.sqrt(0.125 * 0.875 / 800))


def test_suppressed_tokens_are_never_drawn_and_the_likeliest_only_where_asked() -> None:
    assert edit("ab", threshold=0.55, suppress=(0, 2)) == ["ac"]
    assert set(edit("ab", threshold=0.55, top_k=1, count=50)) == {"ab"}
    flat = edit("ab", threshold=0.55, temperature=10.0, count=800)
    # (0.4 / 0.6)^(1/10) to 1
    assert flat.count("ac") / 800 == pytest.approx(1 / (1 + 1.5**0.1), abs=3 * 0.5 / math.sqrt(800))


def test_the_share_of_drawn_tokens_is_its_score() -> None:
    (made,) = token_edit(
        documents("abb"), logits=reader(TABLE, window=2).logits, threshold=0.55, temperature=1, top_k=0, suppress=(0,),
        seed=0,
    )  # fmt: skip
    assert made.score == pytest.approx(2 / 3)


# ------------------------------------------------------------------------------------------- detector


def test_documents_are_drawn_without_replacement_by_their_weights() -> None:
    # of weights 3, 2 and 1 two are drawn: the third is left out with probability 3/6 · 2/3 + 2/6 · 3/4 = 7/12
    weights = np.array([3.0, 2.0, 1.0])
    made = np.array([draws(weights, size=2, max_repeats=1, seed=seed) for seed in range(1500)])
    assert made.max() == 1 and set(made.sum(axis=1)) == {2}
    assert np.mean(made[:, 2] == 0) == pytest.approx(7 / 12, abs=3 * math.sqrt(35 / 144 / 1500))


def test_a_document_is_drawn_at_most_so_often_and_without_weight_never() -> None:
    assert draws(np.array([1.0, 0.0]), size=2, max_repeats=3, seed=0).tolist() == [2, 0]
    assert draws(np.array([1.0, 0.0]), size=9, max_repeats=3, seed=0).tolist() == [3, 0]
    assert draws(np.array([0.0, 0.0]), size=2, max_repeats=3, seed=0).tolist() == [0, 0]


def test_resampling_raises_the_chance_of_being_real_to_the_bias() -> None:
    odds = {"a": math.log(1 / 3), "b": math.log(3)}  # p = 1/4 and 3/4
    detector = Detector(lambda given: (odds[one.text] for one in given), 1.0, 0.0, 1.0)
    assert list(detector.probabilities(documents("a", "b"))) == pytest.approx([0.25, 0.75])
    for bias, expected in ((0, 0.5), (1, 0.75), (2, 0.9)):
        first = [
            resample(documents("a", "b"), detector=detector, bias=bias, upsample=0.5, max_repeats=1, seed=seed)
            for seed in range(600)
        ]
        kept = [next(one.text for one in made if isinstance(one, Document)) for made in first]
        assert kept.count("a") / 600 == pytest.approx(expected, abs=3 * 0.5 / math.sqrt(600))


def test_the_temperature_is_that_at_which_odds_say_how_often_they_are_right() -> None:
    # said: odds of 9 to 1; right are three of four, odds of 3 to 1: twice too sure
    odds = np.log(9.0) * np.array([1, 1, 1, 1, -1, -1, -1, -1])
    synthetic = np.array([1, 1, 1, 0, 0, 0, 0, 1], dtype=bool)
    temperature = best_temperature(odds, synthetic)
    assert temperature == pytest.approx(2, rel=1e-3)
    before, after = (1 / (1 + np.exp(-odds / t)) for t in (1, temperature))
    assert calibration_error(before, synthetic) == pytest.approx(0.9 - 0.75)
    assert calibration_error(after, synthetic) == pytest.approx(0, abs=1e-3)


def both(count: int, real: str, synthetic: str) -> Documents:
    """Of every id a real and a synthetic version."""
    texts = [(f"d{n}", version, synthetic if version else real) for n in range(count) for version in (0, 1)]
    return Documents(lambda: (Document(name, 0, version, f"{text} {name}", [1]) for name, version, text in texts))


def test_the_detector_that_is_made_tells_apart_what_can_be_told_apart() -> None:
    labelled = both(30, "the river is long", "the the river river")
    made = make_detector(labelled, folds=3, seed=0, called="treatments.0")
    assert made.auc == 1 and made.error < 0.05
    for one, probability in zip(labelled, made.probabilities(labelled), strict=True):
        assert (probability > 0.5) == (not one.real)


def test_the_detector_says_nothing_where_both_are_alike() -> None:
    made = make_detector(both(40, "the river is long", "the river is long"), folds=4, seed=0, called="treatments.0")
    assert made.auc == pytest.approx(0.5)
    assert list(made.probabilities(documents("a"))) == pytest.approx([0.5], abs=0.02)


def test_no_document_is_judged_by_what_learned_from_it() -> None:
    # what tells the two apart is one word in every document, of its own: learned, it would give the document away
    texts = [(f"d{n}", version, f"word{n}x{version}") for n in range(40) for version in (0, 1)]
    labelled = Documents(lambda: (Document(name, 0, version, text, [1]) for name, version, text in texts))
    assert make_detector(labelled, folds=4, seed=0, called="treatments.0").auc == pytest.approx(0.5)
    assert len({fold_of(one, folds=4) for one in labelled}) == 4
    by_id: dict[str, set[int]] = {}
    for one in labelled:
        by_id.setdefault(one.id, set()).add(fold_of(one, folds=4))
    assert {len(folds) for folds in by_id.values()} == {1}


def test_a_detector_needs_both_classes() -> None:
    real = documents("abc", "abd", version=0)
    with pytest.raises(
        DataError, match=r"^treatments.0 = '2 real and 0 synthetic .*: a detector learns from text of both"
    ):
        calibrated(lambda given: (0.0 for _ in given), real, called="treatments.0")
    with pytest.raises(DataError, match="both origins"):
        make_detector(real, folds=2, seed=0, called="treatments.0")


# ------------------------------------------------------------------------------------------- verifier

ENTITY = Entity("e", "Ardenlith", "town", (Fact("founded", "1340", (0,)), Fact("river", "Senn", (0,))))


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("Ardenlith was founded in 1340.", True),
        ("Ardenlith was founded in 1341.", False),
        ("Ardenlith was founded in 1340. Ardenlith was founded in 1341.", False),
        ("Nothing is known.", False),
        ("Senn was founded in 1341. Ardenlith was founded in 1340.", True),
    ],
)
def test_the_almanac_accepts_what_states_something_true_and_nothing_false(text: str, right: bool) -> None:
    check = almanac_checker({"e": ENTITY})
    assert check(Document("e", 0, 1, text, [1])) is right
    assert check(Document("other", 0, 1, text, [1])) is True


@pytest.mark.parametrize(("right", "rates", "kept"), [(True, (0.0, 0.3), 0.7), (False, (0.2, 0.0), 0.2)])
def test_the_stated_rates_of_error_are_those_of_the_verifier(
    right: bool, rates: tuple[float, float], kept: float
) -> None:
    made = verify(
        documents(*["a"] * 3000), checker=lambda _: right, false_accept=rates[0], false_reject=rates[1], seed=0,
        called="treatments.0",
    )  # fmt: skip
    share = sum(isinstance(one, Document) for one in made) / 3000
    assert share == pytest.approx(kept, abs=3 * math.sqrt(kept * (1 - kept) / 3000))


def test_a_verifier_that_accepts_nothing_or_raises_is_refused() -> None:
    def verified(checker: object) -> list[Document | Dropped]:
        return list(
            verify(documents("a", "b"), checker=checker, false_accept=0, false_reject=0, seed=0, called="treatments.1")  # type: ignore[arg-type]
        )

    with pytest.raises(DataError, match=r"^treatments.1 = '0 of 2 documents': are accepted by the verifier"):
        verified(lambda _: False)
    with pytest.raises(DataError, match=r"^treatments.1 = 'd0 of D0\^\(1\)': .* ZeroDivisionError"):
        verified(lambda _: 1 / 0 > 0)
    with pytest.raises(DataError, match="True"):
        verified(lambda _: 1)


# ------------------------------------------------------------------------------------------- weights


def test_the_golden_weight_is_one_over_phi_where_there_is_as_much_of_either() -> None:
    assert golden_weight(5, 5) == pytest.approx(2 / (1 + math.sqrt(5)), rel=1e-12)
    assert golden_weight(1, 2) == pytest.approx(0.5)  # (√(1/4 + 2) − 1/2) / 2
    assert golden_weight(1e9, 1) == pytest.approx(1)


@pytest.mark.parametrize("k", [0.25, 1.0, 3.0])
def test_no_other_weight_ends_at_a_smaller_error(k: float) -> None:
    """The variance of a mean that is fitted to real points and to its own samples, generation after generation."""

    def error(w: float) -> float:
        variance = 1.0
        for _ in range(3000):  # one real point, 1 / k synthetic ones, all of variance 1
            variance = w**2 + (1 - w) ** 2 * (k + variance)
        return variance

    grid = np.linspace(0.05, 0.99, 189)
    best = grid[np.argmin([error(w) for w in grid])]
    assert golden_weight(k, 1) == pytest.approx(best, abs=0.005)


def test_weights_give_each_origin_its_share_of_the_loss() -> None:
    texts = Documents(lambda: iter([document("r", "ab", version=0), document("s", "abc"), document("t", "abc")]))
    made = list(weigh(texts, real=0.6))
    # of 8 tokens 2 are real: 0.6 · 8 / 2 and 0.4 · 8 / 6
    assert [one.weight for one in made] == pytest.approx([2.4, 8 / 15, 8 / 15])
    assert sum(one.weight * len(one.tokens) for one in made) == pytest.approx(8)
    golden = list(weigh(texts, real=None))
    assert golden[0].weight == pytest.approx(golden_weight(2, 6) * 8 / 2)
    assert [one.weight for one in weigh(documents("ab", "c"), real=0.6)] == [1, 1]


# ------------------------------------------------------------------------------------------- deduplication


def test_the_estimate_of_the_similarity_is_that_of_the_sets_of_runs() -> None:
    # runs of two of 60 and 60 tokens: 59 each, 39 in both: 39 / 79
    one, other = list(range(60)), list(range(20, 80))
    found = similarity(minima(one, ngram=2), minima(other, ngram=2))
    assert found == pytest.approx(39 / 79, abs=3 * math.sqrt(0.25 / 128))
    assert similarity(minima(one, ngram=2), minima(one[::-1], ngram=2)) < 0.05
    assert similarity(minima(one, ngram=100), minima(one, ngram=100)) == 1


def test_the_first_of_equal_and_of_near_documents_is_kept() -> None:
    alphabet = "abcdefghijklmnopqrstuvwxyz"
    texts = documents(alphabet * 2, "short", alphabet * 2, "short", alphabet * 2 + "a", alphabet[::-1])
    lineage = list(apply(lambda given: deduplicate(given, near=0.8, ngram=5), texts, Letters()))
    assert [one.given.id for one in lineage if one.made] == ["d0", "d1", "d5"]
    dropped = [one.why for one in lineage if not one.made]
    assert dropped == ["equal to d0 of D0^(1)", "equal to d1 of D0^(1)", "near d0 of D0^(1)"]
    exact = apply(lambda given: deduplicate(given, near=None, ngram=5), texts, Letters())
    assert [one.given.id for one in exact if one.made] == ["d0", "d1", "d4", "d5"]
