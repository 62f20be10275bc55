"""The metrics as their readers see them: TensorBoard's own reader, a scrape over HTTP, OpenTelemetry's SDK."""

from __future__ import annotations

import subprocess
import sys
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import opentelemetry.sdk.metrics
import prometheus_client
import pytest
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client.parser import text_string_to_metric_families
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ckptflow import CheckpointManager, KeepLast, events, telemetry
from ckptflow.events import Committed, Event, Restored, Retried, SaveBegan, SaveFailed, ShardsWritten
from tests.manager.states import Weights
from tests.waiting import HANG_S

HOUR_AGO = datetime.now(UTC) - timedelta(hours=1)


def train(root: Path, *hooks: Any) -> list[Event]:
    """A life that saves three times and keeps one, and another that restores and saves."""
    told = list[Event]()
    for steps in ((1, 2, 3), (4,)):
        with CheckpointManager(root, {"m": Weights()}, keep=KeepLast(1), on_event=[told.append, *hooks]) as manager:
            manager.restore_latest()
            for step in steps:
                manager.save(step)
    return told


def expected(told: list[Event]) -> dict[str, float]:
    """The sum of all that was measured, by metric."""
    sums = dict.fromkeys((metric.name for metric in telemetry.METRICS), 0.0)
    for event in told:
        for metric, value in telemetry.measure(event):
            sums[metric.name] = value if metric.kind == "gauge" else sums[metric.name] + value
    return sums


def test_every_event_and_every_metric_has_its_place() -> None:
    assert {*events.__all__} - {"Event"} == {kind.__name__ for kind in Event.__subclasses__()}
    names = [metric.name for metric in telemetry.METRICS]
    assert len(set(names)) == len(names)
    page = (Path(__file__).resolve().parents[2] / "docs" / "telemetry.md").read_text()
    assert [name for name in [*names, *events.__all__] if f"`{name}`" not in page] == []
    counts = {"commits", "save_failures", "not_finite_saves", "storage_retries", "newest_checkpoint_step"}
    assert all("_seconds" in name or "bytes" in name for name in set(names) - counts)  # the unit is in the name


def test_what_was_copied_is_told_apart_from_what_was_sent() -> None:
    registry = prometheus_client.CollectorRegistry()
    hook = telemetry.Prometheus(registry)
    hook(ShardsWritten(step=1, folder="f", size_bytes=100, write_s=0.1, url="r"))
    hook(ShardsWritten(step=2, folder="f", size_bytes=100, write_s=0.1, copied_bytes=95, url="r"))
    committed = Committed(step=2, folder="f", size_bytes=100, save_s=0.5, copied_bytes=95, url="r")
    hook(committed)
    assert committed.sent_bytes == 5
    assert committed.gib_per_s == 100 / 2**30 / 0.5  # of the checkpoint, however it got there
    names = ("written", "sent", "copied", "saved")
    labels = {"url": "r", "worker": "0"}
    found = [registry.get_sample_value(f"ckptflow_{name}_bytes_total", labels) for name in names]
    assert found == [200, 105, 95, 100]


def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    told = train(tmp_path / "run", telemetry.TensorBoard(tmp_path / "logs"))
    reader = EventAccumulator(str(tmp_path / "logs"), size_guidance={"tensors": 0})
    reader.Reload()
    series: dict[str, list[tuple[int, Any]]] = {
        tag: [(point.step, float(point.tensor_proto.float_val[0])) for point in reader.Tensors(tag)]
        for tag in reader.Tags()["tensors"]
    }
    committed = [event for event in told if isinstance(event, Committed)]
    seconds = [(event.step, event.save_s) for event in committed]
    assert series["ckptflow/save_seconds"] == [(step, pytest.approx(value)) for step, value in seconds]
    total, sizes = 0, list[tuple[int, Any]]()
    for event in committed:
        total += event.size_bytes
        sizes.append((event.step, pytest.approx(total)))
    assert series["ckptflow/saved_bytes"] == sizes
    assert [step for step, _ in series["ckptflow/newest_checkpoint_age_seconds"]] == [2, 3, 4]  # none before the first
    assert all(value > 0 for _, value in series["ckptflow/newest_checkpoint_age_seconds"])
    assert [step for step, _ in series["ckptflow/restore_seconds"]] == [3]
    assert [step for step, _ in series["ckptflow/pruned_bytes"]] == [2, 3, 4]  # at the step that pruned


def test_tensorboard_keeps_workers_apart_and_finds_a_step(tmp_path: Path) -> None:
    board = telemetry.TensorBoard(tmp_path)
    for worker in (0, 3):
        board(SaveBegan(step=70, folder="f", blocked_s=0.5, capture_s=0.1, worker=worker))
        board(Retried(verb="put", key="k", tries=1, wait_s=0.1, error="e", worker=worker))
        board(SaveFailed(step=70, folder="f", error="e", worker=worker))
    for folder in (tmp_path, tmp_path / "worker-3"):
        reader = EventAccumulator(str(folder))  # read while the writers are open
        reader.Reload()
        assert [point.step for point in reader.Tensors("ckptflow/storage_retries")] == [70]
        assert [point.step for point in reader.Tensors("ckptflow/save_failures")] == [70]


