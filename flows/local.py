"""Running an experiment in this process, with a terminal to look at: `fortifai run` and `make demo`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from flows.embedded import check_api, configured_api, prefect_api_beside, sigterm_as_interrupt
from flows.prepare import Prepared, is_there, prepare_experiment
from flows.reporters import TerminalReporter
from flows.terminal import show_arms
from flows.workers import workers
from fortifai_core.errors import FortifaiError, InputError, StageFailed
from fortifai_core.outside import markup
from fortifai_core.wording import counted, duration
from storage.store.experiments import Experiment, load_experiment, record_experiment
from storage.store.store import ArtifactStore
from tasks.engine.needs import manifest_of
from tasks.engine.plans import AnyExperiment
from tasks.engine.session import Circumstances


def run_here(
    config: AnyExperiment,
    *,
    store: str | None,
    refresh: Sequence[str],
    console: Console,
    resume: str,
    weights: bool = False,
) -> dict[str, Any]:
    """Run one experiment to its end and print its table.

    Args:
        weights: as for `prepare_experiment`.
        resume: the command that goes on with it, printed when it fails; `{name}` is filled in.
    """
    check_api()
    prepared = prepare_experiment(config, store=store, refresh=refresh, weights=weights)
    (outcome,) = execute([prepared], console, resume=resume)
    print_outcome(prepared.store, load_experiment(prepared.store, prepared.record_id), console)
    console.print(f"\n{spent([outcome])}")
    if config.named and (saved := shared(prepared)):
        console.print(saved)
    return outcome


def execute(experiments: Sequence[Prepared], console: Console, *, resume: str) -> list[dict[str, Any]]:
    """Run what was prepared, one after the other, saying of each what it is and how far it comes.

    What comes out is for the caller to print. One Prefect server serves all of them: a process has one at most.
    """
    todo = [prepared for prepared in experiments if not _is_all_there(prepared)]
    ran = _run(todo, console, resume=resume) if todo else {}
    return [ran.get(prepared.record_id) or _everything_found(prepared, console, command="") for prepared in experiments]


def _announce(prepared: Prepared, console: Console, *, command: str) -> None:
    """What an experiment is, and how to go on with it: said now, since a process that is killed says nothing."""
    config, stages = prepared.plan.config, prepared.plan.stages()
    found = {s.reference for s in stages if manifest_of(prepared.store, s.reference) is not None}
    there = len(found - prepared.refresh)
    sizes = ((len(config.arm_labels), "arm"), (len(config.seeds), "seed"), (config.generations, "generation"))
    size = " × ".join(counted(many, noun) for many, noun in sizes)
    console.print(
        f"[bold]{markup(config.name)}[/]  {size} · {len(stages)} stages, {there} found · "
        f"store {markup(prepared.store.name)}"
    )
    show_arms(config, console)
    if there < len(stages):
        console.print(f"[dim]whenever it stops, go on with: {markup(command)}[/]", highlight=False)


def _is_all_there(prepared: Prepared) -> bool:
    """Whether nothing is to do, and no server would keep a record of a run that finds everything."""
    if prepared.plan.may_stop or prepared.refresh or configured_api() is not None:
        return False
    return is_there(prepared.plan, prepared.store)


def spent(outcomes: Sequence[dict[str, Any]]) -> str:
    """How much was computed and found, and in what time, over these experiments."""
    built, there, wall, computing = (
        sum(outcome[name] for outcome in outcomes) for name in ("built", "found", "seconds", "computing_seconds")
    )
    other = wall - computing
    share = f", {other:.0f} s of them ({other / wall:.1%}) not computing: start, orchestration, storage"
    return f"{built} stages computed, {there} found · {wall:.0f} s" + (share if built else "")


def shared(prepared: Prepared) -> str:
    """What sharing stages saved: computing time of all arms together, beside the sum of each by itself; or nothing."""
    plan = prepared.plan
    found = {stage.reference: manifest_of(prepared.store, stage.reference) for stage in plan.stages()}
    seconds = {reference: manifest.seconds for reference, manifest in found.items() if manifest is not None}
    alone = sum(seconds.get(stage.reference, 0.0) for arm in plan.config.arm_labels for stage in plan.alone(arm))
    once = sum(seconds.get(stage.reference, 0.0) for stage in plan.stages() if stage.role != "report")
    if alone - once < 1:  # seconds
        return ""
    together = f"{duration(once)} of computing ({once / alone:.0%})"
    return f"arms share stages: {together}; each by itself, {duration(alone)} in all"


def _everything_found(prepared: Prepared, console: Console, *, command: str) -> dict[str, Any]:
    """What a run would say that finds every stage, without running one."""
    started = time.monotonic()
    _announce(prepared, console, command=command)
    plan, circumstances = prepared.plan, Circumstances.of(prepared.plan.config)
    found = [manifest_of(prepared.store, stage.reference) for stage in plan.stages()]
    for manifest in found:
        if manifest is not None:
            circumstances.note(manifest)
    circumstances.tell(TerminalReporter(plan, console))
    record_experiment(prepared.store, config=plan.config.model_dump(mode="json"), status="finished")
    return {
        "experiment": prepared.record_id,
        "report": plan.report().key,
        "built": 0,
        "found": len(found),
        "stage_seconds": 0.0,
        "computing_seconds": 0.0,
        "seconds": round(time.monotonic() - started, 2),
    }


def _run(experiments: Sequence[Prepared], console: Console, *, resume: str) -> dict[str, dict[str, Any]]:
    """The flows, with a Prefect server for as long as they run where there is none; outcomes by experiment.

    Args:
        resume: the command that goes on with an experiment.
    """
    from prefect.exceptions import TerminationSignal

    outcomes: dict[str, dict[str, Any]] = {}

    def kept() -> str:
        unfinished = next((one.record_id for one in experiments if one.record_id not in outcomes), None)
        if unfinished is None:
            return "everything is finished"
        return f"what was finished is kept; go on with: {markup(resume.replace('{name}', unfinished))}"

    def end_without_server(why: str) -> None:
        """End at once: Prefect's client, cancelled or not, would go on asking a server that is gone."""
        console.print(f"[red]failed:[/] {markup(why)}\n{kept()}")
        console.show_cursor()
        os._exit(StageFailed.exit_code)  # the workers end with this process

    try:
        with sigterm_as_interrupt():
            asyncio.run(_with_server(experiments, console, outcomes, resume=resume, lost=end_without_server))
    except FortifaiError as error:
        console.print(f"[red]failed:[/] {markup(str(error))}\n{kept()}")
        raise SystemExit(error.exit_code) from None
    except (KeyboardInterrupt, asyncio.CancelledError, TerminationSignal):
        console.print(f"stopped; {kept()}")
        raise SystemExit(130) from None
    except Exception:
        console.print(f"[red]failed unexpectedly;[/] {kept()}")
        raise
    return outcomes


