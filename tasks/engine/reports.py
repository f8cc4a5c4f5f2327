"""A report of any model class, written into an artifact: page, figures, tables as CSV and Parquet, table.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fortifai_core.report.data import Report
    from tasks.engine.context import Context
    from tasks.engine.stages import Reference


def environment(context: Context[Any], first: Reference, packages: Sequence[str], **more: str) -> dict[str, str]:
    """Where the models were made, from the provenance of the `first` of them. `more`: fields to show besides."""
    made = context.manifest(first).provenance
    shown = [f"{name} {made['packages'][name]}" for name in packages if name in made.get("packages", {})]
    return {
        "processor": f"{made.get('cpu', 'unknown')}, {made.get('cpu_count', '?')} cores",
        **{title: str(made.get(field)) for title, field in more.items()},
        "software": ", ".join([f"Python {made.get('python', '?')}", *shown]),
        "code": str((made.get("git") or {}).get("revision", "not from a git checkout"))[:12],
    }


def write_report(context: Context[Any], report: Report) -> None:
    """Write everything; table.json is what the terminal prints."""
    from fortifai_core.report.page import build_report
    from fortifai_core.report.profile import as_json
    from storage.tables.exports import write_columns

    contents, _ = build_report(report, context.directory)
    times = [contents.seconds.table] if contents.seconds.rows else []
    for table in [*contents.tables, *times]:
        write_columns(context.directory / "tables" / f"{table.name}.parquet", table.columns)
    shown = {**asdict(contents.terminal), "headline": list(contents.headline), "notes": list(report.notes)}
    profile = json.dumps(as_json(contents.profile), indent=1, ensure_ascii=False, allow_nan=False)
    (context.directory / "profile.json").write_text(profile, encoding="utf-8")
    (context.directory / "table.json").write_text(json.dumps(shown, indent=1, ensure_ascii=False), encoding="utf-8")
