"""Contrasts from a report's table, as they are told and drawn."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET

import pytest

from fortifai_core.charts.svg import with_line
from fortifai_core.outcomes.contrasts import Contrast
from fortifai_core.report.contrasts import contrast_rows, contrast_svg, contrast_table, contrasts_of, values_of

SVG = {"svg": "http://www.w3.org/2000/svg"}
GREEDY, THEIRS = Contrast("greedy", ("tce",), ("ce",)), Contrast("theirs", ("tce-theirs",), ("ce-theirs",))
BOTH = (GREEDY, THEIRS, Contrast("more", ("tce-theirs", "ce"), ("ce-theirs", "tce")))
# by arm: what each seed has above 60% in M1; perplexities are all 100, and 90 for TCE their way
RETENTION = {"ce": 0.0, "tce": 0.001, "ce-theirs": -0.2, "tce-theirs": 0.1}


def rows() -> list[dict[str, str]]:
    found = []
    for arm, more in RETENTION.items():
        for seed, noise in ((1, 0.0), (2, 0.001), (3, -0.001), (4, 0.0005)):
            own = noise if arm.startswith("tce") else 0.0
            for generation, metric, value in (
                (0, "kr-split-0", 0.8 + own),
                (1, "kr-split-0", 0.6 + more + own),
                (0, "perplexity-real", 50.0),
                (1, "perplexity-real", (90.0 if arm == "tce-theirs" else 100.0) * math.exp(own)),
                (1, "live-fraction", 0.5),
            ):
                one = {"arm": arm, "seed": str(seed), "generation": str(generation), "metric": metric}
                found.append({**one, "value": repr(value)})
        found.append({"arm": arm, "seed": "all", "generation": "1", "metric": "kr-split-0", "value": "0.0"})
    return found


def test_each_contrast_is_judged_in_the_last_generation_by_what_was_measured() -> None:
    found = contrasts_of(values_of(rows()), BOTH)
    told = {(one.arm, one.definition.measure): one for one in found}
    assert set(told) == {(c.name, m) for c in BOTH for m in ("kr-split-0", "log-perplexity-real")}  # no model KL here
    assert {one.at for one in found} == {1}
    assert told["greedy", "kr-split-0"].outcome == "equal"  # 0.1 points, and 5 are the margin
    assert told["theirs", "kr-split-0"].effect.value == pytest.approx(0.3, abs=1e-3)
    assert told["more", "kr-split-0"].outcome == "differs"
    ratio = told["theirs", "log-perplexity-real"]
    assert math.exp(ratio.effect.value) == pytest.approx(0.9, abs=1e-3) and ratio.outcome == "differs"
    # one correction for all six: the smallest p counts six times
    first = min(found, key=lambda one: one.effect.p_differs())
    assert first.p_differs == pytest.approx(min(1, 6 * first.effect.p_differs()))
    heads, _, (name, kept, perplexity), _ = contrast_rows(found)
    assert heads == ["", "retention of split 0, M1", "perplexity on held-out text, M1"]
    assert (name, kept) == ("theirs", "+30.0 points (+29.9 to +30.1): differs")
    assert perplexity.startswith("0.9× (0.899× to 0.901×)")
    table = contrast_table(found, BOTH)
    assert table.rows == 6 and "tce-theirs + ce − ce-theirs − tce" in str(table.columns)


def test_a_contrast_of_an_arm_that_is_not_there_is_left_out() -> None:
    assert contrasts_of(values_of([row for row in rows() if row["arm"] == "ce"]), BOTH) == ()
    assert contrasts_of(values_of([]), BOTH) == ()


def test_where_some_runs_were_stopped_what_all_still_have_is_judged_and_drawn() -> None:
    """Seed 1 of `tce` failed in M0: the difference in M1 would be that of the seeds that did well."""
    stopped = [row for row in rows() if (row["arm"], row["seed"], row["generation"]) != ("tce", "1", "1")]
    values = values_of([row for row in stopped if (row["arm"], row["metric"]) != ("ce", "kr-split-0")])
    found = contrasts_of(values, BOTH)
    told = [(one.arm, one.definition.measure, one.at) for one in found]
    assert told == [
        ("greedy", "log-perplexity-real", 0),
        ("theirs", "kr-split-0", 1),
        ("theirs", "log-perplexity-real", 1),
        ("more", "log-perplexity-real", 0),
    ]
    heads, greedy, theirs, _ = contrast_rows(found)
    perplexity = "perplexity on held-out text"
    assert heads == ["", f"{perplexity}, M0", "retention of split 0, M1", f"{perplexity}, M1"]
    assert [bool(cell) for cell in greedy] == [True, True, False, False]
    assert [bool(cell) for cell in theirs] == [True, False, True, True] and theirs[2].startswith("+30.0 points")
    drawn = ET.fromstring(contrast_svg(found, width=900, standalone=True))
    assert len(drawn.findall(".//svg:title", SVG)) == 4


def test_the_figure_shows_what_each_contrast_tells_and_on_what_it_rests() -> None:
    found = contrasts_of(values_of(rows()), BOTH)
    assert contrast_svg((), width=900) == ""
    plain = contrast_svg(found, width=900, standalone=True)
    before, after = ET.fromstring(plain), ET.fromstring(with_line(plain, "2 of 5 registered seeds"))
    assert "2 of 5 registered seeds" in [element.text for element in after]
    height = float(before.get("height", ""))
    assert (after.get("height"), after.get("viewBox")) == (f"{height + 22:g}", f"0 0 900 {height + 22:g}")
    papers = [element for element in after if element.get("class") == "paper"]
    assert [paper.get("height") for paper in papers] == [f"{height + 22:g}"] and len(after) == len(before) + 1
    marks = {
        tip.text: next(one for one in group if one.tag.endswith(("rect", "circle")))
        for group in before.iterfind("svg:g", SVG)
        if (tip := group.find("svg:title", SVG)) is not None
    }
    told = {(one.arm, one.definition.measure): one for one in found}
    assert len(marks) == len(told) == 6
    for words, kind in (
        ("greedy: +0.1 points", "label"),  # equal
        ("theirs: +30.0 points", "sound"),  # better: more is kept
        ("theirs: 0.9×", "sound"),  # better: less perplexity
    ):
        (mark,) = (mark for tip, mark in marks.items() if tip and tip.startswith(words))
        assert mark.get("class") == kind
        zeros = [float(line.get("x1", "")) for line in before.iterfind("svg:line[@class='zero']", SVG)]
        at = float(mark.get("cx") or float(mark.get("x", "")) + 5)
        assert (kind == "sound") == any(-250 < at - zero < -20 for zero in zeros)


def test_what_is_worse_lies_on_the_other_side_in_another_colour() -> None:
    worse = contrasts_of(values_of(rows()), (Contrast("back", ("ce-theirs",), ("tce-theirs",)),))
    assert {one.outcome for one in worse} == {"differs"}
    drawn = contrast_svg(worse, width=900)
    assert drawn.count('class="collapsed"') == 2 + 1 and drawn.count('class="sound"') == 1  # the legend's
