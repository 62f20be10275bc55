"""Results as plotly figures: pure functions. A missing figure is a line of text in place of its bar."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from benchmarks.report.colours import LIMIT, OURS
from benchmarks.report.comparisons import FIRST_TOLD, Comparison, Measure, number, why_missing
from benchmarks.report.placing import plain
from benchmarks.results import Result, Stat

_ROW_PX = 34
_LABEL_CHARACTERS = 20
_REASON_CHARACTERS = 36
_LOG_FROM = 30  # times between the lowest and the highest figure: bars would hide the lowest
_VALUES_SHARE = 0.25  # of the width, on the right, for the figure in words; twice that for two
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star", "pentagon", "cross")


@dataclass(frozen=True)
class Scale:
    """What a curve goes over: where a result is on it, and how such a place is written."""

    measures: tuple[str, ...]
    place: Callable[[Result], int]
    text: Callable[[int], str]
    title: str
    is_log: bool = True


def bars(comparison: Comparison, measures: Sequence[Measure], colours: Mapping[str, str]) -> go.Figure:
    """A bar for each peer and measure (one, or two of one unit), the range of rounds, and a line at the best baseline.

    Over a factor of 30 the scale is logarithmic, where a bar's length means nothing: points instead of bars.
    """
    labels = [_folded(label) for label in comparison.labels]
    stats = [[measure.of(result) for result in comparison.results] for measure in measures]
    present = [stat for row in stats for stat in row if stat is not None]
    is_log = _is_wide(present) and not measures[0].is_memory  # a little memory is as good as none
    figure = go.Figure(layout=_layout(len(labels) * (1 if len(measures) == 1 else 1.4)))
    for i, (measure, row) in enumerate(zip(measures, stats, strict=True)):
        kind = _points if is_log else _bars
        figure.add_trace(kind(comparison, measure, labels, row, colours, is_pale=i > 0))
    if measures[0].name in FIRST_TOLD:
        _add_first(figure, measures[0], labels, stats[0])
    _add_words(figure, comparison, measures, labels, stats)
    _add_limit_line(figure, comparison, measures[0], is_log)
    figure.update_yaxes(
        type="category",
        categoryarray=labels,
        autorange="reversed",
        automargin=True,
        showgrid=False,
        ticklabelstandoff=6,
    )
    title = measures[0].unit + (", logarithmic" if is_log else "")
    figure.update_xaxes(
        title={"text": title, "standoff": 6},
        type="log" if is_log else "linear",
        range=_range(present, is_log, _VALUES_SHARE * len(measures)),
        nticks=5,
        exponentformat="none",
    )
    if is_log:
        figure.update_xaxes(dtick=1)  # at least one power of ten lies between figures that are so far apart
    return figure


def curves(results: Sequence[Result], measure: Measure, scale: Scale, colours: Mapping[str, str]) -> go.Figure | None:
    """A line for each peer over one scale; None where there is no second place on it.

    A line has a gap where its peer has no figure.
    """
    places = sorted({scale.place(result) for result in results})
    if len({scale.place(result) for result in results if measure.name in result.measures}) < 2:
        return None
    figure = go.Figure(layout=_layout(7))
    peers = list(dict.fromkeys(result.peer for result in results if measure.name in result.measures))
    for i, peer in enumerate(peers):
        by_place = {scale.place(result): result for result in results if result.peer == peer}
        stats = [measure.of(by_place[place]) if place in by_place else None for place in places]
        is_limit = any(result.is_limit for result in by_place.values())
        figure.add_trace(
            go.Scatter(
                name=plain(peer),
                x=places,
                y=[stat.median if stat else None for stat in stats],
                error_y=_spread(stats),
                mode="lines+markers",
                line={"color": colours[peer], "dash": "dot" if is_limit else "solid", "width": 3 if i == 0 else 2},
                marker={"symbol": _SYMBOLS[i % len(_SYMBOLS)], "size": 8},
                hovertext=[
                    _hover(by_place[place], scale.text(place), measure, stat) if stat else ""
                    for place, stat in zip(places, stats, strict=True)
                ],
                hoverinfo="text",
            )
        )
        if colours[peer] == OURS:
            figure.data[-1].line.width = 4
    kind = "log" if scale.is_log else "linear"
    ticks = [scale.text(place) for place in places]
    figure.update_xaxes(title={"text": scale.title, "standoff": 6}, type=kind, tickvals=places, ticktext=ticks)
    if measure.is_memory:
        kind = "linear"
    figure.update_yaxes(title=measure.unit, type=kind, automargin=True, nticks=6, exponentformat="none")
    if kind == "linear":
        figure.update_yaxes(rangemode="tozero")
    legend = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}
    figure.update_layout(showlegend=len(peers) > 1, height=380 + 8 * len(peers), hovermode="closest", legend=legend)
    return figure


def _bars(
    comparison: Comparison,
    measure: Measure,
    labels: list[str],
    stats: list[Stat | None],
    colours: Mapping[str, str],
    *,
    is_pale: bool,
) -> go.Bar:
    return go.Bar(
        orientation="h",
        y=labels,
        x=[stat.median if stat else None for stat in stats],
        marker={
            "color": [colours[result.peer] for result in comparison.results],
            "opacity": 0.45 if is_pale else 1,
            "pattern": {"shape": ["/" if result.is_limit else "" for result in comparison.results], "size": 6},
        },
        **_told(comparison, measure, stats),
    )


def _points(
    comparison: Comparison,
    measure: Measure,
    labels: list[str],
    stats: list[Stat | None],
    colours: Mapping[str, str],
    *,
    is_pale: bool,
) -> go.Scatter:
    return go.Scatter(
        mode="markers",
        y=labels,
        x=[stat.median if stat and stat.median > 0 else None for stat in stats],
        marker={
            "color": [colours[result.peer] for result in comparison.results],
            "symbol": [
                ("square" if result.is_limit else "circle") + ("-open" if is_pale else "")
                for result in comparison.results
            ],
            "size": 12,
            "line": {"width": 2 if is_pale else 0},
        },
        **_told(comparison, measure, stats),
    )


def _add_first(figure: go.Figure, measure: Measure, labels: list[str], stats: list[Stat | None]) -> None:
    """What no median tells of, as an open diamond."""
    firsts = [(label, stat.first) for label, stat in zip(labels, stats, strict=True) if stat and stat.first]
    if firsts:
        figure.add_trace(
            go.Scatter(
                mode="markers",
                name="the first time in a job",
                y=[label for label, _ in firsts],
                x=[first for _, first in firsts],
                marker={"symbol": "diamond-open", "size": 10, "color": LIMIT, "line": {"width": 2}},
                hovertext=[f"the first time: {plain(measure.text(first))}" for _, first in firsts],
                hoverinfo="text",
            )
        )


def _add_words(
    figure: go.Figure,
    comparison: Comparison,
    measures: Sequence[Measure],
    labels: list[str],
    stats: list[list[Stat | None]],
) -> None:
    """The figures, right of the bars; or why there is none."""
    for result, label, column in zip(comparison.results, labels, zip(*stats, strict=True), strict=True):
        if any(column):
            words = " / ".join(measures[0].figure(stat.median) if stat else "–" for stat in column)
            figure.add_annotation(xref="paper", x=1, xanchor="right", y=label, text=f"<b>{words}</b>")
        else:
            why = textwrap.shorten(why_missing(result, measures[0]), _REASON_CHARACTERS, placeholder="…")
            figure.add_annotation(
                xref="paper",
                x=0,
                xanchor="left",
                y=label,
                text=f"<i>{plain(why or 'no figure')}</i>",
                hovertext=plain(why_missing(result, measures[0])),
                font={"color": LIMIT},
            )
    figure.update_annotations(showarrow=False, font_size=12)


def _add_limit_line(figure: go.Figure, comparison: Comparison, measure: Measure, is_log: bool) -> None:
    limits = [stat.median for result in comparison.results if result.is_limit and (stat := measure.of(result))]
    if limits and (min(limits) > 0 or not is_log):
        figure.add_vline(x=min(limits), line={"color": LIMIT, "width": 2, "dash": "dash"}, layer="above")


def _layout(row_count: float) -> dict[str, Any]:
    return {
        "template": "none",
        "autosize": True,
        "height": round(_ROW_PX * row_count) + 56,
        "margin": {"l": 8, "r": 8, "t": 8, "b": 44},
        "showlegend": False,
        "bargap": 0.3,
        "dragmode": False,
    }


def _told(comparison: Comparison, measure: Measure, stats: Sequence[Stat | None]) -> dict[str, Any]:
    """What bars and points say alike: their name, the range of the rounds, and what is read when pointed at."""
    rows = zip(comparison.results, stats, strict=True)
    return {
        "name": plain(measure.title),
        "error_x": _spread(stats),
        "hovertext": [_hover(result, "", measure, stat) if stat else "" for result, stat in rows],
        "hoverinfo": "text",
    }


def _spread(stats: Sequence[Stat | None]) -> dict[str, Any]:
    """A whisker from the lowest round to the highest."""
    return {
        "type": "data",
        "symmetric": False,
        "width": 3,
        "thickness": 1,
        "array": [stat.high - stat.median if stat else 0 for stat in stats],
        "arrayminus": [stat.median - stat.low if stat else 0 for stat in stats],
    }


def _is_wide(stats: Sequence[Stat]) -> bool:
    values = [stat.median for stat in stats if stat.median > 0]
    return len(values) > 1 and min(stat.low for stat in stats) >= 0 and max(values) > _LOG_FROM * min(values)


def _range(stats: Sequence[Stat], is_log: bool, words_share: float) -> list[float]:
    """As far as the figures go, and room on the right for their words."""
    highest = max((max(stat.high, stat.first or 0) for stat in stats), default=1)
    if not is_log:
        lowest = min(0, *(stat.low for stat in stats)) if stats else 0
        return [lowest, lowest + (highest - lowest or 1) / (1 - words_share)]
    low = math.log10(min(min(stat.median, stat.low or stat.median) for stat in stats if stat.median > 0)) - 0.1
    return [low, low + (math.log10(highest) - low) / (1 - words_share)]


def _folded(label: str) -> str:
    return "<br>".join(plain(line) for line in textwrap.wrap(label, _LABEL_CHARACTERS)) or "(no name)"


def _hover(result: Result, place: str, measure: Measure, stat: Stat) -> str:
    lines = [
        f"<b>{plain(result.peer)}</b> {place}",
        f"{plain(measure.title)}: <b>{plain(measure.text(stat.median))}</b>",
    ]
    lines.append(f"median of {result.rounds} rounds, {number(stat.low)} to {number(stat.high)}")
    if stat.first is not None:
        lines.append(f"the first round, not counted: {number(stat.first)}")
    lines += [plain(line) for line in textwrap.wrap(result.note, 60)]
    return "<br>".join(lines)
