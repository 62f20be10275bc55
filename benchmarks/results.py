"""What a run of the suite found, as it is written to JSON: typed, strictly decoded, one shape for all readers."""

from __future__ import annotations

from typing import Any

import msgspec

FORMAT = 1


class Stat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One measure over all rounds but the first, which warms up."""

    median: float
    low: float
    high: float
    first: float | None = None  # the round that warms up: what the first save of a job costs


class Result(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One peer at one point of one experiment.

    Measures, where the peer has them: `blocked_s`, `durable_s` (from the call to durable), `save_cpu_s` and
    `restore_cpu_s` (user and system, of all its processes), `restore_cold_s`, `restore_warm_s`, `peak_save_bytes` and
    `peak_restore_bytes` (resident memory above what the process held before its first save, in its first save and the
    restore after it), `step_s` (a training step with a save in every 15, mean), `plain_step_s` (without), `slowdown`
    (their ratio in one round, less 1), `save_requests`, `restore_requests`, `save_sent_bytes`, `restore_read_bytes`;
    `save_copied_bytes`, `stored_bytes` (what the storage holds), `save_1_s` to `save_3_s` (`durable_s` of the first
    saves), `save_restarted_s` and `restarted_sent_bytes` (of the first save after a restart).
    """

    experiment: str  # see `experiments.py`
    peer: str
    storage: str  # "local", "s3", "gcs"
    size_bytes: int
    variable_count: int
    worker_count: int
    is_limit: bool = False  # raw device or raw client: what the storage can do, nothing checked
    rounds: int = 0
    measures: dict[str, Stat] = {}
    parameters: dict[str, Any] = {}  # what else distinguishes it: concurrency, shard size
    note: str = ""  # what to know when comparing it: "files fsynced after write", "no checksums"
    error: str = ""  # why there is no figure


class Event(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One span (`ckptflow.spans`) of one worker; times in seconds since the save was called on the coordinator."""

    worker: int
    thread: str
    name: str
    start_s: float
    end_s: float
    size_bytes: int = 0
    shard: str = ""


class Timeline(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One save, or one restore, over time."""

    title: str
    storage: str
    size_bytes: int
    worker_count: int
    events: tuple[Event, ...]


class Run(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One run of the suite on one machine."""

    format: int
    created_at: str
    command: str
    machine: dict[str, Any]
    cannot_show: tuple[str, ...]  # stated first wherever the figures are shown
    bias: tuple[str, ...]
    results: tuple[Result, ...]
    timelines: tuple[Timeline, ...] = ()


def encode(run: Run) -> bytes:
    """Indented JSON, keys in the order of the fields."""
    return msgspec.json.format(msgspec.json.encode(run), indent=2)


def decode(data: bytes) -> Run:
    """Raises ValueError for what is not a run of this format."""
    run = msgspec.json.decode(data, type=Run)
    if run.format != FORMAT:
        raise ValueError(f"this is format {run.format} of the suite's results, this program reads {FORMAT}")
    return run
