"""What a corpus is before it is cut: documents, questions about them, and text kept apart from both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import overload


@dataclass(frozen=True)
class Document:
    """One text that is never divided between splits. `id` is unique within its corpus."""

    id: str
    text: str
    source: str


class Documents(Sequence[Document]):
    """Documents that are read anew each time they are gone through: the whole text is never in memory.

    Args:
        read: goes through all documents of which these are some.
        numbers: which of them these are, in ascending order.
    """

    def __init__(self, read: Callable[[], Iterator[Document]], numbers: Sequence[int]) -> None:
        self._read, self._numbers = read, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[Document]:
        wanted = iter(self._numbers)
        following = next(wanted, None)
        for number, document in enumerate(self._read()):
            if following is None:
                return
            if number == following:
                yield document
                following = next(wanted, None)

    @overload
    def __getitem__(self, index: int) -> Document: ...
    @overload
    def __getitem__(self, index: slice) -> Documents: ...
    def __getitem__(self, index: int | slice) -> Document | Documents:
        """One document, found by reading all before it; or some of them."""
        if isinstance(index, slice):
            return Documents(self._read, self._numbers[index])
        place = range(len(self))[index]
        return next(islice(self, place, None))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)


def chosen(documents: Sequence[Document], numbers: Sequence[int]) -> Sequence[Document]:
    """Those of these numbers, in ascending order; read when they are gone through where the documents are."""
    if isinstance(documents, Documents):
        return Documents(documents._read, [documents._numbers[number] for number in numbers])
    return [documents[number] for number in numbers]


@dataclass(frozen=True)
class Question:
    """One KR-test item: after `context`, the true answer should be more probable than the false one.

    `split` is that of its document, None as long as the corpus is not cut.
    """

    id: str
    document: str
    context: str
    true_answer: str
    false_answer: str
    split: int | None = None


@dataclass(frozen=True)
class FileQuestion:
    """A KR-test item as a file states it, before the document it belongs to was looked up.

    Attributes:
        location: what the file says of the document: its id or number, or a line of the corpus.
        line: where the question begins in the file, from 1.
        place: file and line, or file and index, for messages.
    """

    context: str
    true_answer: str
    false_answer: str
    location: int | str
    line: int
    place: str = ""


@dataclass(frozen=True)
class Source:
    """A corpus, read and checked but not yet tokenised or cut.

    Attributes:
        documents: the real text, in the order in which splits are cut from it.
        questions: each names the document it belongs to.
        validation: held-out real text; tunes, chooses checkpoints, and measures perplexity.
        pretraining: text for the tokenizer and the base model; disjoint from all the others.
        notes: facts to be stated beside any result (a ceiling, what was left out).
    """

    documents: Sequence[Document]
    questions: list[Question]
    validation: Sequence[Document]
    pretraining: Sequence[Document]
    notes: list[str] = field(default_factory=list)
