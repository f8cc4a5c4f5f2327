"""Storage: keys, manifests, crash safety, one builder, damage, remote stores, shards, provenance, records."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from enum import Enum, IntEnum, StrEnum
from pathlib import Path

import numpy as np
import pytest

from fortifai_core.config.experiment import ExperimentConfig
from fortifai_core.errors import (
    ArtifactDamaged,
    DataError,
    FortifaiError,
    InputError,
    StageFailed,
    StoreError,
)
from storage.store import provenance
from storage.store.experiments import StageRecord, experiment_id, list_experiments, load_experiment, record_experiment
from storage.store.keys import EncodingError, artifact_key, canonical_json, file_digest
from storage.store.locks import Lease, LeaseTimes, lease
from storage.store.manifest import Manifest
from storage.store.remote import Remote
from storage.store.store import ArtifactDamagedWarning, ArtifactStore, Draft
from storage.tables import parquet

KEY = "a" * 64
QUICK = LeaseTimes(beat=0.05, expiry=0.4, poll=0.02)


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "store")


def remote_store(tmp_path: Path, name: str, machine: str = "one") -> ArtifactStore:
    return ArtifactStore(f"memory://{name}/prefix", cache=tmp_path / machine, lease_times=QUICK)


def build(draft: Draft, text: str = "hello") -> None:
    (draft.path / "inner").mkdir()
    (draft.path / "a.txt").write_text(text)
    (draft.path / "inner" / "b.txt").write_text("b")
    draft.commit(stage_version=2, content={"x": 1.0, "n": 1}, parents={"corpus": "b" * 64}, metrics={"loss": 0.5})


# --- keys ---


class Colour(StrEnum):
    RED = "red"


class Number(IntEnum):
    ONE = 1


class Plain(Enum):
    A = "a"


def test_key_is_the_digest_of_the_text_that_the_format_promises() -> None:
    """The text is spelled out by hand: a change of the encoding would orphan everybody's artifacts."""
    text = (
        '{"content":{"a":[1,1.0,null,true,"\\u00e9"],"b":{"lr":2e-05}},"kind":"model",'
        '"parents":{"base":"p1"},"schema":1,"version":3}'
    )
    key = artifact_key(
        "model",
        version=3,
        content={"b": {"lr": 2e-5}, "a": (1, 1.0, None, True, "é")},
        parents={"base": "p1"},
    )
    assert key == hashlib.sha256(text.encode()).hexdigest()
    assert key == "a302636ed00bb7ae086380126c1c99e2a48c25f0bbfc81e24675243cb670897f"


def test_every_part_of_a_key_matters_and_order_of_names_does_not() -> None:
    base = {"kind": "model", "version": 1, "content": {"a": 1, "b": [1, 2]}, "parents": ["p", "q"]}

    def key(**changes: object) -> str:
        fields = {**base, **changes}
        return artifact_key(fields.pop("kind"), **fields)  # type: ignore[arg-type]

    different = [
        key(),
        key(kind="split"),
        key(version=2),
        key(content={"a": 1.0, "b": [1, 2]}),
        key(content={"a": True, "b": [1, 2]}),
        key(content={"a": "1", "b": [1, 2]}),
        key(content={"a": 1, "b": [2, 1]}),
        key(content={"a": 1, "b": [1, 2], "c": None}),
        key(parents=["q", "p"]),
        key(parents={"p": "q"}),
        key(parents=[]),
    ]
    assert len(set(different)) == len(different)
    assert key(content={"b": (1, 2), "a": 1}) == key()
    assert canonical_json({"c": Colour.RED, Colour.RED: 0.1}) == canonical_json({"c": "red", "red": 0.1})


