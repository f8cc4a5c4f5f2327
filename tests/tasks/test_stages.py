"""The plan: keys are known before anything runs, and change with what changes the result and nothing else."""

from __future__ import annotations

import json
from typing import Any

import pytest

from flows.load import load_any_config, load_experiment_config, presets
from fortifai_core.config.experiment import ExperimentConfig
from fortifai_core.errors import ConfigError
from fortifai_core.families.registry import FamilyExperiment
from tasks.engine.plans import Plan
from tasks.engine.stages import ROLES, Reference, Spec, Stage, references
from tasks.families.plan import plan_family
from tasks.language.plan import Digests, plan_experiment


def plan(*overrides: str) -> Plan:
    return plan_experiment(load_experiment_config("tiny", overrides), Digests({}))


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


@pytest.mark.parametrize("drift", ["true", "false"])
def test_raising_generations_computes_only_the_new_ones(drift: str) -> None:
    four, six = (plan(f"generations={n}", f"evaluation.drift={drift}") for n in (4, 6))
    new = [s for s in six.stages() if s.key not in keys(four) and s.role != "report"]
    assert keys(four) - {four.report().key} <= keys(six)
    # without drift, the text of the last generation had not been rewritten
    assert {s.generation for s in new if s.role != "regenerate"} == {4, 5}
    assert {s.generation for s in new} == ({4, 5} if drift == "true" else {3, 4, 5})


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
    reference = "regeneration.engine=reference"
    historic = [reference, "regeneration.context=cut", "regeneration.chunk_tokens=300"]
    assert by_place(plan(*historic)) == by_place(plan(reference))
    rewriting = next(s for s in plan(reference).uses() if s.role == "regenerate").content["regeneration"]
    assert not {"engine", "context", "chunk_tokens"} & set(rewriting)
    whole = "regeneration.context=document"
    variants = [[reference], ["regeneration.engine=aligned"], [reference, whole]]
    variants.append([*variants[-1], "regeneration.chunk_tokens=300"])
    assert len({next(s.key for s in plan(*v).uses() if s.role == "regenerate") for v in variants}) == 4
    assert by_place(plan(whole)) == by_place(plan(whole, "regeneration.chunk_tokens=512"))


def test_arms_read_the_same_text_in_the_same_order() -> None:
    first = {s.arm: s for s in plan().stages() if s.role == "train" and s.generation == 0}
    contents = [{k: v for k, v in s.content.items() if k != "loss"} for s in first.values()]
    assert contents[0] == contents[1]
    assert first["ce"].parents == first["tce-0.9"].parents


PRETRAINED = "{type: pretrained, path: somewhere/small, lora: {rank: 2, target_modules: [q_proj]}}"
CUSTOM = "{type: custom, name: own, function: 'losses_of_mine:own'}"
ALMANACS = "{type: mixture, parts: [{type: almanac, seed: 1}, {type: text, files: [/somewhere/a.txt]}]}"
# What no preset asks for, over the preset `smoke`.
ELSEWISE = {
    "pretrained": [f"model={PRETRAINED}", f"losses=[{CUSTOM}]", "regime=accumulate"],
    "mixture": [f"corpus={ALMANACS}", "regeneration.context=document", "regeneration.chunk_tokens=128"],
    "judged by drift": ["failure.metric=model-kl", "failure.threshold=0.5", "regime=fresh-mix"],
    "benchmarks": ["evaluation.benchmarks=[blimp]", "evaluation.benchmark_limit=7"],
}


def planned(name: str) -> Plan:
    """The plan of a preset or of one of `ELSEWISE`, for data that need not be there."""
    config = load_any_config("smoke" if name in ELSEWISE else name, ELSEWISE.get(name, ()))
    if isinstance(config, FamilyExperiment):
        return plan_family(config, data_digests={"file": "abc"})
    benchmarks = {asked: {"version": "1.0", "data": {"a": "abc"}} for asked in config.evaluation.benchmarks}
    digests = Digests({"files.0": "abc"}, "small@1", {"losses_of_mine:own": "def"}, benchmarks)
    return plan_experiment(config, digests)


