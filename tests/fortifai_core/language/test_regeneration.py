"""Rewriting: context is old text only, results do not depend on the batch, sampling is exact, lengths are preserved."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from fortifai_core.config.stages import Regeneration
from fortifai_core.errors import DataError, StageFailed
from fortifai_core.language.decoding import draw, inference
from fortifai_core.language.rewriting.blocks import (
    Block,
    Rewriting,
    TokenisedDocument,
    block_uniforms,
    plan_batches,
    plan_blocks,
)
from fortifai_core.language.rewriting.regenerate import RegeneratedDocument, regenerate
from fortifai_core.measures.text_counts import distinct_n
from helpers import ROUNDING

VOCABULARY, PAD = 97, 0
SUPPRESS = [0, 1, 2]
SEED_PARTS = ("test", 0, "split")
FAMILIES = ["llama", "gemma3", "qwen3"]


def make_model(family: str = "llama", *, vocabulary: int = VOCABULARY, **options: Any) -> Any:
    """A tiny random model whose weights are wide enough for its predictions to be distinct."""
    shape: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.3,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        **options,
    }
    torch.manual_seed(0)
    if family == "llama":
        return LlamaForCausalLM(LlamaConfig(**shape)).eval()
    if family == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(head_dim=8, **shape)).eval()
    # a window shorter than context and block, so that local attention does cut something off
    local = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}
    return Gemma3ForCausalLM(Gemma3TextConfig(head_dim=8, query_pre_attn_scalar=8, **local, **shape)).eval()


@pytest.fixture(scope="module")
def llama() -> Any:
    return make_model()


def make_documents(lengths: Sequence[int], *, seed: int = 0) -> list[TokenisedDocument]:
    random = np.random.default_rng(seed)
    return [
        TokenisedDocument(f"d{i}", i, random.integers(3, VOCABULARY, size).tolist()) for i, size in enumerate(lengths)
    ]


# ragged: nothing at all, shorter than the head, exactly it, a block more, and tails of every length
RAGGED = [0, 1, 3, 4, 5, 8, 9, 12, 17, 23, 30, 31, 40, 41, 42, 43]


def rewrite(
    model: Any,
    documents: Sequence[TokenisedDocument],
    config: Regeneration,
    *,
    batch: int = 8,
    on_progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> list[RegeneratedDocument]:
    given: dict[str, Any] = {"seed_parts": SEED_PARTS, "suppress": SUPPRESS, "pad_id": PAD, **options}
    return regenerate(model, documents, Rewriting(config, batch_blocks=batch, **given), on_progress=on_progress)


def settings(**options: Any) -> Regeneration:
    return Regeneration(**{"block_tokens": 4, "context_tokens": 8, "head_tokens": 3, **options})


# ------------------------------------------------------------------------------------------------ oracle


@dataclass
class Oracle:
    """Blocks rewritten one by one with a full forward pass a token: no cache, no padding, no `generate`."""

    model: Any
    config: Regeneration

    def scores(self, tokens: list[int]) -> torch.Tensor:
        """float64 [vocabulary] after the penalty, suppression, temperature, top-k and top-p."""
        with torch.no_grad():
            scores = self.model(input_ids=torch.tensor([tokens])).logits[0, -1].double()
        if self.config.repetition_penalty != 1:
            for token in set(tokens):
                factor = self.config.repetition_penalty
                scores[token] = scores[token] / factor if scores[token] > 0 else scores[token] * factor
        scores[SUPPRESS] = -torch.inf
        if self.config.decoding != "sample":
            return scores
        scores = scores / self.config.temperature
        if self.config.top_k:
            scores[scores.argsort(descending=True)[self.config.top_k :]] = -torch.inf
        if self.config.top_p < 1:
            order = scores.argsort(descending=True)
            before = scores.softmax(-1)[order].cumsum(-1) - scores.softmax(-1)[order]
            scores[order[before >= self.config.top_p]] = -torch.inf
        return scores

    def choose(self, tokens: list[int], uniform: float) -> tuple[int, float]:
        """The next token, and how far the choice is from having been another."""
        scores = self.scores(tokens)
        if self.config.decoding != "sample":
            first, second = scores.topk(2).values.tolist()
            return int(scores.argmax()), first - second
        edges = scores.softmax(-1).cumsum(-1).numpy()
        return int((edges <= uniform).sum()), float(np.abs(edges - uniform).min())

    def block(self, context: list[int], uniforms: np.ndarray) -> tuple[list[int], float]:
        new: list[int] = []
        closest = np.inf
        for uniform in uniforms:
            token, margin = self.choose(context + new, float(uniform))
            new.append(token)
            closest = min(closest, margin)
        return new, closest


def check_against_oracle(
    model: Any, documents: list[TokenisedDocument], config: Regeneration, result: list[RegeneratedDocument]
) -> None:
    """Every block equals the oracle's, but for those whose choice was as good as tied: they are counted."""
    oracle = Oracle(model, config)
    tied = 0
    blocks = plan_blocks(documents, config)
    for block in blocks:
        document = documents[block.document]
        uniforms = block_uniforms(SEED_PARTS, document.id, block.start, steps=block.length)
        expected, margin = oracle.block(list(document.tokens[block.context_start : block.start]), uniforms)
        if margin > ROUNDING[config.decoding]:
            assert result[block.document].tokens[block.start : block.start + block.length] == expected, block
        else:
            tied += 1
    assert tied <= 0.05 * len(blocks)


