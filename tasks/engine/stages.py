"""What an experiment consists of: stages with their keys, in runs and generations. No torch, no Prefect."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from fortifai_core.config.experiment import ExperimentConfig
from fortifai_core.config.failure_metrics import DEFAULT, failure_metric
from storage.store.keys import artifact_key

# Raise the number of a role when its code changes what it makes: every artifact after it is rebuilt.
VERSIONS = {
    "pretraining": 2,
    "source": 2,
    "tokenizer": 1,
    "base": 1,
    "corpus": 1,
    "train": 1,
    "regenerate": 1,
    "evaluate": 2,
    "failure": 1,
    "drift": 1,
    "benchmark-check": 1,
    "benchmark": 1,
    "report": 2,
    "family-data": 1,
    "family-train": 1,
    "family-sample": 1,
    "family-evaluate": 1,
    "family-segment": 1,
    "family-failure": 1,
    "family-report": 1,
}
KINDS = {
    "base": "model",
    "train": "model",
    "regenerate": "split",
    "evaluate": "evaluation",
    "family-train": "family-model",
    "family-evaluate": "family-evaluation",
}


@dataclass(frozen=True)
class Stage:
    """One step of an experiment: what it makes (`kind`, `key`), from what, and how it is called.

    Attributes:
        role: the task that builds it (train, regenerate, …); names the entry of `VERSIONS`.
        content: the part of the configuration that changes the result; part of the key.
        parents: role names → (kind, key) of the artifacts read; the keys are part of the key.
        recipe: what the builder needs besides and the key must not hold (paths).
    """

    role: str
    key: str
    content: dict[str, Any]
    parents: dict[str, tuple[str, str]]
    arm: str | None = None
    seed: int | None = None
    generation: int | None = None
    split: int | None = None
    version: int | None = None
    recipe: dict[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        return KINDS.get(self.role, self.role)

    @property
    def label(self) -> str:
        """As people read it: `regenerate · g2 · split 0`."""
        parts = [self.role.removeprefix("family-")]
        if self.role == "family-segment":
            parts.append(f"g{self.content['first']}–{self.content['last']}")
        elif self.generation is not None:
            parts.append(f"g{self.generation}")
        if self.split is not None:
            parts.append(f"split {self.split}")
        if self.role.startswith("benchmark"):
            parts.append(self.content["benchmark"])
        return " · ".join(parts)

    @property
    def reference(self) -> tuple[str, str]:
        return (self.kind, self.key)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Stage:
        values = dict(data)
        values["parents"] = {name: (kind, key) for name, (kind, key) in values["parents"].items()}
        return cls(**values)


def stage(role: str, *, content: dict[str, Any], parents: Mapping[str, Stage], **names: Any) -> Stage:
    """A stage with its key computed."""
    references = {name: parent.reference for name, parent in parents.items()}
    kind = KINDS.get(role, role)
    key = artifact_key(
        kind, version=VERSIONS[role], content=content, parents={n: key for n, (_, key) in references.items()}
    )
    return Stage(role=role, key=key, content=content, parents=references, **names)


@dataclass(frozen=True)
class GenerationPlan:
    """The stages of one generation of one run."""

    generation: int
    train: Stage
    regenerate: list[Stage]
    evaluate: Stage
    failure: Stage
    drift: Stage | None = None
    benchmarks: list[Stage] = field(default_factory=list)

    @property
    def results(self) -> list[Stage]:
        """What a report reads of this generation."""
        return [
            self.train,
            *self.regenerate,
            self.evaluate,
            *([self.drift] if self.drift else []),
            *self.benchmarks,
        ]

    @property
    def stages(self) -> list[Stage]:
        """All of them, parents before children."""
        return [*self.results, self.failure]


@dataclass(frozen=True)
class RunPlan:
    """One run: an arm with a seed."""

    arm: str
    seed: int
    corpus: Stage
    generations: list[GenerationPlan]


@dataclass(frozen=True)
class Plan:
    """Everything an experiment consists of; `shared` are the stages that several runs build on, in order."""

    config: ExperimentConfig
    shared: list[Stage]
    runs: list[RunPlan]

    def run(self, arm: str, seed: int) -> RunPlan:
        return next(run for run in self.runs if (run.arm, run.seed) == (arm, seed))

    def report(self, reached: Mapping[tuple[str, int], int] | None = None) -> Stage:
        """The report's stage. `reached`: the last generation of each run that was stopped before its end."""
        read = []
        for run in self.runs:
            last = (reached or {}).get((run.arm, run.seed))
            for g in run.generations[: None if last is None else last + 1]:
                # an arm that is stopped rewrites nothing after the generation in which it failed, unless that is what
                # it was judged by
                stopped = g.generation == last and failure_metric(self.config.failure.metric).role == "evaluate"
                missing = ("regenerate", "drift") if stopped else ()
                read += [(run, g.generation, one) for one in g.results if one.role not in missing]
        return stage(
            "report",
            content={
                "name": self.config.name,
                "arms": [loss.label for loss in self.config.losses],
                "regime": self.config.regime.value,
                "threshold": self.config.failure.threshold,
                **({} if self.config.failure.metric == DEFAULT else {"metric": self.config.failure.metric}),
            },
            parents={
                **{f"source/{i}": one for i, one in enumerate(o for o in self.shared if o.role == "source")},
                **{f"corpus/{run.seed}": run.corpus for run in self.runs},
                **{
                    f"{run.arm}/{run.seed}/{generation}/{one.role}"
                    + ("" if one.split is None else f"/{one.split}")
                    + (f"/{one.content['benchmark']}" if one.role == "benchmark" else ""): one
                    for run, generation, one in read
                },
            },
            recipe={
                "command": f"fortifai resume {self.config.name}",
                "config": self.config.model_dump(mode="json"),
            },
        )

    def stages(self) -> list[Stage]:
        """Every stage once, parents before children."""
        found: dict[tuple[str, str], Stage] = {}
        for one in self.uses():
            found.setdefault(one.reference, one)
        return list(found.values())

    def uses(self) -> list[Stage]:
        """Every stage as often as it is used: shared ones first, then run by run."""
        return [
            *self.shared,
            *(one for run in self.runs for g in run.generations for one in g.stages),
            self.report(),
        ]
