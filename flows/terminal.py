"""The terminal: a Rich console that obeys none of the control characters in what it is told to print."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.text import Text

from fortifai_core.outside import visible


class Terminal(Console):
    """Strings are printed with their control characters as escapes, and `:names:` of emoji stay words.

    Brackets in a string are Rich's markup: what comes from outside goes through `fortifai_core.outside.markup` first.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Every string that is printed passes here, alone or in a cell of a table."""
        return super().render_str(visible(text), **options)


def for_stdout(text: str) -> str:
    """Text for standard output: as it is for a file or another program, made visible for a terminal."""
    return visible(text) if sys.stdout.isatty() else text
