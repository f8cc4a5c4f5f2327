"""The 1-D Gaussian under recursive training (Figures 2 and C4): many chains side by side, resumable in segments.

    config, mask = GaussianConfig(), ThresholdMask(gamma=0.85)
    first = run_chain(config, mask, seed=0, generations=250)                    # M_0 … M_249
    second = run_chain(config, mask, seed=0, generations=250, state=first.state)    # M_250 … M_499

- `chain.arrays`: "mean", "sigma", "gamma", "live-fraction", "contraction", "amplification"; each float64 of shape
  (generations, replicates), row 0 the first generation of the segment.
- `chain.state`: named arrays to go on from ("generation" of shape (1,), "mean", "sigma", … of shape (replicates,));
  keep them as they are. However a run is cut into segments, the bits are the same.
- `summary(arrays, config=…, mask=…, first=…)`: the measures per generation, one number each, for the long table.
- `predict(config, mask, generations=…)`: the theory's curve, or None where it has none.
- `sample_of(config, seed=…, mean=…, sigma=…)`: samples of a model, for histograms.

A generation draws `samples` values from N(mean, c sigma²), c being λ² or λ, drops what its mask drops, fits mean and
variance to the rest by maximum likelihood (sum over the count, no n − 1), and perturbs both if there is estimator
noise. Generation 0 is fitted to real samples: no λ, and no mask unless `mask_real`. In units of the sample's standard
deviation a generation does not depend on the state of the chain, so all arithmetic on samples is done there.

**What is drawn.** `raw` draws every sample (float32; sums in float64), 1e9 of them for 1,000 generations of 100
replicates of 10,000. `exact` needs no samples: without a mask, mean and variance are independent, N(0, 1/n) and
chi²/n. With a mask no such shortcut exists, but `central-limit` draws the two estimates from their asymptotic
distribution (`theory.refit_moments`), exact to order 1/n in mean and variance of log sigma; tests hold it against
raw draws. `auto` takes `exact` without a mask and `raw` with one.

**Streams.** One stream per (seed, generation), for all replicates; arms share it, so that arms are compared on the same
draws, and the first replicates do not depend on how many there are under `raw`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fortifai_core.errors import ConfigError, DataError, StageFailed
from fortifai_core.families.base import Before, Family, Made, Mask, NoMask, Progress, Span, ThresholdMask
from fortifai_core.families.gaussian import adaptive, theory
from fortifai_core.families.gaussian.config import (
    AdaptiveMask,
    EstimatorNoise,
    GaussianConfig,
    Method,
    NoisyEstimator,
    PredictedOptimumMask,
)
from fortifai_core.seeds import derive_seed

Floats = NDArray[np.float64]
Arrays = dict[str, NDArray[Any]]

SERIES = ("mean", "sigma", "gamma", "live-fraction", "contraction", "amplification")
# Fewer kept samples than this are no sample of a distribution's tails, and the asymptotics don't hold.
_LEAST_KEPT = 20
_LEAST_KEPT_CENTRAL_LIMIT = 500


@dataclass(frozen=True)
class Chain:
    """One segment of a run: `arrays` by generation, `state` to go on from. The module says what is in them."""

    arrays: dict[str, Floats]
    state: Arrays


@dataclass(frozen=True)
class _Refit:
    """Estimates in units of the sample's standard deviation, each of shape (replicates,)."""

    mean: Floats
    variance: Floats
    whole: Floats  # variance of the whole sample, masked or not
    kept: Floats  # share


def mask_gamma(config: GaussianConfig, mask: Mask) -> float | None:
    """The gamma of a mask that has one for the whole run; None for one that changes. Raises ConfigError."""
    if isinstance(mask, NoMask | NoisyEstimator):
        gamma = 1.0
    elif isinstance(mask, ThresholdMask):
        gamma = mask.gamma
    elif isinstance(mask, PredictedOptimumMask):
        gamma = theory.optimal_gamma(
            config.sampling_bias,
            bias_on=config.bias_on,
            density=config.density,
            samples=config.samples if mask.finite_sample else None,
        )
    elif isinstance(mask, AdaptiveMask):
        gamma = mask.low
    else:
        raise ConfigError(
            "arms", mask, "a Gaussian's arm is none, threshold, predicted-optimum, adaptive or noisy-estimator"
        )
    c = float(theory.contraction(config.sampling_bias, bias_on=config.bias_on))
    kept = config.samples * float(theory.gamma_of(theory.interval(gamma, contraction=c, density=config.density)))
    least = _LEAST_KEPT_CENTRAL_LIMIT if config.method == "central-limit" else _LEAST_KEPT
    if kept < least:
        raise ConfigError(
            f"arms.{mask.label}.gamma", gamma, f"keeps {kept:.3g} samples of {config.samples}, not {least}"
        )
    return None if isinstance(mask, AdaptiveMask) else gamma


