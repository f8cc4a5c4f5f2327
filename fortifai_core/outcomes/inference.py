"""What some runs can tell: an effect with its error, one-sided and two-sided tests, equivalence, Holm, log-rank.

An effect is the mean over runs of one statistic, or of the paired difference of two. Its error is a bootstrap's over
documents (or windows, or replicates: whatever the statistic is a mean of) and over runs, as in `outcomes.bootstrap`;
where a measure keeps nothing smaller than its value, over runs alone, which is then their standard error. Tests and
intervals are Student's t with that error, its degrees of freedom those of Satterthwaite (Biometrics Bulletin 2, 1946):
a bootstrap's own percentiles end at 1 in as many draws, which no correction for many comparisons survives.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fortifai_core.errors import InputError
from fortifai_core.interval import Measured
from fortifai_core.outcomes.bootstrap import bootstrap_error
from fortifai_core.outcomes.survival import FEWEST_RUNS
from fortifai_core.outcomes.time_to_failure import TimeToFailure

Floats = NDArray[np.float64]

# An error below this share of what it is the error of is rounding, and so none.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Clusters:
    """What a statistic is the mean of, by cluster: documents, windows of text, replicates.

    Attributes:
        names: of the clusters, each once.
        sums, counts: [cluster]; the statistic is the sum of the first over that of the second.
    """

    names: tuple[str, ...]
    sums: Floats
    counts: Floats

    def __post_init__(self) -> None:
        if not len(self.names) == len(self.sums) == len(self.counts) or not self.names:
            raise InputError("clusters", len(self.names), "give a sum and a count for each, and one at least")

    @property
    def value(self) -> float:
        return float(self.sums.sum() / self.counts.sum())

    def among(self, names: Sequence[str]) -> Clusters:
        """Those of these names, in their order."""
        place = {name: i for i, name in enumerate(self.names)}
        chosen = [place[name] for name in names]
        return Clusters(tuple(names), self.sums[chosen], self.counts[chosen])


@dataclass(frozen=True)
class Sampled:
    """One statistic of one run; `clusters` where the measure keeps what it is the mean of."""

    value: float
    clusters: Clusters | None = None

    @classmethod
    def of(cls, clusters: Clusters) -> Sampled:
        return cls(clusters.value, clusters)


@dataclass(frozen=True)
class Effect:
    """A mean over runs with its error.

    Attributes:
        error: standard error; NaN where one run without clusters gives none.
        freedom: degrees of freedom.
        runs, clusters: what it rests on; clusters of one run.
        spread: standard deviation between runs; NaN for one run.
        shared: the runs have the same clusters, whose noise further runs do not take away.
    """

    value: float
    error: float
    freedom: float
    runs: int
    clusters: int = 0
    spread: float = math.nan
    shared: bool = True

    @property
    def known(self) -> bool:
        """Whether there is an error, and so a test."""
        return math.isfinite(self.error) and math.isfinite(self.value)

    def interval(self, level: float = 0.95) -> Measured:
        """Student's t interval; its ends are NaN where there is no error."""
        from scipy.stats import t

        margin = float(t.ppf((1 + level) / 2, self.freedom)) * self.error if self.known else math.nan
        ends = self.value - margin, self.value + margin
        return Measured(self.value, *ends, level, runs=self.runs, clusters=self.clusters)

    def p_above(self, bound: float) -> float:
        """One-sided p of "not above `bound`": small where it is above. NaN where there is no error."""
        from scipy.stats import t

        if not self.known:
            return math.nan
        if self.error == 0:
            return 0.5 if self.value == bound else float(self.value < bound)
        return float(t.sf((self.value - bound) / self.error, self.freedom))

    def p_below(self, bound: float) -> float:
        """One-sided p of "not below `bound`"."""
        return 1 - self.p_above(bound) if self.error == 0 else self._mirrored.p_above(-bound)

    def p_differs(self) -> float:
        """Two-sided p of "it is 0"."""
        if self.error == 0 and self.value == 0:
            return 1.0
        return min(1.0, 2 * min(self.p_above(0), self.p_below(0))) if self.known else math.nan

    def p_equivalent(self, margin: float) -> float:
        """p of "it lies outside ± margin": two one-sided tests (Schuirmann, J. Pharmacokin. Biopharm. 15, 1987).

        Small where a difference as large as the margin is excluded, which is what "no difference" claims.
        """
        if not margin > 0:
            raise InputError(
                "margin", margin, "must be above 0: two arms are never shown to be equal to the last digit"
            )
        return max(self.p_above(-margin), self.p_below(margin))

    @property
    def _mirrored(self) -> Effect:
        return replace(self, value=-self.value)