def test_floats_are_exact_and_never_taken_for_integers() -> None:
    assert canonical_json(1) == "1"
    assert canonical_json(1.0) == "1.0"
    assert canonical_json(1e22) == "1e+22" != canonical_json(10**22)
    assert canonical_json(0.1 + 0.2) != canonical_json(0.3)
    for value in (1e16, 5e-324, 0.1, 1 / 3, -0.0):
        assert float(canonical_json(value)).hex() == value.hex()


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        float("inf"),
        {1, 2},
        b"x",
        np.float64(1.0),
        np.int64(1),
        np.str_("a"),
        np.zeros(2),
        Number.ONE,
        Plain.A,
        Path("x"),
        ExperimentConfig.__base__(),
        {1: "integer name"},
        object(),
    ],
    ids=lambda v: type(v).__name__,
)
def test_what_has_no_exact_encoding_is_refused_by_its_place(value: object) -> None:
    with pytest.raises(EncodingError, match=r"content\.losses\[1\]\.gamma") as caught:
        artifact_key("model", version=1, content={"losses": [{}, {"gamma": value}]})
    assert isinstance(caught.value, FortifaiError)
    assert isinstance(caught.value, TypeError)


def test_a_single_key_is_not_a_list_of_parents() -> None:
    with pytest.raises(EncodingError, match="parents"):
        artifact_key("model", version=1, content={}, parents="abc")


# --- manifest ---


def test_manifest_survives_json_and_shows_a_flipped_bit() -> None:
    entry = {"name": "a", "size": 1, "sha256": "0" * 64}
    manifest = Manifest(
        kind="model",
        key=KEY,
        stage_version=1,
        content={"g": 0.9, "n": 1},
        parents={"base": "b"},
        files=[entry],
        metrics={"loss": 0.1, "name": "x"},
        provenance={"p": {"q": [1]}},
        created="2026-01-01T00:00:00+00:00",
        seconds=1.5,
    )
    text = manifest.to_json()
    assert Manifest.from_json(text) == manifest
    assert isinstance(Manifest.from_json(text).content["n"], int)
    for damaged in (text.replace("0.9", "0.8"), text[:-20], "", "[]", text.replace('"seconds"', '"second"')):
        with pytest.raises(ArtifactDamaged):
            Manifest.from_json(damaged)
    with pytest.raises(EncodingError, match=r"metrics\.loss"):
        Manifest("model", KEY, 1, {}, {}, [], {"loss": float("nan")}).to_json()


# --- building ---


def test_build_then_find(store: ArtifactStore) -> None:
    assert store.find("model", KEY) is None
    made = store.get_or_build("model", KEY, build)
    found = store.find("model", KEY, verify=True)
    assert found == made
    assert found.file("inner/b.txt").read_text() == "b"
    assert found.manifest.files[0] == {
        "name": "a.txt",
        "size": 5,
        "sha256": file_digest(found.path / "a.txt"),
    }
    assert found.manifest.parents == {"corpus": "b" * 64}
    assert [p.name for p in found.files("*.txt")] == ["a.txt", "b.txt"]
    assert store.ls() == [made.manifest] == store.ls("model")
    assert store.ls("split") == []
    assert store.verify() == []
    with pytest.raises(ArtifactDamaged, match=r"c\.txt"):
        found.file("c.txt")

    def never(draft: Draft) -> None:
        raise AssertionError("built twice")

    assert store.get_or_build("model", KEY, never) == made
    store.remove("model", KEY)
    assert store.find("model", KEY) is None
    assert store.ls() == []


def test_an_exception_leaves_no_artifact_but_keeps_the_workspace(store: ArtifactStore) -> None:
    with pytest.raises(RuntimeError, match="midway"), store.build("model", KEY) as draft:
        (draft.path / "a.txt").write_text("half")
        (draft.workspace / "checkpoint").write_text("step 100")
        raise RuntimeError("midway")
    assert store.find("model", KEY) is None
    assert not draft.path.exists()
    assert (store.workspace("model", KEY) / "checkpoint").read_text() == "step 100"
    with store.build("model", KEY) as draft:
        assert list(draft.path.iterdir()) == []
        (draft.path / "sub").mkdir()
        (draft.path / "sub" / "kept").write_text((draft.workspace / "checkpoint").read_text())
        draft.commit(stage_version=1, content={})
    assert store.find("model", KEY).file("sub/kept").read_text() == "step 100"
    assert list((store.root / "work").iterdir()) == []


