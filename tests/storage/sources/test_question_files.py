"""Whatever a question says, its file gives it back: as a list, line by line, and compressed."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fortifai_core.errors import Unusable
from storage.sources.questions import read_questions, write_questions

# separators of lines that JSON leaves as they are, quotes, umlauts, emoji; no lone surrogates, which UTF-8 has not
TEXT = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("\u2028\x85\"'\\é🦆 "), min_size=1).filter(
    str.strip
)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "context": TEXT,
            "sentence_true": TEXT,
            "sentence_false": TEXT,
            "location": st.integers(0, 10**6) | TEXT,
        }
    ).filter(lambda row: row["sentence_true"].strip() != row["sentence_false"].strip()),
    min_size=1,
    max_size=5,
)


@given(ROWS, st.sampled_from([".json", ".jsonl"]))
def test_what_is_written_is_read(rows: list[dict[str, str | int]], suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"questions{suffix}"
        write_questions(path, rows)
        questions = read_questions(path)
    read = [[q.context, q.true_answer, q.false_answer, q.location] for q in questions]
    assert read == [[row[k] for k in ("context", "sentence_true", "sentence_false", "location")] for row in rows]


@given(ROWS, st.data())
def test_a_row_without_one_of_its_keys_is_named_by_its_line(rows: list[dict[str, Any]], data: st.DataObject) -> None:
    number = data.draw(st.integers(0, len(rows) - 1))
    del rows[number][data.draw(st.sampled_from(sorted(rows[number])))]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "questions.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        with pytest.raises(Unusable, match=rf"questions\.jsonl:{number + 1}\b"):
            read_questions(path)
