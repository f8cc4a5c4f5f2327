"""A chart as SVG, written by hand so that it follows the page's theme and shows exact numbers on hovering."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from fortifai_core.charts.chart import Chart, Point, Series
from fortifai_core.charts.palette import CHART_CSS, PALETTE, SHAPES, arm_class, curve_class
from fortifai_core.outside import xml

_LINE = 22  # the height of a line of words below a chart
LETTER = 7.2  # the width of one, bold
MARKED = 40  # points of a curve, above which it is drawn without marks
BANDS = 6  # more of them cover each other


def svg(chart: Chart, *, width: int, height: int, standalone: bool = False) -> str:
    """The chart as an SVG element; `standalone` makes it a file that follows the viewer's theme."""
    if chart.empty:
        return ""
    plot = _Plot(chart, width, height)
    parts = plot.axes()
    if chart.style == "curve":
        # All bands lie beneath all curves, or the last arm's band would dull the others.
        for series in chart.series if len(chart.series) <= BANDS else chart.series[:1]:
            parts += plot.band(series)
    for series in chart.series:
        parts += plot.curve(series) if chart.style == "curve" else plot.dots(series)
    parts += plot.crossings() + plot.names()
    return element("chart", parts, title=chart.title, width=width, height=height, standalone=standalone)


def element(
    kind: str, parts: Iterable[str], *, title: str, width: float, height: float, standalone: bool = False
) -> str:
    """An SVG element of these parts. `standalone`: a file of its own, with its styles and its ground."""
    size, ground = "", ""
    if standalone:
        size = f' xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}"'
        ground = f'<style>{PALETTE}{CHART_CSS}</style><rect class="paper" width="{width:g}" height="{height:g}"/>'
    head = f'<svg class="{kind}"{size} viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{xml(title)}">'
    return head + ground + "".join(parts) + "</svg>"


def with_line(drawing: str, words: str) -> str:
    """A file that `element` made, with a line of words below."""
    height = float(re.findall(r'^<svg [^>]* height="([\d.]+)"', drawing)[0])
    old, new = f"{height:g}", f"{height + _LINE:g}"
    head, ground, parts = re.split(r"(<style>.*?</style><rect [^>]*>)", drawing, maxsplit=1, flags=re.DOTALL)
    head = head.replace(f' height="{old}"', f' height="{new}"').replace(f' {old}" role=', f' {new}" role=')
    ground = ground.replace(f' height="{old}"', f' height="{new}"')
    return head + ground + parts.removesuffix("</svg>") + text(words, 14, height + _LINE - 8) + "</svg>"


