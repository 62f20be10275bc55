"""A time line in Chrome's Trace Event Format, for ui.perfetto.dev and chrome://tracing."""

from __future__ import annotations

from typing import Any

import msgspec

from benchmarks.report.lanes import lanes
from benchmarks.results import Timeline


def write_trace(timeline: Timeline, path: str) -> None:
    """Writes `timeline` as one process for each worker and one thread for each of its threads."""
    with open(path, "wb") as file:
        file.write(encode_trace(timeline))


def encode_trace(timeline: Timeline) -> bytes:
    """Times in microseconds since the first event: one that came before the chief's call would be negative."""
    zero_s = min((event.start_s for event in timeline.events), default=0.0)
    workers = sorted({event.worker for event in timeline.events})
    events = [_name("process_name", worker + 1, 0, f"worker {worker}") for worker in workers]
    for tid, lane in enumerate(lanes(timeline), 1):  # no tid twice: Perfetto takes one for the same thread
        pid = lane.worker + 1  # process 0 is the idle one
        events.append(_name("thread_name", pid, tid, lane.name))
        for event in lane.events:
            arguments: dict[str, Any] = {"size_bytes": event.size_bytes} if event.size_bytes else {}
            arguments |= {"shard": event.shard} if event.shard else {}
            start_us, end_us = ((time_s - zero_s) * 1e6 for time_s in (event.start_s, event.end_s))
            place = {"pid": pid, "tid": tid, "ts": start_us, "dur": max(0.0, end_us - start_us)}
            events.append({"name": event.name, "cat": "ckptflow", "ph": "X", **place, "args": arguments})
    about = {
        "title": timeline.title,
        "storage": timeline.storage,
        "size_bytes": timeline.size_bytes,
        "worker_count": timeline.worker_count,
        "called_us": -zero_s * 1e6,  # when the coordinator's save was called
    }
    return msgspec.json.encode({"traceEvents": events, "displayTimeUnit": "ms", "otherData": about})


def _name(kind: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": pid, "tid": tid, "ts": 0, "args": {"name": name}}
