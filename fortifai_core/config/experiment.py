"""The experiment as one frozen, typed value; every field bounded and described (Prefect shows it as a form).

Only `runtime` never changes a result: it is left out of every artifact's key.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import fsum
from typing import Any, ClassVar

from pydantic import Field, ValidationError, model_validator

from fortifai_core.config import failure_metrics
from fortifai_core.config.arms import ArmSettings, difference
from fortifai_core.config.corpus import AlmanacCorpus, Corpus
from fortifai_core.config.loss import CrossEntropyLoss, Loss, TailLoss, TruncatedCrossEntropyLoss
from fortifai_core.config.model import Model, ScratchModel
from fortifai_core.config.stages import (
    Evaluation,
    Failure,
    Mixture,
    Reading,
    Regeneration,
    Regime,
    Runtime,
    Training,
    reading_of,
)
from fortifai_core.config.treatment import Treatment, Weights
from fortifai_core.settings import Frozen, Inconsistent, Seed, moved


def _ce_and_tce() -> list[Loss]:
    return [CrossEntropyLoss(), TruncatedCrossEntropyLoss()]


class ExperimentConfig(Frozen):
    """One experiment: every arm of one recursive training, with every seed.

    The arms are `arms`, or, in the short form, one for each of `losses`.
    """

    later: ClassVar[frozenset[str]] = frozenset({"arms", "mixture", "treatments"})

    name: str = Field("experiment", pattern=r"^[a-z0-9][a-z0-9-]{0,62}$", description="Lower case, digits, dashes.")
    corpus: Corpus = Field(default_factory=AlmanacCorpus, description="The real text, and the questions about it.")
    splits: int = Field(6, ge=2, le=1000, description="Parts into which the real corpus is cut.")
    generations: int = Field(6, ge=1, le=1000, description="How far each arm goes; at most `splits`.")
    regime: Regime = Field(
        Regime.PAPER, description="Which real text and which rewritten text each generation is trained on."
    )
    mixture: Mixture | None = Field(None, description="Instead of a regime: the share of synthetic text as a number.")
    treatments: tuple[Treatment, ...] = Field((), description="What is done to rewritten text before training.")
    model: Model = Field(default_factory=ScratchModel, description="M_-1, from which every arm starts.")
    losses: list[Loss] = Field(
        default_factory=_ce_and_tce, min_length=1, description="One arm for each; where there are `arms`, theirs."
    )
    arms: list[ArmSettings] = Field(
        default_factory=list, description="Arms by name, and what each does otherwise; the first is the baseline."
    )
    seeds: list[Seed] = Field(default_factory=lambda: [0], min_length=1, description="One run of every arm for each.")
    training: Training = Field(default_factory=Training, description="How each generation is trained.")
    regeneration: Regeneration = Field(default_factory=Regeneration, description="How each split is rewritten.")
    evaluation: Evaluation = Field(default_factory=Evaluation, description="What is measured of each generation.")
    failure: Failure = Field(default_factory=Failure, description="When an arm counts as failed.")
    runtime: Runtime = Field(default_factory=Runtime, description="How the work is done; it changes no result.")

    @property
    def named(self) -> bool:
        """Whether arms are written by name, so that it has to be said what each is."""
        return bool(self.arms)

    @property
    def arm_labels(self) -> list[str]:
        """The arms' names, in order; the baseline first."""
        return [arm.name for arm in self.arms] or [loss.label for loss in self.losses]

    @property
    def reading(self) -> Reading:
        """What makes up a generation's text: the mixture, or the regime."""
        return reading_of(self.regime, self.mixture)

    def resolved_arms(self) -> tuple[Arm, ...]:
        """Every arm with the experiment as it is under it, in order; the baseline first."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # each was given when the configuration was read
            under = [self._under(arm) for arm in self.arms]
        under = under or [self.model_copy(update={"losses": [loss]}) for loss in self.losses]
        pools = [arm.pool for arm in self.arms] or [{}] * len(under)
        reads = [arm.pool_label for arm in self.arms] or [None] * len(under)
        told = [one._told | {"pool": words} for one, words in zip(under, reads, strict=True)]
        # where the words that stand for a loss or a treatment are the same, their options tell
        differences = [
            difference(words, told[0]) or difference(one._options, under[0]._options)
            for one, words in zip(under, told, strict=True)
        ]
        return tuple(map(Arm, self.arm_labels, under, differences, pools))

    @property
    def _told(self) -> dict[str, Any]:
        """What arms may differ in, as it is told."""
        text = self.regime.value if self.mixture is None else self.mixture.label
        treated = ", ".join(treatment.label for treatment in self.treatments) or None
        sections = {"training": self.training, "rewriting": self.regeneration, "model": self.model}
        return {"loss": self.losses[0].label, "text": text, "treatment": treated, **sections}

    @property
    def _options(self) -> dict[str, Any]:
        treatments = {f"treatments.{index}": treatment for index, treatment in enumerate(self.treatments)}
        return {"loss": self.losses[0], **treatments}

    def _under(self, arm: ArmSettings) -> ExperimentConfig:
        return ExperimentConfig.model_validate(arm.over(self.model_dump()))

    @property
    def asks_base(self) -> bool:
        """Whether M_-1 is measured too: a pretrained model may know the text already."""
        asked = self.evaluation.base
        return not isinstance(self.model, ScratchModel) if asked is None else asked

    @model_validator(mode="before")
    @classmethod
    def _arms_or_losses(cls, data: Any) -> Any:
        """An arm without a loss has the experiment's, which is cross entropy unless it names one."""
        if not isinstance(data, Mapping) or not isinstance(data.get("arms"), (list, tuple)) or not data["arms"]:
            return data
        for index, arm in enumerate(data["arms"]):
            for name in arm if isinstance(arm, Mapping) else ():
                if name in cls.model_fields and name not in ArmSettings.model_fields:
                    known = ", ".join(field for field in ArmSettings.model_fields if field != "name")
                    remedy = f"is the same in all arms: an arm may name {known}"
                    raise Inconsistent(f"arms.{index}.{name}", arm[name], remedy)
        return {"losses": [CrossEntropyLoss()], **data}

    @model_validator(mode="after")
    def _arms_hold(self) -> ExperimentConfig:
        if self.arms and len(self.losses) > 1:
            losses = [loss.label for loss in self.losses]
            raise Inconsistent("losses", losses, "there are arms: leave one loss, that of arms which name none")
        for index, arm in enumerate(self.arms):
            first = self.arm_labels.index(arm.name)
            if first < index:
                raise Inconsistent(f"arms.{index}.name", arm.name, f"is that of arms.{first} too: name it otherwise")
            if arm.regime is not None and arm.mixture:
                remedy = f"the regime {arm.regime} sets a share of its own: leave it out, or the mixture"
                raise Inconsistent(f"arms.{index}.mixture", arm.mixture, remedy)
            self._pool_holds(index, arm)
            with warnings.catch_warnings():
                if not arm.regeneration:
                    warnings.simplefilter("ignore")  # the experiment's own warning
                try:
                    self._under(arm)
                except ValidationError as error:
                    raise moved(error, ("arms", index), type(self).__name__) from error
        return self

    def _pool_holds(self, index: int, arm: ArmSettings) -> None:
        for name, share in arm.pool.items():
            if name not in self.arm_labels:
                remedy = f"is no arm whose text could be read: there are {', '.join(self.arm_labels)}"
                raise Inconsistent(f"arms.{index}.pool.{name}", share, remedy)
        total = fsum(arm.pool.values())
        if arm.pool and abs(total - 1) > 1e-6:
            remedy = f"the shares sum to {total:g}, and are of all that it reads: make them sum to 1"
            raise Inconsistent(f"arms.{index}.pool", arm.pool, remedy)
        if list(arm.pool) == [arm.name]:
            remedy = "an arm reads its own text anyway: leave the pool out, or name another arm too"
            raise Inconsistent(f"arms.{index}.pool", arm.pool, remedy)
        if arm.pool and self.failure.stop_arm:
            remedy = f"the arms of a pool write for each other to the end, and {arm.name} reads some: set it to false"
            raise Inconsistent("failure.stop_arm", True, remedy)

    @model_validator(mode="after")
    def _consistent(self) -> ExperimentConfig:
        if self.generations > self.splits:
            remedy = f"is above splits = {self.splits}: each generation brings in one; lower it, or raise splits"
            raise Inconsistent("generations", self.generations, remedy)
        judged = failure_metrics.failure_metric(self.failure.metric)
        if judged.role == "drift" and not self.evaluation.drift:
            raise Inconsistent("failure.metric", judged.name, "is measured by the drift: set evaluation.drift to true")
        if judged.name == "perplexity-real" and not self.evaluation.perplexity:
            raise Inconsistent("failure.metric", judged.name, "is not measured: set evaluation.perplexity to true")
        if judged.first >= self.generations:
            remedy = f"split {judged.first} is not seen before generation {judged.first}: raise generations"
            raise Inconsistent("failure.metric", judged.name, remedy)
        if self.mixture is not None and self.regime != Regime.PAPER:
            remedy = f"the regime {self.regime} sets a share of its own: leave it out, or the mixture"
            raise Inconsistent("mixture.synthetic", self.mixture.synthetic, remedy)
        labels = self.arm_labels
        if len(set(labels)) < len(labels):
            raise Inconsistent("losses", labels, "two arms are the same; remove one")
        if len(set(self.seeds)) < len(self.seeds):
            raise Inconsistent("seeds", self.seeds, "seeds must be different")
        if isinstance(self.model, ScratchModel):
            training = max(self.training.sequence_length, self.model.pretraining_sequence_length)
            longest = max(self.regeneration.longest_input, training)
            if longest > self.model.max_positions:
                remedy = (
                    f"sequences of {longest} tokens are asked for; raise it, or shorten contexts, chunks and sequences"
                )
                raise Inconsistent("model.max_positions", self.model.max_positions, remedy)
        if self.training.batch_size % self.training.gradient_accumulation:
            remedy = f"must be a multiple of gradient_accumulation = {self.training.gradient_accumulation}"
            raise Inconsistent("training.batch_size", self.training.batch_size, remedy)
        self._processes_share_batches()
        if self.model.lora:
            whole = ("save_dtype", "averaging", "anchor")
            for name in whole:
                value = getattr(self.training, name)
                if value:
                    remedy = "is for whole models: of an adapter (model.lora) little is kept; leave it out"
                    raise Inconsistent(f"training.{name}", value, remedy)
        for name in ("label_smoothing", "distillation"):
            value = getattr(self.training, name)
            other = [loss.label for loss in self.losses if not isinstance(loss, CrossEntropyLoss)]
            if value and other:
                remedy = f"is for cross entropy: the loss {other[0]} knows the drawn token alone; leave one out"
                raise Inconsistent(f"training.{name}", value, remedy)
        tail = [loss.label for loss in self.losses if isinstance(loss, TailLoss)]
        if tail and self.training.loss_on != "all":
            remedy = f"{tail[0]} leaves out a share of a batch, and would of a part of one: leave one out"
            raise Inconsistent("training.loss_on", self.training.loss_on, remedy)
        rewriting = self.regeneration
        if rewriting.engine != rewriting.engine_used:
            # said here, once: its own validators run again in every spec that holds it
            warnings.warn(
                f"regeneration.engine = {rewriting.engine!r}: beams are decoded by the reference engine; for the speed "
                "of `aligned` set regeneration.decoding to greedy or sample",
                stacklevel=2,
            )
        return self

    def _processes_share_batches(self) -> None:
        """Several processes compute what one does: equal parts of every micro-batch, and no draws of their own."""
        processes, together = self.runtime.processes, self.training.batch_size // self.training.gradient_accumulation
        if processes == 1:
            return
        if together % processes:
            remedy = f"must divide training.batch_size / gradient_accumulation = {together}"
            raise Inconsistent("runtime.processes", processes, remedy)
        for loss in self.losses:
            if isinstance(loss, TailLoss) or getattr(loss, "denominator", "all") == "live":
                remedy = f"each would average the loss {loss.label} over its own tokens: set it to 1"
                raise Inconsistent("runtime.processes", processes, remedy)
        adapter = self.model.lora
        for name, value in (("training", self.training.dropout), ("model.lora", adapter.dropout if adapter else 0.0)):
            if value:
                remedy = "is drawn otherwise by several processes: set it to 0, or runtime.processes to 1"
                raise Inconsistent(f"{name}.dropout", value, remedy)
        if self.runtime.sharding == "none":
            return
        # one process would gather weights for rows of a kind that another has none of
        whole: dict[str, Any] = {
            "training.anchor": self.training.anchor or None,
            "training.loss_on": self.training.loss_on if self.training.loss_on != "all" else None,
            "treatments": "weights" if any(isinstance(one, Weights) for one in self.treatments) else None,
        }
        for name, value in whole.items():
            if value is not None:
                raise Inconsistent(name, value, "not with runtime.sharding: leave one out")


@dataclass(frozen=True)
class Arm:
    """A named set of overrides over an experiment.

    Attributes:
        experiment: has them applied, and no arms but this one.
        difference: from the first arm, in one line; empty for the first.
        pool: the arms whose text it reads, with their shares of the documents; empty for one that reads its own alone.
    """

    label: str
    experiment: ExperimentConfig
    difference: str = ""
    pool: Mapping[str, float] = field(default_factory=dict)

    @property
    def loss(self) -> Loss:
        return self.experiment.losses[0]
