"""Faults in a store: each is found and said, the artifact is set aside and built anew, and no result is ever wrong.

`python tests/storage/test_faults.py` prints what was tried, as a table.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from faults import EVERY, disk

from fortifai_core.config.experiment import ExperimentConfig
from fortifai_core.errors import ArtifactDamaged, FortifaiError, NewerRelease, StoreError
from storage.catalog.catalog import query, refresh_catalog
from storage.store import durable
from storage.store.experiments import list_experiments, load_experiment, record_experiment
from storage.store.manifest import MANIFEST_SCHEMA, SEAL, Manifest, seal_of
from storage.store.store import Artifact, ArtifactStore, Draft
from storage.tables import parquet
from storage.tables.arrays import read_parameters, write_parameters

KEY = "a" * 64
ROWS = [{"metric": "kr-total", "split": None, "value": 0.5, "count": 8}]
WEIGHTS = {"weight": np.arange(6, dtype=np.float32)}
CONFIG = ExperimentConfig(name="mine").model_dump(mode="json")


def fill(draft: Draft) -> None:
    """An artifact with data and weights."""
    with durable.naming_full_disk(draft.path):  # as `tasks.engine.build` does
        parquet.write_table(draft.path / "metrics.parquet", ROWS, schema="metrics")
        write_parameters(draft.path / "model.safetensors", WEIGHTS)
        (draft.path / "inner").mkdir()
        (draft.path / "inner" / "note.json").write_text("{}")
    draft.commit(stage_version=1, content={"x": 1}, metrics={"kr-total": 0.5})


def made(store: ArtifactStore, *, anew: bool = False) -> Artifact:
    with store.build("evaluation", KEY, anew=anew) as draft:
        if draft.found is None:
            fill(draft)
        assert draft.artifact is not None
        return draft.artifact


def right(artifact: Artifact) -> bool:
    """Whether everything that is read of an artifact is what was written."""
    rows = list(parquet.iter_rows(artifact.file("metrics.parquet")))
    return rows == ROWS and bool((read_parameters(artifact.file("model.safetensors"))["weight"] == np.arange(6)).all())


def rebuilt(store: ArtifactStore, *, by_sql: bool = True) -> None:
    """What is there is right or gone; and when it is asked for it is right."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = store.find("evaluation", KEY, verify=True)
        assert found is None or right(found)
        assert right(made(store))
        if by_sql:
            assert query(store, "SELECT value FROM metrics")[1] == [(0.5,)]
        assert store.verify().damaged == []


def refused(store: ArtifactStore, said: str, *, by_sql: bool = True) -> None:
    """Whoever reads is told, every time; nothing is moved."""
    before = sorted(str(path) for path in store.root.rglob("*") if "locks" not in path.parts)
    for _ in range(2):
        with pytest.raises(ArtifactDamaged, match=said):
            store.read("evaluation", KEY)
        if by_sql:
            with pytest.raises(ArtifactDamaged, match=said):
                query(store, "SELECT count(*) FROM metrics")
    assert sorted(str(path) for path in store.root.rglob("*") if "locks" not in path.parts) == before


# ------------------------------------------------------------------------------------------------- a disk that fails


def at_each_call(
    root: Path, error: int, prepare: Callable[[ArtifactStore], object], act: Callable[[ArtifactStore], object],
    *, writes: bool = True,
) -> int:  # fmt: skip
    """Let each call of `act` fail once, each in a store of its own; how many there were."""

    def store_for(number: int) -> ArtifactStore:
        store = ArtifactStore(root / f"{number:03d}")
        prepare(store)
        return store

    store = store_for(0)
    with disk(store.root, error, writes=writes) as whole:
        act(store)
    for number in range(1, len(whole.calls) + 1):
        store = store_for(number)
        with disk(store.root, error, writes=writes, failing=number), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                act(store)
            except FortifaiError as problem:
                assert "\n" not in str(problem) and str(store.root) in str(problem), problem
        rebuilt(store, by_sql=number == 1)
    assert whole.calls
    return len(whole.calls)


def full_while_building(root: Path) -> int:
    return at_each_call(root, errno.ENOSPC, lambda store: None, made)


