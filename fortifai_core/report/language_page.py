"""The report of an experiment on a language model: its charts, its tables, the row for the terminal, its page."""

from __future__ import annotations

from collections import defaultdict

from fortifai_core.charts.svg import svg
from fortifai_core.interval import Interval
from fortifai_core.measures.mutation import RULE as mutation_rule
from fortifai_core.measures.mutation import marked
from fortifai_core.outcomes.time_to_failure import UNIT_TITLES
from fortifai_core.report.analysis import Analysis, ArmSummary, analyse
from fortifai_core.report.beside_paper import beside_the_paper
from fortifai_core.report.charts import retention_chart, small_charts, strips
from fortifai_core.report.contents import Contents, Seconds, Slide, TerminalTable, charts_as_files, facts_of
from fortifai_core.report.data import ReportData
from fortifai_core.report.observed import profile_of_report
from fortifai_core.report.sentences import headline
from fortifai_core.report.survival_strip import strip_svg
from fortifai_core.report.tables import report_tables
from fortifai_core.report.token_confidence import confidence_svg
from fortifai_core.wording import arm_title, file_stem, plus_minus, points, share

WIDEST = 4  # arms that a table in the terminal has a column for each

# Names of files, where they differ from the names in the page.
_FILES = {"kl": "unigram-kl", "runs": "survival-of-runs"}


def contents(data: ReportData) -> Contents:
    """Everything that the report shows."""
    from markupsafe import Markup

    analysis = analyse(data)
    main, small = retention_chart(analysis), small_charts(analysis)
    drawings, slides = _files(analysis)
    return Contents(
        report=data,
        headline=headline(analysis),
        facts=_facts(analysis),
        terminal=_terminal(analysis),
        tables=report_tables(analysis),
        drawings=drawings,
        slides=slides,
        template="report.html",
        seconds=_seconds(data),
        profile=profile_of_report(data, {a.arm.label: list(a.runs.by_seed.values()) for a in analysis.arms}),
        values={
            "analysis": analysis,
            "arms": analysis.arms,
            "baseline": analysis.baseline,
            "base": next((arm for arm in analysis.arms if arm.before), None),
            "generations": range(max(arm.arm.generations for arm in analysis.arms)),
            # a chart without data is an empty string, so that the template can ask for any of them
            "main": {
                "wide": Markup(svg(main, width=820, height=420)),
                "narrow": Markup(svg(main, width=372, height=340)),
            },
            "figures": {name: Markup(svg(chart, width=372, height=264)) for name, chart in small.items()},
            "confidence": [(arm.arm, Markup(confidence_svg(arm.arm, i))) for i, arm in enumerate(analysis.arms)],
            "strips": [
                (wide, Markup(strip_svg(wide, width=820)), Markup(strip_svg(narrow, width=372)))
                for wide, narrow in zip(strips(analysis, bins=256), strips(analysis, bins=110), strict=True)
            ],
            "mutations": [(one, arm_title(one.label), marked(one)) for one in data.mutations],
            "rule": mutation_rule,
            "paper": beside_the_paper(analysis),
            "benchmarks": list(dict.fromkeys(name for arm in analysis.arms for name in arm.benchmarks)),
            "unit_titles": UNIT_TITLES,
        },
    )


def failure_rule(data: ReportData) -> str:
    """What an arm fails by: `75%`, or `perplexity-real > 300`."""
    level = data.judged.level(data.threshold)
    return level if data.by_retention else f"{data.metric} {'<' if data.judged.falls else '>'} {level}"


