"""The drift stage: from a trained and rewritten generation to metrics and histograms, found by one query each."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from flows.load import load_experiment_config
from fortifai_core.config.corpus import AlmanacCorpus
from fortifai_core.config.stages import Runtime
from fortifai_core.corpus.almanac.world import generate_almanac
from fortifai_core.measures.model_drift import live_fraction_of
from storage.store.experiments import StageRecord, record_experiment
from storage.store.store import ArtifactStore
from storage.tables import parquet
from tasks.engine.build import build
from tasks.engine.plans import Plan
from tasks.engine.stages import Stage
from tasks.language.drift import pieces_from_the_end
from tasks.language.plan import Digests, plan_experiment

SMALLEST = [
    "generations=2",
    "splits=2",
    "corpus.entities=5",
    "corpus.pretraining_entities=8",
    "model.pretraining_epochs=1",
    "training.epochs=1",
    "evaluation.drift_sample=300",
    "losses=[{type: tce, gamma: 0.9}]",
]


def planned(*overrides: str) -> Plan:
    return plan_experiment(load_experiment_config("smoke", [*SMALLEST, *overrides]), Digests({}))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[ArtifactStore, Plan]:
    """Every stage of two generations but the report, built in this process."""
    store, plan = ArtifactStore(tmp_path_factory.mktemp("drift") / "store"), planned()
    for one in plan.stages():
        if one.role != "report":
            build(one, store, Runtime(), progress=lambda *_: None)
    records = [
        StageRecord(s.kind, s.key, s.role, s.arm, s.seed, s.generation, s.split, s.version,
                    {name: key for name, (_, key) in s.parents.items()})
        for s in plan.uses()
    ]  # fmt: skip
    record_experiment(store, config=plan.config.model_dump(mode="json"), status="finished", stages=records)
    return store, plan


def drift_of(built: tuple[ArtifactStore, Plan], generation: int) -> tuple[Stage, dict[tuple[str, int | None], Any]]:
    store, plan = built
    one = plan.runs[0].generations[generation].drift
    assert one is not None
    artifact = store.find(one.kind, one.key)
    assert artifact is not None
    rows = parquet.read_rows(artifact.file("metrics.parquet"))
    return one, {(row["metric"], row["split"]): (row["value"], row["count"]) for row in rows}


def test_every_rewritten_split_is_measured_and_its_real_text_once(built: tuple[ArtifactStore, Plan]) -> None:
    _, first = drift_of(built, 0)
    _, second = drift_of(built, 1)
    for name in ("self-bleu", "distinct-2", "repeated-4-grams", "document-words", "tail-types-kept", "facts-true"):
        assert (name, 0) in first and (name, 1) not in first
        assert (name, 0) in second and (name, 1) in second
    for name in ("compressed-share", "vendi"):
        assert (name, 0) in first and (name, 0) in second and (f"{name}-real", 0) in first
    assert ("vendi", 1) not in second  # of split 0 alone
    vendi, count = first["vendi-real", 0]
    assert count == 5 and 2 < vendi <= 5
    mauve, pieces = first["mauve", 0]
    assert 0 < mauve <= 1 and pieces >= 5 and ("mauve", 1) not in second
    assert first["compressed-share", 0][0] > first["compressed-share-real", 0][0]  # an untrained model writes noise
    reals = {key for metrics in (first, second) for key in metrics if key[0].endswith("-real") and key[1] is not None}
    assert ("self-bleu-real", 0) in first and ("self-bleu-real", 0) not in second
    assert {split for name, split in reals if name != "vendi-real"} == {0, 1}


def test_the_real_text_states_all_facts_and_what_an_untrained_model_rewrote_does_not(
    built: tuple[ArtifactStore, Plan],
) -> None:
    _, metrics = drift_of(built, 0)
    assert metrics["facts-true-real", 0] == (1.0, 5 * 3)
    assert metrics["facts-true", 0][0] < 0.7
    shares = [metrics[f"facts-{name}", 0][0] for name in ("true", "false", "absent")]
    assert sum(shares) == pytest.approx(1)
    assert metrics["tail-types-kept", 0][0] < 1


def test_the_model_is_compared_with_m0_of_its_arm(built: tuple[ArtifactStore, Plan]) -> None:
    assert drift_of(built, 0)[1]["model-kl", None][0] == 0
    value, positions = drift_of(built, 1)[1]["model-kl", None]
    assert value > 0 and positions > 50


def test_histograms_hold_every_sampled_token_of_every_text(built: tuple[ArtifactStore, Plan]) -> None:
    from storage.catalog.catalog import query

    store, _ = built
    one, metrics = drift_of(built, 1)
    rows = query(store, f"SELECT model, text, sum(count) FROM confidence WHERE key = '{one.key}' GROUP BY ALL")[1]
    sizes = {(model, text): int(count) for model, text, count in rows}
    assert set(sizes) == {(m, t) for m in ("base", "generation") for t in ("real", "seen", "self")}
    assert all(0 < count <= 300 for count in sizes.values())
    assert sizes["base", "real"] == sizes["generation", "real"] == metrics["model-kl", None][1]
    counts = query(
        store,
        f"SELECT count FROM confidence WHERE key = '{one.key}' AND model = 'generation' AND text = 'seen' ORDER BY low",
    )[1]
    live, tokens = metrics["live-fraction", None]
    assert live == pytest.approx(live_fraction_of([int(c) for (c,) in counts], gamma=0.9), abs=1e-12)
    assert tokens == sizes["generation", "seen"]


def test_real_windows_are_the_same_in_every_generation(built: tuple[ArtifactStore, Plan]) -> None:
    def base_on_real(generation: int) -> list[Any]:
        one, _ = drift_of(built, generation)
        artifact = built[0].find(one.kind, one.key)
        assert artifact is not None
        rows = parquet.read_rows(artifact.file("confidence.parquet"))
        return [row["count"] for row in rows if (row["model"], row["text"]) == ("base", "real")]

    assert base_on_real(0) == base_on_real(1)


def test_building_again_gives_the_same_bytes(built: tuple[ArtifactStore, Plan]) -> None:
    store, _ = built
    one, _ = drift_of(built, 1)
    before = store.find(one.kind, one.key)
    assert before is not None
    digests = {entry["name"]: entry["sha256"] for entry in before.manifest.files}
    store.remove(one.kind, one.key)
    again, found = build(one, store, Runtime(), progress=lambda *_: None)
    assert not found
    assert json.dumps(digests, sort_keys=True) == json.dumps(
        {entry["name"]: entry["sha256"] for entry in again.manifest.files}, sort_keys=True
    )


def test_a_mixtures_almanacs_are_found_under_their_own_names(tmp_path: Path) -> None:
    from storage.sources.sources import load_source
    from tasks.language.drift import entities_by_document

    parts = [
        {"type": "almanac", "entities": 4, "facts": 2, "pretraining_entities": 4, "validation_entities": 2, "seed": s}
        for s in (0, 1)
    ]
    config = load_experiment_config("smoke", [f"corpus={json.dumps({'type': 'mixture', 'parts': parts})}"])
    source = load_source(config.corpus, splits=3, seed=5)
    entities = entities_by_document(config.corpus, splits=3, world=5)
    assert set(entities) == {document.id for document in source.documents}
    assert all(entities[d.id].name in d.text for d in source.documents)
    alone = AlmanacCorpus.model_validate(parts[0])
    assert set(entities_by_document(alone, splits=3, world=5)) == {
        d.id for d in generate_almanac(alone, splits=3, seed=5).documents
    }


def test_clusters_are_what_the_measures_are_means_of(built: tuple[ArtifactStore, Plan]) -> None:
    """Sums over counts give back model KL, both shares of facts and perplexity, which the metrics hold."""
    store, plan = built

    def clusters(one: Stage | None) -> tuple[dict[str, float], dict[str, set[str]]]:
        assert one is not None
        artifact = store.find(one.kind, one.key)
        assert artifact is not None
        rows = parquet.read_rows(artifact.file("clusters.parquet"))
        names = {row["measure"] for row in rows}
        of = {name: [row for row in rows if row["measure"] == name] for name in names}
        means = {name: sum(r["total"] for r in rs) / sum(r["count"] for r in rs) for name, rs in of.items()}
        return means, {name: {row["cluster"] for row in rs} for name, rs in of.items()}

    generations = plan.runs[0].generations
    means, names = clusters(generations[1].drift)
    _, metrics = drift_of(built, 1)
    for measure, where in (("model-kl", ("model-kl", None)), ("facts-true-0", ("facts-true", 0)),
                           ("facts-false-0", ("facts-false", 0))):  # fmt: skip
        assert means[measure] == pytest.approx(metrics[where][0], rel=1e-9, abs=1e-12)
    assert len(names["facts-true-0"]) == 5  # entities of split 0
    first, first_names = clusters(generations[0].drift)
    assert first["model-kl"] == 0 and 0 < first["entropy"] != means["entropy"]
    assert first_names["entropy"] == names["entropy"]  # the same windows, so that generations are paired
    asked, documents = clusters(generations[1].evaluate)
    artifact = store.find(generations[1].evaluate.kind, generations[1].evaluate.key)  # type: ignore[union-attr]
    assert artifact is not None
    assert math.exp(asked["log-perplexity-real"]) == pytest.approx(artifact.manifest.metrics["perplexity-real"])
    assert len(documents["log-perplexity-real"]) > 1


def test_one_run_of_a_language_model_is_judged_where_documents_tell(built: tuple[ArtifactStore, Plan]) -> None:
    store, plan = built
    stage = plan.report()
    artifact, _ = build(stage, store, Runtime(), progress=lambda *_: None)
    found = {row["definition"]: row for row in json.loads(artifact.file("profile.json").read_text())["profile"]}
    for name in ("risk-any", "risk", "model-kl", "entropy", "facts-true", "facts-false"):
        assert found[name]["runs"] == 1 and found[name]["clusters"] > 1 and found[name]["low"] is not None
    for name in ("unigram-kl", "tail-types", "distinct-2", "unlike"):
        assert (found[name]["verdict"], found[name]["why"]) == ("cannot be told", "one run, so no interval")
    # a model that was trained for one epoch writes nothing true of what it read, but five documents do not show that
    # it is less than half: 0 of 5 leaves room for 52% (Clopper and Pearson)
    facts = found["facts-true"]
    assert (facts["verdict"], facts["value"], facts["low"]) == ("cannot be told", 0, 0)
    assert facts["high"] == pytest.approx(1 - 0.025 ** (1 / 5))
    assert found["model-kl"]["verdict"] == "did not"


def test_a_document_is_cut_into_pieces_from_its_end() -> None:
    starts = [[piece[0] for piece in pieces_from_the_end(list(range(length)))] for length in (0, 50, 64, 65, 150, 400)]
    assert starts == [[], [0], [0], [1], [22, 86], [144, 208, 272, 336]]
    assert [len(piece) for piece in pieces_from_the_end(list(range(150)))] == [64, 64]
    assert len(pieces_from_the_end(list(range(50)))[0]) == 50
