"""The plan for a language model: every stage with its key, before anything runs. No torch, no Prefect."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fortifai_core.config.corpus import AlmanacCorpus, MixtureCorpus
from fortifai_core.config.experiment import Arm, ExperimentConfig
from fortifai_core.config.failure_metrics import failure_metric
from fortifai_core.config.loss import CustomLoss
from fortifai_core.config.model import PretrainedModel, ScratchModel
from fortifai_core.corpus.schedule import SplitVersion, regenerated, splits_seen, training_set
from tasks.engine.plans import GenerationPlan, Plan, RunPlan, Stopped, unique
from tasks.engine.stages import Reference, Stage
from tasks.language.specs import (
    BaseSpec,
    BenchmarkCheckSpec,
    BenchmarkSpec,
    BenchmarkTask,
    CorpusSpec,
    DriftSpec,
    EvaluateSpec,
    FailureSpec,
    GenerationResults,
    PretrainedBaseSpec,
    PretrainedTokenizerSpec,
    PretrainingSpec,
    RegenerateSpec,
    ReportSpec,
    RunResults,
    SourceSpec,
    TokenizerSpec,
    TrainSpec,
    VersionedText,
    gamma_of,
)

SHOWS = ("tasks.language.publish:show", "tasks.language.publish:show_drift")


@dataclass(frozen=True)
class Digests:
    """What stands for content in keys.

    Attributes:
        corpus: of the files that the corpus reads (`storage.sources.sources.source_digests`).
        model: identity of a pretrained model: hub id and revision, or the digest of a local folder.
        losses: of the source of every custom loss, by what names it.
        benchmarks: version and data digests of every benchmark asked for (`tasks.language.benchmark_data.describe`).
    """

    corpus: Mapping[str, str]
    model: str = ""
    losses: Mapping[str, str] | None = None
    benchmarks: Mapping[str, Mapping[str, Any]] | None = None


def plan_experiment(config: ExperimentConfig, digests: Digests) -> Plan:
    """Every stage of the experiment, with its key."""
    tokenizer, base, before = _base_model(config, digests)
    tasks = [_task(config, name, (digests.benchmarks or {})[name]) for name in config.evaluation.benchmarks]
    checks = [Stage(_check(config, task, tokenizer.reference, base.reference)) for task in tasks]
    corpora = {seed: _corpus(config, digests, seed, tokenizer.reference) for seed in config.seeds}
    asked = {seed: _ask_base(config, base.reference, pair[1].reference) for seed, pair in corpora.items()}
    runs = tuple(
        _Run(config, arm, seed, base.reference, corpora[seed][1], digests, tasks).plan()
        for seed in config.seeds
        for arm in config.resolved_arms()
    )
    shared = unique([*before, *checks, *(stage for pair in corpora.values() for stage in pair)])
    measured = unique(stage for stage in asked.values() if stage is not None)
    return Plan(config, tuple(shared.values()), runs, _report, *SHOWS, before=tuple(measured.values()))


def world_of(config: ExperimentConfig, seed: int) -> int:
    """The seed of the almanac's world in runs of `seed`; text that was read is the same for every seed."""
    parts = config.corpus.parts if isinstance(config.corpus, MixtureCorpus) else [config.corpus]
    return seed if any(isinstance(part, AlmanacCorpus) for part in parts) else 0


def _base_model(config: ExperimentConfig, digests: Digests) -> tuple[Stage, Stage, list[Stage]]:
    """Tokenizer and M_-1; and all stages that make them, in order."""
    model = config.model
    if isinstance(model, PretrainedModel):
        place = {"path": model.path, "revision": model.revision, "gguf_file": model.gguf_file}
        chosen: dict[str, Any] = {"identity": digests.model, **place}
        tokenizer = Stage(PretrainedTokenizerSpec(**chosen))
        base = Stage(PretrainedBaseSpec(**chosen, dtype=model.dtype, tokenizer=tokenizer.reference))
        return tokenizer, base, [tokenizer, base]
    pretraining = Stage(PretrainingSpec(corpus=config.corpus, digests=dict(digests.corpus), splits=config.splits))
    tokenizer = Stage(TokenizerSpec(vocabulary=model.vocabulary, pretraining=pretraining.reference))
    base = Stage(BaseSpec(model=model, pretraining=pretraining.reference, tokenizer=tokenizer.reference))
    return tokenizer, base, [pretraining, tokenizer, base]


