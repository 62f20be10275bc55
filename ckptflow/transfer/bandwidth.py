"""A limit on bytes per second, over all streams together."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from ckptflow.transfer.streams import StoppedError

_LOOK_S = 0.1  # between two looks whether what is waited for is still wanted


class Bandwidth:
    """Whoever sends asks first, and waits: what was let through by any moment is at most the limit times the time since
    the first, and the last amount. Thread-safe; a pause by nobody is not made up for later."""

    def __init__(
        self,
        bytes_per_s: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._bytes_per_s = bytes_per_s
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._free_at_s = clock()  # by then all that was let through has had its time

    def wait(self, size_bytes: int, is_stopped: Callable[[], bool] = lambda: False) -> None:
        """Returns when so many bytes may be sent. Raises `StoppedError` once that is no longer wanted."""
        with self._lock:
            begin_s = max(self._clock(), self._free_at_s)
            self._free_at_s = begin_s + size_bytes / self._bytes_per_s
        while (left_s := begin_s - self._clock()) > 0:
            if is_stopped():
                raise StoppedError
            self._sleep(min(left_s, _LOOK_S))
