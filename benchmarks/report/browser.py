"""The page as a browser shows it: pictures of it for the docs."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_PICTURES = {
    "headline": "#headline",
    "save-and-restore": "#experiment-size details[open] > .grid",
    "sizes": "#experiment-size > .grid",
    "variables": "#experiment-variables > .grid",
    "timeline": "#timelines .timeline:last-of-type",
}
_LEFT_OUT = re.compile("^(Requests|Extra memory)")  # so that a picture stays small; the page has all
_WIDTH_PX, _TIMEOUT_MS = 1000, 60_000


def browser_path() -> str | None:
    """Chromium as the system has it; playwright brings none."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Headless Chromium that resolves no name. Raises FileNotFoundError where there is none."""
    path = browser_path()
    if path is None:
        raise FileNotFoundError("there is no Chromium here; on Debian or Ubuntu: apt-get install chromium")
    arguments = ["--host-resolver-rules=MAP * ~NOTFOUND"]
    if os.getuid() == 0:
        arguments.append("--no-sandbox")  # it refuses root otherwise
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=arguments, timeout=5 * _TIMEOUT_MS)
        try:
            yield browser
        finally:
            browser.close()


def take_pictures(page: str, folder: str) -> list[str]:
    """Writes `benchmark-*.png`, of what the page has of them, and returns their paths."""
    os.makedirs(folder, exist_ok=True)
    found = []
    with open_browser() as browser:
        view = browser.new_page(viewport={"width": _WIDTH_PX, "height": 900})
        view.set_default_timeout(_TIMEOUT_MS)
        view.goto(f"file://{os.path.abspath(page)}")
        view.wait_for_selector("html[data-drawn]", timeout=_TIMEOUT_MS)
        view.locator("figure", has=view.locator("h3", has_text=_LEFT_OUT)).evaluate_all(
            "places => places.forEach((place) => place.remove())"
        )
        for name, selector in _PICTURES.items():
            place = view.locator(selector)
            if place.count():
                found.append(os.path.join(folder, f"benchmark-{name}.png"))
                place.first.screenshot(path=found[-1])
    return found
