"""A file on a web server, brought to this disk."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable
from typing import Any

from ckptflow.storage import faults
from ckptflow.storage.clients import open_file_system
from ckptflow.storage.remote import RemoteStore
from ckptflow.storage.retry import Retries
from ckptflow.storage.whole import check_room, write_all

_SIGNATURE_CHARACTERS = 16  # and more: a value of the query that long may be what lets its bearer in


class HttpFile(RemoteStore):
    """One file at an `http://` or `https://` URL, read as a stream. Errors never show the URL's query."""

    def __init__(self, url: str, storage_options: dict[str, Any]) -> None:
        options = {name: value for name, value in storage_options.items() if name != "client"}
        self._fs, self._address = open_file_system(url, url.partition("://")[0], options)
        super().__init__(url, "", options)
        query = url.partition("?")[2]
        self._secrets += [text for text in (query, *re.split("[&=]", query)) if len(text) >= _SIGNATURE_CHARACTERS]

    def download(self, path: str, max_bytes: int) -> None:
        """Writes the file to `path`, tried again from its start where that may help.

        Raises `ObjectNotFoundError`, and `UsageError` or `StorageFullError` as soon as it is known to be too long.
        """
        Retries().run(lambda: self._download(path, max_bytes))

    def _download(self, path: str, max_bytes: int) -> None:
        from fsspec.callbacks import Callback

        def check(size_bytes: int) -> None:
            check_room(self._url, size_bytes, max_bytes, os.path.dirname(path))

        class Announced(Callback):  # type: ignore[misc]
            def set_size(self, size: int | None) -> None:
                check(size or 0)

        # Else a server may pack what is packed already, and say the length of that.
        headers = {"Accept-Encoding": "identity"} | dict(self._fs.kwargs.get("headers") or {})
        with self._mapped("read"), _Bounded(path, max_bytes, check) as file:
            self._fs.get_file(self._address, file, callback=Announced(), headers=headers)


class _Bounded(io.FileIO):
    """A file that raises what `too_long` raises rather than become longer than `max_bytes`."""

    def __init__(self, path: str, max_bytes: int, too_long: Callable[[int], None]) -> None:
        super().__init__(path, "wb")
        self._path, self._max_bytes, self._too_long = path, max_bytes, too_long
        self._end = 0

    def write(self, data: Any) -> int:
        begin, self._end = self._end, self._end + len(data)
        if self._end > self._max_bytes:
            self._too_long(self._end)
        try:
            write_all(self, memoryview(data), begin)
        except OSError as error:
            raise faults.from_os_error(error, "write", self._path) from error
        return len(data)
