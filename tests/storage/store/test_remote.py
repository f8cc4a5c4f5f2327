"""A store on object storage: uploads, downloads, leases."""

from __future__ import annotations

import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from artifacts import KEY, QUICK, build, put
from fortifai_core.errors import StageFailed, StoreError
from storage.store.locks import Lease, LeaseTimes, _claim, lease
from storage.store.manifest import Manifest
from storage.store.remote import Remote
from storage.store.store import ArtifactDamagedWarning, ArtifactStore, Draft, Verification

Machine = Callable[[str], ArtifactStore]


@pytest.fixture(params=["memory", pytest.param("s3", marks=pytest.mark.long)])
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Machine:
    """One store on object storage, as each of several machines sees it."""
    if request.param == "memory":
        url, times = f"memory://{uuid.uuid4().hex}/prefix", QUICK
    else:
        url, times = request.getfixturevalue("s3_server").new_store(), LeaseTimes(beat=0.4, expiry=4.0, poll=0.1)
    return lambda name: ArtifactStore(url, cache=tmp_path / name, lease_times=times)


@pytest.fixture
def store(machine: Machine) -> ArtifactStore:
    return machine("one")


@pytest.fixture
def objects(store: ArtifactStore) -> Remote:
    assert store.remote is not None
    return store.remote


def test_remote_round_trip_and_a_second_machine(machine: Machine) -> None:
    one, two = machine("one"), machine("two")
    one.writable()
    made = put(one, "model", KEY)
    assert two.peek("model", KEY) == made.manifest
    assert not (two.root / "artifacts").exists()  # peeking downloads nothing
    found = two.find("model", KEY, verify=True)
    assert found is not None
    assert found.path != made.path
    assert found.file("inner/b.txt").read_text() == "b"
    assert two.ls() == [made.manifest]
    assert two.verify() == Verification(sound=1, damaged=[])
    two.remove("model", KEY)
    assert one.find("model", KEY) is None


def test_remote_damage_is_set_aside_and_local_damage_fetched_again(store: ArtifactStore) -> None:
    artifact = put(store, "model", KEY)
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


def test_verify_reads_the_objects_of_a_remote_store_and_our_copies(store: ArtifactStore) -> None:
    copy = put(store, "model", KEY)
    put(store, "split", KEY)
    assert store.remote is not None
    store.remote.write(f"artifacts/split/{KEY}/a.txt", b"jello")
    (copy.path / "a.txt").write_text("jello")
    verified = store.verify()
    assert verified.sound == 0
    assert [(d.kind, d.file) for d in verified.damaged] == [("model", "a.txt"), ("split", "a.txt")]
    assert (Path(verified.damaged[0].moved_to) / "a.txt").read_text() == "jello"
    assert verified.damaged[1].moved_to.startswith(store.remote.address("damaged"))
    # One is downloaded again, the other uploaded again: each had been whole at one end.
    assert store.find("model", KEY).file("a.txt").read_text() == "hello"
    assert store.find("split", KEY) is None
    with store.build("split", KEY) as draft:
        assert draft.found is not None
    assert store.verify() == Verification(sound=2, damaged=[])


def test_remote_bytes_are_checked_on_their_way(machine: Machine) -> None:
    one, two = machine("one"), machine("two")
    put(one, "model", KEY)
    assert one.remote is not None
    one.remote.write(f"artifacts/model/{KEY}/a.txt", b"jello")
    with pytest.warns(ArtifactDamagedWarning, match="sha256"):
        assert two.find("model", KEY) is None


