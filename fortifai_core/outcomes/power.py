"""How small a difference between two arms is told: before a run, or from how the runs that there are varied."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fortifai_core.errors import InputError
from fortifai_core.outcomes.inference import freedom_of

# The standard normal's quantiles: two-sided 5%, and 80% power.
Z_LEVEL, Z_POWER = 1.959964, 0.841621
DISCORDANCE = 0.3
CORRELATION = 0.1


@dataclass(frozen=True)
class Power:
    """What an experiment of this size can tell.

    Attributes:
        questions, documents: about one split, in one run.
        runs: seeds.
        difference: smallest difference of retention, as a share, that is told from none in 80 of 100 repetitions.
        design_effect: how many times more questions are needed than if they were independent.
        discordance, correlation: what was assumed.
    """

    questions: int
    documents: int
    runs: int
    difference: float
    design_effect: float
    discordance: float
    correlation: float


def smallest_difference(
    questions: int,
    documents: int,
    *,
    runs: int = 1,
    shared: bool = True,
    discordance: float = DISCORDANCE,
    correlation: float = CORRELATION,
) -> Power:
    """The smallest paired difference of retention that `paired_difference` tells from 0 with 80% power.

    Two arms answer the same n questions about D documents. A question's gap (−1, 0 or 1) has the variance
    s² = discordance − difference² (Connor, Biometrics 43, 1987: paired proportions); gaps about one document
    correlate, which takes the design effect 1 + (n/D − 1) · correlation times as many questions (Kish, Survey
    Sampling, 1965; Donner and Klar, 2000). With one run

        difference = (1.96 + 0.84) · √(s² · design effect / n).

    With several, the resampling of runs adds the spread of their means to the interval, which already holds the
    questions' own noise: an interval's variance V is then larger than that of the estimate, v, and
    difference = 1.96 · √V + 0.84 · √v. The runs' questions may be the same (`shared`: what a document does to the gap
    is then the same in every run, and is not averaged away) or each run's own.

    Noise of retraining is not known before and comes on top. A difference cannot exceed the discordance, so this is
    taken as no smaller than the difference.

    Args:
        questions, documents: about the split, in one run.
        discordance: share of the questions that one arm alone answers right, assumed.
        correlation: between gaps of questions about one document, assumed.

    Raises:
        InputError: there are no questions, or what was assumed is no share.
    """
    for name, share in (("discordance", discordance), ("correlation", correlation)):
        if not 0 <= share <= 1 or (name == "discordance" and not share):
            raise InputError(name, share, "give a share between 0 and 1")
    if not 1 <= documents <= questions or runs < 1:
        raise InputError("documents", documents, f"give 1 to {questions} documents that have questions, and a run")
    # variances in units of s²: of what documents do to a run's mean, and of what is left to the questions
    by_document, by_question = correlation / documents, (1 - correlation) / questions
    of_mean = by_question / runs + (by_document if shared else by_document / runs)
    between = 0.0 if runs == 1 else (by_question + (0 if shared else by_document)) / runs
    ratio = (Z_LEVEL * math.sqrt(of_mean + between) + Z_POWER * math.sqrt(of_mean)) ** 2
    difference = math.sqrt(ratio * discordance / (1 + ratio))
    if difference > discordance:
        difference = ratio / (1 + ratio)
    effect = 1 + (questions / documents - 1) * correlation
    return Power(questions, documents, runs, difference, effect, discordance, correlation)


# More seeds than anybody runs: beyond it the answer is that seeds do not help.
MOST_RUNS = 1000


def detectable(error: float, freedom: float, *, level: float = 0.05, power: float = 0.8) -> float:
    """The smallest difference that a two-sided t test tells from 0 with that power, given the difference's error.

    The noncentral t distribution is solved for its noncentrality (Cohen, Statistical Power Analysis, 1988): with n
    runs and a standard deviation s between paired differences the error is s / √n, with n − 1 degrees of freedom.

    Raises:
        InputError: the error is no number, or level or power no share.
    """
    from scipy.optimize import brentq
    from scipy.stats import nct, t

    for name, value in (("level", level), ("power", power)):
        if not 0 < value < 1:
            raise InputError(name, value, "give a share between 0 and 1")
    if power <= level:
        raise InputError("power", power, f"give one above the level, {level:g}")
    if not (math.isfinite(error) and error >= 0 and freedom >= 1):
        raise InputError("error", error, "needs two runs, or one with documents")
    critical = float(t.ppf(1 - level / 2, freedom))

    def lacking(noncentrality: float) -> float:
        # rejections on the wrong side are fewer than one in a million at any power above the level
        reached = float(nct.sf(critical, freedom, noncentrality))
        return (1.0 if math.isnan(reached) else reached) - power  # far out, where it is 1, scipy has no number

    return error * float(brentq(lacking, 0.0, 10 * critical + 10))


def runs_for(
    difference: float,
    spread: float,
    *,
    documents: float = 0.0,
    count: int = 0,
    shared: bool = True,
    level: float = 0.05,
    power: float = 0.8,
) -> int | None:
    """How many runs (seeds) tell such a difference; None where no number up to `MOST_RUNS` does.

    Args:
        spread: standard deviation between runs of the paired difference.
        documents: the error that the documents of one run leave by themselves.
        count: of these documents.
        shared: all runs have the same ones: no further run takes their error away.
    """
    if not difference > 0:
        raise InputError("difference", difference, "give one above 0")

    def enough(runs: int) -> bool:
        of_runs, of_documents = spread**2 / runs, documents**2 / (1 if shared else runs)
        freedom = freedom_of(of_documents, count, of_runs, runs)
        return detectable(math.sqrt(of_runs + of_documents), freedom, level=level, power=power) <= difference

    if not enough(MOST_RUNS):
        return None
    low, high = 1, MOST_RUNS  # one run says nothing of others
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
