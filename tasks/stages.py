"""The plan: every stage of an experiment with its key, known before anything runs. No torch, no Prefect."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from fortifai_core.config import (
    AlmanacCorpus,
    Corpus,
    CustomLoss,
    ExperimentConfig,
    HuggingFaceCorpus,
    MixtureCorpus,
    PretrainedModel,
    Regeneration,
    ScratchModel,
    TextCorpus,
)
from fortifai_core.schedule import SplitVersion, regenerated, splits_seen, training_set
from storage.keys import artifact_key

# Raise the number of a role when its code changes what it makes: every artifact after it is rebuilt.
VERSIONS = {
    "pretraining": 1,
    "source": 1,
    "tokenizer": 1,
    "base": 1,
    "corpus": 1,
    "train": 1,
    "regenerate": 1,
    "evaluate": 1,
    "failure": 1,
    "report": 1,
}
KINDS = {"base": "model", "train": "model", "regenerate": "split", "evaluate": "evaluation"}


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
        parts = [self.role]
        if self.generation is not None:
            parts.append(f"g{self.generation}")
        if self.split is not None:
            parts.append(f"split {self.split}")
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
        generations = [
            (run, g)
            for run in self.runs
            for g in run.generations
            if g.generation <= (reached or {}).get((run.arm, run.seed), g.generation)
        ]
        return stage(
            "report",
            content={
                "name": self.config.name,
                "arms": [loss.label for loss in self.config.losses],
                "regime": self.config.regime.value,
                "threshold": self.config.failure.threshold,
            },
            parents={
                **{f"{one.role}/{one.seed}": one for one in self.shared if one.role in ("source", "corpus")},
                **{
                    f"{run.arm}/{run.seed}/{g.generation}/{one.role}"
                    + ("" if one.split is None else f"/{one.split}"): one
                    for run, g in generations
                    for one in [g.train, *g.regenerate, g.evaluate]
                },
            },
            recipe={
                "command": f"fortifai resume {self.config.name}",
                "config": self.config.model_dump(mode="json"),
            },
        )

    def stages(self) -> list[Stage]:
        """Every stage once, parents before children."""
        found: dict[tuple[str, str], Stage] = {s.reference: s for s in self.shared}
        for run in self.runs:
            for generation in run.generations:
                for one in [
                    generation.train,
                    *generation.regenerate,
                    generation.evaluate,
                    generation.failure,
                ]:
                    found.setdefault(one.reference, one)
        report = self.report()
        found[report.reference] = report
        return list(found.values())

    def uses(self) -> list[Stage]:
        """Every stage as often as it is used: shared ones first, then run by run."""
        return [
            *self.shared,
            *(
                one
                for run in self.runs
                for g in run.generations
                for one in [g.train, *g.regenerate, g.evaluate, g.failure]
            ),
            self.report(),
        ]


def _has_almanac(corpus: Corpus) -> bool:
    parts = corpus.parts if isinstance(corpus, MixtureCorpus) else [corpus]
    return any(isinstance(part, AlmanacCorpus) for part in parts)


def _corpus_content(corpus: Corpus, digests: Mapping[str, str]) -> dict[str, Any]:
    """The corpus without its paths: files enter a key by their digests."""

    def strip(part: Corpus) -> dict[str, Any]:
        content = part.model_dump(mode="json")
        if isinstance(part, TextCorpus):
            del content["files"], content["questions"]
        if isinstance(part, HuggingFaceCorpus):
            del content["questions"]
        return content

    if isinstance(corpus, MixtureCorpus):
        parts = [strip(part) for part in corpus.parts]
        return {"type": "mixture", "parts": parts, "digests": dict(digests)}
    return {**strip(corpus), "digests": dict(digests)}


def _pretraining_content(corpus: Corpus, digests: Mapping[str, str], splits: int) -> dict[str, Any]:
    """What the base model's text depends on: for an almanac not on the entities of the splits."""
    if isinstance(corpus, AlmanacCorpus):
        content = corpus.model_dump(mode="json")
        del content["entities"]
        return content
    return {**_corpus_content(corpus, digests), "splits": splits}


def _regeneration_content(config: Regeneration) -> dict[str, Any]:
    """The regeneration without the options that its decoding does not read."""
    content = config.model_dump(mode="json")
    if config.decoding != "sample":
        for name in ("temperature", "top_p", "top_k"):
            del content[name]
    if config.decoding != "beam":
        del content["beams"]
    return content


def _loss_content(loss: Any, digests: Mapping[str, str]) -> dict[str, Any]:
    """The loss by what it computes: a custom one by the digest of its module's source, not by its label."""
    content: dict[str, Any] = loss.model_dump(mode="json")
    if isinstance(loss, CustomLoss):
        del content["name"]
        content["source"] = digests[loss.function]
    return content


