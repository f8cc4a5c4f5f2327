"""Measures of generated digits: classes, diversity, Fréchet distance, latent use, and how well real digits are kept."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fortifai_core.families.base import Arrays
from fortifai_core.families.images.classifier import CLASSES, DigitsClassifier, Reading, train_classifier
from fortifai_core.families.images.config import DiffusionConfig, ImageData, VaeConfig
from fortifai_core.families.images.data import load, to_images
from fortifai_core.families.images.vae_model import Vae, kl_to_prior, log_peak, pixel_nll
from fortifai_core.seeds import derive_seed

# Burda, Grosse and Salakhutdinov 2016, Section 5.2.
ACTIVE_VARIANCE = 0.01


def class_shares(labels: NDArray[Any], *, classes: int = CLASSES) -> NDArray[np.float64]:
    """Share of each class, (classes,)."""
    return np.bincount(labels, minlength=classes) / len(labels)


def coverage(shares: NDArray[Any], *, floor: float) -> float:
    """Share of the classes that have at least `floor` of the items."""
    return float((shares >= floor).mean())


def class_entropy(shares: NDArray[Any]) -> float:
    """Entropy over its greatest value, log(classes): 0 for one class, 1 for all alike."""
    present = shares[shares > 0]
    # + 0.0 turns the -0.0 of one class alone into 0.0
    return float(-(present * np.log(present)).sum() / np.log(len(shares))) + 0.0


def frechet_gaussians(
    mean_a: NDArray[Any], covariance_a: NDArray[Any], mean_b: NDArray[Any], covariance_b: NDArray[Any]
) -> float:
    """Fréchet distance, squared, of two Gaussians: |μa−μb|² + tr(Σa + Σb − 2(Σa^½ Σb Σa^½)^½) (Dowson, Landau 1982).

    As Heusel et al. 2017 use it for images. Defined for singular covariances as well.
    """
    values, vectors = np.linalg.eigh(covariance_a)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    cross = np.linalg.eigvalsh(root @ covariance_b @ root)
    trace = np.trace(covariance_a) + np.trace(covariance_b) - 2 * np.sqrt(np.clip(cross, 0, None)).sum()
    return float(np.square(mean_a - mean_b).sum() + max(trace, 0.0))


def frechet(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Squared Fréchet distance of the Gaussians with the moments of two samples, (n, d) and (m, d), n and m ≥ 2."""
    moments = [(x.mean(axis=0), np.atleast_2d(np.cov(x, rowvar=False))) for x in (a, b)]
    return frechet_gaussians(*moments[0], *moments[1])


