"""Jobs on S3-compatible servers that refuse what S3 takes: what is done, what is said, and how often is asked."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import tensorflow as tf

from ckptflow import CheckpointManager, KeepLast, list_checkpoints
from ckptflow.commit import lineage
from ckptflow.errors import SaveFailedError, StorageError, StorageUnavailableError
from tests.servers import Server
from tests.storage import lacking
from tests.storage.proxy import FaultyProxy, faulty_proxy

KMS = lacking.PERMANENT[0]


@pytest.fixture(scope="module")
def proxy(seaweedfs: Server) -> Iterator[FaultyProxy]:
    with faulty_proxy(seaweedfs) as found:
        yield found


@pytest.fixture(params=["fsspec", "obstore"])
def options(
    request: pytest.FixtureRequest, seaweedfs: Server, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, Any]]:
    monkeypatch.setattr(lineage, "SETTLE_S", 0.01)
    kwargs = {**seaweedfs.storage_options["client_kwargs"], "endpoint_url": proxy.endpoint}
    yield {**seaweedfs.storage_options, "client": request.param, "client_kwargs": kwargs}
    proxy.rules = []


def place(request: pytest.FixtureRequest) -> str:
    return f"s3://ckptflow-tests/lacking-jobs/{request.node.name.replace('[', '-').strip(']')}"


def counted(proxy: FaultyProxy, verb: str, since: int) -> int:
    return sum(line.startswith(verb) for line in proxy.requests[since:])


def test_a_job_where_nothing_but_the_least_is_taken(
    proxy: FaultyProxy, options: dict[str, Any], request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    """Content-MD5 demanded, and no conditions: it saves, prunes at each save, and resumes."""
    proxy.rules = [
        lacking.no_bulk_delete(lacking.NO_BULK_DELETE[0]),
        lacking.no_condition(lacking.UNKNOWN_CONDITIONS[0]),
    ]
    url, since = place(request), len(proxy.requests)
    x = tf.Variable(0.0)
    with (
        caplog.at_level(logging.WARNING, "ckptflow"),
        CheckpointManager(url, {"x": x}, keep=[KeepLast(1)], storage_options=options) as manager,
    ):
        manager.restore_latest()
        for step in range(1, 5):
            x.assign(float(step))
            manager.save(step).result()
    assert [each.step for each in list_checkpoints(url, storage_options=options)] == [4]
    assert sum(map(lacking.is_bulk_delete, proxy.requests[since:])) == 1  # then it is known
    assert not [message for message in caplog.messages if "nothing is pruned" in message or "pruning failed" in message]
    again = tf.Variable(0.0)
    with CheckpointManager(url, {"x": again}, storage_options=options) as manager:
        manager.restore_latest()
    assert float(again) == 4.0


def test_a_key_that_is_disabled_while_a_job_runs(
    proxy: FaultyProxy, options: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    """No retry helps: each object is sent once, the error has the server's word, and what was saved stays."""
    url = place(request)
    with CheckpointManager(url, {"x": tf.Variable(1.0)}, storage_options=options) as manager:
        manager.restore_latest()
        manager.save(1).result()
        proxy.rules = [lacking.no_writes(KMS)]
        since = len(proxy.requests)
        with pytest.raises(SaveFailedError, match=r"StorageError: .*is disabled"):
            manager.save(2).result()
        sent = [line for line in proxy.requests[since:] if line.startswith("PUT")]
        assert len(sent) == len(set(sent)) <= 2  # a shard, and that it failed
        proxy.rules = []
        with pytest.raises(SaveFailedError):  # once more, for who has not looked at the result
            manager.save(3)
        manager.save(3).result()
    assert [each.step for each in list_checkpoints(url, storage_options=options)] == [1, 3]


def test_a_key_that_was_disabled_before(
    proxy: FaultyProxy, options: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    proxy.rules = [lacking.no_writes(KMS)]
    since = len(proxy.requests)
    with (
        pytest.raises(StorageError, match="is disabled") as raised,
        CheckpointManager(place(request), {"x": tf.Variable(1.0)}, storage_options=options) as manager,
    ):
        manager.restore_latest()
    assert not isinstance(raised.value, StorageUnavailableError)
    assert counted(proxy, "PUT", since) == 1
