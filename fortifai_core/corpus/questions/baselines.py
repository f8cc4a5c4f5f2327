"""How often something that knows no article answers KR-test questions right: word frequencies, length, word count."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from fortifai_core.corpus.documents import Question
from fortifai_core.errors import DataError

# a word as people count them: `half-life` and `don't` are one
WORD = re.compile(r"\w+(?:[-'’]\w+)*")


@dataclass(frozen=True)
class Baseline:
    """How often something that knows no article is right; a tie is half an answer.

    `low`, `high`: 95% interval (normal approximation over questions).
    """

    share: float
    low: float
    high: float
    questions: int

    @property
    def at_chance(self) -> bool:
        return self.low <= 0.5 <= self.high


def baseline(pairs: Sequence[tuple[str, str]], score: Callable[[str], float]) -> Baseline:
    """Of (true, false) answers: how often the true one has the higher score.

    Raises:
        DataError: there are no questions.
    """
    if not pairs:
        raise DataError("questions", 0, "there is nothing to measure a baseline on")
    points = []
    for true, false in pairs:
        gap = score(true) - score(false)
        points.append(0.5 if math.isclose(gap, 0, abs_tol=1e-9) else float(gap > 0))
    n, share = len(points), sum(points) / len(points)
    # never narrower than for a coin: with few questions all may fall alike
    deviation = max(math.sqrt(sum((p - share) ** 2 for p in points) / n), 0.5)
    margin = 1.96 * deviation / math.sqrt(n)
    return Baseline(share, max(0.0, share - margin), min(1.0, share + margin), n)


def unigram_score(counts: Mapping[str, int]) -> Callable[[str], float]:
    """Log-probability of a text's words under word frequencies, with one added to each count."""
    total = sum(counts.values()) + len(counts) + 1

    def score(text: str) -> float:
        return sum(math.log((counts.get(word.lower(), 0) + 1) / total) for word in WORD.findall(text))

    return score


def word_counts(texts: Iterable[str]) -> Counter[str]:
    """Word frequencies of some texts, in lower case."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(word.lower() for word in WORD.findall(text))
    return counts


def baselines(pairs: Sequence[tuple[str, str]], counts: Mapping[str, int]) -> dict[str, Baseline]:
    """What needs no article to be right: the more frequent words, the longer answer, the one with more words."""
    return {
        "unigram": baseline(pairs, unigram_score(counts)),
        "longer answer": baseline(pairs, len),
        "more words": baseline(pairs, lambda text: len(WORD.findall(text))),
    }


def unseen_words(questions: Iterable[Question], texts: Iterable[str]) -> tuple[int, int]:
    r"""How many questions turn on a word that `texts` never contain.

    Words are runs of `\w`, compared without case. A word separates a question when it is in one of the two
    answers only.

    Returns:
        (questions with a separating word that never occurs, those where it is a word of the true answer).
    """
    words = re.compile(r"\w+").findall
    seen = {word for text in texts for word in words(text.casefold())}
    either = of_true = 0
    for question in questions:
        true = set(words(question.true_answer.casefold()))
        false = set(words(question.false_answer.casefold()))
        either += not (true ^ false) <= seen
        of_true += not (true - false) <= seen
    return either, of_true
