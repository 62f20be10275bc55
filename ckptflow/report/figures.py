"""A run as charts: pure functions. Every chart draws a bounded number of marks, whatever the run has."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from itertools import groupby
from typing import TypeVar

import numpy as np

from ckptflow.format.words import size_text
from ckptflow.report.attempts import RunAttempt
from ckptflow.report.chart import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, Chart, Mark, Series, Symbol
from ckptflow.report.run import Run, SavedCheckpoint
from ckptflow.report.words import number_text, seconds_text, state_text, time_text

MAX_POINTS = 1000  # of one kind in one chart
MAX_ATTEMPTS = 300  # newest incarnations
_MAX_NAMED = 12  # starts that have their number written beside them

_Item = TypeVar("_Item")


def timeline(run: Run) -> Chart:
    """Steps over time: a line for each incarnation, and from what it restored a dotted one to its start."""
    attempts = run.incarnations[-MAX_ATTEMPTS:]
    numbers = {attempt.number for attempt in attempts}
    saved: dict[int, list[SavedCheckpoint]] = {}
    for checkpoint in run.checkpoints:
        if checkpoint.incarnation in numbers and checkpoint.created_at is not None:
            saved.setdefault(checkpoint.incarnation, []).append(checkpoint)
    share = max(1, sum(map(len, saved.values())) // MAX_POINTS)
    drawn = {number: _every(checkpoints, share) for number, checkpoints in saved.items()}
    made_at = {checkpoint.folder: checkpoint.created_at for checkpoint in run.checkpoints}
    starts = _starts(attempts)
    lines = {
        number: ((starts[number],) if number in starts else ())
        + tuple(Mark(_seconds(each.created_at), each.step, _tip(each)) for each in drawn.get(number, ()))
        for number in sorted(numbers)
    }
    found = [
        Series("restored from", PURPLE, _links(attempts, starts, made_at), line="dotted"),
        Series("one incarnation", GREY, tuple(line for line in lines.values() if len(line) > 1), line="solid"),
        Series("pruned, time not known", GREY, (_pruned(attempts, lines),), "tick"),
        *_by_kind([each for number in sorted(drawn) for each in drawn[number]], lambda each: _seconds(each.created_at),
                  lambda each: each.step),
        Series("an incarnation starts", GREEN, (_named(attempts, starts),), "triangle"),
    ]  # fmt: skip
    return Chart(
        tuple(series for series in found if series.marks),
        x_title="time, UTC",
        y_title="step",
        height_px=340,
        is_over_time=True,
    )


def sizes(run: Run) -> Chart:
    """Bytes of each checkpoint by step, and of those that copied some, the bytes that were sent."""
    unit, divisor = _byte_unit(max((each.size_bytes for each in run.checkpoints), default=0))
    found = _by_kind(run.checkpoints, lambda each: each.step, lambda each: each.size_bytes / divisor)
    copying = [each for each in run.checkpoints if each.copied_bytes]
    marks = [Mark(each.step, each.sent_bytes / divisor, _tip(each)) for each in copying]
    if copying:
        found.append(Series("of that sent", SKY, (tuple(_spread(marks)),), "open-square"))
    return Chart(tuple(found), x_title="training step", y_title=unit)


def metric(run: Run, name: str) -> Chart | None:
    """One metric by step, the current checkpoints joined; None if no value of it can be drawn."""

    def marks(*, is_superseded: bool) -> tuple[tuple[Mark, ...], ...]:
        having = [
            each
            for each in run.checkpoints
            if name in each.metrics and math.isfinite(each.metrics[name]) and (each.state == "outside") == is_superseded
        ]
        shown = [
            Mark(each.step, each.metrics[name], f"step {each.step:,}\n{number_text(each.metrics[name])}")
            for each in having
        ]
        return (tuple(_spread(shown)),)

    found = (
        Series("current", BLUE, marks(is_superseded=False), "circle", "solid"),
        Series("superseded", GREY, marks(is_superseded=True), "cross"),
    )
    shown = tuple(series for series in found if series.marks)
    return Chart(shown, x_title="training step", is_from_zero=False) if shown else None


def durations(run: Run) -> Chart | None:
    """How long saves took; None if that was never recorded."""
    return _over_time(
        run.checkpoints,
        (
            ("from the call to the commit", BLUE, "circle", lambda each: each.save_s),
            ("until shards were durable, slowest worker", SKY, "square", lambda each: each.write_s),
        ),
    )


def stalls(run: Run) -> Chart | None:
    """How long saves blocked training; None if that was never recorded."""
    return _over_time(
        run.checkpoints, (("training blocked, slowest worker", ORANGE, "diamond", lambda each: each.blocked_s),)
    )


def _over_time(
    checkpoints: Sequence[SavedCheckpoint],
    measures: Sequence[tuple[str, str, Symbol, Callable[[SavedCheckpoint], float | None]]],
) -> Chart | None:
    by_time = sorted((each for each in checkpoints if each.created_at), key=lambda each: _seconds(each.created_at))
    known = [value for each in by_time for *_, of in measures if (value := of(each)) is not None]
    if not known:
        return None
    unit, factor = ("ms", 1e3) if max(known) < 1 else ("s", 1)
    found = []
    for name, colour, symbol, of in measures:
        marks = [
            Mark(
                _seconds(each.created_at),
                value * factor,
                f"step {each.step:,}, i{each.incarnation}, {time_text(each.created_at)}\n{name}: {seconds_text(value)}",
            )
            for each in by_time
            if (value := of(each)) is not None
        ]
        found.append(Series(name, colour, (tuple(_spread(marks)),), symbol, "solid"))
    return Chart(tuple(found), x_title="time of the commit, UTC", y_title=unit, is_over_time=True)


def _starts(attempts: Sequence[RunAttempt]) -> dict[int, Mark]:
    """When each incarnation began, if that is known, and at which step; if that is not, at that of the last save
    before it."""
    found: dict[int, Mark] = {}
    for attempt in attempts:
        time = attempt.claimed_at or attempt.first_saved_at
        if time is None:
            continue
        step = attempt.restored_step
        if step is None:
            is_new = attempt.reason in ("start", "fresh")
            step = 0 if is_new else attempt.previous_step or attempt.first_step or 0
        tip = f"incarnation {attempt.number}: {attempt.reason or 'why is not known'}\n{time_text(attempt.claimed_at)}"
        found[attempt.number] = Mark(_seconds(time), step, tip + (f", {attempt.host}" if attempt.host else ""))
    return found


def _links(
    attempts: Sequence[RunAttempt], starts: dict[int, Mark], made_at: dict[str, datetime | None]
) -> tuple[tuple[Mark, ...], ...]:
    """From each checkpoint that was restored, if it is still there, to the incarnation that restored it."""
    found = []
    for attempt in attempts:
        made = made_at.get(attempt.restored) if attempt.restored else None
        start = starts.get(attempt.number)
        if made is not None and start is not None:
            found.append((Mark(_seconds(made), start.y), start))
    return tuple(found)


def _pruned(attempts: Sequence[RunAttempt], lines: dict[int, tuple[Mark, ...]]) -> tuple[Mark, ...]:
    """What is known to have been pruned: its step; when it was saved is not known, so it is put on the line."""
    found = []
    for attempt in attempts:
        line = sorted(lines[attempt.number], key=lambda mark: mark.y)
        if line:
            times = np.interp(attempt.pruned_steps, [mark.y for mark in line], [mark.x for mark in line])
            found += [
                Mark(float(x), step, f"step {step:,}, i{attempt.number}: pruned\nwhen it was saved is not known")
                for x, step in zip(times, attempt.pruned_steps, strict=True)
            ]
    return tuple(_every(found, max(1, len(found) // MAX_POINTS)))


def _named(attempts: Sequence[RunAttempt], starts: dict[int, Mark]) -> tuple[Mark, ...]:
    shown = [attempt for attempt in attempts if attempt.number in starts]
    is_few = len(shown) <= _MAX_NAMED
    named = [each.number for each in shown if is_few or each.reason not in ("resume", None)][-_MAX_NAMED:]
    found = []
    for attempt in shown:
        start = starts[attempt.number]
        found.append(Mark(start.x, start.y, start.tip, f"i{attempt.number}" if attempt.number in named else ""))
    return tuple(found)


def _by_kind(
    checkpoints: Iterable[SavedCheckpoint],
    x: Callable[[SavedCheckpoint], float],
    y: Callable[[SavedCheckpoint], float],
) -> list[Series]:
    """What there is of each kind, told apart by colour and by shape."""
    looks: dict[str, tuple[Symbol, str]] = {
        "current": ("circle", BLUE),
        "superseded": ("cross", GREY),
        "damaged": ("diamond", ORANGE),
    }
    found: dict[str, list[Mark]] = {kind: [] for kind in looks}
    for each in checkpoints:
        kind = "damaged" if each.problem else "superseded" if each.state == "outside" else "current"
        found[kind].append(Mark(x(each), y(each), _tip(each)))
    return [
        Series(kind, colour, (tuple(_spread(found[kind])),), symbol)
        for kind, (symbol, colour) in looks.items()
        if found[kind]
    ]


def _tip(checkpoint: SavedCheckpoint) -> str:
    copied = f", {size_text(checkpoint.copied_bytes)} of it copied" if checkpoint.copied_bytes else ""
    return (
        f"step {checkpoint.step:,}, i{checkpoint.incarnation}\n{time_text(checkpoint.created_at)}\n"
        f"{size_text(checkpoint.size_bytes)}{copied}, {checkpoint.why_outside or state_text(checkpoint.state)}"
    )


def _every(items: Sequence[_Item], share: int) -> list[_Item]:
    """One of so many, and the last."""
    return [*items[:-1:share], items[-1]] if items else []


def _spread(marks: Sequence[Mark]) -> list[Mark]:
    """About `MAX_POINTS` at most, in order: the lowest and the highest of each stretch, so that no peak is lost."""
    if len(marks) <= MAX_POINTS:
        return list(marks)
    stretch = -(-2 * len(marks) // MAX_POINTS)
    chosen: list[Mark] = []
    for _, group in groupby(range(len(marks)), key=lambda i: i // stretch):
        places = list(group)
        ends = {min(places, key=lambda i: marks[i].y), max(places, key=lambda i: marks[i].y)}
        chosen += [marks[i] for i in sorted(ends)]
    return chosen


def _byte_unit(size_bytes: int) -> tuple[str, int]:
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if size_bytes >= 1024**power:
            return unit, 1024**power
    return "bytes", 1


def _seconds(time: datetime | None) -> float:
    """Since the epoch; only asked for if it is known."""
    return time.timestamp() if time else 0.0
