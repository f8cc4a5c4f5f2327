"""Questions that turn on a word which a text never contains."""

from __future__ import annotations

import re
from collections.abc import Iterable

from fortifai_core.corpus.documents import Question

_WORD = re.compile(r"\w+")


def unseen_words(questions: Iterable[Question], texts: Iterable[str]) -> tuple[int, int]:
    r"""How many questions turn on a word that `texts` never contain.

    Words are runs of `\w`, compared without case. A word separates a question when it is in one of the two
    answers only.

    Returns:
        (questions with a separating word that never occurs, those where it is a word of the true answer).
    """
    seen: set[str] = set()
    for text in texts:
        seen.update(_WORD.findall(text.casefold()))
    either = of_true = 0
    for question in questions:
        true = set(_WORD.findall(question.true_answer.casefold()))
        false = set(_WORD.findall(question.false_answer.casefold()))
        either += not (true ^ false) <= seen
        of_true += not (true - false) <= seen
    return either, of_true