DECODINGS = {
    "greedy": settings(),
    "greedy, penalty": settings(repetition_penalty=1.5),
    "sample": settings(decoding="sample", temperature=0.7),
    "sample, cut, penalty": settings(decoding="sample", temperature=1.3, top_k=20, top_p=0.9, repetition_penalty=1.2),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("decoding", DECODINGS)
@pytest.mark.parametrize("batch", [1, 64])
def test_each_block_is_what_a_full_forward_pass_a_token_gives(family: str, decoding: str, batch: int) -> None:
    model, documents = make_model(family), make_documents(RAGGED)
    result = rewrite(model, documents, DECODINGS[decoding], batch=batch)
    check_against_oracle(model, documents, DECODINGS[decoding], result)


def test_greedy_equals_generate_called_by_hand(llama: Any) -> None:
    documents, config = make_documents([30, 21]), settings()
    result = rewrite(llama, documents, config, batch=1)
    for block in plan_blocks(documents, config):
        prompt = torch.tensor([documents[block.document].tokens[block.context_start : block.start]])
        options = GenerationConfig(max_new_tokens=block.length, pad_token_id=PAD, suppress_tokens=SUPPRESS)
        output = llama.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=options)
        new = output[0, prompt.shape[1] :].tolist()
        assert result[block.document].tokens[block.start : block.start + block.length] == new


def test_beams_equal_generate_called_by_hand_and_are_at_least_as_probable_as_greedy(llama: Any) -> None:
    documents, config = make_documents([30, 21, 9]), settings(decoding="beam", beams=6)
    beams = rewrite(llama, documents, config, batch=1)
    greedy = rewrite(llama, documents, settings(), batch=1)
    oracle = Oracle(llama, config)

    def log_probability(context: list[int], new: list[int]) -> float:
        steps = [oracle.scores(context + new[:i]).log_softmax(-1)[token] for i, token in enumerate(new)]
        return float(sum(steps))

    gain = []
    for block in plan_blocks(documents, config):
        context = list(documents[block.document].tokens[block.context_start : block.start])
        prompt, span = torch.tensor([context]), slice(block.start, block.start + block.length)
        options = GenerationConfig(num_beams=6, max_new_tokens=block.length, pad_token_id=PAD, suppress_tokens=SUPPRESS)
        output = llama.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=options)
        assert beams[block.document].tokens[span] == output[0, len(context) :].tolist()
        by_beam = log_probability(context, beams[block.document].tokens[span])
        gain.append(by_beam - log_probability(context, greedy[block.document].tokens[span]))
    assert np.mean(gain) > 0


