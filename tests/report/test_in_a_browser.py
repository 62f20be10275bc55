"""The page of a run as Chromium shows it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report.browser import browser_path, open_browser
from ckptflow.commit.retention import KeepLast
from ckptflow.report.page import make_page
from tests.report import runs
from tests.waiting import HANG_S, until

pytestmark = pytest.mark.skipif(
    browser_path() is None, reason="no Chromium here, so nobody has looked at the page (apt-get install chromium)"
)
SECTIONS = {
    "overview": "step 200",
    "lineage": "Rolled back to step 200. 280 committed steps discarded",
    "checkpoints": "2 of the last 2",
    "saves": "425 ms",
    "tensors": "125.0 KiB",
    "damage": "shards missing: 1 of 2",
}


@pytest.mark.parametrize("kind", ["eventful", "hostile"])
def test_in_a_browser(tmp_path: Path, kind: str) -> None:
    """All drawn, nothing asked for elsewhere, no error, no overflow; on a desk and on a phone, light and dark."""
    getattr(runs, kind)(tmp_path / "run")
    (tmp_path / "page.html").write_text(make_page(runs.look(tmp_path / "run", KeepLast(2))))
    said: list[str] = []
    asked: list[str] = []
    with open_browser() as browser:
        view = browser.new_page(viewport={"width": 1200, "height": 900}, color_scheme="light")
        view.set_default_timeout(HANG_S * 1000)
        view.on("console", lambda message: said.append(message.text))
        view.on("pageerror", lambda error: said.append(str(error)))
        view.on("request", lambda request: asked.append(request.url))
        view.goto(f"file://{tmp_path}/page.html")
        for section, words in SECTIONS.items():
            assert words in view.locator(f"#{section}").inner_text(), section
        assert view.locator(".plot").count() == view.locator(".plot:has(use[data-tip])").count() == 6
        assert view.locator("#lineage .plot text", has_text=re.compile("^i[0-9]$")).count() == 6
        newest = view.locator("#lineage .plot use[data-tip*='current, the newest']")
        box = newest.bounding_box()
        assert box is not None
        assert box["width"] > 4
        for point in (newest.hover, newest.click):
            view.mouse.move(0, 0)
            assert view.locator("#tip").is_hidden()
            point()
            assert view.locator("#tip").is_visible()
            assert "step 200, i6" in view.locator("#tip").inner_text()
        assert _colour(view, "body", "backgroundColor") == "rgb(255, 255, 255)"
        assert _overflow(view) == 0
        light = _ink(view)
        view.emulate_media(color_scheme="dark")
        until(lambda: _ink(view) != light, timeout_s=HANG_S)
        assert _ink(view) == _colour(view, "body", "color")
        assert _brightness(_colour(view, "body", "backgroundColor")) < 60 < 180 < _brightness(_ink(view))
        view.set_viewport_size({"width": 360, "height": 740})
        widest = "Math.max(...[...document.querySelectorAll('.plot > svg')].map((svg) => svg.clientWidth))"
        until(lambda: view.evaluate(widest) < 360, timeout_s=HANG_S)
        assert _overflow(view) == 0
        assert view.evaluate("window.hacked") is None
        assert view.locator("main script, main img, #tip script, #tip img").count() == 0
    assert said == []
    assert asked == [f"file://{tmp_path}/page.html"]


def _ink(view: Any) -> str:
    return _colour(view, ".plot text.x", "fill")


def _colour(view: Any, selector: str, name: str) -> str:
    return str(view.evaluate(f"getComputedStyle(document.querySelector('{selector}')).{name}"))


def _brightness(colour: str) -> float:
    red, green, blue = (float(part) for part in re.findall(r"[\d.]+", colour)[:3])
    return (red + green + blue) / 3


def _overflow(view: Any) -> int:
    """Pixels by which the page is wider than its window."""
    root = "document.documentElement"
    return int(view.evaluate(f"{root}.scrollWidth - {root}.clientWidth"))
