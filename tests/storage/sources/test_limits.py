"""Text without bounds is refused where its file is read, which a plan does, before anything is computed."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.load import load_any_config
from flows.prepare import plan_for
from fortifai_core.errors import InputError
from storage.sources.textfiles import MAX_DOCUMENT, numbered_lines, read_documents

LONG = "a " * (MAX_DOCUMENT // 2) + "b"


def written(folder: Path, name: str) -> Path:
    """A first document of three words, and a second one that is one character too long."""
    path = folder / name
    match name.removesuffix(".gz").rpartition(".")[2]:
        case "jsonl":
            content = "".join(json.dumps({"text": text}) + "\n" for text in ("one two three", LONG)).encode()
        case "parquet":
            sink = pa.BufferOutputStream()
            pq.write_table(pa.table({"text": ["one two three", LONG]}), sink)
            content = sink.getvalue().to_pybytes()
        case _ if "lines" in name:
            content = b"one two three\n\n" + (LONG[: MAX_DOCUMENT // 8].encode() + b"\n") * 9
        case _:
            content = b"one two three\n\n" + LONG.encode()
    path.write_bytes(gzip.compress(content, 1) if name.endswith(".gz") else content)
    return path


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("long.jsonl.gz", ":2"),
        ("long.parquet", "[1]"),
        ("long.txt", ":3"),
        ("lines.txt.gz", ":10"),
    ],
)
def test_a_document_without_bounds_is_refused_at_the_plan(tmp_path: Path, name: str, place: str) -> None:
    path = written(tmp_path, name)
    config = load_any_config("smoke", [f"corpus={{type: text, files: ['{path}']}}"])
    with pytest.raises(InputError) as refused:
        plan_for(config)
    told = str(refused.value)
    assert told.startswith(f"corpus.files.0 = '{path}{place}': ") and "\n" not in told
    assert "64 MiB" in told and "divide it into several documents" in told


def test_a_document_up_to_the_bound_is_read(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.parquet", "a.txt"):
        path, text = tmp_path / name, "a " * 500_000 + "b"
        if name.endswith("parquet"):
            pq.write_table(pa.table({"text": [text]}), path)
        else:
            path.write_text(json.dumps({"text": text}) if name.endswith("jsonl") else text)
        assert [document.text for document in read_documents(path, text_field="text")] == [text]
    path = tmp_path / "lines.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\n\nthree")
    assert list(numbered_lines(path)) == [(1, "one"), (2, "two"), (3, ""), (4, "three")]
