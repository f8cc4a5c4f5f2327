"""The KR-test: is the true continuation of a context more probable to the model than the false one?

Context and answer are tokenised apart, encode(context) + encode(" " + answer), so that the first scored token is the
same whatever the tokenizer would merge across the border. The space is left out where the answer has its own, and
spaces at the end of the context are cut, which would otherwise be doubled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fortifai_core.corpus.documents import Question
from fortifai_core.errors import DataError
from fortifai_core.language.scoring import log_probabilities, text_setting
from fortifai_core.language.shared_contexts import ScoredSequence


@dataclass(frozen=True)
class QuestionScore:
    """How one question was answered.

    Attributes:
        question: the question's id.
        logp_true, logp_false: nats; the answer's log-probability, or its mean per token under `mean-cut`.
        correct: logp_true > logp_false; a tie knows nothing and counts as wrong.
        context_cut: tokens cut from the left of the context, because the model's window is shorter.
    """

    question: str
    logp_true: float
    logp_false: float
    correct: bool
    context_cut: int = 0


def _encoded(
    question: Question, encode: Callable[[str], list[int]], *, prefix: list[int], longest: int | None
) -> tuple[list[ScoredSequence], int]:
    """The question's true and false sequence, and how many tokens of context did not fit."""
    context = encode(question.context.rstrip(" "))
    answers = []
    for name, answer in (("true_answer", question.true_answer), ("false_answer", question.false_answer)):
        tokens = encode(answer if answer[:1].isspace() else f" {answer}") if answer.strip() else []
        if not tokens:
            raise DataError(f"question {question.id}: {name}", answer, "has no tokens that could be scored")
        answers.append(tokens)
    cut = 0
    if longest is not None:
        # one cut for both answers: they are compared given the same context
        room = longest - len(prefix) - max(map(len, answers))
        if room < (0 if prefix else 1):
            remedy = f"is longer than the model's window of {longest} tokens; shorten the answers"
            raise DataError(f"question {question.id}", question.true_answer, remedy)
        cut = max(0, len(context) - room)
    before = prefix + context[cut:]
    if not before:
        raise DataError(f"question {question.id}: context", question.context, "is empty, and the model has no BOS")
    return [ScoredSequence(before + tokens, len(tokens)) for tokens in answers], cut


def score_questions(
    model: Any,
    encode: Callable[[str], list[int]],
    questions: Sequence[Question],
    *,
    variant: Literal["sum", "mean-cut"],
    batch: int,
    bos_id: int | None,
    shared: bool | None = None,
) -> list[QuestionScore]:
    """Score both answers of every question, in the order given.

    Args:
        encode: text → token ids, without special tokens.
        variant: `sum`: log-probability of the whole answer, as the paper's text says. `mean-cut`: mean
            log-probability of each answer's first n tokens, n the shorter answer's count, as the authors' code does.
        batch: sequences at a time, two a question; changes no result but by rounding.
        bos_id: stands before every context, also before one that was cut; None: nothing does.
        shared: read every common beginning once; None: where that saves enough (`language.shared_contexts`).

    Raises:
        DataError: an answer without tokens or longer than the model's window, or nothing before an answer.
        StageFailed: the model's logits are not numbers.
    """
    if variant not in ("sum", "mean-cut"):
        raise ValueError(f"no such variant: {variant!r}")
    prefix = [] if bos_id is None else [bos_id]
    core = model.get_base_model() if hasattr(model, "get_base_model") else model
    longest = text_setting(core, "max_position_embeddings")
    sequences: list[ScoredSequence] = []
    cuts = []
    for question in questions:
        pair, cut = _encoded(question, encode, prefix=prefix, longest=longest)
        sequences += pair
        cuts.append(cut)
    logs = log_probabilities(model, sequences, batch=batch, shared=shared)
    scores = []
    for question, cut, true, false in zip(questions, cuts, logs[::2], logs[1::2], strict=True):
        if variant == "sum":
            logp_true, logp_false = float(true.sum()), float(false.sum())
        else:
            shorter = min(len(true), len(false))
            logp_true, logp_false = float(true[:shorter].mean()), float(false[:shorter].mean())
        scores.append(QuestionScore(question.id, logp_true, logp_false, logp_true > logp_false, cut))
    return scores


def retention(scores: Sequence[QuestionScore]) -> float:
    """Share of the questions answered right, in [0, 1]; chance is 0.5.

    Raises:
        DataError: there are no questions.
    """
    if not scores:
        raise DataError("questions", 0, "retention is a share of questions: there must be one at least")
    return sum(score.correct for score in scores) / len(scores)