def _terminal(analysis: Analysis) -> TerminalTable:
    """One row a generation, then time to failure and the difference to the baseline; one column an arm."""
    data, arms = analysis.data, analysis.arms
    if len(arms) > WIDEST:
        return _one_row_an_arm(analysis)
    rows = []
    if any(arm.before for arm in arms):
        rows.append(["M-1", *(plus_minus(arm.before[0]) if 0 in arm.before else "–" for arm in arms)])
    for generation in range(max(arm.arm.generations for arm in arms)):
        cells = [plus_minus(arm.split0[generation]) if generation < len(arm.split0) else "–" for arm in arms]
        rows.append([f"M{generation}", *cells])
    rows.append([f"time to failure ({failure_rule(data)})", *map(_failure, arms)])
    if len(arms) > 1:
        compared = [arm.compared for arm in arms[1:]]
        gaps = [_last_gap(one.differences if one else ()) for one in compared]
        totals = [_last_gap(one.totals if one else ()) for one in compared]
        rows.append([f"difference to {analysis.baseline}, split 0", "", *gaps])
        rows.append([f"difference to {analysis.baseline}, all splits", "", *totals])
    return TerminalTable(
        title=f"{data.experiment}: retention of split 0, %",
        headers=["generation", *(arm.arm.title for arm in arms)],
        rows=rows,
        caption=f"± and [ ]: {share(data.level)} intervals over {analysis.scope}.",
    )


def _one_row_an_arm(analysis: Analysis) -> TerminalTable:
    """Of many arms: the first and the last generation, time to failure, the difference to the baseline."""
    data, last = analysis.data, max(arm.arm.generations for arm in analysis.arms) - 1
    rows = []
    for arm in analysis.arms:
        at = {g: plus_minus(arm.split0[g]) if g < len(arm.split0) else "–" for g in (0, last)}
        gap = "" if arm is analysis.arms[0] else _last_gap(arm.differences)
        rows.append([arm.arm.title, at[0], at[last], _failure(arm), gap])
    failing = f"time to failure ({failure_rule(data)})"
    return TerminalTable(
        title=f"{data.experiment}: retention of split 0, %",
        headers=["arm", "M0", f"M{last}", failing, f"difference to {analysis.baseline}"],
        rows=rows,
        caption=f"± and [ ]: {share(data.level)} intervals over {analysis.scope}.",
    )


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
    ends = f" [{points(gap.low)} to {points(gap.high)}]" if gap.known else ""
    return f"{points(gap.estimate)}{ends} at M{generation}"


def _facts(analysis: Analysis) -> list[str]:
    data, first = analysis.data, analysis.arms[0]
    seeds = {seed for arm in data.arms for seed in arm.seeds}
    generations = max(arm.generations for arm in data.arms)
    facts = facts_of([arm.arm.label for arm in analysis.arms], generations, data.regime, len(seeds))
    return facts + ([f"{first.split0[0].questions:,} answers on split 0"] if first.split0 else [])


def _seconds(data: ReportData) -> Seconds:
    by_stage: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for arm in data.arms:
        for run in arm.runs:
            for result in run.generations:
                for stage, seconds in result.seconds.items():
                    by_stage[stage][arm.label] += seconds
    return Seconds([arm.label for arm in data.arms], by_stage)


def _files(analysis: Analysis) -> tuple[dict[str, str], dict[str, Slide]]:
    """Every figure of the page, in the viewer's theme and for slides."""
    name = analysis.data.experiment
    charts = {file_stem(_FILES.get(key, key)): (chart, chart.title) for key, chart in small_charts(analysis).items()}
    main = {"retention": (retention_chart(analysis), f"{name}: retention of split 0")}
    drawings, slides = charts_as_files({**main, **charts}, wide="retention")
    several = {
        "survival-strip": f"{name}: which questions are still answered",
        "confidence": f"{name}: how sure models are of the next token (dotted: base; thin: M0; bold: the last)",
    }
    for stem, title in several.items():
        if stem == "confidence":
            drawn = [(i, confidence_svg(arm.arm, i, standalone=True)) for i, arm in enumerate(analysis.arms)]
        else:
            shown = strips(analysis, bins=256)
            drawn = [(strip.colour, strip_svg(strip, width=820, standalone=True)) for strip in shown]
        by_arm = [(analysis.arms[place].arm, drawing) for place, drawing in drawn if drawing]
        drawings |= {f"{stem}-{file_stem(arm.label)}": drawing for arm, drawing in by_arm}
        if by_arm:
            slides[stem] = Slide(title, [(arm.title, drawing) for arm, drawing in by_arm])
    return drawings, slides
