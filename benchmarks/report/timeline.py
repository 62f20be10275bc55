"""The time line of one save or restore: what each thread of each worker did, and when."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import plotly.graph_objects as go

from benchmarks.report.colours import LIMIT
from benchmarks.report.comparisons import number, size
from benchmarks.report.lanes import Lane, lanes
from benchmarks.report.placing import plain
from benchmarks.results import Event, Timeline

_LANE_PX = 26
# Name: colour, what is done. `ckptflow.spans` says it in full.
SPANS = {
    "capture": ("#D55E00", "holding references to every value: all that training waits for"),
    "plan": ("#8C6BB1", "deciding who writes what, once for a state"),
    "pack": ("#0072B2", "copying a shard's slices into a buffer, and their checksums"),
    "write": ("#56B4E9", "making a shard durable, or sending it"),
    "copy": ("#44AA99", "having the storage copy what has not changed"),
    "receipt": ("#CCBB44", "telling the coordinator what is durable"),
    "await": ("#8A8F98", "the coordinator waiting for the other workers' receipts"),
    "commit": ("#009E73", "checking the receipts, creating the manifest, looking at the fence"),
    "prune": ("#CC79A7", "deleting what need not stay; the save is acknowledged by then"),
    "read": ("#56B4E9", "reading a range of a shard"),
    "verify": ("#CCBB44", "its checksums"),
    "assign": ("#0072B2", "copying what was read into the state"),
}
_OTHER = "#6E4B3A"


@dataclass(frozen=True)
class Total:
    """All the spans of one name."""

    name: str
    meaning: str
    count: int
    busy_s: float
    size_bytes: int
    first_s: float
    last_s: float


def totals(timeline: Timeline) -> list[Total]:
    """By name, in the order in which they began."""
    groups: dict[str, list[Event]] = {}
    for event in sorted(timeline.events, key=lambda event: event.start_s):
        groups.setdefault(event.name, []).append(event)
    return [
        Total(
            name=name,
            meaning=SPANS.get(name, ("", ""))[1],
            count=len(events),
            busy_s=sum(event.end_s - event.start_s for event in events),
            size_bytes=sum(event.size_bytes for event in events),
            first_s=min(event.start_s for event in events),
            last_s=max(event.end_s for event in events),
        )
        for name, events in groups.items()
    ]


def gantt(timeline: Timeline) -> go.Figure:
    """One bar for each event, one lane for each thread; what lies within another is drawn thinner, over it."""
    found = lanes(timeline)
    labels = _labels(found)
    rows: dict[str, list[tuple[str, Event, int]]] = {}
    for lane, label in zip(found, labels, strict=True):
        for event, depth in zip(lane.events, lane.depths, strict=True):
            rows.setdefault(event.name, []).append((label, event, depth))
    figure = go.Figure()
    for name in _outer_first(rows):
        colour = SPANS.get(name, (_OTHER, ""))[0]
        figure.add_trace(
            go.Bar(
                orientation="h",
                name=plain(name),
                y=[label for label, _, _ in rows[name]],
                base=[event.start_s * 1e3 for _, event, _ in rows[name]],
                x=[(event.end_s - event.start_s) * 1e3 for _, event, _ in rows[name]],
                width=[0.8 * 0.6**depth for _, _, depth in rows[name]],
                marker={"color": colour, "line": {"color": colour, "width": 1}},  # seen however short it is
                hovertext=[_hover(label, event) for label, event, _ in rows[name]],
                hoverinfo="text",
            )
        )
    figure.update_layout(
        template="none",
        autosize=True,
        barmode="overlay",
        height=_LANE_PX * len(found) + 110,
        margin={"l": 8, "r": 8, "t": 8, "b": 44},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "traceorder": "normal"},
        showlegend=True,
        hovermode="closest",
        dragmode="zoom",
    )
    commits = [event.end_s * 1e3 for event in timeline.events if event.name == "commit"]
    if commits:
        figure.add_vline(
            x=max(commits),
            line={"color": LIMIT, "width": 1, "dash": "dash"},
            annotation={"text": "acknowledged", "font": {"size": 11}},
            annotation_position="bottom right",
        )
    title = {"text": "ms since the call on the coordinator", "standoff": 6}
    figure.update_xaxes(title=title, zeroline=True)
    figure.update_yaxes(
        type="category",
        categoryorder="array",
        categoryarray=labels,
        autorange="reversed",
        automargin=True,
        fixedrange=True,
        ticklabelstandoff=6,
        tickfont={"size": 11},
    )
    return figure


def _labels(found: Iterable[Lane]) -> list[str]:
    """One for each lane, none twice."""
    labels: list[str] = []
    for lane in found:
        label = f"w{lane.worker} {plain(lane.name.removeprefix('ckptflow-'))}"
        labels.append(f"{label} ({len(labels)})" if label in labels else label)
    return labels


def _outer_first(rows: dict[str, list[tuple[str, Event, int]]]) -> list[str]:
    """The names, those that contain others before what they contain; else in the order of the work."""
    order = {name: i for i, name in enumerate(SPANS)}
    return sorted(rows, key=lambda name: (max(depth for _, _, depth in rows[name]), order.get(name, len(order))))


def _hover(label: str, event: Event) -> str:
    length_s = event.end_s - event.start_s
    lines = [
        f"<b>{plain(event.name)}</b> {label}",
        f"{number(length_s * 1e3)} ms from {number(event.start_s * 1e3)} ms",
    ]
    if event.size_bytes:
        rate = f", {number(event.size_bytes / length_s / 2**30)} GiB/s" if length_s > 0 else ""
        lines.append(f"{size(event.size_bytes)}{rate}")
    if event.shard:
        lines.append(plain(event.shard))
    return "<br>".join(lines)
