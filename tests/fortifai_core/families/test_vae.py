"""The VAE under recursive training: ELBO and Clipped ELBO, dynamic clipping, likelihoods, the family, MNIST's files."""

from __future__ import annotations

import gzip
import math
import struct
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.stats import logistic, norm

from fortifai_core.errors import ConfigError, DataError, NonFiniteLoss
from fortifai_core.families.base import Arrays, Generation, Mask, NoMask, Results, Run, ThresholdMask
from fortifai_core.families.images import clipping
from fortifai_core.families.images.config import (
    MEASURES,
    DigitsData,
    DynamicIntersectionMask,
    DynamicQuantileMask,
    MnistData,
    VaeConfig,
)
from fortifai_core.families.images.figures import draw, preview
from fortifai_core.families.images.idx import parse_idx, read_mnist
from fortifai_core.families.images.vae import VaeFamily
from fortifai_core.families.images.vae_model import (
    build,
    clipped,
    clipped_elbo,
    draw_pixels,
    kl_to_prior,
    log_peak,
    pixel_nll,
)
from kernels.losses import truncated

TINY = VaeConfig(
    likelihood="bernoulli", channels=8, latent=4, epochs=3, batch_size=64, learning_rate=1e-3, threshold_images=64
)


def nothing(done: int, total: int, unit: str) -> None:
    pass


def fit(
    config: VaeConfig, mask: Mask, data: Arrays | None = None, *, generation: int = 0, seed: int = 0, **more: Any
) -> tuple[Arrays, dict[str, float]]:
    family = VaeFamily(config)
    data = {name: values[:200] for name, values in family.real(seed=0).items()} if data is None else data
    given = {"previous": None, "progress": nothing, **more}
    return family.fit(data, mask=mask, generation=generation, seed=seed, **given)


@lru_cache
def plain() -> tuple[Arrays, dict[str, float]]:
    return fit(TINY, NoMask())


def weights(parameters: Arrays) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in parameters.items() if not name.startswith("trace/")}


# ------------------------------------------------------------------------------------------------ objective


def test_kl_to_prior_against_torch() -> None:
    torch.manual_seed(0)
    mean, log_variance = torch.randn(5, 3), torch.randn(5, 3)
    own = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    expected = torch.distributions.kl_divergence(own, torch.distributions.Normal(0, 1)).sum(dim=1)
    torch.testing.assert_close(kl_to_prior(mean, log_variance), expected)


def test_clipped_elbo_by_hand() -> None:
    """Three pixels with p = 0.5, 0.9, 0.95: at gamma = 0.9 only the last is above it, and counts nothing."""
    nll = (-torch.tensor([[0.5, 0.9, 0.95]], dtype=torch.float64).log()).requires_grad_()
    mean, log_variance = torch.full((1, 2), 0.3), torch.zeros(1, 2)
    found = clipped_elbo(nll, mean, log_variance, floor=clipping.floor_of(0.9 + 1e-9))
    assert found.reconstruction.item() == pytest.approx(-math.log(0.5) - math.log(0.9))
    assert found.kl.item() == pytest.approx(2 * 0.3**2 / 2)
    assert found.loss.item() == pytest.approx(found.reconstruction.item() + found.kl.item())
    found.loss.backward()
    assert nll.grad is not None
    assert nll.grad.tolist() == [[1, 1, 0]]


@pytest.mark.parametrize("start", ["fresh", "previous"])
def test_gamma_one_is_the_elbo_to_the_bit(start: Any) -> None:
    config = TINY.model_copy(update={"start": start})
    plain_weights, _ = plain()
    for mask in (NoMask(), ThresholdMask(gamma=1)):
        again, metrics = fit(config, mask, generation=0, previous=plain_weights if start == "previous" else None)
        if start == "fresh":
            assert weights(again) == weights(plain_weights)
        else:
            assert weights(again) != weights(plain_weights)
            plain_again, _ = fit(config, NoMask(), previous=plain_weights)
            assert weights(again) == weights(plain_again)
        assert metrics["live-fraction"] == 1


def test_clipping_changes_the_fit_and_masks_more_the_lower_gamma() -> None:
    config, live = TINY.model_copy(update={"epochs": 15, "learning_rate": 3e-3}), []
    unclipped = weights(fit(config, NoMask())[0])
    for gamma in (0.95, 0.7):
        clipped, metrics = fit(config, ThresholdMask(gamma=gamma))
        assert weights(clipped) != unclipped
        live.append(metrics["live-fraction"])
    assert 1 > live[0] > live[1] > 0


