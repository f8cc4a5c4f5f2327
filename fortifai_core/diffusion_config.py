"""Configuration of a small denoising diffusion model of the digits under recursive training."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from fortifai_core.config import Inconsistent
from fortifai_core.families import FamilyConfig
from fortifai_core.vae_config import MEASURES, DigitsData

OWN = ("frechet", "recall", "precision", "class-entropy", "coverage", "classifier-confidence", "pixel-spread")


class DiffusionConfig(FamilyConfig):
    """A DDPM (Ho et al. 2020), each next one trained on images sampled from the last; not in the paper.

    A term of its loss is one pixel's squared error in the noise, ½(ε − ε̂)²; the model's confidence in it is
    exp(−½(ε − ε̂)²), a unit Gaussian's density as a share of its peak. The arms are those of the VAE.
    """

    data_fields: ClassVar[frozenset[str]] = frozenset({"data"})
    measure_fields: ClassVar[frozenset[str]] = frozenset(
        {"coverage_floor", "neighbours", "measured_images", "classifier_epochs"}
    )
    plain_label: ClassVar[str] = "ddpm"
    measures: ClassVar[dict[str, str]] = {
        **{name: MEASURES[name] for name in OWN},
        "denoising-loss": "Squared error in the noise on real images, nothing masked, by pixel",
        **{name: MEASURES[name] for name in ("classifier-accuracy", "frechet-floor")},
    }
    headline: ClassVar[str] = "frechet"

    type: Literal["diffusion"] = "diffusion"
    data: DigitsData = Field(default_factory=DigitsData, description="The real images.")
    steps: int = Field(100, ge=2, le=10_000, description="Steps from image to noise (cosine schedule).")
    hidden: int = Field(256, ge=8, le=8192, description="Width of the denoiser, a residual network on all pixels.")
    blocks: int = Field(3, ge=1, le=64, description="Its residual blocks.")
    epochs: int = Field(120, ge=1, le=100_000, description="Passes over a generation's images.")
    batch_size: int = Field(64, ge=1, le=65_536, description="Images in one optimizer step.")
    learning_rate: float = Field(2e-3, gt=0, lt=1, description="Of Adam at the start; falls to 0 along a line.")
    samples: int | None = Field(
        None, ge=10, le=10_000_000, description="Images sampled in a generation; by default as many as real ones."
    )
    warmup_epochs: int = Field(
        1, ge=0, description="Only for dynamic clipping: epochs before the first threshold is set, nothing masked."
    )
    threshold_images: int = Field(
        512, ge=1, le=1_000_000, description="Training images whose pixels make up the distribution of confidences."
    )
    classifier_epochs: int = Field(15, ge=1, le=1000, description="Of the classifier that the measures use.")
    coverage_floor: float = Field(
        0.02, gt=0, lt=0.5, description="A class counts as produced from this share of the samples on."
    )
    neighbours: int = Field(5, ge=1, le=100, description="k of precision and recall in the classifier's features.")
    measured_images: int = Field(
        2000, ge=50, le=60_000, description="Samples, and real images, that precision and recall compare at most."
    )

    @property
    def seeded_data(self) -> bool:
        return False

    def sample_count(self, real: int) -> int:
        return self.samples or real

    @model_validator(mode="after")
    def _warmup_ends(self) -> DiffusionConfig:
        if self.warmup_epochs >= self.epochs:
            remedy = f"no epoch of {self.epochs} would be clipped; lower it, or raise epochs"
            raise Inconsistent("family.warmup_epochs", self.warmup_epochs, remedy)
        return self
