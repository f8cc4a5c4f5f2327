"""The KR-test: scores equal a loop over one question at a time, whatever the batch, the padding and the model."""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from fortifai_core.corpus.documents import Question
from fortifai_core.errors import DataError, StageFailed
from fortifai_core.language import parts, scoring
from fortifai_core.language.scoring import log_probabilities
from fortifai_core.language.shared_contexts import ROW_TOKENS, ScoredSequence, rows_of, tokens_read, worthwhile
from fortifai_core.measures.retention import QuestionScore, retention, score_questions


def encode(text: str) -> list[int]:
    """One token a letter, 1 for a space; so that every boundary can be seen."""
    return [1 if c == " " else ord(c) - ord("a") + 2 for c in text]


class Bigrams(torch.nn.Module):
    """A model by hand: the next token's probabilities depend on the last token, and stand in a table."""

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(table.log())
        self.config = SimpleNamespace(vocab_size=len(table))

    def forward(self, input_ids: torch.Tensor) -> Any:
        return SimpleNamespace(logits=self.table[input_ids])


def make_model(family: str, **options: Any) -> Any:
    shape: dict[str, Any] = {
        "vocab_size": 40,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
        **options,
    }
    torch.manual_seed(0)
    if family == "llama":
        return LlamaForCausalLM(LlamaConfig(**shape)).eval()
    if family == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(head_dim=8, **shape)).eval()
    window = shape.pop("sliding_window", 6)
    local = {"sliding_window": window, "layer_types": ["sliding_attention", "full_attention"]}
    # a soft-capped head: probabilities would be wrong if it were passed over
    head = {"final_logit_softcapping": 2.0}
    return Gemma3ForCausalLM(Gemma3TextConfig(head_dim=8, query_pre_attn_scalar=8, **local, **head, **shape)).eval()


def make_questions(count: int = 25, *, seed: int = 0) -> list[Question]:
    random = np.random.default_rng(seed)

    def word(low: int, high: int) -> str:
        return "".join(chr(97 + letter) for letter in random.integers(0, 26, random.integers(low, high)))

    return [Question(f"q{i}", f"d{i}", word(1, 30), word(1, 9), word(1, 9)) for i in range(count)]


def naive(model: Any, tokens: list[int], targets: int) -> list[float]:
    """log p of the last tokens, one sequence at a time, from full logits, in float64."""
    with torch.inference_mode():
        logs = model(input_ids=torch.tensor([tokens])).logits[0].double().log_softmax(-1)
    return [float(logs[i - 1, tokens[i]]) for i in range(len(tokens) - targets, len(tokens))]


@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3"])
@pytest.mark.parametrize("batch", [1, 7, 64])
@pytest.mark.parametrize("bos_id", [None, 0])
def test_scores_equal_a_loop_over_questions(family: str, batch: int, bos_id: int | None) -> None:
    model, questions = make_model(family), make_questions()
    for variant in ("sum", "mean-cut"):
        scores = score_questions(model, encode, questions, variant=variant, batch=batch, bos_id=bos_id)
        assert [s.question for s in scores] == [q.id for q in questions]
        for score, question in zip(scores, questions, strict=True):
            before = ([] if bos_id is None else [bos_id]) + encode(question.context)
            true, false = (encode(" " + a) for a in (question.true_answer, question.false_answer))
            shorter = min(len(true), len(false))
            for got, answer in ((score.logp_true, true), (score.logp_false, false)):
                logs = naive(model, before + answer, len(answer))
                expected = math.fsum(logs) if variant == "sum" else math.fsum(logs[:shorter]) / shorter
                assert got == pytest.approx(expected, abs=2e-5)
            assert score.correct == (score.logp_true > score.logp_false) and score.context_cut == 0
    assert 0 < retention(scores) < 1


def test_probabilities_by_hand() -> None:
    table = torch.full((28, 28), 1e-6)
    a, b, c, space = encode("a")[0], encode("b")[0], encode("c")[0], 1
    table[a, space], table[space, b], table[space, c], table[c, c] = 1.0, 0.6, 0.3, 0.9
    question = [Question("q", "d", "a", "b", "ccc")]
    score = score_questions(Bigrams(table), encode, question, variant="sum", batch=2, bos_id=None)[0]
    totals = table.sum(1)
    true = math.log(1 / totals[a] * 0.6 / totals[space])
    false = math.log(1 / totals[a] * 0.3 / totals[space] * (0.9 / totals[c]) ** 2)
    assert (score.logp_true, score.logp_false) == pytest.approx((true, false), rel=1e-5)
    assert score.correct
    # over the shorter answer's two tokens, " b" against " c": the false one's tail no longer counts
    cut = score_questions(Bigrams(table), encode, question, variant="mean-cut", batch=2, bos_id=None)[0]
    assert cut.logp_true == pytest.approx(true / 2, rel=1e-5)
    assert cut.logp_false == pytest.approx(math.log(1 / totals[a] * 0.3 / totals[space]) / 2, rel=1e-5)


