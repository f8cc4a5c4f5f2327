"""The catalog: every view queried, rebuilt without disturbing readers, and no SQL that writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import duckdb
import pytest

from fortifai_core.config.experiment import ExperimentConfig
from fortifai_core.errors import ArtifactDamaged, InputError
from storage.catalog.catalog import VIEWS, query, refresh_catalog
from storage.store.experiments import StageRecord, record_experiment
from storage.store.remote_digests import FILE, RemoteDigests
from storage.store.store import ArtifactStore
from storage.tables import parquet

COLUMNS = {
    "experiments": "experiment id name status created updated corpus model regime splits generations config",
    "runs": "experiment arm seed stages present newest_generation seconds updated",
    "generations": "experiment arm seed generation stages present seconds updated",
    "stages": "experiment kind key role arm seed generation split version present seconds created "
    "stage_version size path",
    "metrics": "experiment arm seed generation split metric value count key",
    "documents": "experiment arm seed generation split version document position text tokens kept accepted key",
    "tokens": "experiment arm seed generation split version document position index token kept key",
    "treatments": "experiment arm seed generation split version document copy fate copies tokens changed weight "
    "score why key",
    "pooled_text": "experiment arm seed generation split version document writer key",
    "questions": "experiment question document split context true_answer false_answer key",
    "scores": "experiment arm seed generation question document split logp_true logp_false correct key",
    "lineage": "experiment kind key arm seed generation split version role parent_kind parent_key "
    "parent_generation parent_split parent_version",
    "confidence": "experiment arm seed generation model text low high count key",
    "benchmark_items": "experiment arm seed generation benchmark task item filter metric value target answer key",
    "chains": "experiment arm seed generation split version document key ancestor_version ancestor_generation "
    "text tokens kept ancestor_key",
    "question_fates": "experiment arm seed question document split first_asked last_asked last_right died_in fate",
    "paper_results": "paper_table dataset model generation method metric percent",
}


def put(
    store: ArtifactStore, kind: str, key: str, tables: dict[str, tuple[str, list[dict[str, Any]]]], **parents: str
) -> None:
    with store.build(kind, key) as draft:
        for name, (schema, rows) in tables.items():
            if schema == "text":
                (draft.path / name).write_text(json.dumps(rows))
            else:
                parquet.write_table(draft.path / name, rows, schema=schema)
        draft.commit(stage_version=1, content={"kind": kind}, parents=parents, seconds=2.0)


def text_row(document: str, *tokens: int, kept: int = 0) -> dict[str, Any]:
    return {"document": document, "position": 0, "text": document.upper(), "tokens": list(tokens), "kept": kept}


def fill(store: ArtifactStore) -> str:
    """One experiment of one arm: a corpus of two splits, M_0, its evaluation, D_0^(1), and a model to come."""
    question = {
        "question": "q0", "document": "d0", "split": 0, "context": "c", "true_answer": "t", "false_answer": "f",
    }  # fmt: skip
    score = {
        "question": "q0", "document": "d0", "split": 0, "logp_true": -1.0, "logp_false": -2.0, "correct": True,
    }  # fmt: skip
    put(
        store,
        "corpus",
        "corpus-1",
        {
            "split-00000.parquet": ("split-text", [text_row("d0", 5, 6, 7, kept=3)]),
            "split-00001.parquet": ("split-text", [text_row("d1", 8, kept=1)]),
            "questions.parquet": ("questions", [question]),
        },
    )
    put(store, "model", "model-0", {"model.safetensors": ("text", [])}, corpus="corpus-1")
    put(
        store,
        "split",
        "split-0-1",
        {
            "part-00000.parquet": ("split-text", [text_row("d0", 5, 9, kept=1)]),
            "part-00001.parquet": ("split-text", [text_row("d0b", 4)]),
        },
        text="corpus-1",
        model="model-0",
    )
    put(
        store,
        "evaluation",
        "evaluation-0",
        {
            "scores.parquet": ("scores", [score]),
            "metrics.parquet": (
                "metrics",
                [
                    {"metric": "kr-split-0", "split": 0, "value": 0.75, "count": 4},
                    {"metric": "kr-total", "value": 0.75, "count": 4},
                ],
            ),
        },
        model="model-0",
    )
    bin_ = {"model": "base", "text": "real", "low": 0.0, "high": 0.5, "count": 7}
    item = {"benchmark": "b", "task": "t", "item": 0, "filter": "none", "metric": "acc", "value": 1.0, "answer": "1"}
    put(store, "drift", "drift-0", {"confidence.parquet": ("confidence", [bin_])}, model="model-0")
    put(store, "benchmark", "benchmark-0", {"items.parquet": ("benchmark-items", [item])}, model="model-0")
    fate = {
        "document": "d0", "split": 0, "version": 1, "copy": 0, "fate": "dropped", "copies": 0, "tokens": 2,
        "changed": 0, "score": 0.5, "why": "short",
    }  # fmt: skip
    put(store, "treated", "treated-1", {"treatments.parquet": ("treatments", [fate])}, model="model-0")
    pooled = {**text_row("d0", 5), "writer": 0}
    put(store, "pooled", "pooled-1", {"part-00000.parquet": ("pooled-text", [pooled])}, **{"texts.0": "split-0-1"})
    run = {"arm": "tce-0.9", "seed": 3}
    stages = [
        StageRecord("corpus", "corpus-1", "corpus"),
        StageRecord("model", "model-0", "train", **run, generation=0, parents={"corpus": "corpus-1"}),
        StageRecord("evaluation", "evaluation-0", "evaluate", **run, generation=0, parents={"model": "model-0"}),
        StageRecord("split", "split-0-1", "regenerate", **run, generation=0, split=0, version=1),
        StageRecord("model", "model-1", "train", **run, generation=1, parents={"D0^(1)": "split-0-1"}),
    ]
    config = ExperimentConfig(name="mine").model_dump(mode="json")
    return record_experiment(store, config=config, status="running", stages=stages).label


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    # A quote and a bracket in the path: views name files in SQL strings, and DuckDB reads [ as a wildcard.
    return ArtifactStore(tmp_path / "it's [a] store")


def one(store: ArtifactStore, sql: str) -> Any:
    _, rows = query(store, sql)
    assert len(rows) == 1, rows
    return rows[0]


@pytest.mark.parametrize("filled", [False, True])
def test_every_view_has_its_columns_with_and_without_rows(store: ArtifactStore, filled: bool) -> None:
    if filled:
        fill(store)
    assert set(COLUMNS) == set(VIEWS)
    types = {}
    for view, columns in COLUMNS.items():
        names, rows = query(store, f"SELECT * FROM {view}")
        assert names == columns.split(), view
        assert bool(rows) == (filled or view == "paper_results"), view
        types[view] = query(store, f"DESCRIBE {view}")[1]
    if filled:
        empty = ArtifactStore(store.root / "another")
        assert types == {view: query(empty, f"DESCRIBE {view}")[1] for view in COLUMNS}


def test_each_token_says_whether_it_was_kept_and_older_files_leave_it_open(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files from before the column was there are read beside newer ones, and alone."""
    old = {name: column for name, column in parquet.SPLIT_TEXT.items() if name not in ("same", "accepted")}
    asked = "SELECT version, document, token, kept FROM tokens ORDER BY ALL"
    with monkeypatch.context() as patch:
        patch.setitem(parquet.SCHEMAS, "split-text", old)
        fill(store)
    real = [(0, "d0", 5, True), (0, "d0", 6, True), (0, "d0", 7, True), (0, "d1", 8, True)]
    unknown = [(1, "d0", 5, None), (1, "d0", 9, None), (1, "d0b", 4, None)]
    assert query(store, asked)[1] == real + unknown
    row = {**text_row("d9", 1, 2, kept=1), "same": [False, True], "accepted": 1}
    put(store, "split", "split-0-2", {"part-00000.parquet": ("split-text", [row])}, model="model-0")
    newer = [r for r in query(store, asked)[1] if r[1] == "d9"]
    assert [(token, kept) for _, _, token, kept in newer] == [(1, False), (2, True)]
    assert one(store, "SELECT kept, accepted FROM documents WHERE document = 'd9'") == (1, 1)
    assert [r for r in query(store, asked)[1] if r[1] != "d9"] == real + unknown


