"""The demo: two experiments, one closing screen, one page; the second time nothing is computed."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from flows.demo import run_demo

pytestmark = pytest.mark.long
GAUSSIAN = """
name: gaussian-small
family: {type: gaussian, samples: 500, replicates: 5}
arms: [{type: none}, {type: adaptive}]
generations: 30
"""


def test_both_experiments_are_on_one_screen_and_one_page(
    tmp_path: Path, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    (tmp_path / "small.yaml").write_text(GAUSSIAN)
    parts = (
        (str(tmp_path / "small.yaml"), "Where theory has the answer", ("gaussian-variance",)),
        ("smoke", "Where the answer is open", ("retention",)),
    )
    screen = io.StringIO()
    outcome = run_demo(store=store_url, console=Console(file=screen, width=160), parts=parts)
    said = screen.getvalue()
    for question in ("Where theory has the answer", "Where the answer is open"):
        assert question in said
    page = Path(outcome["page"])
    assert f"one page for both: {page}" in said
    text = page.read_text(encoding="utf-8")
    assert text.count('src="data:image/svg+xml;base64,') == 2 and "<script" not in text
    linked = [Path(link.removeprefix("file://")) for link in re.findall(r'href="(file://[^"]+)"', text)]
    assert len(linked) == 2 and all(report.is_file() for report in linked)
    again = run_demo(store=store_url, console=Console(file=io.StringIO()), parts=parts)
    assert [experiment["built"] for experiment in again["experiments"]] == [0, 0]
    assert Path(again["page"]).read_text(encoding="utf-8") == text
