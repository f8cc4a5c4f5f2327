"""What there is to see of a language model's run: retention, perplexity, drift."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fortifai_core import wording
from fortifai_core.config.experiment import ExperimentConfig
from fortifai_core.config.failure_metrics import DEFAULT
from fortifai_core.wording import run_title
from tasks.engine.plans import GenerationPlan, RunPlan
from tasks.engine.publish import Picture, Shown, image_address, line_chart, measures_so_far
from tasks.engine.session import Session
from tasks.engine.stages import Stage

COLUMNS = ("kr-split-0", "kr-total", "perplexity-real")
DRIFT_COLUMNS = (
    "live-fraction",
    "model-kl",
    "perplexity-base-self",
    "facts-true-0",
    "self-bleu-0",
    "tail-types-kept-0",
)


def show(running: Session, run: RunPlan, step: GenerationPlan, failure: dict[str, Any]) -> Shown:
    """A table, and retention of split 0 as a chart and as the report's own picture."""
    config = running.plan.config
    assert isinstance(config, ExperimentConfig)
    before = running.plan.before_of(run)
    measured = _so_far(running, [*([before] if before else []), *(g.measured for g in run.until(step.last))])
    title = run_title(run.arm, run.seed)
    threshold = config.failure.threshold if config.failure.metric == DEFAULT else None
    chart = "# Retention\n\n" + retention_chart(title, measured, threshold=threshold)
    pictures = [Picture("retention", "retention of split 0", chart)]
    image = retention_image(title, measured, threshold=threshold)
    if image:
        pictures.append(Picture("retention-image", "retention of split 0, as in the report", image, image=True))
    return Shown(_columns(measured, COLUMNS), pictures, what=measures_so_far(failure))


def show_drift(running: Session, run: RunPlan, step: GenerationPlan, failure: dict[str, Any]) -> Shown:
    """Live tokens, divergences, and what became of split 0."""
    drifted = _so_far(running, [g.drift for g in run.until(step.last) if g.drift is not None])
    charts = drift_charts(drifted, DRIFT_COLUMNS)
    pictures = [Picture("drift-charts", "drift by generation", "# Drift\n\n" + charts)] if charts else []
    what = "drift, and the share of tokens that the loss left live"
    return Shown(_columns(drifted, DRIFT_COLUMNS), pictures, name="drift", what=what)


def _so_far(running: Session, stages: Sequence[Stage]) -> list[dict[str, Any]]:
    """The metrics of these stages, as far as they are there, one row a generation."""
    known = [stage for stage in stages if stage.reference in running.references]
    return [{"generation": s.generation, **running.references[s.reference]["metrics"]} for s in known]


def _columns(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> list[dict[str, Any]]:
    return [{name: row[name] for name in ("generation", *columns) if name in row} for row in rows]


def retention_chart(title: str, measured: Sequence[dict[str, Any]], *, threshold: float | None) -> str:
    """A Mermaid line chart of retention by generation, with the threshold, if it is one of retention, as a second."""
    ordered = sorted((m for m in measured if m.get("kr-split-0") is not None), key=lambda m: m["generation"])
    if not ordered:
        return "No questions were asked about split 0.\n"
    shares = [100.0 * float(m["kr-split-0"]) for m in ordered]
    lines = [shares] if threshold is None else [shares, [100 * threshold] * len(shares)]
    axis = f'"Retention of split 0 (%)" {min([50.0, *shares]):.0f} --> 100'
    return line_chart(title, [m["generation"] for m in ordered], *lines, axis=axis)


def retention_image(title: str, measured: Sequence[dict[str, Any]], *, threshold: float | None) -> str:
    """The report's own chart of retention by generation, as a `data:` address that an image artifact can show."""
    from fortifai_core.charts.chart import Chart, Point, Series
    from fortifai_core.charts.svg import svg

    points = tuple(
        Point(m["generation"], 100 * float(m["kr-split-0"])) for m in measured if m.get("kr-split-0") is not None
    )
    rule = None if threshold is None else (100 * threshold, f"{wording.threshold(threshold, of_shares=True)}: failure")
    chart = Chart(f"Retention of split 0: {title}", (Series(title, 0, points),), unit="%", rule=rule, floor=50)
    drawn = svg(chart, width=760, height=400, standalone=True)
    return image_address(drawn.encode(), "svg+xml") if drawn else ""


def drift_charts(drifted: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    """A Mermaid line chart by generation of every measure; those with a single number have none."""
    parts = []
    for column in columns:
        known = [(m["generation"], float(m[column])) for m in drifted if column in m]
        if len(known) < 2:
            continue
        generations, values = zip(*known, strict=True)
        parts.append(line_chart(column, generations, values))
    return "\n".join(parts)