def test_rows_know_their_run(store: ArtifactStore) -> None:
    label = fill(store)
    run = (label, "tce-0.9", 3, 0)
    assert query(store, "FROM metrics ORDER BY metric")[1] == [
        (*run, 0, "kr-split-0", 0.75, 4, "evaluation-0"),
        (*run, None, "kr-total", 0.75, 4, "evaluation-0"),
    ]
    assert one(store, "FROM scores") == (*run, "q0", "d0", 0, -1.0, -2.0, True, "evaluation-0")
    assert one(store, "FROM questions")[:4] == (label, "q0", "d0", 0)
    assert query(store, "SELECT arm, split, version, document, tokens, kept FROM documents ORDER BY ALL")[1] == [
        ("tce-0.9", 0, 1, "d0", 2, 1),
        ("tce-0.9", 0, 1, "d0b", 1, 0),
        (None, 0, 0, "d0", 3, 3),
        (None, 1, 0, "d1", 1, 1),
    ]
    ordered = "SELECT index, token FROM tokens WHERE split = 0 AND version = 0 ORDER BY index"
    assert query(store, ordered)[1] == [(0, 5), (1, 6), (2, 7)]
    assert one(store, "SELECT count(*), sum(token) FROM tokens WHERE version = 1") == (3, 18)
    assert one(store, "SELECT stages, present, newest_generation, seconds FROM runs") == (4, 3, 0, 6.0)
    assert query(store, "SELECT generation, stages, present FROM generations ORDER BY ALL")[1] == [
        (0, 3, 3),
        (1, 1, 0),
    ]
    assert one(store, "SELECT present, size, path FROM stages WHERE key = 'model-1'") == (False, None, None)
    assert query(
        store, "SELECT role, parent_kind, parent_key, parent_generation FROM lineage WHERE kind = 'split' ORDER BY role"
    )[1] == [("model", "model", "model-0", 0), ("text", "corpus", "corpus-1", None)]
    assert one(store, "SELECT parent_split, parent_version FROM lineage WHERE key = 'model-1'") == (0, 1)
    assert one(store, "SELECT corpus, model, regime, splits FROM experiments") == ("almanac", "scratch", "paper", 6)
    assert one(store, "SELECT count(*) FROM paper_results") == (562,)
    assert one(
        store,
        "SELECT percent FROM paper_results WHERE paper_table = 'Table 1' AND dataset = 'wikitext' "
        "AND model = 'llama-3.2-1b' AND method = 'ce' AND metric = 'kr-test'",
    ) == (64.0,)