def test_the_variants_can_disagree() -> None:
    """The sum pays for the false answer's improbable tail, which the authors' cut leaves out."""
    table = torch.full((28, 28), 1e-6)
    a, b, c, space = encode("a")[0], encode("b")[0], encode("c")[0], 1
    table[a, space], table[space, b], table[space, c] = 1.0, 0.3, 0.6
    table[c] = 1 / 28
    question = [Question("q", "d", "a", "b", "cc")]
    answers = {
        variant: score_questions(Bigrams(table), encode, question, variant=variant, batch=2, bos_id=None)[0].correct
        for variant in ("sum", "mean-cut")
    }
    assert answers == {"sum": True, "mean-cut": False}


def test_an_impossible_answer_is_worth_minus_infinity_and_a_tie_is_wrong() -> None:
    table = torch.full((28, 28), 1.0)
    table[1, encode("b")[0]] = 0.0
    questions = [
        Question("impossible", "d", "a", "c", "b"),
        Question("tie", "d", "a", "c", "d"),
        Question("both impossible", "d", "a", "bc", "bd"),
    ]
    scores = score_questions(Bigrams(table), encode, questions, variant="sum", batch=8, bos_id=None)
    assert [s.correct for s in scores] == [True, False, False]
    assert scores[0].logp_false == -math.inf and math.isfinite(scores[0].logp_true)
    assert scores[1].logp_true == scores[1].logp_false
    assert retention(scores) == pytest.approx(1 / 3)


def test_one_space_stands_between_context_and_answer() -> None:
    table = torch.rand((28, 28), generator=torch.Generator().manual_seed(0)) + 0.01
    variants = [("ab", "cd", "e"), ("ab ", "cd", "e"), ("ab", " cd", " e"), ("ab  ", " cd", "e")]
    questions = [Question(str(i), "d", *variant) for i, variant in enumerate(variants)]
    scores = score_questions(Bigrams(table), encode, questions, variant="sum", batch=8, bos_id=None)
    assert len({(s.logp_true, s.logp_false) for s in scores}) == 1


@pytest.mark.parametrize("bos_id", [None, 0])
def test_too_long_a_context_is_cut_on_the_left_alike_for_both_answers(bos_id: int | None) -> None:
    model = make_model("llama", max_position_embeddings=16)
    question = Question("q", "d", "abcdefghijklmnopqrstuvwxyz", "xyz", "uvwxy")
    score = score_questions(model, encode, [question], variant="sum", batch=2, bos_id=bos_id)[0]
    prefix = [] if bos_id is None else [bos_id]
    room = 16 - len(" uvwxy") - len(prefix)
    assert score.context_cut == 26 - room
    context = prefix + encode(question.context)[-room:]
    assert score.logp_true == pytest.approx(math.fsum(naive(model, context + encode(" xyz"), 4)), abs=2e-5)
    assert score.logp_false == pytest.approx(math.fsum(naive(model, context + encode(" uvwxy"), 6)), abs=2e-5)
    shortened = replace(question, context=question.context[-room:])
    same = score_questions(model, encode, [shortened], variant="sum", batch=2, bos_id=bos_id)[0]
    assert same == replace(score, context_cut=0)


def test_questions_that_cannot_be_scored_are_refused_by_name() -> None:
    model = make_model("llama", max_position_embeddings=8)

    def ask(**change: str) -> None:
        question = replace(Question("q7", "d", "abc", "de", "fg"), **change)
        score_questions(model, encode, [question], variant="sum", batch=2, bos_id=None)

    ask()
    with pytest.raises(DataError, match=r"q7: false_answer = ' '.*no tokens"):
        ask(false_answer=" ")
    with pytest.raises(DataError, match=r"q7: context.*empty"):
        ask(context="")
    with pytest.raises(DataError, match=r"q7.*window of 8 tokens"):
        ask(true_answer="abcdefgh")
    with pytest.raises(DataError, match="one at least"):
        retention([])


