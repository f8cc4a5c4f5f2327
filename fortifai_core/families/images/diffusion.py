"""A small denoising diffusion model as a family of recursive training: does masking confident terms help here too?

DDPM (Ho, Jain and Abbeel 2020) with a cosine schedule (Nichol and Dhariwal 2021). Not in the paper, which names
other model classes as future work. Random streams are named by run and generation, never by the arm.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fortifai_core.families.base import Arrays, Fitted, Mask, Progress
from fortifai_core.families.images import data
from fortifai_core.families.images.clipping import dynamic_floor, fixed_floor, gamma_of, is_dynamic
from fortifai_core.families.images.config import DiffusionConfig
from fortifai_core.families.images.data import to_images, to_pixels
from fortifai_core.families.images.vae_model import clipped, generator_of, one_thread, with_weights
from fortifai_core.language.finite import check_loss, check_weights

SIDE = 8
_EMBEDDING = 64
_BATCH = 512
_REMEDY = "lower family.learning_rate"


class Denoiser(nn.Module):
    """ε̂(x_t, t): noise predicted from noisy pixels (n, 64) in [−1, 1] plus noise, and the step as t / steps, (n,)."""

    def __init__(self, *, hidden: int, blocks: int) -> None:
        super().__init__()
        self.enter = nn.Linear(SIDE**2, hidden)
        self.time = nn.Linear(_EMBEDDING, hidden)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
            for _ in range(blocks)
        )
        self.leave = nn.Linear(hidden, SIDE**2)

    def forward(self, noisy: Tensor, time: Tensor) -> Tensor:
        frequencies = torch.exp(torch.linspace(0, math.log(200.0), _EMBEDDING // 2))
        angles = time[:, None] * frequencies
        step = self.time(torch.cat([angles.sin(), angles.cos()], dim=1))
        state = self.enter(noisy) + step
        for block in self.blocks:
            state = state + block(state + step)
        return self.leave(state)


def alpha_bars(steps: int) -> Tensor:
    """Share of the signal's variance left after t = 0 … steps steps, (steps + 1,) float64; 1 at t = 0.

    Nichol and Dhariwal 2021, equation 17, with each step's β at most 0.999.
    """
    t = torch.arange(steps + 1, dtype=torch.float64) / steps
    curve = torch.cos((t + 0.008) / 1.008 * math.pi / 2).square()
    betas = (1 - curve[1:] / curve[:-1]).clamp(max=0.999)
    return torch.cat([torch.ones(1, dtype=torch.float64), torch.cumprod(1 - betas, dim=0)])


def noised(images: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """x_t = √ᾱ x_0 + √(1−ᾱ) ε (Ho et al., equation 4); `alpha_bar` (n, 1)."""
    return alpha_bar.sqrt() * images + (1 - alpha_bar).sqrt() * noise


def denoise(
    predict: Callable[[Tensor, Tensor], Tensor], *, shape: tuple[int, int], steps: int, generator: torch.Generator
) -> Tensor:
    """Ancestral sampling (Ho et al., Algorithm 2, variance β̃), with the estimate of x_0 kept within [−1, 1].

    Args:
        predict: ε̂ from x_t (n, pixels) and t / steps (n,).
    """
    levels = alpha_bars(steps)
    x = torch.randn(shape, generator=generator)
    for t in range(steps, 0, -1):
        now, before = float(levels[t]), float(levels[t - 1])
        beta = 1 - now / before
        guess = predict(x, torch.full((shape[0],), t / steps))
        clean = ((x - math.sqrt(1 - now) * guess) / math.sqrt(now)).clamp(-1, 1)
        # The mean and variance of q(x_(t−1) | x_t, x_0), equations 6 and 7.
        mean = (math.sqrt(before) * beta * clean + math.sqrt(1 - beta) * (1 - before) * x) / (1 - now)
        variance = (1 - before) / (1 - now) * beta
        x = mean + math.sqrt(variance) * torch.randn(shape, generator=generator)
    return x


class DiffusionFamily(Fitted[DiffusionConfig]):
    """One diffusion model after the other, on scikit-learn's digits."""

    def real(self, *, seed: int) -> Arrays:
        """The training images, {"pixels": (n, 8, 8) uint8, "label": (n,)}; the same for every seed."""
        return data.load(self.config.data, None).train

    def fit(
        self, data: Arrays, *, mask: Mask, generation: int, seed: int, previous: Arrays | None, progress: Progress
    ) -> tuple[Arrays, dict[str, float]]:
        """The weights of M_i, always begun anew; under `trace/` gamma, live share and loss, an entry an epoch.

        Raises:
            NonFiniteLoss: before the optimizer would take the step.
            DataError: images of another size.
            ConfigError: an arm that the family does not have.
        """
        with one_thread():
            images = _flat(data)
            return _fit(self.config, images, mask, ("diffusion", seed, generation), progress)

    def sample(self, parameters: Arrays, *, count: int, generation: int, seed: int) -> Arrays:
        """`count` images in the form of the real ones; the label is -1, for nobody has said what they show."""
        generator = generator_of("diffusion-sample", seed, generation)
        model, parts = _from_arrays(self.config, parameters), []
        with one_thread(), torch.inference_mode():
            for start in range(0, count, _BATCH):
                shape = (min(_BATCH, count - start), SIDE**2)
                drawn = denoise(model, shape=shape, steps=self.config.steps, generator=generator)
                parts.append(to_pixels(((drawn + 1) / 2).clamp(0, 1).reshape(-1, 1, SIDE, SIDE)))
        return {"pixels": np.concatenate(parts), "label": np.full(count, -1, dtype=np.int64)}

    def measure(
        self, parameters: Arrays, sample: Arrays, real: Arrays, *, generation: int, seed: int, first: Arrays
    ) -> dict[str, float]:
        """The measures that `DiffusionConfig.measures` describes; `real` and `first` are not read."""
        from fortifai_core.families.images.measures import measure_samples

        test = _flat(data.load(self.config.data, None).test)
        model = _from_arrays(self.config, parameters)
        with one_thread():
            found = measure_samples(self.config, sample["pixels"], folder=None)
            with torch.inference_mode():
                # Ten noisy copies of every test image, at steps of their own.
                nll = _nll(self.config, model, test.repeat(10, 1), generator_of("diffusion-test", seed, generation))
        return {**found, "denoising-loss": float(2 * nll.double().mean())}


