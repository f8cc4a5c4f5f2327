"""SQL over everything in a store: a DuckDB file of tables (from manifests) and of views over Parquet.

The manifests are the truth. The catalog is made anew beside the old one and renamed over it, so that nobody
who has the old one open is disturbed, and nothing is lost when it is deleted. Paths in it are absolute: any
DuckDB can open it from any directory. `query` answers a user's SQL: its connection reaches no file but through
`storage.catalog.reading`, which opens for reading only.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fortifai_core.errors import ArtifactDamaged, InputError, StoreError
from storage.catalog import tables, views
from storage.catalog.reading import CATALOG, FOLDER, ReadOnlyStore
from storage.store.experiments import list_experiments
from storage.store.manifest import Manifest
from storage.store.store import ArtifactStore

if TYPE_CHECKING:
    import duckdb

# Part of the fingerprint: raise it when a table or view changes.
CATALOG_SCHEMA = 6
VIEWS = (
    "experiments",
    "runs",
    "generations",
    "stages",
    "metrics",
    "documents",
    "tokens",
    "treatments",
    "questions",
    "scores",
    "confidence",
    "benchmark_items",
    "lineage",
    "chains",
    "question_fates",
    "paper_results",
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
            _let_nothing_in(connection, store)
            if store.remote is not None:
                connection.register_filesystem(store.remote.fs)
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
    compared; the files that views read are compared by digest, as `ArtifactStore.sound` says.

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
            _refuse_all_but_one_query(connection, sql)
            result = connection.execute(sql)
            columns = [str(column[0]) for column in result.description or ()]
            return columns, result.fetchall() if limit is None else result.fetchmany(limit)
        except (
            duckdb.Error,
            ValueError,
        ) as error:  # ValueError: a statement, or a text, of a kind Python does not know
            lines = str(error).strip().partition("\n\n")[0].splitlines()
            message = lines[-1] if "Traceback" in lines[0] else " ".join(lines)
            raise InputError("sql", sql, f"{message}; the views are {', '.join(VIEWS)}") from error


@contextlib.contextmanager
def _spill() -> Iterator[str]:
    """Where DuckDB puts what does not fit into memory: private, under a name that nobody can guess, and gone after.

    DuckDB lets a query reach this folder. Empty where nothing can be written: then it uses memory alone.
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
            return _locked_down(connection, spill)
        connection.close()
    try:
        _write(store, state, manifests)
        connection = _attach(store)
    except StoreError:  # a store that may be read and not written: its catalog is made in memory
        connection = duckdb.connect()
        _let_nothing_in(connection, store)
        if store.remote is not None:
            connection.register_filesystem(store.remote.fs)
        _fill(connection, store, state, manifests)
        connection.execute("SET search_path = 'reading,main'")
    return _locked_down(connection, spill)


def _attach(store: ArtifactStore) -> duckdb.DuckDBPyConnection:
    # Attached to a connection of its own, not opened: within one process DuckDB would hand out the file that
    # it has open under this path, though a newer one lies there by now.
    import duckdb

    with duckdb.connect() as probe:  # refused while somebody writes: the attaching below takes no lock
        probe.execute(f"ATTACH {views.quote(str(store.catalog))} (READ_ONLY)")
    connection = duckdb.connect()
    try:
        _let_nothing_in(connection, store)
        connection.execute(f"ATTACH {views.quote(CATALOG)} AS catalog (READ_ONLY)")
        connection.execute("SET search_path = 'catalog.reading,catalog.main'")
        connection.execute("FROM catalog_state LIMIT 0")
    except duckdb.Error:
        connection.close()
        raise
    return connection


def _locked_down(connection: duckdb.DuckDBPyConnection, spill: str) -> duckdb.DuckDBPyConnection:
    """From here on nothing outside the store is reached, and nothing in it written, whatever a statement says.

    Catalog and artifacts are reached under a protocol of their own, which cannot write. Were their directory itself
    allowed, a statement could write there: DuckDB tells no reading from writing when it asks whether a path is allowed.
    """
    connection.execute(f"SET temp_directory = {views.quote(spill)}")
    connection.execute(f"SET allowed_directories = ['{FOLDER}']")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


def _let_nothing_in(connection: duckdb.DuckDBPyConnection, store: ArtifactStore) -> None:
    for setting in ("autoinstall_known_extensions", "autoload_known_extensions", "python_enable_replacements"):
        connection.execute(f"SET {setting} = false")
    connection.register_filesystem(ReadOnlyStore(store))


def _refuse_all_but_one_query(connection: duckdb.DuckDBPyConnection, sql: str) -> None:
    """Raise `InputError` unless `sql` is one statement that asks; files are kept from it by `_locked_down`."""
    sql.encode()  # half a surrogate pair is no text
    kinds = [str(statement.type).rpartition(".")[2] for statement in connection.extract_statements(sql)]
    # MULTI is what a PIVOT without IN is parsed into.
    if len(kinds) != 1 or kinds[0] not in ("SELECT", "MULTI"):
        raise InputError("sql", sql, "give one SELECT (or FROM, WITH, PIVOT, DESCRIBE, SUMMARIZE, SHOW)")


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
    connection.execute("CREATE SCHEMA reading")
    for name, (patterns, _) in views.READS.items():
        files = [
            f"{m.kind}/{m.key}/{entry['name']}"
            for m in manifests
            for entry in m.files
            if any(m.kind == kind and fnmatchcase(entry["name"], glob) for kind, glob in patterns)
        ]
        try:
            # for everybody, by address; and for `query`, by a protocol that reads only
            connection.execute(views.parquet_view(name, files, below=store.address("artifacts") + "/"))
            connection.execute(views.parquet_view(f"reading.{name}", files, below=FOLDER))
        except duckdb.Error as error:
            message = f"{error}; `fortifai verify` names the damaged artifact"
            raise ArtifactDamaged(f"the view {name} cannot be made: {message}") from error
    for schema in ("main", "reading"):
        connection.execute(f"SET search_path = '{schema},main'")
        for name, sql in views.DERIVED_VIEWS.items():
            connection.execute(f"CREATE VIEW {schema}.{name} AS {sql}")
