"""Arms in a plan: what they share has one key, what differs has its own; two that come to the same are refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from flows.load import load_experiment_config, validate
from fortifai_core.config.experiment import ExperimentConfig
from fortifai_core.config.stages import Runtime
from fortifai_core.errors import ConfigError
from fortifai_core.language.training import train_model
from storage.store.store import ArtifactStore
from storage.tables import parquet
from tasks.engine.build import build
from tasks.engine.plans import Plan, RunPlan
from tasks.language.plan import Digests, plan_experiment


def planned(arms: list[dict[str, Any]], **fields: Any) -> Plan:
    small = load_experiment_config("smoke").model_dump(mode="json")
    config = validate({**small, "losses": [{"type": "cross-entropy"}], **fields, "arms": arms})
    assert isinstance(config, ExperimentConfig)
    return plan_experiment(config, Digests({}))


def of(plan: Plan, arm: str) -> RunPlan:
    return next(run for run in plan.runs if run.arm == arm)


def keys(run: RunPlan, generation: int) -> list[str]:
    return [stage.key for stage in run.generations[generation].stages]


def test_arms_that_read_the_same_share_the_model() -> None:
    plan = planned(
        [
            {"name": "first"},
            {"name": "old", "regime": "accumulate"},
            {"name": "half", "mixture": {"synthetic": 0.5, "real": "original"}},
            {"name": "averaged", "training": {"averaging": 0.5}},
            {"name": "taught", "training": {"distillation": 1}},
            {"name": "greedy", "regeneration": {"decoding": "greedy"}},
            {"name": "tce", "loss": {"type": "tce"}},
            {"name": "anchored", "training": {"anchor": 0.1}},
            {"name": "short", "training": {"epochs": 0.5}},
        ]
    )
    trained = {run.arm: [g.train.key for g in run.generations] for run in plan.runs}
    first = {arm for arm, made in trained.items() if made[0] == trained["first"][0]}
    assert first == {"first", "old", "half", "averaged", "taught", "greedy"}
    assert len({made[1] for made in trained.values()}) == len(trained)
    # the same rewriting too, but for the arm that decodes otherwise
    rewritten = {run.arm: run.generations[0].regenerate[0].key for run in plan.runs}
    assert {arm for arm in first if rewritten[arm] == rewritten["first"]} == first - {"greedy"}
    assert len([stage for stage in plan.stages() if stage.role == "base"]) == 1
    assert of(plan, "anchored").generations[1].train.parents["anchor"] == next(
        stage.reference for stage in plan.shared if stage.role == "base"
    )


def test_a_loss_for_one_kind_of_text_is_asked_for_where_there_are_both() -> None:
    tce = {"loss": {"type": "tce"}}
    plan = planned(
        [
            {"name": "first"},
            {"name": "tce", **tce},
            {"name": "on-synthetic", **tce, "training": {"loss_on": "synthetic"}},
            {"name": "on-real", **tce, "training": {"loss_on": "real"}},
            {"name": "old", **tce, "regime": "replace"},
        ]
    )
    trained = {run.arm: [g.train.key for g in run.generations] for run in plan.runs}
    assert trained["on-synthetic"][0] == trained["first"][0]  # M_0 reads real text alone
    assert trained["on-real"][0] == trained["tce"][0] == trained["old"][0] != trained["first"][0]
    assert len({made[1] for made in trained.values()}) == len(trained)
    replaced = [{"regime": "replace"}, {"regime": "replace", **tce, "training": {"loss_on": "real"}}]
    first, real = planned([{"name": f"arm-{n}", **arm} for n, arm in enumerate(replaced)]).runs
    assert real.generations[0].train.key != first.generations[0].train.key
    # later ones read synthetic text alone, so that cross entropy is all that is left to do
    assert all(g.train.spec.loss.type == "cross-entropy" for g in real.generations[1:])


@pytest.mark.parametrize("loss_on", ["synthetic", "real"])
def test_cross_entropy_falls_on_either_kind_of_text_alike(loss_on: str) -> None:
    with pytest.raises(ConfigError, match=r"arms\.1 = 'again': comes to the same as first"):
        planned([{"name": "first"}, {"name": "again", "training": {"loss_on": loss_on}}])


def test_the_first_arm_has_the_keys_of_the_short_form() -> None:
    short = plan_experiment(load_experiment_config("smoke"), Digests({}))
    named = planned([{"name": "any"}, {"name": "tce", "loss": {"type": "tce", "gamma": 0.9}}])
    for one, other in zip(short.runs[0].generations, of(named, "any").generations, strict=True):
        assert [stage.key for stage in one.stages] == [stage.key for stage in other.stages]


def test_a_smaller_model_has_a_base_of_its_own_and_an_adapter_has_not() -> None:
    plan = planned(
        [{"name": "a"}, {"name": "narrow", "model": {"hidden_size": 16}}, {"name": "lora", "model": {"lora": {}}}]
    )
    bases = [run.generations[0].train.parents["model"] for run in plan.runs]
    assert bases[0] == bases[2] != bases[1]
    assert {stage.reference for stage in plan.shared if stage.role == "base"} == set(bases)
    assert len([stage for stage in plan.shared if stage.role in ("source", "corpus")]) == 2


@pytest.mark.parametrize(
    "arm",
    [
        {"training": {"epochs": 1.0}},
        {"loss": {"type": "cross-entropy"}},
        {"regeneration": {"beams": 7}},  # which greedy decoding does not read
        {"regime": "paper"},
    ],
    ids=str,
)
def test_two_arms_that_come_to_the_same_are_refused(arm: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"arms\.1 = 'again': comes to the same as first"):
        planned([{"name": "first"}, {"name": "again", **arm}], training={"epochs": 1, "batch_size": 8})


def test_a_regime_and_a_mixture_in_one_arm_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"arms\.1\.mixture.*the regime accumulate sets a share of its own"):
        planned([{"name": "first"}, {"name": "both", "regime": "accumulate", "mixture": {"synthetic": 1}}])


def test_a_share_of_everything_is_the_regime_replace() -> None:
    arms = [{"name": "regime", "regime": "replace"}, {"name": "share", "mixture": {"synthetic": 1, "real": "fresh"}}]
    with pytest.raises(ConfigError, match="comes to the same as regime"):
        planned(arms)


def test_without_synthetic_text_models_are_measured_and_nothing_else_is_made() -> None:
    arms = [{"name": "real", "mixture": {"synthetic": 0, "real": "original"}}]
    measured, alone = planned(arms), planned(arms, evaluation={"drift": False})
    assert [len(g.regenerate) for g in measured.runs[0].generations] == [1] * len(measured.runs[0].generations)
    assert [len(g.regenerate) for g in alone.runs[0].generations] == [0] * len(alone.runs[0].generations)
    assert [g.train.key for g in measured.runs[0].generations] == [g.train.key for g in alone.runs[0].generations]


def test_every_training_arm_is_built(tmp_path: Path) -> None:
    """M_0 and M_1 of each, in one process; an arm that aims at something else ends elsewhere than the first."""
    arms = [
        {"name": "first"},
        {"name": "quarter", "mixture": {"synthetic": 0.25, "real": "original"}},
        {"name": "fresh", "mixture": {"synthetic": 0.5, "real": "fresh"}},
        {"name": "smooth", "training": {"label_smoothing": 0.2}},
        {"name": "dropout", "training": {"dropout": 0.3}},
        {"name": "anchor", "training": {"anchor": 1.0}},
        {"name": "averaged", "training": {"averaging": 0.5}},
        {"name": "taught", "training": {"distillation": 1.0}},
        {"name": "lora", "model": {"lora": {"rank": 2}}},
        {"name": "tce", "loss": {"type": "tce", "gamma": 0.003}},
        {"name": "on-synthetic", "loss": {"type": "tce", "gamma": 0.003}, "training": {"loss_on": "synthetic"}},
    ]
    plan = planned(arms, generations=2, evaluation={"drift": False, "perplexity": True})
    store, losses = ArtifactStore(str(tmp_path)), {}
    for stage in plan.stages():
        if stage.role in ("source", "pretraining", "tokenizer", "base", "corpus", "train", "regenerate", "evaluate"):
            artifact, _ = build(stage, store, Runtime(), progress=lambda *_: None)
            if stage.role == "evaluate":
                losses[stage.key] = artifact.manifest.metrics["perplexity-real"]
            if stage.role == "train" and stage.arm == "quarter" and stage.generation == 1:
                metrics = artifact.manifest.metrics
                # sequences are whole: the share is met to within one of each text
                assert metrics["tokens-synthetic"] / metrics["tokens-read"] == pytest.approx(0.25, abs=0.05)
    ends = {}
    for run in plan.runs:
        evaluate = run.generations[1].evaluate
        assert evaluate is not None
        ends[run.arm] = losses[evaluate.key]
    assert all(math.isfinite(value) for value in ends.values())
    assert len(set(ends.values())) == len(ends)


def test_a_loss_for_one_kind_of_text_is_told_which_sequences_are_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sequences are those of the first arm, in the same order; only what is judged how is new."""
    tce = {"loss": {"type": "tce", "gamma": 0.003}, "training": {"loss_on": "synthetic"}}
    plan = planned([{"name": "first"}, {"name": "on-synthetic", **tce}], generations=2, evaluation={"drift": False})
    store, seen = ArtifactStore(str(tmp_path)), list[tuple[list[dict[str, Any]], Any]]()

    def spied(model: Any, rows: Any, **given: Any) -> Any:
        seen.append((rows.to_list(), given))
        return train_model(model, rows, **given)

    monkeypatch.setattr("fortifai_core.language.training.train_model", spied)
    for stage in plan.stages():
        if stage.role in ("source", "pretraining", "tokenizer", "base", "corpus", "train", "regenerate"):
            build(stage, store, Runtime(), progress=lambda *_: None)
    (first, _), (marked, given) = [one for one in seen if one[1]["config"].epochs][-2:]
    assert [row["input_ids"] for row in marked] == [row["input_ids"] for row in first]
    assert "synthetic" not in first[0] and given["config"].loss_on == "synthetic"
    assert given["plainly"]["token_loss"].name == "ce"
    synthetic = [row["synthetic"] for row in marked]  # D_0^(1), then D_1^(0)
    assert synthetic == sorted(synthetic, reverse=True) and {True, False} == set(synthetic)
    of_text = of(plan, "on-synthetic").generations[1].train
    artifact = store.find(of_text.kind, of_text.key)
    assert artifact is not None
    told = artifact.manifest.metrics
    assert sum(synthetic) / len(synthetic) == pytest.approx(told["tokens-synthetic"] / told["tokens-read"], abs=0.05)


