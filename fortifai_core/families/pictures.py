"""Which module draws which family: the figures of a report, and a small picture of each generation."""

from __future__ import annotations

from pathlib import Path

from fortifai_core.families.base import Arrays, FamilyConfig, Figure, Results
from fortifai_core.families.gaussian.config import GaussianConfig
from fortifai_core.families.images.config import VaeConfig
from fortifai_core.families.images.diffusion_config import DiffusionConfig
from fortifai_core.families.mixture.family import GmmConfig
from fortifai_core.families.zipf.family import ZipfConfig


def draw(results: Results, directory: Path) -> list[Figure]:
    """The family's own figures, written into `directory`; none where a family has none."""
    match results.config:
        case GaussianConfig():
            from fortifai_core.families.gaussian import figures as gaussian_figures

            return gaussian_figures.draw(results, directory)
        case GmmConfig():
            from fortifai_core.families.mixture import figures as mixture_figures

            return mixture_figures.draw(results, directory)
        case VaeConfig() | DiffusionConfig():
            from fortifai_core.families.images import figures as images_figures

            return images_figures.draw(results, directory)
        case ZipfConfig():
            from fortifai_core.families.zipf import figures as zipf_figures

            return zipf_figures.draw(results, directory)
    return []


def preview(config: FamilyConfig, *, real: Arrays, sample: Arrays, parameters: Arrays, title: str, path: Path) -> None:
    """A small PNG of what one generation draws, for the Prefect UI; nothing where a family has none."""
    match config:
        case GmmConfig():
            from fortifai_core.families.mixture import figures as mixture_figures

            mixture_figures.preview(real=real, sample=sample, parameters=parameters, title=title, path=path)
        case VaeConfig() | DiffusionConfig():
            from fortifai_core.families.images import figures as images_figures

            images_figures.preview(real=real, sample=sample, title=title, path=path)