def test_beams_in_large_batches_rewrite_every_block_with_the_number_of_tokens_asked_for(llama: Any) -> None:
    documents = make_documents(RAGGED)
    seen: list[int] = []
    config = settings(decoding="beam", beams=3, repetition_penalty=3.0)
    result = rewrite(llama, documents, config, batch=12, on_progress=lambda done, _: seen.append(done))
    assert [len(d.tokens) for d in result] == RAGGED
    assert seen[0] == 4, "a block with three beams takes three of the batch's rows"
    assert not {token for d in result for token in d.tokens} & set(SUPPRESS)


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_runs_and_repeats_itself(family: str) -> None:
    model, documents = make_model(family).to(torch.bfloat16), make_documents(RAGGED)
    for config in (settings(), settings(decoding="sample", repetition_penalty=1.2)):
        result = rewrite(model, documents, config)
        assert [len(d.tokens) for d in result] == RAGGED
        assert not {token for d in result for token in d.tokens} & set(SUPPRESS)
        assert result == rewrite(model, documents, config)


# ---------------------------------------------------------------------------------------------- sampling


def test_samples_follow_the_exact_distribution_of_two_tokens() -> None:
    vocabulary, context, count = 8, [3, 4, 5, 6], 6000
    model = make_model(vocabulary=vocabulary, initializer_range=0.15)
    config = Regeneration(block_tokens=2, context_tokens=4, decoding="sample", temperature=0.7)
    documents = [TokenisedDocument(f"d{i}", i, [*context, 7, 7]) for i in range(count)]
    result = rewrite(model, documents, config, batch=500)
    seen = np.zeros((vocabulary, vocabulary))
    for document in result:
        seen[document.tokens[4], document.tokens[5]] += 1

    def expected(temperature: float) -> np.ndarray:
        oracle = Oracle(model, config.model_copy(update={"temperature": temperature}))
        first = oracle.scores(context).softmax(-1).numpy()
        return np.stack([first[t] * oracle.scores([*context, t]).softmax(-1).numpy() for t in range(vocabulary)])

    possible = expected(0.7) > 0
    assert possible.sum() == 25 and not seen[~possible].any()

    def p_value(temperature: float) -> float:
        probabilities = expected(temperature)[possible]
        return float(stats.chisquare(seen[possible], count * probabilities / probabilities.sum()).pvalue)

    assert p_value(0.7) > 1e-3
    assert p_value(0.9) < 1e-6, "the test could not have told another temperature"


def test_a_draw_never_takes_an_excluded_token_not_even_at_the_ends() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).repeat(5, 1)
    uniforms = torch.tensor([0.0, np.nextafter(0.5, 0), 0.5, 0.75, np.nextafter(1, 0)], dtype=torch.float64)
    assert draw(logits, uniforms).tolist() == [1, 1, 3, 3, 3]


def test_one_stream_a_block() -> None:
    long = block_uniforms(("run", 1), "d", 8, steps=32)
    assert np.array_equal(block_uniforms(("run", 1), "d", 8, steps=5), long[:5])
    others = [(("run", 2), "d", 8), (("run", 1), "e", 8), (("run", 1), "d", 40)]
    assert all(not np.isin(block_uniforms(*other, steps=32), long).any() for other in others)
    assert (
        stats.kstest(np.concatenate([block_uniforms(("run",), "d", i, steps=10) for i in range(400)]), "uniform")[1]
        > 1e-3
    )


