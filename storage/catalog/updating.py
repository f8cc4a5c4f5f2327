"""The catalog's file: what has changed in the store since it was written, put into a copy that takes its place."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from fortifai_core.errors import ArtifactDamaged
from storage.catalog import tables, views
from storage.catalog.reading import FOLDER, ReadOnlyStore, empty_file
from storage.store.experiments import SeenRecord, survey_experiments
from storage.store.manifest import Manifest
from storage.store.store import ArtifactStore
from storage.store.survey import Alike, Survey, survey

if TYPE_CHECKING:
    import duckdb

CATALOG_SCHEMA = 9  # raise it when a table or view changes
# Artifacts that were written so shortly before the catalog that they are read again at each look. Only when they are
# more than this is the catalog written anew for their sake alone.
FEW = 64
AT_ONCE = 2_000  # Parquet files that one statement reads
LEFT_BEHIND_S = 3_600  # seconds after which a file beside the catalog is what a killed process left


@dataclass(frozen=True)
class State:
    """What a catalog knows. `id`: of the catalog; no two are the same."""

    id: str
    artifacts: list[Alike]
    records: dict[str, SeenRecord]


@dataclass(frozen=True)
class Changes:
    """What has become of the store since the catalog `before` (an id; None: since ever).

    Attributes:
        artifacts: those that are new or gone.
        records: of experiments, new or other than before.
        gone: labels of experiments that are not there any more.
    """

    before: str | None
    artifacts: Survey
    records: list[SeenRecord]
    gone: list[str]

    @property
    def none(self) -> bool:
        """Whether the catalog says all of it already."""
        seen = self.artifacts.seen.values()
        again = sum(known.state is not None for known in seen) if not self.artifacts.new else 0
        return not (self.artifacts.new or self.artifacts.gone or self.records or self.gone) and again <= FEW


def is_read(kind: str, name: str) -> bool:
    """Whether a view or table reads a file of that name in artifacts of that kind."""
    return any(kind == of and fnmatchcase(name, glob) for patterns, _ in views.READS.values() for of, glob in patterns)


def changes_since(store: ArtifactStore, state: State | None) -> Changes:
    """Look at the whole store.

    Raises:
        ArtifactDamaged: names the damaged artifacts.
        NewerRelease: a newer release wrote one of them.
    """
    records, gone = survey_experiments(store, state.records if state else {})
    artifacts = survey(store, state.artifacts if state else [], is_read)
    return Changes(state.id if state else None, artifacts, records, gone)


def id_in(connection: duckdb.DuckDBPyConnection) -> str | None:
    """The id of the catalog that is open; None where it is none."""
    import duckdb

    with contextlib.suppress(duckdb.Error):
        for (identity,) in connection.execute("SELECT id FROM catalog_state").fetchall():
            return str(identity)
    return None


def state_in(connection: duckdb.DuckDBPyConnection, store: ArtifactStore) -> State | None:
    """What the open catalog knows; None where it is of another release or store, or spoilt."""
    import duckdb

    try:
        found = connection.execute("SELECT id, release, url FROM catalog_state").fetchall()
        if len(found) != 1 or found[0][1:] != (CATALOG_SCHEMA, store.name):
            return None
        # few kinds have many names of files: one row for each; and one text is read sooner than a list of 100,000
        alike = connection.execute("""
            SELECT kind, names, string_agg(key, ' '), string_agg(coalesce(CAST(state AS VARCHAR), ''), ' '),
                string_agg(digest, ' ')
            FROM known GROUP BY kind, names""").fetchall()
        records = connection.execute("SELECT label, state, digest, status FROM known_records").fetchall()
    except duckdb.Error:
        return None
    return State(
        found[0][0],
        [
            Alike(kind, names, keys.split(" "), [int(s) if s else None for s in states.split(" ")], digests.split(" "))
            for kind, names, keys, states, digests in alike
        ],
        {label: SeenRecord(label, state, digest, None, status) for label, state, digest, status in records},
    )


def is_as_written(path: Path) -> bool:
    """Whether a catalog lies there that nobody wrote to since: ours are of a whole second."""
    try:
        return path.stat().st_mtime_ns % 1_000_000_000 == 0
    except OSError:
        return False


def new_file(store: ArtifactStore, changes: Changes) -> str:
    """Write a catalog of everything, and return its id."""
    return _written(store, lambda connection: fill(connection, store, changes))


def update_file(store: ArtifactStore, changes: Changes) -> str | None:
    """Write a catalog that is as the one there, and with the changes; None where another lies there by now."""

    def change(connection: duckdb.DuckDBPyConnection) -> None:
        if id_in(connection) != changes.before or not is_as_written(store.catalog):
            raise FileNotFoundError
        _apply(connection, store, changes)

    with contextlib.suppress(FileNotFoundError):
        return _written(store, change, start=store.catalog)
    return None


def _written(
    store: ArtifactStore, change: Callable[[duckdb.DuckDBPyConnection], None], *, start: Path | None = None
) -> str:
    import duckdb

    identity = uuid.uuid4().hex
    aside = store.root / f".catalog-{identity}.duckdb"
    try:
        store.root.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(store.root)
        aside.touch()  # so that what cannot be written is said as the system says it
        if start is None:
            aside.unlink()
        else:
            shutil.copyfile(start, aside)
        with duckdb.connect(aside) as connection:
            connection.register_filesystem(ReadOnlyStore(store))
            change(connection)
            connection.execute("DELETE FROM catalog_state")
            values = [identity, CATALOG_SCHEMA, store.name]
            connection.execute("INSERT INTO catalog_state VALUES (?, ?, ?)", values)
        now = int(time.time()) * 1_000_000_000
        os.utime(aside, ns=(now, now))
        aside.replace(store.catalog)
        # Left behind by a user who wrote into the old file; it would not fit the new one.
        store.catalog.with_name(f"{store.catalog.name}.wal").unlink(missing_ok=True)
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
    return identity


def _remove_leftovers(root: Path) -> None:
    for path in root.glob(".catalog-*"):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < time.time() - LEFT_BEHIND_S:
                path.unlink()


# --- filling ---


def fill(connection: duckdb.DuckDBPyConnection, store: ArtifactStore, changes: Changes) -> None:
    """Make every table and view in an empty database, and put everything into them."""
    connection.execute("CREATE TABLE catalog_state (id VARCHAR, release BIGINT, url VARCHAR)")
    empty = {
        **tables.of_artifacts(store, []),
        **tables.of_experiments([]),
        "known": tables.known({}),
        "paper_results": tables.paper_results(),
    }
    for name, rows in empty.items():
        rows.create(connection, name)
        rows.insert(connection, name)
    for view in views.LOADED:
        connection.execute(views.loaded_table(view))
    connection.execute("CREATE SCHEMA reading")
    for name, sql in views.TABLE_VIEWS.items():
        connection.execute(f"CREATE VIEW {name} AS {sql}")
    for view in views.LISTED:
        connection.execute(f"SET VARIABLE {view} = [{views.quote(empty_file(view))}]")
        connection.execute(views.listed_view(view))
    _apply(connection, store, changes, first=True)
    for schema in ("main", "reading"):
        connection.execute(f"SET search_path = '{schema},main'")
        for name, sql in views.DERIVED_VIEWS.items():
            connection.execute(f"CREATE VIEW {schema}.{name} AS {sql}")


def _apply(
    connection: duckdb.DuckDBPyConnection, store: ArtifactStore, changes: Changes, *, first: bool = False
) -> None:
    found = changes.artifacts
    kinds = None if first else {m.kind for m in found.new} | {kind for kind, _ in found.gone}
    before = {} if first else _globs(connection, kinds)
    if found.gone:
        for name in ("artifacts", "files", "parents", "known", *map(views.rows_of, views.LOADED)):
            tables.addresses(found.gone).delete(connection, name)
    if not first:
        tables.addresses(found.seen).delete(connection, "known")
        for label in [*changes.gone, *(record.label for record in changes.records)]:
            for name in ("experiments", "records", "record_parents"):
                connection.execute(f"DELETE FROM {name} WHERE experiment = ?", [label])
            connection.execute("DELETE FROM known_records WHERE label = ?", [label])
    new = {
        **tables.of_artifacts(store, found.new),
        **tables.of_experiments(changes.records),
        "known": tables.known(found.seen),
    }
    for name, rows in new.items():
        rows.insert(connection, name)
    below = FOLDER if store.remote is not None else store.address("artifacts") + "/"
    for view in views.LOADED:
        files = _files_of(view, found.new)
        for start in range(0, len(files), AT_ONCE):
            with _named(view):
                connection.execute(views.load_rows(view, files[start : start + AT_ONCE], below=below))
    made = {view: globs for view, globs in _globs(connection, kinds).items() if first or globs != before[view]}
    if store.remote is not None and made:
        connection.register_filesystem(store.remote.fs)
    for view, globs in made.items():
        with _named(view):
            connection.execute(views.parquet_view(view, globs, below=store.address("artifacts") + "/"))


def _globs(connection: duckdb.DuckDBPyConnection, kinds: set[str] | None) -> dict[str, list[str]]:
    """Of each view for everybody, or of those that read these kinds, the patterns that have files."""
    concerned = [view for view in views.LISTED if kinds is None or kinds & {kind for kind, _ in views.READS[view][0]}]
    return {view: connection.execute(views.globs_in(view)).fetchall()[0][0] or [] for view in concerned}


def _files_of(view: str, manifests: Sequence[Manifest]) -> list[str]:
    patterns = views.READS[view][0]
    return [
        f"{m.kind}/{m.key}/{entry['name']}"
        for m in manifests
        for entry in m.files
        if any(m.kind == kind and fnmatchcase(entry["name"], glob) for kind, glob in patterns)
    ]


@contextmanager
def _named(view: str) -> Iterator[None]:
    """Say of which view the files cannot be read."""
    import duckdb

    try:
        yield
    except duckdb.Error as error:
        message = f"{error}; `fortifai verify` names the damaged artifact"
        raise ArtifactDamaged(f"the view {view} cannot be made: {message}") from error