def test_prometheus_scrapes_what_was_measured(tmp_path: Path) -> None:
    registry = prometheus_client.CollectorRegistry()
    told = train(tmp_path / "run", telemetry.Prometheus(registry))
    server, thread = prometheus_client.start_http_server(0, "127.0.0.1", registry)
    try:
        url = f"http://127.0.0.1:{server.server_port}/metrics"
        text = urllib.request.urlopen(url, timeout=HANG_S).read().decode()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if not sample.name.endswith(("_bucket", "_created")):
                assert (sample.labels["url"], sample.labels["worker"]) == (str(tmp_path / "run"), "0")
                found[sample.name] = sample.value
    sums = expected(told)
    for metric in telemetry.METRICS:
        if metric is not telemetry.AGE:
            suffix = {"counter": "_total", "histogram": "_sum", "gauge": ""}[metric.kind]
            assert found[f"ckptflow_{metric.name}{suffix}"] == pytest.approx(sums[metric.name]), metric.name
    assert found["ckptflow_save_seconds_count"] == 4
    assert found["ckptflow_save_failures_total"] == 0  # there before anything fails
    assert 0 <= found["ckptflow_newest_checkpoint_age_seconds"] < 3600


def test_prometheus_knows_the_age_from_what_was_restored() -> None:
    registry = prometheus_client.CollectorRegistry()
    hook = telemetry.Prometheus(registry)
    labels = {"url": "r", "worker": "0"}
    hook(Restored(step=3, folder="f", size_bytes=1, restore_s=0.1, created_at=HOUR_AGO, url="r"))
    first = registry.get_sample_value("ckptflow_newest_checkpoint_age_seconds", labels)
    second = registry.get_sample_value("ckptflow_newest_checkpoint_age_seconds", labels)
    assert first is not None
    assert second is not None
    assert 3600 <= first < second  # it goes on by itself
    with pytest.raises(ValueError, match="Duplicated"):
        telemetry.Prometheus(registry)


def test_what_is_only_looked_at_is_not_the_newest(tmp_path: Path) -> None:
    registry, reader = prometheus_client.CollectorRegistry(), InMemoryMetricReader()
    provider = opentelemetry.sdk.metrics.MeterProvider(metric_readers=[reader])
    now = datetime.now(UTC)
    newest = Restored(step=5, folder="f", size_bytes=50, restore_s=0.1, created_at=now, url="r")
    look = Restored(step=1, folder="f", size_bytes=10, restore_s=0.2, created_at=HOUR_AGO, url="r", is_only_read=True)
    for hook in (telemetry.Prometheus(registry), telemetry.OpenTelemetry(provider), telemetry.TensorBoard(tmp_path)):
        for event in (newest, look):
            hook(event)
    data = reader.get_metrics_data()
    assert data is not None
    points = {each.name: each.data.data_points[0] for each in data.resource_metrics[0].scope_metrics[0].metrics}
    for name, value in (("step", 5), ("bytes", 50)):
        labels = {"url": "r", "worker": "0"}
        assert registry.get_sample_value(f"ckptflow_newest_checkpoint_{name}", labels) == value
        assert points[f"ckptflow.newest_checkpoint_{name}"].value == value
    age_s = registry.get_sample_value("ckptflow_newest_checkpoint_age_seconds", labels)
    assert age_s is not None
    assert max(age_s, points["ckptflow.newest_checkpoint_age_seconds"].value) < 3600
    assert registry.get_sample_value("ckptflow_restore_seconds_count", labels) == 2
    board = EventAccumulator(str(tmp_path))
    board.Reload()
    assert [point.step for point in board.Tensors("ckptflow/restore_seconds")] == [5, 5]
    assert [point.step for point in board.Tensors("ckptflow/newest_checkpoint_step")] == [5]
    provider.shutdown()


@pytest.mark.parametrize("read_only", [False, True])
def test_a_restore_says_whether_it_was_only_read(tmp_path: Path, read_only: bool) -> None:
    told = list[Event]()
    with CheckpointManager(tmp_path, {"m": Weights()}) as manager:
        manager.save(1)
        manager.save(2)
    with CheckpointManager(tmp_path, {"m": Weights()}, read_only=read_only, on_event=told.append) as manager:
        manager.restore_latest()
        manager.restore(1)
        if not read_only:
            manager.rollback(1)
    found = [(event.step, event.is_only_read) for event in told if isinstance(event, Restored)]
    assert found == [(2, False), (1, True), (1, False)][: 2 if read_only else 3]


def test_opentelemetry_exports_what_was_measured(tmp_path: Path) -> None:
    reader = InMemoryMetricReader()
    provider = opentelemetry.sdk.metrics.MeterProvider(metric_readers=[reader])
    told = train(tmp_path / "run", telemetry.OpenTelemetry(provider))
    data = reader.get_metrics_data()
    assert data is not None
    found: dict[str, float] = {}
    for metric in data.resource_metrics[0].scope_metrics[0].metrics:
        (point,) = metric.data.data_points
        assert point.attributes == {"url": str(tmp_path / "run"), "worker": 0}
        found[metric.name] = point.sum if hasattr(point, "sum") else point.value
    sums = expected(told)
    silent = {
        "save_failures",
        "not_finite_saves",
        "storage_retries",
    }  # a counter that nothing was added to is not exported
    assert found.keys() == {f"ckptflow.{metric.name}" for metric in telemetry.METRICS if metric.name not in silent}
    for metric in telemetry.METRICS:
        if metric is not telemetry.AGE and metric.name not in silent:
            assert found[f"ckptflow.{metric.name}"] == pytest.approx(sums[metric.name]), metric.name
    assert 0 <= found["ckptflow.newest_checkpoint_age_seconds"] < 3600
    provider.shutdown()


@pytest.mark.parametrize(
    ("name", "package"),
    [("TensorBoard('x')", "tensorboard"), ("Prometheus()", "prometheus_client"), ("OpenTelemetry()", "opentelemetry")],
)
def test_without_its_package_each_says_what_to_install(name: str, package: str) -> None:
    program = f"""
import sys
sys.modules[{package!r}] = None
from ckptflow import telemetry
assert "tensorflow" not in sys.modules
try:
    telemetry.{name}
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=HANG_S, check=True)
    assert "pip install 'ckptflow[telemetry]'" in done.stdout
