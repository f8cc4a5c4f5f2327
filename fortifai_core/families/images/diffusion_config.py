"""Configuration of a small denoising diffusion model of the digits under recursive training."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from fortifai_core.families.images.config import MEASURES, DigitsData, ImageFamilyConfig

OWN = ("frechet", "recall", "precision", "class-entropy", "coverage", "classifier-confidence", "pixel-spread")


class DiffusionConfig(ImageFamilyConfig):
    """A DDPM (Ho et al. 2020), each next one trained on images sampled from the last; not in the paper.

    A term of its loss is one pixel's squared error in the noise, ½(ε − ε̂)²; the model's confidence in it is
    exp(−½(ε − ε̂)²), a unit Gaussian's density as a share of its peak. The arms are those of the VAE.
    """

    plain_label: ClassVar[str] = "ddpm"
    measures: ClassVar[dict[str, str]] = {
        **{name: MEASURES[name] for name in OWN},
        "denoising-loss": "Squared error in the noise on real images, nothing masked, by pixel",
        **{name: MEASURES[name] for name in ("classifier-accuracy", "frechet-floor")},
    }

    type: Literal["diffusion"] = "diffusion"
    data: DigitsData = Field(default_factory=DigitsData, description="The real images.")
    steps: int = Field(100, ge=2, le=10_000, description="Steps from image to noise (cosine schedule).")
    hidden: int = Field(256, ge=8, le=8192, description="Width of the denoiser, a residual network on all pixels.")
    blocks: int = Field(3, ge=1, le=64, description="Its residual blocks.")
    epochs: int = Field(120, ge=1, le=100_000, description="Passes over a generation's images.")
    batch_size: int = Field(64, ge=1, le=65_536, description="Images in one optimizer step.")
    learning_rate: float = Field(2e-3, gt=0, lt=1, description="Of Adam at the start; falls to 0 along a line.")
