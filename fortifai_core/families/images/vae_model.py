"""The convolutional VAE: encoder, decoder, what p(x|z) is for a pixel, the ELBO and the Clipped ELBO."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from fortifai_core.families.base import Arrays
from fortifai_core.families.images.config import VaeConfig
from fortifai_core.seeds import derive_seed

M = TypeVar("M", bound=nn.Module)
LEVELS = 256


class Vae(nn.Module):
    """p(z) standard normal, q(z|x) a diagonal Gaussian; two strided convolutions each way (the paper names none).

    Images are (n, 1, side, side) in [0, 1]; side is a multiple of 4.
    """

    def __init__(self, *, side: int, latent: int, channels: int, learn_scale: bool = False) -> None:
        super().__init__()
        cells = channels * (side // 4) ** 2
        self.encoder = nn.Sequential(
            nn.Conv2d(1, channels, 4, 2, 1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 4, 2, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(cells, 2 * latent),
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent, cells),
            nn.ReLU(),
            nn.Unflatten(1, (channels, side // 4, side // 4)),
            nn.ConvTranspose2d(channels, channels, 4, 2, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(channels, 1, 4, 2, 1),
        )
        # Of the logistic distribution of a grey level; the same for all pixels.
        self.log_scale = nn.Parameter(torch.empty(())) if learn_scale else None

    def initialise(self, generator: torch.Generator) -> None:
        """PyTorch's usual uniform initialisation, drawn from `generator` instead of the process's random state."""
        with torch.no_grad():
            for layer in self.modules():
                if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                    nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=generator)
                    fan_in = layer.weight[0].numel()
                    assert layer.bias is not None
                    nn.init.uniform_(layer.bias, -1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in), generator=generator)
            if self.log_scale is not None:
                self.log_scale.fill_(math.log(0.1))

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of q(z|x), each (n, latent)."""
        mean, log_variance = self.encoder(images).chunk(2, dim=1)
        return mean, log_variance

    def decode(self, latents: Tensor) -> Tensor:
        """Logits of the pixels' means, (n, 1, side, side)."""
        return self.decoder(latents)


def generator_of(*parts: str | int) -> torch.Generator:
    """The random stream of that name."""
    return torch.Generator().manual_seed(derive_seed(*parts))


def build(config: VaeConfig) -> Vae:
    """An uninitialised VAE of this configuration; no random number is drawn."""
    with torch.device("meta"):
        model = Vae(
            side=config.side,
            latent=config.latent,
            channels=config.channels,
            learn_scale=config.likelihood == "discretised",
        )
    model = model.to_empty(device="cpu")
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it


def to_arrays(model: Vae) -> Arrays:
    """The weights as named arrays, copied."""
    return {name: value.detach().contiguous().numpy().copy() for name, value in model.state_dict().items()}


def from_arrays(config: VaeConfig, parameters: Arrays) -> Vae:
    """The VAE with these weights."""
    return with_weights(build(config), parameters)


def with_weights(model: M, parameters: Arrays) -> M:
    """The model with these weights; arrays under `trace/` are the fit's record, no weights."""
    weights = {name: torch.tensor(value) for name, value in parameters.items() if not name.startswith("trace/")}
    model.load_state_dict(weights)
    return model.eval()


