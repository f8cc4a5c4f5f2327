"""The study, where facts die, and what the paper's own tables say."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from flows.cli.shared import Json, Sets, Store, Which, err, out, show_json
from fortifai_core.outside import markup


def study(
    question: Annotated[str | None, typer.Argument(help="Which question; without one, lists them.")] = None,
    target: Annotated[Path | None, typer.Option("--out", help="Keep tables and figures in this folder.")] = None,
    sets: Sets = None,
    finished: Annotated[
        bool, typer.Option("--finished", help="Of the seeds that are finished in the store; trains nothing.")
    ] = False,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Answer one question of the study: run its experiment, print its profile, keep its tables and figures."""
    from flows.study import QUESTIONS, run_study

    if question is None:
        if as_json:
            show_json({name: asdict(one) for name, one in QUESTIONS.items()})
            return
        for name, one in QUESTIONS.items():
            out.print(f"[bold]{name:<15}[/] {markup(one.asks)} [dim]{one.preset}[/]", highlight=False, soft_wrap=True)
        return
    console = err if as_json else out
    outcome = run_study(question, target=target, overrides=sets or [], store=store, console=console, finished=finished)
    if as_json:
        show_json(outcome)


def fates(experiment: Which = "latest", store: Store = None, as_json: Json = False) -> None:
    """Where the facts of an experiment on the almanac died: in rewriting, or in retraining on what states them."""
    from flows.stores import open_store
    from flows.tools.fates import fates_by_arm
    from flows.tools.fates import show as show_fates
    from storage.store.experiments import load_experiment

    opened = open_store(store)
    record = load_experiment(opened, experiment)
    found = fates_by_arm(opened, record)
    if as_json:
        show_json({"experiment": record.label, "arms": {arm: asdict(one) for arm, one in found.items()}})
    else:
        show_fates(found, out)


paper = typer.Typer(help="What the paper reports, recomputed from its own tables (quoted data, not measured here).")


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


@paper.command("noise")
def paper_noise(as_json: Json = False) -> None:
    """How much more of split 0 each arm of the paper's tables keeps, beside what chance makes of so many questions."""
    from flows.tools.explain import paper_noise as differences

    found = differences()
    if as_json:
        show_json([asdict(one) for one in found])
        return
    out.print("[dim]Quoted: computed from the paper's own tables; nothing here was measured by this software.[/]")
    out.print("Retention of split 0, points above cross entropy (below: −); bold* where the interval excludes 0\n")
    for name in dict.fromkeys(one.table for one in found):
        arms = [one for one in found if one.table == name]
        generations = range(max(len(one.differences) for one in arms))
        table = Table("arm", *(f"M{g}" for g in generations), "95%", box=None, pad_edge=False)
        for one in arms:
            shown = [(f"{100 * d.estimate:+.1f}".replace("-", "−"), d.low > 0 or d.high < 0) for d in one.differences]
            cells = [f"[bold]{words}*[/]" if told else words for words, told in shown]
            widest = max(d.high - d.low for d in one.differences) / 2
            table.add_row(one.method, *cells, f"± {100 * widest:.1f}")
        out.print(
            f"[bold]{name}[/]: {arms[0].dataset}, {arms[0].model}, {arms[0].questions} questions", highlight=False
        )
        out.print(table)
        out.print()
    legend = (
        "95%: half the widest interval (Newcombe) of two arms that answer so many questions independently; that they "
        "answer the same ones makes it too wide, that each was trained once makes it too narrow"
    )
    out.print(f"[dim]{legend}[/]")
