"""How things are written: once, and alike on the page, in figures, in the terminal and in the UI."""

from __future__ import annotations

import asyncio
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from fortifai_core.config.loss import CrossEntropyLoss, CustomLoss, FocalLoss, Loss, TruncatedCrossEntropyLoss
from fortifai_core.families.base import FamilyConfig, Generation, NoMask, Results, Run, ThresholdMask
from fortifai_core.families.gaussian.config import AdaptiveMask, GaussianConfig, NoisyEstimator, PredictedOptimumMask
from fortifai_core.families.images.config import (
    DiffusionConfig,
    DynamicIntersectionMask,
    DynamicQuantileMask,
    VaeConfig,
)
from fortifai_core.families.mixture.family import GmmConfig
from fortifai_core.families.registry import FamilyExperiment, draw
from fortifai_core.interval import Interval
from fortifai_core.report.data import ArmResult, GenerationResult, Report, ReportData, RunResult, Scores
from fortifai_core.report.family_analysis import FamilyReport
from fortifai_core.report.page import build_report
from fortifai_core.wording import arm_title, between_moments, duration, number, percent, plus_minus, points, span

DYNAMIC = [DynamicQuantileMask(), DynamicIntersectionMask()]
CLASSES: dict[str, tuple[FamilyConfig, list[Any], set[str]]] = {
    "gaussian": (
        GaussianConfig(samples=100, replicates=3),
        [NoMask(), ThresholdMask(), PredictedOptimumMask(), AdaptiveMask(), NoisyEstimator()],
        {"CE", "TCE 0.85", "TCE optimum", "TCE adaptive", "CE noisy multiplicative"},
    ),
    "gmm": (GmmConfig(), [NoMask(), ThresholdMask(gamma=0.8)], {"CE", "TCE 0.8"}),
    "vae": (
        VaeConfig(),
        [NoMask(), ThresholdMask(gamma=0.9), *DYNAMIC],
        {"ELBO", "TCE 0.9", f"Dynamic q{DynamicQuantileMask().label.removeprefix('dynamic-q')}", "Dynamic crossing"},
    ),
    "diffusion": (DiffusionConfig(), [NoMask(), ThresholdMask(gamma=0.9)], {"DDPM", "TCE 0.9"}),
}


