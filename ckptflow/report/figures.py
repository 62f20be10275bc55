"""A run as plotly figures: pure functions. Every figure draws a bounded number of points, whatever the run has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from itertools import groupby
from typing import Any, TypeVar

import plotly.graph_objects as go

from ckptflow.format.words import size_text
from ckptflow.report.lives import RunAttempt
from ckptflow.report.run import Run, SavedCheckpoint
from ckptflow.report.skeleton import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, plain
from ckptflow.report.words import number_text, seconds_text, time_text

MAX_POINTS = 1000  # of one kind in one figure
MAX_LIVES = 300  # newest incarnations
_MAX_NAMED = 12  # starts that have their number written beside them

_Item = TypeVar("_Item")
_Point = tuple[datetime, float]


def timeline(run: Run) -> go.Figure:
    """Steps over time: a line for each incarnation, and from what it restored a dotted one to its start."""
    lives = run.incarnations[-MAX_LIVES:]
    numbers = {life.number for life in lives}
    saved: dict[int, list[SavedCheckpoint]] = {}
    for checkpoint in run.checkpoints:
        if checkpoint.incarnation in numbers:
            saved.setdefault(checkpoint.incarnation, []).append(checkpoint)
    share = max(1, sum(map(len, saved.values())) // MAX_POINTS)
    drawn = {number: _every(checkpoints, share) for number, checkpoints in saved.items()}
    made_at = {checkpoint.folder: checkpoint.created_at for checkpoint in run.checkpoints}
    starts = _starts(lives)
    figure = go.Figure(layout=_layout(380))
    _add_links(figure, lives, starts, made_at)
    _add_lines(figure, lives, starts, drawn)
    _add_checkpoints(figure, [each for number in sorted(drawn) for each in drawn[number]])
    _add_starts(figure, lives, starts)
    figure.update_xaxes(title={"text": "time, UTC", "standoff": 6}, type="date", nticks=6)
    figure.update_yaxes(title={"text": "training step", "standoff": 4}, rangemode="tozero", exponentformat="none")
    return figure


def sizes(run: Run) -> go.Figure:
    """Bytes of each checkpoint by step, and of those that copied some, the bytes that were sent."""
    unit, divisor = _byte_unit(max((each.size_bytes for each in run.checkpoints), default=0))
    figure = go.Figure(layout=_layout(280))
    for name, symbol, colour, chosen in _kinds(run.checkpoints):
        shown = _spread(chosen, lambda each: each.size_bytes)
        figure.add_trace(
            go.Scatter(
                name=name,
                mode="markers",
                x=[each.step for each in shown],
                y=[each.size_bytes / divisor for each in shown],
                marker={"symbol": symbol, "color": colour, "size": 8},
                hovertext=[f"step {each.step:,}, i{each.incarnation}<br>{_size_text(each)}" for each in shown],
                hoverinfo="text",
            )
        )
    copying = _spread([each for each in run.checkpoints if each.copied_bytes], lambda each: each.sent_bytes)
    if copying:
        figure.add_trace(
            go.Scatter(
                name="of that sent",
                mode="markers",
                x=[each.step for each in copying],
                y=[each.sent_bytes / divisor for each in copying],
                marker={"symbol": "square-open", "color": SKY, "size": 7},
                hovertext=[f"step {each.step:,}, i{each.incarnation}<br>{_size_text(each)}" for each in copying],
                hoverinfo="text",
            )
        )
    _by_step(figure, unit)
    figure.update_yaxes(rangemode="tozero")
    return figure


def metric(run: Run, name: str) -> go.Figure:
    """One metric by step: joined within an incarnation, apart what does not count."""
    figure = go.Figure(layout=_layout(260))
    having = [each for each in run.checkpoints if name in each.metrics]
    counting = _spread([each for each in having if each.state != "outside"], lambda each: each.metrics[name])
    outside = _spread([each for each in having if each.state == "outside"], lambda each: each.metrics[name])
    for title, shown, mode, marker in (
        ("counts", counting, "lines+markers", {"symbol": "circle", "color": BLUE, "size": 7}),
        ("outside what counts", outside, "markers", {"symbol": "x", "color": GREY, "size": 8}),
    ):
        if shown:
            figure.add_trace(
                go.Scatter(
                    name=title,
                    mode=mode,
                    x=[each.step for each in shown],
                    y=[each.metrics[name] for each in shown],
                    line={"color": BLUE, "width": 2},
                    marker=marker,
                    hovertext=[f"step {each.step:,}<br>{number_text(each.metrics[name])}" for each in shown],
                    hoverinfo="text",
                )
            )
    _by_step(figure, None)
    return figure


def durations(run: Run) -> go.Figure | None:
    """How long saves took; None where that was never recorded."""
    return _over_time(
        run.checkpoints,
        (
            ("from the call to the commit", BLUE, "circle", lambda each: each.save_s),
            ("shards durable, slowest worker", SKY, "square", lambda each: each.write_s),
        ),
    )


def stalls(run: Run) -> go.Figure | None:
    """How long saves held training up; None where that was never recorded."""
    return _over_time(
        run.checkpoints, (("training held up, worst worker", ORANGE, "diamond", lambda each: each.blocked_s),)
    )


def _over_time(
    checkpoints: Sequence[SavedCheckpoint],
    measures: Sequence[tuple[str, str, str, Callable[[SavedCheckpoint], float | None]]],
) -> go.Figure | None:
    by_time = sorted((each for each in checkpoints if each.created_at), key=lambda each: _x(each.created_at) or "")
    known = [value for each in by_time for *_, of in measures if (value := of(each)) is not None]
    if not known:
        return None
    unit, factor = ("ms", 1e3) if max(known) < 1 else ("s", 1)
    figure = go.Figure(layout=_layout(290))
    for name, colour, symbol, of in measures:
        told = [(each, value) for each in by_time if (value := of(each)) is not None]
        shown = _spread(told, lambda pair: pair[1])
        figure.add_trace(
            go.Scatter(
                name=name,
                mode="lines+markers",
                x=[_x(each.created_at) for each, _ in shown],
                y=[value * factor for _, value in shown],
                line={"color": colour, "width": 1},
                marker={"symbol": symbol, "color": colour, "size": 7},
                hovertext=[
                    f"step {each.step:,}, i{each.incarnation}, {time_text(each.created_at)}<br>"
                    f"{plain(name)}: <b>{seconds_text(value)}</b>"
                    for each, value in shown
                ],
                hoverinfo="text",
            )
        )
    figure.update_xaxes(title={"text": "time of the commit, UTC", "standoff": 6}, type="date", nticks=6)
    figure.update_yaxes(title={"text": unit, "standoff": 4}, rangemode="tozero", exponentformat="none")
    return figure


def _starts(lives: Sequence[RunAttempt]) -> dict[int, _Point]:
    """When each incarnation began, where that is known, and at which step; where that is not, at that of the last save
    before it."""
    found: dict[int, _Point] = {}
    for life in lives:
        time = life.claimed_at or life.first_saved_at
        if time is None:
            continue
        if life.restored_step is not None:
            found[life.number] = (time, life.restored_step)
        elif life.reason in ("start", "fresh"):
            found[life.number] = (time, 0)
        else:
            found[life.number] = (time, life.previous_step or life.first_step or 0)
    return found


def _add_links(
    figure: go.Figure,
    lives: Sequence[RunAttempt],
    starts: dict[int, _Point],
    made_at: dict[str, datetime | None],
) -> None:
    x: list[str | None] = []
    y: list[float | None] = []
    for life in lives:
        made = made_at.get(life.restored) if life.restored else None
        if made is not None and life.number in starts:
            time, step = starts[life.number]
            x += [_x(made), _x(time), None]
            y += [step, step, None]
    if x:
        line = {"color": PURPLE, "width": 2, "dash": "dot"}
        figure.add_trace(go.Scatter(name="restored from", mode="lines", x=x, y=y, line=line, hoverinfo="skip"))


def _add_lines(
    figure: go.Figure,
    lives: Sequence[RunAttempt],
    starts: dict[int, _Point],
    drawn: dict[int, list[SavedCheckpoint]],
) -> None:
    x: list[str | None] = []
    y: list[float | None] = []
    for life in lives:
        points = [(each.created_at, float(each.step)) for each in drawn.get(life.number, ()) if each.created_at]
        points = ([starts[life.number]] if life.number in starts else []) + points
        x += [*(_x(time) for time, _ in points), None]
        y += [*(step for _, step in points), None]
    line = {"color": GREY, "width": 2}
    figure.add_trace(go.Scatter(name="one incarnation", mode="lines", x=x, y=y, line=line, hoverinfo="skip"))


def _add_checkpoints(figure: go.Figure, checkpoints: Sequence[SavedCheckpoint]) -> None:
    for name, symbol, colour, chosen in _kinds(checkpoints):
        shown = [each for each in chosen if each.created_at is not None]
        if shown:
            figure.add_trace(
                go.Scatter(
                    name=name,
                    mode="markers",
                    x=[_x(each.created_at) for each in shown],
                    y=[each.step for each in shown],
                    marker={"symbol": symbol, "color": colour, "size": 9},
                    hovertext=[
                        f"<b>step {each.step:,}</b>, i{each.incarnation}<br>{time_text(each.created_at)}<br>"
                        f"{_size_text(each)}, {plain(each.why_outside or each.state)}"
                        for each in shown
                    ],
                    hoverinfo="text",
                )
            )


def _add_starts(figure: go.Figure, lives: Sequence[RunAttempt], starts: dict[int, _Point]) -> None:
    shown = [life for life in lives if life.number in starts]
    named = [life for life in shown if len(shown) <= _MAX_NAMED or life.reason not in ("resume", None)][-_MAX_NAMED:]
    numbers = {life.number for life in named}
    if shown:
        figure.add_trace(
            go.Scatter(
                name="an incarnation starts",
                mode="markers+text",
                x=[_x(starts[life.number][0]) for life in shown],
                y=[starts[life.number][1] for life in shown],
                marker={"symbol": "triangle-right", "color": GREEN, "size": 12},
                text=[f"i{life.number}" if life.number in numbers else "" for life in shown],
                textposition="top center",
                cliponaxis=False,
                hovertext=[
                    f"<b>incarnation {life.number}</b>: {life.reason or 'why is not known'}<br>"
                    f"{time_text(life.claimed_at)}{f', {plain(life.host)}' if life.host else ''}"
                    for life in shown
                ],
                hoverinfo="text",
            )
        )


def _kinds(
    checkpoints: Iterable[SavedCheckpoint],
) -> list[tuple[str, str, str, list[SavedCheckpoint]]]:
    """What there is of each kind, told apart by colour and by shape."""
    found: dict[str, list[SavedCheckpoint]] = {"counts": [], "outside what counts": [], "damaged": []}
    for each in checkpoints:
        kind = "damaged" if each.problem else "outside what counts" if each.state == "outside" else "counts"
        found[kind].append(each)
    looks = {"counts": ("circle", BLUE), "outside what counts": ("x", GREY), "damaged": ("diamond", ORANGE)}
    return [(kind, *looks[kind], chosen) for kind, chosen in found.items() if chosen]


def _by_step(figure: go.Figure, unit: str | None) -> None:
    figure.update_xaxes(title={"text": "training step", "standoff": 6}, nticks=6, exponentformat="none")
    figure.update_yaxes(title={"text": unit, "standoff": 4} if unit else None, nticks=6)


def _size_text(checkpoint: SavedCheckpoint) -> str:
    copied = f", {size_text(checkpoint.copied_bytes)} of it copied" if checkpoint.copied_bytes else ""
    return size_text(checkpoint.size_bytes) + copied


def _every(items: Sequence[_Item], share: int) -> list[_Item]:
    """One of so many, and the last."""
    return [*items[:-1:share], items[-1]] if items else []


def _spread(items: Sequence[_Item], value: Callable[[_Item], float]) -> list[_Item]:
    """About `MAX_POINTS` at most, in order: the lowest and the highest of each stretch, so that no peak is lost."""
    if len(items) <= MAX_POINTS:
        return list(items)
    stretch = -(-2 * len(items) // MAX_POINTS)
    chosen: list[_Item] = []
    for _, group in groupby(range(len(items)), key=lambda i: i // stretch):
        places = list(group)
        ends = {min(places, key=lambda i: value(items[i])), max(places, key=lambda i: value(items[i]))}
        chosen += [items[i] for i in sorted(ends)]
    return chosen


def _byte_unit(size_bytes: int) -> tuple[str, int]:
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if size_bytes >= 1024**power:
            return unit, 1024**power
    return "bytes", 1


def _x(time: datetime | None) -> str | None:
    """Plotly knows no time zones: what it is given is taken as it stands, and all is UTC here."""
    return time.replace(tzinfo=None).isoformat(" ") if time else None


def _layout(height_px: int) -> dict[str, Any]:
    return {
        "template": "none",
        "autosize": True,
        "height": height_px,
        "margin": {"l": 8, "r": 12, "t": 8, "b": 44},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "hovermode": "closest",
        "dragmode": False,
        "yaxis": {"automargin": True, "nticks": 6, "separatethousands": True},
        "xaxis": {"automargin": True, "separatethousands": True},
    }
