"""Do two sets of questions tell the same story? Correlation of their scores over the models that answered both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fortifai_core.errors import InputError
from fortifai_core.interval import Interval

Level = Literal["split 0", "all splits", "each split"]
LEVELS: tuple[Level, ...] = ("split 0", "all splits", "each split")


@dataclass(frozen=True)
class Answered:
    """One set of questions, answered by several models.

    Attributes:
        document, split: of each question.
        correct: bool [model, question].
        asked: bool [model, question]; a question of a split that a model has not seen is not asked.
    """

    document: Sequence[str]
    split: Sequence[int]
    correct: Any
    asked: Any


@dataclass(frozen=True)
class Agreement:
    """How two sets of questions agree over `points` pairs of scores.

    A correlation has a percentile bootstrap interval; all of it is NaN where a score never changes.
    """

    level: Level
    points: int
    pearson: Interval
    spearman: Interval


def agreement(
    first: Answered, second: Answered, *, level: Level, draws: int = 1000, seed: int = 0, confidence: float = 0.95
) -> Agreement:
    """Pearson's and Spearman's correlation of the two sets' shares of right answers.

    A point is one model's score: on the questions of split 0, on those of all splits that it has seen, or one point
    for every split. For the interval documents are drawn with replacement within their split, the same for both sets,
    for questions about one document stand and fall together: it covers the choice of documents. The models stay as
    they are; consecutive generations of one run are no independent sample of models, and nothing here pretends so.

    Args:
        first, second: answers of the same models, in the same order.

    Raises:
        InputError: the models differ.
    """
    if len(first.correct) != len(second.correct):
        raise InputError("second", len(second.correct), f"give the answers of the same {len(first.correct)} models")
    names = sorted({*zip(first.split, first.document, strict=True), *zip(second.split, second.document, strict=True)})
    tables = [_by_document(answered, names) for answered in (first, second)]
    split = np.array([k for k, _ in names])
    groups = _groups(level, split)
    weights = np.ones(len(names))
    there = np.isfinite(_shares(tables, groups, weights)).all(axis=0)
    points = int(there.sum())
    undefined = Interval(math.nan, math.nan, math.nan, confidence)
    if points < 3:
        return Agreement(level, points, undefined, undefined)
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(split == k) for k in np.unique(split)]
    drawn = []
    for _ in range(draws):
        weights = np.zeros(len(names))
        for documents in members:
            weights += np.bincount(rng.choice(documents, len(documents)), minlength=len(names))
        drawn.append(_correlations(_shares(tables, groups, weights)[:, there]))
    estimate = _correlations(_shares(tables, groups, np.ones(len(names)))[:, there])
    correlations = [
        _with_interval(value, [world[i] for world in drawn], confidence) if math.isfinite(value) else undefined
        for i, value in enumerate(estimate)
    ]
    return Agreement(level, points, *correlations)


def _by_document(answered: Answered, names: list[tuple[int, str]]) -> tuple[Any, Any]:
    """(right answers, questions asked), each [model, document]."""
    place = {name: i for i, name in enumerate(names)}
    of = np.array([place[key] for key in zip(answered.split, answered.document, strict=True)])
    asked = np.asarray(answered.asked, bool)
    right = np.asarray(answered.correct, bool) & asked
    return tuple(
        np.stack([np.bincount(of, row.astype(float), minlength=len(names)) for row in table])
        for table in (right, asked)
    )  # type: ignore[return-value]


def _groups(level: Level, split: NDArray[np.int64]) -> Any:
    """Which documents make up a score: bool [group, document]."""
    match level:
        case "split 0":
            return (split == 0)[None]
        case "all splits":
            return np.ones((1, len(split)), bool)
        case "each split":
            return np.unique(split)[:, None] == split[None]


def _shares(tables: list[tuple[Any, Any]], groups: Any, weights: Any) -> Any:
    """[set, model × group]; NaN where no question was asked."""
    chosen = (groups * weights).T
    rows = []
    for right, asked in tables:
        count = asked @ chosen
        rows.append(np.where(count > 0, right @ chosen / np.maximum(count, 1), np.nan).ravel())
    return np.stack(rows)


def _correlations(shares: Any) -> tuple[float, float]:
    """(Pearson, Spearman) of the pairs that are there; NaN where one side never changes."""
    from scipy.stats import pearsonr, spearmanr

    kept = shares[:, np.isfinite(shares).all(axis=0)]
    if kept.shape[1] < 3 or (np.ptp(kept, axis=1) < 1e-12).any():
        return math.nan, math.nan
    return float(pearsonr(*kept).statistic), float(spearmanr(*kept).statistic)


def _with_interval(value: float, drawn: list[float], level: float) -> Interval:
    """Percentiles of the draws, widened to the estimate: a draw's noise pulls a correlation towards zero."""
    known = [correlation for correlation in drawn if math.isfinite(correlation)]
    if len(known) < len(drawn) / 2:
        return Interval(value, math.nan, math.nan, level)
    tail = (1 - level) / 2
    low, high = (float(end) for end in np.quantile(known, [tail, 1 - tail]))
    return Interval(value, min(low, value), max(high, value), level)
