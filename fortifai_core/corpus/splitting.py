"""Cuts a corpus into equal splits at document boundaries, and sends each question to its document's split."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, repeat

from fortifai_core.corpus.documents import Question
from fortifai_core.errors import DataError


def cut(lengths: Sequence[int], *, splits: int, group: Sequence[str] | None = None) -> list[int]:
    """The split of every document: parts of equal length, in the documents' order.

    Each border lies at the document boundary nearest to where equal parts would have it, so a part's length
    differs from an equal share by less than the longest document of its group. No split is left empty.

    Args:
        lengths: tokens of each document, in order.
        splits: number of parts.
        group: the source of each document. Each source is cut into `splits` parts by itself, and part k
            of every source belongs to split k (ForTIFAI's Imagination of Web).

    Returns:
        For each document the number of its split, 0 to splits − 1.

    Raises:
        DataError: a group has fewer documents than splits, or no tokens at all.
    """
    if splits < 1:
        raise DataError("splits", splits, "must be at least 1")
    if not lengths:
        raise DataError("splits", splits, "the corpus has no documents: add text")
    if group is not None and len(group) != len(lengths):
        raise ValueError(f"{len(group)} groups for {len(lengths)} documents")
    members: dict[str, array[int]] = {}  # of millions of documents a list takes five times as much
    for index, name in enumerate(group if group is not None else repeat("", len(lengths))):
        members.setdefault(name, array("q")).append(index)
    result = [0] * len(lengths)
    for name, indices in members.items():
        parts = _cut_one(array("q", (lengths[i] for i in indices)), splits=splits, name=name)
        for index, part in zip(indices, parts, strict=True):
            result[index] = part
    return result


def _cut_one(lengths: Sequence[int], *, splits: int, name: str) -> list[int]:
    of_source = f" of {name}" if name else ""
    if len(lengths) < splits:
        raise DataError(
            "splits",
            splits,
            f"only {len(lengths)} documents{of_source} are left to be cut into splits, and none is ever "
            "divided: lower splits, add documents, or divide long ones",
        )
    ends = array("q", accumulate(lengths))
    if ends[-1] <= 0:
        raise DataError("splits", splits, f"the documents{of_source} have no tokens: add text")
    borders = [0]
    for k in range(1, splits):
        target = ends[-1] * k / splits
        after = bisect_left(ends, target)  # ends[after - 1] < target <= ends[after]
        before = ends[after - 1] if after else 0
        nearest = after if target - before <= ends[after] - target else after + 1
        # At least one document on this side, and one for each split on the other.
        borders.append(min(max(nearest, borders[-1] + 1), len(lengths) - (splits - k)))
    borders.append(len(lengths))
    return [k for k in range(splits) for _ in range(borders[k + 1] - borders[k])]


def assign_questions(questions: Sequence[Question], document_split: Mapping[str, int]) -> list[Question]:
    """Every question with its split, which is that of its document.

    Raises:
        DataError: a question's document is in no split.
    """
    for question in questions:
        if question.document not in document_split:
            raise DataError(
                "questions", question.id, f"its document {question.document!r} is in no split: remove the question"
            )
    return [replace(question, split=document_split[question.document]) for question in questions]
