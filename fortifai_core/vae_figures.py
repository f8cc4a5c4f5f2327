"""Figures of the VAE's recursive training: image grids, measures by generation, histograms of confidence."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fortifai_core.families import Figure, Results, Run
from fortifai_core.report_figures import COLOURS_LIGHT

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas
    from numpy.typing import NDArray

INK, SOFT, LINE, PAPER = "#22201d", "#6a655d", "#e4dfd6", "#fdfcfa"
MARKERS = "os^DvP"
COLUMNS = 10
_PAPER_FIGURE = (
    "The paper's Figure 9 shows images of its VAEs over the generations: with the plain objective all digits converge "
    "to one shape, with dynamic clipping each keeps its own."
)
# Measure, title, whether the axis begins at 0.
PANELS = (
    ("frechet", "Fréchet distance to real digits\n(classifier's features; lower is better)", True),
    ("recall", "Recall: real digits that\nthe samples still cover", True),
    ("precision", "Precision: samples that\nlie among real digits", True),
    ("class-entropy", "Entropy of the classes produced\n(1: all ten alike)", True),
    ("pixel-spread", "Variance of the samples' pixels,\nas a share of the real ones'", True),
    ("reconstruction-accuracy", "Real test digits still read right\nafter encoding and decoding", True),
    ("elbo", "ELBO of real test digits,\nnothing masked (nats an image)", False),
    ("live-fraction", "Pixels left in the loss\n(last epoch)", True),
)


def arm_title(label: str) -> str:
    """An arm's label in words."""
    if label == "elbo":
        return "ELBO"
    for prefix, words in (("tce-", "Clipped, γ = "), ("dynamic-q", "Dynamic, quantile ")):
        if label.startswith(prefix):
            return words + label.removeprefix(prefix)
    return {"dynamic-crossing": "Dynamic, two Gaussians"}.get(label, label)


def draw(results: Results, directory: Path) -> list[Figure]:
    """All figures, each as .svg and .png in `directory`. The grids show the first seed's runs, nothing selected."""
    directory.mkdir(parents=True, exist_ok=True)
    figures = []
    seed = min(run.seed for run in results.runs)
    shown = [next(run for run in results.of(arm) if run.seed == seed) for arm in results.arms if results.of(arm)]
    if all(generation.sample for run in shown for generation in run.generations):
        caption = f"The first {COLUMNS} images that each generation makes, unselected (seed {seed}); above, real ones."
        canvas = _grids(shown, results.real["pixels"][:COLUMNS], _sampled)
        paths = _save(canvas, directory, "vae-samples")
        figures.append(Figure("vae-samples", "What each generation makes", caption, paths, _PAPER_FIGURE))
    if all(generation.parameters for run in shown for generation in run.generations):
        first = [int(np.flatnonzero(results.real["label"] == c)[0]) for c in np.unique(results.real["label"])]
        real = results.real["pixels"][first[:COLUMNS]]
        caption = (
            "The same real training digits, one of each class (top row), encoded and decoded by each model "
            f"(seed {seed}). After M0 no model has seen a real image."
        )
        canvas = _grids(shown, real, _reconstructed(results, real))
        paths = _save(canvas, directory, "vae-reconstructions")
        title = "What is left of ten real digits"
        figures.append(Figure("vae-reconstructions", title, caption, paths, _PAPER_FIGURE))
        caption = (
            "p(x|z) of the pixels that each generation's model was trained on, after its last epoch (all seeds "
            "together): M0 in outline, the last generation filled. The dashed line is the threshold of the last "
            "generation's last epoch, mean of the seeds: pixels to the right of it are masked."
        )
        paths = _save(_confidences(results), directory, "vae-confidence")
        figures.append(Figure("vae-confidence", "How sure the models are of their pixels", caption, paths))
    seeds = len({run.seed for run in results.runs})
    spread = f"lines: mean of {seeds} seeds, bands: their range" if seeds > 1 else f"one seed, {seed}"
    paths = _save(_measures(results), directory, "vae-measures")
    figures.append(Figure("vae-measures", "Measures by generation", f"Each generation's measures; {spread}.", paths))
    return figures


def _canvas(width: float, height: float) -> Canvas:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(width, height), dpi=150, facecolor=PAPER, layout="constrained")
    FigureCanvasAgg(canvas)
    return canvas


def _save(canvas: Canvas, directory: Path, name: str) -> tuple[Path, ...]:
    import matplotlib as mpl

    svg, png = directory / f"{name}.svg", directory / f"{name}.png"
    # No date and no random ids: the same results give the same bytes.
    with mpl.rc_context({"svg.hashsalt": name, "svg.fonttype": "path"}):
        canvas.savefig(svg, metadata={"Date": None})
        canvas.savefig(png)
    return svg, png


# ------------------------------------------------------------------------------------------------ image grids


def _sampled(run: Run, index: int) -> NDArray[Any]:
    return run.generations[index].sample["pixels"][:COLUMNS]


def _reconstructed(results: Results, real: NDArray[Any]) -> Callable[[Run, int], NDArray[Any]]:
    import torch

    from fortifai_core.vae_config import VaeConfig
    from fortifai_core.vae_data import to_images, to_pixels
    from fortifai_core.vae_model import from_arrays, one_thread

    assert isinstance(results.config, VaeConfig)
    config = results.config

    def pictures(run: Run, index: int) -> NDArray[Any]:
        model = from_arrays(config, run.generations[index].parameters)
        with one_thread(), torch.inference_mode():
            mean, _ = model.encode(to_images({"pixels": real}))
            return to_pixels(model.decode(mean).sigmoid())

    return pictures


