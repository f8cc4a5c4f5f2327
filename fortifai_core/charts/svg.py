"""The report's charts: SVG written by hand, so that it follows the page's theme; and PNG, for slides.

Colours are CSS variables (`--ink`, `--soft`, `--line`, `--s0` …), defined by the page or by `STYLE`, which
the stand-alone file carries. Arms differ by marker shape too: for print, and for eyes that see colours
otherwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Literal

COLOURS_LIGHT = ("#b5482a", "#2458a6", "#3b7d4f", "#8a5a9e", "#a67c1a", "#3a7c8c")
COLOURS_DARK = ("#f0916e", "#8ab4f8", "#86cc9a", "#cfa5e0", "#e0bd62", "#7cc7d6")
_VARIABLES = "".join(f"--s{i}:{colour};" for i, colour in enumerate(COLOURS_LIGHT))
_DARK = "".join(f"--s{i}:{colour};" for i, colour in enumerate(COLOURS_DARK))
PALETTE = (
    f":root{{--paper:#fdfcfa;--ink:#22201d;--soft:#6a655d;--line:#e4dfd6;--band:.13;--mark:#f6e7b8;--wrong:#c22017;{_VARIABLES}}}"
    f"@media screen and (prefers-color-scheme:dark){{"
    f":root{{--paper:#191817;--ink:#eceae5;--soft:#a29c92;--line:#383531;--band:.2;--mark:#4a421f;--wrong:#ff8f85;{_DARK}}}}}"
)
CHART_CSS = "".join(f".c{i}{{--c:var(--s{i})}}" for i in range(len(COLOURS_LIGHT))) + (
    ".chart{display:block;width:100%;height:auto;font:12px system-ui,-apple-system,'Segoe UI',Roboto,"
    "'Helvetica Neue',Arial,sans-serif;font-variant-numeric:tabular-nums}"
    ".chart text{fill:var(--soft)}.chart .name{fill:var(--c);font-weight:600}"
    ".chart .grid{stroke:var(--line);stroke-width:1}"
    ".chart .rule{stroke:var(--ink);stroke-width:1;stroke-dasharray:5 4;opacity:.7}"
    ".chart .zero{stroke:var(--ink);stroke-width:1}"
    ".chart .band{fill:var(--c);opacity:var(--band)}"
    ".chart .curve{fill:none;stroke:var(--c);stroke-width:2.25;stroke-linejoin:round}"
    ".chart .whisker{stroke:var(--c);stroke-width:2}"
    ".chart .mark{fill:var(--c);stroke:var(--paper);stroke-width:1.5}"
    ".chart .drop{stroke:var(--c);stroke-width:1.25;stroke-dasharray:1.5 3}"
    ".chart .ring{fill:var(--paper);stroke:var(--c);stroke-width:2}"
    ".chart .when{fill:var(--c);font-weight:600;paint-order:stroke;stroke:var(--paper);stroke-width:4px}"
)
MARKED = 40  # points of a curve, above which it is drawn without marks
STYLE = PALETTE + CHART_CSS + ".paper{fill:var(--paper)}"


@dataclass(frozen=True)
class Point:
    """One generation of one series; `low` and `high` are None or NaN where there is no interval."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None

    @property
    def interval(self) -> tuple[float, float] | None:
        if self.low is None or self.high is None or math.isnan(self.low) or math.isnan(self.high):
            return None
        return self.low, self.high


@dataclass(frozen=True)
class Series:
    """One arm. `colour` is its place among all arms; `crossing` where it meets the threshold."""

    title: str
    colour: int
    points: tuple[Point, ...]
    crossing: float | None = None


@dataclass(frozen=True)
class Chart:
    """A chart over generations.

    Attributes:
        title: says what is shown, for screen readers.
        style: `curve` with a band, or `dots` with whiskers, side by side.
        unit: follows the number on the axis (`%`).
        rule: a dashed line with its label; a threshold.
        floor, ceiling: at least this much of the axis is shown.
        marks: every point has its arm's mark; staircases have none.
    """

    title: str
    series: tuple[Series, ...]
    style: Literal["curve", "dots"] = "curve"
    unit: str = ""
    signed: bool = False
    rule: tuple[float, str] | None = None
    floor: float | None = None
    ceiling: float | None = None
    marks: bool = True

    @property
    def last(self) -> int:
        """The last generation on the axis."""
        return max(1, math.ceil(max(p.x for s in self.series for p in s.points) - 1e-9))


def svg(chart: Chart, *, width: int, height: int, standalone: bool = False) -> str:
    """The chart as an SVG element; `standalone` makes it a file that follows the viewer's theme."""
    if not any(series.points for series in chart.series):
        return ""
    plot = _Plot(chart, width, height)
    space = ' xmlns="http://www.w3.org/2000/svg"' if standalone else ""
    size = f' width="{width}" height="{height}"' if standalone else ""
    parts = [
        f'<svg class="chart"{space}{size} viewBox="0 0 {width} {height}" role="img" aria-label="{escape(chart.title)}">'
    ]
    if standalone:
        parts.append(f'<style>{STYLE}</style><rect class="paper" width="{width}" height="{height}"/>')
    parts += plot.axes()
    # All bands lie beneath all curves, or the last arm's band would dull the others.
    for draw in (plot.band, plot.curve) if chart.style == "curve" else (plot.dots,):
        for series in chart.series:
            parts += draw(series)
    parts += plot.crossings() + plot.names()
    return "".join(parts) + "</svg>"


