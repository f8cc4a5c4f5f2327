"""A catalog that was brought up to date says what one made from nothing says, whatever happened in between."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import pytest

from flows.bench.catalog import bench_catalog, synthetic_store
from fortifai_core.config.experiment import ExperimentConfig
from fortifai_core.errors import ArtifactDamaged
from storage.catalog.catalog import VIEWS, query, refresh_catalog
from storage.catalog.updating import is_read
from storage.store import digests
from storage.store.digests import SETTLED_NS
from storage.store.experiments import list_experiments, record_experiment
from storage.store.manifest import MANIFEST_NAME, Manifest
from storage.store.store import ArtifactStore
from storage.store.survey import Survey, alike, survey
from storage.tables import parquet

TABLES = ("artifacts", "files", "edges")
Answers = dict[str, list[Any]]


def answers(store: ArtifactStore, names: Sequence[str] = (*VIEWS, *TABLES)) -> Answers:
    """Of each view how many rows it has, and a sum of them all, whatever their order."""
    found = query(store, _SUMS.format(" UNION ALL ".join(map(_sum_of, names))))[1]
    return {name: row for name, *row in found}


def by_address(store: ArtifactStore) -> Answers:
    """The same of everybody's DuckDB, who opens the file itself."""
    with duckdb.connect(refresh_catalog(store), read_only=True) as connection:
        found = connection.execute(_SUMS.format(" UNION ALL ".join(map(_sum_of, VIEWS)))).fetchall()
    return {name: row for name, *row in found}


_SUMS = "SELECT * FROM ({}) ORDER BY 1"


def _sum_of(name: str) -> str:
    return f"SELECT '{name}', count(*), sum(hash(t)::HUGEINT) FROM {name} t"


def check(store: ArtifactStore) -> Answers:
    """The catalog as it is against one made from nothing."""
    grown, opened = answers(store), by_address(store)
    store.catalog.unlink()
    assert answers(store) == grown
    assert {name: grown[name] for name in VIEWS} == opened
    return grown


def settled() -> None:
    """Let the times of all files be old enough to tell whether they are touched again."""
    time.sleep(SETTLED_NS / 1e9 + 0.1)


def put(store: ArtifactStore, key: str, value: float, **parents: str) -> None:
    with store.build("evaluation", key, anew=True) as draft:
        row = {"metric": "kr-total", "value": value, "count": 3}
        parquet.write_table(draft.path / "metrics.parquet", [row], schema="metrics")
        draft.commit(stage_version=1, content={"value": value}, parents=parents, seconds=1.0)


def strip(store: ArtifactStore, manifest: Manifest) -> None:
    assert store.strip(manifest.kind, manifest.key, lambda kind, name: name == "model.safetensors", by="gc")


def test_whatever_becomes_of_a_store_the_catalog_follows(tmp_path: Path) -> None:
    store = synthetic_store(tmp_path / "store", 100)
    settled()
    chance = random.Random(7)
    before = check(store)
    assert before["artifacts"][0] == 100 and before["metrics"][0] == 3 * 20 * 10
    for step in range(6):
        manifests = store.ls()
        match step:
            case 0:
                put(store, f"new-{step}", step / 7)
            case 1:
                put(store, "new-0", -float(step))  # built anew
            case 2:
                for manifest in chance.sample(manifests, 5):
                    store.remove(manifest.kind, manifest.key)
            case 3:
                strip(store, next(m for m in manifests if m.kind == "model" and m.removed is None))
            case 4:
                (first,) = list_experiments(store)
                kept = first.stages[:50]
                (store.root / "experiments" / f"{first.label}.json").unlink()
            case 5:
                config = ExperimentConfig(name=f"later-{step}").model_dump(mode="json")
                record_experiment(store, config=config, status="finished", stages=kept)
        now = answers(store)
        assert now != before, step
        before = check(store) if step in (2, 5) else now


def test_nothing_is_looked_into_that_was_not_touched(tmp_path: Path) -> None:
    store = synthetic_store(tmp_path / "store", 100)
    young = survey(store, [], is_read)
    assert len(young.new) == 100 and all(known.state is None for known in young.seen.values())
    settled()
    first = survey(store, alike(young.seen), is_read)
    assert not first.new and not first.gone and all(known.state is not None for known in first.seen.values())
    assert survey(store, alike(first.seen), is_read) == Survey([], {}, [])
    (kind, key), *_ = first.seen
    path = store.tree.place(kind, key) / MANIFEST_NAME
    path.write_bytes(path.read_bytes())
    again = survey(store, alike(first.seen), is_read)
    assert set(again.seen) == {(kind, key)} and not again.new and not again.gone
    path.unlink()
    assert survey(store, alike(first.seen), is_read) == Survey([], {}, [(kind, key)])


