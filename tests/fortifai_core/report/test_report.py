"""The report: honest sentences, nothing fetched, nothing unescaped, quotations marked."""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from fortifai_core.charts.chart import Chart, Point, Series
from fortifai_core.charts.svg import svg
from fortifai_core.errors import InputError
from fortifai_core.outcomes.paper import paper_time_to_failure, read_results
from fortifai_core.report.analysis import analyse
from fortifai_core.report.contents import TerminalTable
from fortifai_core.report.data import ArmResult, GenerationResult, ReportData, RunResult, Scores
from fortifai_core.report.page import build_report as write_report
from fortifai_core.report.page import contents_of
from fortifai_core.wording import arm_title, points

RESULTS = Path(__file__).parents[3] / "storage" / "paper" / "results.csv"
DOCUMENTS, PER_DOCUMENT = 40, 5


def build_report(data: ReportData, folder: Path) -> list[Path]:
    return write_report(data, folder)[1]


def headline_of(data: ReportData) -> list[str]:
    return list(contents_of(data).headline)


def terminal_table(data: ReportData) -> TerminalTable:
    return contents_of(data).terminal


def run_of(seed: int, curve: list[float], *, salt: int = 0, documents: int = DOCUMENTS) -> RunResult:
    """A run whose retention of split 0 follows `curve`; the questions are equally hard for every arm."""
    hard = np.random.default_rng(seed).random((len(curve), documents * PER_DOCUMENT))
    own = np.random.default_rng([seed, salt, 1])
    generations = []
    for g, level in enumerate(curve):
        question, document, split, correct = [], [], [], []
        for k in range(g + 1):
            luck = np.where(own.random(hard.shape[1]) < 0.2, own.random(hard.shape[1]), hard[k])
            share = level if k == 0 else curve[g - k]
            for i, value in enumerate(luck):
                question.append(f"q{k}-{i}")
                document.append(f"d{k}-{i // PER_DOCUMENT}")
                split.append(k)
                correct.append(bool(value < share))
        scores = Scores(question, document, split, correct)
        seconds = {"train": 10.0 + g, "regenerate": 5.0}
        generations.append(
            GenerationResult(g, scores, 8.0 + g, {0: 0.1 * (g + 1)}, 0.4, 1000 * (g + 1), 1000 * g, seconds=seconds)
        )
    return RunResult(seed, tuple(generations))


def data_of(
    ce: list[float], tce: list[float] | None = None, *, seeds: int = 1, documents: int = DOCUMENTS
) -> ReportData:
    curves = {"ce": ce} if tce is None else {"ce": ce, "tce-0.9": tce}
    arms = [
        ArmResult(label, tuple(run_of(s, curve, salt=i, documents=documents) for s in range(seeds)))
        for i, (label, curve) in enumerate(curves.items())
    ]
    return ReportData(
        "tiny",
        {"name": "tiny", "splits": 3},
        "fortifai run tiny",
        {"hardware": "2 cores"},
        tuple(arms),
        draws=400,
    )


FALLING, SLOWER = [0.88, 0.8, 0.7, 0.6], [0.88, 0.86, 0.82, 0.78]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    quoted = [arm for arm in paper_time_to_failure(read_results(RESULTS)) if arm.table == "Table D2"]
    build_report(replace(data_of(FALLING, SLOWER), quoted=quoted, notes=("A ceiling of 80%.",)), folder)
    return folder


