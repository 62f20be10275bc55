"""One connection between two workers: who proves to whom that it is of this job, and how bytes are asked for.

    owner    -> fetcher   magic, nonce
    fetcher  -> owner     its number, nonce, HMAC of the token over both nonces and both numbers
    owner    -> fetcher   another HMAC of the same: it knows the token, too
    fetcher  -> owner     a range (phase, shard, begin, end), again and again
    owner    -> fetcher   WAIT, as often as needed; then DATA, a length and the bytes; or GONE

The token itself is never sent here. All frames have a fixed size, all waits a limit.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import socket
import struct
from collections.abc import Callable

from ckptflow.peers.loans import GoneError, Key, Loans
from ckptflow.stops import awake_s
from ckptflow.transfer.streams import StoppedError

TOKEN_BYTES = 32
CONNECT_S = 2.0
SILENT_S = 5.0  # without a byte
SLOWEST_BYTES_PER_S = 2**20  # after the first seconds of a transfer; of a fetcher with a faster storage, more
LONGEST_WAIT_S = 300.0  # for one range, while its owner says that it goes on: one reads a slow storage, not all
WAIT_EVERY_S = 0.5

_MAGIC = b"ckptflow peers 1"
_NONCE_BYTES = 32
_MAC_BYTES = hashlib.sha256().digest_size
_HELLO = struct.Struct(f">I{_NONCE_BYTES}s{_MAC_BYTES}s")
_REQUEST = struct.Struct(">QIQQ")
_REPLY = struct.Struct(">BQ")
_WAIT, _DATA, _GONE = range(3)
_LOOK_S = 0.25


class LinkError(Exception):
    """Another worker is not there, does not keep to what is above, is too slow, or has nothing to give."""


class SilentError(LinkError):
    """Another worker has neither sent nor taken a byte for `silent_s` seconds."""

    def __init__(self, text: str, silent_s: float) -> None:
        super().__init__(text)
        self.silent_s = silent_s


class ConnectError(LinkError):
    """There is no way to another worker: nobody accepts, or who does is not that worker, or something between."""


class Link:
    """A fetcher's end. For one thread at a time; whatever it raises, it is not to be used any more."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._came_bytes = 0  # in all transfers so far, and how long these took
        self._took_s = 0.0

    @classmethod
    def connect(cls, address: str, port: int, token: bytes, worker: int, owner: int) -> Link:
        """Raises `ConnectError`, also for another side that accepts and says nothing, or does not know the token."""
        try:
            connection = socket.create_connection((address, port), CONNECT_S)
        except (OSError, ValueError, OverflowError) as error:  # the latter two: no name, or no port
            raise ConnectError(f"cannot be reached at {address} port {port}: {error}") from error
        link = cls(connection)
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link._greet(token, worker, owner)
        except (LinkError, OSError) as error:
            link.close()
            raise ConnectError(f"{error}, at {address} port {port}") from error
        except BaseException:
            link.close()
            raise
        return link

    def pull(
        self,
        key: Key,
        into: memoryview,
        is_stopped: Callable[[], bool],
        waits: Callable[[], None] = lambda: None,
        least_bytes_per_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """Fills it; `waits` is called each time the owner says that it goes on.

        Raises `LinkError`, also for one that sends less than `least_bytes_per_s`, after the first seconds, in this
        transfer or in all so far; `GoneError` if the owner cannot give it, and `StoppedError`.
        """
        if self._came_bytes < (self._took_s - SILENT_S) * least_bytes_per_s():
            raise LinkError(f"has sent {self._came_bytes:,} bytes in {self._took_s:.0f} s, which storage gives sooner")
        try:
            self._socket.settimeout(SILENT_S)
            self._socket.sendall(_REQUEST.pack(*key))
        except OSError as error:
            raise LinkError(f"has ended the connection: {error}") from error
        until_s = awake_s() + LONGEST_WAIT_S
        frame = bytearray(_REPLY.size)
        while True:
            _receive(self._socket, memoryview(frame), is_stopped)
            kind, size_bytes = _REPLY.unpack(frame)
            if kind == _GONE:
                raise GoneError
            if kind == _DATA and size_bytes == len(into):
                began_s = awake_s()
                _receive(self._socket, into, is_stopped, least_bytes_per_s)
                self._came_bytes += size_bytes
                self._took_s += awake_s() - began_s
                return
            if kind != _WAIT or size_bytes:
                raise LinkError(f"sent an invalid reply: {bytes(frame).hex()}")
            if awake_s() > until_s:
                raise LinkError(f"has had nothing to give for {LONGEST_WAIT_S:g} s")
            waits()

    def close(self) -> None:
        """No other thread may be in a call of it."""
        shut(self._socket)
        self._socket.close()

    def _greet(self, token: bytes, worker: int, owner: int) -> None:
        greeting = bytearray(len(_MAGIC) + _NONCE_BYTES)
        _receive(self._socket, memoryview(greeting), _never)
        if bytes(greeting[: len(_MAGIC)]) != _MAGIC:
            raise LinkError("is not a worker of this job")
        nonces = bytes(greeting[len(_MAGIC) :]) + (mine := os.urandom(_NONCE_BYTES))
        try:
            self._socket.sendall(_HELLO.pack(worker, mine, _mac(token, b"fetcher", nonces, worker, owner)))
        except OSError as error:
            raise LinkError(f"has ended the connection: {error}") from error
        proof = bytearray(_MAC_BYTES)
        _receive(self._socket, memoryview(proof), _never)
        if not hmac.compare_digest(proof, _mac(token, b"owner", nonces, worker, owner)):
            raise LinkError("is not a worker of this job")


def admit(connection: socket.socket, token: bytes, owner: int, world_size: int) -> int:
    """Which worker has come. Raises `LinkError` for whoever does not know the token, within some seconds."""
    nonce = os.urandom(_NONCE_BYTES)
    try:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(SILENT_S)
        connection.sendall(_MAGIC + nonce)
        hello = bytearray(_HELLO.size)
        _receive(connection, memoryview(hello), _never)
        worker, theirs, proof = _HELLO.unpack(hello)
        nonces = nonce + theirs
        is_ours = hmac.compare_digest(proof, _mac(token, b"fetcher", nonces, worker, owner))
        if not is_ours or not 0 <= worker < world_size or worker == owner:
            raise LinkError("does not know the token")
        connection.settimeout(SILENT_S)
        connection.sendall(_mac(token, b"owner", nonces, worker, owner))
    except OSError as error:
        raise LinkError(f"has ended the connection: {error}") from error
    return int(worker)


def serve(connection: socket.socket, worker: int, loans: Loans, is_over: Callable[[], bool]) -> None:
    """Gives a worker that was admitted what it asks for, until it ends the connection or `is_over`.

    Raises `LinkError` for one that breaks off, or takes what it has asked for too slowly; `StoppedError` if it is over.
    """
    frame = bytearray(_REQUEST.size)
    while not is_over():
        if not _begins(connection):
            continue
        _receive(connection, memoryview(frame), is_over)
        _give(connection, Key(*_REQUEST.unpack(frame)), worker, loans, is_over)


def _give(connection: socket.socket, key: Key, worker: int, loans: Loans, is_over: Callable[[], bool]) -> None:
    try:
        while (view := loans.take(key, worker, WAIT_EVERY_S)) is None:
            if is_over():
                return
            _send(connection, _REPLY.pack(_WAIT, 0))
    except GoneError:
        _send(connection, _REPLY.pack(_GONE, 0))
        return
    try:
        _send(connection, _REPLY.pack(_DATA, len(view)))
        _send(connection, view)
    finally:
        loans.done(key, worker)


def shut(connection: socket.socket) -> None:
    """Ends a connection for whoever waits on it. From any thread; who made it closes it: another may get its number."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _mac(token: bytes, role: bytes, nonces: bytes, worker: int, owner: int) -> bytes:
    return hmac.digest(token, role + nonces + struct.pack(">II", worker, owner), "sha256")


def _begins(connection: socket.socket) -> bool:
    """Whether there is something to read, looked for a moment. Raises `LinkError` at the end."""
    connection.settimeout(_LOOK_S)
    try:
        if not connection.recv(1, socket.MSG_PEEK):
            raise LinkError("has ended the connection")
    except TimeoutError:
        return False
    except OSError as error:
        raise LinkError(f"has ended the connection: {error}") from error
    return True


def _receive(
    connection: socket.socket,
    into: memoryview,
    is_stopped: Callable[[], bool],
    least_bytes_per_s: Callable[[], float] = lambda: 0.0,
) -> None:
    """Fills it. Raises `LinkError` at the end of the connection, after seconds without a byte, or with too few."""
    began_s = last_s = awake_s()
    count = 0
    connection.settimeout(_LOOK_S)
    while count < len(into):
        try:
            came = connection.recv_into(into[count:])
            if not came:
                raise LinkError("has ended the connection")
            last_s = awake_s()
            count += came
        except TimeoutError:
            pass
        except OSError as error:
            raise LinkError(f"has ended the connection: {error}") from error
        if is_stopped():
            raise StoppedError
        _check_pace("sent", count, len(into), began_s, last_s, least_bytes_per_s())


def _send(connection: socket.socket, data: bytes | memoryview) -> None:
    """All of it. Raises `LinkError` at the end of the connection, or where it is taken as slowly as that."""
    began_s = last_s = awake_s()
    view, count = memoryview(data), 0
    connection.settimeout(_LOOK_S)
    while count < len(view):
        try:
            count += connection.send(view[count:])
            last_s = awake_s()
        except TimeoutError:
            pass
        except OSError as error:
            raise LinkError(f"has ended the connection: {error}") from error
        _check_pace("taken", count, len(view), began_s, last_s)


def _check_pace(
    has: str, count: int, size_bytes: int, began_s: float, last_s: float, least_bytes_per_s: float = 0.0
) -> None:
    """Raises `LinkError` after seconds without a byte, or with too few."""
    now_s = awake_s()
    if count < size_bytes and now_s - last_s >= SILENT_S:
        raise SilentError(f"has {has} nothing for {SILENT_S:g} s", now_s - last_s)
    if count < min(size_bytes, (now_s - began_s - SILENT_S) * max(SLOWEST_BYTES_PER_S, least_bytes_per_s)):
        raise LinkError(f"has {has} {count:,} of {size_bytes:,} bytes in {now_s - began_s:.0f} s")


def _never() -> bool:
    return False
