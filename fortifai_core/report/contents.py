"""What any report consists of, whatever the model class: a page, figures, tables, and a table for the terminal."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fortifai_core.charts.chart import Chart
from fortifai_core.charts.svg import svg
from fortifai_core.outcomes.profile import Profile
from fortifai_core.outside import csv_cell
from fortifai_core.report.data import Report
from fortifai_core.wording import arm_title


@dataclass(frozen=True)
class TerminalTable:
    """Plain text for a table in the terminal; `caption` is what must be read with it."""

    title: str
    headers: list[str]
    rows: list[list[str]]
    caption: str


@dataclass(frozen=True)
class ReportTable:
    """A table by columns; None where a cell is empty. Every column holds one type."""

    name: str
    columns: Mapping[str, Sequence[Any]]

    @property
    def rows(self) -> int:
        return max(len(values) for values in self.columns.values())

    def write_csv(self, path: Path) -> None:
        """Header and rows; an empty cell is nothing at all, and no text is a formula (the Parquet has it as it is)."""
        with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            writer = csv.writer(file)  # with CR LF (RFC 4180): a model's text may hold either, and is then quoted
            writer.writerow(map(csv_cell, self.columns))
            writer.writerows(map(csv_cell, row) for row in zip(*self.columns.values(), strict=True))


def table(name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> ReportTable:
    """A table of these rows, each as long as `columns`."""
    gathered = list(rows)
    return ReportTable(name, {column: [row[i] for row in gathered] for i, column in enumerate(columns)})


def finite(value: float) -> float | None:
    """For a cell, which is empty where there is no number."""
    return float(value) if math.isfinite(value) else None


@dataclass(frozen=True)
class Slide:
    """Drawings one above the other in one PNG: (what stands over it, an SVG as a file of its own)."""

    title: str
    drawings: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Seconds:
    """Computing time: by stage, then by arm."""

    arms: Sequence[str]
    by_stage: Mapping[str, Mapping[str, float]]

    @property
    def total(self) -> float:
        return sum(sum(by_arm.values()) for by_arm in self.by_stage.values())

    @property
    def titles(self) -> list[str]:
        return [arm_title(arm) for arm in self.arms]

    @property
    def rows(self) -> list[tuple[str, list[float], float]]:
        """(stage, seconds of each arm, all of them), the longest stage first."""
        made = [
            (stage, [by_arm.get(arm, 0.0) for arm in self.arms], sum(by_arm.values()))
            for stage, by_arm in self.by_stage.items()
        ]
        return sorted(made, key=lambda row: -row[2])

    @property
    def table(self) -> ReportTable:
        """Seconds by arm and stage, in the order of their names."""
        rows = sorted(
            (arm, stage, seconds) for stage, by_arm in self.by_stage.items() for arm, seconds in by_arm.items()
        )
        return ReportTable("times", {n: [row[i] for row in rows] for i, n in enumerate(("arm", "stage", "seconds"))})


@dataclass(frozen=True)
class Contents:
    """A report, worked out.

    Attributes:
        template: the page's, in `templates/`; `values` are what it speaks of.
        drawings, slides: SVG and PNG files, by the stem of their names; what has no data is left out.
        profile: verdicts by every definition of collapse; `report.page` adds its figure, its tables and its section.
    """

    report: Report
    headline: Sequence[str]
    facts: Sequence[str]
    terminal: TerminalTable
    tables: Sequence[ReportTable]
    drawings: Mapping[str, str]
    slides: Mapping[str, Slide]
    template: str
    values: Mapping[str, object]
    seconds: Seconds
    profile: Profile


def facts_of(arms: Sequence[str], generations: int, regime: str, seeds: int) -> list[str]:
    """An experiment in a few words, under its name."""
    return [
        " · ".join(map(arm_title, arms)),
        f"{generations} generation{'s' if generations > 1 else ''}",
        f"{regime} regime",
        f"{seeds} seeds" if seeds > 1 else "one seed",
    ]


def charts_as_files(charts: Mapping[str, tuple[Chart, str]], *, wide: str) -> tuple[dict[str, str], dict[str, Slide]]:
    """Charts, each with its title, as SVG and PNG files by the stem of their names; those without data are none.

    Args:
        wide: the stem of the one that is drawn larger.
    """
    drawings = {
        stem: svg(
            chart, **({"width": 760, "height": 400} if stem == wide else {"width": 480, "height": 320}), standalone=True
        )
        for stem, (chart, _) in charts.items()
        if not chart.empty
    }
    return drawings, {stem: Slide(charts[stem][1], [("", drawing)]) for stem, drawing in drawings.items()}
