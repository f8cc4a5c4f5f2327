"""`fortifai bench catalog`: how long a store of many artifacts takes to answer, each number in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fortifai_core.config.experiment import ExperimentConfig
from fortifai_core.errors import StageFailed
from storage.store.experiments import StageRecord, record_experiment
from storage.store.keys import artifact_key
from storage.store.manifest import MANIFEST_NAME, Manifest, now
from storage.store.provenance import collect
from storage.store.store import ArtifactStore
from storage.tables import parquet

SIZES = (1_000, 10_000, 100_000)
QUERY = "SELECT metric, count(*), avg(value) FROM metrics GROUP BY metric ORDER BY metric"
GENERATIONS = 20  # of each experiment that is made up, with five artifacts each
# What is timed, in a process that has loaded nothing of it before. `begun` is after Python's start.
_TIMED = """
import sys, time
begun = time.perf_counter()
from storage.store.store import ArtifactStore
from storage.store.experiments import list_heads, load_experiment
from storage.catalog.catalog import query, refresh_catalog
store = ArtifactStore(sys.argv[2])
if sys.argv[1] == "ls":
    list_heads(store)
elif sys.argv[1] == "resume":
    load_experiment(store, "latest")
    store.addresses()
elif sys.argv[1] == "catalog":
    refresh_catalog(store)
else:
    query(store, sys.argv[1])
