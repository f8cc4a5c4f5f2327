"""Text that comes from outside (documents, ids, a model's own output, names, paths), made safe for where it is shown.

Each function is named after the place. HTML and SVG: `xml`; jinja escapes what templates show and calls `visible`.
"""

from __future__ import annotations

import html
import re
import unicodedata
from typing import Any

# They turn the order of letters around; marks that only state a direction are left to the scripts that they serve.
_REORDERING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
# Control characters, halves of surrogate pairs, separators of lines and of paragraphs.
_INVISIBLE = frozenset({"Cc", "Cs", "Zl", "Zp"})
_KEPT = "\n\t"
# What makes a cell of a spreadsheet a formula, the wide forms included.
_FORMULA = tuple("=+-@\t\r\n＝＋－＠")
_MARKDOWN = re.compile(r"([\\`*_\[\]{}<>&|~#!$@:])")
_MERMAID = str.maketrans({'"': "'", "`": "'", "{": "(", "}": ")", "<": "‹", ">": "›", "#": "♯", ";": ",", "\n": " "})


def visible(text: str) -> str:
    r"""The text as it is, what a terminal would obey or a reader not see written as an escape.

    >>> visible("\x1b[31mred\u202e"), visible("two\nlines")
    ('\\x1b[31mred\\u202e', 'two\nlines')
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_shown(character) for character in text)


def _shown(character: str) -> str:
    hidden = character in _REORDERING or unicodedata.category(character) in _INVISIBLE or character == "\x7f"
    tag = "\U000e0000" <= character <= "\U000e007f"
    return character.encode("unicode_escape").decode() if tag or (hidden and character not in _KEPT) else character


def line(text: str) -> str:
    """The text on one line."""
    return visible(" ".join(text.splitlines()))


def markup(text: object) -> str:
    r"""For Rich, where a string may hold markup: brackets are brackets.

    >>> markup("[link=x]a[/link]")
    '\\[link=x]a\\[/link]'
    """
    from rich.markup import escape

    return escape(visible(str(text)))


def csv_cell(value: Any) -> Any:
    """For CSV: a text that a spreadsheet would compute has a quote before it, which spreadsheets take for `text`.

    >>> [csv_cell(value) for value in ("=1+1", "-5", -5, "a=b", None)]
    ["'=1+1", "'-5", -5, 'a=b', None]
    """
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def xml(text: str) -> str:
    """For HTML and SVG, between tags and in quoted attributes."""
    return html.escape(visible(text))


def markdown(text: str) -> str:
    """For Markdown, in a line of text or a cell of a table."""
    return _MARKDOWN.sub(r"\\\1", line(text))


def fenced(text: str, language: str = "") -> str:
    """A block of code in Markdown, whose fence is longer than any that the text holds."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def mermaid(text: str) -> str:
    """For a quoted string of a Mermaid chart: what ends the string or directs Mermaid becomes its lookalike."""
    return line(text).translate(_MERMAID)


def clipped(text: str, most: int) -> str:
    """No more than `most` characters of a text, and how many are left out."""
    return text if len(text) <= most else f"{text[:most]}… ({len(text) - most:,} more characters)"
