"""Charts as SVG: as wide as the page allows, with text that keeps its size, and no script. Pure.

Places across are percentages and places down are pixels, so that a browser can stretch a chart without stretching its
text. What a mark has to tell is in `data-tip`, which the page shows when the mark is pointed at or tapped.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from markupsafe import Markup

from ckptflow.printable import printable

# Okabe and Ito's: told apart by colour-blind people, and visible on light and on dark ground.
BLUE, SKY, GREEN, ORANGE, PURPLE, GREY = "#0072B2", "#56B4E9", "#009E73", "#D55E00", "#CC79A7", "#8A8F98"

Symbol = Literal["circle", "cross", "diamond", "square", "open-square", "triangle", "tick"]
_TICKS, _TIME_TICKS = 5, 3  # on an axis there are as many steps at most
_TOP_PX, _BOTTOM_PX = 16, 40  # above the plot for a label, below it for ticks and the title
_LEFT_PERCENT, _RIGHT_PERCENT = 2.0, 96.0  # where the lowest and the highest x are
_DAY_S = 86_400
_TIME_STEPS_S = (1, 5, 15, 30, 60, 300, 900, 1800, 3600, 10_800, 21_600, 43_200, _DAY_S, 2 * _DAY_S, 7 * _DAY_S)


@dataclass(frozen=True, slots=True)
class Mark:
    """A point: `x` in the axis's unit, of a time in seconds since the epoch. `label` is written above it."""

    x: float
    y: float
    tip: str = ""
    label: str = ""


@dataclass(frozen=True, slots=True)
class Series:
    """Marks that look alike. Those of one of `runs` are joined if there is a line; no symbol: the line alone."""

    name: str
    colour: str
    runs: tuple[tuple[Mark, ...], ...]
    symbol: Symbol | None = None
    line: Literal["solid", "dotted"] | None = None

    @property
    def marks(self) -> list[Mark]:
        return [mark for run in self.runs for mark in run]


@dataclass(frozen=True, slots=True)
class Chart:
    """Series over a common pair of axes. An x axis of times is in UTC."""

    series: tuple[Series, ...]
    x_title: str
    y_title: str = ""
    height_px: int = 240
    is_over_time: bool = False
    is_from_zero: bool = True


def draw(chart: Chart, label: str) -> Markup:
    """The chart as markup; `label` is what a screen reader says of it. Every text is shown as text."""
    marks = [mark for series in chart.series for mark in series.marks]
    across = _Axis([mark.x for mark in marks], _LEFT_PERCENT, _RIGHT_PERCENT)
    values = [mark.y for mark in marks] + ([0.0] if chart.is_from_zero else [])
    bottom_px = chart.height_px - _BOTTOM_PX
    down = _Axis(values, bottom_px - 4, _TOP_PX)
    parts = [*_grid(chart, across, down, bottom_px)]
    parts += [each for series in chart.series for each in _lines(series, across, down)]
    parts += [each for series in chart.series for each in _symbols(series, across, down)]
    return Markup(
        '<div class="legend">{}</div><div class="plot" role="img" aria-label="{}"><svg height="{}">{}</svg></div>'
    ).format(_legend(chart), printable(label), chart.height_px, Markup("").join(parts))


def time_ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Round times from `low` to `high`, in seconds since the epoch, in UTC: the places and what is written there."""
    longest = (math.ceil((high - low) / _TIME_TICKS / _DAY_S) or 1) * _DAY_S
    step = next((step for step in _TIME_STEPS_S if (high - low) / step <= _TIME_TICKS), longest)
    form = "%H:%M:%S" if step < 60 else "%m-%d %H:%M" if step < _DAY_S else "%Y-%m-%d"
    places: list[float] = [step * i for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return [(place, datetime.fromtimestamp(place, UTC).strftime(form)) for place in places or [low]]


def number_ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Round numbers from `low` to `high`: the places and what is written there."""
    least = high / _TICKS - low / _TICKS  # of two numbers that are far apart the difference may be infinite
    power = 10.0 ** math.floor(math.log10(least)) if least > 0 else 0.0
    if power == 0:
        return [(low, f"{low:,.6g}")]
    step = next(power * factor for factor in (1, 2, 5, 10, 20) if least <= power * factor)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    places = [step * i for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
    is_short = decimals < 5 and abs(step) < 1e9
    return [(place, f"{place:,.{decimals}f}" if is_short else f"{place:.4g}") for place in places]


class _Axis:
    """From values to places."""

    def __init__(self, values: Sequence[float], first: float, last: float) -> None:
        self.low, self.high = min(values), max(values)
        self._first, self._length = first, last - first

    def __call__(self, value: float) -> float:
        share = (value / 2 - self.low / 2) / (self.high / 2 - self.low / 2) if self.high > self.low else 0.5
        return round(self._first + share * self._length, 2)


def _grid(chart: Chart, across: _Axis, down: _Axis, bottom_px: int) -> Iterator[Markup]:
    for value, text in number_ticks(down.low, down.high):
        y = down(value)
        yield Markup('<line class="grid" x1="0" x2="100%" y1="{}" y2="{}"/>').format(y, y)
        yield Markup('<text class="y" x="-6" y="{}">{}</text>').format(y + 4, text)
    for value, text in (time_ticks if chart.is_over_time else number_ticks)(across.low, across.high):
        x = across(value)
        yield Markup('<line class="grid" x1="{}%" x2="{}%" y1="{}" y2="{}"/>').format(x, x, _TOP_PX, bottom_px)
        side = " first" if x < 10 else " last" if x > 90 else ""
        yield Markup('<text class="x{}" x="{}%" y="{}">{}</text>').format(side, x, bottom_px + 15, text)
    yield Markup('<text class="x title" x="50%" y="{}">{}</text>').format(bottom_px + 33, chart.x_title)
    if chart.y_title:
        yield Markup('<text class="y" x="-6" y="9">{}</text>').format(chart.y_title)


def _lines(series: Series, across: _Axis, down: _Axis) -> Iterator[Markup]:
    if series.line is None:
        return
    for run in series.runs:
        for begin, end in itertools.pairwise(run):
            yield Markup('<line class="{}" stroke="{}" x1="{}%" y1="{}" x2="{}%" y2="{}"/>').format(
                series.line, series.colour, across(begin.x), down(begin.y), across(end.x), down(end.y)
            )


def _symbols(series: Series, across: _Axis, down: _Axis) -> Iterator[Markup]:
    if series.symbol is None:
        return
    for mark in series.marks:
        x, y = across(mark.x), down(mark.y)
        yield Markup('<use href="#{}" x="{}%" y="{}" color="{}" data-tip="{}"/>').format(
            series.symbol, x, y, series.colour, "\n".join(printable(line) for line in mark.tip.splitlines())
        )
        if mark.label:
            yield Markup('<text class="x" x="{}%" y="{}">{}</text>').format(x, y - 8, printable(mark.label))


def _legend(chart: Chart) -> Markup:
    form = Markup('<span><svg width="18" height="12">{}</svg> {}</span> ')
    line = Markup('<line class="{}" stroke="{}" x1="0" x2="18" y1="6" y2="6"/>')
    symbol = Markup('<use href="#{}" x="9" y="6" color="{}"/>')
    return Markup("").join(
        form.format(
            Markup("").join(
                [
                    line.format(each.line, each.colour) if each.line else "",
                    symbol.format(each.symbol, each.colour) if each.symbol else "",
                ]
            ),
            each.name,
        )
        for each in chart.series
    )
