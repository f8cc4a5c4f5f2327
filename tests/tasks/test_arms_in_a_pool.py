"""Arms that read each other's text: who reads what, what is shared with arms that do not, and what is refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from flows.load import load_any_config, load_experiment_config, validate
from flows.prepare import Prepared, prepare_experiment
from flows.tools.exporting import export_dataset
from flows.tools.tracing import trace
from fortifai_core.config.experiment import ExperimentConfig
from fortifai_core.config.model import PretrainedModel
from fortifai_core.config.stages import Runtime
from fortifai_core.corpus.pooling import writers
from fortifai_core.errors import ConfigError
from fortifai_core.seeds import derive_seed
from storage.catalog.catalog import query
from storage.store.experiments import load_experiment, record_experiment
from storage.store.store import Artifact
from storage.tables import parquet
from tasks.engine.build import build
from tasks.engine.plans import Plan, RunPlan
from tasks.language.plan import Digests, place_of, plan_experiment

BOTH = {"large": 0.5, "small": 0.5}
SIZES: list[dict[str, Any]] = [
    {"name": "large", "pool": BOTH},
    {"name": "small", "model": {"hidden_size": 16, "layers": 1}, "pool": BOTH},
]


def planned(arms: list[dict[str, Any]], **fields: Any) -> Plan:
    small = load_experiment_config("smoke").model_dump(mode="json")
    config = validate({**small, "losses": [{"type": "cross-entropy"}], "generations": 3, **fields, "arms": arms})
    assert isinstance(config, ExperimentConfig)
    return plan_experiment(config, Digests({}))


def of(plan: Plan, arm: str) -> RunPlan:
    return next(run for run in plan.runs if run.arm == arm)


# ------------------------------------------------------------------------------------------------- in a plan


def test_a_member_reads_what_the_members_wrote_and_rewrites_what_it_read() -> None:
    plan = planned(SIZES)
    large, small = of(plan, "large"), of(plan, "small")
    assert not large.generations[0].pool and not small.generations[0].pool  # M_0 reads real text
    for i in (1, 2):
        made = {stage.split: stage for stage in large.generations[i].pool}
        assert set(made) == set(range(i))  # every split that was rewritten before
        written = {stage.split: stage.reference for stage in large.generations[i - 1].regenerate}
        others = {stage.split: stage.reference for stage in small.generations[i - 1].regenerate}
        for split, stage in made.items():
            assert stage.parents == {"texts.0": written[split], "texts.1": others[split]}
            assert large.generations[i].train.parents[f"D{split}^({i - split})"] == stage.reference
            rewritten = next(one for one in large.generations[i].regenerate if one.split == split)
            assert rewritten.parents["text"] == stage.reference
        # both read the same: it is made once
        assert [stage.key for stage in small.generations[i].pool] == [stage.key for stage in made.values()]
    order = [stage.reference for stage in plan.stages()]
    places = {reference: place for place, reference in enumerate(order)}
    assert all(places[p] < places[s.reference] for s in plan.stages() for p in s.parents.values())
    assert [[run.arm for run in runs] for runs in plan.together()] == [["large", "small"]]


def test_members_with_other_shares_read_other_texts() -> None:
    plan = planned([{**SIZES[0], "pool": {"large": 0.8, "small": 0.2}}, SIZES[1]])
    first, second = (of(plan, arm).generations[1].pool[0] for arm in ("large", "small"))
    assert first.parents == second.parents and first.key != second.key
    # in whatever order the members are named
    turned = planned([{**SIZES[0], "pool": {"small": 0.2, "large": 0.8}}, SIZES[1]])
    assert of(turned, "large").generations[1].pool[0].key == first.key


def test_an_arm_that_nobody_reads_and_that_reads_nobody_has_the_keys_it_had() -> None:
    alone = planned([{"name": "large"}])
    beside = planned([{"name": "plain"}, *SIZES])
    for one, other in zip(of(alone, "large").generations, of(beside, "plain").generations, strict=True):
        assert [stage.key for stage in one.stages] == [stage.key for stage in other.stages]
    # and a member shares with it what comes before it reads others
    plain, member = of(beside, "plain").generations, of(beside, "large").generations
    assert plain[0].train.key == member[0].train.key and plain[1].train.key != member[1].train.key
    assert [s.key for s in plain[0].regenerate] == [s.key for s in member[0].regenerate]
    assert [[run.arm for run in runs] for runs in beside.together()] == [["plain"], ["large", "small"]]


def test_one_may_read_another_that_does_not_read_it() -> None:
    plan = planned([{"name": "large"}, {**SIZES[1], "pool": {"large": 1}}], evaluation={"drift": False})
    assert [stage.parents for stage in of(plan, "small").generations[1].pool] == [
        {"texts.0": of(plan, "large").generations[0].regenerate[0].reference}
    ]
    assert not of(plan, "large").generations[1].pool
    assert [[run.arm for run in runs] for runs in plan.together()] == [["large", "small"]]
    needed = {stage.reference for stage in plan.alone("small")}
    assert of(plan, "large").generations[1].regenerate[0].reference in needed


def test_an_arm_that_reads_no_synthetic_text_rewrites_for_those_that_read_it() -> None:
    arms = [
        {"name": "real", "mixture": {"synthetic": 0, "real": "original"}},
        {"name": "reader", "mixture": {"synthetic": 1}, "pool": {"real": 0.5, "reader": 0.5}},
    ]
    plan = planned(arms, evaluation={"drift": False})
    assert [len(g.regenerate) for g in of(plan, "real").generations] == [1, 1, 0]
    assert not planned(arms[:1], evaluation={"drift": False}).runs[0].generations[0].regenerate


def test_the_plan_says_whom_an_arm_reads() -> None:
    config = load_experiment_config("pool")
    differences = {arm.label: arm.difference for arm in config.resolved_arms()}
    assert differences["large-in-pool"] == "pool 50% large-in-pool, 50% small-in-pool (first: none)"
    assert "pool" not in differences["small"]


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("arms", "fields", "problem"),
    [
        ([{"name": "a", "pool": {"a": 0.5, "b": 0.5}}], {}, r"arms\.0\.pool\.b = 0\.5: is no arm whose text .* a$"),
        ([{**SIZES[0], "pool": {"large": 0.5, "small": 0.4}}, SIZES[1]], {}, r"arms\.0\.pool = .* sum to 0\.9"),
        ([{**SIZES[0], "pool": {"large": 1, "small": 0}}, SIZES[1]], {}, r"arms\.0\.pool\.small = 0: .*greater than 0"),
        ([{**SIZES[0], "pool": {"large": 1}}, SIZES[1]], {}, r"arms\.0\.pool = .*reads its own text anyway"),
        (
            [SIZES[0], {"name": "small", "model": {"vocabulary": 400}}],
            {},
            r"arms\.0\.pool\.small = 0\.5: has another tokenizer than large.*model\.vocabulary",
        ),
        (
            [SIZES[0], {"name": "small", "regime": "replace"}],
            {},
            r"arms\.0\.pool\.small = 0\.5: does not write D1\^\(1\), which large reads: give both the same regime",
        ),
        (SIZES, {"failure": {"stop_arm": True}}, r"failure\.stop_arm = True: the arms of a pool .*set it to false"),
        ([SIZES[0], {**SIZES[1], "model": {}}], {}, r"arms\.1 = 'small': comes to the same as large"),
    ],
)
def test_a_pool_that_cannot_be_is_refused(arms: list[dict[str, Any]], fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        planned(arms, **fields)


def test_pretrained_models_read_each_other_where_their_tokenizers_are_the_same() -> None:
    models = [PretrainedModel(path=f"owner/{name}") for name in ("large", "small")]
    arms = [{"name": m.path.rpartition("/")[2], "model": m.model_dump(), "pool": BOTH} for m in models]
    small = load_experiment_config("smoke").model_dump(mode="json")
    config = validate({**small, "losses": [{"type": "cross-entropy"}], "arms": arms})
    assert isinstance(config, ExperimentConfig)
    places = [place_of(model) for model in models]
    identities = dict(zip(places, ("sha256:1", "sha256:2"), strict=True))
    plan = plan_experiment(config, Digests({}, identities, tokenizers=dict.fromkeys(places, "one")))
    assert len(of(plan, "large").generations[1].pool[0].parents) == 2
    for tokenizers in (None, dict(zip(places, ("one", "another"), strict=True))):
        with pytest.raises(ConfigError, match="has another tokenizer than large"):
            plan_experiment(config, Digests({}, identities, tokenizers=tokenizers))


def test_other_model_classes_have_no_pools() -> None:
    with pytest.raises(ConfigError, match=r"arms\.0.*pool"):
        load_any_config("arena-zipf", ["arms=[{name: a, pool: {b: 1}}, {name: b, regime: accumulate}]"])


# ------------------------------------------------------------------------------------------- from end to end

SMALL = [
    "training.epochs=1",
    "model.pretraining_epochs=0.2",
    "corpus.entities=6",
    "generations=3",
    "regeneration.engine=aligned",
    "evaluation.perplexity=false",
]
ARMS = """arms=[
    {name: large, pool: {large: 0.7, small: 0.3}},
    {name: small, model: {hidden_size: 16, layers: 1}, pool: {large: 0.5, small: 0.5}},
]"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Prepared, dict[str, Artifact]]:
    """A microscopic pool of two sizes, three generations, to its report; every artifact by run and label."""
    store = tmp_path_factory.mktemp("pooled") / "store"
    config = load_experiment_config("smoke", ["losses=[{type: cross-entropy}]", *SMALL, ARMS])
    prepared = prepare_experiment(config, store=str(store))
    artifacts = {
        f"{one.run} · {one.label}": build(one, prepared.store, Runtime(), progress=lambda *_: None)[0]
        for one in prepared.plan.stages()
    }
    record_experiment(prepared.store, config=prepared.plan.config.model_dump(mode="json"), status="finished")
    return prepared, artifacts