def test_order_and_company_of_documents_do_not_matter(llama: Any) -> None:
    # blocks of one shape in batches of one shape: nothing is rounded differently
    documents = make_documents([27] * 6)
    config = settings(decoding="sample", context_tokens=3)
    together = {d.id: d.tokens for d in rewrite(llama, documents, config, batch=3)}
    backwards = {d.id: d.tokens for d in rewrite(llama, documents[::-1], config, batch=3)}
    alone = {d.id: rewrite(llama, [d], config, batch=3)[0].tokens for d in documents}
    assert together == backwards == alone
    other = rewrite(llama, documents, config, batch=3, seed_parts=("test", 1, "split"))
    assert all(d.tokens != together[d.id] for d in other)


# ---------------------------------------------------------------------------------------------- contexts


@pytest.mark.parametrize("across", [False, True])
def test_only_the_old_tokens_before_a_block_reach_it(llama: Any, across: bool) -> None:
    """Change one old token: the block it is in does not change, only those do whose context it stands in."""
    config = settings(across_documents=across)
    documents = make_documents([40, 40])
    before = [t for d in rewrite(llama, documents, config) for t in d.tokens]
    changed = 38
    tokens = list(documents[0].tokens)
    tokens[changed] = tokens[changed] + 1 if tokens[changed] + 1 < VOCABULARY else 3
    perturbed = [TokenisedDocument("d0", 0, tokens), documents[1]]
    after = [t for d in rewrite(llama, perturbed, config) for t in d.tokens]
    differing = {i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b}
    starts = [(b.start, b.context_start, b.length) for b in plan_blocks(documents, config)]
    reached = {
        i
        for start, context_start, length in starts
        if across and context_start <= changed < start
        for i in range(start, start + length)
    }
    assert differing <= reached
    assert bool(differing) == across, "inside documents nothing follows position 38; in a stream two blocks do"


def test_new_text_is_no_context(llama: Any) -> None:
    """Rewriting with the new text as context would give something else, and does not happen."""
    documents, config = make_documents([43]), settings()
    result = rewrite(llama, documents, config)[0].tokens
    oracle = Oracle(llama, config)
    running = list(documents[0].tokens)
    for block in plan_blocks(documents, config):
        context = running[block.context_start : block.start]
        running[block.start : block.start + block.length] = oracle.block(context, np.zeros(block.length))[0]
    assert running != result
    check_against_oracle(llama, documents, config, rewrite(llama, documents, config))


# --------------------------------------------------------------------------------- blocks, heads, lengths


def test_blocks_by_hand() -> None:
    documents = make_documents([2, 8, 9, 19])
    assert plan_blocks(documents, Regeneration(block_tokens=4, context_tokens=8)) == [
        Block(2, 8, 1, 0),
        Block(3, 8, 4, 0),
        Block(3, 12, 4, 4),
        Block(3, 16, 3, 8),
    ]
    short_head = Regeneration(block_tokens=4, context_tokens=8, head_tokens=3)
    assert plan_blocks(documents[1:2], short_head) == [Block(0, 3, 4, 0), Block(0, 7, 1, 0)]
    long_head = Regeneration(block_tokens=4, context_tokens=2, head_tokens=5)
    assert plan_blocks(documents[1:2], long_head) == [Block(0, 5, 3, 3)]
    across = Regeneration(block_tokens=16, context_tokens=8, across_documents=True)
    assert plan_blocks(documents, across) == [Block(0, 8, 16, 0), Block(0, 24, 14, 16)]


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize(("block", "context", "head"), [(1, 1, 1), (4, 8, None), (5, 3, 7), (64, 2, 1)])
def test_blocks_and_heads_cover_every_token_once(block: int, context: int, head: int | None, across: bool) -> None:
    documents = make_documents(RAGGED)
    config = Regeneration(block_tokens=block, context_tokens=context, head_tokens=head, across_documents=across)
    lengths = [sum(RAGGED)] if across else RAGGED
    covered = [np.zeros(length, dtype=int) for length in lengths]
    for one in covered:
        one[: context if head is None else head] += 1
    for b in plan_blocks(documents, config):
        assert 0 <= b.context_start < b.start and b.start - b.context_start <= context and 1 <= b.length <= block
        covered[b.document][b.start : b.start + b.length] += 1
    assert all((one == 1).all() for one in covered)


