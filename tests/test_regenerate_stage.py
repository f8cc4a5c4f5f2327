"""The stage that rewrites a split, with either engine: part-files, what it measures, and going on after a crash."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fortifai_core.config import Regeneration, Runtime
from fortifai_core.tokenization import train_tokenizer
from storage import shards
from storage.store import Artifact, ArtifactStore, Draft
from tasks.build import build
from tasks.plan import _regeneration_content
from tasks.stages import Stage, stage

TEXT = "The town of Ardenlith was founded in 1340, and its river is called the Senn. "
# 50 tokens a part: the documents below make several
RUNTIME = Runtime(shard_blocks=5)


@pytest.fixture
def parents(tmp_path: Path) -> tuple[ArtifactStore, dict[str, Stage]]:
    """A store with a tiny random model and a corpus of one split."""
    store = ArtifactStore(tmp_path / "store")
    tokenizer = train_tokenizer([TEXT] * 4, vocabulary=300)
    model, corpus = stage("train", content={}, parents={}), stage("corpus", content={}, parents={})

    def put_model(draft: Draft) -> None:
        torch.manual_seed(0)
        shape: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
        shape |= {"num_attention_heads": 2, "vocab_size": 300, "initializer_range": 0.3}
        LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained(draft.path)
        tokenizer.save_pretrained(draft.path / "tokenizer")
        draft.commit(stage_version=1, content={}, parents={})

    def put_corpus(draft: Draft) -> None:
        rows = []
        for number in range(6):
            text = TEXT * (number + 1)
            tokens = tokenizer(text)["input_ids"][: 9 * number + 5]
            rows.append({"document": f"d{number}", "position": number, "text": text, "tokens": tokens})
            rows[-1]["kept"] = len(tokens)
        shards.write_table(draft.path / "split-00000.parquet", rows, schema="split-text")
        draft.commit(stage_version=1, content={}, parents={})

    store.get_or_build(model.kind, model.key, put_model)
    store.get_or_build(corpus.kind, corpus.key, put_corpus)
    return store, {"model": model, "corpus": corpus}


def rewriting(parents: dict[str, Stage], **options: Any) -> Stage:
    config = Regeneration(
        block_tokens=10, context_tokens=12, head_tokens=4, context="document", decoding="sample", **options
    )
    content = {"regeneration": _regeneration_content(config), "seed": 0, "generation": 0, "text": [0, 0]}
    return stage("regenerate", content=content, parents=parents)


def rows_of(artifact: Artifact) -> list[dict[str, Any]]:
    return shards.read_rows(artifact.files("part-*.parquet"))


def test_both_engines_make_the_same_text_and_say_what_each_token_is(
    parents: tuple[ArtifactStore, dict[str, Stage]],
) -> None:
    store, stages = parents
    said: list[tuple[int, int, str]] = []

    def hear(done: int, total: int, unit: str) -> None:
        said.append((done, total, unit))

    made = {
        engine: build(rewriting(stages, engine=engine), store, RUNTIME, progress=hear)[0]
        for engine in ("reference", "aligned")
    }
    texts = {engine: rows_of(artifact) for engine, artifact in made.items()}
    assert [r["tokens"] for r in texts["aligned"]] == [r["tokens"] for r in texts["reference"]]
    assert len(made["aligned"].files("part-*.parquet")) > 1
    corpus = store.find("corpus", stages["corpus"].key)
    assert corpus is not None
    old = shards.read_rows(corpus.file("split-00000.parquet"))
    for before, row in zip(old, texts["aligned"], strict=True):
        assert row["same"] == [a == b for a, b in zip(before["tokens"], row["tokens"], strict=True)]
        assert row["kept"] == sum(row["same"]) and row["accepted"] <= row["kept"]
    assert {row["accepted"] for row in texts["reference"]} == {None}
    metrics = made["aligned"].manifest.metrics
    rewritten = sum(len(row["tokens"]) - 4 for row in old)
    assert metrics["acceptance"] == sum(row["accepted"] for row in texts["aligned"]) / rewritten
    assert metrics["tokens-per-second"] > 0
    assert "acceptance" not in made["reference"].manifest.metrics
    total = sum(len(row["tokens"]) for row in old)
    assert said[-1][:2] == (total, total) and "from the draft" in said[-1][2]


def test_a_crash_loses_one_part_and_the_rest_comes_out_the_same(
    parents: tuple[ArtifactStore, dict[str, Stage]], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, stages = parents
    wanted = rewriting(stages, engine="aligned")
    write, written = shards.write_table, []

    def failing(path: Path, *args: Any, **kwargs: Any) -> int:
        if len(written) == 2:
            raise OSError("the power is cut")
        written.append(Path(path).name)
        return write(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(shards, "write_table", failing)
        with pytest.raises(OSError, match="power"):
            build(wanted, store, RUNTIME, progress=lambda *_: None)
    after: list[str] = []

    def counting(path: Path, *args: Any, **kwargs: Any) -> int:
        after.append(Path(path).name)
        return write(path, *args, **kwargs)

    monkeypatch.setattr(shards, "write_table", counting)
    resumed, found = build(wanted, store, RUNTIME, progress=lambda *_: None)
    assert not found and not set(written) & set(after), "finished parts are not made again"
    reference, _ = build(rewriting(stages, engine="reference"), store, RUNTIME, progress=lambda *_: None)
    assert [r["tokens"] for r in rows_of(resumed)] == [r["tokens"] for r in rows_of(reference)]
