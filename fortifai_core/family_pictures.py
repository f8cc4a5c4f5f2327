"""Which module draws which family: the figures of a report, and a small picture of each generation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fortifai_core import pictures
from fortifai_core.families import Arrays, FamilyConfig, Figure, Results
from fortifai_core.gaussian_config import GaussianConfig
from fortifai_core.gmm import GmmConfig
from fortifai_core.vae_config import VaeConfig

IMAGES = 20  # of a preview


def draw(results: Results, directory: Path) -> list[Figure]:
    """The family's own figures, written into `directory`; none where a family has none."""
    match results.config:
        case GaussianConfig():
            from fortifai_core import gaussian_figures

            return gaussian_figures.draw(results, directory)
        case GmmConfig():
            from fortifai_core import gmm_figures

            return gmm_figures.draw(results, directory)
        case VaeConfig():
            from fortifai_core import vae_figures

            return vae_figures.draw(results, directory)
    return []


def preview(config: FamilyConfig, *, real: Arrays, sample: Arrays, parameters: Arrays, title: str, path: Path) -> None:
    """A small PNG of what one generation draws, for the Prefect UI; nothing where a family has none."""
    match config:
        case GmmConfig():
            from fortifai_core import gmm_figures

            gmm_figures.preview(real=real, sample=sample, parameters=parameters, title=title, path=path)
        case VaeConfig():
            _images(sample["pixels"][:IMAGES], title=title, path=path)


def _images(pixels: Any, *, title: str, path: Path) -> None:
    """The first images that a generation draws, unselected, in two rows."""
    import numpy as np

    half = len(pixels) // 2
    rows = np.concatenate([np.concatenate(list(row), axis=1) for row in (pixels[:half], pixels[half : 2 * half])])
    figure = pictures.canvas(5.0, 1.3)
    axes = figure.subplots()
    axes.imshow(255 - rows, cmap="gray", vmin=0, vmax=255)
    pictures.bare(axes)
    axes.set_title(title, color=pictures.INK, fontsize=9)
    pictures.save_png(figure, path)
