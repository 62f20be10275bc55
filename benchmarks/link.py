"""A link as to a cloud: a proxy before a server on this machine, with so many bytes per second for each connection.

On loopback one connection is as good as thirty. To S3 or GCS each connection has a rate of its own, each request a
latency, some requests are slow, some are refused: what then counts is how many are under way.

    python -m benchmarks.link [--streams 64] [--size-mib 512]

says how much the proxy itself can carry here: it must not be what is measured.

A connection is a thread, which does one request after the other. Bytes go from socket to socket by `splice`, without
becoming Python's, and the kernel paces them (SO_MAX_PACING_RATE): 1 GB/s on two cores of a virtual machine, where the
proxy takes 0.27 CPU-s per GiB.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import math
import multiprocessing
import os
import random
import re
import resource
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection

MIB = 2**20
MAX_HEAD_BYTES = 2**16
SLOW = 10  # times slower is a slow request
MOST_SPOILED = 3  # times for one request, so that its retries suffice
REFUSAL = (
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)
_SO_MAX_PACING_RATE = 47  # Linux; Python has no name for it
_WAITING_BYTES = 2**17  # in the kernel between a client that sends and the server: what is more would not be paced
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
_RANGE = re.compile(rb"(?i)\r\nrange: *[^\r]*")
_EXPECT = re.compile(rb"(?i)\r\nexpect: *100-continue")
_CHUNKED = re.compile(rb"(?i)\r\ntransfer-encoding: *chunked")


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
        theirs.close()  # else a process that ends before it has said its port is waited for without end
        yield ours.recv()
    finally:
        process.terminate()
        process.join()


def _serve(host: str, port: int, link: Link, ready: Connection) -> None:
    traffic = _Traffic(link)
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _WAITING_BYTES)  # of each connection that it accepts
        listener.bind(("127.0.0.1", 0))
        listener.listen(512)
        ready.send(listener.getsockname()[1])
        while True:
            client, _ = listener.accept()
            joint = _Joint(link, traffic, client, (host, port))
            threading.Thread(target=joint.carry, daemon=True).start()


class _Traffic:
    """All connections together: what is under way, and which requests are spoiled. Thread-safe."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._chance = random.Random(link.seed)
        self._under_way = 0
        self._connections = 0
        self._free_at_s = 0.0  # when what all connections share has carried what was drawn
        self._spoiled: Counter[bytes] = Counter()
        self._lock = threading.Lock()

    def is_next_cut(self) -> bool:
        """Of a new connection: whether it will be cut off."""
        with self._lock:
            self._connections += 1
            return bool(self._link.cut_every) and self._connections % self._link.cut_every == 0

    def draw(self) -> tuple[float, float]:
        """The bytes per second and the latency of a new request."""
        with self._lock:
            varied = self._chance.uniform(1 - self._link.jitter, 1 + self._link.jitter)
            slower = SLOW if self._chance.random() < self._link.slow else 1
            return self._link.bytes_per_s * varied / slower, self._link.latency_s * varied

    def wait_for_share(self, size_bytes: int) -> None:
        """Until the link that all replies share has room for so many bytes more, to within some milliseconds."""
        with self._lock:
            now_s = time.monotonic()
            self._free_at_s = max(self._free_at_s, now_s) + size_bytes / self._link.shared_bytes_per_s
            wait_s = self._free_at_s - now_s
        if wait_s > 0.004:
            time.sleep(wait_s)

    @contextlib.contextmanager
    def under_way(self, head: bytes) -> Iterator[bool]:
        """A request from here to the end of its reply; whether it is taken, and not refused."""
        with self._lock:
            is_full = self._under_way >= self._link.at_once
            is_refused = (self._chance.random() < self._link.refused or is_full) and self._may_spoil(head)
            self._under_way += not is_refused
        try:
            yield not is_refused
        finally:
            with self._lock:
                self._under_way -= not is_refused

    def is_cut(self, head: bytes) -> bool:
        """Of a request on a connection that is to be cut off: whether that may be."""
        with self._lock:
            return self._may_spoil(head)

    def _may_spoil(self, head: bytes) -> bool:
        found = _RANGE.search(head)
        request = head.partition(b"\r\n")[0] + (found[0] if found else b"")
        self._spoiled[request] += 1
        return self._spoiled[request] <= MOST_SPOILED


class _Wire:
    """A socket, and what was read of it beyond a head."""

    def __init__(self, made: socket.socket) -> None:
        self.socket = made
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._rest = b""

    def head(self) -> bytes:
        """Up to the empty line; EOFError at the end."""
        while (end := self._rest.find(b"\r\n\r\n")) < 0:
            data = self.socket.recv(MAX_HEAD_BYTES)
            if not data or len(self._rest) > MAX_HEAD_BYTES:
                raise EOFError
            self._rest += data
        head, self._rest = self._rest[: end + 4], self._rest[end + 4 :]
        return head

    def take(self) -> int:
        """How many bytes were read beyond the head; they are gone."""
        count, self._rest = len(self._rest), b""
        return count

    def pace(self, bytes_per_s: float) -> None:
        """What is sent from here on goes at this rate."""
        rate = min(max(1, int(bytes_per_s)), 2**31 - 1)
        self.socket.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, rate)

    def pass_on(
        self, to: _Wire, size_bytes: int, pipe: tuple[int, int], wait: Callable[[int], None] = lambda size_bytes: None
    ) -> None:
        """The next bytes of this one, to the other; `wait` is called before they go."""
        begun, self._rest = self._rest[:size_bytes], self._rest[size_bytes:]
        to.socket.sendall(begun)
        left = size_bytes - len(begun)
        into, out = pipe[1], pipe[0]
        while left:
            count = os.splice(self.socket.fileno(), into, min(left, MIB))
            if not count:
                raise EOFError
            left -= count
            wait(count)
            while count:
                count -= os.splice(out, to.socket.fileno(), count)

    def pass_chunks_on(self, to: _Wire) -> None:
        """A body in chunks, to its end; small ones alone are sent so."""
        data = self._rest
        while not data.endswith(b"0\r\n\r\n"):
            more = self.socket.recv(MAX_HEAD_BYTES)
            if not more:
                raise EOFError
            data += more
        self._rest = b""
        to.socket.sendall(data)

    def drop(self, size_bytes: int, bytes_per_s: float) -> None:
        """The next bytes of this one, to nobody, at this rate."""
        left = size_bytes - len(self._rest[:size_bytes])
        self._rest = self._rest[size_bytes:]
        while left:
            data = self.socket.recv(min(left, _WAITING_BYTES))
            if not data:
                raise EOFError
            left -= len(data)
            time.sleep(len(data) / bytes_per_s)


