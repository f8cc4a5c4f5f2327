"""What the Prefect UI shows of a generation: a table, a live chart of retention, and events for automations.

Not cached on purpose: a task that is found does not run, and would publish nothing.
"""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prefect import task
from prefect.artifacts import acreate_image_artifact, acreate_markdown_artifact, acreate_table_artifact
from prefect.events import emit_event

from fortifai_core.config.experiment import ExperimentConfig
from fortifai_core.config.failure_metrics import DEFAULT
from tasks.engine.session import current_session
from tasks.engine.stages import GenerationPlan


def artifact_key(*parts: str | int) -> str:
    """A key that Prefect accepts: lower case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(str(part) for part in parts).lower()).strip("-")


def plain(value: float) -> str:
    """A number without an exponent, which Mermaid does not read."""
    return f"{value:.6f}".rstrip("0").rstrip(".")


def line_chart(title: str, generations: Iterable[int], *lines: Iterable[float], axis: str = "") -> str:
    """A Mermaid line chart by generation; a threshold is the second line.

    Args:
        axis: the vertical axis as Mermaid writes it; by default without a name, its ends chosen by Mermaid.
    """
    parts = [
        "```mermaid",
        # the default colours are too pale to be seen: what is measured in red, the threshold in grey
        '%%{init: {"themeVariables": {"xyChart": {"plotColorPalette": "#b5472a, #6b7280"}}}}%%',
        "xychart-beta",
        f'    title "{title}"',
        f"    x-axis [{', '.join(f'M{generation}' for generation in generations)}]",
        *([f"    y-axis {axis}"] if axis else []),
        *(f"    line [{', '.join(map(plain, values))}]" for values in lines),
        "```\n",
    ]
    return "\n".join(parts)


def announce(
    *,
    experiment: str,
    arm: str | None,
    seed: int | None,
    generation: int,
    model: str,
    metrics: Mapping[str, Any],
    failure: Mapping[str, Any] | None,
) -> None:
    """The events of a generation that is finished, for automations.

    Args:
        model: key of the model of that generation.
        failure: the check, where it found that the run failed in this generation.
    """
    run = f"{experiment} · {arm} · seed {seed}"
    payload = {"experiment": experiment, "arm": arm, "seed": seed, "generation": generation}
    emit_event(
        "generation.finished",
        resource={
            "prefect.resource.id": f"fortifai.generation.{model[:16]}",
            "prefect.resource.name": f"{run} · g{generation}",
        },
        payload={**payload, **metrics},
    )
    if failure is not None:
        emit_event(
            "collapse.detected",
            resource={
                "prefect.resource.id": f"fortifai.run.{experiment}.{arm}.{seed}",
                "prefect.resource.name": run,
            },
            payload={**payload, **failure},
        )


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
    from fortifai_core.charts.svg import Chart, Point, Series, svg

    points = tuple(
        Point(m["generation"], 100 * float(m["kr-split-0"])) for m in measured if m.get("kr-split-0") is not None
    )
    rule = None if threshold is None else (100 * threshold, f"{100 * threshold:g}%: failure")
    chart = Chart(f"Retention of split 0: {title}", (Series(title, 0, points),), unit="%", rule=rule, floor=50)
    drawn = svg(chart, width=760, height=400, standalone=True)
    return f"data:image/svg+xml;base64,{base64.b64encode(drawn.encode()).decode()}" if drawn else ""


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


@task(name="publish", task_run_name="publish · g{step.generation}", persist_result=False)
async def publish_generation(step: GenerationPlan, measured: list[dict[str, Any]], failure: dict[str, Any]) -> None:
    """The artifacts and events of one generation, from the measurements so far."""
    running = current_session()
    config = running.plan.config
    assert isinstance(config, ExperimentConfig)
    name, arm, seed = config.name, step.train.arm, step.train.seed
    failed = failure["status"] == "failed" and failure["failed_in"] == step.generation
    announce(
        experiment=name,
        arm=arm,
        seed=seed,
        generation=step.generation,
        model=step.train.key,
        metrics=measured[-1],
        failure=failure if failed else None,
    )
    last = step.generation == running.plan.config.generations - 1
    built = {one.reference for one in running.built}
    if not last and step.evaluate.reference not in built:
        return  # nothing new to show before the last generation
    key = artifact_key(name, arm or "", "seed", seed or 0)
    ordered = sorted(measured, key=lambda m: m["generation"])
    columns = ["generation", "kr-split-0", "kr-total", "perplexity-real"]
    rule = config.failure
    threshold = rule.threshold if rule.metric == DEFAULT else None
    image = retention_image(f"{arm} · seed {seed}", ordered, threshold=threshold)
    if image:
        await acreate_image_artifact(
            image,
            key=f"{key}-retention-image"[:250],
            description=f"{name} · {arm} · seed {seed}: retention of split 0, as in the report",
        )
    await asyncio.gather(
        acreate_markdown_artifact(
            "# Retention\n\n" + retention_chart(f"{arm} · seed {seed}", ordered, threshold=threshold),
            key=f"{key}-retention"[:250],
            description=f"{name} · {arm} · seed {seed}: retention of split 0",
        ),
        acreate_table_artifact(
            [{c: m[c] for c in columns if c in m} for m in ordered],
            key=f"{key}-table"[:250],
            description=f"{name} · {arm} · seed {seed}: {failure['status']}",
        ),
    )


DRIFT_COLUMNS = (
    "live-fraction",
    "model-kl",
    "perplexity-base-self",
    "facts-true-0",
    "self-bleu-0",
    "tail-types-kept-0",
)


@task(name="publish", task_run_name="publish drift · g{step.generation}", persist_result=False)
async def publish_drift(step: GenerationPlan, drifted: list[dict[str, Any]]) -> None:
    """A table of what became of text and model, from the generations so far: live tokens, divergences, split 0."""
    running = current_session()
    assert step.drift is not None
    last = step.generation == running.plan.config.generations - 1
    if not last and step.drift.reference not in {one.reference for one in running.built}:
        return  # nothing new to show before the last generation
    name, arm, seed = running.plan.config.name, step.train.arm, step.train.seed
    ordered = sorted(drifted, key=lambda m: m["generation"])
    columns = [c for c in DRIFT_COLUMNS if any(c in m for m in ordered)]
    charts = drift_charts(ordered, columns)
    if charts:
        await acreate_markdown_artifact(
            "# Drift\n\n" + charts,
            key=artifact_key(name, arm or "", "seed", seed or 0, "drift-charts")[:250],
            description=f"{name} · {arm} · seed {seed}: drift by generation",
        )
    await acreate_table_artifact(
        [{"generation": m["generation"], **{c: m[c] for c in columns if c in m}} for m in ordered],
        key=artifact_key(name, arm or "", "seed", seed or 0, "drift")[:250],
        description=f"{name} · {arm} · seed {seed}: drift, and the share of tokens that the loss left live",
    )
