"""Figures of the Zipf vocabulary: which types survive, and what that costs in fidelity."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fortifai_core.charts.canvas import curve, end_labels, panels, save
from fortifai_core.charts.palette import MARKERS, SOFT, arm_colour
from fortifai_core.families.base import Figure, Results
from fortifai_core.families.zipf.family import ZipfConfig
from fortifai_core.wording import arm_title

# Bands of types by their frequency in the real data, the commonest first: shares of the types.
_BANDS = 5


def draw(results: Results, directory: Path) -> list[Figure]:
    """Curves over generations for every arm, and survival by frequency at the last generation."""
    assert isinstance(results.config, ZipfConfig)
    figures = [_curves(results, directory)]
    if "token" in results.real and all(g.sample for run in results.runs for g in run.generations[-1:]):
        figures.append(_by_frequency(results, directory))
    return figures


def _curves(results: Results, directory: Path) -> Figure:
    figure, axes_of = panels(9.6, 4.0, columns=2)
    measures = (
        ("tail-survival", "tail types that survive", True),
        ("total-variation", "distance from the real frequencies", False),
    )
    for axes, (metric, title, top) in zip(axes_of, measures, strict=True):
        entries = []
        for i, arm in enumerate(results.arms):
            runs = results.of(arm)
            if not runs:
                continue
            length = min(len(run.generations) for run in runs)
            values = np.array([[g.metrics[metric] for g in run.generations[:length]] for run in runs]).T
            curve(axes, values, i)
            entries.append((arm_title(arm), values, i))
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel("generation")
        axes.set_xlim(0, max(1, max(len(values) for _, values, _ in entries) - 1))
        axes.set_ylim(0, 1.0 if top else None)
        if not top:
            end_labels(axes, [(name, values) for name, values, _ in entries], [i for _, _, i in entries])
    config = results.config
    assert isinstance(config, ZipfConfig)
    caption = (
        f"{'Unigrams' if config.order == 1 else 'Bigrams'} over {config.vocabulary:,} types, re-estimated from "
        f"{config.documents * config.length:,} tokens of their own at temperature {config.temperature:g}; masks are "
        f"{config.masking}. Left: share of the tail types (beyond the commonest, which make up 90% of the real tokens) "
        "that the generated text still has. Right: total variation between its type frequencies and the real ones. "
        "Median over seeds, band: quartiles. Higher is better on the left, lower on the right."
    )
    return Figure("zipf-survival", "What survives, and at what cost", caption, save(figure, directory, "zipf-survival"))


def _by_frequency(results: Results, directory: Path) -> Figure:
    """Survival in the last generation against the real frequency of the types, in bands of equally many types."""
    config = results.config
    assert isinstance(config, ZipfConfig)
    figure, axes = panels(6.4, 3.8)
    count = np.bincount(results.real["token"].ravel(), minlength=config.vocabulary)
    order = np.argsort(-count, kind="stable")[: int((count > 0).sum())]
    bands = [band for band in np.array_split(order, _BANDS) if band.size]
    names = [f"{count[band].max():,}–{count[band].min():,}" for band in bands]
    last = 0
    entries: list[tuple[str, NDArray[np.float64]]] = []
    colours: list[int] = []
    for i, arm in enumerate(results.arms):
        runs = [run for run in results.of(arm) if run.generations]
        if not runs:
            continue
        present = [
            np.bincount(run.generations[-1].sample["token"].ravel(), minlength=config.vocabulary) > 0 for run in runs
        ]
        last = max(last, runs[0].generations[-1].generation)
        values = np.array([[alive[band].mean() for alive in present] for band in bands])
        low, middle, high = np.quantile(values, (0.25, 0.5, 0.75), axis=1)
        x = np.arange(len(bands))
        axes.fill_between(x, low, high, color=arm_colour(i), alpha=0.2, linewidth=0)
        axes.plot(x, middle, color=arm_colour(i), linewidth=2.2, marker=MARKERS[i % 6], markeredgecolor="white")
        entries.append((arm_title(arm), values))
        colours.append(i)
    axes.set_xticks(range(len(bands)), names)
    axes.set_xlabel("occurrences in the real data (each band: a fifth of the types)", color=SOFT)
    axes.set_ylim(0, 1.02)
    axes.set_title(f"types that survive in M{last}", loc="left", fontsize=10)
    end_labels(axes, entries, colours)
    caption = (
        f"Share of the types of each frequency that the text of M{last} still has; median and quartiles over seeds."
    )
    return Figure(
        "zipf-by-frequency", "Who dies first", caption, save(figure, directory, "zipf-by-frequency")
    )  # fmt: skip
