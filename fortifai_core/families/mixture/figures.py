"""Figures of a Gaussian mixture's experiment: the points of each generation, arm by arm, as in the paper's Figure 8."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fortifai_core.charts import canvas
from fortifai_core.charts.palette import CLASSES, NEUTRAL
from fortifai_core.families.base import Arrays, Figure, Results, Run
from fortifai_core.wording import arm_title

COLUMNS = 6
POINTS = 1500  # of a panel: more cannot be told apart
PAPER = (
    "Figure 8 of the paper shows a row of scatter plots of two classes, generation after generation, for a plain "
    "mixture (above) and for one whose most likely samples are dropped (below): the plain one collapses rapidly, the "
    "other keeps the structure of the data for noticeably more generations. Its data and settings are not given."
)


def draw(results: Results, directory: Path) -> list[Figure]:
    """The grid of the first seed: a row an arm, a column a generation, the real data first."""
    seed = min(run.seed for run in results.runs)
    rows = [run for arm in results.arms for run in results.of(arm) if run.seed == seed]
    shown = chosen([g.generation for g in rows[0].generations], COLUMNS)
    figure = canvas.canvas(1.45 * (len(shown) + 1), 1.6 * len(rows) + 0.15, clear=True)
    view = _View(results.real)
    panels = figure.subplots(len(rows), len(shown) + 1, squeeze=False)
    for row, run in zip(panels, rows, strict=True):
        view.scatter(row[0], results.real)
        row[0].set_ylabel(arm_title(run.arm), color=NEUTRAL, fontsize=9)
        _fill(row[1:], run, shown, view)
    panels[0][0].set_title("real data", color=NEUTRAL, fontsize=9)
    for axes, generation in zip(panels[0][1:], shown, strict=True):
        axes.set_title(f"M{generation}", color=NEUTRAL, fontsize=9)
    dimensions = results.real["x"].shape[1]
    how = "" if dimensions == 2 else f" The first two principal components of the real data's {dimensions} columns."
    caption = (
        f"Points that each generation draws, seed {seed}, every panel with the same axes; a class has its colour, "
        f"and a ring is one standard deviation of a component.{how if dimensions > 2 else ''}"
    )
    paths = canvas.save(figure, directory, "gmm-grid")
    return [Figure("gmm-grid", "What each generation draws", caption, paths, paper=PAPER)]


def preview(*, real: Arrays, sample: Arrays, parameters: Arrays, title: str, path: Path) -> None:
    """The real points and what one generation draws, side by side, as a small PNG."""
    figure = canvas.canvas(5.0, 2.6, clear=True)
    view = _View(real)
    left, right = figure.subplots(1, 2)
    view.scatter(left, real)
    view.scatter(right, sample)
    view.rings(right, parameters)
    left.set_title("real data", color=NEUTRAL, fontsize=9)
    right.set_title(title, color=NEUTRAL, fontsize=9)
    canvas.save_png(figure, path)


def chosen(generations: list[int], count: int) -> list[int]:
    """At most `count` of the generations: the first, the last, and between them ever wider apart."""
    if len(generations) <= count:
        return generations
    last = len(generations) - 1
    places = {round(last * (k / (count - 1)) ** 1.6) for k in range(count)}
    fill = iter(i for i in range(last) if i not in places)
    while len(places) < count:
        places.add(next(fill))
    return [generations[i] for i in sorted(places)]


def _fill(panels: Any, run: Run, shown: list[int], view: _View) -> None:
    by_generation = {g.generation: g for g in run.generations}
    for axes, generation in zip(panels, shown, strict=True):
        if generation in by_generation:
            view.scatter(axes, by_generation[generation].sample)
            view.rings(axes, by_generation[generation].parameters)
        else:
            axes.axis("off")  # the run was stopped before


class _View:
    """Where points are shown: the plane of the real data, or that of their first two principal components."""

    def __init__(self, real: Arrays) -> None:
        x = real["x"]
        self.centre = x.mean(axis=0)
        if x.shape[1] == 1:
            self.plane = np.array([[1.0], [0.0]])
        elif x.shape[1] == 2:
            self.plane = np.eye(2)
        else:
            self.plane = np.linalg.svd(x - self.centre, full_matrices=False)[2][:2]
        flat = self.project(x)
        margin = 0.25 * np.ptp(flat, axis=0) + 1e-9
        self.low, self.high = flat.min(axis=0) - margin, flat.max(axis=0) + margin

    def project(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        flat: NDArray[np.float64] = (x - self.centre) @ self.plane.T
        return flat

    def scatter(self, axes: Any, points: Arrays) -> None:
        canvas.bare(axes)
        axes.set_xlim(self.low[0], self.high[0])
        axes.set_ylim(self.low[1], self.high[1])
        flat = self.project(points["x"])
        step = max(1, -(-len(flat) // POINTS))
        colours = [CLASSES[int(label) % 10] for label in points["label"][::step]]
        axes.scatter(*flat[::step].T, s=2.5, c=colours, alpha=0.55, linewidths=0, rasterized=True)

    def rings(self, axes: Any, parameters: Arrays) -> None:
        """One standard deviation of every component."""
        from matplotlib.patches import Ellipse

        for means, covariances in zip(parameters["means"], parameters["covariances"], strict=True):
            for mean, covariance in zip(self.project(means), self.plane @ covariances @ self.plane.T, strict=True):
                values, vectors = np.linalg.eigh(covariance)
                width, height = 2 * np.sqrt(np.maximum(values[::-1], 0))
                angle = np.degrees(np.arctan2(vectors[1, 1], vectors[0, 1]))
                ring = Ellipse((mean[0], mean[1]), width, height, angle=angle, fill=False, lw=0.5, ec=NEUTRAL)
                axes.add_patch(ring)
