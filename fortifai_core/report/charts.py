"""The report's charts by name, and all of them as files."""

from __future__ import annotations

import re
from pathlib import Path

from fortifai_core.charts.svg import Chart, Point, Series, png, svg
from fortifai_core.outcomes.bootstrap import Interval
from fortifai_core.report.analysis import Analysis
from fortifai_core.report.survival_strip import Strip, strip_of, strip_svg, strips_png
from fortifai_core.report.token_confidence import confidence_png, confidence_svg


def retention_chart(analysis: Analysis) -> Chart:
    """Retention of split 0 with intervals, the failure threshold, and where each mean curve crosses it."""
    data = analysis.data
    series = tuple(
        Series(
            arm.arm.title,
            i,
            _points(arm.split0),
            arm.failure.generations if data.by_retention and arm.failure is not None else None,
        )
        for i, arm in enumerate(analysis.arms)
        if arm.split0
    )
    return Chart(
        "Retention of split 0 after each generation, per arm",
        series,
        unit="%",
        rule=(100 * data.threshold, f"{data.threshold:.0%}: failure") if data.by_retention else None,
        floor=100 * data.chance,
        ceiling=100 * data.threshold + 5 if data.by_retention else None,
    )


def small_charts(analysis: Analysis) -> dict[str, Chart]:
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

    def benchmark(name: str) -> tuple[Series, ...]:
        lines = (
            Series(
                arm.arm.title,
                i,
                tuple(Point(x, y) for x, y in enumerate(arm.benchmarks.get(name, ())) if y is not None),
            )
            for i, arm in arms
        )
        return tuple(line for line in lines if line.points)

    base = analysis.arms[0].arm.title
    named = dict.fromkeys(name for arm in analysis.arms for name in arm.benchmarks)
    benchmarks = {f"benchmark {name}": Chart(f"{name} after each generation", benchmark(name)) for name in named}
    return {
        "runs": _runs_chart(analysis),
        **benchmarks,
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


def _runs_chart(analysis: Analysis) -> Chart:
    """The Kaplan-Meier curve of each arm's runs, as a staircase."""
    series = []
    for i, arm in enumerate(analysis.arms):
        if arm.survival is None:
            continue
        points = [Point(0, 100, 100, 100)]
        for step in arm.survival.steps:
            before = points[-1]
            points.append(Point(step.time, before.y, before.low, before.high))
            if step.survival > 0:
                points.append(Point(step.time, 100 * step.survival, 100 * step.low, 100 * step.high))
            else:
                points.append(Point(step.time, 0))  # the curve ends here, and the formula has no interval at 0
        end = points[-1]
        if end.y > 0 and arm.survival.horizon > end.x:
            points.append(Point(arm.survival.horizon, end.y, end.low, end.high))
        series.append(Series(arm.arm.title, i, tuple(points)))
    title = "Share of the runs that have not failed, by generation"
    return Chart(title, tuple(series), unit="%", floor=0, ceiling=100, marks=False)


def strips(analysis: Analysis, *, bins: int) -> list[Strip]:
    """The survival strip of every arm that answered questions."""
    found = (strip_of(arm.arm, i, bins=bins) for i, arm in enumerate(analysis.arms))
    return [strip for strip in found if strip is not None]


# names of the files, where they differ from the names in the page
_FILES = {"kl": "unigram-kl", "runs": "survival-of-runs"}


def write_figures(analysis: Analysis, directory: Path) -> list[Path]:
    """Every figure of the page as SVG, in the viewer's theme, and as PNG, for slides; figures without data are none."""
    directory.mkdir(parents=True, exist_ok=True)
    name = analysis.data.experiment
    written: list[Path] = []

    def put(stem: str, text: str) -> None:
        path = directory / f"{stem}.svg"
        path.write_text(text, encoding="utf-8")
        written.append(path)

    main = retention_chart(analysis)
    charts = {"retention": main, **small_charts(analysis)}
    for key, chart in charts.items():
        if not any(series.points for series in chart.series):
            continue
        stem = re.sub(r"[^a-z0-9.]+", "-", _FILES.get(key, key).lower())
        size = (760, 400) if chart is main else (480, 320)
        put(stem, svg(chart, width=size[0], height=size[1], standalone=True))
        title = f"{name}: retention of split 0" if chart is main else chart.title
        png(chart, directory / f"{stem}.png", title=title, wide=chart is main)
        written.append(directory / f"{stem}.png")
    shown = strips(analysis, bins=256)
    for strip in shown:
        label = analysis.arms[strip.colour].arm.label
        put(f"survival-strip-{_stem(label)}", strip_svg(strip, width=820, standalone=True))
    if shown:
        path = directory / "survival-strip.png"
        strips_png(shown, path, title=f"{name}: which questions are still answered")
        written.append(path)
    for i, arm in enumerate(analysis.arms):
        text = confidence_svg(arm.arm, i, standalone=True)
        if text:
            put(f"confidence-{_stem(arm.arm.label)}", text)
    if confidence_png([arm.arm for arm in analysis.arms], directory / "confidence.png"):
        written.append(directory / "confidence.png")
    return written


def _stem(label: str) -> str:
    """A file's name for an arm, whatever a user called it."""
    return re.sub(r"[^a-z0-9.]+", "-", label.lower()).strip("-.") or "arm"


def _points(intervals: tuple[Interval, ...]) -> tuple[Point, ...]:
    return tuple(Point(i, 100 * v.estimate, 100 * v.low, 100 * v.high) for i, v in enumerate(intervals))


def _percent(series: tuple[Series, ...]) -> tuple[Series, ...]:
    return tuple(Series(s.title, s.colour, tuple(Point(p.x, 100 * p.y) for p in s.points)) for s in series)
