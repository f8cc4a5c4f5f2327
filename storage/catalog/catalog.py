"""SQL over everything in a store: a DuckDB file of tables (from manifests and metrics) and of views over Parquet.

The manifests are the truth. What is new in the store since the catalog was written is added to a copy of it, which is
renamed over it: nobody who has the old one open is disturbed, and nothing is lost when it is deleted, spoilt or cut
off: it is made again. Paths in it are absolute: any DuckDB can open it from any directory. `query` answers a user's
SQL: its connection reaches no file but through `storage.catalog.reading`, which opens for reading only.
"""

from __future__ import annotations

import contextlib
import gc
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fortifai_core.errors import InputError, StoreError, one_line
from storage.catalog import views
from storage.catalog.reading import CATALOG, FOLDER, ReadOnlyStore
from storage.catalog.updating import (
    Changes,
    changes_since,
    fill,
    id_in,
    is_as_written,
    new_file,
    state_in,
    update_file,
)
from storage.store.store import ArtifactStore

if TYPE_CHECKING:
    import duckdb

VIEWS = (
    "experiments",
    "runs",
    "generations",
    "stages",
    "metrics",
    "documents",
    "tokens",
    "treatments",
    "pooled_text",
    "questions",
    "scores",
    "confidence",
    "benchmark_items",
    "lineage",
    "chains",
    "question_fates",
    "paper_results",
)
TRIES = 5  # others may put their catalogs in the place of ours while we look


def refresh_catalog(store: ArtifactStore) -> Path:
    """Bring the catalog up to date with the manifests and experiment records.

    Returns:
        Its path. The views of a remote store read URLs, which only `query` knows how to open.

    Raises:
        ArtifactDamaged: names the damaged artifacts: a catalog without them would answer wrongly.
        NewerRelease: a newer release wrote one of the artifacts.
        StoreError: the store is not writable.
    """
    _current(ReadOnlyStore(store)).close()
    return store.catalog


def query(store: ArtifactStore, sql: str, *, limit: int | None = None) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Answer one SQL query over the store; the catalog is brought up to date first.

    It reads the catalog and the store's artifacts, and nothing else: no other file, no network, no writing.

    Every time, before anything is answered, every artifact is looked at, as `storage.store.survey` says: what was
    touched since is read and compared. So is every file that the query reads, where it lies in a local store.

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

    files = ReadOnlyStore(store)
    try:
        return _answer(files, sql, limit)
    except duckdb.Error as error:
        if files.damage:
            raise files.damage from error
        if _is_whole(files):
            raise _refusal(sql, error) from error
        with contextlib.suppress(OSError):
            store.catalog.unlink()
    try:
        return _answer(files, sql, limit)
    except duckdb.Error as error:
        raise files.damage or _refusal(sql, error) from error


def _answer(files: ReadOnlyStore, sql: str, limit: int | None) -> tuple[list[str], list[tuple[Any, ...]]]:
    with _spill() as spill, _open(files, spill) as connection:
        try:
            _refuse_all_but_one_query(connection, sql)
            result = _executed(connection, sql)
            columns = [str(column[0]) for column in result.description or ()]
            return columns, result.fetchall() if limit is None else result.fetchmany(limit)
        except ValueError as error:  # a statement, or a text, of a kind Python does not know
            raise _refusal(sql, error) from error


def _executed(connection: duckdb.DuckDBPyConnection, sql: str) -> duckdb.DuckDBPyConnection:
    """Execute a query after the files of the views that it names were listed; of all, where it hides a name."""
    import duckdb

    named = views.named_in(sql)
    _list(connection, named)
    try:
        return connection.execute(sql)
    except duckdb.Error:
        others = [view for view in views.LISTED if view not in named]
        if not others:
            raise
        _list(connection, others)
    return connection.execute(sql)


def _list(connection: duckdb.DuckDBPyConnection, names: Sequence[str]) -> None:
    for name in names:
        connection.execute(f"SET VARIABLE {name} = ({views.listed_files(name)})")


def _refusal(sql: str, error: Exception) -> InputError:
    lines = str(error).strip().partition("\n\n")[0].splitlines() or [type(error).__name__]
    message = lines[-1] if "Traceback" in lines[0] else " ".join(lines)
    return InputError("sql", sql, f"{message}; the views are {', '.join(VIEWS)}")


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


