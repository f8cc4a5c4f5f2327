"""Canvases of matplotlib, for pictures that are no chart over generations with intervals: grids, scatters, maps, laws.

matplotlib is imported when something is drawn. The same data give the same bytes: no dates, fixed ids. Arms differ by
marker and by name as well as by colour.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fortifai_core.charts.palette import FRAME, INK, LINE, NEUTRAL, SOFT, arm_colour, arm_stroke

Floats = NDArray[np.float64]

# Between two names at the ends of curves, as a share of the axes' height.
_GAP = 0.062


def canvas(width: float, height: float, *, clear: bool = False) -> Any:
    """An empty figure of that size in inches; `clear`: on transparent ground, for any paper."""
    from matplotlib.figure import Figure

    ground = {"facecolor": "none", "dpi": 150} if clear else {"dpi": 200}
    return Figure(figsize=(width, height), layout="constrained", **ground)


def panels(width: float, height: float, *, rows: int = 1, columns: int = 1) -> tuple[Any, Any]:
    """A figure of that size in inches with axes for curves: one, or an array of them."""
    figure = canvas(width, height)
    grid = figure.subplots(rows, columns)
    for axes in np.ravel(grid):
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(SOFT)
        axes.grid(color=LINE, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.tick_params(which="both", colors=SOFT, labelsize=8, length=0)
    return figure, grid


def bare(axes: Any) -> None:
    """A frame and nothing else."""
    axes.set_facecolor("none")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(FRAME)
        spine.set_linewidth(0.6)


def plain(axes: Any) -> None:
    """Axes of a chart: a light grid, no box, neutral text."""
    axes.set_facecolor("none")
    axes.grid(color=FRAME, alpha=0.3, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FRAME)
    axes.tick_params(colors=NEUTRAL, labelsize=8)
    for label in (axes.xaxis.label, axes.yaxis.label, axes.title):
        label.set_color(NEUTRAL)


def curve(axes: Any, values: Floats, i: int) -> None:
    """Median with a band of quartiles over replicates (second axis), thinned to what a figure can show."""
    step = max(1, len(values) // 300)
    t = np.arange(0, len(values), step)
    low, middle, high = np.quantile(values[::step], (0.25, 0.5, 0.75), axis=1)
    axes.fill_between(t, low, high, color=arm_colour(i), alpha=0.2, linewidth=0)
    # A few marks, each arm's at other places, tell the arms apart where colours don't.
    every = max(1, len(t) // 6)
    axes.plot(
        t, middle, **arm_stroke(i), linewidth=2.2, zorder=3, markersize=6,
        markeredgecolor="white", markevery=(min(i * every // 6, len(t) - 1), every),
    )  # fmt: skip


def law(axes: Any, predicted: Floats) -> None:
    """The theory's curve, over the measured one."""
    step = max(1, len(predicted) // 300)
    t = np.arange(0, len(predicted), step)
    axes.plot(t, predicted[::step], color=INK, linewidth=1.1, linestyle=(0, (1.2, 2.2)), zorder=4)


def end_labels(axes: Any, entries: list[tuple[str, Floats]], colours: list[int] | None = None) -> None:
    """Each curve's name beside its end, moved apart where ends are close; at the axis' edge where it has left it."""
    low, high = axes.get_ylim()
    transform = axes.transData + axes.transAxes.inverted()
    places: list[tuple[float, str, str]] = []
    for k, (title, values) in enumerate(entries):
        final = float(np.clip(np.median(values[-1]), min(low, high), max(low, high)))
        y = float(transform.transform((0, final))[1])
        places.append((y, title, arm_colour(k if colours is None else colours[k])))
    places.sort()
    heights: list[float] = []
    for y, _, _ in places:
        heights.append(max(y, heights[-1] + _GAP) if heights else y)
    overflow = max(0.0, heights[-1] - 1.0)
    for height, (_, title, colour) in zip(heights, places, strict=True):
        axes.text(
            1.015, height - overflow, title, transform=axes.transAxes, color=colour, va="center", fontweight="bold"
        )


def save(figure: Any, directory: Path, name: str) -> tuple[Path, ...]:
    """Write `name`.svg (on the figure's own ground) and `name`.png (on white), and return their paths."""
    import matplotlib

    directory.mkdir(parents=True, exist_ok=True)
    vector, bitmap = directory / f"{name}.svg", directory / f"{name}.png"
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure.savefig(vector, format="svg", metadata={"Date": None, "Creator": None})
    figure.savefig(bitmap, format="png", facecolor="white", metadata={"Software": None})
    return vector, bitmap


def save_png(figure: Any, path: Path) -> None:
    """One small PNG on white."""
    figure.savefig(path, format="png", dpi=80, facecolor="white", metadata={"Software": None})
