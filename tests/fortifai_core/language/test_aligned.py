"""The aligned engine: the reference engine's tokens, whatever the model, the decoding, the contexts and the batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import stats
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from fortifai_core.config.experiment import ExperimentConfig
from fortifai_core.config.stages import Regeneration
from fortifai_core.errors import ConfigError, DataError, StageFailed
from fortifai_core.language.decoding import warpers
from fortifai_core.language.rewriting.attention import Slots
from fortifai_core.language.rewriting.blocks import (
    Rewriting,
    Statistics,
    TokenisedDocument,
    block_uniforms,
    plan_blocks,
)
from fortifai_core.language.rewriting.chunks import plan_chunk_batches, plan_chunks
from fortifai_core.language.rewriting.regenerate import RegeneratedDocument, regenerate
from helpers import ROUNDING

VOCABULARY, PAD = 97, 0
SUPPRESS = [0, 1, 2]
SEED_PARTS = ("test", 0, "split")
FAMILIES = ["llama", "gemma3", "qwen3", "mistral"]
# ragged: nothing at all, shorter than the head, exactly it, shorter than a block, and tails of every length
RAGGED = [0, 1, 3, 4, 5, 9, 12, 23, 31, 42]


def make_model(family: str = "llama", *, vocabulary: int = VOCABULARY, **options: Any) -> Any:
    """A tiny random model whose weights are wide enough for its predictions to be distinct."""
    shape: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
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
    if family == "mistral":
        return MistralForCausalLM(MistralConfig(sliding_window=7, **shape)).eval()
    # a window shorter than context and block, so that local attention does cut something off
    local = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}
    return Gemma3ForCausalLM(Gemma3TextConfig(head_dim=8, query_pre_attn_scalar=8, **local, **shape)).eval()


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {family: make_model(family) for family in FAMILIES}


def settings(engine: str = "aligned", **options: Any) -> Regeneration:
    shape = {"block_tokens": 4, "context_tokens": 8, "head_tokens": 3, "engine": engine}
    if options.get("context") == "document":
        shape["chunk_tokens"] = 25  # some documents are longer
    return Regeneration(**{**shape, **options})


def rewrite(
    model: Any,
    documents: Sequence[TokenisedDocument],
    config: Regeneration,
    statistics: Statistics | None = None,
    **options: Any,
) -> list[RegeneratedDocument]:
    given: dict[str, Any] = {"seed_parts": SEED_PARTS, "suppress": SUPPRESS, "pad_id": PAD, "batch_blocks": 64}
    return regenerate(model, documents, Rewriting(config, **{**given, **options}), statistics=statistics)


def random_documents(lengths: Sequence[int], *, seed: int = 0) -> list[TokenisedDocument]:
    random = np.random.default_rng(seed)
    return [
        TokenisedDocument(f"d{i}", i, random.integers(3, VOCABULARY, size).tolist()) for i, size in enumerate(lengths)
    ]


def agreeable_documents(model: Any, config: Regeneration, *, share: float) -> list[TokenisedDocument]:
    """Text that the model would mostly write itself: drafts are accepted for some tokens, whole blocks and not at all.

    Token by token the model's own choice after the old text before it (its uniform's, when sampling), or with
    probability 1 − `share` another one.
    """
    random = np.random.default_rng(1)
    result = []
    for document in random_documents(RAGGED):
        tokens = list(document.tokens)
        for block in plan_blocks([TokenisedDocument("", 0, tokens)], config):
            uniforms = block_uniforms(SEED_PARTS, document.id, block.start, steps=block.length)
            for place in range(block.start, block.start + block.length):
                if random.random() < share:
                    scores = processed(model, config, tokens[block.context_start : place])
                    tokens[place] = pick(scores, config, float(uniforms[place - block.start]))[0]
        result.append(TokenisedDocument(document.id, document.position, tokens))
    return result


def processed(model: Any, config: Regeneration, tokens: list[int]) -> torch.Tensor:
    """float64 [vocabulary]: scores of what follows, from one plain forward pass."""
    with torch.no_grad():
        scores = model(input_ids=torch.tensor([tokens])).logits[0, -1].double()
    for token in set(tokens):
        scores[token] *= config.repetition_penalty ** (-1 if scores[token] > 0 else 1)
    scores[SUPPRESS] = -torch.inf
    return warpers(config)(None, scores[None])[0]


def pick(scores: torch.Tensor, config: Regeneration, uniform: float) -> tuple[int, float]:
    """The token that is chosen, and how far the choice is from having been another."""
    if config.decoding != "sample":
        first, second = scores.topk(2).values.tolist()
        return int(scores.argmax()), first - second
    edges = scores.softmax(-1).cumsum(-1).numpy()
    return int((edges <= uniform).sum()), float(np.abs(edges - uniform).min())


def check_equal(
    model: Any, documents: list[TokenisedDocument], config: Regeneration, tied_share: float = 0.03, **options: Any
) -> Statistics:
    """Both engines give the same blocks, or differ first where the choice was as good as tied: these are counted."""
    statistics = Statistics()
    result = rewrite(model, documents, config, statistics=statistics, **options)
    reference = rewrite(model, documents, config.model_copy(update={"engine": "reference"}))
    tied = 0
    blocks = plan_blocks(documents, config)
    for block in blocks:
        span = slice(block.start, block.start + block.length)
        new, expected = result[block.document].tokens[span], reference[block.document].tokens[span]
        if new == expected:
            continue
        tied += 1
        differing = next(i for i, (a, b) in enumerate(zip(new, expected, strict=True)) if a != b)
        document = documents[block.document]
        before = list(document.tokens[block.context_start : block.start]) + expected[:differing]
        uniforms = block_uniforms(SEED_PARTS, document.id, block.start, steps=block.length)
        margin = pick(processed(model, config, before), config, float(uniforms[differing]))[1]
        assert margin < ROUNDING[config.decoding], (block, differing, new, expected)
    assert tied <= tied_share * len(blocks)
    for one, other in zip(result, reference, strict=True):
        assert (one.id, one.position, len(one.tokens)) == (other.id, other.position, len(other.tokens))
    assert statistics.rewritten == sum(block.length for block in blocks)
    assert statistics.accepted + statistics.decoded <= statistics.rewritten
    return statistics


DECODINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "greedy, penalty": {"repetition_penalty": 1.5},
    "sample": {"decoding": "sample", "temperature": 0.7},
    "sample, all": {"decoding": "sample", "temperature": 1.3, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.2},
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("decoding", DECODINGS)
@pytest.mark.parametrize("context", ["document", "cut"])
def test_both_engines_write_the_same(models: dict[str, Any], family: str, decoding: str, context: str) -> None:
    config = settings(context=context, **DECODINGS[decoding])
    documents = agreeable_documents(models[family], config, share=0.8)
    statistics = check_equal(models[family], documents, config)
    share = statistics.accepted / statistics.rewritten
    assert 0.4 < share < 0.95, "drafts are accepted, and not all of them"
    none = check_equal(models[family], random_documents(RAGGED), config)
    assert none.accepted / none.rewritten < 0.1


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("head", ["copy", "drop"])
@pytest.mark.parametrize("budget", [1, 90, 10**6])
def test_neither_batches_nor_heads_nor_streams_make_a_difference(
    models: dict[str, Any], across: bool, head: str, budget: int
) -> None:
    """From one chunk at a time to all at once; contexts may run across documents."""
    config = settings(context="document", decoding="sample", across_documents=across, head=head)
    documents = random_documents(RAGGED)
    result = rewrite(models["llama"], documents, config, budget=budget)
    expected = rewrite(models["llama"], documents, config.model_copy(update={"engine": "reference"}))
    assert [d.tokens for d in result] == [d.tokens for d in expected]  # no choice is tied with this seed


@pytest.mark.parametrize("block", [1, 64])
@pytest.mark.parametrize("context", ["document", "cut"])
def test_blocks_of_one_token_and_blocks_longer_than_their_documents(
    models: dict[str, Any], block: int, context: str
) -> None:
    config = settings(block_tokens=block, context=context, chunk_tokens=None, decoding="sample", temperature=0.7)
    statistics = check_equal(models["llama"], agreeable_documents(models["llama"], config, share=0.8), config)
    assert statistics.accepted > 0
    assert block > 1 or statistics.steps == 0, "the first pass gives a block's first token, whatever it is"


def test_text_that_the_model_would_write_itself_needs_no_decoding(models: dict[str, Any]) -> None:
    for decoding in ({}, {"decoding": "sample", "temperature": 0.7}):
        config = settings(context="document", **decoding)
        documents = agreeable_documents(models["llama"], config, share=1)
        statistics = Statistics()
        result = rewrite(models["llama"], documents, config, statistics=statistics)
        assert [d.tokens for d in result] == [d.tokens for d in documents]
        assert statistics.accepted == statistics.rewritten > 0
        assert (statistics.decoded, statistics.steps) == (0, 0)
        assert sum(d.accepted or 0 for d in result) == statistics.accepted


def test_each_document_is_read_once_in_document_contexts(models: dict[str, Any]) -> None:
    documents = random_documents([25] * 8)
    counts = {}
    for context in ("document", "cut"):
        statistics = Statistics()
        rewrite(models["llama"], documents, settings(context=context), statistics=statistics)
        counts[context] = statistics.read
    assert counts["document"] == 8 * 24, "all but the last token, which is nobody's context"
    assert counts["cut"] > 2 * counts["document"]


# ---------------------------------------------------------------------------------------------- sampling


def test_samples_follow_the_exact_distribution_whatever_the_draft_says() -> None:
    """Three tokens are drawn, so that some come from the first pass and some from decoding; drafts differ."""
    vocabulary, context, count = 6, [3, 4, 5, 3], 6000
    model = make_model(vocabulary=vocabulary, initializer_range=0.15)
    config = Regeneration(block_tokens=3, context_tokens=4, decoding="sample", temperature=0.7, engine="aligned")
    drafts = [[3, 3, 3], [5, 4, 3], [4, 4, 5]]
    documents = [TokenisedDocument(f"d{i}", i, context + drafts[i % 3]) for i in range(count)]
    statistics = Statistics()
    result = rewrite(model, documents, config, statistics=statistics)
    assert 0.1 < statistics.accepted / statistics.rewritten < 0.9
    seen = np.zeros((3, 3, 3))
    for document in result:
        seen[tuple(token - 3 for token in document.tokens[4:])] += 1

    def p_value(temperature: float) -> float:
        expected = np.zeros_like(seen)
        other = config.model_copy(update={"temperature": temperature})
        for first in range(3):
            for second in range(3):
                steps = [context, [*context, first + 3], [*context, first + 3, second + 3]]
                odds = [processed(model, other, tokens).softmax(-1).numpy()[3:] for tokens in steps]
                expected[first, second] = odds[0][first] * odds[1][second] * odds[2]
        assert abs(expected.sum() - 1) < 1e-6
        return float(stats.chisquare(seen.ravel(), count * expected.ravel() / expected.sum()).pvalue)

    assert p_value(0.7) > 1e-3
    assert p_value(0.9) < 1e-6, "the test could not have told another temperature"


# ------------------------------------------------------------------------------------ chunks and memory


@pytest.mark.parametrize(("context", "chunk"), [("document", 25), ("document", 13), ("document", None), ("cut", None)])
@pytest.mark.parametrize("head", [None, 1, 30])
def test_chunks_hold_every_block_once_with_the_context_it_was_promised(
    context: str, chunk: int | None, head: int | None
) -> None:
    config = settings(context=context, chunk_tokens=chunk, head_tokens=head)
    documents = random_documents([*RAGGED, 700])
    blocks = plan_blocks(documents, config)
    chunks = plan_chunks(blocks)
    held = sorted((b for c in chunks for b in c.blocks), key=lambda b: (b.document, b.start))
    assert held == blocks
    assert [c.text for c in chunks] == sorted((c.text for c in chunks), reverse=True)
    for one in chunks:
        assert one.text < config.longest_input
        for block in one.blocks:
            assert block.document == one.document and block.context_start == one.start
            assert block.start - one.start >= min(8, block.start)
            if context == "document" and block.start + block.length <= config.longest_input:
                assert one.start == 0, "all of the document before it"
            if context == "cut":
                assert block.start - one.start <= 8


@pytest.mark.parametrize("budget", [60, 200, 1000])
def test_the_store_of_keys_and_values_stays_within_the_budget(
    models: dict[str, Any], budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(context="document")
    documents = random_documents(RAGGED * 3)
    sizes: list[int] = []
    update = Slots.update

    def measured(self: Slots, *args: Any, **kwargs: Any) -> Any:
        result = update(self, *args, **kwargs)
        sizes.append(self.bytes)
        return result

    monkeypatch.setattr(Slots, "update", measured)
    statistics = Statistics()
    rewrite(models["llama"], documents, config, budget=budget, statistics=statistics)
    a_position = 2 * 2 * 2 * 8 * 4  # layers, keys and values, heads that have them, size of a head, bytes of a number
    assert 0.5 * budget < statistics.positions <= budget
    assert max(sizes) == statistics.positions * a_position
    batches = list(plan_chunk_batches(plan_chunks(plan_blocks(documents, config)), budget=budget))
    assert len(batches) > 1 or budget == 1000
    for batch in batches:
        assert len(batch) * (max(c.text for c in batch) + max(c.slots for c in batch)) <= budget


def test_a_budget_below_one_chunk_still_rewrites_chunk_by_chunk(models: dict[str, Any]) -> None:
    statistics = Statistics()
    config = settings(context="document")
    rewrite(models["llama"], random_documents(RAGGED), config, budget=1, statistics=statistics)
    assert statistics.positions <= 2 * config.longest_input


def test_a_larger_corpus_takes_no_more_memory(models: dict[str, Any]) -> None:
    config = settings(context="document")
    positions = {}
    for copies in (3, 30):
        statistics = Statistics()
        rewrite(models["llama"], random_documents(RAGGED * copies), config, budget=200, statistics=statistics)
        positions[copies] = statistics.positions
    assert 100 < positions[3] <= 200 and 100 < positions[30] <= 200


@pytest.mark.parametrize("length", [4, 6, 7, 8])
@pytest.mark.parametrize("context", ["document", "cut"])
@pytest.mark.parametrize("decoding", ["greedy", "sample"])
def test_a_batch_of_one(models: dict[str, Any], length: int, context: str, decoding: str) -> None:
    """One document of one block (of one token, shorter than a block, a whole one) or of two, one of them at a time."""
    config = settings(context=context, **DECODINGS[decoding])
    documents = random_documents([length])
    result = rewrite(models["llama"], documents, config, budget=1)
    reference = config.model_copy(update={"engine": "reference"})
    assert [d.tokens for d in result] == [
        d.tokens for d in rewrite(models["llama"], documents, reference, batch_blocks=1)
    ]
    assert result[0].tokens[:3] == list(documents[0].tokens[:3]) and len(result[0].tokens) == length


# ----------------------------------------------------------------------------------------------- refusals


def test_nothing_to_rewrite_is_refused_and_short_documents_are_copied(models: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="nothing to rewrite"):
        rewrite(models["llama"], [], settings())
    documents = random_documents([0, 1, 3])
    untouched = torch.nn.Module()  # would fail if it were called
    result = rewrite(untouched, documents, settings(context="document"))
    assert [(d.tokens, d.accepted) for d in result] == [(list(d.tokens), 0) for d in documents]


def test_a_diverged_model_is_an_error_and_its_attention_comes_back() -> None:
    for options in ({}, {"decoding": "sample"}):
        model = make_model()
        with torch.no_grad():
            model.model.norm.weight.fill_(torch.nan)
        own = model.config._attn_implementation
        with pytest.raises(StageFailed, match="not finite"):
            rewrite(model, random_documents([20]), settings(**options))
        assert model.config._attn_implementation == own


def test_a_model_with_too_few_positions_is_refused_by_field_value_and_remedy(models: dict[str, Any]) -> None:
    config = settings(context="document", chunk_tokens=600)
    with pytest.raises(ConfigError, match=r"regeneration\.chunk_tokens = 600: .*600 tokens.*512 positions"):
        rewrite(models["llama"], random_documents([20]), config)


def test_attention_that_is_not_plain_is_refused_with_the_remedy() -> None:
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    model = Gemma2ForCausalLM(Gemma2Config(vocab_size=97, head_dim=8, num_key_value_heads=2, **shape)).eval()
    with pytest.raises(ConfigError, match=r"regeneration\.engine = 'aligned': .*softcap; use the engine `reference`"):
        rewrite(model, random_documents([20]), settings())


def test_logits_that_are_more_than_the_head_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    forward = model.forward

    def scaled(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output.logits = output.logits * 2
        return output

    monkeypatch.setattr(model, "forward", scaled)
    with pytest.raises(ConfigError, match="does more than its head"):
        rewrite(model, random_documents([20]), settings())


def test_beams_are_decoded_by_the_reference_engine_and_this_is_said(models: dict[str, Any]) -> None:
    config = settings(decoding="beam", beams=3)
    with pytest.warns(UserWarning, match=r"regeneration\.engine = 'aligned': beams are decoded by the reference"):
        ExperimentConfig.model_validate({"regeneration": {"engine": "aligned", "decoding": "beam"}})
    documents = random_documents([20, 11])
    result = rewrite(models["llama"], documents, config)
    assert result == rewrite(models["llama"], documents, settings("reference", decoding="beam", beams=3))
    assert [d.accepted for d in result] == [None, None]


def test_chunks_too_small_for_a_block_or_too_large_for_the_model_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"chunk_tokens = 11: .*context_tokens \+ block_tokens = 12"):
        settings(context="document", chunk_tokens=11)
    shape = {"context": "document", "context_tokens": 48, "block_tokens": 16, "chunk_tokens": 2000}
    with pytest.raises(ValidationError, match=r"model\.max_positions.*2000 tokens"):
        ExperimentConfig.model_validate({"regeneration": shape})


# ------------------------------------------------------------------------------------- leaving no trace


def test_modes_attention_and_adapters_are_as_they_were(models: dict[str, Any]) -> None:
    from peft import LoraConfig, get_peft_model

    documents, config = random_documents(RAGGED), settings(context="document")
    plain = rewrite(models["llama"], documents, config)
    model = make_model(attention_dropout=0.5)
    model.train()
    model.set_attn_implementation("eager")
    assert [d.tokens for d in rewrite(model, documents, config)] == [d.tokens for d in plain], "dropout was at work"
    assert model.training and model.config._attn_implementation == "eager"
    wrapped = get_peft_model(make_model(), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")).eval()
    assert rewrite(wrapped, documents, config) == plain, "a new adapter changes nothing"
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if "lora_B" in name:
                weight.normal_()
    changed = rewrite(wrapped, documents, config)
    assert changed != plain
    expected = rewrite(wrapped, documents, config.model_copy(update={"engine": "reference"}))
    assert [d.tokens for d in changed] == [d.tokens for d in expected]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("decoding", ["greedy", "sample"])
def test_bfloat16_repeats_itself_and_differs_from_the_reference_only_where_rounding_decides(
    family: str, decoding: str
) -> None:
    model, documents = make_model(family).to(torch.bfloat16), random_documents(RAGGED)
    config = settings(context="document", **DECODINGS[decoding])
    result = rewrite(model, documents, config)
    assert result == rewrite(model, documents, config)
    reference = rewrite(model, documents, config.model_copy(update={"engine": "reference"}))
    blocks = plan_blocks(documents, config)
    equal = 0
    for block in blocks:
        span = slice(block.start, block.start + block.length)
        new, expected = result[block.document].tokens[span], reference[block.document].tokens[span]
        equal += new == expected
        if new != expected:
            differing = next(i for i, (a, b) in enumerate(zip(new, expected, strict=True)) if a != b)
            before = list(documents[block.document].tokens[block.context_start : block.start]) + expected[:differing]
            scores = processed(model, config, before)
            if decoding == "greedy":
                # bfloat16 has 8 bits: a few roundings of the largest logit
                assert scores.max() - scores[new[differing]] < 0.04 * scores[scores.isfinite()].abs().max()
            else:
                uniforms = block_uniforms(SEED_PARTS, documents[block.document].id, block.start, steps=block.length)
                edges = np.concatenate([[0], scores.softmax(-1).cumsum(-1).numpy()])
                low, high = edges[new[differing]], edges[new[differing] + 1]
                assert low - 0.04 < uniforms[differing] < high + 0.04
    assert equal > 0.7 * len(blocks)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("decoding", ["greedy", "sample, all"])
def test_both_engines_write_the_same_on_cuda(family: str, decoding: str) -> None:
    model = make_model(family).cuda()
    config = settings(context="document", **DECODINGS[decoding])
    documents = random_documents(RAGGED * 2)
    result = rewrite(model, documents, config)
    reference = rewrite(model, documents, config.model_copy(update={"engine": "reference"}))
    equal = [one.tokens == other.tokens for one, other in zip(result, reference, strict=True)]
    assert np.mean(equal) > 0.9