def run_chain(
    config: GaussianConfig,
    mask: Mask,
    *,
    seed: int,
    generations: int,
    state: Arrays | None = None,
    progress: Progress | None = None,
) -> Chain:
    """The next `generations` generations of every replicate, after `state` (None: from the real data on).

    Raises ConfigError for settings that do not fit together, DataError for a state that is not this run's, and
    StageFailed where sigma leaves the range of numbers.
    """
    if generations < 1:
        raise ConfigError("generations", generations, "must be at least 1")
    fixed = mask_gamma(config, mask)
    method, noise = _method(config, fixed), mask.noise if isinstance(mask, NoisyEstimator) else config.noise
    first, mean, sigma, control = _resume(config, mask, state)
    out = {name: np.empty((generations, config.replicates)) for name in SERIES}
    c = float(theory.contraction(config.sampling_bias, bias_on=config.bias_on))
    for row in range(generations):
        generation = first + row
        real = generation == 0
        gamma = np.full(config.replicates, fixed) if control is None else control.gamma
        if real and not config.mask_real:
            gamma = np.ones(config.replicates)
        shrink = 1.0 if real else c
        rng = np.random.Generator(np.random.SFC64(derive_seed("gaussian", seed, generation)))
        refit = _refit(rng, config, method=method, gamma=gamma, shrink=shrink)
        scale = math.sqrt(shrink) * sigma
        contraction = shrink * refit.whole
        before = sigma
        with np.errstate(over="ignore", invalid="ignore"):  # looked for below
            mean, sigma = mean + scale * refit.mean, scale * np.sqrt(refit.variance)
            mean, sigma = _perturb(noise, mean, sigma, seed=seed, generation=generation)
            amplification = (sigma / before) ** 2 / contraction
        usable = np.isfinite(sigma) & (sigma > 0) & np.isfinite(mean)
        if not usable.all():
            raise StageFailed(
                f"generation {generation} of {mask.label}: sigma of replicate {int(np.argmin(usable))} left the range "
                f"of numbers ({sigma[~usable][0]}); run fewer generations, or choose gamma nearer to the fixed point"
            )
        for name, values in zip(SERIES, (mean, sigma, gamma, refit.kept, contraction, amplification), strict=True):
            out[name][row] = values
        if control is not None and not real:
            assert isinstance(mask, AdaptiveMask)
            control = adaptive.observe(mask, control, contraction=contraction, amplification=amplification)
        if progress is not None:
            progress(row + 1, generations, "generations")
    after: Arrays = {"generation": np.array([first + generations], dtype=np.int64), "mean": mean, "sigma": sigma}
    if control is not None:
        after |= {f"control-{name}": values for name, values in control.arrays().items()}
    return Chain(arrays=out, state=after)


class Gaussian(Family):
    """Chains side by side as a model class: a generation's parameters are those of every replicate."""

    # the controller's state is kept with the last generation of a stage only
    resumable: ClassVar[bool] = False

    def __init__(self, config: GaussianConfig, folder: Path | None = None) -> None:
        self.config = config

    def generations(
        self, span: Span, *, mask: Mask, real: Arrays, before: Before, progress: Progress
    ) -> Iterator[Made]:
        """The generations of a span for all replicates at once; parameters of shape (replicates,)."""
        count, replicates = span.last - span.first + 1, self.config.replicates
        chain = run_chain(
            self.config, mask, seed=span.seed, generations=count, state=before.parameters, progress=progress
        )
        measures = summary(chain.arrays, config=self.config, mask=mask, first=span.first)
        for row in range(count):
            parameters: Arrays = {name: values[row] for name, values in chain.arrays.items()}
            if row == count - 1:
                parameters |= chain.state
            of_row = {name: float(values[row]) for name, values in measures.items()}
            yield Made(span.first + row, parameters, {}, {}, of_row, replicates, replicates)