def test_a_shared_artifact_appears_once_in_each_experiment(store: ArtifactStore) -> None:
    fill(store)
    config = ExperimentConfig(name="second").model_dump(mode="json")
    stage = StageRecord("evaluation", "evaluation-0", "evaluate", "ce", 0, 0)
    record_experiment(store, config=config, status="finished", stages=[stage])
    assert query(store, "SELECT arm, count(*) FROM scores GROUP BY arm ORDER BY arm")[1] == [("ce", 1), ("tce-0.9", 1)]


def test_what_no_experiment_names_is_listed_without_one(store: ArtifactStore) -> None:
    metrics = [{"metric": "perplexity-real", "value": 9.0, "count": 7}]
    put(store, "evaluation", "by-hand", {"metrics.parquet": ("metrics", metrics)})
    assert one(store, "SELECT experiment, arm, value, key FROM metrics") == (None, None, 9.0, "by-hand")
    assert one(store, "SELECT experiment, role, present FROM stages") == (None, "evaluation", True)


def test_the_catalog_follows_the_store(store: ArtifactStore) -> None:
    fill(store)
    query(store, "FROM stages")
    first = store.catalog.stat().st_ino
    query(store, "FROM stages")
    assert store.catalog.stat().st_ino == first  # nothing changed, nothing rebuilt
    put(store, "model", "model-1", {"model.safetensors": ("text", [])})
    assert one(store, "SELECT present FROM stages WHERE key = 'model-1'") == (True,)
    store.remove("evaluation", "evaluation-0")
    assert query(store, "FROM metrics")[1] == []
    record_experiment(store, config=ExperimentConfig(name="new").model_dump(mode="json"), status="running")
    assert one(store, "SELECT count(*) FROM experiments") == (2,)