# ------------------------------------------------------------------------------------------------ dynamic clipping


def test_quantile_masks_the_share_it_names() -> None:
    confidence = np.random.default_rng(0).beta(2, 1, 100_001)
    floor = clipping.quantile_floor(-np.log(confidence), quantile=0.8)
    assert (-np.log(confidence) < floor).mean() == pytest.approx(0.2, abs=1e-4)
    # Beta(2, 1) has the distribution function x².
    assert clipping.gamma_of(floor) == pytest.approx(math.sqrt(0.8), abs=0.01)


def test_quantile_tells_apart_confidences_that_round_to_one() -> None:
    """Sure of all pixels but a few, to 1e-20 and less: in float64 all of them have p = 1."""
    nll = np.concatenate([np.linspace(1e-30, 1e-20, 9_000), np.full(1_000, 0.5)])
    floor = clipping.quantile_floor(nll, quantile=0.8)
    kept = clipped(torch.from_numpy(nll), floor=floor)
    assert (kept == 0).double().mean().item() == pytest.approx(0.2, abs=1e-3)
    assert clipping.gamma_of(floor) == 1


def test_the_floor_masks_what_truncated_cross_entropy_does() -> None:
    nll = torch.linspace(0, 1, 1001)
    for gamma in (0.5, 0.9, 1.0):
        assert torch.equal(clipped(nll, floor=clipping.floor_of(gamma)), truncated(gamma).value(nll))
        assert clipping.gamma_of(clipping.floor_of(gamma)) == pytest.approx(gamma)


def test_crossing_of_two_gaussians() -> None:
    """Alike but for their means they cross halfway; otherwise where the weighted densities are equal."""
    assert clipping.gaussian_crossing((0.5, 0.2, 0.1), (0.5, 0.6, 0.1)) == pytest.approx(0.4)
    low, high = (0.3, 0.4, 0.15), (0.7, 0.9, 0.05)
    x = clipping.gaussian_crossing(low, high)
    assert 0.4 < x < 0.9
    assert low[0] * norm.pdf(x, *low[1:]) == pytest.approx(high[0] * norm.pdf(x, *high[1:]))
    # The broad one is above the other between both means: no crossing there, nothing is masked.
    assert clipping.gaussian_crossing((0.99, 0.5, 0.2), (0.01, 0.55, 0.2)) == 1


def test_crossing_is_found_in_samples() -> None:
    rng = np.random.default_rng(1)
    sample = np.concatenate([rng.normal(0.4, 0.1, 30_000), rng.normal(0.9, 0.03, 70_000)]).clip(0, 1)
    expected = clipping.gaussian_crossing((0.3, 0.4, 0.1), (0.7, 0.9, 0.03))
    assert clipping.intersection_gamma(sample) == pytest.approx(expected, abs=0.01)
    assert clipping.intersection_gamma(np.full(100, 0.7)) == 1


def test_dynamic_quantile_keeps_its_share_live_after_the_warm_up() -> None:
    parameters, metrics = fit(TINY, DynamicQuantileMask(quantile=0.75))
    gammas = parameters["trace/gamma"]
    assert gammas[0] == 1
    assert parameters["trace/live"][0] == 1
    assert len(set(gammas)) == TINY.epochs
    # The threshold is from before the epoch, the model learns during it.
    assert parameters["trace/live"][1:] == pytest.approx(0.75, abs=0.1)
    assert metrics["gamma"] == gammas[-1]


def test_dynamic_intersection_is_a_threshold_of_its_own_each_epoch() -> None:
    parameters, _ = fit(TINY, DynamicIntersectionMask())
    assert parameters["trace/gamma"][0] == 1
    assert ((parameters["trace/gamma"] > 0) & (parameters["trace/gamma"] <= 1)).all()


def test_an_arm_of_another_family_is_refused() -> None:
    class Strange(Mask):
        type: str = "adaptive"
        label: str = "strange"

    with pytest.raises(ConfigError, match="adaptive"):
        fit(TINY, Strange())


# ------------------------------------------------------------------------------------------------ likelihood


def pixels(likelihood: Any, logits: torch.Tensor, images: torch.Tensor, **more: Any) -> torch.Tensor:
    config = TINY.model_copy(update={"likelihood": likelihood, **more})
    model = build(config)
    if model.log_scale is not None:
        model.log_scale.data.fill_(math.log(0.1))
    return pixel_nll(model, logits, images, config=config, generator=torch.Generator().manual_seed(0))


