"""Builder of the report: gathers what every run measured and hands it to `fortifai_core.report.page`."""

from __future__ import annotations

from dataclasses import replace
from importlib import resources
from typing import TYPE_CHECKING, Any

from fortifai_core.config.experiment import ExperimentConfig
from fortifai_core.config.loss import CustomLoss, EntropyTruncatedLoss, TailLoss, TruncatedCrossEntropyLoss
from storage.tables import parquet
from tasks.engine.context import Context
from tasks.engine.reports import environment, write_report
from tasks.language.files import CLUSTERS
from tasks.language.specs import GenerationResults, ReportSpec

if TYPE_CHECKING:
    from fortifai_core.outcomes.inference import Clusters
    from fortifai_core.report.data import GenerationResult
    from storage.store.store import Artifact


def build_report(context: Context[ReportSpec]) -> dict[str, Any]:
    """report.html, its figures (SVG, PNG) and tables (CSV, Parquet), and table.json for the terminal."""
    from fortifai_core.outcomes.paper import paper_time_to_failure, read_results
    from fortifai_core.report.data import ArmResult, ReportData, RunResult
    from tasks.language.report_mutation import mutations

    config = ExperimentConfig.model_validate(context.spec.config)
    with resources.as_file(resources.files("storage") / "paper" / "results.csv") as path:
        quoted = paper_time_to_failure(read_results(path))
    reference = _reference_gamma(config)
    runs_of = {label: list[RunResult]() for label in config.arm_labels}
    for run in context.spec.runs:
        generations = tuple(_generation(context, reference[run.arm], g) for g in run.generations)
        before = None if run.before is None else _asked(context.artifact(run.before), -1)
        runs_of[run.arm].append(RunResult(seed=run.seed, generations=generations, before=before))
    first = context.spec.runs[0].generations[0].train
    data = ReportData(
        experiment=config.name,
        config=context.spec.config,
        command=context.spec.command,
        environment=environment(
            context, first, ("torch", "transformers", "prefect"), **{"threads of a worker": "torch_threads"}
        ),
        arms=tuple(
            ArmResult(
                label=arm.label,
                runs=tuple(runs_of[arm.label]),
                reading=arm.experiment.reading,
            )
            for arm in config.resolved_arms()
        ),
        notes=_notes(context),
        differences={arm.label: arm.difference for arm in config.resolved_arms() if config.named},
        quoted=quoted,
        regime=config.regime,
        threshold=config.failure.threshold,
        metric=config.failure.metric,
        mutations=mutations(context, config),
        baseline=config.arm_labels[0],
    )
    write_report(context, data)
    return {}


def _generation(context: Context[ReportSpec], gamma: float | None, results: GenerationResults) -> GenerationResult:
    train, evaluation = context.manifest(results.train), context.artifact(results.evaluate)
    asked = _asked(evaluation, results.generation)
    rewritten = {split: context.manifest(reference) for split, reference in results.regenerate.items()}
    drift = context.artifact(results.drift) if results.drift else None
    measured = {name: float(value) for name, value in drift.manifest.metrics.items()} if drift else {}
    confidence = _confidence(drift)
    benchmarks = [context.manifest(reference) for reference in results.benchmarks]
    return replace(
        asked,
        unigram_kl={split: float(m.metrics["unigram-kl"]) for split, m in rewritten.items()},
        live_fraction=measured.get("live-fraction", _live_fraction(gamma, confidence)),
        tokens_trained=int(train.metrics["tokens-read"]),
        tokens_synthetic=int(train.metrics["tokens-synthetic"]),
        drift=measured,
        clusters={**asked.clusters, **_clusters(drift)},
        confidence=confidence,
        benchmarks={name: float(value) for m in benchmarks for name, value in m.metrics.items() if ":" in name},
        seconds={
            **({"pool": sum(context.manifest(one).seconds for one in results.pool.values())} if results.pool else {}),
            **({"treat": sum(context.manifest(one).seconds for one in results.treat)} if results.treat else {}),
            "train": train.seconds,
            **asked.seconds,
            "regenerate": sum(m.seconds for m in rewritten.values()),
            **({"drift": drift.manifest.seconds} if drift else {}),
            **({"benchmarks": sum(m.seconds for m in benchmarks)} if benchmarks else {}),
        },
    )


def _asked(evaluation: Artifact, generation: int) -> GenerationResult:
    """What an evaluation says: answers, and perplexity."""
    from fortifai_core.report.data import GenerationResult, Scores

    columns: dict[str, list[Any]] = {"question": [], "document": [], "split": [], "correct": []}
    if evaluation.has("scores.parquet"):
        columns = parquet.read_table_columns(evaluation.file("scores.parquet"), list(columns))
    perplexity = evaluation.manifest.metrics.get("perplexity-real")
    return GenerationResult(
        generation=generation,
        scores=Scores(**columns),
        perplexity=None if perplexity is None else float(perplexity),
        clusters=_clusters(evaluation),
        seconds={"evaluate": evaluation.manifest.seconds},
    )


def _clusters(artifact: Artifact | None) -> dict[str, Clusters]:
    """What the measures are the means of, by measure; none where an earlier release has not kept it."""
    import numpy as np

    from fortifai_core.outcomes.inference import Clusters

    if artifact is None or not artifact.has(CLUSTERS):
        return {}
    found: dict[str, list[tuple[str, float, float]]] = {}
    for row in parquet.iter_rows(artifact.file(CLUSTERS)):
        found.setdefault(row["measure"], []).append((row["cluster"], row["total"], row["count"]))
    return {
        measure: Clusters(tuple(row[0] for row in rows), np.array([r[1] for r in rows]), np.array([r[2] for r in rows]))
        for measure, rows in found.items()
    }


def _confidence(drift: Artifact | None) -> dict[tuple[str, str], list[int]]:
    """Histograms of p, by (model, text)."""
    found: dict[tuple[str, str], list[int]] = {}
    if drift is not None:
        for row in parquet.read_rows(drift.file("confidence.parquet")):
            found.setdefault((row["model"], row["text"]), []).append(row["count"])
    return found


def _reference_gamma(config: ExperimentConfig) -> dict[str, float | None]:
    """By arm, that of the first TCE arm, for arms that mask nothing; None for those that mask by something else, or
    on a part of their text."""
    arms = config.resolved_arms()
    gammas = [arm.loss.gamma for arm in arms if isinstance(arm.loss, TruncatedCrossEntropyLoss)]
    others = (EntropyTruncatedLoss, TailLoss, CustomLoss)
    otherwise = {a.label for a in arms if isinstance(a.loss, others) or a.experiment.training.loss_on != "all"}
    return {arm.label: gammas[0] if gammas and arm.label not in otherwise else None for arm in arms}


def _live_fraction(gamma: float | None, confidence: dict[tuple[str, str], list[int]]) -> float | None:
    """What a TCE with this gamma would leave alive, if that is an edge of the histograms."""
    from fortifai_core.measures.model_drift import live_fraction_of

    if gamma is None or ("generation", "seen") not in confidence:
        return None
    return live_fraction_of(confidence["generation", "seen"], gamma=gamma)


def _notes(context: Context[ReportSpec]) -> list[str]:
    """What the sources had to say of themselves, each once."""
    sources = [context.manifest(run.source).metrics for run in context.spec.runs]
    notes = [str(value) for metrics in sources for name, value in metrics.items() if name.startswith("note-")]
    return list(dict.fromkeys(notes))
