"""Figures of the VAE and of the diffusion model: image grids, measures by generation, histograms of confidence."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fortifai_core.charts import pictures
from fortifai_core.charts.pictures import ARM_COLOURS, INK
from fortifai_core.families.base import Arrays, Figure, Results, Run
from fortifai_core.families.images.config import VaeConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

MARKERS = "os^DvP"
COLUMNS = 10
PAPER = (
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
    ("denoising-loss", "Squared error in the noise\non real test digits", True),
    ("live-fraction", "Pixels left in the loss\n(last epoch)", True),
)


def arm_title(label: str) -> str:
    """An arm's label in words."""
    if label == "elbo":
        return "ELBO"
    for prefix, words in (("tce-", "Clipped, γ = "), ("dynamic-q", "Dynamic, quantile ")):
        if label.startswith(prefix):
            return words + label.removeprefix(prefix)
    return {"ddpm": "DDPM", "dynamic-crossing": "Dynamic, two Gaussians"}.get(label, label)


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
        paths = pictures.save(_grids(shown, places, real, _sampled), directory, f"{kind}-samples")
        paper = PAPER if isinstance(results.config, VaeConfig) else ""
        figures.append(Figure(f"{kind}-samples", "What each generation makes", caption, paths, paper=paper))
        if isinstance(results.config, VaeConfig):
            figures += _of_the_models(results, results.config, shown, places, directory)
    seeds = sorted({run.seed for run in results.runs})
    spread = f"lines: mean of {len(seeds)} seeds, bands: their range" if len(seeds) > 1 else f"seed {seeds[0]}"
    caption = f"Measures of each generation; {spread}. Dashed: the distance of real test digits, a floor."
    paths = pictures.save(_measures(results), directory, f"{kind}-measures")
    figures.append(Figure(f"{kind}-measures", "Measures by generation", caption, paths))
    return figures


def _of_the_models(
    results: Results, config: VaeConfig, shown: list[Run], places: list[int], directory: Path
) -> list[Figure]:
    """What a VAE shows beside its samples: digits encoded and decoded, and how sure it is of pixels."""
    seed, labels = shown[0].seed, results.real["label"]
    real = results.real["pixels"][[int(np.flatnonzero(labels == c)[0]) for c in np.unique(labels)][:COLUMNS]]
    caption = f"The same ten real training digits (top row), encoded and decoded by each model (seed {seed})."
    paths = pictures.save(_grids(shown, places, real, _reconstructed(config, real)), directory, "vae-kept")
    kept = Figure("vae-kept", "What the models make of ten real digits", caption, paths, paper=PAPER)
    caption = (
        "p(x|z) of the pixels on which M0 (outline) and the last model (filled) were trained, after the last epoch "
        f"(seed {seed}). Dashed: the threshold in the last model's last epoch; what lies right of it is masked."
    )
    paths = pictures.save(_confidences(shown, places), directory, "vae-confidence")
    return [kept, Figure("vae-confidence", "How sure the models are of their pixels", caption, paths)]