def test_a_builder_that_commits_nothing_or_twice_is_told(store: ArtifactStore) -> None:
    with pytest.raises(StageFailed, match="without committing"):
        store.get_or_build("model", KEY, lambda draft: (draft.path / "a").write_text("x"))
    with pytest.raises(ArtifactDamaged, match="empty"):
        store.get_or_build("model", KEY, lambda draft: draft.commit(stage_version=1, content={}))

    def twice(draft: Draft) -> None:
        build(draft)
        draft.commit(stage_version=1, content={})

    with pytest.raises(StageFailed, match="never changes"):
        store.get_or_build("model", KEY, twice)

    def foreign(draft: Draft) -> None:
        (draft.path / "link").symlink_to("/etc/hostname")
        draft.commit(stage_version=1, content={})

    with pytest.raises(ArtifactDamaged, match="not a plain file"):
        store.get_or_build("split", KEY, foreign)


def test_a_manifest_that_cannot_be_encoded_moves_nothing(store: ArtifactStore) -> None:
    def bad(draft: Draft) -> None:
        (draft.path / "a").write_text("x")
        draft.commit(stage_version=1, content={"x": np.float64(1)})

    with pytest.raises(EncodingError, match=r"content\.x"):
        store.get_or_build("model", KEY, bad)
    assert store.find("model", KEY) is None
    assert list(store.tree.addresses()) == []


def test_refresh_replaces_only_at_the_commit(store: ArtifactStore) -> None:
    store.get_or_build("model", KEY, build)
    with pytest.raises(RuntimeError), store.build("model", KEY, refresh=True) as draft:
        assert draft.found is None
        raise RuntimeError
    assert store.find("model", KEY).file("a.txt").read_text() == "hello"
    with store.build("model", KEY, refresh=True) as draft:
        build(draft, "anew")
    assert store.find("model", KEY, verify=True).file("a.txt").read_text() == "anew"


@pytest.mark.parametrize(("kind", "key"), [("../x", KEY), ("model", "../../x"), ("model", ""), ("", KEY)])
def test_an_address_cannot_leave_the_store(store: ArtifactStore, kind: str, key: str) -> None:
    with pytest.raises(ValueError, match=r"kind|key"):
        store.find(kind, key)
    with pytest.raises(ValueError, match=r"kind|key"), store.build(kind, key):
        pass


BUILDER = """
import os, sys, time
from pathlib import Path
from storage.store.store import ArtifactStore
store = ArtifactStore(sys.argv[1])
def build(draft):
    (draft.path / "a.txt").write_text("from " + str(os.getpid()))
    (draft.workspace / "part").write_text("kept")
    with open(sys.argv[2], "a") as log:
        log.write(f"{os.getpid()}\\n")
    time.sleep(float(sys.argv[3]))
    draft.commit(stage_version=1, content={})
store.get_or_build("model", "k" * 64, build, on_wait=lambda message: print(message, flush=True))
print("done", flush=True)
"""


def start_builder(store: ArtifactStore, log: Path, seconds: float) -> subprocess.Popen[str]:
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", BUILDER, store.url, str(log), str(seconds)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.01)


def test_two_processes_race_and_one_builds(store: ArtifactStore, tmp_path: Path) -> None:
    log = tmp_path / "built"
    first = start_builder(store, log, 1.0)
    wait_for(log)
    second = start_builder(store, log, 1.0)
    said = second.communicate(timeout=30)[0]
    first.communicate(timeout=30)
    assert first.returncode == second.returncode == 0
    assert len(log.read_text().splitlines()) == 1
    assert said.splitlines() == [f"waiting for another process that holds model {'k' * 12}", "done"]
    assert store.find("model", "k" * 64).file("a.txt").read_text() == f"from {first.pid}"


def test_a_killed_builder_leaves_no_artifact_and_no_lock(store: ArtifactStore, tmp_path: Path) -> None:
    log = tmp_path / "built"
    process = start_builder(store, log, 60)
    wait_for(log)
    draft = store.tree.draft("model", "k" * 64)
    assert (draft / "a.txt").exists()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert store.find("model", "k" * 64) is None
    with store.build("model", "k" * 64, timeout=5) as again:
        assert list(again.path.iterdir()) == []
        assert (again.workspace / "part").read_text() == "kept"


