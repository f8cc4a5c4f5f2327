"""What an experiment on a family consists of: stages with their keys, in runs and steps. No torch, no Prefect."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fortifai_core.families.registry import FamilyExperiment
from tasks.engine.stages import Plan, Stage, stage


@dataclass(frozen=True)
class FamilyStep:
    """The stages that bring a run from generation `first` to `last`: one generation, or a segment of a chain.

    Attributes:
        train: makes M_i; for a chain the one stage that fits, samples and measures all of the segment.
        sample: draws from M_i what M_(i+1) is trained on; None for a chain.
        evaluate: measures M_i; None for a chain.
        failure: the time-to-failure check; None where none is configured.
    """

    first: int
    last: int
    train: Stage
    sample: Stage | None = None
    evaluate: Stage | None = None
    failure: Stage | None = None

    @property
    def measured(self) -> Stage:
        """The stage whose artifact holds the measures of these generations."""
        return self.evaluate or self.train

    @property
    def results(self) -> list[Stage]:
        """What a report reads of them."""
        return [one for one in (self.train, self.sample, self.evaluate) if one is not None]

    @property
    def stages(self) -> list[Stage]:
        """All of them, parents before children."""
        return [*self.results, *([self.failure] if self.failure else [])]


@dataclass(frozen=True)
class FamilyRun:
    """One run: an arm with a seed. `data` is None for a chain, which draws its own."""

    arm: str
    seed: int
    data: Stage | None
    steps: list[FamilyStep]


@dataclass(frozen=True)
class FamilyPlan:
    """Everything such an experiment consists of; `shared` are the stages that several runs build on."""

    config: FamilyExperiment
    shared: list[Stage]
    runs: list[FamilyRun]

    def run(self, arm: str, seed: int) -> FamilyRun:
        return next(run for run in self.runs if (run.arm, run.seed) == (arm, seed))

    def report(self, reached: Mapping[tuple[str, int], int] | None = None) -> Stage:
        """The report's stage. `reached`: the last generation of each run that was stopped before its end."""
        parents: dict[str, Stage] = {f"data/{run.seed}": run.data for run in self.runs if run.data is not None}
        for run in self.runs:
            last = (reached or {}).get((run.arm, run.seed), self.config.generations)
            for step in run.steps:
                if step.last <= last:
                    parents |= {f"{run.arm}/{run.seed}/{step.last}/{one.role}": one for one in step.stages}
        failure = self.config.failure
        return stage(
            "family-report",
            content={
                "name": self.config.name,
                "family": self.config.family.type,
                "arms": self.config.arm_labels,
                "regime": self.config.regime,
                "failure": failure.model_dump(mode="json", exclude={"stop_arm"}) if failure else None,
            },
            parents=parents,
            recipe={
                "command": f"fortifai resume {self.config.name}",
                "config": self.config.model_dump(mode="json"),
            },
        )

    def stages(self) -> list[Stage]:
        """Every stage once, parents before children."""
        return list({one.reference: one for one in self.uses()}.values())

    def uses(self) -> list[Stage]:
        """Every stage as often as it is used: shared ones first, then run by run."""
        return [*self.shared, *(one for run in self.runs for step in run.steps for one in step.stages), self.report()]


AnyPlan = Plan | FamilyPlan