def plan_experiment(
    config: ExperimentConfig,
    *,
    corpus_digests: Mapping[str, str],
    model_digest: str | None = None,
    loss_digests: Mapping[str, str] | None = None,
) -> Plan:
    """Every stage of the experiment, with its key.

    Args:
        corpus_digests: content digests of the files that the corpus reads (`storage.sources.source_digests`).
        model_digest: identity of a pretrained model: hub id and revision, or the digest of a local folder.
        loss_digests: digest of the source of every custom loss, by its `module:function`.
    """
    recipe = {"corpus": config.corpus.model_dump(mode="json")}
    shared: list[Stage] = []

    def share(one: Stage) -> Stage:
        shared.append(one)
        return one

    if isinstance(config.model, ScratchModel):
        pretraining = share(
            stage(
                "pretraining",
                content=_pretraining_content(config.corpus, corpus_digests, config.splits),
                parents={},
                recipe={**recipe, "splits": config.splits},
            )
        )
        tokenizer = share(
            stage(
                "tokenizer",
                content={"vocabulary": config.model.vocabulary},
                parents={"pretraining": pretraining},
            )
        )
        base = share(
            stage(
                "base",
                content={"model": config.model.model_dump(mode="json")},
                parents={"pretraining": pretraining, "tokenizer": tokenizer},
            )
        )
    else:
        identity = {"pretrained": model_digest or "", "dtype": config.model.dtype}
        weights = {"path": config.model.path, "revision": config.model.revision}
        tokenizer = share(
            stage("tokenizer", content={"pretrained": identity["pretrained"]}, parents={}, recipe=weights)
        )
        base = share(stage("base", content=identity, parents={"tokenizer": tokenizer}, recipe=weights))

    corpora: dict[int, Stage] = {}
    for seed in config.seeds:
        world = seed if _has_almanac(config.corpus) else 0
        source = stage(
            "source",
            content={
                "corpus": _corpus_content(config.corpus, corpus_digests),
                "splits": config.splits,
                "seed": world,
            },
            parents={},
            recipe={**recipe, "seed": world},
        )
        cut = stage("corpus", content={"splits": config.splits}, parents={"source": source, "tokenizer": tokenizer})
        for one in (source, cut):
            if one.reference not in {s.reference for s in shared}:
                share(one)
        corpora[seed] = cut

    runs = [
        _plan_run(config, loss=loss, seed=seed, base=base, corpus=corpora[seed], loss_digests=loss_digests or {})
        for seed in config.seeds
        for loss in config.losses
    ]
    return Plan(config=config, shared=shared, runs=runs)


def _plan_run(
    config: ExperimentConfig,
    *,
    loss: Any,
    seed: int,
    base: Stage,
    corpus: Stage,
    loss_digests: Mapping[str, str],
) -> RunPlan:
    arm = loss.label
    lora = config.model.lora if isinstance(config.model, PretrainedModel) else None
    # an adapter is kept without the model that it adapts, so whatever loads it needs that one too
    adapted = {"base": base} if lora else {}
    versions: dict[SplitVersion, Stage] = {}
    previous, evaluations, generations = base, {}, []
    last = config.generations - 1
    for i in range(config.generations):
        names: dict[str, Any] = {"arm": arm, "seed": seed, "generation": i}
        wanted = training_set(config.regime, i)
        train = stage(
            "train",
            content={
                "loss": _loss_content(loss, loss_digests),
                "training": config.training.model_dump(mode="json"),
                "lora": lora.model_dump(mode="json") if lora else None,
                "regime": config.regime.value,
                "seed": seed,
                "generation": i,
                "text": [[v.split, v.version] for v in wanted],
            },
            parents={
                "model": previous,
                **adapted,
                "corpus": corpus,
                **{str(v): versions[v] for v in wanted if not v.real},
            },
            recipe={"loss": loss.model_dump(mode="json")},
            **names,
        )
        rewrites = []
        if i < last or config.evaluation.drift:
            for v in regenerated(config.regime, i):
                after = SplitVersion(v.split, v.version + 1)
                versions[after] = stage(
                    "regenerate",
                    content={
                        "regeneration": _regeneration_content(config.regeneration),
                        "seed": seed,
                        "generation": i,
                        "text": [v.split, v.version],
                    },
                    parents={
                        "model": train,
                        **adapted,
                        "corpus": corpus,
                        **({} if v.real else {"text": versions[v]}),
                    },
                    split=v.split,
                    version=after.version,
                    **names,
                )
                rewrites.append(versions[after])
        evaluate = stage(
            "evaluate",
            content={
                "evaluation": config.evaluation.model_dump(mode="json", exclude={"drift"}),
                "splits": splits_seen(config.regime, i),
            },
            parents={"model": train, **adapted, "corpus": corpus},
            **names,
        )
        evaluations[f"g{i}"] = evaluate
        failure = stage(
            "failure",
            content={"threshold": config.failure.threshold, "regime": config.regime.value},
            parents=dict(evaluations),
            **names,
        )
        generations.append(GenerationPlan(i, train, rewrites, evaluate, failure))
        previous = train
    return RunPlan(arm=arm, seed=seed, corpus=corpus, generations=generations)