def test_an_empty_context_can_be_asked_after_a_bos() -> None:
    model = make_model("llama")
    score = score_questions(model, encode, [Question("q", "d", "", "de", "f")], variant="sum", batch=2, bos_id=0)[0]
    assert score.logp_true == pytest.approx(math.fsum(naive(model, [0, *encode(" de")], 3)), abs=2e-5)


def test_a_diverged_model_is_an_error_and_not_a_wrong_answer() -> None:
    model = make_model("llama")
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.nan)
    with pytest.raises(StageFailed, match="not numbers"):
        score_questions(model, encode, make_questions(3), variant="sum", batch=2, bos_id=None)


def test_the_softmax_of_bfloat16_logits_is_taken_in_float32() -> None:
    # a table's logits do not depend on the batch's shape, so that nothing but the softmax is rounded
    model = Bigrams(torch.rand((28, 28), generator=torch.Generator().manual_seed(0)) + 0.01).to(torch.bfloat16)
    assert model(torch.tensor([[1]])).logits.dtype == torch.bfloat16
    questions = make_questions()
    for score, question in zip(
        score_questions(model, encode, questions, variant="sum", batch=7, bos_id=None), questions, strict=True
    ):
        tokens = [*encode(question.context), *encode(" " + question.true_answer)]
        expected = math.fsum(naive(model, tokens, len(question.true_answer) + 1))
        assert score.logp_true == pytest.approx(expected, abs=2e-5)


def test_the_head_is_run_where_it_is_needed_only_and_within_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("llama")
    sequences = [ScoredSequence(encode(q.context + " " + q.true_answer), len(q.true_answer)) for q in make_questions()]
    shapes: list[tuple[int, ...]] = []
    model.lm_head.register_forward_hook(lambda _module, _inputs, output: shapes.append(tuple(output.shape)))
    targets = sum(sequence.targets for sequence in sequences)
    compared = [(1, 8, 40)] * 2  # the head against the whole model, first
    whole = log_probabilities(model, sequences, batch=100, shared=False)
    assert shapes == [*compared, (targets, 40)]
    shapes.clear()
    monkeypatch.setattr(parts, "LOGITS_AT_ONCE", 2000)
    limited = log_probabilities(model, sequences, batch=100, shared=False)
    assert len(shapes) > 3 and all(math.prod(shape) <= 2000 for shape in shapes)
    for a, b in zip(whole, limited, strict=True):
        assert a == pytest.approx(b, abs=2e-5)


def test_tokens_that_go_through_a_processor_at_once_are_few() -> None:
    model = make_model("llama")
    sequences = [ScoredSequence([*range(2, 32), 5 + number % 7], 3) for number in range(100)]
    shapes: list[tuple[int, ...]] = []
    model.model.embed_tokens.register_forward_hook(lambda _module, inputs, _: shapes.append(tuple(inputs[0].shape)))
    log_probabilities(model, sequences, batch=100, shared=False)
    read = shapes[2:]  # after the comparison of the parts with the whole
    assert sum(map(math.prod, read)) == 3000 and len(read) == 3 and max(map(math.prod, read)) <= scoring.CPU_TOKENS


@pytest.mark.parametrize("shared", [False, True])
def test_a_model_that_does_more_than_its_head_makes_its_own_logits(shared: bool) -> None:
    model = make_model("llama")
    own = model.forward

    def doubled(*args: Any, **kwargs: Any) -> Any:
        output = own(*args, **kwargs)
        output.logits = 2 * output.logits
        return output

    sequences = [ScoredSequence(encode(q.context + " " + q.true_answer), len(q.true_answer)) for q in make_questions()]
    plain = log_probabilities(model, sequences, batch=8, shared=shared)
    model.forward = functools.wraps(own)(doubled)
    assert parts.parts_of(model) is None
    ids = torch.tensor([sequences[0].tokens])
    expected = doubled(input_ids=ids).logits[0].log_softmax(-1)[:-1].gather(-1, ids[0, 1:, None])[:, 0]
    logs = log_probabilities(model, sequences, batch=8, shared=shared)
    assert logs[0] == pytest.approx(expected[-sequences[0].targets :].detach().numpy(), abs=2e-5)
    assert np.abs(logs[0] - plain[0]).max() > 1e-3


def test_modes_come_back() -> None:
    model = make_model("llama", attention_dropout=0.5)
    questions = make_questions(5)
    expected = score_questions(model, encode, questions, variant="sum", batch=4, bos_id=0)
    model.train()
    assert score_questions(model, encode, questions, variant="sum", batch=4, bos_id=0) == expected
    assert all(one.training for one in model.modules())


