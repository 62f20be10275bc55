"""Saves and restores over bad links to a real server: every value comes back, and nothing else is left there."""

from __future__ import annotations

import uuid
from urllib.parse import urlsplit

import numpy as np
import pytest
import tensorflow as tf

from benchmarks import link
from benchmarks.link import Link, linked
from ckptflow import CheckpointManager, KeepLast
from ckptflow.format.layout import MANIFEST_NAME
from ckptflow.format.manifest import Manifest, decode
from ckptflow.storage.opening import open_store
from tests import servers
from tests.servers import BUCKET

SHARD_BYTES = 2**17
RATE = 50e6
LINKS = {
    "jitter": Link(RATE, 0.002, jitter=0.9),
    "one in a hundred refused": Link(RATE, refused=0.01),
    "throttled to one stream": Link(RATE, at_once=1),
    "every tenth connection cut off": Link(RATE, cut_every=10),
    "all of it": Link(RATE, 0.002, jitter=0.9, slow=0.05, refused=0.01, at_once=4, cut_every=10),
}


def state(seed: int) -> dict[str, tf.Variable]:
    """24 shards, and slices of a tensor in several of them."""
    numbers = np.random.default_rng(seed)
    return {f"v{i}": tf.Variable(numbers.standard_normal(100_000, np.float32)) for i in range(8)}


@pytest.mark.parametrize("client", ["obstore", "fsspec"])
@pytest.mark.parametrize("name", LINKS)
def test_every_value_comes_back_and_nothing_else_is_left(seaweedfs: servers.Server, name: str, client: str) -> None:
    there = urlsplit(seaweedfs.endpoint)
    near = {**seaweedfs.storage_options, "client": client}
    url = f"s3://{BUCKET}/link-{uuid.uuid4().hex}"
    with linked(there.hostname or "", there.port or 0, LINKS[name]) as port:
        far = {**seaweedfs.options_at(f"http://127.0.0.1:{port}"), "client": client}

        def manager(held: dict[str, tf.Variable]) -> CheckpointManager:
            return CheckpointManager(url, held, keep=KeepLast(2), shard_bytes=SHARD_BYTES, storage_options=far)

        saved = state(0)
        with manager(saved) as saving:
            for step in (1, 2, 3):
                saved["v0"].assign_add(tf.ones_like(saved["v0"]))
                saving.save(step)
        restored = state(1)
        with manager(restored) as restoring:
            assert restoring.restore_latest() is not None
    for key, variable in saved.items():
        np.testing.assert_array_equal(restored[key].numpy(), variable.numpy())

    store = open_store(url, near)
    found = {entry.key: entry.size_bytes for entry in store.list()}
    manifests = sorted(key for key in found if key.endswith(MANIFEST_NAME))
    assert [key.partition("-")[0] for key in manifests] == ["000000000002", "000000000003"]
    expected = {"lineage/000001.json", "lineage/000002.json", *manifests}
    for key in manifests:
        text = bytearray(found[key])
        store.get(key, memoryview(text))
        folder = key.rpartition("/")[0]
        expected |= {f"{folder}/{shard.name}" for shard in decode(bytes(text), Manifest, key).shards}
    assert {key for key in found if "receipt" not in key} == expected
    assert "Uploads" not in servers.s3_client(seaweedfs).list_multipart_uploads(Bucket=BUCKET, Prefix=url[5:])
    store.close()


def test_a_link_that_ends_before_it_is_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "_serve", print)  # and no more
    with pytest.raises(EOFError), linked("127.0.0.1", 1, Link(1.0)):
        pass
