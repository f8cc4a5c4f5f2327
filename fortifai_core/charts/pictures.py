"""What the families' figures share: canvases of matplotlib that read well on light and dark paper, and their files.

matplotlib is imported when a function is called. The same data give the same bytes: no dates, fixed ids.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fortifai_core.charts.svg import COLOURS_LIGHT

INK = "#7a746b"  # text and frames, legible on white and on black
FRAME = "#a8a196"
# For the classes of a data set; the arms have the report's own colours.
CLASS_COLOURS = (
    "#2f6fc4",
    "#d0662f",
    "#3f9a63",
    "#9a63b8",
    "#b58a1f",
    "#3d93a6",
    "#c2517f",
    "#6f7f2c",
    "#5a6bd0",
    "#8b6a4e",
)
ARM_COLOURS = COLOURS_LIGHT


def canvas(width: float, height: float) -> Any:
    """An empty figure of that size in inches, laid out by matplotlib, on transparent ground."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=150, layout="constrained", facecolor="none")


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
    axes.tick_params(colors=INK, labelsize=8)
    for label in (axes.xaxis.label, axes.yaxis.label, axes.title):
        label.set_color(INK)


def save(figure: Any, directory: Path, name: str) -> tuple[Path, ...]:
    """Write `name`.svg (transparent) and `name`.png (on white) and return their paths."""
    import matplotlib

    directory.mkdir(parents=True, exist_ok=True)
    vector, bitmap = directory / f"{name}.svg", directory / f"{name}.png"
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure.savefig(vector, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    figure.savefig(bitmap, format="png", facecolor="white", metadata={"Software": None})
    return vector, bitmap


def save_png(figure: Any, path: Path) -> None:
    """One small PNG on white."""
    figure.savefig(path, format="png", dpi=80, facecolor="white", metadata={"Software": None})
