"""The plan: from a configuration to every stage with its key, before anything runs. No torch, no Prefect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fortifai_core.config.corpus import AlmanacCorpus, Corpus, HuggingFaceCorpus, MixtureCorpus, TextCorpus
from fortifai_core.config.experiment import ExperimentConfig
from fortifai_core.config.failure_metrics import DEFAULT, failure_metric
from fortifai_core.config.loss import CustomLoss, TruncatedCrossEntropyLoss
from fortifai_core.config.model import PretrainedModel, ScratchModel
from fortifai_core.config.stages import Regeneration
from fortifai_core.corpus.schedule import SplitVersion, regenerated, splits_seen, training_set
from tasks.engine.stages import GenerationPlan, Plan, RunPlan, Stage, stage


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
    """The regeneration without the options that its decoding and its contexts do not read.

    What was added to the configuration later is left out where it says what was always done: keys stay valid.
    """
    content = config.model_dump(mode="json")
    del content["engine"], content["chunk_tokens"]
    if config.engine_used != "reference":
        content["engine"] = config.engine_used
    if config.context == "cut":
        del content["context"]
    else:
        content["chunk_tokens"] = config.longest_input
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
    benchmarks: Mapping[str, Mapping[str, Any]] | None = None,
) -> Plan:
    """Every stage of the experiment, with its key.

    Args:
        corpus_digests: content digests of the files that the corpus reads (`storage.sources.sources.source_digests`).
        model_digest: identity of a pretrained model: hub id and revision, or the digest of a local folder.
        loss_digests: digest of the source of every custom loss, by its `module:function`.
        benchmarks: version and data digests of every benchmark asked for (`tasks.language.benchmark_data.describe`).
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

    asked = [_benchmark_content(config, name, (benchmarks or {})[name]) for name in config.evaluation.benchmarks]
    scratch = isinstance(config.model, ScratchModel)
    for content in asked:
        window = config.model.max_positions if isinstance(config.model, ScratchModel) else None
        parents = {"tokenizer": tokenizer} if scratch else {"tokenizer": tokenizer, "base": base}
        share(stage("benchmark-check", content={**content, "window": window}, parents=parents))

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
        _plan_run(
            config,
            loss=loss,
            seed=seed,
            base=base,
            corpus=corpora[seed],
            loss_digests=loss_digests or {},
            asked=asked,
        )
        for seed in config.seeds
        for loss in config.losses
    ]
    return Plan(config=config, shared=shared, runs=runs)


def _benchmark_content(config: ExperimentConfig, name: str, described: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "benchmark": name,
        "limit": config.evaluation.benchmark_limit,
        "fewshot": config.evaluation.benchmark_fewshot.get(name),
        **described,
    }


def _drift_stage(
    config: ExperimentConfig,
    loss: Any,
    text: list[SplitVersion],
    rewrites: list[Stage],
    parents: Mapping[str, Stage],
    names: Mapping[str, Any],
    read: Mapping[SplitVersion, Stage],
) -> Stage:
    """The drift of one generation: of what its model rewrote, and of the model itself."""
    return stage(
        "drift",
        content={
            "gamma": loss.gamma if isinstance(loss, TruncatedCrossEntropyLoss) else None,
            "sample": config.evaluation.drift_sample,
            "window": config.training.sequence_length,
            "text": [[v.split, v.version] for v in text],
            "rewritten": [[one.split, one.version] for one in rewrites],
        },
        parents={
            **parents,
            **{str(v): read[v] for v in text if not v.real},
            **{f"D{one.split}^({one.version})": one for one in rewrites},
        },
        # the ground truth of an almanac; that it is the one of this corpus follows from the corpus's key
        recipe={
            "corpus": config.corpus.model_dump(mode="json"),
            "splits": config.splits,
            "world": names["seed"] if _has_almanac(config.corpus) else 0,
        },
        **names,
    )


def _failure_content(config: ExperimentConfig) -> dict[str, Any]:
    """The rule of failure; the measure that was always used is said in no key."""
    judged = {} if config.failure.metric == DEFAULT else {"metric": config.failure.metric}
    return {"threshold": config.failure.threshold, "regime": config.regime.value, **judged}


def _plan_run(
    config: ExperimentConfig,
    *,
    loss: Any,
    seed: int,
    base: Stage,
    corpus: Stage,
    loss_digests: Mapping[str, str],
    asked: list[dict[str, Any]],
) -> RunPlan:
    arm = loss.label
    lora = config.model.lora if isinstance(config.model, PretrainedModel) else None
    # an adapter is kept without the model that it adapts, so whatever loads it needs that one too
    adapted = {"base": base} if lora else {}
    versions: dict[SplitVersion, Stage] = {}
    generations: list[GenerationPlan] = []
    evaluations: dict[str, Stage] = {}
    drifts: dict[str, Stage] = {}
    judged = failure_metric(config.failure.metric)
    previous = base
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
        drift = None
        if config.evaluation.drift:
            first = generations[0].train if generations else train
            drift = _drift_stage(
                config,
                loss,
                wanted,
                rewrites,
                {"model": train, "first": first, "base": base, "corpus": corpus},
                names,
                versions,
            )
            drifts[f"g{i}"] = drift
        evaluate = stage(
            "evaluate",
            content={
                "evaluation": config.evaluation.model_dump(mode="json", include={"kr_score", "perplexity"}),
                "splits": splits_seen(config.regime, i),
            },
            parents={"model": train, **adapted, "corpus": corpus},
            **names,
        )
        evaluations[f"g{i}"] = evaluate
        failure = stage(
            "failure",
            content=_failure_content(config),
            parents=dict(drifts if judged.role == "drift" else evaluations),
            **names,
        )
        benchmarks = [
            stage("benchmark", content=content, parents={"model": train, **adapted}, **names) for content in asked
        ]
        generations.append(GenerationPlan(i, train, rewrites, evaluate, failure, drift, benchmarks))
        previous = train
    return RunPlan(arm=arm, seed=seed, corpus=corpus, generations=generations)