def _mosaic(rows: list[NDArray[Any]], gap: int) -> NDArray[Any]:
    """Rows of (n, side, side) uint8, ink on paper, as one picture in [0, 1] with NaN between the images."""
    side = rows[0].shape[-1]
    step = side + gap
    picture = np.full((len(rows) * step - gap, max(len(row) for row in rows) * step - gap), np.nan)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            picture[i * step : i * step + side, j * step : j * step + side] = image / 255
    return picture


def _grids(shown: list[Run], real: NDArray[Any], pictures: Callable[[Run, int], NDArray[Any]]) -> Canvas:
    """A block for each arm; rows: real images, then the generations."""
    across = min(3, len(shown))
    down = -(-len(shown) // across)
    rows = 1 + max(len(run.generations) for run in shown)
    canvas = _canvas(4.2 * across, down * (0.4 * rows + 0.5))
    for place, axes in enumerate(canvas.subplots(down, across, squeeze=False).flat):
        axes.set_axis_off()
        if place >= len(shown):
            continue
        run = shown[place]
        gap = max(1, real.shape[-1] // 8)
        # One empty row sets the real images apart.
        mosaic = _mosaic([real, *(pictures(run, i) for i in range(len(run.generations)))], gap)
        step = real.shape[-1] + gap
        mosaic = np.insert(mosaic, [step - gap] * gap, np.nan, axis=0)
        axes.imshow(mosaic, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
        colour = COLOURS_LIGHT[place % 6]
        axes.set_title(arm_title(run.arm), color=colour, fontsize=12, fontweight="bold", loc="left")
        names = ["real", *(f"M{generation.generation}" for generation in run.generations)]
        for i, name in enumerate(names):
            at = i * step + (gap if i else 0) + (step - gap) / 2
            axes.text(-gap, at, name, ha="right", va="center", fontsize=8, color=SOFT)
    return canvas


# ------------------------------------------------------------------------------------------------ curves


def _measures(results: Results) -> Canvas:
    from matplotlib.ticker import MaxNLocator

    across = 4
    down = -(-len(PANELS) // across)
    canvas = _canvas(3.3 * across, 2.75 * down + 0.4)
    panels = canvas.subplots(down, across, squeeze=False)
    for (name, title, from_zero), axes in zip(PANELS, panels.flat, strict=True):
        _style(axes, title)
        for place, arm in enumerate(results.arms):
            _curve(axes, results.of(arm), name, place)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.xaxis.set_major_formatter(lambda value, _: f"M{value:.0f}")
        if from_zero:
            axes.set_ylim(bottom=0)
    if all("frechet-floor" in run.generations[0].metrics for run in results.runs):
        floor = results.runs[0].generations[0].metrics["frechet-floor"]
        panels[0, 0].axhline(floor, color=INK, linewidth=1, linestyle=(0, (5, 4)), alpha=0.7)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside upper left", ncols=len(labels), frameon=False, labelcolor="linecolor")
    return canvas


def _curve(axes: Axes, runs: tuple[Run, ...], name: str, place: int) -> None:
    """Mean over the seeds and their range, where every seed has the generation and the measure."""
    length = min((len(run.generations) for run in runs), default=0)
    values = np.array([[g.metrics.get(name, np.nan) for g in run.generations[:length]] for run in runs])
    if not values.size or np.isnan(values).all():
        return
    x = [generation.generation for generation in runs[0].generations[:length]]
    colour = COLOURS_LIGHT[place % 6]
    mean = values.mean(axis=0)
    marker = MARKERS[place % 6]
    label = arm_title(runs[0].arm)
    axes.plot(x, mean, color=colour, marker=marker, markersize=5, markeredgecolor=PAPER, linewidth=2, label=label)
    if len(runs) > 1:
        axes.fill_between(x, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.13, linewidth=0)


def _style(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=9.5, color=INK)
    axes.set_facecolor(PAPER)
    axes.grid(axis="y", color=LINE)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(LINE)
    axes.tick_params(length=0, labelsize=8, labelcolor=SOFT)


# ------------------------------------------------------------------------------------------------ confidence


def _confidences(results: Results) -> Canvas:
    arms = [arm for arm in results.arms if results.of(arm)]
    canvas = _canvas(3.4 * len(arms), 2.9)
    for place, (arm, axes) in enumerate(zip(arms, canvas.subplots(1, len(arms), squeeze=False).flat, strict=True)):
        colour = COLOURS_LIGHT[results.arms.index(arm) % 6]
        _style(axes, "")
        axes.set_title(arm_title(arm), loc="left", fontsize=11, color=colour, fontweight="bold")
        runs = results.of(arm)
        for index in (0, -1):
            counts = np.sum([run.generations[index].parameters["trace/confidence"] for run in runs], axis=0)
            edges = np.linspace(0, 1, len(counts) + 1)
            name = f"M{runs[0].generations[index].generation}"
            look: dict[str, Any] = (
                {"fill": True, "color": colour, "alpha": 0.35} if index else {"color": colour, "linewidth": 1.5}
            )
            axes.stairs(100 * counts / counts.sum(), edges, label=name, **look)
        gamma = float(np.mean([run.generations[-1].parameters["trace/gamma"][-1] for run in runs]))
        if gamma < 1:
            axes.axvline(gamma, color=INK, linewidth=1, linestyle=(0, (5, 4)))
            axes.annotate(
                f"γ = {gamma:.3g}",
                (gamma, 0.97),
                (-4, 0),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                ha="right",
                va="top",
                fontsize=9,
                color=INK,
            )
        axes.set_yscale("log")
        axes.set_xlabel("p(x|z)", fontsize=9, color=SOFT)
        if not place:
            axes.set_ylabel("% of pixels", fontsize=9, color=SOFT)
        axes.legend(loc="upper left", frameon=False, fontsize=8.5)
    return canvas
