"""The losses as configured; `kernels.losses` has their formulas."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from fortifai_core.settings import Frozen


class CrossEntropyLoss(Frozen):
    """−log p."""

    type: Literal["cross-entropy"] = "cross-entropy"

    @property
    def label(self) -> str:
        return "ce"


class TruncatedCrossEntropyLoss(Frozen):
    """−log p where p ≤ gamma, else 0 (ForTIFAI, Section 4). gamma = 1 is cross entropy."""

    type: Literal["tce"] = "tce"
    gamma: float = Field(0.9, gt=0, le=1, description="Tokens with p > gamma are masked.")
    denominator: Literal["all", "live"] = Field(
        "all", description="Average over all target tokens (the paper), or over the unmasked ones."
    )

    @property
    def label(self) -> str:
        return f"tce-{self.gamma:g}" + ("-live" if self.denominator == "live" else "")


class FocalLoss(Frozen):
    """−(1 − p)^gamma log p (Lin et al. 2017); the paper uses gamma = 2."""

    type: Literal["focal"] = "focal"
    gamma: float = Field(2.0, ge=0, le=20, description="Focusing exponent.")

    @property
    def label(self) -> str:
        return f"focal-{self.gamma:g}"


class EntropyTruncatedLoss(Frozen):
    """−log p where it is at least factor · H, else 0: a TCE whose gamma is each prediction's own, exp(−factor · H).

    H is the prediction's entropy, so what is masked is more probable than is typical there: decoding below a
    temperature of 1 writes too much of it.
    """

    type: Literal["tce-entropy"] = "tce-entropy"
    factor: float = Field(1.0, gt=0, le=20, description="Tokens with −log p < factor · H are masked.")

    @property
    def label(self) -> str:
        return f"tce-entropy-{self.factor:g}"


class LabelSmoothingLoss(Frozen):
    """A share epsilon of the target is spread over the whole vocabulary (Szegedy et al. 2016)."""

    type: Literal["label-smoothing"] = "label-smoothing"
    epsilon: float = Field(0.1, gt=0, lt=1, description="The share that is spread.")

    @property
    def label(self) -> str:
        return f"smoothing-{self.epsilon:g}"


class ZLoss(Frozen):
    """−log p + weight · log² Z, Z the softmax's sum (PaLM, Chowdhery et al. 2022)."""

    type: Literal["z-loss"] = "z-loss"
    weight: float = Field(1e-4, gt=0, le=1, description="Of log² Z; PaLM has 1e-4.")

    @property
    def label(self) -> str:
        return f"z-{self.weight:g}"


class DynamicLoss(Frozen):
    """−p log p, the factor p a constant for the gradient: Dynamic Fine-Tuning (arXiv 2508.05629)."""

    type: Literal["dft"] = "dft"

    @property
    def label(self) -> str:
        return "dft"


class EntropyLoss(Frozen):
    """−min(H / ln 20, 1)^alpha log p, H the entropy of the prediction and a constant for the gradient: EAFT
    (arXiv 2601.02151)."""

    type: Literal["eaft"] = "eaft"
    alpha: float = Field(1.0, gt=0, le=20, description="Exponent of the entropy's gate.")

    @property
    def label(self) -> str:
        return f"eaft-{self.alpha:g}"


class UntemperedLoss(Frozen):
    """−log p weighted by p^(1 − 1/T) Σ p^(1/T): undoes that text was sampled at temperature T."""

    type: Literal["undo-temperature"] = "undo-temperature"
    temperature: float = Field(gt=0, le=100, description="At which the text was sampled: T. 1 is cross entropy.")
    ceiling: float | None = Field(None, gt=0, description="No weight is larger; none: weights have no bound.")

    @property
    def label(self) -> str:
        return f"untempered-{self.temperature:g}" + ("" if self.ceiling is None else f"-{self.ceiling:g}")


class TailLoss(Frozen):
    """−log p without the sequences of a batch that are fit best, by their own loss: TailSFT (arXiv 2608.25756)."""

    type: Literal["tail"] = "tail"
    drop: float = Field(0.2, gt=0, lt=1, description="The share of a batch's sequences that is left out.")

    @property
    def label(self) -> str:
        return f"tail-{self.drop:g}"


class CustomLoss(Frozen):
    """A user's own f(nll) or f(nll, entropy), or one that an installed package offers; its derivative is autograd's."""

    type: Literal["custom"] = "custom"
    function: str = Field(
        pattern=r"^([\w.]+:\w+|[\w-]{1,63})$",
        description="Elementwise over nll ≥ 0: a name of the entry points `fortifai.losses`, or `module:function`.",
    )
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]{0,62}$", description="How this arm is called.")
    options: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments for the function.")

    @property
    def label(self) -> str:
        return self.name


Loss = Annotated[
    CrossEntropyLoss
    | TruncatedCrossEntropyLoss
    | EntropyTruncatedLoss
    | FocalLoss
    | LabelSmoothingLoss
    | ZLoss
    | DynamicLoss
    | EntropyLoss
    | UntemperedLoss
    | TailLoss
    | CustomLoss,
    Field(discriminator="type"),
]