def test_a_deleted_or_spoilt_catalog_is_made_again(store: ArtifactStore) -> None:
    fill(store)
    before = query(store, "FROM metrics ORDER BY ALL")
    store.catalog.unlink()
    assert query(store, "FROM metrics ORDER BY ALL") == before
    store.catalog.write_bytes(b"no database")
    assert query(store, "FROM metrics ORDER BY ALL") == before
    store.catalog.unlink()
    duckdb.connect(store.catalog).close()  # a database, but not ours
    assert query(store, "FROM metrics ORDER BY ALL") == before
    assert [p.name for p in store.root.iterdir() if "catalog" in p.name] == ["catalog.duckdb"]


def test_a_reader_keeps_the_old_catalog_while_a_new_one_takes_its_place(store: ArtifactStore) -> None:
    fill(store)
    with duckdb.connect(refresh_catalog(store), read_only=True) as reader:
        store.remove("model", "model-0")
        assert one(store, "SELECT present FROM stages WHERE key = 'model-0'") == (False,)
        old = reader.execute("SELECT present FROM stages WHERE key = 'model-0'").fetchall()
        assert old == [(True,)]


def test_a_user_who_holds_the_file_open_for_writing_blocks_nobody(store: ArtifactStore) -> None:
    """What `duckdb $(fortifai path catalog)` does: another process with the write lock, and from anywhere."""
    fill(store)
    path = refresh_catalog(store)
    code = (
        "import duckdb, sys, time\n"
        "c = duckdb.connect(sys.argv[1])\n"
        "print(c.execute('SELECT count(*) FROM metrics').fetchone(), flush=True)\n"
        "c.execute('CREATE TABLE mine AS SELECT 1')\n"
        "time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True, cwd="/")
    try:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "(2,)"
        assert one(store, "SELECT count(*) FROM metrics") == (2,)
    finally:
        process.kill()
        process.communicate()
    assert one(store, "SELECT count(*) FROM metrics") == (2,)


WRITES = [
    "COPY (SELECT 1) TO '{inside}'",
    "COPY (SELECT 1) TO '{outside}'",
    "WITH z AS (COPY (SELECT 1) TO '{inside}') SELECT 1",
    "WITH z AS MATERIALIZED (COPY (SELECT 1) TO '{inside}') SELECT * FROM z",
    "FROM query('WITH z AS (COPY (SELECT 1) TO ''{inside}'') SELECT 1')",
    "COPY (PIVOT stages ON kind) TO '{inside}'",
    "WITH y AS (PIVOT stages ON kind), z AS (COPY (SELECT 1) TO '{inside}') FROM y",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{inside}'",
    "EXPLAIN ANALYZE COPY (PIVOT stages ON kind) TO '{inside}'",
    "EXPORT DATABASE '{inside}'",
    "ATTACH '{inside}'",
    "CREATE TABLE memory.main.t (a INT)",
    "CREATE TEMP TABLE t AS SELECT 1",
    "CREATE TABLE t AS PIVOT stages ON kind",
    "INSERT INTO catalog_state VALUES ('a', 'b')",
    "WITH z AS (INSERT INTO catalog_state VALUES ('a', 'b') RETURNING *) SELECT * FROM z",
    "DELETE FROM stages",
    "UPDATE stages SET seconds = 0",
    "DROP TABLE stages",
    "INSTALL httpfs",
    "LOAD httpfs",
    "SET enable_external_access = true",
    "CALL enable_logging(storage = 'file', storage_path = '{inside}')",
    "FROM enable_logging(storage = 'file', storage_path = '{inside}')",
    "SELECT 1; DROP TABLE stages",
    "SELECT 1; SELECT 2",
    "",
]


@pytest.mark.parametrize("statement", WRITES)
def test_no_sql_writes(store: ArtifactStore, tmp_path: Path, statement: str) -> None:
    fill(store)
    refresh_catalog(store)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    target = (store.root / "artifacts" / "written.csv").as_posix().replace("'", "''")
    if "query('" in statement:
        target = target.replace("'", "''")
    with pytest.raises(InputError):
        query(store, statement.format(inside=target, outside=tmp_path / "written.csv"))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "statement",
    [
        "FROM read_csv('{file}')",
        "FROM read_text('{file}')",
        "FROM read_blob('{file}')",
        "FROM '{file}'",
        "FROM glob('{folder}/*')",
        "FROM read_text('{store}/artifacts/../../secret.csv')",
        "FROM read_csv('https://example.org/x.csv')",
    ],
)
def test_no_sql_reads_other_files(store: ArtifactStore, tmp_path: Path, statement: str) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text("a,b\n1,2\n")
    fill(store)
    with pytest.raises(InputError):
        query(
            store,
            statement.format(file=secret, folder=tmp_path, store=str(store.root).replace("'", "''")),
        )


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT arm, avg(correct::INT) FROM scores GROUP BY arm",
        "PIVOT (FROM metrics) ON metric USING avg(value) GROUP BY arm",
        "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r WHERE n < 5) SELECT sum(n) FROM r",
        "SUMMARIZE metrics",
        "SHOW TABLES",
        "SELECT 'copy to' AS \"copy\"; -- DROP",
        "SELECT content->>'kind' FROM artifacts LIMIT 1",
        "VALUES (1)",
    ],
)
def test_ordinary_questions_are_answered(store: ArtifactStore, statement: str) -> None:
    fill(store)
    columns, rows = query(store, statement)
    assert columns
    assert rows


