"""What the Prefect UI shows of a run's generations: tables, charts, pictures, and events for automations.

A model class says what there is to see (`Shown`); how it gets into the UI is the same for all. Not cached on purpose:
a task that is found does not run, and would publish nothing.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import task
from prefect.artifacts import acreate_image_artifact, acreate_markdown_artifact, acreate_table_artifact
from prefect.events import emit_event

from fortifai_core.families.registry import FamilyExperiment
from fortifai_core.outside import markdown, mermaid, visible
from fortifai_core.wording import file_stem, run_title
from storage.store.store import LITTLE_SPACE
from tasks.engine.plans import AnyExperiment, GenerationPlan, RunPlan
from tasks.engine.session import Session, current_session
from tasks.engine.stages import Stage, load

POINTS = 40  # of a chart: Mermaid draws a label for each
ROWS = 250  # of a table


@dataclass(frozen=True)
class Picture:
    """One artifact of the UI besides the table: `body` is Markdown, or the address of an image."""

    name: str
    what: str
    body: str
    image: bool = False


@dataclass(frozen=True)
class Shown:
    """What there is to see of a run so far. `name` ends the table's key, `what` says in words what it holds."""

    rows: Sequence[Mapping[str, Any]]
    pictures: Sequence[Picture] = ()
    name: str = "table"
    what: str = "measures by generation"


# From a session, a run and how far it is to what is to be seen; `failure` is the last check's metrics.
Show = Callable[[Session, RunPlan, GenerationPlan, dict[str, Any]], Shown]


def measures_so_far(failure: Mapping[str, Any]) -> str:
    """What a run's table holds, and what the last check found."""
    status = failure.get("status")
    return "measures by generation" + (f" ({status.replace('-', ' ')})" if status else "")


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
        f'    title "{mermaid(title)}"',
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
    run = f"{experiment} · {run_title(arm or '', seed)}"
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
            resource={"prefect.resource.id": f"fortifai.run.{experiment}.{arm}.{seed}", "prefect.resource.name": run},
            # where a stage makes several generations, it failed in one of them
            payload={**payload, "generation": failure["failed_in"], **failure},
        )


def announce_space(*, store: str, free: int) -> None:
    """The event of a disk that is nearly full, for automations; none while there is space.

    Args:
        store: its address without a password; `free`: bytes.
    """
    if free < LITTLE_SPACE:
        emit_event(
            "disk.nearly-full",
            resource={"prefect.resource.id": f"fortifai.store.{artifact_key(store)}", "prefect.resource.name": store},
            payload={"store": store, "free_bytes": free},
        )


