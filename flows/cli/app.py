"""The command line: `fortifai run | plan | init | serve | resume | report | ls | show | sql | …`."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from flows.cli.bench import benches
from flows.cli.kr import app as kr
from flows.cli.models import app as models
from flows.cli.watch import leads, watch
from flows.embedded import quiet_environment
from flows.hints import command_line
from flows.outputs import folder_to_make
from flows.terminal import Terminal, for_stdout
from fortifai_core.config.custom_code import allow_code
from fortifai_core.errors import FortifaiError, InputError, one_line
from fortifai_core.outside import markup, visible
from fortifai_core.parsing import check_argument
from fortifai_core.wording import in_bytes

quiet_environment()

app = typer.Typer(
    name="fortifai",
    help="A laboratory for recursive training: how fast a model forgets, and how TCE delays it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out = Terminal()
err = Terminal(stderr=True)

Source = Annotated[str, typer.Argument(help="A preset (see `fortifai init`) or a YAML file.")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="Override a field: path=value. May be repeated.")]
Store = Annotated[str | None, typer.Option("--store", help="Artifact store: a folder or URL. [FORTIFAI_STORE]")]
Refresh = Annotated[list[str] | None, typer.Option("--refresh", help="Build this stage anew, and all after it.")]
AllowCode = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-code", help="Import this module of yours, which a loss names. Repeatable. [FORTIFAI_ALLOW_CODE]"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Which = Annotated[str, typer.Argument(help="An experiment's name or id; `latest` is the newest.")]


def show_json(value: Any) -> None:
    """Machine-readable output, on standard output, nothing else."""
    typer.echo(json.dumps(value, indent=2, default=str))


@app.command()
def init(preset: Annotated[str | None, typer.Argument(help="Which preset; without one, lists them.")] = None) -> None:
    """Print a preset as an editable file: `fortifai init tiny > mine.yaml`."""
    from flows.load import preset_text, presets

    if preset is None:
        for name, purpose in presets().items():
            out.print(f"[bold]{name:<20}[/] {markup(purpose)}")
    else:
        typer.echo(preset_text(preset), nl=False)


@app.command()
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


@app.command()
def demo(store: Store = None, as_json: Json = False) -> None:
    """Two experiments and one page: a remedy that works (a Gaussian), and a question that is open (tiny)."""
    from flows.demo import run_demo

    outcome = run_demo(store=store, console=err if as_json else out)
    if as_json:
        show_json(outcome)


@app.command()
def resume(
    experiment: Which = "latest",
    store: Store = None,
    allow: AllowCode = None,
    weights: Annotated[bool, typer.Option("--weights", help="Also make again what `gc` removed of models.")] = False,
    as_json: Json = False,
) -> None:
    """Go on with an experiment that was stopped: finished stages are found, the rest is computed."""
    from flows.load import validate
    from flows.local import run_here
    from flows.prepare import open_store
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


@app.command()
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
    from flows.prepare import check_model, check_space, open_store, plan_for
    from flows.terminal import show_arms
    from flows.tools.explain import explain_plan
    from flows.tools.foresight import foresee
    from flows.tools.powering import seen_power

    allow_code(allow or [])
    opened = open_store(store)
    config = load_any_config(source, sets or [])
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


@app.command()
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


@app.command()
def report(
    experiment: Which = "latest",
    target: Annotated[Path | None, typer.Option("--out", help="Copy page, figures and tables to this folder.")] = None,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Print the table of a finished experiment, and where its report lies; `--out` copies all of it."""
    from flows.local import print_outcome, read_report
    from flows.prepare import open_store
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


@app.command()
def profile(
    experiment: Which = "latest",
    store: Store = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print every verdict as CSV, with intervals and p.")] = False,
    as_json: Json = False,
) -> None:
    """Whether a finished experiment collapsed: by every definition, for every arm, or that it cannot be told."""
    from flows.prepare import open_store
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


@app.command()
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
    from flows.prepare import open_store
    from flows.tools import foresight, powering, profiling
    from storage.store.experiments import list_experiments, load_experiment

    if difference is not None and not 0 < difference < 100:
        raise InputError("--difference", difference, "give one above 0: 0.05 is 5 points, or 5%")
    opened = open_store(store)
    known = {name for e in list_experiments(opened) for name in (e.name, e.label, e.id)}
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


