"""Real data of a family that come from outside: a user's table, MNIST. What stands for them in a key; where they are.

Data that a family draws or ships itself are none of this module's business: then there are no digests, and nothing
is read.
"""

from __future__ import annotations

import gzip
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fortifai_core.errors import DataError, Unusable, within
from fortifai_core.families.base import FamilyConfig
from fortifai_core.families.images.config import MnistData, VaeConfig
from fortifai_core.families.images.idx import to_idx
from fortifai_core.families.mixture.family import GmmConfig, Table
from fortifai_core.parsing import local_path, refusing
from storage.sources import hub, mirror
from storage.sources.textfiles import check_file, content_digest, file_format, open_content, unreadable
from storage.store import durable
from storage.store.remote import cache_directory

if TYPE_CHECKING:
    import pyarrow as pa

    from fortifai_core.families.base import Arrays

FIELD = "family.data.file"
# Split on the hub → files of images and of labels.
MNIST_FILES = {
    split: [f"{part}-images-idx3-ubyte.gz", f"{part}-labels-idx1-ubyte.gz"]
    for split, part in (("train", "train"), ("test", "t10k"))
}
TABLE_FORMATS = (".csv", ".parquet")


def data_digests(config: FamilyConfig) -> dict[str, str]:
    """Digests of the files that the real data come from; empty where they come from none.

    Raises:
        DataError: a file is missing, empty or of another format.
    """
    if isinstance(config, GmmConfig) and isinstance(config.data, Table):
        with within(FIELD):
            return {"file": content_digest(_checked(config.data.file))}
    if isinstance(config, VaeConfig) and isinstance(config.data, MnistData):
        return mnist_digests()
    return {}


def data_folder(config: FamilyConfig) -> Path | None:
    """The folder that a family reads its real data from; None for one that needs none.

    Raises:
        DataError: the mirror lacks a file, or the hub cannot be reached.
    """
    if isinstance(config, VaeConfig) and isinstance(config.data, MnistData):
        return mnist_folder()
    return None


def mnist_digests() -> dict[str, str]:
    """What stands for MNIST in a key: digests of the mirror's four files, or its name on the hub.

    Raises:
        DataError: the mirror lacks a file.
    """
    root = mirror.root()
    if root is None:
        return {"hub": f"{hub.MNIST}@main"}
    digests = {}
    for name in itertools.chain(*MNIST_FILES.values()):
        path = root / "mnist" / name
        if not path.is_file():
            remedy = f"add it to the folder that {mirror.VARIABLE} names, or unset {mirror.VARIABLE} to use the hub"
            raise DataError(mirror.VARIABLE, f"mnist/{path.name}", f"the local mirror lacks it: {remedy}")
        with within(mirror.VARIABLE):
            digests[f"mirror.{path.name}"] = content_digest(path)
    return digests


def mnist_folder() -> Path:
    """Where MNIST's four IDX files lie: in the mirror, or in a cache that the hub's rows are written to once."""
    root = mirror.root()
    if root is not None:
        return root / "mnist"
    folder = cache_directory(hub.MNIST)
    for split, names in MNIST_FILES.items():
        paths = [folder / name for name in names]
        if not all(path.is_file() for path in paths):
            for path, array in zip(paths, hub.load_mnist(split), strict=True):
                durable.write_bytes(path, gzip.compress(to_idx(array), mtime=0))
    return folder


def load_data(config: FamilyConfig) -> Arrays | None:
    """The arrays of data that come from outside; None where the family makes its data itself.

    Raises:
        DataError: the file cannot be used as it is; the message names the column.
    """
    if isinstance(config, GmmConfig) and isinstance(config.data, Table):
        with refusing(FIELD, config.data.file, "correct the table"):
            return load_table(config.data, fewest=config.components)
    return None


def load_table(data: Table, *, fewest: int) -> Arrays:
    """A table as `x` (n, columns) float64 and `label` (n,) int64, classes numbered in the order of their values.

    Args:
        fewest: rows that every class must have.
    """
    import numpy as np
    import pyarrow.compute as pc

    with within(FIELD):
        table = _read(_checked(data.file))[: data.max_rows]
    if data.label is not None and data.label not in table.column_names:
        raise DataError("family.data.label", data.label, f"no such column; there are {', '.join(table.column_names)}")
    columns = data.columns or [n for n in table.column_names if n != data.label and _is_number(table.column(n).type)]
    if not columns:
        raise DataError(FIELD, data.file, f"no column holds numbers; there are {', '.join(table.column_names)}")
    for name in columns:
        if name not in table.column_names:
            raise DataError("family.data.columns", name, f"no such column; there are {', '.join(table.column_names)}")
        if not _is_number(table.column(name).type):
            raise DataError("family.data.columns", name, f"holds {table.column(name).type}, not numbers; leave it out")
    x = np.stack([table.column(name).cast("float64").to_numpy() for name in columns], axis=1)
    for index, name in enumerate(columns):
        if not np.isfinite(x[:, index]).all():
            row = int(np.flatnonzero(~np.isfinite(x[:, index]))[0])
            raise DataError(
                "family.data.columns", name, f"row {row + 1} has no finite number; fill or remove such rows"
            )
        if data.standardize and np.ptp(x[:, index]) == 0:
            raise DataError("family.data.columns", name, "is the same in every row; leave it out")
    label = np.zeros(len(x), dtype=np.int64)
    if data.label is not None:
        values = table.column(data.label)
        if values.null_count:
            raise DataError("family.data.label", data.label, "some rows have no class; fill or remove them")
        known = sorted(pc.unique(values).to_pylist())
        numbers = {value: number for number, value in enumerate(known)}
        label = np.asarray([numbers[value] for value in values.to_pylist()], dtype=np.int64)
    sizes = np.bincount(label)
    if sizes.min() < 2 * fewest:
        said = f"has {sizes.min()} rows of a class, for {fewest} components each; lower family.components"
        raise DataError(FIELD, data.file, said)
    if data.standardize:
        x = (x - x.mean(axis=0)) / x.std(axis=0)
    return {"x": np.ascontiguousarray(x), "label": label}


def _checked(name: str) -> Path:
    path = local_path(name)
    if file_format(path) not in TABLE_FORMATS:
        raise Unusable(name, f"is none of {', '.join(TABLE_FORMATS)} (also as .gz): convert it")
    check_file(path)
    return path


def _read(path: Path) -> pa.Table:
    import io

    from pyarrow import csv, parquet

    with open_content(path) as stream:
        content = io.BytesIO(stream.read())
    format_name = "CSV" if file_format(path) == ".csv" else "Parquet"
    with unreadable(path, format_name):
        table: pa.Table = csv.read_csv(content) if format_name == "CSV" else parquet.read_table(content)
        table.validate(full=True)  # text that is no UTF-8 shows here, not where it is printed
        return table


def _is_number(kind: Any) -> bool:
    import pyarrow.types as types

    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind))
