"""The terminal: a Rich console that obeys none of the control characters in what it is told to print."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fortifai_core.outside import markup, visible
from fortifai_core.wording import arm_title

if TYPE_CHECKING:
    from fortifai_core.config.experiment import ExperimentConfig
    from fortifai_core.families.registry import FamilyExperiment


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


def show_arms(config: ExperimentConfig | FamilyExperiment, console: Console) -> None:
    """Of arms by name, what each is: how it differs from the first, in one line."""
    if config.named:
        table = Table(box=None, pad_edge=False)
        for name in ("arm", "differs from the first in"):
            table.add_column(name)
        for arm in config.resolved_arms():
            table.add_row(markup(arm_title(arm.label)), markup(arm.difference or "(it is the first)"))
        console.print(table)