def test_bernoulli_with_a_grey_target() -> None:
    """p^x (1−p)^(1−x); a grey pixel's confidence is at most exp(−entropy), reached at p = x."""
    x, p = torch.tensor([0.0, 1.0, 0.3]), torch.tensor([0.2, 0.7, 0.6])
    found = pixels("bernoulli", torch.logit(p), x)
    expected = p**x * (1 - p) ** (1 - x)
    torch.testing.assert_close((-found).exp(), expected)
    grid = torch.linspace(0.01, 0.99, 99)
    best = pixels("bernoulli", torch.logit(grid), torch.full((99,), 0.3)).argmin()
    assert grid[best].item() == pytest.approx(0.3)


def test_binarised_is_the_bernoulli_one_on_average() -> None:
    """The loss is linear in the target, so its mean over the draws is the loss of the grey pixel."""
    x, logits = torch.full((200_000,), 0.3), torch.full((200_000,), 0.7)
    drawn = pixels("binarised", logits, x)
    assert len(drawn.unique()) == 2
    assert drawn.mean().item() == pytest.approx(pixels("bernoulli", logits[:1], x[:1]).item(), rel=0.01)


def test_gaussian_is_a_share_of_the_peak() -> None:
    x, p = torch.tensor([0.1, 0.5]), torch.tensor([0.3, 0.5])
    found = pixels("gaussian", torch.logit(p), x, sigma=0.25)
    expected = [-math.log(norm.pdf(a, b, 0.25) / norm.pdf(0, 0, 0.25)) for a, b in ((0.1, 0.3), (0.5, 0.5))]
    assert found.tolist() == pytest.approx(expected, abs=1e-6)
    config = TINY.model_copy(update={"likelihood": "gaussian", "sigma": 0.25})
    assert log_peak(config) == pytest.approx(64 * norm.logpdf(0, 0, 0.25))


@pytest.mark.parametrize("mean", [0.02, 0.5, 0.9])
def test_discretised_sums_to_one_over_the_grey_levels(mean: float) -> None:
    levels = torch.arange(256) / 255
    found = pixels("discretised", torch.logit(torch.full((256,), mean)), levels)
    assert (-found).exp().sum().item() == pytest.approx(1, abs=1e-5)
    inside = logistic.cdf(100.5 / 255, mean, 0.1) - logistic.cdf(99.5 / 255, mean, 0.1)
    assert math.exp(-found[100].item()) == pytest.approx(inside, rel=1e-4)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian", "discretised"])
def test_drawn_pixels_scatter_around_the_mean(likelihood: Any) -> None:
    config = TINY.model_copy(update={"likelihood": likelihood, "draws": "sample", "sigma": 0.05})
    model = build(config)
    if model.log_scale is not None:
        model.log_scale.data.fill_(math.log(0.02))
    logits = torch.logit(torch.full((50_000,), 0.4))
    generator = torch.Generator().manual_seed(0)
    drawn = draw_pixels(model, logits, config=config, generator=generator)
    sigma = {"bernoulli": math.sqrt(0.24), "gaussian": 0.05, "discretised": 0.02 * math.pi / math.sqrt(3)}[likelihood]
    assert drawn.mean().item() == pytest.approx(0.4, abs=0.01)
    assert drawn.std().item() == pytest.approx(sigma, rel=0.02)
    still = draw_pixels(model, logits, config=TINY, generator=generator)
    assert still.tolist() == pytest.approx([0.4] * 50_000)


@pytest.mark.parametrize("likelihood", ["binarised", "gaussian", "discretised"])
def test_every_likelihood_learns(likelihood: Any) -> None:
    config = TINY.model_copy(update={"likelihood": likelihood, "epochs": 6})
    parameters, _ = fit(config, NoMask())
    assert parameters["trace/loss"][-1] < parameters["trace/loss"][0]
    assert len(parameters["trace/loss"]) == 6


# ------------------------------------------------------------------------------------------------ the family


