"""Parquet tables and packed tokens: written whole or not at all, read as a stream, never silently empty."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fortifai_core.errors import ArtifactDamaged, DataError
from storage.store import durable
from storage.store.digests import is_sealed
from storage.store.keys import canonical_json

if TYPE_CHECKING:
    import pyarrow as pa

# Column → (Arrow type, may be null). Spelled as text so that this module opens without pyarrow.
Columns = dict[str, tuple[str, bool]]


def _columns(text: str) -> Columns:
    """From `name type, …`; a question mark after the type says that a value may be null."""
    pairs = (column.split() for column in text.split(","))
    return {name: (kind.rstrip("?"), kind.endswith("?")) for name, kind in pairs}


# Text before it is tokenised and cut.
DOCUMENTS = _columns("document string, text string, source string?")
# One document of a split. `kept`: tokens equal to the version before; for real text, all of them. `same`: which ones
# they are, token by token; null for real text, and in files that were written before the column was there.
# `accepted`: tokens that the aligned engine took over from its draft; null where nothing was drafted.
SPLIT_TEXT = _columns(
    "document string, position int64, text string, tokens list<int32>, kept int32, same list<bool>?, accepted int32?"
)
# The same of a pool of arms: each document is as one of them wrote it, the `writer`, by its place among them.
POOLED_TEXT = SPLIT_TEXT | _columns("writer int32")
# What a generation is trained on after a treatment: one row a document, or a copy of it; `weight` in the training loss.
TREATED_TEXT = _columns("document string, copy int32, position int64, text string, tokens list<int32>, weight float64")
# What became of every document that a treatment was given: `copy` tells those apart that an earlier treatment
# repeated. `fate`: kept, edited, repeated or dropped; `copies`, `changed` tokens and `weight` of what is left of it.
TREATMENTS = _columns(
    "document string, split int32, version int32, copy int32, fate string, copies int32, tokens int32, changed int32, "
    "weight float64?, score float64?, why string"
)
# Both in one, while a treatment is under way: one row a copy of a document, or for one that was dropped.
TREATING = TREATMENTS | _columns("made int32, text string, tokens list<int32>, size int32")
# KR-test items; `split` is null as long as the corpus is not cut.
QUESTIONS = _columns(
    "question string, document string, split int32?, context string, true_answer string, false_answer string"
)
# One KR-test item scored by one model; natural logarithms.
SCORES = _columns("question string, document string, split int32?, logp_true float64, logp_false float64, correct bool")
# Long form; `split` is null for a metric over all splits. `value` may be NaN, never null.
METRICS = _columns("metric string, split int32?, value float64, count int64")
# What a measure is the mean of, one row a document or window: the sum of `total` over that of `count`.
CLUSTERS = _columns("measure string, cluster string, total float64, count float64")
# The same for a family, whose stages may compute many generations; `count`: items or replicates it is the mean of.
FAMILY_METRICS = _columns("generation int32, metric string, value float64, count int64")
# A histogram of p, the probability of the token that comes: `count` of them in (low, high].
CONFIDENCE = _columns("model string, text string, low float64, high float64, count int64")
# One item of a benchmark under one metric; `filter` is lm-eval's, which reads the answer out of generated text.
BENCHMARK_ITEMS = _columns(
    "benchmark string, task string, item int64, filter string, metric string, value float64, "
    "target string?, answer string?"
)
# Text of a training set, for other programs.
EXPORTED_TEXT = _columns("document string, split int32, version int32, text string, tokens list<int32>")
SCHEMAS: dict[str, Columns] = {
    "documents": DOCUMENTS,
    "split-text": SPLIT_TEXT,
    "pooled-text": POOLED_TEXT,
    "treated-text": TREATED_TEXT,
    "treatments": TREATMENTS,
    "treating": TREATING,
    "questions": QUESTIONS,
    "scores": SCORES,
    "metrics": METRICS,
    "clusters": CLUSTERS,
    "family-metrics": FAMILY_METRICS,
    "confidence": CONFIDENCE,
    "benchmark-items": BENCHMARK_ITEMS,
    "exported-text": EXPORTED_TEXT,
}

# Rows that are in memory at a time, and in one row group: a reader needs no more either.
ROW_GROUP = 1024
_PART = re.compile(r"part-(\d{5,})\.parquet")
_LAYOUT = "layout.json"


def arrow_schema(name: str) -> pa.Schema:
    """The Arrow schema of that name."""
    import pyarrow as pa

    if name not in SCHEMAS:
        raise ValueError(f"schema = {name!r}: one of {', '.join(SCHEMAS)}")

    def arrow(kind: str) -> pa.DataType:
        inner = kind.removeprefix("list<").removesuffix(">")
        return pa.type_for_alias(kind) if inner == kind else pa.list_(pa.type_for_alias(inner))

    return pa.schema([pa.field(c, arrow(t), nullable=n) for c, (t, n) in SCHEMAS[name].items()])


def write_table(
    path: str | Path, data: Iterable[Mapping[str, Any]] | Mapping[str, Sequence[Any]], *, schema: str
) -> int:
    """Write one Parquet file (zstd), atomically; the rows are taken as they come, `ROW_GROUP` at a time.

    Args:
        data: rows, or a mapping from column to values. Columns that may be null can be left out.
        schema: a name in `SCHEMAS`.

    Returns:
        The number of rows.

    Raises:
        DataError: no rows, a column missing or unknown, or a value of the wrong type.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(path)
    arrow = arrow_schema(schema)
    rows = _as_rows(path, data) if isinstance(data, Mapping) else iter(data)
    written = 0
    with (
        durable.naming_full_disk(path),
        durable.replacing(path) as aside,
        pq.ParquetWriter(aside, arrow, compression="zstd") as writer,
    ):
        while batch := list(islice(rows, ROW_GROUP)):
            _check_columns(path, batch, SCHEMAS[schema], first=written)
            try:
                table = pa.Table.from_pylist([dict(row) for row in batch], schema=arrow)
            except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
                place = f"rows {written} to {written + len(batch) - 1}"
                raise DataError(str(path), place, f"does not fit the schema {schema!r}: {error}") from error
            writer.write_table(table)
            written += len(batch)
        if not written:
            raise DataError(str(path), "0 rows", "a table without rows is never written by accident")
    return written


