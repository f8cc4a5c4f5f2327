"""`fortifai bench store URL`: what a store there takes to commit, look up and read artifacts, beside a local one."""

from __future__ import annotations

import os
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from storage.store import durable
from storage.store.keys import artifact_key
from storage.store.store import ArtifactStore

SMALL = {f"part-{number}": 4_000 for number in range(5)}  # bytes by file, as an evaluation has
LARGE = {"model.safetensors": 128_000_000}


def bench_store(url: str, *, quick: bool = False) -> list[dict[str, Any]]:
    """Seconds per artifact, in a store below `url` and in one in a temporary folder; both are removed.

    Returns:
        One row an operation: `what`, `local`, `there` (seconds), `ratio` (there / local). `looked up` is what a run
        does with a stage that it finds; `read` is by a machine that has no copy of it, with every digest checked.

    Raises:
        StoreError: there cannot be a store.
    """
    small, large = (3, {"model.safetensors": 1_000_000}) if quick else (40, LARGE)
    name = f"bench-{uuid.uuid4().hex}"
    with tempfile.TemporaryDirectory(prefix="fortifai-") as folder:
        here = _seconds(Path(folder) / "local", Path(folder), small, large)
        place = f"{url.rstrip('/')}/{name}"
        try:
            there = _seconds(place, Path(folder), small, large)
        finally:
            _remove(ArtifactStore(place, cache=Path(folder) / "removing"))
    return [
        {"what": what, "local": here[what], "there": there[what], "ratio": there[what] / here[what]} for what in here
    ]


def _seconds(place: str | Path, folder: Path, count: int, large: dict[str, int]) -> dict[str, float]:
    def machine(name: str) -> ArtifactStore:
        return ArtifactStore(place, cache=folder / name)

    store = machine("one")
    store.writable()
    small = [artifact_key("evaluation", version=1, content={"number": number}) for number in range(count)]
    big = artifact_key("model", version=1, content={})
    times = {
        "small, committed": _timed(lambda: _put(store, "evaluation", small, SMALL)) / count,
        "large, committed": _timed(lambda: _put(store, "model", [big], large)),
        "small, looked up": _timed(lambda: [store.peek("evaluation", key) for key in small]) / count,
    }
    store = machine("two")
    times["small, read"] = _timed(lambda: [store.find("evaluation", key, verify=True) for key in small]) / count
    times["large, read"] = _timed(lambda: store.find("model", big, verify=True))
    times["all listed"] = _timed(store.ls)
    return times


def _put(store: ArtifactStore, kind: str, keys: Sequence[str], files: dict[str, int]) -> None:
    for key in keys:
        with store.build(kind, key) as draft:
            for name, size in files.items():
                (draft.path / name).write_bytes(os.urandom(size))
            draft.commit(stage_version=1, content={})


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _remove(store: ArtifactStore) -> None:
    if store.remote is not None:
        store.remote.clear()
    else:
        durable.remove_tree(store.root)


def store_table(rows: Sequence[dict[str, Any]], console: Console) -> None:
    """Print milliseconds and ratios."""
    table = Table(box=None, pad_edge=False)
    for name, justify in (("ms an artifact", "left"), ("local", "right"), ("there", "right"), ("ratio", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for row in rows:
        table.add_row(row["what"], f"{row['local'] * 1e3:.1f}", f"{row['there'] * 1e3:.1f}", f"{row['ratio']:.1f}")
    console.print(table)
