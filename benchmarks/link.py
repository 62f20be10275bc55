"""A link as to a cloud: a proxy before a server on this machine, with so many bytes per second for each connection.

On loopback one connection is as good as thirty. To S3 or GCS each connection has a rate of its own, each request a
latency, some requests are slow, some are refused: what then counts is how many are under way.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection

CHUNK_BYTES = 2**16
MAX_HEAD_BYTES = 2**16
SLOW = 10  # times slower is a slow request
REFUSAL = (
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")


@dataclass(frozen=True)
class Link:
    """Bytes per second of each connection; seconds before each reply; shares of requests that are slow or refused."""

    bytes_per_s: float
    latency_s: float = 0.0
    jitter: float = 0.0  # of both, to either side
    slow: float = 0.0
    refused: float = 0.0
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
        chance = random.Random(link.seed)

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await _Joint(link, chance, reader, writer).carry(host, port)

        server = await asyncio.start_server(accept, "127.0.0.1", 0, limit=MAX_HEAD_BYTES)
        ready.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(serve())


class _Joint:
    """One connection of a client, and the one to the server that it stands for."""

    def __init__(
        self, link: Link, chance: random.Random, client: asyncio.StreamReader, to_client: asyncio.StreamWriter
    ) -> None:
        self._link = link
        self._chance = chance
        self._client = client
        self._to_client = to_client
        self._rate = link.bytes_per_s
        self._latency_s = 0.0  # before the next byte of a reply

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

    async def _request(self, to_server: asyncio.StreamWriter) -> None:
        head = await self._client.readuntil(b"\r\n\r\n")
        found = _LENGTH.search(head)
        left = int(found[1]) if found else 0
        varied = self._chance.uniform(1 - self._link.jitter, 1 + self._link.jitter)
        self._rate = self._link.bytes_per_s * varied / (SLOW if self._chance.random() < self._link.slow else 1)
        is_refused = self._chance.random() < self._link.refused
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
            while data := await server.read(CHUNK_BYTES):
                latency_s, self._latency_s = self._latency_s, 0.0
                if latency_s:
                    await asyncio.sleep(latency_s)
                await pace.wait(len(data), self._rate)
                self._to_client.write(data)
                await self._to_client.drain()
        self._to_client.close()


class _Pace:
    """Waits so that bytes go at a rate, to within some milliseconds."""

    def __init__(self) -> None:
        self._free_at_s = 0.0

    async def wait(self, size_bytes: int, bytes_per_s: float) -> None:
        now_s = asyncio.get_running_loop().time()
        self._free_at_s = max(self._free_at_s, now_s) + size_bytes / bytes_per_s
        if self._free_at_s - now_s > 0.004:
            await asyncio.sleep(self._free_at_s - now_s)