def read_rows(
    paths: str | Path | Iterable[str | Path], *, columns: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """All rows of one or several files, in order.

    Raises:
        ArtifactDamaged: a file is missing, unreadable, lacks a column, or has no rows.
    """
    return list(iter_rows(paths, columns=columns))


def iter_rows(
    paths: str | Path | Iterable[str | Path], *, columns: Sequence[str] | None = None
) -> Iterator[dict[str, Any]]:
    """As `read_rows`, one after the other; memory holds one row group."""
    for batch in _batches(paths, columns=columns):
        yield from batch.to_pylist()


def iter_column(paths: str | Path | Iterable[str | Path], name: str) -> Iterator[Any]:
    """One column of one or several files, value by value. Raises as `read_rows`."""
    for batch in _batches(paths, columns=[name]):
        yield from batch.column(name).to_pylist()


def read_table_columns(paths: str | Path | Iterable[str | Path], columns: Sequence[str]) -> dict[str, list[Any]]:
    """Some columns of one or several files, whole. Raises as `read_rows`."""
    result: dict[str, list[Any]] = {name: [] for name in columns}
    for batch in _batches(paths, columns=columns):
        for name in columns:
            result[name].extend(batch.column(name).to_pylist())
    return result


def iter_batches(
    paths: str | Path | Iterable[str | Path], *, columns: Sequence[str] | None = None, batch_rows: int = ROW_GROUP
) -> Iterator[dict[str, list[Any]]]:
    """Column lists of at most `batch_rows` rows; memory holds one row group. Raises as `read_rows`."""
    for batch in _batches(paths, columns=columns, batch_rows=batch_rows):
        yield batch.to_pydict()


def of_csv(path: Path, target: Path) -> None:
    """Write a report's CSV table as Parquet; the types are those that its text has."""
    import pyarrow.csv
    import pyarrow.parquet as pq

    pq.write_table(pyarrow.csv.read_csv(path), target, compression="zstd")


def write_packed(path: str | Path, rows: Iterable[Sequence[int]], *, sequence_length: int) -> int:
    """Write token sequences for `datasets.Dataset.from_file`, which maps them into memory unread.

    One column `input_ids`, lists of at most `sequence_length` int32 (the last of a text may be shorter), as an
    Arrow stream.

    Returns:
        The number of rows.

    Raises:
        DataError: no rows, or an empty or longer one.
    """
    import pyarrow as pa

    path = Path(path)
    arrow = pa.schema([pa.field("input_ids", pa.list_(pa.int32()), nullable=False)])
    source, written = iter(rows), 0
    with (
        durable.naming_full_disk(path),
        durable.replacing(path) as aside,
        pa.OSFile(str(aside), "wb") as sink,
        pa.ipc.new_stream(sink, arrow) as writer,
    ):
        while batch := list(islice(source, ROW_GROUP)):
            for number, row in enumerate(batch, start=written):
                if not 0 < len(row) <= sequence_length:
                    remedy = f"give 1 to {sequence_length}"
                    raise DataError(f"row {number} of {path}", f"{len(row)} tokens", remedy)
            lists = pa.array([list(row) for row in batch], pa.list_(pa.int32()))
            writer.write_batch(pa.record_batch([lists], schema=arrow))
            written += len(batch)
        if not written:
            raise DataError(str(path), "0 rows", "there is not a single whole training sequence")
    return written


def write_tokens(path: str | Path, rows: Iterable[Sequence[int]]) -> None:
    """Keep token ids of documents for a while: an Arrow stream of lists, which may be empty."""
    import pyarrow as pa

    arrow = pa.schema([pa.field("tokens", pa.list_(pa.int32()), nullable=False)])
    source = iter(rows)
    with durable.naming_full_disk(Path(path)), pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, arrow) as to:
        while batch := list(islice(source, ROW_GROUP)):
            lists = pa.array([list(row) for row in batch], pa.list_(pa.int32()))
            to.write_batch(pa.record_batch([lists], schema=arrow))


