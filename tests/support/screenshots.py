"""Screenshots for the documents: two small runs on a server of their own, as Chromium shows them to a person.

`python tests/support/screenshots.py --out docs/ui` (or `make screenshots`).
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

import browser
from served import ROOT, Served, eventually, serve

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

DEPLOYMENTS = {"smoke": "recursive-training/smoke", "vae": "recursive-family/vae"}
WIDTH, COLOURS = 1000, 128  # of what is kept


def finished_runs(one: Served) -> dict[str, str]:
    """The ids of the flow runs, ended well, of a language model and of a small model of pictures."""
    quick = {**one.get(f"/deployments/name/{DEPLOYMENTS['vae']}")["parameters"]["experiment"]}
    quick["family"] = {**quick["family"], "epochs": 8}
    runs = {
        "smoke": one.start_run(DEPLOYMENTS["smoke"]),
        "vae": one.start_run(DEPLOYMENTS["vae"], experiment=quick, generations=4, seeds=[1]),
    }
    ended = ("Completed", "Failed", "Crashed")
    for name, run in runs.items():
        eventually(lambda run=run: one.state_of(run) in ended, seconds=400, what=f"{name} ends")
        assert one.state_of(run) == "Completed", name
    return runs


@dataclass(frozen=True)
class Walk:
    """Somebody who has logged in, and goes from page to page. `ui`: Prefect's `v2` or `v1`."""

    page: Page
    served: Served
    runs: dict[str, str]
    ui: str

    @classmethod
    def begin(cls, page: Page, served: Served, runs: dict[str, str], *, ui: str) -> Walk:
        """Log in on the dashboard."""
        walk = cls(page, served, runs, ui)
        browser.log_in(page, f"{walk.address}/dashboard", served.login)
        page.get_by_text("Event Feed").first.wait_for()
        return walk

    @property
    def address(self) -> str:
        """Where the UI begins."""
        return self.served.api.removesuffix("/api") + ("/v2" if self.ui == "v2" else "")

    @property
    def chromium(self) -> Browser:
        """In which the page is."""
        opened = self.page.context.browser
        assert opened is not None
        return opened

    def to(self, place: str) -> Page:
        """The page of that path."""
        self.page.goto(f"{self.address}{place}")
        self.page.get_by_text("Event Feed").first.wait_for()
        return self.page

    def artifacts_of(self, run: str) -> Page:
        """A flow run with the artifacts of it."""
        page = self.to(f"/runs/flow-run/{self.runs[run]}")
        page.get_by_text("Artifacts", exact=True).first.click()
        page.get_by_text(f"{run}-summary", exact=True).first.wait_for()
        return page

    def artifact(self, key: str) -> Page:
        """The newest artifact of that key."""
        made = self.served.get("/artifacts/latest/filter", {"artifacts": {"key": {"any_": [key]}}})
        page = self.to(f"/artifacts/artifact/{made[0]['latest_id']}")
        page.get_by_text(key, exact=True).first.wait_for()
        return page

    def form(self, deployment: str) -> Page:
        """The form in which a run's parameters are given."""
        found = self.served.get(f"/deployments/name/{DEPLOYMENTS[deployment]}")
        page = self.to(f"/deployments/deployment/{found['id']}/run")
        page.get_by_text("Lower case, digits, dashes.").first.wait_for()
        return page

    def shoot(self, out: Path, name: str, *, height: int = browser.HEIGHT, whole: bool = False) -> None:
        """Keep the page as a small PNG."""
        self.page.set_viewport_size({"width": browser.WIDTH, "height": height})
        self.page.wait_for_timeout(2500)  # what is drawn moves into its place
        shot = Image.open(io.BytesIO(self.page.screenshot(full_page=whole))).convert("RGB")
        shot = shot.resize((WIDTH, shot.height * WIDTH // shot.width), Image.Resampling.LANCZOS)
        few = shot.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        few.save(out / f"{name}.png", optimize=True)


def take(out: Path, served: Served, runs: dict[str, str], opened: Browser) -> None:
    """All of them."""
    with browser.opened(opened) as (page, _):
        walk = Walk.begin(page, served, runs, ui="v2")
        walk.shoot(out, "dashboard", height=720)
        walk.artifacts_of("smoke")
        walk.shoot(out, "run")
        walk.artifact("smoke-summary")
        walk.shoot(out, "summary", height=1420)
        walk.artifact("vae-elbo-seed-1-picture")
        walk.shoot(out, "picture", height=640)
        walk.form("smoke")
        walk.shoot(out, "form")
    with browser.opened(opened) as (page, _):
        walk = Walk.begin(page, served, runs, ui="v1")
        walk.artifact("vae-summary")
        walk.shoot(out, "summary-v1", height=1100)


def main() -> None:
    """Run both, take all screenshots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "ui", help="folder of the PNG files")
    out = parser.parse_args().out
    if lacking := browser.missing():
        sys.exit(lacking)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, serve(Path(folder)) as served, browser.browsing() as opened:
        take(out, served, finished_runs(served), opened)
    for file in sorted(out.glob("*.png")):
        print(f"{file.stat().st_size / 1000:6.0f} kB  {file}")


if __name__ == "__main__":
    main()
