"""The store: built once, found again, nothing half-made left by a crash."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from artifacts import KEY, build, put
from fortifai_core.errors import ArtifactDamaged, StageFailed, StoreError
from storage.store.keys import EncodingError, file_digest
from storage.store.store import ArtifactStore, Draft, Verification


def test_build_then_find(store: ArtifactStore) -> None:
    assert store.find("model", KEY) is None
    made = put(store, "model", KEY)
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
    assert store.verify() == Verification(sound=1, damaged=[])
    with pytest.raises(ArtifactDamaged, match=r"c\.txt"):
        found.file("c.txt")

    def never(draft: Draft) -> None:
        raise AssertionError("built twice")

    assert put(store, "model", KEY, never) == made
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


def test_a_builder_that_commits_an_empty_folder_or_twice_is_told(store: ArtifactStore) -> None:
    with pytest.raises(ArtifactDamaged, match="empty"):
        put(store, "model", KEY, lambda draft: draft.commit(stage_version=1, content={}))

    def twice(draft: Draft) -> None:
        build(draft)
        draft.commit(stage_version=1, content={})

    with pytest.raises(StageFailed, match="never changes"):
        put(store, "model", KEY, twice)

    def foreign(draft: Draft) -> None:
        (draft.path / "link").symlink_to("/etc/hostname")
        draft.commit(stage_version=1, content={})

    with pytest.raises(ArtifactDamaged, match="not a plain file"):
        put(store, "split", KEY, foreign)


def test_a_manifest_that_cannot_be_encoded_moves_nothing(store: ArtifactStore) -> None:
    def bad(draft: Draft) -> None:
        (draft.path / "a").write_text("x")
        draft.commit(stage_version=1, content={"x": np.float64(1)})

    with pytest.raises(EncodingError, match=r"content\.x"):
        put(store, "model", KEY, bad)
    assert store.find("model", KEY) is None
    assert list(store.tree.addresses()) == []


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
with store.build("model", "k" * 64) as draft:
    if draft.found is None:
        build(draft)
print("done", flush=True)
"""


def start_builder(store: ArtifactStore, log: Path, seconds: float) -> subprocess.Popen[str]:
    root = Path(__file__).parents[3]
    return subprocess.Popen(
        [sys.executable, "-c", BUILDER, store.url, str(log), str(seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
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
    with store.build("model", "k" * 64) as again:
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
            put(store, "model", KEY)
    assert (store.tree.place("model", KEY) / "a.txt").exists()
    assert store.find("model", KEY) is None
    (damage,) = store.verify().damaged
    assert damage.file == "manifest.json" and "unfinished" in damage.problem
    assert (Path(damage.moved_to) / "a.txt").read_text() == "hello"
    assert put(store, "model", KEY).file("a.txt").read_text() == "hello"
    assert store.verify() == Verification(sound=1, damaged=[])


def test_opening_a_store_imports_nothing_heavy() -> None:
    code = (
        "import sys, storage.store.experiments, storage.store.provenance, storage.tables.parquet\n"
        "from storage.store.store import ArtifactStore\n"
        "ArtifactStore('x').find('model', 'k')\n"
        "heavy = {'torch', 'pyarrow', 'duckdb', 'numpy', 'fsspec', 'pydantic'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, env={**os.environ, "PYTHONPATH": str(root)})


def test_a_store_that_cannot_be_written_says_where(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    store = ArtifactStore(tmp_path / "file" / "store")
    for attempt in (store.writable, lambda: put(store, "model", KEY)):
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
        put(store, "model", KEY)


def test_a_kill_between_the_two_renames_of_a_replacing_commit_loses_nothing(store: ArtifactStore) -> None:
    """The old version lies beside, the new one is a whole draft: what a process leaves that dies there."""
    put(store, "model", KEY)
    place, draft = store.tree.place("model", KEY), store.tree.draft("model", KEY)
    draft.mkdir(parents=True)
    os.rename(place, draft.with_name(f"{draft.name}.before"))
    assert store.find("model", KEY) is None
    assert {path.name for _, _, path in store.tree.leftovers()} == {f"model-{KEY}.draft", f"model-{KEY}.draft.before"}
    with store.build("model", KEY) as again:
        assert again.found is not None and again.found.file("inner/b.txt").read_text() == "b"
    assert store.verify() == Verification(sound=1, damaged=[]) and not list(store.tree.leftovers())


def test_a_stopped_refresh_goes_on_from_its_workspace_and_a_second_one_from_the_start(store: ArtifactStore) -> None:
    put(store, "model", KEY)
    workspace = store.tree.workspace("model", KEY)
    for left in (False, True):  # the second attempt finds what the first one left
        with store.build("model", KEY, anew=True) as draft:
            assert draft.found is None and (workspace / "checkpoint").exists() == left
            workspace.mkdir(parents=True, exist_ok=True)
            (workspace / "checkpoint").write_text("half")
    with store.build("model", KEY, anew=True) as draft:
        (draft.path / "a.txt").write_text("other")
        draft.commit(stage_version=1, content={}, parents={}, seconds=1.0)
    workspace.mkdir(parents=True, exist_ok=True)
    (workspace / "checkpoint").write_text("of before")
    with store.build("model", KEY, anew=True):
        assert not (workspace / "checkpoint").exists()


@pytest.mark.parametrize("ends", ["committed", "stopped and removed"])
def test_of_a_refresh_nothing_stays_below_work(store: ArtifactStore, ends: str) -> None:
    put(store, "model", KEY)
    with store.build("model", KEY, anew=True) as draft:
        (draft.workspace / "checkpoint").write_text("half")
        if ends == "committed":
            build(draft, "other")
    if ends != "committed":
        ((kind, key, folder),) = store.leftovers()
        assert (folder / "checkpoint").exists()  # what a second attempt goes on from
        assert store.remove_leftover(kind, key, folder)
    assert list((store.root / "work").iterdir()) == []
