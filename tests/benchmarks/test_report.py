"""The page of a run and its traces: what is in them, and what nothing in a run can do to them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report import write_trace
from benchmarks.report.colours import LIMIT, OURS, colours
from benchmarks.report.comparisons import compare, number, of
from benchmarks.report.figures import bars, curves
from benchmarks.report.headline import headline
from benchmarks.report.lanes import lanes
from benchmarks.report.page import page
from benchmarks.report.sections import SCALES, sections
from benchmarks.report.timeline import SPANS, gantt, totals
from benchmarks.results import Event, Stat, Timeline, encode
from ckptflow import spans
from tests.benchmarks import runs


class Markup(HTMLParser):
    """The page as a browser takes it apart: its elements, its text outside of scripts."""

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

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def test_every_result_is_in_exactly_one_comparison_and_on_the_page_by_name() -> None:
    run = runs.whole()
    compared = [result for comparison in compare(run) for result in comparison.results]
    assert Counter(map(id, compared)) == Counter(map(id, run.results))
    shown = [part.comparison for section in sections(compare(run), colours(run)) for part in section.parts]
    assert shown == sorted(compare(run), key=shown.index)
    for comparison in shown:
        assert len(set(comparison.labels)) == len(comparison.results)


@pytest.fixture(scope="module")
def whole() -> Markup:
    return Markup(page(runs.whole()))


def test_limits_of_the_page_are_told_before_any_figure(whole: Markup) -> None:
    text = whole.text
    places = [text.index(words) for words in ("python -m benchmarks", "A CPU", "An accelerator.", "We wrote it.")]
    places += [text.index("0.300 s")]
    places += [text.rindex(words) for words in ("By size of the state", "Object storage", "One save over time")]
    assert places == sorted(places)


def test_headline_compares_with_the_best_limit_and_the_best_of_the_others() -> None:
    blocks = {block.title.partition(":")[0]: block.rows for block in headline(compare(runs.whole()))}
    durable, blocked = blocks["Large state"][:2]
    assert (durable.ours, durable.limit, durable.to_limit) == ("0.300 s", "0.250 s, raw device, two at once", "1.20 ×")
    assert (durable.peer, durable.to_peer, durable.is_behind) == ("1.20 s, tf.train.Checkpoint, async", "4.00 ×", False)
    assert (blocked.ours, blocked.limit) == ("2.00 ms (the first time 4.00 ms)", "")
    by_client = {row.what: row.limit for row in blocks["Object storage"] if row.what.startswith("Save")}
    assert by_client == {
        "Save, until the server has acknowledged it (fast)": "0.900 s, obstore alone",
        "Save, until the server has acknowledged it (s3fs)": "1.40 s, s3fs alone",
    }
    assert [row.what.partition("(")[2] for row in blocks["Several workers on one machine"]] == ["4 workers)"] * 3


def test_headline_says_where_another_one_is_ahead_and_where_ours_failed() -> None:
    ahead = runs.run(runs.result("ckptflow", 2.0), runs.result("Other", 1.0))
    row = headline(compare(ahead))[0].rows[0]
    assert (row.is_behind, row.to_peer) == (True, "0.500 ×")
    failed = runs.run(runs.failed("ckptflow", "no space"), runs.result("Other", 1.0))
    assert headline(compare(failed))[0].rows[0].ours == "missing: no space"
    assert 'class="ratio behind"' in page(ahead)


def test_ours_is_not_compared_with_another_client_where_its_own_failed() -> None:
    where: dict[str, Any] = {"experiment": "objects", "storage": "s3"}
    ours, other = runs.result("ckptflow, s3fs", 1.5, **where), runs.result("obstore alone", 0.9, is_limit=True, **where)
    own = runs.failed("s3fs alone", "range", is_limit=True, **where)
    row = headline(compare(runs.run(ours, other, own)))[0].rows[0]
    assert (row.limit, row.to_limit) == ("missing: s3fs alone failed", "")


def test_a_peer_without_a_figure_has_a_row_that_says_why() -> None:
    run = runs.run(*runs.local())
    (comparison,) = compare(run)
    measure = comparison.measure("durable_s")
    assert measure is not None
    figure = bars(comparison, [measure], colours(run))
    bar = dict(zip(figure.data[0].y, figure.data[0].x, strict=True))
    assert bar["ckptflow"] == 0.3
    assert bar["PyTorch DCP async"] is None
    words = {each.y: each for each in figure.layout.annotations}
    assert words["PyTorch DCP async"].text == "<i>ModuleNotFoundError: No module…</i>"
    assert words["PyTorch DCP async"].hovertext == "ModuleNotFoundError: No module named 'torch'"
    assert words["ckptflow"].text == "<b>0.300</b>"
    assert "ModuleNotFoundError" in Markup(page(run)).text


def test_bars_show_the_range_of_rounds_limits_hatched_and_a_line_at_the_best_limit() -> None:
    run = runs.run(*runs.local())
    (comparison,) = compare(run)
    measure = comparison.measure("durable_s")
    assert measure is not None
    figure = bars(comparison, [measure], colours(run))
    ours = [result.peer for result in comparison.results].index("ckptflow")
    assert figure.data[0].error_x.array[ours] == pytest.approx(0.09)
    assert figure.data[0].error_x.arrayminus[ours] == pytest.approx(0.03)
    assert figure.data[0].marker.pattern.shape == ("/", "/", "", "", "", "", "", "")
    assert figure.layout.shapes[0].x0 == 0.25


def test_what_lies_far_apart_is_points_on_a_logarithmic_scale() -> None:
    run = runs.run(*runs.local())
    (comparison,) = compare(run)
    blocked, memory = comparison.measure("blocked_s"), comparison.measure("peak_save_bytes")
    assert blocked is not None and memory is not None  # noqa: PT018
    figure = bars(comparison, [blocked], colours(run))
    assert (figure.layout.xaxis.type, figure.data[0].type, figure.data[0].mode) == ("log", "scatter", "markers")
    assert figure.data[1].name == "the first time in a job"
    assert bars(comparison, [memory], colours(run)).layout.xaxis.type == "linear"


def test_a_curve_has_a_gap_where_its_peer_has_no_figure_and_none_is_made_of_one_place() -> None:
    run = runs.whole()
    results = [result for comparison in of(compare(run), "variables") for result in comparison.results]
    measure = of(compare(run), "variables")[0].measure("durable_s")
    assert measure is not None
    figure = curves(results, measure, SCALES["variables"], colours(run))
    assert figure is not None
    keras = next(line for line in figure.data if line.name == "Keras ModelCheckpoint")
    assert list(keras.x) == [10, 1000, 20_000]
    assert [value is None for value in keras.y] == [False, False, True]
    assert curves(runs.local(), measure, SCALES["size"], colours(run)) is None


def test_a_peer_has_one_colour_in_all_plots_and_shares_it_with_no_other_peer() -> None:
    run = runs.whole()
    chosen = colours(run)
    assert {peer for peer, colour in chosen.items() if colour == OURS} == {
        "ckptflow",
        "ckptflow, fast",
        "ckptflow, s3fs",
        "ckptflow, all sent",
    }
    assert {result.peer for result in run.results if result.is_limit} == {
        peer for peer, colour in chosen.items() if colour == LIMIT
    }
    others = [colour for colour in chosen.values() if colour not in (OURS, LIMIT)]
    assert len(set(others)) == len(others) == 5


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.0123, "0.0123"), (0.99951, "1.00"), (19, "19"), (1234.5, "1,234"), (-0.5, "-0.500")],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    "run",
    [
        runs.run(),
        runs.run(runs.result("ckptflow", 0.3)),
        runs.run(runs.failed("ckptflow", "it did not start")),
        runs.run(runs.result("only a limit", 0.3, is_limit=True)),
        runs.run(runs.result("ckptflow", 0.0), runs.result("Other", 0.0), runs.result("Other", 1.0)),
        runs.run(runs.result("ckptflow", 0.3, experiment="another", storage="azure", size_bytes=0)),
        runs.run(timelines=(Timeline("nothing", "local", 0, 1, ()),), cannot_show=(), bias=(), machine={}),
    ],
    ids=["nothing", "one", "one failed", "limit", "zeros and a name twice", "unknown experiment", "empty time line"],
)
def test_a_page_is_made_of_any_run(run: Any) -> None:
    text = Markup(page(run)).text
    for result in run.results:
        assert result.peer in text or result.measures
        assert result.error in text
    assert ("This run has no results" in text) == (not run.results)
    assert ("Nothing was recorded" in text) == bool(run.timelines)


def test_a_measure_that_is_not_known_is_shown_with_the_unit_of_its_name() -> None:
    result = runs.result("ckptflow", 0.3)
    result.measures["warp_speed_bytes"] = Stat(3 * runs.MIB, 2 * runs.MIB, 4 * runs.MIB)
    (section,) = sections(compare(runs.run(result)), {"ckptflow": OURS})
    plot = next(plot for plot in section.parts[0].plots if plot.title == "Warp speed")
    assert (plot.figure.data[0].x[0], plot.figure.layout.xaxis.title.text) == (3, "MiB")


def test_nothing_on_the_page_comes_from_elsewhere(whole: Markup) -> None:
    places = [value for _, attributes in whole.elements for name in ("src", "href") if (value := attributes.get(name))]
    assert len(places) > 4
    assert [place for place in places if not place.startswith(("#", "data:"))] == []
    policy = next(attributes["content"] for _, attributes in whole.elements if "http-equiv" in attributes)
    assert policy is not None
    assert policy.startswith("default-src 'none';")


def test_strings_of_a_run_are_text() -> None:
    markup = Markup(page(runs.hostile()))
    assert markup.text.count("<script>window.hacked") > 5
    assert not [attributes for _, attributes in markup.elements if "onerror" in attributes]
    scripts = [attributes for tag, attributes in markup.elements if tag == "script"]
    assert len(scripts) == 3


def test_strings_of_a_run_are_text_within_the_figures_too() -> None:
    source = page(runs.hostile()).partition('id="figures">')[2].partition("</script>")[0]
    assert "<" not in source  # nothing in it can end the element
    texts = list(_strings(json.loads(source)))
    assert sum("&lt;script&gt;" in text for text in texts) > 20
    tags = {tag for text in texts for tag, _ in Markup(text).elements}
    assert tags == {"b", "br", "i"}


def test_a_time_line_has_a_bar_for_each_event_and_what_is_within_another_is_thinner() -> None:
    outer, inner = Event(0, "a", "commit", 0, 1), Event(0, "a", "receipt", 0.2, 0.4)
    figure = gantt(Timeline("nested", "local", 0, 1, (inner, outer)))
    assert [trace.name for trace in figure.data] == ["commit", "receipt"]  # what is within is drawn later, on top
    assert figure.data[0].width[0] > figure.data[1].width[0]
    line = runs.timeline(4)
    assert sum(len(trace.x) for trace in gantt(line).data) == len(line.events)
    assert sum(total.count for total in totals(line)) == len(line.events)
    assert next(total for total in totals(line) if total.name == "write").size_bytes == 16 * 64 * runs.MIB


def test_each_span_that_ckptflow_has_is_told_on_the_page() -> None:
    assert spans.__doc__ is not None
    assert set(re.findall(r"^    (\w+) {2,}", spans.__doc__, re.MULTILINE)) == set(SPANS)


def test_events_of_one_thread_name_that_overlap_lie_in_lanes_of_their_own() -> None:
    events = (Event(0, "t", "write", 0, 2), Event(0, "t", "write", 1, 3), Event(0, "t", "pack", 2, 2.5))
    found = lanes(Timeline("", "local", 0, 1, events))
    assert [(lane.name, [event.start_s for event in lane.events]) for lane in found] == [("t", [0, 2]), ("t (2)", [1])]


def test_a_trace_is_what_the_trace_event_format_asks_for(tmp_path: Path) -> None:
    line = runs.timeline(2)
    write_trace(line, str(tmp_path / "save.trace.json"))
    trace = json.loads((tmp_path / "save.trace.json").read_bytes())
    events = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    names = [event for event in trace["traceEvents"] if event["ph"] == "M"]
    assert len(events) == len(line.events)
    assert len(events) + len(names) == len(trace["traceEvents"])
    for event in trace["traceEvents"]:
        assert isinstance(event["name"], str)
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        assert isinstance(event["args"], dict)
    for event in events:
        assert event["ts"] >= 0
        assert event["dur"] > 0
    processes = {each["pid"]: each["args"]["name"] for each in names if each["name"] == "process_name"}
    threads = {each["tid"]: each["args"]["name"] for each in names if each["name"] == "thread_name"}
    assert sorted(processes.values()) == ["worker 0", "worker 1"]
    assert {(event["pid"], event["tid"]) for event in events} == {
        (each["pid"], each["tid"]) for each in names if each["name"] == "thread_name"
    }
    assert sorted(threads.values()) == 2 * ["MainThread"] + 2 * ["ckptflow-save"] + [
        f"ckptflow-transfer-{i}" for i in (0, 0, 1, 1)
    ]
    write = next(event for event in events if event["name"] == "write")
    assert write["dur"] == pytest.approx(40_000)
    assert write["args"] == {"size_bytes": 64 * runs.MIB, "shard": "shard-00000-of-00002-0000.safetensors"}
    assert trace["otherData"]["called_us"] == pytest.approx(500)  # the first event came half a millisecond before


def test_the_command_makes_the_page_and_the_traces_again(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_bytes(encode(runs.run(*runs.objects(), timelines=(runs.timeline(1),))))
    done = _command(str(tmp_path / "run.json"))
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(tmp_path)) == ["run-0.trace.json", "run.html", "run.json"]
    assert "obstore alone" in (tmp_path / "run.html").read_text()
    (tmp_path / "run.json").write_text("{}")
    done = _command(str(tmp_path / "run.json"))
    assert done.returncode == 1
    assert done.stderr.startswith(f"{tmp_path}/run.json: ")
    assert "Traceback" not in done.stderr


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _strings(each)
    elif isinstance(value, list):
        for each in value:
            yield from _strings(each)


def _command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.report", *arguments], capture_output=True, text=True, check=False
    )
