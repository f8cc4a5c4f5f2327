"""The page of `fortifai watch`: one self-contained file, a chart and a table of each signal over a series of models."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from fortifai_core import wording
from fortifai_core.charts.chart import Chart, Point, Series
from fortifai_core.charts.palette import CHART_CSS, PALETTE
from fortifai_core.charts.svg import svg
from fortifai_core.report.templating import render_page
from fortifai_core.watch.signals import SIGNALS, Signal, Watched


def watch_page(probed: Sequence[tuple[str, Sequence[Watched]]], *, text: str) -> str:
    """The page as text.

    Args:
        probed: models in their order, the baseline first, each with its signals.
        text: the name of the held-out text.
    """
    sections = []
    for signal in SIGNALS:
        found = [(place, w) for place, (_, signals) in enumerate(probed) for w in signals if w.signal == signal]
        if found:
            drawn = svg(_chart(signal, found), width=680, height=240)
            sections.append({"signal": signal, "drawing": Markup(drawn), "rows": found})
    alerts = [(place, w) for place, (_, signals) in enumerate(probed) for w in signals if w.alert]
    return render_page(
        "watch.html",
        filters={"number": wording.number, "with_interval": wording.with_interval},
        config={},
        styles=Markup(PALETTE + CHART_CSS),
        models=[name for name, _ in probed],
        text=text,
        sections=sections,
        alerts=alerts,
    )


def _chart(signal: Signal, found: Sequence[tuple[int, Watched]]) -> Chart:
    points = tuple(Point.of(place, watched.value) for place, watched in found if math.isfinite(watched.value.estimate))
    limits = [_limit_of(watched) for _, watched in found]
    limit = next((value for value in limits if value is not None and math.isfinite(value)), None)
    return Chart(
        signal.title,
        (Series(signal.name, 0, points),),
        rule=None if limit is None else (limit, "limit"),
    )


def _limit_of(watched: Watched) -> float | None:
    """The limit as a value of the signal."""
    if watched.signal.by == "value":
        return watched.limit
    if watched.baseline is None:
        return None
    if watched.signal.by == "difference":
        return watched.baseline + watched.limit
    return watched.baseline * (1 + watched.limit)
