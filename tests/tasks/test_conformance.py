"""What the pipeline asks of every model class: the same bits again, however it is cut up, and whatever cut it off."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from flows.load import load_any_config, load_experiment_config
from flows.prepare import plan_for
from fortifai_core.config.stages import Runtime
from fortifai_core.errors import ConfigError
from fortifai_core.families.base import Arrays, Before, Fitted, Span
from fortifai_core.families.registry import MODEL_CLASSES, FamilyExperiment, family_from_config
from helpers import digests
from storage.store.store import Artifact, ArtifactStore
from storage.tables import parquet
from tasks.engine.build import build
from tasks.engine.plans import Plan
from tasks.engine.stages import Stage
from tasks.families.builders import read_metrics, read_models, read_sample
from tasks.families.journal import EVERY_SECONDS, Journal
from tasks.language.plan import Digests, plan_experiment

DIGITS = [
    "family.data={type: digits, test_fraction: 0.8}",
    "family.epochs=2",
    "family.batch_size=64",
    "family.classifier_epochs=1",
    "family.measured_images=100",
    "family.threshold_images=50",
]
# A configuration of every class that takes a second or two, and a gamma that masks something in it.
SMALL: dict[str, tuple[float, list[str]]] = {
    "gaussian": (0.8, ["family.samples=500", "family.replicates=7"]),
    "gmm": (0.8, ["family.data.samples=60", "family.components=2", "family.projections=8"]),
    "zipf": (0.05, ["family.vocabulary=60", "family.documents=20", "family.length=20"]),
    "vae": (0.8, [*DIGITS, "family.channels=4", "family.latent=3"]),
    "diffusion": (0.8, [*DIGITS, "family.hidden=16", "family.blocks=1", "family.steps=10"]),
}
GENERATIONS = 4
PLAIN = Runtime()
ONE_SEGMENT, TWO_A_SEGMENT = "family.segment=100", "family.segment=2"
# classes that draw inside know one regime
REGIMES = [
    (name, regime)
    for name, regime in product(MODEL_CLASSES, ("replace", "accumulate"))
    if regime == "replace" or not MODEL_CLASSES[name].config.draws_real_data
]
# measures that a configuration need not have
ABSENT = {"zipf": {"bigram-survival"}}


def quiet(_done: int, _total: int, _unit: str) -> None:
    """Progress that nobody looks at."""


def plan_of(name: str, *overrides: str) -> Plan:
    """Three arms of a class: none, a mask, and a mask that masks nothing."""
    gamma, small = SMALL[name]
    masks = f"arms=[{{type: none}}, {{type: threshold, gamma: {gamma}}}, {{type: threshold, gamma: 1}}]"
    common = [masks, "seeds=[1]", f"generations={GENERATIONS}", "failure=null", ONE_SEGMENT]
    return plan_for(load_any_config(name, [*small, *common, *overrides]))


def build_all(plan: Plan, store: ArtifactStore, runtime: Runtime = PLAIN) -> None:
    """Every stage but the report."""
    for stage in plan.stages():
        if stage.role != "report":
            build(stage, store, runtime, progress=quiet)


def bits(arrays: Arrays) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {name: (array.dtype.str, array.shape, array.tobytes()) for name, array in arrays.items()}


def generations(plan: Plan, store: ArtifactStore, arm: str) -> Iterator[tuple[str, Any, Any]]:
    """Measures (NaN as a word), sample and parameters of every generation of an arm, to the bit."""
    for step in plan.run(arm, 1).generations:
        artifact = found(store, step.train)
        metrics, models = read_metrics([artifact]), read_models(artifact)
        for i in range(step.first, step.last + 1):
            yield repr(sorted(metrics[i].items())), bits(read_sample(artifact, i)), bits(models[i])


def found(store: ArtifactStore, stage: Stage) -> Artifact:
    artifact = store.find(stage.kind, stage.key)
    assert artifact is not None, stage.label
    return artifact


@dataclass(frozen=True)
class Built:
    name: str
    plan: Plan
    store: ArtifactStore


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Built]:
    """An experiment of a class in a regime, built once and in one segment."""
    made: dict[tuple[str, str], Built] = {}

    def of(name: str, regime: str = "replace") -> Built:
        if (name, regime) not in made:
            store = ArtifactStore(tmp_path_factory.mktemp(f"{name}-{regime}") / "store")
            plan = plan_of(name, f"regime={regime}")
            build_all(plan, store)
            made[name, regime] = Built(name, plan, store)
        return made[name, regime]

    return of


def test_no_class_is_left_out() -> None:
    assert set(SMALL) == set(MODEL_CLASSES)
    for name, model_class in MODEL_CLASSES.items():
        assert model_class.config.model_fields["type"].default == name


@pytest.mark.parametrize("name", MODEL_CLASSES)
def test_a_second_time_it_makes_the_same_bits(built: Callable[..., Built], name: str, tmp_path: Path) -> None:
    first, again = built(name), ArtifactStore(tmp_path)
    build_all(first.plan, again)
    assert digests(again) == digests(first.store)


@pytest.mark.parametrize(("name", "regime"), REGIMES)
def test_how_many_generations_a_stage_makes_changes_nothing(
    built: Callable[..., Built], name: str, regime: str, tmp_path: Path
) -> None:
    whole, store = built(name, regime), ArtifactStore(tmp_path)
    parts = plan_of(name, f"regime={regime}", TWO_A_SEGMENT)
    build_all(parts, store)
    assert len(parts.runs[0].generations) > len(whole.plan.runs[0].generations)
    for run in whole.plan.runs:
        pairs = zip(generations(whole.plan, whole.store, run.arm), generations(parts, store, run.arm), strict=True)
        count = 0
        for (metrics, sample, parameters), (other_metrics, other_sample, other_parameters) in pairs:
            assert (metrics, sample) == (other_metrics, other_sample)
            # a state to go on from may be kept with the last generation of a stage alone
            both = parameters.keys() & other_parameters.keys()
            assert both and all(parameters[name] == other_parameters[name] for name in both)
            count += 1
        assert count == GENERATIONS


class Cut(Exception):
    """The process is gone."""


@pytest.mark.parametrize(("name", "regime"), REGIMES)
def test_cut_off_within_a_stage_it_goes_on_and_ends_with_the_same_bits(
    built: Callable[..., Built], name: str, regime: str, tmp_path: Path
) -> None:
    whole, store = built(name, regime), ArtifactStore(tmp_path)
    stage = whole.plan.runs[1].generations[-1].train
    first, last = whole.plan.runs[1].generations[-1].first, whole.plan.runs[1].generations[-1].last
    for before in whole.plan.stages():
        if before.reference in stage.parents.values():
            build(before, store, Runtime(), progress=quiet)
    count = last - first + 1
    assert count >= 3
    totals: list[int] = []

    def cutting(done: int, total: int, _unit: str) -> None:
        if not totals:
            time.sleep(EVERY_SECONDS)  # so long that the first generation is written down
        totals.append(total)
        if done * count > 2 * total:  # in the third one
            raise Cut

    with pytest.raises(Cut):
        build(stage, store, Runtime(), progress=cutting)
    assert store.find(*stage.reference) is None
    workspace = store.workspace(*stage.reference)
    resumable = family_from_config(whole.plan.config.family).resumable  # type: ignore[union-attr]
    kept = [made.generation for made in Journal(workspace, first=first, keep=resumable).made]
    assert kept == ([first] if resumable else [])

    rest: list[int] = []
    resumed, was_there = build(stage, store, Runtime(), progress=lambda _done, total, _unit: rest.append(total))
    assert not was_there and not workspace.exists()
    # what had been finished is not made again
    assert rest[0] * count == totals[0] * (count - len(kept))
    expected = {entry["name"]: entry["sha256"] for entry in found(whole.store, stage).manifest.files}
    assert {entry["name"]: entry["sha256"] for entry in resumed.manifest.files} == expected


@pytest.mark.parametrize("name", MODEL_CLASSES)
def test_a_mask_that_masks_nothing_is_no_mask_and_one_that_does_is_another_arm(
    built: Callable[..., Built], name: str
) -> None:
    whole = built(name)
    plain, masked, nothing = (list(generations(whole.plan, whole.store, run.arm)) for run in whole.plan.runs)
    assert nothing == plain
    assert all(one != other for one, other in zip(masked[1:], plain[1:], strict=True))


@pytest.mark.parametrize("name", MODEL_CLASSES)
def test_measures_are_finite_and_described(built: Callable[..., Built], name: str) -> None:
    whole = built(name)
    config = whole.plan.config
    assert isinstance(config, FamilyExperiment)
    described = config.family.measures
    assert config.family.headline in described and all(described.values())
    for run in whole.plan.runs:
        metrics = read_metrics(found(whole.store, step.train) for step in run.generations)
        assert sorted(metrics) == list(range(GENERATIONS))
        for of_generation in metrics.values():
            assert described.keys() - ABSENT.get(name, set()) <= of_generation.keys()
            assert all(math.isfinite(value) for value in of_generation.values())


@pytest.mark.parametrize("name", MODEL_CLASSES)
def test_every_measure_that_is_taken_is_described(name: str) -> None:
    """Those of the fit (its loss, its live fraction) need no words of the class's own."""
    config = plan_of(name).config
    assert isinstance(config, FamilyExperiment)
    family = family_from_config(config.family)
    real = family.real(seed=1) if isinstance(family, Fitted) else {}
    span = Span(0, 1, seed=1)
    taken = list(family.generations(span, mask=config.arms[0], real=real, before=Before(), progress=quiet))
    assert [made.generation for made in taken] == [0, 1]
    for made in taken:
        assert made.measures and made.measures.keys() <= config.family.measures.keys()
        assert not made.measures.keys() & made.fit.keys()
        assert made.fitted > 0 and made.drawn > 0