def test_limit_and_mistakes(store: ArtifactStore) -> None:
    fill(store)
    columns, rows = query(store, "SELECT generation FROM paper_results", limit=7)
    assert (columns, len(rows)) == (["generation"], 7)
    for wrong in ("SELEC 1", "SELECT * FROM nowhere", "SELECT nothing FROM scores"):
        with pytest.raises(InputError, match="the views are experiments") as caught:
            query(store, wrong)
        assert caught.value.exit_code == 2


@pytest.mark.parametrize("damage", ["truncated", "flipped", "gone", "manifest"])
@pytest.mark.parametrize("stale", [False, True], ids=["catalog there", "catalog stale"])
def test_a_damaged_artifact_is_refused_every_time_and_named(store: ArtifactStore, damage: str, stale: bool) -> None:
    fill(store)
    assert one(store, "SELECT count(*) FROM metrics") == (2,)
    if stale:
        store.catalog.unlink()
    place = store.tree.place("evaluation", "evaluation-0")
    path = place / ("manifest.json" if damage == "manifest" else "metrics.parquet")
    whole = path.read_bytes()
    middle = len(whole) // 2
    content = whole[:-7] if damage == "truncated" else whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    path.unlink() if damage == "gone" else path.write_bytes(content)
    for _ in range(3):
        with pytest.raises(ArtifactDamaged, match=r"1 damaged artifacts.*evaluation-0.*fortifai verify"):
            query(store, "SELECT count(*) FROM metrics")
    with pytest.raises(ArtifactDamaged, match=path.name):
        refresh_catalog(store)
    path.write_bytes(whole)
    assert one(store, "SELECT count(*) FROM metrics") == (2,)


def test_a_query_leaves_nothing_in_the_shared_temporary_folder(
    store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tempfile

    fill(store)
    shared = tmp_path / "shared"
    shared.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(shared))
    (place,) = query(store, "SELECT current_setting('temp_directory')")[1][0]
    assert Path(place).parent == shared and Path(place).name not in ("fortifai", "fortifai-duckdb")
    assert list(shared.iterdir()) == []


