"""The plan: keys are known before anything runs, and change with what changes the result and nothing else."""

from __future__ import annotations

import json

import pytest

from flows.load import load_experiment_config
from fortifai_core.config import ExperimentConfig
from tasks.plan import plan_experiment
from tasks.stages import Plan, Stage


def plan(*overrides: str) -> Plan:
    return plan_experiment(load_experiment_config("tiny", overrides), corpus_digests={})


def keys(p: Plan) -> set[str]:
    return {s.key for s in p.stages()}


def by_place(p: Plan) -> dict[tuple[object, ...], str]:
    return {(s.role, s.arm, s.seed, s.generation, s.split): s.key for s in p.uses()}


def test_planning_twice_gives_the_same_keys() -> None:
    assert by_place(plan()) == by_place(plan())


@pytest.mark.parametrize(
    "override",
    ["runtime.workers=7", "runtime.threads=3", "runtime.inference_batch=8", "runtime.save_steps=5"],
)
def test_how_the_work_is_done_is_in_no_key(override: str) -> None:
    assert by_place(plan(override)) == by_place(plan())


def test_raising_generations_computes_only_the_new_ones() -> None:
    four, six = plan("generations=4"), plan("generations=6")
    new = [s for s in six.stages() if s.key not in keys(four) and s.role != "report"]
    assert keys(four) - {four.report().key} <= keys(six)
    assert {s.generation for s in new} == {4, 5}


def test_changing_one_loss_changes_only_its_arm() -> None:
    changed = [s for s in plan("losses.1.gamma=0.8").stages() if s.key not in keys(plan()) and s.role != "report"]
    assert {s.arm for s in changed} == {"tce-0.8"}


def test_a_new_seed_shares_tokenizer_and_base_model() -> None:
    one, two = plan(), plan("seeds=[0, 1]")
    assert keys(one) - {one.report().key} <= keys(two)
    assert sum(s.role in ("pretraining", "tokenizer", "base") for s in two.stages()) == 3
    assert sum(s.role == "source" for s in two.stages()) == 2  # each seed has a world of its own


def test_the_base_model_does_not_depend_on_the_size_of_the_splits() -> None:
    base = {s.role: s.key for s in plan().shared}
    more = {s.role: s.key for s in plan("corpus.entities=200").shared}
    assert base["base"] == more["base"]
    assert base["corpus"] != more["corpus"]


@pytest.mark.parametrize(
    ("override", "first_role"),
    [
        ("training.epochs=16", "train"),
        ("regeneration.temperature=0.8", "regenerate"),
        ("evaluation.kr_score=mean-cut", "evaluate"),
        ("failure.threshold=0.7", "failure"),
        ("corpus.facts=5", "pretraining"),
        ("model.layers=3", "base"),
        ("regime=accumulate", "train"),
    ],
)
def test_a_changed_field_is_first_felt_where_it_is_read(override: str, first_role: str) -> None:
    before = keys(plan())
    changed = [s for s in plan(override).stages() if s.key not in before]
    assert changed[0].role == first_role


def test_options_that_a_decoding_does_not_read_are_in_no_key() -> None:
    greedy = "regeneration.decoding=greedy"
    assert by_place(plan(greedy)) == by_place(plan(greedy, "regeneration.temperature=0.1"))


def test_what_was_always_done_is_said_in_no_key_and_what_is_new_changes_the_rewriting() -> None:
    """Artifacts from before there were engines and contexts are found; chunks only count where they are read."""
    historic = ["regeneration.engine=reference", "regeneration.context=cut", "regeneration.chunk_tokens=300"]
    assert by_place(plan(*historic)) == by_place(plan())
    rewriting = next(s for s in plan().uses() if s.role == "regenerate").content["regeneration"]
    assert not {"engine", "context", "chunk_tokens"} & set(rewriting)
    whole = "regeneration.context=document"
    variants = [[], ["regeneration.engine=aligned"], [whole], [whole, "regeneration.chunk_tokens=300"]]
    assert len({next(s.key for s in plan(*v).uses() if s.role == "regenerate") for v in variants}) == 4
    assert by_place(plan(whole)) == by_place(plan(whole, "regeneration.chunk_tokens=512"))


def test_arms_read_the_same_text_in_the_same_order() -> None:
    first = {s.arm: s for s in plan().stages() if s.role == "train" and s.generation == 0}
    contents = [{k: v for k, v in s.content.items() if k != "loss"} for s in first.values()]
    assert contents[0] == contents[1]
    assert first["ce"].parents == first["tce-0.9"].parents


def test_a_stage_survives_json() -> None:
    for stage in plan().stages():
        assert Stage.from_json(json.loads(json.dumps(stage.to_json()))) == stage


def test_parents_come_before_children() -> None:
    done: set[tuple[str, str]] = set()
    for stage in plan("regime=fresh-mix").stages():
        assert set(stage.parents.values()) <= done
        done.add(stage.reference)


def test_the_last_regenerations_are_made_only_for_drift() -> None:
    def last(p: Plan) -> int:
        return sum(s.role == "regenerate" and s.generation == 5 for s in p.stages())

    assert last(plan()) == 12
    assert last(plan("evaluation.drift=false")) == 0


def test_no_paths_in_keys() -> None:
    text = {"type": "text", "files": ["/somewhere/a.txt"]}
    elsewhere = {"type": "text", "files": ["/else/b.txt"]}
    base = load_experiment_config("tiny").model_dump()
    one, two = (
        plan_experiment(ExperimentConfig.model_validate({**base, "corpus": c}), corpus_digests={"files.0": "abc"})
        for c in (text, elsewhere)
    )
    assert by_place(one) == by_place(two)
