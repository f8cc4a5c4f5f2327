"""The protocol of treatments: documents in, documents out, as a stream that knows what became of each.

A treatment is a function of documents:

    def long_enough(documents, *, tokens=20):
        for document in documents:
            if len(document.tokens) >= tokens:
                yield document

`documents` may be read as often as needed: each `for` begins anew, and holds one document at a time. What is not given
back is dropped; what is given back twice is trained on twice; `document.edited(…)` is the same document with another
text, or other tokens; `Dropped(document, "why")` says why. Documents come out in the order in which they came in, so
that what became of each is told without holding any. A function that draws takes a `seed`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from fortifai_core.config.treatment import Origin
from fortifai_core.errors import DataError, shown

Fate = Literal["kept", "edited", "repeated", "dropped"]


class Name(NamedTuple):
    """What a document is known by: D_split^(version), its id there, and which of several copies of it."""

    split: int
    version: int
    id: str
    copy: int

    def __str__(self) -> str:
        return f"{self.id} of D{self.split}^({self.version})"


@dataclass(frozen=True)
class Document:
    """One document that a generation may be trained on.

    Attributes:
        id: of the corpus; every version of it has the same.
        split, version: it is of D_split^(version), the split after so many rewritings.
        copy: which of several copies that an earlier treatment made; 0 otherwise.
        weight: of its tokens in the training loss.
        score: what the treatment made of it, for the record.
    """

    id: str
    split: int
    version: int
    text: str
    tokens: list[int]
    copy: int = 0
    weight: float = 1.0
    score: float | None = None

    @property
    def real(self) -> bool:
        return self.version == 0

    @property
    def name(self) -> Name:
        return Name(self.split, self.version, self.id, self.copy)

    def edited(self, *, text: str = "", tokens: list[int] | None = None) -> Document:
        """The same document with another text or other tokens; what is not given follows from the tokenizer."""
        return dataclasses.replace(self, text=text, tokens=tokens or [])

    def weighed(self, weight: float) -> Document:
        """The same document with another weight in the training loss."""
        return dataclasses.replace(self, weight=weight)

    def scored(self, score: float) -> Document:
        """The same document with what the treatment made of it."""
        return dataclasses.replace(self, score=score)


@dataclass(frozen=True)
class Dropped:
    """A document that is not trained on, and why."""

    document: Document
    why: str = ""
    score: float | None = None


class NothingLeft(DataError):
    """A treatment dropped every document."""


class Documents:
    """Documents that are read anew by every `for`.

    Args:
        open: gives them from the first on, each time it is called.
        of: which of them there are.
    """

    def __init__(self, open: Callable[[], Iterator[Document]], of: Origin = "all") -> None:
        self._open, self.of = open, of

    def __iter__(self) -> Iterator[Document]:
        return (document for document in self._open() if self.has(document))

    def has(self, document: Document) -> bool:
        """Whether a document is of the origin that is asked for."""
        return self.of == "all" or document.real == (self.of == "real")


# A treatment, its options given.
Treat = Callable[[Documents], Iterable[Document | Dropped]]


class Tokenizer(Protocol):
    """What turns text into tokens and back."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, tokens: list[int]) -> str: ...


@dataclass(frozen=True)
class Lineage:
    """What became of one document.

    Attributes:
        given: the document as it came in.
        made: what there is of it now; nothing where it was dropped.
        why: in the treatment's own words.
    """

    given: Document
    made: tuple[Document, ...]
    why: str = ""
    score: float | None = None

    @property
    def fate(self) -> Fate:
        if not self.made:
            return "dropped"
        if len(self.made) > 1:
            return "repeated"
        return "kept" if self.made[0].tokens == self.given.tokens else "edited"

    @property
    def changed(self) -> int:
        """Tokens of the first copy that are not those that stood there, and those by which it is longer or shorter."""
        if not self.made:
            return 0
        before, now = self.given.tokens, self.made[0].tokens
        return sum(a != b for a, b in zip(before, now, strict=False)) + abs(len(before) - len(now))


def apply(
    treat: Treat, documents: Documents, tokenizer: Tokenizer, *, of: Origin = "all", called: str = "treatment"
) -> Iterator[Lineage]:
    """Treat documents: what became of each, in their order. Holds one of them at a time, and its copies.

    Args:
        of: which documents the treatment is given; the others pass by as they are.
        called: how the configuration names the treatment, for the errors.

    Raises:
        DataError: it gave what is no document, one that it was not given, one out of order, or one without a token;
            a weight that is not a positive number; tokens that are not those of their text.
        NothingLeft: it dropped all, and no others are there.
    """
    chosen = Documents(documents.__iter__, of)
    given_back = iter(_checked(treat(chosen), called))
    waiting = next(given_back, None)
    left = False
    for document in documents:
        if not chosen.has(document):
            left = True
            yield Lineage(document, (document,), f"not treated: {of} text is")
            continue
        made: list[Document] = []
        why, score = "", None
        while waiting is not None and _document(waiting).name == document.name:
            if isinstance(waiting, Dropped):
                why, score = waiting.why, waiting.score
            else:
                if waiting.tokens != document.tokens and waiting.text == document.text:
                    remedy = "has other tokens with the old text: use document.edited(tokens=…), which makes the text"
                    raise DataError(called, str(document.name), remedy)
                made.append(_whole(waiting, tokenizer, called, copy=document.copy + len(made)))
            waiting = next(given_back, None)
        left = left or bool(made)
        yield Lineage(document, tuple(made), why, made[0].score if made else score)
    if waiting is not None:
        remedy = "was not given to the treatment, or came back out of order: give them in the order in which they came"
        raise DataError(called, str(_document(waiting).name), remedy)
    if not left:
        raise NothingLeft(called, "no documents", "leaves nothing to train on: make it keep more")


def _document(item: Document | Dropped) -> Document:
    return item.document if isinstance(item, Dropped) else item


def _checked(items: Iterable[Document | Dropped], called: str) -> Iterator[Document | Dropped]:
    if not isinstance(items, Iterable):
        raise DataError(called, items, "came back instead of documents: yield them, or return a list of them")
    for item in items:
        if not isinstance(item, (Document, Dropped)):
            raise DataError(called, item, "gave this, which is no document: yield documents that it was given")
        yield item


def _whole(document: Document, tokenizer: Tokenizer, called: str, *, copy: int) -> Document:
    """The document with both text and tokens."""
    if not (math.isfinite(document.weight) and document.weight > 0):
        raise DataError(called, document.weight, f"is the weight of {shown(document.id)}: give a positive number")
    text, tokens = document.text, document.tokens
    if text and not tokens:
        tokens = tokenizer.encode(text)
    elif tokens and not text:
        text = tokenizer.decode(tokens)
    if not tokens:
        raise DataError(called, document.id, "was left without a token: leave a document out to drop it")
    return dataclasses.replace(document, text=text, tokens=tokens, copy=copy)
