"""The demo: a remedy that works beside a question that is open. Two experiments, one closing screen, one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from flows.embedded import check_api
from flows.hints import command_line
from flows.load import load_any_config
from flows.local import execute, print_results, read_report, spent
from flows.prepare import prepare_experiment
from fortifai_core.outside import markup
from fortifai_core.report.demo import DemoPart, demo_page
from storage.store import durable
from storage.store.experiments import load_experiment

# Each preset with its question and the figures of its report that the page shows.
PARTS = (
    (
        "gaussian-demo",
        "Where theory has the answer: a Gaussian fitted to its own samples, again and again",
        ("gaussian-variance",),
    ),
    (
        "tiny",
        "Where the answer is open: a small language model trained on its own text, again and again",
        ("retention", "mutation"),
    ),
)


def run_demo(
    *, store: str | None, console: Console, parts: Sequence[tuple[str, str, tuple[str, ...]]] = PARTS
) -> dict[str, Any]:
    """Run both experiments, print what came out of both, and write the page beside the store's artifacts."""
    check_api()
    prepared = [prepare_experiment(load_any_config(preset), store=store) for preset, _, _ in parts]
    outcomes = execute(prepared, console, resume=command_line("demo", store=store))
    shown = []
    for one, (_, question, figures) in zip(prepared, parts, strict=True):
        table, folder = read_report(one.store, load_experiment(one.store, one.record_id))
        shown.append(DemoPart(question, table, tuple(_figures(folder, figures)), folder / "report.html"))
    for part in shown:
        console.print(f"\n[bold reverse] {markup(part.question)} [/]", highlight=False)
        print_results(part.table, console)
    page = prepared[0].store.logs.parent / "demo.html"
    durable.write_bytes(page, demo_page(shown).encode())
    console.print(f"\none page for both: {markup(page)}", soft_wrap=True)
    console.print(spent(outcomes))
    return {"page": str(page), "experiments": outcomes}


def _figures(folder: Path, names: tuple[str, ...]) -> list[str]:
    """The SVG of each figure that this report has."""
    paths = (next(folder.rglob(f"{name}.svg"), None) for name in names)
    return [path.read_text(encoding="utf-8") for path in paths if path is not None]
