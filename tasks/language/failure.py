"""Builder of the time-to-failure check: has what it is judged by gone beyond the threshold by now?"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from fortifai_core.config.failure_metrics import DEFAULT, failure_metric
from fortifai_core.config.stages import Regime
from fortifai_core.outcomes.time_to_failure import SPLIT_UNITS, time_to_crossing

if TYPE_CHECKING:
    from tasks.engine.build import Context

NOT_MEASURED = "not-measured"


def build_failure(context: Context) -> dict[str, Any]:
    """The check after the last of the generations given; `failed_in` is the first one beyond the threshold, or −1."""
    content = context.stage.content
    metric = failure_metric(content.get("metric", DEFAULT))
    generations = range(metric.first, len(context.stage.parents))
    measured = [context.parent(f"g{generation}").manifest.metrics.get(metric.name) for generation in generations]
    values = [float(value) for value in measured if value is not None]
    result: dict[str, Any]
    if not measured or len(values) < len(measured):
        # a corpus without questions on split 0, or a split that no generation has seen yet
        result = {"status": NOT_MEASURED, "failed_in": -1}
    else:
        rule: dict[str, Any] = {"threshold": content["threshold"], "falls": metric.falls, "first": metric.first}
        outcome = time_to_crossing(values, **rule, regime=Regime(content["regime"]))
        beyond = [
            i
            for i, value in zip(generations, values, strict=True)
            if (value < content["threshold"] if metric.falls else value > content["threshold"])
        ]
        result = {"status": outcome.status, "failed_in": beyond[0] if beyond else -1}
        result |= {unit: value for unit in SPLIT_UNITS if (value := outcome.value(unit)) is not None}
        result["time-to-failure"] = outcome.describe()
    kept = "retention" if metric.name == DEFAULT else metric.name
    (context.directory / "failure.json").write_text(json.dumps({**result, kept: values}, indent=2))
    return result
