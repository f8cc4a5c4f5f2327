"""What there is to see of a run of another model class: its headline measure, and what the newest model draws."""

from __future__ import annotations

import math
from typing import Any

from fortifai_core.families.registry import FamilyExperiment
from fortifai_core.wording import run_title
from tasks.engine.plans import GenerationPlan, RunPlan
from tasks.engine.publish import Picture, Shown, image_address, measures_so_far, thinned_chart
from tasks.engine.session import Session
from tasks.families.builders import PREVIEW, read_metrics


def show(running: Session, run: RunPlan, step: GenerationPlan, failure: dict[str, Any]) -> Shown:
    """A table of every measure, a chart of the headline's, a picture."""
    config = running.plan.config
    assert isinstance(config, FamilyExperiment)
    family = config.family
    found = [running.store.find(*g.measured.reference, verify=True) for g in run.until(step.last)]
    artifacts = [artifact for artifact in found if artifact is not None]
    if len(artifacts) < len(found):  # the report, which needs them, has them built anew
        return Shown([])
    measured = sorted(read_metrics(artifacts).items())
    # JSON knows no NaN
    rows = [{"generation": i, **{n: v for n, v in row.items() if math.isfinite(v)}} for i, row in measured]
    pictures = []
    values = [(i, row[family.headline]) for (i, _), row in zip(measured, rows, strict=True) if family.headline in row]
    if values:
        judged = config.failure is not None and config.failure.metric == family.headline
        threshold = float(failure["threshold"]) if judged and failure else None
        chart = thinned_chart(run_title(run.arm, run.seed), values, threshold=threshold, axis=family.headline)
        title = family.measures.get(family.headline, family.headline)
        pictures.append(Picture(family.headline, title, f"# {title}\n\n{chart}"))
    newest = artifacts[-1]
    if newest.has(PREVIEW):
        image = image_address(newest.file(PREVIEW).read_bytes(), "png")
        pictures.append(Picture("picture", f"what M{step.last} draws", image, image=True))
    return Shown(rows, pictures, what=measures_so_far(failure))
