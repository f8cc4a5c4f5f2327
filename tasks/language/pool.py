"""Builder of a pool's text: every document as one of its arms rewrote it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fortifai_core.corpus.pooling import writers
from fortifai_core.errors import StageFailed
from fortifai_core.seeds import derive_seed
from storage.tables import parquet
from tasks.engine.context import Context
from tasks.language.specs import PoolSpec


def build_pool(context: Context[PoolSpec]) -> dict[str, Any]:
    """part-00000.parquet: the documents in the order in which every arm has them, each with its writer's place.

    Metrics: documents, and how many are each arm's.

    Raises:
        StageFailed: the arms do not have the same documents.
    """
    spec = context.spec
    files = [context.artifact(text).files("part-*.parquet") for text in spec.texts]
    total = sum(1 for _ in parquet.iter_column(files[0], "document"))
    chosen = writers(total, spec.shares, seed=derive_seed("pool", spec.seed, spec.text.split, spec.text.version))

    def rows() -> Iterator[dict[str, Any]]:
        columns = list(parquet.SPLIT_TEXT)
        for writer, *versions in zip(chosen, *(parquet.iter_rows(f, columns=columns) for f in files), strict=True):
            if len({version["document"] for version in versions}) > 1:
                raise StageFailed(f"the texts of a pool differ in their documents: {versions[0]['document']}")
            yield {**versions[writer], "writer": writer}

    parquet.write_table(context.directory / parquet.part_name(0), rows(), schema="pooled-text")
    counts = {f"documents-{place}": chosen.count(place) for place in range(len(files))}
    return {"documents": total, **counts}
