"""Parquet tables and parts: whole or absent, never silently empty."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from fortifai_core.errors import ArtifactDamaged, DataError
from storage.store.digests import seal
from storage.tables import parquet

TEXT_ROW = {"document": "d", "position": 0, "text": "a b", "tokens": [1, 2], "kept": 2}


def test_tables_round_trip_in_a_stream(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    rows = [{**TEXT_ROW, "position": i, "tokens": list(range(i % 7))} for i in range(3000)]
    assert parquet.write_table(path, iter(rows), schema="split-text") == 3000
    assert parquet.read_rows(path) == [{**row, "same": None, "accepted": None} for row in rows]  # may be left out
    assert parquet.read_table_columns([path, path], ["position"])["position"] == [*range(3000), *range(3000)]
    batches = list(parquet.iter_batches([path], columns=["tokens"], batch_rows=500))
    assert max(len(b["tokens"]) for b in batches) <= 500
    assert [t for b in batches for t in b["tokens"]] == [r["tokens"] for r in rows]

    import pyarrow.parquet as pq

    metadata = pq.read_metadata(path)
    assert metadata.num_row_groups == 3
    assert metadata.row_group(0).column(0).compression == "ZSTD"


def test_a_file_that_is_read_as_a_stream_is_never_held(tmp_path: Path) -> None:
    """By default a reader keeps all compressed bytes that it has read until the file is closed."""
    chance, path = random.Random(1), tmp_path / "large.parquet"
    rows = ({"document": f"d{n}", "source": "s", "text": chance.randbytes(400).hex()} for n in range(40_000))
    parquet.write_table(path, rows, schema="documents")
    before, most = pa.total_allocated_bytes(), 0
    for _ in parquet.iter_column(path, "text"):
        most = max(most, pa.total_allocated_bytes() - before)
    assert 0 < most < path.stat().st_size / 4


def test_columns_are_taken_as_well_and_null_where_allowed(tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    parquet.write_table(path, {"metric": ["a", "b"], "value": [0.5, 1.0], "count": [1, 2]}, schema="metrics")
    assert parquet.read_rows(path)[1] == {"metric": "b", "split": None, "value": 1.0, "count": 2}
    with pytest.raises(DataError, match="same length"):
        parquet.write_table(path, {"metric": ["a"], "value": []}, schema="metrics")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({**TEXT_ROW, "tokens": None}, "missing"),
        ({**TEXT_ROW, "surprise": 1}, "unknown"),
        ({**TEXT_ROW, "position": "first"}, "schema"),
        ({**TEXT_ROW, "tokens": [2**40]}, "schema"),
    ],
)
def test_rows_that_do_not_fit_are_refused_and_leave_nothing(tmp_path: Path, row: dict, said: str) -> None:
    with pytest.raises(DataError, match=said):
        parquet.write_table(tmp_path / "t.parquet", [TEXT_ROW, row], schema="split-text")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_silently_empty(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    path = tmp_path / "t.parquet"
    with pytest.raises(DataError, match="0 rows"):
        parquet.write_table(path, [], schema="scores")
    assert not path.exists()
    pq.write_table(parquet.arrow_schema("questions").empty_table(), path)
    for read in (
        lambda p: parquet.read_rows(p),
        lambda p: list(parquet.iter_batches([p])),
        lambda p: parquet.read_table_columns(p, ["split"]),
    ):
        with pytest.raises(ArtifactDamaged, match="no rows"):
            read(path)
        with pytest.raises(ArtifactDamaged, match="missing"):
            read(tmp_path / "absent.parquet")
    parquet.write_table(path, [TEXT_ROW], schema="split-text")
    with pytest.raises(ArtifactDamaged, match="no column nope"):
        parquet.read_rows(path, columns=["nope"])
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ArtifactDamaged, match="cannot be read"):
        parquet.read_rows(path)


def test_packed_rows_are_what_datasets_maps(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    path = tmp_path / "packed.arrow"
    rows = np.arange(2500 * 8).reshape(-1, 8)
    assert parquet.write_packed(path, (row.tolist() for row in rows), sequence_length=8) == 2500
    loaded = datasets.Dataset.from_file(str(path))
    assert loaded.cache_files == [{"filename": str(path)}]
    assert np.array_equal(np.array(loaded.with_format("numpy")["input_ids"][:]), rows)
    with pytest.raises(DataError, match="row 1 of"):
        parquet.write_packed(path, [[1, 2], [1, 2, 3]], sequence_length=2)
    with pytest.raises(DataError, match="row 0 of"):
        parquet.write_packed(path, [[]], sequence_length=2)
    assert parquet.write_packed(path, [[1, 2], [3]], sequence_length=2) == 2
    assert datasets.Dataset.from_file(str(path))["input_ids"][:] == [[1, 2], [3]]
    with pytest.raises(DataError, match="0 rows"):
        parquet.write_packed(path, [], sequence_length=2)


def test_parts_resume_where_they_stopped(tmp_path: Path) -> None:
    layout = {"blocks": 4}
    assert parquet.finished_parts(tmp_path, layout=layout) == {}

    def breaks_off() -> object:
        yield TEXT_ROW
        raise RuntimeError("killed")

    for number in (0, 2):
        parquet.write_table(tmp_path / parquet.part_name(number), [TEXT_ROW], schema="split-text")
        seal(tmp_path / parquet.part_name(number))
    with pytest.raises(RuntimeError):
        parquet.write_table(tmp_path / parquet.part_name(1), breaks_off(), schema="split-text")
    (tmp_path / parquet.part_name(3)).write_bytes(b"PAR1 torn")
    (tmp_path / f".{parquet.part_name(4)}.x.tmp").write_bytes(b"half")
    assert list(parquet.finished_parts(tmp_path, layout=layout)) == [0, 2]
    assert list(parquet.finished_parts(tmp_path)) == [0, 2]
    altered = bytearray((tmp_path / parquet.part_name(2)).read_bytes())
    altered[len(altered) // 2] ^= 1
    (tmp_path / parquet.part_name(2)).write_bytes(altered)
    assert list(parquet.finished_parts(tmp_path)) == [0]
    # Parts of four blocks cannot be continued with parts of eight.
    assert parquet.finished_parts(tmp_path, layout={"blocks": 8}) == {}
    assert parquet.finished_parts(tmp_path) == {}
