"""The catalog's tables, made from manifests, experiment records and the paper's printed results."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib import resources
from typing import TYPE_CHECKING, Any

from storage.store.experiments import SeenRecord
from storage.store.manifest import Address, Manifest
from storage.store.store import ArtifactStore
from storage.store.survey import Known

if TYPE_CHECKING:
    import pyarrow as pa


# A column of this name has this type in every table; all others are text.
_TYPES = {
    **dict.fromkeys(
        ("stage_version", "size", "splits", "generations", "seed", "generation", "split", "version"), "int64"
    ),
    **dict.fromkeys(("seconds", "percent"), "float64"),
    **dict.fromkeys(("created", "updated", "removed"), "timestamp[us]"),
    "state": "int64",
}
ARTIFACTS = "kind key stage_version content metrics provenance created removed seconds size path"


def table(columns: str, rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """A table of these columns; what else a row holds is left out."""
    import pyarrow as pa

    types = {name: pa.type_for_alias(_TYPES.get(name, "string")) for name in columns.split()}
    schema = pa.schema([(name, pa.list_(pa.string()) if name == "names" else types[name]) for name in types])
    return pa.Table.from_pylist([dict(row) for row in rows], schema=schema)


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


def of_artifacts(store: ArtifactStore, manifests: Sequence[Manifest]) -> dict[str, pa.Table]:
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
        "artifacts": table(ARTIFACTS, _rows(manifests, store)),
        "files": table("kind key name size sha256 path", files),
        "parents": table("kind key role parent", parents),
    }


def known(seen: Mapping[Address, Known]) -> pa.Table:
    """What was seen of artifacts."""
    rows = ({"kind": kind, "key": key, **one._asdict()} for (kind, key), one in seen.items())
    return table("kind key names state digest", rows)


def addresses(artifacts: Iterable[Address]) -> pa.Table:
    """Kinds and keys."""
    return table("kind key", ({"kind": kind, "key": key} for kind, key in artifacts))


def of_experiments(records: Sequence[SeenRecord]) -> dict[str, pa.Table]:
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
        "experiments": table(columns, rows),
        "records": table("experiment kind key role arm seed generation split version", stages),
        "record_parents": table("experiment kind key role parent", parents),
        "known_records": table("label state digest status", seen),
    }


def _type_of(part: Any) -> str | None:
    return part.get("type") if isinstance(part, dict) else None


def paper_results() -> pa.Table:
    text = (resources.files("storage") / "paper" / "results.csv").read_text(encoding="utf-8")
    rows = (
        {**row, "paper_table": row["table"], "generation": int(row["generation"]), "percent": float(row["percent"])}
        for row in csv.DictReader(text.splitlines())
    )
    return table("paper_table dataset model generation method metric percent", rows)
