"""Screenshots for the documents: two small runs on a server of their own, as Chromium shows them to a person.

`python tests/support/screenshots.py --out docs/ui` (or `make screenshots`).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from PIL import Image
from playwright.sync_api import Page

from browser import browsing, log_in, missing, opened
from served import Served, eventually, serve

COLOURS = 96
FAMILY = {"generations": 4, "seeds": [1]}


def run_both(one: Served) -> dict[str, str]:
    """The ids of the flow runs, finished, of a language model and of a model of pictures."""
    runs = {
        "smoke": one.start_run("recursive-training/smoke"),
        "vae": one.start_run("recursive-family/vae", **FAMILY),
    }
    for name, run in runs.items():
        eventually(
            lambda run=run: one.state_of(run) in ("Completed", "Failed", "Crashed"), seconds=280, what=f"{name} ends"
        )
        assert one.state_of(run) == "Completed", name
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "ui")
    out = parser.parse_args().out
    if lacking := missing():
        sys.exit(lacking)
    out.mkdir(parents=True, exist_ok=True)


if __name__ == "__main__":
    main()
