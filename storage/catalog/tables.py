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


def table(rows: Iterable[Mapping[str, Any]], **columns: str) -> pa.Table:
    import pyarrow as pa

    types = {
        "string": pa.string(),
        "int": pa.int64(),
        "double": pa.float64(),
        "bool": pa.bool_(),
        "time": pa.timestamp("us"),
    }
    schema = pa.schema([(name, types[kind]) for name, kind in columns.items()])
    return pa.Table.from_pylist([dict(row) for row in rows], schema=schema)


def _time(text: str) -> datetime | None:
    """UTC without a zone: DuckDB shows zoned times in the reader's zone, and needs an extension for it."""
    return datetime.fromisoformat(text).astimezone(UTC).replace(tzinfo=None) if text else None


def artifacts(store: ArtifactStore, manifests: list[Manifest]) -> pa.Table:
    rows = (
        {
            "kind": m.kind,
            "key": m.key,
            "stage_version": m.stage_version,
            "content": json.dumps(m.content),
            "metrics": json.dumps(m.metrics),
            "provenance": json.dumps(m.provenance),
            "created": _time(m.created),
            "seconds": m.seconds,
            "size": m.size,
            "path": store.address(f"artifacts/{m.kind}/{m.key}"),
        }
        for m in manifests
    )
    return table(
        rows,
        kind="string",
        key="string",
        stage_version="int",
        content="string",
        metrics="string",
        provenance="string",
        created="time",
        seconds="double",
        size="int",
        path="string",
    )


def files(store: ArtifactStore, manifests: list[Manifest]) -> pa.Table:
    rows = (
        {
            "kind": m.kind,
            "key": m.key,
            "path": store.address(f"artifacts/{m.kind}/{m.key}/{entry['name']}"),
            **entry,
        }
        for m in manifests
        for entry in m.files
    )
    return table(rows, kind="string", key="string", name="string", size="int", sha256="string", path="string")


def experiments(experiments: list[Experiment]) -> pa.Table:
    rows = (
        {
            "experiment": e.label,
            "id": e.id,
            "name": e.name,
            "status": e.state,
            "created": _time(e.created),
            "updated": _time(e.updated),
            "corpus": _type_of(e.config.get("corpus") or (e.config.get("family") or {}).get("data")),
            "model": _type_of(e.config.get("model") or e.config.get("family")),
            "regime": e.config.get("regime"),
            "splits": e.config.get("splits"),
            "generations": e.config.get("generations"),
            "config": json.dumps(e.config),
        }
        for e in experiments
    )
    return table(
        rows,
        experiment="string",
        id="string",
        name="string",
        status="string",
        created="time",
        updated="time",
        corpus="string",
        model="string",
        regime="string",
        splits="int",
        generations="int",
        config="string",
    )


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
        rows.append(
            {
                "experiment": label,
                "kind": stage.kind,
                "key": stage.key,
                "role": stage.role,
                "arm": stage.arm,
                "seed": stage.seed,
                "generation": stage.generation,
                "split": stage.split,
                "version": stage.version,
                "present": manifest is not None,
                "seconds": manifest.seconds if manifest else None,
                "created": _time(manifest.created) if manifest else None,
                "stage_version": manifest.stage_version if manifest else None,
                "size": manifest.size if manifest else None,
                "path": store.address(f"artifacts/{stage.kind}/{stage.key}") if manifest else None,
            }
        )
    return table(
        rows,
        experiment="string",
        kind="string",
        key="string",
        role="string",
        arm="string",
        seed="int",
        generation="int",
        split="int",
        version="int",
        present="bool",
        seconds="double",
        created="time",
        stage_version="int",
        size="int",
        path="string",
    )


def edges(manifests: list[Manifest], experiments: list[Experiment]) -> pa.Table:
    # An artifact's own manifest knows best; the record speaks for what is not made yet.
    parents = {(s.kind, s.key): s.parents for e in experiments for s in e.stages}
    parents.update({(m.kind, m.key): m.parents for m in manifests})
    rows = (
        {"kind": kind, "key": key, "role": role, "parent": parent}
        for (kind, key), roles in parents.items()
        for role, parent in roles.items()
    )
    return table(rows, kind="string", key="string", role="string", parent="string")


def paper_results() -> pa.Table:
    text = (resources.files("storage") / "paper" / "results.csv").read_text(encoding="utf-8")
    rows = [
        {
            **row,
            "paper_table": row["table"],
            "generation": int(row["generation"]),
            "percent": float(row["percent"]),
        }
        for row in csv.DictReader(text.splitlines())
    ]
    return table(
        rows,
        paper_table="string",
        dataset="string",
        model="string",
        generation="int",
        method="string",
        metric="string",
        percent="double",
    )