def full_while_building_anew(root: Path) -> int:
    return at_each_call(root, errno.ENOSPC, made, lambda store: made(store, anew=True))


def full_while_setting_aside(root: Path) -> int:
    def damage(store: ArtifactStore) -> None:
        flip(made(store).path / "metrics.parquet")

    return at_each_call(root, errno.ENOSPC, damage, lambda store: store.find("evaluation", KEY, verify=True))


def full_while_recording(root: Path) -> int:
    def act(store: ArtifactStore) -> None:
        record_experiment(store, config=CONFIG, status="failed")

    def before(store: ArtifactStore) -> None:
        record_experiment(store, config=CONFIG, status="running")

    return at_each_call(root, errno.ENOSPC, before, act)


def full_while_asking(root: Path) -> int:
    def act(store: ArtifactStore) -> None:
        assert query(store, "SELECT value FROM metrics")[1] == [(0.5,)]  # without a catalog, if need be

    return at_each_call(root, errno.ENOSPC, made, act)


def too_large_for_the_disk(root: Path) -> int:
    """A limit on the size of files, in a process of its own: what is written breaks off in the middle."""
    code = (
        "import resource, sys, runpy; sys.path[:0] = sys.argv[3:]; import test_faults as t\n"
        "from storage.store.store import ArtifactStore\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)\n"
        "try:\n    t.made(ArtifactStore(sys.argv[1])); print('made')\n"
        "except Exception as error:\n    print(type(error).__name__, error)"
    )
    limits = [0, 400]
    for limit in limits:
        store = ArtifactStore(root / str(limit))
        places = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "support")]
        done = subprocess.run(
            [sys.executable, "-c", code, store.url, str(limit), *places],
            capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
        assert done.stdout.startswith("StoreError") and done.stdout.count("\n") == 1, done.stdout + done.stderr
        rebuilt(store)
    return len(limits)


def broken_sectors(root: Path) -> int:
    """EIO from every file of an artifact in turn, for as long as it lies there."""
    names = ["manifest.json", "metrics.parquet", "model.safetensors", "inner/note.json"]
    for number, name in enumerate(names):
        store = ArtifactStore(root / str(number))
        path = made(store).path / name
        with disk(store.root, errno.EIO, writes=False, broken=frozenset({str(path)})):
            refused(store, "Input/output error|manifest", by_sql=name in ("manifest.json", "metrics.parquet"))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                assert store.find("evaluation", KEY, verify=True) is None
        rebuilt(store)
    return len(names)


def read_only(root: Path) -> int:
    """Who only reads is served; who would write is told so in one line."""
    store = ArtifactStore(root)
    made(store)
    record = record_experiment(store, config=CONFIG, status="finished")
    acts: tuple[Callable[[], object], ...] = (
        store.writable,
        lambda: made(ArtifactStore(root), anew=True),
        lambda: record_experiment(store, config=CONFIG, status="failed"),
        lambda: refresh_catalog(store),
    )
    with disk(store.root, errno.EROFS, writes=True, failing=EVERY):
        found = store.read("evaluation", KEY)
        assert found is not None and right(found)
        assert load_experiment(store) == record and [m.key for m in store.ls()] == [KEY]
        assert query(store, "SELECT value FROM metrics")[1] == [(0.5,)]
        for act in acts:
            with pytest.raises(StoreError, match="Read-only file system"):
                act()
    flip(store.tree.place("evaluation", KEY) / "metrics.parquet")
    with disk(store.root, errno.EROFS, writes=True, failing=EVERY):
        refused(store, "sha256")
        with pytest.raises(StoreError, match="Read-only file system"):
            store.find("evaluation", KEY, verify=True)
    rebuilt(store)
    return len(acts) + 6


def unreadable_record(root: Path) -> int:
    store = ArtifactStore(root)
    record = record_experiment(store, config=CONFIG, status="finished")
    path = store.root / "experiments" / f"{record.label}.json"
    with (
        disk(store.root, errno.EIO, writes=False, broken=frozenset({str(path)})),
        pytest.warns(UserWarning, match="Input/output error"),
    ):
        assert list_experiments(store) == []
    assert load_experiment(store) == record
    return 1


# ------------------------------------------------------------------------------------------------- altered artifacts


def flip(path: Path, place: float = 0.5) -> None:
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1
    path.write_bytes(content)


def altered(root: Path, alter: Callable[[Path], object], said: str, *, by_sql: bool = True) -> None:
    store = ArtifactStore(root)
    alter(made(store).path)
    refused(store, said, by_sql=by_sql)
    rebuilt(store)
    assert not by_sql or list((store.root / "damaged").iterdir())


def truncated(root: Path) -> int:
    cuts = [0, 1, 8, -1, -8]
    for number, size in enumerate(cuts):
        altered(
            root / str(number),
            lambda path, size=size: (path / "metrics.parquet").write_bytes(
                (path / "metrics.parquet").read_bytes()[:size]
            ),
            "bytes, its manifest says",
        )
    return len(cuts)


def flipped(name: str) -> Callable[[Path], int]:
    def fault(root: Path) -> int:
        places = [0.0, 0.3, 0.5, 0.9, 1.0]
        for number, place in enumerate(places):
            by_sql = name == "metrics.parquet"
            altered(root / str(number), lambda path, place=place: flip(path / name, place), "sha256", by_sql=by_sql)
        return len(places)

    return fault


def every_bit_of_a_manifest(root: Path) -> int:
    """No manifest with one bit flipped is taken for what it was, or for a newer release's."""
    store = ArtifactStore(root)
    text = (made(store).path / "manifest.json").read_bytes()
    whole = Manifest.from_json(text)
    for bit in range(8 * len(text)):
        content = bytearray(text)
        content[bit // 8] ^= 1 << bit % 8
        try:
            assert Manifest.from_json(bytes(content)) == whole, f"bit {bit}"  # say, a space that became a tab
        except ArtifactDamaged:
            continue
    return 8 * len(text)


def no_manifest(root: Path) -> int:
    texts = [None, b"", b"{}", b"[]", b"null", b"\xff\xfe", b"[" * 100_000]
    for number, text in enumerate(texts):
        store = ArtifactStore(root / str(number))
        path = made(store).path / "manifest.json"
        path.unlink() if text is None else path.write_bytes(text)
        if text is None:
            assert store.read("evaluation", KEY) is None  # no manifest, no artifact
        else:
            refused(store, "not a manifest")
        rebuilt(store)
    return len(texts)


def newer_manifest(root: Path) -> int:
    """Refused by name of the release, by whoever reads or builds; nothing is moved, nothing built in its place."""
    bodies: list[dict[str, object]] = [{}, {"provenance": {"release": "7.1.0"}}, {"files": {"in": "another form"}}]
    for number, change in enumerate(bodies):
        store = ArtifactStore(root / str(number))
        path = made(store).path / "manifest.json"
        body = {**json.loads(path.read_text()), **change, "manifest_schema": MANIFEST_SCHEMA + 1}
        del body[SEAL]
        path.write_text(json.dumps({**body, SEAL: seal_of(body)}))
        flip(path.with_name("metrics.parquet"))  # which is none of this release's business
        before = {str(p): p.read_bytes() for p in (store.root / "artifacts").rglob("*") if p.is_file()}
        said = "release 7.1.0" if change.get("provenance") else f"manifest_schema.*{MANIFEST_SCHEMA + 1}"
        acts: tuple[Callable[[ArtifactStore], object], ...] = (
            lambda s: s.peek("evaluation", KEY),
            lambda s: s.has("evaluation", KEY),
            lambda s: s.read("evaluation", KEY),
            lambda s: s.find("evaluation", KEY),
            lambda s: s.find("evaluation", KEY, verify=True),
            made,
            lambda s: s.ls(),
            lambda s: s.verify(),
            lambda s: query(s, "FROM metrics"),
            refresh_catalog,
        )
        for act in acts:
            with pytest.raises(NewerRelease, match=said):
                act(store)
        assert before == {str(p): p.read_bytes() for p in (store.root / "artifacts").rglob("*") if p.is_file()}
        assert not (store.root / "damaged").exists()
    return len(bodies)


def foreign_files(root: Path) -> int:
    """A file that the manifest does not know is damage: loaders read whatever lies in a folder."""
    names = ["adapter_config.json", "inner/vocab.json", "pytorch_model.bin"]
    for number, name in enumerate(names):
        altered(root / str(number), lambda path, name=name: (path / name).write_text("{}"), "no file of", by_sql=False)
    return len(names)


def replaced_by_another_kind(root: Path) -> int:
    def by_link(path: Path) -> None:
        (path / "inner" / "note.json").unlink()
        (path / "inner" / "note.json").symlink_to(root / "nowhere")

    def by_folder(path: Path) -> None:
        (path / "inner" / "note.json").unlink()
        (path / "inner" / "note.json").mkdir()

    def by_file(path: Path) -> None:
        shutil.rmtree(path / "inner")
        (path / "inner").write_text("")

    ways = [by_link, by_folder, by_file]
    for number, alter in enumerate(ways):
        store = ArtifactStore(root / str(number))
        alter(made(store).path)
        with pytest.raises(ArtifactDamaged):
            store.read("evaluation", KEY)
        rebuilt(store)
    return len(ways)


def strays(root: Path) -> int:
    """What file managers, file servers and editors leave behind is no artifact, no record and no damage."""
    names = ["@eaDir", ".Trash-0", ".DS_Store", "Thumbs.db", "lost+found", "#recycle", "x~", ".x.json.swp"]
    store = ArtifactStore(root)
    record = record_experiment(store, config=CONFIG, status="finished")
    place = made(store).path
    for folder in (store.root, store.root / "artifacts", place.parent, place, store.root / "experiments"):
        for name in names:
            if name.startswith((".DS", "Thumbs", "x~", ".x")):
                (folder / name).write_text("?")
            else:
                (folder / name).mkdir()
                (folder / name / "inside").write_text("?")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [m.key for m in store.ls()] == [KEY] and list_experiments(store) == [record]
        artifact = store.read("evaluation", KEY)
        assert artifact is not None and right(artifact)
        assert store.verify().sound == 1
        assert query(store, "SELECT value FROM metrics")[1] == [(0.5,)]
    return 5 * len(names)


def altered_record(root: Path) -> int:
    """Every record that is not what was written is said in one line and left out."""
    store = ArtifactStore(root)
    record = record_experiment(store, config=CONFIG, status="finished")
    path = store.root / "experiments" / f"{record.label}.json"
    text = path.read_text()
    body = {name: value for name, value in json.loads(text).items() if name != "record_sha256"}
    path.write_text(json.dumps(body))  # as earlier releases wrote it
    assert list_experiments(store) == [record]
    changes: list[object] = [
        {"config": {**body["config"], "generations": 3}}, {"config": {**body["config"], "seeds": None}}, {"config": 1},
        {"name": 3}, {"name": "../x"}, {"id": "0" * 64}, {"updated": "yesterday"}, {"created": 5}, {"stages": 5},
        {"stages": [1]}, {"stages": [{"kind": "model"}]}, {"stages": [{"kind": "../..", "key": "x", "role": "train"}]},
        {"stages": [{"kind": "model", "key": KEY, "role": "train", "seed": "0"}]}, {"status": []}, {"newer": 1},
    ]  # fmt: skip
    altered_texts = [json.dumps({**body, **change}) for change in changes if isinstance(change, dict)]
    altered_texts += ["", "[]", "null", "[" * 100_000, text.replace('"finished"', '"running"'), text[:-30]]
    for number, one in enumerate(altered_texts):
        path.write_text(one)
        with pytest.warns(UserWarning, match="experiment record") as said:
            assert list_experiments(store) == [], number
        assert all("\n" not in str(warning.message) for warning in said)
    with pytest.warns(UserWarning, match="written anew"):
        again = record_experiment(store, config=CONFIG, status="finished")
    assert load_experiment(store) == again
    return len(altered_texts)


# ------------------------------------------------------------------------------------------------- processes and time

_BUILDER = (
    "import sys; from pathlib import Path; from storage.store.store import ArtifactStore; import time\n"
    "with ArtifactStore(sys.argv[1]).build('evaluation', 'a' * 64) as draft:\n"
    "    (draft.path / 'half').write_text('half'); print('begun', flush=True); time.sleep(60)"
)


def owner_died(root: Path) -> int:
    """A builder that is killed under its lock: the next one has the lock at once, and begins anew."""
    store = ArtifactStore(root)
    builder = subprocess.Popen(
        [sys.executable, "-c", _BUILDER, store.url],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert builder.stdout is not None and builder.stdout.readline() == "begun\n"
    assert (store.tree.draft("evaluation", KEY) / "half").exists()
    builder.send_signal(signal.SIGKILL)
    builder.wait()
    assert store.read("evaluation", KEY) is None
    rebuilt(store)
    assert not (store.tree.place("evaluation", KEY) / "half").exists()
    return 1


def clock_that_jumps(root: Path) -> int:
    """Whatever a file's times say, an altered one is found: also one that got its old times back."""
    moments = [time.time() + 10 * 365 * 86_400, time.time() + 5, 0.0, time.time() - 3600]
    for number, moment in enumerate(moments):
        store = ArtifactStore(root / str(number))
        path = made(store).path / "metrics.parquet"
        for file in path.parent.rglob("*"):
            os.utime(file, (moment, moment))
        for _ in range(2):
            found = store.read("evaluation", KEY)
            assert found is not None and right(found)
        flip(path)
        os.utime(path, (moment, moment))
        refused(store, "sha256")
        rebuilt(store)
    return len(moments)


def same_content_elsewhere(root: Path) -> int:
    """Two stores at different places hold the same keys and the same bytes, and a moved store is as it was."""
    stores = [ArtifactStore(root / name) for name in ("one", "a place with 'quotes' [and] brackets")]
    manifests = [made(store).manifest for store in stores]
    assert manifests[0].files == manifests[1].files and manifests[0].content == manifests[1].content
    ids = {record_experiment(store, config=CONFIG, status="finished").id for store in stores}
    assert len(ids) == 1
    stores[0].root.rename(root / "moved")
    rebuilt(ArtifactStore(root / "moved"))
    return len(stores)


def replaced_under_a_reader(root: Path) -> int:
    """A refresh builds first and replaces after: at no moment does another run fail for it."""
    store = ArtifactStore(root)
    first = made(store)
    with store.build("evaluation", KEY, anew=True) as draft:
        found = store.read("evaluation", KEY)
        assert found is not None and right(found)
    assert store.read("evaluation", KEY) == first  # it was left without a commit
    made(store, anew=True)
    rebuilt(store)
    assert draft.found is None
    return 2


FAULTS: dict[str, Callable[[Path], int]] = {
    "disk full at each write of a build": full_while_building,
    "disk full at each write of a refresh": full_while_building_anew,
    "disk full while a damaged artifact is set aside": full_while_setting_aside,
    "disk full while a failure is recorded": full_while_recording,
    "disk full while SQL is asked": full_while_asking,
    "writes that break off in the middle": too_large_for_the_disk,
    "store that may not be written": read_only,
    "EIO from a file of an artifact": broken_sectors,
    "EIO from an experiment's record": unreadable_record,
    "truncated Parquet": truncated,
    "flipped bit in data": flipped("metrics.parquet"),
    "flipped bit in weights": flipped("model.safetensors"),
    "every bit of a manifest flipped": every_bit_of_a_manifest,
    "manifest missing, empty or none": no_manifest,
    "manifest of a newer release": newer_manifest,
    "file that the manifest does not know": foreign_files,
    "file replaced by a link, folder or file": replaced_by_another_kind,
    "stray entries": strays,
    "altered or older experiment record": altered_record,
    "lock whose owner was killed": owner_died,
    "clock that jumps": clock_that_jumps,
    "the same content in two places": same_content_elsewhere,
    "artifact replaced under a reader": replaced_under_a_reader,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_and_said_and_no_result_is_wrong(tmp_path: Path, fault: str) -> None:
    assert FAULTS[fault](tmp_path / "faults") > 0


def main() -> None:
    """What was tried, each of them detected and mended: otherwise this ends with the error."""
    print("| fault | tried | wrong or lost results |\n|---|---|---|")
    total = 0
    for name, fault in FAULTS.items():
        with tempfile.TemporaryDirectory() as folder:
            tried = fault(Path(folder) / "faults")
        total += tried
        print(f"| {name} | {tried:,} | 0 |", flush=True)
    print(f"| together | {total:,} | 0 |")


if __name__ == "__main__":
    main()
