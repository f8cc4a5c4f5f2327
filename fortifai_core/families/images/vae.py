"""The VAE as a family of recursive training: fit under the (Clipped) ELBO, sample, measure.

Section 4.8 and Figure 9 of ForTIFAI. Fixed seed, fixed bits: every draw has a random stream of its own, named by
run and generation and never by the arm, so arms differ by their mask alone; computed with one thread.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fortifai_core.families.base import Arrays, Fitted, Mask, Progress
from fortifai_core.families.images import data
from fortifai_core.families.images.clipping import dynamic_floor, fixed_floor, gamma_of, is_dynamic
from fortifai_core.families.images.config import VaeConfig
from fortifai_core.families.images.data import to_images, to_pixels
from fortifai_core.families.images.vae_model import (
    Vae,
    build,
    clipped_elbo,
    draw_pixels,
    from_arrays,
    generator_of,
    noise,
    one_thread,
    pixel_nll,
    to_arrays,
)
from fortifai_core.language.finite import check_loss, check_weights

_REMEDY = "lower family.learning_rate"
_BATCH = 512  # Part of the result: convolutions of other batches may round differently.
CONFIDENCE_BINS = 50


class VaeFamily(Fitted[VaeConfig]):
    """One convolutional VAE after the other.

    Args:
        folder: of MNIST's four files; not needed for the digits.
    """

    def real(self, *, seed: int) -> Arrays:
        """The training images, {"pixels": (n, side, side) uint8, "label": (n,)}; the same for every seed."""
        return data.load(self.config.data, self.folder).train

    def fit(
        self, data: Arrays, *, mask: Mask, generation: int, seed: int, previous: Arrays | None, progress: Progress
    ) -> tuple[Arrays, dict[str, float]]:
        """The weights of M_i; beside them, under `trace/`, the record of the fit (see `_Trace`).

        Raises:
            NonFiniteLoss: before the optimizer would take the step.
            DataError: images of another size.
            ConfigError: an arm that a VAE does not have.
        """
        images = to_images(data, side=self.config.side)
        with one_thread():
            return _fit(self.config, images, mask, ("vae", seed, generation), previous, progress)

    def sample(self, parameters: Arrays, *, count: int, generation: int, seed: int) -> Arrays:
        """`count` images decoded from the prior, in the form of the real ones; see `VaeConfig.draws`.

        The label is -1: nobody has said what these images show.
        """
        latents = generator_of("vae-prior", seed, generation)
        pixels = generator_of("vae-pixels", seed, generation)
        model = from_arrays(self.config, parameters)
        parts = []
        with one_thread(), torch.inference_mode():
            for start in range(0, count, _BATCH):
                z = noise((min(_BATCH, count - start), self.config.latent), latents)
                drawn = draw_pixels(model, model.decode(z), config=self.config, generator=pixels)
                parts.append(to_pixels(drawn))
        return {"pixels": np.concatenate(parts), "label": np.full(count, -1, dtype=np.int64)}

    def measure(
        self, parameters: Arrays, sample: Arrays, real: Arrays, *, generation: int, seed: int, first: Arrays
    ) -> dict[str, float]:
        """The measures that `vae_config.MEASURES` describes, of `sample` and of M_i on held-out real images.

        `real` and `first` are not read: the real images are those of the configuration.
        """
        from fortifai_core.families.images.measures import measure_generation

        to_images(sample, side=self.config.side)
        model = from_arrays(self.config, parameters)
        with one_thread():
            return measure_generation(self.config, model, sample, folder=self.folder, generation=generation, seed=seed)


class _Trace:
    """What a fit leaves behind beside the weights, an entry an epoch: gamma, live share of pixels, loss, its parts."""

    names = ("gamma", "live", "loss", "reconstruction", "kl")

    def __init__(self) -> None:
        self.rows: list[list[float]] = []

    def arrays(self, confidence: NDArray[Any]) -> Arrays:
        counts, _ = np.histogram(confidence, bins=CONFIDENCE_BINS, range=(0.0, 1.0))
        columns = np.array(self.rows, dtype=np.float64).T
        traces = {f"trace/{name}": column.copy() for name, column in zip(self.names, columns, strict=True)}
        return {**traces, "trace/confidence": counts.astype(np.int64)}


def _fit(
    config: VaeConfig,
    images: Tensor,
    mask: Mask,
    stream: tuple[str, int, int],
    previous: Arrays | None,
    progress: Progress,
) -> tuple[Arrays, dict[str, float]]:
    order, latents, pixels = (generator_of(*stream, name) for name in ("order", "latents", "pixels"))
    floor = fixed_floor(mask)
    if config.start == "previous" and previous is not None:
        model = from_arrays(config, previous)
    else:
        model = build(config)
        model.initialise(generator_of(*stream, "weights"))
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate, fused=True)
    trace = _Trace()
    for epoch in range(config.epochs):
        if is_dynamic(mask) and epoch >= config.warmup_epochs:
            floor = dynamic_floor(mask, surprises(config, model, images, stream=(*stream, "threshold", epoch)))
        sums = np.zeros(4)
        for chosen in torch.randperm(len(images), generator=order).split(config.batch_size):
            batch = images[chosen]
            mean, log_variance = model.encode(batch)
            z = mean + noise(mean.shape, latents) * (0.5 * log_variance).exp()
            nll = pixel_nll(model, model.decode(z), batch, config=config, generator=pixels)
            objective = clipped_elbo(nll, mean, log_variance, floor=floor)
            where = f"generation {stream[2]}, epoch {epoch + 1}"
            check_loss(objective.loss.item(), where=where, batch=chosen.tolist(), remedy=_REMEDY)
            optimizer.zero_grad(set_to_none=True)
            objective.loss.backward()
            optimizer.step()
            live = (nll.detach() >= floor).float().mean().item()
            sums += len(chosen) * np.array([live, *(term.item() for term in objective)])
        trace.rows.append([gamma_of(floor), *(sums / len(images))])
        progress(epoch + 1, config.epochs, "epochs")
    check_weights(model, where=f"generation {stream[2]}", remedy=_REMEDY)
    confidence = np.exp(-surprises(config, model, images, stream=(*stream, "confidence")))
    gammas, lives, losses, reconstructions, kls = np.array(trace.rows).T
    metrics = {
        "gamma": gammas[-1],
        "live-fraction": lives[-1],
        "live-fraction-mean": lives.mean(),
        "loss": losses[-1],
        "reconstruction": reconstructions[-1],
        "kl": kls[-1],
        "confidence-mean": confidence.mean(),
        "confidence-above-0.9": (confidence > 0.9).mean(),
    }
    return {**to_arrays(model), **trace.arrays(confidence)}, {name: float(value) for name, value in metrics.items()}


@torch.no_grad()
def surprises(config: VaeConfig, model: Vae, images: Tensor, *, stream: tuple[str | int, ...]) -> NDArray[np.float64]:
    """−log p(x|z) of every pixel of `threshold_images` of the images, at one z from q(z|x) each, flat."""
    generator = generator_of(*stream)
    chosen = torch.randperm(len(images), generator=generator)[: config.threshold_images]
    parts = []
    for batch in images[chosen].split(_BATCH):
        mean, log_variance = model.encode(batch)
        z = mean + noise(mean.shape, generator) * (0.5 * log_variance).exp()
        nll = pixel_nll(model, model.decode(z), batch, config=config, generator=generator)
        parts.append(nll.flatten().double())
    return torch.cat(parts).numpy()
