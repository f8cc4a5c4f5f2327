"""What recursive training does to text: self-BLEU, the tail of the real vocabulary, lengths, repetition, facts.

All of these compare the rewritten text of a split with its real text, document by document in the same order, so that
both sides have the same size: shares of different n-grams and self-BLEU depend on how much text is looked at.
"""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fortifai_core.errors import DataError

if TYPE_CHECKING:
    from fortifai_core.corpus.almanac.world import Entity

# Texygen, where self-BLEU comes from, smooths an order without a match by this many matches (Chen and Cherry 2014,
# method 1): without it one missing 4-gram would make a whole sequence count as unlike all others.
BLEU_EPSILON = 0.1

_WORD = re.compile(r"\w+(?:[-'’]\w+)*")
_SENTENCE_END = re.compile(r"[.!?]+(?:\s|$)|\n+")


def words(text: str) -> list[str]:
    """Words as people count them, in lower case; punctuation is none.

    >>> words("The half-life, 3.5 days: Don't!")
    ['the', 'half-life', '3', '5', 'days', "don't"]
    """
    return [word.lower() for word in _WORD.findall(text)]


def _grams(sequence: Sequence[Hashable], n: int) -> Counter[tuple[Hashable, ...]]:
    return Counter(tuple(sequence[i : i + n]) for i in range(len(sequence) - n + 1))


def self_bleu(sequences: Sequence[Sequence[Hashable]], *, order: int = 4) -> float:
    """Mean BLEU of every sequence against all the others as references, in [0, 1] (Zhu et al. 2018, Texygen).

    1 when all say the same; it rises as a model's outputs become alike. Uniform weights up to `order`, counts clipped
    to the greatest count in any one reference, brevity penalty against the reference nearest in length (the shorter of
    two), smoothed by `BLEU_EPSILON`. Linear in the text: of every n-gram the two greatest counts are enough.

    Args:
        sequences: tokens or words, one list a document; those shorter than `order` are left out.

    Raises:
        DataError: fewer than two sequences of `order` tokens.
    """
    kept = [sequence for sequence in sequences if len(sequence) >= order]
    if len(kept) < 2:
        raise DataError("self-BLEU", len(kept), f"needs two sequences of {order} tokens at least")
    precision = [0.0] * len(kept)
    for n in range(1, order + 1):
        counts = [_grams(sequence, n) for sequence in kept]
        best: dict[tuple[Hashable, ...], tuple[int, int, int]] = {}  # greatest count, whose, the next greatest
        for index, grams in enumerate(counts):
            for gram, count in grams.items():
                first, owner, second = best.get(gram, (0, -1, 0))
                if count > first:
                    best[gram] = (count, index, first)
                elif count > second:
                    best[gram] = (first, owner, count)
        for index, grams in enumerate(counts):
            matches = 0
            for gram, count in grams.items():
                first, owner, second = best[gram]
                matches += min(count, second if owner == index else first)
            precision[index] += math.log((matches or BLEU_EPSILON) / grams.total()) / order
    lengths = [len(sequence) for sequence in kept]
    scores = []
    for index, length in enumerate(lengths):
        others = (other for place, other in enumerate(lengths) if place != index)
        nearest = min(others, key=lambda other: (abs(other - length), other))
        scores.append(math.exp(precision[index] + min(0.0, 1 - nearest / length)))
    return sum(scores) / len(scores)


def compressed_share(texts: Iterable[str]) -> float:
    """Compressed size of a text over its size in bytes (UTF-8), about 0.4 of plain English; falls as it repeats itself.

    The documents in a row, a line each, by DEFLATE at level 9 (zlib). The inverse is the compression ratio of Shaib et
    al. (arXiv 2403.00553), who take gzip, which is the same with another header. It falls with the amount of text as
    well: compare texts of the same size only.

    Raises:
        DataError: there is no text.
    """
    packer = zlib.compressobj(9)
    size = packed = 0
    for text in texts:
        line = text.encode(errors="surrogatepass") + b"\n"
        size += len(line)
        packed += len(packer.compress(line))
    if not size:
        raise DataError("texts", 0, "there is no text to compress")
    return (packed + len(packer.flush())) / size


@dataclass(frozen=True)
class Tail:
    """What became of the rare words of the real text.

    Attributes:
        types: rare words of the real text.
        surviving: how many of them the synthetic text still has.
        real_mass: share of the real text's words that are rare ones; at most `share`.
        mass: share of the synthetic text's words that are.
    """

    types: int
    surviving: int
    real_mass: float
    mass: float


