"""Builder of the time-to-failure check: has what it is judged by gone beyond the threshold by now?"""

from __future__ import annotations

import json
from typing import Any

from fortifai_core.config.failure_metrics import DEFAULT, failure_metric
from fortifai_core.outcomes.time_to_failure import SPLIT_UNITS, time_to_crossing
from tasks.engine.context import Context
from tasks.language.specs import FailureSpec

NOT_MEASURED = "not-measured"


def build_failure(context: Context[FailureSpec]) -> dict[str, Any]:
    """The check after the last of the generations given; `failed_in` is the first one beyond the threshold, or −1."""
    spec = context.spec
    metric = failure_metric(spec.metric)
    generations = range(metric.first, len(spec.measured))
    measured = [context.manifest(spec.measured[i]).metrics.get(metric.name) for i in generations]
    values = [float(value) for value in measured if value is not None]
    result: dict[str, Any]
    if not measured or len(values) < len(measured):
        # a corpus without questions on split 0, or a split that no generation has seen yet
        result = {"status": NOT_MEASURED, "failed_in": -1}
    else:
        by_generation = dict(zip(generations, values, strict=True))
        rule: dict[str, Any] = {"threshold": spec.threshold, "falls": metric.falls}
        outcome = time_to_crossing(by_generation, **rule, regime=spec.regime)
        result = {"status": outcome.status, "failed_in": outcome.failed_in}
        result |= {unit: value for unit in SPLIT_UNITS if (value := outcome.value(unit)) is not None}
        result["time-to-failure"] = outcome.describe()
    kept = "retention" if metric.name == DEFAULT else metric.name
    (context.directory / "failure.json").write_text(json.dumps({**result, kept: values}, indent=2), encoding="utf-8")
    return result
