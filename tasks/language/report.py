"""Builder of the report: gathers what every run measured and hands it to `fortifai_core.report.page`."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib import resources
from typing import TYPE_CHECKING, Any

from fortifai_core.config.experiment import ExperimentConfig
from fortifai_core.config.loss import TruncatedCrossEntropyLoss
from storage.tables import parquet
from tasks.language.prepare import has_file

if TYPE_CHECKING:
    from fortifai_core.report.data import ArmResult, GenerationResult, RunResult
    from storage.store.store import Artifact
    from tasks.engine.build import Context


def build_report(context: Context) -> dict[str, Any]:
    """report.html, its figures (SVG, PNG) and tables (CSV, Parquet), and table.json for the terminal."""
    from fortifai_core.outcomes.paper import paper_time_to_failure, read_results
    from fortifai_core.report.analysis import analyse
    from fortifai_core.report.data import ReportData
    from fortifai_core.report.page import build_report as write_report
    from fortifai_core.report.page import terminal_table
    from fortifai_core.report.tables import report_tables
    from storage.tables.exports import write_columns
    from tasks.language.report_mutation import mutations

    config = ExperimentConfig.model_validate(context.stage.recipe["config"])
    with resources.as_file(resources.files("storage") / "paper" / "results.csv") as path:
        quoted = paper_time_to_failure(read_results(path))
    data = ReportData(
        experiment=config.name,
        config=context.stage.recipe["config"],
        command=context.stage.recipe["command"],
        environment=_environment(context),
        arms=tuple(_arm(context, config, loss.label) for loss in config.losses),
        notes=_notes(context),
        quoted=quoted,
        regime=config.regime,
        threshold=config.failure.threshold,
        metric=config.failure.metric,
        mutations=mutations(context, config),
        baseline=config.losses[0].label,
    )
    write_report(data, context.directory)
    analysis = analyse(data)
    for one in report_tables(analysis):
        write_columns(context.directory / "tables" / f"{one.name}.parquet", one.columns)
    table = {
        **asdict(terminal_table(data)),
        "headline": list(analysis.headline),
        "notes": list(data.notes),
    }
    (context.directory / "table.json").write_text(json.dumps(table, indent=1, ensure_ascii=False))
    return {}


def _arm(context: Context, config: ExperimentConfig, arm: str) -> ArmResult:
    from fortifai_core.report.data import ArmResult

    return ArmResult(label=arm, runs=tuple(_run(context, config, arm, seed) for seed in config.seeds))


def _run(context: Context, config: ExperimentConfig, arm: str, seed: int) -> RunResult:
    from fortifai_core.report.data import RunResult

    done = [i for i in range(config.generations) if f"{arm}/{seed}/{i}/evaluate" in context.stage.parents]
    return RunResult(seed=seed, generations=tuple(_generation(context, config, arm, seed, i) for i in done))


def _generation(context: Context, config: ExperimentConfig, arm: str, seed: int, i: int) -> GenerationResult:
    from fortifai_core.report.data import GenerationResult, Scores

    place = f"{arm}/{seed}/{i}"
    train, evaluation = context.parent(f"{place}/train"), context.parent(f"{place}/evaluate")
    rewritten: dict[int, Artifact] = {
        int(name.rsplit("/", 1)[1]): context.parent(name)
        for name in context.stage.parents
        if name.startswith(f"{place}/regenerate/")
    }
    columns: dict[str, list[Any]] = {"question": [], "document": [], "split": [], "correct": []}
    if has_file(evaluation, "scores.parquet"):
        columns = parquet.read_table_columns(evaluation.file("scores.parquet"), list(columns))
    metrics = evaluation.manifest.metrics
    drift = context.parent(f"{place}/drift") if f"{place}/drift" in context.stage.parents else None
    measured = {name: float(value) for name, value in drift.manifest.metrics.items()} if drift else {}
    confidence = _confidence(drift)
    benchmarks = [context.parent(name) for name in context.stage.parents if name.startswith(f"{place}/benchmark/")]
    return GenerationResult(
        generation=i,
        scores=Scores(**columns),
        perplexity=_number(metrics.get("perplexity-real")),
        unigram_kl={split: float(a.manifest.metrics["unigram-kl"]) for split, a in rewritten.items()},
        live_fraction=measured.get("live-fraction", _live_fraction(config, confidence)),
        tokens_trained=int(train.manifest.metrics["tokens-read"]),
        tokens_synthetic=int(train.manifest.metrics["tokens-synthetic"]),
        drift=measured,
        confidence=confidence,
        benchmarks={
            name: float(value) for a in benchmarks for name, value in a.manifest.metrics.items() if ":" in name
        },
        seconds={
            "train": train.manifest.seconds,
            "evaluate": evaluation.manifest.seconds,
            "regenerate": sum(a.manifest.seconds for a in rewritten.values()),
            **({"drift": drift.manifest.seconds} if drift else {}),
            **({"benchmarks": sum(a.manifest.seconds for a in benchmarks)} if benchmarks else {}),
        },
    )


def _confidence(drift: Artifact | None) -> dict[tuple[str, str], list[int]]:
    """Histograms of p, by (model, text)."""
    found: dict[tuple[str, str], list[int]] = {}
    if drift is not None:
        for row in parquet.read_rows(drift.file("confidence.parquet")):
            found.setdefault((row["model"], row["text"]), []).append(row["count"])
    return found


def _live_fraction(config: ExperimentConfig, confidence: dict[tuple[str, str], list[int]]) -> float | None:
    """For an arm that masks nothing: at the gamma of the first TCE arm, if that is an edge of the histograms."""
    from fortifai_core.measures.model_drift import live_fraction_of

    gammas = [loss.gamma for loss in config.losses if isinstance(loss, TruncatedCrossEntropyLoss)]
    if not gammas or ("generation", "seen") not in confidence:
        return None
    return live_fraction_of(confidence["generation", "seen"], gamma=gammas[0])


def _number(value: float | int | str | None) -> float | None:
    return None if value is None else float(value)


def _environment(context: Context) -> dict[str, str]:
    """Where the models were trained, from the provenance of the first of them."""
    first = next(name for name in context.stage.parents if name.endswith("/train"))
    provenance = context.parent(first).manifest.provenance
    packages = provenance.get("packages", {})
    shown = [f"{name} {packages[name]}" for name in ("torch", "transformers", "prefect") if name in packages]
    return {
        "processor": f"{provenance.get('cpu', 'unknown')}, {provenance.get('cpu_count', '?')} cores",
        "threads of a worker": str(provenance.get("torch_threads")),
        "software": ", ".join([f"Python {provenance.get('python', '?')}", *shown]),
        "code": str((provenance.get("git") or {}).get("revision", "not from a git checkout"))[:12],
    }


def _notes(context: Context) -> list[str]:
    notes: list[str] = []
    for name in context.stage.parents:
        if name.startswith("source/"):
            metrics = context.parent(name).manifest.metrics
            notes += [str(value) for key, value in metrics.items() if key.startswith("note-")]
    return list(dict.fromkeys(notes))
