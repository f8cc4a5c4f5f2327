"""Named arrays on disk: data and samples as Parquet (any DuckDB reads them), a model's parameters as safetensors.

A Parquet column holds one array, an item a row; what an item is beyond a number (a point, an image) is kept flat in
a list of fixed size, its shape in the file's metadata, so that what is read is bit for bit what was written.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fortifai_core.errors import ArtifactDamaged, DataError
from storage.store import durable
from storage.tables.parquet import ROW_GROUP

if TYPE_CHECKING:
    from fortifai_core.families.base import Arrays

_SHAPES = b"fortifai.shapes"


def write_arrays(path: str | Path, arrays: Arrays) -> int:
    """Write arrays that all have the same first axis as one Parquet file (zstd), atomically.

    Returns:
        The number of rows.

    Raises:
        DataError: no array, no rows, lengths that differ, or a type that is neither a number nor a bool.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(path)
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) != 1 or not next(iter(lengths.values())):
        raise DataError(str(path), lengths, "named arrays have one length, and at least one row")
    rows = next(iter(lengths.values()))
    columns, shapes = {}, {}
    for name, array in arrays.items():
        if array.dtype.kind not in "fiub":
            raise DataError(f"{name} of {path}", str(array.dtype), "arrays hold numbers or bools")
        flat = pa.array(np.ascontiguousarray(array).reshape(-1))
        shapes[name] = list(array.shape[1:])
        size = int(np.prod(array.shape[1:]))
        columns[name] = flat if array.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, size)
    table = pa.table(columns).replace_schema_metadata({_SHAPES: json.dumps(shapes).encode()})
    with durable.naming_full_disk(path), durable.replacing(path) as aside:
        pq.write_table(table, aside, compression="zstd", row_group_size=16 * ROW_GROUP)
    return rows


def read_arrays(path: str | Path) -> Arrays:
    """The arrays of a file that `write_arrays` wrote.

    Raises:
        ArtifactDamaged: it is missing, unreadable, empty, or was not written so.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except FileNotFoundError as error:
        raise ArtifactDamaged(f"{path} is missing") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise ArtifactDamaged(f"{path} cannot be read as Parquet: {error}") from error
    shapes = (table.schema.metadata or {}).get(_SHAPES)
    if shapes is None or not table.num_rows:
        raise ArtifactDamaged(f"{path} holds no named arrays")
    arrays: Arrays = {}
    for name, shape in json.loads(shapes).items():
        column = table.column(name).combine_chunks()
        flat = column.flatten() if pa.types.is_fixed_size_list(column.type) else column
        arrays[name] = flat.to_numpy(zero_copy_only=False).reshape(table.num_rows, *shape)
    return arrays


def write_parameters(path: str | Path, parameters: Arrays) -> None:
    """A model's parameters as safetensors, atomically; the same parameters give the same bytes."""
    from safetensors.numpy import save

    path = Path(path)
    ordered = {name: np.ascontiguousarray(parameters[name]) for name in sorted(parameters)}
    with durable.naming_full_disk(path):
        durable.write_bytes(path, save(ordered))


def read_parameters(path: str | Path) -> Arrays:
    """The parameters that `write_parameters` wrote.

    Raises:
        ArtifactDamaged: the file is missing or is no safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        parameters: Arrays = load_file(path)
    except (FileNotFoundError, SafetensorError) as error:
        raise ArtifactDamaged(f"{path} cannot be read as parameters: {error}") from error
    return parameters
