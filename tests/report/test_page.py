"""The page as markup: what is on it, what nothing in storage can do to it, and how large it gets."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ckptflow.commit.catalog import Summaries
from ckptflow.commit.retention import KeepLast
from ckptflow.format.layout import Folder
from ckptflow.report.chart import Chart, number_ticks, time_ticks
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
        "Newest checkpoint step 200 committed 22 h ago",
        "A restart resumes at step 200 000000000200-i0006",
        "Current checkpoints 5 and 6 superseded",
        "Damaged 2 see below",
        "Rolled back to step 200. 280 committed steps discarded: incarnation 5 had reached step 480.",
        "Retention as ckptflow prune would decide with KeepLast(n=2) .",
        "retained: 2 of the last 2",
        "superseded, pinned: rolled back",
        "Lowest 0.5 at step 200, highest 2 at step 50.",
        "from the call of save to the commit 4 of 11 425 ms 480 ms",
        "training blocked, slowest worker 4 of 11 4.2 ms 4.8 ms",
        "model/embedding float32 [500, 64] 125.0 KiB 98.0 %",
        "000000000100-i0001 128.1 KiB shards missing: 1 of 2 would be deleted",
        "damaged manifest: its bytes do not match the checksum",
        "orphaned: incarnation 5 is over, the next prune deletes it",
        "of the newest incarnation: in progress, or abandoned",
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
    assert len(markup.of("script")) == 1
    assert not markup.of("img")
    assert not [each for _, each in markup.elements if "onerror" in each]
    tips = [str(each["data-tip"]) for each in markup.of("use") if "data-tip" in each]
    assert sum("<script>" in tip for tip in tips) > 5


def test_credentials_in_a_url_are_not_shown() -> None:
    store = MemoryStore(url="ftp://user:hunter2@host/run-7?token=hunter2")
    make_root(store, (1,))
    run = read_run(store, Summaries(store, is_for_show=True), now=runs.NOW)
    assert (run.url, run.name) == ("ftp://host/run-7?***", "run-7")
    assert "hunter2" not in make_page(run)


def test_what_was_sent_is_drawn_below_what_was_saved(eventful: Run) -> None:
    assert "of that sent" not in drawn(sizes(eventful))
    *others, last = eventful.checkpoints
    copying = replace(eventful, checkpoints=(*others, replace(last, size_bytes=100 * 2**20, copied_bytes=95 * 2**20)))
    assert drawn(sizes(copying))["of that sent"] == [(last.step, 5.0)]
    text = Markup(make_page(copying)).text
    assert "100.0 MiB 95.0 MiB copied" in text
    assert "What was not sent was copied inside the storage." in text


def test_charts_draw_what_there_is(eventful: Run) -> None:
    chart = timeline(eventful)
    assert list(drawn(chart)) == [
        "restored from", "one incarnation", "pruned, time not known", "current", "superseded", "damaged",
        "an incarnation starts",
    ]  # fmt: skip
    *_, starting = chart.series
    steps = {mark.label: mark.y for mark in starting.marks}
    assert steps == {"i1": 0, "i2": 300, "i3": 400, "i4": 450, "i5": 450, "i6": 200}
    links = chart.series[0].runs
    assert [(begin.y, end.y) for begin, end in links] == [(450, 450), (200, 200)]  # what i3 restored has been pruned
    assert [datetime.fromtimestamp(mark.x, UTC).hour for mark in links[1]] == [8, 13]
    assert sum(map(len, drawn(sizes(eventful)).values())) == 11
    metrics = drawn(metric(eventful, "val_loss"))
    assert [x for x, _ in metrics["current"]] == [50, 100, 150, 200, 200]
    assert metrics["superseded"] == [(step, 100 / step) for step in (250, 300, 400, 450, 480)]
    took, blocked = durations(eventful), stalls(eventful)
    assert [[y for _, y in marks] for marks in drawn(took).values()] == [
        pytest.approx([400, 450, 480, 200]),
        pytest.approx([200, 225, 240, 100]),
    ]
    assert [y for _, y in drawn(blocked)["training blocked, slowest worker"]] == pytest.approx([4, 4.5, 4.8, 2])
    assert (took and took.y_title, blocked and blocked.y_title) == ("ms", "ms")


def test_what_was_pruned_is_a_tick_on_the_line_of_its_incarnation(tmp_path: Path) -> None:
    root = tmp_path / "run"
    make_root(str(root), (100, 200, 300))
    make_root(str(root), (400,))
    before = {mark.y: mark.x for mark in timeline(runs.look(root)).series[1].runs[0]}
    shutil.rmtree(root / str(Folder(200, 1)))
    run = runs.look(root)
    assert run.incarnations[0].pruned_steps == (200,)
    ((x, y),) = drawn(timeline(run))["pruned, time not known"]
    assert y == 200
    assert before[100] <= x <= before[300]
    assert "their steps are known, their times are not" in Markup(make_page(run)).text


def test_what_nobody_can_decide_is_said_once(tmp_path: Path) -> None:
    make_root(str(tmp_path / "run"), range(1, 30))
    text = Markup(make_page(runs.look(tmp_path / "run"))).text
    assert text.count("polic") == 2  # why the column is empty, and how many checkpoints that concerns
    assert "Problems none seen" in text


@pytest.mark.parametrize("value", [0.0, -1.5, 1e-300, 1e308, -1e308, 1234567.0])
@pytest.mark.parametrize("other", [0.0, 3.0, 5e-324, 1e308, 1234567.25])
def test_every_axis_has_few_ticks_within_its_range(value: float, other: float) -> None:
    low, high = sorted((value, other))
    ticks = number_ticks(low, high)
    assert 1 <= len(ticks) <= 6
    room = (high / 2 - low / 2) * 1e-6
    assert all(low - room <= place <= high + room for place, _ in ticks)
    assert all(len(text) <= 16 for _, text in ticks)
    assert len({text for _, text in ticks}) == len(ticks)


@pytest.mark.parametrize("seconds", [0, 1, 59, 3_600, 90_000, 10**6, 10**8])
def test_times_have_few_ticks(seconds: int) -> None:
    low = runs.FIRST.timestamp() + 0.25
    ticks = time_ticks(low, low + seconds)
    assert 1 <= len(ticks) <= 4
    assert all(low <= place <= low + seconds for place, _ in ticks)


def test_a_metric_that_is_not_a_number_is_not_drawn(eventful: Run) -> None:
    *others, last = eventful.checkpoints
    run = replace(eventful, checkpoints=(*others, replace(last, metrics={"x": math.nan, "y": math.inf})))
    assert metric(run, "x") is None
    assert metric(run, "y") is None
    assert "nan" in Markup(make_page(run)).text


def test_what_was_not_recorded_is_not_drawn(tmp_path: Path) -> None:
    make_root(str(tmp_path / "run"), (1, 2))
    run = runs.look(tmp_path / "run")
    assert durations(run) is None
    assert stalls(run) is None
    text = Markup(make_page(run)).text
    assert "from the call of save to the commit 0 of 2 not recorded not recorded" in text
    assert "The job's retention policies are not in storage, so" in text


def test_an_empty_root_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert "There is no checkpoint here yet" in Markup(make_page(runs.look(tmp_path / "run"))).text
    make_root(str(tmp_path / "claimed"), ())
    text = Markup(make_page(runs.look(tmp_path / "claimed"))).text
    assert "No checkpoint has been committed." in text
    assert "A restart resumes at step 0 from scratch" in text


def test_ten_thousand_checkpoints_make_a_page_that_can_be_opened(many: Run) -> None:
    page = make_page(many)
    assert len(many.checkpoints) == MANY
    assert len(page.encode()) < 4e6
    markup = Markup(page)
    assert f"Shown are {CHECKPOINTS_SHOWN} of {MANY:,} checkpoints." in markup.text
    assert f"{MANY:,} checkpoints are too many: some are drawn." in markup.text
    for chart in (timeline(many), sizes(many), metric(many, "loss")):
        assert all(len(marks) <= MAX_POINTS + 10 for marks in drawn(chart).values())


def test_what_stands_out_is_drawn_among_many(many: Run) -> None:
    checkpoints = list(many.checkpoints)
    checkpoints[4321] = replace(checkpoints[4321], size_bytes=9 * 2**30)
    marks = drawn(sizes(replace(many, checkpoints=tuple(checkpoints))))["current"]
    assert max(marks, key=lambda mark: mark[1]) == (checkpoints[4321].step, 9)


def drawn(chart: Chart | None) -> dict[str, list[tuple[float, float]]]:
    """Where the marks of each series are."""
    return {series.name: [(mark.x, mark.y) for mark in series.marks] for series in chart.series} if chart else {}
