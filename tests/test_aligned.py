"""The aligned engine: the reference engine's tokens, whatever the model, the decoding, the contexts and the batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from fortifai_core.config import Regeneration
from fortifai_core.decoding import warpers
from fortifai_core.regeneration import (
    RegeneratedDocument,
    Statistics,
    TokenisedDocument,
    block_uniforms,
    plan_blocks,
    regenerate,
)

VOCABULARY, PAD = 97, 0
SUPPRESS = [0, 1, 2]
SEED_PARTS = ("test", 0, "split")
# two best logits (greedy), or a draw and an edge of its token's interval (sampling), that are closer than this in
# float32 may change places with another shape of batch
ROUNDING = {"greedy": 1e-4, "sample": 1e-5}
FAMILIES = ["llama", "gemma3", "qwen3", "mistral"]
# ragged: nothing at all, shorter than the head, exactly it, shorter than a block, and tails of every length
RAGGED = [0, 1, 3, 4, 5, 8, 9, 12, 17, 23, 30, 31, 40, 41, 42, 43]


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
    model: Any, documents: Sequence[TokenisedDocument], config: Regeneration, **options: Any
) -> list[RegeneratedDocument]:
    given: dict[str, Any] = {"seed_parts": SEED_PARTS, "suppress": SUPPRESS, "pad_id": PAD, "batch_blocks": 64}
    return regenerate(model, documents, config, **{**given, **options})


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
