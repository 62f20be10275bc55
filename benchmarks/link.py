"""A link as to a cloud: a proxy before a server on this machine, with so many bytes per second for each connection.

On loopback one connection is as good as thirty. To S3 or GCS each connection has a rate of its own, each request a
latency, some requests are slow, some are refused: what then counts is how many are under way.

    python -m benchmarks.link [--size-mib 384] [--mb-per-s 12] [--latency-ms 20] [--slow 0.05] [--refused 0.01]

Saves and restores a state through it by each client, with our defaults, and the same bytes by the client alone with 1
to 64 streams: nothing is packed or checked then, and our retries are around it. Prints a table.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import multiprocessing
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any
from urllib.parse import urlsplit

from ckptflow.storage.opening import open_store
from tests.servers import BUCKET, Server, seaweedfs

MIB = 2**20
PIECE_BYTES = 8 * MIB
STREAMS = (1, 4, 16, 32, 64)
CLIENTS = ("obstore", "fsspec")
CHUNK_BYTES = 2**16
MAX_HEAD_BYTES = 2**16
SLOW = 10  # times slower is a slow request
MOST_SPOILED = 3  # times for one request, so that its retries suffice
REFUSAL = (
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
_RANGE = re.compile(rb"(?i)\r\nrange: *[^\r]*")


@dataclass(frozen=True)
class Link:
    """Bytes per second of each connection; seconds before each reply; shares of requests that are slow or refused.

    No request is refused, or cut off, more than `MOST_SPOILED` times.
    """

    bytes_per_s: float
    latency_s: float = 0.0
    jitter: float = 0.0  # of both, to either side
    slow: float = 0.0
    refused: float = 0.0
    at_once: int = 10_000  # requests: what comes while so many are under way is refused
    cut_every: int = 0  # connections: the last of so many is cut off at its first request
    shared_bytes_per_s: float = math.inf  # of all replies together
    seed: int = 0


@contextlib.contextmanager
def linked(host: str, port: int, link: Link) -> Iterator[int]:
    """The port on loopback at which the server is found behind such a link, in a process of its own."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(host, port, link, theirs), daemon=True)
    process.start()
    try:
        yield ours.recv()
    finally:
        process.terminate()
        process.join()


def _serve(host: str, port: int, link: Link, ready: Connection) -> None:
    async def serve() -> None:
        traffic = _Traffic(link)

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await _Joint(link, traffic, reader, writer).carry(host, port)

        server = await asyncio.start_server(accept, "127.0.0.1", 0, limit=MAX_HEAD_BYTES)
        ready.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(serve())


