"""KR-test questions from raw text, without any service: two statements of one article exchange a year, name, number.

Questions are made in pairs. In one sentence of an article the value *a* is replaced by *b*, in another one *b* by *a*:

    … opened in 1912.   true: 1912, false: 1938          … demolished in 1938.   true: 1938, false: 1912

So whatever an answer's own words give away (frequency, length, order of magnitude, how a name sounds) is right in one
question of the pair and wrong in the other: a unigram model, or a rule such as "the longer one", has exactly 50%.
What is left is which value belongs into which sentence. Of that a reader who never saw the article may still guess
some from the words beside the value, so values are exchanged only between places of the same form (the same word
before, for numbers and words also after), never where one of the two stands in the context or elsewhere in the
sentence, and years never where another year stands beside them. The test of that is a model which never read the
article; no rule here can promise it.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

from fortifai_core.corpus.documents import Document
from fortifai_core.corpus.questions.baselines import WORD
from fortifai_core.errors import DataError
from fortifai_core.seeds import derive_seed

Kind = Literal["date", "year", "number", "name", "phrase"]
KINDS: tuple[Kind, ...] = ("date", "year", "number", "name", "phrase")
SHORTEST, LONGEST = 6, 45  # words of a sentence that is asked about
SHORTEST_CONTEXT = 4

_MONTH = "January|February|March|April|May|June|July|August|September|October|November|December"
_DATE = re.compile(rf"\b(?:\d{{1,2}} (?:{_MONTH})|(?:{_MONTH}) \d{{1,2}})(?:,? \d{{4}})?\b|\b(?:{_MONTH}) \d{{4}}\b")
_YEAR = re.compile(r"(?<![\w.,–-])(?:1[0-9]|20)\d\d(?![\w–-]|[.,]\d)")
_NUMBER = re.compile(r"(?<![\w.,–-])\d+(?:,\d{3})*(?:\.\d+)?(?![\w–-]|[.,]\d)")
_NAME = re.compile(r"(?<![\w'’-])[A-Z][a-z'’-]*[a-z](?: (?:of |de |van |von |the )?[A-Z][a-z'’-]*[a-z])*(?![\w'’-])")
_PHRASE = re.compile(r"(?<![\w'’-])[a-z]{5,}(?![\w'’-])")
_PIECE = re.compile(r"\w+")
_SENTENCE = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]*[A-Z0-9])")
_ABBREVIATION = re.compile(r"\b(?:[A-Z]|Mr|Mrs|Ms|Dr|St|Jr|Sr|No|vs|Lt|Col|Gen|Capt|Sgt|Maj|Rev|Prof|approx|c|ca)\.$")
_ANY_YEAR = re.compile(r"(?:1[0-9]|20)\d\d")


@dataclass(frozen=True)
class Swap:
    """A row of a file of questions, in the authors' form, and which exchange made it.

    Attributes:
        location: the document's id, which is where the question belongs.
        kind: what was exchanged. true_value, false_value: the two.
        pair: number of the exchange; the questions of one number are each other's reverse.
    """

    context: str
    sentence_true: str
    sentence_false: str
    location: str
    kind: Kind
    true_value: str
    false_value: str
    pair: int


@dataclass(frozen=True)
class _Place:
    """A value where it stands: sentence, its context, and the words beside it."""

    sentence: str
    context: str
    start: int
    end: int
    kind: Kind

    @cached_property
    def words(self) -> frozenset[str]:
        return frozenset(_PIECE.findall(self.value.lower()))

    @cached_property
    def beside(self) -> frozenset[str]:
        """Words of the context and of the rest of the sentence."""
        rest = f"{self.context} {self.sentence[: self.start]} {self.sentence[self.end :]}"
        return frozenset(_PIECE.findall(rest.lower()))

    @property
    def usable(self) -> bool:
        """Whether nothing beside the value says what it is."""
        # another year beside it says which of two is the likelier: the nearer one
        dated = self.kind in ("year", "date") and any(_ANY_YEAR.fullmatch(word) for word in self.beside)
        return not dated and not self.words & self.beside

    @property
    def value(self) -> str:
        return self.sentence[self.start : self.end]

    def with_value(self, value: str) -> str:
        """The sentence with another value in this place."""
        return self.sentence[: self.start] + value + self.sentence[self.end :]

    @property
    def form(self) -> tuple[object, ...]:
        """Values of two places are exchanged only if this is the same."""
        before, after = WORD.findall(self.sentence[: self.start]), WORD.findall(self.sentence[self.end :])
        beside = self.sentence[self.end : self.end + 1]
        last, following = before[-1].lower() if before else "", after[0].lower() if after and beside == " " else beside
        value = self.value
        match self.kind:
            case "date":
                return (self.kind, re.sub(r"\d+", "0", re.sub(_MONTH, "M", value)), last)
            case "year":
                return (self.kind, last)
            case "number":
                return (self.kind, "." in value, len(value), last if last in _SMALL else "", following)
            case "name":
                return (self.kind, len(value.split()), last)
            case "phrase":
                return (self.kind, last, value.endswith("s"), value[-3:] in ("ing", "ion"), value[-2:], following)


_SMALL = frozenset("a an the of in on at to for from by with as and or than about over under after before into".split())


def sentences(text: str) -> list[list[str]]:
    """Sentences of a text, paragraph by paragraph (a line is a paragraph); headings (` = … = `) are none.

    >>> sentences("= A =\\nMr. Ash left. It rained.\\nThe end.")
    [['Mr. Ash left.', 'It rained.'], ['The end.']]
    """
    result = []
    for line in text.splitlines():
        line = line.strip()
        if not line or (line.startswith("=") and line.endswith("=")):
            continue
        of_line: list[str] = []
        for piece in _SENTENCE.split(line):
            if of_line and _ABBREVIATION.search(of_line[-1]):
                of_line[-1] += f" {piece}"
            else:
                of_line.append(piece)
        result.append(of_line)
    return result


def build_questions(
    documents: Iterable[Document],
    *,
    per_document: int = 8,
    kinds: Sequence[Kind] = KINDS,
    seed: int = 0,
    common: frozenset[str] = frozenset(),
) -> list[Swap]:
    """Questions about every document that has values to exchange; in the documents' order, pair by pair.

    Args:
        per_document: at most so many questions a document, in whole pairs.
        kinds: what is exchanged; the earlier kind first, where a sentence has several.
        seed: which of the possible exchanges are taken.
        common: lower-case words that are no key phrase (`common_words`).

    Raises:
        DataError: no two statements of any document can exchange anything.
    """
    questions: list[Swap] = []
    pair = 0
    for document in documents:
        draw = random.Random(derive_seed("kr-build", seed, document.id))
        for first, second in _exchanges(document.text, kinds, draw, per_document // 2, common):
            for place, other in ((first, second), (second, first)):
                questions.append(
                    Swap(
                        context=place.context,
                        sentence_true=place.sentence,
                        sentence_false=place.with_value(other.value),
                        location=document.id,
                        kind=place.kind,
                        true_value=place.value,
                        false_value=other.value,
                        pair=pair,
                    )
                )
            pair += 1
    if not questions:
        raise DataError("documents", 0, "no document has two statements that could exchange a value: give longer texts")
    return questions


def common_words(documents: Iterable[Document], *, share: float = 0.1) -> frozenset[str]:
    """Words that more than a share of the documents use: too general to be a key phrase of one."""
    using: Counter[str] = Counter()  # documents that use a word
    number = 0
    for document in documents:
        number += 1
        using.update(set(re.findall(r"[a-z]{5,}", document.text)))
    return frozenset(word for word, count in using.items() if count > share * number)


def _exchanges(
    text: str, kinds: Sequence[Kind], draw: random.Random, wanted: int, common: frozenset[str]
) -> list[tuple[_Place, _Place]]:
    forms: dict[tuple[object, ...], list[_Place]] = defaultdict(list)
    for place in _places(text, kinds, common):
        forms[place.form].append(place)
    rank = {kind: index for index, kind in enumerate(kinds)}
    # the better kinds first; in which order within a kind is drawn
    order = sorted(forms, key=lambda form: (rank[form[0]], draw.random()))  # type: ignore[index]
    used: set[str] = set()
    taken: list[tuple[_Place, _Place]] = []
    for form in order:
        places = forms[form]
        draw.shuffle(places)
        for index, first in enumerate(places):
            if len(taken) >= wanted:
                return taken
            if first.sentence in used:
                continue
            for second in places[index + 1 :]:
                if second.sentence in used or not _exchangeable(first, second, text):
                    continue
                taken.append((first, second))
                used |= {first.sentence, second.sentence}
                break
    return taken


def _places(text: str, kinds: Sequence[Kind], common: frozenset[str]) -> Iterator[_Place]:
    often = Counter(word.lower() for word in WORD.findall(text))
    for paragraph in sentences(text):
        for context, sentence in pairwise(paragraph):
            size = len(WORD.findall(sentence))
            whole = SHORTEST <= size <= LONGEST and sentence.endswith((".", '."', "!", "?"))
            if not whole or len(WORD.findall(context)) < SHORTEST_CONTEXT or "<unk>" in sentence + context:
                continue
            covered: list[tuple[int, int]] = []
            for kind in KINDS:  # a year within a date is part of the date, whatever is asked for
                for value in _FINDERS[kind].finditer(sentence):
                    start, end = value.span()
                    if any(start < other_end and other < end for other, other_end in covered):
                        continue
                    covered.append((start, end))
                    fits = kind in kinds and (kind not in ("name", "phrase") or start > 0)
                    if kind == "phrase":
                        # a key phrase: said more than once in this article, and in few others
                        fits = fits and value[0] not in common and often[value[0]] > 1
                    place = _Place(sentence, context, start, end, kind)
                    if fits and place.usable:
                        yield place


_FINDERS: dict[Kind, re.Pattern[str]] = {
    "date": _DATE,
    "year": _YEAR,
    "number": _NUMBER,
    "name": _NAME,
    "phrase": _PHRASE,
}


def _exchangeable(first: _Place, second: _Place, text: str) -> bool:
    """Whether exchanging the two makes two false statements that nothing beside them gives away."""
    if first.words & second.words or first.words & second.beside or second.words & first.beside:
        return False
    return first.with_value(second.value) not in text and second.with_value(first.value) not in text
