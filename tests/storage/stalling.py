"""A TCP proxy in front of a real server: connections stand still, or trickle, from a chosen byte of a request on."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import psutil

_STEP_BYTES = 2**16
_KERNEL_BYTES = 2**16  # what a connection's own buffers hold: what is sent is then soon what has arrived

Side = Literal["upload", "download", "both"]


@dataclass
class Stall:
    """What becomes of a connection, from the request on whose line contains `marker`.

    After `after_bytes` from there, nothing more goes to that side; or, with `bytes_per_s`, no more than that. On the
    side "both", with 0 bytes, the request does not reach the server, and nothing is said.
    """

    marker: bytes
    side: Side
    after_bytes: int = 0
    bytes_per_s: int = 0
    times: int = 1


class StallingProxy:
    """Forwards TCP to `endpoint`; `stall` says what becomes of the next requests."""

    def __init__(self, server_endpoint: str, scheme: str = "http") -> None:
        host, _, port = server_endpoint.partition("://")[2].partition(":")
        self._server = (host, int(port))
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _KERNEL_BYTES)  # before it listens: inherited
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(64)
        self.endpoint = f"{scheme}://127.0.0.1:{self._listener.getsockname()[1]}"
        self._guard = threading.Lock()
        self._stalls: list[Stall] = []
        self._sockets: list[socket.socket] = []
        self.is_deaf = False  # connections are accepted, and that is all
        self.struck = 0  # requests and connections that were stalled
        self.ports: list[int] = []  # of the client, where these came from
        self.heads: list[bytes] = []  # of each request, its line and what came with it

    def stall(self, marker: str, side: Side, after_bytes: int = 0, *, bytes_per_s: int = 0, times: int = 1) -> None:
        """Does this to the next `times` requests whose line contains `marker`, in place of what was said before."""
        with self._guard:
            self._stalls = [Stall(marker.encode(), side, after_bytes, bytes_per_s, times)]
            self.struck = 0
            self.ports.clear()

    @property
    def is_dropped(self) -> bool:
        """Whether the client, in this process, has closed each connection that was stalled."""
        open_ports = {each.laddr.port for each in psutil.Process().net_connections("tcp") if each.laddr}
        return not open_ports.intersection(self.ports)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._guard:
            for each in self._sockets:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
                each.close()

    def serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with self._guard:
                self._sockets.append(client)
                if self.is_deaf:
                    self.struck += 1
                    continue
            connection = _Connection(self, client, socket.create_connection(self._server))
            with self._guard:
                self._sockets.append(connection.server)
            for pump in (connection.upload, connection.download):
                threading.Thread(target=pump, daemon=True).start()

    def stall_for(self, data: bytes, port: int, before: Stall | None) -> Stall | None:
        """The stall for a request that begins with `data`; what there was before, if none begins here."""
        line, is_http, _ = data.partition(b" HTTP/1.1\r\n")
        if not is_http or b"\r\n" in line:
            return before
        with self._guard:
            self.heads.append(data[:4096])
            for stall in self._stalls:
                if stall.times and stall.marker in line:
                    stall.times -= 1
                    self.struck += 1
                    self.ports.append(port)
                    return stall
        return None


@dataclass
class _Connection:
    proxy: StallingProxy
    client: socket.socket
    server: socket.socket
    stall: Stall | None = None

    def upload(self) -> None:
        self._pump(self.client, self.server, "upload")

    def download(self) -> None:
        self._pump(self.server, self.client, "download")

    def _pump(self, source: socket.socket, target: socket.socket, side: Side) -> None:
        passed = 0
        seen: Stall | None = None
        with contextlib.suppress(OSError):
            while data := source.recv(_STEP_BYTES):
                if side == "upload":
                    self.stall = self.proxy.stall_for(data, self.client.getpeername()[1], self.stall)
                stall = self.stall
                if stall is not seen:
                    seen, passed = stall, 0
                if stall is not None and stall.side in (side, "both"):
                    if stall.bytes_per_s:
                        time.sleep(len(data) / stall.bytes_per_s)
                    elif passed + len(data) > stall.after_bytes:
                        target.sendall(data[: stall.after_bytes - passed])
                        return  # the connection stays, and nobody reads it
                passed += len(data)
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def stalling_proxy(server_endpoint: str, scheme: str = "http") -> Iterator[StallingProxy]:
    """A proxy on a free port of this machine, for as long as the block lasts."""
    proxy = StallingProxy(server_endpoint, scheme)
    thread = threading.Thread(target=proxy.serve, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.close()
