"""The page of a run as Chromium shows it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report import write_report
from benchmarks.report.browser import browser_path, open_browser, take_pictures
from tests.benchmarks import runs
from tests.waiting import HANG_S, until

pytestmark = pytest.mark.skipif(
    browser_path() is None, reason="no Chromium here, so nobody has looked at the page (apt-get install chromium)"
)


def test_pictures_are_taken_of_what_the_page_has(tmp_path: Path) -> None:
    write_report(runs.run(*runs.local(), timelines=(runs.timeline(2),)), str(tmp_path / "page.html"))
    take_pictures(str(tmp_path / "page.html"), str(tmp_path / "images"))
    assert sorted(os.listdir(tmp_path / "images")) == [
        f"benchmark-{name}.png" for name in ("headline", "save-and-restore", "timeline")
    ]
    for path in (tmp_path / "images").iterdir():
        data = path.read_bytes()
        assert data.startswith(b"\x89PNG")
        width_px, height_px = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
        assert width_px > 900
        assert height_px > 300


def test_in_a_browser(tmp_path: Path) -> None:
    """All plots drawn, nothing asked for elsewhere, no error, no overflow; wide and narrow, light and dark."""
    run = runs.hostile()
    write_report(run, str(tmp_path / "page.html"))
    said: list[str] = []
    asked: list[str] = []
    with open_browser() as browser:
        view = browser.new_page(viewport={"width": 1200, "height": 900}, color_scheme="light")
        view.set_default_timeout(HANG_S * 1000)
        view.on("console", lambda message: said.append(message.text))
        view.on("pageerror", lambda error: said.append(str(error)))
        view.on("request", lambda request: asked.append(request.url))
        view.goto(f"file://{tmp_path}/page.html")
        view.wait_for_selector("html[data-drawn]", timeout=HANG_S * 1000)
        view.evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
        plots = view.locator(".plot").count()
        assert plots > 20
        until(lambda: view.evaluate("document.querySelectorAll('.plot:has(.main-svg)').length") == plots, HANG_S)
        assert view.locator(".plot:not(:has(.point))").count() == 0
        for timeline, place in zip(run.timelines, view.locator(".timeline").all(), strict=True):
            assert place.locator(".bars .point").count() == len(timeline.events)
        assert _overflow(view) == 0
        anchor = "getComputedStyle(document.querySelector('.plot .ytick text')).textAnchor"
        assert view.evaluate(anchor) == "end"  # plotly's own, not that of the run page's charts
        ink = "getComputedStyle(document.querySelector('.plot .xtick text')).fill"
        light = view.evaluate(ink)
        view.emulate_media(color_scheme="dark")
        until(lambda: view.evaluate(ink) != light, HANG_S)
        view.set_viewport_size({"width": 400, "height": 900})
        widest = "Math.max(...[...document.querySelectorAll('.main-svg')].map((svg) => svg.clientWidth))"
        until(lambda: view.evaluate(widest) < 400, HANG_S)
        assert _overflow(view) == 0
        assert view.evaluate("window.hacked") is None
        assert view.locator(".plot a, .plot img").count() == 0
        assert view.locator(".plot text", has_text="<script>").count() > 0
        assert view.locator("td.ours").first.inner_text() != ""
    assert said == []
    assert asked == [f"file://{tmp_path}/page.html"]


def _overflow(view: Any) -> int:
    """Pixels by which the page is wider than its window."""
    root = "document.documentElement"
    return int(view.evaluate(f"{root}.scrollWidth - {root}.clientWidth"))