def test_every_document_is_as_its_writer_wrote_it(finished: tuple[Prepared, dict[str, Artifact]]) -> None:
    artifacts = finished[1]
    pooled = parquet.read_rows(artifacts["large · seed 0 · pool · g1 · split 0"].files("part-*.parquet"))
    members = [
        parquet.read_rows(artifacts[f"{arm} · seed 0 · regenerate · g0 · split 0"].files("part-*.parquet"))
        for arm in ("large", "small")
    ]
    drawn = writers(len(pooled), [0.7, 0.3], seed=derive_seed("pool", 0, 0, 1))
    assert [row["writer"] for row in pooled] == drawn
    for place, row in enumerate(pooled):
        assert {**members[row["writer"]][place], "writer": row["writer"]} == row
    assert members[0] != members[1]
    metrics = artifacts["large · seed 0 · pool · g1 · split 0"].manifest.metrics
    counts = Counter(drawn)
    assert metrics == {"documents": 6, "documents-0": counts[0], "documents-1": counts[1]} and counts[0] == 4


def test_lineage_leads_through_the_pool_to_the_real_text(
    finished: tuple[Prepared, dict[str, Artifact]], tmp_path: Path
) -> None:
    prepared, artifacts = finished
    store, name = prepared.store, prepared.plan.config.name
    members = ("large", "small")
    writer: dict[tuple[str, int, str], str] = {}  # of whom a reader has a version of a document
    for reader in members:
        for version in (1, 2):
            files = artifacts[f"{reader} · seed 0 · pool · g{version} · split 0"].files("part-*.parquet")
            for row in parquet.read_rows(files):
                writer[reader, version, row["document"]] = members[row["writer"]]
    keys = {
        (arm, version): artifacts[f"{arm} · seed 0 · regenerate · g{version - 1} · split 0"].manifest.key
        for arm in members
        for version in (1, 2, 3)
    }

    def way(document: str, arm: str) -> list[str]:
        """Who wrote each version, the newest first: the reader of the newer one says whose the older one is."""
        second = writer[arm, 2, document]
        return [arm, second, writer[second, 1, document]]

    ways = set[tuple[str, ...]]()
    for arm in members:
        rows = query(
            store,
            f"""SELECT document, list(ancestor_key ORDER BY ancestor_version DESC) FROM chains
            WHERE arm = '{arm}' AND split = 0 AND version = 3 GROUP BY document""",
        )[1]
        assert len(rows) == 6
        for document, ancestors in rows:
            told = way(document, arm)
            assert ancestors[:3] == [keys[one, 3 - place] for place, one in enumerate(told)] and len(ancestors) == 4
            ways.add(tuple(told))
    assert len(ways) > 4
    document = "split-0-1"
    traced = trace(store, load_experiment(store, name), document, arm="small", seed=0)
    found = [(v["version"], v["writer"] or "small") for v in reversed(traced["versions"])]
    assert found == [*zip((3, 2, 1), way(document, "small"), strict=True), (0, "small")]
    wrote = query(
        store, "SELECT writer, count(*) FROM pooled_text WHERE arm = 'small' AND generation = 1 GROUP BY ALL"
    )[1]
    assert sorted(wrote) == [(0, 3), (1, 3)]
    exported = export_dataset(store, name, arm="small", seed=0, generation=1, target=tmp_path / "out")
    rows = parquet.read_rows(sorted((exported / "data").glob("*.parquet")), columns=["document", "version", "text"])
    pooled = parquet.read_rows(artifacts["small · seed 0 · pool · g1 · split 0"].files("part-*.parquet"))
    assert [row["text"] for row in rows if row["version"] == 1] == [row["text"] for row in pooled]


def test_the_report_has_a_member_as_an_arm(finished: tuple[Prepared, dict[str, Artifact]]) -> None:
    report = next(artifact for name, artifact in finished[1].items() if name.endswith("report"))
    page = report.file("report.html").read_text(encoding="utf-8")
    assert "pool 50% large, 50% small (first: 70% large, 30% small)" in page
    profile = parquet.read_rows(report.path / "tables" / "profile.parquet")
    assert {row["arm"] for row in profile} == {"large", "small"}