@pytest.mark.parametrize("name", MODEL_CLASSES)
def test_report_and_preview_are_drawn(built: Callable[..., Built], name: str) -> None:
    whole = built(name)
    report, _ = build(whole.plan.report(), whole.store, Runtime(), progress=quiet)
    pictures = [entry["name"] for entry in report.manifest.files if entry["name"].endswith((".svg", ".png"))]
    figures = sorted(path.removesuffix(".svg") for path in pictures if path.endswith(".svg"))
    assert figures and sorted(pictures) == sorted(f"{figure}.{kind}" for figure in figures for kind in ("svg", "png"))
    assert any(Path(figure).name.startswith(name) for figure in figures), (
        "the class's own, beside those of its measures"
    )
    for figure in figures:
        drawn = ElementTree.fromstring(report.file(f"{figure}.svg").read_text())
        assert drawn.tag.endswith("svg") and len(list(drawn.iter())) > 20
        assert_png(report.file(f"{figure}.png"))
    module = MODEL_CLASSES[name].figures()
    for step in whole.plan.runs[0].generations:
        segment = found(whole.store, step.train)
        listed = "preview.png" in {entry["name"] for entry in segment.manifest.files}
        assert listed == hasattr(module, "preview")
        if listed:
            assert_png(segment.file("preview.png"))