def test_retention_is_the_share_of_right_answers() -> None:
    scores = [QuestionScore(str(i), 0.0, -1.0, i < 3) for i in range(4)]
    assert retention(scores) == 0.75


# --------------------------------------------------------------------------------------------- contexts read once


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
@pytest.mark.parametrize("batch", [1, 7, 100])
def test_contexts_read_once_give_the_scores_of_every_answer_by_itself(family: str, batch: int) -> None:
    # gemma's window must be as long as the text, or `worthwhile` leaves the model to the plain way
    model = make_model(family, **({"sliding_window": 64} if family == "gemma3" else {}))
    plain = make_questions()
    # the same context asked about several times, answers of very different length, and a context of one token
    questions = [*plain, *(replace(q, id=f"{q.id}-b", true_answer="a", false_answer="bcdefgh") for q in plain[:5])]
    questions.append(Question("short", "d", "a", "bc", "d"))
    ways = [
        score_questions(model, encode, questions, variant="sum", batch=batch, bos_id=0, shared=shared)
        for shared in (False, True)
    ]
    for one, other in zip(*ways, strict=True):
        assert (other.logp_true, other.logp_false) == pytest.approx((one.logp_true, one.logp_false), abs=5e-5)
        assert other.correct == one.correct


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_whatever_sequences_begin_with_alike_is_read_once(family: str) -> None:
    # branches within branches, one sequence that is the beginning of another, and the same one twice; the row is longer
    # than gemma's window, which no sequence is
    model = make_model(family, **({"sliding_window": 40} if family == "gemma3" else {}))
    ids = [3, 4, 5, 6, 7, 8]
    texts = [ids[:4], ids, [3, 4, 9, 10, 11], ids, [3, 4, 9, 10, 12], [20, *ids], *([21, 30, n, 6] for n in range(30))]
    sequences = [ScoredSequence(text, 1 + number % (len(text) - 1)) for number, text in enumerate(texts)]
    rows = rows_of(sequences)
    inner = {tuple(text[:end]) for text in texts for end in range(1, len(text))}
    assert len(rows) == 1 and len(rows[0].tokens) == len(inner) > 40
    for batch in (2, 5, 100):
        alone = log_probabilities(model, sequences, batch=batch, shared=False)
        tree = log_probabilities(model, sequences, batch=batch, shared=True)
        for one, other in zip(alone, tree, strict=True):
            assert other == pytest.approx(one, abs=5e-5)


def test_a_row_is_no_longer_than_pays_but_a_long_beginning_is_not_read_twice() -> None:
    random = np.random.default_rng(0)
    apart = [ScoredSequence(random.integers(2, 40, 50).tolist(), 4) for _ in range(40)]
    rows = rows_of(apart)
    assert max(len(row.tokens) for row in rows) <= ROW_TOKENS and sorted(m for row in rows for m in row.members) == [
        *range(40)
    ]
    context = random.integers(2, 40, 2 * ROW_TOKENS).tolist()
    long = [ScoredSequence([*context, first, 5, 6], 3) for first in range(2, 12)]
    (row,) = rows_of(long)
    assert len(row.tokens) == 2 * ROW_TOKENS + 2 * len(long)
    assert [len(row.members) for row in rows_of(long, members=4)] == [4, 4, 2]


def test_contexts_are_shared_where_that_saves_enough_and_the_model_is_known() -> None:
    def sequences(context: int, answer: int) -> list[ScoredSequence]:
        return [ScoredSequence([*range(2, context + 2), *[9] * (answer - 1), last], answer) for last in (5, 6)]

    long, short = sequences(30, 3), sequences(2, 12)
    apart = [ScoredSequence([first, *range(2, 14)], 12) for first in (5, 6)]
    assert tokens_read(long) == (64, 32) and tokens_read(short) == (26, 13) and tokens_read(apart) == (24, 24)
    assert worthwhile(make_model("llama"), long) and not worthwhile(make_model("llama"), apart)
    assert not worthwhile(make_model("gemma3"), long), "its window of 6 needs a mask of its own"
    assert worthwhile(make_model("gemma3", sliding_window=64), long)
    assert not worthwhile(Bigrams(torch.rand(28, 28)), long)
    eager = make_model("llama")
    eager.set_attn_implementation("eager")
    assert worthwhile(eager, long)
