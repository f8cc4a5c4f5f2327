"""`fortifai bench store`: what it reports, and that it leaves nothing."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from flows.bench.store import bench_store
from storage.store.remote import Remote


@pytest.mark.parametrize("remote", [False, True])
def test_a_store_is_compared_with_a_local_one_and_nothing_is_left(tmp_path: Path, remote: bool) -> None:
    url = f"memory://{uuid.uuid4().hex}/prefix" if remote else str(tmp_path / "there")
    rows = bench_store(url, quick=True)
    assert [row["what"] for row in rows][:3] == ["small, committed", "large, committed", "small, looked up"]
    assert all(row["ratio"] == row["there"] / row["local"] > 0 for row in rows)
    assert Remote(url).listing("") == {} if remote else list((tmp_path / "there").iterdir()) == []
