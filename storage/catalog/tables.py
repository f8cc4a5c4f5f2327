"""The catalog's tables, made from manifests, experiment records and the paper's printed results."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib import resources
from typing import TYPE_CHECKING, Any

from storage.store.experiments import Experiment, StageRecord
from storage.store.manifest import Manifest
from storage.store.store import ArtifactStore

if TYPE_CHECKING:
    import pyarrow as pa


# A column of this name has this type in every table; all others are text.
_TYPES = {
    **dict.fromkeys(
        ("stage_version", "size", "splits", "generations", "seed", "generation", "split", "version"), "int64"
    ),
    **dict.fromkeys(("seconds", "percent"), "float64"),
    **dict.fromkeys(("created", "updated", "removed"), "timestamp[us]"),
    "present": "bool",
}


def table(columns: str, rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """A table of these columns; what else a row holds is left out."""
    import pyarrow as pa

    schema = pa.schema([(name, pa.type_for_alias(_TYPES.get(name, "string"))) for name in columns.split()])
    return pa.Table.from_pylist([dict(row) for row in rows], schema=schema)


def _time(text: str) -> datetime | None:
    """UTC without a zone: DuckDB shows zoned times in the reader's zone, and needs an extension for it."""
    return datetime.fromisoformat(text).astimezone(UTC).replace(tzinfo=None) if text else None


def artifacts(store: ArtifactStore, manifests: list[Manifest]) -> pa.Table:
    rows = (
        {
            **vars(m),
            **{name: json.dumps(getattr(m, name)) for name in ("content", "metrics", "provenance")},
            "created": _time(m.created),
            "removed": _time(m.removed["at"]) if m.removed else None,
            "size": m.size,
            "path": store.address(f"artifacts/{m.kind}/{m.key}"),
        }
        for m in manifests
    )
    return table("kind key stage_version content metrics provenance created removed seconds size path", rows)


def files(store: ArtifactStore, manifests: list[Manifest]) -> pa.Table:
    rows = (
        {**vars(m), "path": store.address(f"artifacts/{m.kind}/{m.key}/{entry['name']}"), **entry}
        for m in manifests
        for entry in m.files
    )
    return table("kind key name size sha256 path", rows)


def experiments(experiments: list[Experiment]) -> pa.Table:
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
    columns = "experiment id name status created updated corpus model regime splits generations config"
    return table(columns, rows)


def _type_of(part: Any) -> str | None:
    return part.get("type") if isinstance(part, dict) else None


def stages(store: ArtifactStore, manifests: list[Manifest], experiments: list[Experiment]) -> pa.Table:
    present = {(m.kind, m.key): m for m in manifests}
    named: list[tuple[str | None, StageRecord]] = [(e.label, stage) for e in experiments for stage in e.stages]
    known = {(stage.kind, stage.key) for _, stage in named}
    # What no experiment names (made by hand, or its record was deleted) is listed without one.
    loose = [StageRecord(kind, key, kind) for kind, key in present if (kind, key) not in known]
    rows = []
    for label, stage in [*named, *((None, stage) for stage in loose)]:
        manifest = present.get((stage.kind, stage.key))
        made: dict[str, Any] = {}
        if manifest is not None:
            path = store.address(f"artifacts/{stage.kind}/{stage.key}")
            made = {**vars(manifest), "created": _time(manifest.created), "size": manifest.size, "path": path}
        rows.append({**made, **vars(stage), "experiment": label, "present": manifest is not None})
    place = "experiment kind key role arm seed generation split version"
    return table(f"{place} present seconds created stage_version size path", rows)


def edges(manifests: list[Manifest], experiments: list[Experiment]) -> pa.Table:
    # An artifact's own manifest knows best; the record speaks for what is not made yet.
    parents = {(s.kind, s.key): s.parents for e in experiments for s in e.stages}
    parents.update({(m.kind, m.key): m.parents for m in manifests})
    rows = (
        {"kind": kind, "key": key, "role": role, "parent": parent}
        for (kind, key), roles in parents.items()
        for role, parent in roles.items()
    )
    return table("kind key role parent", rows)


def paper_results() -> pa.Table:
    text = (resources.files("storage") / "paper" / "results.csv").read_text(encoding="utf-8")
    rows = (
        {**row, "paper_table": row["table"], "generation": int(row["generation"]), "percent": float(row["percent"])}
        for row in csv.DictReader(text.splitlines())
    )
    return table("paper_table dataset model generation method metric percent", rows)
