"""The demo's page: what came out of two experiments, side by side, with links to their reports."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fortifai_core.charts.palette import PALETTE
from fortifai_core.report.templating import render_page


@dataclass(frozen=True)
class DemoPart:
    """One experiment of the demo.

    Attributes:
        question: what it asks, as its heading.
        table: its report's table.json.
        figures: SVG of the figures shown.
        report: its report's page.
    """

    question: str
    table: dict[str, Any]
    figures: tuple[str, ...]
    report: Path

    @property
    def addresses(self) -> list[str]:
        """The figures as `data:` addresses."""
        return [f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}" for svg in self.figures]


def demo_page(parts: Sequence[DemoPart]) -> str:
    """The whole page; it needs no other file."""
    from markupsafe import Markup

    return render_page("demo.html", filters={}, config={}, styles=Markup(PALETTE), parts=parts)
