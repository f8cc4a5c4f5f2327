"""A small world for the watch: documents of invented sentences, a tokenizer of them, and a model with dropout."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fortifai_core.corpus.tokenization import train_tokenizer
from invented import documents


@pytest.fixture(scope="session")
def held_out() -> list[str]:
    return documents(24, seed=1, sentences=12)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return train_tokenizer(documents(60, seed=0), vocabulary=400)


@pytest.fixture
def model(tokenizer: Any) -> Any:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=128, attention_dropout=0.2, **shape,
        pad_token_id=0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config)


@pytest.fixture(scope="session")
def batches(tokenizer: Any) -> list[torch.Tensor]:
    tokens = [token for text in documents(100, seed=2) for token in tokenizer(text)["input_ids"]]
    rows = torch.tensor(tokens[: len(tokens) // 256 * 256]).view(-1, 8, 32)
    return list(rows)[:12]