class Rows(HTMLParser):
    """The headings of a page's table rows and columns."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.inside, self.headings = False, set[str]()
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.inside = self.inside or tag == "th"

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag != "th"

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.headings.add(data.strip())


def drawn_words(path: Path) -> set[str]:
    return {(word or "").strip() for word in ElementTree.parse(path).getroot().itertext()}


def shown_in(report: Report, folder: Path) -> tuple[set[str], set[str], set[str], set[str]]:
    """What page (rows and facts), charts and terminal call the arms."""
    contents, files = build_report(report, folder)
    text = (folder / "report.html").read_text()
    facts = re.search(r'<ul class="facts"><li>(.*?)</li>', text)
    assert facts
    charts = {word for path in files if path.suffix == ".svg" for word in drawn_words(path)}
    return Rows(text).headings, set(facts[1].split(" · ")), charts, set(contents.terminal.headers[1:])


def results(kind: str) -> Results:
    """Two seeds of each arm over three generations, with as much as the figures of this class need."""
    config, masks, _ = CLASSES[kind]
    experiment = FamilyExperiment(family=config, arms=masks)
    rng = np.random.default_rng(0)
    digits = rng.integers(0, 255, (40, 8, 8), dtype=np.uint8)
    points_ = {"x": rng.normal(size=(40, 2)), "label": np.repeat([0, 1], 20)}
    samples = {"gmm": points_, "diffusion": {"pixels": digits}}
    mixture = {"means": np.zeros((1, 1, 2)), "covariances": np.eye(2)[None, None]}
    chain = {"mean": rng.normal(size=3), "sigma": np.ones(3)}
    parameters = {"gaussian": chain, "gmm": mixture}.get(kind, {})
    runs = tuple(
        Run(
            arm,
            seed,
            tuple(
                Generation(g, {config.headline: 1.0 + g + seed, "gamma": 0.9}, samples.get(kind, {}), parameters)
                for g in range(3)
            ),
        )
        for arm in experiment.arm_labels
        for seed in (0, 1)
    )
    real = {**points_, "pixels": digits} if kind != "gaussian" else {}
    return Results(config, tuple(experiment.arm_labels), real, runs)


@pytest.mark.parametrize("kind", CLASSES)
def test_an_arm_of_any_model_class_has_one_name_on_page_figure_and_terminal(kind: str, tmp_path: Path) -> None:
    found, expected = results(kind), CLASSES[kind][2]
    figures = tuple(draw(found, tmp_path / "figures"))
    report = FamilyReport(kind, {"regime": "replace"}, f"fortifai run {kind}", {}, found, figures)
    rows, facts, charts, terminal = shown_in(report, tmp_path)
    assert facts == terminal == expected and rows >= expected and charts >= expected
    own = {word for figure in figures for word in drawn_words(next(p for p in figure.paths if p.suffix == ".svg"))}
    assert not figures or own >= expected, "the class's own figures"


LOSSES: list[tuple[Loss, str]] = [
    (CrossEntropyLoss(), "CE"),
    (TruncatedCrossEntropyLoss(gamma=0.9, denominator="live"), "TCE 0.9 live"),
    (FocalLoss(), "Focal 2"),
    (CustomLoss(function="m:f", name="my-loss"), "my-loss"),
]


def test_a_loss_has_one_name_on_page_figure_terminal_and_in_the_ui(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = [f"q{i}" for i in range(20)]

    def generation(g: int) -> GenerationResult:
        correct = [i % 20 < 17 - 3 * g for i in range(20)]
        return GenerationResult(g, Scores(questions, [f"d{i // 4}" for i in range(20)], [0] * 20, correct))

    run = RunResult(0, tuple(generation(g) for g in range(3)))
    arms = tuple(ArmResult(loss.label, (run,)) for loss, _ in LOSSES)
    report = ReportData("names", {"name": "names"}, "fortifai run names", {}, arms, draws=100)
    rows, facts, charts, terminal = shown_in(report, tmp_path)
    expected = {title for _, title in LOSSES}
    assert facts == terminal == expected and rows >= expected and charts >= expected
    assert {f"{title} · seed 1" for title in expected} == set(asyncio.run(_artifacts(monkeypatch)))


async def _artifacts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the artifacts in the Prefect UI call each run: the publisher itself, told of one generation."""
    from types import SimpleNamespace

    from fortifai_core.config.experiment import ExperimentConfig
    from tasks.engine import publish

    made: list[str] = []

    async def keep(*given: Any, description: str, **_: Any) -> None:
        assert given
        made.append(description)

    for name in ("acreate_markdown_artifact", "acreate_table_artifact", "acreate_image_artifact"):
        monkeypatch.setattr(publish, name, keep)
    monkeypatch.setattr(publish, "emit_event", lambda *_, **__: None)
    config = ExperimentConfig(name="names", losses=[loss for loss, _ in LOSSES], generations=1)
    evaluation = SimpleNamespace(reference=("evaluation", "0"), generation=0)
    plan = SimpleNamespace(config=config, shows="tasks.language.publish:show", before_of=lambda run: None)
    metrics = {evaluation.reference: {"metrics": {"kr-split-0": 0.9}}}
    store = SimpleNamespace(name="store", free_bytes=lambda: 1 << 40)
    running = SimpleNamespace(plan=plan, built=[], references=metrics, store=store)
    monkeypatch.setattr(publish, "current_session", lambda: running)
    step = SimpleNamespace(first=0, last=0, train=SimpleNamespace(key="0" * 64), measured=evaluation)
    for loss, _ in LOSSES:
        run = SimpleNamespace(arm=loss.label, seed=1, until=lambda last: [step])
        await publish.publish_generation.fn(run, step, {"status": "censored", "failed_in": -1})
    return [re.sub(r"^names · (.*?)(:.*)?$", r"\1", description) for description in made]


def test_numbers_are_written_one_way() -> None:
    assert [arm_title(x) for x in ("ce", "tce-0.9-live", "ddpm", "elbo", "mine-2")] == [
        "CE",
        "TCE 0.9 live",
        "DDPM",
        "ELBO",
        "mine-2",
    ]
    assert [number(v) for v in (0.0123456, -3.0, 4321.7, 1.84e-46)] == ["0.0123", "−3", "4,322", "1.84e−46"]
    assert [points(x) for x in (0.031, -0.004, -0.0001)] == ["+3.1", "−0.4", "0.0"]
    assert (percent(0.8416), duration(3.14), duration(185), duration(7800)) == (
        "84.2",
        "3.1 s",
        "3 min 05 s",
        "2 h 10 min",
    )
    kept = Interval(0.842, 0.811, 0.86)
    assert (plus_minus(kept), span(kept)) == ("84.2 ± 3.1", "81.1–86.0")
    nan, inf = float("nan"), float("inf")
    assert (plus_minus(Interval(0.5, nan, nan)), span(Interval(0.5, nan, nan))) == ("50.0", "no interval")
    ends = [between_moments(Interval(1, *pair)) for pair in ((0.631, 1.15), (0.63, inf), (inf, inf))]
    assert ends == ["0.63 to 1.15", "from 0.63 on", "no interval"]
