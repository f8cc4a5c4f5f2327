"""The aligned engine on the demo's own model and text: the reference's tokens, and the same distribution when sampling.

The model is the preset `tiny`'s M_0 under cross entropy, made by the stages that make it in the demo.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from flows.load import load_experiment_config
from flows.prepare import prepare_experiment
from fortifai_core.config.stages import Regeneration
from fortifai_core.language.decoding import warpers
from fortifai_core.language.rewriting.blocks import (
    Block,
    Rewriting,
    Statistics,
    TokenisedDocument,
    block_uniforms,
    plan_blocks,
)
from fortifai_core.language.rewriting.regenerate import RegeneratedDocument, regenerate
from helpers import ROUNDING
from storage.tables import parquet
from storage.tables.models import load_model, load_tokenizer
from tasks.engine.build import build
from tasks.language.files import split_file

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]

SEED_PARTS = ("demo", 0)


@dataclass(frozen=True)
class Demo:
    """M_0, the splits of real text, and how the demo rewrites."""

    model: Any
    exact: Any  # the same in float64
    suppress: list[int]
    pad: int
    splits: list[list[TokenisedDocument]]
    config: Regeneration

    def rewrite(
        self,
        documents: list[TokenisedDocument],
        config: Regeneration,
        *seed_parts: str | int,
        statistics: Statistics | None = None,
        **options: Any,
    ) -> list[RegeneratedDocument]:
        given: dict[str, Any] = {"suppress": self.suppress, "pad_id": self.pad, **options}
        rewriting = Rewriting(config, seed_parts=seed_parts or SEED_PARTS, **given)
        return regenerate(self.model, documents, rewriting, statistics=statistics)


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    overrides = ["losses=[{type: cross-entropy}]", "generations=1"]
    config = load_experiment_config("tiny", overrides)
    prepared = prepare_experiment(config, store=str(tmp_path_factory.mktemp("demo")))
    made = {}
    for stage in prepared.plan.stages():
        if stage.role in ("pretraining", "source", "tokenizer", "base", "corpus", "train"):
            made[stage.role], _ = build(stage, prepared.store, config.runtime, progress=lambda *_: None)
    model = load_model(made["train"].path)
    tokenizer = load_tokenizer(made["train"].path / "tokenizer")
    columns = ["document", "position", "tokens"]
    splits = [parquet.read_rows(made["corpus"].file(split_file(split)), columns=columns) for split in range(6)]
    return Demo(
        model=model,
        exact=copy.deepcopy(model).double(),
        suppress=tokenizer.all_special_ids,
        pad=tokenizer.pad_token_id,
        splits=[[TokenisedDocument(r["document"], r["position"], r["tokens"]) for r in rows] for rows in splits],
        config=config.regeneration,
    )


def spans(documents: list[TokenisedDocument], config: Regeneration) -> list[tuple[Block, slice]]:
    return [(block, slice(block.start, block.start + block.length)) for block in plan_blocks(documents, config)]


def margin(demo: Demo, config: Regeneration, context: list[int], uniform: float, tokens: tuple[int, int]) -> float:
    """How far the model, computed in float64, is from having chosen the other of two tokens."""
    with torch.inference_mode():
        scores = demo.exact(input_ids=torch.tensor([context])).logits[0, -1]
    scores[[*demo.suppress, demo.pad]] = -torch.inf
    if config.decoding == "greedy":
        assert set(scores.topk(2).indices.tolist()) == set(tokens)
        return float(scores.topk(2).values.diff().abs())
    edges = warpers(config)(None, scores[None])[0].softmax(-1).cumsum(-1).numpy()
    return float(np.abs(edges[min(tokens) : max(tokens)] - uniform).max())


def check_equal(demo: Demo, documents: list[TokenisedDocument], config: Regeneration) -> tuple[int, float]:
    """Every block is the reference's, or differs first where the choice was as good as tied.

    Returns:
        how many blocks differ, and the acceptance.
    """
    assert config.engine == "aligned"
    statistics = Statistics()
    result = demo.rewrite(documents, config, statistics=statistics)
    reference = demo.rewrite(documents, config.model_copy(update={"engine": "reference"}))
    tied = 0
    blocks = spans(documents, config)
    for block, span in blocks:
        new, expected = result[block.document].tokens[span], reference[block.document].tokens[span]
        if new == expected:
            continue
        tied += 1
        place = next(i for i, (a, b) in enumerate(zip(new, expected, strict=True)) if a != b)
        document = documents[block.document]
        context = [*document.tokens[block.context_start : block.start], *expected[:place]]
        uniform = block_uniforms(SEED_PARTS, document.id, block.start, steps=block.length)[place]
        close = margin(demo, config, context, float(uniform), (new[place], expected[place]))
        assert close < ROUNDING[config.decoding], (block, place, new, expected)
    assert statistics.rewritten == sum(block.length for block, _ in blocks)
    return tied, statistics.accepted / statistics.rewritten


@pytest.mark.parametrize("decoding", ["greedy", "sample"])
def test_every_block_of_the_demo_is_the_references(demo: Demo, decoding: str) -> None:
    """Greedily in all splits, as the demo decodes in the one it was trained on; and in what the model made of that."""
    config = demo.config.model_copy(update={"decoding": decoding})
    assert (config.engine, config.context) == ("aligned", "cut")
    rewritten = [TokenisedDocument(d.id, d.position, d.tokens) for d in demo.rewrite(demo.splits[0], config, "first")]
    texts = [*demo.splits[: 6 if decoding == "greedy" else 1], rewritten]
    found = [check_equal(demo, text, config) for text in texts]
    tied, accepted = [one for one, _ in found], [one for _, one in found]
    assert sum(tied) <= 0.003 * sum(len(plan_blocks(text, config)) for text in texts), tied
    # drafts count: text that it was trained on is taken over, text that it has not seen hardly
    assert 0.15 < accepted[0] < 0.9 and all(share < 0.1 for share in accepted[1:-1])


def test_every_block_is_the_references_with_all_of_its_document_as_context(demo: Demo) -> None:
    config = demo.config.model_copy(update={"decoding": "greedy", "context": "document"})
    tied, accepted = check_equal(demo, demo.splits[0], config)
    assert tied <= 1 and accepted > 0.15


# ------------------------------------------------------------------------------------- unigram statistics


def unigrams(demo: Demo, config: Regeneration, name: str, *, rounds: int) -> np.ndarray:
    """Counts [rounds · blocks, vocabulary] of the new tokens of split 0, in draws of their own."""
    documents = demo.splits[0]
    blocks = spans(documents, config)
    counts = np.zeros((rounds, len(blocks), demo.model.config.vocab_size))
    for number in range(rounds):
        result = demo.rewrite(documents, config, name, number)
        for row, (block, span) in zip(counts[number], blocks, strict=True):
            np.add.at(row, result[block.document].tokens[span], 1)
    return counts.reshape(-1, counts.shape[-1])


def p_values(one: np.ndarray, other: np.ndarray, *, old: np.ndarray) -> dict[str, float]:
    """Whether two samples of the same blocks have equal unigram statistics: exact p-values of two tests.

    If both draw from the same distribution, a block's two drafts may change places: what all blocks together could
    have given is had by flipping signs, whatever depends on what inside a block. `counts`: the distance of
    chi-square's test for two samples. `frequency`: the difference in how frequent the tokens are in the old text.
    """
    differences, together = one - other, (one + other).sum(0)
    seen = together > 0
    signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(1999, len(differences)))
    signs = np.concatenate([np.ones((1, len(differences))), signs])
    flipped = signs @ differences[:, seen]
    distance = (flipped**2 / together[seen]).sum(1)
    frequency = np.abs(signs @ (differences @ np.log(old + 1)))
    statistics = {"counts": distance, "frequency": frequency}
    return {name: float(np.mean(values >= values[0] * (1 - 1e-9))) for name, values in statistics.items()}


def test_sampled_unigrams_are_the_references_and_another_temperature_would_be_told(demo: Demo) -> None:
    rounds = 20
    old = np.bincount(
        [token for d in demo.splits[0] for token in d.tokens], minlength=demo.model.config.vocab_size
    ).astype(float)
    reference = demo.config.model_copy(update={"engine": "reference"})
    aligned = unigrams(demo, demo.config, "aligned", rounds=rounds)
    equal = p_values(aligned, unigrams(demo, reference, "reference", rounds=rounds), old=old)
    assert min(equal.values()) > 0.01, equal
    other = {}
    for temperature in (0.8, 1.0):
        warmer = unigrams(demo, reference.model_copy(update={"temperature": temperature}), "warmer", rounds=rounds)
        other[temperature] = p_values(aligned, warmer, old=old)
    assert other[0.8]["counts"] < 0.01, other  # frequencies would take more text to tell 0.7 from 0.8
    assert max(other[1.0].values()) < 0.01, other