def test_the_same_seed_gives_the_same_bits_and_another_does_not() -> None:
    parameters, metrics = plain()
    torch.manual_seed(99)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        again, metrics_again = fit(TINY, NoMask())
    finally:
        torch.set_num_threads(threads)
    assert {n: v.tobytes() for n, v in again.items()} == {n: v.tobytes() for n, v in parameters.items()}
    assert metrics_again == metrics
    family = VaeFamily(TINY)
    images = [family.sample(parameters, count=600, generation=0, seed=s)["pixels"] for s in (0, 0, 1)]
    assert images[0].tobytes() == images[1].tobytes() != images[2].tobytes()
    assert images[0].shape == (600, 8, 8)
    assert weights(fit(TINY, NoMask(), seed=1)[0]) != weights(parameters)
    assert weights(fit(TINY, NoMask(), generation=1)[0]) != weights(parameters)


def test_progress_is_reported_and_the_loss_falls() -> None:
    seen: list[tuple[int, int, str]] = []
    parameters, metrics = fit(TINY, NoMask(), progress=lambda *told: seen.append(told))
    assert seen == [(1, 3, "epochs"), (2, 3, "epochs"), (3, 3, "epochs")]
    assert parameters["trace/loss"][-1] < parameters["trace/loss"][0]
    assert metrics["loss"] == pytest.approx(metrics["reconstruction"] + metrics["kl"])
    assert parameters["trace/confidence"].sum() == 64 * 64


def test_a_loss_that_is_not_finite_stops_the_fit() -> None:
    broken = {name: np.full_like(value, np.nan) for name, value in plain()[0].items() if not name.startswith("trace/")}
    with pytest.raises(
        NonFiniteLoss, match=r"generation 1, epoch 1: the training loss became nan on the batch of rows \d"
    ):
        fit(TINY.model_copy(update={"start": "previous"}), NoMask(), generation=1, previous=broken)


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(DataError, match=r"\(n, 8, 8\)"):
        fit(TINY, NoMask(), {"pixels": np.zeros((5, 28, 28), "uint8")})
    with pytest.raises(DataError, match="float"):
        fit(TINY, NoMask(), {"pixels": np.zeros((5, 8, 8))})


@lru_cache
def chain() -> Results:
    """Two generations of two arms, the second trained on the first one's samples."""
    family, runs = VaeFamily(TINY), []
    real = family.real(seed=0)
    for mask, arm in ((NoMask(), "elbo"), (DynamicQuantileMask(), "dynamic-q0.8")):
        data, generations = {name: values[:300] for name, values in real.items()}, []
        parameters: Arrays | None = None
        for i in range(2):
            parameters, metrics = family.fit(
                data, mask=mask, generation=i, seed=0, previous=parameters, progress=nothing
            )
            data = family.sample(parameters, count=300, generation=i, seed=0)
            measured = family.measure(parameters, data, real, generation=i, seed=0, first=parameters)
            generations.append(Generation(i, {**metrics, **measured}, data, parameters))
        runs.append(Run(arm, 0, tuple(generations)))
    return Results(TINY, ("elbo", "dynamic-q0.8"), real, tuple(runs))


def test_a_chain_of_two_generations_has_every_measure() -> None:
    for run in chain().runs:
        for generation in run.generations:
            measured = {name: generation.metrics[name] for name in MEASURES}
            assert all(math.isfinite(value) for value in measured.values())
            assert 0 <= measured["coverage"] <= 1
            assert measured["frechet"] > measured["frechet-floor"]
            assert measured["reconstruction-accuracy"] <= measured["classifier-accuracy"]


def test_the_measured_elbo_is_the_trained_one() -> None:
    """An ELBO of real images is near the one at the end of training on images of the same kind."""
    config = TINY.model_copy(update={"epochs": 10})
    family = VaeFamily(config)
    real = family.real(seed=0)
    parameters, metrics = family.fit(real, mask=NoMask(), generation=0, seed=0, previous=None, progress=nothing)
    sample = family.sample(parameters, count=100, generation=0, seed=0)
    measured = family.measure(parameters, sample, real, generation=0, seed=0, first=parameters)
    assert -measured["elbo"] == pytest.approx(metrics["loss"], rel=0.05)


def test_figures_are_drawn_and_the_same_twice(tmp_path: Path) -> None:
    figures = draw(chain(), tmp_path / "a")
    assert [figure.name for figure in figures] == ["vae-samples", "vae-kept", "vae-confidence"]
    for figure in figures:
        assert [path.suffix for path in figure.paths] == [".svg", ".png"]
        assert all(path.stat().st_size > 1000 for path in figure.paths)
    for figure, again in zip(figures, draw(chain(), tmp_path / "b"), strict=True):
        assert [path.read_bytes() for path in figure.paths] == [path.read_bytes() for path in again.paths]
    bare = tuple(
        Run(run.arm, run.seed, tuple(Generation(g.generation, g.metrics) for g in run.generations))
        for run in chain().runs
    )
    assert draw(Results(TINY, chain().arms, {}, bare), tmp_path / "c") == [], "nothing to show without images"


