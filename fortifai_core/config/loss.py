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


class CustomLoss(Frozen):
    """A user's own f(nll), or one that an installed package offers; the derivative comes from autograd."""

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


Loss = Annotated[CrossEntropyLoss | TruncatedCrossEntropyLoss | FocalLoss | CustomLoss, Field(discriminator="type")]
