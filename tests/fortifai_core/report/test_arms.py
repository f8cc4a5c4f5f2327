"""Arms by name in a report: a line each on the page, a row each in the terminal, effort by each one's own regime."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from fortifai_core.charts.chart import Chart, Point, Series
from fortifai_core.charts.palette import ARMS, ARMS_DARK, DARK, LIGHT
from fortifai_core.charts.png import png
from fortifai_core.charts.svg import svg
from fortifai_core.config.stages import Mixture, Regime
from fortifai_core.report.analysis import analyse
from fortifai_core.report.data import ArmResult, GenerationResult, ReportData, RunResult, Scores
from fortifai_core.report.page import build_report, contents_of

LABELS = ("ce", "tce-0.9", "half", "accumulate", "short")


def run_of(rights: list[int]) -> RunResult:
    """One run that answers so many of eight questions about split 0 rightly."""
    names, documents = [f"q{i}" for i in range(8)], [f"d{i // 2}" for i in range(8)]
    scores = [Scores(names, documents, [0] * 8, [i < right for i in range(8)]) for right in rights]
    return RunResult(0, tuple(GenerationResult(g, one) for g, one in enumerate(scores)))


def data_of(labels: tuple[str, ...] = LABELS) -> ReportData:
    arms = tuple(ArmResult(label, (run_of([8, 7, 4]),)) for label in labels)
    differences = {label: "" if label == "ce" else f"training.epochs 3 <of {label}>" for label in labels}
    return ReportData("mine", {}, "fortifai run mine", {}, arms, draws=100, differences=differences)


def test_the_page_says_of_each_arm_how_it_differs(tmp_path: Path) -> None:
    build_report(data_of(), tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "The arms" in page and "it is the first" in page
    assert page.count("training.epochs 3 &lt;of ") == len(LABELS) - 1


def test_without_names_there_is_no_such_list(tmp_path: Path) -> None:
    build_report(replace(data_of(), differences={}), tmp_path)
    assert "The arms" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_many_arms_have_a_row_each_in_the_terminal() -> None:
    table = contents_of(data_of()).terminal
    assert [row[0] for row in table.rows] == ["CE", "TCE 0.9", "half", "accumulate", "short"]
    assert table.headers == ["arm", "M0", "M2", "time to failure (75%)", "difference to CE"]
    assert all(len(row) == len(table.headers) for row in table.rows)
    few = contents_of(data_of(LABELS[:2])).terminal
    assert few.headers == ["generation", "CE", "TCE 0.9"]


def test_a_dozen_arms_look_different_and_are_seen_on_either_paper(tmp_path: Path) -> None:
    """At least 3 to 1, by WCAG 2's contrast; the curves also where colours are not seen."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    for paper, arms in ((LIGHT["paper"], ARMS), (DARK["paper"], ARMS_DARK)):
        assert len(set(arms)) == 12
        for arm in arms:
            dark, light = sorted(map(luminance, (paper, arm)))
            assert (light + 0.05) / (dark + 0.05) >= 3, arm
    labels = [f"arm-{i}" for i in range(12)]
    points = (Point(0, 1.0), Point(1, 0.5))
    chart = Chart("twelve", tuple(Series(label, i, points) for i, label in enumerate(labels)))
    drawing = svg(chart, width=600, height=300)
    curves = re.findall(r'<polyline class="curve (later )?(c\d+)"', drawing)
    shapes = re.findall(r"</title><(circle|polygon points=)", drawing)[::2]
    assert len(set(curves)) == 12 and len(shapes) == 12 and shapes.count("circle") == 2
    standalone = svg(chart, width=600, height=300, standalone=True)
    png([("", standalone)], tmp_path / "twelve.png", title="twelve")  # every class has its colour there too


def test_effort_is_counted_by_what_each_arm_reads() -> None:
    """All fall below 75% at 1 + (7 − 6) / (7 − 4) = 4/3 generations; what they have read by then differs."""
    readings = (None, Regime.REPLACE, Mixture(synthetic=0.5, real="original"), Regime.ACCUMULATE)
    data = data_of(LABELS[:4])
    arms = tuple(replace(arm, reading=reading) for arm, reading in zip(data.arms, readings, strict=True))
    failures = [arm.failure for arm in analyse(replace(data, arms=arms)).arms]
    found = [(one.value("generations"), one.value("retraining_splits")) for one in failures if one is not None]
    assert [round(generations or 0, 6) for generations, _ in found] == [round(4 / 3, 6)] * 4
    # M_1 read 2, 1, 1, 2 splits, M_2 3, 1, 1, 3
    assert [round(splits or 0, 6) for _, splits in found] == [3, round(4 / 3, 6), round(4 / 3, 6), 3]


def test_of_more_bands_than_can_be_told_apart_the_first_is_drawn(tmp_path: Path) -> None:
    points = tuple(Point(x, 0.5, 0.4, 0.6) for x in range(3))

    def bands(arms: int) -> int:
        series = tuple(Series(f"arm-{i}", i, points) for i in range(arms))
        return svg(Chart("many", series), width=400, height=300).count('class="band ')

    assert [bands(arms) for arms in (1, 6, 7, 12)] == [1, 6, 1, 1]
    for count, said in ((6, False), (7, True)):
        build_report(data_of(tuple(f"arm-{i}" for i in range(count))), tmp_path / str(count))
        page = (tmp_path / str(count) / "report.html").read_text(encoding="utf-8")
        assert ("of many arms, the first one’s alone" in page) == said
