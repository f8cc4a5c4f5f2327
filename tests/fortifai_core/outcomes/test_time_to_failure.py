"""Time to failure: the paper's own figures, censoring, units, and ratios that refuse what is not known."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows.tools.explain import paper_table
from fortifai_core.config.stages import Regime
from fortifai_core.errors import ConfigError, DataError, InputError
from fortifai_core.outcomes.paper import (
    PaperArm,
    difference_of_shares,
    paper_differences,
    paper_time_to_failure,
    read_results,
)
from fortifai_core.outcomes.time_to_failure import (
    SPLIT_UNITS,
    UNITS,
    TimeToFailure,
    crossings,
    ratio,
    relative_threshold,
    time_to_crossing,
    time_to_failure,
)

RESULTS = Path(__file__).parents[3] / "storage" / "paper" / "results.csv"


@pytest.fixture(scope="module")
def paper() -> dict[tuple[str, str], PaperArm]:
    return {(arm.table, arm.method): arm for arm in paper_time_to_failure(read_results(RESULTS))}


def two(value: float | None) -> float:
    assert value is not None
    return round(value, 2)


# ------------------------------------------------------------------------------------ the paper's tables


@pytest.mark.parametrize(
    ("method", "expected"),
    [("ce", (1.69, 5.07, 4.07, 2.38)), ("tce-0.9", (2.89, 9.56, 8.56, 5.67))],
)
def test_table_d2_in_all_units(paper: dict, method: str, expected: tuple[float, ...]) -> None:
    failure = paper["Table D2", method].absolute
    assert failure.status == "failed"
    assert tuple(two(failure.value(unit)) for unit in SPLIT_UNITS) == expected


def test_table_d2_ratios_depend_on_the_unit(paper: dict) -> None:
    ratios = paper["Table D2", "tce-0.9"].absolute_ratios
    assert [two(ratios[unit].value) for unit in SPLIT_UNITS] == [1.71, 1.88, 2.10, 2.38]
    assert {r.kind for r in ratios.values()} == {"exact"}
    focal = paper["Table D2", "focal-2"]
    assert two(focal.absolute.value("synthetic_splits")) == 5.71
    assert focal.absolute_ratios["synthetic_splits"].describe() == "2.40×"


def test_the_tables_also_show_where_truncation_does_not_help(paper: dict) -> None:
    assert two(paper["Table D3", "ce"].absolute.generations) == 0.90
    assert two(paper["Table D3", "tce-0.9"].absolute.generations) == 3.07
    assert two(paper["Table D4", "tce-0.9"].absolute.generations) == 0.82
    assert two(paper["Table D4", "ce"].absolute.generations) == 0.95
    assert two(paper["Table D4", "tce-0.9"].absolute_ratios["generations"].value) < 1
    assert two(paper["Table D5", "ce"].absolute.generations) == 1.89
    assert two(paper["Table D5", "tce-0.9"].absolute.generations) == 3.31


def test_all_sixteen_arms_and_a_row_for_each(paper: dict) -> None:
    assert len(paper) == 16 and all(len(arm.retention) == 6 for arm in paper.values())
    rows = paper_table()
    assert [(row["table"], row["arm"]) for row in rows] == list(paper)
    assert (rows[0]["arm"], rows[0]["generations"]) == ("ce", "1.69") and "generations_ratio_to_ce" not in rows[0]
    assert all(("generations_ratio_to_ce" in row) == (row["arm"] != "ce") for row in rows)
    assert paper["Table D2", "ce"].relative.generations != paper["Table D2", "ce"].absolute.generations
    assert paper["Table D2", "tce-0.9"].relative.threshold == pytest.approx(0.6515)


def test_a_gap_in_the_tables_is_an_error(tmp_path: Path) -> None:
    rows = [row for row in read_results(RESULTS) if (row.table, row.generation) != ("Table D2", 2)]
    with pytest.raises(DataError, match="Table D2"):
        paper_time_to_failure(rows)
    with pytest.raises(DataError, match="no such file"):
        read_results(tmp_path / "absent.csv")
    other = tmp_path / "other.csv"
    other.write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="columns"):
        read_results(other)
    other.write_text("table,dataset,model,generation,method,metric,percent\nTable D2,w,l,zero,ce,kr-total,1\n")
    with pytest.raises(DataError, match="line 2"):
        read_results(other)


# ------------------------------------------------------------------------------------ crossing and censoring


def test_never_below_is_censored_and_never_a_number() -> None:
    outcome = time_to_failure([0.9, 0.85, 0.8])
    assert outcome.status == "censored" and outcome.describe() == "> 2"
    assert outcome.describe("training_splits") == "> 6" and outcome.describe("synthetic_splits") == "> 3"
    assert all(outcome.value(unit) is None for unit in UNITS)


def test_starting_below_is_never_learned_even_if_it_recovers() -> None:
    outcome = time_to_failure([0.6, 0.9, 0.5])
    assert outcome.status == "never-learned" and outcome.generations is None
    assert outcome.describe() == outcome.describe("training_tokens") == "never learned"


def test_exactly_at_the_threshold_is_not_below() -> None:
    assert time_to_failure([0.75]).describe() == "> 0"
    assert time_to_failure([0.75, 0.75, 0.75]).status == "censored"
    assert time_to_failure([0.8, 0.75, 0.7]).generations == 1.0
    assert time_to_failure([0.75, 0.7]).generations == 0.0


def test_the_first_crossing_counts() -> None:
    assert time_to_failure([0.8, 0.7, 0.9, 0.6]).generations == pytest.approx(0.5)


def test_failure_lies_in_the_interval_of_the_first_generation_below() -> None:
    draw = random.Random(7)
    for _ in range(300):
        curve = [draw.uniform(0.5, 1) for _ in range(6)]
        outcome = time_to_failure(curve)
        below = [i for i, share in enumerate(curve) if share < 0.75]
        if not below:
            assert outcome.status == "censored"
        elif below[0] == 0:
            assert outcome.status == "never-learned"
        else:
            assert below[0] - 1 <= outcome.generations < below[0]
        # a lower bar is never reached earlier
        lower = time_to_failure(curve, threshold=0.7)
        if outcome.status == lower.status == "failed":
            assert lower.generations >= outcome.generations


# ------------------------------------------------------------------------------------ units


def test_tokens_equal_splits_when_every_split_has_the_same_size() -> None:
    curve, size = [0.9, 0.8, 0.7], 1000
    tokens = [(size * (i + 1.0), size * float(i)) for i in range(3)]
    outcome = time_to_failure(curve, tokens=tokens)
    for unit in ("training", "retraining", "synthetic"):
        assert outcome.value(f"{unit}_tokens") == pytest.approx(size * outcome.value(f"{unit}_splits"))
    assert outcome.describe("training_tokens") == "4,500"
    assert time_to_failure(curve).describe("training_tokens") == "unknown"


def test_regimes_read_different_amounts() -> None:
    curve = [0.9, 0.8, 0.7]
    replace = time_to_failure(curve, regime=Regime.REPLACE)
    assert [replace.value(unit) for unit in SPLIT_UNITS[1:]] == [2.5, 1.5, 1.5]
    subsample = time_to_failure(curve, regime=Regime.ACCUMULATE_SUBSAMPLE)
    assert subsample.value("training_splits") == pytest.approx(2.5)
    assert subsample.value("synthetic_splits") == pytest.approx(0.5 + 0.5 * 2 / 3)


@pytest.mark.parametrize("curve", [[], [80.3, 77.9], [float("nan")], [-0.1]])
def test_bad_retention_is_refused(curve: list[float]) -> None:
    with pytest.raises(InputError, match="retention"):
        time_to_failure(curve)


def test_bad_tokens_and_threshold_are_refused() -> None:
    with pytest.raises(InputError, match="tokens"):
        time_to_failure([0.9, 0.8], tokens=[(1, 0)])
    with pytest.raises(InputError, match="threshold"):
        time_to_failure([0.9], threshold=75)


# ------------------------------------------------------------------------------------ ratios


def test_ratios_label_bounds_and_refuse_the_rest() -> None:
    early, late = time_to_failure([0.8, 0.7, 0.6]), time_to_failure([0.9, 0.8, 0.7])
    censored, never = time_to_failure([0.9, 0.9, 0.9]), time_to_failure([0.6, 0.5, 0.5])
    assert ratio(late, early).describe() == "3.00×"
    assert ratio(late, early).value * ratio(early, late).value == pytest.approx(1)
    assert (ratio(censored, early).kind, ratio(censored, early).describe()) == ("at-least", "> 4.00×")
    assert (ratio(early, censored).kind, ratio(early, censored).describe()) == ("at-most", "< 0.25×")
    for a, b in [(censored, censored), (never, early), (early, never), (censored, never)]:
        assert ratio(a, b).kind == "undefined" and ratio(a, b).value is None and ratio(a, b).reason
    assert ratio(late, early, unit="training_tokens").kind == "undefined"
    assert ratio(late, time_to_failure([0.75, 0.7])).kind == "undefined"


def test_relative_threshold_is_half_way_and_needs_something_to_lose() -> None:
    assert relative_threshold(0.5, 0.803) == pytest.approx(0.6515)
    with pytest.raises(InputError, match="chance"):
        relative_threshold(0.5, 0.48)


def falls_first(values: list[float], **rule: Any) -> TimeToFailure:
    return time_to_crossing(dict(enumerate(values)), **rule)


def test_any_measure_may_cross_from_either_side() -> None:
    falling = [0.9, 0.8, 0.7, 0.6]
    paper = Regime.PAPER
    assert falls_first(falling, threshold=0.75, falls=True, regime=paper) == time_to_failure(falling)
    # upside down: the same moment
    rising = [100 - 100 * value for value in falling]
    risen = falls_first(rising, threshold=25, falls=False)
    assert (risen.status, risen.failed_in) == ("failed", 2) and risen.generations == pytest.approx(1.5)
    assert falls_first([3.0, 4.0], threshold=2, falls=False).describe() == "from the start"
    assert falls_first([3.0, 4.0], threshold=4, falls=False).status == "censored", "at it is not beyond it"
    # split 2 enters at generation 2: moments are counted from M_0
    late = time_to_crossing({2: 0.9, 3: 0.6}, threshold=0.75, falls=True)
    assert late.generations == pytest.approx(2.5) and (late.last_generation, late.failed_in) == (3, 3)
    # where nothing says how much text a generation reads, generations are the only unit
    assert late.describe("training_splits") == "unknown"


def test_generations_may_be_missing_and_a_threshold_relative() -> None:
    above = time_to_crossing({0: 1.0, 1: 2.0, 4: 8.0}, threshold=5.0, falls=False)
    assert above.generations == pytest.approx(2.5) and above.failed_in == 4  # between M1 and M4, half way
    half = time_to_crossing({0: 4.0, 1: 3.0, 2: 1.0}, threshold=0.5, falls=True, relative=True)
    assert (half.threshold, half.generations) == (2.0, pytest.approx(1.5))
    with pytest.raises(ConfigError, match="has no shares"):
        falls_first([-4.0, -9.0], threshold=0.5, falls=True, relative=True)


def test_what_is_no_number_has_failed() -> None:
    broken = falls_first([1.0, math.nan, 1.0], threshold=0.5, falls=True)
    assert (broken.status, broken.generations, broken.failed_in) == ("failed", 1.0, 1)
    burst = falls_first([1.0, math.inf], threshold=300, falls=False)
    assert (burst.status, burst.generations, burst.failed_in) == ("failed", 1.0, 1)
    assert falls_first([math.nan, 1.0], threshold=0.5, falls=True).status == "never-learned"
    with pytest.raises(InputError, match="at least one generation"):
        time_to_crossing({}, threshold=0.5, falls=True)


@pytest.mark.parametrize("falls", [True, False])
def test_a_table_of_curves_crosses_where_each_of_them_does(falls: bool) -> None:
    rng = np.random.default_rng(3)
    at = [0, 1, 2, 5, 9]
    curves = np.round(rng.uniform(0, 1, (400, len(at))), 1)
    curves[rng.random(curves.shape) < 0.05] = np.nan
    for curve, moment in zip(curves, crossings(curves, 0.4, falls=falls, at=at), strict=True):
        beyond = [i for i, v in enumerate(curve) if math.isnan(v) or (v < 0.4 if falls else v > 0.4)]
        outcome = time_to_crossing(dict(zip(at, curve.tolist(), strict=True)), threshold=0.4, falls=falls)
        assert outcome.failed_in == (at[beyond[0]] if beyond else -1)
        if not beyond:
            assert moment == math.inf and outcome.status == "censored"
        elif beyond[0] == 0:
            assert moment == -math.inf and outcome.status == "never-learned"
        else:
            start, end = at[beyond[0] - 1], at[beyond[0]]
            assert moment == outcome.generations
            drawn = np.interp(moment, [start, end], curve[beyond[0] - 1 : beyond[0] + 1])
            assert moment == end if math.isnan(curve[beyond[0]]) else drawn == pytest.approx(0.4)


def test_the_interval_of_a_difference_is_newcombes_worked_example() -> None:
    # Newcombe, Statistics in Medicine 17, 1998, Table II (a), method 10: 56/70 − 48/80
    found = difference_of_shares(56, 70, 48, 80)
    assert (found.estimate, round(found.low, 4), round(found.high, 4)) == (pytest.approx(0.2), 0.0524, 0.3339)


def test_the_papers_differences_are_those_of_its_tables_with_the_noise_of_its_questions() -> None:
    rows = read_results(RESULTS)
    found = {(one.table, one.method): one for one in paper_differences(rows)}
    quoted = {(r.table, r.method, r.generation): r.percent for r in rows if r.metric == "kr-split-0"}
    one = found["Table D2", "tce-0.9"]
    assert (len(found), one.questions, found["Table D4", "focal-2"].questions) == (12, 829, 414)
    expected = [quoted["Table D2", "tce-0.9", g] - quoted["Table D2", "ce", g] for g in range(6)]
    assert [100 * d.estimate for d in one.differences] == pytest.approx(expected)
    told = sum(d.low > 0 or d.high < 0 for one in found.values() for d in one.differences)
    assert told == 4  # of 72, where chance alone gives 3.6
