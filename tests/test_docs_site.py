"""The site that `make docs` builds: no warning, nothing left out, no dead link, nothing from elsewhere."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from bs4 import BeautifulSoup, Tag

import ckptflow
from benchmarks.report.browser import browser_path, open_browser
from tests.waiting import HANG_S

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "docs").rglob("*.md"))
_LOADS = {
    "script": "src",
    "img": "src",
    "link": "href",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "use": "href",
}
_IN_STYLES = re.compile(r"""(?:url\(\s*|@import\s+)["']?([^"')\s]+)""")

_NOT_MADE_BY_USERS = (ckptflow.Checkpoint, ckptflow.PendingCheckpoint)  # shown without the arguments that make one


@dataclass(frozen=True)
class Site:
    folder: Path
    said: str
    code: int

    @cached_property
    def pages(self) -> dict[Path, BeautifulSoup]:
        return {path: BeautifulSoup(path.read_text(), "html.parser") for path in sorted(self.folder.rglob("*.html"))}

    @cached_property
    def anchors(self) -> dict[Path, set[str]]:
        return {path: {str(tag["id"]) for tag in page.find_all(id=True)} for path, page in self.pages.items()}

    def page(self, name: str) -> BeautifulSoup:
        return self.pages[self.folder / name]

    def why_not(self, start: Path, target: str) -> str | None:
        """Why a link on the page `start` leads nowhere, or None."""
        parts = urlsplit(target)
        path = (start.parent / unquote(parts.path)).resolve() if parts.path else start
        if not path.is_file():
            return f"no file {path}"
        anchor = unquote(parts.fragment)
        if anchor and path in self.anchors and anchor not in self.anchors[path]:
            return f"no {anchor!r} in {path.name}"
        return None


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "-n", "--keep-going", "-q", "-b", "html"]
    done = subprocess.run(
        [*command, "-d", str(folder / "doctrees"), str(ROOT / "docs"), str(folder / "html")],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    return Site(folder / "html", done.stderr, done.returncode)


def text_of(tag: Tag) -> str:
    return " ".join(tag.get_text().split())


def is_error(public: object) -> bool:
    return inspect.isclass(public) and issubclass(public, ckptflow.CkptflowError)


def is_elsewhere(target: str) -> bool:
    return target.startswith("//") or urlsplit(target).scheme not in ("", "data")


def test_it_builds_without_a_warning(site: Site) -> None:
    assert site.code == 0, site.said


def test_every_public_name_has_its_signature_and_docstring(site: Site) -> None:
    page = site.page("reference.html")
    for name in ckptflow.__all__:
        entry = page.find("dt", id=f"ckptflow.{name}")
        assert entry is not None, name
        if name == "__version__":
            continue
        public = getattr(ckptflow, name)
        said = entry.find_next_sibling("dd")
        assert said is not None, name
        plain = re.sub(r"[`\W]+", " ", text_of(said))
        sentences = re.split(r"\n\n|\. ", inspect.getdoc(public) or "")
        for sentence in sentences[:2]:
            if not re.match(r"(Args|Raises):", sentence):
                assert re.sub(r"[`\W]+", " ", sentence).strip() in plain, f"{name}: {sentence}"
        if callable(public) and public not in _NOT_MADE_BY_USERS and not is_error(public):
            shown = text_of(entry)
            assert [each for each in inspect.signature(public).parameters if each not in shown] == [], name


def test_every_method_of_the_manager_is_there(site: Site) -> None:
    page = site.page("reference.html")
    for kind in (ckptflow.CheckpointManager, ckptflow.PendingCheckpoint, ckptflow.PreemptionWatcher):
        for name in vars(kind):
            if not name.startswith("_"):
                assert page.find("dt", id=f"ckptflow.{kind.__name__}.{name}") is not None, f"{kind.__name__}.{name}"


def test_docstrings_are_rendered(site: Site) -> None:
    """No marks of a markup that was not understood, and sections as lists."""
    page = site.page("reference.html")
    article = page.find("article")
    assert article is not None
    texts = [str(text) for text in article.find_all(string=True) if text.find_parent("pre") is None]
    assert [text for text in texts if "`" in text] == []
    shown = [text_of(code) for code in article.find_all("code")]
    assert ".keras" in shown  # what begins with a dot is shown with it
    entry = page.find("dt", id="ckptflow.CheckpointManager")
    assert entry is not None
    described = entry.find_next_sibling("dd")
    assert described is not None
    fields = [text_of(field) for field in described.find_all("dt", class_=re.compile("field"))]
    assert any(field.startswith("Parameters") for field in fields)
    assert any(field.startswith("Raises") for field in fields)
    linked = [str(link["href"]) for link in described.find_all("a", href=True)]
    assert "#ckptflow.FencedError" in linked
    assert "#ckptflow.PendingCheckpoint.result" in linked


def test_every_page_is_in_the_menu(site: Site) -> None:
    menu = site.page("index.html").find("div", class_="sidebar-tree")
    assert menu is not None
    linked = {str(link["href"]).partition("#")[0] for link in menu.find_all("a", href=True)}
    pages = {str(path.relative_to(ROOT / "docs").with_suffix(".html")) for path in SOURCES}
    assert {page for page in pages if not page.startswith("design/0")} - linked - {"index.html"} == set()
    notes = site.page("design/index.html").find("article")
    assert notes is not None
    listed = {str(link["href"]).partition("#")[0] for link in notes.find_all("a", href=True)}
    assert {Path(page).name for page in pages if page.startswith("design/0")} <= listed


def test_links_lead_somewhere(site: Site) -> None:
    wrong = [
        f"{path.name}: {target}: {why}"
        for path, page in site.pages.items()
        for target in {str(link["href"]) for link in page.find_all("a", href=True)}
        if not urlsplit(target).scheme and (why := site.why_not(path, target)) is not None
    ]
    assert wrong == []


def test_links_of_the_readme_lead_somewhere(site: Site) -> None:
    """Their anchors, too: the pages are read where the repository is, and on the site."""
    targets = re.findall(r"\]\((docs/[^)\s]+)\)", (ROOT / "README.md").read_text())
    assert len(targets) > 10
    wrong = []
    for target in targets:
        page = target.removeprefix("docs/").replace(".md", ".html", 1)
        why = site.why_not(site.folder / "index.html", page)
        if why is not None and (ROOT / target.partition("#")[0]).suffix == ".md":
            wrong.append(f"{target}: {why}")
    assert wrong == []


def test_a_dead_link_is_found(site: Site) -> None:
    start = site.folder / "index.html"
    assert site.why_not(start, "cli.html#exit-codes") is None
    assert "no file" in str(site.why_not(start, "no-such-page.html"))
    assert "no 'no-such-place'" in str(site.why_not(start, "cli.html#no-such-place"))


def loaded_by(site: Site) -> Iterator[tuple[str, str]]:
    """What pages and style sheets load: who, and what."""
    for path, page in site.pages.items():
        for kind, attribute in _LOADS.items():
            for tag in page.find_all(kind):
                if tag.get(attribute) and tag.get("rel") != ["canonical"]:
                    yield path.name, str(tag[attribute])
        for style in page.find_all("style"):
            yield from ((path.name, target) for target in _IN_STYLES.findall(style.get_text()))
    for path in site.folder.rglob("*.css"):
        yield from ((path.name, target) for target in _IN_STYLES.findall(path.read_text()))


def test_nothing_is_loaded_from_elsewhere(site: Site) -> None:
    loaded = list(loaded_by(site))
    assert len(loaded) > 100
    assert [(who, target) for who, target in loaded if is_elsewhere(target)] == []
    assert is_elsewhere("https://fonts.example.org/a.css")
    assert is_elsewhere("//cdn.example.org/a.js")


@pytest.mark.skipif(browser_path() is None, reason="no Chromium here to look at the site (apt-get install chromium)")
def test_in_a_browser(site: Site) -> None:
    """From the disk, without a network: the search finds, no page is wider than a phone."""
    asked: list[str] = []
    errors: list[str] = []
    with open_browser() as browser:
        view = browser.new_page(viewport={"width": 360, "height": 800})
        view.set_default_timeout(HANG_S * 1000)
        view.on("request", lambda request: asked.append(request.url))
        view.on("pageerror", lambda error: errors.append(str(error)))
        view.goto(f"file://{site.folder}/search.html?q=FencedError")
        ended = "#search-results .search-summary:has-text('Search finished')"  # what is found comes one by one
        view.wait_for_selector(ended, timeout=HANG_S * 1000)
        found = view.locator("#search-results li a").evaluate_all("links => links.map((link) => link.href)")
        assert any("troubleshooting.html" in link for link in found)
        assert any("reference.html" in link for link in found)
        wide = []
        for path in site.pages:
            view.goto(f"file://{path}", wait_until="domcontentloaded")
            over = view.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            if over > 0:
                wide.append(f"{path.name}: {over} px")
    assert wide == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert set(errors) <= {"Failed to fetch"}  # the excerpts under what was found: Chromium reads none from a disk
