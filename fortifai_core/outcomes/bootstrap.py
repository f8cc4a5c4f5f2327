"""How sure a retention is: bootstrap intervals over documents and runs, and paired comparisons of two arms.

Questions about one document stand and fall together, so documents are resampled, not questions; with
several runs (seeds), runs are resampled too, for training and rewriting are noisy. With one run an interval
covers the choice of questions only, and `scope_of` says so.

Scores come in either of two forms:

one question set     `scores[run, question]` with one cluster id per question (documents are drawn jointly)
one set for each run a sequence of arrays, with a sequence of cluster ids of the same shape

"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fortifai_core.config.stages import Reading, Regime
from fortifai_core.errors import InputError
from fortifai_core.interval import Interval, Measured
from fortifai_core.outcomes.resampling import cluster_weights
from fortifai_core.outcomes.time_to_failure import Unit, crossings, effort

Floats = NDArray[np.float64]

# Elements of the largest temporary array (64 MB of float64).
_CHUNK = 8_000_000
# Elements of an array that is kept for the next error (16 MB): more clusters have fewer draws, and need fewer.
_KEPT = 2_000_000


@dataclass(frozen=True)
class FailureInterval:
    """Interval of a time to failure, in generations: -inf stands for `never learned`, inf for `censored`.

    Attributes:
        interval: around the time to failure of the mean curve.
        failed, censored, never_learned: shares of the resampled worlds with that outcome.
    """

    interval: Interval
    failed: float
    censored: float
    never_learned: float
    last_generation: int
    regime: Reading

    def describe(self, unit: Unit = "generations") -> str:
        """`1.41 to 2.20`, `2.10 to > 5` or `never learned to 0.80`."""
        ends = [self._end(end, unit) for end in (self.interval.low, self.interval.high)]
        return ends[0] if ends[0] == ends[1] else " to ".join(ends)

    def _end(self, moment: float, unit: Unit) -> str:
        if moment == -math.inf:
            return "never learned"
        censored = moment == math.inf
        at = self.last_generation if censored else moment
        spent = effort(at, last_generation=self.last_generation, regime=self.regime)
        return spent.describe(unit, bound=censored)


@dataclass(frozen=True)
class RatioInterval:
    """Interval of one time to failure over another, in generations; its ends may be 0 and infinite.

    Attributes:
        defined: share of the resampled worlds in which the ratio is a number or a bound: both learned, one failed.
    """

    interval: Interval
    defined: float

    def describe(self) -> str:
        """`0.62 to 2.93×`, or `0.62× and more`."""
        if math.isinf(self.interval.high):
            return f"{self.interval.low:.2f}× and more"
        return f"{self.interval.low:.2f} to {self.interval.high:.2f}×"


@dataclass(frozen=True)
class McNemar:
    """Exact McNemar test. It takes questions to be independent; the cluster intervals do not."""

    only_a: int
    only_b: int
    p_value: float


def scope_of(runs: int) -> str:
    """What an interval over so many runs covers."""
    if runs == 1:
        return "questions of one run: does not cover retraining noise"
    few = "" if runs >= 5 else f", as far as {runs} runs can show it"
    return f"questions and {runs} runs: covers retraining noise{few}"


def bootstrap_retention(
    scores: Any, *, clusters: Any, draws: int = 2000, seed: int = 0, level: float = 0.95
) -> Measured:
    """The share of questions answered right, with its interval.

    Args:
        scores: right or wrong, [run, question], [question] for one run, or one array a run.
        clusters: the document of each question; one list for all runs, or one a run.
        draws: resampled worlds.
        seed: of the resampling; the same seed gives the same interval.
        level: how often such an interval should hold the truth.

    Raises:
        InputError: shapes do not fit, there are no questions, or a single document of a single run, which
            gives no interval.
    """
    runs = _runs([run[:, None] for run in _as_runs(scores)], clusters)
    return _interval(runs, draws, seed, level, bounds=(0.0, 1.0))


def paired_difference(
    scores_a: Any, scores_b: Any, *, clusters: Any, draws: int = 2000, seed: int = 0, level: float = 0.95
) -> Measured:
    """Arm a's retention minus arm b's on the same questions of the same runs, with its interval.

    Pairing removes what the two share: how hard the questions are, and the run's data and base model.
    """
    first, second = _as_runs(scores_a), _as_runs(scores_b)
    if [len(a) for a in first] != [len(b) for b in second]:
        raise InputError("scores_b", [len(b) for b in second], "give the same questions and runs for both arms")
    gaps = [(a.astype(float) - b.astype(float))[:, None] for a, b in zip(first, second, strict=True)]
    return _interval(_runs(gaps, clusters), draws, seed, level, bounds=(-1.0, 1.0))


def bootstrap_time_to_failure(
    curves: Any,
    *,
    clusters: Any,
    threshold: float = 0.75,
    regime: Reading = Regime.PAPER,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> FailureInterval:
    """Interval of the time to failure of the mean curve; whole curves are resampled by document and run.

    Args:
        curves: right or wrong, [run, generation, question], [generation, question], or one 2-D array a run.
        clusters: as in `bootstrap_retention`.
    """
    tables = _as_runs(curves, dimensions=2)
    generations = {table.shape[0] for table in tables}
    if len(generations) != 1:
        raise InputError("curves", sorted(generations), "give the same generations for every run")
    runs = _runs([table.T for table in tables], clusters)
    last = generations.pop() - 1
    drawn = np.concatenate(list(_resample(runs, draws, seed)))
    moments = crossings(drawn, threshold)
    interval = _drawn_ends(moments, float(crossings(_seen(runs)[None], threshold)[0]), level)
    failed, censored, never = (
        float(np.mean(world)) for world in (np.isfinite(moments), moments == np.inf, moments == -np.inf)
    )
    return FailureInterval(interval, failed, censored, never, last, regime)


def bootstrap_failure_ratio(
    curves_a: Any,
    curves_b: Any,
    *,
    clusters: Any,
    threshold: float = 0.75,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> RatioInterval | None:
    """Interval of arm a's time to failure over arm b's, in generations, each world drawn for both arms together.

    Where only a is censored in a world its ratio is unbounded; where only b is, it is 0, for b may last for ever.
    Worlds in which one never learned, or neither failed, have no ratio; None where these are more than half.

    Args:
        curves_a, curves_b: as in `bootstrap_time_to_failure`, on the same questions of the same runs.
    """
    first, second = _as_runs(curves_a, dimensions=2), _as_runs(curves_b, dimensions=2)
    if [a.shape for a in first] != [b.shape for b in second]:
        shapes = [b.shape for b in second]
        raise InputError("curves_b", shapes, "give the same runs, generations and questions for both arms")
    tables = [np.concatenate([a, b]).T for a, b in zip(first, second, strict=True)]
    runs, generations = _runs(tables, clusters), first[0].shape[0]
    drawn = np.concatenate([_seen(runs)[None], *_resample(runs, draws, seed)])
    top, bottom = (crossings(half, threshold) for half in (drawn[:, :generations], drawn[:, generations:]))
    known = (top > -np.inf) & (bottom > 0) & (np.isfinite(top) | np.isfinite(bottom))
    defined = float(known[1:].mean())
    if defined < 0.5:
        return None
    lasting = np.isinf(bottom)
    ratios = np.where(known, np.where(lasting, 0.0, top / np.where(lasting | ~known, 1.0, bottom)), np.nan)
    return RatioInterval(_drawn_ends(ratios[1:][known[1:]], float(ratios[0]), level), defined)


def bootstrap_error(runs: Sequence[tuple[Sequence[str], Floats, Floats]], *, draws: int = 2000, seed: int = 0) -> float:
    """Standard error of a mean over runs of a mean over clusters, by the resampling that all intervals here rest on.

    The documents' part is stretched as the runs' is, by √(n / (n − 1)): it goes into t tests, whose level with few
    documents holds with that alone.

    Args:
        runs: of each run the clusters' names, two at least, their sums and their counts, [cluster].
    """
    given = [
        _Run(tuple(names), np.asarray(sums, np.float64)[:, None], np.asarray(counts, np.float64), int(counts.sum()))
        for names, sums, counts in runs
    ]
    number, shared = len(given), all(run.names == given[0].names for run in given)
    draws = max(200, min(draws, _KEPT // max(len(run.names) for run in given)))
    worlds = np.zeros(draws)
    for place, run in enumerate(given):
        weights = _drawn_once(draws, len(run.names), 0 if shared else place, seed)
        seen_here = run.sums.sum() / run.counts.sum()
        stretch = math.sqrt(len(run.names) / (len(run.names) - 1))
        worlds += (_means(weights, run)[:, 0] - seen_here) * stretch / number
    if number > 1:
        seen = np.array([run.sums.sum() / run.counts.sum() for run in given])
        worlds += (_runs_once(draws, number, seed) @ seen - seen.mean()) * math.sqrt(number / (number - 1))
    return float(worlds.std())


@lru_cache(maxsize=8)
def _drawn_once(draws: int, clusters: int, run: int, seed: int) -> Floats:
    """The same worlds for every measure and arm, so that many errors cost one drawing: [draws, clusters]."""
    return cluster_weights(np.random.default_rng([seed, run]), draws, clusters)


@lru_cache(maxsize=8)
def _runs_once(draws: int, runs: int, seed: int) -> Floats:
    """How often each run was drawn, as shares: [draws, runs]."""
    return cluster_weights(np.random.default_rng([seed, 1 << 20]), draws, runs) / runs


def mcnemar(scores_a: Any, scores_b: Any) -> McNemar:
    """Two-sided exact McNemar test of two arms on the same questions (all runs together)."""
    from scipy.stats import binomtest

    a = np.concatenate([np.asarray(run, bool) for run in _as_runs(scores_a)])
    b = np.concatenate([np.asarray(run, bool) for run in _as_runs(scores_b)])
    if a.shape != b.shape:
        raise InputError("scores_b", b.size, f"give the same {a.size} questions for both arms")
    only_a, only_b = int(np.sum(a & ~b)), int(np.sum(b & ~a))
    differ = only_a + only_b
    return McNemar(only_a, only_b, float(binomtest(only_a, differ).pvalue) if differ else 1.0)


@dataclass(frozen=True)
class _Run:
    """One run's questions, summed by cluster. sums: [cluster, statistic]; counts: [cluster]."""

    names: tuple[Any, ...]
    sums: Floats
    counts: Floats
    questions: int


