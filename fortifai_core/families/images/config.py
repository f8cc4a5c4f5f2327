"""Configuration of the VAE and of a diffusion model: their data, their settings, and the arms that only they have."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from fortifai_core.families.base import FamilyConfig, Mask
from fortifai_core.settings import Frozen, Inconsistent, Seed


class DynamicQuantileMask(Mask):
    """Dynamic clipping: before each epoch gamma becomes a quantile of the model's confidences p(x|z) at that time.

    The paper names dynamic clipping (under Figure 9) and does not define it; a quantile is one of the two variants
    in the authors' code. quantile = 0.8 masks the most confident fifth of the pixels, as Algorithm 2 does with points.
    """

    type: Literal["dynamic-quantile"] = "dynamic-quantile"
    quantile: float = Field(0.8, gt=0, lt=1, description="Pixels above this quantile of the confidences are masked.")

    @property
    def label(self) -> str:
        return f"dynamic-q{self.quantile:g}"


class DynamicIntersectionMask(Mask):
    """Dynamic clipping: gamma is where two Gaussians, fitted to the confidences before each epoch, cross.

    The other variant in the authors' code. Two weighted Gaussians are fitted by EM to the distribution of p(x|z);
    gamma is where their densities are equal, between the two means. Where they do not cross there, nothing is
    masked in that epoch.
    """

    type: Literal["dynamic-intersection"] = "dynamic-intersection"

    @property
    def label(self) -> str:
        return "dynamic-crossing"


class DigitsData(Frozen):
    """The 1,797 handwritten digits of 8×8 pixels that scikit-learn ships (UCI optical recognition, test part)."""

    type: Literal["digits"] = "digits"
    test_fraction: float = Field(0.2, gt=0.02, lt=0.9, description="Share of every class held out of all training.")
    seed: Seed = Field(0, description="Seed of the cut into training and test images.")


class MnistData(Frozen):
    """MNIST, 28×28 pixels, from the local mirror that FORTIFAI_DATA points at, or from the hub."""

    type: Literal["mnist"] = "mnist"
    train: int = Field(60_000, ge=100, le=60_000, description="Training images used.")
    test: int = Field(10_000, ge=100, le=10_000, description="Test images used.")
    selection: Literal["stratified", "first"] = Field(
        "stratified", description="Drawn with equal shares of each class as in the whole, or the first ones."
    )
    seed: Seed = Field(0, description="Seed of the draw, for `stratified`.")


ImageData = Annotated[DigitsData | MnistData, Field(discriminator="type")]


# What each measure is. "Real" images are test images, on which nothing was trained, unless said otherwise.
MEASURES = {
    "frechet": "Fréchet distance of samples and real training images, in a classifier's features",
    "recall": "Recall: share of real images that lie where samples lie, in a classifier's features",
    "precision": "Precision: share of samples that lie where real images lie, in a classifier's features",
    "class-entropy": "Entropy of the classes that a classifier reads from the samples; 1: all ten alike",
    "coverage": "Class coverage: share of the ten classes that are more than a trace of the samples",
    "classifier-confidence": "A classifier's confidence in what it reads from the samples",
    "pixel-spread": "Variance of the samples' pixels, as a share of the real training images'",
    "reconstruction-accuracy": "Share of real images that are still read right after encoding and decoding",
    "elbo": "ELBO of real images, nothing masked, nats an image",
    "active-units": "Active units: latent dimensions whose mean varies over real images",
    "latent-spread": "Variance of the latent mean over real images, by dimension",
    "latent-variance": "Variance of the aggregate posterior, by dimension; the prior's is 1",
    "classifier-accuracy": "Share of real images that the classifier reads right, a ceiling",
    "frechet-floor": "Fréchet distance of real test and training images, a floor",
}


class ImageFamilyConfig(FamilyConfig):
    """What families of images have in common: how many are sampled, when a threshold is set, how they are measured."""

    data_fields: ClassVar[frozenset[str]] = frozenset({"data"})
    headline: ClassVar[str] = "frechet"

    segment: int = Field(
        5, ge=1, le=10_000, description="Generations computed in one stage; the results do not depend on it."
    )

    epochs: int = Field(ge=1, description="Passes over a generation's images.")
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

    @model_validator(mode="after")
    def _warmup_ends(self) -> Self:
        if self.warmup_epochs >= self.epochs:
            remedy = f"no epoch of {self.epochs} would be clipped; lower it, or raise epochs"
            raise Inconsistent("family.warmup_epochs", self.warmup_epochs, remedy)
        return self

    @property
    def seeded_data(self) -> bool:
        return False

    def sample_count(self, real: int) -> int:
        return self.samples or real


class VaeConfig(ImageFamilyConfig):
    """A convolutional VAE, each next one trained on images sampled from the last (ForTIFAI, Section 4.8, Figure 9).

    The defaults suit the embedded digits, whose pixels are grey: with `bernoulli` M_0 itself makes few of them. The
    authors' experiment on MNIST: latent 20, channels 64, Adam at 1e-3, 30 epochs, batches of 256.
    """

    plain_label: ClassVar[str] = "elbo"
    measures: ClassVar[dict[str, str]] = MEASURES

    type: Literal["vae"] = "vae"
    data: ImageData = Field(default_factory=DigitsData, description="The real images.")
    latent: int = Field(20, ge=1, le=1024, description="Dimensions of z. The authors: 20.")
    channels: int = Field(32, ge=1, le=1024, description="Channels of each convolution. The authors: 64.")
    epochs: int = Field(25, ge=1, le=10_000, description="Passes over a generation's images. The authors: 30.")
    batch_size: int = Field(32, ge=1, le=65_536, description="Images in one optimizer step. The authors: 256.")
    learning_rate: float = Field(3e-3, gt=0, lt=1, description="Of Adam. The authors: 1e-3.")
    start: Literal["fresh", "previous"] = Field(
        "fresh", description="M_i starts from new random weights, or from those of M_(i-1)."
    )
    likelihood: Literal["bernoulli", "binarised", "gaussian", "discretised"] = Field(
        "gaussian",
        description="What p(x|z) is for a grey pixel x (the paper is silent). bernoulli: p^x (1-p)^(1-x), binary cross "
        "entropy with soft targets. binarised: x is drawn black or white anew for every batch. gaussian: the density "
        "as a share of its peak, with a fixed `sigma`. discretised: the probability of the grey level, of 256, under "
        "a logistic distribution whose scale is learned.",
    )
    sigma: float = Field(0.15, gt=0, le=10, description="Only for `gaussian`: standard deviation; white is 1.")
    draws: Literal["mean", "sample"] = Field(
        "mean", description="Images for the next generation: the decoder's mean, or pixels drawn from p(x|z)."
    )

    @property
    def side(self) -> int:
        """Pixels along each edge of an image."""
        return 8 if isinstance(self.data, DigitsData) else 28


class DiffusionConfig(ImageFamilyConfig):
    """A DDPM (Ho et al. 2020), each next one trained on images sampled from the last; not in the paper.

    A term of its loss is one pixel's squared error in the noise, ½(ε − ε̂)²; the model's confidence in it is
    exp(−½(ε − ε̂)²), a unit Gaussian's density as a share of its peak. The arms are those of the VAE.
    """

    plain_label: ClassVar[str] = "ddpm"
    measures: ClassVar[dict[str, str]] = {
        **{name: MEASURES[name] for name in ("frechet", "recall", "precision", "class-entropy", "coverage")},
        **{name: MEASURES[name] for name in ("classifier-confidence", "pixel-spread")},
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
