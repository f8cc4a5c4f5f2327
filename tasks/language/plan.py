"""The plan for a language model: every stage with its key, before anything runs. No torch, no Prefect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fortifai_core.config.corpus import AlmanacCorpus, MixtureCorpus
from fortifai_core.config.experiment import Arm, ExperimentConfig
from fortifai_core.config.failure_metrics import failure_metric
from fortifai_core.config.loss import CrossEntropyLoss, CustomLoss, Loss
from fortifai_core.config.model import Model, PretrainedModel, ScratchModel
from fortifai_core.config.stages import Regime, Training
from fortifai_core.corpus.schedule import (
    SplitVersion,
    regenerated,
    splits_seen,
    subsample_splits,
    text_shares,
    training_set,
)
from fortifai_core.errors import ConfigError
from tasks.engine.plans import GenerationPlan, Plan, RunPlan, Stopped, present, unique
from tasks.engine.stages import Reference, Stage
from tasks.language.pools import check_pools, pools_of
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
    PoolSpec,
    PretrainedBaseSpec,
    PretrainedTokenizerSpec,
    PretrainingSpec,
    RegenerateSpec,
    ReportSpec,
    RunResults,
    SourceSpec,
    TokenizerSpec,
    TrainSpec,
    TreatSpec,
    VersionedText,
    gamma_of,
)
from tasks.language.treatments import check_treatments, somebodys_code, treatments_field

SHOWS = ("tasks.language.publish:show", "tasks.language.publish:show_drift")


@dataclass(frozen=True)
class Digests:
    """What stands for content in keys.

    Attributes:
        corpus: of the files that the corpus reads (`storage.sources.sources.source_digests`).
        model: identity of a pretrained model: hub id and revision, or the digest of a local folder. Where arms have
            several, each one's by `place_of`.
        losses: of the source of every custom loss, by what names it.
        benchmarks: version and data digests of every benchmark asked for (`tasks.language.benchmark_data.describe`).
        treatments: of somebody else's code that treats text (`tasks.language.treatments.code_digests`).
        tokenizers: of what the tokenizers of pretrained models hold, by `place_of`, where models are in one pool.
    """

    corpus: Mapping[str, str]
    model: str | Mapping[str, str] = ""
    losses: Mapping[str, str] | None = None
    benchmarks: Mapping[str, Mapping[str, Any]] | None = None
    treatments: Mapping[str, str] | None = None
    tokenizers: Mapping[str, str] | None = None

    def vocabulary(self, tokenizer: Stage, model: Model) -> str:
        """What is the same for models whose tokenizers are, as far as it is known."""
        known = self.tokenizers or {}
        return known.get(place_of(model), tokenizer.key) if isinstance(model, PretrainedModel) else tokenizer.key

    def identity(self, model: PretrainedModel) -> str:
        return self.model if isinstance(self.model, str) else self.model[place_of(model)]


def place_of(model: PretrainedModel) -> str:
    """Where a pretrained model is from."""
    return f"{model.path} {model.revision or ''} {model.gguf_file or ''}"


def models_of(config: ExperimentConfig) -> list[Model]:
    """Every model that an arm starts from, each once."""
    found: list[Model] = []
    for arm in config.resolved_arms():
        if arm.experiment.model not in found:
            found.append(arm.experiment.model)
    return found


def plan_experiment(config: ExperimentConfig, digests: Digests) -> Plan:
    """Every stage of the experiment, with its key. What arms share they name by one key: it is built once.

    Raises:
        ConfigError: two arms come to the same, a treatment has nothing to treat, or a pool's arms cannot read each
            other.
    """
    arms = config.resolved_arms()
    check_treatments(config)
    starts = {arm.label: _Start(arm, digests) for arm in arms}
    pools = pools_of(arms)
    check_pools(arms, {name: digests.vocabulary(start.tokenizer, start.config.model) for name, start in starts.items()})
    runs: list[RunPlan] = []
    for seed in config.seeds:
        of_seed = {label: _Run(config, start, seed, digests) for label, start in starts.items()}
        for i in range(config.generations):
            for run in of_seed.values():
                run.go(i)
            for run in of_seed.values():
                run.read_others(i, of_seed)
        runs += [run.plan(pools.get(label)) for label, run in of_seed.items()]
    if config.named:
        _all_differ(config, runs)
    shared = unique(stage for start in starts.values() for stage in start.stages(config.seeds))
    measured = unique(stage for start in starts.values() for stage in start.asked(config.seeds))
    return Plan(config, tuple(shared.values()), tuple(runs), _report, *SHOWS, before=tuple(measured.values()))


def _all_differ(config: ExperimentConfig, runs: Sequence[RunPlan]) -> None:
    """Refuse two arms whose stages all have the same keys, however differently they are written."""
    seen: dict[tuple[Reference, ...], str] = {}
    for run in runs[: len(config.arms)]:
        made = tuple(stage.reference for generation in run.generations for stage in generation.stages)
        first = seen.setdefault(made, run.arm)
        if first != run.arm:
            index = config.arm_labels.index(run.arm)
            remedy = f"comes to the same as {first}, setting for setting that is read: change one, or remove it"
            raise ConfigError(f"arms.{index}", run.arm, remedy)


def world_of(config: ExperimentConfig, seed: int) -> int:
    """The seed of the almanac's world in runs of `seed`; text that was read is the same for every seed."""
    parts = config.corpus.parts if isinstance(config.corpus, MixtureCorpus) else [config.corpus]
    return seed if any(isinstance(part, AlmanacCorpus) for part in parts) else 0


