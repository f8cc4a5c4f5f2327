"""The figure of the Zipf vocabulary: which types survive, by how frequent they were."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fortifai_core.charts.canvas import end_labels, panels, save
from fortifai_core.charts.palette import SOFT, arm_colour, arm_stroke
from fortifai_core.families.base import Figure, Results
from fortifai_core.families.zipf.family import ZipfConfig
from fortifai_core.wording import arm_title

# Bands of types by their frequency in the real data, the commonest first: shares of the types.
_BANDS = 5


def draw(results: Results, directory: Path) -> list[Figure]:
    """Survival by frequency at the last generation; curves over generations are charts of the page."""
    drawable = "token" in results.real and all(g.sample for run in results.runs for g in run.generations[-1:])
    return [_by_frequency(results, directory)] if drawable else []


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
        axes.plot(x, middle, **arm_stroke(i), linewidth=2.2, markeredgecolor="white")
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
