"""What is read off before and after: CPU, memory, and the page cache put aside."""

from __future__ import annotations

import ctypes
import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager


def cpu_s() -> float:
    """User and system time of this process and of its children that have ended."""
    usages = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


class Meter:
    """Wall time, CPU and the peak of resident memory during the block."""

    wall_s = 0.0
    cpu_s = 0.0
    peak_bytes = 0

    def lap(self) -> float:
        """Seconds since the block began."""
        return time.perf_counter() - self.started_s

    def __init__(self) -> None:
        self.started_s = time.perf_counter()


@contextmanager
def metered() -> Iterator[Meter]:
    """Measures the block. The kernel's high-water mark of this process is put back to where it is now."""
    with open("/proc/self/clear_refs", "w") as marks:
        marks.write("5")
    cpu = cpu_s()
    meter = Meter()
    yield meter
    meter.wall_s = meter.lap()
    meter.cpu_s = cpu_s() - cpu
    meter.peak_bytes = _status_bytes("VmHWM")


def resident_bytes() -> int:
    """What this process holds, once it has given back what it has freed: glibc keeps that otherwise."""
    ctypes.CDLL(None).malloc_trim(0)
    return _status_bytes("VmRSS")


def _status_bytes(field: str) -> int:
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def fsync_all(folder: str) -> None:
    """Makes every file below `folder`, and every name, durable."""
    for parent, _, names in os.walk(folder):
        for path in [*(os.path.join(parent, name) for name in names), parent]:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def drop_from_page_cache(folder: str) -> None:
    """Puts every file below `folder` out of the page cache, so that it is read from the disk."""
    for parent, _, names in os.walk(folder):
        for name in names:
            descriptor = os.open(os.path.join(parent, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
