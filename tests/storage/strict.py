"""A file system of fsspec's whose class takes what it knows and nothing else, as those do that hand all options on.

SFTP's gives them to `paramiko.connect`, HDFS's to pyarrow; a class need not know of `mode=` when it writes, or of
keywords when it lists, and `exists` of fsspec's says no whatever went wrong.
"""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass, field
from typing import Any, ClassVar

import fsspec
from fsspec import AbstractFileSystem
from fsspec.utils import infer_storage_options

from ckptflow.storage.opening import open_store
from ckptflow.storage.store import Store

SCHEME = "ckptflow-strict"


class StrictFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """Files below a folder of this disk, listed once and from then on by its cache, unless that is off."""

    protocol = SCHEME
    given: ClassVar[list[dict[str, Any]]] = []
    failing: ClassVar[set[str]] = set()  # names of calls that find no server
    unlisted: ClassVar[dict[str, OSError]] = {}  # what listing a folder of this name raises

    def __init__(self, host: str, *, base: str, username: str | None = None, password: str | None = None) -> None:
        super().__init__()
        self.given.append({"host": host, "base": base, "username": username, "password": password})
        self._base = base

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(infer_storage_options(path)["path"]).rstrip("/")

    @staticmethod
    def _get_kwargs_from_urls(url: str) -> dict[str, Any]:
        found = infer_storage_options(url)
        return {name: found[name] for name in ("host", "username", "password") if found.get(name)}

    def _at(self, path: str) -> str:
        return self._base + self._strip_protocol(path)

    def _reach(self, call: str) -> None:
        if call in self.failing:
            raise ConnectionResetError("the server does not answer")

    def info(self, path: str) -> dict[str, Any]:
        self._reach("info")
        at = self._at(path)
        if not os.path.lexists(at):
            raise FileNotFoundError(path)
        kind = "directory" if os.path.isdir(at) else "file"
        return {"name": self._strip_protocol(path), "size": os.path.getsize(at), "type": kind}

    def ls(self, path: str, detail: bool = False) -> list[Any]:
        path = self._strip_protocol(path)
        if error := self.unlisted.get(path.rpartition("/")[2]):
            raise error
        if path not in self.dircache:
            self.dircache[path] = [self.info(f"{path}/{name}") for name in os.listdir(self._at(path))]
        found = self.dircache.get(path) or [self.info(f"{path}/{name}") for name in os.listdir(self._at(path))]
        return found if detail else [each["name"] for each in found]

    def mkdir(self, path: str, create_parents: bool = True) -> None:
        os.mkdir(self._at(path))

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        os.makedirs(self._at(path), exist_ok=exist_ok)

    def pipe_file(self, path: str, value: bytes) -> None:
        partial = f"{self._at(path)}.{uuid.uuid4().hex}"
        with open(partial, "xb") as file:
            file.write(value)
        os.replace(partial, self._at(path))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        with open(self._at(path), "rb") as file:
            return file.read()[start:end]

    def rm_file(self, path: str) -> None:
        os.remove(self._at(path))


fsspec.register_implementation(SCHEME, StrictFileSystem, clobber=True)


@dataclass
class StrictBackend:
    base: str
    root: str = field(default_factory=lambda: f"/run {uuid.uuid4().hex[:8]}")

    def open(self) -> Store:
        return open_store(f"{SCHEME}://me:planted-word@host{self.root}", {"base": self.base})

    def _at(self, key: str) -> str:
        return f"{self.base}{self.root}/{key}"

    def raw_put(self, key: str, data: bytes) -> None:
        os.makedirs(os.path.dirname(self._at(key)), exist_ok=True)
        with open(self._at(key), "wb") as file:
            file.write(data)

    def raw_get(self, key: str) -> bytes:
        with open(self._at(key), "rb") as file:
            return file.read()

    def raw_list(self) -> dict[str, int]:
        paths = [os.path.join(above, name) for above, _, names in os.walk(self.base + self.root) for name in names]
        return {os.path.relpath(path, self.base + self.root): os.path.getsize(path) for path in paths}
