"""SQL over everything in a store: a DuckDB file of tables (from manifests) and of views over Parquet.

The manifests are the truth. The catalog is made anew beside the old one and renamed over it, so that nobody
who has the old one open is disturbed, and nothing is lost when it is deleted. Paths in it are absolute: any
DuckDB can open it from any directory. `query` answers a user's SQL and lets none of it write.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fortifai_core.errors import ArtifactDamaged, InputError, StoreError
from storage.catalog import tables, views
from storage.store.experiments import list_experiments
from storage.store.manifest import Manifest
from storage.store.store import ArtifactStore

if TYPE_CHECKING:
    import duckdb

# Part of the fingerprint: raise it when a table or view changes.
CATALOG_SCHEMA = 3
VIEWS = (
    "experiments",
    "runs",
    "generations",
    "stages",
    "metrics",
    "documents",
    "tokens",
    "questions",
    "scores",
    "confidence",
    "benchmark_items",
    "lineage",
    "chains",
    "question_fates",
    "paper_results",
)
# Names in a query plan that do something other than read.
_ACTS = re.compile(
    r"(\w+_)?(COPY|INSERT|UPDATE|DELETE|MERGE|CREATE|ALTER|DROP|EXPORT|IMPORT|ATTACH|DETACH|LOAD|SET|PRAGMA|"
    r"VACUUM|TRANSACTION|RESET)(_\w+)?"
)


def rebuild_catalog(store: ArtifactStore) -> Path:
    """Make the catalog from the manifests and experiment records, and put it in the old one's place.

    Returns:
        Its path. The views of a remote store read URLs, which only `query` knows how to open.

    Raises:
        ArtifactDamaged: names the damaged artifacts: a catalog without them would answer wrongly.
        NewerRelease: a newer release wrote one of the artifacts.
        StoreError: the store is not writable.
    """
    # Taken before reading: what arrives meanwhile makes the new catalog stale, never silently incomplete.
    return _write(store, _fingerprint(store), store.sound(is_read))


def _write(store: ArtifactStore, state: str, manifests: list[Manifest]) -> Path:
    import duckdb

    aside = store.root / f".catalog-{uuid.uuid4().hex}.duckdb"
    try:
        store.root.mkdir(parents=True, exist_ok=True)
        aside.touch()  # so that what cannot be written is said as the system says it
        aside.unlink()
        with duckdb.connect(aside) as connection:
            _let_read(connection, store)
            _fill(connection, store, state, manifests)
        aside.replace(store.catalog)
        # Left behind by a user who wrote into the old file; it would not fit the new one.
        store.catalog.with_name(f"{store.catalog.name}.wal").unlink(missing_ok=True)
    except OSError as error:
        remedy = "the catalog cannot be written there: `fortifai sql` does without one"
        raise StoreError(str(store.catalog), error.strerror or str(error), remedy) from error
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
    return store.catalog


def is_read(kind: str, name: str) -> bool:
    """Whether a view reads a file of that name in artifacts of that kind."""
    return any(kind == of and fnmatchcase(name, glob) for patterns, _ in views.READS.values() for of, glob in patterns)


def query(store: ArtifactStore, sql: str, *, limit: int | None = None) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Answer one SQL query over the store; the catalog is brought up to date first.

    It reads the catalog and the store's artifacts, and nothing else: no other file, no network, no writing.

    Every time, before anything is answered, the manifest of every artifact is read and the size of every file
    compared; the files that views read are compared by digest, once in a process (of a local store).

    Args:
        limit: return so many rows at most.

    Returns:
        (names of the columns, rows).

    Raises:
        InputError: not exactly one query, one that writes, or one that DuckDB refuses.
        ArtifactDamaged: names the artifacts that are damaged; no query is answered without them.
        NewerRelease: a newer release wrote one of the artifacts.
    """
    import duckdb

    with _spill() as spill, _open(store, spill) as connection:
        try:
            _refuse_all_but_reading(connection, sql)
            result = connection.execute(sql)
            columns = [str(column[0]) for column in result.description or ()]
            return columns, result.fetchall() if limit is None else result.fetchmany(limit)
        except duckdb.Error as error:
            message = str(error).strip().partition("\n\n")[0]
            raise InputError("sql", sql, f"{message}; the views are {', '.join(VIEWS)}") from error


@contextlib.contextmanager
def _spill() -> Iterator[str]:
    """Where DuckDB puts what does not fit into memory: private, under a name that nobody can guess, and gone after.

    Empty where nothing can be written: then it uses memory alone.
    """
    try:
        folder = tempfile.mkdtemp(prefix="fortifai-")
    except OSError:
        yield ""
        return
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _open(store: ArtifactStore, spill: str) -> duckdb.DuckDBPyConnection:
    """A connection with the up-to-date catalog attached, closed to everything else."""
    import duckdb

    state = _fingerprint(store)
    manifests = store.sound(is_read)
    try:
        connection = _attach(store) if store.catalog.is_file() else None
    except duckdb.Error:
        # Damaged, of another release, or held open for writing by somebody: a new file is none of these.
        connection = None
    if connection is not None:
        if connection.execute("SELECT fingerprint FROM catalog_state").fetchall() == [(state,)]:
            return _locked_down(connection, store, spill)
        connection.close()
    try:
        _write(store, state, manifests)
        connection = _attach(store)
    except StoreError:  # a store that may be read and not written: its catalog is made in memory
        connection = duckdb.connect()
        _let_read(connection, store)
        _fill(connection, store, state, manifests)
    return _locked_down(connection, store, spill)


