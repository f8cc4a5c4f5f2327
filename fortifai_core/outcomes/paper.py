"""The paper's own tables (D2–D5): time to failure of every arm, in all units, and its ratio to CE.

These numbers are quoted from the paper or computed from quoted ones; none of them was measured here.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from fortifai_core.errors import DataError
from fortifai_core.interval import Interval
from fortifai_core.outcomes.time_to_failure import (
    SPLIT_UNITS,
    Ratio,
    TimeToFailure,
    Unit,
    ratio,
    relative_threshold,
    time_to_failure,
)

CHANCE = 0.5
BASELINE = "ce"
_COLUMNS = ("table", "dataset", "model", "generation", "method", "metric", "percent")


@dataclass(frozen=True)
class PaperResult:
    """One number of the paper. `percent` is as printed; `generation` is what the paper calls a stage."""

    table: str
    dataset: str
    model: str
    generation: int
    method: str
    metric: str
    percent: float


@dataclass(frozen=True)
class PaperArm:
    """One arm of Tables D2–D5: its retention as quoted, and what follows from it.

    Attributes:
        retention: of split 0, as shares, M_0 first.
        total: over all splits seen so far (KR-total), as shares.
        absolute: time to failure at 75%.
        relative: at half way between chance and cross entropy's M_0 in the same table.
        absolute_ratios: to cross entropy of the same table; empty for cross entropy itself.
    """

    table: str
    dataset: str
    model: str
    method: str
    retention: tuple[float, ...]
    total: tuple[float, ...]
    absolute: TimeToFailure
    relative: TimeToFailure
    absolute_ratios: dict[Unit, Ratio]


def read_results(path: str | Path) -> list[PaperResult]:
    """Read the reference data shipped with the product (`results.csv`).

    Raises:
        DataError: the file is missing, has other columns, or holds something that is no number.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(str(path), "no such file", "give the path of the paper's results.csv")
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != _COLUMNS:
            raise DataError(str(path), reader.fieldnames, f"the columns must be {', '.join(_COLUMNS)}")
        rows = []
        for line in reader:
            try:
                generation, percent = int(line["generation"]), float(line["percent"])
            except (TypeError, ValueError) as error:
                raise DataError(f"{path}, line {reader.line_num}", line, "is not a number") from error
            texts = (line["table"], line["dataset"], line["model"])
            rows.append(PaperResult(*texts, generation, line["method"], line["metric"], percent))
    return rows


def paper_time_to_failure(rows: Iterable[PaperResult], *, threshold: float = 0.75) -> list[PaperArm]:
    """Every arm that has split-0 retention in the tables, in the order of the tables, cross entropy first."""
    curves: dict[tuple[str, str, str], dict[str, dict[str, dict[int, float]]]] = {}
    for row in rows:
        if row.table.startswith("Table D") and row.metric in ("kr-split-0", "kr-total"):
            methods = curves.setdefault((row.table, row.dataset, row.model), {})
            curve = methods.setdefault(row.method, {"kr-split-0": {}, "kr-total": {}})[row.metric]
            curve[row.generation] = row.percent / 100
    arms = []
    for (table, dataset, model), methods in curves.items():
        if BASELINE not in methods:
            raise DataError(table, sorted(methods), "has no cross entropy to compare with")
        baseline = _shares(methods[BASELINE]["kr-split-0"], table)
        half_way = relative_threshold(CHANCE, baseline[0])
        ce_absolute = time_to_failure(baseline, threshold=threshold)
        for method in sorted(methods, key=lambda name: (name != BASELINE, name)):
            retention = _shares(methods[method]["kr-split-0"], table)
            absolute = time_to_failure(retention, threshold=threshold)
            units = () if method == BASELINE else SPLIT_UNITS
            arms.append(
                PaperArm(
                    table,
                    dataset,
                    model,
                    method,
                    retention=retention,
                    total=_shares(methods[method]["kr-total"], table),
                    absolute=absolute,
                    relative=time_to_failure(retention, threshold=half_way),
                    absolute_ratios={unit: ratio(absolute, ce_absolute, unit=unit) for unit in units},
                )
            )
    return arms


# Questions of the KR-test in all six splits: the authors' file, and its first half for Imagination of Web.
QUESTIONS = {"wikitext": 4975, "imagination": 2487}
SPLITS = 6


@dataclass(frozen=True)
class PaperDifference:
    """How much more of split 0 an arm of the paper's tables keeps than cross entropy there, generation by generation.

    Attributes:
        questions: on split 0, of which the interval is: a sixth of the file's.
        differences: shares, M_0 first, with the interval that so many questions give two independent answers
            (Newcombe 1998, method 10). It covers neither that texts and questions are shared, which makes it too wide,
            nor what another training would give, which makes it too narrow: the tables have one run an arm.
    """

    table: str
    dataset: str
    model: str
    method: str
    questions: int
    differences: tuple[Interval, ...]


def paper_differences(rows: Iterable[PaperResult], *, level: float = 0.95) -> list[PaperDifference]:
    """Every arm but cross entropy beside cross entropy of its table, on split 0."""
    arms = paper_time_to_failure(rows)
    baselines = {arm.table: arm.retention for arm in arms if arm.method == BASELINE}
    found = []
    for arm in arms:
        if arm.method != BASELINE:
            count = round(QUESTIONS[arm.dataset] / SPLITS)
            pairs = zip(arm.retention, baselines[arm.table], strict=True)
            differences = tuple(
                replace(
                    difference_of_shares(round(ours * count), count, round(theirs * count), count, level=level),
                    estimate=ours - theirs,
                )  # as printed, not to a whole question
                for ours, theirs in pairs
            )
            found.append(PaperDifference(arm.table, arm.dataset, arm.model, arm.method, count, differences))
    return found


def difference_of_shares(right_a: int, count_a: int, right_b: int, count_b: int, *, level: float = 0.95) -> Interval:
    """right_a / count_a − right_b / count_b, answers all independent of each other (Newcombe 1998, method 10)."""
    from scipy.stats import binomtest

    a, b = right_a / count_a, right_b / count_b
    of_a = binomtest(right_a, count_a).proportion_ci(level, method="wilson")
    of_b = binomtest(right_b, count_b).proportion_ci(level, method="wilson")
    low = a - b - math.hypot(a - of_a.low, of_b.high - b)
    high = a - b + math.hypot(of_a.high - a, b - of_b.low)
    return Interval(a - b, low, high, level)


def _shares(curve: dict[int, float], table: str) -> tuple[float, ...]:
    """Values in order of generation; a gap would shift every later generation, so it is an error."""
    if sorted(curve) != list(range(len(curve))) or not curve:
        raise DataError(table, sorted(curve), "lacks a generation between M_0 and the last")
    return tuple(curve[i] for i in range(len(curve)))
