"""The KR-test: is the true continuation of a context more probable to the model than the false one?

Context and answer are tokenised apart, encode(context) + encode(" " + answer), so that the first scored token is the
same whatever the tokenizer would merge across the border. The space is left out where the answer has its own, and
spaces at the end of the context are cut, which would otherwise be doubled.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fortifai_core.corpus.documents import Question
from fortifai_core.errors import DataError, StageFailed
from fortifai_core.language.scoring import worthwhile

# logits held at once, as float32: half a gibibyte
LOGITS_AT_ONCE = 2**27


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


@dataclass(frozen=True)
class ScoredSequence:
    """Token ids, of which the last `targets` are scored, each given all before it."""

    tokens: Sequence[int]
    targets: int


def text_setting(core: Any, name: str) -> int | None:
    """A number from the configuration of a model's text part; None where it has none of that name."""
    config: Any = getattr(core, "config", None)
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    value = getattr(config, name, None)
    return value if isinstance(value, int) else None


def _batches(
    sequences: Sequence[ScoredSequence], *, batch: int, vocabulary: int
) -> Iterator[tuple[list[int], int, int]]:
    """(indices, first and last position + 1 of the logits needed), by length, within `LOGITS_AT_ONCE`."""
    order = sorted(range(len(sequences)), key=lambda i: (len(sequences[i].tokens), sequences[i].targets, i))
    rows: list[int] = []
    first = last = 0
    for index in order:
        end = len(sequences[index].tokens) - 1
        begin = end - sequences[index].targets
        wider, longer = (min(first, begin), max(last, end)) if rows else (begin, end)
        if rows and (len(rows) == batch or (len(rows) + 1) * (longer - wider) * vocabulary > LOGITS_AT_ONCE):
            yield rows, first, last
            rows, wider, longer = [], begin, end
        rows.append(index)
        first, last = wider, longer
    if rows:
        yield rows, first, last


def sequence_log_probabilities(model: Any, sequences: Sequence[ScoredSequence], *, batch: int) -> list[np.ndarray]:
    """log p of each sequence's last tokens: one float64 [targets] a sequence, in the order given, in nats.

    Padding stands behind the tokens, where a causal model does not look. Logits are computed where they are needed
    only, if the model takes `logits_to_keep` (those of transformers do), and the log-softmax is taken in float32.

    Args:
        model: token ids [rows, length] → object with `.logits` [rows, length, vocabulary]; left in the mode it was in.
        sequences: each with more tokens than targets, and a target at least.
        batch: sequences at a time; fewer where their logits would be large.

    Raises:
        StageFailed: the model's logits are not numbers.
    """
    import torch

    from fortifai_core.language.decoding import inference

    result: list[np.ndarray] = [np.empty(0)] * len(sequences)
    with inference(model) as core:
        accepted = inspect.signature(core.forward).parameters
        vocabulary = text_setting(core, "vocab_size") or 1
        device = next((p.device for p in core.parameters()), torch.device("cpu"))
        for rows, first, last in _batches(sequences, batch=batch, vocabulary=vocabulary):
            ids = torch.zeros((len(rows), last + 1), dtype=torch.long)
            for row, index in enumerate(rows):
                tokens = torch.as_tensor(sequences[index].tokens, dtype=torch.long)
                ids[row, : len(tokens)] = tokens
            ids = ids.to(device)
            options: dict[str, Any] = {"use_cache": False} if "use_cache" in accepted else {}
            if "logits_to_keep" in accepted:
                options["logits_to_keep"] = torch.arange(first, last, device=device)
                logits = core(input_ids=ids[:, :last], **options).logits.float()
            else:
                logits = core(input_ids=ids[:, :last], **options).logits[:, first:last].float()
            target = ids[:, first + 1 : last + 1, None]
            scores = (logits.gather(-1, target) - logits.logsumexp(-1, keepdim=True))[..., 0].double().cpu().numpy()
            for row, index in enumerate(rows):
                end = len(sequences[index].tokens) - 1 - first
                result[index] = scores[row, end - sequences[index].targets : end].copy()
    if any(bool(np.isnan(one).any()) for one in result):
        raise StageFailed("scoring: the model's logits are not numbers; its training has diverged")
    return result


def shared_log_probabilities(model: Any, sequences: Sequence[ScoredSequence], *, batch: int) -> list[np.ndarray]:
    """`sequence_log_probabilities` with every context read once, for models that `shared_prefix` knows.

    The same numbers but for rounding: the sums within a softmax are taken in another order.
    """
    import torch

    from fortifai_core.language import scoring
    from fortifai_core.language.decoding import inference

    result: list[np.ndarray] = [np.empty(0)] * len(sequences)
    with inference(model) as core:
        parameter = next(core.parameters())
        vocabulary = text_setting(core, "vocab_size") or 1
        at_once = max(1, LOGITS_AT_ONCE // vocabulary)
        for rows in scoring.batches(scoring.rows_of(sequences), batch=batch, logits=at_once):
            ids, positions, mask = (
                one.to(parameter.device) for one in scoring.inputs(rows, sequences, dtype=parameter.dtype)
            )
            first = min(len(row.prefix) for row in rows) - 1
            logits = core(
                input_ids=ids,
                position_ids=positions,
                attention_mask=mask,
                use_cache=False,
                logits_to_keep=torch.arange(first, ids.shape[1], device=ids.device),
            ).logits.float()
            total = logits.logsumexp(-1)
            for place, row in enumerate(rows):
                for index, start in zip(row.members, row.starts, strict=True):
                    count = sequences[index].targets
                    # the first token of an answer is foretold at the context's end, the others within the answer
                    asked = torch.tensor([len(row.prefix) - 1, *range(start, start + count - 1)], device=ids.device)
                    wanted = ids[place, start : start + count]
                    scores = logits[place, asked - first, wanted] - total[place, asked - first]
                    result[index] = scores.double().cpu().numpy()
    if any(bool(np.isnan(one).any()) for one in result):
        raise StageFailed("scoring: the model's logits are not numbers; its training has diverged")
    return result


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
        shared: read each context once for all its answers; None: where that saves enough (`shared_prefix`).

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
    if shared is None:
        shared = worthwhile(core, sequences)
    score = shared_log_probabilities if shared else sequence_log_probabilities
    logs = score(model, sequences, batch=batch)
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
