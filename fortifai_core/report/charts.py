"""The charts of a language model's report, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fortifai_core.charts.chart import Chart, Point, Series
from fortifai_core.interval import Interval
from fortifai_core.report.analysis import Analysis, ArmSummary
from fortifai_core.report.survival_strip import Strip, strip_of
from fortifai_core.wording import share


def retention_chart(analysis: Analysis) -> Chart:
    """Retention of split 0 with intervals, the failure threshold, and where each mean curve crosses it."""
    data = analysis.data

    def crossing(arm: ArmSummary) -> float | None:
        return arm.failure.generations if data.by_retention and arm.failure is not None else None

    return Chart(
        "Retention of split 0 after each generation, per arm",
        _series(analysis, lambda arm: _base(arm) + _percents(arm.split0), crossing),
        unit="%",
        rule=(100 * data.threshold, f"{share(data.threshold)}: failure") if data.by_retention else None,
        floor=100 * data.chance,
        ceiling=100 * data.threshold + 5 if data.by_retention else None,
    )


def small_charts(analysis: Analysis) -> dict[str, Chart]:
    """Every other chart, by name; some may be without data."""

    def curves(values: Callable[[ArmSummary], Sequence[float | None]], scale: float = 1.0) -> tuple[Series, ...]:
        return _series(
            analysis, lambda arm: tuple(Point(x, scale * y) for x, y in enumerate(values(arm)) if y is not None)
        )

    def drift(name: str, scale: float = 1.0) -> tuple[Series, ...]:
        return curves(lambda arm: arm.drift.get(name, ()), scale)

    named = dict.fromkeys(name for arm in analysis.arms for name in arm.benchmarks)
    benchmarks = {
        f"benchmark {name}": Chart(
            f"{name} after each generation",
            curves(lambda arm, name=name: arm.benchmarks.get(name, ())),  # type: ignore[misc]
        )
        for name in named
    }
    gaps = _series(analysis, lambda arm: _percents(arm.differences))
    totals = _series(analysis, lambda arm: _percents(arm.total))
    kept, live = drift("tail-types-kept-0", 100), curves(lambda arm: arm.live_fraction, 100)
    between = f"Difference to {analysis.baseline} in points"
    return {
        "runs": _runs_chart(analysis),
        **benchmarks,
        "model_kl": Chart("Model KL from M0 on held-out real text", drift("model-kl"), floor=0),
        "facts": Chart("Facts of split 0 still stated truly", drift("facts-true-0", 100), unit="%", floor=0),
        "tail": Chart("Rare words of split 0 still in use", kept, unit="%", floor=0, ceiling=100),
        "self_bleu": Chart("Self-BLEU of split 0's newest text", drift("self-bleu-0")),
        "difference": Chart(between, gaps, style="dots", signed=True, floor=-2, ceiling=2),
        "total": Chart("Retention over all splits seen", totals, unit="%", floor=100 * analysis.data.chance),
        "perplexity": Chart("Perplexity on held-out real text", _series(analysis, _perplexity)),
        "kl": Chart(
            "Unigram KL of split 0's newest text against the real one", curves(lambda arm: arm.unigram_kl), floor=0
        ),
        "live": Chart("Share of live tokens", live, unit="%", floor=0, ceiling=100),
    }


def _series(
    analysis: Analysis,
    points: Callable[[ArmSummary], tuple[Point, ...]],
    crossing: Callable[[ArmSummary], float | None] = lambda arm: None,
) -> tuple[Series, ...]:
    """One series an arm that has points."""
    drawn = (
        Series(arm.arm.title, place, points(arm), crossing=crossing(arm)) for place, arm in enumerate(analysis.arms)
    )
    return tuple(series for series in drawn if series.points)


def _base(arm: ArmSummary) -> tuple[Point, ...]:
    """M_-1 on split 0, where it was asked."""
    return (Point.of(-1, arm.before[0], scale=100),) if 0 in arm.before else ()


def _perplexity(arm: ArmSummary) -> tuple[Point, ...]:
    values = enumerate((arm.perplexity_before, *arm.perplexity), start=-1)
    return tuple(Point(generation, value) for generation, value in values if value is not None)


def _percents(values: Sequence[Interval]) -> tuple[Point, ...]:
    return tuple(Point.of(generation, value, scale=100) for generation, value in enumerate(values))


def _runs_chart(analysis: Analysis) -> Chart:
    """The Kaplan-Meier curve of each arm's runs, as a staircase."""

    def stairs(arm: ArmSummary) -> tuple[Point, ...]:
        if arm.runs.survival is None:
            return ()
        points = [Point(0, 100, 100, 100)]
        for step in arm.runs.survival.steps:
            before = points[-1]
            points.append(Point(step.time, before.y, before.low, before.high))
            # at 0 the curve ends, and the formula has no interval
            points.append(
                Point.of(step.time, step.share, scale=100) if step.share.estimate > 0 else Point(step.time, 0)
            )
        end, horizon = points[-1], arm.runs.survival.horizon
        if end.y > 0 and horizon > end.x:
            points.append(Point(horizon, end.y, end.low, end.high))
        return tuple(points)

    title = "Share of the runs that have not failed, by generation"
    return Chart(title, _series(analysis, stairs), unit="%", floor=0, ceiling=100, marks=False)


def strips(analysis: Analysis, *, bins: int) -> list[Strip]:
    """The survival strip of every arm that answered questions."""
    drawn = (strip_of(arm.arm, i, bins=bins) for i, arm in enumerate(analysis.arms))
    return [strip for strip in drawn if strip is not None]
