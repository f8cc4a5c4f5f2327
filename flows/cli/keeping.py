"""Looking after a store: verify, clean, check the machine, take out, pack, bring in."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from flows.cli.shared import AllowCode, Json, Store, Which, err, out, show_json
from flows.outputs import folder_to_make
from fortifai_core.config.custom_code import allow_code
from fortifai_core.errors import InputError
from fortifai_core.outside import markup
from fortifai_core.wording import in_bytes


def verify(store: Store = None, as_json: Json = False) -> None:
    """Check the digest of every file; damaged artifacts are set aside, and built anew by the next run."""
    from flows.stores import open_store

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
    from flows.stores import open_store
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


def doctor(
    experiment: Annotated[
        str | None, typer.Argument(help="A preset or YAML file: does it fit into memory and disk here?")
    ] = None,
    store: Store = None,
) -> None:
    """Check this machine: packages, clashes, store, mirror, server and its deployments; whether an experiment fits."""
    from flows.tools.doctor import examine

    raise typer.Exit(examine(store, out, experiment=experiment))


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
    from flows.stores import open_store
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


def pack(
    experiment: Which = "latest",
    target: Annotated[Path | None, typer.Option("--out", help="The file; by default the experiment's label.")] = None,
    artifacts: Annotated[
        bool,
        typer.Option("--artifacts", help="All of it but weights instead, finished or not: for `import` elsewhere."),
    ] = False,
    text: Annotated[bool, typer.Option(help="With --artifacts: texts and report, or results alone.")] = True,
    verify: Annotated[Path | None, typer.Option(help="Check this pack instead, and compare it with --store.")] = None,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Reviewer's pack: configuration, digests, circumstances, report and checklist in a zip; `--verify` checks one."""
    from flows.outputs import file_to_write
    from flows.stores import open_store
    from flows.tools import carrying, packing
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
    if not (text or artifacts):
        raise InputError("--no-text", "without --artifacts", "a reviewer's pack never holds text: add --artifacts")
    ending = carrying.ENDING if artifacts else ".zip"
    if target is not None:
        target = file_to_write("--out", target, endings=(ending,))
    opened = open_store(store)
    record = load_experiment(opened, experiment)
    target = target or file_to_write("--out", Path(f"{record.label}{ending}"), endings=(ending,))
    if artifacts:
        carrying.carry(opened, record, target, text=text)
    else:
        packing.pack(opened, record, target)
    size = target.stat().st_size
    if as_json:
        show_json({"experiment": record.label, "pack": str(target), "bytes": size})
    else:
        out.print(f"{markup(record.label)} → {markup(target)} ({in_bytes(size)})", soft_wrap=True)


def import_file(
    file: Annotated[
        Path, typer.Argument(help="Of `fortifai pack --artifacts`, or of `examples/algorithm1.py --out FILE`.")
    ],
    name: Annotated[
        str | None, typer.Option(help="Of the stand-alone program's experiment; by default after the file.")
    ] = None,
    store: Store = None,
) -> None:
    """Take in what another machine made: an experiment's artifacts, or the stand-alone program's results."""
    from flows.local import print_outcome
    from flows.stores import open_store
    from flows.tools import carrying
    from flows.tools.importing import import_results

    opened = open_store(store)
    if file.name.endswith(carrying.ENDING):
        if name is not None:
            raise InputError("--name", name, "an experiment that was packed keeps its name: leave the option out")
        brought = carrying.take_in(opened, file)
        label = markup(brought.record.label)
        out.print(
            f"{label}: {brought.new} artifacts taken in, {brought.before} were here. Store: {markup(opened.name)}"
        )
        out.print(f"`fortifai resume {label}` goes on where it stands.", highlight=False)
        return
    print_outcome(opened, import_results(opened, file, name=name), out)