class _Plot:
    """Scales and pieces of one chart."""

    def __init__(self, chart: Chart, width: int, height: int) -> None:
        self.chart = chart
        longest = max(len(series.title) for series in chart.series)
        self.right = width - 16.0 - min(LETTER * longest, width / 3)
        self.top, self.bottom = 14.0, height - 28.0
        points = [point for series in chart.series for point in series.points]
        self.first, self.last = chart.first, chart.last
        values = [v for p in points for v in (p.y, *(p.interval or ()))] + ([chart.rule[0]] if chart.rule else [])
        low = min(values + ([chart.floor] if chart.floor is not None else []))
        high = max(values + ([chart.ceiling] if chart.ceiling is not None else []))
        self.step = _step(high - low, most=max(4, height // 60))
        self.low = math.floor(low / self.step + 1e-9) * self.step
        self.high = max(math.ceil(high / self.step - 1e-9) * self.step, self.low + self.step)
        ticks = round((self.high - self.low) / self.step) + 1
        self.ticks = {value: self.number(value) for value in (self.low + i * self.step for i in range(ticks))}
        self.left = max(44.0, 10.0 + LETTER * max(map(len, self.ticks.values())))
        self.inset = 22.0 if chart.style == "dots" else 8.0

    def x(self, value: float) -> float:
        start, end = self.left + self.inset, self.right - self.inset
        return round(start + (end - start) * (value - self.first) / (self.last - self.first), 1)

    def y(self, value: float) -> float:
        return round(self.bottom - (self.bottom - self.top) * (value - self.low) / (self.high - self.low), 1)

    def number(self, value: float) -> str:
        digits = max(0, -math.floor(math.log10(self.step) + 1e-9))
        written = f"{abs(value):,.{digits}f}"
        zero = not written.strip("0.,")
        sign = "−" if value < 0 and not zero else "+" if self.chart.signed and not zero else ""
        return f"{sign}{written}{self.chart.unit}"

    def axes(self) -> list[str]:
        parts = []
        for value, written in self.ticks.items():
            kind = "zero" if self.chart.signed and abs(value) < self.step / 2 else "grid"
            parts.append(line(kind, self.left, self.y(value), self.right, self.y(value)))
            parts.append(text(written, self.left - 8, self.y(value) + 4, "end"))
        room = max(34.0, LETTER * (len(str(self.last)) + 2))
        every = max(1, round(_step(self.last - self.first, most=max(1, int((self.right - self.left) / room)))))
        for generation in [*range(self.first, 0), *range(0, self.last + 1, every)]:
            parts.append(text(f"M{generation}".replace("-", "−"), self.x(generation), self.bottom + 20, "middle"))
        if self.chart.rule:
            at, label = self.chart.rule
            parts.append(line("rule", self.left, self.y(at), self.right, self.y(at)))
            parts.append(text(label, self.right - 4, self.y(at) - 6, "end"))
        return parts

    def band(self, series: Series) -> list[str]:
        bands = [(p.x, *p.interval) for p in series.points if p.interval]
        if len(bands) < 2:
            return []
        edge = [f"{self.x(x)},{self.y(high)}" for x, _, high in bands]
        edge += [f"{self.x(x)},{self.y(low)}" for x, low, _ in reversed(bands)]
        return [f'<polygon class="band {arm_class(series.colour)}" points="{" ".join(edge)}"/>']

    def curve(self, series: Series) -> list[str]:
        corners = " ".join(f"{self.x(p.x)},{self.y(p.y)}" for p in series.points)
        path = f'<polyline class="{curve_class(series.colour)}" points="{corners}"/>'
        if not self.chart.marks or len(series.points) > MARKED:
            return [path]
        return [path] + [self.mark(series, p, self.x(p.x)) for p in series.points]

    def dots(self, series: Series) -> list[str]:
        order = [drawn.colour for drawn in self.chart.series].index(series.colour)
        shift = (order - (len(self.chart.series) - 1) / 2) * min(12, 36 / len(self.chart.series))
        parts = []
        for p in series.points:
            if p.interval:
                at, (low, high) = self.x(p.x) + shift, p.interval
                parts.append(line(f"whisker {arm_class(series.colour)}", at, self.y(low), at, self.y(high)))
            parts.append(self.mark(series, p, self.x(p.x) + shift))
        return parts

    def mark(self, series: Series, p: Point, x: float) -> str:
        """The arm's shape; the exact numbers appear on hovering."""
        tip = f"{series.title}, M{p.x:g}: {p.y:.4g}{self.chart.unit}"
        if p.interval:
            tip += f" ({p.interval[0]:.4g} to {p.interval[1]:.4g})"
        shape = _shape(series.colour, x, self.y(p.y))
        return f'<g class="mark {arm_class(series.colour)}"><title>{xml(tip)}</title>{shape}</g>'

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
            colour = f"{arm_class(series.colour)}"
            drops.append(line(f"drop {colour}", x, at, x, self.bottom))
            drops.append(f'<circle class="ring {colour}" cx="{x}" cy="{at}" r="4.5"/>')
            labels.append(text(f"{series.crossing:.2f}", x, label_y, "middle", f"when {colour}"))
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
            text(series.title, self.right + 6, y - overflow + 4, "start", f"name {arm_class(series.colour)}")
            for y, series in places
        ]


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
        5: [(-1.9, -5.2), (1.9, -5.2), (1.9, -1.9), (5.2, -1.9), (5.2, 1.9), (1.9, 1.9),
            (1.9, 5.2), (-1.9, 5.2), (-1.9, 1.9), (-5.2, 1.9), (-5.2, -1.9), (-1.9, -1.9)],
    }  # fmt: skip
    corners = shapes.get(index % SHAPES)
    if corners is None:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.6"/>'
    return f'<polygon points="{" ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)}"/>'


def line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def text(words: str, x: float, y: float, anchor: str = "start", kind: str = "label") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{xml(words)}</text>'
