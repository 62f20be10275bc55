"""The storages under test, each with a way behind the store's back that shares no code with it."""

from __future__ import annotations

import json
import os
import urllib.parse
import urllib.request
import uuid
from dataclasses import dataclass, field
from typing import Any

from ckptflow.storage.opening import open_store
from ckptflow.storage.store import Store
from ckptflow.testing import MemoryStore
from tests import servers
from tests.waiting import HANG_S

BUCKET = servers.BUCKET


@dataclass
class LocalBackend:
    """A folder, reached by plain file calls."""

    root: str

    def open(self) -> Store:
        return open_store(self.root)

    def raw_put(self, key: str, data: bytes) -> None:
        path = os.path.join(self.root, key)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(data)

    def raw_get(self, key: str) -> bytes:
        with open(os.path.join(self.root, key), "rb") as file:
            return file.read()

    def raw_list(self) -> dict[str, int]:
        paths = [os.path.join(folder, name) for folder, _, names in os.walk(self.root) for name in names]
        return {os.path.relpath(path, self.root): os.path.getsize(path) for path in paths}


@dataclass
class S3Backend:
    """A fresh prefix of a bucket, reached by boto3."""

    server: servers.Server
    client: str  # "fsspec" or "obstore"
    prefix: str = field(default_factory=lambda: f"run {uuid.uuid4().hex[:8]}/ü")

    def __post_init__(self) -> None:
        self._s3 = servers.s3_client(self.server)

    def open(self) -> Store:
        # Sixteen who create one object wait for one another in the server.
        options = {**self.server.storage_options, "client": self.client, "stall_timeout_s": HANG_S}
        return open_store(f"s3://{BUCKET}/{self.prefix}", options)

    def raw_put(self, key: str, data: bytes) -> None:
        self._s3.put_object(Bucket=BUCKET, Key=f"{self.prefix}/{key}", Body=data)

    def raw_get(self, key: str) -> bytes:
        return bytes(self._s3.get_object(Bucket=BUCKET, Key=f"{self.prefix}/{key}")["Body"].read())

    def raw_list(self) -> dict[str, int]:
        pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=self.prefix + "/")
        found = [entry for page in pages for entry in page.get("Contents", [])]
        return {entry["Key"][len(self.prefix) + 1 :]: entry["Size"] for entry in found}


@dataclass
class GcsBackend:
    """A fresh prefix of a bucket, reached by Google's JSON API over plain HTTP."""

    server: servers.Server
    prefix: str = field(default_factory=lambda: f"run {uuid.uuid4().hex[:8]}/ü")

    def open(self) -> Store:
        return open_store(f"gs://{BUCKET}/{self.prefix}", self.server.storage_options)

    def raw_put(self, key: str, data: bytes) -> None:
        name = urllib.parse.quote(f"{self.prefix}/{key}", safe="")
        url = f"{self.server.endpoint}/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name={name}"
        servers.request(url, "POST", data)

    def raw_get(self, key: str) -> bytes:
        name = urllib.parse.quote(f"{self.prefix}/{key}", safe="")
        return servers.request(f"{self.server.endpoint}/storage/v1/b/{BUCKET}/o/{name}?alt=media")

    def raw_list(self) -> dict[str, int]:
        found: dict[str, int] = {}
        token = ""
        while True:
            prefix = urllib.parse.quote(self.prefix + "/", safe="")
            url = f"{self.server.endpoint}/storage/v1/b/{BUCKET}/o?prefix={prefix}&pageToken={token}"
            page = json.loads(servers.request(url))
            for entry in page.get("items", []):
                found[entry["name"][len(self.prefix) + 1 :]] = int(entry["size"])
            token = urllib.parse.quote(page.get("nextPageToken", ""), safe="")
            if not token:
                return found


@dataclass
class FsspecMemoryBackend:
    """A folder of fsspec's memory:// file system, reached by its own dictionary."""

    root: str = field(default_factory=lambda: f"/run-{uuid.uuid4().hex[:8]}/ü b")

    def open(self) -> Store:
        return open_store("memory:/" + self.root)

    def _files(self) -> dict[str, Any]:
        from fsspec.implementations.memory import MemoryFileSystem

        files: dict[str, Any] = MemoryFileSystem.store
        return files

    def raw_put(self, key: str, data: bytes) -> None:
        from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

        path = f"{self.root}/{key}"
        self._files()[path] = MemoryFile(MemoryFileSystem(), path, data)

    def raw_get(self, key: str) -> bytes:
        return bytes(self._files()[f"{self.root}/{key}"].getvalue())

    def raw_list(self) -> dict[str, int]:
        base = self.root + "/"
        return {path[len(base) :]: file.size for path, file in list(self._files().items()) if path.startswith(base)}


@dataclass
class DictBackend:
    """Our own `MemoryStore`, reached by its dictionary."""

    objects: dict[str, bytes] = field(default_factory=dict)

    def open(self) -> Store:
        return MemoryStore(self.objects)

    def raw_put(self, key: str, data: bytes) -> None:
        self.objects[key] = data

    def raw_get(self, key: str) -> bytes:
        return self.objects[key]

    def raw_list(self) -> dict[str, int]:
        return {key: len(data) for key, data in self.objects.items()}
