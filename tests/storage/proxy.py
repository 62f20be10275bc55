"""An HTTP proxy in front of a real server that spoils single replies, in each way that networks and gateways have."""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.servers import Server
from tests.storage.wrong import HTML
from tests.waiting import HANG_S

# What an S3 client parses without complaint: of a listing it is one of nothing.
XHTML = b'<?xml version="1.0"?><html><head><title>Sign in</title></head><body><p>Please sign in</p></body></html>'


@dataclass
class Reply:
    """One reply: what the server said, or what the proxy makes of it."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    announced: int | None = None  # bytes, where that is not what comes
    pause_s: float = 0.0  # before each half of the body

    def page(self, body: bytes = XHTML, status: int = 200) -> Reply:
        return Reply(status, body, {"Content-Type": "text/html", "ETag": '"5d8c72a5edda8d6a"'})


Ask = Callable[[], Reply]
# What becomes of one request: `ask` sends it to the server. None: the connection is cut without a reply.
Fault = Callable[[Ask], Reply | None]
# What a server lacks: its refusal of a request, by line and headers (names in lower case); None for what it takes.
Rule = Callable[[str, dict[str, str]], Reply | None]


def lost_before(ask: Ask) -> None:
    return None


def lost_after(ask: Ask) -> None:
    ask()


def twice(ask: Ask) -> Reply:
    ask()
    return ask()


def slow(ask: Ask) -> Reply:
    reply = ask()
    reply.pause_s = 0.2
    return reply


def flipped(ask: Ask) -> Reply:
    reply = ask()
    if reply.body:
        data = bytearray(reply.body)
        data[len(data) // 2] ^= 1
        reply.body = bytes(data)
    return reply


def cut(ask: Ask) -> Reply:
    """Fewer bytes than announced."""
    reply = ask()
    reply.announced = len(reply.body)
    reply.body = reply.body[: len(reply.body) // 2]
    return reply


def short(ask: Ask) -> Reply:
    """Fewer bytes than were asked for, and announced as that."""
    reply = ask()
    reply.body = reply.body[: len(reply.body) // 2]
    return reply


def empty(ask: Ask) -> Reply:
    return Reply(200)


def page(ask: Ask) -> Reply:
    return Reply(200).page()


def page_of_html(ask: Ask) -> Reply:
    return Reply(200).page(HTML)


def page_with_md5(ask: Ask) -> Reply:
    """As an object storage that serves pages sends one."""
    reply = Reply(200).page()
    reply.headers["ETag"] = '"5d8c72a5edda8d6a5d8c72a5edda8d6a"'
    return reply


def page_after(ask: Ask) -> Reply:
    """It was done, and the reply is a page."""
    ask()
    return Reply(200).page()


def page_at_length(ask: Ask) -> Reply:
    """With the headers, the status and the length of the right reply."""
    reply = ask()
    reply.body = (XHTML * (len(reply.body) // len(XHTML) + 1))[: len(reply.body)]
    return reply


def status(code: int, *, after: bool = False) -> Fault:
    def fault(ask: Ask) -> Reply:
        if after:
            ask()
        reply = Reply(200).page(HTML, code)
        if code in (302, 307):
            reply.headers["Location"] = "http://127.0.0.1:9/sign-in"
        return reply

    fault.__name__ = f"status_{code}{'_after' if after else ''}"
    return fault


FAULTS: list[Fault] = [
    lost_before, lost_after, twice, slow, flipped, cut, short, empty, page, page_of_html, page_after, page_at_length,
    status(302), status(307), status(400), status(403), status(404), status(500), status(503), status(500, after=True),
]  # fmt: skip


class FaultyProxy:
    """Forwards HTTP to a server; `spoil` says what becomes of the next requests."""

    def __init__(self, server: Server) -> None:
        self._host = server.endpoint.partition("://")[2]
        self._guard = threading.Lock()
        self._next: list[tuple[Fault, str, int]] = []
        self.requests: list[str] = []  # "GET /bucket/key?query", in order
        self.connections: list[tuple[str, int]] = []  # of each request, by where it came from
        self.endpoint = ""
        self.headers: list[dict[str, str]] = []
        self.rules: list[Rule] = []

    def spoil(self, fault: Fault, marker: str = "", skip: int = 0, times: int = 1) -> None:
        """Does `fault` to `times` requests whose line contains `marker`, after `skip` of them."""
        with self._guard:
            self._next = [(fault, marker, skip + number) for number in range(times)]

    @property
    def is_done(self) -> bool:
        """Whether every fault has struck."""
        return not self._next

    def fault_for(self, line: str, peer: tuple[str, int], headers: dict[str, str]) -> Fault | None:
        with self._guard:
            self.requests.append(line)
            self.connections.append(peer)
            self.headers.append(headers)
            chosen = None
            left: list[tuple[Fault, str, int]] = []
            for fault, marker, skip in self._next:
                if marker not in line:
                    left.append((fault, marker, skip))
                elif skip == 0 and chosen is None:
                    chosen = fault
                else:
                    left.append((fault, marker, skip - 1))
            self._next = left
            return chosen

    def ask(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Reply:
        named = {name.lower(): value for name, value in headers.items()}
        refusals = (rule(f"{method} {path}", named) for rule in self.rules)
        refusal = next((reply for reply in refusals if reply is not None), None)
        if refusal is not None:
            return refusal
        connection = http.client.HTTPConnection(self._host, timeout=HANG_S)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in headers.items():
                if name.lower() not in ("connection", "expect"):
                    connection.putheader(name, value)
            connection.endheaders(body)
            reply = connection.getresponse()
            passed = {k: v for k, v in reply.getheaders() if k.lower() not in ("connection", "transfer-encoding")}
            return Reply(reply.status, reply.read(), passed)
        finally:
            connection.close()


@contextlib.contextmanager
def faulty_proxy(server: Server) -> Iterator[FaultyProxy]:
    """A proxy on a free port of this machine, for as long as the block lasts."""
    proxy = FaultyProxy(server)

    class Handler(_Handler):
        pass

    Handler.proxy = proxy
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        listener.daemon_threads = True
        proxy.endpoint = f"http://127.0.0.1:{listener.server_address[1]}"
        thread = threading.Thread(target=listener.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield proxy
        finally:
            listener.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FaultyProxy

    def log_message(self, *_: Any) -> None:
        pass

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # whoever has met a fault goes away
            super().handle()

    def _handle(self) -> None:
        body = self._body()
        headers = dict(self.headers.items())
        if "chunked" in headers.get("Transfer-Encoding", ""):
            del headers["Transfer-Encoding"]
            headers["Content-Length"] = str(len(body))
        fault = self.proxy.fault_for(f"{self.command} {self.path}", self.client_address, headers)

        def ask() -> Reply:
            return self.proxy.ask(self.command, self.path, headers, body)

        reply = ask() if fault is None else fault(ask)
        if reply is None:
            self.close_connection = True
            return
        self._send(reply)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _handle  # noqa: N815 - the names that http.server looks for

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(parts)

    def _send(self, reply: Reply) -> None:
        is_cut = reply.announced is not None
        length = len(reply.body) if reply.announced is None else reply.announced
        with contextlib.suppress(OSError):
            self.send_response_only(reply.status)
            for name, value in reply.headers.items():
                if name.lower() != "content-length":
                    self.send_header(name, value)
            if reply.status != 204:
                length_said = reply.headers.get("Content-Length", "0") if self.command == "HEAD" else str(length)
                self.send_header("Content-Length", length_said)
            self.end_headers()
            if self.command != "HEAD":
                half = len(reply.body) // 2
                for part in (reply.body[:half], reply.body[half:]):
                    time.sleep(reply.pause_s)
                    self.wfile.write(part)
                    self.wfile.flush()
        self.close_connection = self.close_connection or is_cut