print(time.perf_counter() - begun, time.process_time())
"""


def synthetic_store(root: Path, artifacts: int, *, first: int = 0) -> ArtifactStore:
    """A store with so many made-up artifacts: experiments of 20 generations, with model, text and measurements each.

    They are as large as those of the smallest presets, and whole by every check; they are written without waiting for
    the disk.

    Args:
        artifacts: rounded up to whole experiments of 100.
        first: the number of the first experiment, for a store that grows.
    """
    store = ArtifactStore(root)
    folder = Path(tempfile.mkdtemp(prefix="fortifai-"))
    files = {name: _bytes(folder / name, *table) for name, table in _TABLES.items()}
    files["model.safetensors"] = bytes(2_000)
    provenance = collect(("fortifai_core", "tasks"))
    for number in range(first, first - (-artifacts // (5 * GENERATIONS))):
        stages: list[StageRecord] = []
        before: dict[str, str] = {}
        for generation in range(GENERATIONS):
            for kind, names in _KINDS.items():
                content = {"generation": generation, "number": number, "made": "up"}
                key = artifact_key(kind, version=1, content=content, parents=before)
                parents = dict(before)
                _put(store, kind, key, {name: files[name] for name in names}, content, parents, provenance)
                role = _ROLES.get(kind, kind)
                stages.append(StageRecord(kind, key, role, arm="ce", seed=0, generation=generation, parents=parents))
                if kind == "model":
                    before = {"model": key}
        config = ExperimentConfig(name=f"made-up-{number}").model_dump(mode="json")
        record_experiment(store, config=config, status="finished", stages=stages)
    return store


_KINDS = {
    "model": ["model.safetensors"],
    "split": ["part-00000.parquet"],
    "evaluation": ["metrics.parquet", "scores.parquet"],
    "drift": ["metrics.parquet", "confidence.parquet"],
    "family-segment": ["family.parquet"],
}
_ROLES = {"model": "train", "split": "regenerate", "evaluation": "evaluate"}
_TABLES: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "metrics.parquet": (
        "metrics",
        [{"metric": f"measure-{number}", "split": number % 3, "value": number / 7, "count": 9} for number in range(10)],
    ),
    "family.parquet": (
        "family-metrics",
        [{"generation": number, "metric": "variance", "value": 1.0 - number / 9, "count": 9} for number in range(10)],
    ),
    "scores.parquet": (
        "scores",
        [
            {"question": f"q{n}", "document": "d", "split": 0, "logp_true": -1.0, "logp_false": -2.0, "correct": True}
            for n in range(20)
        ],
    ),
    "confidence.parquet": ("confidence", [{"model": "own", "text": "real", "low": 0.0, "high": 0.5, "count": 7}]),
    "part-00000.parquet": (
        "split-text",
        [{"document": f"d{n}", "position": n, "text": "a text", "tokens": [1, 2, 3], "kept": 2} for n in range(4)],
    ),
}


def _bytes(path: Path, schema: str, rows: list[dict[str, Any]]) -> bytes:
    parquet.write_table(path, rows, schema=schema)
    written = path.read_bytes()
    path.unlink()
    return written


def _put(
    store: ArtifactStore,
    kind: str,
    key: str,
    files: dict[str, bytes],
    content: dict[str, Any],
    parents: dict[str, str],
    provenance: dict[str, Any],
) -> None:
    place = store.tree.place(kind, key)
    place.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (place / name.replace("family.", "metrics.")).write_bytes(data)
    entries = store.tree.describe(place)
    manifest = Manifest(kind, key, 1, content, parents, entries, {}, provenance, now(), 1.0)
    (place / MANIFEST_NAME).write_text(manifest.to_json())


def bench_catalog(sizes: Sequence[int], *, say: Callable[[str], None] = lambda _: None) -> list[dict[str, Any]]:
    """Seconds by number of artifacts, in stores that are made for it and removed.

    Returns:
        One row a size: `artifacts`, `catalog` (made from nothing), `query` (nothing new), `one_more` (catalog after one
        more artifact), `query_one_more` (a query after another one), `ls`, `resume` (what it looks up before it
        computes, without Prefect's start), `megabytes` of the catalog. Each also as `…_cpu`, in seconds of the CPU,
        which other work on the machine changes less.
    """
    rows = []
    for size in sizes:
        with tempfile.TemporaryDirectory(prefix="fortifai-") as folder:
            say(f"making {size:,} artifacts")
            store = synthetic_store(Path(folder) / "store", size)
            time.sleep(2.5)  # until their times tell whether they are touched again
            row: dict[str, Any] = {"artifacts": size}
            steps = {"catalog": "catalog", "query": QUERY, "one_more": "catalog", "query_one_more": QUERY}
            for name, what in {**steps, "ls": "ls", "resume": "resume"}.items():
                if name.endswith("one_more"):
                    files = {file: _bytes(store.root / file, *_TABLES[file]) for file in _KINDS["evaluation"]}
                    _put(store, "evaluation", artifact_key(name, version=1, content={}), files, {}, {}, {})
                row[name], row[f"{name}_cpu"] = _timed(what, store)
                say(f"  {name}: {row[name]:.2f} s, of the CPU {row[f'{name}_cpu']:.2f}")
            row["megabytes"] = store.catalog.stat().st_size / 1e6
            rows.append(row)
    return rows


def _timed(what: str, store: ArtifactStore) -> tuple[float, float]:
    """Seconds by the clock and of the CPU, the latter with Python's start."""
    done = subprocess.run([sys.executable, "-c", _TIMED, what, store.url], capture_output=True, text=True, check=False)
    if done.returncode:
        raise StageFailed(f"{what}: {done.stderr.strip().splitlines()[-1]}")
    clock, cpu = done.stdout.split()[-2:]  # after DuckDB's progress bar
    return float(clock), float(cpu)


def catalog_table(rows: Sequence[dict[str, Any]], console: Console) -> None:
    """Print seconds a size, and in brackets those of the CPU."""
    table = Table(box=None, pad_edge=False)
    names = ("artifacts", "catalog", "query", "one_more", "query_one_more", "ls", "resume", "megabytes")
    for name in names:
        table.add_column(name.replace("_", " "), justify="right")
    for row in rows:
        times = (f"{row[name]:.2f} ({row[f'{name}_cpu']:.2f})" for name in names[1:-1])
        table.add_row(f"{row['artifacts']:,}", *times, f"{row['megabytes']:.0f}")
    console.print(table)
