"""`fortifai sql` under attack: it reads nothing but the store, writes nothing and reaches nobody."""

from __future__ import annotations

import hashlib
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import duckdb
import pytest
from sql_attacks import ATTACKS

from fortifai_core.config.experiment import ExperimentConfig
from fortifai_core.errors import InputError
from storage.catalog.catalog import query, refresh_catalog
from storage.catalog.reading import CATALOG, ReadOnlyStore
from storage.store.experiments import record_experiment
from storage.store.store import ArtifactStore
from storage.tables import parquet

SECRET = "thesecretoutside"
# What is answered, with no row: a name under which nothing is found.
EMPTY = ("fortifai:///artifacts/..%2f",)


class Target:
    """A store with one artifact, a folder beside it with a secret in every form, and a server that counts calls."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = ArtifactStore(root / "store")
        row = {"metric": "kr-total", "value": 1.0, "count": 1}
        with self.store.build("evaluation", "a" * 64) as draft:
            parquet.write_table(draft.path / "metrics.parquet", [row], schema="metrics")
            draft.commit(stage_version=1, content={}, parents={})
        record = record_experiment(self.store, config=ExperimentConfig().model_dump(mode="json"), status="finished")
        artifact = self.store.tree.place("evaluation", "a" * 64)
        outside = root / "outside"
        outside.mkdir()
        (outside / "secret.csv").write_text(f"a,b\n1,{SECRET}\n")
        with duckdb.connect(outside / "base.duckdb") as made:
            made.execute(f"CREATE TABLE t AS SELECT '{SECRET}' AS a")
            made.execute(f"COPY t TO '{outside}/secret.parquet'")
        (artifact.parent / "link.csv").symlink_to(outside / "secret.csv")
        refresh_catalog(self.store)
        self.server = socket.create_server(("127.0.0.1", 0))
        self.server.setblocking(False)
        self.names = {
            "secret": outside / "secret.csv",
            "parquet": outside / "secret.parquet",
            "base": outside / "base.duckdb",
            "folder": outside,
            "out": outside / "written",
            "inside": artifact / "written",
            "artifact": artifact / "metrics.parquet",
            "manifest": artifact / "manifest.json",
            "link": artifact.parent / "link.csv",
            "catalog": self.store.catalog,
            "record": self.store.root / "experiments" / f"{record.label}.json",
            "host": f"127.0.0.1:{self.server.getsockname()[1]}",
        }

    def state(self) -> dict[str, str]:
        """Digest of every file, and where every link leads."""
        return {
            str(path): str(path.readlink()) if path.is_symlink() else hashlib.sha256(path.read_bytes()).hexdigest()
            for path in self.root.rglob("*")
            if path.is_file()
        }

    def called(self) -> bool:
        """Whether anybody has connected to the server since the last look."""
        try:
            self.server.accept()
        except BlockingIOError:
            return False
        return True


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    return Target(tmp_path_factory.mktemp("sql").resolve())


@pytest.fixture(autouse=True)
def at_home(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes into the home or the working directory is seen as well."""
    for name in ("home", "here"):
        (target.root / name).mkdir(exist_ok=True)
    monkeypatch.setenv("HOME", str(target.root / "home"))
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.chdir(target.root / "here")


def test_every_attack_is_refused_and_leaves_no_trace(target: Target) -> None:
    before = target.state()
    for aim, attack in ATTACKS:
        statement = attack.format(**target.names)
        try:
            answer = query(target.store, statement)[1]
        except InputError as error:
            assert error.exit_code == 2
            assert SECRET not in str(error), f"{aim}: {statement} tells what is in the file"
        else:
            assert any(name in statement for name in EMPTY), f"{aim}: {statement} was answered with {answer}"
            assert answer == [], f"{aim}: {statement} was answered with {answer}"
        assert not target.called(), f"{aim}: {statement} reached the server"
    assert target.state() == before


def test_attacks_are_many_and_different() -> None:
    assert len(set(ATTACKS)) == len(ATTACKS) >= 100


def test_the_marks_would_show(target: Target) -> None:
    """A DuckDB that is not locked down does what the attacks ask for: so their refusal says something."""
    with duckdb.connect() as free:
        assert SECRET in str(free.execute("FROM read_text('{secret}')".format(**target.names)).fetchall())
        before = target.state()
        free.execute("WITH z AS (COPY (SELECT 1) TO '{inside}') SELECT 1".format(**target.names))
    assert set(target.state()) - set(before) == {str(target.names["inside"])}
    (target.store.tree.place("evaluation", "a" * 64) / "written").unlink()


def test_threads_that_share_a_file_read_what_they_asked_for(target: Target) -> None:
    """Each seeks before any reads, as DuckDB's threads may."""
    with ReadOnlyStore(target.store).open(CATALOG, "rb") as file:
        content, both = target.store.catalog.read_bytes(), threading.Barrier(4)

        def read(place: int) -> bool:
            file.seek(place)
            both.wait()
            return bool(file.read(100) == content[place : place + 100] and file.tell() == place + 100)

        with ThreadPoolExecutor(4) as threads:
            assert all(threads.map(read, [0, 1000, 2000, 3000]))


def test_the_store_itself_is_still_read(target: Target) -> None:
    assert query(target.store, "SELECT metric, value FROM metrics")[1] == [("kr-total", 1.0)]
