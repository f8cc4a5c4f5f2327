"""The colours and strokes of every chart and figure, once: as CSS variables, and as plain values on light paper.

Arms differ by marker shape too, from the seventh on by dashes: for print, and for eyes that see colours otherwise.
"""

from __future__ import annotations

ARMS = (
    "#b5482a", "#2458a6", "#3b7d4f", "#8a5a9e", "#a67c1a", "#3a7c8c",
    "#c2417a", "#6f7f2c", "#6a5acd", "#7a4a2b", "#5f6b76", "#cf6a10",
)  # fmt: skip
ARMS_DARK = (
    "#f0916e", "#8ab4f8", "#86cc9a", "#cfa5e0", "#e0bd62", "#7cc7d6",
    "#f28cb8", "#b9c66b", "#b0a8ff", "#c9a07c", "#a9b5c1", "#ffb765",
)  # fmt: skip
SHAPES = 6  # of markers; as many arms are drawn without dashes
MARKERS = "os^DvP"  # matplotlib's
# For the classes of a data set.
CLASSES = (
    "#2f6fc4", "#d0662f", "#3f9a63", "#9a63b8", "#b58a1f", "#3d93a6", "#c2517f", "#6f7f2c", "#5a6bd0", "#8b6a4e",
)  # fmt: skip
LIGHT = {
    "paper": "#fdfcfa", "ink": "#22201d", "soft": "#6a655d", "line": "#e4dfd6", "band": ".13", "mark": "#f6e7b8",
    "wrong": "#c22017", **{f"s{i}": colour for i, colour in enumerate(ARMS)},
}  # fmt: skip
DARK = {
    "paper": "#191817", "ink": "#eceae5", "soft": "#a29c92", "line": "#383531", "band": ".2", "mark": "#4a421f",
    "wrong": "#ff8f85", **{f"s{i}": colour for i, colour in enumerate(ARMS_DARK)},
}  # fmt: skip
# For pictures on transparent ground, legible on white and on black.
NEUTRAL, FRAME = "#7a746b", "#a8a196"
INK, SOFT, LINE = LIGHT["ink"], LIGHT["soft"], LIGHT["line"]
DEPTHS = 6  # of an arm's colour, in a survival strip

# How the pieces of a drawn chart look, by class; the later wins. `--c` is the colour of the arm.
STYLES: dict[str, dict[str, str]] = {
    "label": {"fill": "var(--soft)"},
    "paper": {"fill": "var(--paper)"},
    "name": {"fill": "var(--c)", "font-weight": "600"},
    "grid": {"stroke": "var(--line)", "stroke-width": "1"},
    "rule": {"stroke": "var(--ink)", "stroke-width": "1", "stroke-dasharray": "5 4", "opacity": ".7"},
    "zero": {"stroke": "var(--ink)", "stroke-width": "1"},
    "band": {"fill": "var(--c)", "opacity": "var(--band)"},
    "curve": {"fill": "none", "stroke": "var(--c)", "stroke-width": "2.25", "stroke-linejoin": "round"},
    "whisker": {"stroke": "var(--c)", "stroke-width": "2"},
    "mark": {"fill": "var(--c)", "stroke": "var(--paper)", "stroke-width": "1.5"},
    "drop": {"stroke": "var(--c)", "stroke-width": "1.25", "stroke-dasharray": "1.5 3"},
    "ring": {"fill": "var(--paper)", "stroke": "var(--c)", "stroke-width": "2"},
    "when": {
        "fill": "var(--c)", "font-weight": "600", "paint-order": "stroke", "stroke": "var(--paper)",
        "stroke-width": "4px",
    },
    "later": {"stroke-dasharray": "9 3"},  # a curve of an arm whose shape an earlier one has
    "step": {"fill": "none", "stroke-width": "2", "stroke-linejoin": "round"},
    "base": {"stroke": "var(--soft)", "stroke-dasharray": "2 3"},
    "first": {"stroke": "var(--c)", "stroke-width": "1.25", "opacity": ".7"},
    "last": {"stroke": "var(--c)", "stroke-width": "2.5"},
    "wrong": {"fill": "var(--line)", "opacity": ".75"},
    "collapsed": {"fill": "var(--wrong)"},
    "sound": {"fill": "var(--s2)"},
    "untold": {"fill": "var(--paper)", "stroke": "var(--soft)", "stroke-width": "1.5"},
    "right": {"fill": "var(--c)"},
    **{f"d{i}": {"opacity": f"{i / DEPTHS:.2f}"} for i in range(1, DEPTHS + 1)},
}  # fmt: skip


def arm_colour(place: int) -> str:
    """The colour of an arm by its place, on light paper; ink for what is no arm."""
    return INK if place < 0 else ARMS[place % len(ARMS)]


def arm_class(place: int) -> str:
    """The class that gives a piece of a chart the colour of an arm."""
    return f"c{place % len(ARMS)}"


def curve_class(place: int) -> str:
    """The classes of an arm's curve."""
    return f"curve {'' if _is_first(place) else 'later '}{arm_class(place)}"


def arm_stroke(place: int) -> dict[str, str]:
    """How matplotlib draws an arm's curve: colour, marker and dashes."""
    dashes = "-" if _is_first(place) else "--"
    return {"color": arm_colour(place), "marker": MARKERS[place % SHAPES], "linestyle": dashes}


def _is_first(place: int) -> bool:
    return place % len(ARMS) < SHAPES


def _css(style: dict[str, str]) -> str:
    return ";".join(f"{name}:{value}" for name, value in style.items())


def _variables(colours: dict[str, str]) -> str:
    return ":root{" + _css({f"--{name}": value for name, value in colours.items()}) + "}"


PALETTE = _variables(LIGHT) + "@media screen and (prefers-color-scheme:dark){" + _variables(DARK) + "}"
CHART_CSS = (
    "".join(f".c{i}{{--c:var(--s{i})}}" for i in range(len(ARMS)))
    + ".chart{display:block;width:100%;height:auto;font:12px system-ui,-apple-system,'Segoe UI',Roboto,"
    "'Helvetica Neue',Arial,sans-serif;font-variant-numeric:tabular-nums}"
    + "".join(f".chart .{name}{{{_css(style)}}}" for name, style in STYLES.items())
)
