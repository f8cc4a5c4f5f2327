"""The UI of `fortifai serve` and its reports as a person sees them, in Chromium: words, pictures, links, forms."""

from __future__ import annotations

import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import browser
from screenshots import Walk, finished_runs
from served import Served, serve

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(browser.missing() is not None, reason=str(browser.missing())),
    pytest.mark.timeout(600),
]
EITHER = pytest.mark.parametrize("ui", ["v2", "v1"])


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, dict[str, str]]]:
    """A server on which a language model and a model of pictures have run."""
    with serve(tmp_path_factory.mktemp("served")) as one:
        yield one, finished_runs(one)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser.browsing() as opened:
        yield opened


@pytest.fixture
def walk(served: tuple[Served, dict[str, str]], chromium: Browser, ui: str) -> Iterator[Walk]:
    with browser.opened(chromium) as (page, _):
        yield Walk.begin(page, *served, ui=ui)


def sizes(page: Page, selector: str) -> list[tuple[int, int]]:
    """Natural width and height of the images on a page, once they are loaded."""
    images = page.locator(selector)
    images.first.wait_for()
    page.wait_for_function("s => [...document.querySelectorAll(s)].every(i => i.complete)", arg=selector)
    found: list[tuple[int, int]] = images.evaluate_all("all => all.map(i => [i.naturalWidth, i.naturalHeight])")
    return found


@EITHER
def test_whoever_has_not_logged_in_is_asked_to(served: tuple[Served, Any], chromium: Browser, ui: str) -> None:
    with browser.opened(chromium) as (page, _):
        page.goto(f"{served[0].api.removesuffix('/api')}{'/v2' if ui == 'v2' else ''}/deployments")
        page.locator("input[type=password]").wait_for()
        assert page.get_by_text("recursive-training").count() == 0


@EITHER
@pytest.mark.parametrize("run", ["smoke", "vae"])
def test_an_experiments_page_has_its_table_its_charts_and_a_link_to_the_report(walk: Walk, run: str) -> None:
    page = walk.artifacts_of(run)
    for name in (f"{run}-summary", f"{run}-profile", f"{run}-profile-image"):
        page.get_by_text(name, exact=True).first.wait_for()
    page = walk.artifact(f"{run}-summary")
    table = page.locator("table").first
    table.wait_for()
    said = table.inner_text()
    assert "M0" in said and "M1" in said and ("TCE 0.9" in said)
    pictures = sizes(page, "img[src*='/figures/']")
    assert len(pictures) == 2 and all(width > 400 and height > 200 for width, height in pictures)
    with browser.opened(walk.chromium) as (report, errors):
        report.goto(str(page.get_by_role("link", name="Open the report").get_attribute("href")))
        assert report.locator("h1").inner_text() == run
        assert report.locator("svg.chart, img.picture").first.is_visible()
        assert errors == []


@EITHER
def test_a_click_on_the_link_opens_the_report(walk: Walk) -> None:
    page = walk.artifact("smoke-summary")
    link = page.get_by_role("link", name="Open the report")
    if link.get_attribute("target") == "_blank":
        with page.expect_popup() as opening:
            link.click()
        page = opening.value
    else:
        link.click()
    page.locator("h1", has_text="smoke").wait_for()
    page.get_by_text("What the model still knows").wait_for()


@EITHER
def test_a_run_shows_its_picture_and_its_table(walk: Walk) -> None:
    image = "img[src^='data:image/']"
    for key in ("vae-elbo-seed-1-picture", "smoke-ce-seed-0-retention-image", "smoke-retention-image"):
        assert min(sizes(walk.artifact(key), image)[0]) > 100
    page = walk.artifact("vae-elbo-seed-1-table")
    page.get_by_text("vae · ELBO · seed 1: measures by generation").first.wait_for()
    page.get_by_text("frechet").first.wait_for()


@pytest.mark.parametrize("ui", ["v2"])
def test_line_charts_are_drawn(walk: Walk) -> None:
    for key in ("smoke-ce-seed-0-retention", "vae-elbo-seed-1-frechet"):
        lines = walk.artifact(key).locator("svg[id^=mermaid] path[stroke], svg[aria-roledescription=xychart] path")
        lines.first.wait_for(state="attached")
        assert lines.first.evaluate("path => path.getTotalLength()") > 100


@EITHER
def test_the_form_describes_every_field_and_offers_its_choices(walk: Walk) -> None:
    page = walk.form("smoke")
    for words in (
        "The real text, and the questions about it.",
        "How often a generation reads its text.",
        "Overrides experiment.generations" if walk.ui == "v1" else "Overrides `experiment.generations`.",
    ):
        page.get_by_text(words).first.wait_for()
    # V1 has a list that opens in place of so many tabs as there are losses
    for tab in ("almanac", "huggingface", "scratch", "pretrained", *(("tce", "focal") if walk.ui == "v2" else ())):
        assert page.get_by_text(tab, exact=True).first.is_visible(), tab
    page = walk.form("vae")
    for tab in ("gaussian", "gmm", "vae", "diffusion", "zipf"):
        assert page.get_by_text(tab, exact=True).first.is_visible(), tab


@EITHER
def test_the_page_calls_nobody_else(
    served: tuple[Served, dict[str, str]], chromium: Browser, ui: str, tmp_path: Path
) -> None:
    with browser.opened(chromium) as (page, _):
        outside: list[str] = []
        here = urllib.parse.urlsplit(served[0].api).netloc

        def note(answer: Any) -> None:
            place = urllib.parse.urlsplit(answer.url)
            if place.scheme.startswith("http") and place.netloc != here:
                outside.append(answer.url)

        def note_failed(request: Any) -> None:
            if "csp" not in str(request.failure).lower():
                note(request)

        page.on("response", note)
        page.on("requestfailed", note_failed)
        walk = Walk.begin(page, *served, ui=ui)
        walk.form("smoke")
        assert outside == []