def thinned_chart(title: str, values: Sequence[tuple[int, float]], *, threshold: float | None, axis: str) -> str:
    """A line chart of one measure by generation, thinned to what fits, with a threshold as a second line."""
    step = max(1, -(-len(values) // POINTS))
    generations, shown = zip(*[*values[:-1:step], values[-1]], strict=True)
    lines = [shown] if threshold is None else [shown, [threshold] * len(shown)]
    low, high = min(map(min, lines)), max(map(max, lines))
    room = 0.05 * (high - low) or 1.0
    return line_chart(
        title, generations, *lines, axis=f'"{mermaid(axis)}" {plain(low - room)} --> {plain(high + room)}'
    )


def image_address(content: bytes, kind: str) -> str:
    """A picture as a `data:` address, which an image artifact can show. `kind`: `png` or `svg+xml`."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


@task(name="publish", task_run_name="publish · g{step.last}", persist_result=False)
async def publish_generation(run: RunPlan, step: GenerationPlan, failure: dict[str, Any]) -> None:
    """The artifacts and events of a generation whose measures are there. `failure`: the check's metrics, or empty."""
    running = current_session()
    plan = running.plan
    failed = failure.get("status") == "failed" and step.first <= failure["failed_in"] <= step.last
    announce(
        experiment=plan.config.name,
        arm=run.arm,
        seed=run.seed,
        generation=step.last,
        model=step.train.key,
        metrics={"generation": step.last, **running.references[step.measured.reference]["metrics"]},
        failure=failure if failed else None,
    )
    announce_space(store=running.store.name, free=running.store.free_bytes())
    if _is_new(running, step, step.measured):
        show: Show = load(plan.shows)
        await _publish(plan.config.name, run, show(running, run, step, failure))


@task(name="publish", task_run_name="publish drift · g{step.last}", persist_result=False)
async def publish_drift(run: RunPlan, step: GenerationPlan) -> None:
    """A table and charts of what became of text and model, from the generations so far."""
    running = current_session()
    assert step.drift is not None
    if _is_new(running, step, step.drift):
        show: Show = load(running.plan.shows_drift)
        await _publish(running.plan.config.name, run, show(running, run, step, {}))


async def publish_experiment(config: AnyExperiment, folder: Path, *, link: str | None) -> None:
    """The experiment's own page in the UI, on the flow run that calls this: the report's beginning, and the profile.

    Args:
        folder: of the report's artifact.
        link: the report's address for browsers, where it is served; its path is named always.
    """
    report = json.loads((folder / "table.json").read_text(encoding="utf-8"))
    found = json.loads((folder / "profile.json").read_text(encoding="utf-8"))
    key, title = artifact_key(config.name), markdown(config.name)
    heads = " | ".join(map(markdown, report["headers"]))
    headline, what = "retention", "retention of split 0"
    if isinstance(config, FamilyExperiment):
        headline = config.family.headline
        what = config.family.measures.get(headline, headline)
    chart, profile = f"figures/{file_stem(headline)}.png", "figures/profile.png"
    drawn = {chart: what, profile: "collapse profile"}
    pictures = {name: words for name, words in drawn.items() if (folder / name).is_file()}

    def shown(name: str) -> list[str]:
        served = link is not None and name in pictures
        return [f"![{markdown(pictures[name])}]({str(link).rpartition('/')[0]}/{name})"] if served else []

    body = [
        f"# {markdown(report['title'])}",
        *(markdown(sentence) for sentence in report["headline"]),
        *([f"[Open the report]({link})"] if link else []),
        *shown(chart),
        "\n".join(
            [f"| {heads} |", "|---" * len(report["headers"]) + "|"]
            + [f"| {' | '.join(map(markdown, row))} |" for row in report["rows"]]
        ),
        markdown(report["caption"]),
        *(["## Collapse profile"] if found["table"]["rows"] else []),
        *shown(profile),
        *(markdown(sentence) for sentence in found["summary"] if found["table"]["rows"]),
        f"The report's file: `{folder / 'report.html'}`",
    ]
    names = {"key": f"{key}-summary"[:250], "description": f"{title}: what was found, all arms together"}
    work: list[Any] = [acreate_markdown_artifact("\n\n".join(body), **names)]
    headers, rows = found["table"]["headers"], found["table"]["rows"]
    if rows:
        cells = [{visible(h): visible(cell) for h, cell in zip(headers, row, strict=True)} for row in rows]
        work.append(acreate_table_artifact(cells, key=f"{key}-profile"[:250], description=f"{title}: collapse profile"))
    for name, words in pictures.items():
        names = {
            "key": f"{key}-{artifact_key(Path(name).stem)}-image"[:250],
            "description": f"{title}: {markdown(words)}",
        }
        work.append(acreate_image_artifact(image_address((folder / name).read_bytes(), "png"), **names))
    await asyncio.gather(*work)


def _is_new(running: Session, step: GenerationPlan, stage: Stage) -> bool:
    """Whether there is anything to show that was not shown before; after the last generation all is shown."""
    is_last = step.last == running.plan.config.generations - 1
    return is_last or stage.reference in {built.reference for built in running.built}


async def _publish(experiment: str, run: RunPlan, shown: Shown) -> None:
    key = artifact_key(experiment, run.arm, "seed", run.seed)
    title = markdown(f"{experiment} · {run_title(run.arm, run.seed)}")
    work: list[Any] = []
    for picture in shown.pictures:
        names = {
            "key": f"{key}-{artifact_key(picture.name)}"[:250],
            "description": f"{title}: {markdown(picture.what)}",
        }
        make = acreate_image_artifact if picture.image else acreate_markdown_artifact
        work.append(make(picture.body, **names))
    if shown.rows:
        every = max(1, -(-len(shown.rows) // ROWS))
        rows = [
            {n: visible(v) if isinstance(v, str) else v for n, v in row.items()}
            for row in [*shown.rows[:-1:every], shown.rows[-1]]
        ]
        description = f"{title}: {markdown(shown.what)}"
        work.append(acreate_table_artifact(rows, key=f"{key}-{shown.name}"[:250], description=description))
    await asyncio.gather(*work)
