"""`RangeFile`: what can be read in ranges, as a file."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any


class RangeFile(io.RawIOBase):
    """So many bytes as a file to read: `read_into(view, offset)` fills a view and returns how many bytes came."""

    def __init__(self, size_bytes: int, read_into: Callable[[memoryview, int], int]) -> None:
        self._size_bytes, self._read_into = size_bytes, read_into
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size_bytes}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")[: max(0, self._size_bytes - self._at)]
        count = self._read_into(view, self._at) if view else 0
        self._at += count
        return count
