"""A model that was trained knows its own split's answers, and of all other splits' not one more than by guessing.

The almanac's third test of honesty; the others, which need no model, stand in test_almanac.py.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fortifai_core.config.corpus import AlmanacCorpus
from fortifai_core.config.stages import Training
from fortifai_core.corpus.almanac.world import generate_almanac
from fortifai_core.corpus.documents import Question
from fortifai_core.corpus.packing import pack
from fortifai_core.corpus.tokenization import encode_documents, train_tokenizer
from fortifai_core.language.training import train_model
from fortifai_core.measures.retention import retention, score_questions

pytestmark = pytest.mark.long
SPLITS = 6
CORPUS = AlmanacCorpus(entities=32, facts=4, pretraining_entities=200, validation_entities=4)


@pytest.mark.timeout(600)
def test_a_model_scores_one_half_on_the_questions_of_a_split_that_it_was_not_trained_on(tmp_path: Path) -> None:
    source = generate_almanac(CORPUS, splits=SPLITS, seed=11)
    tokenizer = train_tokenizer([d.text for d in source.pretraining], vocabulary=1024)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=352,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=512,
            tie_word_embeddings=True,
        )
    )

    def trained(texts: list[str], *, length: int, epochs: float, rate: float, name: str) -> None:
        documents = encode_documents(tokenizer, texts)
        rows = [
            {"input_ids": row}
            for row in pack(documents, sequence_length=length, end_of_text=int(tokenizer.eos_token_id or 0))
        ]
        how = Training(epochs=epochs, learning_rate=rate, batch_size=4, sequence_length=length)
        train_model(model, rows, config=how, seed=0, pad_id=0, workspace=tmp_path / name)

    def share(questions: list[Question]) -> float:
        def encode(text: str) -> list[int]:
            return list(tokenizer(text, add_special_tokens=False)["input_ids"])

        return retention(score_questions(model, encode, questions, variant="sum", batch=256, bos_id=None))

    first = {d.id for d in source.documents[: CORPUS.entities]}
    own = [q for q in source.questions if q.document in first]
    others = [q for q in source.questions if q.document not in first]
    assert len(others) > 600

    trained([d.text for d in source.pretraining], length=256, epochs=4, rate=2e-3, name="base")
    # the base model knows the form of a question and none of the answers
    assert abs(share(source.questions) - 0.5) < 2.58 * 0.5 / math.sqrt(len(source.questions))
    trained([d.text for d in source.documents[: CORPUS.entities]], length=48, epochs=12, rate=3e-3, name="m0")
    assert share(own) > 0.7  # it can learn, so that the next line can fail
    assert abs(share(others) - 0.5) < 2.58 * 0.5 / math.sqrt(len(others))