def test_a_preview_shows_real_and_made_images(tmp_path: Path) -> None:
    results = chain()
    sample = results.runs[0].generations[-1].sample
    preview(real=results.real, sample=sample, parameters={}, title="elbo · M1", path=tmp_path / "preview.png")
    assert (tmp_path / "preview.png").read_bytes().startswith(b"\x89PNG")


def test_settings_that_clip_nothing_are_refused() -> None:
    with pytest.raises(ValidationError, match="no epoch of 3 would be clipped"):
        VaeConfig(epochs=3, warmup_epochs=3)


# ------------------------------------------------------------------------------------------------ MNIST's files


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype("uint8").tobytes()


def mnist(folder: Path, count: int = 400) -> Path:
    rng = np.random.default_rng(0)
    folder.mkdir()
    for part in ("train", "t10k"):
        labels = np.arange(count) % 10
        images = rng.integers(0, 256, (count, 28, 28))
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))
    return folder


def test_idx_files_plain_and_packed() -> None:
    array = np.arange(24).reshape(2, 3, 4)
    assert (parse_idx(idx(array), name="x") == array).all()
    assert (parse_idx(gzip.compress(idx(array)), name="x") == array).all()
    floats = struct.pack(">HBBI2f", 0, 0x0D, 1, 2, 1.5, -2.0)
    assert parse_idx(floats, name="x").tolist() == [1.5, -2.0]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "does not begin like an IDX file"),
        (b"PK\x03\x04", "does not begin like an IDX file"),
        (idx(np.zeros((2, 3)))[:6], "ends inside the header"),
        (idx(np.zeros((2, 3)))[:-1], r"its header says \(2, 3\), that is 18 bytes"),
        (idx(np.zeros((2, 3))) + b"\0", "its header says"),
        (gzip.compress(idx(np.zeros((20, 30))), mtime=0)[:-12], "is a damaged gzip file"),
    ],
)
def test_damaged_idx_files(raw: bytes, message: str) -> None:
    with pytest.raises(DataError, match=f"here.gz = .*{message}"):
        parse_idx(raw, name="here.gz")


def test_mnist_from_a_folder(tmp_path: Path) -> None:
    folder = mnist(tmp_path / "mnist")
    images, labels = read_mnist(folder, "train")
    assert images.shape == (400, 28, 28)
    assert labels[:3].tolist() == [0, 1, 2]
    family = VaeFamily(VaeConfig(data=MnistData(train=105, test=100)), folder)
    real = family.real(seed=0)
    assert real["pixels"].shape == (105, 28, 28)
    assert sorted(np.bincount(real["label"])) == [10] * 5 + [11] * 5
    first = VaeFamily(VaeConfig(data=MnistData(train=105, test=100, selection="first")), folder).real(seed=0)
    assert (first["pixels"] == images[:105]).all()


def test_mnist_that_is_missing_or_too_small(tmp_path: Path) -> None:
    config = VaeConfig(data=MnistData(train=500, test=100))
    with pytest.raises(DataError, match="no folder was given"):
        VaeFamily(config).real(seed=0)
    with pytest.raises(DataError, match="train-images-idx3-ubyte"):
        VaeFamily(config, tmp_path).real(seed=0)
    with pytest.raises(DataError, match="500 of part train are asked for"):
        VaeFamily(config, mnist(tmp_path / "mnist")).real(seed=0)


def test_a_vae_reads_mnist_sized_images(tmp_path: Path) -> None:
    config = VaeConfig(data=MnistData(train=100, test=100), channels=4, epochs=2, batch_size=50, classifier_epochs=1)
    family = VaeFamily(config, mnist(tmp_path / "mnist"))
    real = family.real(seed=0)
    parameters, _ = family.fit(
        real, mask=ThresholdMask(gamma=0.9), generation=0, seed=0, previous=None, progress=nothing
    )
    sample = family.sample(parameters, count=60, generation=0, seed=0)
    measured = family.measure(parameters, sample, real, generation=0, seed=0, first=parameters)
    assert set(MEASURES) == set(measured)


def test_digits_config_has_the_images_size() -> None:
    assert (VaeConfig(data=DigitsData()).side, VaeConfig(data=MnistData()).side) == (8, 28)
