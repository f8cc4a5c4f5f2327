"""Builder of the time-to-failure check: has the retention of split 0 fallen below the threshold by now?"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from fortifai_core.config import Regime
from fortifai_core.failure import SPLIT_UNITS, time_to_failure

if TYPE_CHECKING:
    from tasks.build import Context

NOT_MEASURED = "not-measured"


def build_failure(context: Context) -> dict[str, Any]:
    """The check after the last of the evaluations given; `failed_in` is the first generation below, or −1."""
    content = context.stage.content
    retention = []
    for generation in range(len(context.stage.parents)):
        metrics = context.parent(f"g{generation}").manifest.metrics
        if "kr-split-0" in metrics:
            retention.append(float(metrics["kr-split-0"]))
    result: dict[str, Any]
    if len(retention) < len(context.stage.parents):
        result = {"status": NOT_MEASURED, "failed_in": -1}  # a corpus without questions on split 0
    else:
        outcome = time_to_failure(retention, threshold=content["threshold"], regime=Regime(content["regime"]))
        below = [i for i, value in enumerate(retention) if value < content["threshold"]]
        result = {"status": outcome.status, "failed_in": below[0] if below else -1}
        result |= {unit: value for unit in SPLIT_UNITS if (value := outcome.value(unit)) is not None}
        result["time-to-failure"] = outcome.describe()
    (context.directory / "failure.json").write_text(json.dumps({**result, "retention": retention}, indent=2))
    return result
