"""The report of an experiment: one self-contained HTML file, its numbers as CSV, and its main figure."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fortifai_core.confidence import Interval
from fortifai_core.failure import UNIT_TITLES
from fortifai_core.report_analysis import Analysis, ArmSummary, analyse, points
from fortifai_core.report_confidence import CONFIDENCE_CSS, confidence_svg
from fortifai_core.report_data import ArmResult, GenerationResult, ReportData, RunResult, Scores, title_of
from fortifai_core.report_figures import CHART_CSS, PALETTE, Chart, Point, Series, png, svg

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
    """Write report.html, results.csv and, where retention was measured, retention.svg and retention.png.

    The same data gives the same files. `directory` is made if need be; files in it are overwritten.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    analysis = analyse(data)
    files = [directory / "report.html", directory / "results.csv"]
    files[0].write_text(render(analysis), encoding="utf-8")
    with files[1].open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("experiment", "arm", "seed", "generation", "metric", "split", "value", "low", "high"))
        writer.writerows(result_rows(analysis))
    main = retention_chart(analysis)
    if main.series:
        files += [directory / "retention.svg", directory / "retention.png"]
        files[2].write_text(svg(main, width=760, height=400, standalone=True), encoding="utf-8")
        png(main, files[3], title=f"{data.experiment}: retention of split 0")
    return files


