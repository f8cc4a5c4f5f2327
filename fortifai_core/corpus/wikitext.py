"""WikiText's stream of lines as articles, in ordinary spelling; a line number finds its article."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from fortifai_core.corpus.documents import Document

# Parts of the corpus's key: raise one whenever `ordinary_spelling` or `raw_text` (or `articles`) returns another text.
SPELLING_VERSION = 1
RAW_VERSION = 1

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

# The same for raw text, after its quotation marks were paired. A word that the word-level form does not know may be
# a number: the rules treat it as one where the other side is.
_RAW: list[tuple[re.Pattern[str], str]] = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"^((?:= )*=) (.*) \1$", r"\2"),  # = = Gameplay = =
        (r" @([-,.:])@ ", r"\1"),
        (r"(?<=\S) '(?=(?:s|t|re|ve|ll|d|m)\b)", "'"),
        (r"(?<=[\w>]) ’ (?=(?:s|t|re|ve|ll|d|m)\b)", "’"),
        (r"([(\[{]) ", r"\1"),
        (r" ([,;:!?)\]}])", r"\1"),
        (r" (\.+)(?!\d)", r"\1"),  # but not: a .45 cartridge
        (r"(?<=[\d>]) %", "%"),
        (r"([$£€]) (?=[\d<])|(#) (?=\d)", r"\1\2"),
        (r"(?<=\d): (?=\d\d\b)", ":"),  # 10 : 30
        (r"(?<=\d) ([–×]) (?=[\d<])|(?<=[\d>]) ([–×]) (?=\d)", r"\1\2"),  # 29 – 46 – 7
        (r"(?<=[\w>]) ([—/‑]) (?=[\w<])", r"\1"),  # Wikipedia has no blanks around a long dash
        (r"\b([A-Z]) & (?=[A-Z]\b)", r"\1&"),  # R & B
        (r"° (?=[CFNSEW]\b)", "°"),
    ]
]
# after these a lone ' opens a quotation; after other words in s it is a possessive
_OPENING = {"as", "is", "was", "this", "his", "its", "has", "means", "says", "does", "us", "yes"}


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


def articles(lines: Sequence[str], *, source: str, raw: bool = False) -> Articles:
    """Cut WikiText's lines into articles.

    An article begins at a line ` = Title = ` between two blank lines: without that condition 29 lines inside
    articles of WikiText-2 would be taken for headings. Blank lines are left out of the text.

    Args:
        lines: all lines of one file in their order, blank ones included: line numbers count.
        source: name of the corpus; documents are called `source:<line of the heading>`.
        raw: as `raw_text`, not in `ordinary_spelling`.
    """
    written = raw_text if raw else ordinary_spelling

    def blank(index: int) -> bool:
        return not 0 <= index < len(lines) or not lines[index].strip()

    starts = [i for i, line in enumerate(lines) if _HEADING.match(line) and blank(i - 1) and blank(i + 1)]
    documents = [
        Document(
            id=f"{source}:{start}",
            text="\n".join(written(line) for line in lines[start:end] if line.strip()),
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


def raw_text(line: str) -> str:
    """A line of WikiText as a model that was pretrained on natural text knows it.

    As `ordinary_spelling`, and beyond it: a heading has no marks (` = = Life cycle = = ` becomes `Life cycle`), single
    quotation marks are paired (` ' harbour bay ' `), times, dashes and slashes are closed up. `<unk>` stays: the
    word-level form does not say which word it was.
    """
    text = _with_quotes(line.split())
    for pattern, replacement in _RAW:
        text = pattern.sub(replacement, text)
    return text


def _with_quotes(words: list[str]) -> str:
    """The words in a line, quotation marks beside what they enclose; a lone ' after a plural's s is a possessive."""
    text, glue = "", True
    opened = {'"': False, "'": False}
    for index, word in enumerate(words):
        closes = False
        if word in opened:
            possessive = word == "'" and not opened[word] and _possessive(words, index)
            closes = possessive or opened[word] or word not in words[index + 1 :]
            if not possessive:
                opened[word] = not closes
        text += word if glue or closes else f" {word}"
        glue = word in opened and not closes
    return text


def _possessive(words: list[str], index: int) -> bool:
    before = words[index - 1] if index else ""
    if before == "<unk>":  # the last of an odd number closes nothing
        return words[index:].count("'") % 2 == 1
    return before.endswith(("s", "x", "z")) and before not in _OPENING
