"""`fortifai bench engines`: what it says of two runs, of runs that end, and of one that does not."""

from __future__ import annotations

import pytest

from flows.bench.engines import LENGTHS, bench_engines, middle, row_of
from flows.load import load_experiment_config
from flows.prepare import plan_for
from fortifai_core.errors import StageFailed


def test_what_is_not_computed_belongs_to_the_run_and_to_its_stages() -> None:
    """5 s beside 10 stages and 8 beside 25: 0.2 s a stage, and 3 s whatever there is to do."""
    short = {"seconds": 7.0, "stage_seconds": 2.0, "built": 10}
    long = {"seconds": 18.0, "stage_seconds": 10.0, "built": 25}
    row = row_of("processes", short, long, alone=True)
    assert row["latency"] == pytest.approx(0.2) and row["start"] == pytest.approx(3)
    assert (row["stages"], row["seconds"]) == (25, 18.0)
    beside = row_of("processes", short, long, alone=False)
    assert beside["latency"] is None and beside["start"] is None


def test_each_figure_is_the_middle_one_of_its_own_rounds() -> None:
    """A slow start in one round and a slow stage in another are no part of what is said."""
    found = [(1.0, 9.0), (8.0, 2.0), (2.0, 3.0)]
    rows = [{"engine": "ray", "stages": 5, "start": start, "latency": latency} for start, latency in found]
    assert middle(rows) == {"engine": "ray", "stages": 5, "start": 2.0, "latency": 3.0}
    unsaid = {"engine": "ray", "stages": 5, "start": None}
    assert middle([unsaid, unsaid]) == unsaid


@pytest.mark.long
def test_the_longer_run_computes_all_its_stages() -> None:
    (row,) = bench_engines(workers=1, ray=False, rounds=1)
    longer = plan_for(load_experiment_config("smoke", [f"generations={max(LENGTHS)}"]))
    assert row["stages"] == len(longer.stages()) and row["ratio"] == 1


@pytest.mark.long
def test_a_run_that_fails_is_said_in_one_line() -> None:
    with pytest.raises(StageFailed, match=r"runtime\.workers") as failed:
        bench_engines(workers=1_000_000, ray=False)
    assert "\n" not in str(failed.value)
