"""`fortifai bench engines`: what it reports of runs that end, and of one that does not."""

from __future__ import annotations

import pytest

from flows.bench.engines import LENGTHS, bench_engines
from flows.load import load_experiment_config
from flows.prepare import plan_for
from fortifai_core.errors import StageFailed

pytestmark = pytest.mark.long


def test_a_run_and_its_stages_take_more_than_they_compute() -> None:
    (row,) = bench_engines(workers=1, ray=False)
    longer = plan_for(load_experiment_config("smoke", [f"generations={max(LENGTHS)}"]))
    assert row["stages"] == len(longer.stages()) and row["ratio"] == 1
    assert 0 < row["start"] < row["seconds"] and 0 < row["latency"] * row["stages"] < row["seconds"]


def test_a_run_that_fails_is_said_in_one_line() -> None:
    with pytest.raises(StageFailed, match=r"runtime\.workers") as failed:
        bench_engines(workers=1_000_000, ray=False)
    assert "\n" not in str(failed.value)
