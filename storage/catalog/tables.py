"""The catalog's tables, made from manifests, experiment records and the paper's printed results."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from typing import TYPE_CHECKING, Any

from storage.store.experiments import SeenRecord
from storage.store.manifest import Address, Manifest
from storage.store.store import ArtifactStore
from storage.store.survey import Known

if TYPE_CHECKING:
    import duckdb

# A column of this name has this type in every table; all others are text.
_TYPES = {
    **dict.fromkeys(
        ("stage_version", "size", "splits", "generations", "seed", "generation", "split", "version"), "BIGINT"
    ),
    **dict.fromkeys(("seconds", "percent"), "DOUBLE"),
    **dict.fromkeys(("created", "updated", "removed"), "TIMESTAMP"),
    "state": "BIGINT",
    "names": "VARCHAR[]",
}
ARTIFACTS = "kind key stage_version content metrics provenance created removed seconds size path"
AT_ONCE = 2_000  # rows that one statement takes


@dataclass(frozen=True)
class Rows:
    """Rows with their columns, for DuckDB. They go there as JSON: to load pyarrow takes longer than to add a few."""

    columns: tuple[str, ...]
    rows: list[Mapping[str, Any]]

    def create(self, connection: duckdb.DuckDBPyConnection, name: str) -> None:
        """Create a table with these columns, and without rows."""
        connection.execute(f"CREATE TABLE {name} ({', '.join(f'{c} {_type(c)}' for c in self.columns)})")

    def insert(self, connection: duckdb.DuckDBPyConnection, name: str) -> None:
        """Add the rows to a table."""
        self._execute(connection, f"INSERT INTO {name} FROM {{}}")

    def delete(self, connection: duckdb.DuckDBPyConnection, name: str) -> None:
        """Delete the rows of a table that have kind and key of one of these."""
        self._execute(connection, f"DELETE FROM {name} WHERE (kind, key) IN (SELECT (kind, key) FROM {{}})")

    def _execute(self, connection: duckdb.DuckDBPyConnection, statement: str) -> None:
        types = {c: ["VARCHAR"] if _type(c) == "VARCHAR[]" else _type(c) for c in self.columns}
        rows = f"(SELECT unnest(from_json_strict(?, '{json.dumps([types])}'), max_depth := 2))"
        for start in range(0, len(self.rows), AT_ONCE):
            some = [{c: row.get(c) for c in self.columns} for row in self.rows[start : start + AT_ONCE]]
            connection.execute(statement.format(rows), [json.dumps(some, default=str)])


def _type(column: str) -> str:
    return _TYPES.get(column, "VARCHAR")


def _table(columns: str, rows: Iterable[Mapping[str, Any]]) -> Rows:
    """Rows of these columns; what else a row holds is left out."""
    return Rows(tuple(columns.split()), list(rows))


def _time(text: str) -> datetime | None:
    """UTC without a zone: DuckDB shows zoned times in the reader's zone, and needs an extension for it."""
    return datetime.fromisoformat(text).astimezone(UTC).replace(tzinfo=None) if text else None


def _rows(manifests: Iterable[Manifest], store: ArtifactStore) -> Iterator[dict[str, Any]]:
    for m in manifests:
        yield {
            **vars(m),
            **{name: json.dumps(getattr(m, name)) for name in ("content", "metrics", "provenance")},
            "created": _time(m.created),
            "removed": _time(m.removed["at"]) if m.removed else None,
            "size": m.size,
            "path": store.address(f"artifacts/{m.kind}/{m.key}"),
        }


def of_artifacts(store: ArtifactStore, manifests: Sequence[Manifest]) -> dict[str, Rows]:
    """The rows that artifacts have in `artifacts`, `files` and `parents`."""
    files = (
        {**vars(m), "path": store.address(f"artifacts/{m.kind}/{m.key}/{entry['name']}"), **entry}
        for m in manifests
        for entry in m.files
    )
    parents = (
        {"kind": m.kind, "key": m.key, "role": role, "parent": parent}
        for m in manifests
        for role, parent in m.parents.items()
    )
    return {
        "artifacts": _table(ARTIFACTS, _rows(manifests, store)),
        "files": _table("kind key name size sha256 path", files),
        "parents": _table("kind key role parent", parents),
    }


def known(seen: Mapping[Address, Known]) -> Rows:
    """What was seen of artifacts."""
    rows = ({"kind": kind, "key": key, **one._asdict()} for (kind, key), one in seen.items())
    return _table("kind key names state digest", rows)


def addresses(artifacts: Iterable[Address]) -> Rows:
    """Kinds and keys."""
    return _table("kind key", ({"kind": kind, "key": key} for kind, key in artifacts))


def of_experiments(records: Sequence[SeenRecord]) -> dict[str, Rows]:
    """The rows that experiments have in `experiments`, `records` and `record_parents`."""
    experiments = [record.experiment for record in records if record.experiment is not None]
    rows = (
        {
            **e.config,
            **vars(e),
            "experiment": e.label,
            "status": e.state,
            "created": _time(e.created),
            "updated": _time(e.updated),
            "corpus": _type_of(e.config.get("corpus") or (e.config.get("family") or {}).get("data")),
            "model": _type_of(e.config.get("model") or e.config.get("family")),
            "config": json.dumps(e.config),
        }
        for e in experiments
    )
    stages = ({**vars(stage), "experiment": e.label} for e in experiments for stage in e.stages)
    parents = (
        {"experiment": e.label, "kind": stage.kind, "key": stage.key, "role": role, "parent": parent}
        for e in experiments
        for stage in e.stages
        for role, parent in stage.parents.items()
    )
    seen = ({**vars(r), "status": r.experiment.state if r.experiment else None} for r in records)
    columns = "experiment id name status created updated corpus model regime splits generations config"
    return {
        "experiments": _table(columns, rows),
        "records": _table("experiment kind key role arm seed generation split version", stages),
        "record_parents": _table("experiment kind key role parent", parents),
        "known_records": _table("label state digest status", seen),
    }


def _type_of(part: Any) -> str | None:
    return part.get("type") if isinstance(part, dict) else None


def paper_results() -> Rows:
    text = (resources.files("storage") / "paper" / "results.csv").read_text(encoding="utf-8")
    rows = (
        {**row, "paper_table": row["table"], "generation": int(row["generation"]), "percent": float(row["percent"])}
        for row in csv.DictReader(text.splitlines())
    )
    return _table("paper_table dataset model generation method metric percent", rows)