async def _with_server(
    experiments: Sequence[Prepared],
    console: Console,
    outcomes: dict[str, dict[str, Any]],
    *,
    resume: str,
    lost: Callable[[str], None],
) -> None:
    """One after the other. The first one's workers begin while the server starts, and Prefect is imported beside."""
    async with contextlib.AsyncExitStack() as server:
        for prepared in experiments:
            started = time.monotonic()
            _announce(prepared, console, command=resume.replace("{name}", prepared.record_id))
            async with workers(prepared) as pool:
                if prepared is experiments[0]:

                    def said(text: str) -> None:
                        console.print(f"[yellow]{markup(text)}[/]", soft_wrap=True)

                    log = prepared.store.logs / "prefect-server.log"
                    await server.enter_async_context(prefect_api_beside(log, said=said, lost=lost))
                from flows.experiment import run_here as run

                with TerminalReporter(prepared.plan, console) as reporter:
                    outcome = await run(prepared, reporter, pool)
            outcomes[prepared.record_id] = {**outcome, "seconds": round(time.monotonic() - started, 2)}


def read_report(store: ArtifactStore, record: Experiment) -> tuple[dict[str, Any], Path]:
    """The report's table.json, and the folder in which it and report.html lie.

    Raises:
        InputError: the experiment has no report yet.
        ArtifactDamaged: the report is damaged; nothing is moved.
    """
    reports = [stage for stage in record.stages if stage.role == "report"]
    artifact = store.read(reports[-1].kind, reports[-1].key) if reports else None
    if artifact is None:
        raise InputError("experiment", record.label, f"has no report yet; `fortifai resume {record.label}` finishes it")
    folder = artifact.path
    return json.loads((folder / "table.json").read_text(encoding="utf-8")), folder


def print_outcome(store: ArtifactStore, record: Experiment, console: Console) -> None:
    """The experiment's table, its headline, and where its report lies."""
    table, folder = read_report(store, record)
    print_results(table, console)
    console.print(f"\nreport: {markup(folder / 'report.html')}", soft_wrap=True)


def print_results(summary: dict[str, Any], console: Console) -> None:
    """A report's table.json on the terminal: the table, then the headline and the notes."""
    table = Table(*[markup(h) for h in summary["headers"]], box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for row in summary["rows"]:
        table.add_row(*[markup(cell) for cell in row])
    console.print(f"\n[bold]{markup(summary['title'])}[/]")
    console.print(table)
    console.print(f"[dim]{markup(summary['caption'])}[/]", highlight=False)
    for line in summary["headline"]:
        console.print(f"\n{markup(line)}", highlight=False)
    for note in summary["notes"]:
        console.print(f"[dim]note: {markup(note)}[/]", highlight=False)