def test_every_way_to_alter_a_file_is_seen(tmp_path: Path) -> None:
    store = synthetic_store(tmp_path / "store", 100)
    settled()
    query(store, "FROM metrics")
    path = next(store.root.glob("artifacts/evaluation/*/metrics.parquet"))
    whole, times = path.read_bytes(), path.stat()
    flipped = bytes([*whole[:-40], whole[-40] ^ 1, *whole[-39:]])

    def in_place() -> None:
        with path.open("r+b") as file:
            file.write(flipped)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

    def by_another() -> None:
        path.with_suffix(".new").write_bytes(flipped)
        os.utime(path.with_suffix(".new"), ns=(times.st_atime_ns, times.st_mtime_ns))
        path.with_suffix(".new").replace(path)

    for alter in (in_place, by_another, lambda: path.write_bytes(whole[:-1]), path.unlink):
        alter()
        for _ in range(2):
            with pytest.raises(ArtifactDamaged, match="1 damaged artifacts"):
                query(store, "SELECT 1")
        path.write_bytes(whole)
        assert len(query(store, "FROM metrics")[1]) == 3 * 20 * 10


def test_a_bit_that_the_disk_loses_without_a_trace_is_found_by_the_query_that_reads_it(tmp_path: Path) -> None:
    store = synthetic_store(tmp_path / "store", 100)
    path = next(store.root.glob("artifacts/evaluation/*/scores.parquet"))
    settled()
    shown = query(store, "SELECT sum(value) FROM metrics")
    kind, key = path.parts[-3:-1]
    for spoilt in (path, path.with_name("metrics.parquet")):
        data = bytearray(spoilt.read_bytes())
        data[len(data) // 3] ^= 1
        spoilt.write_bytes(data)
    settled()
    # nobody touched it, by what the file system says: the catalog knows the state that it finds
    artifact = store.peek(kind, key)
    assert artifact is not None
    names = [entry["name"] for entry in artifact.files]
    (state,) = store.tree.states(kind, [key], names, before=time.time_ns())
    times = store.catalog.stat()
    with duckdb.connect(store.catalog) as connection:
        connection.execute("UPDATE known SET state = ? WHERE kind = ? AND key = ?", [state, kind, key])
    os.utime(store.catalog, ns=(times.st_mtime_ns, times.st_mtime_ns))
    digests.forget()
    assert query(store, "SELECT sum(value) FROM metrics") == shown  # of rows that were sound when they were read
    assert query(store, "SELECT count(*) FROM artifacts")[1] == [(100,)]
    for _ in range(2):
        with pytest.raises(ArtifactDamaged, match=f"1 damaged artifact in .*evaluation {key[:12]}: .*sha256.*verify"):
            query(store, "SELECT count(*) FROM scores")


def test_a_spoilt_catalog_is_made_again_and_answers_as_before(tmp_path: Path) -> None:
    store = synthetic_store(tmp_path / "store", 100)
    before = answers(store)
    data = bytearray(store.catalog.read_bytes())
    for offset in range(len(data) // 3, len(data)):  # its head is sound, what it leads to is not
        data[offset] ^= 0x55
    times = store.catalog.stat()
    store.catalog.write_bytes(data)
    os.utime(store.catalog, ns=(times.st_mtime_ns, times.st_mtime_ns))  # as if the disk had done it
    assert answers(store) == before
    put(store, "later", 1.0)
    assert answers(store)["artifacts"][0] == 101


def test_what_somebody_wrote_into_the_catalog_does_not_stay(tmp_path: Path) -> None:
    store = synthetic_store(tmp_path / "store", 100)
    before = answers(store)
    with duckdb.connect(store.catalog) as connection:
        connection.execute("DELETE FROM artifacts")
        connection.execute("UPDATE stage_metrics_rows SET value = 0")
    assert answers(store) == before


WRITER = """
import sys, time
from pathlib import Path
from storage.catalog.catalog import query, refresh_catalog
from storage.store.store import ArtifactStore
sys.path.insert(0, sys.argv[3])
from test_incremental import put
store, name = ArtifactStore(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
for number in range(int(sys.argv[4])):
    put(store, f"{name}-{number}", float(number))
    found = query(store, f"SELECT count(*) FROM artifacts WHERE key LIKE '{name}-%'")[1]
    assert found == [(number + 1,)], found
"""


def writer(store: ArtifactStore, name: str, count: int) -> subprocess.Popen[str]:
    arguments = [store.url, name, str(Path(__file__).parent), str(count)]
    return subprocess.Popen([sys.executable, "-c", WRITER, *arguments], stdout=subprocess.PIPE, text=True)


@pytest.mark.long
def test_writers_at_the_same_time_each_see_what_they_made_and_kills_leave_a_right_catalog(tmp_path: Path) -> None:
    store = synthetic_store(tmp_path / "store", 200)
    crowd = [writer(store, f"writer{number}", 6) for number in range(4)]
    assert [process.wait(120) for process in crowd] == [0] * 4
    assert check(store)["artifacts"][0] == 224
    for number in range(4):
        doomed = writer(store, f"doomed{number}", 1000)
        assert doomed.stdout is not None and doomed.stdout.readline() == "ready\n"
        time.sleep(0.15 + 0.1 * number)
        doomed.send_signal(signal.SIGKILL)
        doomed.communicate()
        check(store)
    for path in store.root.glob(".catalog-*"):
        os.utime(path, (0, 0))
    put(store, "last", 1.0)
    check(store)
    assert [p.name for p in store.root.iterdir() if "catalog" in p.name] == ["catalog.duckdb"]


@pytest.mark.long
def test_twenty_thousand_artifacts_and_one_more(tmp_path: Path) -> None:
    store = synthetic_store(tmp_path / "store", 20_000)
    settled()
    counted = "SELECT count(*), count(DISTINCT key), sum(value) FROM metrics"
    rows, keys, total = query(store, counted)[1][0]
    # of each experiment 40 tables of ten metrics and 20 of a family's
    assert (rows, keys) == (200 * 20 * 30, 200 * 20 * 3)
    assert query(store, "SELECT count(*), count(*) FILTER (present) FROM stages")[1] == [(20_000, 20_000)]
    put(store, "one-more", 5.0)
    assert query(store, counted)[1] == [(rows + 1, keys + 1, pytest.approx(total + 5.0))]
    gone = store.ls("drift")[0]
    store.remove(gone.kind, gone.key)
    assert query(store, counted)[1][0][:2] == (rows + 1 - 10, keys)
    strip(store, store.ls("model")[0])
    assert query(store, "SELECT count(*) FROM artifacts WHERE removed IS NOT NULL")[1] == [(1,)]
    small = ("experiments", "runs", "lineage", "artifacts", "stages", "metrics")
    grown = answers(store, small)
    store.catalog.unlink()
    assert answers(store, small) == grown
    assert query(store, "SELECT count(*) FROM documents WHERE generation = 3")[1] == [(200 * 4,)]


@pytest.mark.long
def test_the_benchmark_answers_for_a_small_store() -> None:
    (row,) = bench_catalog([100])
    assert row["artifacts"] == 100 and row["megabytes"] > 0
    steps = ("catalog", "query", "one_more", "query_one_more", "ls", "resume")
    assert all(row[name] > 0 and row[f"{name}_cpu"] > 0 for name in steps)


def test_a_query_loads_nothing_but_what_it_needs(tmp_path: Path) -> None:
    """Half of a second of every `fortifai sql` was the loading of software."""
    store = synthetic_store(tmp_path / "store", 100)
    refresh_catalog(store)
    put(store, "one-more", 1.0)
    code = (
        "import sys\n"
        "from storage.catalog.catalog import query\n"
        "from storage.store.store import ArtifactStore\n"
        "print(query(ArtifactStore(sys.argv[1]), 'SELECT count(*) FROM metrics')[1][0][0])\n"
        "print(*{'pyarrow', 'numpy', 'pandas', 'pydantic', 'torch'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, store.url], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(3 * 20 * 10 + 1)]


def test_a_made_up_store_is_whole(tmp_path: Path) -> None:
    store = synthetic_store(tmp_path / "store", 100)
    assert store.verify().damaged == [] and len(store.ls()) == 100
    larger = synthetic_store(tmp_path / "store", 100, first=1)
    assert len(larger.ls()) == 200 and len(list_experiments(larger)) == 2
