"""The only door to datasets: from the hub, or from the local mirror in its place.

With FORTIFAI_DATA set, datasets come from that folder alone (`storage.sources.mirror`), and what it lacks is an
error; otherwise they come through `datasets`, which honours HF_HUB_OFFLINE and its own cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fortifai_core.errors import Unusable
from storage.sources import mirror
from storage.sources.network import network_errors
from storage.sources.textfiles import folder_digest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


MNIST, MNIST_REVISION = "ylecun/mnist", "77f3279092a1c1579b2250db8eafed0ad422088c"
LOCAL = "folder"  # the name of a local folder's digest


@dataclass(frozen=True)
class Rows:
    """Rows of a dataset's split.

    Attributes:
        rows: column name to value, in the dataset's order.
        complete: whether these are all rows of the split; never False unless a part was asked for.
        note: what to state beside a result, or None.
    """

    rows: list[dict[str, Any]]
    complete: bool = True
    note: str | None = None


def load_dataset_rows(
    dataset: str,
    config: str | None,
    split: str,
    revision: str | None = None,
    *,
    limit: int | None = None,
    allow_part: bool = False,
) -> Rows:
    """The rows of one split of a dataset.

    Args:
        dataset, config, split: as `datasets.load_dataset` takes them.
        revision: commit or tag on the hub; the mirror has one version only and ignores it.
        limit: no more than the first so many rows.
        allow_part: take what the mirror has where that is a part of the split; otherwise that is an error,
            unless `limit` rows are there.

    Raises:
        Unusable: the mirror lacks the split or a part of it or is damaged; or the hub has no such dataset or
            cannot be reached.
    """
    folder = mirror.root()
    if folder is None:
        rows = _from_hub(dataset, config, split, revision, limit=limit)
        return Rows(rows, complete=limit is None or len(rows) < limit)
    file = mirror.find(folder, dataset, config, split)
    if not (allow_part or file.complete or (limit is not None and limit <= file.rows)):
        raise part_only(dataset, split, file)
    rows = mirror.read_rows(folder, file)[:limit]
    note = None if file.complete else f"{dataset}, {split}: the local mirror holds only {file.part}."
    return Rows(rows, complete=file.complete and len(rows) == file.rows, note=note)


def part_only(dataset: str, split: str, file: mirror.MirrorFile) -> Unusable:
    """The error of asking for more of a split than the mirror holds."""
    other = ", take config wikitext-2-v1" if "wikitext-2-raw" in file.path else ""
    remedy = f"lower max_documents{other}, or unset {mirror.VARIABLE} to load it from the hub"
    return Unusable(f"{dataset}, {split}", f"the local mirror holds only {file.part}: {remedy}", "dataset")


def dataset_splits(dataset: str, config: str | None, revision: str | None = None) -> list[str]:
    """Names of a dataset's own splits.

    Raises:
        Unusable: as `load_dataset_rows`.
    """
    folder = mirror.root()
    if folder is not None:
        return list(mirror.splits(folder, dataset, config))
    import datasets

    with _hub_errors(dataset):
        return [str(name) for name in datasets.get_dataset_split_names(dataset, config, revision=revision)]


def dataset_digests(dataset: str, config: str | None, splits: list[str], revision: str | None = None) -> dict[str, str]:
    """What stands for a dataset in a key: digests of the mirror's files, or its name and revision on the hub.

    Splits that the mirror does not have are left out. A dataset in a folder of the user's own goes by every file in it.
    """
    folder = mirror.root()
    if folder is None and is_local(dataset):
        return {LOCAL: folder_digest(Path(dataset))}
    if folder is None:
        return {"hub": f"{dataset}/{config or 'default'}@{revision or 'main'}"}
    present = mirror.splits(folder, dataset, config)
    return {f"mirror.{split}": mirror.digest(folder, present[split]) for split in splits if split in present}


def is_local(dataset: str) -> bool:
    """Whether `datasets` takes the name for a folder or file here, and reads that."""
    return Path(dataset).exists()


def load_mnist(split: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """MNIST (`train` or `test`) from the hub: images (n, 28, 28) and labels (n,), both uint8.

    Raises:
        Unusable: the hub cannot be reached.
    """
    import numpy as np

    rows = _from_hub(MNIST, None, split, MNIST_REVISION, limit=None)
    images = np.stack([np.asarray(row["image"], dtype=np.uint8) for row in rows])
    return images, np.asarray([row["label"] for row in rows], dtype=np.uint8)


def _from_hub(
    dataset: str, config: str | None, split: str, revision: str | None, *, limit: int | None
) -> list[dict[str, Any]]:
    import datasets

    with _hub_errors(dataset):
        loaded = datasets.load_dataset(dataset, config, split=split, revision=revision)
        if limit is not None:
            loaded = loaded.select(range(min(limit, len(loaded))))
        rows: list[dict[str, Any]] = loaded.to_list() if "image" not in loaded.column_names else list(loaded)
    if not rows:
        raise Unusable(split, f"this split of {dataset} is empty: choose another", "split")
    return rows


@contextmanager
def _hub_errors(dataset: str) -> Iterator[None]:
    """What goes wrong between here and the hub, as one error with a remedy."""
    import datasets.exceptions
    import huggingface_hub.errors

    try:
        yield
    except (
        OSError,
        ValueError,
        network_errors(),
        datasets.exceptions.DatasetsError,
        huggingface_hub.errors.EntryNotFoundError,
    ) as error:
        reason = " ".join(str(error).split())
        remedy = f"set {mirror.VARIABLE} to a local mirror that holds it, or correct name, config and split"
        raise Unusable(dataset, f"the hub did not give it ({reason[:300]}): {remedy}", "dataset") from error
