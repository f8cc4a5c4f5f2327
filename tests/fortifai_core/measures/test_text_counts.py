"""Drift: KL against scipy, perplexity against a loop and against the uniform model, distinct n-grams by hand."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import LlamaConfig, LlamaForCausalLM

from fortifai_core.errors import DataError, StageFailed
from fortifai_core.measures.text_counts import UnigramCounts, distinct_n, perplexity

VOCABULARY = 50


def make_text(sizes: list[int], *, seed: int, skew: float = 1.0) -> list[list[int]]:
    random = np.random.default_rng(seed)
    weights = np.arange(1, VOCABULARY + 1) ** -skew
    return [random.choice(VOCABULARY, size, p=weights / weights.sum()).tolist() for size in sizes]


def frequencies(text: list[list[int]]) -> np.ndarray:
    counts = np.bincount(np.concatenate([np.array(t, dtype=int) for t in text]), minlength=VOCABULARY)
    return counts / counts.sum()


# ------------------------------------------------------------------------------------------- unigram KL


def counted(documents: Iterable[Sequence[int]], vocabulary: int = VOCABULARY) -> UnigramCounts:
    counts = UnigramCounts(vocabulary)
    for tokens in documents:
        counts.add(tokens)
    return counts


def test_kl_is_scipys_relative_entropy_of_synthetic_from_real() -> None:
    synthetic, real = make_text([3000, 0, 1], seed=0, skew=1.5), make_text([9000, 400], seed=1, skew=0.5)
    p, q = frequencies(synthetic), frequencies(real)
    assert (q > 0).all(), "otherwise scipy says infinity, and we the floor"
    forwards = counted(synthetic).kl_from(counted(real))
    assert forwards == pytest.approx(stats.entropy(p, q), rel=1e-12)
    assert forwards != pytest.approx(stats.entropy(q, p), rel=0.01), "the direction could not be told"


def test_kl_of_equal_frequencies_is_zero_and_does_not_see_order_or_size() -> None:
    text = make_text([500, 20], seed=0)
    assert counted(text).kl_from(counted(text)) == 0
    assert counted([t[::-1] for t in text] * 3).kl_from(counted(text)) == pytest.approx(0, abs=1e-12)


def test_a_token_the_real_text_lacks_costs_the_floor() -> None:
    # half of the synthetic text is new
    value = counted([[1, 2]], 4).kl_from(counted([[1, 1]], 4))
    assert value == pytest.approx(0.5 * math.log(0.5) + 0.5 * math.log(0.5 / 1e-10))
    assert counted([[1, 2]], 4).kl_from(counted([[1, 1]], 4), floor=0.5) == pytest.approx(0.5 * math.log(0.5))
    # what was forgotten costs only through the rest
    assert counted([[1]], 4).kl_from(counted([[1, 2]], 4)) == pytest.approx(math.log(2))


def test_counts_add_up_and_strange_tokens_or_no_text_are_refused() -> None:
    counts = UnigramCounts(5)
    for tokens in ([1, 1, 4], [], np.array([0])):
        counts.add(tokens)
    assert counts.counts.tolist() == [1, 2, 0, 0, 1] and counts.total == 4
    for strange in (5, -1):
        with pytest.raises(DataError, match=str(strange)):
            counts.add([1, strange])
    assert counts.total == 4
    with pytest.raises(DataError, match="synthetic tokens"):
        UnigramCounts(5).kl_from(counts)
    with pytest.raises(DataError, match="real tokens"):
        counts.kl_from(UnigramCounts(5))
    with pytest.raises(DataError, match="vocabulary"):
        counts.kl_from(UnigramCounts(6))


# ------------------------------------------------------------------------------------------- perplexity


class Fixed(torch.nn.Module):
    """A model that predicts the same distribution everywhere."""

    def __init__(self, probabilities: torch.Tensor) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(probabilities.log())

    def forward(self, input_ids: torch.Tensor) -> Any:
        return SimpleNamespace(logits=self.logits.expand(*input_ids.shape, -1))


def test_a_uniform_model_is_as_perplexed_as_its_vocabulary_is_large() -> None:
    model = Fixed(torch.full((VOCABULARY,), 1 / VOCABULARY))
    value, tokens = perplexity(model, make_text([100, 7, 33], seed=0), batch=4, sequence_length=16)
    assert value == pytest.approx(VOCABULARY, rel=1e-6)
    # seven windows of 100 tokens, one of 7, three of 33; the first token of each is given, and one has no other
    assert tokens == (100 - 7) + (7 - 1) + (33 - 3)


def test_a_model_that_knows_the_frequencies_has_the_perplexity_of_their_cross_entropy() -> None:
    text = make_text([4001], seed=0)
    probabilities = torch.as_tensor(frequencies(text), dtype=torch.float32)
    value, _ = perplexity(Fixed(probabilities), text, batch=4, sequence_length=4001)
    expected = -np.log(probabilities.numpy()[text[0][1:]].astype(float)).mean()
    assert math.log(value) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_perplexity_equals_the_models_own_loss(batch: int) -> None:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, initializer_range=0.3, **shape)).eval()
    text = make_text([5, 80, 2, 33, 1, 0, 16], seed=3)
    total, count = 0.0, 0
    for tokens in text:
        for start in range(0, len(tokens), 16):
            window = torch.tensor([tokens[start : start + 16]])
            if window.shape[1] > 1:
                with torch.inference_mode():
                    total += float(model(input_ids=window, labels=window).loss) * (window.shape[1] - 1)
                count += window.shape[1] - 1
    model.train()
    value, tokens = perplexity(model, text, batch=batch, sequence_length=16)
    assert tokens == count and math.log(value) == pytest.approx(total / count, rel=1e-6)
    assert model.training


def test_sequences_are_read_as_they_are_scored() -> None:
    model = Fixed(torch.full((VOCABULARY,), 1 / VOCABULARY))
    scored: list[int] = []
    model.register_forward_hook(lambda _module, inputs, kwargs, _output: scored.append(1), with_kwargs=True)
    scored_before_the_end = 0

    def text() -> Iterator[list[int]]:
        nonlocal scored_before_the_end
        for tokens in make_text([10] * 500, seed=0):
            scored_before_the_end = len(scored)
            yield tokens

    _, tokens = perplexity(model, text(), batch=2, sequence_length=16)
    assert tokens == 500 * 9
    assert scored_before_the_end > 200


def test_no_text_and_a_diverged_model_are_errors_and_a_hopeless_one_is_infinitely_perplexed() -> None:
    uniform = torch.full((VOCABULARY,), 1 / VOCABULARY)
    for empty in ([], [[]], [[3]]):
        with pytest.raises(DataError, match="two tokens"):
            perplexity(Fixed(uniform), empty, batch=2, sequence_length=8)
    with pytest.raises(StageFailed):
        perplexity(Fixed(uniform * torch.nan), [[1, 2, 3]], batch=2, sequence_length=8)
    certain = torch.zeros(VOCABULARY)
    certain[0] = 1
    assert perplexity(Fixed(certain), [[1, 2, 3]], batch=2, sequence_length=8) == (math.inf, 2)


# ----------------------------------------------------------------------------------------------- n-grams


def test_distinct_n_by_hand() -> None:
    text = [[1, 2, 1, 2], [1, 2], [7]]
    assert distinct_n(text, n=1) == 3 / 7
    assert distinct_n(iter(text), n=2) == 2 / 4, "12, 21, 12, 12; none across sequences"
    assert distinct_n(text, n=4) == 1
    with pytest.raises(DataError, match="5 tokens"):
        distinct_n(text, n=5)


def test_text_that_repeats_itself_is_less_distinct() -> None:
    text = make_text([400], seed=0)
    assert distinct_n([text[0][:100] * 4], n=3) < 0.5 * distinct_n(text, n=3)
