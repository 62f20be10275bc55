"""The limit on an object storage: the same bytes in objects of the same size, by the client alone."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np

from benchmarks.peers.base import Peer, Point, divided, each_at_once


class Client(Peer):
    """Whole-object puts and gets, `concurrency` at once, from memory that is there; nothing is packed or checked."""

    is_limit = True
    note = "no tensors, no checksums of ours; what the client itself checks"

    def __init__(self, point: Point) -> None:
        size_bytes = min(point.settings["shard_bytes"], point.size_bytes)
        self._sizes = divided(point.size_bytes, size_bytes)
        self._buffers = [mmap.mmap(-1, size_bytes) for _ in range(point.settings["concurrency"])]
        generator = np.random.default_rng(0)
        for buffer in self._buffers:
            np.frombuffer(buffer, np.uint8)[:] = generator.integers(0, 256, size_bytes, np.uint8)
        self.connect(point)

    def save(self, round_number: int) -> None:
        each_at_once(self._sizes, self._buffers, lambda i, data: self.put(str(i), data))

    def restore(self) -> None:
        each_at_once(self._sizes, self._buffers, lambda i, into: self.get(str(i), into))

    def connect(self, point: Point) -> None:
        raise NotImplementedError

    def put(self, key: str, data: memoryview) -> None:
        raise NotImplementedError

    def get(self, key: str, into: memoryview) -> None:
        """Reads the whole object."""
        raise NotImplementedError


class Raw(Client):
    """The client below a store of ours, as `ckptflow bench` takes it."""

    client: str

    def connect(self, point: Point) -> None:
        from ckptflow.storage.raw import raw_client
        from ckptflow.storage.store import open_store

        raw = raw_client(open_store(point.url, {**point.options, "client": self.client}))
        self.put, self.get = raw.put, raw.get  # type: ignore[method-assign]


class Obstore(Raw):
    """The Rust client of the extra `fast`."""

    client = "obstore"


class Fsspec(Raw):
    """s3fs or gcsfs alone, by the URL. It wants bytes: a copy that ckptflow has to make as well."""

    client = "fsspec"


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