def terminal_table(data: ReportData) -> TerminalTable:
    """One row a generation, then time to failure and the difference to the baseline; one column an arm."""
    analysis = analyse(data)
    level = f"{data.level:.0%}"
    rows = []
    for generation in range(max(arm.arm.generations for arm in analysis.arms)):
        cells = [plus_minus(arm.split0[generation]) if generation < len(arm.split0) else "–" for arm in analysis.arms]
        rows.append([f"M{generation}", *cells])
    rows.append([f"time to failure ({data.threshold:.0%})", *(_failure(arm) for arm in analysis.arms)])
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
    """The whole page; everything that comes from outside is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("fortifai_core"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[..., object]] = {
        "percent": lambda share: f"{100 * share:.1f}",
        "score": lambda value: f"{100 * value:.1f}%" if 0 <= value <= 1 else f"{value:.4g}",
        "interval": span,
        "points": points,
        "isnan": math.isnan,
        "duration": duration,
        "title_of": title_of,
    }
    environment.filters.update(filters)
    main = retention_chart(analysis)
    # A chart without data is an empty string, so that the template can ask for any of them.
    small = _small_charts(analysis)
    figures = {name: Markup(svg(chart, width=372, height=264)) for name, chart in small.items()}
    data = analysis.data
    page = environment.get_template("report.html")
    return page.render(
        data=data,
        analysis=analysis,
        arms=analysis.arms,
        baseline=analysis.arms[0].arm.title,
        generations=range(max(arm.arm.generations for arm in analysis.arms)),
        facts=_facts(analysis),
        styles=Markup(PALETTE + CHART_CSS + CONFIDENCE_CSS),
        main={
            "wide": Markup(svg(main, width=820, height=420)),
            "narrow": Markup(svg(main, width=372, height=340)),
        },
        figures=figures,
        confidence=[(arm.arm, Markup(confidence_svg(arm.arm, i))) for i, arm in enumerate(analysis.arms)],
        benchmarks=list(dict.fromkeys(name for arm in analysis.arms for name in arm.benchmarks)),
        unit_titles=UNIT_TITLES,
        times=_times(data),
        config=json.dumps(data.config, indent=2, ensure_ascii=False, default=str),
    )


# ------------------------------------------------------------------------------------------------ figures


def retention_chart(analysis: Analysis) -> Chart:
    """Retention of split 0 with intervals, the failure threshold, and where each mean curve crosses it."""
    data = analysis.data
    series = tuple(
        Series(
            arm.arm.title,
            i,
            _points(arm.split0),
            arm.failure.generations if arm.failure is not None else None,
        )
        for i, arm in enumerate(analysis.arms)
        if arm.split0
    )
    return Chart(
        "Retention of split 0 after each generation, per arm",
        series,
        unit="%",
        rule=(100 * data.threshold, f"{data.threshold:.0%}: failure"),
        floor=100 * data.chance,
        ceiling=100 * data.threshold + 5,
    )


def _small_charts(analysis: Analysis) -> dict[str, Chart]:
    """Every other chart, by name; some may be without data."""
    arms = list(enumerate(analysis.arms))
    gaps = tuple(Series(arm.arm.title, i, _points(arm.differences)) for i, arm in arms if arm.differences)
    totals = tuple(Series(arm.arm.title, i, _points(arm.total)) for i, arm in arms if arm.total)

    def plain(name: str) -> tuple[Series, ...]:
        found = ((i, arm, getattr(arm, name)) for i, arm in arms)
        lines = (
            Series(arm.arm.title, i, tuple(Point(x, y) for x, y in enumerate(values) if y is not None))
            for i, arm, values in found
        )
        return tuple(line for line in lines if line.points)

    def drift(name: str) -> tuple[Series, ...]:
        lines = (
            Series(arm.arm.title, i, tuple(Point(x, y) for x, y in enumerate(arm.drift.get(name, ())) if y is not None))
            for i, arm in arms
        )
        return tuple(line for line in lines if line.points)

    base = analysis.arms[0].arm.title
    return {
        "model_kl": Chart("Model KL from M0 on held-out real text", drift("model-kl"), floor=0),
        "facts": Chart("Facts of split 0 still stated truly", _percent(drift("facts-true-0")), unit="%", floor=0),
        "tail": Chart(
            "Rare words of split 0 still in use", _percent(drift("tail-types-kept-0")), unit="%", floor=0, ceiling=100
        ),
        "self_bleu": Chart("Self-BLEU of split 0's newest text", drift("self-bleu-0")),
        "difference": Chart(f"Difference to {base} in points", gaps, style="dots", signed=True, floor=-2, ceiling=2),
        "total": Chart("Retention over all splits seen", totals, unit="%", floor=100 * analysis.data.chance),
        "perplexity": Chart("Perplexity on held-out real text", plain("perplexity")),
        "kl": Chart("Unigram KL of split 0's newest text against the real one", plain("unigram_kl"), floor=0),
        "live": Chart("Share of live tokens", _percent(plain("live_fraction")), unit="%", floor=0, ceiling=100),
    }


def _points(intervals: tuple[Interval, ...]) -> tuple[Point, ...]:
    return tuple(Point(i, 100 * v.estimate, 100 * v.low, 100 * v.high) for i, v in enumerate(intervals))


def _percent(series: tuple[Series, ...]) -> tuple[Series, ...]:
    return tuple(Series(s.title, s.colour, tuple(Point(p.x, 100 * p.y) for p in s.points)) for s in series)


# ------------------------------------------------------------------------------------------------ numbers


def result_rows(analysis: Analysis) -> Iterator[tuple[object, ...]]:
    """Every number of the report in long form; `seed` is `all` for a mean over runs, with its interval."""
    name = analysis.data.experiment
    for arm in analysis.arms:
        label = arm.arm.label
        for run in arm.arm.runs:
            for result in run.generations:
                for metric, split, value in _measured(result):
                    yield (name, label, run.seed, result.generation, metric, split, value, "", "")
        means = {
            "kr-split-0": arm.split0,
            "kr-total": arm.total,
            "difference-split-0": arm.differences,
            "difference-total": arm.total_differences,
        }
        for metric, intervals in means.items():
            split = 0 if metric.endswith("split-0") else ""
            for generation, v in enumerate(intervals):
                ends = ("", "") if math.isnan(v.low) else (v.low, v.high)
                yield (name, label, "all", generation, metric, split, v.estimate, *ends)
        if arm.discordant is not None:
            last = len(arm.differences) - 1
            for metric, value in (
                ("mcnemar-only-this-arm", arm.discordant.only_a),
                ("mcnemar-only-baseline", arm.discordant.only_b),
                ("mcnemar-p", arm.discordant.p_value),
            ):
                yield (name, label, "all", last, metric, 0, value, "", "")
        if arm.failure is not None:
            for unit in analysis.units:
                metric = f"time-to-failure-{unit.replace('_', '-')}"
                yield (name, label, "all", "", metric, 0, arm.failure.describe(unit), "", "")


def _measured(result: GenerationResult) -> Iterator[tuple[str, object, float]]:
    for split in sorted(set(result.scores.split)):
        share = result.retention(split)
        if share is not None:
            yield (f"kr-split-{split}", split, share)
    plain = {
        "kr-total": result.retention(None),
        "perplexity-real": result.perplexity,
        "live-fraction": result.live_fraction,
        "tokens-trained": result.tokens_trained,
        "tokens-synthetic": result.tokens_synthetic,
    }
    yield from ((metric, "", value) for metric, value in plain.items() if value is not None)
    for name, value in sorted(result.drift.items()):
        of_split = name.endswith("-0")
        if name != "live-fraction":
            yield (name.removesuffix("-0") if of_split else name, 0 if of_split else "", value)
    yield from ((metric, "", value) for metric, value in sorted(result.benchmarks.items()))
    yield from (("unigram-kl", split, value) for split, value in sorted(result.unigram_kl.items()))
    yield from ((f"seconds-{stage}", "", value) for stage, value in sorted(result.seconds.items()))


def plus_minus(interval: Interval) -> str:
    """`84.2 ± 3.1`, in percent; the longer of the interval's two arms."""
    text = f"{100 * interval.estimate:.1f}"
    return text if math.isnan(interval.low) else f"{text} ± {100 * interval.margin:.1f}"


def span(interval: Interval) -> str:
    """`80.1–87.9`, in percent; `no interval` where none can be made."""
    if math.isnan(interval.low):
        return "no interval"
    return f"{100 * interval.low:.1f}–{100 * interval.high:.1f}"


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
