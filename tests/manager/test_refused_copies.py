"""A storage that takes writes and no copies: each save goes well, sends what it must, and does not ask for ever."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from ckptflow import Checkpoint, CheckpointManager, KeepLast, SaveFailedError, list_checkpoints, open_checkpoint
from ckptflow.errors import (
    ObjectChangedError,
    ObjectNotFoundError,
    StorageAccessError,
    StorageError,
    StorageFullError,
    StorageUnavailableError,
)
from ckptflow.storage.opening import open_store
from ckptflow.testing import CountingStore, FaultyStore
from tests.manager.states import wrap_store
from tests.servers import Server
from tests.storage import lacking
from tests.storage.proxy import FaultyProxy, Reply, faulty_proxy

SHARDS = 30
ERRORS = [StorageAccessError, StorageFullError, ObjectNotFoundError, ObjectChangedError, StorageUnavailableError]


class Job:
    """A frozen layer of some 30 shards, and a number that changes."""

    def __init__(self, url: str | Path, options: dict[str, Any] | None = None) -> None:
        self.backbone = keras.layers.Dense(128, trainable=False)
        self.backbone.build((SHARDS * 128 - 400,))
        self.head = keras.Variable(0.0)
        self.options = options
        state = {"backbone": self.backbone, "head": self.head}
        self.manager = CheckpointManager(
            url, state, keep=[KeepLast(2)], shard_bytes=2**16, memory_budget_bytes=2**20, storage_options=options
        )
        self.manager.restore_latest()

    def save(self, step: int) -> Checkpoint:
        """One that is read back."""
        self.head.assign(step)
        saved = self.manager.save(step).result()
        with open_checkpoint(saved.url, storage_options=self.options) as found:
            assert np.array_equal(found["backbone/kernel"], self.backbone.kernel.numpy())
            assert found["head"] == step
        return saved


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Job, FaultyStore, CountingStore]]:
    """One whose next save would copy."""
    stores = wrap_store(monkeypatch, lambda store: FaultyStore(CountingStore(store)))
    made = Job(tmp_path)
    for step in (1, 2):
        made.save(step)
    counting = stores[0].store
    assert isinstance(counting, CountingStore)
    yield made, stores[0], counting
    made.manager.close()


@pytest.mark.parametrize("error", ERRORS)
def test_what_cannot_be_copied_is_sent(job: tuple[Job, FaultyStore, CountingStore], error: type[StorageError]) -> None:
    """Those that are not answered are not all asked for: each may have been waited for."""
    made, store, _ = job
    store.fail("copy", error("not today"), times=SHARDS)
    assert made.save(3).copied_bytes == 0
    asked = sum(fault.is_used for fault in store.faults)
    assert asked == 5 if error is StorageUnavailableError else asked > 20
    store.faults.clear()
    assert made.save(4).copied_bytes > 0


def test_some_that_are_not_answered(job: tuple[Job, FaultyStore, CountingStore]) -> None:
    """The others are copied."""
    made, store, counting = job
    for number in range(0, 20, 2):
        store.fail("copy", StorageUnavailableError("not now"), key=f"-{number:04}-")
    assert made.save(3).copied_bytes > 0
    store.assert_all_used()
    assert counting.counts["copy"] > 15


def test_a_full_disk(job: tuple[Job, FaultyStore, CountingStore], tmp_path: Path) -> None:
    """The save fails, older ones stay whole, and the next one copies."""
    made, store, _ = job
    for verb in ("copy", "put"):
        store.fail(verb, StorageFullError("no space left"), key="shard-", times=5)
    with pytest.raises(SaveFailedError, match="no space left"):
        made.save(3)
    store.faults.clear()
    assert [each.step for each in list_checkpoints(tmp_path)] == [1, 2]
    with pytest.raises(SaveFailedError):
        made.manager.wait()
    assert made.save(4).copied_bytes > 0


@pytest.fixture(scope="module")
def proxy(seaweedfs: Server) -> Iterator[FaultyProxy]:
    with faulty_proxy(seaweedfs) as found:
        yield found


REFUSALS = {
    "AccessDenied": (lacking.error("AccessDenied", "no", 403), 1),  # the first, which the others wait for
    "SlowDown": (lacking.error("SlowDown", "Please reduce your request rate.", 503), 3 * (16 + 5)),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_bucket_that_takes_no_copies(proxy: FaultyProxy, seaweedfs: Server, name: str, tmp_path: Path) -> None:
    reply, most = REFUSALS[name]
    made = Job(f"s3://ckptflow-tests/refused-{tmp_path.name}", {**seaweedfs.options_at(proxy.endpoint)})
    made.save(1)

    def refuse(line: str, headers: dict[str, str]) -> Reply | None:
        return reply if "x-amz-copy-source" in headers else None

    proxy.rules, since = [refuse], len(proxy.requests)
    try:
        assert made.save(2).copied_bytes == 0
        copies = sum("x-amz-copy-source" in {k.lower() for k in headers} for headers in proxy.headers[since:])
        assert 1 <= copies <= most
    finally:
        proxy.rules = []
    assert (made.save(3).copied_bytes > 0) == (name == "SlowDown")  # what is refused is not asked for again
    made.manager.close()


def test_a_bucket_that_refuses_every_version(
    proxy: FaultyProxy, seaweedfs: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It keeps to a condition of a copy in that it never finds it met: after three saves it is asked no more."""
    caplog.set_level(logging.INFO, "ckptflow")
    made = Job(f"s3://ckptflow-tests/changed-{tmp_path.name}", {**seaweedfs.options_at(proxy.endpoint)})
    made.save(1)
    proxy.rules = [lacking.no_copies(lacking.error("PreconditionFailed", "no", 412))]
    asked: list[int] = []
    try:
        for step in range(2, 7):
            since = len(proxy.requests)
            assert made.save(step).copied_bytes == 0
            asked.append(sum("x-amz-copy-source" in {k.lower() for k in each} for each in proxy.headers[since:]))
    finally:
        proxy.rules = []
        made.manager.close()
    assert all(0 < count < SHARDS for count in asked[:3])
    assert asked[3:] == [0, 0]
    assert caplog.text.count("shards are written, not copied inside the storage: it has refused every copy") == 1


def test_a_bucket_in_which_one_checkpoint_was_replaced_is_copied_in(seaweedfs: Server, tmp_path: Path) -> None:
    """What is written from then on is copied."""
    made = Job(f"s3://ckptflow-tests/replaced-{tmp_path.name}", seaweedfs.storage_options)
    first = made.save(1)
    with closing(open_store(first.url, seaweedfs.storage_options)) as store:
        for entry in [each for each in store.list() if each.key.startswith("shard-")]:
            data = bytearray(entry.size_bytes)
            store.get(entry.key, memoryview(data))
            data[-1] ^= 1
            store.put(entry.key, memoryview(data))
    made.save(2)
    assert made.save(3).copied_bytes > 0
    made.manager.close()


def test_a_bucket_that_ignores_the_condition_of_a_copy(fake_gcs: Server, tmp_path: Path) -> None:
    made = Job(f"gs://ckptflow-tests/ignored-{tmp_path.name}", fake_gcs.storage_options)
    assert [made.save(step).copied_bytes for step in (1, 2, 3)] == [0, 0, 0]
    made.manager.close()
