"""What is wrong with a set of KR-test questions that are each well-formed: what gives answers away, what is doubled."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fortifai_core.corpus.questions.baselines import Baseline, baselines

_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class AskedItem:
    """One question and the line of its file."""

    line: int
    context: str
    true_answer: str
    false_answer: str


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.lower()))


def item_problems(items: Sequence[AskedItem]) -> list[tuple[int, str]]:
    """(line, what is wrong) of every question that cannot test knowledge as it stands, by line.

    - the same question twice, or the reverse of another with the same context
    - an answer that stands in the context
    - what is true of the answer, and not of the false one, can be read off the context
    """
    problems: list[tuple[int, str]] = []
    first: dict[tuple[str, str, str], int] = {}
    for item in items:
        own = (item.context.strip(), item.true_answer.strip(), item.false_answer.strip())
        if own in first:
            problems.append((item.line, f"the same question as in line {first[own]}"))
        reverse = (own[0], own[2], own[1])
        if reverse in first:
            problems.append((item.line, f"calls true what line {first[reverse]} calls false, in the same context"))
        first.setdefault(own, item.line)
        for name, answer in (("true", own[1]), ("false", own[2])):
            if answer.lower() in own[0].lower():
                problems.append((item.line, f"the {name} answer stands in the context"))
        true, false, context = _words(own[1]), _words(own[2]), _words(own[0])
        told = {word for word in (true - false) & context if len(word) >= 5 or word.isdigit()}
        if told and (true - false) <= context and not (false - true) & context:
            said = ", ".join(sorted(told))
            problems.append((item.line, f"the context gives it away: it has {said}, and nothing of the false answer"))
    return problems


def set_problems(items: Sequence[AskedItem], counts: Mapping[str, int]) -> tuple[list[str], dict[str, Baseline]]:
    """What is wrong with the questions taken together, and the baselines it was seen by.

    Args:
        counts: word frequencies of the corpus; where there is none, of the true answers and contexts.
    """
    found = baselines([(item.true_answer, item.false_answer) for item in items], counts)
    problems = []
    for name, one in found.items():
        if not one.at_chance:
            who = "word frequencies alone answer" if name == "unigram" else f"the rule “{name}” answers"
            problems.append(f"{who} {one.share:.0%} right ({one.low:.0%} to {one.high:.0%}), not 50%")
    denied = sum("not" in _words(i.false_answer) - _words(i.true_answer) for i in items)
    affirmed = sum("not" in _words(i.true_answer) - _words(i.false_answer) for i in items)
    if denied + affirmed >= 20 and not 0.25 <= denied / (denied + affirmed) <= 0.75:
        problems.append(
            f"of {denied + affirmed} questions that turn on a “not”, it stands in the false answer in {denied}"
        )
    return problems, found


def seen_words(items: Sequence[AskedItem]) -> Counter[str]:
    """Word frequencies of the questions themselves, where no corpus is given: contexts and true answers."""
    counts: Counter[str] = Counter()
    for item in items:
        counts.update(_WORD.findall(f"{item.context} {item.true_answer}".lower()))
    return counts