@app.command("ls")
def list_all(store: Store = None, as_json: Json = False) -> None:
    """The experiments in the store."""
    from flows.prepare import open_store
    from storage.store.experiments import list_experiments

    opened = open_store(store)
    records = list_experiments(opened)
    if as_json:
        names = ("label", "id", "name", "created", "updated")
        show_json([{**{name: getattr(r, name) for name in names}, "status": r.state} for r in records])
        return
    table = Table(box=None, pad_edge=False)
    for name in ("experiment", "status", "arms", "seeds", "generations", "updated"):
        table.add_column(name)
    for r in records:
        arms = ", ".join(dict.fromkeys(s.arm for s in r.stages if s.arm))
        c = r.config
        size = (str(len(c.get("seeds", []))), str(c.get("generations", "")))
        table.add_row(*map(markup, (r.label, r.state, arms, *size, r.updated)))
    out.print(table if records else f"No experiments yet in {markup(opened.name)}: `fortifai run tiny` makes one.")


@app.command()
def show(
    key: Annotated[str, typer.Argument(help="An experiment, or the first digits of an artifact's key.")],
    store: Store = None,
) -> None:
    """One experiment or artifact in full: configuration, parents, files, provenance."""
    from flows.prepare import open_store
    from flows.tools.explain import describe

    show_json(describe(open_store(store), key))


@app.command()
def sql(
    query: Annotated[str, typer.Argument(help="One query; quote it for the shell.")],
    store: Store = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV, in full; no text in it is a formula.")] = False,
    as_json: Json = False,
) -> None:
    """Ask the catalog: `fortifai sql "select * from metrics"`. Read-only; a terminal's width cuts what it prints."""
    from flows.prepare import open_store
    from flows.tools import result_table
    from storage.catalog.catalog import query as ask

    columns, rows = ask(open_store(store), query)
    if as_json:
        show_json([dict(zip(columns, row, strict=True)) for row in rows])
    elif as_csv:
        typer.echo(for_stdout(result_table.as_csv(columns, rows)), nl=False)
    else:
        result_table.print_rows(columns, rows, out)