def _corpus(config: ExperimentConfig, digests: Digests, seed: int, tokenizer: Reference) -> tuple[Stage, Stage]:
    """The source of a seed's runs, and the same cut into splits."""
    world, files = world_of(config, seed), dict(digests.corpus)
    source = Stage(SourceSpec(corpus=config.corpus, digests=files, splits=config.splits, world=world))
    return source, Stage(CorpusSpec(splits=config.splits, source=source.reference, tokenizer=tokenizer))


def _ask_base(config: ExperimentConfig, base: Reference, corpus: Reference) -> Stage | None:
    """M_-1 on every split, whatever the generations that are asked for; None where it is not asked."""
    if not config.asks_base:
        return None
    evaluation = config.evaluation
    spec = EvaluateSpec(
        kr_score=evaluation.kr_score,
        perplexity=evaluation.perplexity,
        splits=tuple(range(config.splits)),
        dtype=evaluation.dtype,
        model=base,
        base=None,
        corpus=corpus,
    )
    return Stage(spec, generation=-1)


def _task(config: ExperimentConfig, name: str, described: Mapping[str, Any]) -> BenchmarkTask:
    evaluation = config.evaluation
    return BenchmarkTask(name, evaluation.benchmark_limit, evaluation.benchmark_fewshot.get(name), dict(described))


def _check(config: ExperimentConfig, task: BenchmarkTask, tokenizer: Reference, base: Reference) -> BenchmarkCheckSpec:
    if isinstance(config.model, ScratchModel):
        return BenchmarkCheckSpec(task=task, window=config.model.max_positions, tokenizer=tokenizer, base=None)
    return BenchmarkCheckSpec(task=task, window=None, tokenizer=tokenizer, base=base)


