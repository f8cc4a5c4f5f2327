"""WikiText's stream of lines as articles, in ordinary spelling; a line number finds its article."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from fortifai_core.corpus.documents import Document

# Part of the corpus's key: raise it whenever `ordinary_spelling` or `articles` changes what it returns.
SPELLING_VERSION = 1

_HEADING = re.compile(r"^ = [^=](?:.*[^=])? =\s*$")

# In this order. WikiText's tokenisation cannot be undone exactly (a lone ' or : is ambiguous): these are
# the rules that are right nearly always.
_SPELLING: list[tuple[re.Pattern[str], str]] = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r" @([-,.:])@ ", r"\1"),  # twenty @-@ five, 10 @,@ 000, 7 @.@ 5
        (r"= (?==)|(?<==) =", "="),  # = = Gameplay = =, both ends
        (r"(?<=\S) '(?=(?:s|t|re|ve|ll|d|m)\b)", "'"),  # game 's, didn 't
        (r"(?<=s) ' ", "' "),  # characters ' turns
        (r'" ([^"]*?) ?"', r'"\1"'),  # " quoted "
        (r"([(\[{]) ", r"\1"),
        (r" ([,.;:!?)\]}])", r"\1"),
        (r"(?<=\d) %", "%"),
        (r"([$£€#]) (?=\d)", r"\1"),
        (r"(?<=\d) ([–/]) (?=\d)", r"\1"),  # 29 – 46 – 7, 14 / 15 October
        (r"\b(km|mi|m|ft) / (h|s)\b", r"\1/\2"),
    ]
]


@dataclass(frozen=True)
class Articles:
    """Articles of one WikiText file: `starts[i]` is the 0-based line of the heading of `documents[i]`."""

    documents: list[Document]
    starts: list[int]
    lines: int

    def locate(self, location: int | str) -> str | None:
        """The id of the article that holds a line (or that has this id already); None: no article does.

        The KR-test's locations are lines that look like an article's heading. Ten of its 610 are lines
        of the kind ` = No result , Pts = ` in the middle of an article: they belong to that article.
        """
        if isinstance(location, str):
            return location if any(d.id == location for d in self.documents) else None
        if not self.starts or not self.starts[0] <= location < self.lines:
            return None
        return self.documents[bisect_right(self.starts, location) - 1].id


def articles(lines: Sequence[str], *, source: str) -> Articles:
    """Cut WikiText's lines into articles.

    An article begins at a line ` = Title = ` between two blank lines: without that condition 29 lines inside
    articles of WikiText-2 would be taken for headings. Blank lines are left out of the text.

    Args:
        lines: all lines of one file in their order, blank ones included: line numbers count.
        source: name of the corpus; documents are called `source:<line of the heading>`.
    """

    def blank(index: int) -> bool:
        return not 0 <= index < len(lines) or not lines[index].strip()

    starts = [i for i, line in enumerate(lines) if _HEADING.match(line) and blank(i - 1) and blank(i + 1)]
    documents = [
        Document(
            id=f"{source}:{start}",
            text="\n".join(ordinary_spelling(line) for line in lines[start:end] if line.strip()),
            source=source,
        )
        for start, end in zip(starts, [*starts, len(lines)][1:], strict=True)
    ]
    return Articles(documents, starts, len(lines))


def ordinary_spelling(line: str) -> str:
    """A line of WikiText as it would be written: `half @-@ life , 10 @,@ 000` becomes `half-life, 10,000`.

    The KR-test's questions are in ordinary spelling, so text must be as well for a model to recognise
    in them what it has read. `<unk>` stays.
    """
    text = line.strip()
    for pattern, replacement in _SPELLING:
        text = pattern.sub(replacement, text)
    return text
