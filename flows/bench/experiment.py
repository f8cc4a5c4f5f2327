"""`fortifai bench regeneration --experiment NAME`: the engines on models and text that an experiment has made.

What `flows.bench.regeneration` sets by construction is here as it occurs: how much of the old text a trained model
keeps, how long documents are, how tokens are drawn.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from flows.bench.regeneration import engine_case, other_cases, timed, with_ratios
from flows.tools.exporting import artifact_of, model_stage, text_of
from fortifai_core.config.experiment import ExperimentConfig
from fortifai_core.corpus.schedule import training_set
from fortifai_core.errors import InputError
from fortifai_core.language.rewriting.blocks import TokenisedDocument
from storage.store.experiments import Experiment
from storage.store.store import ArtifactStore
from storage.tables.parquet import read_table_columns

ENGINES = [(engine, context) for engine in ("aligned", "reference") for context in ("document", "cut")]
BATCHES = (16, 64, 256)  # rows of `generate` that are tried


def bench_experiment(
    store: ArtifactStore,
    record: Experiment,
    *,
    generations: Sequence[int],
    repeats: int = 3,
    tokens: int | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Rows as of `bench_regeneration`: split 0 in the version that M_i trained on, rewritten by M_i of the first arm.

    Args:
        generations: the i's.
        repeats: how often each engine is timed; the median counts.
        tokens: only the first documents of the split, about so many tokens.

    Raises:
        InputError: no such generation, or its model or text is not in the store.
    """
    from storage.tables.models import load_model, load_tokenizer

    config = ExperimentConfig.model_validate(record.config)
    first, seed = config.resolved_arms()[0], config.seeds[0]
    arm, config = first.label, first.experiment
    rows: list[dict[str, Any]] = []
    for generation in generations:
        stage = model_stage(record, arm=arm, seed=seed, generation=generation)
        artifact = artifact_of(store, record, stage.kind, stage.key)
        base = artifact_of(store, record, "model", stage.parents["base"]).path if "base" in stage.parents else None
        tokenizer = load_tokenizer(artifact.path / "tokenizer")
        model = load_model(artifact.path, base=base)
        versions = [version for version in training_set(config.reading, generation) if version.split == 0]
        if not versions:
            remedy = f"trains on no version of split 0 in the {config.regime} regime"
            raise InputError("--generation", generation, remedy)
        version = versions[-1]
        documents: list[TokenisedDocument] = []
        for path in text_of(store, record, stage, version):
            columns = read_table_columns(path, ["document", "position", "tokens"])
            documents += [TokenisedDocument(*row) for row in zip(*columns.values(), strict=True)]
        if tokens is not None:
            before = itertools.accumulate((len(document.tokens) for document in documents), initial=0)
            documents = [document for document, size in zip(documents, before, strict=False) if size < tokens]
        text = model.config.get_text_config()
        entries = range(len(tokenizer), text.vocab_size)
        rewriting = config.regeneration
        if rewriting.chunk_tokens is None:  # as long as by default, where the model has so many positions
            longest = rewriting.model_copy(update={"context": "document"}).longest_input
            rewriting = rewriting.model_copy(update={"chunk_tokens": min(longest, text.max_position_embeddings)})
        suppress, pad_id = sorted({*tokenizer.all_special_ids, *entries}), tokenizer.pad_token_id
        cases = {
            f"{engine}, {context}": engine_case(
                model, documents, rewriting, suppress=suppress, pad_id=pad_id, engine=engine, context=context
            )
            for engine, context in ENGINES
        }
        cases |= other_cases(model, documents, rewriting, batches=BATCHES, say=say, pad_id=pad_id)
        count = sum(len(document.tokens) for document in documents)
        task = f"{record.name}: {arm}'s M_{generation} on {version}, {len(documents)} documents, {count:,} tokens"
        rows += timed(cases, repeats, task, say)
    return with_ratios(rows)