def assert_png(path: Path) -> None:
    """A picture that can be read and is not of one colour."""
    from matplotlib.image import imread

    pixels = imread(path)
    assert min(pixels.shape[:2]) > 50 and pixels[..., :3].std() > 0.01


@pytest.mark.parametrize("name", MODEL_CLASSES)
def test_what_accumulates_is_read_whole_where_a_class_may(built: Callable[..., Built], name: str) -> None:
    if (name, "accumulate") not in REGIMES:
        with pytest.raises(ConfigError, match="set replace"):
            plan_of(name, "regime=accumulate")
        return
    both = {regime: built(name, regime) for regime in ("replace", "accumulate")}
    counts: dict[str, list[int]] = {}
    for regime, whole in both.items():
        artifacts = [found(whole.store, step.train) for step in whole.plan.runs[0].generations]
        rows = [row for artifact in artifacts for row in parquet.read_rows(artifact.file("metrics.parquet"))]
        fitted = {row["generation"]: row["count"] for row in rows if row["metric"] == "live-fraction"}
        counts[regime] = [fitted[i] for i in range(GENERATIONS)]
    real, drawn = counts["replace"][:2]
    assert counts["replace"] == [real, *[drawn] * (GENERATIONS - 1)]
    assert counts["accumulate"] == [real + drawn * i for i in range(GENERATIONS)]