def _base_model(config: ExperimentConfig, digests: Digests) -> tuple[Stage, Stage, list[Stage]]:
    """Tokenizer and M_-1; and all stages that make them, in order."""
    model = config.model
    if isinstance(model, PretrainedModel):
        place = {"path": model.path, "revision": model.revision, "gguf_file": model.gguf_file}
        chosen: dict[str, Any] = {"identity": digests.identity(model), **place}
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


class _Start:
    """What an arm's runs start from: tokenizer and M_-1, checks of the benchmarks, and each seed's corpus."""

    def __init__(self, arm: Arm, digests: Digests) -> None:
        self.arm, self.config = arm, arm.experiment
        config = self.config
        self.tokenizer, self.base, self.made = _base_model(config, digests)
        described = digests.benchmarks or {}
        self.tasks = [_task(config, name, described[name]) for name in config.evaluation.benchmarks]
        references = self.tokenizer.reference, self.base.reference
        self.checks = [Stage(_check(config, task, *references)) for task in self.tasks]
        self.corpora = {seed: _corpus(config, digests, seed, self.tokenizer.reference) for seed in config.seeds}

    def stages(self, seeds: Sequence[int]) -> list[Stage]:
        return [*self.made, *self.checks, *(stage for seed in seeds for stage in self.corpora[seed])]

    def asked(self, seeds: Sequence[int]) -> list[Stage]:
        """M_-1 on every split of each seed's corpus, where it is asked."""
        corpora = [self.corpora[seed][1].reference for seed in seeds]
        return list(present(*(_ask_base(self.config, self.base.reference, corpus) for corpus in corpora)))


