"""The collapse profile of a finished experiment, as its report holds it: printed, or as plain rows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from flows.local import read_report
from fortifai_core.errors import InputError
from fortifai_core.outside import markup
from storage.store.experiments import Experiment
from storage.store.store import ArtifactStore

GAP = 2  # between columns
COLOURS = {"collapsed": "red", "did not": "green", "cannot": "dim"}


def read_profile(store: ArtifactStore, record: Experiment) -> dict[str, Any]:
    """The profile as `fortifai_core.report.profile.as_json` wrote it.

    Raises:
        InputError: there is no report yet, or one without a profile, or nothing that a definition could judge.
    """
    _, folder = read_report(store, record)
    path = folder / "profile.json"
    if not path.is_file():
        remedy = (
            f"its report has no profile, an earlier release made it; `fortifai resume {record.label}` makes it anew"
        )
        raise InputError("experiment", record.label, remedy)
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if any("freedom" not in row for row in found.get("profile_differences", [])):
        remedy = (
            f"an earlier release made its profile; `fortifai resume {record.label}` makes it anew, and trains nothing"
        )
        raise InputError("experiment", record.label, remedy)
    if not found["table"]["rows"]:
        raise InputError("experiment", record.label, "measures nothing that a definition of collapse could judge")
    return found


def show(record: Experiment, profile: dict[str, Any], console: Console) -> None:
    """A row a definition and a column an arm; then what it says in words."""
    headers, rows = profile["table"]["headers"], profile["table"]["rows"]
    console.print(f"\n[bold]{markup(record.label)}: collapse profile[/]")
    for table in _tables(headers, rows, console):
        console.print(table)
    for line in profile["summary"]:
        console.print(f"\n{markup(line)}", highlight=False)
    by_reason: dict[str, list[str]] = {}
    for name, why in profile["not_measured"].items():
        by_reason.setdefault(why, []).append(name)
    console.print()
    for why, names in by_reason.items():
        console.print(f"[dim]not judged: {markup('; '.join(names))} ({markup(why)})[/]", highlight=False)


def _tables(headers: list[str], rows: list[list[str]], console: Console) -> Iterator[Table]:
    """One table where all arms fit beside each other; otherwise in two lines a row, so many arms in each as fit."""

    def table(names: list[str]) -> Table:
        return Table(*map(markup, names), box=None, pad_edge=False, padding=(0, GAP, 0, 0))

    widths = [max(map(len, column)) + GAP for column in zip(headers, *rows, strict=True)]
    if sum(widths) - GAP <= console.width:
        whole = table(headers)
        for row in rows:
            whole.add_row(*map(markup, row[:2]), *(_coloured(cell) for cell in row[2:]))
        yield whole
        return
    first = max(len(words) for row in rows for words in row[:2]) + GAP
    split = [[cell.replace(" (", "\n(", 1) for cell in row[2:]] for row in rows]
    arms = headers[2:]
    widest = max(len(line) for cells in [arms, *split] for cell in cells for line in cell.split("\n")) + GAP
    fit = max(1, (console.width - first + GAP) // widest)
    for start in range(0, len(arms), fit):
        part = table([headers[0], *arms[start : start + fit]])
        for row, cells in zip(rows, split, strict=True):
            part.add_row(markup(row[0]) + f"\n[dim]{markup(row[1])}[/]", *map(_coloured, cells[start : start + fit]))
        if start:
            console.print()
        yield part


def _coloured(cell: str) -> str:
    style = next((style for words, style in COLOURS.items() if cell.startswith(words)), "")
    return f"[{style}]{markup(cell)}[/]" if style else markup(cell)