@pytest.mark.parametrize("name", [*presets(), *ELSEWISE])
def test_a_stage_survives_the_way_to_a_worker(name: str) -> None:
    for stage in planned(name).stages():
        arrived = Stage.from_json(json.loads(json.dumps(stage.to_json())))
        assert arrived == stage and type(arrived.spec) is type(stage.spec)
        assert (arrived.key, arrived.parents, arrived.label) == (stage.key, stage.parents, stage.label)


def test_no_kind_of_stage_is_left_out_of_that() -> None:
    seen = {type(stage.spec) for name in (*ELSEWISE, *presets()) for stage in planned(name).stages()}
    assert seen == {spec for spec in Spec.__subclasses__() if spec.builder}
    # the roles that `--refresh` takes are those that stages have
    assert {spec.role for spec in seen} == set(ROLES)


@pytest.mark.parametrize("name", ["tiny", "gmm"])
def test_every_reference_in_a_spec_is_a_parent(name: str) -> None:
    """What a builder may read is in the key: a reference that `parents()` forgot would be read unseen."""
    for stage in planned(name).stages():
        assert {reference for _, reference in references(stage.spec)} == set(stage.parents.values())


def test_a_pretrained_base_is_asked_before_any_training_whatever_the_generations() -> None:
    def before(*overrides: str) -> list[tuple[str, Any]]:
        config = load_experiment_config("smoke", [f"model={PRETRAINED}", *overrides])
        made = plan_experiment(config, Digests({}, "small@1"))
        return [(stage.key, stage.spec.splits) for stage in made.before]

    (asked,) = before()
    assert asked[1] == (0, 1, 2)
    assert before("generations=1") == before("generations=3") == [asked]
    assert len(before("seeds=[0, 1]")) == 2  # each seed has a world of its own
    assert not before("evaluation.base=false")
    assert not plan().before and plan("evaluation.base=true").before


def test_asking_the_base_model_changes_no_other_key() -> None:
    asked, plain = (by_place(plan(f"evaluation.base={value}")) for value in ("true", "false"))
    assert {place: key for place, key in asked.items() if place in plain and place[0] != "report"} == {
        place: key for place, key in plain.items() if place[0] != "report"
    }


def test_parents_come_before_children() -> None:
    done: set[Reference] = set()
    for stage in plan("regime=fresh-mix").stages():
        assert set(stage.parents.values()) <= done
        done.add(stage.reference)


def test_the_last_regenerations_are_made_only_for_drift() -> None:
    def last(p: Plan) -> int:
        return sum(s.role == "regenerate" and s.generation == 5 for s in p.stages())

    assert last(plan("evaluation.drift=true")) == 12
    assert last(plan("evaluation.drift=false")) == 0


def test_no_paths_in_keys() -> None:
    text = {"type": "text", "files": ["/somewhere/a.txt"]}
    elsewhere = {"type": "text", "files": ["/else/b.txt"]}
    base = load_experiment_config("tiny").model_dump()
    one, two = (
        plan_experiment(ExperimentConfig.model_validate({**base, "corpus": c}), Digests({"files.0": "abc"}))
        for c in (text, elsewhere)
    )
    assert by_place(one) == by_place(two)


def benchmarked(*overrides: str, limit: int | None = None) -> Plan:
    config = load_experiment_config(
        "tiny", ["evaluation.benchmarks=[blimp]", f"evaluation.benchmark_limit={limit or 'null'}", *overrides]
    )
    return plan_experiment(config, Digests({}, benchmarks={"blimp": {"version": "1.0", "data": {"blimp_a": "abc"}}}))


def test_benchmarks_add_stages_and_change_no_other_key() -> None:
    before, after = by_place(plan()), by_place(benchmarked())
    added = {place: key for place, key in after.items() if place not in before}
    assert {place[0] for place in added} == {"benchmark", "benchmark-check"}
    assert len([place for place in added if place[0] == "benchmark"]) == 2 * 6
    assert all(after[place] == key for place, key in before.items() if place[0] != "report")


