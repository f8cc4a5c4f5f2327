"""Running an experiment in this process, with a terminal to look at: `fortifai run` and `make demo`."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.embedded import configured_api, prefect_api_beside, sigterm_as_interrupt
from flows.prepare import Prepared, prepare_experiment
from flows.reporters import TerminalReporter
from flows.workers import workers
from fortifai_core.errors import FortifaiError, InputError
from storage.store.experiments import Experiment, load_experiment, record_experiment
from storage.store.store import ArtifactStore
from storage.store.tree import Artifact
from tasks.engine.plans import AnyExperiment
from tasks.engine.session import Circumstances


def run_here(
    config: AnyExperiment, *, store: str | None, refresh: Sequence[str], console: Console, resume: str
) -> dict[str, Any]:
    """Run one experiment to its end and print its table.

    Args:
        resume: the command that goes on with it, printed when it fails; `{name}` is filled in.
    """
    prepared = prepare_experiment(config, store=store, refresh=refresh)
    outcome = execute(prepared, console, resume=resume)
    print_outcome(prepared.store, load_experiment(prepared.store, prepared.record_id), console)
    console.print(f"\n{spent([outcome])}")
    return outcome


def execute(prepared: Prepared, console: Console, *, resume: str) -> dict[str, Any]:
    """Run what was prepared, saying what it is and how far it comes; its results are for the caller to print."""
    started = time.monotonic()
    plan, config = prepared.plan, prepared.plan.config
    artifacts = [prepared.store.find(s.kind, s.key) for s in plan.stages()]
    there = sum(artifact is not None for artifact in artifacts)
    console.print(
        f"[bold]{config.name}[/]  {len(config.arm_labels)} arms × {len(config.seeds)} seeds × "
        f"{config.generations} generations · {len(artifacts)} stages, {there} found · store {prepared.store.url}"
    )
    command = resume.format(name=prepared.record_id)
    if there < len(artifacts):
        # said now, since a process that is killed says nothing
        console.print(f"[dim]whenever it stops, go on with: {command}[/]", highlight=False)
    if there == len(artifacts) and not plan.may_stop and configured_api() is None:
        # no server would keep a record of these runs, so there is no need to start one
        outcome = _everything_found(prepared, artifacts, TerminalReporter(plan, console))
    else:
        outcome = _run(prepared, console, command=command)
    return {**outcome, "seconds": round(time.monotonic() - started, 2)}


def spent(outcomes: Sequence[dict[str, Any]]) -> str:
    """How much was computed and found, and in what time, over these experiments."""
    built, there, wall, computing = (
        sum(outcome[name] for outcome in outcomes) for name in ("built", "found", "seconds", "computing_seconds")
    )
    other = wall - computing
    share = f", {other:.0f} s of them ({other / wall:.1%}) not computing: start, orchestration, storage"
    return f"{built} stages computed, {there} found · {wall:.0f} s" + (share if built else "")


def _everything_found(
    prepared: Prepared, found: Sequence[Artifact | None], reporter: TerminalReporter
) -> dict[str, Any]:
    """What a run would say that finds every stage, without running one."""
    circumstances = Circumstances()
    for artifact in found:
        if artifact is not None:
            circumstances.note(artifact.manifest)
    circumstances.tell(reporter)
    record_experiment(prepared.store, config=prepared.plan.config.model_dump(mode="json"), status="finished")
    return {
        "experiment": prepared.record_id,
        "report": prepared.plan.report().key,
        "built": 0,
        "found": len(found),
        "stage_seconds": 0.0,
        "computing_seconds": 0.0,
    }


def _run(prepared: Prepared, console: Console, *, command: str) -> dict[str, Any]:
    """The flow, with a Prefect server for as long as it runs where there is none; `command` goes on with it."""
    from prefect.exceptions import TerminationSignal

    try:
        with sigterm_as_interrupt(), TerminalReporter(prepared.plan, console) as reporter:
            return asyncio.run(_with_server(prepared, reporter))
    except FortifaiError as error:
        console.print(f"[red]failed:[/] {escape(str(error))}\nwhat was finished is kept; go on with: {command}")
        raise SystemExit(error.exit_code) from None
    except (KeyboardInterrupt, asyncio.CancelledError, TerminationSignal):
        console.print(f"stopped; what was finished is kept; go on with: {command}")
        raise SystemExit(130) from None
    except Exception:
        console.print(f"[red]failed unexpectedly;[/] what was finished is kept; go on with: {command}")
        raise


async def _with_server(prepared: Prepared, reporter: TerminalReporter) -> dict[str, Any]:
    """The workers first: they may begin while the server starts, and Prefect is imported beside both."""
    async with workers(prepared) as pool, prefect_api_beside(prepared.store.logs / "prefect-server.log"):
        from flows.experiment import run_here as run

        return await run(prepared, reporter, pool)


def read_report(store: ArtifactStore, record: Experiment) -> tuple[dict[str, Any], Path]:
    """The report's table.json, and the folder in which it and report.html lie.

    Raises:
        InputError: the experiment has no report yet.
    """
    reports = [store.find(stage.kind, stage.key) for stage in record.stages if stage.role == "report"]
    if not reports or reports[-1] is None:
        raise InputError("experiment", record.label, f"has no report yet; `fortifai resume {record.label}` finishes it")
    folder = reports[-1].path
    return json.loads((folder / "table.json").read_text(encoding="utf-8")), folder


def print_outcome(store: ArtifactStore, record: Experiment, console: Console) -> None:
    """The experiment's table, its headline, and where its report lies."""
    table, folder = read_report(store, record)
    print_results(table, console)
    console.print(f"\nreport: {folder / 'report.html'}", soft_wrap=True)


def print_results(summary: dict[str, Any], console: Console) -> None:
    """A report's table.json on the terminal: the table, then the headline and the notes."""
    table = Table(*[escape(h) for h in summary["headers"]], box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for row in summary["rows"]:
        table.add_row(*[escape(cell) for cell in row])
    console.print(f"\n[bold]{escape(summary['title'])}[/]")
    console.print(table)
    console.print(f"[dim]{escape(summary['caption'])}[/]", highlight=False)
    for line in summary["headline"]:
        console.print(f"\n{escape(line)}", highlight=False)
    for note in summary["notes"]:
        console.print(f"[dim]note: {escape(note)}[/]", highlight=False)
