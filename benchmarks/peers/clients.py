"""The limit on an object storage: the same bytes in objects of the same size, by the client alone."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from benchmarks.peers.base import Peer, Point


class Client(Peer):
    """Whole-object puts and gets, `concurrency` at once, from memory that is there; nothing is packed or checked."""

    is_limit = True
    note = "no tensors, no checksums of ours; what the client itself checks"

    def __init__(self, point: Point) -> None:
        self.bucket, _, self.prefix = point.url.partition("://")[2].partition("/")
        self.options = point.options
        self._concurrency = point.settings["concurrency"]
        size_bytes = min(point.settings["shard_bytes"], point.size_bytes)
        whole, rest = divmod(point.size_bytes, size_bytes)
        self._sizes = [size_bytes] * whole + ([rest] if rest else [])
        self._buffers = [mmap.mmap(-1, size_bytes) for _ in range(self._concurrency)]
        generator = np.random.default_rng(0)
        for buffer in self._buffers:
            np.frombuffer(buffer, np.uint8)[:] = generator.integers(0, 256, size_bytes, np.uint8)
        self.connect()

    def save(self, round_number: int) -> None:
        self._each(lambda i, data: self.put(f"{self.prefix}/{i}", data))

    def restore(self) -> None:
        self._each(lambda i, data: self.get(f"{self.prefix}/{i}", data))

    def connect(self) -> None:
        raise NotImplementedError

    def put(self, key: str, data: memoryview) -> None:
        raise NotImplementedError

    def get(self, key: str, into: memoryview) -> None:
        """Reads the whole object; into the memory given, where the client can."""
        raise NotImplementedError

    def _each(self, do: Callable[[int, memoryview], None]) -> None:
        def run(thread: int) -> None:
            view = memoryview(self._buffers[thread])
            for i in range(thread, len(self._sizes), self._concurrency):
                do(i, view[: self._sizes[i]])

        with ThreadPoolExecutor(self._concurrency) as pool:
            list(pool.map(run, range(self._concurrency)))


class Obstore(Client):
    """The Rust client of the extra `fast`."""

    def connect(self) -> None:
        from obstore.store import S3Store

        client = self.options["client_kwargs"]
        self._store = S3Store(
            self.bucket,
            endpoint=client["endpoint_url"],
            region=client["region_name"],
            access_key_id=self.options["key"],
            secret_access_key=self.options["secret"],
            client_options={"allow_http": True, "timeout": "300s"},
        )

    def put(self, key: str, data: memoryview) -> None:
        import obstore

        obstore.put(self._store, key, data, use_multipart=False)

    def get(self, key: str, into: memoryview) -> None:
        import obstore

        if len(obstore.get_range(self._store, key, start=0, length=len(into))) != len(into):
            raise OSError("short read")


class Fsspec(Client):
    """s3fs or gcsfs alone."""

    scheme = "s3"

    def connect(self) -> None:
        import fsspec

        self._file_system: Any = fsspec.filesystem(self.scheme, **self.options)

    def put(self, key: str, data: memoryview) -> None:
        # bytes, as its parts need them: a copy that ckptflow has to make as well
        self._file_system.pipe_file(f"{self.bucket}/{key}", bytes(data), chunksize=max(len(data), 5 << 20))

    def get(self, key: str, into: memoryview) -> None:
        if len(self._file_system.cat_file(f"{self.bucket}/{key}", start=0, end=len(into))) != len(into):
            raise OSError("short read")


class Gcsfs(Fsspec):
    scheme = "gs"


class Boto3(Client):
    """AWS's own client for Python."""

    def connect(self) -> None:
        import boto3
        from botocore.config import Config

        client = self.options["client_kwargs"]
        self._client: Any = boto3.client(
            "s3",
            endpoint_url=client["endpoint_url"],
            region_name=client["region_name"],
            aws_access_key_id=self.options["key"],
            aws_secret_access_key=self.options["secret"],
            config=Config(max_pool_connections=self._concurrency, s3={"addressing_style": "path"}),
        )

    def put(self, key: str, data: memoryview) -> None:
        self._client.put_object(Bucket=self.bucket, Key=key, Body=bytes(data))

    def get(self, key: str, into: memoryview) -> None:
        body = self._client.get_object(Bucket=self.bucket, Key=key)["Body"]
        if len(body.read()) != len(into):
            raise OSError("short read")