def test_drift_is_measured_on_the_share_that_was_read(tmp_path: Path) -> None:
    """The confidence on the training text is that on so much of each text as the model read, of the one as of both."""
    arm = {"name": "tenth", "mixture": {"synthetic": 0.1, "real": "original"}}
    plan = planned([arm], generations=2, evaluation={"drift_sample": 100_000}, training={"sequence_length": 8})
    store, made = ArtifactStore(str(tmp_path)), {}
    for stage in plan.stages():
        if stage.role != "report" and (stage.generation or 0) < 2:
            made[stage.role, stage.generation], _ = build(stage, store, Runtime(), progress=lambda *_: None)
    rows = parquet.read_rows(made["drift", 1].file("confidence.parquet"))
    seen = sum(row["count"] for row in rows if (row["model"], row["text"]) == ("base", "seen"))
    # every sequence has one token that nothing foretells
    assert seen == pytest.approx(made["train", 1].manifest.metrics["tokens-read"] * 7 / 8, rel=0.1)


def test_an_arm_alone_needs_its_own_stages_and_the_shared_ones_once() -> None:
    plan = planned(
        [{"name": "first"}, {"name": "old", "regime": "accumulate"}, {"name": "tce", "loss": {"type": "tce"}}]
    )
    needed = {stage.reference for stage in plan.alone("old")}
    own = {stage.reference for g in of(plan, "old").generations for stage in g.stages}
    assert own < needed
    assert needed - own == {stage.reference for stage in plan.shared}
    everything = {stage.reference for arm in ("first", "old", "tce") for stage in plan.alone(arm)}
    assert everything == {stage.reference for stage in plan.stages() if stage.role != "report"}
    assert len(plan.alone("first")) + len(plan.alone("old")) + len(plan.alone("tce")) > len(everything)
