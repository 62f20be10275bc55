"""The part of Google's XML API that obstore uses, in this process: for the one client that no emulator here can serve.

Written from https://cloud.google.com/storage/docs/xml-api: PUT and GET with Range, and
`x-goog-if-generation-match: 0`, which is what makes a creation exclusive. Listing with paging, deleting, and the
uploads that gcsfs does in obstore's place are those of the JSON API, as the store asks for them.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from ckptflow.storage.opening import open_store
from ckptflow.storage.store import Store

PAGE = 1_000
JSON_API = "/storage/v1/b/bucket/o"
PREFIX = "run 7/ü/"


@dataclass
class GcsXmlBackend:
    """A bucket that is a dictionary behind an HTTP server, reached behind a store's back by the dictionary."""

    endpoint: str
    objects: dict[str, bytes] = field(default_factory=dict)

    @classmethod
    @contextlib.contextmanager
    def serving(cls) -> Iterator[GcsXmlBackend]:
        server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        server.daemon_threads = True
        backend = cls(f"http://127.0.0.1:{server.server_address[1]}")
        server.objects, server.guard = backend.objects, threading.Lock()  # type: ignore[attr-defined]
        server.generations, server.numbers = {}, itertools.count(1)  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield backend
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    def open(self) -> Store:
        options = {"token": "anon", "endpoint_url": self.endpoint, "client": "obstore"}
        return open_store(f"gs://bucket/{PREFIX}", options)

    def raw_put(self, key: str, data: bytes) -> None:
        self.objects[PREFIX + key] = data

    def raw_get(self, key: str) -> bytes:
        return self.objects[PREFIX + key]

    def raw_list(self) -> dict[str, int]:
        return {name[len(PREFIX) :]: len(data) for name, data in self.objects.items() if name.startswith(PREFIX)}


def _etag(data: bytes) -> str:
    return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    @property
    def _name(self) -> str:
        path = unquote(urlsplit(self.path).path)
        return path.removeprefix(JSON_API if path.startswith(JSON_API) else "/bucket").removeprefix("/")

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"ETag": _etag(b""), "Last-Modified": "Tue, 24 Nov 2026 16:00:00 GMT", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self, status: int, code: str) -> None:
        self._answer(status, f"<Error><Code>{code}</Code><Message>refused: {code}</Message></Error>".encode())

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        is_new = self.headers.get("x-goog-if-generation-match") == "0"
        self._write(self._name, data, is_new)

    def do_POST(self) -> None:
        """The JSON API's upload in one request, as gcsfs sends it: metadata, then the data; or its copy."""
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if "/rewriteTo/" in self.path:
            return self._copy()
        _, about, rest = body.split(b"\r\n\r\n", 2)
        name = json.loads(about.partition(b"\r\n--")[0])["name"]
        data = rest[: rest.rindex(b"\r\n--")]
        reply = {"kind": "storage#object", "name": name, "size": str(len(data))}
        return self._write(name, data, "ifGenerationMatch=0" in self.path, reply)

    def _copy(self) -> None:
        path, _, query = self.path.partition("?")
        source, name = (unquote(part.rpartition("/o/")[2]) for part in path.split("/rewriteTo/"))
        with self.server.guard:  # type: ignore[attr-defined]
            data = self.server.objects.get(source)  # type: ignore[attr-defined]
            generation = self.server.generations.get(source)  # type: ignore[attr-defined]
        if data is None:
            return self._refuse(404, "NoSuchKey")
        if parse_qs(query)["ifSourceGenerationMatch"] != [generation]:
            return self._refuse(412, "PreconditionFailed")
        return self._write(name, data, False, {"kind": "storage#rewriteResponse", "done": True})

    def _write(self, name: str, data: bytes, is_new: bool, about: dict[str, Any] | None = None) -> None:
        with self.server.guard:  # type: ignore[attr-defined]
            objects: dict[str, bytes] = self.server.objects  # type: ignore[attr-defined]
            if is_new and name in objects:
                return self._refuse(412, "PreconditionFailed")
            objects[name] = data
            generation = str(next(self.server.numbers))  # type: ignore[attr-defined]
            self.server.generations[name] = generation  # type: ignore[attr-defined]
        told = {"generation": generation, "resource": {"generation": generation}}
        reply = json.dumps({**about, **told}).encode() if about else b""
        return self._answer(200, reply, ETag=_etag(data), x_goog_generation=generation)

    def do_HEAD(self) -> None:
        data = self.server.objects.get(self._name)  # type: ignore[attr-defined]
        if data is None:
            return self._answer(404)
        generation = self.server.generations.get(self._name, "0")  # type: ignore[attr-defined]
        return self._answer(200, data, ETag=_etag(data), x_goog_generation=generation)

    def do_DELETE(self) -> None:
        if self.server.objects.pop(self._name, None) is None:  # type: ignore[attr-defined]
            return self._refuse(404, "NoSuchKey")
        return self._answer(204)

    def do_GET(self) -> None:
        if not self._name:
            return self._list()
        data = self.server.objects.get(self._name)  # type: ignore[attr-defined]
        if data is None:
            return self._refuse(404, "NoSuchKey")
        first, last = (int(part) for part in self.headers["Range"].removeprefix("bytes=").split("-"))
        if first >= len(data):
            return self._refuse(416, "InvalidRange")
        part = data[first : last + 1]
        content_range = f"bytes {first}-{first + len(part) - 1}/{len(data)}"
        return self._answer(206, part, Content_Range=content_range, Content_Type="application/octet-stream")

    def _list(self) -> None:
        query = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
        objects: dict[str, bytes] = dict(self.server.objects)  # type: ignore[attr-defined]
        names = sorted(name for name in objects if name.startswith(query.get("prefix", "")))
        page = [name for name in names if name > query.get("pageToken", "")][: PAGE + 1]
        items = [{"kind": "storage#object", "name": name, "size": str(len(objects[name]))} for name in page[:PAGE]]
        more = {"nextPageToken": page[PAGE - 1]} if len(page) > PAGE else {}
        self._answer(200, json.dumps({"kind": "storage#objects", "items": items, **more}).encode())
