"""The registry of model classes other than language models, and an experiment on one of them as a typed value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from fortifai_core.config.arms import NAME, difference
from fortifai_core.families.base import Arrays, Family, FamilyConfig, Figure, Mask, NoMask, Results, ThresholdMask
from fortifai_core.families.gaussian.config import AdaptiveMask, GaussianConfig, NoisyEstimator, PredictedOptimumMask
from fortifai_core.families.images.config import (
    DiffusionConfig,
    DynamicIntersectionMask,
    DynamicQuantileMask,
    VaeConfig,
)
from fortifai_core.families.mixture.family import GmmConfig
from fortifai_core.families.zipf.family import ZipfConfig
from fortifai_core.settings import Engine, Frozen, Inconsistent, Seed

AnyFamily = Annotated[
    GaussianConfig | GmmConfig | VaeConfig | DiffusionConfig | ZipfConfig, Field(discriminator="type")
]
AnyMask = Annotated[
    NoMask
    | ThresholdMask
    | PredictedOptimumMask
    | AdaptiveMask
    | NoisyEstimator
    | DynamicQuantileMask
    | DynamicIntersectionMask,
    Field(discriminator="type"),
]


FamilyRegime = Literal["replace", "accumulate"]


class NamedArm(Frozen):
    """An arm by name: a mask, and a regime where it is not the experiment's."""

    later: ClassVar[frozenset[str]] = frozenset({"mask", "regime"})

    name: str = Field(pattern=NAME, description="How the arm is called: lower case, digits, dots, dashes.")
    mask: AnyMask = Field(default_factory=NoMask, description="Which terms of the loss it drops.")
    regime: FamilyRegime | None = Field(None, description="Instead of the experiment's.")


def _form(arm: Any) -> str:
    """In which form an arm is written."""
    named = isinstance(arm, NamedArm) or (isinstance(arm, Mapping) and "name" in arm and "type" not in arm)
    return "as-named" if named else "as-mask"


AnyArm = Annotated[Annotated[AnyMask, Tag("as-mask")] | Annotated[NamedArm, Tag("as-named")], Discriminator(_form)]


@dataclass(frozen=True)
class FamilyArm:
    """An arm as it is run. `difference`: from the first, in one line; empty for the first."""

    label: str
    mask: Mask
    regime: FamilyRegime
    difference: str


@dataclass(frozen=True)
class ModelClass:
    """What the pipeline has to know of a model class. Modules are imported when they are used.

    Attributes:
        config: its settings and data.
        masks: the arms that it knows; every other one is refused before anything is computed.
        make: `module:class` of its `Family`, called with the configuration and the folder of outside data.
    """

    config: type[FamilyConfig]
    masks: tuple[type[Mask], ...]
    make: str

    def figures(self) -> ModuleType:
        """The module beside it that draws: `draw(results, directory)`, and perhaps `preview(...)` of a generation."""
        return import_module(f"{__package__}.{self.make.partition('.')[0]}.figures")


_CLIPPING = (NoMask, ThresholdMask, DynamicQuantileMask, DynamicIntersectionMask)
MODEL_CLASSES: dict[str, ModelClass] = {
    "gaussian": ModelClass(
        GaussianConfig,
        (NoMask, ThresholdMask, PredictedOptimumMask, AdaptiveMask, NoisyEstimator),
        "gaussian.chain:Gaussian",
    ),
    "gmm": ModelClass(GmmConfig, (NoMask, ThresholdMask), "mixture.family:Gmm"),
    "vae": ModelClass(VaeConfig, _CLIPPING, "images.vae:VaeFamily"),
    "diffusion": ModelClass(DiffusionConfig, _CLIPPING, "images.diffusion:DiffusionFamily"),
    "zipf": ModelClass(ZipfConfig, (NoMask, ThresholdMask), "zipf.family:ZipfFamily"),
}


class FamilyFailure(Frozen):
    """When a run counts as failed: a measure first beyond a threshold."""

    metric: str = Field(min_length=1, description="Name of a measure of the family, e.g. `component-survival`.")
    threshold: float = Field(description="A run has failed in the first generation whose measure lies beyond it.")
    when: Literal["below", "above"] = Field("below", description="Which side of the threshold is failure.")
    relative: bool = Field(
        False, description="The threshold is a share of the measure's value at M_0, which must be positive."
    )
    stop_arm: bool = Field(
        False, description="Stop a run that has failed, at the end of the stage (`family.segment`) in which it did."
    )


class FamilyRuntime(Engine):
    """How the work is done. Nothing here is part of a key."""

    workers: int = Field(0, ge=0, le=256, description="Stages that run side by side; 0: one a run, up to the cores.")
    threads: int = Field(1, ge=0, le=512, description="Threads a worker computes with; 0: cores / workers.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "cpu", description="Where models compute; `auto`: on GPUs where there are any."
    )


def _plain_and_masked() -> list[AnyArm]:
    return [NoMask(), ThresholdMask()]


