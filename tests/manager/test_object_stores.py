"""The manager on real S3 and GCS servers, with each client; and what they refuse."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

import ckptflow
from ckptflow import CheckpointManager, KeepLast, StorageAccessError, StorageError
from tests.manager.states import Weights
from tests.servers import S3_SECRET, Server

CLIENTS = ["fsspec", "obstore"]


@pytest.fixture(scope="module", params=["seaweedfs", "fake_gcs"])
def server(request: pytest.FixtureRequest) -> Server:
    found: Server = request.getfixturevalue(request.param)
    found.make_bucket("manager-bucket")
    return found


def root(server: Server, name: str) -> str:
    return f"{'gs' if server.kind == 'fake-gcs' else 's3'}://manager-bucket/{name}"


@pytest.mark.parametrize("client", CLIENTS)
def test_a_life_after_another(server: Server, client: str, request: pytest.FixtureRequest) -> None:
    if server.kind == "fake-gcs" and client == "obstore":
        pytest.skip(
            "obstore writes to GCS by the XML API alone, which fake-gcs-server lacks; see tests/storage/gcs_xml.py"
        )
    url, options = root(server, f"runs/{client}"), {**server.storage_options, "client": client}
    weights = Weights(length=300_000)
    with CheckpointManager(url, {"w": weights}, storage_options=options, shard_bytes=2**19, keep=KeepLast(2),
                           memory_budget_bytes=2**22) as manager:  # fmt: skip
        assert manager.restore_latest() is None
        for step in range(1, 5):
            weights.fill(step)
            manager.save(step, metrics={"loss": 1 / step})
            weights.fill(0)
    with CheckpointManager(url, {"w": weights}, storage_options=options, keep=KeepLast(2)) as manager:
        restored = manager.restore_latest()
        assert restored is not None
        assert (restored.step, weights.value()) == (4, 4)
        assert manager.rollback(3).step == 3
        assert weights.value() == 3
    assert [(c.step, c.incarnation) for c in ckptflow.list_checkpoints(url, storage_options=options)] == [
        (3, 1),
        (3, 3),
    ]
    with ckptflow.open_checkpoint(url, storage_options=options) as checkpoint:
        assert checkpoint.verify() == []
        assert float(checkpoint["w/layers/1"][7]) == 3 + 1 / 16


@pytest.mark.parametrize("client", CLIENTS)
def test_no_such_bucket(seaweedfs: Server, client: str) -> None:
    options = {**seaweedfs.storage_options, "client": client}
    with CheckpointManager("s3://no-such-bucket/run", {"w": Weights()}, storage_options=options) as manager:
        with pytest.raises(StorageError, match="no-such-bucket"):
            manager.restore_latest()
        with pytest.raises(StorageError, match="no-such-bucket"):
            manager.save(1)


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("name", ["key", "secret"])
def test_wrong_credentials_are_refused_and_never_printed(
    seaweedfs: Server, client: str, name: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    planted = "PLANTEDSECRETxyz123"
    options: dict[str, Any] = {**seaweedfs.storage_options, "client": client, name: planted}
    with caplog.at_level(logging.DEBUG, "ckptflow"):
        with CheckpointManager("s3://manager-bucket/other", {"w": Weights()}, storage_options=options) as manager:
            with pytest.raises(StorageAccessError) as caught:
                manager.restore_latest()
            assert planted not in repr(manager)
    printed = capfd.readouterr()
    for text in (str(caught.value), repr(caught.value), caplog.text, printed.out, printed.err):
        assert planted not in text
        assert S3_SECRET not in text


def test_credentials_are_not_stored(seaweedfs: Server, tmp_path: Path) -> None:
    seaweedfs.make_bucket("stored-bucket")
    url = "s3://stored-bucket/run"
    with CheckpointManager(url, {"w": Weights()}, storage_options=seaweedfs.storage_options) as manager:
        manager.save(1, metadata={"a": 1})
    from tests.servers import s3_client

    client = s3_client(seaweedfs)
    for item in client.list_objects_v2(Bucket="stored-bucket")["Contents"]:
        body = client.get_object(Bucket="stored-bucket", Key=item["Key"])["Body"].read()
        assert S3_SECRET.encode() not in body