def effect_of(
    values: Mapping[int, Sampled], minus: Mapping[int, Sampled] | None = None, *, share: bool = False
) -> Effect | None:
    """The mean over runs of a statistic, or of its paired difference to another one; None without a run in common.

    Pairs are the runs of a seed, and in them the clusters of a name: what the two share, how hard a document is or how
    a seed fell out, is taken out.

    Args:
        values, minus: by seed.
        share: the statistic is a share. Where all documents (or, without documents, runs) are alike, resampling shows
            no spread, yet n without an exception leave room for a rate of up to 1 − 0.025^(1/n) (Clopper and Pearson
            1934).

    A run in which the statistic is NaN makes the mean NaN: who is left out would be the one that collapsed. Two runs
    alike show no spread either, and do not say that there is none: they have no error.
    """
    seeds = sorted(values if minus is None else values.keys() & minus.keys())
    if not seeds:
        return None
    gaps = [_gap(values[seed], None if minus is None else minus[seed]) for seed in seeds]
    runs, means = len(gaps), np.array([gap.value for gap in gaps])
    if not np.isfinite(means).all():
        return Effect(float(means.mean()), math.nan, 1, runs)
    size = max(abs(side.value) for sides in (values, minus or {}) for seed, side in sides.items() if seed in seeds)
    nothing = _ROUNDING * (size if math.isfinite(size) else 0.0)
    spread = _unless_rounding(float(means.std(ddof=1)), nothing) if runs > 1 else math.nan
    clusters = [gap.clusters for gap in gaps if gap.clusters is not None and len(gap.clusters.names) > 1]
    mean = float(means.mean())
    if len(clusters) < runs:
        error = spread / math.sqrt(runs) if runs >= FEWEST_RUNS or spread > 0 else math.nan
        if error == 0 and share and (minus is None or mean == 0):
            error = _room(runs, runs - 1.0)
        return Effect(mean, error, max(1, runs - 1), runs, 0, spread)
    error = _unless_rounding(bootstrap_error([(c.names, c.sums, c.counts) for c in clusters]), nothing)
    smallest = min(len(c.names) for c in clusters)
    of_runs = spread**2 / runs if runs > 1 else 0.0
    of_documents = max(0.0, error**2 - of_runs)
    freedom = freedom_of(of_documents, smallest, of_runs, runs)
    if error == 0 and share:
        error = _room(smallest, freedom)
    shared = all(c.names == clusters[0].names for c in clusters)
    return Effect(mean, error, freedom, runs, smallest, spread, shared)


def freedom_of(of_documents: float, documents: int, of_runs: float, runs: int) -> float:
    """Degrees of freedom of the sum of two variances of a mean: its documents' and its runs' (Satterthwaite 1946)."""
    parts = of_documents**2 / (documents - 1) if documents > 1 else 0.0
    parts += of_runs**2 / (runs - 1) if runs > 1 else 0.0
    return (of_documents + of_runs) ** 2 / parts if parts > 0 else max(1.0, max(documents, runs) - 1.0)


def _room(alike: int, freedom: float) -> float:
    """The error whose 95% interval ends where so many without an exception leave room."""
    from scipy.stats import t

    return (1 - 0.025 ** (1 / alike)) / float(t.ppf(0.975, freedom))


def _unless_rounding(error: float, nothing: float) -> float:
    return 0.0 if error <= nothing else error


def _gap(value: Sampled, minus: Sampled | None) -> Sampled:
    """One run's difference; by cluster, where both sides have the same counts of the clusters that they share."""
    if minus is None:
        return value
    a, b = value.clusters, minus.clusters
    if a is not None and b is not None:
        there = set(b.names)
        shared = [name for name in a.names if name in there]
        if shared:
            ours, theirs = a.among(shared), b.among(shared)
            if np.array_equal(ours.counts, theirs.counts):
                return Sampled.of(Clusters(ours.names, ours.sums - theirs.sums, ours.counts))
    return Sampled(value.value - minus.value)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values (Scand. J. Statistics 6, 1979), in the order given; NaN stays, and is not counted.

    Together they hold the chance of a single false rejection among all of them, whatever their dependence.
    """
    known = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    adjusted, highest = [math.nan] * len(p_values), 0.0
    for place, (p, i) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - place) * p))
        adjusted[i] = highest
    return adjusted


@dataclass(frozen=True)
class LogRank:
    """Log-rank test of two arms' times to failure. runs: of the first and of the second, that learned."""

    statistic: float
    p_value: float
    runs: tuple[int, int]


def logrank(first: Sequence[TimeToFailure], second: Sequence[TimeToFailure]) -> LogRank | None:
    """Two-sided log-rank test (Mantel 1966), by scipy: does one arm fail sooner than the other, over all generations?

    Runs that never learned have no time to failure and are left out; those that never failed are censored. None with
    fewer than three runs a side, where no p could be small, and where nobody failed.
    """
    from scipy.stats import CensoredData
    from scipy.stats import logrank as test

    sides, counts, failures = [], [], 0
    for outcomes in (first, second):
        times = [run.generations for run in outcomes if run.generations is not None]
        ends = [float(run.observed.generations) for run in outcomes if run.status == "censored"]
        sides.append(CensoredData(uncensored=times, right=ends))
        counts.append(len(times) + len(ends))
        failures += len(times)
    if min(counts) < FEWEST_RUNS or not failures:
        return None
    found = test(*sides)
    return LogRank(float(found.statistic), float(found.pvalue), (counts[0], counts[1]))