def test_a_moved_store_gets_new_paths(store: ArtifactStore, tmp_path: Path) -> None:
    fill(store)
    query(store, "FROM metrics")
    store.root.rename(tmp_path / "elsewhere")
    moved = ArtifactStore(tmp_path / "elsewhere")
    assert one(moved, "SELECT count(*) FROM metrics") == (2,)
    assert one(moved, "SELECT DISTINCT path LIKE '%elsewhere%' FROM stages WHERE present") == (True,)


def test_a_remote_store_is_asked_the_same_way(tmp_path: Path) -> None:
    store = ArtifactStore(f"memory://{uuid.uuid4().hex}/prefix", cache=tmp_path / "cache")
    label = fill(store)
    assert one(store, "SELECT experiment, arm, generation, value FROM metrics WHERE split IS NULL") == (
        label, "tce-0.9", 0, 0.75,
    )  # fmt: skip
    assert one(store, "SELECT count(*) FROM tokens") == (7,)
    other = ArtifactStore(store.url, cache=tmp_path / "other")
    assert one(other, "SELECT count(*) FROM documents") == (4,)
    assert not (other.root / "artifacts").exists()


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_object_of_a_remote_store_is_refused_until_it_is_mended(tmp_path: Path, damage: str) -> None:
    store = ArtifactStore(f"memory://{uuid.uuid4().hex}/prefix", cache=tmp_path / "cache")
    fill(store)
    assert one(store, "SELECT count(*) FROM metrics WHERE split IS NULL") == (1,)
    assert store.remote is not None
    name = "artifacts/evaluation/evaluation-0/metrics.parquet"
    whole = store.remote.read(name)
    assert whole is not None
    other = bytes([*whole[:-40], whole[-40] ^ 1, *whole[-39:]]) if damage == "flipped" else whole[:-40]
    store.remote.write(name, other)
    said = "sha256" if damage == "flipped" else "bytes, its manifest says"
    for machine in ("cache", "cache", "another"):  # every time, and by whoever asks
        with pytest.raises(ArtifactDamaged, match=f"1 damaged artifacts.*metrics.parquet.*{said}"):
            query(ArtifactStore(store.url, cache=tmp_path / machine), "SELECT count(*) FROM metrics")
    store.remote.write(name, whole)
    assert one(store, "SELECT count(*) FROM metrics WHERE split IS NULL") == (1,)


def test_an_object_of_a_remote_store_is_read_once_for_its_digest(tmp_path: Path) -> None:
    store = ArtifactStore(f"memory://{uuid.uuid4().hex}/prefix", cache=tmp_path / "cache")
    fill(store)
    assert store.remote is not None
    name = "artifacts/evaluation/evaluation-0/metrics.parquet"
    info = store.remote.objects("artifacts/evaluation/evaluation-0")["metrics.parquet"]
    first = RemoteDigests(store.remote, tmp_path)
    digest = first.of(name, info)
    first.keep()
    store.remote.delete(name)  # from here on it cannot be read
    assert RemoteDigests(store.remote, tmp_path).of(name, info) == digest
    for other in ({**info, "created": "later"}, {"size": info["size"]}):
        with pytest.raises(FileNotFoundError):
            RemoteDigests(store.remote, tmp_path).of(name, other)
    for text in ("", "[]", '{"a": 1}', "\x00"):  # what is no record of digests is none
        (tmp_path / FILE).write_text(text)
        with pytest.raises(FileNotFoundError):
            RemoteDigests(store.remote, tmp_path).of(name, info)


def test_thousands_of_artifacts_are_one_query(store: ArtifactStore) -> None:
    """Copied by hand, for speed."""
    fill(store)
    template = store.tree.place("evaluation", "evaluation-0")
    manifest = store.peek("evaluation", "evaluation-0")
    assert manifest is not None
    from dataclasses import replace

    for number in range(1500):
        place = store.tree.place("evaluation", f"copy-{number:04d}")
        place.mkdir()
        for name in ("scores.parquet", "metrics.parquet"):
            os.link(template / name, place / name)
        (place / "manifest.json").write_text(replace(manifest, key=place.name).to_json())
    assert one(store, "SELECT count(*), count(DISTINCT key) FROM metrics") == (3002, 1501)
