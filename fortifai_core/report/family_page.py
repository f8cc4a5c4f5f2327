"""The report of an experiment on a family: one self-contained HTML file, its figures as files, its numbers as rows."""

from __future__ import annotations

import base64
import csv
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fortifai_core.charts.svg import CHART_CSS, PALETTE, Chart, Point, Series, png, svg
from fortifai_core.families.base import Figure
from fortifai_core.report.family_analysis import (
    Estimate,
    FamilyAnalysis,
    FamilyReport,
    analyse,
    estimate,
    number,
    spread,
    title_of,
    with_interval,
)
from fortifai_core.report.page import TerminalTable, duration
from fortifai_core.report.templating import render_page

COLUMNS = ("arm", "seed", "generation", "metric", "value", "low", "high")
WITH_INTERVALS = 3  # arms beside which a terminal still has room for intervals
POINTS = 240  # of a curve: more are not seen


def write_family_report(report: FamilyReport, directory: str | Path) -> FamilyAnalysis:
    """Write report.html, results.csv, and every chart as <measure>.svg and .png. The same data give the same files."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    analysis = analyse(report)
    (directory / "report.html").write_text(render(analysis), encoding="utf-8")
    with (directory / "results.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(result_rows(analysis))
    for name in analysis.measures:
        one = chart(analysis, name)
        if _moves(one):
            drawn = svg(one, width=760, height=400, standalone=True)
            (directory / f"{name}.svg").write_text(drawn, encoding="utf-8")
            png(one, directory / f"{name}.png", title=f"{report.experiment}: {analysis.title(name)}")
    return analysis


def chart(analysis: FamilyAnalysis, measure: str) -> Chart:
    """One measure over the generations, a curve an arm, with intervals and the failure threshold.

    What spans more than three powers of ten is drawn by its logarithm.
    """
    report = analysis.report
    drawn = [
        (colour, arm, [(i, v) for i, v in analysis.estimates.get((arm, measure), {}).items() if math.isfinite(v.mean)])
        for colour, arm in enumerate(report.results.arms)
    ]
    means = [v.mean for _, _, values in drawn for _, v in values]
    logarithmic = bool(means) and min(means) > 0 and max(means) > 1000 * min(means)

    def scaled(value: float) -> float:
        return value if not logarithmic or math.isnan(value) else math.log10(max(value, min(means) / 10))

    series = tuple(
        Series(
            title_of(arm),
            colour,
            tuple(Point(i, scaled(v.mean), scaled(v.low), scaled(v.high)) for i, v in spread(values, POINTS)),
        )
        for colour, arm, values in drawn
        if values
    )
    failure, rule = report.failure, None
    if failure is not None and failure["metric"] == measure and not failure["relative"] and not logarithmic:
        rule = (failure["threshold"], f"{number(failure['threshold'])}: failure")
    return Chart(analysis.title(measure) + (", log₁₀" if logarithmic else ""), series, rule=rule)


def terminal_table(analysis: FamilyAnalysis) -> TerminalTable:
    """The headline measure, a row a generation and a column an arm; then time to failure and the last difference."""
    report, name = analysis.report, analysis.report.results.config.headline
    arms = report.results.arms
    narrow = len(arms) > WITH_INTERVALS

    def cell_of(value: Estimate | None) -> str:
        return "–" if value is None else number(value.mean) if narrow else with_interval(value)

    rows = []
    for generation in analysis.shown:
        cells = [analysis.estimates.get((arm, name), {}).get(generation) for arm in arms]
        rows.append([f"M{generation}", *map(cell_of, cells)])
    if analysis.failures:
        rows.append(["time to failure", *(", ".join(row.outcomes) for row in analysis.failures)])
    if len(arms) > 1:
        gaps = [analysis.differences.get((arm, name)) for arm in arms[1:]]
        rows.append([f"difference to {title_of(arms[0])} at M{analysis.last}", "", *map(cell_of, gaps)])
    return TerminalTable(
        title=f"{report.experiment}: {analysis.title(name)}",
        headers=["generation", *(title_of(arm) for arm in arms)],
        rows=rows,
        caption=(
            "The intervals stand in the sentences below, and all of them in the report."
            if narrow
            else f"In brackets: {_intervals(analysis)}."
        ),
    )


def result_rows(analysis: FamilyAnalysis) -> Iterator[dict[str, Any]]:
    """Every number in long form; `seed` None: over all runs; a metric `… minus <arm>`: a difference."""
    results = analysis.report.results
    for run in results.runs:
        for g in run.generations:
            for metric, value in g.metrics.items():
                yield _row(run.arm, run.seed, g.generation, metric, value)
    for (arm, metric), by_generation in analysis.estimates.items():
        for generation, v in by_generation.items():
            yield _row(arm, None, generation, metric, v.mean, v.low, v.high)
    for (arm, metric), gap in analysis.differences.items():
        yield _row(arm, None, analysis.last, f"{metric} minus {results.arms[0]}", gap.mean, gap.low, gap.high)
    for (arm, seed), failure in sorted(analysis.report.failures.items()):
        yield _row(arm, seed, None, "time-to-failure", failure.get("generations", math.nan))


def _row(
    arm: str,
    seed: int | None,
    generation: int | None,
    metric: str,
    value: float,
    low: float = math.nan,
    high: float = math.nan,
) -> dict[str, Any]:
    ends = {"low": None, "high": None} if math.isnan(low) else {"low": low, "high": high}
    return {"arm": arm, "seed": seed, "generation": generation, "metric": metric, "value": value, **ends}


def _intervals(analysis: FamilyAnalysis) -> str:
    """What the intervals are, in words."""
    runs = {v.runs for by in analysis.estimates.values() for v in by.values()}
    if max(runs) > 1:
        return f"{analysis.report.level:.0%} intervals (Student’s t) {analysis.scope}"
    if any(v.known for by in analysis.estimates.values() for v in by.values()):
        return "quartiles over the replicates of one run"
    return f"nothing; {analysis.scope}"


def render(analysis: FamilyAnalysis) -> str:
    """The whole page."""
    from markupsafe import Markup

    report = analysis.report
    charts = [chart(analysis, name) for name in analysis.measures]
    total = sum(sum(own.values()) for own in report.seconds.values())
    return render_page(
        "family.html",
        filters={"number": number, "title_of": title_of, "duration": duration},
        data=report,
        analysis=analysis,
        arms=report.results.arms,
        facts=_facts(report),
        styles=Markup(PALETTE + CHART_CSS),
        pictures=[(figure, _embedded(figure)) for figure in report.figures],
        charts=[(one.title, Markup(svg(one, width=372, height=264))) for one in charts if _moves(one)],
        intervals=_intervals(analysis),
        stages=sorted(report.seconds.items(), key=lambda item: -sum(item[1].values())),
        total=total,
        config=report.config,
    )


def _moves(one: Chart) -> bool:
    """Whether there is anything to be seen: what never changes stands in the table alone."""
    return len({point.y for series in one.series for point in series.points}) > 1


def _embedded(figure: Figure) -> str:
    """The figure as a data address: its SVG where that is small, otherwise its PNG."""
    by_suffix = {path.suffix: path for path in figure.paths}
    path = by_suffix.get(".svg") or by_suffix[".png"]
    if ".png" in by_suffix and path.stat().st_size > 1_500_000:
        path = by_suffix[".png"]
    kind = {".svg": "image/svg+xml", ".png": "image/png"}[path.suffix]
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _facts(report: FamilyReport) -> list[str]:
    results = report.results
    seeds = {run.seed for run in results.runs}
    generations = max(g.generation for run in results.runs for g in run.generations) + 1
    return [
        " · ".join(title_of(arm) for arm in results.arms),
        f"{generations} generation{'s' if generations > 1 else ''}",
        f"{report.config['regime']} regime",
        f"{len(seeds)} seeds" if len(seeds) > 1 else "one seed",
        *([f"{replicates} replicates"] if (replicates := getattr(results.config, "replicates", 0)) else []),
    ]


__all__ = ["COLUMNS", "estimate", "render", "result_rows", "terminal_table", "write_family_report"]