class _Traffic:
    """All connections together: what is under way, and which requests are spoiled."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self.chance = random.Random(link.seed)
        self.under_way = 0
        self._connections = 0
        self.pace = _Pace()  # of all replies together
        self._spoiled: Counter[bytes] = Counter()

    def is_next_cut(self) -> bool:
        """Of a new connection: whether it will be cut off."""
        self._connections += 1
        return bool(self._link.cut_every) and self._connections % self._link.cut_every == 0

    def is_refused(self, head: bytes) -> bool:
        is_full = self.under_way >= self._link.at_once
        return (self.chance.random() < self._link.refused or is_full) and self.may_spoil(head)

    def may_spoil(self, head: bytes) -> bool:
        found = _RANGE.search(head)
        request = head.partition(b"\r\n")[0] + (found[0] if found else b"")
        self._spoiled[request] += 1
        return self._spoiled[request] <= MOST_SPOILED


class _Joint:
    """One connection of a client, and the one to the server that it stands for."""

    def __init__(
        self, link: Link, traffic: _Traffic, client: asyncio.StreamReader, to_client: asyncio.StreamWriter
    ) -> None:
        self._link = link
        self._traffic = traffic
        self._client = client
        self._to_client = to_client
        self._rate = link.bytes_per_s
        self._latency_s = 0.0  # before the next byte of a reply
        self._is_cut = traffic.is_next_cut()
        self._is_under_way = False
        self._reply_left_bytes = 0

    async def carry(self, host: str, port: int) -> None:
        """Until either side ends it."""
        server, to_server = await asyncio.open_connection(host, port)
        replies = asyncio.create_task(self._replies(server))
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            while True:
                await self._request(to_server)
        for writer in (to_server, self._to_client):
            writer.close()
        await asyncio.wait([replies])
        self._count(is_under_way=False)

    def _count(self, *, is_under_way: bool) -> None:
        """Whether this connection has a request under way, for those that come on others."""
        self._traffic.under_way += is_under_way - self._is_under_way
        self._is_under_way = is_under_way

    async def _request(self, to_server: asyncio.StreamWriter) -> None:
        head = await self._client.readuntil(b"\r\n\r\n")
        found = _LENGTH.search(head)
        left = int(found[1]) if found else 0
        if self._is_cut and self._traffic.may_spoil(head):
            raise ConnectionAbortedError
        chance = self._traffic.chance
        varied = chance.uniform(1 - self._link.jitter, 1 + self._link.jitter)
        self._rate = self._link.bytes_per_s * varied / (SLOW if chance.random() < self._link.slow else 1)
        is_refused = self._traffic.is_refused(head)
        self._count(is_under_way=not is_refused)
        if not is_refused:
            to_server.write(head)
        pace = _Pace()
        while left:
            data = await self._client.read(min(left, CHUNK_BYTES))
            if not data:
                raise asyncio.IncompleteReadError(b"", left)
            left -= len(data)
            await pace.wait(len(data), self._rate)
            if not is_refused:
                to_server.write(data)
                await to_server.drain()
        self._latency_s = self._link.latency_s * varied
        if is_refused:
            await asyncio.sleep(self._latency_s)
            length = (
                f"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nContent-Length: {len(REFUSAL)}\r\n\r\n"
            )
            self._to_client.write(length.encode() + REFUSAL)
            await self._to_client.drain()

    async def _replies(self, server: asyncio.StreamReader) -> None:
        pace = _Pace()
        with contextlib.suppress(OSError):
            while data := await server.read(4 * CHUNK_BYTES):
                latency_s, self._latency_s = self._latency_s, 0.0
                if latency_s:
                    await asyncio.sleep(latency_s)
                await pace.wait(len(data), self._rate)
                await self._traffic.pace.wait(len(data), self._link.shared_bytes_per_s)
                self._to_client.write(data)
                await self._to_client.drain()
                if self._is_last_of_reply(data):
                    self._count(is_under_way=False)
        self._to_client.close()

    def _is_last_of_reply(self, data: bytes) -> bool:
        """By the length that a reply says; one that says none counts as over at once."""
        if self._reply_left_bytes <= 0:
            head, _, data = data.partition(b"\r\n\r\n")
            found = _LENGTH.search(head)
            self._reply_left_bytes = int(found[1]) if found else 0
        self._reply_left_bytes -= len(data)
        return self._reply_left_bytes <= 0


class _Pace:
    """Waits so that bytes go at a rate, to within some milliseconds."""

    def __init__(self) -> None:
        self._free_at_s = 0.0

    async def wait(self, size_bytes: int, bytes_per_s: float) -> None:
        now_s = asyncio.get_running_loop().time()
        self._free_at_s = max(self._free_at_s, now_s) + size_bytes / bytes_per_s
        if self._free_at_s - now_s > 0.004:
            await asyncio.sleep(self._free_at_s - now_s)


def timed(do: Callable[[], object]) -> float:
    began_s = time.monotonic()
    do()
    return time.monotonic() - began_s


def alone(url: str, options: dict[str, Any], size_bytes: int, streams: int) -> tuple[float, float]:
    """Seconds to write and to read so many bytes in pieces, `streams` at once, by the client and our retries."""
    store = open_store(url, options)
    buffers: SimpleQueue[memoryview] = SimpleQueue()
    for _ in range(streams):
        buffers.put(memoryview(bytearray(random.Random(0).randbytes(PIECE_BYTES))))

    def put(number: int) -> None:
        buffer = buffers.get()
        store.put(f"piece-{number}", buffer)
        buffers.put(buffer)

    def get(number: int) -> None:
        buffer = buffers.get()
        store.get(f"piece-{number}", buffer)
        buffers.put(buffer)

    numbers = range(size_bytes // PIECE_BYTES)
    with contextlib.closing(store), ThreadPoolExecutor(streams) as threads:
        found = timed(lambda: list(threads.map(put, numbers))), timed(lambda: list(threads.map(get, numbers)))
        store.delete([f"piece-{number}" for number in numbers])
    return found


def ours(url: str, options: dict[str, Any], size_bytes: int) -> tuple[float, float]:
    """Seconds of a save and of a restore with the defaults, each by a manager that has found no number yet."""
    import tensorflow as tf

    from ckptflow import CheckpointManager

    count = size_bytes // PIECE_BYTES
    values = tf.random.Generator.from_seed(0)
    state = {f"variable{i}": tf.Variable(values.normal([PIECE_BYTES // 4])) for i in range(count)}
    with CheckpointManager(url, state, storage_options=options) as manager:
        save_s = timed(lambda: manager.save(1).result())
    with CheckpointManager(url, state, storage_options=options) as manager:
        restore_s = timed(manager.restore_latest)
    return save_s, restore_s


def compare(server: Server, client: str, link: Link, size_bytes: int) -> Iterator[tuple[str, float, float]]:
    """What was measured, and the seconds of a save and of a restore."""
    there = urlsplit(server.endpoint)
    with linked(there.hostname or "", there.port or 0, link) as port:
        given = server.storage_options["client_kwargs"] | {"endpoint_url": f"http://127.0.0.1:{port}"}
        options = server.storage_options | {"client_kwargs": given, "client": client}
        for streams in STREAMS:
            yield f"{client} alone, {streams} at once", *alone(f"s3://{BUCKET}/alone", options, size_bytes, streams)
        yield f"ckptflow by {client}", *ours(f"s3://{BUCKET}/{client}", options, size_bytes)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.link")
    parser.add_argument("--size-mib", type=int, default=384)
    parser.add_argument("--mb-per-s", type=float, default=12.0, help="of each connection")
    parser.add_argument("--latency-ms", type=float, default=20.0)
    parser.add_argument("--slow", type=float, default=0.0, help=f"the share of requests that take {SLOW} times as long")
    parser.add_argument("--refused", type=float, default=0.0, help="the share of requests that get a 503")
    parser.add_argument("--client", action="append", choices=CLIENTS, help="may be repeated; default: each")
    given = parser.parse_args()
    link = Link(given.mb_per_s * 1e6, given.latency_ms / 1000, slow=given.slow, refused=given.refused)
    with seaweedfs() as server:
        server.make_bucket(BUCKET)
        for client in given.client or CLIENTS:
            found = list(compare(server, client, link, given.size_mib * MIB))
            best_save_s = min(save_s for _, save_s, _ in found[:-1])
            best_restore_s = min(restore_s for _, _, restore_s in found[:-1])
            for name, save_s, restore_s in found:
                ratios = f"{save_s / best_save_s:5.2f} x  {restore_s / best_restore_s:5.2f} x"
                print(f"{name:28} save {save_s:6.2f} s  restore {restore_s:6.2f} s  {ratios}", flush=True)


if __name__ == "__main__":
    main()