def test_a_crash_between_rename_and_manifest_is_no_artifact(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from storage.store import durable

    def power_cut(path: Path, data: bytes) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(durable, "write_bytes", power_cut)
        with pytest.raises(KeyboardInterrupt):
            store.get_or_build("model", KEY, build)
    assert (store.tree.place("model", KEY) / "a.txt").exists()
    assert store.find("model", KEY) is None
    assert [finding.problem for finding in store.verify()] == ["unfinished: it has no manifest"]
    assert store.get_or_build("model", KEY, build).file("a.txt").read_text() == "hello"
    assert store.verify() == []


def test_the_lock_times_out(store: ArtifactStore) -> None:
    said: list[str] = []
    with (
        store.build("model", KEY),
        pytest.raises(StageFailed, match="still held"),
        store.build("model", KEY, timeout=0.2, on_wait=said.append),
    ):
        pass
    assert len(said) == 1


def test_opening_a_store_imports_nothing_heavy() -> None:
    code = (
        "import sys, storage.store.experiments, storage.store.provenance, storage.tables.parquet\n"
        "from storage.store.store import ArtifactStore\n"
        "ArtifactStore('x').find('model', 'k')\n"
        "heavy = {'torch', 'pyarrow', 'duckdb', 'numpy', 'fsspec', 'pydantic'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, env={**os.environ, "PYTHONPATH": str(root)})


# --- damage ---


def test_a_truncated_file_is_set_aside_and_rebuilt(store: ArtifactStore) -> None:
    artifact = store.get_or_build("model", KEY, build)
    (artifact.path / "a.txt").write_text("hell")
    assert "4 bytes" in store.verify()[0].problem
    with pytest.warns(ArtifactDamagedWarning, match=r"a\.txt has 4 bytes, its manifest says 5"):
        assert store.find("model", KEY) is None
    (aside,) = (store.root / "damaged").iterdir()
    assert aside.name.endswith(f"-model-{KEY}")
    assert (aside / "a.txt").read_text() == "hell"
    assert store.get_or_build("model", KEY, build).file("a.txt").read_text() == "hello"


def test_a_flipped_bit_is_caught_by_digest(store: ArtifactStore) -> None:
    artifact = store.get_or_build("model", KEY, build)
    (artifact.path / "a.txt").write_text("jello")
    assert store.find("model", KEY) is not None
    assert [f.key for f in store.verify()] == [KEY]
    with pytest.warns(ArtifactDamagedWarning, match="sha256"):
        rebuilt = store.get_or_build("model", KEY, build, verify=True)
    assert rebuilt.file("a.txt").read_text() == "hello"


@pytest.mark.parametrize("text", ["", "{}", "not json"])
def test_a_damaged_manifest_is_damage_and_not_absence(store: ArtifactStore, text: str) -> None:
    artifact = store.get_or_build("model", KEY, build)
    (artifact.path / "manifest.json").write_text(text)
    with pytest.warns(ArtifactDamagedWarning):
        assert store.ls() == []
    with pytest.warns(ArtifactDamagedWarning, match="set aside"):
        assert store.find("model", KEY) is None


def test_a_manifest_in_the_wrong_place_is_refused(store: ArtifactStore) -> None:
    artifact = store.get_or_build("model", KEY, build)
    artifact.path.rename(artifact.path.with_name("c" * 64))
    with pytest.warns(ArtifactDamagedWarning, match="belongs to"):
        assert store.find("model", "c" * 64) is None


def test_a_missing_file_is_damage(store: ArtifactStore) -> None:
    artifact = store.get_or_build("model", KEY, build)
    (artifact.path / "inner" / "b.txt").unlink()
    with pytest.raises(ArtifactDamaged, match="gone"):
        artifact.file("inner/b.txt")
    with pytest.warns(ArtifactDamagedWarning, match="missing"):
        assert store.find("model", KEY) is None


# --- the place itself ---


def test_a_store_that_cannot_be_written_says_where(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    store = ArtifactStore(tmp_path / "file" / "store")
    for attempt in (store.writable, lambda: store.get_or_build("model", KEY, build)):
        with pytest.raises(StoreError, match="file/store") as caught:
            attempt()
        assert "may read and write" in str(caught.value)


def test_store_urls(tmp_path: Path) -> None:
    assert ArtifactStore(f"file://{tmp_path}/a%20b").url == f"{tmp_path}/a b"
    assert ArtifactStore(str(tmp_path)).remote is None
    assert ArtifactStore(tmp_path / "not" / "yet").free_bytes() > 0
    with pytest.raises(StoreError, match="fsspec"):
        ArtifactStore("nonsense://bucket")


def test_a_full_disk_is_named(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(root: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("storage.store.durable.fsync_tree", full)
    with pytest.raises(StoreError, match="No space left"):
        store.get_or_build("model", KEY, build)


# --- a remote store ---


def test_remote_round_trip_and_a_second_machine(tmp_path: Path) -> None:
    name = uuid.uuid4().hex
    one, two = remote_store(tmp_path, name, "one"), remote_store(tmp_path, name, "two")
    one.writable()
    made = one.get_or_build("model", KEY, build)
    assert two.peek("model", KEY) == made.manifest
    assert not (two.root / "artifacts").exists()  # peeking downloads nothing
    found = two.find("model", KEY, verify=True)
    assert found is not None
    assert found.path != made.path
    assert found.file("inner/b.txt").read_text() == "b"
    assert two.ls() == [made.manifest]
    assert two.verify() == []
    two.remove("model", KEY)
    assert one.find("model", KEY) is None


def test_remote_damage_is_set_aside_and_local_damage_fetched_again(tmp_path: Path) -> None:
    store = remote_store(tmp_path, uuid.uuid4().hex)
    artifact = store.get_or_build("model", KEY, build)
    (artifact.path / "a.txt").write_text("hell")
    assert store.find("model", KEY).file("a.txt").read_text() == "hello"
    assert store.remote is not None
    store.remote.write(f"artifacts/model/{KEY}/a.txt", b"hell")
    with pytest.warns(ArtifactDamagedWarning, match="set aside"):
        assert store.find("model", KEY) is None
    assert any(name.endswith("/a.txt") for name in store.remote.listing("damaged"))
    # Our copy was whole all along: the next builder publishes it instead of building.
    with store.build("model", KEY) as draft:
        assert draft.found is not None
    assert store.find("model", KEY, verify=True) is not None


def test_remote_bytes_are_checked_on_their_way(tmp_path: Path) -> None:
    name = uuid.uuid4().hex
    one, two = remote_store(tmp_path, name, "one"), remote_store(tmp_path, name, "two")
    one.get_or_build("model", KEY, build)
    assert one.remote is not None
    one.remote.write(f"artifacts/model/{KEY}/a.txt", b"jello")
    with pytest.warns(ArtifactDamagedWarning, match="sha256"):
        assert two.find("model", KEY) is None


def test_an_upload_that_breaks_off_is_no_artifact_and_is_finished_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = remote_store(tmp_path, uuid.uuid4().hex)
    assert store.remote is not None
    with monkeypatch.context() as patched:

        def cut(local: str, path: str) -> None:
            raise OSError("connection lost")

        patched.setattr(store.remote.fs, "put_file", cut)
        with pytest.raises(OSError, match="connection lost"):
            store.get_or_build("model", KEY, build)
    assert store.find("model", KEY) is None

    def never(draft: Draft) -> None:
        raise AssertionError("built again though the copy was whole")

    assert store.get_or_build("model", KEY, never).file("a.txt").read_text() == "hello"
    assert store.find("model", KEY) is not None


def test_remote_builders_exclude_each_other(tmp_path: Path) -> None:
    name, built, said = uuid.uuid4().hex, [], []

    def slow(draft: Draft) -> None:
        built.append(draft.path)
        time.sleep(3 * QUICK.expiry)  # longer than the expiry: only the heartbeat keeps the lease
        build(draft)

    def work(machine: str) -> None:
        remote_store(tmp_path, name, machine).get_or_build("model", KEY, slow, on_wait=said.append)

    threads = [threading.Thread(target=work, args=(f"machine-{i}",)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(built) == 1
    assert len(said) == 2


def test_an_expired_lease_is_taken_over_and_its_owner_cannot_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = uuid.uuid4().hex
    one, two = remote_store(tmp_path, name, "one"), remote_store(tmp_path, name, "two")
    asleep = threading.Event()
    beat = Lease.beat

    def sleeping_beat(self: Lease, *, over: bool = False) -> None:
        if not (asleep.is_set() and self.number == 1):
            beat(self, over=over)

    monkeypatch.setattr(Lease, "beat", sleeping_beat)
    with pytest.raises(StageFailed, match="lost"), one.build("model", KEY) as draft:
        (draft.path / "a.txt").write_text("late")
        asleep.set()
        started = time.monotonic()
        two.get_or_build("model", KEY, build)
        assert time.monotonic() - started > QUICK.expiry
        draft.commit(stage_version=1, content={})
    assert two.find("model", KEY, verify=True).file("a.txt").read_text() == "hello"


def test_a_lease_is_free_again_at_once_after_release() -> None:
    objects = Remote(f"memory://{uuid.uuid4().hex}")
    started = time.monotonic()
    for _ in range(3):
        with lease(objects, "locks/x", what="x", times=QUICK) as held:
            held.check()
    assert time.monotonic() - started < QUICK.expiry
    assert objects.names("locks/x") == ["00000003"]


def test_an_old_number_cannot_be_revived() -> None:
    """A contender that slept while others came and went finds its number taken, or not the newest."""
    from storage.store.locks import _claim

    objects = Remote(f"memory://{uuid.uuid4().hex}")
    for _ in range(2):
        with lease(objects, "locks/x", what="x", times=QUICK):
            pass
    assert not _claim(objects, "locks/x", 1, "late")
    assert not _claim(objects, "locks/x", 2, "late")
    assert objects.names("locks/x") == ["00000002"]
    assert _claim(objects, "locks/x", 3, "next")


# --- shards ---

TEXT_ROW = {"document": "d", "position": 0, "text": "a b", "tokens": [1, 2], "kept": 2}


def test_tables_round_trip_in_a_stream(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    rows = [{**TEXT_ROW, "position": i, "tokens": list(range(i % 7))} for i in range(3000)]
    assert parquet.write_table(path, iter(rows), schema="split-text") == 3000
    assert parquet.read_rows(path) == [{**row, "same": None, "accepted": None} for row in rows]  # may be left out
    assert parquet.read_table_columns([path, path], ["position"])["position"] == [*range(3000), *range(3000)]
    batches = list(parquet.iter_batches([path], columns=["tokens"], batch_rows=500))
    assert max(len(b["tokens"]) for b in batches) <= 500
    assert [t for b in batches for t in b["tokens"]] == [r["tokens"] for r in rows]

    import pyarrow.parquet as pq

    metadata = pq.read_metadata(path)
    assert metadata.num_row_groups == 3
    assert metadata.row_group(0).column(0).compression == "ZSTD"


def test_columns_are_taken_as_well_and_null_where_allowed(tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    parquet.write_table(path, {"metric": ["a", "b"], "value": [0.5, 1.0], "count": [1, 2]}, schema="metrics")
    assert parquet.read_rows(path)[1] == {"metric": "b", "split": None, "value": 1.0, "count": 2}
    with pytest.raises(DataError, match="same length"):
        parquet.write_table(path, {"metric": ["a"], "value": []}, schema="metrics")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({**TEXT_ROW, "tokens": None}, "missing"),
        ({**TEXT_ROW, "surprise": 1}, "unknown"),
        ({**TEXT_ROW, "position": "first"}, "schema"),
        ({**TEXT_ROW, "tokens": [2**40]}, "schema"),
    ],
)
def test_rows_that_do_not_fit_are_refused_and_leave_nothing(tmp_path: Path, row: dict, said: str) -> None:
    with pytest.raises(DataError, match=said):
        parquet.write_table(tmp_path / "t.parquet", [TEXT_ROW, row], schema="split-text")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_silently_empty(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    with pytest.raises(DataError, match="0 rows"):
        parquet.write_table(path, [], schema="scores")
    assert not path.exists()
    parquet.write_table(path, [], schema="questions", allow_empty=True)
    assert parquet.read_rows(path, allow_empty=True) == []
    for read in (
        lambda p: parquet.read_rows(p),
        lambda p: list(parquet.iter_batches([p])),
        lambda p: parquet.read_table_columns(p, ["split"]),
    ):
        with pytest.raises(ArtifactDamaged, match="no rows"):
            read(path)
        with pytest.raises(ArtifactDamaged, match="missing"):
            read(tmp_path / "absent.parquet")
    parquet.write_table(path, [TEXT_ROW], schema="split-text")
    with pytest.raises(ArtifactDamaged, match="no column nope"):
        parquet.read_rows(path, columns=["nope"])
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ArtifactDamaged, match="cannot be read"):
        parquet.read_rows(path)


def test_packed_rows_are_what_datasets_maps(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    path = tmp_path / "packed.arrow"
    rows = np.arange(2500 * 8).reshape(-1, 8)
    assert parquet.write_packed(path, (row.tolist() for row in rows), sequence_length=8) == 2500
    loaded = datasets.Dataset.from_file(str(path))
    assert loaded.cache_files == [{"filename": str(path)}]
    assert np.array_equal(np.array(loaded.with_format("numpy")["input_ids"][:]), rows)
    with pytest.raises(DataError, match="row 1 of"):
        parquet.write_packed(path, [[1, 2], [1, 2, 3]], sequence_length=2)
    with pytest.raises(DataError, match="row 0 of"):
        parquet.write_packed(path, [[]], sequence_length=2)
    assert parquet.write_packed(path, [[1, 2], [3]], sequence_length=2) == 2
    assert datasets.Dataset.from_file(str(path))["input_ids"][:] == [[1, 2], [3]]
    with pytest.raises(DataError, match="0 rows"):
        parquet.write_packed(path, [], sequence_length=2)


def test_parts_resume_where_they_stopped(tmp_path: Path) -> None:
    layout = {"blocks": 4}
    assert parquet.finished_parts(tmp_path, layout=layout) == {}

    def breaks_off() -> object:
        yield TEXT_ROW
        raise RuntimeError("killed")

    for number in (0, 2):
        parquet.write_table(tmp_path / parquet.part_name(number), [TEXT_ROW], schema="split-text")
    with pytest.raises(RuntimeError):
        parquet.write_table(tmp_path / parquet.part_name(1), breaks_off(), schema="split-text")
    (tmp_path / parquet.part_name(3)).write_bytes(b"PAR1 torn")
    (tmp_path / f".{parquet.part_name(4)}.x.tmp").write_bytes(b"half")
    assert list(parquet.finished_parts(tmp_path, layout=layout)) == [0, 2]
    assert list(parquet.finished_parts(tmp_path)) == [0, 2]
    # Parts of four blocks cannot be continued with parts of eight.
    assert parquet.finished_parts(tmp_path, layout={"blocks": 8}) == {}
    assert parquet.finished_parts(tmp_path) == {}


# --- provenance ---


def test_provenance_is_json_and_names_no_host() -> None:
    import socket

    found = provenance.collect(["kernels", "storage"])
    text = json.dumps(found)
    assert set(found["sources"]) == {"kernels", "storage"}
    assert found["packages"]["pyarrow"].count(".") == 2
    assert found["peak_rss_bytes"] > 10**6
    assert len(socket.gethostname()) < 4 or socket.gethostname() not in text
    assert "hostname" not in text


def test_drift_names_the_fields_that_differ() -> None:
    old = {
        "git": {"revision": "a" * 40, "dirty": False},
        "sources": {"kernels": "1" * 64, "storage": "2" * 64},
        "packages": {"torch": "2.12.0", "numpy": "2.0"},
        "python": "3.11.7",
        "torch_threads": 2,
        "peak_rss_bytes": 1,
    }
    assert provenance.drift(old, {**old, "peak_rss_bytes": 99, "torch_threads": None}) == []
    assert provenance.drift(old, {**old, "git": {"revision": "b" * 40}}) == []  # same sources, another commit
    new = {
        **old,
        "git": {"revision": "b" * 40},
        "sources": {"kernels": "3" * 64},
        "packages": {"torch": "2.13.0", "peft": "1"},
    }
    lines = provenance.drift(old, new)
    assert lines == [
        "packages.torch: 2.12.0 → 2.13.0",
        f"sources.kernels: {'1' * 12} → {'3' * 12}",
        f"git.revision: {'a' * 12} → {'b' * 12}",
    ]


def test_source_hash_follows_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "roomtest"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)

    def fresh() -> str:
        provenance.source_hash.cache_clear()
        return provenance.source_hash("roomtest")

    before = fresh()
    (package / "notes.txt").write_text("not code")
    assert fresh() == before
    (package / "a.py").write_text("x = 2\n")
    changed = fresh()
    (package / "a.py").rename(package / "b.py")
    assert len({before, changed, fresh()}) == 3
    with pytest.raises(ValueError, match="no_such_room"):
        provenance.source_hash("no_such_room")


# --- experiments ---


def test_experiments_are_recorded_updated_and_found(store: ArtifactStore) -> None:
    with pytest.raises(InputError, match="run one first"):
        load_experiment(store)
    config = ExperimentConfig(name="mine").model_dump(mode="json")
    stages = [StageRecord("model", KEY, "train", "ce", 0, 1, parents={"base": "b"})]
    first = record_experiment(store, config=config, status="running", stages=stages)
    other = record_experiment(
        store,
        config=ExperimentConfig(name="other", splits=3, generations=2).model_dump(mode="json"),
        status="x",
    )
    again = record_experiment(
        store, config={**config, "runtime": {**config["runtime"], "workers": 7}}, status="finished"
    )
    assert again.id == first.id == experiment_id(config) != other.id
    assert (again.created, again.stages, again.status) == (first.created, stages, "finished")
    assert again.updated > first.updated
    assert [e.label for e in list_experiments(store)] == [other.label, first.label]
    for name in ("latest", "mine", first.label, first.id, first.id[:10]):
        assert load_experiment(store, name) == again
    with pytest.raises(InputError, match=other.label):
        load_experiment(store, "nobody")


def test_an_unreadable_record_is_said_aloud(store: ArtifactStore) -> None:
    store.write_bytes("experiments/broken-00000000.json", b"{")
    with pytest.warns(UserWarning, match=r"broken-00000000\.json"):
        assert list_experiments(store) == []


def test_experiments_live_in_a_remote_store_too(tmp_path: Path) -> None:
    name = uuid.uuid4().hex
    config = ExperimentConfig(name="far").model_dump(mode="json")
    made = record_experiment(remote_store(tmp_path, name, "one"), config=config, status="finished", stages=[])
    assert load_experiment(remote_store(tmp_path, name, "two"), "far") == made


def test_an_experiment_whose_process_is_gone_does_not_say_that_it_runs(store: ArtifactStore) -> None:
    code = (
        "import sys; from storage.store.experiments import record_experiment;"
        "from storage.store.store import ArtifactStore;"
        "from fortifai_core.config.experiment import ExperimentConfig;"
        "made = record_experiment(ArtifactStore(sys.argv[1]), status='running',"
        " config=ExperimentConfig(name='killed').model_dump(mode='json')); print(made.state)"
    )
    there = subprocess.run([sys.executable, "-c", code, store.url], capture_output=True, text=True, check=True)
    assert there.stdout.strip() == "running"  # as long as that process lived
    assert load_experiment(store, "killed").state == "interrupted"
    here = record_experiment(store, config=ExperimentConfig(name="alive").model_dump(mode="json"), status="running")
    assert load_experiment(store, "alive").state == here.state == "running"
    assert record_experiment(store, config=here.config, status="finished").state == "finished"
