"""A gamma that each generation chooses: by the confidence gap, and by the balance of sampling and masking."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from flows.load import load_experiment_config
from fortifai_core.config.loss import TruncatedCrossEntropyLoss
from fortifai_core.config.stages import Runtime
from fortifai_core.errors import ConfigError
from fortifai_core.outcomes import balance
from storage.store.store import Artifact, ArtifactStore
from storage.tables import parquet
from tasks.engine.build import build
from tasks.engine.plans import Plan
from tasks.language import gamma
from tasks.language.plan import Digests, plan_experiment

SMALLEST = [
    "generations=3",
    "splits=3",
    "corpus.entities=5",
    "corpus.pretraining_entities=8",
    "model.pretraining_epochs=1",
    "training.epochs=1",
    "evaluation.drift_sample=300",
    "evaluation.perplexity=false",
]
ADAPTIVE = "losses=[{type: tce-gap}, {type: tce-balance, low: 0.2}]"


def planned(*overrides: str) -> Plan:
    return plan_experiment(load_experiment_config("smoke", [*SMALLEST, *overrides]), Digests({}))


Trained = dict[tuple[str, int], Artifact]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[ArtifactStore, Plan, Trained]:
    """Every model, by arm and generation."""
    store, plan = ArtifactStore(tmp_path_factory.mktemp("gamma") / "store"), planned(ADAPTIVE)
    models = {}
    for one in plan.stages():
        if one.role in ("evaluate", "failure", "drift", "report"):
            continue
        made = build(one, store, Runtime(), progress=lambda *_: None)[0]
        if one.role == "train":
            models[one.arm, one.generation or 0] = made
    # M_0 is one model of both
    return store, plan, {**{(run.arm, 0): models["tce-gap", 0] for run in plan.runs}, **models}


def test_what_reads_real_text_alone_is_trained_by_cross_entropy_and_shared(
    trained: tuple[ArtifactStore, Plan, Trained],
) -> None:
    _, plan, models = trained
    assert len({run.generations[0].train.key for run in plan.runs}) == 1
    assert len({run.generations[1].train.key for run in plan.runs}) == 2
    assert "gamma" not in models["tce-gap", 0].manifest.metrics


def test_the_gap_is_measured_by_the_model_before_on_what_the_next_one_reads(
    trained: tuple[ArtifactStore, Plan, Trained],
) -> None:
    from fortifai_core.measures.model_drift import gap_gamma, target_log_probabilities, windows
    from storage.tables.models import load_model

    store, plan, models = trained
    (run,) = [run for run in plan.runs if run.arm == "tce-gap"]
    for i in (1, 2):
        spec = run.generations[i].train.spec
        before = load_model(models["tce-gap", i - 1].path)
        found: dict[bool, list[Any]] = {True: [], False: []}
        for text in spec.text:
            artifact = store.find(*(text.artifact or spec.corpus))
            assert artifact is not None
            names = f"split-{text.split:05d}.parquet" if text.artifact is None else "part-*.parquet"
            found[text.artifact is None] += parquet.iter_column(artifact.files(names), "tokens")
        length = spec.training.sequence_length
        logs = {
            real: target_log_probabilities(before, list(windows(tokens, length)), batch=4)
            for real, tokens in found.items()
        }
        told = models["tce-gap", i].manifest.metrics["gamma"]
        assert told == gap_gamma(logs[False], logs[True]) and 0 < told <= 1


def test_the_controller_hands_its_state_from_one_generation_to_the_next(
    trained: tuple[ArtifactStore, Plan, Trained],
) -> None:
    _, _, models = trained
    assert not models["tce-balance-low-0.2", 0].has(gamma.STATE)
    settings = balance.BalanceSettings(start=0.9, low=0.2, rate=1.0, restore=0.5)
    state = balance.start(settings)
    for i in (1, 2):
        artifact = models["tce-balance-low-0.2", i]
        told = artifact.manifest.metrics
        assert told["gamma"] == float(state.gamma)
        assert 0.2 < told["contraction"] < 5 and 0.1 < told["amplification"] < 5
        seen = {name: told[name] for name in ("contraction", "amplification")}
        state = balance.observe(settings, state, **seen)
        kept = json.loads(artifact.file(gamma.STATE).read_text())
        assert kept == pytest.approx({name: value.tolist() for name, value in state.arrays().items()})
    assert models["tce-balance-low-0.2", 2].manifest.metrics["gamma"] != 0.9


def test_what_is_chosen_is_what_is_trained_under(trained: tuple[ArtifactStore, Plan, Trained]) -> None:
    """The same training under that fixed gamma ends with the same weights."""
    store, plan, models = trained
    (run,) = [run for run in plan.runs if run.arm == "tce-gap"]
    stage = run.generations[1].train
    chosen = models["tce-gap", 1]
    fixed = TruncatedCrossEntropyLoss(gamma=chosen.manifest.metrics["gamma"])
    again = replace(stage, spec=stage.spec.model_copy(update={"loss": fixed}))
    made = build(again, store, Runtime(), progress=lambda *_: None)[0]
    assert again.key != stage.key
    assert [e for e in made.manifest.files if e["name"].endswith(".safetensors")] == [
        e for e in chosen.manifest.files if e["name"].endswith(".safetensors")
    ]


def test_the_drift_stage_says_it_and_what_it_leaves_live(trained: tuple[ArtifactStore, Plan, Trained]) -> None:
    store, plan, models = trained
    (run,) = [run for run in plan.runs if run.arm == "tce-gap"]
    for i in (0, 1):
        stage = run.generations[i].drift
        assert stage is not None
        made = build(stage, store, Runtime(), progress=lambda *_: None)[0]
        told = {row["metric"]: row["value"] for row in parquet.read_rows(made.file("metrics.parquet"))}
        assert told.get("gamma") == models["tce-gap", i].manifest.metrics.get("gamma")
        assert ("live-fraction" in told) == (i > 0)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["losses=[{type: tce-gap}]", "regime=replace"], r"losses\.0.*tce-gap.*M_1 reads none that is real"),
        (["losses=[{type: cross-entropy}, {type: tce-balance}]", "generations=1"], r"losses\.1.*no gamma to choose"),
        (
            [
                "losses=[{type: cross-entropy}]",
                "arms=[{name: a}, {name: b, loss: {type: tce-gap}, mixture: {synthetic: 0, real: original}}]",
            ],
            r"arms\.1\.loss.*no gamma to choose",
        ),
    ],
)
def test_a_choice_without_its_text_is_refused_before_anything_is_computed(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        planned(*overrides)