class Page(HTMLParser):
    """Collects tags, what they refer to, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        names = ("src", "href", "xlink:href", "srcset", "action", "data", "background")
        self.references += [value or "" for name, value in attributes if name in names]

    def handle_data(self, data: str) -> None:
        self.text += data


# ------------------------------------------------------------------------------------------ the sentences


def test_a_small_difference_is_called_not_distinguishable() -> None:
    headline = headline_of(data_of(FALLING, FALLING))
    assert headline[0].startswith("Under CE, retention of split 0 fell from")
    assert headline[1].endswith("not distinguishable at this size.")


def test_one_run_never_claims_more_than_its_questions() -> None:
    analysis, words = analyse(data_of(FALLING, SLOWER)), headline_of(data_of(FALLING, SLOWER))
    gap = analysis.arms[1].differences[-1]
    assert gap.excludes_zero and gap.estimate > 0
    assert "points above CE" in words[1]
    assert "one run cannot tell it from retraining noise" in words[1]
    assert analysis.scope == "questions of one run: does not cover retraining noise"
    several = data_of(FALLING, SLOWER, seeds=3)
    assert headline_of(several)[1].endswith("a difference over 3 runs.") and "3 runs" in analyse(several).scope


def test_harm_is_reported_as_plainly_as_help() -> None:
    headline = headline_of(data_of(SLOWER, FALLING, seeds=3))[1]
    assert "points below CE" in headline and "a difference over 3 runs" in headline


def test_no_change_and_never_learned_are_said() -> None:
    assert "not distinguishable from no change" in headline_of(data_of([0.85, 0.85]))[0]
    low = data_of([0.5, 0.5], [0.85, 0.7])
    assert "never learned" in headline_of(low)[0] and "not distinguishable from guessing" in headline_of(low)[0]
    assert analyse(low).arms[1].ratios["generations"].kind == "undefined"


def test_an_arm_that_never_failed_gives_a_bound_and_no_number() -> None:
    analysis = analyse(data_of(FALLING, [0.95, 0.94, 0.93, 0.92]))
    lasting = analysis.arms[1]
    assert lasting.failure.status == "censored" and lasting.failure.describe() == "> 3"
    assert lasting.ratios["generations"].describe().startswith("> ")


def test_the_baseline_comes_first_and_stopped_arms_are_compared_where_both_were() -> None:
    data = data_of(FALLING, SLOWER)
    ce, tce = data.arms
    short = ArmResult("ce", tuple(RunResult(run.seed, run.generations[:3]) for run in ce.runs))
    stopped = replace(data, arms=(tce, short))
    analysis = analyse(stopped)
    assert [arm.arm.label for arm in analysis.arms] == ["ce", "tce-0.9"]
    assert len(analysis.arms[1].differences) == 3 and len(analysis.arms[1].split0) == 4
    assert "at M2 (the last that both reached)" in headline_of(stopped)[1]


def test_arms_are_paired_by_question_not_by_row() -> None:
    data = data_of(FALLING, SLOWER)
    reversed_runs = []
    for run in data.arms[1].runs:
        turned = []
        for g in run.generations:
            s = g.scores
            scores = Scores(s.question[::-1], s.document[::-1], s.split[::-1], s.correct[::-1])
            turned.append(replace(g, scores=scores))
        reversed_runs.append(RunResult(run.seed, tuple(turned)))
    other = replace(data, arms=(data.arms[0], ArmResult("tce-0.9", tuple(reversed_runs))))
    assert analyse(other).arms[1].differences == analyse(data).arms[1].differences


# ------------------------------------------------------------------------------------------ the files


def test_the_page_fetches_nothing_and_runs_nothing(built: Path) -> None:
    text = (built / "report.html").read_text()
    page = Page(text)
    assert page.references == []
    assert not {"script", "link", "iframe", "img", "object", "base"} & set(page.tags)
    assert not re.search(r"url\(|@import|https?://", text)
    assert "default-src 'none'" in text
    assert "prefers-color-scheme:dark" in text and 'name="viewport"' in text


def test_everything_from_outside_is_escaped(tmp_path: Path) -> None:
    evil = '<script>alert("x")</script>'
    data = data_of(FALLING)
    arm = ArmResult(evil, data.arms[0].runs)
    quoted = [replace(paper_time_to_failure(read_results(RESULTS))[0], method=evil, model=evil)]
    hostile = replace(
        data,
        experiment=evil,
        config={"name": evil},
        command=evil,
        environment={evil: evil},
        arms=(arm,),
        notes=(evil,),
        quoted=quoted,
    )
    files = build_report(hostile, tmp_path)
    text = files[0].read_text()
    assert "<script" not in text and text.count("&lt;script&gt;") >= 8
    svg_file = (tmp_path / "figures" / "retention.svg").read_text()
    assert "<script" not in svg_file
    ElementTree.fromstring(svg_file)


def test_the_papers_numbers_are_marked_as_quoted(built: Path) -> None:
    text = (built / "report.html").read_text()
    start = text.index('class="quoted"')
    box = text[start : text.index("</section>", start)]
    assert "Quoted" in box and "quoted, not measured here" in box
    assert "1.69" in box and "(1.71×)" in box
    assert "1.71×" not in text[:start] and "Table D2" not in text[:start]


def test_notes_command_and_time_are_there(built: Path) -> None:
    text = Page((built / "report.html").read_text()).text
    for expected in (
        "A ceiling of 80%.",
        "fortifai run tiny",
        "times.html",
        "retraining noise",
    ):
        assert expected in text
    times = Page((built / "times.html").read_text()).text
    assert "where the time went" in times and "regenerate" in times


def test_only_the_times_differ_between_equal_runs_of_other_speed(tmp_path: Path) -> None:
    quick, slow = data_of(FALLING, SLOWER), data_of(FALLING, SLOWER)
    for arm in slow.arms:
        for run in arm.runs:
            for result in run.generations:
                result.seconds["train"] *= 3  # type: ignore[index]
    for name, data in (("quick", quick), ("slow", slow)):
        build_report(data, tmp_path / name)
    files = sorted(p.relative_to(tmp_path / "quick") for p in (tmp_path / "quick").rglob("*") if p.is_file())
    differ = [
        f.as_posix() for f in files if (tmp_path / "quick" / f).read_bytes() != (tmp_path / "slow" / f).read_bytes()
    ]
    assert differ == ["tables/times.csv", "times.html"]


def test_results_hold_every_number_and_their_means(built: Path) -> None:
    with (built / "tables" / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))

    def of(seed: str, metric: str, generation: int) -> dict[str, str]:
        (row,) = [
            r
            for r in rows
            if (r["arm"], r["seed"], r["metric"], r["generation"]) == ("ce", seed, metric, str(generation))
        ]
        return row

    for generation in range(4):
        mean = of("all", "kr-split-0", generation)
        assert float(mean["low"]) <= float(mean["value"]) <= float(mean["high"])
        assert float(mean["value"]) == pytest.approx(float(of("0", "kr-split-0", generation)["value"]))
    assert {"kr-split-3", "perplexity-real", "unigram-kl", "live-fraction"} <= {r["metric"] for r in rows}


def test_the_same_data_gives_the_same_files(tmp_path: Path) -> None:
    data = data_of(FALLING, SLOWER)
    one, two = build_report(data, tmp_path / "one"), build_report(data, tmp_path / "two")
    names = {str(f.relative_to(tmp_path / "one")) for f in one}
    assert {"report.html", "figures/retention.svg", "figures/retention.png", "tables/results.csv"} <= names
    assert {"figures/survival-strip.png", "figures/survival-strip-tce-0.9.svg", "tables/questions.csv"} <= names
    assert names == {str(f.relative_to(tmp_path / "one")) for f in (tmp_path / "one").rglob("*") if f.is_file()}
    assert [f.read_bytes() for f in one] == [f.read_bytes() for f in two]


def test_the_figure_is_an_image_of_its_own(built: Path) -> None:
    root = ElementTree.fromstring((built / "figures" / "retention.svg").read_text())
    assert root.tag == "{http://www.w3.org/2000/svg}svg" and root.get("width")
    assert (built / "figures" / "retention.png").read_bytes().startswith(b"\x89PNG")


# ------------------------------------------------------------------------------------------ little data


def test_a_report_without_questions_says_so_and_keeps_the_rest(tmp_path: Path) -> None:
    nothing = GenerationResult(0, Scores([], [], [], []), perplexity=9.5)
    data = replace(data_of(FALLING), arms=(ArmResult("ce", (RunResult(0, (nothing,)),)),))
    files = build_report(data, tmp_path)
    text = files[0].read_text()
    assert "retention was not measured" in text and "Perplexity" in text and "Time to failure" not in text
    names = {f.name for f in files}
    assert names == {"report.html", "perplexity.svg", "perplexity.png", "results.csv"}
    assert terminal_table(data).rows[0] == ["M0", "–"]


def test_one_document_gives_numbers_without_intervals(tmp_path: Path) -> None:
    data = data_of([0.9, 0.5], [0.9, 0.5], documents=1)
    text = build_report(data, tmp_path)[0].read_text()
    assert "no interval" in text and "nan" not in Page(text).text.lower()
    assert "±" not in terminal_table(data).rows[0][1]


def test_one_generation_is_a_report_too(tmp_path: Path) -> None:
    text = build_report(data_of([0.9], [0.9]), tmp_path)[0].read_text()
    assert "Under CE, M0 answered" in text


def test_malformed_results_are_refused() -> None:
    run = run_of(0, FALLING)
    with pytest.raises(InputError, match="without a gap"):
        RunResult(0, run.generations[1:])
    with pytest.raises(InputError, match="each seed once"):
        ArmResult("ce", (run, run))
    with pytest.raises(InputError, match="equally long"):
        Scores(["a"], ["d"], [0], [True, False])
    with pytest.raises(InputError, match="at least one arm"):
        replace(data_of(FALLING), arms=())


# ------------------------------------------------------------------------------------------ terminal, words


def test_terminal_table_has_a_row_a_generation_then_failure_and_differences() -> None:
    table = terminal_table(data_of(FALLING, SLOWER))
    assert table.headers == ["generation", "CE", "TCE 0.9"]
    assert [row[0] for row in table.rows[:4]] == ["M0", "M1", "M2", "M3"]
    assert all(len(row) == 3 for row in table.rows)
    assert re.fullmatch(r"\d+\.\d ± \d+\.\d", table.rows[0][1])
    assert table.rows[4][0] == "time to failure (75%)" and "[" in table.rows[4][1]
    assert re.fullmatch(r"[+−]\d+\.\d \[.* to .*\] at M3", table.rows[5][2])
    assert "does not cover retraining noise" in table.caption


def test_words() -> None:
    assert [arm_title(x) for x in ("ce", "tce-0.9", "tce-0.9-live", "focal-2", "mine")] == [
        "CE",
        "TCE 0.9",
        "TCE 0.9 live",
        "Focal 2",
        "mine",
    ]
    assert [points(x) for x in (0.031, -0.004, -0.0001)] == ["+3.1", "−0.4", "0.0"]


def test_names_and_marks_stay_inside_the_chart() -> None:
    rng = np.random.default_rng(0)
    for arms in (1, 3, 6):
        series = tuple(
            Series(f"Arm {i}", i, tuple(Point(x, 70 + rng.normal(), 60, 80) for x in range(6)), crossing=2.0)
            for i in range(arms)
        )
        chart = Chart("many arms", series, rule=(75, "failure"), unit="%")
        for width, height in ((820, 420), (372, 264)):
            root = ElementTree.fromstring(svg(chart, width=width, height=height))
            names = [t for t in root.iter("text") if (t.get("class") or "").startswith("name")]
            heights = sorted(float(t.get("y")) for t in names)
            assert len(names) == arms and all(b - a >= 15.9 for a, b in pairwise(heights))
            for text in root.iter("text"):
                assert 0 <= float(text.get("x")) <= width and 0 <= float(text.get("y")) <= height


def spans(drawn: str) -> list[tuple[str, str, float, float]]:
    """Kind, words, left and right end of every text, at 6.5 pixels a letter: digits of 12 px are hardly narrower."""
    found = []
    for one in ElementTree.fromstring(drawn).iter("text"):
        words, at = one.text or "", float(one.get("x", "nan"))
        left = at - {"start": 0.0, "middle": 0.5, "end": 1.0}[one.get("text-anchor", "")] * 6.5 * len(words)
        found.append((one.get("class", ""), words, left, left + 6.5 * len(words)))
    return found


@pytest.mark.parametrize("values", [(0.0, 0.0), (0.0388, 0.0395), (-1234567.0, 2345678.0), (0.0, 100.0)])
def test_numbers_names_and_generations_are_neither_cut_nor_run_together(values: tuple[float, float]) -> None:
    ends = tuple(Point(300 * i, value) for i, value in enumerate(values))
    chart = Chart("long", (Series("noisy-estimator", 0, ends), Series("CE", 1, ends)), unit="%")
    drawn = spans(svg(chart, width=372, height=264))
    assert all(left >= 0 and right <= 372 for _, _, left, right in drawn), drawn
    below = [(left, right) for _, words, left, right in drawn if words.startswith("M")]
    assert len(below) > 1 and all(a[1] < b[0] for a, b in pairwise(below))


# ------------------------------------------------------------------------------- drift, confidence, benchmarks


def histogram(**tokens: int) -> list[int]:
    """Counts over the drift stage's edges: `p090=3` puts three tokens into the bin that ends at 0.90."""
    from fortifai_core.measures.model_drift import EDGES

    places = {round(1000 * high): index for index, high in enumerate(EDGES[1:].tolist())}
    counts = [0] * (len(EDGES) - 1)
    for name, count in tokens.items():
        counts[places[10 * int(name[1:])]] += count
    return counts