class _Plot:
    """Scales and pieces of one chart."""

    def __init__(self, chart: Chart, width: int, height: int) -> None:
        self.chart = chart
        longest = max(len(series.title) for series in chart.series)
        self.left, self.right = 44.0, width - 16.0 - min(7.2 * longest, width / 4)
        self.top, self.bottom = 14.0, height - 28.0
        points = [point for series in chart.series for point in series.points]
        self.last = chart.last
        values = [v for p in points for v in (p.y, *(p.interval or ()))] + ([chart.rule[0]] if chart.rule else [])
        low = min(values + ([chart.floor] if chart.floor is not None else []))
        high = max(values + ([chart.ceiling] if chart.ceiling is not None else []))
        self.step = _step(high - low, most=max(4, height // 60))
        self.low = math.floor(low / self.step + 1e-9) * self.step
        self.high = max(math.ceil(high / self.step - 1e-9) * self.step, self.low + self.step)
        self.inset = 22.0 if chart.style == "dots" else 8.0

    def x(self, value: float) -> float:
        start, end = self.left + self.inset, self.right - self.inset
        return round(start + (end - start) * value / self.last, 1)

    def y(self, value: float) -> float:
        return round(self.bottom - (self.bottom - self.top) * (value - self.low) / (self.high - self.low), 1)

    def number(self, value: float) -> str:
        digits = max(0, -math.floor(math.log10(self.step) + 1e-9))
        text = f"{abs(value):,.{digits}f}"
        zero = not text.strip("0.,")
        sign = "−" if value < 0 and not zero else "+" if self.chart.signed and not zero else ""
        return f"{sign}{text}{self.chart.unit}"

    def axes(self) -> list[str]:
        parts = []
        for i in range(round((self.high - self.low) / self.step) + 1):
            value = self.low + i * self.step
            kind = "zero" if self.chart.signed and abs(value) < self.step / 2 else "grid"
            parts.append(_line(kind, self.left, self.y(value), self.right, self.y(value)))
            parts.append(_text(self.number(value), self.left - 8, self.y(value) + 4, "end"))
        every = max(1, round(_step(self.last, most=max(1, int((self.right - self.left) / 34)))))
        for generation in range(0, self.last + 1, every):
            parts.append(_text(f"M{generation}", self.x(generation), self.bottom + 20, "middle"))
        if self.chart.rule:
            at, label = self.chart.rule
            parts.append(_line("rule", self.left, self.y(at), self.right, self.y(at)))
            parts.append(_text(label, self.right - 4, self.y(at) - 6, "end"))
        return parts

    def band(self, series: Series) -> list[str]:
        bands = [(p.x, *p.interval) for p in series.points if p.interval]
        if len(bands) < 2:
            return []
        edge = [f"{self.x(x)},{self.y(high)}" for x, _, high in bands]
        edge += [f"{self.x(x)},{self.y(low)}" for x, low, _ in reversed(bands)]
        return [f'<polygon class="band c{series.colour % 6}" points="{" ".join(edge)}"/>']

    def curve(self, series: Series) -> list[str]:
        line = " ".join(f"{self.x(p.x)},{self.y(p.y)}" for p in series.points)
        path = f'<polyline class="curve c{series.colour % 6}" points="{line}"/>'
        if not self.chart.marks or len(series.points) > MARKED:
            return [path]
        return [path] + [self.mark(series, p, self.x(p.x)) for p in series.points]

    def dots(self, series: Series) -> list[str]:
        order = [own.colour for own in self.chart.series].index(series.colour)
        shift = (order - (len(self.chart.series) - 1) / 2) * min(12, 36 / len(self.chart.series))
        parts = []
        for p in series.points:
            if p.interval:
                at, (low, high) = self.x(p.x) + shift, p.interval
                parts.append(_line(f"whisker c{series.colour % 6}", at, self.y(low), at, self.y(high)))
            parts.append(self.mark(series, p, self.x(p.x) + shift))
        return parts

    def mark(self, series: Series, p: Point, x: float) -> str:
        """The arm's shape; the exact numbers appear on hovering."""
        tip = f"{series.title}, M{p.x:g}: {p.y:.4g}{self.chart.unit}"
        if p.interval:
            tip += f" ({p.interval[0]:.4g} to {p.interval[1]:.4g})"
        shape = _shape(series.colour, x, self.y(p.y))
        return f'<g class="mark c{series.colour % 6}"><title>{escape(tip)}</title>{shape}</g>'

    def crossings(self) -> list[str]:
        """A ring where a curve falls below the rule, and a line down to the time to failure."""
        if not self.chart.rule:
            return []
        drops: list[str] = []
        labels: list[str] = []
        taken: list[tuple[float, float]] = []
        at = self.y(self.chart.rule[0])
        for series in sorted(self.chart.series, key=lambda s: s.crossing or 0.0):
            if series.crossing is None:
                continue
            x, label_y = self.x(series.crossing), self.bottom - 8
            while any(abs(x - other) < 34 and label_y == height for other, height in taken):
                label_y -= 16
            taken.append((x, label_y))
            colour = f"c{series.colour % 6}"
            drops.append(_line(f"drop {colour}", x, at, x, self.bottom))
            drops.append(f'<circle class="ring {colour}" cx="{x}" cy="{at}" r="4.5"/>')
            labels.append(_text(f"{series.crossing:.2f}", x, label_y, "middle", f"when {colour}"))
        return drops + labels

    def names(self) -> list[str]:
        """Each arm's name at the end of its curve, moved apart where curves end together."""
        ends = [(self.y(s.points[-1].y), s) for s in self.chart.series if s.points]
        places, previous = [], -math.inf
        for y, series in sorted(ends, key=lambda end: end[0]):
            previous = max(y, previous + 16)
            places.append((previous, series))
        overflow = max(0.0, previous - self.bottom)
        return [
            _text(series.title, self.right + 6, y - overflow + 4, "start", f"name c{series.colour % 6}")
            for y, series in places
        ]


def png(chart: Chart, path: Path, *, title: str, wide: bool = False) -> None:
    """The same chart for slides, on white: 16 by 9, `wide` 1920 pixels, otherwise 1200."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # the same proportions, so that small charts have larger letters
    size, dots = ((9.6, 5.4), 200) if wide else ((6.4, 3.6), 187.5)
    figure = Figure(figsize=size, dpi=dots, layout="constrained")
    axes = figure.add_subplot()
    for order, series in enumerate(chart.series):
        colour = COLOURS_LIGHT[series.colour % 6]
        marker = "os^DvP"[series.colour % 6] if chart.marks else ""
        dodge = (order - (len(chart.series) - 1) / 2) * 0.08 if chart.style == "dots" else 0.0
        x, y = [p.x + dodge for p in series.points], [p.y for p in series.points]
        line = "none" if chart.style == "dots" else "-"
        axes.plot(x, y, line, color=colour, marker=marker, linewidth=2.25, label=series.title, markeredgecolor="white")
        bands = [(p.x + dodge, *p.interval) for p in series.points if p.interval]
        if bands:
            at, low, high = ([band[i] for band in bands] for i in range(3))
            if chart.style == "dots":
                axes.vlines(at, low, high, color=colour, linewidth=2)
            else:
                axes.fill_between(at, low, high, color=colour, alpha=0.13, linewidth=0)
        if series.crossing is not None and chart.rule:
            axes.plot([series.crossing], [chart.rule[0]], "o", color="white", markeredgecolor=colour, zorder=5)
    if chart.rule:
        axes.axhline(chart.rule[0], color="#22201d", linestyle=(0, (5, 4)), linewidth=1)
        place: dict[str, Any] = {"xy": (1, chart.rule[0]), "xycoords": ("axes fraction", "data"), "xytext": (-4, 5)}
        axes.annotate(chart.rule[1], **place, textcoords="offset points", fontsize=9, ha="right")
    if chart.signed:
        axes.axhline(0, color="#22201d", linewidth=1)
    frame = _Plot(chart, 760, 400)
    axes.set_ylim(frame.low, frame.high)
    axes.set_title(title, loc="left", fontsize=13 if wide else 11, pad=12)
    axes.set_xticks(range(0, chart.last + 1, max(1, chart.last // 12)))
    axes.xaxis.set_major_formatter(lambda value, _: f"M{value:.0f}")
    axes.yaxis.set_major_formatter(lambda value, _: frame.number(value))
    axes.grid(axis="y", color="#e4dfd6")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0)
    if len(chart.series) > 1:
        axes.legend(frameon=False)
    FigureCanvasAgg(figure).print_png(path, metadata={"Software": None})


def _step(span: float, *, most: int) -> float:
    """A round distance between grid lines that gives at most `most` of them."""
    rough = max(span, 1e-9) / most
    scale = 10.0 ** math.floor(math.log10(rough))
    return next(scale * factor for factor in (1, 2, 5, 10) if scale * factor >= rough * (1 - 1e-9))


def _shape(index: int, x: float, y: float) -> str:
    shapes: dict[int, list[tuple[float, float]]] = {
        1: [(-4.2, -4.2), (4.2, -4.2), (4.2, 4.2), (-4.2, 4.2)],
        2: [(0, -5.4), (5, 3.6), (-5, 3.6)],
        3: [(0, -5.6), (5.6, 0), (0, 5.6), (-5.6, 0)],
        4: [(0, 5.4), (5, -3.6), (-5, -3.6)],
    }
    corners = shapes.get(index % 6)
    if corners is None:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.6"/>'
    return f'<polygon points="{" ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)}"/>'


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(text: str, x: float, y: float, anchor: str, kind: str = "label") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