def predict(config: GaussianConfig, mask: Mask, *, generations: int) -> theory.Prediction | None:
    """What the theory says sigma will do; None for additive noise (no law of growth) and for an adaptive mask."""
    gamma = mask_gamma(config, mask)
    noise = mask.noise if isinstance(mask, NoisyEstimator) else config.noise
    if gamma is None or noise.type == "additive":
        return None
    return theory.predicted_sigma(
        gamma,
        config.sampling_bias,
        generations=generations,
        samples=config.samples,
        bias_on=config.bias_on,
        density=config.density,
        noise_scale=noise.scale_used,
        noise_on=noise.on,
        sigma=config.sigma,
        mask_real=config.mask_real,
    )


def summary(arrays: dict[str, Floats], *, config: GaussianConfig, mask: Mask, first: int = 0) -> dict[str, Floats]:
    """The measures of `GaussianConfig.measures` by generation, each of shape (generations,).

    Args:
        arrays: of a segment, or of segments joined along the first axis.
        first: the generation of row 0.
    """
    low, middle, high = np.quantile(arrays["sigma"], (0.25, 0.5, 0.75), axis=1)
    distance = np.abs(arrays["mean"] - config.mean) / config.sigma
    measures = {"sigma": middle, "sigma-low": low, "sigma-high": high, "mean-spread": np.median(distance, axis=1)}
    measures |= {name: np.median(arrays[name], axis=1) for name in SERIES[2:]}
    prediction = predict(config, mask, generations=first + len(middle))
    if prediction is not None:
        measures["sigma-predicted"] = prediction.median[first:]
    return measures


def sample_of(
    config: GaussianConfig, *, seed: int, generation: int, mean: float, sigma: float, replicate: int = 0
) -> Floats:
    """The samples that generation `generation` was fitted to, nothing dropped: those of a raw run, bit for bit.

    `mean` and `sigma` are those of the model before it (of the real data for generation 0). Shape (samples,).
    """
    c = float(theory.contraction(config.sampling_bias, bias_on=config.bias_on)) if generation else 1.0
    rng = np.random.Generator(np.random.SFC64(derive_seed("gaussian", seed, generation)))
    z = rng.standard_normal((replicate + 1, config.samples), dtype=np.float32)[replicate]
    return mean + math.sqrt(c) * sigma * z.astype(np.float64)


def _method(config: GaussianConfig, gamma: float | None) -> Method:
    unmasked = gamma == 1.0
    if config.method == "exact" and not unmasked:
        raise ConfigError("family.method", "exact", "there is no exact shortcut with a mask; use raw or central-limit")
    if config.method == "auto":
        return "exact" if unmasked else "raw"
    return config.method


def _refit(rng: np.random.Generator, config: GaussianConfig, *, method: Method, gamma: Floats, shrink: float) -> _Refit:
    a = theory.interval(gamma, contraction=shrink, density=config.density)
    n = config.samples
    if method == "exact":
        mean = rng.standard_normal(config.replicates) / math.sqrt(n)
        variance = rng.chisquare(n - 1, config.replicates) / n
        return _Refit(mean=mean, variance=variance, whole=variance, kept=np.ones_like(mean))
    if method == "central-limit":
        return _refit_central_limit(rng, a, config)
    rows = np.empty((4, config.replicates))
    z, work = np.empty(n, dtype=np.float32), np.empty(n, dtype=np.float32)
    for i in range(config.replicates):
        rng.standard_normal(out=z, dtype=np.float32)
        rows[:, i] = _refit_raw(z, work, a=float(a[i]), gamma=float(gamma[i]), density=config.density)
    return _Refit(*rows)