def iter_tokens(path: str | Path) -> Iterator[list[int]]:
    """What `write_tokens` kept, document by document."""
    import pyarrow as pa

    with pa.OSFile(str(path), "rb") as stream, pa.ipc.open_stream(stream) as batches:
        for batch in batches:
            yield from batch.column(0).to_pylist()


def part_name(number: int) -> str:
    """File name of part `number` of a split."""
    return f"part-{number:05d}.parquet"


def finished_parts(directory: str | Path, *, layout: Mapping[str, Any] | None = None) -> dict[int, Path]:
    """Which part files are there, whole and sealed: number → path. What a crash left half-written is not among them.

    Args:
        layout: what decides where one part ends and the next begins (say, blocks in a part). It is written
            beside the parts, and when it differs from what is there, the old parts are removed: they
            cannot be continued.
    """
    directory = Path(directory)
    present = {
        int(match[1]): path
        for path in (sorted(directory.iterdir()) if directory.is_dir() else [])
        if (match := _PART.fullmatch(path.name))
    }
    if layout is not None:
        wanted = canonical_json(dict(layout), path="layout")
        note = directory / _LAYOUT
        if not note.is_file() or note.read_bytes() != wanted.encode():
            for path in present.values():
                path.unlink()
            durable.write_bytes(note, wanted.encode())
            return {}
    whole = {number: path for number, path in present.items() if is_sealed(path)}
    for number in present.keys() - whole.keys():
        present[number].unlink()
    return whole


def _as_rows(path: Path, columns: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(str(path), lengths, "columns of one table have the same length")
    return (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))


def _check_columns(path: Path, rows: list[Mapping[str, Any]], columns: Columns, *, first: int) -> None:
    for number, row in enumerate(rows, start=first):
        missing = [n for n, (_, nullable) in columns.items() if not nullable and row.get(n) is None]
        unknown = [name for name in row if name not in columns]
        if missing or unknown:
            said = f"missing {missing}" if missing else f"unknown {unknown}"
            raise DataError(f"row {number} of {path}", said, f"its columns are {list(columns)}")


def _batches(
    paths: str | Path | Iterable[str | Path], *, columns: Sequence[str] | None, batch_rows: int = ROW_GROUP
) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in [Path(paths)] if isinstance(paths, (str, Path)) else [Path(p) for p in paths]:
        try:
            with pq.ParquetFile(path, pre_buffer=False) as file:  # else all that was read stays until the end
                absent = [name for name in columns or () if name not in file.schema_arrow.names]
                if absent:
                    has = ", ".join(file.schema_arrow.names)
                    raise ArtifactDamaged(f"{path} has no column {', '.join(absent)}; it has {has}")
                if not file.metadata.num_rows:
                    raise ArtifactDamaged(f"{path} has no rows: an empty table is never used in silence")
                yield from file.iter_batches(batch_rows, columns=columns)
        except FileNotFoundError as error:
            raise ArtifactDamaged(f"{path} is missing: a missing table is never an empty one") from error
        except (pa.ArrowInvalid, pa.ArrowIOError) as error:
            raise ArtifactDamaged(f"{path} cannot be read as Parquet: {error}") from error