# ------------------------------------------------------------------------------------------- a language model

LANGUAGE = [
    "generations=2",
    "splits=2",
    "corpus.entities=5",
    "corpus.pretraining_entities=8",
    "model.pretraining_epochs=4",
    "training.epochs=4",
    "evaluation.drift_sample=300",
    "evaluation.base=true",
    "losses=[{type: cross-entropy}, {type: tce, gamma: 1}]",
]
# a checkpoint after every step, a part-file for every two blocks
OFTEN = Runtime(save_steps=1, shard_blocks=2)


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Built:
    store = ArtifactStore(tmp_path_factory.mktemp("language") / "store")
    plan = plan_experiment(load_experiment_config("smoke", LANGUAGE), Digests({}))
    build_all(plan, store, Runtime(shard_blocks=OFTEN.shard_blocks))
    return Built("smoke", plan, store)


def cut_off(done: int, total: int, unit: str) -> None:
    """Ends a training in its third step, and everything else when half of it is done."""
    if done > (2 if unit == "steps" else total / 2):
        raise Cut


def test_a_language_model_cut_off_within_every_stage_ends_with_the_same_bits(language: Built, tmp_path: Path) -> None:
    """Every training resumes from its checkpoint, every rewriting from its parts, and all else begins anew."""
    store, resumed, cut = ArtifactStore(tmp_path), 0, set[str]()
    for stage in language.plan.stages():
        if stage.role == "report":
            continue
        try:
            build(stage, store, OFTEN, progress=cut_off)
        except Cut:
            cut.add(stage.role)
        artifact, _ = build(stage, store, OFTEN, progress=quiet)
        resumed += bool(artifact.manifest.metrics.get("resumed-from"))
    assert cut >= {"base", "train", "regenerate"}
    assert resumed == sum(stage.kind == "model" for stage in language.plan.stages())
    assert digests(store) == digests(language.store)


def test_the_base_model_is_asked_about_every_split_and_the_report_says_so(language: Built) -> None:
    (asked,) = language.plan.before
    assert [run.data and run.data.reference for run in language.plan.runs] == [asked.parents["corpus"]] * 2
    questions = Counter(row["split"] for row in parquet.read_rows(found(language.store, asked).file("scores.parquet")))
    assert sorted(questions) == [0, 1]
    report, _ = build(language.plan.report(), language.store, Runtime(), progress=quiet)
    rows = parquet.read_rows(report.file("tables/results.parquet"))
    measured = {row["metric"]: row["value"] for row in rows if row["generation"] == -1 and row["arm"] == "ce"}
    metrics = found(language.store, asked).manifest.metrics
    assert measured == {name: pytest.approx(metrics[name]) for name in metrics} and len(metrics) == 4
    terminal = json.loads(report.file("table.json").read_text())
    assert terminal["rows"][0][0] == "M-1" and terminal["rows"][1][0] == "M0"
    share = f"{100 * metrics['kr-split-0']:.1f}"
    assert all(cell.startswith(share) for cell in terminal["rows"][0][1:])
    page = report.file("report.html").read_text()
    assert "Before any training" in page and ">M−1<" in page


def test_a_language_models_mask_that_masks_nothing_is_no_mask(language: Built) -> None:
    plain, nothing = language.plan.runs
    for one, other in zip(plain.generations, nothing.generations, strict=True):
        for a, b in zip(one.stages, other.stages, strict=True):
            assert a.role == b.role
            if a.role == "drift":  # the one with a gamma measures its live fraction besides
                continue
            same = [
                {entry["name"]: entry["sha256"] for entry in found(language.store, stage).manifest.files}
                for stage in (a, b)
            ]
            assert same[0] == same[1], a.label
        assert one.train.key != other.train.key