def _flat(data: Arrays) -> Tensor:
    """Images as (n, 64) float32 in [−1, 1]."""
    return to_images(data, side=SIDE).flatten(1).contiguous() * 2 - 1


def _build(config: DiffusionConfig) -> Denoiser:
    with torch.device("meta"):
        model = Denoiser(hidden=config.hidden, blocks=config.blocks)
    return model.to_empty(device="cpu")


def _from_arrays(config: DiffusionConfig, parameters: Arrays) -> Denoiser:
    return with_weights(_build(config), parameters)


def _nll(config: DiffusionConfig, model: Denoiser, images: Tensor, generator: torch.Generator) -> Tensor:
    """½(ε − ε̂)² of every pixel, (n, 64), each image at a step drawn uniformly."""
    step = torch.randint(1, config.steps + 1, (len(images),), generator=generator)
    noise = torch.randn(images.shape, generator=generator)
    noisy = noised(images, noise, alpha_bars(config.steps)[step].float()[:, None])
    return 0.5 * (noise - model(noisy, step / config.steps)).square()


def _fit(
    config: DiffusionConfig, images: Tensor, mask: Mask, stream: tuple[str, int, int], progress: Progress
) -> tuple[Arrays, dict[str, float]]:
    order, noises, weights = (generator_of(*stream, name) for name in ("order", "noise", "weights"))
    floor, model = fixed_floor(mask), _build(config)
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=weights)
            nn.init.zeros_(layer.bias)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate, fused=True)
    total, done, rows = config.epochs * -(-len(images) // config.batch_size), 0, []
    for epoch in range(config.epochs):
        if is_dynamic(mask) and epoch >= config.warmup_epochs:
            floor = dynamic_floor(mask, _surprises(config, model, images, (*stream, "threshold", epoch)))
        sums = np.zeros(2)
        for chosen in torch.randperm(len(images), generator=order).split(config.batch_size):
            nll = _nll(config, model, images[chosen], noises)
            loss = clipped(nll, floor=floor).sum(dim=1).mean()
            where = f"generation {stream[2]}, epoch {epoch + 1}"
            check_loss(loss.item(), where=where, batch=chosen.tolist(), remedy=_REMEDY)
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * (1 - done / total)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            done += 1
            live = (nll.detach() >= floor).float().mean().item()
            sums += len(chosen) * np.array([live, loss.item()])
        rows.append([gamma_of(floor), *(sums / len(images))])
        progress(epoch + 1, config.epochs, "epochs")
    check_weights(model, where=f"generation {stream[2]}", remedy=_REMEDY)
    gammas, lives, losses = np.array(rows).T
    arrays = {name: value.detach().numpy().copy() for name, value in model.state_dict().items()}
    traces = {"trace/gamma": gammas.copy(), "trace/live": lives.copy(), "trace/loss": losses.copy()}
    metrics = {"gamma": gammas[-1], "live-fraction": lives[-1], "live-fraction-mean": lives.mean(), "loss": losses[-1]}
    return {**arrays, **traces}, {name: float(value) for name, value in metrics.items()}


@torch.no_grad()
def _surprises(
    config: DiffusionConfig, model: Denoiser, images: Tensor, stream: tuple[str | int, ...]
) -> NDArray[np.float64]:
    """½(ε − ε̂)² of every pixel of `threshold_images` of the images, flat."""
    generator = generator_of(*stream)
    chosen = torch.randperm(len(images), generator=generator)[: config.threshold_images]
    return _nll(config, model, images[chosen], generator).flatten().double().numpy()