def test_batches_hold_every_block_once_and_do_not_depend_on_order() -> None:
    blocks = plan_blocks(make_documents(RAGGED), settings())
    batches = plan_batches(blocks, size=5)
    assert sorted((b for batch in batches for b in batch), key=lambda b: (b.document, b.start)) == blocks
    assert plan_batches(blocks[::-1], size=5) == batches
    assert [len(batch) for batch in batches[:-1]] == [5] * (len(batches) - 1)
    assert all(batch[-1].length == max(b.length for b in batch) for batch in batches)


@pytest.mark.parametrize("across", [False, True])
def test_copied_heads_preserve_lengths_and_dropped_ones_are_missing(llama: Any, across: bool) -> None:
    documents = make_documents(RAGGED)
    copied = rewrite(llama, documents, settings(across_documents=across))
    assert [(d.id, d.position, len(d.tokens)) for d in copied] == [(d.id, d.position, len(d.tokens)) for d in documents]
    dropped = rewrite(llama, documents, settings(across_documents=across, head="drop"))
    old = [t for d in documents for t in d.tokens]
    if across:
        stream = [t for d in copied for t in d.tokens]
        assert stream[:3] == old[:3]
        assert [t for d in dropped for t in d.tokens] == stream[3:]
        # the head of three takes the documents of 0 and 1 tokens whole, and two tokens of the third
        assert [len(d.tokens) for d in dropped] == [0, 0, 1, *RAGGED[3:]]
    else:
        for document, whole, cut in zip(documents, copied, dropped, strict=True):
            assert whole.tokens[:3] == list(document.tokens[:3])
            assert cut.tokens == whole.tokens[3:]


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("head", ["copy", "drop"])
def test_kept_counts_the_tokens_that_are_the_same_in_the_same_place(llama: Any, across: bool, head: str) -> None:
    documents = make_documents(RAGGED)
    result = rewrite(llama, documents, settings(across_documents=across, head=head, decoding="sample"))
    for document, new in zip(documents, result, strict=True):
        old = document.tokens[len(document.tokens) - len(new.tokens) :]
        assert new.same == [a == b for a, b in zip(old, new.tokens, strict=True)]
        assert new.kept == sum(new.same)
    assert sum(d.kept for d in result) < sum(len(d.tokens) for d in result) / 2


def test_a_stream_is_rewritten_as_the_one_document_it_is(llama: Any) -> None:
    documents = make_documents(RAGGED)
    whole = [TokenisedDocument("stream", 0, [t for d in documents for t in d.tokens])]
    for decoding in ("greedy", "sample"):
        across = rewrite(llama, documents, settings(across_documents=True, decoding=decoding))
        assert [t for d in across for t in d.tokens] == rewrite(llama, whole, settings(decoding=decoding))[0].tokens


def test_documents_shorter_than_their_head_are_copied_without_a_model() -> None:
    documents = make_documents([0, 1, 8])
    untouched = torch.nn.Module()  # would fail if it were called
    result = rewrite(untouched, documents, Regeneration(block_tokens=4, context_tokens=8))
    assert [(d.tokens, d.kept) for d in result] == [(list(d.tokens), len(d.tokens)) for d in documents]


def test_no_documents_and_two_of_one_name_are_refused(llama: Any) -> None:
    with pytest.raises(DataError, match="nothing to rewrite"):
        rewrite(llama, [], settings())
    with pytest.raises(DataError, match=r"'d0'.*twice"):
        rewrite(llama, make_documents([9, 9])[:1] * 2, settings())


# ---------------------------------------------------------------------------------- tokens that are chosen