def _tail(level: float) -> float:
    if not 0 < level < 1:
        raise InputError("level", level, "give a share between 0 and 1")
    return (1 - level) / 2


def _as_runs(scores: Any, dimensions: int = 1) -> list[Any]:
    """One numpy array of `dimensions` axes for each run."""
    if len(scores) == 0:
        raise InputError("scores", [], "there are no questions")
    if not isinstance(scores, np.ndarray):
        parts = [np.asarray(run) for run in scores]
        if parts[0].ndim == dimensions:
            return parts
        scores = np.asarray(scores)
    if scores.ndim == dimensions:
        return [scores]
    if scores.ndim != dimensions + 1:
        raise InputError("scores", scores.shape, f"needs {dimensions} or {dimensions + 1} axes")
    return list(scores)


def _same_form(clusters: Any, runs: int) -> list[Any]:
    """One sequence of cluster ids for each run."""
    nested = len(clusters) > 0 and not isinstance(clusters[0], str) and hasattr(clusters[0], "__len__")
    return list(clusters) if nested else [clusters] * runs


def _runs(tables: list[Any], clusters: Any) -> list[_Run]:
    """Sum each run's table, [question, statistic], by document."""
    ids = _same_form(clusters, len(tables))
    if len(ids) != len(tables):
        raise InputError("clusters", len(ids), f"give one list for each of the {len(tables)} runs, or one for all")
    runs = []
    for table, names in zip(tables, ids, strict=True):
        if len(names) != len(table) or not len(names):
            raise InputError("clusters", len(names), f"give the document of each of the {len(table)} questions")
        unique, inverse = np.unique(np.asarray(names), return_inverse=True)
        columns = [np.bincount(inverse, column, len(unique)) for column in np.asarray(table, float).T]
        sums = np.asarray(np.stack(columns, axis=1), np.float64)
        counts = np.asarray(np.bincount(inverse, minlength=len(unique)), np.float64)
        runs.append(_Run(tuple(unique.tolist()), sums, counts, len(names)))
    if len(runs) == 1 and len(runs[0].names) == 1:
        raise InputError("clusters", runs[0].names[0], "one document of one run gives no interval: use more")
    return runs


