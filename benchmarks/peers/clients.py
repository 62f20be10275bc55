"""The raw baselines: the same bytes in pieces, straight to the disk or by an object storage's client alone."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np

from benchmarks.peers.base import Peer, Point, divided, each_at_once
from ckptflow.storage.opening import open_store
from ckptflow.storage.raw import raw_client
from ckptflow.storage.retry import Retries


class Client(Peer):
    """Whole pieces there and back, several at once, from memory that is there; nothing is packed or checked."""

    is_limit = True
    note = "no tensors, no checksums of ours; what the client itself checks"
    piece_bytes = 0  # 0: a shard of the point's settings
    concurrency = 0  # 0: of the point's settings

    def __init__(self, point: Point) -> None:
        piece_bytes = min(self.piece_bytes or point.settings["shard_bytes"], -(-point.size_bytes // 4096) * 4096)
        self._sizes = divided(-(-point.size_bytes // 4096) * 4096, piece_bytes)
        concurrency = self.concurrency or point.settings["concurrency"]
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # a disk takes shared memory 5 % slower
        self._buffers = [mmap.mmap(-1, piece_bytes, flags=private) for _ in range(concurrency)]
        generator = np.random.default_rng(0)
        for buffer in self._buffers:
            np.frombuffer(buffer, np.uint8)[:] = generator.integers(0, 256, piece_bytes, np.uint8)
        self._store = open_store(point.url, {**point.options, **self.options()})
        self._written: list[str] = []
        self._old: list[str] = []
        self.connect(point)

    def save(self, round_number: int) -> None:
        self._old, self._written = self._written, [f"{round_number}-{i}" for i in range(len(self._sizes))]
        each_at_once(self._sizes, self._buffers, lambda i, data: self.put(self._written[i], data))

    def tidy(self) -> None:
        self._store.delete(self._old)

    def restore(self) -> None:
        each_at_once(self._sizes, self._buffers, lambda i, into: self.get(self._written[i], into))

    def close(self) -> None:
        self._store.delete(self._written)
        self._store.close()

    def options(self) -> dict[str, Any]:
        """Of the storage, beside the point's."""
        return {}

    def connect(self, point: Point) -> None:
        raise NotImplementedError

    def put(self, key: str, data: memoryview) -> None:
        raise NotImplementedError

    def get(self, key: str, into: memoryview) -> None:
        """Reads the whole piece."""
        raise NotImplementedError


class Raw(Client):
    """The client below a store of ours, as `ckptflow bench` takes it."""

    def connect(self, point: Point) -> None:
        self._raw, self._retries = raw_client(self._store), Retries()  # boto3 has its own

    def put(self, key: str, data: memoryview) -> None:
        self._retries.run(lambda: self._raw.put(key, data))

    def get(self, key: str, into: memoryview) -> None:
        self._retries.run(lambda: self._raw.get(key, into))


class Device(Raw):
    """Files of 64 MiB, each fsynced, by direct I/O where the file system has it; one or two at once."""

    note = "no tensors, no checksums; direct writes and fsync, buffered where the file system refuses direct ones"
    piece_bytes = 64 << 20
    concurrency = 1


class DeviceTwice(Device):
    """Two at once: some devices need that to show all they can."""

    concurrency = 2


class Obstore(Raw):
    """The Rust client of the extra `fast`."""

    def options(self) -> dict[str, Any]:
        return {"client": "obstore"}


class Fsspec(Raw):
    """s3fs or gcsfs alone, by the URL. It wants bytes: a copy that ckptflow has to make as well."""

    def options(self) -> dict[str, Any]:
        return {"client": "fsspec"}


class Boto3(Client):
    """AWS's own client for Python."""

    def connect(self, point: Point) -> None:
        import boto3
        from botocore.config import Config

        self._bucket, _, self._prefix = point.url.partition("://")[2].partition("/")
        client = point.options["client_kwargs"]
        self._client: Any = boto3.client(
            "s3",
            endpoint_url=client["endpoint_url"],
            region_name=client["region_name"],
            aws_access_key_id=point.options["key"],
            aws_secret_access_key=point.options["secret"],
            config=Config(max_pool_connections=len(self._buffers), s3={"addressing_style": "path"}),
        )

    def put(self, key: str, data: memoryview) -> None:
        self._client.put_object(Bucket=self._bucket, Key=f"{self._prefix}/{key}", Body=bytes(data))

    def get(self, key: str, into: memoryview) -> None:
        body = self._client.get_object(Bucket=self._bucket, Key=f"{self._prefix}/{key}")["Body"]
        if len(body.read()) != len(into):
            raise OSError("short read")