def test_suppressed_tokens_and_padding_are_never_generated(llama: Any) -> None:
    documents = make_documents([43] * 4)
    liked = rewrite(llama, documents, settings())
    favourites = np.bincount([t for d in liked for t in d.tokens[3:]]).argsort()[::-1][:10].tolist()
    result = rewrite(llama, documents, settings(), suppress=favourites[1:], pad_id=favourites[0])
    assert not {t for d in result for t in d.tokens[3:]} & set(favourites)
    assert [len(d.tokens) for d in result] == [43] * 4


def test_the_repetition_penalty_makes_text_repeat_itself_less(llama: Any) -> None:
    documents, config = make_documents([60] * 4), settings(block_tokens=16)
    plain = [d.tokens[3:] for d in rewrite(llama, documents, config)]
    penal = rewrite(llama, documents, config.model_copy(update={"repetition_penalty": 3.0}))
    assert distinct_n((d.tokens[3:] for d in penal), n=1) > distinct_n(plain, n=1)


def test_the_models_own_generation_defaults_do_not_count_and_are_left_in_place() -> None:
    model, documents = make_model(), make_documents([43])
    expected = rewrite(model, documents, settings())
    frequent = int(np.bincount(expected[0].tokens[3:]).argmax())
    own = GenerationConfig(
        do_sample=True, temperature=2.0, eos_token_id=frequent, num_beams=2, repetition_penalty=5.0, min_p=0.5
    )
    model.generation_config = own
    assert rewrite(model, documents, settings()) == expected
    assert model.generation_config is own


def test_a_diverged_model_is_an_error_and_not_text() -> None:
    model = make_model()
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.nan)
    for decoding in ("greedy", "sample"):
        with pytest.raises(StageFailed, match="not finite"):
            rewrite(model, make_documents([20]), settings(decoding=decoding))


# ------------------------------------------------------------------------------------- leaving no trace


def test_modes_come_back_and_the_model_still_trains() -> None:
    model = make_model(attention_dropout=0.5)
    expected = rewrite(model, make_documents(RAGGED), settings())
    model.train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    assert rewrite(model, make_documents(RAGGED), settings()) == expected, "dropout was at work"
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(RuntimeError, match="inside"), inference(model):
        raise RuntimeError("inside")
    assert [module.training for module in model.modules()] == modes
    ids = torch.tensor([[3, 4, 5, 6]])
    model(input_ids=ids, labels=ids).loss.backward()
    assert model.model.embed_tokens.weight.grad is not None


def test_an_adapter_is_used() -> None:
    from peft import LoraConfig, get_peft_model

    documents = make_documents([43])
    plain = rewrite(make_model(), documents, settings())
    wrapped = get_peft_model(make_model(), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")).eval()
    assert rewrite(wrapped, documents, settings()) == plain, "a new adapter changes nothing"
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if "lora_B" in name:
                weight.normal_()
    assert rewrite(wrapped, documents, settings()) != plain


def test_global_random_state_is_neither_read_nor_moved(llama: Any) -> None:
    documents, config = make_documents([43]), settings(decoding="sample")
    torch.manual_seed(1)
    first, state = rewrite(llama, documents, config), torch.get_rng_state()
    torch.manual_seed(2)
    assert rewrite(llama, documents, config) == first
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


def test_progress_counts_blocks_up_to_all_of_them(llama: Any) -> None:
    calls: list[tuple[int, int]] = []
    documents = make_documents(RAGGED)
    rewrite(llama, documents, settings(), batch=7, on_progress=lambda done, of: calls.append((done, of)))
    blocks = len(plan_blocks(documents, settings()))
    assert calls == [(min(i, blocks), blocks) for i in range(7, blocks + 7, 7)]


def test_planning_needs_no_torch() -> None:
    modules = ", ".join(
        f"fortifai_core.{name}" for name in ("language.rewriting.blocks", "measures.retention", "measures.text_counts")
    )
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