def _seen(runs: list[_Run]) -> Floats:
    """The mean over runs of every statistic, as it was seen."""
    return np.mean([run.sums.sum(axis=0) / run.counts.sum() for run in runs], axis=0)


def _interval(runs: list[_Run], draws: int, seed: int, level: float, bounds: tuple[float, float]) -> Measured:
    drawn = np.concatenate(list(_resample(runs, draws, seed)))[:, 0]
    estimate = float(_seen(runs)[0])
    low, high = (float(q) for q in np.quantile(drawn, [_tail(level), 1 - _tail(level)]))
    clusters = sum(len(run.names) for run in runs)
    if low == high:
        independent = len(runs[0].names) if all(run.names == runs[0].names for run in runs) else clusters
        # All documents alike: resampling shows no spread, yet n trials without an exception leave room for
        # a rate of exceptions up to 1 - (tail)^(1/n) (Clopper-Pearson).
        room = 1 - _tail(level) ** (1 / independent)
        low, high = max(bounds[0], low - room), min(bounds[1], high + room)
    low, high = max(bounds[0], min(low, estimate)), min(bounds[1], max(high, estimate))
    questions = sum(run.questions for run in runs)
    return Measured(estimate, low, high, level, runs=len(runs), questions=questions, clusters=clusters)


