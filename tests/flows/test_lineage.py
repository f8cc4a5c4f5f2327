"""Lineage: a synthetic document's chain of versions in one query, and when each question died."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fortifai_core.errors import InputError
from storage.catalog.catalog import query
from storage.store.experiments import StageRecord, load_experiment, record_experiment
from storage.store.store import ArtifactStore
from storage.tables import parquet


def put(
    store: ArtifactStore, kind: str, key: str, name: str, schema: str, rows: list[dict[str, Any]], **parents: str
) -> None:
    with store.build(kind, key) as draft:
        parquet.write_table(draft.path / name, rows, schema=schema)
        draft.commit(stage_version=1, content={}, parents=parents, seconds=1.0)


def text(document: str, said: str) -> dict[str, Any]:
    return {"document": document, "position": 0, "text": said, "tokens": [1], "kept": 0}


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    """Two arms; split 0 rewritten twice in each, split 1 once; four questions asked in three generations."""
    store = ArtifactStore(tmp_path / "store")
    real = [text("d0", "real zero"), text("d1", "real one")]
    put(store, "corpus", "c", "split-00000.parquet", "split-text", real)
    stages = [StageRecord("corpus", "c", "corpus")]
    for arm in ("ce", "tce"):
        for version in (1, 2):
            key = f"{arm}-{version}"
            parents = {"model": f"m-{arm}", "corpus": "c", **({"text": f"{arm}-1"} if version == 2 else {})}
            rows = [text(name, f"{arm} {version} of {name}") for name in ("d0", "d1")]
            put(store, "split", key, "part-00000.parquet", "split-text", rows, **parents)
            place = {"arm": arm, "seed": 0, "generation": version - 1, "split": 0, "version": version}
            stages.append(StageRecord("split", key, "regenerate", **place, parents=parents))
    right = {"lasting": (1, 1, 1), "dying": (1, 0, 0), "back": (0, 0, 1), "unknown": (0, 0, 0), "late": (1, 1, 0)}
    for generation in range(3):
        rows = [
            {"question": q, "document": "d0", "split": 0, "logp_true": -1.0, "logp_false": -1.0,
             "correct": bool(answers[generation])}
            for q, answers in right.items()
        ]  # fmt: skip
        put(store, "evaluation", f"e{generation}", "scores.parquet", "scores", rows)
        stages.append(StageRecord("evaluation", f"e{generation}", "evaluate", "ce", 0, generation))
    record_experiment(store, config={"name": "mine"}, status="finished", stages=stages)
    return store


def test_every_synthetic_row_has_its_chain_back_to_the_real_document_in_one_query(store: ArtifactStore) -> None:
    sql = """SELECT ancestor_version, ancestor_generation, text, ancestor_key FROM chains
        WHERE key = 'tce-2' AND document = 'd1' ORDER BY ancestor_version DESC"""
    assert query(store, sql)[1] == [
        (2, 1, "tce 2 of d1", "tce-2"),
        (1, 0, "tce 1 of d1", "tce-1"),
        (0, None, "real one", "c"),
    ]
    whole = query(store, "SELECT arm, version, document, count(*) FROM chains GROUP BY ALL ORDER BY ALL")[1]
    assert whole == [(arm, v, d, v + 1) for arm in ("ce", "tce") for v in (1, 2) for d in ("d0", "d1")]


def test_a_version_that_arms_share_is_told_once(store: ArtifactStore) -> None:
    record = load_experiment(store, "mine")
    place = {"seed": 0, "generation": 0, "split": 0, "version": 1}
    shared = [StageRecord("split", "ce-1", "regenerate", arm, **place, parents={"corpus": "c"}) for arm in ("x", "y")]
    record_experiment(store, config={"name": "mine"}, status="finished", stages=[*record.stages, *shared])
    rows = query(store, "SELECT arm, version, document, count(*) FROM chains GROUP BY ALL ORDER BY ALL")[1]
    versions = {"ce": (1, 2), "tce": (1, 2), "x": (1,), "y": (1,)}
    assert rows == [(arm, v, d, v + 1) for arm, of_arm in versions.items() for v in of_arm for d in ("d0", "d1")]


def test_a_question_died_in_the_generation_after_its_last_right_answer(store: ArtifactStore) -> None:
    rows = query(store, "SELECT question, fate, died_in FROM question_fates")[1]
    fates = {question: (fate, died) for question, fate, died in rows}
    assert fates == {
        "lasting": ("alive", None),
        "dying": ("died", 1),
        "back": ("alive", None),
        "unknown": ("never learned", None),
        "late": ("died", 2),
    }


def test_trace_tells_a_documents_way_and_its_questions_fates(store: ArtifactStore) -> None:
    from flows.tools.tracing import changes, trace

    record = load_experiment(store, "mine")
    runs = [StageRecord("model", f"m-{arm}", "train", arm, 0, 0) for arm in ("ce", "tce")]
    record = record_experiment(store, config={"name": "mine"}, status="finished", stages=[*record.stages, *runs])
    found = trace(store, record, "d0", arm=None, seed=None)
    assert (found["arm"], found["document"]) == ("ce", "d0")
    assert [(v["version"], v["generation"], v["text"]) for v in found["versions"]] == [
        (0, None, "real zero"),
        (1, 0, "ce 1 of d0"),
        (2, 1, "ce 2 of d0"),
    ]
    assert {q["question"]: q["died_in"] for q in found["questions"]}["late"] == 2
    by_question = trace(store, record, "dying", arm="ce", seed=0)
    assert by_question["document"] == "d0" and [q["fate"] for q in by_question["questions"]] == ["died"]
    assert trace(store, record, "d1", arm="tce", seed=0)["versions"][-1]["text"] == "tce 2 of d1"
    with pytest.raises(InputError, match="there are d0, d1"):
        trace(store, record, "d7", arm="ce", seed=0)
    with pytest.raises(InputError, match="ce · seed 0, tce · seed 0"):
        trace(store, record, "d0", arm="focal", seed=0)
    pieces = list(changes("founded in 1340 by Ada", "founded in 1512 by Ada"))
    assert [text for text, new in pieces if new] == ["1512"] and "".join(text for text, _ in pieces).endswith("by Ada")
