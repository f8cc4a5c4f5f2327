"""The report of an experiment: one self-contained HTML file, its figures as SVG and PNG, its tables as CSV."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fortifai_core.charts.svg import CHART_CSS, PALETTE, svg
from fortifai_core.measures.mutation import RULE as mutation_rule
from fortifai_core.measures.mutation import marked
from fortifai_core.outcomes.bootstrap import Interval
from fortifai_core.outcomes.survival import Survival
from fortifai_core.outcomes.time_to_failure import UNIT_TITLES
from fortifai_core.report.analysis import Analysis, ArmSummary, analyse, points
from fortifai_core.report.beside_paper import beside_the_paper
from fortifai_core.report.charts import retention_chart, small_charts, strips, write_figures
from fortifai_core.report.data import ArmResult, GenerationResult, ReportData, RunResult, Scores, title_of
from fortifai_core.report.survival_strip import STRIP_CSS, strip_svg
from fortifai_core.report.tables import report_tables
from fortifai_core.report.templating import render_page
from fortifai_core.report.token_confidence import CONFIDENCE_CSS, confidence_svg

__all__ = [
    "ArmResult",
    "GenerationResult",
    "ReportData",
    "RunResult",
    "Scores",
    "TerminalTable",
    "build_report",
    "terminal_table",
]


@dataclass(frozen=True)
class TerminalTable:
    """Plain text for a table in the terminal; `caption` is what must be read with it."""

    title: str
    headers: list[str]
    rows: list[list[str]]
    caption: str


def build_report(data: ReportData, directory: str | Path) -> list[Path]:
    """Write report.html, figures/*.svg and *.png, and tables/*.csv.

    The same data gives the same files. `directory` is made if need be; files in it are overwritten.
    """
    directory = Path(directory)
    (directory / "tables").mkdir(parents=True, exist_ok=True)
    analysis = analyse(data)
    page = directory / "report.html"
    page.write_text(render(analysis), encoding="utf-8")
    files = [page, *write_figures(analysis, directory / "figures")]
    for table in report_tables(analysis):
        files.append(directory / "tables" / f"{table.name}.csv")
        table.write_csv(files[-1])
    return files


def terminal_table(data: ReportData) -> TerminalTable:
    """One row a generation, then time to failure and the difference to the baseline; one column an arm."""
    analysis = analyse(data)
    level = f"{data.level:.0%}"
    rows = []
    for generation in range(max(arm.arm.generations for arm in analysis.arms)):
        cells = [plus_minus(arm.split0[generation]) if generation < len(arm.split0) else "–" for arm in analysis.arms]
        rows.append([f"M{generation}", *cells])
    rule = data.judged.level(data.threshold) if data.by_retention else failure_rule(data)
    rows.append([f"time to failure ({rule})", *(_failure(arm) for arm in analysis.arms)])
    if len(analysis.arms) > 1:
        base = analysis.arms[0].arm.title
        gaps = [_last_gap(arm.differences) for arm in analysis.arms[1:]]
        rows.append([f"difference to {base}, split 0", "", *gaps])
        totals = [_last_gap(arm.total_differences) for arm in analysis.arms[1:]]
        rows.append([f"difference to {base}, all splits", "", *totals])
    return TerminalTable(
        title=f"{data.experiment}: retention of split 0, %",
        headers=["generation", *(arm.arm.title for arm in analysis.arms)],
        rows=rows,
        caption=f"± and [ ]: {level} intervals over {analysis.scope}.",
    )


def render(analysis: Analysis) -> str:
    """The whole page."""
    from markupsafe import Markup

    filters: dict[str, Callable[..., object]] = {
        "percent": lambda share: f"{100 * share:.1f}",
        "score": lambda value: f"{100 * value:.1f}%" if 0 <= value <= 1 else f"{value:.4g}",
        "interval": span,
        "points": points,
        "isnan": math.isnan,
        "duration": duration,
        "moment": lambda value: "not reached" if math.isinf(value) else f"{value:.2f}",
        "median_interval": median_interval,
    }
    main = retention_chart(analysis)
    # A chart without data is an empty string, so that the template can ask for any of them.
    small = small_charts(analysis)
    figures = {name: Markup(svg(chart, width=372, height=264)) for name, chart in small.items()}
    data = analysis.data
    return render_page(
        "report.html",
        filters=filters,
        data=data,
        analysis=analysis,
        arms=analysis.arms,
        baseline=analysis.arms[0].arm.title,
        generations=range(max(arm.arm.generations for arm in analysis.arms)),
        facts=_facts(analysis),
        styles=Markup(PALETTE + CHART_CSS + CONFIDENCE_CSS + STRIP_CSS),
        main={
            "wide": Markup(svg(main, width=820, height=420)),
            "narrow": Markup(svg(main, width=372, height=340)),
        },
        figures=figures,
        confidence=[(arm.arm, Markup(confidence_svg(arm.arm, i))) for i, arm in enumerate(analysis.arms)],
        strips=[
            {
                "title": wide.title,
                "colour": wide.colour % 6,
                "wide": Markup(strip_svg(wide, width=820)),
                "narrow": Markup(strip_svg(narrow, width=372)),
            }
            for wide, narrow in zip(strips(analysis, bins=256), strips(analysis, bins=110), strict=True)
        ],
        mutations=[(one, title_of(one.label), marked(one)) for one in data.mutations],
        rule=mutation_rule,
        paper=beside_the_paper(analysis),
        benchmarks=list(dict.fromkeys(name for arm in analysis.arms for name in arm.benchmarks)),
        unit_titles=UNIT_TITLES,
        times=_times(data),
        config=data.config,
    )


# ------------------------------------------------------------------------------------------------ in words


def failure_rule(data: ReportData) -> str:
    """What an arm fails by: `perplexity-real > 300`."""
    return f"{data.metric} {'<' if data.judged.falls else '>'} {data.judged.level(data.threshold)}"


def plus_minus(interval: Interval) -> str:
    """`84.2 ± 3.1`, in percent; the longer of the interval's two arms."""
    text = f"{100 * interval.estimate:.1f}"
    return text if math.isnan(interval.low) else f"{text} ± {100 * interval.margin:.1f}"


def span(interval: Interval) -> str:
    """`80.1–87.9`, in percent; `no interval` where none can be made."""
    if math.isnan(interval.low):
        return "no interval"
    return f"{100 * interval.low:.1f}–{100 * interval.high:.1f}"


def median_interval(found: Survival) -> str:
    """`0.63 to 1.15`, `from 0.63 on` where the runs set no upper end, or nothing at all."""
    if math.isinf(found.median_low):
        return "no interval"
    if math.isinf(found.median_high):
        return f"from {found.median_low:.2f} on"
    return f"{found.median_low:.2f} to {found.median_high:.2f}"


def duration(seconds: float) -> str:
    """`42 s`, `3 min 05 s` or `2 h 10 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _failure(arm: ArmSummary) -> str:
    if arm.failure is None:
        return "–"
    text = arm.failure.describe()
    between = arm.failure_interval.describe() if arm.failure_interval is not None else text
    return text if between == text else f"{text} [{between}]"


def _last_gap(intervals: tuple[Interval, ...]) -> str:
    if not intervals:
        return "–"
    gap, generation = intervals[-1], len(intervals) - 1
    ends = "" if math.isnan(gap.low) else f" [{points(gap.low)} to {points(gap.high)}]"
    return f"{points(gap.estimate)}{ends} at M{generation}"


def _facts(analysis: Analysis) -> list[str]:
    """The experiment in a few words, under its name."""
    data, first = analysis.data, analysis.arms[0]
    seeds = sorted({seed for arm in data.arms for seed in arm.seeds})
    generations = max(arm.generations for arm in data.arms)
    facts = [
        " · ".join(arm.arm.title for arm in analysis.arms),
        f"{generations} generation{'s' if generations > 1 else ''}",
        f"{data.regime} regime",
    ]
    facts.append(f"{len(seeds)} seeds" if len(seeds) > 1 else "one seed")
    if first.split0:
        facts.append(f"{first.split0[0].questions:,} answers on split 0")
    return facts


def _times(data: ReportData) -> dict[str, Any]:
    """Seconds by stage and arm, the longest stage first."""
    stages: dict[str, dict[str, float]] = {}
    for arm in data.arms:
        for run in arm.runs:
            for result in run.generations:
                for stage, seconds in result.seconds.items():
                    own = stages.setdefault(stage, {})
                    own[arm.title] = own.get(arm.title, 0.0) + seconds
    total = sum(sum(own.values()) for own in stages.values())
    order = sorted(stages, key=lambda stage: -sum(stages[stage].values()))
    rows = [
        (stage, [stages[stage].get(arm.title, 0.0) for arm in data.arms], sum(stages[stage].values()))
        for stage in order
    ]
    return {"arms": [arm.title for arm in data.arms], "rows": rows, "total": total}