def _attach(store: ArtifactStore) -> duckdb.DuckDBPyConnection:
    # Attached to a connection of its own, not opened: within one process DuckDB would hand out the file that
    # it has open under this path, though a newer one lies there by now.
    import duckdb

    connection = duckdb.connect()
    try:
        _let_read(connection, store)
        connection.execute(f"ATTACH {views.quote(str(store.catalog))} AS catalog (READ_ONLY)")
        connection.execute("USE catalog")
        connection.execute("FROM catalog_state LIMIT 0")
    except duckdb.Error:
        connection.close()
        raise
    return connection


def _locked_down(connection: duckdb.DuckDBPyConnection, store: ArtifactStore, spill: str) -> duckdb.DuckDBPyConnection:
    place = store.address("artifacts") + "/"
    # DuckDB compares what is asked for as it is written: the views write a bracket in a path as a pattern.
    places = ", ".join(sorted({views.quote(place), views.quote(views.literal_glob(place))}))
    connection.execute(f"SET temp_directory = {views.quote(spill)}")
    connection.execute(f"SET allowed_directories = [{places}]")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


def _let_read(connection: duckdb.DuckDBPyConnection, store: ArtifactStore) -> None:
    connection.execute("SET autoinstall_known_extensions = false")
    connection.execute("SET autoload_known_extensions = false")
    if store.remote is not None:
        connection.register_filesystem(store.remote.fs)


def _refuse_all_but_reading(connection: duckdb.DuckDBPyConnection, sql: str) -> None:
    """Raise `InputError` unless `sql` is one statement whose plan only reads.

    A read-only database is not enough: DuckDB can COPY into a file from inside a WITH clause, and the
    directory of the artifacts must stay readable. So the plan is made, not run, and looked through.
    """
    statements = connection.extract_statements(sql)
    kinds = [str(statement.type).rpartition(".")[2] for statement in statements]
    # MULTI is what a PIVOT without IN is parsed into.
    if len(kinds) != 1 or kinds[0] not in ("SELECT", "MULTI"):
        raise InputError("sql", sql, "give one SELECT (or FROM, WITH, PIVOT, DESCRIBE, SUMMARIZE, SHOW)")
    plans = connection.execute(f"EXPLAIN (FORMAT json) {statements[0].query}").fetchall()
    acts = sorted({name for plan in plans for name in _operators(json.loads(plan[1])) if _ACTS.fullmatch(name)})
    if acts:
        raise InputError("sql", sql, f"the catalog is read only, and this would {', '.join(acts)}")


def _operators(plan: Any) -> Iterable[str]:
    for node in plan:
        yield str(node["name"]).strip().upper().replace(" ", "_")
        yield from _operators(node["children"])


def _fingerprint(store: ArtifactStore) -> str:
    return f"{CATALOG_SCHEMA}-{store.fingerprint()}"


# --- filling ---


def _fill(connection: duckdb.DuckDBPyConnection, store: ArtifactStore, state: str, manifests: list[Manifest]) -> None:
    import duckdb

    experiments = list_experiments(store)
    contents = {
        "catalog_state": tables.table("fingerprint url", [{"fingerprint": state, "url": store.name}]),
        "paper_results": tables.paper_results(),
        "artifacts": tables.artifacts(store, manifests),
        "files": tables.files(store, manifests),
        "experiments": tables.experiments(experiments),
        "stages": tables.stages(store, manifests, experiments),
        "edges": tables.edges(manifests, experiments),
    }
    for name, table in contents.items():
        connection.register("incoming", table)
        connection.execute(f"CREATE TABLE {name} AS SELECT * FROM incoming")
        connection.unregister("incoming")
    for name, (patterns, _) in views.READS.items():
        addresses = [
            store.address(f"artifacts/{m.kind}/{m.key}/{entry['name']}")
            for m in manifests
            for entry in m.files
            if any(m.kind == kind and fnmatchcase(entry["name"], glob) for kind, glob in patterns)
        ]
        try:
            connection.execute(views.parquet_view(name, addresses))
        except duckdb.Error as error:
            message = f"{error}; `fortifai verify` names the damaged artifact"
            raise ArtifactDamaged(f"the view {name} cannot be made: {message}") from error
    for name, sql in views.DERIVED_VIEWS.items():
        connection.execute(f"CREATE VIEW {name} AS {sql}")
