"""`fortifai watch` and `fortifai leads`: is a series of models collapsing, and do the signals say so in time?"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from flows.cli.bench import check_device
from flows.outputs import file_to_write
from flows.terminal import Terminal
from fortifai_core.errors import InputError
from fortifai_core.outside import markup
from fortifai_core.wording import number, with_interval

if TYPE_CHECKING:
    from flows.tools.leads import RunLeads, SignalLeads
    from flows.tools.watching import Probed

AT_ONCE = 5  # models beside each other in a table


def watch(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL…", help="Folders, hub ids, or a Trainer's folder; the first is the baseline."),
    ],
    text: Annotated[Path, typer.Option("--text", help="Held-out documents: .txt, .jsonl or .parquet.")],
    seen: Annotated[Path | None, typer.Option(help="Text they were trained on, for the live fraction.")] = None,
    text_field: Annotated[str, typer.Option(help="Column of the text in .jsonl and .parquet files.")] = "text",
    windows: Annotated[int, typer.Option(help="Windows of the text, and samples.")] = 48,
    window_tokens: Annotated[int, typer.Option(help="Tokens of a window, at most.")] = 128,
    sample_tokens: Annotated[int, typer.Option(help="Tokens that are written after each window's beginning.")] = 48,
    gamma: Annotated[float, typer.Option(help="Tokens with p ≤ gamma are live.")] = 0.9,
    limit: Annotated[list[str] | None, typer.Option(help="Another limit: entropy=-0.3. Repeatable.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    target: Annotated[Path | None, typer.Option("--out", help="Also write a page there, .html.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Are these models collapsing? Ten signals of each beside the first, with intervals, limits and alerts."""
    check_device(device)
    if target is not None:
        target = file_to_write("--out", target, endings=(".html",))
    from flows.tools.watching import as_json as plain
    from flows.tools.watching import series_of, texts_of, watch_models
    from fortifai_core.watch.probe import Size

    size = Size(windows=windows, window_tokens=window_tokens, sample_tokens=sample_tokens, gamma=gamma)
    documents = texts_of("--text", text, text_field=text_field)
    trained_on = [] if seen is None else texts_of("--seen", seen, text_field=text_field)
    series = series_of(models)
    with Terminal(stderr=True).status("…") as status:
        probed = watch_models(
            series,
            documents,
            size=size,
            seen=trained_on,
            limits=_limits(limit or []),
            device=device,
            say=lambda name: status.update(markup(name)),
        )
    if target is not None:
        from fortifai_core.report.watch_page import watch_page

        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(watch_page(probed, text=text.name), encoding="utf-8")
    if as_json:
        typer.echo(json.dumps(plain(probed, size), indent=2))
        return
    out = Terminal()
    _show(probed, out)
    if target is not None:
        out.print(f"page: {markup(target)}", soft_wrap=True)


def _limits(given: list[str]) -> dict[str, float]:
    limits = {}
    for each in given:
        name, equals, value = each.partition("=")
        try:
            limits[name] = float(value) if equals else float("nan")
        except ValueError as error:
            raise InputError("--limit", each, "write signal=number, e.g. entropy=-0.3") from error
    return limits


def _show(probed: Probed, out: Terminal) -> None:
    for start in range(0, len(probed), AT_ONCE):
        shown = probed[start : start + AT_ONCE]
        table = Table("signal", *[f"M{start + i}" for i in range(len(shown))], box=None, pad_edge=False)
        found = [{watched.signal.name: watched for watched in signals} for _, signals in shown]
        for name in dict.fromkeys(name for each in found for name in each):
            cells = [each.get(name) for each in found]
            written = ["–" if w is None else f"{number(w.value.estimate)}{' !' if w.alert else ''}" for w in cells]
            table.add_row(name, *[f"[red]{cell}[/]" if cell.endswith("!") else cell for cell in written])
        out.print(table)
        for place, (model, _) in enumerate(shown, start):
            out.print(f"[dim]M{place}: {markup(model)}[/]", soft_wrap=True, highlight=False)
        out.print()
    alerts = [(place, watched) for place, (_, signals) in enumerate(probed) for watched in signals if watched.alert]
    for place, watched in alerts:
        change = "" if watched.change is None else with_interval(watched.change)
        kind = {"ratio": "change, as a share: ", "difference": "change: ", "value": ""}[watched.signal.by]
        out.print(
            f"[red]M{place}[/] {watched.signal.title}: {kind}{change}, limit {number(watched.limit)}", highlight=False
        )
    if not alerts:
        out.print("No signal is beyond its limit.")
    if len(probed) == 1:
        out.print("One model alone has no baseline: give an earlier one first.")


def leads(
    experiments: Annotated[list[str], typer.Argument(help="Names or ids; some that fail and some that do not.")],
    threshold: Annotated[
        float | None, typer.Option(help="Of the retention of split 0; each experiment's own by default.")
    ] = None,
    store: Annotated[str | None, typer.Option("--store", help="Artifact store. [FORTIFAI_STORE]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Do the watch's signals warn before retention fails? Probes every model of experiments. Writes nothing."""
    from flows.stores import open_store
    from flows.tools.leads import leads_of, signal_leads
    from storage.store.experiments import load_experiment

    if threshold is not None and not 0 < threshold < 1:
        raise InputError("--threshold", threshold, "give a share between 0 and 1")
    opened = open_store(store)
    records = [load_experiment(opened, name) for name in experiments]
    runs: list[RunLeads] = []
    with Terminal(stderr=True).status("…") as status:
        for record in records:
            runs += leads_of(opened, record, threshold=threshold, say=lambda name: status.update(markup(name)))
    table = signal_leads(runs)
    if as_json:
        shown = {"runs": [asdict(run) for run in runs], "signals": [asdict(s) | {"verdict": s.verdict} for s in table]}
        typer.echo(json.dumps(_plain(shown), indent=2))
    else:
        _show_leads(runs, table, Terminal())


def _plain(value: object) -> object:
    """The same with null for what is no number."""
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _show_leads(runs: list[RunLeads], signals: list[SignalLeads], out: Terminal) -> None:
    table = Table("run", "retention of split 0, %", "failed", "first alerts", box=None, pad_edge=False)
    for run in runs:
        kept = " ".join(f"{100 * share:.0f}" for share in run.retention)
        first = ", ".join(f"{name} M{at}" for name, at in run.alerts.items() if at is not None) or "none"
        failed = "no" if run.failed is None else f"M{run.failed}"
        table.add_row(markup(f"{run.experiment} · {run.arm} · seed {run.seed}"), kept, failed, first)
    out.print(table)
    out.print()
    columns = ("signal", "before", "with", "after", "never", "lead, generations", "false alarms", "")
    table = Table(*columns, box=None, pad_edge=False)
    for s in signals:
        lead = "–" if math.isnan(s.lead) else f"{s.lead:+.1f}"
        if not math.isnan(s.lead_low):
            lead += f" ({s.lead_low:+.1f} to {s.lead_high:+.1f})"
        false = f"{s.false} of {s.sound}"
        if s.sound:
            false += f" ({s.false_low:.0%} to {s.false_high:.0%})"
        table.add_row(s.signal, *map(str, (s.before, s.together, s.after, s.never)), lead, false, s.verdict)
    out.print(table)
    out.print("[dim]before, with, after: the failure; in brackets 95% intervals, over runs[/]")
