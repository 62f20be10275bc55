"""Metrics of a running job, for TensorBoard, Prometheus and OpenTelemetry: hooks for `CheckpointManager(on_event=…)`::

    CheckpointManager(url, state, on_event=[telemetry.TensorBoard("logs"), telemetry.Prometheus()])

They run in the manager's thread for events, never on the training thread. Each needs a package that `pip install
'ckptflow[telemetry]'` installs, and raises ImportError without it. `METRICS` lists what is measured, with the unit in
each name; all three send the same. Counters start at 0 with the process.
"""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module
from typing import Any, Literal

from ckptflow.events import Committed, Event, NotFinite, Pruned, Restored, Retried, SaveBegan, SaveFailed, ShardsWritten

__all__ = ["METRICS", "Metric", "OpenTelemetry", "Prometheus", "TensorBoard", "measure"]

# Upper bounds of a histogram's buckets, in seconds: from a capture of a small model to a save to slow storage.
BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0)


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric: its name with the unit; `kind` as in Prometheus; its description."""

    name: str
    kind: Literal["histogram", "counter", "gauge"]
    text: str


BLOCKED = Metric("blocked_seconds", "histogram", "how long save blocked the training thread")
WRITE = Metric("write_seconds", "histogram", "from the call of save until this worker's shards were durable")
WRITTEN = Metric("written_bytes", "counter", "bytes of shards that this worker made durable")
SENT = Metric("sent_bytes", "counter", "bytes of shards that this worker sent to the storage")
COPIED = Metric("copied_bytes", "counter", "bytes of shards that were copied inside the storage, and not sent")
SAVE = Metric("save_seconds", "histogram", "from the call of save until the checkpoint was committed; the chief's")
SAVED = Metric("saved_bytes", "counter", "bytes of committed checkpoints, of all workers' shards; the chief's")
RATE = Metric("save_gibibytes_per_second", "gauge", "of the newest committed save: its bytes over save_seconds")
SIZE = Metric("newest_checkpoint_bytes", "gauge", "size of the newest checkpoint: committed (the chief) or restored")
STEP = Metric("newest_checkpoint_step", "gauge", "step of the newest checkpoint: committed (the chief) or restored")
AGE = Metric("newest_checkpoint_age_seconds", "gauge", "age of the newest checkpoint: what a crash now would cost")
COMMITS = Metric("commits", "counter", "checkpoints committed by this process; the chief's")
FAILURES = Metric("save_failures", "counter", "saves of which this worker's part, or the commit, failed")
NOT_FINITE = Metric("not_finite_saves", "counter", "saves in which check_finite has found NaN or Inf on this worker")
RESTORE = Metric("restore_seconds", "histogram", "how long a restore took")
FROM_STORAGE = Metric("restore_storage_bytes", "counter", "bytes of shards that restores have read from storage")
FROM_PEERS = Metric("restore_peer_bytes", "counter", "bytes of shards that restores got from other workers")
RETRIES = Metric("storage_retries", "counter", "requests to the storage that were retried")
PRUNED = Metric("pruned_bytes", "counter", "bytes of checkpoints that were deleted; the chief's")
FREED = Metric("freed_bytes", "counter", "of these, bytes that became free: not files that others share; the chief's")

METRICS = (
    BLOCKED, WRITE, WRITTEN, SENT, COPIED, SAVE, SAVED, RATE, SIZE, STEP, AGE, COMMITS, FAILURES, NOT_FINITE, RESTORE,
    FROM_STORAGE, FROM_PEERS, RETRIES, PRUNED, FREED,
)  # fmt: skip


def measure(event: Event) -> list[tuple[Metric, float]]:
    """What an event adds to counters, observes in histograms and sets in gauges: everything except `AGE`, which
    changes with time."""
    match event:
        case SaveBegan():
            return [(BLOCKED, event.blocked_s)]
        case ShardsWritten():
            return [
                (WRITE, event.write_s),
                (WRITTEN, event.size_bytes),
                (SENT, event.sent_bytes),
                (COPIED, event.copied_bytes),
            ]
        case Committed():
            return [
                (SAVE, event.save_s),
                (SAVED, event.size_bytes),
                (RATE, event.gib_per_s),
                (SIZE, event.size_bytes),
                (STEP, event.step),
                (COMMITS, 1),
            ]
        case Restored():
            newest = [] if event.is_only_read else [(SIZE, float(event.size_bytes)), (STEP, float(event.step))]
            return [
                (RESTORE, event.restore_s),
                (FROM_STORAGE, event.storage_bytes),
                (FROM_PEERS, event.peer_bytes),
                *newest,
            ]
        case SaveFailed():
            return [(FAILURES, 1)]
        case NotFinite():
            return [(NOT_FINITE, 1)]
        case Retried():
            return [(RETRIES, 1)]
        case Pruned():
            return [(PRUNED, event.size_bytes), (FREED, event.freed_bytes)]
    return []


def newest_time(event: Event) -> datetime | None:
    """When the checkpoint that became the newest by this event was committed; None if none did."""
    if isinstance(event, Restored):
        return None if event.is_only_read else event.created_at
    return event.at if isinstance(event, Committed) else None


class TensorBoard:
    """Writes scalars under `ckptflow/` for TensorBoard, at the steps of the job.

    `log_folder` is what `tensorboard --logdir` gets; workers other than the chief write to `worker-N` in it.
    Counters are running totals, histograms show their newest value, and the age is taken at the start of each save.
    Events without a step, such as a retry, use the newest known step. The values of an event are in the file before
    the next event.
    """

    def __init__(self, log_folder: str | os.PathLike[str]) -> None:
        self._make_writer = _import("tensorboard.summary", "tensorboard").Writer
        self._log_folder = os.fspath(log_folder)
        self._totals: dict[tuple[str, int, Metric], float] = defaultdict(float)
        self._steps: dict[tuple[str, int], int] = {}
        self._newest: dict[tuple[str, int], datetime] = {}
        self._writers: dict[int, Any] = {}

    def __call__(self, event: Event) -> None:
        source = (event.url, event.worker)
        # What is pruned, damaged or only looked at has an older step.
        if isinstance(event, SaveBegan | Committed) or (isinstance(event, Restored) and not event.is_only_read):
            self._steps[source] = event.step
        values: list[tuple[Metric, float]] = []
        for metric, value in measure(event):
            self._totals[(*source, metric)] += value
            values.append((metric, self._totals[(*source, metric)] if metric.kind == "counter" else value))
        if isinstance(event, SaveBegan) and source in self._newest:
            values.append((AGE, max(0.0, (event.at - self._newest[source]).total_seconds())))
        if (time := newest_time(event)) is not None:
            self._newest[source] = time
        if values:
            self._write(event, self._steps.get(source, 0), values)

    def _write(self, event: Event, step: int, values: list[tuple[Metric, float]]) -> None:
        writer = self._writers.get(event.worker)
        if writer is None:
            folder = self._log_folder if event.worker == 0 else os.path.join(self._log_folder, f"worker-{event.worker}")
            writer = self._writers[event.worker] = self._make_writer(folder)
        for metric, value in values:
            writer.add_scalar(
                f"ckptflow/{metric.name}", value, step, wall_time=event.at.timestamp(), description=metric.text
            )
        writer.flush()


class Prometheus:
    """Keeps metrics named `ckptflow_…` in a registry of prometheus_client, labelled by `url` and `worker`.

    `registry` is prometheus_client's default registry if not given; `prometheus_client.start_http_server(port)`
    serves it. One instance serves all managers of a process; a second one on the same registry raises ValueError. The
    age is computed on each scrape.
    """

    def __init__(self, registry: Any = None) -> None:
        client = _import("prometheus_client")
        kinds: dict[str, Callable[..., Any]] = {
            "histogram": lambda *names, **rest: client.Histogram(*names, buckets=BUCKETS_S, **rest),
            "counter": client.Counter,
            "gauge": client.Gauge,
        }
        registry = client.REGISTRY if registry is None else registry
        self._metrics = {
            metric: kinds[metric.kind](f"ckptflow_{metric.name}", metric.text, ("url", "worker"), registry=registry)
            for metric in METRICS
        }
        self._begun: set[tuple[str, int]] = set()
        self._newest: dict[tuple[str, int], datetime] = {}

    def __call__(self, event: Event) -> None:
        source = (event.url, event.worker)
        if source not in self._begun:  # counters are there, at 0, before anything has gone wrong
            self._begun.add(source)
            for metric in METRICS:
                if metric.kind == "counter":
                    self._metrics[metric].labels(*source)
        for metric, value in measure(event):
            labelled = self._metrics[metric].labels(*source)
            verb = {"counter": "inc", "gauge": "set", "histogram": "observe"}[metric.kind]
            getattr(labelled, verb)(value)
        time = newest_time(event)
        if time is not None:
            self._newest[source] = time
            self._metrics[AGE].labels(*source).set_function(lambda: _age_s(self._newest[source]))


class OpenTelemetry:
    """Records metrics named `ckptflow.…` with a meter of OpenTelemetry, with the attributes `url` and `worker`.

    `meter_provider` is the process's global one by default: set it first, with its reader and exporter. The age is
    computed on each collection.
    """

    def __init__(self, meter_provider: Any = None) -> None:
        metrics = _import("opentelemetry.metrics", "opentelemetry-api")
        provider = metrics.get_meter_provider() if meter_provider is None else meter_provider
        meter = provider.get_meter("ckptflow")
        self._observation = metrics.Observation
        self._newest: dict[tuple[str, int], datetime] = {}
        self._lock = threading.Lock()  # the age is read by the exporter's thread
        make = {"counter": meter.create_counter, "gauge": meter.create_gauge}
        self._metrics: dict[Metric, Any] = {}
        for metric in METRICS:
            about = {"name": f"ckptflow.{metric.name}", "description": metric.text}
            if metric is AGE:
                meter.create_observable_gauge(callbacks=[self._ages], **about)
            elif metric.kind == "histogram":
                bounds = list(BUCKETS_S)
                self._metrics[metric] = meter.create_histogram(explicit_bucket_boundaries_advisory=bounds, **about)
            else:
                self._metrics[metric] = make[metric.kind](**about)

    def __call__(self, event: Event) -> None:
        attributes = {"url": event.url, "worker": event.worker}
        verbs = {"counter": "add", "gauge": "set", "histogram": "record"}
        for metric, value in measure(event):
            getattr(self._metrics[metric], verbs[metric.kind])(value, attributes)
        time = newest_time(event)
        if time is not None:
            with self._lock:
                self._newest[event.url, event.worker] = time

    def _ages(self, options: Any) -> Iterable[Any]:
        with self._lock:
            newest = dict(self._newest)
        return [
            self._observation(_age_s(time), {"url": url, "worker": worker}) for (url, worker), time in newest.items()
        ]


def _age_s(time: datetime) -> float:
    return max(0.0, (datetime.now(UTC) - time).total_seconds())


def _import(module: str, package: str | None = None) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{package or module} is not installed ({error}): pip install 'ckptflow[telemetry]'"
        ) from error
