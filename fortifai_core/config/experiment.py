"""The experiment as one frozen, typed value; every field bounded and described (Prefect shows it as a form).

Only `runtime` never changes a result: it is left out of every artifact's key.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from pydantic import Field, model_validator

from fortifai_core.config import failure_metrics
from fortifai_core.config.corpus import AlmanacCorpus, Corpus
from fortifai_core.config.loss import CrossEntropyLoss, Loss, TruncatedCrossEntropyLoss
from fortifai_core.config.model import Model, PretrainedModel, ScratchModel
from fortifai_core.config.stages import Evaluation, Failure, Regeneration, Regime, Runtime, Training
from fortifai_core.settings import Frozen, Inconsistent, Seed


def _ce_and_tce() -> list[Loss]:
    return [CrossEntropyLoss(), TruncatedCrossEntropyLoss()]


class ExperimentConfig(Frozen):
    """One experiment: every arm (loss × seed) of one recursive training."""

    name: str = Field("experiment", pattern=r"^[a-z0-9][a-z0-9-]{0,62}$", description="Lower case, digits, dashes.")
    corpus: Corpus = Field(default_factory=AlmanacCorpus)
    splits: int = Field(6, ge=2, le=1000, description="Parts into which the real corpus is cut.")
    generations: int = Field(6, ge=1, le=1000, description="How far each arm goes; at most `splits`.")
    regime: Regime = Regime.PAPER
    model: Model = Field(default_factory=ScratchModel)
    losses: list[Loss] = Field(default_factory=_ce_and_tce, min_length=1)
    seeds: list[Seed] = Field(default_factory=lambda: [0], min_length=1)
    training: Training = Field(default_factory=Training)
    regeneration: Regeneration = Field(default_factory=Regeneration)
    evaluation: Evaluation = Field(default_factory=Evaluation)
    failure: Failure = Field(default_factory=Failure)
    runtime: Runtime = Field(default_factory=Runtime)

    @property
    def arm_labels(self) -> list[str]:
        """The arms' names, in order; the baseline first."""
        return [arm.label for arm in self.resolved_arms()]

    def resolved_arms(self) -> tuple[Arm, ...]:
        """Every arm with the experiment as it is under it, in order; the baseline first."""
        return tuple(Arm(loss.label, self.model_copy(update={"losses": [loss]})) for loss in self.losses)

    @property
    def asks_base(self) -> bool:
        """Whether M_-1 is measured too: a pretrained model may know the text already."""
        asked = self.evaluation.base
        return not isinstance(self.model, ScratchModel) if asked is None else asked

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
        if self.training.save_dtype is not None and isinstance(self.model, PretrainedModel) and self.model.lora:
            remedy = "is for whole models: of an adapter (model.lora) little is kept; leave it out"
            raise Inconsistent("training.save_dtype", self.training.save_dtype, remedy)
        rewriting = self.regeneration
        if rewriting.engine != rewriting.engine_used:
            # said here, once: its own validators run again in every spec that holds it
            warnings.warn(
                f"regeneration.engine = {rewriting.engine!r}: beams are decoded by the reference engine; for the speed "
                "of `aligned` set regeneration.decoding to greedy or sample",
                stacklevel=2,
            )
        return self


@dataclass(frozen=True)
class Arm:
    """A named set of overrides over an experiment, today of its loss. `experiment` has them applied."""

    label: str
    experiment: ExperimentConfig

    @property
    def loss(self) -> Loss:
        return self.experiment.losses[0]
