"""The report of an experiment on another model class: a chart of each measure, its tables, its page."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fortifai_core.charts.chart import Chart, Point, Series
from fortifai_core.charts.svg import svg
from fortifai_core.families.base import Figure
from fortifai_core.interval import Interval
from fortifai_core.report.contents import Contents, Seconds, TerminalTable, charts_as_files, facts_of, finite, table
from fortifai_core.report.family_analysis import FamilyAnalysis, FamilyReport, analyse, headline, spread, threshold_of
from fortifai_core.report.observed import profile_of_family
from fortifai_core.wording import arm_title, file_stem, number, share, with_interval

if TYPE_CHECKING:
    from markupsafe import Markup

COLUMNS = ("arm", "seed", "generation", "metric", "value", "low", "high")
WITH_INTERVALS = 2  # arms beside which a terminal still has room for intervals
POINTS = 240  # of a curve: more are not seen


def contents(report: FamilyReport) -> Contents:
    """Everything that the report shows."""
    from markupsafe import Markup

    analysis = analyse(report)
    results = report.results
    charts = {name: chart(analysis, name) for name in analysis.measures}
    moving = {name: one for name, one in charts.items() if _moves(one)}
    titled = {file_stem(name): (one, f"{report.experiment}: {one.title}") for name, one in moving.items()}
    drawings, slides = charts_as_files(titled, wide=file_stem(results.config.headline))
    generations = max(g.generation for run in results.runs for g in run.generations) + 1
    facts = facts_of(results.arms, generations, str(report.config["regime"]), len({run.seed for run in results.runs}))
    replicates = getattr(results.config, "replicates", 0)
    return Contents(
        report=report,
        headline=headline(analysis),
        facts=facts + ([f"{replicates} replicates"] if replicates else []),
        terminal=_terminal(analysis),
        tables=[table("results", COLUMNS, _results(analysis))],
        drawings=drawings,
        slides=slides,
        template="family.html",
        seconds=Seconds(results.arms, report.seconds),
        profile=profile_of_family(
            report, {arm: list(runs.by_seed.values()) for arm, runs in analysis.failures.items()}
        ),
        values={
            "analysis": analysis,
            "arms": results.arms,
            "pictures": [(figure, _embedded(figure)) for figure in report.figures],
            "charts": [(one.title, Markup(svg(one, width=372, height=264))) for one in moving.values()],
            "intervals": _intervals(analysis),
            "rule": threshold_of(report.failure) if report.failure else "",
        },
    )


def chart(analysis: FamilyAnalysis, measure: str) -> Chart:
    """One measure over the generations, a curve an arm, with intervals and the failure threshold.

    What spans more than three powers of ten is drawn by its logarithm.
    """
    report = analysis.report
    by_arm = {arm: analysis.estimates.get((arm, measure), {}).items() for arm in report.results.arms}
    drawn = {arm: [(i, v) for i, v in values if math.isfinite(v.estimate)] for arm, values in by_arm.items()}
    means = [v.estimate for values in drawn.values() for _, v in values]
    logarithmic = bool(means) and min(means) > 0 and max(means) > 1000 * min(means)

    def scaled(value: float) -> float:
        return value if not logarithmic or math.isnan(value) else math.log10(max(value, min(means) / 10))

    series = tuple(
        Series(
            arm_title(arm),
            place,
            tuple(Point(i, scaled(v.estimate), scaled(v.low), scaled(v.high)) for i, v in spread(values, POINTS)),
        )
        for place, (arm, values) in enumerate(drawn.items())
        if values
    )
    failure, rule = report.failure, None
    if failure is not None and failure.metric == measure and not failure.relative and not logarithmic:
        rule = (failure.threshold, f"{number(failure.threshold)}: failure")
    return Chart(analysis.title(measure) + (", log₁₀" if logarithmic else ""), series, rule=rule)


def _terminal(analysis: FamilyAnalysis) -> TerminalTable:
    """The headline measure, a row a generation and a column an arm; then time to failure and the last difference."""
    report, name = analysis.report, analysis.report.results.config.headline
    arms = report.results.arms
    narrow = len(arms) > WITH_INTERVALS

    def cell_of(value: Interval | None) -> str:
        return "–" if value is None else number(value.estimate) if narrow else with_interval(value)

    rows = []
    for generation in analysis.shown:
        cells = [analysis.estimates.get((arm, name), {}).get(generation) for arm in arms]
        rows.append([f"M{generation}", *map(cell_of, cells)])
    if analysis.failures:
        rows.append(["time to failure", *(", ".join(runs.outcomes) for runs in analysis.failures.values())])
    if len(arms) > 1:
        gaps = [analysis.differences.get((arm, name)) for arm in arms[1:]]
        rows.append([f"difference to {arm_title(arms[0])} at M{analysis.last}", "", *map(cell_of, gaps)])
    return TerminalTable(
        title=f"{report.experiment}: {analysis.title(name)}",
        headers=["generation", *map(arm_title, arms)],
        rows=rows,
        caption=(
            "The intervals stand in the sentences below, and all of them in the report."
            if narrow
            else f"In brackets: {_intervals(analysis)}."
        ),
    )


def _results(analysis: FamilyAnalysis) -> Iterator[tuple[Any, ...]]:
    """Every number in long form; no seed: over all runs; a metric `… minus <arm>`: a difference."""
    results = analysis.report.results
    for run in results.runs:
        for g in run.generations:
            for metric, value in g.metrics.items():
                yield (run.arm, run.seed, g.generation, metric, value, None, None)
    for (arm, metric), by_generation in analysis.estimates.items():
        for generation, v in by_generation.items():
            yield (arm, None, generation, metric, v.estimate, finite(v.low), finite(v.high))
    for (arm, metric), gap in analysis.differences.items():
        minus = f"{metric} minus {results.arms[0]}"
        yield (arm, None, analysis.last, minus, gap.estimate, finite(gap.low), finite(gap.high))
    for arm, runs in analysis.failures.items():
        for seed, outcome in runs.by_seed.items():
            moment = math.nan if outcome.generations is None else outcome.generations
            yield (arm, seed, None, "time-to-failure", moment, None, None)


def _intervals(analysis: FamilyAnalysis) -> str:
    """What the intervals are, in words."""
    runs = {v.runs for by in analysis.estimates.values() for v in by.values()}
    if max(runs) > 1:
        return f"{share(analysis.report.level)} intervals (Student’s t) {analysis.scope}"
    if any(v.known for by in analysis.estimates.values() for v in by.values()):
        return "quartiles over the replicates of one run"
    return f"nothing; {analysis.scope}"


def _moves(one: Chart) -> bool:
    """Whether there is anything to be seen: what never changes stands in the table alone."""
    return len({point.y for series in one.series for point in series.points}) > 1


def _embedded(figure: Figure) -> Markup:
    """The figure as a data address, which is ours and never cut: its SVG where that is small, otherwise its PNG."""
    from markupsafe import Markup

    by_suffix = {path.suffix: path for path in figure.paths}
    path = by_suffix.get(".svg") or by_suffix[".png"]
    if ".png" in by_suffix and path.stat().st_size > 1_500_000:
        path = by_suffix[".png"]
    kind = {".svg": "image/svg+xml", ".png": "image/png"}[path.suffix]
    return Markup(f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}")