class FamilyExperiment(Frozen):
    """One experiment: every arm (mask × seed) of one family under recursive training."""

    name: str = Field("family", pattern=r"^[a-z0-9][a-z0-9-]{0,62}$", description="Lower case, digits, dashes.")
    family: AnyFamily = Field(description="The model class, with its data and settings.")
    arms: list[AnyArm] = Field(
        default_factory=_plain_and_masked,
        min_length=1,
        description="A mask each, or by name a mask and a regime; the first is the baseline.",
    )
    seeds: list[Seed] = Field(default_factory=lambda: [0], min_length=1, description="One run of every arm for each.")
    generations: int = Field(10, ge=1, le=100_000, description="How far each run goes: M_0 to M_(generations-1).")
    regime: FamilyRegime = Field(
        "replace", description="M_i is trained on the samples of M_(i-1) alone, or on real data and all samples so far."
    )
    failure: FamilyFailure | None = Field(None, description="A time-to-failure check in every generation; or none.")
    runtime: FamilyRuntime = Field(default_factory=FamilyRuntime, description="How the work is done.")

    @model_validator(mode="after")
    def _consistent(self) -> FamilyExperiment:
        labels = self.arm_labels
        if len(set(labels)) < len(labels):
            raise Inconsistent("arms", labels, "two arms are the same; remove one")
        if len(set(self.seeds)) < len(self.seeds):
            raise Inconsistent("seeds", self.seeds, "seeds must be different")
        allowed = MODEL_CLASSES[self.family.type].masks
        arms, seen = self.resolved_arms(), dict[tuple[Mask, str], str]()
        for index, (written, arm) in enumerate(zip(self.arms, arms, strict=True)):
            named = isinstance(written, NamedArm)
            if not isinstance(arm.mask, allowed):
                names = ", ".join(str(one.model_fields["type"].default) for one in allowed)
                field = f"arms.{index}.mask.type" if named else f"arms.{index}.type"
                raise Inconsistent(field, arm.mask.type, f"a {self.family.type} has the arms {names}")
            if self.family.draws_real_data and arm.regime != "replace":
                remedy = f"a {self.family.type} is trained on the samples of the one before; set replace"
                own = isinstance(written, NamedArm) and written.regime is not None
                raise Inconsistent(f"arms.{index}.regime" if own else "regime", arm.regime, remedy)
            first = seen.setdefault((arm.mask, arm.regime), arm.label)
            if named and first != arm.label:
                raise Inconsistent(f"arms.{index}", arm.label, f"comes to the same as {first}: change or remove one")
        known = self.family.measures
        if self.failure is not None and self.failure.metric not in known:
            raise Inconsistent("failure.metric", self.failure.metric, f"choose one of {', '.join(known)}")
        return self

    @property
    def named(self) -> bool:
        """Whether arms are written by name, so that it has to be said what each is."""
        return any(isinstance(arm, NamedArm) for arm in self.arms)

    @property
    def arm_labels(self) -> list[str]:
        """The arms' names, in order; the baseline first."""
        return [arm.name if isinstance(arm, NamedArm) else self.label_of(arm) for arm in self.arms]

    def resolved_arms(self) -> tuple[FamilyArm, ...]:
        """Every arm with its mask and regime, in order; the baseline first."""
        masks = [arm.mask if isinstance(arm, NamedArm) else arm for arm in self.arms]
        own = [arm.regime if isinstance(arm, NamedArm) else None for arm in self.arms]
        told = [
            {"mask": self.label_of(mask), "regime": regime or self.regime}
            for mask, regime in zip(masks, own, strict=True)
        ]
        return tuple(
            FamilyArm(label, mask, regime or self.regime, difference(words, told[0]))
            for label, mask, regime, words in zip(self.arm_labels, masks, own, told, strict=True)
        )

    def label_of(self, mask: Mask) -> str:
        """How an arm is called in this family."""
        return self.family.plain_label if isinstance(mask, NoMask) else mask.label


def family_from_config(config: FamilyConfig, *, folder: Path | None = None) -> Family:
    """The model class that a configuration describes.

    Args:
        folder: where real data lie that come from outside; for classes that read them themselves.
    """
    module, _, name = MODEL_CLASSES[config.type].make.partition(":")
    family: Family = getattr(import_module(f"{__package__}.{module}"), name)(config, folder)
    return family


def draw(results: Results, directory: Path) -> list[Figure]:
    """The class's own figures, written into `directory`."""
    figures: list[Figure] = MODEL_CLASSES[results.config.type].figures().draw(results, directory)
    return figures


def preview(config: FamilyConfig, *, real: Arrays, sample: Arrays, parameters: Arrays, title: str, path: Path) -> None:
    """A small PNG of what one generation draws, for the Prefect UI; nothing for a class that draws none."""
    module = MODEL_CLASSES[config.type].figures()
    if hasattr(module, "preview"):
        module.preview(real=real, sample=sample, parameters=parameters, title=title, path=path)


def check_family(experiment: FamilyExperiment) -> None:
    """What only the family's own mathematics can tell of its settings.

    Raises:
        ConfigError: settings of family and arm that do not fit together.
    """
    if isinstance(experiment.family, GaussianConfig):
        from fortifai_core.families.gaussian.chain import mask_gamma

        for arm in experiment.resolved_arms():
            mask_gamma(experiment.family, arm.mask)
