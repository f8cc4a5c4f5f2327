"""What a plan says beside its stages: what the experiment can tell, and, if asked, what it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from fortifai_core.config.experiment import ExperimentConfig
from fortifai_core.errors import ConfigError, InputError
from fortifai_core.outcomes.power import Power, smallest_difference
from fortifai_core.wording import in_bytes
from storage.sources import mirror
from storage.store.store import ArtifactStore
from tasks.engine.plans import Plan
from tasks.language.plan import world_of
from tasks.language.sizes import is_at_hand, read_sizes

if TYPE_CHECKING:
    from rich.console import Console

    from flows.tools.estimate import Estimate
    from tasks.language.probe import Probed

# A difference that hardly any remedy makes: where no smaller one can be told, it is said with a warning.
COARSE = 0.2


@dataclass(frozen=True)
class Foresight:
    """Of a plan; None for what was not asked for, or is not known of this model class."""

    power: Power | str | None
    estimate: Estimate | None = None
    gpu: str | None = None
    gpu_seconds: float | None = None
    peak: str = ""

    def as_json(self) -> dict[str, Any]:
        power = {"unknown": self.power} if isinstance(self.power, str) else self.power and asdict(self.power)
        estimate = self.estimate and asdict(self.estimate)
        if estimate and self.gpu:
            estimate["gpu"] = {"name": self.gpu, "seconds": self.gpu_seconds, "assumed": self.peak}
        return {"power": power, "estimate": estimate}

    def show(self, console: Console) -> None:
        if self.power is not None:
            console.print(power_in_words(self.power), highlight=False, soft_wrap=True)
            if not isinstance(self.power, str) and self.power.difference > COARSE:
                told = f"Only a difference above {100 * self.power.difference:.0f} points could be told"
                remedy = (
                    "more questions about more documents of split 0, fewer splits, or more seeds tell smaller ones."
                )
                console.print(f"[yellow]warning:[/] {told}: {remedy}", highlight=False, soft_wrap=True)
        if self.estimate is not None:
            for line in _estimate_in_words(self.estimate):
                console.print(line, highlight=False, soft_wrap=True)
        if self.gpu_seconds is not None:
            console.print(
                f"On one {self.gpu}: at least {_time(self.gpu_seconds)}, {self.peak}.",
                highlight=False,
                soft_wrap=True,
            )


def foresee(
    plan: Plan, store: ArtifactStore, *, power: bool = True, estimate: bool = False, gpu: str | None = None
) -> Foresight:
    """What there is to say of a plan.

    Raises:
        InputError: an estimate for another model class, or on a GPU that is not known.
        StageFailed: the probe failed.
    """
    if gpu is not None and not estimate:
        raise ConfigError("--gpu", gpu, "is for an estimate: add --estimate")
    if not isinstance(plan.config, ExperimentConfig):
        if estimate:
            raise InputError("--estimate", plan.config.name, "is for language models; other classes take minutes")
        return Foresight(None)
    found = power_of(plan.config) if power else None
    if not estimate:
        return Foresight(found)
    from flows.tools import estimate as estimating

    peak = estimating.peak_of(gpu, plan.config) if gpu else None
    taken = estimating.estimate(plan, store)
    if peak is None:
        return Foresight(found, taken)
    return Foresight(found, taken, gpu, peak.seconds(taken), peak.in_words())


def power_of(config: ExperimentConfig) -> Power | str:
    """The smallest difference on split 0 that two arms can show; or in words why it is not known.

    The corpus is read and cut by characters: where tokens cut it elsewhere, a few questions change sides.
    """
    if len(config.arm_labels) < 2:
        return "there is one arm, which is compared with none"
    if not is_at_hand(config.corpus):
        return f"not known before the corpus is fetched ({mirror.VARIABLE} names a local mirror)"
    worlds = [world_of(config, seed) for seed in config.seeds]

    def characters(texts: Sequence[str]) -> list[int]:
        return [len(text) for text in texts]

    sizes = read_sizes(config.corpus, splits=config.splits, world=worlds[0], lengths=characters)
    questions, documents = sizes.asked
    if not questions:
        return "there are no questions about split 0, so that retention is not measured (corpus.questions)"
    shared = len(set(worlds)) == 1
    return smallest_difference(questions, documents, runs=len(worlds), shared=shared)


def power_in_words(power: Power | str) -> str:
    """One line."""
    if isinstance(power, str):
        return f"Power: {power}."
    seeds = f"{power.runs} seed" + ("s" if power.runs > 1 else "")
    return (
        f"Power: on split 0 ({power.questions} questions about {power.documents} documents, {seeds}) two arms are told "
        f"apart from {100 * power.difference:.1f} points on (80% power, two-sided 5%, paired; assumed: they answer "
        f"{power.discordance:.0%} of the questions differently, correlation {power.correlation:g} within a document, "
        f"design effect {power.design_effect:.1f}; noise of retraining comes on top)."
    )


def _estimate_in_words(found: Estimate) -> list[str]:
    hours = sorted(found.by_role.items(), key=lambda pair: -pair[1])
    if not found.stages:
        return ["Estimate: everything is in the store."]
    parts = ", ".join(f"{role} {_time(seconds)}" for role, seconds in hours if seconds >= 1)
    flops = found.training_flops + found.inference_flops
    workers = f"{found.workers} worker" + ("s" if found.workers > 1 else "")
    return [
        f"Estimate: {_time(found.seconds)} here, with {workers} ({parts}), if nothing else runs; without benchmarks.",
        f"Tokens: {found.training:,} trained on, {found.inference:,} read or written; {flops:.1e} FLOPs. "
        f"Peak memory {in_bytes(found.memory)}, disk {in_bytes(found.disk)}.",
        *(_probed_in_words(*of_arms) for of_arms in [("", found.probed), *found.others.items()]),
    ]


def _probed_in_words(arms: str, probed: Probed) -> str:
    whose = f" ({arms})" if arms else ""
    return (
        f"Probed{whose}: {probed.parameters:,} parameters, {probed.step:.3g} s a training step, "
        f"{1 / max(1e-9, probed.rewrite):,.0f} tokens rewritten and {1 / probed.score:,.0f} scored a second"
        f" (drafts accepted: {probed.accepted:.0%}; a trained model's more often, which is faster)."
    )


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
