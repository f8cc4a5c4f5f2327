"""Text of a training set as Parquet for other programs: `datasets.load_dataset(folder)` reads what is written here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fortifai_core.errors import DataError
from storage.store import durable
from storage.tables.parquet import arrow_schema, iter_batches


@dataclass(frozen=True)
class ExportedText:
    """What one file holds: split `split` after `version` regenerations (0: real text)."""

    split: int
    version: int
    documents: int
    tokens: int


def export_text(target: Path, parts: Iterable[tuple[int, int, Sequence[Path]]]) -> list[ExportedText]:
    """Write one Parquet file (zstd) for each split version into `target`, in the order in which a model reads them.

    Columns: document, split (int32), version (int32), text, tokens (list<int32>).

    Args:
        target: a folder that exists.
        parts: split, version, and the files of that split version (schema `split-text`).

    Raises:
        ArtifactDamaged: a file is missing, unreadable or empty.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = arrow_schema("exported-text")
    written = []
    for number, (split, version, paths) in enumerate(parts):
        documents = tokens = 0
        # the number keeps the order of reading, also where a loader sorts the names
        path = target / f"{number:05d}-split-{split}-version-{version}.parquet"
        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            for batch in iter_batches(list(paths), columns=["document", "text", "tokens"]):
                count = len(batch["document"])
                columns = {**batch, "split": [split] * count, "version": [version] * count}
                writer.write_table(pa.table({name: columns[name] for name in schema.names}, schema=schema))
                documents += count
                tokens += sum(len(ids) for ids in batch["tokens"])
        written.append(ExportedText(split, version, documents, tokens))
    return written


def write_columns(path: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    """A table for other programs as Parquet (zstd); the types follow from the values, None is null.

    Raises:
        DataError: a column holds values of different types.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays = {}
    for name, values in columns.items():
        try:
            arrays[name] = pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise DataError(str(path), name, f"its values do not make one column: {error}") from error
    with durable.naming_full_disk(path), durable.replacing(path) as aside:
        pq.write_table(pa.table(arrays), aside, compression="zstd")
