"""Looking at what came out: reports, profiles, listings, SQL, and the ways in between."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.shared import Json, Sets, Store, Which, out, show_json
from flows.outputs import folder_to_make
from flows.terminal import for_stdout
from fortifai_core.errors import InputError
from fortifai_core.outside import markup


def report(
    experiment: Which = "latest",
    target: Annotated[Path | None, typer.Option("--out", help="Copy page, figures and tables to this folder.")] = None,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Print the table of a finished experiment, and where its report lies; `--out` copies all of it."""
    from flows.local import print_outcome, read_report
    from flows.stores import open_store
    from flows.tools.exporting import export_report
    from storage.store.experiments import load_experiment

    if target is not None:
        target = folder_to_make("--out", target)
    opened = open_store(store)
    record = load_experiment(opened, experiment)
    copied = export_report(opened, record, target=target) if target is not None else None
    if as_json:
        table, folder = read_report(opened, record)
        headers, rows, page = table["headers"], table["rows"], (copied or folder) / "report.html"
        show_json({"experiment": record.label, "report": str(page), "headers": headers, "rows": rows})
        return
    print_outcome(opened, record, out)
    if copied is not None:
        out.print(f"copied: {markup(copied / 'report.html')}", soft_wrap=True)


def profile(
    experiment: Which = "latest",
    store: Store = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print every verdict as CSV, with intervals and p.")] = False,
    as_json: Json = False,
) -> None:
    """Whether a finished experiment collapsed: by every definition, for every arm, or that it cannot be told."""
    from flows.stores import open_store
    from flows.tools import profiling, result_table
    from storage.store.experiments import load_experiment

    opened = open_store(store)
    record = load_experiment(opened, experiment)
    found = profiling.read_profile(opened, record)
    if as_json:
        show_json({"experiment": record.label, **found})
    elif as_csv:
        rows = found["profile"]
        columns = list(rows[0])
        typer.echo(for_stdout(result_table.as_csv(columns, [list(row.values()) for row in rows])), nl=False)
    else:
        profiling.show(record, found, out)


def power(
    source: Annotated[str, typer.Argument(help="An experiment of the store, a preset, or a YAML file.")] = "latest",
    difference: Annotated[
        float | None, typer.Option(help="Ask for the seeds that tell this one: 0.05 is 5 points, or 5%.")
    ] = None,
    sets: Sets = None,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """What an experiment can tell: from how its own runs varied if it is in the store, otherwise from assumptions."""
    from flows.load import load_experiment_config
    from flows.stores import open_store
    from flows.tools import foresight, powering, profiling
    from storage.store.experiments import list_heads, load_experiment

    if difference is not None and not 0 < difference < 100:
        raise InputError("--difference", difference, "give one above 0: 0.05 is 5 points, or 5%")
    opened = open_store(store)
    known = {name for e, _ in list_heads(opened) for name in (e.name, e.label, e.id)}
    if not sets and (source == "latest" or source in known):
        record = load_experiment(opened, source)
        found = powering.told(profiling.read_profile(opened, record), difference=difference)
        if not found:
            remedy = "has one arm, or one run without documents, or arms that are alike: nothing varies"
            raise InputError("experiment", record.label, remedy)
        if as_json:
            show_json({"experiment": record.label, "comparisons": powering.as_json(found)})
        else:
            powering.show(record.label, found, out)
        return
    assumed = foresight.power_of(load_experiment_config(source, sets or []))
    if as_json:
        show_json({"assumed": {"unknown": assumed} if isinstance(assumed, str) else asdict(assumed)})
        return
    out.print(foresight.power_in_words(assumed), highlight=False, soft_wrap=True)


def list_all(store: Store = None, as_json: Json = False) -> None:
    """The experiments in the store."""
    from flows.stores import open_store
    from flows.tools import result_table
    from storage.store.experiments import list_heads

    opened = open_store(store)
    records = list_heads(opened)
    if as_json:
        names = ("label", "id", "name", "created", "updated")
        show_json([{**{name: getattr(r, name) for name in names}, "status": r.state} for r, _ in records])
        return
    if not records:
        out.print(f"No experiments yet in {markup(opened.name)}: `fortifai run tiny` makes one.")
        return
    rows = [
        (r.label, r.state, ", ".join(arms), len(r.config.get("seeds", [])), r.config.get("generations", ""), r.updated)
        for r, arms in records
    ]
    result_table.print_rows(
        ("experiment", "status", "arms", "seeds", "generations", "updated"), rows, out, whole="--json prints all"
    )


def show(
    key: Annotated[str, typer.Argument(help="An experiment, or the first digits of an artifact's key.")],
    store: Store = None,
) -> None:
    """One experiment or artifact in full: configuration, parents, files, provenance."""
    from flows.stores import open_store
    from flows.tools.explain import describe

    show_json(describe(open_store(store), key))


def sql(
    query: Annotated[str, typer.Argument(help="One query; quote it for the shell.")],
    store: Store = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV, in full; no text in it is a formula.")] = False,
    as_json: Json = False,
) -> None:
    """Ask the catalog: `fortifai sql "select * from metrics"`. Read-only; a terminal's width cuts what it prints."""
    from flows.stores import open_store
    from flows.tools import result_table
    from storage.catalog.catalog import query as ask

    columns, rows = ask(open_store(store), query)
    if as_json:
        show_json([dict(zip(columns, row, strict=True)) for row in rows])
    elif as_csv:
        typer.echo(for_stdout(result_table.as_csv(columns, rows)), nl=False)
    else:
        result_table.print_rows(columns, rows, out)


def trace(
    what: Annotated[str, typer.Argument(help="Id of a document or of a question (views documents, questions).")],
    experiment: Annotated[str, typer.Option(help="An experiment's name or id.")] = "latest",
    arm: Annotated[str | None, typer.Option(help="The arm; the first one by default.")] = None,
    seed: Annotated[int | None, typer.Option(help="The arm's first seed by default.")] = None,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """How one document changed, from the real text to its newest version, and when its questions died."""
    from flows.stores import open_store
    from flows.tools import tracing
    from storage.store.experiments import load_experiment

    opened = open_store(store)
    traced = tracing.trace(opened, load_experiment(opened, experiment), what, arm=arm, seed=seed)
    if as_json:
        show_json(traced)
    else:
        tracing.show(traced, out)


def path(
    what: Annotated[
        str, typer.Argument(help="catalog, store, report, lm-eval (tasks for it), or the first digits of a key.")
    ] = "store",
    store: Store = None,
) -> None:
    """Print where something lies: `duckdb $(fortifai path catalog)`."""
    from flows.stores import open_store
    from flows.tools.explain import locate

    typer.echo(for_stdout(str(locate(open_store(store), what))))