def _drawn_ends(drawn: Floats, estimate: float, level: float) -> Interval:
    """Ends taken from the drawn values themselves: between a number and infinity nothing can be interpolated."""
    tail = _tail(level)
    low, high = (float(np.quantile(drawn, q, method="inverted_cdf")) for q in (tail, 1 - tail))
    return Interval(estimate, low, high, level)


def _resample(runs: list[_Run], draws: int, seed: int) -> Iterator[Floats]:
    """Yield the mean over runs of every statistic in resampled worlds, in pieces of [some draws, statistic].

    A world deviates from what was seen by other documents (drawn with replacement; once for all runs where
    the runs share theirs: a hard document is hard in every run) plus by other runs. The two deviations are
    drawn apart and added: nesting one draw in the other counts the questions' noise up to three times over.
    The runs' part is stretched by sqrt(n / (n - 1)): values spread less about their own mean than about the
    truth. In simulations a 95% interval held the truth in at least 92 of 100 worlds; with two runs, in 87.
    """
    if draws < 100:
        raise InputError("draws", draws, "take at least 100")
    rng = np.random.default_rng(seed)
    number = len(runs)
    shared = all(run.names == runs[0].names for run in runs)
    seen = np.stack([run.sums.sum(axis=0) / run.counts.sum() for run in runs])
    step = max(1, _CHUNK // max(len(run.names) for run in runs))
    for start in range(0, draws, step):
        size = min(step, draws - start)
        common = cluster_weights(rng, size, len(runs[0].names)) if shared else None
        worlds = np.zeros((size, seen.shape[1]))
        for run in runs:
            weights = cluster_weights(rng, size, len(run.names)) if common is None else common
            worlds += _means(weights, run) / number
        if number > 1:
            chosen = rng.integers(number, size=(size, number))
            worlds += (seen[chosen].mean(axis=1) - seen.mean(axis=0)) * math.sqrt(number / (number - 1))
        yield worlds


def _means(weights: Floats, run: _Run) -> Floats:
    means: Floats = (weights @ run.sums) / (weights @ run.counts)[:, None]
    return means