def test_confidence_is_shown_in_tenths() -> None:
    from fortifai_core.report.token_confidence import shares

    found = shares(histogram(p001=1, p010=1, p011=2, p090=4, p091=1, p100=11))
    assert found == pytest.approx([0.1, 0.1, 0, 0, 0, 0, 0, 0, 0.2, 0.6])
    with pytest.raises(ValueError, match="7 bins"):
        shares([1] * 7)


def measured(data: ReportData) -> ReportData:
    """The same data with drift, confidence and a benchmark in every generation."""

    def with_drift(result: GenerationResult) -> GenerationResult:
        texts = [(who, text) for who in ("base", "generation") for text in ("real", "seen", "self")]
        return replace(
            result,
            drift={
                "model-kl": 0.1 * result.generation,
                "facts-true-0": 0.9,
                "tail-types-kept-0": 0.8,
                "self-bleu-0": 0.3,
            },
            confidence={key: histogram(p010=5, p095=5 + result.generation) for key in texts},
            benchmarks={"blimp:acc": 0.625},
        )

    arms = [
        replace(arm, runs=tuple(replace(r, generations=tuple(map(with_drift, r.generations))) for r in arm.runs))
        for arm in data.arms
    ]
    return replace(data, arms=tuple(arms))


def test_drift_confidence_and_benchmarks_are_in_page_and_table(tmp_path: Path) -> None:
    data = data_of(FALLING, SLOWER)
    build_report(data, tmp_path / "without")
    without = (tmp_path / "without" / "report.html").read_text()
    build_report(measured(data), tmp_path / "with")
    page = (tmp_path / "with" / "report.html").read_text()
    for words in ("Fact survival", "Model KL", "How sure the models are", "blimp:acc", "62.5%"):
        assert words in page and words not in without
    panels = page.split('<svg class="chart confidence"')[1:]
    assert len(panels) == 2, "one figure an arm"
    for panel in panels:
        figure = ElementTree.fromstring('<svg class="chart confidence"' + panel.partition("</svg>")[0] + "</svg>")
        tips = [title.text or "" for title in figure.iter("title")]
        # three texts, each with M0, base model and M3: 5 of 10 tokens above 0.9, 8 of 13 at M3
        assert len(tips) == 9 and sum("50%" in tip for tip in tips) == 3 and sum("62%" in tip for tip in tips) == 6
    with (tmp_path / "with" / "tables" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    kl = [(row["generation"], row["split"], float(row["value"])) for row in rows if row["metric"] == "model-kl"]
    assert ("3", "", pytest.approx(0.3)) in kl
    assert [row["split"] for row in rows if row["metric"] == "self-bleu"] == ["0"] * 8
    assert len([row for row in rows if row["metric"] == "blimp:acc"]) == 8


def test_mcnemars_test_of_the_same_questions_is_in_the_table(tmp_path: Path) -> None:
    from scipy.stats import binomtest

    data = data_of(FALLING, SLOWER)
    build_report(data, tmp_path)
    answers = [arm.runs[0].generations[-1].scores.of(0) for arm in data.arms]
    gaps = [answers[1][q][1] - answers[0][q][1] for q in answers[0]]
    alone, other = gaps.count(1), gaps.count(-1)
    with (tmp_path / "tables" / "results.csv").open() as file:
        rows = {row["metric"]: row for row in csv.DictReader(file) if row["metric"].startswith("mcnemar")}
    assert {row["arm"] for row in rows.values()} == {"tce-0.9"} and rows["mcnemar-p"]["generation"] == "3"
    assert [float(rows[f"mcnemar-only-{who}"]["value"]) for who in ("this-arm", "baseline")] == [alone, other]
    assert float(rows["mcnemar-p"]["value"]) == pytest.approx(binomtest(alone, alone + other).pvalue)


# ------------------------------------------------------------------------- the strip, the paragraph, the paper, failure


def test_the_strip_orders_questions_by_death_and_keeps_every_answer() -> None:
    from fortifai_core.report.survival_strip import fates, strip_of

    arm = data_of(FALLING).arms[0]
    strip = strip_of(arm, 0, bins=10**6)  # a bin a question
    assert strip is not None and strip.generations == 4
    for band in strip.bands:
        own = [one for one in fates(arm) if one.split == band.split]
        assert band.questions == len(own) == len(band.rows[0])
        for generation, row in enumerate(band.rows):
            if generation < band.split:  # not yet asked: blank, neither right nor wrong
                assert set(row) == {None}
            else:
                assert sum(row) == sum(one.answers[generation - band.split] for one in own)
        last = [max((g for g, row in enumerate(band.rows) if row[i]), default=-1) for i in range(band.questions)]
        assert last == sorted(last, reverse=True)
    # binned, the shares still add up
    few = strip_of(arm, 0, bins=40)
    assert few is not None and sum(len(band.rows[0]) for band in few.bands) == 40
    first = few.bands[0]
    assert np.mean(first.rows[2]) == pytest.approx(np.mean(strip.bands[0].rows[2]))


def test_when_a_question_died() -> None:
    from fortifai_core.report.survival_strip import Fate

    def of(*answers: bool) -> tuple[str, int | None]:
        fate = Fate(0, "q", "d", 1, 1, answers)
        return fate.fate, fate.died_in

    assert of(True, True) == ("alive", None) and of(False, True) == ("alive", None)
    assert of(True, False, False) == ("died", 2) and of(True, True, False) == ("died", 3)
    assert of(False, False) == ("never learned", None)


def mutated(text: str) -> tuple[Any, ...]:
    from fortifai_core.corpus.almanac.world import Entity, Fact
    from fortifai_core.measures.mutation import Mutation, Version

    real = "By all accounts Ardenlith was founded in 1340. Nobody knows more."
    entity = Entity("split-0-0", "Ardenlith", "city", (Fact("founded", "1340", (0,)),))
    versions = (Version(None, real), Version(0, real.replace("1340", "1840")), Version(1, text))
    return tuple(Mutation("split-0-0", label, 0, versions, entity=entity) for label in ("ce", "tce-0.9"))


def test_the_paragraph_shows_changes_and_false_facts_and_escapes_the_models_text(tmp_path: Path) -> None:
    evil = '<script>alert("x")</script> <b>Ardenlith</b>'
    build_report(replace(data_of(FALLING, SLOWER), mutations=mutated(evil)), tmp_path)
    text = (tmp_path / "report.html").read_text()
    section = text[text.index("How one paragraph mutates") : text.index("Time to failure</h2>")]
    assert section.count('<mark class="false">1840</mark>') == 2, "once in each arm"
    assert section.count('<span class="true">1340</span>') == 1, "the real text stands there once"
    assert "the first document of split 0 that questions are asked about" in section.lower()
    assert "0 true, 1 false, 0 gone" in section and "0 true, 0 false, 1 gone" in section
    assert "<script" not in text and "<b>Ardenlith" not in text and "&lt;b" in section
    with (tmp_path / "tables" / "mutation.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["text"] for row in rows if row["version"] == "2"] == [evil, evil]


def test_the_papers_table_for_the_same_text_stands_beside_the_measured_one(tmp_path: Path) -> None:
    quoted = paper_time_to_failure(read_results(RESULTS))
    wikitext = {"type": "huggingface", "dataset": "Salesforce/wikitext"}
    mixture = {"parts": [wikitext, {"dataset": "Rowan/hellaswag"}, {"dataset": "openai/gsm8k"}]}
    pages = {}
    for name, corpus in (("wikitext", wikitext), ("imagination", mixture), ("almanac", {"type": "almanac"})):
        data = replace(data_of(FALLING, SLOWER), config={"corpus": corpus}, quoted=quoted)
        text = build_report(data, tmp_path / name)[0].read_text()
        pages[name] = text[text.index("Beside the paper") : text.index("To make this again")]
    assert "measured here" in pages["wikitext"] and "Table D2" in pages["wikitext"] and "Table D3" in pages["wikitext"]
    assert "Table D4" not in pages["wikitext"] and "Table D4" in pages["imagination"]
    # rows of one loss stand together: measured, then quoted
    first = [pages["wikitext"].index(words) for words in ("measured here", "Table D2", "Table D3")]
    assert first == sorted(first)
    assert "measured here" not in pages["almanac"].replace("not measured here", "")
    assert "has no experiment on this text" in pages["almanac"] and "Quoted" in pages["almanac"]


def test_several_runs_get_a_survival_estimate_and_two_do_not() -> None:
    three, two = analyse(data_of(FALLING, SLOWER, seeds=3)), analyse(data_of(FALLING, SLOWER, seeds=2))
    assert all(arm.runs.survival is None for arm in two.arms)
    found = three.arms[0].runs.survival
    moments = [one.generations for one in three.arms[0].runs.by_seed.values()]
    assert found is not None and found.failed == 3
    assert found.restricted_mean.estimate == pytest.approx(np.mean(moments))
    assert found.median.estimate == pytest.approx(sorted(moments)[1])


def test_failure_may_be_judged_by_another_measure(tmp_path: Path) -> None:
    # perplexity is 8, 9, 10, 11
    data = replace(data_of(FALLING, SLOWER, seeds=3), metric="perplexity-real", threshold=9.5)
    analysis = analyse(data)
    assert [arm.failure.describe() for arm in analysis.arms] == ["1.50", "1.50"]
    assert analysis.arms[0].runs.survival.failed == 3 and analysis.arms[0].failure_interval is None
    assert any("perplexity on held-out real text rose above 9.5 after 1.50" in line for line in headline_of(data))
    text = build_report(data, tmp_path)[0].read_text()
    assert "rises above 9.5" in text and "75%: failure" not in text
    assert "time to failure (perplexity-real > 9.5)" in [row[0] for row in terminal_table(data).rows]


def test_a_run_that_was_stopped_at_its_failure_leaves_the_others_their_own_times() -> None:
    """By hand: below 75% after 0.75, 2.5 and 3.5 generations, each run stopped where it failed."""
    curves = ([0.9, 0.7], [0.9, 0.85, 0.8, 0.7], [0.9, 0.88, 0.84, 0.8, 0.7])
    base = data_of(FALLING, SLOWER)
    result = base.arms[0].runs[0].generations[0]
    runs = tuple(
        RunResult(seed, tuple(replace(result, generation=g, drift={"facts-true-0": v}) for g, v in enumerate(curve)))
        for seed, curve in enumerate(curves)
    )
    data = replace(base, arms=(ArmResult("ce", runs),), metric="facts-true-0", threshold=0.75)
    failures = analyse(data).arms[0].runs
    assert [round(one.generations or 0, 9) for one in failures.by_seed.values()] == [0.75, 2.5, 3.5]
    assert failures.failed == 3 and failures.survival is not None and failures.survival.horizon == 4
    assert failures.survival.restricted_mean.estimate == pytest.approx((0.75 + 2.5 + 3.5) / 3)
