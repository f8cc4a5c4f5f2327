"""The same drawings for slides: what `svg` wrote is painted on white, so that nothing is laid out a second time.

matplotlib paints, and brings its letters with it; it is imported when something is painted.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from fortifai_core.charts.palette import LIGHT, STYLES
from fortifai_core.outside import line

SCALE = 2.5  # pixels for each unit of a drawing
_TITLE, _TITLE_LINE, _TITLE_LETTER = 34.0, 17.0, 6.8  # of one line; of each further one; width of its mean letter
_CAPTION, _LETTERS = 20.0, 11.0
_BOX = re.compile(r"M(\S+) (\S+?)h([\d.]+)v([\d.]+)h-")
_ANCHORS = {"start": "left", "middle": "center", "end": "right"}


def png(drawings: Sequence[tuple[str, str]], path: Path, *, title: str) -> None:
    """Paint drawings one above the other.

    Args:
        drawings: (what stands over it, an SVG of `svg.element` as a file of its own).
        title: over all of them, in as many lines as it needs.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    roots = [(caption, ElementTree.fromstring(drawing)) for caption, drawing in drawings]
    width = max(float(root.attrib["width"]) for _, root in roots)
    titles = textwrap.wrap(line(title), max(10, int((width - 24) / _TITLE_LETTER)))
    head = _TITLE + _TITLE_LINE * (len(titles) - 1)
    height = head + sum(float(root.attrib["height"]) + (_CAPTION if caption else 0) for caption, root in roots)
    figure = Figure(figsize=(width / 72, height / 72), dpi=72 * SCALE)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    for k, words in enumerate(titles):
        axes.text(12, 22 + k * _TITLE_LINE, words, fontsize=13, color=LIGHT["ink"], parse_math=False)
    top = head
    for caption, root in roots:
        if caption:
            words = line(caption)
            axes.text(12, top + 12, words, fontsize=_LETTERS, color=LIGHT["ink"], fontweight="bold", parse_math=False)
            top += _CAPTION
        _paint(axes, root, {}, top)
        top += float(root.attrib["height"])
    FigureCanvasAgg(figure).print_png(path, metadata={"Software": None})


def _paint(axes: Any, element: ElementTree.Element, inherited: dict[str, str], top: float) -> None:
    from matplotlib.patches import Circle, Polygon, Rectangle
    from matplotlib.patheffects import withStroke

    style = {**inherited, **_style(element.get("class", ""))}
    filled: dict[str, Any] = {
        "facecolor": style.get("fill", "none"),
        "edgecolor": style.get("stroke", "none"),
        "linewidth": float(style.get("stroke-width", "0").removesuffix("px")),
        "alpha": float(style.get("opacity", "1")),
    }

    def at(name: str) -> float:
        return float(element.get(name, "0"))

    match element.tag.rpartition("}")[2]:
        case "line":
            _stroke(axes, [(at("x1"), at("y1") + top), (at("x2"), at("y2") + top)], style)
        case "polyline":
            _stroke(axes, _corners(element, top), style)
        case "polygon":
            axes.add_patch(Polygon(_corners(element, top), **filled, zorder=2))
        case "circle":
            axes.add_patch(Circle((at("cx"), at("cy") + top), at("r"), **filled, zorder=2))
        case "path":
            for x, y, wide, high in _BOX.findall(element.get("d", "")):
                axes.add_patch(Rectangle((float(x), float(y) + top), float(wide), float(high), **filled, zorder=2))
        case "text":
            words = axes.text(at("x"), at("y") + top, element.text or "", fontsize=_LETTERS, zorder=3, parse_math=False)
            words.set(color=style.get("fill", LIGHT["ink"]), ha=_ANCHORS[element.get("text-anchor", "start")])
            words.set(fontweight="bold" if "font-weight" in style else "normal")
            if "paint-order" in style:
                words.set_path_effects([withStroke(linewidth=filled["linewidth"], foreground=style["stroke"])])
    for child in element:
        _paint(axes, child, style if element.tag.endswith("}g") else {}, top)


def _stroke(axes: Any, corners: list[tuple[float, float]], style: dict[str, str]) -> None:
    wide = float(style.get("stroke-width", "1"))
    dashes = [float(length) / wide for length in style.get("stroke-dasharray", "").split()]
    axes.plot(
        *zip(*corners, strict=True), color=style["stroke"], linewidth=wide, alpha=float(style.get("opacity", "1")),
        linestyle=(0, dashes) if dashes else "-", zorder=2,
    )  # fmt: skip


def _corners(element: ElementTree.Element, top: float) -> list[tuple[float, float]]:
    pairs = (pair.split(",") for pair in element.get("points", "").split())
    return [(float(x), float(y) + top) for x, y in pairs]


def _style(classes: str) -> dict[str, str]:
    """What the classes of an element come to on light paper."""
    names = classes.split()
    arm = next((name[1:] for name in names if re.fullmatch(r"c\d+", name)), None)
    colours = {**LIGHT, "c": LIGHT[f"s{arm}"] if arm else LIGHT["soft"]}
    style = {name: value for kind, rules in STYLES.items() if kind in names for name, value in rules.items()}
    return {name: re.sub(r"var\(--(\w+)\)", lambda found: colours[found[1]], value) for name, value in style.items()}
