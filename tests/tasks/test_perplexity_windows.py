"""Perplexity of a model that reads little: its windows are what it can read at once."""

from __future__ import annotations

import pytest

from flows.load import load_experiment_config
from fortifai_core.config.stages import Runtime
from fortifai_core.measures.text_counts import perplexity
from storage.store.store import Artifact, ArtifactStore
from storage.tables import parquet
from storage.tables.models import load_model
from tasks.engine.build import build
from tasks.language.plan import Digests, plan_experiment

SHORT = (
    "generations=1",
    "splits=2",
    "corpus.entities=4",
    "corpus.pretraining_entities=8",
    "model.pretraining_epochs=1",
    "training.epochs=1",
    "losses=[{type: cross-entropy}]",
    "model.max_positions=64",
    "model.pretraining_sequence_length=64",
    "evaluation.drift=false",
)


def test_held_out_text_is_read_in_windows_that_the_model_can_read(tmp_path_factory: pytest.TempPathFactory) -> None:
    store = ArtifactStore(tmp_path_factory.mktemp("short") / "store")
    plan = plan_experiment(load_experiment_config("smoke", SHORT), Digests({}))
    found: dict[str, Artifact] = {}
    for one in plan.stages():
        if one.role in ("source", "pretraining", "corpus", "tokenizer", "base", "train", "evaluate"):
            found[one.role] = build(one, store, Runtime(), progress=lambda *_: None)[0]
    model = load_model(found["train"].path)
    texts = parquet.read_table_columns(found["corpus"].file("validation.parquet"), ["tokens"])["tokens"]
    assert max(map(len, texts)) > 64
    wanted = perplexity(model, texts, batch=4, sequence_length=64)[0]
    told = found["evaluate"].manifest.metrics["perplexity-real"]
    assert told == pytest.approx(wanted, rel=1e-5)
    assert told != pytest.approx(perplexity(model, texts, batch=4, sequence_length=256)[0], rel=1e-4)
