"""Packing loses no token and adds none but the ends of documents; padding is seen by nobody."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fortifai_core.corpus.packing import collate, pack, pack_marked

END = 0
DOCUMENTS = st.lists(st.lists(st.integers(1, 50), max_size=12), max_size=8)


@given(DOCUMENTS, st.integers(2, 9))
def test_the_packed_sequences_joined_are_the_text(documents: list[list[int]], length: int) -> None:
    stream = [token for document in documents for token in [*document, END]]
    rows = list(pack(documents, sequence_length=length, end_of_text=END))
    if len(stream) % length == 1:
        stream.pop()  # a single token has no target
    assert [token for row in rows for token in row] == stream
    assert all(len(row) == length for row in rows[:-1])
    assert all(2 <= len(row) <= length for row in rows)


@given(DOCUMENTS, st.integers(2, 9))
def test_a_marked_sequence_is_the_same_and_of_the_document_that_its_middle_token_is_of(
    documents: list[list[int]], length: int
) -> None:
    owners = [number for number, document in enumerate(documents) for _ in [*document, END]]
    for chosen in range(len(documents)):
        marked = [(document, number == chosen) for number, document in enumerate(documents)]
        rows = list(pack_marked(marked, sequence_length=length, end_of_text=END))
        assert [row for row, _ in rows] == list(pack(documents, sequence_length=length, end_of_text=END))
        for number, (row, mark) in enumerate(rows):
            assert mark == (owners[number * length + len(row) // 2] == chosen)


@given(st.lists(st.lists(st.integers(1, 50), min_size=1, max_size=9), min_size=1, max_size=6))
def test_padding_has_no_label_and_no_attention(rows: list[list[int]]) -> None:
    batch = collate([{"input_ids": row} for row in rows], pad_id=END)
    assert batch["input_ids"].shape == (len(rows), max(map(len, rows)))
    for index, row in enumerate(rows):
        real = batch["attention_mask"][index].bool()
        assert batch["input_ids"][index, real].tolist() == batch["labels"][index, real].tolist() == row
        assert set(batch["labels"][index, ~real].tolist()) <= {-100}
        assert real[: len(row)].all()