def test_an_upload_that_breaks_off_is_no_artifact_and_is_finished_later(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert store.remote is not None
    with monkeypatch.context() as patched:

        def cut(local: str, path: str) -> None:
            raise ConnectionError("connection lost")

        patched.setattr(store.remote.fs, "put_file", cut)
        with pytest.raises(StoreError, match=r"cannot be used \(ConnectionError: connection lost\)"):
            put(store, "model", KEY)
    assert store.find("model", KEY) is None

    def never(draft: Draft) -> None:
        raise AssertionError("built again though the copy was whole")

    assert put(store, "model", KEY, never).file("a.txt").read_text() == "hello"
    assert store.find("model", KEY) is not None


def test_remote_builders_exclude_each_other(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    built: list[Path] = []
    expiry = machine("one").lease_times.expiry

    def slow(draft: Draft) -> None:
        built.append(draft.path)
        time.sleep(3 * expiry)  # longer than the expiry: only the heartbeat keeps the lease
        build(draft)

    def work(name: str) -> None:
        put(machine(name), "model", KEY, slow)

    threads = [threading.Thread(target=work, args=(f"machine-{i}",)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(built) == 1
    assert [r.getMessage() for r in caplog.records] == [f"waiting for another machine that holds model {KEY[:12]}"] * 2


def test_an_expired_lease_is_taken_over_and_its_owner_cannot_commit(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = machine("one"), machine("two")
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
        put(two, "model", KEY)
        assert time.monotonic() - started > two.lease_times.expiry
        draft.commit(stage_version=1, content={})
    assert two.find("model", KEY, verify=True).file("a.txt").read_text() == "hello"


class ClientError(Exception):
    """What the client of some object storage raises: no kin of OSError's."""


ANSWERS = [ClientError("503 Slow Down"), FileNotFoundError("NoSuchBucket"), ConnectionError("reset")]


class Failing:
    """Writes below `locks` that fail while `error` is set; `beats` counts the others."""

    def __init__(self, objects: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
        self.error: Exception | None = None
        self.failed, self.beats = 0, 0
        self._write = objects.fs.pipe_file
        monkeypatch.setattr(objects.fs, "pipe_file", self)

    def __call__(self, path: str, data: bytes, **options: Any) -> None:
        if "/locks/" in path and self.error is not None:
            self.failed += 1
            raise self.error
        self._write(path, data, **options)
        self.beats += "/locks/" in path

    @staticmethod
    def until(holds: Callable[[], bool]) -> None:
        end = time.monotonic() + 20
        while not holds():
            assert time.monotonic() < end
            time.sleep(0.01)


@pytest.fixture
def writes(objects: Remote, monkeypatch: pytest.MonkeyPatch) -> Failing:
    return Failing(objects, monkeypatch)


EACH = pytest.mark.parametrize("error", ANSWERS, ids=lambda error: type(error).__name__)


@EACH
def test_a_heartbeat_that_fails_in_whatever_way_is_tried_again(
    store: ArtifactStore, writes: Failing, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    store.lease_times = LeaseTimes(beat=0.05, expiry=60)
    with store.build("model", KEY) as draft:
        writes.error = error
        writes.until(lambda: writes.failed >= 2)
        writes.error, before = None, writes.beats
        writes.until(lambda: writes.beats >= before + 2)  # the thread goes on
        build(draft)
    said = [record.getMessage() for record in caplog.records]
    assert said and all("heartbeat failed, trying again: store = " in one and str(error) in one for one in said)
    assert store.find("model", KEY, verify=True) is not None


@EACH
def test_a_lease_that_cannot_be_kept_or_released_is_lost_and_expires(
    store: ArtifactStore, writes: Failing, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(StageFailed, match="the lease was lost"), store.build("model", KEY) as draft:
        writes.error = error
        time.sleep(1.2 * store.lease_times.expiry)
        build(draft)
    assert store.find("model", KEY) is None
    assert "not released, it will expire" in caplog.records[-1].getMessage()
    with pytest.raises(StoreError, match=r"cannot be used \("):  # a new one says why it is none
        put(store, "model", KEY)
    writes.error = None
    assert put(store, "model", KEY).file("a.txt").read_text() == "hello"


def test_what_is_looked_up_is_not_fetched(machine: Machine, objects: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = machine("one"), machine("two")
    made = put(one, "model", KEY)
    fetched: Counter[str] = Counter()
    for name in ("cat_file", "get_file", "open"):

        def counted(path: str, *rest: Any, fetch: Any = getattr(objects.fs, name), **options: Any) -> Any:
            fetched[path.rpartition("/")[2]] += 1
            return fetch(path, *rest, **options)

        monkeypatch.setattr(objects.fs, name, counted)
    assert two.find_manifest("model", KEY) == made.manifest
    assert two.find_manifest("model", "b" * 64) is None
    assert two.has("model", KEY)
    assert fetched == {"manifest.json": 3} and not (two.root / "artifacts").exists()
    assert two.find("model", KEY) is not None  # for whoever reads it
    assert fetched["a.txt"] and fetched["b.txt"]


def test_what_is_looked_up_and_damaged_is_set_aside_and_said(machine: Machine) -> None:
    one, two = machine("one"), machine("two")
    put(one, "model", KEY)
    assert one.remote is not None
    one.remote.delete(f"artifacts/model/{KEY}/a.txt")
    with pytest.warns(ArtifactDamagedWarning, match=r"a\.txt is missing; set aside"):
        assert two.find_manifest("model", KEY) is None
    assert one.peek("model", KEY) is None and one.remote.names("damaged")


def test_a_lease_is_free_again_at_once_after_release(store: ArtifactStore, objects: Remote) -> None:
    started = time.monotonic()
    for _ in range(3):
        with lease(objects, "locks/x", what="x", times=store.lease_times) as held:
            held.check()
    assert time.monotonic() - started < store.lease_times.expiry
    assert objects.names("locks/x") == ["00000003"]


def test_an_old_number_cannot_be_revived(objects: Remote) -> None:
    """A contender that slept while others came and went finds its number taken, or not the newest."""
    for _ in range(2):
        with lease(objects, "locks/x", what="x", times=QUICK):
            pass
    assert not _claim(objects, "locks/x", 1, "late")
    assert not _claim(objects, "locks/x", 2, "late")
    assert objects.names("locks/x") == ["00000002"]
    assert _claim(objects, "locks/x", 3, "next")


def test_of_many_that_claim_a_lease_at_once_one_has_it(objects: Remote) -> None:
    claimed: list[str] = []
    start = threading.Barrier(16)

    def contend(owner: str) -> None:
        start.wait()
        if _claim(objects, "locks/x", 1, owner):
            claimed.append(owner)

    threads = [threading.Thread(target=contend, args=(str(number),)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(claimed) == 1
    # whose answer was lost on its way asks again, and has it
    assert _claim(objects, "locks/x", 1, claimed[0]) and not _claim(objects, "locks/x", 1, "other")


def test_a_manifest_that_another_builder_has_published_is_not_overwritten(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both hold the lease in their own eyes; who comes second publishes nothing, and says so."""
    one, two = machine("one"), machine("two")
    mine = put(one, "model", KEY)
    assert one.remote is not None and two.remote is not None
    one.remote.remove("model", KEY)
    theirs = put(two, "model", KEY)
    check, publish = one.remote.check, two.remote.upload

    def late(manifest: Manifest) -> None:
        publish(theirs)
        check(manifest)

    monkeypatch.setattr(one.remote, "check", late)
    with pytest.raises(StageFailed, match="was published by another builder"):
        one.remote.upload(mine)
    assert two.peek("model", KEY) == theirs.manifest != mine.manifest
