"""SQL over everything in a store: a DuckDB file of tables (from manifests) and of views over Parquet.

The manifests are the truth. The catalog is made anew beside the old one and renamed over it, so that nobody
who has the old one open is disturbed, and nothing is lost when it is deleted. Paths in it are absolute: any
DuckDB can open it from any directory. `query` answers a user's SQL and lets none of it write.
"""

from __future__ import annotations

import json
import re
import tempfile
import uuid
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fortifai_core.errors import ArtifactDamaged, InputError
from storage.catalog import tables, views
from storage.store.experiments import list_experiments
from storage.store.store import ArtifactStore

if TYPE_CHECKING:
    import duckdb

# Part of the fingerprint: raise it when a table or view changes.
CATALOG_SCHEMA = 4
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
        StoreError: the store is not writable.
    """
    import duckdb

    store.root.mkdir(parents=True, exist_ok=True)
    # Taken before reading: what arrives meanwhile makes the new catalog stale, never silently incomplete.
    state = _fingerprint(store)
    aside = store.root / f".catalog-{uuid.uuid4().hex}.duckdb"
    try:
        with duckdb.connect(aside) as connection:
            _let_read(connection, store)
            _fill(connection, store, state)
        aside.replace(store.catalog)
        # Left behind by a user who wrote into the old file; it would not fit the new one.
        store.catalog.with_name(f"{store.catalog.name}.wal").unlink(missing_ok=True)
    finally:
        aside.unlink(missing_ok=True)
    return store.catalog


def query(store: ArtifactStore, sql: str, *, limit: int | None = None) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Answer one SQL query over the store; the catalog is brought up to date first.

    It reads the catalog and the store's artifacts, and nothing else: no other file, no network, no writing.

    Args:
        limit: return so many rows at most.

    Returns:
        (names of the columns, rows).

    Raises:
        InputError: not exactly one query, one that writes, or one that DuckDB refuses.
    """
    import duckdb

    with _open(store) as connection:
        try:
            _refuse_all_but_reading(connection, sql)
            result = connection.execute(sql)
            columns = [str(column[0]) for column in result.description or ()]
            return columns, result.fetchall() if limit is None else result.fetchmany(limit)
        except duckdb.Error as error:
            message = str(error).strip().partition("\n\n")[0]
            raise InputError("sql", sql, f"{message}; the views are {', '.join(VIEWS)}") from error


def _open(store: ArtifactStore) -> duckdb.DuckDBPyConnection:
    """A connection with the up-to-date catalog attached, closed to everything else."""
    import duckdb

    state = _fingerprint(store)
    try:
        connection = _attach(store) if store.catalog.is_file() else None
    except duckdb.Error:
        # Damaged, of another release, or held open for writing by somebody: a new file is none of these.
        connection = None
    if connection is not None:
        if connection.execute("SELECT fingerprint FROM catalog_state").fetchall() == [(state,)]:
            return _locked_down(connection, store)
        connection.close()
    rebuild_catalog(store)
    return _locked_down(_attach(store), store)


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


def _locked_down(connection: duckdb.DuckDBPyConnection, store: ArtifactStore) -> duckdb.DuckDBPyConnection:
    place = store.address("artifacts") + "/"
    # DuckDB compares what is asked for as it is written: the views write a bracket in a path as a pattern.
    places = ", ".join(sorted({views.quote(place), views.quote(views.literal_glob(place))}))
    connection.execute(f"SET temp_directory = {views.quote(tempfile.gettempdir() + '/fortifai-duckdb')}")
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


def _fill(connection: duckdb.DuckDBPyConnection, store: ArtifactStore, state: str) -> None:
    import duckdb

    manifests, experiments = store.ls(check=True), list_experiments(store)
    contents = {
        "catalog_state": tables.table("fingerprint url", [{"fingerprint": state, "url": store.url}]),
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