class _Run:
    """One arm with one seed, generation by generation: each reads what those before it made."""

    def __init__(self, whole: ExperimentConfig, start: _Start, seed: int, digests: Digests) -> None:
        self.arm, self.config, self.tasks = start.arm, start.config, start.tasks
        self.seed, self.digests, self.named = seed, digests, whole.named
        self.corpus_stage, self.base = start.corpora[seed][1], start.base.reference
        self.corpus, self.tokenizer = self.corpus_stage.reference, start.tokenizer.reference
        self.treated_at = treatments_field(whole, whole.arm_labels.index(self.arm.label))
        self.world = world_of(whole, seed)
        self.lora = self.config.model.lora
        self.adapted = self.base if self.lora else None
        self.judged = failure_metric(self.config.failure.metric)
        self.reading = self.config.reading
        self.read_by = [arm.label for arm in whole.resolved_arms() if self.arm.label in arm.pool]
        self.versions: dict[SplitVersion, Stage] = {}  # what is read, as it was rewritten last
        self.written: dict[SplitVersion, Stage] = {}  # what this run's own models wrote
        self.measured: list[Reference] = []
        self.pooled: tuple[Stage, ...] = ()
        self.generations: list[GenerationPlan] = []

    def plan(self, pool: str | None) -> RunPlan:
        return RunPlan(self.arm.label, self.seed, self.corpus_stage, tuple(self.generations), pool)

    def go(self, i: int) -> None:
        """Generation i, from what was rewritten before it to what it rewrites."""
        generations, dtype = self.generations, self.config.evaluation.dtype
        previous = generations[-1].train.reference if generations else self.base
        treat = self._treat(i, previous)
        treated = treat[-1].reference if treat else None
        train = self._stage(i, self._train(i, previous, treated))
        rewrites = self._rewrites(i, train.reference)
        drift = None
        if self.config.evaluation.drift:
            first = generations[0].train if generations else train
            drift = self._stage(i, self._drift(i, train.reference, first.reference, rewrites, treated))
        evaluate = self._stage(i, self._evaluate(i, train.reference))
        by_drift = self.judged.role == "drift" and drift is not None
        self.measured.append(drift.reference if by_drift and drift is not None else evaluate.reference)
        benchmarks = tuple(
            self._stage(i, BenchmarkSpec(task=task, dtype=dtype, model=train.reference, base=self.adapted))
            for task in self.tasks
        )
        failure = self._stage(i, self._failure())
        made = GenerationPlan(i, i, train, rewrites, evaluate, failure, drift, benchmarks, treat, self.pooled)
        generations.append(made)

    def read_others(self, i: int, runs: Mapping[str, _Run]) -> None:
        """From generation i + 1 on, what M_i rewrote is read as the arms of the pool wrote it."""
        if not self.arm.pool or i + 1 == self.config.generations:
            return
        members = [(run, self.arm.pool[label]) for label, run in runs.items() if label in self.arm.pool]
        pooled = []
        for stage in self.generations[i].regenerate:
            version = SplitVersion(stage.split or 0, stage.version or 0)
            spec = PoolSpec(
                seed=self.seed,
                text=VersionedText(version.split, version.version),
                shares=tuple(share for _, share in members),
                texts=tuple(run.written[version].reference for run, _ in members),
            )
            self.versions[version] = self._stage(i + 1, spec, split=version.split, version=version.version)
            pooled.append(self.versions[version])
        self.pooled = tuple(pooled)

    def _stage(self, generation: int, spec: Any, **place: int) -> Stage:
        return Stage(spec, arm=self.arm.label, seed=self.seed, generation=generation, **place)

    def _text(self, version: SplitVersion) -> VersionedText:
        artifact = None if version.real else self.versions[version].reference
        return VersionedText(version.split, version.version, artifact)

    def _read(self, i: int) -> tuple[VersionedText, ...]:
        return tuple(self._text(version) for version in training_set(self.reading, i))

    def _treat(self, i: int, previous: Reference) -> tuple[Stage, ...]:
        """What is done to the text of M_i, one treatment after the other; nothing where all of it is real."""
        text = self._read(i)
        if not any(one.version for one in text):
            return ()
        models = {"previous": previous, "base": self.base, None: None}
        stages: list[Stage] = []
        for number, treatment in enumerate(self.config.treatments):
            spec = TreatSpec(
                treatment=treatment,
                code=(self.digests.treatments or {}).get(somebodys_code(treatment) or ""),
                called=f"{self.treated_at}.{number}",
                window=self.config.training.sequence_length,
                seed=self.seed,
                generation=i,
                model=models[treatment.reads],
                base=self.adapted if treatment.reads == "previous" else None,
                corpus=self.corpus,
                tokenizer=self.tokenizer,
                text=text,
                shares=text_shares(self.reading, i),
                treated=stages[-1].reference if stages else None,
                earlier=sum(one.type == treatment.type for one in self.config.treatments[:number]),
                corpus_config=self.config.corpus,
                splits=self.config.splits,
                world=self.world,
            )
            stages.append(self._stage(i, spec))
        return tuple(stages)

    def _train(self, i: int, previous: Reference, treated: Reference | None) -> TrainSpec:
        loss, training = self._aim(i)
        sources = self.digests.losses or {}
        return TrainSpec(
            loss=loss,
            loss_source=sources[loss.function] if isinstance(loss, CustomLoss) else None,
            training=training,
            lora=self.lora,
            regime=self._drawn_by(i),
            seed=self.seed,
            generation=i,
            model=previous,
            base=self.adapted,
            corpus=self.corpus,
            text=self._read(i),
            shares=text_shares(self.reading, i),
            treated=treated,
            anchor=self.base if self.config.training.anchor else None,
        )

    def _aim(self, i: int) -> tuple[Loss, Training]:
        """Without what M_i has no use for: M_0 follows no generation, real text was drawn from none, and a loss for
        one kind of text falls on all there is, or on nothing, where there is one kind."""
        loss, training = self.arm.loss, self.config.training
        read = {version.real for version in training_set(self.reading, i)}
        unused: dict[str, Any] = {"averaging": 0.0} if i == 0 else {}
        if False not in read:
            unused["distillation"] = 0.0
        if training.loss_on != "all" and (training.loss_on == "real") not in read:
            loss = CrossEntropyLoss()
        if len(read) == 1 or isinstance(loss, CrossEntropyLoss):
            unused["loss_on"] = "all"
        return loss, training.model_copy(update=unused)

    def _drawn_by(self, i: int) -> Regime:
        """The regime, for a key. Named arms that read the same text in the same way share its model, whatever regime
        each is under; the short form's keys hold the regime as they always have."""
        if not self.named or (subsample_splits(self.reading) is not None and i > 0):
            return self.config.regime
        return Regime.PAPER

    def _rewrites(self, i: int, model: Reference) -> tuple[Stage, ...]:
        """What M_i rewrites; what no later generation reads only where the drift of it is asked for."""
        later = range(i + 1, self.config.generations)
        read = any(not version.real for j in later for version in training_set(self.reading, j))
        read = read or bool(self.read_by and later)
        if not read and not self.config.evaluation.drift:
            return ()
        stages = []
        for version in regenerated(self.reading, i):
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
            self.written[after] = self.versions[after] = self._stage(i, spec, split=after.split, version=after.version)
            stages.append(self.written[after])
        return tuple(stages)

    def _drift(
        self, i: int, model: Reference, first: Reference, rewrites: tuple[Stage, ...], treated: Reference | None
    ) -> DriftSpec:
        written = tuple(VersionedText(s.split or 0, s.version or 0, s.reference) for s in rewrites)
        loss, training = self._aim(i)
        return DriftSpec(
            gamma=gamma_of(loss) if training.loss_on == "all" else None,  # of all text
            sample=self.config.evaluation.drift_sample,
            window=self.config.training.sequence_length,
            model=model,
            first=first,
            base=self.base,
            corpus=self.corpus,
            text=self._read(i),
            shares=text_shares(self.reading, i),
            treated=treated,
            rewritten=written,
            corpus_config=self.config.corpus,
            splits=self.config.splits,
            world=self.world,
        )

    def _evaluate(self, i: int, model: Reference) -> EvaluateSpec:
        return EvaluateSpec(
            kr_score=self.config.evaluation.kr_score,
            perplexity=self.config.evaluation.perplexity,
            splits=tuple(splits_seen(self.reading, i)),
            dtype=self.config.evaluation.dtype,
            model=model,
            base=self.adapted,
            corpus=self.corpus,
        )

    def _failure(self) -> FailureSpec:
        return FailureSpec(
            metric=self.config.failure.metric,
            threshold=self.config.failure.threshold,
            regime=self.reading,
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
        treat=tuple(stage.reference for stage in generation.treat),
        pool={stage.split or 0: stage.reference for stage in generation.pool},
        train=generation.train.reference,
        regenerate=rewrites,
        evaluate=generation.evaluate.reference,
        drift=None if cut or generation.drift is None else generation.drift.reference,
        benchmarks=tuple(s.reference for s in generation.benchmarks),
    )