def precision_recall(real: NDArray[Any], made: NDArray[Any], *, neighbours: int) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al. 2019), (n, d) against (m, d).

    Precision: share of `made` within the ball of some real point, whose radius reaches its k-th nearest other real
    one; recall the same with the two exchanged.

    Raises:
        ValueError: not more than k points on one side.
    """
    if min(len(real), len(made)) <= neighbours:
        raise ValueError(f"{neighbours} neighbours need more points than {min(len(real), len(made))}")
    there, here = (torch.from_numpy(np.ascontiguousarray(x, dtype=np.float64)) for x in (real, made))
    # Distance 0 to itself comes first, so the k-th neighbour is entry k + 1.
    around_real, around_made = (_distances(x, x).kthvalue(neighbours + 1, dim=1).values for x in (there, here))
    between = _distances(there, here)
    precision = (between <= around_real[:, None]).any(dim=0).double().mean()
    recall = (between <= around_made[None, :]).any(dim=1).double().mean()
    return float(precision), float(recall)


def _distances(a: Tensor, b: Tensor) -> Tensor:
    # Through a matrix product the distance of a point to itself may come out above 0.
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def pixel_spread(made: NDArray[Any], real: NDArray[Any]) -> float:
    """Variance summed over pixels of (n, …) images, divided by that of others; 0 when all images are the same."""
    return float(made.reshape(len(made), -1).var(axis=0).sum() / real.reshape(len(real), -1).var(axis=0).sum())


def latent_use(means: NDArray[Any], variances: NDArray[Any]) -> dict[str, float]:
    """How much of the latent space is used, from q(z|x)'s means and variances, both (n, latent).

    The aggregate posterior's variance is Var(mean) + E[variance], the law of total variance.
    """
    spread = means.var(axis=0)
    return {
        "active-units": float((spread > ACTIVE_VARIANCE).sum()),
        "latent-spread": float(spread.mean()),
        "latent-variance": float((spread + variances.mean(axis=0)).mean()),
    }


class Instrument(NamedTuple):
    """The classifier and what it makes of the real images."""

    classifier: DigitsClassifier
    train: Reading
    test: Reading
    accuracy: float
    floor: float


@lru_cache(maxsize=2)
def instrument(data: ImageData, folder: Path | None, epochs: int) -> Instrument:
    """The instrument for these real images, trained once in a process; the same for all runs of an experiment."""
    real = load(data, folder)
    train, test = to_images(real.train), to_images(real.test)
    classifier = train_classifier(train, real.train["label"], epochs=epochs, seed=data.seed)
    on_train, on_test = classifier.read(train), classifier.read(test)
    accuracy = float((on_test.labels == real.test["label"]).mean())
    return Instrument(classifier, on_train, on_test, accuracy, frechet(on_train.features, on_test.features))


def measure_samples(
    config: VaeConfig | DiffusionConfig, pixels: NDArray[Any], *, folder: Path | None
) -> dict[str, float]:
    """What the images (n, side, side) uint8 alone tell, against the real ones of the configuration."""
    known, real = instrument(config.data, folder, config.classifier_epochs), load(config.data, folder)
    read = known.classifier.read(to_images({"pixels": pixels}))
    shares = class_shares(read.labels)
    most = config.measured_images
    precision, recall = precision_recall(known.test.features[:most], read.features[:most], neighbours=config.neighbours)
    return {
        "coverage": coverage(shares, floor=config.coverage_floor),
        "class-entropy": class_entropy(shares),
        "classifier-confidence": float(read.probabilities.max(axis=1).mean()),
        "frechet": frechet(read.features, known.train.features),
        "precision": precision,
        "recall": recall,
        "pixel-spread": pixel_spread(pixels, real.train["pixels"]),
        "classifier-accuracy": known.accuracy,
        "frechet-floor": known.floor,
    }


def measure_generation(
    config: VaeConfig, model: Vae, sample: Arrays, *, folder: Path | None, generation: int, seed: int
) -> dict[str, float]:
    """All of `vae_config.MEASURES` for one generation, on its whole sample.

    `elbo` is the plain one whatever the arm, with one z from q(z|x) for each image; the real images are those of the
    configuration.
    """
    known, real = instrument(config.data, folder, config.classifier_epochs), load(config.data, folder)
    images = to_images(real.test)
    latents, pixels = (torch.Generator().manual_seed(derive_seed("vae-elbo", seed, generation, n)) for n in (0, 1))
    means, variances, kept, bounds = [], [], [], []
    with torch.inference_mode():
        for batch in images.split(512):
            mean, log_variance = model.encode(batch)
            z = mean + torch.randn(mean.shape, generator=latents) * (0.5 * log_variance).exp()
            nll = pixel_nll(model, model.decode(z), batch, config=config, generator=pixels)
            bounds.append(log_peak(config) - nll.flatten(1).sum(dim=1) - kl_to_prior(mean, log_variance))
            kept.append(known.classifier.read(model.decode(mean).sigmoid()).labels)
            means.append(mean.double())
            variances.append(log_variance.double().exp())
    return {
        **measure_samples(config, sample["pixels"], folder=folder),
        "reconstruction-accuracy": float((np.concatenate(kept) == real.test["label"]).mean()),
        "elbo": float(torch.cat(bounds).double().mean()),
        **latent_use(torch.cat(means).numpy(), torch.cat(variances).numpy()),
    }
