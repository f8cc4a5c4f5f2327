"""Rows of a query as people read them in a terminal: columns and cells are cut to its width, never stacked."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any, Literal

from rich.cells import cell_len, set_cell_size
from rich.console import Console

from fortifai_core.outside import clipped, csv_cell, line

GAP = 2
# A column is cut to no less, before columns in the middle are left out; as duckdb's own shell, near enough.
NARROWEST = 12
MORE = "…"
MOST = 100_000  # characters of a cell; --csv and --json print all


def print_rows(
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    console: Console,
    *,
    whole: str = "--csv and --json print all",
) -> None:
    """Print a table; to a terminal, no wider than it is: what was cut is said below, and what prints the `whole`."""
    cells = [[_cell(value) for value in row] for row in rows]
    names = [_cell(name) for name in columns]
    natural = [max(map(cell_len, column)) for column in zip(names, *cells, strict=True)]
    width = console.width if console.is_terminal else sum(natural) + GAP * len(natural)
    shown, widths = fit(natural, width)
    for number, row in enumerate([names, *cells]):
        parts = (MORE if place is None else _cut(row[place], widths[place]) for place in shown)
        console.out((" " * GAP).join(parts).rstrip(), style=None if number else "bold", highlight=False)
    complete = [place for place in shown if place is not None and widths[place] == natural[place]]
    if len(complete) < len(columns):
        kept = sum(place is not None for place in shown)
        console.print(f"[dim]{kept} of {len(columns)} columns, long values cut: {whole}[/]")


def fit(natural: Sequence[int], width: int) -> tuple[list[int | None], dict[int, int]]:
    """Which columns are shown in `width` characters, None for those left out in the middle; and how wide each is."""
    kept = list(range(len(natural)))
    narrow = [min(size, NARROWEST) for size in natural]
    while len(kept) > 1 and _needed([narrow[i] for i in kept], len(kept) < len(natural)) > width:
        kept.remove(kept[len(kept) // 2])
    cut_out = len(kept) < len(natural)
    limit = max((natural[i] for i in kept), default=0)
    while limit > 1 and _needed([min(natural[i], limit) for i in kept], cut_out) > width:
        limit -= 1
    shown: list[int | None] = [*kept]
    if cut_out:
        shown.insert((len(kept) + 1) // 2, None)
    return shown, {i: min(natural[i], limit) for i in kept}


def as_csv(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """The same as CSV with a line of names, in full; null is empty, and a text is no formula (`csv_cell`)."""
    text = io.StringIO()
    for row in [columns, *rows]:
        # the writer sees no end of a line in a lone carriage return; readers do
        quoting: Literal[0, 1] = csv.QUOTE_ALL if any("\r" in str(value) for value in row) else csv.QUOTE_MINIMAL
        csv.writer(text, lineterminator="\n", quoting=quoting).writerow([csv_cell(value) for value in row])
    return text.getvalue()


def _needed(widths: Sequence[int], cut_out: bool) -> int:
    return sum(widths) + GAP * (len(widths) - 1) + (len(MORE) + GAP if cut_out else 0)


def _cut(text: str, width: int) -> str:
    if cell_len(text) > width:
        text = set_cell_size(text, width - 1) + MORE
    return set_cell_size(text, width)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else line(clipped(str(value), MOST))
