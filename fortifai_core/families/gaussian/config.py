"""Settings of the 1-D Gaussian under recursive training, and the masks that are its arms."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from fortifai_core.families.base import FamilyConfig, Mask
from fortifai_core.families.gaussian.adaptive import BalanceSettings
from fortifai_core.settings import Frozen, Inconsistent

BiasOn = Literal["sigma", "variance"]
Density = Literal["fitted", "quantile", "sampler", "model"]
Method = Literal["auto", "raw", "exact", "central-limit"]


class EstimatorNoise(Frozen):
    """An imperfect estimator (Appendix C): the estimates of mean and spread are perturbed in every generation.

    `multiplicative`: estimate · (1 + scale · w), w ~ N(0, 1), as the authors' code does (scale 0.1).
    `additive`: estimate + scale · w, as the paper's text says (scale 1). At that scale the noise is as large as the
    spread of the real data, and does not shrink with the model's: the spread cannot collapse, it walks away. A
    perturbed spread below 0 is no spread: its absolute value is taken, which is what w's sign amounts to.
    """

    type: Literal["none", "additive", "multiplicative"] = Field(
        "none", description="None, added, or by a factor: of the estimates of mean and spread."
    )
    scale: float | None = Field(
        None, gt=0, le=10, description="Standard deviation of the noise; by default 1 (additive), 0.1 (multiplicative)."
    )
    on: BiasOn = Field("sigma", description="Which estimate of spread is perturbed.")

    @property
    def scale_used(self) -> float:
        if self.type == "none":
            return 0.0
        return self.scale if self.scale is not None else {"additive": 1.0, "multiplicative": 0.1}[self.type]


class PredictedOptimumMask(Mask):
    """A threshold at the theory's fixed point: the gamma whose amplification undoes the sampling bias."""

    type: Literal["predicted-optimum"] = "predicted-optimum"
    finite_sample: bool = Field(
        False, description="Balance the expected log variance of a finite sample, not the variance of an infinite one."
    )

    @property
    def label(self) -> str:
        return "tce-optimum" + ("-finite" if self.finite_sample else "")


class AdaptiveMask(BalanceSettings, Mask):
    """A threshold that each generation chooses from what was measured before (`gaussian.adaptive`)."""

    type: Literal["adaptive"] = "adaptive"

    @property
    def label(self) -> str:
        changed = {name: value for name, value in self.model_dump(exclude_defaults=True).items() if name != "type"}
        return "tce-adaptive" + "".join(f"-{name}-{value:g}" for name, value in sorted(changed.items()))


class NoisyEstimator(Mask):
    """Plain maximum likelihood by an imperfect estimator, as an arm beside the perfect one (Figure C4)."""

    type: Literal["noisy-estimator"] = "noisy-estimator"
    noise: EstimatorNoise = Field(
        default_factory=lambda: EstimatorNoise(type="multiplicative"),
        description="How the estimates are perturbed; takes the place of the family's own `noise`.",
    )

    @property
    def label(self) -> str:
        on = "-on-variance" if self.noise.on == "variance" else ""
        scale = "" if self.noise.scale is None else f"-{self.noise.scale:g}"
        return f"ce-noisy-{self.noise.type}{scale}{on}"

    @model_validator(mode="after")
    def _is_noisy(self) -> NoisyEstimator:
        if self.noise.type == "none":
            raise Inconsistent("arms.noise.type", "none", "a noisy estimator needs additive or multiplicative noise")
        return self


class GaussianConfig(FamilyConfig):
    """The 1-D Gaussian of Figures 2 and C4: many replicates side by side, each trained on its own samples only."""

    plain_label: ClassVar[str] = "ce"
    measures: ClassVar[dict[str, str]] = {
        "sigma": "standard deviation of the model (median over replicates)",
        "sigma-low": "its lower quartile over replicates",
        "sigma-high": "its upper quartile over replicates",
        "mean-spread": "distance of the model's mean from the real one, in real standard deviations (median)",
        "gamma": "least dense share that the mask meant to keep (median)",
        "live-fraction": "share of the samples that was kept (median)",
        "contraction": "variance of the sample over that of the model it came from (median)",
        "amplification": "variance of the fitted model over that of its sample (median)",
        "sigma-predicted": "standard deviation that the theory predicts (median); absent where it predicts none",
    }
    headline: ClassVar[str] = "sigma"
    draws_real_data: ClassVar[bool] = True

    type: Literal["gaussian"] = "gaussian"
    samples: int = Field(10_000, ge=100, le=10_000_000, description="Samples a generation.")
    replicates: int = Field(100, ge=1, le=100_000, description="Independent chains run side by side.")
    sampling_bias: float = Field(
        0.9, gt=0, le=1, description="λ: each model samples with its spread shrunk by this factor; 1 is unbiased."
    )
    bias_on: BiasOn = Field(
        "sigma", description="What λ multiplies: the standard deviation (Eq. 1) or the variance (Eq. 4)."
    )
    density: Density = Field(
        "fitted",
        description="Which density decides what is dense. fitted: a first fit to the sample itself; quantile: the "
        "exact share by the generating model's density (Algorithm 2's percentile); sampler: the shrunk density that "
        "the sample was drawn from (the theory); model: the generating model's density, not shrunk by λ.",
    )
    noise: EstimatorNoise = Field(default_factory=EstimatorNoise, description="An imperfect estimator.")
    mean: float = Field(0.0, ge=-1e6, le=1e6, description="Mean of the real data.")
    sigma: float = Field(1.0, gt=0, le=1e6, description="Standard deviation of the real data.")
    mask_real: bool = Field(False, description="Mask the fit to the real data (generation 0) too.")
    method: Method = Field(
        "auto",
        description="raw: every sample is drawn. exact: mean and variance of an unmasked sample, drawn from their own "
        "distributions. central-limit: those of a masked sample, from their asymptotic distribution. auto: exact "
        "without a mask, else raw.",
    )

    segment: int = Field(250, ge=1, description="Generations computed in one stage; the results do not depend on it.")

    @model_validator(mode="after")
    def _large_enough_for_a_limit(self) -> GaussianConfig:
        if self.method == "central-limit" and self.samples < 1000:
            raise Inconsistent("family.samples", self.samples, "the central-limit method needs 1000; use method = raw")
        return self
