"""A browser as a person has it: the machine's own Chromium, without a window, with the login typed in."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

WIDTH, HEIGHT = 1280, 900
PATIENCE = 90_000  # milliseconds, on a busy machine


def chromium() -> str | None:
    """The program, where there is one."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next(filter(None, map(shutil.which, names)), None)


def missing() -> str | None:
    """What keeps a browser from being opened here."""
    if chromium() is None:
        return "no Chromium here: apt-get install chromium"
    return None if find_spec("playwright") else "no playwright here: pip install '.[browser]'"


@contextlib.contextmanager
def browsing() -> Iterator[Browser]:
    """Chromium for the length of the block. Nothing is downloaded, and it is root's as well as anybody's."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium())
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def opened(
    browser: Browser, *, width: int = WIDTH, height: int = HEIGHT, dark: bool = False
) -> Iterator[tuple[Page, list[str]]]:
    """A page of a new user, with a list of the errors of it and of whatever it opens, as they come."""
    scheme = "dark" if dark else "light"
    with browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme) as context:
        context.set_default_timeout(PATIENCE)
        errors: list[str] = []

        def listen(page: Page) -> None:
            page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
            page.on("pageerror", lambda error: errors.append(str(error)))

        context.on("page", listen)
        yield context.new_page(), errors


def log_in(page: Page, address: str, login: str) -> None:
    """Open a page of the UI, and type the login in where it asks for it."""
    page.goto(address)
    page.locator("input[type=password]").fill(login)
    page.keyboard.press("Enter")
    page.locator("input[type=password]").wait_for(state="detached")
