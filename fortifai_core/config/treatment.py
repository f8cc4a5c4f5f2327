"""The treatments of text as configured; `fortifai_core.treatments` has what each does, and its source."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from fortifai_core.settings import Frozen

Origin = Literal["all", "synthetic", "real"]
Of = Annotated[Origin, Field(description="Which documents are treated; the others pass by as they are.")]
FUNCTION = r"^([\w.]+:\w+|[\w-]{1,63})$"


class _Treatment(Frozen):
    """What every treatment says of itself.

    Class attributes:
        passes: times that a language model reads the text, the treatment's cost.
        reads: the model that it reads with, M_(i-1) or M_-1.
    """

    passes: ClassVar[int] = 0

    @property
    def reads(self) -> Literal["previous", "base"] | None:
        return None


class SurpriseFilter(_Treatment):
    """Keeps the documents of highest loss under a model (Gambetta et al., arXiv 2410.12341)."""

    passes = 1
    type: Literal["surprise-filter"] = "surprise-filter"
    of: Of = "all"
    keep: float = Field(0.5, gt=0, le=1, description="Share of the documents that is kept: those of highest loss.")
    model: Literal["previous", "base"] = Field("previous", description="Whose loss: M_(i-1)'s, or the base model's.")

    @property
    def label(self) -> str:
        return f"surprise-{self.keep:g}" + ("-base" if self.model == "base" else "")

    @property
    def reads(self) -> Literal["previous", "base"] | None:
        return self.model


class TokenEdit(_Treatment):
    """Draws anew the tokens that the base model is too sure of (ToEdit, Zhu et al., arXiv 2412.14689)."""

    passes = 1
    type: Literal["token-edit"] = "token-edit"
    of: Of = "all"
    threshold: float = Field(0.99, gt=0, le=1, description="Tokens of at least this probability are drawn anew.")
    temperature: float = Field(1.0, gt=0, le=10, description="Of the distribution that they are drawn from.")
    top_k: int = Field(0, ge=0, description="Only among so many likeliest tokens; 0 keeps all.")

    @property
    def label(self) -> str:
        return f"edit-{self.threshold:g}"

    @property
    def reads(self) -> Literal["previous", "base"] | None:
        return "base"


class Detector(_Treatment):
    """Draws documents by how real a calibrated classifier takes them to be (Drayson et al., arXiv 2502.15654)."""

    type: Literal["detector"] = "detector"
    of: Of = "all"
    bias: float = Field(1.0, ge=0, le=100, description="Weights are (1 − p)^bias, p the probability of synthetic.")
    upsample: float = Field(1.0, gt=0, le=10, description="Documents that are drawn, as a share of those there are.")
    max_repeats: int = Field(3, ge=1, le=100, description="How often one document may be drawn.")
    folds: int = Field(5, ge=2, le=20, description="Parts of the documents; no part is judged by what learned from it.")
    classifier: str | None = Field(
        None,
        min_length=1,
        description="A sequence classifier of Hugging Face (a folder, or a name of the hub) instead of the one that "
        "is made here.",
    )
    synthetic_label: int = Field(1, ge=0, description="Of that classifier: which of its labels means synthetic.")

    @property
    def label(self) -> str:
        return f"detector-{self.bias:g}"


class Verifier(_Treatment):
    """Keeps what a checker accepts (verifier-guided retraining, Yi et al., arXiv 2510.16657)."""

    type: Literal["verifier"] = "verifier"
    of: Of = "synthetic"
    checker: str = Field(
        "almanac",
        pattern=FUNCTION,
        description="`almanac`: its ground truth. Or your own f(document) -> bool: a name of the entry points "
        "`fortifai.verifiers`, or `module:function`.",
    )
    false_accept: float = Field(0.0, ge=0, lt=1, description="Chance that a document that is wrong is accepted.")
    false_reject: float = Field(0.0, ge=0, lt=1, description="Chance that a document that is right is rejected.")
    options: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments for your own checker.")

    @property
    def label(self) -> str:
        rates = "".join(
            f"-{name}{rate:g}" for name, rate in (("fa", self.false_accept), ("fr", self.false_reject)) if rate
        )
        return ("verifier" if self.checker == "almanac" else f"verifier-{_name(self.checker)}") + rates


class Weights(_Treatment):
    """Weighs real and synthetic text in the loss (He, Xu and Cheng, arXiv 2502.18049)."""

    type: Literal["weights"] = "weights"
    real: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Weight of the mean loss over real text; the rest is that of synthetic text. By default the "
        "optimum for their sizes, which is 0.618 (the golden ratio's) where they are equal.",
    )

    @property
    def of(self) -> Origin:
        return "all"

    @property
    def label(self) -> str:
        return "weights-golden" if self.real is None else f"weights-{self.real:g}"


class Deduplicate(_Treatment):
    """Keeps the first of documents that are equal, or nearly (MinHash: Broder 1997; Lee et al., arXiv 2107.06499)."""

    type: Literal["deduplicate"] = "deduplicate"
    of: Of = "all"
    near: float | None = Field(
        0.8, gt=0, le=1, description="Jaccard similarity from which documents count as one; null: only equal ones do."
    )
    ngram: int = Field(5, ge=1, le=50, description="Tokens in one of the runs that documents are compared by.")

    @property
    def label(self) -> str:
        usual = self.near == type(self).model_fields["near"].default
        return "deduplicate" + ("-exact" if self.near is None else "" if usual else f"-{self.near:g}")


class CustomTreatment(_Treatment):
    """A user's own f(documents), or one that an installed package offers."""

    type: Literal["custom"] = "custom"
    of: Of = "all"
    function: str = Field(
        pattern=FUNCTION,
        description="Documents in, documents out: a name of the entry points `fortifai.treatments`, or "
        "`module:function`.",
    )
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]{0,62}$", description="How it is called.")
    options: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments for the function.")

    @property
    def label(self) -> str:
        return self.name


def _name(function: str) -> str:
    return function.rpartition(":")[2].lower().replace("_", "-")


Treatment = Annotated[
    SurpriseFilter | TokenEdit | Detector | Verifier | Weights | Deduplicate | CustomTreatment,
    Field(discriminator="type"),
]
