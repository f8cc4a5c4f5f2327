"""Figures of the 1-D Gaussian: spread per arm with the theory over it, histograms, estimators, and the stability map.

matplotlib is imported when something is drawn. The same data give the same bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fortifai_core.charts.canvas import curve, end_labels, law, panels, save
from fortifai_core.charts.palette import INK, LINE, MARKERS, SHAPES, SOFT, arm_colour
from fortifai_core.errors import DataError
from fortifai_core.families.base import Figure, Results
from fortifai_core.families.gaussian import theory
from fortifai_core.families.gaussian.chain import sample_of
from fortifai_core.families.gaussian.config import GaussianConfig
from fortifai_core.wording import arm_title

Floats = NDArray[np.float64]

PAPER_2 = (
    "Figure 2 of the paper: the variance of a one-dimensional Gaussian over generations of 10,000 samples with "
    "sampling bias 0.9. Cross entropy collapses rapidly; a threshold of 0.85 delays that substantially; 0.80 may "
    "diverge or die early."
)
PAPER_C4 = (
    "Figure C4 of the paper: histograms of the generated data, and the mean and standard deviation of the estimates, "
    "for a perfect and a noisy estimator over 1,000 generations. The noisy one collapses, its standard deviation going "
    "to 0; the perfect one drifts slightly."
)


@dataclass(frozen=True)
class Series:
    """One arm as it is drawn.

    Attributes:
        mean, sigma: of shape (generations, replicates).
        gamma: the gamma that the mask aimed at, median over replicates; (generations,).
        predicted: the theory's median of sigma, or None.
        seed: of replicate 0, whose samples the histograms show.
    """

    label: str
    mean: Floats
    sigma: Floats
    gamma: Floats
    predicted: Floats | None
    seed: int = 0

    @property
    def title(self) -> str:
        return arm_title(self.label)


def from_results(results: Results) -> list[Series]:
    """One series an arm: the replicates of all its seeds side by side.

    Every generation must carry parameters `mean` and `sigma` of shape (replicates,), and the metrics `gamma` and,
    where there is one, `sigma-predicted`. Raises DataError where they are missing.
    """
    series = []
    for arm in results.arms:
        runs = sorted(results.of(arm), key=lambda run: run.seed)
        if not runs:
            continue
        length = min(len(run.generations) for run in runs)
        for run in runs:
            for generation in run.generations:
                if not {"mean", "sigma"} <= generation.parameters.keys():
                    raise DataError(f"{arm}, M{generation.generation}", "no parameters", "needs mean and sigma")
        metrics = [generation.metrics for generation in runs[0].generations[:length]]
        mean, sigma = (
            np.concatenate([np.stack([g.parameters[name] for g in run.generations[:length]]) for run in runs], axis=1)
            for name in ("mean", "sigma")
        )
        gamma = np.array([m["gamma"] for m in metrics])
        predicted = np.array([m.get("sigma-predicted", math.nan) for m in metrics])
        theirs = None if np.isnan(predicted).any() else predicted
        series.append(Series(label=arm, mean=mean, sigma=sigma, gamma=gamma, predicted=theirs, seed=runs[0].seed))
    return series


def draw(results: Results, directory: Path) -> list[Figure]:
    """All figures that the experiment has: spread and histograms; C4 with a noisy arm; gamma; the stability map."""
    assert isinstance(results.config, GaussianConfig)
    config, series = results.config, from_results(results)
    noisy = any(arm.label.startswith("ce-noisy") for arm in series)
    masked = any(not arm.label.startswith("ce") for arm in series)
    figures = [draw_estimators(config, series, directory)] if noisy else []
    # Where only estimators are compared, their arm figure says it all.
    if masked or not noisy:
        figures.append(draw_spread(config, series, directory))
    figures.append(draw_histograms(config, series, directory))
    if any(np.ptp(arm.gamma[1:]) > 0 for arm in series if len(arm.gamma) > 2):
        figures.append(draw_gamma(config, series, directory))
    if masked or not noisy:
        figures.append(draw_stability(config, series, directory))
    return figures


def draw_spread(config: GaussianConfig, series: list[Series], directory: Path) -> Figure:
    """Figure 2: sigma² per arm, the first generations on a plain axis and all of them on a logarithmic one."""
    figure, (left, right) = panels(9.6, 4.2, columns=2)
    length = max(len(arm.sigma) for arm in series)
    early = min(length, 60)
    for axes, shown in ((left, early), (right, length)):
        for i, arm in enumerate(series):
            curve(axes, arm.sigma[:shown] ** 2 / config.sigma**2, i)
            if arm.predicted is not None:
                law(axes, arm.predicted[:shown] ** 2 / config.sigma**2)
        axes.axhline(1, color=SOFT, linewidth=0.8)
        axes.set_xlabel("generation")
        axes.set_xlim(0, shown - 1)
    finals = [arm.sigma[:early][-1] ** 2 / config.sigma**2 for arm in series]
    left.set_ylim(0, min(2.5, max(1.5, 1.08 * max(float(np.quantile(final, 0.75)) for final in finals))))
    left.set_ylabel("variance of the model / of the real data")
    left.set_title("the first generations", loc="left", fontsize=10)
    right.set_yscale("log")
    low, high = right.get_ylim()
    right.set_ylim(max(low, 1e-6), min(high, 1e6))
    right.set_title("all generations, logarithmic", loc="left", fontsize=10)
    right.text(0.98, 0.94, "dotted: theory", transform=right.transAxes, ha="right", color=SOFT, fontsize=8)
    end_labels(right, [(arm.title, arm.sigma**2 / config.sigma**2) for arm in series])
    caption = (
        f"Median (line) and quartiles (band) of the variance over {series[0].sigma.shape[1]} replicates, "
        f"{config.samples:,} samples a generation, λ = {config.sampling_bias:g} on the "
        f"{'standard deviation' if config.bias_on == 'sigma' else 'variance'}; dotted: the theory, with its "
        "finite-sample correction."
    )
    return Figure(
        "gaussian-variance", "Variance by generation", caption, save(figure, directory, "gaussian-variance"), PAPER_2
    )


def draw_histograms(config: GaussianConfig, series: list[Series], directory: Path) -> Figure:
    """What models generate: one row an arm, one column a generation; the real density behind."""
    length = min(len(arm.sigma) for arm in series)
    shown = sorted({g for g in (0, 10, 50, 100, 300, 1000, 3000) if g < length - 1} | {length - 1})[-5:]
    if shown[0] != 0:
        shown = [0, *shown[1:]]
    figure, grid = panels(1.9 * len(shown) + 0.6, 1.05 * len(series) + 0.8, rows=len(series), columns=len(shown))
    grid = np.reshape(grid, (len(series), len(shown)))
    edges = config.mean + config.sigma * np.linspace(-4, 4, 81)
    x = np.linspace(edges[0], edges[-1], 121)
    real = np.exp(-(((x - config.mean) / config.sigma) ** 2) / 2) / (config.sigma * math.sqrt(2 * math.pi))
    for row, (i, arm) in zip(grid, enumerate(series), strict=True):
        for axes, generation in zip(row, shown, strict=True):
            mean, sigma = float(arm.mean[generation, 0]), float(arm.sigma[generation, 0])
            values = sample_of(config, seed=arm.seed, generation=generation + 1, mean=mean, sigma=sigma)
            heights = np.histogram(values, bins=edges)[0] / values.size / np.diff(edges)
            axes.fill_between(x, real, color=LINE, linewidth=0)
            axes.stairs(heights, edges, fill=True, color=arm_colour(i), alpha=0.75)
            # A spike would flatten everything else: what is beyond the axis is said in numbers.
            axes.set_ylim(0, 2.2 * real.max())
            axes.set_yticks([])
            axes.spines["left"].set_visible(False)
            axes.set_xticks(config.mean + config.sigma * np.array([-3, 0, 3]))
            label = f"σ {sigma / config.sigma:.2g}"
            axes.text(0.97, 0.93, label, transform=axes.transAxes, ha="right", va="top", fontsize=8, color=INK)
            if arm is not series[-1]:
                axes.tick_params(labelbottom=False)
        row[0].set_ylabel(arm.title, color=arm_colour(i), fontweight="bold", rotation=0, ha="right", va="center")
    for axes, generation in zip(grid[0], shown, strict=True):
        axes.set_title(f"M{generation}", loc="left", fontsize=10)
    caption = (
        f"The {config.samples:,} samples that a model generates (replicate 0, not selected), sampling bias included; "
        "grey: the density of the real data. Panels share their axes; a peak that leaves the top is one narrower than "
        "can be shown. σ: the model's standard deviation in units of the real one."
    )
    return Figure(
        "gaussian-histograms", "What each model generates", caption, save(figure, directory, "gaussian-histograms"),
        PAPER_C4 if any(arm.label.startswith("ce-noisy") for arm in series) else PAPER_2,
    )  # fmt: skip


def draw_estimators(config: GaussianConfig, series: list[Series], directory: Path) -> Figure:
    """Figure C4 (b): mean and standard deviation of a perfect and a noisy estimator, every arm that does not mask."""
    figure, (left, right) = panels(9.6, 3.9, columns=2)
    plain = [(i, arm) for i, arm in enumerate(series) if arm.label.startswith("ce")]
    length = max(len(arm.sigma) for _, arm in plain)
    for i, arm in plain:
        curve(left, np.abs(arm.mean - config.mean) / config.sigma, i)
        curve(right, arm.sigma / config.sigma, i)
        if arm.predicted is not None:
            law(right, arm.predicted / config.sigma)
    for axes in (left, right):
        axes.set_xlabel("generation")
        axes.set_xlim(0, length - 1)
        axes.axhline(1, color=SOFT, linewidth=0.8)
        axes.set_yscale("log")
    right.text(0.02, 0.03, "dotted: theory", transform=right.transAxes, color=SOFT, fontsize=8)
    left.set_title("distance of the mean / real standard deviation", loc="left", fontsize=10)
    right.set_title("standard deviation / real", loc="left", fontsize=10)
    end_labels(right, [(arm.title, arm.sigma / config.sigma) for _, arm in plain], [i for i, _ in plain])
    caption = (
        f"Median and quartiles of the estimates over {series[0].sigma.shape[1]} replicates of {config.samples:,} "
        f"samples a generation, λ = {config.sampling_bias:g}; dotted: the theory. Multiplicative noise (as in the "
        "authors' code) makes the spread collapse, since the expectation of log|1 + 0.1 w| is below 0. Noise added to "
        "the estimates (w, as in the text) makes them a random walk: the spread cannot collapse, and grows."
    )
    return Figure(
        "gaussian-estimators", "A perfect and a noisy estimator", caption,
        save(figure, directory, "gaussian-estimators"), PAPER_C4,
    )  # fmt: skip


def draw_gamma(config: GaussianConfig, series: list[Series], directory: Path) -> Figure:
    """The gamma that each masked arm used, against the fixed point."""
    figure, axes = panels(6.4, 3.6)
    optimum = theory.optimal_gamma(config.sampling_bias, bias_on=config.bias_on, density=config.density)
    masked = [(i, arm) for i, arm in enumerate(series) if not arm.label.startswith("ce")]
    for i, arm in masked:
        t = np.arange(1, len(arm.gamma))
        axes.plot(t, arm.gamma[1:], color=arm_colour(i), linewidth=2.2)
    axes.axhline(optimum, color=INK, linewidth=1.1, linestyle=(0, (1.2, 2.2)), zorder=4)
    length = max(len(arm.gamma) for arm in series)
    axes.set_xlim(0, length - 1)
    axes.set_xlabel("generation")
    axes.set_title("gamma: least dense share that is kept", loc="left", fontsize=10)
    entries = [(arm.title, arm.gamma[:, None]) for _, arm in masked]
    end_labels(axes, [*entries, ("fixed point", np.full((length, 1), optimum))], [*(i for i, _ in masked), -1])
    caption = (
        f"Median over replicates. Dotted: the predicted fixed point, γ = {optimum:.4f} at λ = {config.sampling_bias:g}."
    )
    return Figure("gaussian-gamma", "The gamma used", caption, save(figure, directory, "gaussian-gamma"))


def draw_stability(config: GaussianConfig, series: list[Series], directory: Path) -> Figure:
    """The map over (λ, γ): what a generation multiplies sigma by, the line where it stays, and the arms."""
    from matplotlib.colors import LinearSegmentedColormap, TwoSlopeNorm

    figure, axes = panels(6.4, 4.6)
    low_bias = min(0.7, max(0.05, config.sampling_bias - 0.1))
    low_gamma = min(0.5, max(0.02, min(float(arm.gamma[-1]) for arm in series) - 0.05))
    bias, gamma = np.linspace(low_bias, 1, 161), np.linspace(low_gamma, 1, 161)
    change = (
        np.sqrt(theory.growth(gamma[:, None], bias[None, :], bias_on=config.bias_on, density=config.density)) - 1
    ) * 100
    colours = LinearSegmentedColormap.from_list("collapse", ["#c96f55", "#fdfcfa", "#5b83bf"])
    mesh = axes.pcolormesh(
        bias, gamma, change, cmap=colours, norm=TwoSlopeNorm(0, -20, 20), shading="gouraud", rasterized=True
    )
    half = theory.half_life(gamma[:, None], bias[None, :], bias_on=config.bias_on)
    # Contours of signed rates, which are finite and monotone where the times of halving and doubling are not.
    times = np.array([10, 30, 100])
    lines = axes.contour(bias, gamma, 1 / half, levels=[*(-1 / times), *(1 / times[::-1])], colors=SOFT, linewidths=0.7)
    axes.clabel(lines, fmt=lambda rate: f"{abs(1 / rate):.0f}", fontsize=7, colors=SOFT)
    on_line = [theory.optimal_gamma(float(b), bias_on=config.bias_on, density=config.density) for b in bias]
    axes.plot(bias, on_line, color=INK, linewidth=2.2, label="fixed point")
    axes.set_xlim(low_bias, 1)
    axes.set_ylim(low_gamma, 1)
    _mark_arms(axes, config, series, span=1 - low_gamma, towards=-1 if config.sampling_bias > 0.94 else 1)
    axes.grid(False)
    axes.set_xlabel(f"λ, sampling bias on the {'standard deviation' if config.bias_on == 'sigma' else 'variance'}")
    axes.set_ylabel("γ, least dense share that is kept")
    axes.text(0.03, 0.95, "collapse", transform=axes.transAxes, va="top", color=INK, fontsize=11)
    axes.text(0.97, 0.05, "divergence", transform=axes.transAxes, ha="right", color=INK, fontsize=11)
    axes.legend(loc="lower left", frameon=True, framealpha=0.8, edgecolor="none", fontsize=9)
    bar = figure.colorbar(mesh, ax=axes, extend="both", ticks=[-20, -10, 0, 10, 20], pad=0.02)
    bar.set_label("change of σ in a generation, %")
    bar.outline.set_visible(False)
    caption = (
        "What one generation of very many samples does to the standard deviation, by theory. On the thick line "
        "amplification undoes contraction; thin lines: generations until σ has halved or doubled. Marks: the arms, at "
        "the gamma of their last generation."
    )
    return Figure(
        "gaussian-stability", "Where recursive training is stable", caption,
        save(figure, directory, "gaussian-stability"),
    )  # fmt: skip


def _mark_arms(axes: Any, config: GaussianConfig, series: list[Series], *, span: float, towards: int) -> None:
    """A mark for each arm at its λ and last gamma, and its name beside it with a line to the mark."""
    places = sorted((float(arm.gamma[-1]), i, arm.title) for i, arm in enumerate(series))
    height, gap = -math.inf, 0.05 * span
    names = []
    for gamma, i, title in places:
        height = max(gamma, height + gap)
        names.append((gamma, min(height, 1.0), i, title))
    # Marks that would leave the top push the others down again.
    for k in range(len(names) - 2, -1, -1):
        gamma, height, i, title = names[k]
        names[k] = (gamma, min(height, names[k + 1][1] - gap), i, title)
    x = config.sampling_bias
    for gamma, height, i, title in names:
        colour = arm_colour(i)
        axes.plot(
            x, gamma, MARKERS[i % SHAPES], color=colour, markersize=8, markeredgecolor="white", clip_on=False, zorder=6
        )
        axes.annotate(
            title, (x, gamma), (x + towards * 0.05 * (1 - axes.get_xlim()[0]), height), color=colour, fontsize=8.5,
            fontweight="bold", ha="left" if towards > 0 else "right", va="center", zorder=5, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 1, "shrinkA": 0, "shrinkB": 0,
                        "relpos": (0 if towards > 0 else 1, 0.5)},
            bbox={"boxstyle": "round,pad=0.12", "facecolor": "white", "edgecolor": "none", "alpha": 0.75},
        )  # fmt: skip
