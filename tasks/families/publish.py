"""What the Prefect UI shows of a family's generations: a table, a live chart, a picture, and events for automations.

Not cached on purpose: a task that is found does not run, and would publish nothing.
"""

from __future__ import annotations

import asyncio
import base64
import math
from collections.abc import Sequence
from typing import Any

from prefect import task
from prefect.artifacts import acreate_image_artifact, acreate_markdown_artifact, acreate_table_artifact

from storage.tables import parquet
from tasks.engine.session import Session, current_session
from tasks.families.builders import PREVIEW
from tasks.families.stages import FamilyPlan, FamilyRun, FamilyStep
from tasks.language.prepare import has_file
from tasks.language.publish import announce, artifact_key, line_chart, plain

POINTS = 40  # of a chart: Mermaid draws a label for each


def measure_chart(title: str, measure: str, values: Sequence[tuple[int, float]], *, threshold: float | None) -> str:
    """A Mermaid line chart of one measure by generation, with the failure threshold as a second line."""
    step = max(1, -(-len(values) // POINTS))
    generations, shown = zip(*[*values[:-1:step], values[-1]], strict=True)
    lines = [shown] if threshold is None else [shown, [threshold] * len(shown)]
    low, high = min(map(min, lines)), max(map(max, lines))
    room = 0.05 * (high - low) or 1.0
    axis = f'"{measure}" {plain(low - room)} --> {plain(high + room)}'
    return line_chart(title, generations, *lines, axis=axis)


@task(name="publish", task_run_name="publish · g{step.last}", persist_result=False)
async def publish_family(run: FamilyRun, step: FamilyStep, failure: dict[str, Any]) -> None:
    """The artifacts and events of one step, from the measures so far."""
    running = current_session()
    plan = running.plan
    assert isinstance(plan, FamilyPlan)
    config, family = plan.config, plan.config.family
    name, title = config.name, f"{run.arm} · seed {run.seed}"
    metrics = running.references[step.measured.reference]["metrics"]
    failed = failure.get("status") == "failed" and step.first <= failure["failed_in"] <= step.last
    announce(
        experiment=name,
        arm=run.arm,
        seed=run.seed,
        generation=step.last,
        model=step.train.key,
        metrics=metrics,
        failure=failure if failed else None,
    )
    is_last = step.last == config.generations - 1
    if not is_last and step.measured.reference not in {one.reference for one in running.built}:
        return  # nothing new to show before the last generation
    rows = _measured(running, run, upto=step.last)
    key = artifact_key(name, run.arm, "seed", run.seed)
    values = [(row["generation"], row[family.headline]) for row in rows if family.headline in row]
    described = f"{name} · {title}"
    every = max(1, -(-len(rows) // 250))
    work = [
        acreate_table_artifact(
            [*rows[:-1:every], rows[-1]],
            key=f"{key}-table"[:250],
            description=f"{described}: {failure['status']}" if failure else described,
        )
    ]
    if values:
        chart = measure_chart(title, family.headline, values, threshold=_threshold(config, failure))
        work.append(
            acreate_markdown_artifact(
                f"# {family.measures.get(family.headline, family.headline)}\n\n{chart}",
                key=f"{key}-{artifact_key(family.headline)}"[:250],
                description=f"{described}: {family.headline}",
            )
        )
    picture = _picture(running, step)
    if picture is not None:
        work.append(
            acreate_image_artifact(
                f"data:image/png;base64,{picture}",
                key=f"{key}-picture"[:250],
                description=f"{described}: what M{step.last} draws",
            )
        )
    await asyncio.gather(*work)


def _threshold(config: Any, failure: dict[str, Any]) -> float | None:
    if config.failure is None or config.failure.metric != config.family.headline:
        return None
    return float(failure["threshold"])


def _measured(running: Session, run: FamilyRun, *, upto: int) -> list[dict[str, Any]]:
    """One row a generation: every measure by its name."""
    rows: dict[int, dict[str, Any]] = {}
    for step in run.steps:
        if step.last > upto:
            continue
        if step.first == step.last:
            rows[step.last] = {"generation": step.last, **running.references[step.measured.reference]["metrics"]}
        else:
            artifact = running.store.find(*step.measured.reference)
            assert artifact is not None, step.measured.label
            for row in parquet.read_rows(artifact.file("metrics.parquet")):
                one = rows.setdefault(row["generation"], {"generation": row["generation"]})
                if math.isfinite(row["value"]):  # JSON knows no NaN
                    one[row["metric"]] = row["value"]
    return [rows[generation] for generation in sorted(rows)]


def _picture(running: Session, step: FamilyStep) -> str | None:
    artifact = running.store.find(*step.measured.reference)
    if artifact is None or not has_file(artifact, PREVIEW):
        return None
    return base64.b64encode(artifact.file(PREVIEW).read_bytes()).decode()
