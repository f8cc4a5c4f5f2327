"""The stage that treats a generation's text: its artifact, its lineage, its place in the plan, and what it refuses."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from flows.load import load_experiment_config
from flows.prepare import Prepared, plan_for, prepare_experiment
from flows.tools.exporting import export_dataset
from fortifai_core.config.corpus import AlmanacCorpus
from fortifai_core.config.custom_code import ALLOWED
from fortifai_core.config.stages import Runtime
from fortifai_core.config.treatment import (
    Deduplicate,
    Detector,
    SurpriseFilter,
    TokenEdit,
    Treatment,
    Verifier,
    Weights,
)
from fortifai_core.corpus.almanac.world import generate_almanac
from fortifai_core.corpus.tokenization import train_tokenizer
from fortifai_core.errors import ConfigError, DataError
from storage.catalog.catalog import query
from storage.store.experiments import record_experiment
from storage.store.keys import artifact_key
from storage.store.store import Artifact, ArtifactStore
from storage.tables import parquet
from tasks.engine.build import build
from tasks.engine.plans import Plan
from tasks.engine.stages import Reference, Stage
from tasks.language.plan import Digests, plan_experiment
from tasks.language.specs import TreatSpec, VersionedText

CORPUS = AlmanacCorpus(entities=12, facts=3, pretraining_entities=8, validation_entities=4)
EVERY = [
    SurpriseFilter(keep=0.5),
    TokenEdit(threshold=0.004, temperature=2.0),
    Detector(folds=3, bias=2.0),
    Verifier(false_reject=0.2),
    Weights(),
    Deduplicate(near=None),
]


@pytest.fixture(scope="module")
def parents(tmp_path_factory: pytest.TempPathFactory) -> tuple[ArtifactStore, dict[str, Any]]:
    """A store with a random model, an almanac of two splits, and split 0 "rewritten": every third document spoilt."""
    store = ArtifactStore(tmp_path_factory.mktemp("treat") / "store")
    source = generate_almanac(CORPUS, splits=2, seed=0)
    texts = {document.id: document.text for document in source.documents}
    tokenizer = train_tokenizer(list(texts.values()), vocabulary=300)
    kinds = ("model", "tokenizer", "corpus", "split")
    made = {kind: Reference(kind, artifact_key(kind, version=1, content={"test": "treat"})) for kind in kinds}

    def rows(chosen: list[tuple[str, str]]) -> list[dict[str, Any]]:
        encoded = [tokenizer(text)["input_ids"] for _, text in chosen]
        return [
            {"document": name, "position": n, "text": text, "tokens": tokens, "kept": 0, "same": [], "accepted": None}
            for n, ((name, text), tokens) in enumerate(zip(chosen, encoded, strict=True))
        ]

    with store.build(*made["model"]) as draft:
        torch.manual_seed(0)
        shape: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
        shape |= {"num_attention_heads": 2, "vocab_size": len(tokenizer), "initializer_range": 0.3}
        LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained(draft.path)
        tokenizer.save_pretrained(draft.path / "tokenizer")
        draft.commit(stage_version=1, content={}, parents={})
    with store.build(*made["tokenizer"]) as draft:
        tokenizer.save_pretrained(draft.path)
        draft.commit(stage_version=1, content={}, parents={})
    of_split = [[(i, t) for i, t in texts.items() if i.startswith(f"split-{k}")] for k in (0, 1)]
    with store.build(*made["corpus"]) as draft:
        for k in (0, 1):
            parquet.write_table(draft.path / f"split-{k:05d}.parquet", rows(of_split[k]), schema="split-text")
        draft.commit(stage_version=1, content={}, parents={})
    with store.build(*made["split"]) as draft:
        spoilt = [(i, "Nobody knows. " + t[:10] if n % 3 == 0 else t) for n, (i, t) in enumerate(of_split[0])]
        parquet.write_table(draft.path / "part-00000.parquet", rows(spoilt), schema="split-text")
        draft.commit(stage_version=1, content={}, parents={})
    return store, made


def stage(
    parents: dict[str, Any], treatment: Treatment, *, treated: Reference | None = None, seed: int = 0, earlier: int = 0
) -> Stage:
    reads = parents["model"] if treatment.reads else None
    spec = TreatSpec(
        treatment=treatment,
        code=None,
        called="treatments.0",
        window=32,
        seed=seed,
        generation=1,
        model=reads,
        base=None,
        corpus=parents["corpus"],
        tokenizer=parents["tokenizer"],
        text=(VersionedText(0, 1, parents["split"]), VersionedText(1, 0)),
        shares=None,
        treated=treated,
        earlier=earlier,
        corpus_config=CORPUS,
        splits=2,
        world=0,
    )
    return Stage(spec, arm="a", seed=seed, generation=1)


def made(store: ArtifactStore, one: Stage, *, runtime: Runtime | None = None) -> Artifact:
    return build(one, store, runtime or Runtime(), progress=lambda *_: None)[0]


def fates(artifact: Artifact) -> list[dict[str, Any]]:
    return parquet.read_rows(artifact.file("treatments.parquet"))


def texts(artifact: Artifact) -> list[list[dict[str, Any]]]:
    files = [f"text-{place:05d}.parquet" for place in (0, 1)]
    return [parquet.read_rows(artifact.file(name)) if artifact.has(name) else [] for name in files]


@pytest.mark.parametrize("treatment", EVERY, ids=lambda one: one.label)
def test_what_became_of_every_document_is_what_there_is_now(
    parents: tuple[ArtifactStore, dict[str, Any]], treatment: Treatment
) -> None:
    store, references = parents
    artifact = made(store, stage(references, treatment))
    rows, left = fates(artifact), texts(artifact)
    assert [(row["split"], row["version"]) for row in rows] == [(0, 1)] * 12 + [(1, 0)] * 12
    for place, split in enumerate((0, 1)):
        expected = {row["document"]: row["copies"] for row in rows if row["split"] == split and row["copies"]}
        assert Counter(row["document"] for row in left[place]) == expected
        assert [row["position"] for row in left[place]] == list(range(len(left[place])))
        of = {row["document"]: row for row in rows if row["split"] == split}
        assert all(of[row["document"]]["weight"] == row["weight"] for row in left[place])
    metrics = artifact.manifest.metrics
    assert metrics["documents"] == 24 and metrics["documents-left"] == sum(map(len, left))
    assert metrics["tokens-left"] == sum(len(row["tokens"]) for of_text in left for row in of_text)
    treats = not isinstance(treatment, (Weights, Deduplicate))  # nothing is equal, and weights drop nothing
    assert bool({row["fate"] for row in rows} - {"kept"}) == treats


def test_each_does_what_it_is_for(parents: tuple[ArtifactStore, dict[str, Any]]) -> None:
    store, references = parents
    by_label = {one.label: fates(made(store, stage(references, one))) for one in EVERY if not isinstance(one, Weights)}
    surprise = by_label["surprise-0.5"]
    kept, dropped = ([r["score"] for r in surprise if (r["fate"] == "kept") is k] for k in (True, False))
    assert len(kept) == 12 and min(kept) >= max(dropped)
    edited = [row for row in by_label["edit-0.004"] if row["fate"] == "edited"]
    assert edited and all(0 < row["changed"] <= round(row["score"] * row["tokens"]) for row in edited)
    verifier = [row for row in by_label["verifier-fr0.2"] if row["split"] == 0]
    assert all(row["why"] == "rejected" for number, row in enumerate(verifier) if number % 3 == 0)
    assert {row["why"] for number, row in enumerate(verifier) if number % 3} <= {"", "rejected in error"}
    assert all(row["why"].startswith("not treated") for row in by_label["verifier-fr0.2"] if row["split"] == 1)
    weights = made(store, stage(references, Weights(real=0.75)))
    shares = [sum(row["weight"] * len(row["tokens"]) for row in of_text) for of_text in texts(weights)]
    assert shares[1] / sum(shares) == pytest.approx(0.75)
    assert sum(shares) == pytest.approx(weights.manifest.metrics["tokens"])


def test_a_second_verifier_errs_by_itself(parents: tuple[ArtifactStore, dict[str, Any]]) -> None:
    """Of what the first rejects in error, the second would reject nothing more if it made the same errors."""
    store, references = parents
    verifier = Verifier(false_reject=0.5)
    first = stage(references, verifier)
    made(store, first)
    second = made(store, stage(references, verifier, treated=first.reference, earlier=1))
    assert "rejected in error" in {row["why"] for row in fates(second)}


def test_treatments_of_one_type_are_counted_in_the_plan() -> None:
    treatments = "treatments=[{type: verifier}, {type: deduplicate}, {type: verifier, false_reject: 0.1}]"
    plan = plan_experiment(load_experiment_config("smoke", [treatments]), Digests({}))
    stages = plan.runs[0].generations[1].treat
    assert [one.spec.model_dump()["earlier"] for one in stages] == [0, 0, 1]
    assert ["earlier" in one.content for one in stages] == [False, False, True]


def test_a_treatment_reads_what_the_one_before_left(parents: tuple[ArtifactStore, dict[str, Any]]) -> None:
    store, references = parents
    first = made(store, stage(references, Detector(folds=3, upsample=2.0)))
    reference = Reference("treated", stage(references, Detector(folds=3, upsample=2.0)).key)
    second = made(store, stage(references, Deduplicate(near=None), treated=reference))
    assert second.manifest.metrics["documents"] == first.manifest.metrics["documents-left"]
    for before, after in zip(texts(first), texts(second), strict=True):
        assert {row["document"] for row in after} == {row["document"] for row in before}
        assert max(Counter(row["document"] for row in after).values(), default=1) == 1
    assert any(row["why"].startswith("equal to") for row in fates(second))


@pytest.mark.parametrize("treatment", [EVERY[0], EVERY[1], EVERY[2]], ids=lambda one: one.label)
def test_a_stage_that_was_stopped_goes_on_to_the_same_result(
    parents: tuple[ArtifactStore, dict[str, Any]], treatment: Treatment
) -> None:
    store, references = parents
    whole = made(store, stage(references, treatment, seed=1))
    digests = {entry["name"]: entry["sha256"] for entry in whole.manifest.files}

    class Killed(BaseException):
        pass

    def die(done: int, total: int, _: str) -> None:
        if done == total // 2:
            raise Killed

    again = stage(references, treatment, seed=1)
    with pytest.raises(Killed):
        build(again, store, Runtime(), progress=die, anew=True)
    other, found = build(again, store, Runtime(), progress=lambda *_: None, anew=True)
    assert not found and {entry["name"]: entry["sha256"] for entry in other.manifest.files} == digests


def test_a_verifier_that_accepts_nothing_ends_the_stage(parents: tuple[ArtifactStore, dict[str, Any]]) -> None:
    store, references = parents
    with pytest.raises(DataError, match=r"^treatments.0 = '0 of 12 documents'"):
        made(store, stage(references, Verifier(of="real", false_reject=0.9999999), seed=2))


# ------------------------------------------------------------------------------------------- in a plan


def plan(*overrides: str) -> Plan:
    return plan_experiment(load_experiment_config("smoke", ["losses=[{type: cross-entropy}]", *overrides]), Digests({}))


def test_a_treatment_is_a_stage_from_the_first_generation_with_synthetic_text_on() -> None:
    plain, treated = (
        plan("splits=4", "generations=3"),
        plan("splits=4", "generations=3", "treatments=[{type: weights}]"),
    )
    found = [one for one in treated.stages() if one.role == "treat"]
    assert [one.generation for one in found] == [1, 2] and found[0].label == "treat · g1 · weights-golden"
    keys = {one.key for one in plain.stages()}
    same = {(one.role, one.generation) for one in treated.stages() if one.key in keys}
    assert ("train", 0) in same and ("regenerate", 0) in same and ("train", 1) not in same
    order = [one.role for one in treated.runs[0].generations[1].stages]
    assert order.index("treat") < order.index("train")
    train = treated.runs[0].generations[1].train
    assert train.parents["treated"] == found[0].reference


def test_several_treatments_stand_in_a_row_and_read_their_own_models() -> None:
    chain = "treatments=[{type: deduplicate}, {type: surprise-filter}, {type: token-edit}]"
    planned = plan(chain)
    first, second, third = (one for one in planned.stages() if one.role == "treat")
    run = planned.runs[0].generations
    assert "treated" not in first.parents and "model" not in first.parents
    assert second.parents["treated"] == first.reference and second.parents["model"] == run[0].train.reference
    base = next(one for one in planned.shared if one.role == "base")
    assert third.parents["treated"] == second.reference and third.parents["model"] == base.reference
    assert run[1].train.parents["treated"] == third.reference
    assert plan(chain).runs == planned.runs


def test_a_label_changes_no_key_and_a_setting_does() -> None:
    def key(text: str) -> str:
        return next(one.key for one in plan(f"treatments=[{text}]").stages() if one.role == "treat")

    named = [key(f"{{type: custom, function: 'a:b', name: {name}}}") for name in ("one", "two")]
    assert named[0] == named[1] != key("{type: custom, function: 'a:c', name: one}")
    assert len({key("{type: surprise-filter}"), key("{type: surprise-filter, keep: 0.4}")}) == 2


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["generations=1", "treatments=[{type: weights}]"], r"^treatments.0 = 'weights-golden': has nothing to treat"),
        (
            ["regime=replace", "treatments=[{type: weights}]"],
            r"^treatments.0 = 'weights-golden': needs real text",
        ),
        (["regime=replace", "treatments=[{type: deduplicate, of: real}]"], r"^treatments.0.of = 'real': no generation"),
        (
            ["treatments=[{type: custom, function: nowhere, name: n}]"],
            r"^treatments.0.function = 'nowhere': no installed package offers a treatment",
        ),
        (
            ["treatments=[{type: deduplicate}, {type: verifier, checker: nowhere}]"],
            r"^treatments.1.checker = 'nowhere': no installed package offers a verifier",
        ),
        (
            ["treatments=[{type: custom, function: 'mine:f', name: n}]"],
            r"^treatments.0.function = 'mine:f': .*--allow-code mine",
        ),
        (["treatments=[{type: detector, classifier: /no/such}]"], r"^treatments.0.classifier = '/no/such': "),
    ],
)
def test_what_cannot_be_done_is_refused_before_any_compute(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        plan_for(load_experiment_config("smoke", overrides))


def test_the_almanacs_truth_is_of_an_almanac(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(
        "\n\n".join(f"A paragraph of number {n} about nothing at all." for n in range(99))
    )
    corpus = f"corpus={{type: text, files: ['{tmp_path / 'text.txt'}']}}"
    with pytest.raises(ConfigError, match=r"^treatments.0.checker = 'almanac': knows the truth of an almanac"):
        plan_for(load_experiment_config("smoke", [corpus, "treatments=[{type: verifier}]"]))


# ------------------------------------------------------------------------------------------- from end to end

ARMS = """arms=[
    {name: plain},
    {name: filtered, treatments: [{type: surprise-filter, keep: 0.6}]},
    {name: weighed, treatments: [{type: surprise-filter, keep: 0.6}, {type: weights, real: 0.7}]},
]"""
SMALL = ["losses=[{type: cross-entropy}]", "training.epochs=1", "model.pretraining_epochs=0.2", "corpus.entities=12"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Prepared, dict[str, Artifact]]:
    """An experiment of three arms, and every artifact by run and label."""
    store = tmp_path_factory.mktemp("treated") / "store"
    prepared = prepare_experiment(load_experiment_config("smoke", [*SMALL, ARMS]), store=str(store))
    artifacts = {
        f"{one.run} · {one.label}": build(one, prepared.store, Runtime(), progress=lambda *_: None)[0]
        for one in prepared.plan.stages()
    }
    record_experiment(prepared.store, config=prepared.plan.config.model_dump(mode="json"), status="finished")
    return prepared, artifacts


def test_arms_share_what_is_not_treated_and_the_first_of_two_treatments(
    finished: tuple[Prepared, dict[str, Artifact]],
) -> None:
    names = set(finished[1])
    assert "plain · seed 0 · train · g0" in names
    assert not {f"{arm} · seed 0 · train · g0" for arm in ("filtered", "weighed")} & names
    treat = {name for name in names if "treat" in name}
    assert treat == {"filtered · seed 0 · treat · g1 · surprise-0.6", "weighed · seed 0 · treat · g1 · weights-0.7"}


def test_a_generation_is_trained_on_what_its_treatment_left(finished: tuple[Prepared, dict[str, Artifact]]) -> None:
    artifacts = finished[1]
    treated = artifacts["filtered · seed 0 · treat · g1 · surprise-0.6"].manifest.metrics
    plain, filtered, weighed = (
        artifacts[f"{arm} · seed 0 · train · g1"].manifest.metrics for arm in ("plain", "filtered", "weighed")
    )
    assert treated["documents-left"] == math.ceil(0.6 * treated["documents"]) < treated["documents"]
    assert filtered["tokens-read"] == weighed["tokens-read"] == treated["tokens-left"] < plain["tokens-read"]
    assert plain["tokens-read"] == treated["tokens"]
    weights = [artifacts[f"{arm} · seed 0 · train · g1"].manifest.files for arm in ("filtered", "weighed")]
    digests = [{e["sha256"] for e in files if e["name"].endswith(".safetensors")} for files in weights]
    assert digests[0] != digests[1]


def test_sql_export_and_report_say_what_became_of_the_text(
    finished: tuple[Prepared, dict[str, Artifact]], tmp_path: Path
) -> None:
    prepared, artifacts = finished
    fates = "SELECT arm, generation, fate, count(*) FROM treatments WHERE arm = 'filtered' GROUP BY ALL ORDER BY fate"
    treated = artifacts["filtered · seed 0 · treat · g1 · surprise-0.6"]
    there, left = (treated.manifest.metrics[name] for name in ("documents", "documents-left"))
    assert query(prepared.store, fates)[1] == [("filtered", 1, "dropped", there - left), ("filtered", 1, "kept", left)]
    kept = "SELECT value FROM metrics WHERE metric = 'documents-kept' AND arm = 'filtered'"
    assert query(prepared.store, kept)[1] == [(left / there,)]
    folder = tmp_path / "there"
    export_dataset(prepared.store, "smoke", arm="filtered", seed=0, generation=1, target=folder)
    rows = [row for path in sorted((folder / "data").iterdir()) for row in parquet.read_rows(path)]
    read = parquet.read_rows(treated.files("text-*.parquet"))
    assert [(row["document"], row["tokens"]) for row in rows] == [(row["document"], row["tokens"]) for row in read]
    times = artifacts["shared · report"].file("tables/times.csv").read_text().splitlines()
    assert any(line.startswith("filtered,treat,") for line in times) and not any(
        "plain,treat" in line for line in times
    )


def test_less_than_a_batch_is_refused_by_whoever_would_train_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # what somebody's own treatment leaves nobody knows beforehand
    (tmp_path / "treatment_of_mine.py").write_text("def first(documents):\n    yield next(iter(documents))\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv(ALLOWED, "treatment_of_mine")
    mine = "treatments=[{type: custom, function: 'treatment_of_mine:first', name: mine}]"
    config = load_experiment_config("smoke", [*SMALL, "training.batch_size=50", mine])
    prepared = prepare_experiment(config, store=str(tmp_path / "store"))
    with pytest.raises(DataError, match=r"^treatments = '\d+ sequences': .*training.batch_size is 50.*keep more text"):
        for one in prepared.plan.stages():
            build(one, prepared.store, Runtime(), progress=lambda *_: None)