def _open(files: ReadOnlyStore, spill: str) -> duckdb.DuckDBPyConnection:
    """A connection with the up-to-date catalog attached, closed to everything else."""
    import duckdb

    try:
        connection = _current(files)
    except StoreError:  # a store that may be read and not written: its catalog is made in memory
        connection = duckdb.connect()
        _let_nothing_in(connection, files)
        fill(connection, files.store, changes_since(files.store, None))
        connection.execute("SET search_path = 'reading,main'")
    return _locked_down(connection, spill)


def _current(files: ReadOnlyStore) -> duckdb.DuckDBPyConnection:
    """A connection with the catalog attached, after it was brought up to date where it was not."""
    store, written = files.store, None
    for attempt in range(TRIES + 1):
        connection = _attached(files)
        if connection is not None and written is not None and id_in(connection) == written:
            return connection
        if attempt == TRIES:
            break
        with _uncollected():
            state = state_in(connection, store) if connection is not None else None
            changes = changes_since(store, state)
        if connection is not None:
            if state is not None and changes.none:
                return connection
            connection.close()
        written = _write(store, changes)
    raise StoreError(str(store.catalog), "others replace it all the time", "try again when they have ended")


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Without Python's garbage collector, which would go through 100,000 artifacts again and again: none is garbage."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _write(store: ArtifactStore, changes: Changes) -> str | None:
    """Write what has changed, and return the id of the catalog then; None where another's came first."""
    import duckdb

    try:
        if changes.before is not None:
            with contextlib.suppress(duckdb.Error):  # damaged where it was not read before
                return update_file(store, changes)
            changes = changes_since(store, None)
        return new_file(store, changes)
    except (OSError, duckdb.Error) as error:
        said = getattr(error, "strerror", None) or one_line(str(error))
        remedy = "the catalog cannot be written there: `fortifai sql` does without one"
        raise StoreError(str(store.catalog), said, remedy) from error


def _attached(files: ReadOnlyStore) -> duckdb.DuckDBPyConnection | None:
    """A connection with the catalog attached; None where there is none, or another than was written.

    Attached to a connection of its own, not opened: within one process DuckDB would hand out the file that it has open
    under this path, though a newer one lies there by now. It takes no lock, and finds none.
    """
    import duckdb

    if not is_as_written(files.store.catalog):
        return None
    connection = duckdb.connect()
    try:
        _let_nothing_in(connection, files)
        connection.execute(f"ATTACH {views.quote(CATALOG)} AS catalog (READ_ONLY)")
        connection.execute("SET search_path = 'catalog.reading,catalog.main'")
    except duckdb.Error:
        connection.close()
        return None
    return connection


def _is_whole(files: ReadOnlyStore) -> bool:
    """Whether every block of the catalog can be read; each has a checksum, which DuckDB compares."""
    import duckdb

    connection = _attached(files)
    if connection is None:
        return not files.store.catalog.exists()
    with connection:
        try:
            found = connection.execute("SELECT table_name FROM duckdb_tables() WHERE database_name = 'catalog'")
            for (name,) in found.fetchall():
                connection.execute(f"SELECT bit_xor(hash(t)) FROM catalog.main.{name} t").fetchall()
        except duckdb.Error:
            return False
    return True


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


def _let_nothing_in(connection: duckdb.DuckDBPyConnection, files: ReadOnlyStore) -> None:
    for setting in ("autoinstall_known_extensions", "autoload_known_extensions", "python_enable_replacements"):
        connection.execute(f"SET {setting} = false")
    connection.register_filesystem(files)


def _refuse_all_but_one_query(connection: duckdb.DuckDBPyConnection, sql: str) -> None:
    """Raise `InputError` unless `sql` is one statement that asks; files are kept from it by `_locked_down`."""
    sql.encode()  # half a surrogate pair is no text
    kinds = [str(statement.type).rpartition(".")[2] for statement in connection.extract_statements(sql)]
    # MULTI is what a PIVOT without IN is parsed into.
    if len(kinds) != 1 or kinds[0] not in ("SELECT", "MULTI"):
        raise InputError("sql", sql, "give one SELECT (or FROM, WITH, PIVOT, DESCRIBE, SUMMARIZE, SHOW)")