def rare_words(real: Mapping[str, int], *, share: float = 0.1) -> list[str]:
    """The least frequent words of a text, as many as make up at most `share` of it, from word counts.

    Words of equal count are rare together or not at all.

    Raises:
        DataError: there are no words, or none is rare (a `share` below the rarest words' own).
    """
    total = sum(real.values())
    if not total:
        raise DataError("words", total, "there is no text to compare")
    by_count: dict[int, list[str]] = {}
    for word, count in real.items():
        by_count.setdefault(count, []).append(word)
    rare: list[str] = []
    mass = 0
    for count in sorted(by_count):
        mass += count * len(by_count[count])
        if mass > share * total and rare:
            break
        rare += by_count[count]
        if mass > share * total:
            break  # the words that occur once are more than the share by themselves: the tail is these
    return rare


def tail(real: Mapping[str, int], synthetic: Mapping[str, int], *, share: float = 0.1) -> Tail:
    """Survival of the rare real vocabulary (`rare_words`), from word counts.

    A model that loses its tails (Shumailov et al. 2024) writes fewer of them.

    Raises:
        DataError: either side is without words, or no word is rare (a `share` below the rarest words' own).
    """
    totals = sum(real.values()), sum(synthetic.values())
    if not all(totals):
        raise DataError("words", totals, "there is no text to compare")
    rare = rare_words(real, share=share)
    return Tail(
        types=len(rare),
        surviving=sum(synthetic.get(word, 0) > 0 for word in rare),
        real_mass=sum(real[word] for word in rare) / totals[0],
        mass=sum(synthetic.get(word, 0) for word in rare) / totals[1],
    )


@dataclass(frozen=True)
class Lengths:
    """Means: words in a document, words in a sentence, letters in a word."""

    document_words: float
    sentence_words: float
    word_letters: float


def lengths(texts: Iterable[str]) -> Lengths:
    """Length statistics of some documents. A sentence ends at `.`, `!`, `?` before a blank, or at a line's end.

    Raises:
        DataError: there are no words.
    """
    documents = sentences = count = letters = 0
    for text in texts:
        documents += 1
        for sentence in _SENTENCE_END.split(text):
            of_sentence = words(sentence)
            sentences += bool(of_sentence)
            count += len(of_sentence)
            letters += sum(map(len, of_sentence))
    if not count:
        raise DataError("words", 0, "there is no text to measure")
    return Lengths(count / documents, count / sentences, letters / count)


def repeated_ngrams(sequences: Iterable[Sequence[Hashable]], *, n: int = 4) -> float:
    """Mean over documents of 1 − (different n-grams / n-grams) within the document.

    This is `seq-rep-n` of Welleck et al. 2020: 0 for a text that never says the same n tokens twice. Unlike
    `distinct_n` it does not depend on how many documents there are.

    Raises:
        DataError: no document has n tokens.
    """
    shares = []
    for sequence in sequences:
        grams = _grams(sequence, n)
        if grams:
            shares.append(1 - len(grams) / grams.total())
    if not shares:
        raise DataError("tokens", 0, f"there is no sequence of {n} tokens")
    return sum(shares) / len(shares)


def repeated_nearby(sequences: Iterable[Sequence[Hashable]], *, window: int = 32) -> float:
    """Share of tokens that also stand among the `window` tokens before them: `rep/l` of Welleck et al. 2020.

    Raises:
        DataError: no sequence has two tokens.
    """
    repeated = count = 0
    for sequence in sequences:
        recent: Counter[Hashable] = Counter()
        for index, token in enumerate(sequence):
            if index:
                repeated += recent[token] > 0
                count += 1
            recent[token] += 1
            if index >= window:
                recent[sequence[index - window]] -= 1
    if not count:
        raise DataError("tokens", 0, "repetition needs a sequence of two tokens at least")
    return repeated / count


@dataclass(frozen=True)
class FactShares:
    """Of all facts of the entities whose documents were read: stated truly, falsely, not at all; they add up to 1."""

    facts: int
    true: float
    false: float
    absent: float


def fact_shares(entities: Mapping[str, Entity], documents: Iterable[tuple[str, str]]) -> FactShares | None:
    """Survival of the almanac's facts in some text; None where no document is an entity's.

    Args:
        entities: by the id of their document.
        documents: (id, text); documents of no entity are passed over.
    """
    from fortifai_core.corpus.almanac.readback import fact_survival

    true = false = absent = 0
    for name, text in documents:
        if name in entities:
            stated = fact_survival(entities[name], text)
            true, false, absent = true + stated.true, false + stated.false, absent + stated.absent
    facts = true + false + absent
    return FactShares(facts, true / facts, false / facts, absent / facts) if facts else None
