"""The page as markup: what is on it, what nothing in storage can do to it, and how large it gets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from ckptflow.commit.catalog import Summaries
from ckptflow.commit.retention import KeepLast
from ckptflow.report.figures import MAX_POINTS, durations, metric, sizes, stalls, timeline
from ckptflow.report.gather import read_run
from ckptflow.report.page import CHECKPOINTS_SHOWN, make_page
from ckptflow.report.run import Run
from ckptflow.testing import MemoryStore
from tests.report import runs
from tests.roots import Life, make_root
from tests.speed.roots import multiply_objects

MANY = 10_000


class Markup(HTMLParser):
    """The page as a browser takes it apart: its elements, and its text outside of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._within = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        self._within = tag

    def handle_data(self, data: str) -> None:
        if self._within not in ("script", "style"):
            self.texts.append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for each, attributes in self.elements if each == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


@pytest.fixture(scope="module")
def eventful(tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = tmp_path_factory.mktemp("report") / "run-7"
    runs.eventful(root)
    return runs.look(root, KeepLast(2))


@pytest.fixture(scope="module")
def many() -> Run:
    objects: dict[str, bytes] = {}
    store = MemoryStore(objects)
    folder = Life(store).save(1, metrics={"loss": 0.5})
    multiply_objects(objects, str(folder), range(2, MANY + 1))
    return read_run(store, Summaries(store, is_for_show=True), now=runs.NOW)


def test_every_section_has_what_the_data_has(eventful: Run) -> None:
    text = Markup(make_page(eventful)).text
    for said in (
        "Newest that counts step 200 committed 22 h ago",
        "A restart begins at step 200 000000000200-i0006",
        "Checkpoints that count 5 and 6 outside",
        "Damaged, orphaned 2, 1",
        "Rolled back to step 200. Threw away 280 committed steps: incarnation 5 had come to step 480.",
        "Kept or not as ckptflow prune would decide with KeepLast(n=2) .",
        "kept : 2 of the last 2",
        "outside, pinned: cut off by a rollback",
        "Lowest 0.5 at step 200, highest 2 at step 50.",
        "from the call of save to the commit 4 of 11 425 ms 480 ms",
        "training held up, the worker held up longest 4 of 11 4.2 ms 4.8 ms",
        "model/embedding float32 [500, 64] 125.0 KiB 98.0 %",
        "000000000100-i0001 128.1 KiB shards missing: 1 of 2 would be deleted",
        "damaged manifest: its bytes do not match the checksum",
        "orphaned: incarnation 5 is over, the next prune deletes it",
        "of the newest incarnation: under way, or given up",
    ):
        assert said in text, said


def test_the_page_can_be_read_by_its_structure(eventful: Run) -> None:
    markup = Markup(make_page(eventful))
    assert len(markup.of("h1")) == 1
    assert [each["id"] for each in markup.of("section")] == [
        "overview", "lineage", "checkpoints", "saves", "tensors", "damage"
    ]  # fmt: skip
    assert len(markup.of("caption")) == len(markup.of("table")) == 7
    assert all(each.get("scope") in ("col", "row") for each in markup.of("th"))
    plots = [each for each in markup.of("div") if each.get("class") == "plot"]
    assert len(plots) == 6
    assert all(each["role"] == "img" and each["aria-label"] for each in plots)
    links = [each["href"] for each in markup.of("a")]
    assert {str(link)[1:] for link in links} <= {each["id"] for each in markup.of("section")}


def test_nothing_on_the_page_comes_from_elsewhere(eventful: Run) -> None:
    markup = Markup(make_page(eventful))
    places = [value for _, each in markup.elements for name in ("src", "href") if (value := each.get(name))]
    assert [place for place in places if not place.startswith(("#", "data:"))] == []
    policy = next(each["content"] for each in markup.of("meta") if "http-equiv" in each)
    assert str(policy).startswith("default-src 'none';")


def test_names_from_storage_are_text(tmp_path: Path) -> None:
    runs.hostile(tmp_path / "run")
    page = make_page(runs.look(tmp_path / "run"))
    markup = Markup(page)
    assert markup.text.count("<script>window.hacked") > 10
    assert len(markup.of("script")) == 3
    assert not markup.of("img")
    assert not [each for _, each in markup.elements if "onerror" in each]
    source = page.partition('id="figures">')[2].partition("</script>")[0]
    assert "<" not in source  # nothing in it can end the element
    texts = list(_strings(json.loads(source)))
    assert sum("&lt;script&gt;" in text for text in texts) > 5
    assert {tag for text in texts for tag, _ in Markup(text).elements} <= {"b", "br"}


def test_credentials_in_a_url_are_not_shown() -> None:
    store = MemoryStore(url="ftp://user:hunter2@host/run-7?token=hunter2")
    make_root(store, (1,))
    run = read_run(store, Summaries(store, is_for_show=True), now=runs.NOW)
    assert (run.url, run.name) == ("ftp://host/run-7?***", "run-7")
    assert "hunter2" not in make_page(run)


def test_what_was_sent_is_drawn_below_what_was_saved(eventful: Run) -> None:
    assert [trace.name for trace in sizes(eventful).data if trace.name == "of that sent"] == []
    *others, last = eventful.checkpoints
    copying = replace(eventful, checkpoints=(*others, replace(last, size_bytes=100 * 2**20, copied_bytes=95 * 2**20)))
    (sent,) = (trace for trace in sizes(copying).data if trace.name == "of that sent")
    assert (list(sent.x), list(sent.y)) == ([last.step], [5.0])
    text = Markup(make_page(copying)).text
    assert "100.0 MiB 95.0 MiB copied" in text
    assert "What was not sent was copied inside the storage." in text


def test_figures_draw_what_there_is(eventful: Run) -> None:
    drawn = {trace.name: trace for trace in timeline(eventful).data}
    assert list(drawn) == [
        "restored from", "one incarnation", "counts", "outside what counts", "damaged", "an incarnation starts"
    ]  # fmt: skip
    starts = dict(zip(drawn["an incarnation starts"].text, drawn["an incarnation starts"].y, strict=True))
    assert starts == {"i1": 0, "i2": 300, "i3": 400, "i4": 450, "i5": 450, "i6": 200}
    links = drawn["restored from"]
    assert list(links.y) == [450, 450, None, 200, 200, None]  # what life 3 restored has been pruned
    assert list(links.x)[3:5] == ["2026-10-01 08:40:00", "2026-10-01 13:00:00"]
    assert sum(len(trace.x) for trace in sizes(eventful).data) == 11
    counting, outside = metric(eventful, "val_loss").data
    assert list(counting.x) == [50, 100, 150, 200, 200]
    assert list(outside.y) == [100 / step for step in (250, 300, 400, 450, 480)]
    took, held = durations(eventful), stalls(eventful)
    assert took is not None
    assert held is not None
    assert [trace.name for trace in took.data] == ["from the call to the commit", "shards durable, slowest worker"]
    assert [list(trace.y) for trace in took.data] == [
        pytest.approx([400, 450, 480, 200]),
        pytest.approx([200, 225, 240, 100]),
    ]
    assert list(held.data[0].y) == pytest.approx([4, 4.5, 4.8, 2])
    assert (took.layout.yaxis.title.text, held.layout.yaxis.title.text) == ("ms", "ms")


def test_what_was_not_recorded_is_not_drawn(tmp_path: Path) -> None:
    make_root(str(tmp_path / "run"), (1, 2))
    run = runs.look(tmp_path / "run")
    assert durations(run) is None
    assert stalls(run) is None
    text = Markup(make_page(run)).text
    assert "from the call of save to the commit 0 of 2 not recorded not recorded" in text
    assert "The job's retention policies are not in storage." in text


def test_an_empty_root_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert "No checkpoint is here yet" in Markup(make_page(runs.look(tmp_path / "run"))).text
    make_root(str(tmp_path / "claimed"), ())
    text = Markup(make_page(runs.look(tmp_path / "claimed"))).text
    assert "None is committed." in text
    assert "A restart begins at the beginning" in text


def test_ten_thousand_checkpoints_make_a_page_that_can_be_opened(many: Run) -> None:
    page = make_page(many)
    assert len(many.checkpoints) == MANY
    assert len(page.encode()) < 10e6
    markup = Markup(page)
    assert f"Shown are {CHECKPOINTS_SHOWN} of {MANY:,} checkpoints." in markup.text
    assert f"{MANY:,} checkpoints are too many: some are drawn." in markup.text
    for figure in (timeline(many), sizes(many), metric(many, "loss")):
        assert all(len(trace.x) <= MAX_POINTS + 10 for trace in figure.data)


def test_what_stands_out_is_drawn_among_many(many: Run) -> None:
    checkpoints = list(many.checkpoints)
    checkpoints[4321] = replace(checkpoints[4321], size_bytes=9 * 2**30)
    (trace,) = sizes(replace(many, checkpoints=tuple(checkpoints))).data
    assert trace.x[list(trace.y).index(max(trace.y))] == checkpoints[4321].step
    assert max(trace.y) == 9


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _strings(each)
    elif isinstance(value, list):
        for each in value:
            yield from _strings(each)
