"""What a corpus is before it is cut: documents, questions about them, and text kept apart from both."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Document:
    """One text that is never divided between splits. `id` is unique within its corpus."""

    id: str
    text: str
    source: str


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

    documents: list[Document]
    questions: list[Question]
    validation: list[Document]
    pretraining: list[Document]
    notes: list[str] = field(default_factory=list)
