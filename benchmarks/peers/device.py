"""The limit on a disk: the same bytes, straight to it and back, and nothing else done."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator

import numpy as np

from benchmarks.peers.base import Peer, Point, divided, each_at_once

BLOCK_BYTES = 64 << 20


class Device(Peer):
    """`O_DIRECT` from and to reused, page-aligned memory in files of 64 MiB, each fsynced; one or two at once."""

    is_limit = True
    note = "no tensors, no checksums, new files each time; the old ones are deleted between rounds"
    threads = 1

    def __init__(self, point: Point) -> None:
        self._folder = point.url
        self._sizes = divided(-(-point.size_bytes // 4096) * 4096, BLOCK_BYTES)
        self._buffers = [mmap.mmap(-1, max(self._sizes)) for _ in range(self.threads)]
        for buffer in self._buffers:
            np.frombuffer(buffer, np.uint8)[:] = 1
        self._written: list[str] = []
        self._old: list[str] = []

    def save(self, round_number: int) -> None:
        self._old, self._written = (
            self._written,
            [f"{self._folder}/{round_number}-{i}" for i in range(len(self._sizes))],
        )
        each_at_once(self._sizes, self._buffers, self._write)

    def tidy(self) -> None:
        for path in self._old:
            os.unlink(path)

    def restore(self) -> None:
        each_at_once(self._sizes, self._buffers, self._read)

    def close(self) -> None:
        for path in self._written:
            os.unlink(path)

    def _write(self, number: int, view: memoryview) -> None:
        with self._open(number, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as descriptor:
            if os.pwrite(descriptor, view, 0) != len(view):
                raise OSError("short write")
            os.fsync(descriptor)

    def _read(self, number: int, view: memoryview) -> None:
        with self._open(number, os.O_RDONLY) as descriptor:
            if os.preadv(descriptor, [view], 0) != len(view):
                raise OSError("short read")

    @contextlib.contextmanager
    def _open(self, number: int, flags: int) -> Iterator[int]:
        descriptor = os.open(self._written[number], flags | os.O_DIRECT, 0o600)
        try:
            yield descriptor
        finally:
            os.close(descriptor)


class DeviceTwice(Device):
    """Two at once: some devices need that to show all they can."""

    threads = 2