class _Run:
    """One arm with one seed, generation by generation: each reads what those before it made."""

    def __init__(
        self,
        whole: ExperimentConfig,
        arm: Arm,
        seed: int,
        base: Reference,
        corpus: Stage,
        digests: Digests,
        tasks: list[BenchmarkTask],
    ) -> None:
        self.config = config = arm.experiment
        self.arm, self.seed, self.digests, self.tasks = arm, seed, digests, tasks
        self.corpus_stage, self.corpus, self.base = corpus, corpus.reference, base
        self.world = world_of(whole, seed)
        self.lora = config.model.lora if isinstance(config.model, PretrainedModel) else None
        self.adapted = base if self.lora else None
        self.judged = failure_metric(config.failure.metric)
        self.versions: dict[SplitVersion, Stage] = {}
        self.measured: list[Reference] = []

    def plan(self) -> RunPlan:
        generations: list[GenerationPlan] = []
        dtype = self.config.evaluation.dtype
        for i in range(self.config.generations):
            previous = generations[-1].train.reference if generations else self.base
            train = self._stage(i, self._train(i, previous))
            rewrites = self._rewrites(i, train.reference)
            drift = None
            if self.config.evaluation.drift:
                first = generations[0].train if generations else train
                drift = self._stage(i, self._drift(i, train.reference, first.reference, rewrites))
            evaluate = self._stage(i, self._evaluate(i, train.reference))
            by_drift = self.judged.role == "drift" and drift is not None
            self.measured.append(drift.reference if by_drift and drift is not None else evaluate.reference)
            benchmarks = tuple(
                self._stage(i, BenchmarkSpec(task=task, dtype=dtype, model=train.reference, base=self.adapted))
                for task in self.tasks
            )
            failure = self._stage(i, self._failure())
            generations.append(GenerationPlan(i, i, train, rewrites, evaluate, failure, drift, benchmarks))
        return RunPlan(self.arm.label, self.seed, self.corpus_stage, tuple(generations))

    def _stage(self, generation: int, spec: Any, **place: int) -> Stage:
        return Stage(spec, arm=self.arm.label, seed=self.seed, generation=generation, **place)

    def _text(self, version: SplitVersion) -> VersionedText:
        artifact = None if version.real else self.versions[version].reference
        return VersionedText(version.split, version.version, artifact)

    def _read(self, i: int) -> tuple[VersionedText, ...]:
        return tuple(self._text(version) for version in training_set(self.config.regime, i))

    def _train(self, i: int, previous: Reference) -> TrainSpec:
        loss = self.arm.loss
        sources = self.digests.losses or {}
        return TrainSpec(
            loss=loss,
            loss_source=sources[loss.function] if isinstance(loss, CustomLoss) else None,
            training=self.config.training,
            lora=self.lora,
            regime=self.config.regime,
            seed=self.seed,
            generation=i,
            model=previous,
            base=self.adapted,
            corpus=self.corpus,
            text=self._read(i),
        )

    def _rewrites(self, i: int, model: Reference) -> tuple[Stage, ...]:
        """What M_i rewrites; after the last generation only where the drift of it is asked for."""
        if i == self.config.generations - 1 and not self.config.evaluation.drift:
            return ()
        stages = []
        for version in regenerated(self.config.regime, i):
            spec = RegenerateSpec(
                regeneration=self.config.regeneration,
                seed=self.seed,
                generation=i,
                model=model,
                base=self.adapted,
                corpus=self.corpus,
                text=self._text(version),
            )
            after = SplitVersion(version.split, version.version + 1)
            self.versions[after] = self._stage(i, spec, split=after.split, version=after.version)
            stages.append(self.versions[after])
        return tuple(stages)

    def _drift(self, i: int, model: Reference, first: Reference, rewrites: tuple[Stage, ...]) -> DriftSpec:
        written = tuple(VersionedText(s.split or 0, s.version or 0, s.reference) for s in rewrites)
        return DriftSpec(
            gamma=gamma_of(self.arm.loss),
            sample=self.config.evaluation.drift_sample,
            window=self.config.training.sequence_length,
            model=model,
            first=first,
            base=self.base,
            corpus=self.corpus,
            text=self._read(i),
            rewritten=written,
            corpus_config=self.config.corpus,
            splits=self.config.splits,
            world=self.world,
        )

    def _evaluate(self, i: int, model: Reference) -> EvaluateSpec:
        return EvaluateSpec(
            kr_score=self.config.evaluation.kr_score,
            perplexity=self.config.evaluation.perplexity,
            splits=tuple(splits_seen(self.config.regime, i)),
            dtype=self.config.evaluation.dtype,
            model=model,
            base=self.adapted,
            corpus=self.corpus,
        )

    def _failure(self) -> FailureSpec:
        return FailureSpec(
            metric=self.config.failure.metric,
            threshold=self.config.failure.threshold,
            regime=self.config.regime,
            measured=tuple(self.measured),
        )


def _report(plan: Plan, stopped: Stopped) -> Stage:
    """The report's stage, for runs that went to their ends or were stopped."""
    config = plan.config
    assert isinstance(config, ExperimentConfig)
    # an arm that is stopped rewrites nothing after the generation in which it failed, unless that is what it was
    # judged by
    early = failure_metric(config.failure.metric).role == "evaluate"
    runs = []
    for run in plan.runs:
        last, corpus = stopped.get((run.arm, run.seed)), run.data
        assert corpus is not None and isinstance(corpus.spec, CorpusSpec)
        generations = tuple(_results(g, cut=early and g.last == last) for g in run.until(last))
        before = plan.before_of(run)
        artifacts = {
            "source": corpus.spec.source,
            "corpus": corpus.reference,
            "before": before and before.reference,
        }
        runs.append(RunResults(arm=run.arm, seed=run.seed, generations=generations, **artifacts))
    command = f"fortifai resume {config.name}"
    return Stage(ReportSpec(config=config.model_dump(mode="json"), command=command, runs=tuple(runs)))


def _results(generation: GenerationPlan, *, cut: bool) -> GenerationResults:
    """What the report reads of one generation. `cut`: its run was stopped there, before anything was rewritten."""
    assert generation.evaluate is not None
    rewrites = {} if cut else {s.split or 0: s.reference for s in generation.regenerate}
    return GenerationResults(
        generation=generation.last,
        train=generation.train.reference,
        regenerate=rewrites,
        evaluate=generation.evaluate.reference,
        drift=None if cut or generation.drift is None else generation.drift.reference,
        benchmarks=tuple(s.reference for s in generation.benchmarks),
    )