def test_a_benchmark_is_of_one_model_task_data_and_limit() -> None:
    def of(p: Plan) -> dict[tuple[object, ...], str]:
        return {place: key for place, key in by_place(p).items() if place[0] == "benchmark"}

    assert set(of(benchmarked()).values()).isdisjoint(of(benchmarked(limit=50)).values())
    assert set(of(benchmarked()).values()).isdisjoint(of(benchmarked("training.epochs=3")).values())
    assert of(benchmarked()) == of(benchmarked("evaluation.kr_score=mean-cut", "evaluation.drift_sample=100"))


def test_the_drift_of_a_generation_reads_what_its_model_read_and_wrote() -> None:
    for run in plan("evaluation.drift=true").runs:
        for step in run.generations:
            drift = step.drift
            assert drift is not None
            assert {one.reference for one in step.regenerate} <= set(drift.parents.values())
            assert drift.parents["model"] == step.train.reference
            assert drift.parents["first"] == run.generations[0].train.reference
            read = {name: ref for name, ref in step.train.parents.items() if name.startswith("D")}
            assert read.items() <= drift.parents.items()


def test_drift_is_read_by_the_report_alone_and_made_only_when_asked_for() -> None:
    made = plan("evaluation.drift=true")
    drifts = {s.reference for s in made.stages() if s.role == "drift"}
    assert len(drifts) == 12
    assert {s.role for s in made.stages() if drifts & set(s.parents.values())} == {"report"}
    assert not [s for s in plan("evaluation.drift=false").stages() if s.role == "drift"]
    changed = [
        s for s in plan("evaluation.drift=true", "evaluation.drift_sample=100").stages() if s.key not in keys(made)
    ]
    assert {s.role for s in changed} == {"drift", "report"}


def test_the_report_of_a_stopped_arm_reads_nothing_that_was_never_made() -> None:
    made = plan()
    run = made.runs[0]
    parents = set(made.report({(run.arm, run.seed): 1}).parents.values())
    first, last = run.generations[:2]
    assert {s.reference for s in first.results} <= parents
    assert parents & {s.reference for s in last.results} == {last.train.reference, last.evaluate.reference}
    assert parents.isdisjoint(s.reference for step in run.generations[2:] for s in step.stages)


def test_the_measure_of_failure_is_in_the_key_of_the_check_alone_and_the_old_one_in_none() -> None:
    default = plan()
    assert by_place(plan("failure.metric=kr-split-0")) == by_place(default)
    assert all("metric" not in s.content for s in default.stages() if s.role in ("failure", "report"))
    other = plan("failure.metric=perplexity-real", "failure.threshold=20")
    assert {s.role for s in other.stages() if s.key not in keys(default)} == {"failure", "report"}


def test_a_check_by_drift_reads_the_drift_of_every_generation_so_far() -> None:
    judged = plan("failure.metric=model-kl", "failure.threshold=0.5", "failure.stop_arm=true")
    for run in judged.runs:
        for step in run.generations:
            drifts = [g.drift.reference for g in run.generations[: step.last + 1] if g.drift is not None]
            assert list(step.failure.parents.values()) == drifts
    # what an arm was judged by is there when it is stopped, and the report reads it
    run = judged.runs[0]
    parents = set(judged.report({(run.arm, run.seed): 1}).parents.values())
    assert {s.reference for s in run.generations[1].results} <= parents


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["failure.metric=accuracy"], "failure.metric"),
        (["failure.threshold=1.5"], "failure.threshold"),
        (["failure.threshold=0.4"], "failure.threshold"),
        (["failure.metric=facts-true-0", "failure.threshold=2"], "failure.threshold"),
        (["failure.metric=model-kl", "evaluation.drift=false"], "failure.metric"),
        (["failure.metric=perplexity-real", "evaluation.perplexity=false"], "failure.metric"),
        (["failure.metric=kr-split-9"], "failure.metric"),
    ],
)
def test_a_measure_that_cannot_be_judged_by_is_refused(overrides: list[str], named: str) -> None:
    with pytest.raises(ConfigError, match=named.replace(".", r"\.")):
        plan(*overrides)


def test_the_report_reads_the_corpus_of_every_seed() -> None:
    both = plan("seeds=[0, 1]")
    read = set(both.report().parents.values())
    for role in ("corpus", "source"):
        made = {s.reference for s in both.shared if s.role == role}
        assert len(made) == 2 and made <= read
