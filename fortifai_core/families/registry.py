"""The registry of model classes other than language models, and an experiment on one of them as a typed value."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Annotated, Literal

from pydantic import Field, model_validator

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
    device: Literal["auto", "cpu", "cuda"] = "cpu"


def _plain_and_masked() -> list[AnyMask]:
    return [NoMask(), ThresholdMask()]


class FamilyExperiment(Frozen):
    """One experiment: every arm (mask × seed) of one family under recursive training."""

    name: str = Field("family", pattern=r"^[a-z0-9][a-z0-9-]{0,62}$", description="Lower case, digits, dashes.")
    family: AnyFamily = Field(description="The model class, with its data and settings.")
    arms: list[AnyMask] = Field(
        default_factory=_plain_and_masked, min_length=1, description="The first is the baseline."
    )
    seeds: list[Seed] = Field(default_factory=lambda: [0], min_length=1, description="One run of every arm for each.")
    generations: int = Field(10, ge=1, le=100_000, description="How far each run goes: M_0 to M_(generations-1).")
    regime: Literal["replace", "accumulate"] = Field(
        "replace", description="M_i is trained on the samples of M_(i-1) alone, or on real data and all samples so far."
    )
    failure: FamilyFailure | None = Field(None, description="A time-to-failure check in every generation; or none.")
    runtime: FamilyRuntime = Field(default_factory=FamilyRuntime)

    @model_validator(mode="after")
    def _consistent(self) -> FamilyExperiment:
        labels = self.arm_labels
        if len(set(labels)) < len(labels):
            raise Inconsistent("arms", labels, "two arms are the same; remove one")
        if len(set(self.seeds)) < len(self.seeds):
            raise Inconsistent("seeds", self.seeds, "seeds must be different")
        allowed = MODEL_CLASSES[self.family.type].masks
        for index, mask in enumerate(self.arms):
            if not isinstance(mask, allowed):
                names = ", ".join(str(one.model_fields["type"].default) for one in allowed)
                raise Inconsistent(f"arms.{index}.type", mask.type, f"a {self.family.type} has the arms {names}")
        if self.family.draws_real_data and self.regime != "replace":
            remedy = f"a {self.family.type} is trained on the samples of the one before; set replace"
            raise Inconsistent("regime", self.regime, remedy)
        known = self.family.measures
        if self.failure is not None and self.failure.metric not in known:
            raise Inconsistent("failure.metric", self.failure.metric, f"choose one of {', '.join(known)}")
        return self

    @property
    def arm_labels(self) -> list[str]:
        """The arms' names, in order; the baseline first."""
        return [self.label_of(mask) for mask in self.arms]

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

        for mask in experiment.arms:
            mask_gamma(experiment.family, mask)
