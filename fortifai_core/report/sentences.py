"""What an experiment on a language model says, in sentences that claim no more than the intervals allow."""

from __future__ import annotations

from fortifai_core.interval import Interval
from fortifai_core.report.analysis import Analysis, ArmSummary
from fortifai_core.report.data import ReportData
from fortifai_core.wording import percent, points, share


def headline(analysis: Analysis) -> list[str]:
    """Plain sentences that claim no more than the intervals allow."""
    data, arms = analysis.data, analysis.arms
    base = arms[0]
    judged = [] if data.by_retention else [_judged(data, arm) for arm in arms]
    if not base.split0:
        return ["There are no questions about split 0, so retention was not measured.", *judged]
    sentences = [_story(data, base), *judged]
    for other in arms[1:]:
        if other.differences:
            sentences.append(_comparison(other, base))
        else:
            sentences.append(f"{other.arm.title} shares no seed and question with {base.arm.title}.")
    return sentences


def _judged(data: ReportData, arm: ArmSummary) -> str:
    """When an arm failed, by a measure that has no interval of its own."""
    judged, title = data.judged, arm.arm.title
    rule = f"{judged.title} {judged.verb} {judged.level(data.threshold)}"
    if arm.failure is None:
        return f"Under {title}, {judged.title} was not measured, so nothing is said about failure."
    if arm.failure.status == "never-learned":
        side = "below" if judged.falls else "above"
        return f"Under {title}, {judged.title} was {side} {judged.level(data.threshold)} from the start."
    if arm.failure.status == "censored":
        return f"Under {title}, it was never seen that {rule}."
    return f"Under {title}, {rule} after {arm.failure.describe()} generations (no interval)."


def _story(data: ReportData, arm: ArmSummary) -> str:
    title, first, last = arm.arm.title, arm.split0[0], arm.split0[-1]
    final = f"M{len(arm.split0) - 1}"
    failure = arm.failure if data.by_retention else None
    if failure is not None and failure.status == "never-learned":
        guess = not first.low > data.chance
        return (
            f"Under {title}, M0 answered {share(first.estimate)} of the questions on split 0{_ends(first)}"
            + (f", not distinguishable from guessing ({share(data.chance)})" if guess else "")
            + f". That is below the failure threshold of {share(data.threshold)}: it never learned the split, "
            "and has no time to failure."
        )
    if arm.change is None:
        return f"Under {title}, M0 answered {share(first.estimate)} of the questions on split 0{_ends(first)}."
    ends = f"{share(first.estimate)} at M0 to {share(last.estimate)} at {final}"
    if arm.change.high < 0:
        story = f"Under {title}, retention of split 0 fell from {ends}"
    elif arm.change.low > 0:
        story = f"Under {title}, retention of split 0 rose from {ends}"
    else:
        return (
            f"Under {title}, retention of split 0 went from {ends} ({points(arm.change.estimate)} points, "
            f"{_between(arm.change)}): not distinguishable from no change at this size."
        )
    if failure is None:
        return f"{story}."
    if failure.status == "failed":
        when = f"{failure.describe()} generations"
        if arm.failure_interval is not None:
            when += f" ({share(data.level)} interval {arm.failure_interval.describe()})"
        return f"{story}; it first fell below {share(data.threshold)} after {when}."
    return f"{story}; it never fell below {share(data.threshold)}."


def _comparison(arm: ArmSummary, base: ArmSummary) -> str:
    gap, last = arm.differences[-1], len(arm.differences) - 1
    title, other = arm.arm.title, base.arm.title
    reached = min(arm.arm.generations, base.arm.generations) == max(arm.arm.generations, base.arm.generations)
    verb = "ended" if reached else f"stood, at M{last} (the last that both reached),"
    if last == 0 and reached:
        verb = "stood, at M0,"
    if points(gap.estimate) == "0.0":
        place = f"level with {other}"
    else:
        side = "above" if gap.estimate > 0 else "below"
        place = f"{points(gap.estimate)[1:]} points {side} {other}"
    claim = f"{title} {verb} {place} ({_between(gap)})"
    if not gap.excludes_zero:
        return f"{claim}: not distinguishable at this size."
    if gap.runs == 1:
        return f"{claim}: a difference on these questions, but one run cannot tell it from retraining noise."
    return f"{claim}: a difference over {gap.runs} runs."


def _between(interval: Interval) -> str:
    if not interval.known:
        return "no interval: one document"
    return f"{share(interval.level)} interval {points(interval.low)} to {points(interval.high)}"


def _ends(interval: Interval) -> str:
    """The interval of a share in brackets, or nothing where there is none."""
    if not interval.known:
        return ""
    return f" ({share(interval.level)} interval {percent(interval.low, 0)} to {share(interval.high)})"
