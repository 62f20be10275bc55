"""Which events lie beside each other and which in each other: what a time line and a trace both need to know."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.results import Event, Timeline


@dataclass(frozen=True)
class Lane:
    """Events of one thread of one worker, each either after the one before or wholly within it."""

    worker: int
    name: str
    events: tuple[Event, ...]
    depths: tuple[int, ...]  # in how many others each event lies


def lanes(timeline: Timeline) -> list[Lane]:
    """Every event in exactly one lane, by worker and then by the threads' first events.

    Threads that share a name and overlap get lanes of their own: "transfer", "transfer (2)".
    """
    threads: dict[tuple[int, str], list[Event]] = {}
    for event in sorted(timeline.events, key=lambda event: (event.worker, event.start_s, -event.end_s)):
        threads.setdefault((event.worker, event.thread), []).append(event)
    found = []
    for (worker, thread), events in threads.items():
        for number, (kept, depths) in enumerate(_apart(events), 1):
            name = thread if number == 1 else f"{thread} ({number})"
            found.append(Lane(worker, name, tuple(kept), tuple(depths)))
    return found


def _apart(events: list[Event]) -> list[tuple[list[Event], list[int]]]:
    found: list[tuple[list[Event], list[int]]] = []
    open_ends: list[list[float]] = []
    for event in events:
        for ends in open_ends:
            while ends and ends[-1] <= event.start_s:
                ends.pop()
        fitting = (i for i, ends in enumerate(open_ends) if not ends or event.end_s <= ends[-1])
        i = next(fitting, len(open_ends))
        if i == len(open_ends):
            open_ends.append([])
            found.append(([], []))
        found[i][0].append(event)
        found[i][1].append(len(open_ends[i]))
        open_ends[i].append(event.end_s)
    return found
