"""Which plots the page has, in which order, for any run: every result is in at least one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from benchmarks.report.comparisons import FIRST_TOLD, MEASURES, Comparison, of, size, storage_name
from benchmarks.report.figures import Scale, bars, curves

_PAIR = ("restore_cold_s", "restore_warm_s")
SCALES = {
    "size": Scale(
        ("durable_s", "blocked_s", "restore_cold_s", "peak_save_bytes"), lambda result: result.size_bytes, size, "state"
    ),
    "variables": Scale(
        ("durable_s", "blocked_s", "save_cpu_s", "restore_warm_s"),
        lambda result: result.variable_count,
        "{:,}".format,
        "variables",
    ),
    "workers": Scale(
        ("durable_s", "blocked_s", "commit_after_last_shard_s"),
        lambda result: result.worker_count,
        str,
        "workers",
        is_log=False,
    ),
}


@dataclass(frozen=True)
class Plot:
    title: str
    words: str
    figure: go.Figure


@dataclass(frozen=True)
class Part:
    """One comparison, folded unless it is the one to look at."""

    title: str
    comparison: Comparison
    plots: tuple[Plot, ...]
    is_open: bool


@dataclass(frozen=True)
class Section:
    """An experiment: curves over its scale, then its comparisons."""

    name: str
    title: str
    words: str
    plots: tuple[Plot, ...]
    parts: tuple[Part, ...]


_BARS = (
    "A bar is the median of the rounds, its whisker goes from the lowest to the highest; shorter is better. "
    "Hatched grey is a raw baseline, and the dashed line the best one: the same bytes, not packed and not checked."
)
_KNOWN = {
    "size": ("By size of the state", _BARS),
    "variables": (
        "By number of variables",
        "Variables of 4 KiB each: this measures the work for each variable, not the bytes. " + _BARS,
    ),
    "objects": (
        "Object storage",
        "Compared with the clients alone at the same concurrency. " + _BARS,
    ),
    "link": (
        "Behind a link",
        "Each connection has a rate and a latency, as to a cloud: ckptflow with its defaults, and clients alone. "
        + _BARS,
    ),
    "training": (
        "Training while saving",
        "15 training steps with one save, compared with 15 steps without, taking turns in one process.",
    ),
    "unchanged": (
        "What has not changed",
        "A job trains part of its model and retains five checkpoints. What has not changed is copied inside the "
        "storage, or sent again each time. Medians exclude the first save. " + _BARS,
    ),
    "workers": (
        "Several workers",
        "Workers of one job on one machine and one disk: what coordination costs, not what more machines gain.",
    ),
}


def sections(comparisons: Sequence[Comparison], colours: Mapping[str, str]) -> list[Section]:
    """In the order of `_KNOWN`, then any other experiment of the run."""
    names = list(_KNOWN) + [each.experiment for each in comparisons]
    found = []
    for i, name in enumerate(dict.fromkeys(names)):
        mine = of(comparisons, name)
        if not mine:
            continue
        title, words = _KNOWN.get(name, (f"Experiment “{name}”", _BARS))
        main = max(mine, key=lambda each: (bool(each.ours()), each.size_bytes, each.variable_count))
        all_open = name not in ("size", "variables")
        parts = tuple(
            Part(each.title, each, tuple(_bars(each, colours)), all_open or each is main) for each in mine
        )  # fmt: skip
        found.append(
            Section(
                f"experiment-{name if name in _KNOWN else i}", title, words, tuple(_curves(name, mine, colours)), parts
            )
        )
    return found


def _bars(comparison: Comparison, colours: Mapping[str, str]) -> list[Plot]:
    measures = comparison.measures()
    pair = [measure for measure in measures if measure.name in _PAIR]
    found = []
    for measure in measures:
        if len(pair) == 2 and measure.name in _PAIR:
            if measure is pair[0]:
                words = (
                    "First, solid: from the disk (page cache dropped). Second, pale or open: once more, from the page "
                    "cache where the peer reads through it; raw device and ckptflow read past it."
                )
                found.append(Plot("Restore, cold / warm", words, bars(comparison, pair, colours)))
            continue
        words = "◇ the first time in a job" if measure.name in FIRST_TOLD else ""
        found.append(Plot(measure.title, words, bars(comparison, [measure], colours)))
    return found


def _curves(name: str, comparisons: Sequence[Comparison], colours: Mapping[str, str]) -> list[Plot]:
    """Over the experiment's scale, where it has one, for each storage."""
    results = [result for comparison in comparisons for result in comparison.results]
    storages = list(dict.fromkeys(result.storage for result in results))
    found = []
    for storage in storages if name in SCALES else ():
        scale = SCALES[name]
        mine = [result for result in results if result.storage == storage and scale.place(result)]
        for measure in (measure for measure in MEASURES if measure.name in scale.measures):
            figure = curves(mine, measure, scale, colours)
            if figure is not None:
                found.append(Plot(measure.title, storage_name(storage) if len(storages) > 1 else "", figure))
    return found
