"""Running an experiment in this process, with a terminal to look at: `fortifai run` and `make demo`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.embedded import prefect_api
from flows.prepare import prepare_experiment
from flows.reporters import TerminalReporter
from fortifai_core.config import ExperimentConfig
from fortifai_core.errors import FortifaiError
from storage.experiments import Experiment, load_experiment
from storage.store import ArtifactStore


def run_here(
    config: ExperimentConfig, *, store: str | None, refresh: Sequence[str], console: Console, resume: str
) -> dict[str, Any]:
    """Run one experiment to its end and print its table.

    Args:
        resume: the command that goes on with it, printed when it fails; `{name}` is filled in.
    """
    started = time.monotonic()
    prepared = prepare_experiment(config, store=store, refresh=refresh)
    plan = prepared.plan
    there = sum(prepared.store.find(s.kind, s.key) is not None for s in plan.stages())
    console.print(
        f"[bold]{config.name}[/]  {len(config.losses)} losses × {len(config.seeds)} seeds × "
        f"{config.generations} generations · {len(plan.stages())} stages, {there} found · store {prepared.store.url}"
    )
    from prefect.exceptions import TerminationSignal

    command = resume.format(name=prepared.record_id)
    try:
        with (
            prefect_api(prepared.store.logs / "prefect-server.log"),
            TerminalReporter(plan, console) as reporter,
        ):
            from flows.recursive import run_experiment

            outcome = asyncio.run(run_experiment(prepared, reporter))
    except FortifaiError as error:
        console.print(f"[red]failed:[/] {escape(str(error))}\nwhat was finished is kept; go on with: {command}")
        raise SystemExit(error.exit_code) from None
    except (KeyboardInterrupt, asyncio.CancelledError, TerminationSignal):
        console.print(f"stopped; what was finished is kept; go on with: {command}")
        raise SystemExit(130) from None
    record = load_experiment(prepared.store, prepared.record_id)
    print_outcome(prepared.store, record, console)
    wall = time.monotonic() - started
    other = wall - outcome["computing_seconds"]
    share = f" ({other / wall:.1%})" if outcome["built"] else ""
    console.print(
        f"\n{outcome['built']} stages computed, {outcome['found']} found · {wall:.0f} s, "
        f"{other:.0f} s of them{share} not computing: start, orchestration, storage"
    )
    return {**outcome, "seconds": round(wall, 2)}


def report_folder(store: ArtifactStore, record: Experiment) -> Path | None:
    """Where the report of a finished experiment lies."""
    for stage in reversed(record.stages):
        if stage.role == "report":
            artifact = store.find(stage.kind, stage.key)
            return artifact.path if artifact else None
    return None


def results_table(store: ArtifactStore, record: Experiment) -> tuple[list[str], list[list[str]], Path]:
    """Headers and rows as the terminal shows them, and the path of the HTML report."""
    import json

    from fortifai_core.errors import InputError

    folder = report_folder(store, record)
    if folder is None:
        raise InputError("experiment", record.label, f"has no report yet; `fortifai resume {record.label}` finishes it")
    table = json.loads((folder / "table.json").read_text())
    return table["headers"], table["rows"], folder / "report.html"


def print_outcome(store: ArtifactStore, record: Experiment, console: Console) -> None:
    """The experiment's table, its headline, and where its report lies."""
    import json

    headers, rows, path = results_table(store, record)
    summary = json.loads((path.parent / "table.json").read_text())
    table = Table(*[escape(h) for h in headers], box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for row in rows:
        table.add_row(*[escape(cell) for cell in row])
    console.print(f"\n[bold]{escape(summary['title'])}[/]")
    console.print(table)
    console.print(f"[dim]{escape(summary['caption'])}[/]", highlight=False)
    for line in summary["headline"]:
        console.print(f"\n{escape(line)}", highlight=False)
    for note in summary["notes"]:
        console.print(f"[dim]note: {escape(note)}[/]", highlight=False)
    console.print(f"\nreport: {path}", soft_wrap=True)
