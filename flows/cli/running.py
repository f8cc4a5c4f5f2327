"""Starting work: what is a preset, what would run, run it, go on with it, serve it."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from flows.cli.shared import AllowCode, Json, Refresh, Sets, Source, Store, Which, err, out, show_json
from flows.hints import command_line
from fortifai_core.config.custom_code import allow_code
from fortifai_core.errors import InputError
from fortifai_core.outside import markup


def init(preset: Annotated[str | None, typer.Argument(help="Which preset; without one, lists them.")] = None) -> None:
    """Print a preset as an editable file: `fortifai init tiny > mine.yaml`."""
    from flows.load import preset_text, presets

    if preset is None:
        for name, purpose in presets().items():
            out.print(f"[bold]{name:<20}[/] {markup(purpose)}")
    else:
        typer.echo(preset_text(preset), nl=False)


def run(
    source: Source,
    sets: Sets = None,
    store: Store = None,
    refresh: Refresh = None,
    benchmarks: Annotated[str | None, typer.Option(help="Benchmarks of lm-eval, with commas.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first so many items of each benchmark task.")] = None,
    fewshot: Annotated[list[str] | None, typer.Option(help="Examples before an item: gsm8k=2. Repeatable.")] = None,
    allow: AllowCode = None,
    as_json: Json = False,
) -> None:
    """Run an experiment here and now; no server needed. What was computed before is found."""
    from flows.load import benchmark_overrides, load_any_config
    from flows.local import run_here

    allow_code(allow or [])
    config = load_any_config(source, [*(sets or []), *benchmark_overrides(benchmarks, limit, fewshot or [])])
    outcome = run_here(
        config, store=store, refresh=refresh or [], console=err if as_json else out, resume=_resume(store, allow)
    )
    if as_json:
        show_json(outcome)


def _resume(store: str | None, allow: list[str] | None) -> str:
    return command_line("resume {name}", store=store, allow=allow or [])


def demo(store: Store = None, as_json: Json = False) -> None:
    """Two experiments and one page: a remedy that works (a Gaussian), and a question that is open (tiny)."""
    from flows.demo import run_demo

    outcome = run_demo(store=store, console=err if as_json else out)
    if as_json:
        show_json(outcome)


def resume(
    experiment: Which = "latest",
    store: Store = None,
    allow: AllowCode = None,
    weights: Annotated[
        bool, typer.Option("--weights", help="Also make again what was removed or left behind.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Go on with an experiment that was stopped: finished stages are found, the rest is computed."""
    from flows.load import validate
    from flows.local import run_here
    from flows.stores import open_store
    from storage.store.experiments import load_experiment

    allow_code(allow or [])
    record = load_experiment(open_store(store), experiment)
    if record.status == "imported":
        remedy = "was imported and is as it is: `fortifai report` shows it, and whatever computed it can go on with it"
        raise InputError("experiment", experiment, remedy)
    config = validate(record.config)
    console = err if as_json else out
    resuming = _resume(store, allow)
    outcome = run_here(config, store=store, refresh=[], console=console, resume=resuming, weights=weights)
    if as_json:
        show_json(outcome)


def plan(
    source: Source,
    sets: Sets = None,
    store: Store = None,
    allow: AllowCode = None,
    estimate: Annotated[bool, typer.Option("--estimate", help="Also what it takes, by a probe of the model.")] = False,
    gpu: Annotated[str | None, typer.Option(help="With --estimate: hours on this GPU too, e.g. h100.")] = None,
    as_json: Json = False,
) -> None:
    """What would run, what is already there, and why; what it can tell. Computes nothing but an estimate's probe."""
    from flows.load import load_any_config
    from flows.prepare import check_model, check_space, plan_for
    from flows.stores import open_store
    from flows.terminal import show_arms
    from flows.tools.explain import explain_plan
    from flows.tools.foresight import foresee
    from flows.tools.powering import seen_power
    from tasks.engine.pool import check_processes

    allow_code(allow or [])
    opened = open_store(store)
    config = load_any_config(source, sets or [])
    check_processes(config.runtime)
    planned = plan_for(config)
    check_model(planned, opened)
    check_space(config, planned, opened)
    rows = explain_plan(planned, opened)
    foresight = foresee(planned, opened, power=estimate or not as_json, estimate=estimate, gpu=gpu)
    if as_json:
        show_json({"stages": rows, **foresight.as_json()} if estimate else rows)
        return
    table = Table(box=None, pad_edge=False)
    for name in ("run", "stage", "", "why"):
        table.add_column(name, no_wrap=name != "why")  # of hundreds of stages each is a line, as far as there is room
    for row in rows:
        state = "[green]found[/]" if row["found"] else "[cyan]shared[/]" if row["shared"] else "[yellow]to do[/]"
        table.add_row(markup(row["run"]), markup(row["stage"]), state, markup(row["why"]))
    out.print(table)
    show_arms(config, out)
    once = [row for row in rows if not row["shared"]]
    missing = sum(not row["found"] for row in once)
    shared = f" ({len(rows) - len(once)} more uses of those that arms share)" if len(rows) > len(once) else ""
    store_name = markup(opened.name)
    out.print(f"\n{len(once) - missing} of {len(once)} stages found, {missing} to do{shared}. Store: {store_name}")
    foresight.show(out)
    seen = seen_power(config.name, opened)
    if seen:
        out.print(markup(seen), highlight=False, soft_wrap=True)


def serve(
    host: Annotated[str, typer.Option(help="Address of the server and its UI.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port of the server and its UI.")] = 4200,
    store: Store = None,
    allow: AllowCode = None,
) -> None:
    """Prefect server, UI, and every preset as a deployment, on this machine. Ctrl-C stops all of it.

    Whoever has the login that it prints may run code as you; see SECURITY.md.
    """
    from flows.server.serving import serve_all

    allow_code(allow or [])

    serve_all(host=host, port=port, store=store, console=out)
