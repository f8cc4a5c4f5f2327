"""The demo: two experiments, one closing screen, one page; the second time nothing is computed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers import environment

pytestmark = pytest.mark.long
GAUSSIAN = """
name: gaussian-small
family: {type: gaussian, samples: 500, replicates: 5}
arms: [{type: none}, {type: adaptive}]
generations: 30
"""
QUESTIONS = ("Where theory has the answer", "Where the answer is open")
# in a process of its own, as the command is: one that has had a Prefect server of its own can have no second one
CODE = """
import json, sys
from rich.console import Console
from flows.demo import run_demo
parts = [(preset, question, tuple(figures)) for preset, question, figures in json.loads(sys.argv[1])]
print(json.dumps(run_demo(store=None, console=Console(stderr=True, width=160), parts=parts)))
"""


def demo(tmp_path: Path) -> tuple[dict[str, Any], str]:
    """What the demo returns, and its screen."""
    (tmp_path / "small.yaml").write_text(GAUSSIAN)
    presets = (str(tmp_path / "small.yaml"), "smoke")
    parts = list(zip(presets, QUESTIONS, (["gaussian-variance"], ["retention"]), strict=True))
    command = [sys.executable, "-c", CODE, json.dumps(parts)]
    done = subprocess.run(
        command, env=environment(tmp_path, "store"), capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    outcome: dict[str, Any] = json.loads(done.stdout)
    return outcome, done.stderr


def test_both_experiments_are_on_one_screen_and_one_page(tmp_path: Path) -> None:
    outcome, screen = demo(tmp_path)
    assert all(question in screen for question in QUESTIONS)
    page = Path(outcome["page"])
    assert f"one page for both: {page}" in screen
    text = page.read_text(encoding="utf-8")
    assert text.count('src="data:image/svg+xml;base64,') == 2 and "<script" not in text
    linked = [Path(link.removeprefix("file://")) for link in re.findall(r'href="(file://[^"]+)"', text)]
    assert len(linked) == 2 and all(report.is_file() for report in linked)
    again, _ = demo(tmp_path)
    assert [experiment["built"] for experiment in again["experiments"]] == [0, 0]
    assert Path(again["page"]).read_text(encoding="utf-8") == text