class _Joint:
    """One connection of a client. Each request has one to the server of its own: that ends those that are idle."""

    def __init__(self, link: Link, traffic: _Traffic, client: socket.socket, server: tuple[str, int]) -> None:
        self._link = link
        self._traffic = traffic
        self._client = client
        self._server = server

    def carry(self) -> None:
        """Until either side ends it."""
        is_cut = self._traffic.is_next_cut()
        pipe = os.pipe()
        with contextlib.suppress(OSError):
            fcntl.fcntl(pipe[1], fcntl.F_SETPIPE_SZ, MIB)
        try:
            with self._client, contextlib.suppress(OSError, EOFError):
                near = _Wire(self._client)
                while True:
                    self._request(near, pipe, is_cut=is_cut)
        finally:
            os.close(pipe[0])
            os.close(pipe[1])

    def _request(self, near: _Wire, pipe: tuple[int, int], *, is_cut: bool) -> None:
        head = near.head()
        if is_cut and self._traffic.is_cut(head):
            raise EOFError
        found = _LENGTH.search(head)
        size_bytes = int(found[1]) if found else 0
        rate, latency_s = self._traffic.draw()
        if _EXPECT.search(head):
            near.socket.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            head = _EXPECT.sub(b"", head)
        near.pace(rate)
        with self._traffic.under_way(head) as is_taken:
            if not is_taken:
                near.drop(size_bytes, rate)
                time.sleep(latency_s)
                length = b"Content-Type: application/xml\r\nContent-Length: %d\r\n\r\n" % len(REFUSAL)
                near.socket.sendall(b"HTTP/1.1 503 Slow Down\r\n" + length + REFUSAL)
                return
            with socket.create_connection(self._server) as server:
                server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _WAITING_BYTES)
                far = _Wire(server)
                far.pace(rate)
                far.socket.sendall(head)
                near.pass_on(far, size_bytes, pipe)
                self._reply(far, near, pipe, latency_s, is_bare=head.startswith(b"HEAD "))

    def _reply(self, far: _Wire, near: _Wire, pipe: tuple[int, int], latency_s: float, *, is_bare: bool) -> None:
        reply = far.head()
        time.sleep(latency_s)
        near.socket.sendall(reply)
        if is_bare or reply.split(b" ", 2)[1] in (b"204", b"304"):
            return
        found = _LENGTH.search(reply)
        if found:
            far.pass_on(near, int(found[1]), pipe, self._traffic.wait_for_share)
        elif _CHUNKED.search(reply):
            far.pass_chunks_on(near)
        else:
            raise EOFError  # it ends with its connection: nothing that is measured does


def capacity(streams: int, size_bytes: int) -> tuple[float, float]:
    """Bytes per second that come through a link without limits from a server that only sends, and the proxy's CPU-s
    per GiB."""
    body = bytes(8 * MIB)
    reply = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError, EOFError):
            wire = _Wire(connection)
            while wire.head():
                connection.sendall(reply)
                connection.sendall(body)

    def accept(listener: socket.socket) -> None:
        while True:
            threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    def fetch(port: int, requests: int) -> None:
        into = bytearray(MIB)
        with socket.create_connection(("127.0.0.1", port)) as connection:
            wire = _Wire(connection)
            for _ in range(requests):
                connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
                wire.head()
                left = len(body) - wire.take()
                while left:
                    left -= connection.recv_into(into, min(left, MIB))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, args=(listener,), daemon=True).start()
        with (
            linked("127.0.0.1", listener.getsockname()[1], Link(100e9)) as port,
            ThreadPoolExecutor(streams) as threads,
        ):
            requests = max(1, size_bytes // len(body) // streams)
            began_s = time.perf_counter()
            list(threads.map(lambda _: fetch(port, requests), range(streams)))
            taken_s = time.perf_counter() - began_s
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    moved_bytes = requests * streams * len(body)
    return moved_bytes / taken_s, (used.ru_utime + used.ru_stime) / moved_bytes * 2**30


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.link")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--size-mib", type=int, default=512)
    given = parser.parse_args()
    bytes_per_s, cpu_s_per_gib = capacity(given.streams, given.size_mib * MIB)
    print(f"{bytes_per_s / 1e6:,.0f} MB/s by {given.streams} connections; {cpu_s_per_gib:.2f} CPU-s per GiB")


if __name__ == "__main__":
    main()