def preview(*, real: Arrays, sample: Arrays, parameters: Arrays, title: str, path: Path) -> None:
    """Forty real images and forty of one generation, side by side, as a small PNG."""
    figure = pictures.canvas(5.0, 2.3)
    for axes, own, name in zip(figure.subplots(1, 2), (real, sample), ("real", title), strict=True):
        rows = [own["pixels"][start : start + 8] for start in range(0, 40, 8)]
        _show(axes, _mosaic(rows, max(1, rows[0].shape[-1] // 8)))
        axes.set_title(name, color=INK, fontsize=9)
    pictures.save_png(figure, path)


# ------------------------------------------------------------------------------------------------ image grids


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
    figure = pictures.canvas(3.3 * across, down * (0.284 * rows + 0.4))
    panels = figure.subplots(down, across, squeeze=False).flat
    side = real.shape[-1]
    gap = max(1, side // 8)
    for axes in panels:
        axes.set_axis_off()
    for place, run, axes in zip(places, shown, figure.axes, strict=False):
        mosaic = _mosaic([real, *(images(run, i) for i in range(len(run.generations)))], gap)
        # A wider gap sets the real images apart.
        _show(axes, np.insert(mosaic, [side] * 2 * gap, np.nan, axis=0))
        axes.set_title(arm_title(run.arm), color=ARM_COLOURS[place % 6], fontsize=11, fontweight="bold", loc="left")
        for i, name in enumerate(["real", *(f"M{generation.generation}" for generation in run.generations)]):
            at = i * (side + gap) + (2 * gap if i else 0) + side / 2 - 0.5
            axes.text(-2 * gap, at, name, ha="right", va="center", fontsize=7.5, color=INK)
    return figure


# ------------------------------------------------------------------------------------------------ curves


def _measures(results: Results) -> Any:
    from matplotlib.ticker import MaxNLocator

    measured = results.runs[0].generations[0].metrics
    panels = [panel for panel in PANELS if panel[0] in measured]
    down = -(-len(panels) // 4)
    figure = pictures.canvas(12.4, 2.75 * down + 0.4)
    for axes in figure.subplots(down, 4, squeeze=False).flat:
        axes.set_axis_off()
    for (name, title, from_zero), axes in zip(panels, figure.axes, strict=False):
        axes.set_axis_on()
        _style(axes, title)
        for place, arm in enumerate(results.arms):
            _curve(axes, results.of(arm), name, place)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.xaxis.set_major_formatter(lambda value, _: f"M{value:.0f}")
        if from_zero:
            axes.set_ylim(bottom=0)
    floor = measured.get("frechet-floor")
    if floor is not None:
        figure.axes[0].axhline(floor, color=INK, linewidth=1, linestyle=(0, (5, 4)))
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper left", ncols=len(labels), frameon=False, labelcolor="linecolor", fontsize=11
    )
    return figure


def _curve(axes: Any, runs: tuple[Run, ...], name: str, place: int) -> None:
    """Mean over the seeds and their range, where every seed has the generation and the measure."""
    length = min((len(run.generations) for run in runs), default=0)
    values = np.array([[g.metrics.get(name, np.nan) for g in run.generations[:length]] for run in runs])
    if not values.size or np.isnan(values).all():
        return
    x = [generation.generation for generation in runs[0].generations[:length]]
    colour = ARM_COLOURS[place % 6]
    mean = values.mean(axis=0)
    marker = MARKERS[place % 6]
    label = arm_title(runs[0].arm)
    axes.plot(x, mean, color=colour, marker=marker, markersize=5, linewidth=2, label=label)
    if len(runs) > 1:
        axes.fill_between(x, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.13, linewidth=0)


def _style(axes: Any, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=9.5, color=INK)
    pictures.plain(axes)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", visible=False)
    axes.tick_params(length=0)


# ------------------------------------------------------------------------------------------------ confidence


def _confidences(shown: list[Run], places: list[int]) -> Any:
    figure = pictures.canvas(3.2 * len(shown), 2.8)
    panels = figure.subplots(1, len(shown), squeeze=False, sharey=True).flat
    for place, run, axes in zip(places, shown, panels, strict=True):
        colour = ARM_COLOURS[place % 6]
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
            axes.axvline(gamma, color=INK, linewidth=1, linestyle=(0, (5, 4)))
            where = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "ha": "right", "va": "top"}
            axes.annotate(f"γ = {gamma:.4g}", (gamma, 0.98), (-4, 0), fontsize=8.5, color=INK, **where)
        axes.set_yscale("log")
        axes.tick_params(which="minor", length=0)
        axes.set_xlabel("p(x|z)", fontsize=8.5, color=INK)
        axes.legend(loc="upper left", frameon=False, fontsize=8, labelcolor=INK)
    figure.axes[0].set_ylabel("% of pixels", fontsize=8.5, color=INK)
    return figure
