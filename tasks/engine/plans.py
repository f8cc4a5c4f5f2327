"""What an experiment consists of, whatever its model class: stages, generations, runs. No torch, no Prefect."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from fortifai_core.config.experiment import ExperimentConfig
from fortifai_core.families.registry import FamilyExperiment
from tasks.engine.stages import Reference, Stage

AnyExperiment = ExperimentConfig | FamilyExperiment
# The last generation of each run (arm, seed) that was stopped before its end.
Stopped = Mapping[tuple[str, int], int]


@dataclass(frozen=True)
class GenerationPlan:
    """The stages of one generation of one run; of several, where a quick model class makes them in one stage.

    Attributes:
        first, last: the generations that these stages bring the run through.
        pool: what M_last reads of what several arms wrote.
        treat: make the text that M_last is trained on out of what the regime gives it.
        train: makes M_last; of a quick class also all models before it, their samples and measures.
        regenerate: what M_last rewrites.
        evaluate: measures M_last; None where `train` does.
        failure: the time-to-failure check; None where none is configured.
    """

    first: int
    last: int
    train: Stage
    regenerate: tuple[Stage, ...] = ()
    evaluate: Stage | None = None
    failure: Stage | None = None
    drift: Stage | None = None
    benchmarks: tuple[Stage, ...] = ()
    treat: tuple[Stage, ...] = ()
    pool: tuple[Stage, ...] = ()

    @property
    def measured(self) -> Stage:
        """The stage whose artifact holds the measures of these generations."""
        return self.evaluate or self.train

    @property
    def judged_late(self) -> bool:
        """Whether failure is judged by the drift, which is known after the rewriting only."""
        judged = self.failure.parents.values() if self.failure else ()
        return self.drift is not None and self.drift.reference in judged

    @property
    def results(self) -> tuple[Stage, ...]:
        """What a report reads of them."""
        before = (*self.pool, *self.treat)
        return (*before, *present(self.train, *self.regenerate, self.evaluate, self.drift), *self.benchmarks)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All of them, parents before children."""
        return present(*self.results, self.failure)


@dataclass(frozen=True)
class RunPlan:
    """One run: an arm with a seed.

    Attributes:
        data: the real data or corpus; None for a class that draws its own.
        pool: one name for all arms that read each other, directly or not; by default the run is alone.
    """

    arm: str
    seed: int
    data: Stage | None
    generations: tuple[GenerationPlan, ...]
    pool: str | None = None

    def until(self, last: int | None) -> tuple[GenerationPlan, ...]:
        """Those up to generation `last`, or all."""
        return tuple(g for g in self.generations if last is None or g.last <= last)


@dataclass(frozen=True)
class Plan:
    """Everything an experiment consists of.

    Attributes:
        shared: the stages that several runs build on, parents before children.
        before: what is measured of the models that the runs start from: only the report reads it.
        report_of: the report's stage, given which runs were stopped.
        shows, shows_drift: `module:function` that say what the UI shows of a generation and of its drift.
    """

    config: AnyExperiment
    shared: tuple[Stage, ...]
    runs: tuple[RunPlan, ...]
    report_of: Callable[[Plan, Stopped], Stage] = field(repr=False)
    shows: str
    shows_drift: str = ""
    before: tuple[Stage, ...] = ()

    @property
    def may_stop(self) -> bool:
        """Whether an arm may end before its last generation, so that not all of its stages are to be had."""
        return self.config.failure is not None and self.config.failure.stop_arm

    def before_of(self, run: RunPlan) -> Stage | None:
        """What is measured before a run's first training: of the model that it starts from, on the data it reads."""
        read = {run.data and run.data.reference, run.generations[0].train.parents.get("model")}
        return next((stage for stage in self.before if read <= set(stage.parents.values())), None)

    def run(self, arm: str, seed: int) -> RunPlan:
        return next(run for run in self.runs if (run.arm, run.seed) == (arm, seed))

    def report(self, stopped: Stopped | None = None) -> Stage:
        """The report's stage. `stopped`: runs that ended before their last generation."""
        return self.report_of(self, stopped or {})

    def stages(self) -> list[Stage]:
        """Every stage once, parents before children."""
        return list(unique(self.uses()).values())

    def alone(self, arm: str) -> list[Stage]:
        """The stages that an arm would need if it were run by itself, without its report."""
        known = {stage.reference: stage for stage in self.stages()}
        waiting = [stage for run in self.runs if run.arm == arm for g in run.generations for stage in g.stages]
        waiting += present(*(self.before_of(run) for run in self.runs if run.arm == arm))
        needed: dict[Reference, Stage] = {}
        while waiting:
            stage = waiting.pop()
            if stage.reference not in needed:
                needed[stage.reference] = stage
                waiting += [known[parent] for parent in stage.parents.values()]
        return list(needed.values())

    def together(self) -> list[list[RunPlan]]:
        """The runs, those together that read each other's text and so wait for each other; most are alone."""
        groups: dict[tuple[int, str], list[RunPlan]] = {}
        for run in self.runs:
            groups.setdefault((run.seed, run.pool or run.arm), []).append(run)
        return list(groups.values())

    def uses(self) -> list[Stage]:
        """Every stage as often as it is used: shared ones first, then run by run; a pool generation by generation."""
        steps = (step for runs in self.together() for step in zip(*(run.generations for run in runs), strict=True))
        of_runs = (stage for step in steps for generation in step for stage in generation.stages)
        return [*self.shared, *self.before, *of_runs, self.report()]


def present(*stages: Stage | None) -> tuple[Stage, ...]:
    """Those that there are."""
    return tuple(stage for stage in stages if stage is not None)


def unique(stages: Iterable[Stage]) -> dict[Reference, Stage]:
    """Each artifact's first stage, in order."""
    by_reference: dict[Reference, Stage] = {}
    for stage in stages:
        by_reference.setdefault(stage.reference, stage)
    return by_reference
