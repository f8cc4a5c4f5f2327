"""Packing documents into training sequences: one stream, cut every `sequence_length` tokens, nothing dropped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any


def pack(documents: Iterable[list[int]], *, sequence_length: int, end_of_text: int) -> Iterator[list[int]]:
    """Join documents with `end_of_text` between them and cut the stream into sequences.

    Streams: holds one document and one sequence at a time. The last sequence may be shorter; a rest of a
    single token, which has no target, is left out.

    >>> list(pack([[1, 2, 3], [4]], sequence_length=4, end_of_text=0))
    [[1, 2, 3, 0], [4, 0]]
    """
    rest: list[int] = []
    for tokens in documents:
        rest.extend(tokens)
        rest.append(end_of_text)
        while len(rest) >= sequence_length:
            yield rest[:sequence_length]
            rest = rest[sequence_length:]
    if len(rest) > 1:
        yield rest


def pack_marked(
    documents: Iterable[tuple[list[int], bool]], *, sequence_length: int, end_of_text: int
) -> Iterator[tuple[list[int], bool]]:
    """The same sequences, each with the mark of the document that its middle token is of.

    >>> list(pack_marked([([1, 2, 3], True), ([4], False)], sequence_length=4, end_of_text=0))
    [([1, 2, 3, 0], True), ([4, 0], False)]
    """
    ends = list[tuple[int, bool]]()  # of the stream's documents that no sequence has left behind, and their marks

    def unmarked() -> Iterator[list[int]]:
        length = 0
        for tokens, mark in documents:
            length += len(tokens) + 1
            ends.append((length, mark))
            yield tokens

    start = 0
    for row in pack(unmarked(), sequence_length=sequence_length, end_of_text=end_of_text):
        while ends[0][0] <= start + len(row) // 2:
            ends.pop(0)
        yield row, ends[0][1]
        start += len(row)


def collate(rows: list[dict[str, Any]], *, pad_id: int) -> dict[str, Any]:
    """Pad rows of `input_ids` to one length; padding is attended by nobody and carries no label (−100).

    Returns:
        `input_ids`, `attention_mask` and `labels`, each an int64 tensor of shape (batch, longest); where rows say
        whether they are `synthetic`, or have a `weight` in the loss, `synthetic` or `weights` too, of shape (batch,).
    """
    import torch

    lengths = [len(row["input_ids"]) for row in rows]
    input_ids = torch.full((len(rows), max(lengths)), pad_id, dtype=torch.long)
    labels = torch.full_like(input_ids, -100)
    mask = torch.zeros_like(input_ids)
    for index, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        tokens = torch.as_tensor(row["input_ids"], dtype=torch.long)
        input_ids[index, :length] = tokens
        labels[index, :length] = tokens
        mask[index, :length] = 1
    told = {"synthetic": torch.tensor([row["synthetic"] for row in rows])} if "synthetic" in rows[0] else {}
    if "weight" in rows[0]:
        told["weights"] = torch.tensor([row["weight"] for row in rows], dtype=torch.float32)
    return {"input_ids": input_ids, "attention_mask": mask, "labels": labels, **told}