def _refit_raw(
    z: NDArray[np.float32], work: NDArray[np.float32], *, a: float, gamma: float, density: theory.Density
) -> tuple[float, float, float, float]:
    """Mean and variance of the kept part of `z`, variance of all of it, and the kept share; `work` is overwritten."""
    n = z.size
    total = float(z.sum(dtype=np.float64))
    square = float(np.multiply(z, z, out=work).sum(dtype=np.float64))
    centre = total / n
    whole = square / n - centre**2
    # What is dropped is the smaller part, so it is summed and taken off. Nothing is near 0 here, nothing cancels.
    if density == "fitted":
        np.abs(np.subtract(z, np.float32(centre), out=work), out=work)
        cut = a * math.sqrt(whole)
    else:
        np.abs(z, out=work)
        cut = a
    if density == "quantile":
        dropped_count = n - math.ceil(gamma * n - 1e-9)
        cut = float(np.partition(work, dropped_count)[dropped_count]) if dropped_count else 0.0
    dropped = z[work < np.float32(cut)].astype(np.float64)
    kept = n - dropped.size
    mean = (total - float(dropped.sum())) / kept
    variance = (square - float(np.square(dropped).sum())) / kept - mean**2
    return mean, variance, whole, kept / n


def _refit_central_limit(rng: np.random.Generator, a: Floats, config: GaussianConfig) -> _Refit:
    """The estimates from their limiting distribution: log variances jointly normal, the mean normal beside them."""
    n = config.samples
    moments = theory.refit_moments(a, samples=n, density=config.density)
    whole = rng.chisquare(n - 1, a.shape) / n
    plain = theory.refit_moments(0.0, samples=n)
    # log s² given the log variance of the whole sample: its regression, plus what is left.
    slope = moments.covariance / plain.var_log
    rest = np.sqrt(np.maximum(moments.var_log - slope * moments.covariance, 0.0))
    log_variance = moments.mean_log + slope * (np.log(whole) - plain.mean_log) + rest * rng.standard_normal(a.shape)
    mean = np.sqrt(moments.var_mean) * rng.standard_normal(a.shape)
    return _Refit(mean=mean, variance=np.exp(log_variance), whole=whole, kept=theory.gamma_of(a))


def _perturb(
    noise: EstimatorNoise, mean: Floats, sigma: Floats, *, seed: int, generation: int
) -> tuple[Floats, Floats]:
    if noise.type == "none":
        return mean, sigma
    rng = np.random.Generator(np.random.SFC64(derive_seed("gaussian-noise", seed, generation)))
    w = noise.scale_used * rng.standard_normal((mean.size, 2))
    spread = sigma**2 if noise.on == "variance" else sigma
    if noise.type == "additive":
        mean, spread = mean + w[:, 0], np.abs(spread + w[:, 1])
    else:
        mean, spread = mean * (1 + w[:, 0]), np.abs(spread * (1 + w[:, 1]))
    return mean, np.sqrt(spread) if noise.on == "variance" else spread


def _resume(
    config: GaussianConfig, mask: Mask, state: Arrays | None
) -> tuple[int, Floats, Floats, adaptive.BalanceState | None]:
    """(next generation, mean, sigma, controller) to begin a segment with."""
    shape = (config.replicates,)
    adapts = isinstance(mask, AdaptiveMask)
    if state is None:
        control = adaptive.start(mask, shape=shape) if isinstance(mask, AdaptiveMask) else None
        return 0, np.full(shape, config.mean), np.full(shape, config.sigma), control
    prefix = "control-"
    controlled = {name.removeprefix(prefix): array for name, array in state.items() if name.startswith(prefix)}
    if bool(controlled) != adapts:
        raise DataError("state", sorted(state), f"is not of a run of {mask.label}; go on from that run's own state")
    for name in ("mean", "sigma", *(name for name in state if name.startswith(prefix))):
        if name not in state or state[name].shape != shape:
            found = state[name].shape if name in state else "nothing"
            raise DataError(f"state.{name}", found, f"must be an array of {config.replicates} replicates")
    if "generation" not in state or state["generation"].shape != (1,) or state["generation"][0] < 1:
        raise DataError("state.generation", state.get("generation"), "must be one number, 1 or more")
    mean, sigma = (np.array(state[name], dtype=np.float64) for name in ("mean", "sigma"))
    if not (np.isfinite(mean).all() and np.isfinite(sigma).all() and (sigma > 0).all()):
        raise DataError("state.sigma", float(sigma.min()), "must be positive and finite, and the means finite")
    control = adaptive.BalanceState.from_arrays(controlled) if adapts else None
    return int(state["generation"][0]), mean, sigma, control