@app.command()
def trace(
    what: Annotated[str, typer.Argument(help="Id of a document or of a question (views documents, questions).")],
    experiment: Annotated[str, typer.Option(help="An experiment's name or id.")] = "latest",
    arm: Annotated[str | None, typer.Option(help="The arm; the first one by default.")] = None,
    seed: Annotated[int | None, typer.Option(help="The arm's first seed by default.")] = None,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """How one document changed, from the real text to its newest version, and when its questions died."""
    from flows.prepare import open_store
    from flows.tools import tracing
    from storage.store.experiments import load_experiment

    opened = open_store(store)
    traced = tracing.trace(opened, load_experiment(opened, experiment), what, arm=arm, seed=seed)
    if as_json:
        show_json(traced)
    else:
        tracing.show(traced, out)


@app.command()
def path(
    what: Annotated[
        str, typer.Argument(help="catalog, store, report, lm-eval (tasks for it), or the first digits of a key.")
    ] = "store",
    store: Store = None,
) -> None:
    """Print where something lies: `duckdb $(fortifai path catalog)`."""
    from flows.prepare import open_store
    from flows.tools.explain import locate

    typer.echo(for_stdout(str(locate(open_store(store), what))))


@app.command()
def verify(store: Store = None, as_json: Json = False) -> None:
    """Check the digest of every file; damaged artifacts are set aside, and built anew by the next run."""
    from flows.prepare import open_store

    opened = open_store(store)
    verified = opened.verify()
    if as_json:
        show_json(asdict(verified))
    else:
        for damage in verified.damaged:
            problem = f"{damage.kind} {damage.key[:12]}: {damage.problem}"
            err.print(f"[red]{markup(problem)}[/]; moved to {markup(damage.moved_to)}", soft_wrap=True, highlight=False)
        said = f"{verified.sound} artifacts are sound, {len(verified.damaged)} were set aside."
        out.print(f"{said} Store: {markup(opened.name)}")
        if verified.damaged:
            out.print("`fortifai run` or `resume` of the same experiment builds them anew.")
    raise typer.Exit(1 if verified.damaged else 0)


@app.command()
def gc(
    experiments: Annotated[list[str] | None, typer.Argument(help="Names or ids; all by default.")] = None,
    keep: Annotated[
        str, typer.Option(help="Of each run's models: all, last, best (lowest perplexity), none.")
    ] = "last",
    yes: Annotated[bool, typer.Option("--yes", help="Remove; without it this only shows what would go.")] = False,
    store: Store = None,
    allow: AllowCode = None,
    as_json: Json = False,
) -> None:
    """Make room: remove weights of models that can be made again, and leftover checkpoints. Results and text stay."""
    from flows.prepare import open_store
    from flows.tools import collecting

    if keep not in collecting.KEEP:
        raise InputError("--keep", keep, f"choose {', '.join(collecting.KEEP)}")
    allow_code(allow or [])
    opened = open_store(store)
    found = collecting.collect(opened, experiments or [], keep=keep, remove=yes)
    size = sum(item.size for item in found.going)
    if as_json:
        names = ("what", "kind", "key", "size", "goes", "why")
        items = [{name: getattr(item, name) for name in names} for item in found.items]
        show_json({"items": items, "would_free": size, "freed": found.freed})
        return
    table = Table(box=None, pad_edge=False)
    for name in ("model", "size", "", "why"):
        table.add_column(name)
    for item in found.items:
        state = ("[yellow]removed[/]" if yes else "[yellow]would go[/]") if item.goes else "[green]stays[/]"
        table.add_row(markup(item.what), in_bytes(item.size), state, markup(item.why))
    out.print(table if found.items else "There are no weights and no leftovers.")
    if found.freed is not None:
        out.print(f"\n{in_bytes(found.freed)} freed. Store: {markup(opened.name)}")
        out.print("What a stage needs again is made again; `fortifai plan` says so.")
    else:
        out.print(
            f"\n{in_bytes(size)} would be freed; nothing was removed: --yes does it. Store: {markup(opened.name)}"
        )


@app.command()
def doctor(
    experiment: Annotated[
        str | None, typer.Argument(help="A preset or YAML file: does it fit into memory and disk here?")
    ] = None,
    store: Store = None,
) -> None:
    """Check this machine: packages, clashes, store, mirror, server and its deployments; whether an experiment fits."""
    from flows.tools.doctor import examine

    raise typer.Exit(examine(store, out, experiment=experiment))


@app.command()
def export(
    what: Annotated[str, typer.Argument(help="model or dataset")],
    target: Annotated[Path, typer.Argument(help="A folder that does not exist yet.")],
    experiment: Annotated[str, typer.Option(help="An experiment's name or id.")] = "latest",
    arm: Annotated[str, typer.Option(help="The arm, e.g. tce-0.9.")] = "ce",
    seed: Annotated[int, typer.Option(help="The run's seed.")] = 0,
    generation: Annotated[int, typer.Option(help="Whose model, or after whose regenerations.")] = 0,
    push_to_hub: Annotated[
        str | None, typer.Option(help="Also put it on the Hugging Face Hub: OWNER/NAME, private.")
    ] = None,
    store: Store = None,
) -> None:
    """Export a model that `from_pretrained` loads, or a dataset that `load_dataset` loads."""
    from flows.prepare import open_store
    from flows.tools.exporting import export_dataset, export_model
    from storage.sources.hub_upload import check_upload, upload_folder

    if what not in ("model", "dataset"):
        raise InputError("what", what, "choose model or dataset")
    if push_to_hub is not None:
        check_upload(push_to_hub)
    target = folder_to_make("target", target)
    make = export_model if what == "model" else export_dataset
    made = make(open_store(store), experiment, arm=arm, seed=seed, generation=generation, target=target)
    out.print(f"{what} of {markup(arm)} · seed {seed} · g{generation} → {markup(made)}")
    if push_to_hub is not None:
        out.print(f"→ {markup(upload_folder(made, push_to_hub, kind='model' if what == 'model' else 'dataset'))}")


@app.command()
def pack(
    experiment: Which = "latest",
    target: Annotated[Path | None, typer.Option("--out", help="The zip; by default the experiment's label.")] = None,
    verify: Annotated[Path | None, typer.Option(help="Check this pack instead, and compare it with --store.")] = None,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Reviewer's pack: configuration, digests, circumstances, report and checklist in a zip; `--verify` checks one."""
    from flows.outputs import file_to_write
    from flows.prepare import open_store
    from flows.tools import packing
    from storage.store.experiments import load_experiment

    if verify is not None:
        checked = packing.verify(verify, open_store(store) if store else None)
        if as_json:
            show_json(asdict(checked))
        else:
            for problem in checked.problems:
                err.print(f"[red]{markup(problem)}[/]", soft_wrap=True, highlight=False)
            state = "is not what it was" if checked.problems else "is whole"
            out.print(
                f"{markup(checked.label)} {state}: {checked.files} files, {checked.stages} stages with their keys."
            )
            if store:
                for label in checked.different:
                    out.print(f"[yellow]other bits[/]: {markup(label)}", highlight=False)
                out.print(
                    f"In {markup(store)}: {checked.equal} stages are the same to the last bit, "
                    f"{len(checked.different)} are not, {checked.absent} are not there."
                )
        raise typer.Exit(1 if checked.problems else 0)
    if target is not None:
        target = file_to_write("--out", target, endings=(".zip",))
    opened = open_store(store)
    record = load_experiment(opened, experiment)
    target = target or file_to_write("--out", Path(f"{record.label}.zip"), endings=(".zip",))
    made = packing.pack(opened, record, target)
    if as_json:
        show_json({"experiment": record.label, "pack": str(made), "bytes": made.stat().st_size})
    else:
        out.print(f"{markup(record.label)} → {markup(made)} ({in_bytes(made.stat().st_size)})", soft_wrap=True)


@app.command("import")
def import_file(
    file: Annotated[Path, typer.Argument(help="What `examples/algorithm1.py --out FILE` wrote.")],
    name: Annotated[str | None, typer.Option(help="Of the experiment; by default after the file.")] = None,
    store: Store = None,
) -> None:
    """Take the results of the stand-alone program into the store, for report and catalog."""
    from flows.local import print_outcome
    from flows.prepare import open_store
    from flows.tools.importing import import_results

    opened = open_store(store)
    print_outcome(opened, import_results(opened, file, name=name), out)


app.command()(watch)
app.command()(leads)
app.add_typer(benches, name="bench")
app.add_typer(kr, name="kr")
app.add_typer(models, name="models")
paper = typer.Typer(help="What the paper reports, recomputed from its own tables (quoted data, not measured here).")
app.add_typer(paper, name="paper")


@paper.command("ttf")
def paper_ttf(as_json: Json = False) -> None:
    """Time to failure of every arm of the paper's Tables D2 to D5, in every unit."""
    from flows.tools.explain import paper_table

    rows = paper_table()
    if as_json:
        show_json(rows)
        return
    out.print("[dim]Quoted: computed from the paper's own tables; nothing here was measured by this software.[/]")
    out.print("Retention of split 0 falls below 75% after … (in brackets: ratio to cross entropy)\n")
    units = {"generations": "generations", "training_splits": "training", "retraining_splits": "re-training"}
    units["synthetic_splits"] = "synthetic"
    for name in dict.fromkeys(row["table"] for row in rows):
        arms = [row for row in rows if row["table"] == name]
        table = Table("arm", *units.values(), box=None, pad_edge=False, title_justify="left")
        for row in arms:
            ratios = [row.get(f"{unit}_ratio_to_ce") for unit in units]
            table.add_row(
                row["arm"],
                *[row[unit] + (f" ({ratio})" if ratio else "") for unit, ratio in zip(units, ratios, strict=True)],
            )
        out.print(f"[bold]{name}[/]: {arms[0]['dataset']}, {arms[0]['model']}", highlight=False)
        out.print(table)
        out.print()
    legend = "training, re-training, synthetic: splits of text read until then: all / after M_0 / written by a model"
    out.print(f"[dim]{legend}[/]")


# Wrong use of the command line. Where typer brings a click of its own, that one's.
_UsageError: Any = typer.BadParameter.__base__


def exit_code(arguments: Sequence[str]) -> int:
    """Run `fortifai ARGUMENTS` in this process, and return what the process would end with.

    What is wrong with the arguments, or with whatever they name, is one line on standard error.
    """
    started = time.monotonic()
    try:
        for number, argument in enumerate(arguments, start=1):
            check_argument(f"argument {number}", argument)
        ended = app(list(arguments), standalone_mode=False)
    except FortifaiError as error:
        err.print(f"[red]error:[/] {markup(str(error))}", soft_wrap=True, highlight=False)
        return error.exit_code
    except _UsageError as error:
        command = error.ctx.command_path if error.ctx is not None else "fortifai"
        if error.format_message():  # without one, the help was printed in its place
            message = f"{one_line(error.format_message()).rstrip('.')}; `{command} --help` says how"
            err.print(f"[red]error:[/] {markup(message)}", soft_wrap=True, highlight=False)
        return int(error.exit_code)
    except KeyboardInterrupt:
        err.print(f"stopped after {time.monotonic() - started:.0f} s; what was finished is kept")
        return 130
    except BrokenPipeError:
        return 0
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except Exception:  # noqa: BLE001 - shown in full, as the interpreter would
        sys.stderr.write(visible(traceback.format_exc()))
        return 1
    return ended if isinstance(ended, int) else 0


def main() -> None:
    """The entry point: every expected error is one line, exit code 2 for bad input and 1 for a failed run."""
    warnings.formatwarning = lambda message, *_: f"fortifai: {visible(str(message))}\n"
    # peft asks transformers 5.24 for this by its old name; nobody at a terminal can do anything about it
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what a terminal of another encoding cannot show, it shows escaped
            stream.reconfigure(errors="backslashreplace")
    code = exit_code(sys.argv[1:])
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
        sys.stderr.flush()
    # Not by returning: threads of Prefect's client would keep a failed run waiting for a server that has gone.
    os._exit(code)


if __name__ == "__main__":
    main()
