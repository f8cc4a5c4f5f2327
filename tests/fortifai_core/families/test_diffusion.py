"""The diffusion model of the digits: its schedule and sampler against closed forms, and the family's rules."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from fortifai_core.errors import DataError
from fortifai_core.families.base import Arrays, Generation, Mask, NoMask, Results, Run, ThresholdMask
from fortifai_core.families.images.config import DiffusionConfig, DynamicQuantileMask
from fortifai_core.families.images.diffusion import DiffusionFamily, alpha_bars, denoise, noised
from fortifai_core.families.registry import draw, family_from_config

TINY = DiffusionConfig(hidden=32, blocks=1, epochs=3, steps=20)


def nothing(done: int, total: int, unit: str) -> None:
    pass


def fit(mask: Mask, *, seed: int = 0, config: DiffusionConfig = TINY) -> tuple[Arrays, dict[str, float]]:
    family = DiffusionFamily(config)
    data = {name: values[:200] for name, values in family.real(seed=0).items()}
    return family.fit(data, mask=mask, generation=0, seed=seed, previous=None, progress=nothing)


def weights(parameters: Arrays) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in parameters.items() if not name.startswith("trace/")}


def test_noise_grows_step_by_step_and_keeps_the_variance() -> None:
    levels = alpha_bars(50)
    assert levels[0] == 1
    assert (levels[1:] < levels[:-1]).all()
    assert levels[-1] < 1e-3
    generator = torch.Generator().manual_seed(0)
    unit = torch.randn(100_000, 1, generator=generator)
    for t in (1, 25, 50):
        x = noised(unit, torch.randn(unit.shape, generator=generator), levels[t].float()[None, None])
        assert x.var().item() == pytest.approx(1, rel=0.02)
        covariance = (x * unit).mean().item()
        assert covariance == pytest.approx(levels[t].sqrt().item(), abs=0.02)


def test_the_best_denoiser_of_a_gaussian_gives_back_the_gaussian() -> None:
    """For x_0 ~ N(m, s²) the best ε̂ is √(1−ᾱ) (x − √ᾱ m) / (ᾱ s² + 1 − ᾱ); sampling with it must end at N(m, s²)."""
    m, s = 0.3, 0.15

    def drawn(steps: int) -> torch.Tensor:
        levels = alpha_bars(steps)

        def best(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
            a = float(levels[round(float(time[0]) * steps)])
            return math.sqrt(1 - a) * (x - math.sqrt(a) * m) / (a * s**2 + 1 - a)

        return denoise(best, shape=(20_000, 1), steps=steps, generator=torch.Generator().manual_seed(1))

    fine = drawn(1000)
    assert fine.mean().item() == pytest.approx(m, abs=0.005)
    assert fine.std().item() == pytest.approx(s, rel=0.02)
    # β̃ is the right variance for one image alone, so few steps lose some of the spread.
    assert drawn(50).std() < drawn(200).std() < fine.std()


def test_gamma_one_is_the_plain_loss_to_the_bit_and_clipping_is_not() -> None:
    plain, metrics = fit(NoMask())
    again, _ = fit(ThresholdMask(gamma=1))
    assert weights(plain) == weights(again)
    assert metrics["live-fraction"] == 1
    clipped, metrics = fit(ThresholdMask(gamma=0.9))
    assert weights(clipped) != weights(plain)
    assert 0 < metrics["live-fraction"] < 1
    assert weights(fit(NoMask(), seed=1)[0]) != weights(plain)


def test_dynamic_clipping_keeps_its_share_live() -> None:
    parameters, _ = fit(DynamicQuantileMask(quantile=0.75))
    assert parameters["trace/live"][0] == 1
    assert parameters["trace/live"][1:] == pytest.approx(0.75, abs=0.05)


def test_it_learns_to_denoise_measures_what_it_makes_and_shows_it(tmp_path: Path) -> None:
    config = TINY.model_copy(update={"epochs": 30, "hidden": 64})
    family = family_from_config(config)
    parameters, _ = fit(NoMask(), config=config)
    # Predicting no noise at all would leave 64 pixels' half squares of it.
    assert parameters["trace/loss"][-1] < 0.75 * 64 / 2
    images = [family.sample(parameters, count=60, generation=0, seed=s) for s in (0, 0, 1)]
    assert images[0]["pixels"].tobytes() == images[1]["pixels"].tobytes() != images[2]["pixels"].tobytes()
    assert images[0]["pixels"].shape == (60, 8, 8)
    measured = family.measure(parameters, images[0], {}, generation=0, seed=0, first=parameters)
    assert set(measured) == set(DiffusionConfig.measures)
    assert 0 < measured["denoising-loss"] < 0.8
    run = Run("ddpm", 0, (Generation(0, measured, images[0], parameters),))
    figures = draw(Results(config, ("ddpm",), family.real(seed=0), (run,)), tmp_path)
    assert [figure.name for figure in figures] == ["diffusion-samples"]


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(DataError, match=r"\(n, 8, 8\)"):
        DiffusionFamily(TINY).fit(
            {"pixels": np.zeros((5, 28, 28), "uint8")},
            mask=NoMask(),
            generation=0,
            seed=0,
            previous=None,
            progress=nothing,
        )
