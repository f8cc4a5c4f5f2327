"""Figures of the VAE and of the diffusion model: image grids, and histograms of confidence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fortifai_core.charts.canvas import canvas, plain, save, save_png
from fortifai_core.charts.palette import NEUTRAL, arm_colour
from fortifai_core.families.base import Arrays, Figure, Results, Run
from fortifai_core.families.images.config import VaeConfig
from fortifai_core.wording import arm_title

COLUMNS = 10
PAPER = (
    "The paper's Figure 9 shows images of its VAEs over the generations: with the plain objective all digits converge "
    "to one shape, with dynamic clipping each keeps its own."
)


def draw(results: Results, directory: Path) -> list[Figure]:
    """All figures, as .svg and .png in `directory`. Images are of one seed, the first ones made, nothing selected."""
    drawn = [run for run in results.runs if run.generations and run.generations[0].sample]
    figures, kind = [], results.config.type
    if drawn:
        seed = drawn[0].seed
        shown = [run for arm in results.arms for run in results.of(arm) if run.seed == seed]
        places = [results.arms.index(run.arm) for run in shown]
        real = results.real["pixels"][:COLUMNS]
        caption = f"The first {COLUMNS} images that each generation makes (seed {seed}), below real ones."
        paths = save(_grids(shown, places, real, _sampled), directory, f"{kind}-samples")
        paper = PAPER if isinstance(results.config, VaeConfig) else ""
        figures.append(Figure(f"{kind}-samples", "What each generation makes", caption, paths, paper=paper))
        if isinstance(results.config, VaeConfig):
            figures += _of_the_models(results, results.config, shown, places, directory)
    return figures


def _of_the_models(
    results: Results, config: VaeConfig, shown: list[Run], places: list[int], directory: Path
) -> list[Figure]:
    """What a VAE shows beside its samples: digits encoded and decoded, and how sure it is of pixels."""
    seed, labels = shown[0].seed, results.real["label"]
    real = results.real["pixels"][[int(np.flatnonzero(labels == c)[0]) for c in np.unique(labels)][:COLUMNS]]
    caption = f"The same ten real training digits (top row), encoded and decoded by each model (seed {seed})."
    paths = save(_grids(shown, places, real, _reconstructed(config, real)), directory, "vae-kept")
    kept = Figure("vae-kept", "What the models make of ten real digits", caption, paths, paper=PAPER)
    caption = (
        "p(x|z) of the pixels on which M0 (outline) and the last model (filled) were trained, after the last epoch "
        f"(seed {seed}). Dashed: the threshold in the last model's last epoch; what lies right of it is masked."
    )
    paths = save(_confidences(shown, places), directory, "vae-confidence")
    return [kept, Figure("vae-confidence", "How sure the models are of their pixels", caption, paths)]


def preview(*, real: Arrays, sample: Arrays, parameters: Arrays, title: str, path: Path) -> None:
    """Forty real images and forty of one generation, side by side, as a small PNG."""
    figure = canvas(5.0, 2.3, clear=True)
    for axes, images, name in zip(figure.subplots(1, 2), (real, sample), ("real", title), strict=True):
        rows = [images["pixels"][start : start + 8] for start in range(0, 40, 8)]
        _show(axes, _mosaic(rows, max(1, rows[0].shape[-1] // 8)))
        axes.set_title(name, color=NEUTRAL, fontsize=9)
    save_png(figure, path)


def _sampled(run: Run, index: int) -> NDArray[Any]:
    return run.generations[index].sample["pixels"][:COLUMNS]


def _reconstructed(config: VaeConfig, real: NDArray[Any]) -> Callable[[Run, int], NDArray[Any]]:
    import torch

    from fortifai_core.families.images.data import to_images, to_pixels
    from fortifai_core.families.images.vae_model import from_arrays, one_thread

    def images(run: Run, index: int) -> NDArray[Any]:
        model = from_arrays(config, run.generations[index].parameters)
        with one_thread(), torch.inference_mode():
            mean, _ = model.encode(to_images({"pixels": real}))
            return to_pixels(model.decode(mean).sigmoid())

    return images


def _mosaic(rows: list[NDArray[Any]], gap: int) -> NDArray[Any]:
    """Rows of (n, side, side) uint8 as one picture in [0, 1], NaN between the images."""
    side = rows[0].shape[-1]
    step = side + gap
    picture = np.full((len(rows) * step - gap, max(len(row) for row in rows) * step - gap), np.nan)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            picture[i * step : i * step + side, j * step : j * step + side] = image / 255
    return picture


def _show(axes: Any, mosaic: NDArray[Any]) -> None:
    axes.set_axis_off()
    axes.imshow(mosaic, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")


def _grids(shown: list[Run], places: list[int], real: NDArray[Any], images: Callable[[Run, int], NDArray[Any]]) -> Any:
    """A block for each arm; rows: real images, then the generations."""
    across = min(4, len(shown))
    down = -(-len(shown) // across)
    rows = 1 + max(len(run.generations) for run in shown)
    figure = canvas(3.3 * across, down * (0.284 * rows + 0.4), clear=True)
    panels = figure.subplots(down, across, squeeze=False).flat
    side = real.shape[-1]
    gap = max(1, side // 8)
    for axes in panels:
        axes.set_axis_off()
    for place, run, axes in zip(places, shown, figure.axes, strict=False):
        mosaic = _mosaic([real, *(images(run, i) for i in range(len(run.generations)))], gap)
        # A wider gap sets the real images apart.
        _show(axes, np.insert(mosaic, [side] * 2 * gap, np.nan, axis=0))
        axes.set_title(arm_title(run.arm), color=arm_colour(place), fontsize=11, fontweight="bold", loc="left")
        for i, name in enumerate(["real", *(f"M{generation.generation}" for generation in run.generations)]):
            at = i * (side + gap) + (2 * gap if i else 0) + side / 2 - 0.5
            axes.text(-2 * gap, at, name, ha="right", va="center", fontsize=7.5, color=NEUTRAL)
    return figure


def _confidences(shown: list[Run], places: list[int]) -> Any:
    figure = canvas(3.2 * len(shown), 2.8, clear=True)
    panels = figure.subplots(1, len(shown), squeeze=False, sharey=True).flat
    for place, run, axes in zip(places, shown, panels, strict=True):
        colour = arm_colour(place)
        _style(axes, "")
        axes.set_title(arm_title(run.arm), loc="left", color=colour, fontsize=11, fontweight="bold")
        first, last = run.generations[0], run.generations[-1]
        for generation, filled in ((last, True), (first, False)):
            counts = generation.parameters["trace/confidence"]
            edges = np.linspace(0, 1, len(counts) + 1)
            look = {"fill": True, "alpha": 0.4} if filled else {"linewidth": 1.4}
            axes.stairs(100 * counts / counts.sum(), edges, color=colour, label=f"M{generation.generation}", **look)
        gamma = float(last.parameters["trace/gamma"][-1])
        if gamma < 1:
            axes.axvline(gamma, color=NEUTRAL, linewidth=1, linestyle=(0, (5, 4)))
            where = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "ha": "right", "va": "top"}
            axes.annotate(f"γ = {gamma:.4g}", (gamma, 0.98), (-4, 0), fontsize=8.5, color=NEUTRAL, **where)
        axes.set_yscale("log")
        axes.tick_params(which="minor", length=0)
        axes.set_xlabel("p(x|z)", fontsize=8.5, color=NEUTRAL)
        axes.legend(loc="upper left", frameon=False, fontsize=8, labelcolor=NEUTRAL)
    figure.axes[0].set_ylabel("% of pixels", fontsize=8.5, color=NEUTRAL)
    return figure


def _style(axes: Any, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=9.5, color=NEUTRAL)
    plain(axes)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", visible=False)
    axes.tick_params(length=0)