def pixel_nll(model: Vae, logits: Tensor, images: Tensor, *, config: VaeConfig, generator: torch.Generator) -> Tensor:
    """−log p(x|z) of every pixel, ≥ 0; exp(−nll) is the model's confidence in it, which gamma is compared with.

    Args:
        logits, images: (n, 1, side, side); images in [0, 1].
        generator: draws black or white, for `binarised` only.

    Returns:
        Like `images`. For `gaussian` relative to the density's peak (its constant is left out), so that it is a
        confidence in (0, 1] as well; `log_peak` is the rest.
    """
    if config.likelihood == "bernoulli":
        return functional.binary_cross_entropy_with_logits(logits, images, reduction="none")
    if config.likelihood == "binarised":
        drawn = torch.bernoulli(images, generator=generator)
        return functional.binary_cross_entropy_with_logits(logits, drawn, reduction="none")
    if config.likelihood == "gaussian":
        return (images - logits.sigmoid()).square() / (2 * config.sigma**2)
    assert model.log_scale is not None
    # Salimans et al. 2017 (PixelCNN++), one component: the logistic's mass between the midpoints to the levels beside.
    centred, scale = images - logits.sigmoid(), model.log_scale.exp()
    above = (centred + 0.5 / (LEVELS - 1)) / scale
    below = (centred - 0.5 / (LEVELS - 1)) / scale
    # log(σ(a) − σ(b)) = log σ(a) + log σ(−b) + log(1 − e^(b−a)), exact where both tails are far out.
    inside = functional.logsigmoid(above) + functional.logsigmoid(-below) + torch.log(-torch.expm1(below - above))
    darkest, brightest = functional.logsigmoid(above), functional.logsigmoid(-below)
    return -torch.where(images <= 0, darkest, torch.where(images >= 1, brightest, inside))


def log_peak(config: VaeConfig) -> float:
    """What `pixel_nll` leaves out of an image's log-likelihood: the log of the Gaussian's peaks, 0 otherwise."""
    return (
        -(config.side**2) * math.log(config.sigma * math.sqrt(2 * math.pi)) if config.likelihood == "gaussian" else 0.0
    )


def draw_pixels(model: Vae, logits: Tensor, *, config: VaeConfig, generator: torch.Generator) -> Tensor:
    """Images in [0, 1] for these logits: the mean, or drawn from p(x|z) (`draws`), clipped to black and white."""
    mean = logits.sigmoid()
    if config.draws == "mean":
        return mean
    if config.likelihood in ("bernoulli", "binarised"):
        return torch.bernoulli(mean, generator=generator)
    if config.likelihood == "gaussian":
        return (mean + config.sigma * torch.randn(mean.shape, generator=generator)).clamp(0, 1)
    assert model.log_scale is not None
    uniform = torch.rand(mean.shape, generator=generator).clamp(1e-7, 1 - 1e-7)
    return (mean + model.log_scale.exp() * torch.logit(uniform)).clamp(0, 1)


class Objective(NamedTuple):
    """The negative (Clipped) ELBO, a mean over images in nats, and what it is made of."""

    loss: Tensor
    reconstruction: Tensor
    kl: Tensor


def kl_to_prior(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(q(z|x) ‖ N(0, I)) of each image in nats, (n,) (Kingma and Welling 2014, appendix B)."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=1)


def clipped(nll: Tensor, *, floor: float) -> Tensor:
    """−log p where it is at least `floor` = −log gamma, else 0: `losses.truncated` with its threshold in nats.

    A gamma nearer to 1 than numbers can tell still has a floor of its own. −inf masks nothing, to the bit.
    """
    return nll.masked_fill(nll < floor, 0.0)


def clipped_elbo(nll: Tensor, mean: Tensor, log_variance: Tensor, *, floor: float) -> Objective:
    """The negative Clipped ELBO (ForTIFAI, Section 4.8): pixels with p(x|z) > gamma drop out of the reconstruction.

    The mask is a constant for the gradient; a masked pixel counts as 0 in its image's sum, and the KL term stays
    whole, so the fewer pixels live, the more it weighs. gamma = 1, a floor of −inf, is the ELBO, to the bit.

    Args:
        floor: −log gamma (`clipping.floor_of`).
    """
    reconstruction = clipped(nll, floor=floor).flatten(1).sum(dim=1).mean()
    kl = kl_to_prior(mean, log_variance).mean()
    return Objective(reconstruction + kl, reconstruction, kl)


def noise(shape: Any, generator: torch.Generator) -> Tensor:
    """Standard normal numbers from `generator`."""
    return torch.randn(shape, generator=generator)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread: sums over several are taken in an order that depends on their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
