"""Variety: the Vendi score worked by hand, and embeddings that do not depend on their batch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fortifai_core.errors import DataError, StageFailed
from fortifai_core.measures.variety import embed, similarities_of, vendi_score


def test_two_documents_by_hand() -> None:
    """K = [[1, 1/2], [1/2, 1]]: the eigenvalues of K/2 are 3/4 and 1/4, so 4/3^(3/4) = 1.7548."""
    assert vendi_score(np.array([[1.0, 0.5], [0.5, 1.0]])) == pytest.approx(4 / 3**0.75)


@pytest.mark.parametrize(
    ("similarities", "score"),
    [
        (np.eye(5), 5.0),  # none is like another
        (np.ones((5, 5)), 1.0),  # all are the same
        (np.kron(np.eye(2), np.ones((3, 3))), 2.0),  # two that are each said three times
        # one said three times beside another: shares 3/4 and 1/4 as above
        (np.block([[np.ones((3, 3)), np.zeros((3, 1))], [np.zeros((1, 3)), np.ones((1, 1))]]), 4 / 3**0.75),
    ],
)
def test_it_is_the_effective_number_of_different_documents(similarities: np.ndarray, score: float) -> None:
    assert vendi_score(similarities) == pytest.approx(score)


def test_nothing_has_no_variety() -> None:
    with pytest.raises(DataError, match="documents"):
        vendi_score(np.zeros((0, 0)))


def test_cosines_around_a_centre_by_hand() -> None:
    """Around (1, 0): (2, 0) and (1, 1) stand at right angles, (0, 0) opposite the first, (1, 0) has no direction."""
    found = similarities_of(np.array([[2.0, 0], [1, 1], [0, 0], [1, 0]]), centre=np.array([1.0, 0]))
    assert found == pytest.approx(np.array([[1, 0, -1, 0], [0, 1, 0, 0], [-1, 0, 1, 0], [0, 0, 0, 1]]))


def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=32, **shape))


def test_an_embedding_is_the_mean_of_the_last_hidden_states_whatever_stands_beside_it() -> None:
    one, documents = model().eval(), [[3, 4, 5, 6, 7], [9, 2], [30]]
    with torch.no_grad():
        by_hand = [
            one(torch.tensor([tokens]), output_hidden_states=True).hidden_states[-1][0].mean(0) for tokens in documents
        ]
    for batch in (1, 2, 3):
        assert embed(one, documents, batch=batch) == pytest.approx(torch.stack(by_hand).numpy(), abs=1e-6)
    spoilt = model()
    with torch.no_grad():
        spoilt.model.norm.weight.fill_(math.nan)
    with pytest.raises(StageFailed, match="embeddings"):
        embed(spoilt, documents, batch=2)
