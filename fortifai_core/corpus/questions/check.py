"""What is wrong with a set of KR-test questions that are each well-formed: what gives answers away, what is doubled."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from fortifai_core.corpus.documents import FileQuestion
from fortifai_core.corpus.questions.baselines import Baseline, baselines

_WORD = re.compile(r"\w+")


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.lower()))


def question_problems(questions: Sequence[FileQuestion]) -> list[tuple[int, str]]:
    """(line, what is wrong) of every question that cannot test knowledge as it stands, by line.

    - the same question twice, or the reverse of another with the same context
    - an answer that stands in the context
    - what is true of the answer, and not of the false one, can be read off the context
    """
    problems: list[tuple[int, str]] = []
    first: dict[tuple[str, str, str], int] = {}
    for question in questions:
        asked = (question.context.strip(), question.true_answer.strip(), question.false_answer.strip())
        if asked in first:
            problems.append((question.line, f"the same question as in line {first[asked]}"))
        reverse = (asked[0], asked[2], asked[1])
        if reverse in first:
            problems.append((question.line, f"calls true what line {first[reverse]} calls false, in the same context"))
        first.setdefault(asked, question.line)
        for name, answer in (("true", asked[1]), ("false", asked[2])):
            if answer.lower() in asked[0].lower():
                problems.append((question.line, f"the {name} answer stands in the context"))
        true, false, context = _words(asked[1]), _words(asked[2]), _words(asked[0])
        told = {word for word in (true - false) & context if len(word) >= 5 or word.isdigit()}
        if told and (true - false) <= context and not (false - true) & context:
            said = ", ".join(sorted(told))
            problems.append(
                (question.line, f"the context gives it away: it has {said}, and nothing of the false answer")
            )
    return problems


def set_problems(questions: Sequence[FileQuestion], counts: Mapping[str, int]) -> tuple[list[str], dict[str, Baseline]]:
    """What is wrong with the questions taken together, and the baselines it was seen by.

    Args:
        counts: word frequencies of the corpus; where there is none, of the true answers and contexts.
    """
    guesses = baselines([(question.true_answer, question.false_answer) for question in questions], counts)
    problems = []
    for name, guess in guesses.items():
        if not guess.at_chance:
            who = "word frequencies alone answer" if name == "unigram" else f"the rule “{name}” answers"
            problems.append(f"{who} {guess.share:.0%} right ({guess.low:.0%} to {guess.high:.0%}), not 50%")
    denied = sum("not" in _words(q.false_answer) - _words(q.true_answer) for q in questions)
    affirmed = sum("not" in _words(q.true_answer) - _words(q.false_answer) for q in questions)
    if denied + affirmed >= 20 and not 0.25 <= denied / (denied + affirmed) <= 0.75:
        problems.append(
            f"of {denied + affirmed} questions that turn on a “not”, it stands in the false answer in {denied}"
        )
    return problems, guesses


def seen_words(questions: Sequence[FileQuestion]) -> Counter[str]:
    """Word frequencies of the questions themselves, where no corpus is given: contexts and true answers."""
    counts: Counter[str] = Counter()
    for question in questions:
        counts.update(_WORD.findall(f"{question.context} {question.true_answer}".lower()))
    return counts
